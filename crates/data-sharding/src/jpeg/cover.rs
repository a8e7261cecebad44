//! What has to be decoded so that a region's pixels come out as in a full decode: where interpolation looks, where
//! blocks begin, and by how much the image may be scaled down meanwhile. Arithmetic only.

use std::ops::Range;

use super::markers::Frame;
use super::{Region, View};

/// A part of an image that is decoded, in the image's pixels. Its left edge is one of an MCU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cover {
    pub(super) left: u32,
    pub(super) top: u32,
    pub(super) right: u32,
    pub(super) bottom: u32,
    /// The decoder scales the image down by this: 1, 2, 4 or 8.
    pub(super) denominator: u32,
}

impl Cover {
    /// The least cover of `region`, whose top edge is one of an MCU where `whole_rows` is set.
    pub(super) fn new(frame: &Frame, region: Region, denominator: u32, whole_rows: bool) -> Self {
        let (mcu_width, mcu_height) = frame.mcu_size();
        let (width, height) = (u32::from(frame.width), u32::from(frame.height));
        // libjpeg's triangle filter takes a third of a subsampled pixel from its neighbour, and treats the first and
        // the last sample of a row or column as edges: one pixel more on each side keeps those outside the region.
        let margin = if frame.is_subsampled() { denominator } else { 0 };
        let row_step = if whole_rows { mcu_height } else { denominator };
        let mut left = region.left.saturating_sub(margin) / mcu_width * mcu_width;
        let top = region.top.saturating_sub(margin) / row_step * row_step;
        let mut right = (region.right() + margin).min(width);
        let bottom = (region.bottom() + margin).min(height);
        // It uses that filter only for rows of more than two subsampled samples. An MCU and a half has enough.
        if margin > 0 && right - left < mcu_width {
            right = (left + mcu_width).min(width);
            if right - left < mcu_width {
                left = left.saturating_sub(mcu_width);
            }
        }
        Cover { left, top, right, bottom, denominator }
    }

    /// The columns of MCUs that it touches.
    pub(super) fn columns(&self, frame: &Frame) -> Range<u32> {
        let (mcu_width, _) = frame.mcu_size();
        self.left / mcu_width..self.right.div_ceil(mcu_width)
    }

    /// The rows of MCUs that it touches.
    pub(super) fn rows(&self, frame: &Frame) -> Range<u32> {
        let (_, mcu_height) = frame.mcu_size();
        self.top / mcu_height..self.bottom.div_ceil(mcu_height)
    }

    /// The cover in the pixels of the scaled image, which has `ceil(size / denominator)` of them.
    pub(super) fn scaled(&self) -> Region {
        let (left, top) = (self.left / self.denominator, self.top / self.denominator);
        let width = self.right.div_ceil(self.denominator) - left;
        let height = self.bottom.div_ceil(self.denominator) - top;
        Region { left, top, width, height }
    }

    /// Where `region` lies in the decoded cover.
    pub(super) fn view(&self, region: Region) -> View {
        let scale = |distance: u32| f64::from(distance) / f64::from(self.denominator);
        View {
            left: scale(region.left - self.left),
            top: scale(region.top - self.top),
            width: scale(region.width),
            height: scale(region.height),
        }
    }
}

/// By how much an image may be scaled down while it is decoded so that `region` still has at least the pixels of
/// `target` (width, height) in both directions.
pub(super) fn denominator(region: Region, target: (u32, u32)) -> u32 {
    [8, 4, 2].into_iter().find(|d| region.width / d >= target.0 && region.height / d >= target.1).unwrap_or(1)
}
