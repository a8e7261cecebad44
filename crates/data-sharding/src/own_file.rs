//! Opens files for writing whose names can be foreseen, in folders that may come from somebody else: never through a
//! symbolic link, and never something that is no regular file. What is written is the caller's business.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Creates an empty file. Whatever stood under its name, such as what an interrupted attempt left or a link, loses the
/// name, and keeps its content.
///
/// # Errors
/// When the folder cannot be written to, or the name is that of a folder.
pub fn create_anew(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => File::create_new(path),
    }
}

/// Opens a file to append to, with the content that it has; creates it where it is missing.
///
/// # Errors
/// When it cannot be written to, or is a symbolic link or another thing than a regular file.
pub fn open_to_append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // A pipe without a reader is then an error, where it would block for ever.
    options.create(true).append(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => link(),
        Some(libc::ENXIO) => not_regular(),
        _ => error,
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_regular()) }
}

/// For what is read before it is written: a link leads to a file that may be anybody's.
///
/// # Errors
/// When `path` is a symbolic link.
pub fn refuse_link(path: &Path) -> io::Result<()> {
    if path.is_symlink() { Err(link()) } else { Ok(()) }
}

fn link() -> io::Error {
    io::Error::other("it is a symbolic link; expected a file, or none")
}

fn not_regular() -> io::Error {
    io::Error::other("it is not a regular file")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn nothing_is_written_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("precious"), "mine").unwrap();
        for target in ["precious", "missing"] {
            symlink(at(target), at("link")).unwrap();
            let refused = open_to_append(&at("link")).unwrap_err().to_string();
            assert!(refused.contains("symbolic link"), "{refused}");
            create_anew(&at("link")).unwrap().write_all(b"new").unwrap();
            assert!(at("link").symlink_metadata().unwrap().is_file());
            fs::remove_file(at("link")).unwrap();
        }
        fs::hard_link(at("precious"), at("second")).unwrap();
        create_anew(&at("second")).unwrap().write_all(b"new").unwrap();
        assert_eq!(fs::read_to_string(at("precious")).unwrap(), "mine");
        assert!(!at("missing").exists());
    }

    #[test]
    fn a_file_is_appended_to_and_another_thing_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for text in ["a", "b"] {
            open_to_append(&path).unwrap().write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "ab");
        let socket = dir.path().join("socket");
        let _listening = UnixListener::bind(&socket).unwrap();
        assert!(open_to_append(&socket).unwrap_err().to_string().contains("regular"));
        assert!(open_to_append(dir.path()).is_err());
    }
}
