//! The binary version of CIFAR-10 and CIFAR-100: records of one or two label bytes and 3072 pixels, planes R,
//! G, B, each row by row; and SVHN, which `prepare` brings into the form of CIFAR-10. Does not read the Python and
//! Matlab versions. Format: <https://www.cs.toronto.edu/~kriz/cifar.html>.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::file;
use crate::kind::{SourceKind, Split};
use crate::source::Stored;

/// How the archive of a data set is laid out.
pub(crate) struct Archive {
    /// Folder in the archive.
    pub(crate) folder: &'static str,
    /// Names, and records of a complete file for messages.
    pub(crate) train: &'static [(&'static str, u64)],
    pub(crate) test: &'static [(&'static str, u64)],
    /// Name and number of classes of each label byte; the last is the one used.
    labels: &'static [(&'static str, usize)],
    pub(crate) class_names: &'static str,
}

static CIFAR10: Archive = Archive {
    folder: "cifar-10-batches-bin",
    train: &[
        ("data_batch_1.bin", 10_000),
        ("data_batch_2.bin", 10_000),
        ("data_batch_3.bin", 10_000),
        ("data_batch_4.bin", 10_000),
        ("data_batch_5.bin", 10_000),
    ],
    test: &[("test_batch.bin", 10_000)],
    labels: &[("label", 10)],
    class_names: "batches.meta.txt",
};

static CIFAR100: Archive = Archive {
    folder: "cifar-100-binary",
    train: &[("train.bin", 50_000)],
    test: &[("test.bin", 10_000)],
    labels: &[("coarse label", 20), ("fine label", 100)],
    class_names: "fine_label_names.txt",
};

static SVHN: Archive = Archive {
    folder: "svhn-binary",
    train: &[("train.bin", 73_257), ("extra.bin", 531_131)],
    test: &[("test.bin", 26_032)],
    labels: &[("label", 10)],
    class_names: "class_names.txt",
};

static SVHN_WITHOUT_EXTRA: Archive = Archive { train: &[("train.bin", 73_257)], ..SVHN };

/// How the files of a data set are laid out; none for those in other formats.
pub(crate) fn archive(kind: SourceKind) -> Option<&'static Archive> {
    match kind {
        SourceKind::Cifar10 => Some(&CIFAR10),
        SourceKind::Cifar100 => Some(&CIFAR100),
        SourceKind::Svhn => Some(&SVHN),
        SourceKind::SvhnWithoutExtra => Some(&SVHN_WITHOUT_EXTRA),
        SourceKind::FashionMnist => None,
    }
}

/// Side of an image and pixels of one colour plane.
const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const CHANNELS: usize = 3;

/// A list of class names is a few hundred bytes.
const CLASS_NAMES_LIMIT: u64 = 1 << 16;

/// Opens the files of a split, in `root` or in the archive's folder inside `root`.
pub(crate) fn open(
    kind: SourceKind,
    archive: &Archive,
    root: &Path,
    split: Split,
) -> Result<Stored, DataError> {
    let files = match split {
        Split::Train => archive.train,
        Split::Test => archive.test,
    };
    let folder = locate(root, archive.folder, files);
    let mut stored = Stored { pixels: Vec::new(), labels: Vec::new(), classes: Vec::new() };
    for &(name, complete) in files {
        let missing = || DataError::MissingFile {
            folder: folder.clone(),
            content: format!("{kind} {split} images"),
            expected: format!("{name} here or in a folder {} below", archive.folder),
            origin: kind.facts().origin,
        };
        let path = file::first_existing(&folder, &[name.into()]).ok_or_else(missing)?;
        read(&path, archive, complete, &mut stored)?;
    }
    let names_file = file::first_existing(&folder, &[archive.class_names.into()]);
    stored.classes = match names_file {
        Some(path) => read_class_names(&path, kind.facts().classes.len())?,
        None => kind.facts().classes.iter().map(|&name| name.into()).collect(),
    };
    Ok(stored)
}

/// The folder with the files: `root`, unless only the archive's folder inside it has any of them.
fn locate(root: &Path, archive_folder: &str, files: &[(&str, u64)]) -> PathBuf {
    let names: Vec<String> = files.iter().map(|&(name, _)| name.into()).collect();
    let inner = root.join(archive_folder);
    if file::first_existing(root, &names).is_none() && file::first_existing(&inner, &names).is_some() {
        inner
    } else {
        root.into()
    }
}

/// Appends the records of one file, pixels as height x width x channels.
fn read(path: &Path, archive: &Archive, complete: u64, stored: &mut Stored) -> Result<(), DataError> {
    let (opened, length) = file::open(path)?;
    let label_bytes = archive.labels.len();
    let record_bytes = label_bytes + CHANNELS * PLANE;
    if length == 0 {
        return Err(DataError::Empty { path: path.into() });
    }
    if !length.is_multiple_of(record_bytes as u64) {
        return Err(DataError::Length {
            path: path.into(),
            problem: "ends inside a record",
            expected: format!(
                "a multiple of {record_bytes} bytes ({label_bytes} of labels, {} of pixels; a complete file has {} \
                 bytes in {complete} records)",
                CHANNELS * PLANE,
                complete * record_bytes as u64
            ),
            found: format!("{length}, {} too many", length % record_bytes as u64),
        });
    }

    let records = (length / record_bytes as u64) as usize;
    stored.pixels.reserve_exact(records * CHANNELS * PLANE);
    stored.labels.reserve_exact(records);
    let mut reader = BufReader::with_capacity(1 << 16, opened);
    let mut record = vec![0; record_bytes];
    for sample in 0..records {
        reader.read_exact(&mut record).map_err(|e| file::unreadable(path, e))?;
        let (labels, planes) = record.split_at(label_bytes);
        for (&value, &(label, classes)) in labels.iter().zip(archive.labels) {
            if usize::from(value) >= classes {
                return Err(DataError::LabelRange { path: path.into(), label, sample, value, classes });
            }
        }
        stored.labels.push(labels[label_bytes - 1]);
        let (red, rest) = planes.split_at(PLANE);
        let (green, blue) = rest.split_at(PLANE);
        let colours = red.iter().zip(green).zip(blue);
        stored.pixels.extend(colours.flat_map(|((&red, &green), &blue)| [red, green, blue]));
    }
    Ok(())
}

fn read_class_names(path: &Path, expected: usize) -> Result<Vec<String>, DataError> {
    let error = |found: String| DataError::ClassNames { path: path.into(), found, expected };
    let (opened, length) = file::open(path)?;
    if length > CLASS_NAMES_LIMIT {
        return Err(error(format!("has {length} bytes")));
    }
    let mut bytes = Vec::new();
    opened.take(CLASS_NAMES_LIMIT).read_to_end(&mut bytes).map_err(|e| file::unreadable(path, e))?;
    let text = String::from_utf8(bytes).map_err(|e| error(format!("is no text ({})", e.utf8_error())))?;
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Into::into).collect();
    if names.len() == expected { Ok(names) } else { Err(error(format!("has {} names", names.len()))) }
}
