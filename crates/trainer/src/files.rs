//! Files and folders that are found under a name rather than made: each may be of another kind than what was written
//! there, or far too long. Opening a FIFO waits for ever, and a device has no end, so both are refused before they are
//! opened. A link is as good as what it leads to. What a file means is its reader's business.

use std::fs::{self, File, FileType, Metadata};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use data_sharding::own_file;

/// No file of tensors is longer: 4 billion numbers, some hundred times those of the largest published network.
pub(crate) const MOST_BYTES: u64 = 16 << 30;

/// Reads a regular file of at most `most` bytes.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let len = regular(&fs::metadata(path)?)?.len();
    if len > most {
        return Err(io::Error::other(format!("it has {len} bytes, expected at most {most}")));
    }
    let mut bytes = Vec::new();
    usize::try_from(len)
        .ok()
        .and_then(|len| bytes.try_reserve_exact(len).ok())
        .ok_or_else(|| io::Error::other(format!("there is no memory for its {len} bytes")))?;
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    // Files of the kernel say that they have no bytes, and others may grow meanwhile.
    match bytes.len() as u64 > most {
        true => Err(io::Error::other(format!("it has more bytes, expected at most {most}"))),
        false => Ok(bytes),
    }
}

/// Refuses anything but a regular file, where there is something.
pub(crate) fn expect_file(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        found => regular(&found?).map(drop),
    }
}

/// Refuses anything but a folder, where there is something.
pub(crate) fn expect_folder(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        found => match found?.file_type() {
            kind if kind.is_dir() => Ok(()),
            kind => Err(misplaced(kind, "a folder")),
        },
    }
}

/// Makes a folder, and those above it, unless it is there.
pub(crate) fn create_folder(path: &Path) -> io::Result<()> {
    expect_folder(path)?;
    fs::create_dir_all(path)
}

/// Writes a file so that its name holds the whole of it, or what it held before. Does not wait for the disk: a rank that
/// fails has no time.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("partial");
    let (mut file, usual) = own_file::create_privately(&unfinished)?;
    file.write_all(bytes)?;
    usual.give_to(&file)?;
    fs::rename(&unfinished, path)
}

fn regular(metadata: &Metadata) -> io::Result<&Metadata> {
    match metadata.file_type() {
        kind if kind.is_file() => Ok(metadata),
        kind => Err(misplaced(kind, "a regular file")),
    }
}

fn misplaced(kind: FileType, expected: &str) -> io::Error {
    let kinds = [
        (kind.is_file(), "a regular file"),
        (kind.is_dir(), "a folder"),
        (kind.is_fifo(), "a FIFO"),
        (kind.is_socket(), "a socket"),
    ];
    let found = kinds.iter().find(|(is, _)| *is).map_or("a device", |(_, name)| name);
    io::Error::other(format!("it is {found}, expected {expected}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_regular_files_of_a_sensible_length_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "abc").unwrap();
        symlink(at("file"), at("link")).unwrap();
        symlink("/dev/zero", at("endless")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
        // Nothing but a length.
        File::create(at("long")).unwrap().set_len(1 << 40).unwrap();
        for (name, most, expected) in [
            ("file", 3, Ok("abc")),
            ("link", 3, Ok("abc")),
            ("file", 2, Err("it has 3 bytes, expected at most 2")),
            ("folder", 3, Err("it is a folder, expected a regular file")),
            ("fifo", 3, Err("it is a FIFO, expected a regular file")),
            ("endless", 3, Err("it is a device, expected a regular file")),
            ("long", MOST_BYTES, Err("it has 1099511627776 bytes")),
            ("none", 3, Err("No such file")),
        ] {
            match (read(&at(name), most), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected.as_bytes()),
                (Err(found), Err(expected)) => {
                    assert!(found.to_string().contains(expected), "{name}: {found}")
                }
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
        let of_the_kernel = read(Path::new("/proc/self/status"), 3).unwrap_err().to_string();
        assert_eq!(of_the_kernel, "it has more bytes, expected at most 3");
        for (name, is_file, is_folder) in
            [("file", true, false), ("folder", false, true), ("fifo", false, false), ("none", true, true)]
        {
            assert_eq!(
                (expect_file(&at(name)).is_ok(), expect_folder(&at(name)).is_ok()),
                (is_file, is_folder),
                "{name}"
            );
        }
        let error = create_folder(&at("file")).unwrap_err().to_string();
        assert_eq!(error, "it is a regular file, expected a folder");
        create_folder(&at("new/one")).unwrap();
        create_folder(&at("new/one")).unwrap();
    }

    #[test]
    fn what_is_written_whole_goes_through_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for link in ["record.json", "record.partial"] {
            symlink(at("elsewhere"), at(link)).unwrap();
        }
        for text in ["one", "two"] {
            write_whole(&at("record.json"), text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(at("record.json")).unwrap(), text);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
