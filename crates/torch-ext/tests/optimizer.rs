//! Fused SGD and AdamW against the formulas of `torch.optim`, written out with plain operations.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use common::{relative_error, values, waves};
use tch::{Device, Kind, Tensor};
use torch_ext::optimizer::{AdamW, Sgd, fused_adamw, fused_sgd, fused_sgd_unless};

const PLAIN: Sgd =
    Sgd { learning_rate: 0.1, momentum: 0.0, dampening: 0.0, weight_decay: 0.0, nesterov: false };
const MOMENTUM: Sgd = Sgd { momentum: 0.9, ..PLAIN };

/// One parameter in fp64, updated as PyTorch's documentation says.
struct Reference {
    parameter: Tensor,
    momentum: Option<Tensor>,
}

impl Reference {
    fn step(&mut self, gradient: &Tensor, sgd: &Sgd) {
        let gradient = gradient.to_kind(Kind::Double) + &self.parameter * sgd.weight_decay;
        let update = if sgd.momentum == 0.0 {
            gradient
        } else {
            let momentum = match &self.momentum {
                None => gradient.copy(),
                Some(old) => old * sgd.momentum + &gradient * (1.0 - sgd.dampening),
            };
            let update = if sgd.nesterov { gradient + &momentum * sgd.momentum } else { momentum.copy() };
            self.momentum = Some(momentum);
            update
        };
        self.parameter = &self.parameter - update * sgd.learning_rate;
    }
}

/// Several steps of `sgd`, fused and by formula, on parameters of several lengths.
fn assert_equals_formulas(name: &str, sgd: Sgd) {
    // Lengths around the width of a vector register, and one that several threads share.
    let lengths = [1, 15, 64, 1003, 100_000];
    let parameters: Vec<_> = lengths.iter().map(|&len| waves(&[len], 1.0)).collect();
    // Whatever the buffers hold is overwritten in the first step.
    let momentum: Vec<_> =
        lengths.iter().map(|&len| Tensor::full([len], 1e6, (Kind::Float, Device::Cpu))).collect();
    let mut references: Vec<_> = parameters
        .iter()
        .map(|parameter| Reference { parameter: parameter.to_kind(Kind::Double), momentum: None })
        .collect();
    for step in 0..5 {
        let gradients: Vec<_> = lengths.iter().map(|&len| waves(&[len], 2.0 + f64::from(step))).collect();
        // The rate follows a schedule.
        let sgd = Sgd { learning_rate: sgd.learning_rate / f64::from(step + 1), ..sgd };
        fused_sgd(&refs(&parameters), &refs(&gradients), &refs(&momentum), &sgd, step == 0).unwrap();
        for (reference, gradient) in references.iter_mut().zip(&gradients) {
            reference.step(gradient, &sgd);
        }
    }
    for (index, reference) in references.iter().enumerate() {
        let error = relative_error(&parameters[index], &reference.parameter);
        assert!(error < 1e-6, "{name}, {} elements: parameters off by {error}", lengths[index]);
        if let Some(expected) = &reference.momentum {
            let error = relative_error(&momentum[index], expected);
            assert!(error < 1e-6, "{name}, {} elements: momentum off by {error}", lengths[index]);
        } else {
            let untouched = momentum[index].equal(&momentum[index].full_like(1e6));
            assert!(untouched, "{name}, {} elements: momentum written to", lengths[index]);
        }
    }
}

#[test]
fn several_steps_with_momentum_equal_the_formulas() {
    for (name, sgd) in [
        ("momentum", MOMENTUM),
        ("decay", Sgd { weight_decay: 5e-4, ..MOMENTUM }),
        ("dampening", Sgd { dampening: 0.3, weight_decay: 0.01, ..MOMENTUM }),
        ("nesterov", Sgd { nesterov: true, ..MOMENTUM }),
        ("nesterov and decay", Sgd { weight_decay: 5e-4, nesterov: true, ..MOMENTUM }),
    ] {
        assert_equals_formulas(name, sgd);
    }
}

#[test]
fn several_steps_without_momentum_equal_the_formulas() {
    for (name, sgd) in [("plain", PLAIN), ("decay", Sgd { weight_decay: 0.05, ..PLAIN })] {
        assert_equals_formulas(name, sgd);
    }
}

fn refs(tensors: &[Tensor]) -> Vec<&Tensor> {
    tensors.iter().collect()
}

#[test]
fn a_range_of_a_flat_buffer_is_updated_and_its_neighbours_are_not() {
    let (parameters, gradients) = (waves(&[100], 0.0), waves(&[100], 1.0));
    let momentum = Tensor::zeros([100], (Kind::Float, Device::Cpu));
    let before = parameters.copy();
    let range = |flat: &Tensor| flat.narrow(0, 37, 21);
    fused_sgd(&[&range(&parameters)], &[&range(&gradients)], &[&range(&momentum)], &MOMENTUM, true).unwrap();
    for (start, len) in [(0, 37), (58, 42)] {
        assert!(parameters.narrow(0, start, len).equal(&before.narrow(0, start, len)));
    }
    let expected = range(&before) - range(&gradients) * 0.1;
    assert!(relative_error(&range(&parameters), &expected) < 1e-6);
}

