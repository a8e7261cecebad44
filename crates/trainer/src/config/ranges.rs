//! The range of every number in a configuration, in one table. What numbers mean together is decided where they are
//! used.

use serde_yaml::Value;

use super::{ConfigError, LoadedConfig};

/// Numbers that a key may have.
struct Range {
    key: &'static str,
    least: f64,
    most: f64,
    without_least: bool,
    without_most: bool,
    or_zero: bool,
    /// Kept as fp32, and so compared as that: a limit may be no such number.
    single: bool,
}

/// Whatever the network computes with is fp32, which holds no number much smaller or larger.
const TINY: f64 = 1e-30;
const HUGE: f64 = 1e30;
/// No run is longer; a larger number is a slip of the pen.
pub(crate) const MOST_EPOCHS: u32 = 1_000_000;
const MOST_STEPS: f64 = 1e12;
/// Losses that are kept to compare the next one with.
pub(crate) const LARGEST_WINDOW: u32 = 10_000;
/// Larger images are a slip of the pen.
pub(crate) const LARGEST_SIDE: u32 = 8192;
/// More would be no compression of any network here.
const LARGEST_POWER_SGD_RANK: f64 = 256.0;

/// NCCL has as many channels, and a thread block for each.
const MOST_CTAS: f64 = 64.0;

const fn from(key: &'static str, least: f64, most: f64) -> Range {
    Range { key, least, most, without_least: false, without_most: false, or_zero: false, single: false }
}

/// Number of something, of which there is one at least.
const fn count(key: &'static str, most: f64) -> Range {
    from(key, 1.0, most)
}

/// From 0 to 1, but not 1.
const fn share(key: &'static str) -> Range {
    Range { without_most: true, ..from(key, 0.0, 1.0) }
}

/// A factor in the arithmetic of fp32.
const fn factor(key: &'static str) -> Range {
    from(key, TINY, HUGE)
}

const fn factor_or_zero(key: &'static str) -> Range {
    Range { or_zero: true, ..factor(key) }
}

const fn above(key: &'static str, least: f64, most: f64) -> Range {
    Range { without_least: true, ..from(key, least, most) }
}

const fn single(range: Range) -> Range {
    Range { single: true, ..range }
}

