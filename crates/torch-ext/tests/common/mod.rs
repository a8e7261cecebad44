//! Values that need no generator, since generators are among what is tested, and a small network on flat
//! buffers.

#![allow(dead_code, clippy::unwrap_used)] // Each test file uses some of it; all of it is test code.

use tch::{Device, Kind, Tensor};
use torch_ext::flat;

/// Different numbers of both signs between -1 and 1, as a function of `shape` and `phase`.
pub(crate) fn waves(shape: &[i64], phase: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    ((Tensor::arange(count, (Kind::Double, Device::Cpu)) * 0.7548 + phase).sin())
        .to_kind(Kind::Float)
        .reshape(shape)
}

/// Values in logical order.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::<f32>::try_from(tensor.detach().to_kind(Kind::Float).contiguous().view([-1])).unwrap()
}

/// `|actual - expected| / |expected|`, L2 over the whole tensor.
pub(crate) fn relative_error(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.size(), expected.size());
    let (actual, expected) = (actual.detach().to_kind(Kind::Double), expected.detach().to_kind(Kind::Double));
    ((actual - &expected).norm() / expected.norm()).double_value(&[])
}

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
