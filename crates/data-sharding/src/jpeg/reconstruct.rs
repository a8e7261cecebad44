//! libjpeg-turbo's decoder behind the entropy decoding, behind a safe interface; `reconstruct.c` is its other half.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::NonNull;

use super::ImageError;

/// Coefficients of 8x8 samples, row after row.
pub(super) type Block = [i16; 64];

type Fill = unsafe extern "C" fn(source: *mut c_void, blocks: *mut i16, count: c_int);

unsafe extern "C" {
    fn wrn_dist_reconstructor_new() -> *mut c_void;
    fn wrn_dist_reconstructor_free(this: *mut c_void);
    fn wrn_dist_reconstruct(
        this: *mut c_void,
        headers: *const u8,
        length: usize,
        denominator: c_uint,
        fill: Fill,
        source: *mut c_void,
        width: c_uint,
        height: c_uint,
        pixels: *mut u8,
    ) -> c_int;
}

/// Gives an image's coefficients, MCU after MCU.
pub(super) trait CoefficientSource {
    /// Fills the blocks of the next MCU, which are zero. Must not panic.
    fn fill(&mut self, blocks: &mut [Block]);
}

/// Turns coefficients into pixels, one image after another.
pub(super) struct Reconstructor(NonNull<c_void>);

// SAFETY: it has no tie to the thread that made it, and is used through `&mut` only.
unsafe impl Send for Reconstructor {}

impl Reconstructor {
    pub(super) fn new() -> Result<Self, ImageError> {
        // SAFETY: takes nothing, gives a new instance or null.
        let this = unsafe { wrn_dist_reconstructor_new() };
        NonNull::new(this)
            .map(Reconstructor)
            .ok_or_else(|| ImageError::Jpeg { message: "no memory for an instance of libjpeg-turbo".into() })
    }

    /// Reconstructs the image that `headers`, a JPEG without entropy-coded data, describe, to RGB: `height` rows of
    /// `width` pixels after scaling by 1 / `denominator`. False where they describe no such image.
    pub(super) fn reconstruct<S: CoefficientSource>(
        &mut self,
        headers: &[u8],
        denominator: u32,
        (width, height): (u32, u32),
        source: &mut S,
        pixels: &mut [u8],
    ) -> bool {
        let needed = (width as usize).saturating_mul(3).saturating_mul(height as usize);
        assert!(pixels.len() >= needed, "{} bytes for {needed} bytes of pixels", pixels.len());
        // SAFETY: the instance is live; pointer and length of the headers are a slice's; the callback gets the
        // source that it was made for, which outlives the call and is not otherwise used in it; the pixels have room
        // for `height` rows of `width`, and no other size is written.
        let status = unsafe {
            wrn_dist_reconstruct(
                self.0.as_ptr(),
                headers.as_ptr(),
                headers.len(),
                denominator,
                fill::<S>,
                std::ptr::from_mut(source).cast(),
                width,
                height,
                pixels.as_mut_ptr(),
            )
        };
        status == 0
    }
}

impl Drop for Reconstructor {
    fn drop(&mut self) {
        // SAFETY: the instance is live and nobody uses it afterwards.
        unsafe { wrn_dist_reconstructor_free(self.0.as_ptr()) }
    }
}

/// # Safety
/// `source` is an `S` that nobody else uses; at `blocks` lie `count` blocks, zeroed and the caller's alone.
unsafe extern "C" fn fill<S: CoefficientSource>(source: *mut c_void, blocks: *mut i16, count: c_int) {
    // SAFETY: as promised.
    let (source, blocks) = unsafe {
        (&mut *source.cast::<S>(), std::slice::from_raw_parts_mut(blocks.cast::<Block>(), count as usize))
    };
    source.fill(blocks);
}
