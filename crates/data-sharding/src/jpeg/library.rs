//! libjpeg-turbo behind a safe interface: one decompressor and one compressor, by its TurboJPEG functions. It knows
//! nothing of seek records or other formats. Where the coefficients are ours, `reconstruct.rs` calls the library.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::ptr::NonNull;

use turbojpeg_sys as sys;

use super::{ImageError, Region};

/// What the decoder writes for a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PixelFormat {
    Rgb,
    Cmyk,
}

impl PixelFormat {
    pub(super) fn bytes(self) -> usize {
        match self {
            PixelFormat::Rgb => 3,
            PixelFormat::Cmyk => 4,
        }
    }

    fn code(self) -> c_int {
        match self {
            PixelFormat::Rgb => sys::TJPF_TJPF_RGB,
            PixelFormat::Cmyk => sys::TJPF_TJPF_CMYK,
        }
    }
}

/// A TurboJPEG instance. Its memory is released when it is dropped.
struct Instance(NonNull<std::ffi::c_void>);

// SAFETY: an instance has no tie to the thread that made it; libjpeg-turbo asks only that no two threads use it at
// once, which `&mut` guarantees.
unsafe impl Send for Instance {}

impl Instance {
    fn new(kind: sys::TJINIT) -> Result<Self, ImageError> {
        // SAFETY: takes a number, gives a new instance or null.
        let handle = unsafe { sys::tj3Init(kind as c_int) };
        NonNull::new(handle)
            .map(Instance)
            .ok_or_else(|| ImageError::Jpeg { message: "no memory for an instance of libjpeg-turbo".into() })
    }

    fn get(&self, parameter: sys::TJPARAM) -> c_int {
        // SAFETY: a live instance and a number; unknown numbers give -1.
        unsafe { sys::tj3Get(self.0.as_ptr(), parameter as c_int) }
    }

    fn set(&mut self, parameter: sys::TJPARAM, value: c_int) -> Result<(), ImageError> {
        // SAFETY: a live instance and two numbers, which the library checks.
        let status = unsafe { sys::tj3Set(self.0.as_ptr(), parameter as c_int, value) };
        self.check(status)
    }

    /// Turns the status of the call before into its message.
    ///
    /// The library counts warnings as failures here. That is what is wanted: a premature end fills the rest of the
    /// image with grey, and a wrong Huffman code everything behind it with noise. Only rubbish between the end of
    /// the last scan and the end of the image is let pass, because no pixel depends on it and nothing can follow.
    fn check(&self, status: c_int) -> Result<(), ImageError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: a live instance; the library gives a string that ends in a null byte, lives until the next call on
        // this instance or thread, and is copied before that.
        let message = unsafe { CStr::from_ptr(sys::tj3GetErrorStr(self.0.as_ptr())) }.to_string_lossy();
        // SAFETY: a live instance.
        let code = unsafe { sys::tj3GetErrorCode(self.0.as_ptr()) };
        if code == sys::TJERR_TJERR_WARNING as c_int
            && message.ends_with("extraneous bytes before marker 0xd9")
        {
            return Ok(());
        }
        Err(ImageError::Jpeg { message: message.into_owned() })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: the instance is live and nobody uses it afterwards.
        unsafe { sys::tj3Destroy(self.0.as_ptr()) }
    }
}

/// Widths of MCUs in pixels by the library's names of chroma subsamplings. Files with other sampling factors are
/// only decoded whole.
const MCU_WIDTHS: [(c_int, u32); 7] = [
    (sys::TJSAMP_TJSAMP_444, 8),
    (sys::TJSAMP_TJSAMP_422, 16),
    (sys::TJSAMP_TJSAMP_420, 16),
    (sys::TJSAMP_TJSAMP_GRAY, 8),
    (sys::TJSAMP_TJSAMP_440, 8),
    (sys::TJSAMP_TJSAMP_411, 32),
    (sys::TJSAMP_TJSAMP_441, 8),
];

/// Decodes JPEGs; made once and used for any number of them.
pub(super) struct Decompressor(Instance);

impl Decompressor {
    /// `memory` bounds what libjpeg-turbo allocates for one image, in MiB.
    pub(super) fn new(memory: u16) -> Result<Self, ImageError> {
        let mut instance = Instance::new(sys::TJINIT_TJINIT_DECOMPRESS)?;
        instance.set(sys::TJPARAM_TJPARAM_MAXMEMORY, c_int::from(memory))?;
        // A progressive file of a few kilobytes can hold thousands of scans, each a pass over all coefficients.
        instance.set(sys::TJPARAM_TJPARAM_SCANLIMIT, 500)?;
        Ok(Decompressor(instance))
    }

    /// Reads the header of `bytes`, a JPEG that has a frame header.
    pub(super) fn open<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Opened<'a>, ImageError> {
        let instance = &mut self.0;
        // SAFETY: pointer and length are those of a slice that outlives the call.
        let status = unsafe {
            sys::tj3DecompressHeader(instance.0.as_ptr(), bytes.as_ptr(), bytes.len() as sys::size_t)
        };
        instance.check(status)?;
        let size = |parameter| u32::try_from(instance.get(parameter)).unwrap_or(0);
        let (width, height) = (size(sys::TJPARAM_TJPARAM_JPEGWIDTH), size(sys::TJPARAM_TJPARAM_JPEGHEIGHT));
        let colorspace = instance.get(sys::TJPARAM_TJPARAM_COLORSPACE);
        let format = if [sys::TJCS_TJCS_CMYK, sys::TJCS_TJCS_YCCK].iter().any(|&c| c as c_int == colorspace) {
            PixelFormat::Cmyk
        } else {
            PixelFormat::Rgb
        };
        let lossless = instance.get(sys::TJPARAM_TJPARAM_LOSSLESS) != 0;
        let mcu_width = MCU_WIDTHS.iter().find(|(s, _)| *s == instance.get(sys::TJPARAM_TJPARAM_SUBSAMP));
        let mcu_width = mcu_width.map_or(0, |(_, width)| *width);
        let can_crop = !lossless && mcu_width > 0;
        Ok(Opened { instance, bytes, width, height, format, mcu_width, can_crop })
    }
}

