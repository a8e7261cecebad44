//! Opens files for writing whose names can be foreseen, in folders that may come from somebody else: never through a
//! symbolic link, and never something that is no regular file. What is in the making is its owner's alone: others could
//! read half of it, or write to what is to be trusted later. What is written is the caller's business.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// What nobody but the owner may open.
const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_FOLDER: u32 = 0o700;
/// Those of a mode that can be changed: not what kind of thing it is.
const ALL_BITS: u32 = 0o7777;

/// The permissions that a file or folder has when it is made in the usual way, by the umask, or what its folder hands
/// down. The kernel tells them of something that was made so only: a process cannot ask for its umask without setting
/// it, for all threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsualMode(Permissions);

impl UsualMode {
    /// That of a file. A file is made under the name `free` for that, empty, and removed.
    ///
    /// # Errors
    /// When the folder cannot be written to, or the name is that of a folder.
    pub fn of_file(free: &Path) -> io::Result<Self> {
        let usual = create_anew(OpenOptions::new().write(true), free)?.metadata()?.permissions();
        fs::remove_file(free)?;
        Ok(UsualMode(usual))
    }

    fn of_folder(free: &Path) -> io::Result<Self> {
        fs::create_dir(free)?;
        let usual = fs::symlink_metadata(free)?.permissions();
        fs::remove_dir(free)?;
        Ok(UsualMode(usual))
    }

    /// Lets others at what was made privately. To be called when it is whole, before it gets its name.
    ///
    /// # Errors
    /// When its permissions cannot be changed.
    pub fn give_to(&self, made: &File) -> io::Result<()> {
        // Some file systems have the same for all, and refuse any change.
        let same = (made.metadata()?.permissions().mode() ^ self.0.mode()) & ALL_BITS == 0;
        if same { Ok(()) } else { made.set_permissions(self.0.clone()) }
    }
}

/// Creates an empty file that nobody but its owner can open, and tells what it is to get when it is whole. Whatever
/// stood under its name, such as what an interrupted attempt left or a link, loses the name, and keeps its content.
///
/// # Errors
/// When the folder cannot be written to, or the name is that of a folder.
pub fn create_privately(path: &Path) -> io::Result<(File, UsualMode)> {
    // Of another file than the one that is written: who has opened that keeps it open.
    let usual = UsualMode::of_file(path)?;
    let file = create_anew(OpenOptions::new().write(true).mode(PRIVATE_FILE), path)?;
    Ok((file, usual))
}

/// Creates an empty folder that nobody but its owner can look into, as [`create_privately`] does a file.
///
/// # Errors
/// When the folder above cannot be written to, or the name is taken.
pub fn create_folder_privately(path: &Path) -> io::Result<(File, UsualMode)> {
    let usual = UsualMode::of_folder(path)?;
    DirBuilder::new().mode(PRIVATE_FOLDER).create(path)?;
    let flags = libc::O_NOFOLLOW | libc::O_DIRECTORY;
    Ok((OpenOptions::new().read(true).custom_flags(flags).open(path)?, usual))
}

fn create_anew(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => options.create_new(true).open(path),
    }
}

/// Opens a file to append to, with the content that it has; creates it where it is missing.
///
/// # Errors
/// When it cannot be written to, or is a symbolic link or another thing than a regular file.
pub fn open_to_append(path: &Path) -> io::Result<File> {
    append_with(&mut OpenOptions::new(), path)
}

/// As [`open_to_append`], but that nobody else can open the file from now on.
///
/// # Errors
/// As there.
pub fn open_privately_to_append(path: &Path) -> io::Result<File> {
    let file = append_with(OpenOptions::new().mode(PRIVATE_FILE), path)?;
    UsualMode(Permissions::from_mode(PRIVATE_FILE)).give_to(&file)?;
    Ok(file)
}

fn append_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // A pipe without a reader is then an error, where it would block for ever.
    options.create(true).append(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => io::Error::other("it is a symbolic link; expected a file, or none"),
        Some(libc::ENXIO) => not_regular(),
        _ => error,
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_regular()) }
}

fn not_regular() -> io::Error {
    io::Error::other("it is not a regular file")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    #[test]
    fn nothing_is_written_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("precious"), "mine").unwrap();
        for target in ["precious", "missing"] {
            symlink(at(target), at("link")).unwrap();
            let refused = open_to_append(&at("link")).unwrap_err().to_string();
            assert!(refused.contains("symbolic link"), "{refused}");
            create_privately(&at("link")).unwrap().0.write_all(b"new").unwrap();
            assert!(at("link").symlink_metadata().unwrap().is_file());
            fs::remove_file(at("link")).unwrap();
        }
        fs::hard_link(at("precious"), at("second")).unwrap();
        create_privately(&at("second")).unwrap().0.write_all(b"new").unwrap();
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

    /// Runs `test` of this binary in a process of its own for each of these umasks, with the umask in `CASE`.
    pub(crate) fn under_each_umask(test: &str) {
        for umask in ["022", "002", "077"] {
            let mut command = Command::new("sh");
            command.args(["-c", "umask \"$0\" && exec \"$@\"", umask]).arg(std::env::current_exe().unwrap());
            let output = command.args([test, "--exact", "--nocapture"]).env(CASE, umask).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            let passed = output.status.success() && text.contains("1 passed");
            assert!(passed, "{umask}: {text}{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// In a process of [`under_each_umask`], what its umask leaves of `mode`.
    pub(crate) fn usual(mode: u32) -> Option<u32> {
        let umask = std::env::var(CASE).ok()?;
        Some(mode & !u32::from_str_radix(&umask, 8).unwrap())
    }

    pub(crate) fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & ALL_BITS
    }

    const CASE: &str = "OWN_FILE_TEST_UMASK";

    #[test]
    fn what_is_in_the_making_is_its_owner_s_and_then_as_usual() {
        under_each_umask("own_file::tests::made_under_a_umask");
    }

    /// By itself it does nothing.
    #[test]
    fn made_under_a_umask() {
        let (Some(file_mode), Some(folder_mode)) = (usual(0o666), usual(0o777)) else { return };
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (file, usual) = create_privately(&at("file")).unwrap();
        assert_eq!(mode(&at("file")), 0o600);
        usual.give_to(&file).unwrap();
        assert_eq!(mode(&at("file")), file_mode);
        drop(open_privately_to_append(&at("file")).unwrap());
        assert_eq!(mode(&at("file")), 0o600);

        // What it inherits stays.
        fs::create_dir(at("above")).unwrap();
        for setgid in [0, 0o2000] {
            fs::set_permissions(at("above"), Permissions::from_mode(0o755 | setgid)).unwrap();
            let path = at("above").join(format!("folder-{setgid}"));
            let (folder, usual) = create_folder_privately(&path).unwrap();
            assert_eq!(mode(&path), 0o700 | setgid);
            usual.give_to(&folder).unwrap();
            assert_eq!(mode(&path), folder_mode | setgid);
        }
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}