const RANGES: &[Range] = &[
    count("model.classes", (1 << 20) as f64),
    share("model.dropout"),
    share("model.shortcut_dropout"),
    share("model.stochastic_depth"),
    from("model.norm_momentum", 1e-6, 1.0),
    count("data.pad_to", LARGEST_SIDE as f64),
    count("data.channels", 3.0),
    from("data.normalize.mean", 0.0, 255.0),
    from("data.normalize.std", 1e-3, 1e6),
    from("data.crop_padding", 0.0, LARGEST_SIDE as f64),
    from("data.crop_area", 1e-6, 1.0),
    from("data.crop_aspect", 1e-3, 1e3),
    count("data.image_size", LARGEST_SIDE as f64),
    count("data.image_size.from", LARGEST_SIDE as f64),
    count("data.image_size.to", LARGEST_SIDE as f64),
    count("data.image_size.until_epoch", MOST_EPOCHS as f64),
    count("data.image_size.step", LARGEST_SIDE as f64),
    count("data.test_resize", LARGEST_SIDE as f64),
    count("data.test_size", LARGEST_SIDE as f64),
    from("data.color_jitter.brightness", 0.0, 10.0),
    from("data.color_jitter.contrast", 0.0, 10.0),
    from("data.color_jitter.saturation", 0.0, 10.0),
    from("data.lighting", 0.0, 10.0),
    count("data.rand_operations", data_sharding::AutoAugment::MOST_OPERATIONS as f64),
    from("data.rand_magnitude", 0.0, data_sharding::AutoAugment::STRONGEST as f64),
    from("data.erase", 0.0, 1.0),
    from("data.erase_area", 1e-6, 1.0),
    from("data.erase_aspect", 1e-3, 1e3),
    Range { or_zero: true, ..from("data.mixup", 1e-3, 1e3) },
    Range { or_zero: true, ..from("data.cutmix", 1e-3, 1e3) },
    count("data.block_samples", u32::MAX as f64),
    count("data.block_buffer", u32::MAX as f64),
    count("data.repetitions", 1024.0),
    from("data.class_fraction", 1e-6, 1.0),
    count("data.workers", 1024.0),
    count("data.prefetch", 1024.0),
    count("train.epochs", MOST_EPOCHS as f64),
    count("train.global_batch", (1 << 24) as f64),
    count("train.micro_batch", (1 << 20) as f64),
    from("train.memory_limit_gib", 1e-3, 1e6),
    count("train.threads", 1024.0),
    count("train.evaluate_every_epochs", MOST_EPOCHS as f64),
    share("train.label_smoothing"),
    from("train.loss_spike.window", 8.0, LARGEST_WINDOW as f64),
    from("train.loss_spike.deviations", 1e-3, 1e6),
    count("train.roll_back.most", 1e6),
    // However small: where one more brings the product to zero, the run ends.
    from("train.roll_back.rate_factor", f64::MIN_POSITIVE, 1.0),
    count("train.roll_back.checkpoints_back", 1e6),
    share("train.averaging.decay"),
    count("train.averaging.every_steps", 1e9),
    from("train.averaging.warmup_epochs", 0.0, MOST_EPOCHS as f64),
    from("train.check_replicas_every", 0.0, MOST_STEPS),
    share("optimizer.momentum"),
    share("optimizer.dampening"),
    factor("optimizer.trust_coefficient"),
    share("optimizer.betas"),
    factor("optimizer.epsilon"),
    factor_or_zero("optimizer.weight_decay"),
    factor("optimizer.clip_norm"),
    factor_or_zero("schedule.rate"),
    from("schedule.warmup_epochs", 0.0, MOST_EPOCHS as f64),
    factor_or_zero("schedule.warmup_from"),
    count("schedule.scale_rate.reference_batch", (1 << 24) as f64),
    count("schedule.milestones", u32::MAX as f64),
    // In f64, as the rate itself, and for a rate of any size.
    from("schedule.factor", TINY * TINY, HUGE * HUGE),
    from("schedule.power", 1e-3, 1e3),
    factor_or_zero("schedule.final_rate"),
    share("schedule.peak_at"),
    factor("schedule.initial_divisor"),
    factor("schedule.final_divisor"),
    single(from("precision.loss_scale.initial", 1.0, f32::MAX as f64)),
    single(above("precision.loss_scale.growth_factor", 1.0, 1e6)),
    single(Range { without_most: true, ..from("precision.loss_scale.backoff_factor", 1e-6, 1.0) }),
    count("precision.loss_scale.growth_interval", 1e9),
    count("comm.power_sgd_rank", LARGEST_POWER_SGD_RANK),
    from("comm.power_sgd_start_step", 0.0, MOST_STEPS),
    count("comm.first_bucket_kib", (1 << 30) as f64),
    count("comm.bucket_kib", (1 << 30) as f64),
    count("comm.nccl_max_ctas", MOST_CTAS),
    count("comm.timeout_s", 7.0 * 24.0 * 3600.0),
    count("checkpoint.every_epochs", MOST_EPOCHS as f64),
    count("checkpoint.every_steps", MOST_STEPS),
    from("checkpoint.every_minutes", 1e-6, 1e9),
    count("checkpoint.keep_last", 1e6),
    from("checkpoint.keep_best", 0.0, 1e6),
    above("telemetry.straggler_factor", 1.0, 1e6),
];

/// Refuses the first number that is out of its range.
pub(crate) fn check(loaded: &LoadedConfig) -> Result<(), ConfigError> {
    let numbers = numbers(loaded);
    let outside = RANGES.iter().find_map(|range| {
        let (_, number) =
            numbers.iter().find(|(key, number)| key == range.key && !range.contains(number.as_f64()))?;
        Some((range, number))
    });
    match outside {
        Some((range, number)) => {
            let number = match number.as_f64() {
                // As it was written, where fp32 holds all its digits.
                Some(wide) if range.single => {
                    (wide as f32).to_string().parse().map_or_else(|_| wide.to_string(), in_digits)
                }
                _ => number.to_string(),
            };
            let message = format!("{number} is out of range; expected {}", range.in_words());
            Err(loaded.error(range.key, message))
        }
        None => Ok(()),
    }
}

