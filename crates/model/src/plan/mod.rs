//! Networks as numbers: the papers' tables of depths, channels and strides. Knows no tensors and no names of
//! parameters.

mod dense;
mod dual_path;
mod residual;

pub(crate) use dense::{BOTTLENECK_TIMES, COMPRESSION, Dense, dense_bc, dense_imagenet};
pub(crate) use dual_path::{DualPath, DualStage, dual_path};
pub(crate) use residual::{
    Activation, Conv, Group, Residual, Widening, Width, imagenet_basic, imagenet_bottleneck,
    preactivation_resnet, resnext_imagenet, resnext_small, small_resnet, wide,
};

/// A network before it has images, classes or options.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Plan {
    /// Sums over shortcuts.
    Residual(Residual),
    /// Every layer reads all layers before it.
    Dense(Dense),
    /// Some channels are summed, others added to.
    DualPath(DualPath),
}

impl Plan {
    pub(crate) fn stem(&self) -> Stem {
        match self {
            Plan::Residual(plan) => plan.stem,
            Plan::Dense(plan) => plan.stem,
            Plan::DualPath(plan) => plan.stem,
        }
    }
}

/// What stands before the first group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stem {
    pub(crate) kernel: u32,
    pub(crate) channels: u32,
    pub(crate) stride: u32,
    /// A max pool of 3x3, stride 2, after it; the mark of a network for images of 224 px.
    pub(crate) pool: bool,
}

const fn small_stem(channels: u32) -> Stem {
    Stem { kernel: 3, channels, stride: 1, pool: false }
}

const fn imagenet_stem(channels: u32) -> Stem {
    Stem { kernel: 7, channels, stride: 2, pool: true }
}
