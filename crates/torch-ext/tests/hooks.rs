//! When gradient-ready callbacks are called, what they see, and how long they live.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use common::{FlatNetwork, loss, plain_leaves, relative_error, waves};
use tch::{Kind, Tensor};
use torch_ext::hooks::on_gradient_ready;

/// Images of two micro batches.
fn micro_batches() -> [Tensor; 2] {
    [waves(&[2, 3, 8, 8], 10.0), waves(&[3, 3, 8, 8], 20.0)]
}

#[test]
fn every_hook_fires_once_a_backward_and_the_last_layer_comes_first() {
    let network = FlatNetwork::new();
    let fired = Arc::new(Mutex::new(Vec::new()));
    for (index, leaf) in network.leaves.iter().enumerate() {
        let fired = Arc::clone(&fired);
        on_gradient_ready(leaf, move || fired.lock().unwrap().push(index)).unwrap();
    }
    for images in &micro_batches() {
        loss(&network.leaves, images).backward();
        let mut order = std::mem::take(&mut *fired.lock().unwrap());
        // Weight and bias of the classifier belong to one operation.
        order[..2].sort_unstable();
        assert_eq!(order, [2, 3, 1, 0]);
    }
}

#[test]
fn a_hook_sees_the_sum_of_all_backwards_so_far_and_earlier_layers_still_without_this_one() {
    let network = FlatNetwork::new();
    let plain = plain_leaves();
    // At each call of a hook: which, and a copy of the whole flat gradient.
    let seen = Arc::new(Mutex::new(Vec::new()));
    for (index, leaf) in network.leaves.iter().enumerate() {
        let (seen, flat) = (Arc::clone(&seen), Mutex::new(network.gradients.shallow_clone()));
        on_gradient_ready(leaf, move || {
            let copy = flat.lock().unwrap().copy();
            seen.lock().unwrap().push((index, copy));
        })
        .unwrap();
    }
    let first_layer =
        |flat: &Tensor| torch_ext::flat::view(flat, common::OFFSETS[0], common::SHAPES[0]).unwrap();
    let mut before = network.gradients.copy();
    for images in &micro_batches() {
        loss(&plain, images).backward();
        loss(&network.leaves, images).backward();
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen.len(), 4);
        for (index, flat) in &seen {
            let own = torch_ext::flat::view(flat, common::OFFSETS[*index], common::SHAPES[*index]).unwrap();
            let error = relative_error(&own, &plain[*index].grad());
            assert!(error < 1e-5, "parameter {index} is off by {error} when its hook fires");
            if *index != 0 {
                assert!(
                    first_layer(flat).equal(&first_layer(&before)),
                    "conv 0 is ready before parameter {index}"
                );
            }
        }
        before = network.gradients.copy();
    }
}

#[test]
fn a_parameter_used_twice_is_ready_once_with_the_gradient_of_both_uses() {
    let weight = waves(&[4, 4], 0.0).set_requires_grad(true);
    let calls = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&calls);
    on_gradient_ready(&weight, move || *counter.lock().unwrap() += 1).unwrap();
    let input = waves(&[3, 4], 1.0);
    input.matmul(&weight).matmul(&weight).sum(Kind::Float).backward();
    assert_eq!(*calls.lock().unwrap(), 1);

    // d/dW sum(X W W) = Xᵀ 1 Wᵀ + (X W)ᵀ 1
    let ones = Tensor::ones_like(&input);
    let detached = weight.detach();
    let expected =
        input.tr().matmul(&ones.matmul(&detached.tr())) + input.matmul(&detached).tr().matmul(&ones);
    assert!(relative_error(&weight.grad(), &expected) < 1e-5);
}

#[test]
fn a_parameter_that_takes_no_part_is_not_reported() {
    let used = waves(&[4], 0.0).set_requires_grad(true);
    let unused = waves(&[4], 0.0).set_requires_grad(true);
    let fired = Arc::new(Mutex::new(Vec::new()));
    for (name, leaf) in [("used", &used), ("unused", &unused)] {
        let fired = Arc::clone(&fired);
        on_gradient_ready(leaf, move || fired.lock().unwrap().push(name)).unwrap();
    }
    used.square().sum(Kind::Float).backward();
    assert_eq!(*fired.lock().unwrap(), ["used"]);
}

#[test]
fn on_a_cpu_the_callback_runs_on_the_thread_of_backward() {
    let leaf = waves(&[4], 0.0).set_requires_grad(true);
    let ran_on = Arc::new(Mutex::new(None));
    let note = Arc::clone(&ran_on);
    on_gradient_ready(&leaf, move || *note.lock().unwrap() = Some(thread::current().id())).unwrap();
    let backward_on = thread::spawn(move || {
        leaf.square().sum(Kind::Float).backward();
        thread::current().id()
    });
    assert_eq!(Some(backward_on.join().unwrap()), *ran_on.lock().unwrap());
}

#[test]
fn a_callback_lives_until_it_is_replaced_or_its_parameter_is_dropped() {
    let leaf = waves(&[4], 0.0).set_requires_grad(true);
    let (first, second) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
    for calls in [&first, &second] {
        let calls = Arc::clone(calls);
        on_gradient_ready(&leaf, move || *calls.lock().unwrap() += 1).unwrap();
    }
    assert_eq!(Arc::strong_count(&first), 1, "the replaced callback is freed");
    leaf.square().sum(Kind::Float).backward();
    assert_eq!((*first.lock().unwrap(), *second.lock().unwrap()), (0, 1));
    assert_eq!(Arc::strong_count(&second), 2);
    drop(leaf);
    assert_eq!(Arc::strong_count(&second), 1, "the parameter took its callback along");
}

#[test]
fn what_is_no_leaf_with_a_gradient_is_refused_and_the_callback_freed() {
    let leaf = waves(&[4], 0.0).set_requires_grad(true);
    for (name, tensor) in [("computed", &leaf * 2.0), ("without gradient", leaf.detach())] {
        let held = Arc::new(());
        let captured = Arc::clone(&held);
        let refused = on_gradient_ready(&tensor, move || {
            let _ = &captured;
        });
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("leaf"), "{name}: {message}");
        assert_eq!(Arc::strong_count(&held), 1, "{name}");
    }
}

#[test]
fn a_panicking_callback_ends_the_process_with_a_sentence() {
    const CHILD: &str = "TORCH_EXT_PANICKING_CALLBACK";
    if std::env::var_os(CHILD).is_some() {
        let leaf = waves(&[4], 0.0).set_requires_grad(true);
        on_gradient_ready(&leaf, || panic!("on purpose")).unwrap();
        leaf.square().sum(Kind::Float).backward();
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_panicking_callback_ends_the_process_with_a_sentence", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&child.stderr);
    assert_eq!(child.status.code(), None, "ended by a signal, not by itself: {errors}");
    assert!(errors.contains("on purpose") && errors.contains("gradient-ready callback panicked"), "{errors}");
}