/// A JPEG whose header has been read.
pub(super) struct Opened<'a> {
    instance: &'a mut Instance,
    bytes: &'a [u8],
    /// Pixels a row.
    pub(super) width: u32,
    /// Rows.
    pub(super) height: u32,
    /// CMYK for files of four colours, else RGB.
    pub(super) format: PixelFormat,
    /// Pixels of a column of MCUs, to which the left edge of a region has to be aligned; 0 if unknown.
    pub(super) mcu_width: u32,
    /// Whether the library can decode a part of this image, and scale it.
    pub(super) can_crop: bool,
}

impl Opened<'_> {
    /// Decodes `region` of the image scaled down by `denominator` (1, 2, 4 or 8; sizes round up) into `pixels`,
    /// row after row without gaps. The left edge must be a multiple of the scaled iMCU's width. Rows above the
    /// region cost their entropy decoding, rows below nothing.
    pub(super) fn decode(
        self,
        denominator: u32,
        region: Region,
        pixels: &mut [u8],
    ) -> Result<(), ImageError> {
        let scaled = |size: u32| size.div_ceil(denominator);
        let whole = region == Region::whole(scaled(self.width), scaled(self.height));
        if !region.lies_within(scaled(self.width), scaled(self.height)) {
            return Err(ImageError::Region {
                region,
                width: scaled(self.width),
                height: scaled(self.height),
            });
        }
        assert!(denominator == 1 || self.can_crop, "an image that cannot be scaled");
        let pitch = region.width as usize * self.format.bytes();
        let needed = pitch.saturating_mul(region.height as usize);
        assert!(pixels.len() >= needed, "{} bytes for {needed} bytes of pixels", pixels.len());

        let handle = self.instance.0.as_ptr();
        let factor = sys::tjscalingfactor { num: 1, denom: denominator as c_int };
        // SAFETY: a live instance and two numbers, which the library checks.
        let status = unsafe { sys::tj3SetScalingFactor(handle, factor) };
        self.instance.check(status)?;
        let (x, y, w, h) =
            if whole { (0, 0, 0, 0) } else { (region.left, region.top, region.width, region.height) };
        let region = sys::tjregion { x: x as c_int, y: y as c_int, w: w as c_int, h: h as c_int };
        // SAFETY: a live instance that has read a header, and four numbers, which the library checks.
        let status = unsafe { sys::tj3SetCroppingRegion(handle, region) };
        self.instance.check(status)?;
        // SAFETY: the instance is live; the bytes are those whose header was read, so that the library finds the
        // same size again; it writes `height` rows of `width` pixels of the region set above (of the whole scaled
        // image where that is asked for), `pitch` bytes apart, for which `pixels` has been checked to have room.
        let status = unsafe {
            sys::tj3Decompress8(
                handle,
                self.bytes.as_ptr(),
                self.bytes.len() as sys::size_t,
                pixels.as_mut_ptr(),
                pitch as c_int,
                self.format.code(),
            )
        };
        self.instance.check(status)
    }
}

/// Writes baseline JPEGs with 4:2:0 chroma and Huffman tables made for the image.
pub(super) struct Compressor(Instance);

impl Compressor {
    /// `quality` is libjpeg's, 1 to 100.
    pub(super) fn new(quality: u8) -> Result<Self, ImageError> {
        let mut instance = Instance::new(sys::TJINIT_TJINIT_COMPRESS)?;
        instance.set(sys::TJPARAM_TJPARAM_QUALITY, c_int::from(quality))?;
        instance.set(sys::TJPARAM_TJPARAM_SUBSAMP, sys::TJSAMP_TJSAMP_420)?;
        instance.set(sys::TJPARAM_TJPARAM_OPTIMIZE, 1)?;
        Ok(Compressor(instance))
    }

    /// Replaces `out` by the JPEG of `rgb`, `height` rows of `width` pixels without gaps.
    pub(super) fn encode(
        &mut self,
        rgb: &[u8],
        width: u32,
        height: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        let needed = (width as usize).saturating_mul(3).saturating_mul(height as usize);
        assert!(rgb.len() >= needed, "{} bytes for {needed} bytes of pixels", rgb.len());
        let (mut buffer, mut len) = (std::ptr::null_mut(), 0);
        // SAFETY: the instance is live; `rgb` has been checked to hold the pixels that the sizes promise; the library
        // allocates `buffer`, or leaves it null.
        let status = unsafe {
            sys::tj3Compress8(
                self.0.0.as_ptr(),
                rgb.as_ptr(),
                width as c_int,
                0,
                height as c_int,
                sys::TJPF_TJPF_RGB,
                &mut buffer,
                &mut len,
            )
        };
        let result = self.0.check(status);
        out.clear();
        if !buffer.is_null() {
            if result.is_ok() {
                // SAFETY: on success the library has written `len` bytes there.
                out.extend_from_slice(unsafe { std::slice::from_raw_parts(buffer, len as usize) });
            }
            // SAFETY: the library's own allocation, not used any more.
            unsafe { sys::tj3Free(buffer.cast()) };
        }
        result
    }
}