/// Every number with its dotted key; those of a list have the list's.
fn numbers(loaded: &LoadedConfig) -> Vec<(String, serde_yaml::Number)> {
    fn collect(key: &str, value: &Value, into: &mut Vec<(String, serde_yaml::Number)>) {
        match value {
            Value::Number(number) => into.push((key.to_owned(), number.clone())),
            Value::Sequence(values) => values.iter().for_each(|value| collect(key, value, into)),
            Value::Mapping(mapping) => {
                for (name, value) in mapping {
                    let name = name.as_str().unwrap_or_default();
                    let key = if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
                    collect(&key, value, into);
                }
            }
            _ => {}
        }
    }
    let mut numbers = Vec::new();
    collect("", &serde_yaml::to_value(&loaded.config).unwrap_or_default(), &mut numbers);
    numbers
}

impl Range {
    fn contains(&self, value: Option<f64>) -> bool {
        let Some(value) = value else { return false };
        let [value, least, most] = [value, self.least, self.most]
            .map(|number| if self.single { f64::from(number as f32) } else { number });
        let inside = (least..=most).contains(&value)
            && !(self.without_least && value == least)
            && !(self.without_most && value == most);
        inside || (self.or_zero && value == 0.0)
    }

    fn in_words(&self) -> String {
        let excluded = |yes: bool| if yes { " (excluded)" } else { "" };
        format!(
            "{}{}{} to {}{}",
            if self.or_zero { "0, or " } else { "" },
            in_digits(self.least),
            excluded(self.without_least),
            in_digits(self.most),
            excluded(self.without_most)
        )
    }
}

