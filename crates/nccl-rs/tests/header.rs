//! The declarations in `sys.rs`, line by line, against the `nccl.h` of NVIDIA's wheel, and every function against its
//! libnccl, which loads on a machine without a GPU too.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use nccl_rs::sys::ncclConfig_t;
use nccl_rs::{Comm, Config, DeviceMemory, Library, UniqueId};

const SYS: &str = include_str!("../src/sys.rs");

/// The folder that holds `include/nccl.h` and `lib/libnccl.so.2`: `NCCL_HOME`, or the wheel of the active Python.
fn nccl_home() -> Option<PathBuf> {
    let from_environment = std::env::var_os("NCCL_HOME").map(PathBuf::from);
    let home = from_environment.or_else(|| {
        let script = "import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])";
        let output = Command::new("python3").args(["-c", script]).output().ok()?;
        output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    });
    let found = home.filter(|home| home.join("include/nccl.h").is_file());
    if found.is_none() {
        let reason = "there is no nccl.h: NCCL_HOME is not set, and python3 has no wheel nvidia-nccl-cu13";
        let required =
            std::env::var("REQUIRE").is_ok_and(|list| list.split(',').any(|word| word.trim() == "nccl"));
        assert!(!required, "REQUIRE names nccl, but {reason}");
        skip(reason);
    }
    found
}

fn skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIPPED nccl: {test}: {reason}\n");
    eprint!("{line}");
    if let Some(log) = std::env::var_os("WRN_DIST_SKIP_LOG") {
        let file = OpenOptions::new().create(true).append(true).open(log);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Name, argument types and result of each function in `sys.rs`.
fn functions() -> Vec<(String, Vec<String>, String)> {
    let table = SYS.split_once("\nfunctions! {").unwrap().1;
    let table = table.split_once("\n}").unwrap().0;
    let parse = |declaration: &str| {
        let (name, rest) = declaration.trim().strip_prefix("fn ")?.split_once('(')?;
        let (arguments, result) = rest.split_once(") -> ")?;
        let types = arguments.split(',').filter_map(|argument| Some(argument.split_once(": ")?.1.trim()));
        Some((name.to_owned(), types.map(str::to_owned).collect(), result.to_owned()))
    };
    let functions: Vec<_> = table.split(';').filter(|text| text.contains("fn ")).collect();
    functions
        .into_iter()
        .map(|text| parse(text).unwrap_or_else(|| panic!("not understood: {text}")))
        .collect()
}

/// Name, type and value of each constant in `sys.rs`.
fn constants() -> Vec<(&'static str, &'static str, &'static str)> {
    let parse = |line: &'static str| {
        let (name, rest) = line.strip_prefix("pub const ")?.split_once(": ")?;
        let (of_type, value) = rest.strip_suffix(';')?.split_once(" = ")?;
        Some((name, of_type, value))
    };
    SYS.lines().filter_map(parse).collect()
}

/// As C writes it.
fn c_type(rust: &str) -> String {
    if let Some(target) = rust.strip_prefix("*mut ") {
        return format!("{}*", c_type(target));
    }
    if let Some(target) = rust.strip_prefix("*const ") {
        return format!("const {}*", c_type(target));
    }
    match rust {
        "c_int" => "int".into(),
        "c_char" => "char".into(),
        "c_void" => "void".into(),
        "usize" => "size_t".into(),
        nvidia => nvidia.into(),
    }
}

fn assertion(text: &mut String, condition: &str) {
    let message = condition.replace('"', "'");
    let _ = writeln!(text, "_Static_assert({condition}, \"{message}\");");
}

