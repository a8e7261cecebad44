//! Weights that are updated while backward goes on: later layers are, earlier ones are still needed.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::sync::Mutex;

use common::{FlatNetwork, OFFSETS, SHAPES, loss, values, waves};
use tch::Tensor;
use torch_ext::hooks;
use torch_ext::optimizer::{Sgd, fused_sgd};

const SGD: Sgd =
    Sgd { learning_rate: 1e-4, momentum: 0.9, dampening: 0.0, weight_decay: 0.01, nesterov: true };

type Update = fn(&Tensor, &Tensor, &Tensor);

fn fused(parameters: &Tensor, gradients: &Tensor, momentum: &Tensor) {
    fused_sgd(&[parameters], &[gradients], &[momentum], &SGD, false).unwrap();
}

/// By operations that count as changes of the parameters.
fn plain(parameters: &Tensor, gradients: &Tensor, _momentum: &Tensor) {
    let _no_grad = tch::no_grad_guard();
    let _ = parameters.shallow_clone().subtract_(&(gradients * SGD.learning_rate));
}

/// Three steps, after backward or, from hooks, each parameter as soon as its gradient is there. `through` gives the
/// tensor by which the parameters are updated.
fn train(update: Update, through: Option<fn(&Tensor) -> Tensor>) -> Result<Vec<f32>, String> {
    let FlatNetwork { parameters, gradients, leaves } = FlatNetwork::new();
    let momentum = parameters.zeros_like();
    if let Some(through) = through {
        for ((leaf, offset), shape) in leaves.iter().zip(OFFSETS).zip(SHAPES) {
            let part = |flat: &Tensor| flat.narrow(0, offset, shape.iter().product());
            let tensors = Mutex::new([part(&through(&parameters)), part(&gradients), part(&momentum)]);
            hooks::on_gradient_ready(leaf, move || {
                // Another thread does it, while this one waits.
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        let [parameters, gradients, momentum] = &*tensors.lock().unwrap();
                        update(parameters, gradients, momentum);
                    });
                });
            })
            .unwrap();
        }
    }
    for step in 0..3 {
        let _ = gradients.shallow_clone().zero_();
        let loss = loss(&leaves, &waves(&[2, 3, 8, 8], f64::from(step)));
        loss.f_backward().map_err(|error| error.to_string())?;
        if through.is_none() {
            update(&parameters, &gradients, &momentum);
        }
    }
    Ok(values(&parameters))
}

#[test]
fn updates_below_autograds_count_of_changes_give_the_bits_of_updates_after_backward() {
    for update in [fused as Update, plain] {
        let after = train(update, None).unwrap();
        assert_eq!(train(update, Some(Tensor::data)).unwrap(), after);
        assert_ne!(values(&FlatNetwork::new().parameters), after);
    }
}

#[test]
fn counted_updates_are_taken_for_changes_of_weights_that_backward_still_needs() {
    let message = train(plain, Some(Tensor::shallow_clone)).unwrap_err();
    assert!(message.contains("modified by an inplace operation"), "{message}");
}
