//! Finds libnccl. A process must not hold two of them, so the one that libtorch brought along comes before any other
//! of the system.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::fmt;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};

use crate::LoadError;
use crate::sys::{Functions, ncclSuccess};

/// Environment variable that names the libnccl to use instead of all others.
pub const NCCL_PATH_VARIABLE: &str = "WRN_DIST_NCCL";

const NAME: &str = "libnccl.so.2";
/// All functions of [`crate::sys`] are there since this version; `ncclMemAlloc` and `ncclCommRegister` came last.
const OLDEST: Version = Version(21_900);
/// A library with this symbol works on host memory and ignores streams. NVIDIA's has no such symbol.
const HOST_MEMORY_SYMBOL: &[u8] = b"wrn_dist_nccl_works_on_host_memory\0";

/// As NCCL codes it: 22907 is 2.29.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub c_int);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Up to 2.8 the minor version had one digit less.
        let (major, minor) = match self.0 {
            code @ ..10_000 => (code / 1000, code / 100 % 10),
            code => (code / 10_000, code / 100 % 100),
        };
        write!(f, "{major}.{minor}.{}", self.0 % 100)
    }
}

/// A loaded libnccl, which stays loaded: it has threads of its own. Clones are the same library.
#[derive(Clone)]
pub struct Library(Arc<Loaded>);

struct Loaded {
    functions: Functions,
    version: Version,
    path: PathBuf,
    on_host_memory: bool,
}

impl Library {
    /// The library that the environment variable [`NCCL_PATH_VARIABLE`] names, else the one that is already in this
    /// process, else the system's `libnccl.so.2`.
    ///
    /// # Errors
    /// When there is none, or it is too old.
    pub fn load() -> Result<Library, LoadError> {
        match std::env::var_os(NCCL_PATH_VARIABLE).filter(|path| !path.is_empty()) {
            Some(path) => Library::open(Path::new(&path)),
            None => {
                let name = Path::new(NAME);
                let handle = open(name, libc::RTLD_NOLOAD).or_else(|_| open(name, 0));
                Library::from_handle(handle.map_err(LoadError::Absent)?, name)
            }
        }
    }

    /// The library at `path`.
    ///
    /// # Errors
    /// When it cannot be loaded, is no NCCL, or is too old.
    pub fn open(path: &Path) -> Result<Library, LoadError> {
        let handle =
            open(path, 0).map_err(|reason| LoadError::Unloadable { path: path.to_owned(), reason })?;
        Library::from_handle(handle, path)
    }

    fn from_handle(handle: Handle, name: &Path) -> Result<Library, LoadError> {
        // SAFETY: `nccl.h` declares the function so.
        let get_version =
            unsafe { handle.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"ncclGetVersion\0") };
        let Ok(get_version) = get_version.map(|symbol| *symbol) else {
            return Err(LoadError::Incomplete { path: name.to_owned(), missing: "ncclGetVersion" });
        };
        let path = file_of(get_version as *const ()).unwrap_or_else(|| name.to_owned());
        let mut code = 0;
        // SAFETY: a valid place to write to.
        let result = unsafe { get_version(&mut code) };
        if result != ncclSuccess {
            return Err(LoadError::NoVersion { path, code: result });
        }
        let version = Version(code);
        if version < OLDEST {
            return Err(LoadError::TooOld { path, found: version, wanted: OLDEST });
        }
        // SAFETY: it has NCCL's functions, and is never unloaded.
        let functions = match unsafe { Functions::find(&handle) } {
            Ok(functions) => functions,
            Err(missing) => return Err(LoadError::Incomplete { path, missing }),
        };
        // SAFETY: only looked up.
        let on_host_memory = unsafe { handle.get::<*const ()>(HOST_MEMORY_SYMBOL) }.is_ok();
        std::mem::forget(handle);
        Ok(Library(Arc::new(Loaded { functions, version, path, on_host_memory })))
    }

    /// The functions.
    #[must_use]
    pub fn functions(&self) -> &Functions {
        &self.0.functions
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.0.version
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether it works on host memory rather than that of a GPU, as this project's test double does.
    #[must_use]
    pub fn works_on_host_memory(&self) -> bool {
        self.0.on_host_memory
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL {} at {}", self.version(), self.path().display())
    }
}

fn open(name: &Path, more_flags: c_int) -> Result<Handle, String> {
    // The loader would wait for ever for somebody to write into a pipe. A name without a slash it looks for itself.
    let is_path = name.as_os_str().as_encoded_bytes().contains(&b'/');
    if is_path && std::fs::metadata(name).is_ok_and(|metadata| !metadata.is_file()) {
        return Err("it is not a regular file".to_owned());
    }
    // SAFETY: a library under NCCL's name, or that the user named, whose initialisation may run.
    unsafe { Handle::open(Some(name), RTLD_NOW | RTLD_LOCAL | more_flags) }.map_err(|error| {
        // libloading's own words name only the function that failed.
        std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
    })
}

/// The file that a loaded function lies in.
fn file_of(function: *const ()) -> Option<PathBuf> {
    let mut info = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: any address may be asked for; the place to write to is valid.
    let found = unsafe { libc::dladdr(function.cast(), info.as_mut_ptr()) } != 0;
    // SAFETY: filled when found; the name is a string of the loader, or null.
    let name = found.then(|| unsafe { info.assume_init() }.dli_fname).filter(|name| !name.is_null())?;
    // SAFETY: as above; the library stays loaded.
    let name = unsafe { CStr::from_ptr(name) };
    Some(PathBuf::from(name.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_nvidia_writes_them() {
        for (code, text) in [(22_907, "2.29.7"), (21_900, "2.19.0"), (2_708, "2.7.8"), (30_001, "3.0.1")] {
            assert_eq!(Version(code).to_string(), text);
        }
        assert!(Version(2_708) < OLDEST && OLDEST < Version(22_907));
    }
}
