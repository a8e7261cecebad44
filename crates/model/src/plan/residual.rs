//! Residual networks: groups of equal blocks, whose outputs are added to their inputs.
//!
//! Sources: Zagoruyko & Komodakis 2016 (arXiv 1605.07146), tables 1 to 3; He et al. 2015 (1512.03385), table
//! 1 and section 4.2; He et al. 2016 (1603.05027); Xie et al. 2016 (1611.05431), table 1 and section 5.3;
//! torchvision's `resnet.py` for the networks of 224 px.

use super::{Stem, imagenet_stem, small_stem};

/// Where batch norm and ReLU stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Activation {
    /// BN-ReLU-conv, nothing after the sum; projections without batch norm.
    Before,
    /// Conv-BN-ReLU, a ReLU after the sum; projections with batch norm.
    After,
}

/// How the shortcut gets along when a block changes the number of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Widening {
    /// A 1x1 convolution ("option B").
    Projection,
    /// Pixels left out and channels of zeros added ("option A").
    ZeroPad,
}

/// A convolution of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Conv {
    pub(crate) kernel: u32,
    pub(crate) channels: u32,
    /// Each output channel sees one of so many groups of input channels.
    pub(crate) groups: u32,
}

/// Blocks of one output size.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    pub(crate) blocks: u32,
    /// Of its first block.
    pub(crate) stride: u32,
    pub(crate) convs: Vec<Conv>,
}

/// A residual network: stem, groups of equal blocks, average pool, classifier.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Residual {
    pub(crate) activation: Activation,
    pub(crate) widening: Widening,
    pub(crate) stem: Stem,
    pub(crate) groups: Vec<Group>,
    /// Which convolution of a group's first block has the stride.
    pub(crate) strided: usize,
    /// Squeeze and excitation at the end of every branch.
    pub(crate) squeeze: bool,
}

/// A widening factor: a fraction, since ImageNet's networks come in widths such as 1.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Width {
    pub(crate) numerator: u32,
    pub(crate) denominator: u32,
}

impl Width {
    pub(crate) const ONE: Width = Width::whole(1);

    pub(crate) const fn whole(factor: u32) -> Width {
        Width { numerator: factor, denominator: 1 }
    }

    /// `None` where that gives no whole number.
    pub(crate) fn times(self, channels: u32) -> Option<u32> {
        let product = u64::from(channels) * u64::from(self.numerator);
        let whole = product.is_multiple_of(self.denominator.into());
        whole.then(|| u32::try_from(product / u64::from(self.denominator)).ok()).flatten()
    }
}

/// The parts of a block before widening: kernel, inner channels relative to the group's, and whether the
/// widening factor applies.
#[derive(Clone, Copy, Debug)]
struct Part {
    kernel: u32,
    times: u32,
    widened: bool,
    groups: u32,
}

const fn part(kernel: u32, times: u32, widened: bool) -> Part {
    Part { kernel, times, widened, groups: 1 }
}

const BASIC: &[Part] = &[part(3, 1, true), part(3, 1, true)];

/// Four times as many channels leave the block as pass its middle; only the middle is widened.
const BOTTLENECK: &[Part] = &[part(1, 1, true), part(3, 1, true), part(1, 4, false)];

/// Channels before widening and stride of each group, for images of 32 px.
const SMALL_GROUPS: [(u32, u32); 3] = [(16, 1), (32, 2), (64, 2)];

const SMALL_STEM: Stem = small_stem(16);

/// The same for ResNeXts.
const SMALL_RESNEXT_GROUPS: [(u32, u32); 3] = [(64, 1), (128, 2), (256, 2)];

const SMALL_RESNEXT_STEM: Stem = small_stem(64);

/// The same for images of 224 px.
const IMAGENET_GROUPS: [(u32, u32); 4] = [(64, 1), (128, 2), (256, 2), (512, 2)];

const IMAGENET_STEM: Stem = imagenet_stem(64);

/// Depth and blocks of each group of the ImageNet networks, by kind of block.
const IMAGENET_BASIC: &[(u32, [u32; 4])] = &[(18, [2, 2, 2, 2]), (34, [3, 4, 6, 3])];
const IMAGENET_BOTTLENECK: &[(u32, [u32; 4])] =
    &[(50, [3, 4, 6, 3]), (101, [3, 4, 23, 3]), (152, [3, 8, 36, 3])];

/// Depths of the ResNets for small images, and blocks of each of their groups.
const SMALL_RESNETS: &[(u32, u32)] = &[(20, 3), (32, 5), (44, 7), (56, 9), (110, 18), (1202, 200)];

/// Depths of the pre-activation ResNets, their blocks, and how many of them a group has.
const PREACTIVATION_RESNETS: &[(u32, &[Part], u32)] = &[
    (20, BASIC, 3),
    (32, BASIC, 5),
    (44, BASIC, 7),
    (56, BASIC, 9),
    (110, BASIC, 18),
    (164, BOTTLENECK, 18),
    (1001, BOTTLENECK, 111),
];

/// Depths of the ResNeXts for small images, and blocks of each of their groups.
const SMALL_RESNEXTS: &[(u32, u32)] = &[(20, 2), (29, 3), (38, 4)];

