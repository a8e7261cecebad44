//! JPEGs of every kind for the tests, made by libjpeg-turbo's compressor, and regions of them.
#![allow(unsafe_code)] // Calls the compressor.
#![allow(dead_code, clippy::unwrap_used)] // Each test file uses some of it; all of it is test code.

use std::ffi::c_int;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use data_sharding::jpeg::Region;
use proptest::test_runner::RngAlgorithm;
use proptest::test_runner::TestRng;
use rand_chacha::rand_core::Rng;
use turbojpeg_sys as sys;

/// How a test image is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coding {
    pub(crate) subsampling: sys::TJSAMP,
    pub(crate) colorspace: Option<sys::TJCS>,
    pub(crate) quality: c_int,
    pub(crate) progressive: bool,
    pub(crate) optimize: bool,
    pub(crate) arithmetic: bool,
    /// MCU rows from one restart marker to the next; 0 for none.
    pub(crate) restart_rows: c_int,
}

pub(crate) const PLAIN: Coding = Coding {
    subsampling: sys::TJSAMP_TJSAMP_420,
    colorspace: None,
    quality: 85,
    progressive: false,
    optimize: false,
    arithmetic: false,
    restart_rows: 0,
};

/// Every chroma subsampling that libjpeg-turbo has a name for.
pub(crate) const SUBSAMPLINGS: [(&str, sys::TJSAMP); 7] = [
    ("4:4:4", sys::TJSAMP_TJSAMP_444),
    ("4:2:2", sys::TJSAMP_TJSAMP_422),
    ("4:2:0", sys::TJSAMP_TJSAMP_420),
    ("grey", sys::TJSAMP_TJSAMP_GRAY),
    ("4:4:0", sys::TJSAMP_TJSAMP_440),
    ("4:1:1", sys::TJSAMP_TJSAMP_411),
    ("4:4:1", sys::TJSAMP_TJSAMP_441),
];

/// Encodes `pixels`, rows of `channels` (3: RGB, 4: CMYK) bytes a pixel.
pub(crate) fn encode(pixels: &[u8], channels: usize, width: u32, height: u32, coding: Coding) -> Vec<u8> {
    assert_eq!(pixels.len(), channels * width as usize * height as usize);
    let format = if channels == 4 { sys::TJPF_TJPF_CMYK } else { sys::TJPF_TJPF_RGB };
    let parameters = [
        (sys::TJPARAM_TJPARAM_SUBSAMP, coding.subsampling as c_int),
        (sys::TJPARAM_TJPARAM_QUALITY, coding.quality),
        (sys::TJPARAM_TJPARAM_PROGRESSIVE, c_int::from(coding.progressive)),
        (sys::TJPARAM_TJPARAM_OPTIMIZE, c_int::from(coding.optimize)),
        (sys::TJPARAM_TJPARAM_ARITHMETIC, c_int::from(coding.arithmetic)),
        (sys::TJPARAM_TJPARAM_RESTARTROWS, coding.restart_rows),
    ];
    let colorspace = coding.colorspace.map(|value| (sys::TJPARAM_TJPARAM_COLORSPACE, value as c_int));
    // SAFETY: the instance is live between tj3Init and tj3Destroy; the pixels are as many as the sizes say; the
    // library allocates the result, which is copied before it is freed.
    unsafe {
        let handle = sys::tj3Init(sys::TJINIT_TJINIT_COMPRESS as c_int);
        assert!(!handle.is_null());
        for (parameter, value) in parameters.into_iter().chain(colorspace) {
            assert_eq!(sys::tj3Set(handle, parameter as c_int, value), 0, "{parameter} = {value}");
        }
        let (mut out, mut len) = (std::ptr::null_mut(), 0);
        let status = sys::tj3Compress8(
            handle,
            pixels.as_ptr(),
            width as c_int,
            0,
            height as c_int,
            format as c_int,
            &mut out,
            &mut len,
        );
        assert_eq!(status, 0, "{coding:?}");
        let bytes = std::slice::from_raw_parts(out, len as usize).to_vec();
        sys::tj3Free(out.cast());
        sys::tj3Destroy(handle);
        bytes
    }
}

/// libjpeg-turbo's own decoder, as a reference.
pub(crate) struct Reference(*mut std::ffi::c_void);

impl Reference {
    pub(crate) fn new() -> Self {
        // SAFETY: takes a number.
        let handle = unsafe { sys::tj3Init(sys::TJINIT_TJINIT_DECOMPRESS as c_int) };
        assert!(!handle.is_null());
        Reference(handle)
    }

