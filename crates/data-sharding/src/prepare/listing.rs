//! What a source holds, before anything is copied: every sample with its label and the place of its bytes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::file;

/// A sample of a source.
#[derive(Debug)]
pub(crate) struct Sample {
    /// Path below the root or inside the archive, for keys and messages.
    pub(crate) name: Box<str>,
    pub(crate) label: u32,
    pub(crate) length: u64,
    pub(crate) place: Place,
}

/// Where the bytes of a sample are.
#[derive(Debug)]
pub(crate) enum Place {
    /// A file of its own.
    File(Box<Path>),
    /// Inside the listing's archive, uncompressed.
    Archive { offset: u64 },
}

/// All samples of one half of a source, in an order that depends on nothing but their names.
#[derive(Debug)]
pub(crate) struct Listing {
    /// Data set and half of it, for the manifest.
    pub(crate) source: String,
    pub(crate) classes: Vec<String>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) archive: Option<SourceArchive>,
}

/// An archive whose members are read where they lie.
#[derive(Debug)]
pub(crate) struct SourceArchive {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
}

impl Listing {
    /// For messages.
    pub(crate) fn path_of(&self, sample: &Sample) -> PathBuf {
        match (&sample.place, &self.archive) {
            (Place::File(path), _) => path.to_path_buf(),
            (Place::Archive { .. }, Some(archive)) => archive.path.join(&*sample.name),
            (Place::Archive { .. }, None) => PathBuf::from(&*sample.name),
        }
    }

    /// Reads the file of a sample.
    pub(crate) fn read(&self, sample: &Sample, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        let path = self.path_of(sample);
        // Lengths come from the file system, or from an archive that is at least as long.
        bytes.resize(sample.length as usize, 0);
        let read = match (&sample.place, &self.archive) {
            (Place::File(path), _) => {
                let (opened, length) = file::open(path)?;
                if length != sample.length {
                    return Err(DataError::Invalid {
                        path: path.to_path_buf(),
                        problem: format!("has {length} bytes by now"),
                        expected: format!("{}, as when the folder was listed", sample.length),
                    });
                }
                opened.read_exact_at(bytes, 0)
            }
            (Place::Archive { offset }, Some(archive)) => archive.file.read_exact_at(bytes, *offset),
            (Place::Archive { .. }, None) => Err(std::io::Error::other("belongs to no archive")),
        };
        read.map_err(|e| file::unreadable(&path, e))
    }
}
