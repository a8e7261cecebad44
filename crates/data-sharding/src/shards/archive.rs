//! Tar files in WebDataset's layout, written and scanned: files whose path is equal up to the first dot of the base
//! name and which stand next to each other are one sample; what follows that dot says what the file is. Format:
//! <https://github.com/webdataset/webdataset>.

use std::io::{self, Read};
use std::path::Path;

use tar::{Archive, Builder, EntryType, Header};
use xxhash_rust::xxh3::Xxh3Default;

use super::record::{BLOCK_BYTES, Record};
use crate::atomic::AtomicFile;
use crate::error::DataError;
use crate::file;
use crate::image_size::{ImageFormat, ImageProbe};

/// Extensions of images, in lower case.
pub(crate) const IMAGE_EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];
const LABEL_EXTENSION: &str = "cls";
/// Digits of a label, with room for line ends.
const LONGEST_LABEL: u64 = 32;
/// An image file of this size is surely none; also what an index record can say.
const LONGEST_IMAGE: u64 = u32::MAX as u64;

/// Bytes that a sample takes in a shard: image and label, each with a header.
pub(crate) fn stored_bytes(image_length: u64) -> u64 {
    3 * BLOCK_BYTES + image_length.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

/// Writes a shard. Nothing but names, images and labels goes in (times and owners are zero), so that the same samples
/// give the same bytes.
pub(crate) struct ShardWriter {
    builder: Builder<AtomicFile>,
}

impl ShardWriter {
    pub(crate) fn create(path: &Path) -> Result<Self, DataError> {
        Ok(ShardWriter { builder: Builder::new(AtomicFile::create(path)?) })
    }

    /// Appends a sample. `key` must be plain ASCII without a dot, and short.
    pub(crate) fn push(
        &mut self,
        key: &str,
        format: ImageFormat,
        image: &[u8],
        label: u32,
    ) -> Result<(), DataError> {
        self.append(&format!("{key}.{}", format.extension()), image)?;
        self.append(&format!("{key}.{LABEL_EXTENSION}"), label.to_string().as_bytes())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> Result<(), DataError> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        let appended = self.builder.append_data(&mut header, name, bytes);
        appended.map_err(|e| self.builder.get_ref().failed()(e))
    }

    pub(crate) fn commit(self) -> Result<(), DataError> {
        let failed = self.builder.get_ref().failed();
        self.builder.into_inner().map_err(failed)?.commit()
    }
}

/// What a scan finds in a shard.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) bytes: u64,
    /// XXH3-128 of the whole file.
    pub(crate) checksum: u128,
    pub(crate) records: Vec<Record>,
}

