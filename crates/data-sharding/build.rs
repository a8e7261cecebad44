//! Compiles the piece of C that hands coefficients to libjpeg-turbo, against the headers of the libjpeg-turbo that
//! turbojpeg-sys built.

fn main() {
    const SOURCE: &str = "src/jpeg/reconstruct.c";
    println!("cargo:rerun-if-changed={SOURCE}");
    let include = std::env::var("DEP_TURBOJPEG_INCLUDE").expect("turbojpeg-sys says where its headers lie");
    cc::Build::new().file(SOURCE).includes(include.split(',')).warnings(true).compile("wrn_dist_reconstruct");
}