/// Groups of blocks of these parts, or nothing when the width does not give whole channels.
fn groups(table: &[(u32, u32)], blocks: &[u32], parts: &[Part], width: Width) -> Option<Vec<Group>> {
    let conv = |base: u32, part: &Part| {
        let width = if part.widened { width } else { Width::ONE };
        let channels = width.times(base * part.times)?;
        Some(Conv { kernel: part.kernel, channels, groups: part.groups })
    };
    let group = |(&(base, stride), &blocks): (&(u32, u32), &u32)| {
        let convs = parts.iter().map(|part| conv(base, part)).collect::<Option<_>>()?;
        Some(Group { blocks, stride, convs })
    };
    table.iter().zip(blocks).map(group).collect()
}

fn look_up<T: Copy>(table: &[(u32, T)], depth: u32) -> Option<T> {
    table.iter().find(|(of, _)| *of == depth).map(|(_, found)| *found)
}

/// WRN for small images: three groups of `blocks` blocks B(`kernels`).
pub(crate) fn wide(width: u32, kernels: &[u32], blocks: u32) -> Option<Residual> {
    let parts: Vec<Part> = kernels.iter().map(|&kernel| part(kernel, 1, true)).collect();
    Some(Residual {
        activation: Activation::Before,
        widening: Widening::Projection,
        stem: SMALL_STEM,
        groups: groups(&SMALL_GROUPS, &[blocks; 3], &parts, Width::whole(width))?,
        strided: 0,
        squeeze: false,
    })
}

/// Pre-activation ResNet for small images, or nothing for a depth that the table lacks.
pub(crate) fn preactivation_resnet(depth: u32) -> Option<Residual> {
    let &(_, parts, blocks) = PREACTIVATION_RESNETS.iter().find(|(of, ..)| *of == depth)?;
    Some(Residual {
        activation: Activation::Before,
        widening: Widening::Projection,
        stem: SMALL_STEM,
        groups: groups(&SMALL_GROUPS, &[blocks; 3], parts, Width::ONE)?,
        strided: 0,
        squeeze: false,
    })
}

/// Original ResNet for small images, or nothing for a depth that the table lacks.
pub(crate) fn small_resnet(depth: u32) -> Option<Residual> {
    let blocks = look_up(SMALL_RESNETS, depth)?;
    Some(Residual {
        activation: Activation::After,
        widening: Widening::ZeroPad,
        stem: SMALL_STEM,
        groups: groups(&SMALL_GROUPS, &[blocks; 3], BASIC, Width::ONE)?,
        strided: 0,
        squeeze: false,
    })
}

/// (Wide) ResNet of basic blocks for ImageNet, or nothing for a depth that the table lacks.
pub(crate) fn imagenet_basic(depth: u32, width: Width) -> Option<Residual> {
    imagenet(&look_up(IMAGENET_BASIC, depth)?, BASIC, 0, width)
}

/// (Wide) ResNet of bottleneck blocks for ImageNet, or nothing for a depth that the table lacks.
pub(crate) fn imagenet_bottleneck(depth: u32, width: Width) -> Option<Residual> {
    imagenet(&look_up(IMAGENET_BOTTLENECK, depth)?, BOTTLENECK, 1, width)
}

fn imagenet(blocks: &[u32], parts: &[Part], strided: usize, width: Width) -> Option<Residual> {
    Some(Residual {
        activation: Activation::After,
        widening: Widening::Projection,
        stem: IMAGENET_STEM,
        groups: groups(&IMAGENET_GROUPS, blocks, parts, width)?,
        strided,
        squeeze: false,
    })
}

/// ResNeXt of `cardinality` groups of `width` channels in the first group of blocks, for ImageNet; nothing
/// for a depth that the table lacks.
pub(crate) fn resnext_imagenet(depth: u32, cardinality: u32, width: u32) -> Option<Residual> {
    let blocks = look_up(IMAGENET_BOTTLENECK, depth)?;
    imagenet(&blocks, &aggregated(cardinality), 1, aggregated_width(cardinality, width))
}

/// The same for images of 32 px.
pub(crate) fn resnext_small(depth: u32, cardinality: u32, width: u32) -> Option<Residual> {
    let blocks = look_up(SMALL_RESNEXTS, depth)?;
    let width = aggregated_width(cardinality, width);
    Some(Residual {
        activation: Activation::After,
        widening: Widening::Projection,
        stem: SMALL_RESNEXT_STEM,
        groups: groups(&SMALL_RESNEXT_GROUPS, &[blocks; 3], &aggregated(cardinality), width)?,
        strided: 1,
        squeeze: false,
    })
}

/// A bottleneck whose middle convolution has `cardinality` groups.
fn aggregated(cardinality: u32) -> Vec<Part> {
    let grouped = |part: &Part| Part { groups: if part.kernel == 3 { cardinality } else { 1 }, ..*part };
    BOTTLENECK.iter().map(grouped).collect()
}

/// The middle of the first group's blocks has `cardinality` times `width` channels instead of 64.
fn aggregated_width(cardinality: u32, width: u32) -> Width {
    Width { numerator: cardinality * width, denominator: 64 }
}
