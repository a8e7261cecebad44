//! Whole images decode as they do in Pillow, the decoder of the reference implementations' loaders, after
//! `convert("RGB")`: every kind of JPEG and PNG that real data sets contain, and what Pillow refuses is refused.
#![allow(clippy::unwrap_used)] // All of it is test code.

mod jpeg_support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use data_sharding::jpeg::{ImageDecoder, ImageError, Region};
use jpeg_support::{Coding, PLAIN, Random, SUBSAMPLINGS, encode, images_of_folder, picture, skip};
use png::{BitDepth, ColorType};
use turbojpeg_sys as sys;

/// Folders of images for decoders' tests, from Debian's packages of these names.
const COLLECTIONS: [&str; 2] = ["/usr/share/libjxl-testdata", "/usr/lib/python3/dist-packages/skimage/data"];

type Image = (u32, u32, Vec<u8>);

fn ours(bytes: &[u8]) -> Result<Image, ImageError> {
    let mut decoder = ImageDecoder::new()?;
    let header = decoder.header(bytes)?;
    let mut rgb = Vec::new();
    decoder.decode(bytes, Region::whole(header.width, header.height), None, None, &mut rgb)?;
    rgb.truncate(3 * header.width as usize * header.height as usize);
    Ok((header.width, header.height, rgb))
}

fn pillows(path: &Path) -> Result<Image, String> {
    let mut name = path.as_os_str().to_owned();
    name.push(".pillow");
    let answer = fs::read(name).unwrap();
    let line = answer.iter().position(|&byte| byte == b'\n').unwrap();
    let head = String::from_utf8_lossy(&answer[..line]).into_owned();
    if head.starts_with("error") {
        return Err(head);
    }
    let (width, height) = head.split_once(' ').unwrap();
    Ok((width.parse().unwrap(), height.parse().unwrap(), answer[line + 1..].to_vec()))
}

