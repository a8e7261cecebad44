//! Initial weights: their distribution, and what they depend on.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::collections::HashMap;

use common::network;
use model::{ConvInit, GammaInit, Network, Options, Parameter, Role};

/// Mean and standard deviation.
fn moments(values: &[f32]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let variance = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}

/// What a parameter is drawn from.
enum Distribution {
    /// Mean 0 and this deviation.
    Normal(f64),
    /// Between these.
    Uniform(f64, f64),
    Constant(f32),
}

impl Distribution {
    /// Mean, deviation, and fourth moment in units of the deviation.
    fn moments(&self) -> (f64, f64, f64) {
        match *self {
            Distribution::Normal(deviation) => (0.0, deviation, 3.0),
            Distribution::Uniform(low, high) => ((low + high) / 2.0, (high - low) / 12f64.sqrt(), 1.8),
            Distribution::Constant(value) => (value.into(), 0.0, 0.0),
        }
    }

    /// By how many of their standard errors mean and deviation of a sample are off.
    fn errors(&self, values: &[f32]) -> [f64; 2] {
        let (mean, deviation, fourth) = self.moments();
        let (sample_mean, sample_deviation) = moments(values);
        let count = values.len() as f64;
        let of_mean = deviation / count.sqrt();
        let of_deviation = deviation * ((fourth - 1.0) / (4.0 * count)).sqrt();
        [(sample_mean - mean).abs() / of_mean, (sample_deviation - deviation).abs() / of_deviation]
    }
}

/// Share of the values that are further from 0 than `bound`.
fn beyond(values: &[f32], bound: f64) -> f64 {
    values.iter().filter(|&&value| f64::from(value.abs()) > bound).count() as f64 / values.len() as f64
}

/// Networks of every family, with the ending of the names of what is 0 at first with zero-init.
const FAMILIES: [(&str, &str); 8] = [
    ("wrn-16-4", ".conv1.weight"),
    ("wrn-10-2-b313", ".conv2.weight"),
    ("se-wrn-10-2", ".conv1.weight"),
    ("resnet-18", ".bn2.weight"),
    ("resnext-29-4x16d", ".bn3.weight"),
    ("se-resnet-50", ".bn3.weight"),
    ("densenet-bc-40-12", "none"),
    ("dpn-68", "none"),
];

/// The distribution of a parameter by its role and shape.
fn expected(options: &Options, zeroed: &str, parameter: &Parameter) -> Distribution {
    let shape: Vec<_> = parameter.shape.iter().map(|&side| side as f64).collect();
    // Within a block: the stem's and the projections' batch norms stay as they are.
    let in_block = parameter.name.starts_with("group") || parameter.name.starts_with("layer");
    if options.zero_init_residual && in_block && parameter.name.ends_with(zeroed) {
        return Distribution::Constant(0.0);
    }
    match (parameter.role, options.conv_init, options.gamma_init) {
        // The second side of a weight is what one of its groups reads.
        (Role::ConvWeight, ConvInit::FanIn, _) => {
            Distribution::Normal((2.0 / (shape[1] * shape[2] * shape[3])).sqrt())
        }
        (Role::ConvWeight, ConvInit::FanOut, _) => {
            Distribution::Normal((2.0 / (shape[0] * shape[2] * shape[3])).sqrt())
        }
        (Role::NormGain, _, GammaInit::Uniform) => Distribution::Uniform(0.0, 1.0),
        (Role::NormGain, _, GammaInit::One) => Distribution::Constant(1.0),
        (Role::LinearWeight, ..) => Distribution::Uniform(-1.0 / shape[1].sqrt(), 1.0 / shape[1].sqrt()),
        (Role::ConvBias | Role::NormBias | Role::LinearBias, ..) => Distribution::Constant(0.0),
    }
}

/// Every mode of initialisation that has a meaning for `architecture`.
fn modes(architecture: &str) -> Vec<Options> {
    let architecture = architecture.parse().unwrap();
    let mut modes = Vec::new();
    for conv_init in [ConvInit::FanIn, ConvInit::FanOut] {
        for gamma_init in [GammaInit::Uniform, GammaInit::One] {
            for zero_init_residual in [false, true] {
                modes.push(Options { conv_init, gamma_init, zero_init_residual, ..Options::default() });
            }
        }
    }
    modes.retain(|options| Network::new(&architecture, options).is_ok());
    modes
}

#[test]
fn every_parameter_follows_the_distribution_that_the_options_name() {
    // Of some 500 layers with a mean and a deviation each, about three lie further out than three standard errors
    // whatever the generator, and none further than four and a half.
    let mut drawn_layers = HashMap::new();
    for (architecture, zeroed) in FAMILIES {
        let modes = modes(architecture);
        assert!(modes.len() >= 4, "{architecture}");
        for options in modes {
            let network = network(architecture, &options);
            let mut zeros = 0;
            for (index, parameter) in network.parameters().iter().enumerate() {
                let what = format!("{architecture}, {options:?}, {}", parameter.name);
                let values = network.initial(index, SEED);
                assert_eq!(values.len() as i64, parameter.shape.iter().product::<i64>(), "{what}");
                let distribution = expected(&options, zeroed, parameter);
                match distribution {
                    Distribution::Constant(constant) => {
                        assert!(values.iter().all(|&value| value == constant), "{what}");
                        zeros += i32::from(parameter.name.ends_with(zeroed) && constant == 0.0);
                    }
                    Distribution::Normal(deviation) if values.len() > 10_000 => {
                        // A normal distribution has 4.55 % beyond two deviations, and 0.27 % beyond three.
                        let (two, three) =
                            (beyond(&values, 2.0 * deviation), beyond(&values, 3.0 * deviation));
                        assert!((0.035..0.056).contains(&two), "{what}: {two}");
                        assert!((0.0005..0.006).contains(&three), "{what}: {three}");
                    }
                    Distribution::Normal(_) => {}
                    Distribution::Uniform(low, high) => {
                        let inside = low - 1e-7..=high + 1e-7;
                        assert!(values.iter().all(|&value| inside.contains(&f64::from(value))), "{what}");
                    }
                }
                if !matches!(distribution, Distribution::Constant(_)) {
                    // Modes scale the same draws.
                    let errors = distribution.errors(&values);
                    drawn_layers.insert((architecture, parameter.name.clone()), errors);
                    assert!(errors.iter().all(|&error| error < 4.5), "{what}: {errors:?} standard errors");
                }
            }
            assert_eq!(zeros > 0, options.zero_init_residual, "{architecture}, {options:?}");
        }
    }
    let outside = drawn_layers.values().filter(|errors| errors.iter().any(|&error| error > 3.0)).count();
    let share = outside as f64 / drawn_layers.len() as f64;
    assert!(drawn_layers.len() > 500 && share < 0.015, "{outside} of {} layers", drawn_layers.len());
}

/// Of the draws whose statistics are looked at.
const SEED: u64 = 1;

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
