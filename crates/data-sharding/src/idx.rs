//! The IDX format of MNIST and its successors, plain or gzipped: a big-endian mark 0x00000800 + number of
//! dimensions, each dimension as a big-endian `u32`, then the bytes. Reads unsigned bytes only, the one type
//! these data sets use. Format: <http://yann.lecun.com/exdb/mnist/>.

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::error::DataError;
use crate::file;
use crate::kind::{SourceKind, Split};
use crate::source::Stored;

const MARK_UNSIGNED_BYTES: u32 = 0x0800;

/// Buffers up to this size are allocated at once for a gzipped body, whose true size is not known beforehand.
const TRUSTED_CAPACITY: u64 = 64 << 20;

/// Opens the two files of a split.
pub(crate) fn open(kind: SourceKind, root: &Path, split: Split) -> Result<Stored, DataError> {
    let facts = kind.facts();
    let prefix = match split {
        Split::Train => "train",
        Split::Test => "t10k",
    };
    let find = |content: &str, name: &str| {
        let names = ["", ".gz"].map(|suffix| format!("{prefix}-{name}{suffix}"));
        file::first_existing(root, &names).ok_or_else(|| DataError::MissingFile {
            folder: root.into(),
            content: format!("{kind} {split} {content}"),
            expected: names.join(" or "),
            origin: facts.origin,
        })
    };
    let image_file = find("images", "images-idx3-ubyte")?;
    let label_file = find("labels", "labels-idx1-ubyte")?;

    let labels = read(&label_file, "labels", None)?;
    if labels.is_empty() {
        return Err(DataError::Empty { path: label_file });
    }
    check_labels(&label_file, &labels, facts.classes.len())?;
    let size = [facts.image.height, facts.image.width];
    let pixels = read(&image_file, "images", Some(size))?;
    if pixels.is_empty() {
        return Err(DataError::Empty { path: image_file });
    }
    let image_count = pixels.len() / facts.image.bytes();
    if image_count != labels.len() {
        let label_count = labels.len();
        return Err(DataError::CountMismatch {
            images: image_file,
            labels: label_file,
            image_count,
            label_count,
        });
    }
    let classes = facts.classes.iter().map(|&name| name.into()).collect();
    Ok(Stored { pixels, labels, classes })
}

fn check_labels(path: &Path, labels: &[u8], classes: usize) -> Result<(), DataError> {
    match labels.iter().position(|&label| usize::from(label) >= classes) {
        None => Ok(()),
        Some(sample) => {
            let (path, value) = (path.into(), labels[sample]);
            Err(DataError::LabelRange { path, label: "label", sample, value, classes })
        }
    }
}

/// The body of a file with items of one byte, or of `image` = height x width bytes.
fn read(path: &Path, content: &'static str, image: Option<[u32; 2]>) -> Result<Vec<u8>, DataError> {
    let (opened, length) = file::open(path)?;
    let mut reader = BufReader::with_capacity(1 << 16, opened);
    let gzipped = reader.fill_buf().map_err(|e| file::unreadable(path, e))?.starts_with(&[0x1f, 0x8b]);
    let path = path.to_path_buf();
    if gzipped {
        Idx { path, content, image, plain_length: None, reader: MultiGzDecoder::new(reader), decoded: 0 }
            .read()
    } else {
        Idx { path, content, image, plain_length: Some(length), reader, decoded: 0 }.read()
    }
}

struct Idx<R> {
    path: PathBuf,
    content: &'static str,
    image: Option<[u32; 2]>,
    /// Length of the file where it is not compressed.
    plain_length: Option<u64>,
    reader: R,
    /// Bytes read so far.
    decoded: usize,
}

impl<R: Read> Idx<R> {
    fn read(mut self) -> Result<Vec<u8>, DataError> {
        let dimensions = if self.image.is_some() { 3 } else { 1 };
        let header_bytes = 4 + 4 * u64::from(dimensions);
        let header = self.take(header_bytes, Vec::new())?;
        if (header.len() as u64) < header_bytes {
            let header =
                format!("at least {header_bytes} bytes, the header of an IDX file of {}", self.content);
            return Err(self.length_error("truncated", header, None));
        }
        let mut words = header
            .chunks_exact(4)
            .map(|word| word.iter().fold(0_u32, |value, &byte| value << 8 | u32::from(byte)));
        let mut word = || words.next().unwrap_or_default();

        let (found, expected) = (word(), MARK_UNSIGNED_BYTES + dimensions);
        if found != expected {
            return Err(DataError::Magic { path: self.path, found, expected, dimensions });
        }
        let count = u64::from(word());
        let mut item_bytes = 1;
        let mut item = String::new();
        if let Some(expected) = self.image {
            let found = [word(), word()];
            if found != expected {
                return Err(DataError::ImageSize { path: self.path, found, expected });
            }
            item_bytes = u64::from(found[0]) * u64::from(found[1]);
            item = format!(" of {}x{} bytes", found[0], found[1]);
        }

        // Cannot overflow: the item's size is the data set's own, far below 2^32.
        let body_bytes = count * item_bytes;
        let total = header_bytes + body_bytes;
        let promise = format!("{total} bytes, a header of {header_bytes} and {count} {}{item}", self.content);
        match self.plain_length {
            Some(length) if length < total => {
                return Err(self.length_error("truncated", promise, Some(length)));
            }
            Some(length) if length > total => {
                return Err(self.length_error("too long", promise, Some(length)));
            }
            _ => {}
        }
        let trusted = if self.plain_length.is_some() { body_bytes } else { body_bytes.min(TRUSTED_CAPACITY) };
        // One more than promised, to see whether the file goes on. At the end the gzip checksum is verified
        // too.
        let mut body = self.take(body_bytes + 1, Vec::with_capacity(trusted as usize + 1))?;
        if (body.len() as u64) < body_bytes {
            return Err(self.length_error("truncated", promise, None));
        }
        if body.len() as u64 > body_bytes {
            return Err(self.length_error("too long", promise, None));
        }
        body.shrink_to_fit();
        Ok(body)
    }

    /// Appends up to `limit` bytes; fewer only where the stream ends, whether or not it should.
    fn take(&mut self, limit: u64, mut bytes: Vec<u8>) -> Result<Vec<u8>, DataError> {
        let result = self.reader.by_ref().take(limit).read_to_end(&mut bytes);
        self.decoded += bytes.len();
        match result {
            Ok(_) => Ok(bytes),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(bytes),
            Err(source) if self.plain_length.is_none() => {
                Err(DataError::Gzip { path: self.path.clone(), decoded: self.decoded, source })
            }
            Err(source) => Err(file::unreadable(&self.path, source)),
        }
    }

    fn length_error(self, problem: &'static str, expected: String, found: Option<u64>) -> DataError {
        let found = match (found, self.plain_length, problem) {
            (Some(length), ..) => length.to_string(),
            (None, Some(_), _) => self.decoded.to_string(),
            (None, None, "too long") => format!("{} or more, decompressed", self.decoded),
            (None, None, _) => format!("{}, decompressed", self.decoded),
        };
        DataError::Length { path: self.path, problem, expected, found }
    }
}
