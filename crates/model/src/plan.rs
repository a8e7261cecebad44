//! Residual networks as numbers: the papers' tables of depths, channels and strides. Knows no tensors and no
//! names of parameters.
//!
//! Sources: Zagoruyko & Komodakis 2016 (arXiv 1605.07146), tables 1 to 3; He et al. 2015 (1512.03385), table
//! 1 and section 4.2; He et al. 2016 (1603.05027); torchvision's `resnet.py` for the networks of 224 px.

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

/// What stands before the first group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stem {
    pub(crate) kernel: u32,
    pub(crate) channels: u32,
    pub(crate) stride: u32,
    /// A max pool of 3x3, stride 2, after it.
    pub(crate) pool: bool,
}

/// A convolution of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Conv {
    pub(crate) kernel: u32,
    pub(crate) channels: u32,
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
pub(crate) struct Plan {
    pub(crate) activation: Activation,
    pub(crate) widening: Widening,
    pub(crate) stem: Stem,
    pub(crate) groups: Vec<Group>,
    /// Which convolution of a group's first block has the stride.
    pub(crate) strided: usize,
}

/// The parts of a block before widening: kernel, inner channels relative to the group's, and whether the
/// widening factor applies.
#[derive(Clone, Copy, Debug)]
struct Part {
    kernel: u32,
    times: u32,
    widened: bool,
}

const fn part(kernel: u32, times: u32, widened: bool) -> Part {
    Part { kernel, times, widened }
}

const BASIC: &[Part] = &[part(3, 1, true), part(3, 1, true)];

/// Four times as many channels leave the block as pass its middle; only the middle is widened.
const BOTTLENECK: &[Part] = &[part(1, 1, true), part(3, 1, true), part(1, 4, false)];

/// Channels before widening and stride of each group, for images of 32 px.
const SMALL_GROUPS: [(u32, u32); 3] = [(16, 1), (32, 2), (64, 2)];

const SMALL_STEM: Stem = Stem { kernel: 3, channels: 16, stride: 1, pool: false };

/// The same for images of 224 px.
const IMAGENET_GROUPS: [(u32, u32); 4] = [(64, 1), (128, 2), (256, 2), (512, 2)];

const IMAGENET_STEM: Stem = Stem { kernel: 7, channels: 64, stride: 2, pool: true };

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

/// Groups of blocks of these parts. A widening factor comes in hundredths and must give whole channels.
fn groups(table: &[(u32, u32)], blocks: &[u32], parts: &[Part], hundredths: u32) -> Vec<Group> {
    let group = |(&(base, stride), &blocks): (&(u32, u32), &u32)| Group {
        blocks,
        stride,
        convs: parts
            .iter()
            .map(|part| Conv {
                kernel: part.kernel,
                channels: base * part.times * (if part.widened { hundredths } else { 100 }) / 100,
            })
            .collect(),
    };
    table.iter().zip(blocks).map(group).collect()
}

fn look_up<T: Copy>(table: &[(u32, T)], depth: u32) -> Option<T> {
    table.iter().find(|(of, _)| *of == depth).map(|(_, found)| *found)
}

/// WRN for small images: three groups of `blocks` blocks B(`kernels`).
pub(crate) fn wide(width: u32, kernels: &[u32], blocks: u32) -> Plan {
    let parts: Vec<Part> = kernels.iter().map(|&kernel| part(kernel, 1, true)).collect();
    Plan {
        activation: Activation::Before,
        widening: Widening::Projection,
        stem: SMALL_STEM,
        groups: groups(&SMALL_GROUPS, &[blocks; 3], &parts, width * 100),
        strided: 0,
    }
}

/// Pre-activation ResNet for small images, or nothing for a depth that the table lacks.
pub(crate) fn preactivation_resnet(depth: u32) -> Option<Plan> {
    let &(_, parts, blocks) = PREACTIVATION_RESNETS.iter().find(|(of, ..)| *of == depth)?;
    Some(Plan {
        activation: Activation::Before,
        widening: Widening::Projection,
        stem: SMALL_STEM,
        groups: groups(&SMALL_GROUPS, &[blocks; 3], parts, 100),
        strided: 0,
    })
}

/// Original ResNet for small images, or nothing for a depth that the table lacks.
pub(crate) fn small_resnet(depth: u32) -> Option<Plan> {
    let blocks = look_up(SMALL_RESNETS, depth)?;
    Some(Plan {
        activation: Activation::After,
        widening: Widening::ZeroPad,
        stem: SMALL_STEM,
        groups: groups(&SMALL_GROUPS, &[blocks; 3], BASIC, 100),
        strided: 0,
    })
}

/// (Wide) ResNet of basic blocks for ImageNet, or nothing for a depth that the table lacks.
pub(crate) fn imagenet_basic(depth: u32, hundredths: u32) -> Option<Plan> {
    Some(imagenet(&look_up(IMAGENET_BASIC, depth)?, BASIC, 0, hundredths))
}

/// (Wide) ResNet of bottleneck blocks for ImageNet, or nothing for a depth that the table lacks.
pub(crate) fn imagenet_bottleneck(depth: u32, hundredths: u32) -> Option<Plan> {
    Some(imagenet(&look_up(IMAGENET_BOTTLENECK, depth)?, BOTTLENECK, 1, hundredths))
}

fn imagenet(blocks: &[u32], parts: &[Part], strided: usize, hundredths: u32) -> Plan {
    Plan {
        activation: Activation::After,
        widening: Widening::Projection,
        stem: IMAGENET_STEM,
        groups: groups(&IMAGENET_GROUPS, blocks, parts, hundredths),
        strided,
    }
}
