//! Files that appear under their name only when they are complete and on disk. Until then they are their owner's alone.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::own_file::{self, UsualMode};

/// A file in the making. Dropped without [`commit`](Self::commit), or after the process was killed, nothing
/// stands under the final name; what is left of the temporary file is removed by the next attempt.
pub(crate) struct AtomicFile {
    writer: BufWriter<File>,
    /// What it gets with its name.
    usual: UsualMode,
    temporary: PathBuf,
    path: PathBuf,
    committed: bool,
}

/// Name of the temporary file beside `path`. Two processes must not write the same file: callers hold a lock.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

impl AtomicFile {
    pub(crate) fn create(path: &Path) -> Result<Self, DataError> {
        let temporary = temporary(path);
        let (file, usual) = own_file::create_privately(&temporary).map_err(unwritable(&temporary))?;
        let writer = BufWriter::with_capacity(1 << 18, file);
        Ok(AtomicFile { writer, usual, temporary, path: path.into(), committed: false })
    }

    /// Makes the contents durable, then gives them their name.
    pub(crate) fn commit(mut self) -> Result<(), DataError> {
        let finish = |this: &mut Self| {
            this.writer.flush()?;
            this.usual.give_to(this.writer.get_ref())?;
            this.writer.get_ref().sync_all()?;
            fs::rename(&this.temporary, &this.path)
        };
        finish(&mut self).map_err(unwritable(&self.path))?;
        self.committed = true;
        sync_folder(&self.path);
        Ok(())
    }

    /// Replaces the first bytes, which were written before they could be known.
    pub(crate) fn rewrite_start(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        let rewritten = self.writer.flush().and_then(|()| self.writer.get_ref().write_all_at(bytes, 0));
        rewritten.map_err(self.failed())
    }

    /// Leaves room at the start for bytes that are not known yet.
    pub(crate) fn skip(&mut self, bytes: u64) -> Result<(), DataError> {
        self.writer.seek(SeekFrom::Start(bytes)).map(drop).map_err(self.failed())
    }

    /// For `map_err` on writes.
    pub(crate) fn failed(&self) -> impl FnOnce(io::Error) -> DataError + use<> {
        unwritable(&self.path)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a whole small file.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(unwritable(path))?;
    file.commit()
}

/// A rename is durable once its folder is. Not every file system can sync folders; those that cannot order
/// renames by themselves.
fn sync_folder(path: &Path) {
    if let Some(folder) = path.parent().and_then(|folder| File::open(folder).ok()) {
        let _ = folder.sync_all();
    }
}

/// For `map_err` on anything that writes to `path`.
pub(crate) fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> DataError + use<> {
    let path = path.to_owned();
    move |source| DataError::Write { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::own_file::tests::{mode, under_each_umask, usual};

    #[test]
    fn a_file_in_the_making_is_its_owner_s_alone() {
        under_each_umask("atomic::tests::written_under_a_umask");
    }

    /// By itself it does nothing.
    #[test]
    fn written_under_a_umask() {
        let Some(usual) = usual(0o666) else { return };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(&[1; 1 << 19]).unwrap();
        assert_eq!((mode(&temporary(&path)), path.exists()), (0o600, false));
        file.commit().unwrap();
        assert_eq!((mode(&path), temporary(&path).exists()), (usual, false));
    }
}
