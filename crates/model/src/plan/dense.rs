//! DenseNet-BC: layers of a 1x1 and a 3x3 convolution whose few output channels are added to their input, and
//! between groups transitions that halve channels and size.
//!
//! Source: Huang et al. 2016 (arXiv 1608.06993), table 1 and section 4.2; torchvision's `densenet.py`.

use super::{Stem, imagenet_stem, small_stem};

/// A DenseNet-BC.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Dense {
    pub(crate) stem: Stem,
    /// Batch norm and ReLU follow the stem's convolution.
    pub(crate) activated_stem: bool,
    /// Channels that a layer adds (k).
    pub(crate) growth: u32,
    /// Layers of each group.
    pub(crate) layers: Vec<u32>,
}

/// Output channels of a layer's 1x1 convolution, in multiples of the growth.
pub(crate) const BOTTLENECK_TIMES: u32 = 4;

/// A transition keeps one channel of so many.
pub(crate) const COMPRESSION: u32 = 2;

const SMALL_GROUPS: usize = 3;

/// Convolutions that belong to no layer: stem, two transitions and the classifier, which DenseNets count.
const SMALL_OTHERS: u32 = 4;

/// Depth, growth, stem's channels and layers of each group.
const IMAGENET: &[(u32, u32, u32, [u32; 4])] = &[
    (121, 32, 64, [6, 12, 24, 16]),
    (161, 48, 96, [6, 12, 36, 24]),
    (169, 32, 64, [6, 12, 32, 32]),
    (201, 32, 64, [6, 12, 48, 32]),
];

/// For images of 32 px; the depth must be 6N+4.
///
/// # Errors
/// The two valid depths that are nearest.
pub(crate) fn dense_bc(depth: u32, growth: u32) -> Result<Dense, String> {
    let step = 2 * SMALL_GROUPS as u32;
    if depth < step + SMALL_OTHERS || !(depth - SMALL_OTHERS).is_multiple_of(step) {
        let below = (depth.max(step + SMALL_OTHERS) - SMALL_OTHERS) / step * step + SMALL_OTHERS;
        return Err(format!("depth {depth} is not {step}N+4; the nearest are {below} and {}", below + step));
    }
    Ok(Dense {
        stem: small_stem(2 * growth),
        activated_stem: false,
        growth,
        layers: vec![(depth - SMALL_OTHERS) / step; SMALL_GROUPS],
    })
}

/// For ImageNet, or nothing for a depth that the table lacks.
pub(crate) fn dense_imagenet(depth: u32) -> Option<Dense> {
    let &(_, growth, channels, layers) = IMAGENET.iter().find(|(of, ..)| *of == depth)?;
    Some(Dense { stem: imagenet_stem(channels), activated_stem: true, growth, layers: layers.to_vec() })
}