    /// Decodes a JPEG that it has no complaint of to RGB, whole, or the part from a column (one of an MCU) and row on;
    /// gives its width and height.
    pub(crate) fn decode(&mut self, jpeg: &[u8], part: Option<Region>, rgb: &mut Vec<u8>) -> (u32, u32) {
        let len = jpeg.len() as sys::size_t;
        // SAFETY: the instance is live; the JPEG is a slice; the pixels have room for what the region, or without one
        // the header, says.
        unsafe {
            assert_eq!(sys::tj3DecompressHeader(self.0, jpeg.as_ptr(), len), 0);
            let [width, height] = [sys::TJPARAM_TJPARAM_JPEGWIDTH, sys::TJPARAM_TJPARAM_JPEGHEIGHT]
                .map(|parameter| sys::tj3Get(self.0, parameter as c_int) as u32);
            let region = part.unwrap_or(Region { left: 0, top: 0, width, height });
            let [x, y, w, h] = match part {
                Some(part) => [part.left, part.top, part.width, part.height].map(|n| n as c_int),
                None => [0; 4],
            };
            assert_eq!(sys::tj3SetCroppingRegion(self.0, sys::tjregion { x, y, w, h }), 0);
            let needed = 3 * region.width as usize * region.height as usize;
            if rgb.len() < needed {
                rgb.resize(needed, 0);
            }
            let status =
                sys::tj3Decompress8(self.0, jpeg.as_ptr(), len, rgb.as_mut_ptr(), 0, sys::TJPF_TJPF_RGB);
            assert_eq!(status, 0);
            (region.width, region.height)
        }
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        // SAFETY: the instance is live and not used afterwards.
        unsafe { sys::tj3Destroy(self.0) }
    }
}

/// A picture with edges, gradients and noise in each channel, so that no two blocks are alike.
pub(crate) fn picture(channels: usize, width: u32, height: u32, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let waves: Vec<[f32; 3]> = (0..channels).map(|_| [random.unit(), random.unit(), random.unit()]).collect();
    let mut pixels = Vec::with_capacity(channels * width as usize * height as usize);
    for y in 0..height {
        for x in 0..width {
            for [a, b, c] in &waves {
                let wave = (x as f32 * a * 0.3).sin() * 60.0 + (y as f32 * b * 0.2 + c * 6.0).cos() * 50.0;
                let edge = if (x as f32 * c + y as f32 * a) % 37.0 < 18.0 { 40.0 } else { -20.0 };
                pixels.push((128.0 + wave + edge + random.unit() * 16.0).clamp(0.0, 255.0) as u8);
            }
        }
    }
    pixels
}

/// A generator that a seed determines.
pub(crate) struct Random(TestRng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut key = [7; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Random(TestRng::from_seed(RngAlgorithm::ChaCha, &key))
    }

    /// 0 up to `bound`, without it.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        self.0.next_u32() % bound
    }

    pub(crate) fn unit(&mut self) -> f32 {
        self.0.next_u32() as f32 / u32::MAX as f32
    }
}

/// `count` regions of an image: the whole, its four corner pixels, its edges, then regions of any size.
pub(crate) fn regions(width: u32, height: u32, count: usize, random: &mut Random) -> Vec<Region> {
    let (w, h) = (width, height);
    let fixed = [
        (0, 0, w, h),
        (0, 0, 1, 1),
        (w - 1, 0, 1, 1),
        (0, h - 1, 1, 1),
        (w - 1, h - 1, 1, 1),
        (w / 2, 0, 1, h),
        (0, h / 2, w, 1),
        (w - 1, 0, 1, h),
        (0, h - 1, w, 1),
    ];
    let mut regions: Vec<Region> =
        fixed.into_iter().map(|(left, top, width, height)| Region { left, top, width, height }).collect();
    while regions.len() < count {
        // A third each: tiny ones, ones of any size, ones that touch the right or lower edge.
        let style = random.below(3);
        let (most_w, most_h) = if style == 0 { (w.min(4), h.min(4)) } else { (w, h) };
        let (width, height) = (1 + random.below(most_w), 1 + random.below(most_h));
        let (right, below) = (w - width, h - height);
        let (left, top) = match style {
            2 if random.below(2) == 0 => (right, random.below(below + 1)),
            2 => (random.below(right + 1), below),
            _ => (random.below(right + 1), random.below(below + 1)),
        };
        regions.push(Region { left, top, width, height });
    }
    regions.truncate(count);
    regions
}

/// The files in a folder and below, in the order of their paths; none where there is no folder.
pub(crate) fn images_of_folder(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

/// Says on standard error, and in the log of `launch/test.sh`, that a test did not run for lack of `part`.
pub(crate) fn skip(part: &str, reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIPPED {part}: {test}: {reason}\n");
    eprint!("{line}");
    if let Some(log) = std::env::var_os("WRN_DIST_SKIP_LOG") {
        let mut log = OpenOptions::new().create(true).append(true).open(log).unwrap();
        log.write_all(line.as_bytes()).unwrap();
    }
}
