//! Image files that lie about in a folder, as they are: for looking at and measuring data that has not been prepared.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::error::DataError;
use crate::file;
use crate::shards::archive::IMAGE_EXTENSIONS;
use crate::source::{EncodedSource, Labelled};

/// All JPEG and PNG files under a folder, in the order of their paths. The class of each is the folder it lies in,
/// counted in order.
pub struct ImageFiles {
    name: String,
    classes: Vec<String>,
    files: Vec<(PathBuf, u32)>,
}

impl ImageFiles {
    /// Lists the files; reads none.
    ///
    /// # Errors
    /// If the folder cannot be read, or has no such file in it.
    pub fn open(root: &Path) -> Result<Self, DataError> {
        let mut files = Vec::new();
        let mut classes: Vec<String> = Vec::new();
        for entry in WalkDir::new(root).follow_links(true).sort_by_file_name() {
            let entry = entry.map_err(|e| {
                let path = e.path().unwrap_or(root).to_path_buf();
                let source = e.into_io_error().unwrap_or_else(|| std::io::Error::other("a loop of links"));
                DataError::Io { path, source }
            })?;
            let extension = entry.path().extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
            if entry.file_type().is_dir() || !extension.is_some_and(|e| IMAGE_EXTENSIONS.contains(&&*e)) {
                continue;
            }
            let folder = entry.path().parent().and_then(|folder| folder.strip_prefix(root).ok());
            let class = folder.unwrap_or(Path::new("")).to_string_lossy().into_owned();
            if classes.last() != Some(&class) {
                classes.push(class);
            }
            files.push((entry.into_path(), classes.len() as u32 - 1));
        }
        if files.is_empty() {
            return Err(DataError::Empty { path: root.into() });
        }
        Ok(ImageFiles { name: format!("images under {}", root.display()), classes, files })
    }
}

impl Labelled for ImageFiles {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> usize {
        self.files.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Nothing is known of what the files hold.
    fn fingerprint(&self) -> &str {
        ""
    }

    fn label(&self, sample: usize) -> u32 {
        self.files[sample].1
    }
}

impl EncodedSource for ImageFiles {
    fn read<'a>(&'a self, sample: usize, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], DataError> {
        let path = &self.files[sample].0;
        buffer.clear();
        File::open(path)
            .and_then(|mut file| file.read_to_end(buffer))
            .map_err(|e| file::unreadable(path, e))?;
        Ok(buffer)
    }

    fn seek_record(&self, _: usize) -> Option<&[u8]> {
        None
    }

    fn describe(&self, sample: usize) -> String {
        self.files[sample].0.display().to_string()
    }
}