/// Decodes all files with Pillow; false, said loudly, without it.
fn ask_pillow(paths: &[PathBuf]) -> bool {
    let found = Command::new("python3").args(["-c", "import PIL.Image"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        skip("python", "no Pillow; images are not compared with its decoder's");
        return false;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/jpeg_pillow.py");
    let mut child = Command::new("python3").arg(script).stdin(Stdio::piped()).spawn().unwrap();
    let list: String = paths.iter().map(|path| format!("{}\n", path.display())).collect();
    child.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    true
}

/// Says how each file compares; fails where pixels differ, or only one of the two decoders refuses.
fn assert_as_pillow(paths: &[PathBuf], exceptions: &[&str]) {
    let mut wrong = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap().to_string_lossy();
        let verdict = match (ours(&fs::read(path).unwrap()), pillows(path)) {
            (Ok(ours), Ok(theirs)) if (ours.0, ours.1) == (theirs.0, theirs.1) => {
                let worst = ours.2.iter().zip(&theirs.2).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
                if worst == 0 { Ok("equal".to_owned()) } else { Err(format!("differs by up to {worst}")) }
            }
            (Err(ours), Err(theirs)) => Ok(format!("refused: {ours}; by Pillow: {theirs}")),
            (Ok(ours), Ok(theirs)) => {
                Err(format!("{}x{}, Pillow's {}x{}", ours.0, ours.1, theirs.0, theirs.1))
            }
            (Ok(_), Err(theirs)) => Err(format!("decodes, but Pillow says {theirs}")),
            (Err(ours), Ok(_)) => Err(format!("decodes in Pillow, but: {ours}")),
        };
        match verdict {
            Ok(verdict) => eprintln!("{name}: {verdict}"),
            Err(verdict) => {
                eprintln!("{name}: {verdict}");
                if !exceptions.contains(&&*name) {
                    wrong.push(format!("{name}: {verdict}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn write_all(folder: &Path, images: Vec<(String, Vec<u8>)>) -> Vec<PathBuf> {
    let write = |(name, bytes): (String, Vec<u8>)| {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    images.into_iter().map(write).collect()
}

#[test]
fn jpegs_decode_as_in_pillow() {
    let folder = tempfile::tempdir().unwrap();
    let (width, height) = (93, 61);
    let (rgb, cmyk) = (picture(3, width, height, 11), picture(4, width, height, 12));
    let mut images = Vec::new();
    for (name, subsampling) in SUBSAMPLINGS {
        for (kind, coding) in [
            ("baseline", PLAIN),
            ("progressive", Coding { progressive: true, ..PLAIN }),
            ("restarts", Coding { restart_rows: 2, ..PLAIN }),
        ] {
            let name = format!("{} {kind}.jpg", name.replace(':', ""));
            images.push((name, encode(&rgb, 3, width, height, Coding { subsampling, ..coding })));
        }
    }
    let full = Coding { subsampling: sys::TJSAMP_TJSAMP_444, ..PLAIN };
    let rgb_space = Coding { colorspace: Some(sys::TJCS_TJCS_RGB), ..full };
    images.push(("rgb.jpg".into(), encode(&rgb, 3, width, height, rgb_space)));
    for (name, space) in [("cmyk", sys::TJCS_TJCS_CMYK), ("ycck", sys::TJCS_TJCS_YCCK)] {
        let coding = Coding { colorspace: Some(space), ..full };
        let jpeg = encode(&cmyk, 4, width, height, coding);
        images.push((format!("{name} without marker.jpg"), without_adobe(&jpeg)));
        images.push((format!("{name}.jpg"), jpeg));
        images.push((
            format!("{name} progressive.jpg"),
            encode(&cmyk, 4, width, height, Coding { progressive: true, ..coding }),
        ));
    }
    let plain = encode(&rgb, 3, width, height, PLAIN);
    images.push(("png's name.png".into(), plain.clone()));
    images.push(("exif orientation 6.jpg".into(), with_orientation(&plain, 6)));
    images.push(("rubbish behind the end.jpg".into(), [&plain[..], &[7; 900]].concat()));
    let end = plain.len() - 2;
    images.push(("rubbish before the end.jpg".into(), [&plain[..end], &[1, 2, 3], &plain[end..]].concat()));
    for (name, len) in
        [("half", plain.len() / 2), ("all but 20 bytes", plain.len() - 20), ("header", 300), ("start", 3)]
    {
        images.push((format!("truncated, {name}.jpg"), plain[..len].to_vec()));
    }
    let progressive = encode(&rgb, 3, width, height, Coding { progressive: true, ..PLAIN });
    images.push(("truncated progressive.jpg".into(), progressive[..progressive.len() / 2].to_vec()));
    images.push(("no image.jpg".into(), b"<html>404</html>".to_vec()));
    let paths = write_all(folder.path(), images);
    if ask_pillow(&paths) {
        assert_as_pillow(&paths, &[]);
    }
}

#[test]
fn pngs_named_jpeg_decode_as_in_pillow() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random::new(5);
    let (width, height) = (45_u32, 19_u32);
    let palette: Vec<u8> = (0..48).map(|_| random.below(256) as u8).collect();
    let kinds = [
        (ColorType::Grayscale, BitDepth::One),
        (ColorType::Grayscale, BitDepth::Two),
        (ColorType::Grayscale, BitDepth::Four),
        (ColorType::Grayscale, BitDepth::Eight),
        (ColorType::Grayscale, BitDepth::Sixteen),
        (ColorType::GrayscaleAlpha, BitDepth::Eight),
        (ColorType::GrayscaleAlpha, BitDepth::Sixteen),
        (ColorType::Indexed, BitDepth::Two),
        (ColorType::Indexed, BitDepth::Four),
        (ColorType::Rgb, BitDepth::Eight),
        (ColorType::Rgb, BitDepth::Sixteen),
        (ColorType::Rgba, BitDepth::Eight),
        (ColorType::Rgba, BitDepth::Sixteen),
    ];
    let mut images = Vec::new();
    for (color, depth) in kinds {
        for transparent in [false, true] {
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, width, height);
            encoder.set_color(color);
            encoder.set_depth(depth);
            if color == ColorType::Indexed {
                encoder.set_palette(&palette[..if depth == BitDepth::Two { 12 } else { 48 }]);
            }
            match color {
                _ if !transparent => {}
                ColorType::Indexed => encoder.set_trns(vec![0, 100, 255]),
                ColorType::Grayscale => encoder.set_trns(vec![0, 1]),
                ColorType::Rgb => encoder.set_trns(vec![0, 1, 0, 2, 0, 3]),
                _ => continue,
            }
            let row = (width as usize * color.samples() * depth as usize).div_ceil(8);
            let pixels: Vec<u8> = (0..row * height as usize).map(|_| random.below(256) as u8).collect();
            encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
            images.push((format!("{color:?} {depth:?} {transparent}.JPEG"), bytes));
        }
    }
    let whole = images[16].1.clone();
    images.push(("truncated.JPEG".into(), whole[..whole.len() / 2].to_vec()));
    images.push(("header only.JPEG".into(), whole[..30].to_vec()));
    let paths = write_all(folder.path(), images);
    if ask_pillow(&paths) {
        assert_as_pillow(&paths, &[]);
    }
}

#[test]
fn decoders_test_images_decode_as_in_pillow() {
    let mut folders: Vec<PathBuf> = COLLECTIONS.iter().map(PathBuf::from).collect();
    folders.extend(std::env::var_os("WRN_DIST_TEST_IMAGES").map(PathBuf::from));
    let copies = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for image in folders.iter().flat_map(|folder| images_of_folder(folder)) {
        let extension = image.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if ["jpg", "jpeg", "png"].contains(&&*extension) {
            let copy = copies.path().join(format!(
                "{} {}",
                paths.len(),
                image.file_name().unwrap().to_string_lossy()
            ));
            fs::copy(image, &copy).unwrap();
            paths.push(copy);
        }
    }
    if paths.is_empty() {
        skip(
            "images",
            &format!("none of the folders {folders:?} has images; set WRN_DIST_TEST_IMAGES to one"),
        );
    } else if ask_pillow(&paths) {
        assert_as_pillow(&paths, &[]);
    }
}

/// The same JPEG without its Adobe marker.
fn without_adobe(jpeg: &[u8]) -> Vec<u8> {
    let at = jpeg.windows(9).position(|window| window == b"\xff\xee\0\x0eAdobe").unwrap();
    [&jpeg[..at], &jpeg[at + 16..]].concat()
}

/// The same JPEG with an EXIF segment that says how the camera was held.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let tiff = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0";
    let segment = [b"\xff\xe1\0\x22", &tiff[..], &[orientation, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(segment.len(), 2 + 0x22);
    [&jpeg[..2], &segment, &jpeg[2..]].concat()
}
