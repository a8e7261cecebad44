//! Build script of every crate whose binary or tests contain libtorch: the place of the library goes into the
//! binary, and the linker keeps libtorch_cuda although no symbol of it is named, or a GPU would silently not
//! be found.

fn main() {
    println!("cargo:rerun-if-changed=../torch-ext/link.rs");
    let lib = std::env::var("DEP_WRN_TORCH_EXT_LIBTORCH_LIB").expect("torch-ext is a direct dependency");
    println!("cargo:rustc-link-arg=-Wl,-rpath={lib}");
    // Streams and events are CUDA's own.
    if let Ok(cuda) = std::env::var("DEP_WRN_TORCH_EXT_CUDA_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath={cuda}");
    }
    if std::env::var("DEP_WRN_TORCH_EXT_LINKS_CUDA").as_deref() == Ok("true") {
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-ltorch_cuda,--as-needed");
    }
}
