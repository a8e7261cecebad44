//! Tensors that need no generator, and how far two are apart. Shared with the tests of crates/model.

use tch::{Device, Kind, Tensor};

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
