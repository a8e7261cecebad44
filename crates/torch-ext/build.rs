//! Compiles the C++ shim against the libtorch that torch-sys chose, and tells the crates above where it lies
//! (`DEP_WRN_TORCH_EXT_*`, read by `link.rs`).

use std::env;
use std::path::{Path, PathBuf};

const SOURCES: &[&str] = &[
    "autocast.cpp",
    "autograd.cpp",
    "checkpoint.cpp",
    "copy.cpp",
    "cuda.cpp",
    "math.cpp",
    "memory.cpp",
    "recompute.cpp",
    "runtime.cpp",
    "sync_norm.cpp",
];

fn main() {
    println!("cargo:rerun-if-changed=src/shim");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let lib = PathBuf::from(env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch lies"));
    let root = lib.parent().expect("libtorch's lib folder has a parent").to_owned();
    let include = env::var_os("LIBTORCH_INCLUDE").map_or(root.clone(), PathBuf::from).join("include");
    let links_cuda = lib.join("libtorch_cuda.so").exists();
    let cuda = if links_cuda { cuda(&root) } else { None };

    let mut build = cc::Build::new();
    build
        .cpp(true)
        .pic(true)
        // libtorch's headers are not free of warnings.
        .warnings(false)
        // Nor is their debug information small: it would take half the time of compiling.
        .debug(false)
        .flag("-std=c++20")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(SOURCES.iter().map(|name| Path::new("src/shim").join(name)));
    println!("cargo:rustc-check-cfg=cfg(cuda_headers)");
    if let Some(cuda) = &cuda {
        println!("cargo:rustc-cfg=cuda_headers");
        build.define("TORCH_EXT_CUDA", None).include(&cuda.include);
    } else if links_cuda {
        println!(
            "cargo:warning=CUDA headers not found: streams and events are left out. Set CUDA_HOME, or install \
             the wheel nvidia-cuda-crt beside PyTorch"
        );
    }
    build.compile("torch_ext_shim");
    if let Some(cuda) = &cuda {
        println!("cargo:rustc-link-lib=dylib=c10_cuda");
        println!("cargo:rustc-link-search=native={}", cuda.lib.display());
        println!("cargo:rustc-link-lib=dylib:+verbatim={}", cuda.runtime);
        println!("cargo:rustc-link-arg=-Wl,-rpath={}", cuda.lib.display());
        println!("cargo:cuda_lib={}", cuda.lib.display());
    }
    println!("cargo:libtorch_lib={}", lib.display());
    println!("cargo:links_cuda={links_cuda}");
    // For this crate's own tests; other crates use link.rs.
    println!("cargo:rustc-link-arg=-Wl,-rpath={}", lib.display());
    if links_cuda {
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-ltorch_cuda,--as-needed");
    }
}

/// CUDA's runtime.
struct Cuda {
    /// With headers that are complete enough to compile against.
    include: PathBuf,
    lib: PathBuf,
    /// File of the library in there. Wheels have no plain `libcudart.so`.
    runtime: String,
}

fn cuda(libtorch: &Path) -> Option<Cuda> {
    let beside_the_wheel = libtorch.parent().map(|packages| packages.join("nvidia/cu13"));
    let toolkit = env::var_os("CUDA_HOME").map(PathBuf::from);
    toolkit.into_iter().chain(beside_the_wheel).find_map(|home| {
        let include = home.join("include");
        let complete =
            ["cuda_runtime_api.h", "crt/host_defines.h"].iter().all(|header| include.join(header).exists());
        let lib = ["lib64", "lib"].map(|folder| home.join(folder)).into_iter().find(|lib| lib.is_dir())?;
        let files =
            std::fs::read_dir(&lib).ok()?.filter_map(|file| file.ok()?.file_name().into_string().ok());
        let runtime = files.filter(|name| name.starts_with("libcudart.so")).min()?;
        complete.then_some(Cuda { include, lib, runtime })
    })
}