/// Reads a whole shard. `image` is called with the bytes of each image, in order; `advance` with the number of bytes
/// done since the last call.
pub(crate) fn scan(
    path: &Path,
    shard: u32,
    mut image: impl FnMut(&[u8]) -> Result<(), DataError>,
    mut advance: impl FnMut(u64),
) -> Result<Scan, DataError> {
    let (opened, length) = file::open(path)?;
    let mut reader =
        Hashing { reader: io::BufReader::with_capacity(1 << 18, opened), hash: Xxh3Default::new() };
    let mut probe = ImageProbe::new()?;
    let mut records = Vec::new();
    let mut open: Option<Incomplete> = None;
    let mut bytes = Vec::new();
    let mut done = 0;
    {
        let mut archive = Archive::new(&mut reader);
        let damaged = |position: u64, error: &io::Error| DataError::Invalid {
            path: path.into(),
            problem: format!("is damaged after byte {position}: {error}"),
            expected: "a whole tar file".into(),
        };
        for entry in archive.entries().map_err(|e| damaged(0, &e))? {
            let mut entry = entry.map_err(|e| damaged(done, &e))?;
            let position = entry.raw_file_position();
            advance(position - done);
            done = position;
            if entry.header().entry_type() == EntryType::GNUSparse {
                return Err(invalid(path, "holds a sparse file", "plain files only"));
            }
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let Some((key, extension)) = split_name(&name) else { continue };
            let size = entry.size();
            if open.as_ref().is_none_or(|sample| sample.key != key) {
                let begun = Incomplete { key: key.into(), image: None, label: None };
                records.extend(open.replace(begun).map(|sample| sample.finish(path)).transpose()?.flatten());
            }
            let Some(sample) = &mut open else { continue };
            let is_image = IMAGE_EXTENSIONS.contains(&extension.as_str());
            if !is_image && extension != LABEL_EXTENSION {
                continue;
            }
            let longest = if is_image { LONGEST_IMAGE } else { LONGEST_LABEL };
            if size > longest.min(length - position.min(length)) {
                let problem = format!("`{name}` is said to have {size} bytes");
                return Err(invalid(path, &problem, "as many as the file holds, and a sensible number"));
            }
            bytes.clear();
            entry.read_to_end(&mut bytes).map_err(|e| damaged(position, &e))?;
            if bytes.len() as u64 != size {
                let error = io::Error::other(format!("`{name}` is cut off"));
                return Err(damaged(position, &error));
            }
            let twice = |what: &str| {
                let problem = format!("sample `{key}` has two {what}");
                invalid(path, &problem, "one image and one label a sample, next to each other")
            };
            if is_image {
                if sample.image.is_some() {
                    return Err(twice("images"));
                }
                let block = u32::try_from(position / BLOCK_BYTES);
                let (Ok(block), true) = (block, position.is_multiple_of(BLOCK_BYTES)) else {
                    return Err(invalid(path, "is too long", "at most 2 TiB"));
                };
                let (width, height) =
                    probe.header(&bytes).map_or((0, 0), |(_, width, height)| (width, height));
                sample.image = Some(Record { block, length: size as u32, shard, label: 0, width, height });
                image(&bytes)?;
            } else {
                if sample.label.is_some() {
                    return Err(twice("labels"));
                }
                sample.label = Some(parse_label(&bytes).ok_or_else(|| {
                    let problem = format!("`{name}` holds {:?}", String::from_utf8_lossy(&bytes));
                    invalid(path, &problem, "the number of a class, 0 or more, in ASCII")
                })?);
            }
        }
    }
    records.extend(open.map(|sample| sample.finish(path)).transpose()?.flatten());
    // Behind the end mark there may be padding, which the checksum covers too.
    io::copy(&mut reader, &mut io::sink()).map_err(|e| file::unreadable(path, e))?;
    advance(length.saturating_sub(done));
    Ok(Scan { bytes: length, checksum: reader.hash.digest128(), records })
}

fn invalid(path: &Path, problem: &str, expected: &str) -> DataError {
    DataError::Invalid { path: path.into(), problem: problem.into(), expected: expected.into() }
}

/// Key and extension (in lower case) of a file; none where it belongs to no sample.
fn split_name(name: &str) -> Option<(&str, String)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.')?;
    let metadata = name[base..].starts_with("__") && name[base..dot].ends_with("__");
    (dot > base && !metadata).then(|| (&name[..dot], name[dot + 1..].to_ascii_lowercase()))
}

fn parse_label(bytes: &[u8]) -> Option<u32> {
    std::str::from_utf8(bytes).ok()?.trim().parse().ok()
}

/// A sample whose files are still being read.
struct Incomplete {
    key: String,
    image: Option<Record>,
    label: Option<u32>,
}

impl Incomplete {
    /// None for files that belong to no image, such as a text on its own.
    fn finish(self, path: &Path) -> Result<Option<Record>, DataError> {
        match (self.image, self.label) {
            (Some(image), Some(label)) => Ok(Some(Record { label, ..image })),
            (None, None) => Ok(None),
            (image, _) => {
                let missing = if image.is_some() { ".cls with its label" } else { ".jpg, .jpeg or .png" };
                let problem = format!("sample `{}` has no {missing}", self.key);
                Err(invalid(path, &problem, "an image and a .cls for each sample, next to each other"))
            }
        }
    }
}

/// Hashes what is read.
struct Hashing<R> {
    reader: R,
    hash: Xxh3Default,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}
