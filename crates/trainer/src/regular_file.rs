//! Reads whole files that the user named. What never ends (a device) or never begins (a pipe without a writer) is
//! refused, and so is what would fill the memory. What is in them is the caller's business.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// The bytes of a regular file of at most `most` bytes.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let too_long = |bytes: &str| io::Error::other(format!("it has {bytes} bytes; expected at most {most}"));
    if metadata.len() > most {
        return Err(too_long(&metadata.len().to_string()));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    // Files of the kernel say that they have no bytes, and others may grow meanwhile.
    if bytes.len() as u64 > most { Err(too_long("more")) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "four").unwrap();
        assert_eq!(read(&path, 4).unwrap(), b"four");
        let sparse = dir.path().join("sparse");
        File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
        for (path, expected) in [
            (&*path, "it has 4 bytes; expected at most 3"),
            (&*sparse, "it has 1099511627776 bytes; expected at most 3"),
            (Path::new("/dev/null"), "it is not a regular file"),
            (Path::new("/proc/self/status"), "it has more bytes; expected at most 3"),
            (dir.path(), "directory"),
        ] {
            let said = read(path, 3).unwrap_err().to_string();
            assert!(said.contains(expected), "{}: {said}", path.display());
        }
    }
}