#[test]
fn every_declaration_equals_that_of_nvidia_s_header() {
    let Some(home) = nccl_home() else { return };
    let mut source =
        "#include <limits.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <nccl.h>\n".to_owned();

    let functions = functions();
    assert_eq!(functions.len(), 24, "{functions:?}");
    for (name, arguments, result) in &functions {
        let arguments: Vec<_> = arguments.iter().map(|argument| c_type(argument)).collect();
        let arguments = if arguments.is_empty() { "void".into() } else { arguments.join(", ") };
        let signature = format!("{} (*)({arguments})", c_type(result));
        assertion(&mut source, &format!("__builtin_types_compatible_p(__typeof__(&{name}), {signature})"));
    }

    let constants = constants();
    assert_eq!(constants.len(), 20, "{constants:?}");
    for (name, of_type, value) in constants {
        let value = match value {
            "c_int::MIN" => "INT_MIN".into(),
            number => number.replace('_', ""),
        };
        assertion(&mut source, &format!("{name} == {value}"));
        if of_type.starts_with("nccl") {
            assertion(&mut source, &format!("sizeof({of_type}) == {}", size_of::<std::ffi::c_int>()));
        }
    }

    assertion(&mut source, "sizeof(ncclUniqueId) == NCCL_UNIQUE_ID_BYTES && _Alignof(ncclUniqueId) == 1");
    let fields = [
        ("size", offset_of!(ncclConfig_t, size)),
        ("magic", offset_of!(ncclConfig_t, magic)),
        ("version", offset_of!(ncclConfig_t, version)),
        ("blocking", offset_of!(ncclConfig_t, blocking)),
        ("cgaClusterSize", offset_of!(ncclConfig_t, cgaClusterSize)),
        ("minCTAs", offset_of!(ncclConfig_t, minCTAs)),
        ("maxCTAs", offset_of!(ncclConfig_t, maxCTAs)),
        ("netName", offset_of!(ncclConfig_t, netName)),
        ("splitShare", offset_of!(ncclConfig_t, splitShare)),
    ];
    for (field, offset) in fields {
        assertion(&mut source, &format!("offsetof(ncclConfig_t, {field}) == {offset}"));
    }
    assertion(&mut source, &format!("sizeof(ncclConfig_t) >= {}", size_of::<ncclConfig_t>()));

    let compiled = compile(&home, &source);
    assert!(compiled.is_ok(), "{}", compiled.unwrap_err());
    // That a difference would be noticed.
    for wrong in ["ncclFloat32 == 6", "offsetof(ncclConfig_t, minCTAs) == 20"] {
        let mut spoilt = source.clone();
        assertion(&mut spoilt, wrong);
        assert!(compile(&home, &spoilt).unwrap_err().contains(wrong));
    }
    for (right, wrong) in [("(ncclComm_t, int*)", "(ncclComm_t, long*)"), ("size_t, nccl", "int, nccl")] {
        let spoilt = source.replacen(right, wrong, 1);
        assert!(spoilt != source && compile(&home, &spoilt).is_err(), "{wrong}");
    }
}

/// The compiler's complaints, if any.
fn compile(home: &Path, source: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("declarations.c");
    fs::write(&file, source).unwrap();
    let toolkit = std::env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("include"));
    let beside_the_wheel = home.parent().unwrap().join("cu13/include");
    let cuda = toolkit.filter(|folder| folder.is_dir()).unwrap_or(beside_the_wheel);
    let output = Command::new("cc")
        // nccl.h includes CUDA's 16-bit floats, which need one wheel more, and uses nothing of them.
        .args(["-std=gnu11", "-fsyntax-only", "-D__CUDA_FP16_H__", "-D__CUDA_BF16_H__", "-I"])
        .arg(home.join("include"))
        .arg("-I")
        .arg(cuda)
        .arg(&file)
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn nvidia_s_library_has_every_function_and_says_why_it_cannot_start_without_a_gpu() {
    let Some(home) = nccl_home() else { return };
    let path = home.join("lib/libnccl.so.2");
    let library = Library::open(&path).unwrap();
    let header = fs::read_to_string(home.join("include/nccl.h")).unwrap();
    let code = header.lines().find_map(|line| line.strip_prefix("#define NCCL_VERSION_CODE ")).unwrap();
    assert_eq!(library.version().0, code.trim().parse().unwrap());
    assert_eq!(library.path().file_name(), path.file_name());
    assert!(!library.works_on_host_memory());

    if Path::new("/dev/nvidia0").exists() {
        skip("there is a GPU, so nothing fails for lack of one");
        return;
    }
    let id = UniqueId::new(&library).unwrap();
    assert_ne!(id, UniqueId::new(&library).unwrap());
    let error = Comm::init(&library, id, 0, 1, Config::default()).unwrap_err();
    println!("{error}");
    assert_eq!((error.call, error.code), ("ncclCommInitRankConfig", 1));
    assert!(error.to_string().contains("CUDA driver version is insufficient"), "{error}");
    let error = DeviceMemory::new(&library, 1 << 20).unwrap_err();
    println!("{error}");
    assert_eq!(error.call, "ncclMemAlloc");
}
