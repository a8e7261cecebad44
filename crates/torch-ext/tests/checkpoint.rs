//! Parts that backward runs again: same gradients, hooks once and in order, errors as values, closures freed.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::sync::{Arc, Mutex};

use common::{values, waves};
use tch::{Device, Kind, Tensor};
use torch_ext::checkpoint::checkpoint;
use torch_ext::hooks::on_gradient_ready;
use torch_ext::{Error, autocast};

fn weights() -> [Tensor; 4] {
    [0.0, 1.0, 2.0, 3.0].map(|phase| waves(&[8, 8], phase).set_requires_grad(true))
}

fn part(input: &Tensor, first: &Tensor, second: &Tensor) -> Result<Tensor, Error> {
    Ok(input.f_matmul(first)?.f_relu()?.f_matmul(second)?)
}

/// Loss of two parts, one after the other, behind a first operation.
fn loss(weights: &[Tensor; 4], again: bool) -> Tensor {
    let input = waves(&[4, 8], 9.0).matmul(&weights[0]);
    let middle = if again {
        let [first, second] = [&weights[1], &weights[2]].map(Tensor::shallow_clone);
        checkpoint(
            &input,
            |input| part(input, &weights[1], &weights[2]),
            move |input| part(input, &first, &second),
        )
        .unwrap()
    } else {
        part(&input, &weights[1], &weights[2]).unwrap()
    };
    let sum = &middle + &input;
    let last = if again {
        let fourth = weights[3].shallow_clone();
        checkpoint::<Error>(&sum, |sum| Ok(sum.f_matmul(&weights[3])?), move |sum| Ok(sum.f_matmul(&fourth)?))
            .unwrap()
    } else {
        sum.matmul(&weights[3])
    };
    last.square().mean(Kind::Float)
}

#[test]
fn gradients_and_hooks_are_those_of_an_ordinary_backward() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let [plain, other] = [false, true].map(|again| {
            let weights = weights();
            let fired = Arc::new(Mutex::new(Vec::new()));
            for (index, weight) in weights.iter().enumerate() {
                let fired = Arc::clone(&fired);
                on_gradient_ready(weight, move || fired.lock().unwrap().push(index)).unwrap();
            }
            let mut losses = Vec::new();
            for _ in 0..2 {
                let loss = {
                    let _autocast = autocast::Guard::new(Device::Cpu, kind).unwrap();
                    loss(&weights, again)
                };
                loss.backward();
                losses.push(values(&loss.detach().to_kind(Kind::Float)));
            }
            let fired = fired.lock().unwrap().clone();
            (losses, weights.map(|weight| values(&weight.grad())), fired)
        });
        assert_eq!(other.2, [3, 2, 1, 0, 3, 2, 1, 0]);
        assert!(plain == other, "{kind:?}");
    }
}

#[test]
fn within_an_outer_autocast_gradients_still_reach_the_weights() {
    let _autocast = autocast::Guard::new(Device::Cpu, Kind::BFloat16).unwrap();
    let [plain, other] = [false, true].map(|again| {
        let weights = weights();
        loss(&weights, again).backward();
        weights.map(|weight| values(&weight.grad()))
    });
    assert!(plain == other);
    assert!(other.iter().all(|gradient| gradient.iter().any(|&value| value != 0.0)));
}

#[test]
fn the_second_run_happens_once_within_backward_and_its_closure_is_freed_then() {
    let weight = waves(&[8, 8], 0.0).set_requires_grad(true);
    let runs = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&runs);
    let output = checkpoint::<Error>(&waves(&[4, 8], 1.0), |input| Ok(input.f_matmul(&weight)?), {
        let weight = weight.shallow_clone();
        move |input| {
            *counter.lock().unwrap() += 1;
            Ok(input.f_matmul(&weight)?)
        }
    })
    .unwrap();
    assert_eq!((*runs.lock().unwrap(), Arc::strong_count(&runs)), (0, 2));
    // The input needs no gradient, the weight does.
    let loss = output.square().sum(Kind::Float);
    loss.backward();
    assert_eq!((*runs.lock().unwrap(), Arc::strong_count(&runs)), (1, 1));
    assert!(weight.grad().defined());
    assert!(loss.f_backward().is_err(), "a second backward finds nothing");
}

#[test]
fn a_graph_that_is_dropped_frees_the_closure() {
    let held = Arc::new(());
    let captured = Arc::clone(&held);
    let input = waves(&[4], 0.0).set_requires_grad(true);
    let output = checkpoint::<Error>(
        &input,
        |input| Ok(input.f_exp()?),
        move |input| {
            let _ = &captured;
            Ok(input.f_exp()?)
        },
    );
    assert_eq!(Arc::strong_count(&held), 2);
    drop(output);
    assert_eq!(Arc::strong_count(&held), 1);
}

#[test]
fn a_failure_or_a_panic_of_the_second_run_is_the_error_of_backward() {
    type Again = fn(&Tensor) -> Result<Tensor, Error>;
    let cases: [(Again, &str); 3] = [
        (|_| Err(Error::Argument("no more memory, on purpose".into())), "on purpose"),
        (|_| panic!("also on purpose"), "panicked"),
        (|input| Ok(input.f_matmul(&waves(&[3, 3], 0.0))?), "shape"),
    ];
    for (again, part) in cases {
        let input = waves(&[4, 8], 0.0).set_requires_grad(true);
        let output = checkpoint(&input, |input| Ok::<_, Error>(input.f_exp()?), again).unwrap();
        let message = output.sum(Kind::Float).f_backward().unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
        // libtorch is still usable.
        loss(&weights(), true).backward();
    }
}

#[test]
fn a_failure_of_the_first_run_comes_at_once_and_without_a_graph_there_is_no_second() {
    let input = waves(&[4, 8], 0.0).set_requires_grad(true);
    let fail = |_: &Tensor| Err(Error::Argument("on purpose".into()));
    assert!(checkpoint(&input, fail, fail).unwrap_err().to_string().contains("on purpose"));
    let _no_grad = tch::no_grad_guard();
    let output = checkpoint::<Error>(&input, |input| Ok(input.f_exp()?), |_| panic!("never")).unwrap();
    assert!(!output.requires_grad());
}

#[test]
fn a_part_that_changes_its_input_in_the_second_run_is_an_error() {
    let input = waves(&[4], 0.0).set_requires_grad(true) * 2.0;
    let output = checkpoint::<Error>(
        &input,
        |input| Ok(input.f_exp()?),
        |input| Ok(tch::no_grad(|| input.shallow_clone().f_exp_())?),
    )
    .unwrap();
    let message = output.sum(Kind::Float).f_backward().unwrap_err().to_string();
    assert!(message.contains("in place"), "{message}");
}
