//! The variables of a MAT file, one after the other, without holding more than a piece of one in memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};

use flate2::bufread::ZlibDecoder;

use super::{COMPRESSED, LONGEST_NAME, MATRIX, MOST_DIMENSIONS, invalid, value_bytes};
use crate::error::DataError;
use crate::file;

const HEADER_BYTES: u64 = 128;

/// An opened MAT file.
pub(crate) struct MatFile<R> {
    path: PathBuf,
    reader: BufReader<R>,
    length: u64,
    /// Where the next variable begins.
    next: u64,
}

/// A variable whose header has been read.
pub(crate) struct Matrix<'a> {
    path: &'a Path,
    pub(crate) class: u32,
    pub(crate) dimensions: Vec<u64>,
    pub(crate) name: String,
    /// Continues behind the name.
    reader: Box<dyn Read + 'a>,
}

/// Type and length of an element, and its data where they stand in the tag itself.
pub(super) struct Tag {
    pub(super) kind: u32,
    pub(super) bytes: u32,
    pub(super) small: Option<[u8; 4]>,
}

impl Tag {
    pub(super) fn read(reader: &mut dyn Read) -> io::Result<Self> {
        let mut words = [0; 8];
        reader.read_exact(&mut words)?;
        let [a, b, c, d, e, f, g, h] = words;
        let first = u32::from_le_bytes([a, b, c, d]);
        if first >> 16 == 0 {
            return Ok(Tag { kind: first, bytes: u32::from_le_bytes([e, f, g, h]), small: None });
        }
        if first >> 16 > 4 {
            return Err(io::Error::other("a small element of more than 4 bytes"));
        }
        Ok(Tag { kind: first & 0xffff, bytes: first >> 16, small: Some([e, f, g, h]) })
    }

    /// Bytes behind the data up to the next element.
    pub(super) fn padding(&self) -> u64 {
        if self.small.is_some() { 0 } else { u64::from(self.bytes.wrapping_neg() % 8) }
    }

    /// The data of an element of at most `limit` bytes.
    fn data(&self, reader: &mut dyn Read, limit: usize) -> io::Result<Vec<u8>> {
        if self.bytes as usize > limit {
            return Err(io::Error::other(format!("an element of {} bytes", self.bytes)));
        }
        if let Some(small) = self.small {
            return Ok(small[..self.bytes as usize].to_vec());
        }
        let mut data = vec![0; self.bytes as usize + self.padding() as usize];
        reader.read_exact(&mut data)?;
        data.truncate(self.bytes as usize);
        Ok(data)
    }
}

impl MatFile<File> {
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let (opened, length) = file::open(path)?;
        MatFile::new(path, opened, length)
    }
}

impl<'a> MatFile<Cursor<&'a [u8]>> {
    /// A file in memory; `path` is for messages.
    pub(crate) fn from_bytes(path: &Path, bytes: &'a [u8]) -> Result<Self, DataError> {
        MatFile::new(path, Cursor::new(bytes), bytes.len() as u64)
    }
}

impl<R: Read + Seek> MatFile<R> {
    fn new(path: &Path, reader: R, length: u64) -> Result<Self, DataError> {
        let mut reader = BufReader::with_capacity(1 << 16, reader);
        let mut header = [0; HEADER_BYTES as usize];
        if length < HEADER_BYTES {
            return Err(invalid(
                path,
                format!("has {length} bytes"),
                "a MAT file with a header of 128 bytes",
            ));
        }
        reader.read_exact(&mut header).map_err(|e| file::unreadable(path, e))?;
        match &header[124..] {
            [0, 1, b'I', b'M'] => {}
            [0, 2, b'I', b'M'] => {
                return Err(invalid(path, "is a MAT file of version 7.3 (HDF5)", "version 5, as published"));
            }
            _ => return Err(invalid(path, "is no MAT file", "a little-endian MAT file of version 5")),
        }
        Ok(MatFile { path: path.into(), reader, length, next: HEADER_BYTES })
    }

    /// The next variable; what was not read of the one before is skipped, without decompressing it.
    pub(crate) fn next(&mut self) -> Result<Option<Matrix<'_>>, DataError> {
        let path = &self.path;
        let at = self.next;
        if at == self.length {
            return Ok(None);
        }
        let damaged = |error: io::Error| damaged(path, &format!("in the variable at byte {at}"), &error);
        self.reader.seek(SeekFrom::Start(at)).map_err(|e| file::unreadable(path, e))?;
        let tag = Tag::read(&mut self.reader).map_err(damaged)?;
        let end = at + 8 + u64::from(tag.bytes) + if tag.kind == COMPRESSED { 0 } else { tag.padding() };
        if tag.small.is_some() || end > self.length {
            let problem = format!("the variable at byte {at} ends at byte {end}, behind the end of the file");
            return Err(invalid(path, problem, "a complete file"));
        }
        self.next = end;
        let content = (&mut self.reader).take(u64::from(tag.bytes));
        let mut reader: Box<dyn Read> = match tag.kind {
            COMPRESSED => {
                let mut reader: Box<dyn BufRead> =
                    Box::new(BufReader::with_capacity(1 << 16, ZlibDecoder::new(content)));
                let tag = Tag::read(&mut reader).map_err(damaged)?;
                if tag.kind != MATRIX {
                    return Err(invalid(path, format!("holds an element of type {}", tag.kind), "matrices"));
                }
                // A little more than the matrix, so that reading up to its end also reaches the checksum.
                Box::new(reader.take(u64::from(tag.bytes) + 8))
            }
            MATRIX => Box::new(content),
            other => return Err(invalid(path, format!("holds an element of type {other}"), "matrices")),
        };
        let (class, dimensions, name) = matrix_header(&mut reader).map_err(damaged)?;
        Ok(Some(Matrix { path, class, dimensions, name, reader }))
    }
}

