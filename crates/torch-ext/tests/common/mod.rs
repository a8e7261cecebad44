//! Values that need no generator, since generators are among what is tested, and a small network on flat
//! buffers.

#![allow(dead_code, clippy::unwrap_used)] // Each test file uses some of it; all of it is test code.

mod values;

use tch::{Device, Kind, Tensor};
use torch_ext::flat;

pub(crate) use values::*;

/// Shapes of the small network's parameters in forward order: two convolutions and a classifier.
pub(crate) const SHAPES: [&[i64]; 4] = [&[4, 3, 3, 3], &[6, 4, 3, 3], &[5, 6], &[5]];

/// Offsets with a gap behind every parameter.
pub(crate) const OFFSETS: [i64; 4] = [0, 128, 384, 448];

/// Length of the flat buffers.
pub(crate) const FLAT_LEN: i64 = 512;

/// The small network's loss for some images `[N, 3, H, W]`.
pub(crate) fn loss(parameters: &[Tensor], images: &Tensor) -> Tensor {
    images
        .conv2d(&parameters[0], None::<&Tensor>, 1, 1, 1, 1)
        .relu()
        .conv2d(&parameters[1], None::<&Tensor>, 2, 1, 1, 1)
        .mean_dim([2i64, 3].as_slice(), false, Kind::Float)
        .linear(&parameters[2], Some(&parameters[3]))
        .square()
        .sum(Kind::Float)
}

/// The same initial values as ordinary leaves.
pub(crate) fn plain_leaves() -> Vec<Tensor> {
    SHAPES.iter().enumerate().map(|(i, shape)| waves(shape, i as f64).set_requires_grad(true)).collect()
}

/// Leaves in one flat buffer, whose gradients are bound to another.
pub(crate) struct FlatNetwork {
    pub(crate) parameters: Tensor,
    pub(crate) gradients: Tensor,
    pub(crate) leaves: Vec<Tensor>,
}

impl FlatNetwork {
    pub(crate) fn new() -> Self {
        let zeros = || Tensor::zeros([FLAT_LEN], (Kind::Float, Device::Cpu));
        let (parameters, gradients) = (zeros(), zeros());
        let leaves = SHAPES
            .iter()
            .zip(OFFSETS)
            .enumerate()
            .map(|(i, (shape, offset))| {
                flat::view(&parameters, offset, shape).unwrap().copy_(&waves(shape, i as f64));
                let leaf = flat::leaf(&parameters, offset, shape).unwrap();
                flat::bind_gradient(&leaf, &gradients, offset).unwrap();
                leaf
            })
            .collect();
        FlatNetwork { parameters, gradients, leaves }
    }

    /// The part of the flat gradient that belongs to parameter `index`, in logical order.
    pub(crate) fn gradient(&self, index: usize) -> Tensor {
        flat::view(&self.gradients, OFFSETS[index], SHAPES[index]).unwrap()
    }
}