#[test]
fn one_call_over_the_whole_equals_calls_over_its_ranges() {
    let sgd = Sgd { weight_decay: 5e-4, nesterov: true, ..MOMENTUM };
    let run = |ranges: &[(i64, i64)]| {
        let parameters = waves(&[1000], 0.0);
        let momentum = Tensor::zeros([1000], (Kind::Float, Device::Cpu));
        for step in 0..3 {
            let gradients = waves(&[1000], f64::from(step));
            let cut = |flat: &Tensor| {
                ranges.iter().map(|&(start, len)| flat.narrow(0, start, len)).collect::<Vec<_>>()
            };
            fused_sgd(
                &refs(&cut(&parameters)),
                &refs(&cut(&gradients)),
                &refs(&cut(&momentum)),
                &sgd,
                step == 0,
            )
            .unwrap();
        }
        values(&parameters)
    };
    assert_eq!(run(&[(0, 1000)]), run(&[(0, 7), (7, 500), (507, 493)]), "bit for bit");
}

#[test]
fn a_leaf_stays_a_leaf() {
    let leaf = waves(&[8], 0.0).set_requires_grad(true);
    leaf.square().sum(Kind::Float).backward();
    let before = values(&leaf);
    fused_sgd(&[&leaf], &[&leaf.grad()], &[&leaf.zeros_like()], &MOMENTUM, true).unwrap();
    assert!(leaf.is_leaf() && leaf.requires_grad());
    assert_ne!(values(&leaf), before);
}

#[test]
fn lists_of_different_length_are_refused() {
    let tensor = waves(&[8], 0.0);
    let one = [&tensor];
    for (gradients, momentum) in [(&[][..], &one[..]), (&one, &[]), (&[], &[])] {
        let message = fused_sgd(&one, gradients, momentum, &MOMENTUM, true).unwrap_err().to_string();
        assert!(message.contains("do not match"), "{message}");
    }
}

#[test]
fn tensors_that_do_not_match_are_refused_and_nothing_is_touched() {
    // Everything is cut from larger buffers, so that a step beyond an end would stay within them.
    let cut = |phase: f64, len: i64| waves(&[1000], phase).narrow(0, 0, len);
    let every_other = waves(&[1000], 1.0).as_strided([64], [2], 0);
    for (name, gradient, momentum) in [
        ("short gradient", cut(1.0, 8), cut(2.0, 64)),
        ("long gradient", cut(1.0, 65), cut(2.0, 64)),
        ("short momentum", cut(1.0, 64), cut(2.0, 8)),
        ("gradient with gaps", every_other.shallow_clone(), cut(2.0, 64)),
        ("momentum with gaps", cut(1.0, 64), every_other),
        ("fp64 gradient", cut(1.0, 64).to_kind(Kind::Double), cut(2.0, 64)),
        ("bf16 gradient", cut(1.0, 64).to_kind(Kind::BFloat16), cut(2.0, 64)),
    ] {
        let parameter = cut(0.0, 64);
        let result = fused_sgd(&[&parameter], &[&gradient], &[&momentum], &MOMENTUM, false);
        assert!(result.is_err(), "{name}");
        assert!(parameter.equal(&cut(0.0, 64)), "{name}");
    }
}

#[test]
fn an_empty_list_is_refused() {
    assert!(fused_sgd(&[], &[], &[], &MOMENTUM, false).is_err());
}

fn number(value: f32) -> Tensor {
    Tensor::from_slice(&[value])
}

const ADAMW: AdamW = AdamW { learning_rate: 0.01, betas: [0.9, 0.99], epsilon: 1e-6, weight_decay: 0.1 };

/// Several steps of AdamW over `ranges` of one flat buffer: parameters and both moments.
fn adamw_over(ranges: &[(i64, i64)], len: i64) -> [Tensor; 3] {
    let (parameters, first, second) =
        (waves(&[len], 0.0), waves(&[len], 1.0).zeros_like(), waves(&[len], 1.0).zeros_like());
    for step in 1..=4 {
        let gradients = waves(&[len], f64::from(step));
        let cut =
            |flat: &Tensor| ranges.iter().map(|&(start, len)| flat.narrow(0, start, len)).collect::<Vec<_>>();
        let moments = [cut(&first), cut(&second)];
        let adamw = AdamW { learning_rate: ADAMW.learning_rate / f64::from(step), ..ADAMW };
        fused_adamw(
            &refs(&cut(&parameters)),
            &refs(&cut(&gradients)),
            [&refs(&moments[0]), &refs(&moments[1])],
            &adamw,
            &number(step as f32),
            None,
        )
        .unwrap();
    }
    [parameters, first, second]
}