fn in_digits(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        value if (1e-3..1e12).contains(&value) => value.to_string(),
        value => format!("{value:e}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::load::parse;
    use super::*;

    /// Every optional section and number is there.
    const ALL: &str = "
seed: 18446744073709551615
model: {arch: wrn-10-1, classes: 10}
data:
  {kind: cifar10, path: d, pad_to: 32, channels: 3, normalize: {mean: [1, 2, 3], std: [1, 2, 3]}, crop_padding: 4,
  image_size: {from: 24, to: 32, until_epoch: 3}, test_resize: 40, test_size: 32, workers: 1,
  color_jitter: {brightness: 0.4, contrast: 0.4, saturation: 0.4}}
train: {epochs: 2, global_batch: 8, micro_batch: 4, memory_limit_gib: 4, threads: 1, averaging: {decay: 0.9}}
optimizer: {trust_coefficient: 0.001, betas: [0.9, 0.999], epsilon: 1.0e-8, clip_norm: 1}
schedule:
  {kind: step, rate: 0.1, scale_rate: {reference_batch: 256}, milestones: [1, 2], factor: 0.1, power: 2, final_rate: 0,
  peak_at: 0.3, initial_divisor: 25, final_divisor: 1.0e+4}
precision: {loss_scale: {}}
comm: {power_sgd_rank: 2, power_sgd_start_step: 10, nccl_max_ctas: 16}
checkpoint: {every_steps: 5, every_minutes: 5}
";

    /// With numbers of any size.
    fn loaded(sets: &[String]) -> Result<LoadedConfig, ConfigError> {
        parse(Path::new("c.yaml"), ALL.to_owned(), sets)
    }

    #[test]
    fn every_number_has_a_range() {
        let loaded = loaded(&[]).unwrap();
        check(&loaded).unwrap();
        let mut present: Vec<String> = numbers(&loaded).into_iter().map(|(key, _)| key).collect();
        present.push("data.image_size".into());
        for key in &present {
            assert!(key == "seed" || RANGES.iter().any(|range| range.key == key), "{key} has no range");
        }
        for Range { key, .. } in RANGES {
            assert!(
                present.iter().any(|present| present == key),
                "{key} is no key, or absent from this test"
            );
        }
    }

    #[test]
    fn extreme_numbers_are_refused_with_their_key_and_what_is_expected() {
        // Text and whether it is a whole number that 64 bits hold.
        let extremes = [
            ("-1", -1.0),
            ("0", 0.0),
            (".nan", f64::NAN),
            (".inf", f64::INFINITY),
            ("-.inf", f64::NEG_INFINITY),
            ("1e-320", 1e-320),
            ("1e300", 1e300),
            ("18446744073709551615", u64::MAX as f64),
        ];
        let told = |range: &Range, error: &ConfigError, written: &str| {
            let sentence = error.to_string();
            // A size is a number or a table, so what is neither is told of the whole key.
            let key = range.key.find("image_size").map_or(range.key, |_| "data.image_size");
            assert!(sentence.contains(key), "{written}: {sentence}");
            assert!(sentence.contains("expected ") || sentence.contains("invalid value"), "{sentence}");
            assert!(!sentence.contains("enum"), "{sentence}");
        };
        let lists =
            ["optimizer.betas", "data.crop_area", "data.crop_aspect", "data.erase_area", "data.erase_aspect"];
        for range in RANGES {
            for (text, value) in extremes {
                let written = match range.key {
                    key if lists.contains(&key) => format!("[{text}, {text}]"),
                    "schedule.milestones" | "data.normalize.mean" | "data.normalize.std" => {
                        format!("[{text}]")
                    }
                    _ => text.to_owned(),
                };
                match loaded(&[format!("{}={written}", range.key)]) {
                    // What is no whole number is another type for some keys.
                    Err(error) => told(range, &error, &written),
                    Ok(loaded) => {
                        let checked = check(&loaded);
                        let inside = range.contains(Some(value));
                        assert_eq!(checked.is_ok(), inside, "{}={written}: {checked:?}", range.key);
                        if let Err(error) = checked {
                            told(range, &error, &written);
                        }
                    }
                }
            }
            assert!(!range.contains(Some(f64::NAN)) && !range.contains(Some(1e300)), "{}", range.key);
            assert!(!range.contains(Some(1e-320)) || range.least == 0.0, "{}", range.key);
        }
    }

    #[test]
    fn a_range_is_told_with_its_ends() {
        for (key, expected) in [
            ("optimizer.clip_norm", "1e-320 is out of range; expected 1e-30 to 1e30"),
            ("schedule.rate", "1e-320 is out of range; expected 0, or 1e-30 to 1e30"),
            ("telemetry.straggler_factor", "expected 1 (excluded) to 1000000"),
        ] {
            let sentence = check(&loaded(&[format!("{key}=1e-320")]).unwrap()).unwrap_err().to_string();
            assert!(sentence.contains(&format!("{key}: ")) && sentence.contains(expected), "{sentence}");
        }
        let sentence = check(&loaded(&["optimizer.momentum=1".into()]).unwrap()).unwrap_err().to_string();
        assert!(sentence.contains("expected 0 to 1 (excluded)"), "{sentence}");
    }

    #[test]
    fn the_ends_of_a_range_are_in_it_whatever_precision_the_number_is_kept_in() {
        for (set, refused) in [
            ("backoff_factor=1e-6", None),
            ("backoff_factor=9e-7", Some("9e-7 is out of range; expected 1e-6 to 1 (excluded)")),
            ("backoff_factor=0.99999999999", Some("1 is out of range")),
            ("growth_factor=1e+6", None),
            ("growth_factor=1.1", None),
            ("growth_factor=1", Some("1 is out of range")),
            ("initial=3.4028235e+38", None),
            ("initial=0.1", Some("0.1 is out of range")),
        ] {
            let loaded = loaded(&[format!("precision.loss_scale.{set}")]).unwrap();
            let found = check(&loaded).map_err(|error| error.to_string());
            match (found, refused) {
                (Ok(()), None) => {}
                (Err(sentence), Some(part)) if sentence.contains(part) => {}
                (found, _) => panic!("{set}: {found:?}"),
            }
        }
    }
}
