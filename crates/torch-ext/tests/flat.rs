//! Parameters and gradients as views of flat buffers.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use common::{FLAT_LEN, FlatNetwork, OFFSETS, SHAPES, loss, plain_leaves, relative_error, values, waves};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::{flat, layout};

#[test]
fn four_dimensions_lie_in_channels_last_order_and_others_contiguous() {
    for (shape, expected) in [
        (&[2, 3, 5, 7][..], &[105, 1, 21, 3][..]),
        (&[8, 4, 1, 1], &[4, 1, 4, 4]),
        (&[8, 1, 3, 3], &[9, 1, 3, 1]),
        (&[5, 6], &[6, 1]),
        (&[2, 3, 4], &[12, 4, 1]),
        (&[9], &[1]),
        (&[], &[]),
    ] {
        assert_eq!(flat::strides(shape), expected, "{shape:?}");
    }
}

#[test]
fn a_view_is_a_window_on_the_flat_buffer() {
    // The flat buffer itself begins inside of a larger one.
    let whole = Tensor::arange(100, (Kind::Float, Device::Cpu));
    let buffer = whole.narrow(0, 10, 80);
    let view = flat::view(&buffer, 5, &[2, 3, 2, 4]).unwrap();
    assert!(layout::is_channels_last(&view));
    let in_memory = whole.narrow(0, 15, 48).reshape([2, 2, 4, 3]).permute([0, 3, 1, 2]);
    assert!(view.equal(&in_memory));

    let _ = flat::view(&buffer, 60, &[4]).unwrap().fill_(-1.0);
    assert_eq!(values(&whole.narrow(0, 69, 6)), [69.0, -1.0, -1.0, -1.0, -1.0, 74.0]);
}

#[test]
fn a_leaf_shares_memory_and_requires_a_gradient() {
    let mut buffer = waves(&[64], 0.0);
    let leaf = flat::leaf(&buffer, 4, &[3, 5]).unwrap();
    assert!(leaf.is_leaf() && leaf.requires_grad() && !buffer.requires_grad());
    let _ = no_grad(|| buffer.fill_(2.5));
    assert_eq!(values(&leaf), [2.5; 15]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let buffer = waves(&[64], 0.0);
    for (offset, shape) in
        [(0, &[65][..]), (60, &[5]), (65, &[1]), (-70, &[1]), (0, &[2, 3, 4, 5]), (i64::MAX, &[1])]
    {
        assert!(flat::view(&buffer, offset, shape).is_err(), "{offset} {shape:?}");
        assert!(flat::leaf(&buffer, offset, shape).is_err(), "{offset} {shape:?}");
    }
    let leaf = flat::leaf(&buffer, 0, &[8, 8]).unwrap();
    assert!(flat::bind_gradient(&leaf, &waves(&[64], 0.0), 1).is_err());
}

#[test]
fn backward_adds_into_the_flat_gradient_in_place() {
    let mut network = FlatNetwork::new();
    let plain = plain_leaves();
    let places: Vec<_> = network.leaves.iter().map(|leaf| leaf.grad().data_ptr()).collect();
    for images in [waves(&[2, 3, 8, 8], 10.0), waves(&[3, 3, 8, 8], 20.0)] {
        loss(&network.leaves, &images).backward();
        loss(&plain, &images).backward();
    }
    for (index, leaf) in network.leaves.iter().enumerate() {
        let gradient = leaf.grad();
        assert_eq!(gradient.data_ptr(), places[index], "parameter {index} got a gradient elsewhere");
        assert_eq!(gradient.stride(), flat::strides(SHAPES[index]), "parameter {index}");
        assert!(relative_error(&network.gradient(index), &plain[index].grad()) < 1e-5, "parameter {index}");
    }

    // The gaps between the parameters stay zero, and zeroing the whole zeroes every gradient.
    let gaps = Tensor::ones([FLAT_LEN], (Kind::Float, Device::Cpu));
    for (offset, shape) in OFFSETS.into_iter().zip(SHAPES) {
        let _ = gaps.narrow(0, offset, shape.iter().product()).zero_();
    }
    assert!(gaps.sum(Kind::Float).double_value(&[]) > 0.0);
    assert_eq!((gaps * &network.gradients).abs().max().double_value(&[]), 0.0);
    let _ = network.gradients.zero_();
    assert!(network.leaves.iter().all(|leaf| leaf.grad().abs().max().double_value(&[]) == 0.0));
}

#[test]
fn an_update_of_the_flat_parameters_is_what_the_next_forward_sees() {
    let mut network = FlatNetwork::new();
    let images = waves(&[2, 3, 8, 8], 10.0);
    loss(&network.leaves, &images).backward();
    let _ = no_grad(|| network.parameters.subtract_(&(&network.gradients * 1e-3)));
    let plain: Vec<_> = plain_leaves()
        .iter()
        .enumerate()
        .map(|(index, leaf)| leaf.detach() - network.gradient(index) * 1e-3)
        .collect();
    let error = relative_error(&loss(&network.leaves, &images), &loss(&plain, &images));
    assert!(error < 1e-6, "{error}");
}
