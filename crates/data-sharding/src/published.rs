//! Archives as their authors publish them: name, size, checksum and address. Reads them only to compute checksums.

use std::fmt::Write;
use std::io::Read;
use std::path::Path;

use md5::Md5;
use sha2::{Digest as _, Sha256};

use crate::error::DataError;
use crate::file;
use crate::kind::SourceKind;
use crate::progress::Progress;

/// A published file.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) file: &'static str,
    /// Size, where it is known.
    pub(crate) bytes: Option<u64>,
    pub(crate) checksum: Checksum,
    /// Folder of its address; none where it may not be fetched without an account.
    pub(crate) from: Option<&'static str>,
}

/// A checksum in hexadecimal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Checksum {
    Md5(&'static str),
    Sha256(&'static str),
}

const TORONTO: Option<&str> = Some("https://www.cs.toronto.edu/~kriz/");
const STANFORD: Option<&str> = Some("http://ufldl.stanford.edu/housenumbers/");

static CIFAR10: [Published; 1] = [Published {
    file: "cifar-10-binary.tar.gz",
    bytes: Some(170_052_171),
    checksum: Checksum::Sha256("c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    from: TORONTO,
}];

static CIFAR100: [Published; 1] = [Published {
    file: "cifar-100-binary.tar.gz",
    bytes: Some(168_513_733),
    checksum: Checksum::Md5("03b5dce01913d631647c71ecec9e9cb8"),
    from: TORONTO,
}];

static SVHN: [Published; 3] = [
    Published {
        file: "train_32x32.mat",
        bytes: Some(182_040_794),
        checksum: Checksum::Sha256("435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
        from: STANFORD,
    },
    Published {
        file: "extra_32x32.mat",
        bytes: Some(1_329_278_602),
        checksum: Checksum::Sha256("a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3"),
        from: STANFORD,
    },
    Published {
        file: "test_32x32.mat",
        bytes: Some(64_275_384),
        checksum: Checksum::Md5("eb5a983be6a315427106f1b164d9cef3"),
        from: STANFORD,
    },
];

pub(crate) static IMAGENET_TRAIN: Published = Published {
    file: "ILSVRC2012_img_train.tar",
    bytes: Some(147_897_477_120),
    checksum: Checksum::Md5("1d675b47d978889d74fa0da5fadfb00e"),
    from: None,
};

pub(crate) static IMAGENET_VALIDATION: Published = Published {
    file: "ILSVRC2012_img_val.tar",
    bytes: Some(6_744_924_160),
    checksum: Checksum::Md5("29b22e2961454d5413ddabcf34fc5622"),
    from: None,
};

pub(crate) static IMAGENET_DEVKIT: Published = Published {
    file: "ILSVRC2012_devkit_t12.tar.gz",
    bytes: None,
    checksum: Checksum::Md5("fa75699e90414af021442c21a62c3abf"),
    from: None,
};

/// The data sets whose archives anybody may fetch.
pub(crate) const FETCHED: [SourceKind; 3] = [SourceKind::Cifar10, SourceKind::Cifar100, SourceKind::Svhn];

/// The archives that a data set of small images is made from; none where they are not known.
pub(crate) fn archives(kind: SourceKind) -> &'static [Published] {
    match kind {
        SourceKind::Cifar10 => &CIFAR10,
        SourceKind::Cifar100 => &CIFAR100,
        SourceKind::Svhn | SourceKind::SvhnWithoutExtra => &SVHN,
        SourceKind::FashionMnist => &[],
    }
}

/// A checksum in the making.
enum Hasher {
    Md5(Md5),
    Sha256(Sha256),
}

impl Checksum {
    fn hasher(self) -> (Hasher, &'static str, &'static str) {
        match self {
            Checksum::Md5(expected) => (Hasher::Md5(Md5::new()), "MD5", expected),
            Checksum::Sha256(expected) => (Hasher::Sha256(Sha256::new()), "SHA-256", expected),
        }
    }
}

impl Hasher {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Md5(hash) => hash.update(bytes),
            Hasher::Sha256(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> String {
        let digest: Vec<u8> = match self {
            Hasher::Md5(hash) => hash.finalize().to_vec(),
            Hasher::Sha256(hash) => hash.finalize().to_vec(),
        };
        digest.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl Published {
    /// What sets the file at `path` apart from the published one; none where they are the same. A file of another size
    /// is not read.
    pub(crate) fn differs(&self, path: &Path, progress: &Progress) -> Result<Option<DataError>, DataError> {
        let (mut opened, length) = file::open(path)?;
        let differs = |problem: String, expected: String| {
            Ok(Some(DataError::Invalid { path: path.into(), problem, expected }))
        };
        if let Some(bytes) = self.bytes.filter(|&bytes| bytes != length) {
            return differs(
                format!("has {length} bytes"),
                format!("{bytes}, as the published {} has", self.file),
            );
        }
        let (mut hash, name, expected) = self.checksum.hasher();
        progress.stage(format!("checking {}", self.file), length);
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = opened.read(&mut buffer).map_err(|e| file::unreadable(path, e))?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            progress.advance(read as u64);
        }
        progress.finish();
        let found = hash.finish();
        if found == expected {
            return Ok(None);
        }
        differs(format!("has the {name} {found}"), format!("{expected}, as the published {} has", self.file))
    }
}
