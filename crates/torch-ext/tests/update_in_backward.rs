//! Weights that are updated while backward goes on: later layers are, earlier ones are still needed.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::sync::Mutex;

use common::{FLAT_LEN, FlatNetwork, OFFSETS, SHAPES, loss, values, waves};
use tch::Tensor;
use torch_ext::hooks;
use torch_ext::optimizer::{Sgd, fused_sgd};

const SGD: Sgd =
    Sgd { learning_rate: 0.1, momentum: 0.9, dampening: 0.0, weight_decay: 0.01, nesterov: true };

fn update(parameters: &Tensor, gradients: &Tensor, momentum: &Tensor, begin: i64, len: i64) {
    let part = |flat: &Tensor| flat.narrow(0, begin, len);
    fused_sgd(&[&part(parameters)], &[&part(gradients)], &[&part(momentum)], &SGD, false).unwrap();
}

/// Three steps, after backward or, from hooks, each parameter as soon as its gradient is there. `through` gives the
/// tensor by which the parameters are updated.
fn train(through: Option<fn(&Tensor) -> Tensor>) -> Result<Vec<f32>, String> {
    let FlatNetwork { parameters, gradients, leaves } = FlatNetwork::new();
    let momentum = parameters.zeros_like();
    if let Some(through) = through {
        for ((leaf, offset), shape) in leaves.iter().zip(OFFSETS).zip(SHAPES) {
            let len = shape.iter().product();
            let tensors =
                Mutex::new([through(&parameters), gradients.shallow_clone(), momentum.shallow_clone()]);
            hooks::on_gradient_ready(leaf, move || {
                let [parameters, gradients, momentum] = &*tensors.lock().unwrap();
                // Another thread does it, while this one waits.
                std::thread::scope(|scope| {
                    let clones = [parameters, gradients, momentum].map(Tensor::shallow_clone);
                    scope.spawn(move || update(&clones[0], &clones[1], &clones[2], offset, len));
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
            update(&parameters, &gradients, &momentum, 0, FLAT_LEN);
        }
    }
    Ok(values(&parameters))
}

#[test]
fn updates_below_autograds_version_count_give_the_bits_of_updates_after_backward() {
    let after = train(None).unwrap();
    assert_eq!(train(Some(|flat| flat.data())).unwrap(), after);
    assert_ne!(values(&FlatNetwork::new().parameters), after);
}

#[test]
fn updates_of_views_would_be_taken_for_changes_of_weights_that_backward_still_needs() {
    let message = train(Some(Tensor::shallow_clone)).unwrap_err();
    assert!(message.contains("modified by an inplace operation"), "{message}");
}
