//! Initial weights: their distribution, and what they depend on.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::collections::HashMap;

use common::{network, variants};
use model::{ConvInit, GammaInit, Network, Options, Role};

/// Mean and standard deviation.
fn moments(values: &[f32]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let variance = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}

/// Mean and deviation of a sample of a distribution must lie within five standard errors of it.
fn assert_moments(what: &str, values: &[f32], mean: f64, deviation: f64) {
    let (sample_mean, sample_deviation) = moments(values);
    let count = values.len() as f64;
    let off = (sample_mean - mean).abs();
    assert!(off <= 5.0 * deviation / count.sqrt(), "{what}: mean {sample_mean}, expected {mean}");
    // Of a normal distribution; that of a uniform one is smaller.
    let off = (sample_deviation - deviation).abs();
    let tolerance = 5.0 * deviation / (2.0 * count).sqrt();
    assert!(off <= tolerance, "{what}: deviation {sample_deviation}, expected {deviation}");
}

/// Share of the values that are further from 0 than `bound`.
fn beyond(values: &[f32], bound: f64) -> f64 {
    values.iter().filter(|&&value| f64::from(value.abs()) > bound).count() as f64 / values.len() as f64
}

#[test]
fn every_parameter_follows_the_distribution_that_the_options_name() {
    for (variant, options) in variants() {
        let network = network("wrn-16-4", &options);
        for (index, parameter) in network.parameters().iter().enumerate() {
            let what = format!("{variant}, {}", parameter.name);
            let values = network.initial(index, 1);
            let shape: Vec<_> = parameter.shape.iter().map(|&side| side as f64).collect();
            assert_eq!(values.len() as f64, shape.iter().product::<f64>(), "{what}");
            match parameter.role {
                Role::ConvWeight => {
                    let fan = match options.conv_init {
                        ConvInit::FanIn => shape[1] * shape[2] * shape[3],
                        ConvInit::FanOut => shape[0] * shape[2] * shape[3],
                    };
                    let deviation = (2.0 / fan).sqrt();
                    assert_moments(&what, &values, 0.0, deviation);
                    if values.len() > 10_000 {
                        // A normal distribution has 4.55 % beyond two deviations, and 0.27 % beyond three.
                        let (two, three) =
                            (beyond(&values, 2.0 * deviation), beyond(&values, 3.0 * deviation));
                        assert!((0.035..0.056).contains(&two), "{what}: {two}");
                        assert!((0.0005..0.006).contains(&three), "{what}: {three}");
                    }
                }
                Role::NormGain => match options.gamma_init {
                    GammaInit::Uniform => {
                        assert_moments(&what, &values, 0.5, 1.0 / 12f64.sqrt());
                        assert!(values.iter().all(|value| (0.0..=1.0).contains(value)), "{what}");
                    }
                    GammaInit::One => assert!(values.iter().all(|&value| value == 1.0), "{what}"),
                },
                Role::LinearWeight => {
                    let bound = 1.0 / shape[1].sqrt();
                    assert_moments(&what, &values, 0.0, bound / 3f64.sqrt());
                    assert_eq!(beyond(&values, bound * (1.0 + 1e-6)), 0.0, "{what}");
                }
                Role::NormBias | Role::LinearBias => {
                    assert!(values.iter().all(|&value| value == 0.0), "{what}")
                }
            }
        }
    }
}

/// Every parameter that is drawn at random, by name.
fn drawn(network: &Network, seed: u64) -> HashMap<String, (Vec<i64>, Vec<f32>)> {
    let random = |role| matches!(role, Role::ConvWeight | Role::LinearWeight | Role::NormGain);
    (network.parameters().iter().enumerate())
        .filter(|(_, parameter)| random(parameter.role))
        .map(|(index, parameter)| {
            (parameter.name.clone(), (parameter.shape.clone(), network.initial(index, seed)))
        })
        .collect()
}

#[test]
fn values_are_a_function_of_the_seed_and_the_name() {
    let short = drawn(&network("wrn-16-2", &Options::default()), 7);
    assert_eq!(drawn(&network("wrn-16-2", &Options::default()), 7), short, "the same again");

    // Other blocks around a parameter do not matter.
    let long = drawn(&network("wrn-28-2", &Options { dropout: 0.3, ..Options::default() }), 7);
    assert!(short.keys().all(|name| long.contains_key(name)));
    for (name, values) in &short {
        assert_eq!(&long[name], values, "{name}");
    }
}

#[test]
fn another_seed_or_another_name_gives_other_values() {
    let network = network("wrn-16-2", &Options::default());
    let seeds = [0, 1, 2, 1 << 32, u64::MAX];
    // The first eight values of each draw, scaled to its deviation, so that equal streams of other spreads
    // show too.
    let mut seen: HashMap<Vec<i64>, (String, u64)> = HashMap::new();
    for seed in seeds {
        for (name, (_, values)) in drawn(&network, seed) {
            let (_, deviation) = moments(&values);
            let (centre, spread) = if name.contains("bn") { (0.5, 1.0) } else { (0.0, deviation) };
            assert!(values.windows(2).any(|pair| pair[0] != pair[1]), "{name} is constant");
            let fingerprint = values[..8]
                .iter()
                .map(|&value| ((f64::from(value) - centre) / spread * 8.0).round() as i64)
                .collect();
            if let Some(other) = seen.insert(fingerprint, (name.clone(), seed)) {
                panic!("{name} of seed {seed} equals {} of seed {}", other.0, other.1);
            }
        }
    }
    assert!(seen.len() > 100);
}

#[test]
fn a_spread_changes_the_scale_of_the_values_and_nothing_else() {
    let values = |conv_init| drawn(&network("wrn-10-2", &Options { conv_init, ..Options::default() }), 3);
    let (fan_in, fan_out) = (values(ConvInit::FanIn), values(ConvInit::FanOut));
    let (shape, stem_in) = &fan_in["conv0.weight"];
    let (_, stem_out) = &fan_out["conv0.weight"];
    let ratio = (shape[1] as f64 / shape[0] as f64).sqrt();
    for (a, b) in stem_in.iter().zip(stem_out) {
        assert!((f64::from(*a) * ratio - f64::from(*b)).abs() < 1e-6);
    }
    assert_eq!(fan_in["fc.weight"], fan_out["fc.weight"]);
}