#[test]
fn several_steps_of_adamw_equal_the_formulas() {
    let len = 10_000;
    let found = adamw_over(&[(0, len)], len);
    let AdamW { betas: [beta1, beta2], epsilon, weight_decay, .. } = ADAMW;
    let mut parameter = waves(&[len], 0.0).to_kind(Kind::Double);
    let (mut first, mut second) = (parameter.zeros_like(), parameter.zeros_like());
    for step in 1..=4 {
        let gradient = waves(&[len], f64::from(step)).to_kind(Kind::Double);
        let rate = ADAMW.learning_rate / f64::from(step);
        first = first * beta1 + &gradient * (1.0 - beta1);
        second = second * beta2 + gradient.square() * (1.0 - beta2);
        let (corrected_first, corrected_second) =
            (&first / (1.0 - beta1.powi(step)), &second / (1.0 - beta2.powi(step)));
        parameter = parameter * (1.0 - rate * weight_decay)
            - rate * corrected_first / (corrected_second.sqrt() + epsilon);
    }
    for (name, found, expected) in
        [("parameters", &found[0], parameter), ("m", &found[1], first), ("v", &found[2], second)]
    {
        let error = relative_error(found, &expected);
        assert!(error < 1e-6, "{name} off by {error}");
    }
}

#[test]
fn adamw_over_aligned_ranges_has_the_bits_of_one_call() {
    // Not a multiple of 64 elements, the kernel's unit; as much as several threads share.
    let len = 200_000 + 16;
    let whole = adamw_over(&[(0, len)], len);
    for ranges in [[(0, 16), (16, 48), (64, len - 64)], [(0, 100_000), (100_000, 70_016), (170_016, 30_000)]]
    {
        let parts = adamw_over(&ranges, len);
        assert!(whole.iter().zip(&parts).all(|(whole, part)| whole.equal(part)), "{ranges:?}");
    }
}

#[test]
fn adamw_refuses_what_does_not_fit() {
    let tensor = waves(&[8], 0.0);
    let short = waves(&[4], 0.0);
    let one = [&tensor];
    let cases =
        [(&[][..], &one[..], &one[..]), (&one, &[], &one), (&one, &one, &[]), (&one, &one, &[&short])];
    for (gradients, first, second) in cases {
        assert!(fused_adamw(&one, gradients, [first, second], &ADAMW, &number(1.0), None).is_err());
    }
    assert!(fused_adamw(&[], &[], [&[], &[]], &ADAMW, &number(1.0), None).is_err());
    let long = Tensor::from_slice(&[1.0_f32, 2.0]);
    for (step, skip) in [(&long, None), (&number(1.0), Some(&long))] {
        let refused = fused_adamw(&one, &one, [&one, &one], &ADAMW, step, skip);
        assert!(refused.unwrap_err().to_string().contains("one fp32 number beside the parameters"));
    }
    assert!(tensor.equal(&waves(&[8], 0.0)), "nothing is touched");
}

#[test]
fn an_update_is_skipped_where_its_device_says_so_whatever_the_gradient_is() {
    let start = Tensor::from_slice(&[1.0_f32, -2.0, 3.0, 0.5]);
    let gradient = Tensor::from_slice(&[0.1_f32, 0.2, -0.3, 0.4]);
    let spoilt = Tensor::from_slice(&[f32::NAN, f32::INFINITY, 1.0, 0.0]);
    let (ours, usual) = (start.copy(), start.copy());
    let (our_momentum, usual_momentum) = (start.zeros_like(), start.zeros_like());
    for step in 0..3 {
        let update = |skip: f32, gradient: &Tensor| {
            fused_sgd_unless(&number(skip), &[&ours], &[gradient], &[&our_momentum], &MOMENTUM).unwrap();
        };
        update(1.0, &spoilt);
        update(0.0, &gradient);
        update(1.0, &gradient);
        fused_sgd(&[&usual], &[&gradient], &[&usual_momentum], &MOMENTUM, false).unwrap();
        assert_eq!((&ours, &our_momentum), (&usual, &usual_momentum), "step {step}");
    }
    for flag in [Tensor::from_slice(&[0.0_f64]), Tensor::from_slice(&[0.0_f32, 0.0])] {
        let refused = fused_sgd_unless(&flag, &[&ours], &[&gradient], &[&our_momentum], &MOMENTUM);
        assert!(refused.unwrap_err().to_string().contains("one fp32 number beside the parameters"));
    }
}

#[test]
fn an_update_of_adamw_is_skipped_with_its_moments() {
    let start = Tensor::from_slice(&[1.0_f32, -2.0, 3.0, 0.5]);
    let moments = [0.1, 0.2].map(|value| start.full_like(value));
    let before = [&start, &moments[0], &moments[1]].map(Tensor::copy);
    let spoilt = Tensor::from_slice(&[f32::NAN, f32::INFINITY, 1.0, 0.0]);
    let update = |skip: f32, gradient: &Tensor| {
        let (first, second) = ([&moments[0]], [&moments[1]]);
        fused_adamw(&[&start], &[gradient], [&first, &second], &ADAMW, &number(3.0), Some(&number(skip)))
            .unwrap();
        [&start, &moments[0], &moments[1]].iter().zip(&before).all(|(now, before)| now.equal(before))
    };
    assert!(update(1.0, &spoilt));
    assert!(!update(0.0, &start.copy()));
}
