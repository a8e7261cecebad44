//! Which libnccl is taken, and what is said of one that cannot be used. Each case is a process of its own, since the
//! environment decides and libraries stay loaded.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use nccl_rs::{Library, NCCL_PATH_VARIABLE};

const CASE: &str = "NCCL_RS_TEST_CASE";

/// The body of each process; by itself it does nothing.
#[test]
fn case() {
    if std::env::var_os(CASE).is_some() {
        match Library::load() {
            Ok(library) => println!("loaded {library:?}, host memory: {}", library.works_on_host_memory()),
            Err(error) => println!("error: {error}"),
        }
    }
}

/// What is said with these variables.
fn load_with(environment: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "case", "--nocapture"]).env(CASE, "").env_remove(NCCL_PATH_VARIABLE);
    let output = command.envs(environment.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_library_that_cannot_be_used_is_an_error_in_a_sentence() {
    let double = nccl_double::shared_library();
    let double = double.to_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let pipe = pipe.to_str().unwrap();
    let cases = [
        (
            vec![(NCCL_PATH_VARIABLE, "/nowhere/libnccl.so.2")],
            "WRN_DIST_NCCL names /nowhere/libnccl.so.2, which cannot be loaded: ",
        ),
        (vec![(NCCL_PATH_VARIABLE, pipe)], "/pipe, which cannot be loaded: it is not a regular file"),
        (vec![(NCCL_PATH_VARIABLE, "libm.so.6")], "libm.so.6 is no NCCL: it has no ncclGetVersion"),
        (
            vec![(NCCL_PATH_VARIABLE, double), ("NCCL_DOUBLE_VERSION", "21805")],
            "libnccl_double.so is NCCL 2.18.5; NCCL 2.19.0 or newer is needed",
        ),
        (vec![(NCCL_PATH_VARIABLE, double), ("NCCL_DOUBLE_VERSION", "21900")], "loaded NCCL 2.19.0 at "),
        (vec![(NCCL_PATH_VARIABLE, double)], "libnccl_double.so, host memory: true"),
    ];
    for (environment, expected) in cases {
        let said = load_with(&environment);
        assert!(said.contains(expected), "{environment:?}: {said}");
    }
    let said = load_with(&[]);
    let absent =
        said.contains("error: libnccl.so.2 is not on this machine (") && said.contains(NCCL_PATH_VARIABLE);
    assert!(absent || said.contains("loaded NCCL"), "{said}");
}