/// Class, dimensions and name.
pub(super) fn matrix_header(reader: &mut dyn Read) -> io::Result<(u32, Vec<u64>, String)> {
    let mut element = |limit| Tag::read(reader)?.data(reader, limit);
    let class = element(8)?.first().copied().unwrap_or_default().into();
    let dimensions = element(4 * MOST_DIMENSIONS)?;
    let dimensions =
        dimensions.as_chunks().0.iter().map(|&side| u64::from(u32::from_le_bytes(side))).collect();
    let name = String::from_utf8_lossy(&element(LONGEST_NAME)?).into_owned();
    Ok((class, dimensions, name))
}

impl<'a> Matrix<'a> {
    /// Everything behind the name, if that is at most `limit` bytes.
    pub(crate) fn content(self, limit: u64) -> Result<Vec<u8>, DataError> {
        let mut content = Vec::new();
        let read = self.reader.take(limit + 1).read_to_end(&mut content);
        let name = format!("in the variable {}", self.name);
        read.map_err(|e| damaged(self.path, &name, &e))?;
        if content.len() as u64 > limit {
            return Err(invalid(self.path, format!("{} is longer than {limit} bytes", self.name), "less"));
        }
        Ok(content)
    }

    /// The numbers of an array, as their type and a reader of exactly as many values as `dimensions` say.
    pub(crate) fn numbers(mut self) -> Result<Numbers<'a>, DataError> {
        let place = format!("in the variable {}", self.name);
        let tag = Tag::read(&mut self.reader).map_err(|e| damaged(self.path, &place, &e))?;
        let count = self.dimensions.iter().try_fold(1_u64, |count, &side| count.checked_mul(side));
        let bytes = value_bytes(tag.kind).and_then(|size| count?.checked_mul(size as u64));
        let (Some(count), Some(bytes)) = (count, bytes) else {
            return Err(invalid(self.path, format!("{} is no array of numbers", self.name), "one"));
        };
        if bytes != u64::from(tag.bytes) {
            let problem = format!("{} has {} bytes for {:?} values", self.name, tag.bytes, self.dimensions);
            return Err(invalid(self.path, problem, format!("{bytes} bytes")));
        }
        let small = tag.small.map(|small| small[..bytes as usize].to_vec()).unwrap_or_default();
        let rest = bytes - small.len() as u64;
        let reader = Cursor::new(small).chain(self.reader.take(rest));
        Ok(Numbers { path: self.path, place, kind: tag.kind, count, reader })
    }
}

/// The values of an array, to be read one after the other.
pub(crate) struct Numbers<'a> {
    path: &'a Path,
    place: String,
    kind: u32,
    pub(crate) count: u64,
    reader: Chain<Cursor<Vec<u8>>, Take<Box<dyn Read + 'a>>>,
}

impl Numbers<'_> {
    /// Whether values are single unsigned bytes.
    pub(crate) fn are_bytes(&self) -> bool {
        self.kind == super::UINT8
    }

    /// The next bytes of the values as stored.
    pub(crate) fn bytes(&mut self, bytes: &mut [u8]) -> Result<(), DataError> {
        self.reader.read_exact(bytes).map_err(|e| damaged(self.path, &self.place, &e))
    }

    /// The next number.
    pub(crate) fn number(&mut self) -> Result<f64, DataError> {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..value_bytes(self.kind).unwrap_or(1)];
        self.bytes(bytes)?;
        Ok(super::number(self.kind, bytes).unwrap_or(f64::NAN))
    }

    /// Ends reading with the check of what was compressed.
    pub(crate) fn finish(self) -> Result<(), DataError> {
        let mut rest = self.reader.into_inner().1.into_inner();
        io::copy(&mut rest, &mut io::sink()).map(drop).map_err(|e| damaged(self.path, &self.place, &e))
    }
}

fn damaged(path: &Path, place: &str, error: &io::Error) -> DataError {
    let problem = if error.kind() == io::ErrorKind::UnexpectedEof {
        format!("ends too early {place}")
    } else {
        format!("is damaged {place}: {error}")
    };
    invalid(path, problem, "a complete MAT file of version 5")
}
