//! Architecture strings such as `wrn-28-10`: their grammar and the plans they stand for.
//!
//! Two depths name two networks: 18 and 34 layers exist for ImageNet, and 34 = 6N+4 for small images too. The
//! former therefore end in `-imagenet`, while `wrn-34-2` is for small images.

use std::fmt;
use std::str::FromStr;

use crate::error::ModelError;
use crate::grammar;
use crate::plan::{self, Plan, Residual, Width};

/// A network's name, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Architecture {
    name: String,
    pub(crate) plan: Plan,
}

/// Beyond these a network would fit no machine, and sizes could overflow.
const LARGEST_DEPTH: u32 = 2_000;
const LARGEST_WIDTH: u32 = 256;
const MOST_CONVOLUTIONS: usize = 8;
const LARGEST_CARDINALITY: u32 = 256;
const LARGEST_GROUP_WIDTH: u32 = 256;
const LARGEST_GROWTH: u32 = 256;

/// The block B(3,3), which a name need not mention.
const PAPER_BLOCK: &str = "b33";

impl FromStr for Architecture {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        parse(text).map_err(|reason| ModelError::Architecture {
            text: text.to_owned(),
            reason,
            suggestion: grammar::suggestion(text, |other| parse(other).is_ok()),
        })
    }
}

/// The network, or what is wrong with the string.
fn parse(text: &str) -> Result<Architecture, String> {
    let parts: Vec<&str> = text.split('-').collect();
    let parsed = match parts[..] {
        ["se", ref plain @ ..] => residual(plain).map(squeezed),
        ["densenet", "bc", depth, growth] => dense_bc(depth, growth),
        ["densenet", depth] => {
            listed("densenet", depth, |depth| plan::dense_imagenet(depth).map(Plan::Dense))
        }
        ["dpn", depth] => listed("dpn", depth, |depth| plan::dual_path(depth).map(Plan::DualPath)),
        ref plain => residual(plain),
    };
    parsed.map(|(name, plan)| Architecture { name, plan })
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Architecture {
    /// Side in pixels of the images that it was published for: 32 or 224.
    #[must_use]
    pub fn usual_image_size(&self) -> u32 {
        if self.is_for_imagenet() { 224 } else { 32 }
    }

    /// Number of classes that it was published for: 10 (CIFAR-10) or 1000 (ImageNet).
    #[must_use]
    pub fn usual_classes(&self) -> u32 {
        if self.is_for_imagenet() { 1000 } else { 10 }
    }

    fn is_for_imagenet(&self) -> bool {
        self.plan.stem().pool
    }
}

/// A whole number from 1 to `largest`.
fn number(name: &str, digits: &str, largest: u32) -> Result<u32, String> {
    match digits.parse::<u32>() {
        Ok(number) if digits.bytes().all(|byte| byte.is_ascii_digit()) && (1..=largest).contains(&number) => {
            Ok(number)
        }
        _ => Err(format!("its {name} `{digits}` is no whole number from 1 to {largest}")),
    }
}

/// A number with at most two decimals, in hundredths.
fn hundredths(digits: &str) -> Result<u32, String> {
    let error = || {
        format!("its width `{digits}` is no number from 0.01 to {LARGEST_WIDTH} with at most two decimals")
    };
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !all_digits(decimals) || decimals.len() > 2 {
        return Err(error());
    }
    let whole: u32 = whole.parse().map_err(|_| error())?;
    let decimals: u32 = format!("{decimals:0<2}").parse().map_err(|_| error())?;
    if whole >= LARGEST_WIDTH && (whole, decimals) != (LARGEST_WIDTH, 0) {
        return Err(error());
    }
    match whole * 100 + decimals {
        0 => Err(error()),
        hundredths => Ok(hundredths),
    }
}

/// Kernels of a block such as `b313`.
fn kernels(block: &str) -> Result<Vec<u32>, String> {
    let digits = &block[1..];
    let kernels: Vec<u32> = digits.chars().filter_map(|digit| digit.to_digit(10)).collect();
    let readable = kernels.len() == digits.chars().count() && kernels.iter().all(|kernel| kernel % 2 == 1);
    if readable && (1..=MOST_CONVOLUTIONS).contains(&kernels.len()) {
        return Ok(kernels);
    }
    Err(format!(
        "its block `{block}` is not `b` and 1 to {MOST_CONVOLUTIONS} odd digits, the sides of the kernels"
    ))
}

/// The string of one residual network without squeeze and excitation.
fn residual(parts: &[&str]) -> Result<(String, Plan), String> {
    match *parts {
        ["wrn", depth, width] => small_wide(depth, width, PAPER_BLOCK),
        ["wrn", depth, width, "imagenet"] => imagenet_wide(depth, width, "imagenet", plan::imagenet_basic),
        ["wrn", depth, width, "bottleneck"] => {
            imagenet_wide(depth, width, "bottleneck", plan::imagenet_bottleneck)
        }
        ["wrn", depth, width, block] if block.starts_with('b') => small_wide(depth, width, block),
        ["resnet", depth] => listed("resnet", depth, |depth| {
            plan::imagenet_basic(depth, Width::ONE)
                .or_else(|| plan::imagenet_bottleneck(depth, Width::ONE))
                .or_else(|| plan::small_resnet(depth))
                .map(Plan::Residual)
        }),
        ["preact", "resnet", depth] => {
            listed("preact-resnet", depth, |depth| plan::preactivation_resnet(depth).map(Plan::Residual))
        }
        ["resnext", depth, template] => resnext(depth, template),
        _ => Err("it does not have the form of a known family".into()),
    }
}

/// The same network with squeeze and excitation. Only residual ones come here.
fn squeezed((name, plan): (String, Plan)) -> (String, Plan) {
    let plan = match plan {
        Plan::Residual(plan) => Plan::Residual(Residual { squeeze: true, ..plan }),
        other => other,
    };
    (format!("se-{name}"), plan)
}

/// WRN for small images.
///
/// The paper has two readings of depth: table 3, whose blocks have equal kernels, counts the convolutions of
/// the blocks; table 2 takes two convolutions a block for granted, also where there are three.
fn small_wide(depth: &str, width: &str, block: &str) -> Result<(String, Plan), String> {
    let depth = number("depth", depth, LARGEST_DEPTH)?;
    let width = number("width", width, LARGEST_WIDTH)?;
    let kernels = kernels(block)?;
    let equal = kernels.iter().all(|&kernel| kernel == kernels[0]);
    let step = if equal { 3 * kernels.len() as u32 } else { 6 };
    if depth < step + 4 || (depth - 4) % step != 0 {
        let below = (depth.max(step + 4) - 4) / step * step + 4;
        return Err(format!("depth {depth} is not {step}N+4; the nearest are {below} and {}", below + step));
    }
    let suffix = if block == PAPER_BLOCK { String::new() } else { format!("-{block}") };
    let plan = plan::wide(width, &kernels, (depth - 4) / step).ok_or("its width gives no whole channels")?;
    Ok((format!("wrn-{depth}-{width}{suffix}"), Plan::Residual(plan)))
}

/// WRN for ImageNet, from a table of depths.
fn imagenet_wide(
    depth: &str,
    width: &str,
    family: &str,
    plan: fn(u32, Width) -> Option<Residual>,
) -> Result<(String, Plan), String> {
    let depth = number("depth", depth, LARGEST_DEPTH)?;
    let hundredths = hundredths(width)?;
    let factor = Width { numerator: hundredths, denominator: 100 };
    // Every group has a multiple of 64 channels.
    if factor.times(64).is_none() {
        return Err(format!(
            "its width {width} does not give whole channels: 64 times it must be a whole number"
        ));
    }
    let plan = plan(depth, factor).ok_or_else(|| format!("no {family} network has depth {depth}"))?;
    let width = f64::from(hundredths) / 100.0;
    Ok((format!("wrn-{depth}-{width}-{family}"), Plan::Residual(plan)))
}

/// ResNeXt, whose template is for example `32x4d`: 32 groups of 4 channels.
fn resnext(depth: &str, template: &str) -> Result<(String, Plan), String> {
    let depth = number("depth", depth, LARGEST_DEPTH)?;
    let (cardinality, width) = template
        .strip_suffix('d')
        .and_then(|template| template.split_once('x'))
        .ok_or_else(|| format!("its `{template}` is no <cardinality>x<width>d, such as 32x4d"))?;
    let cardinality = number("cardinality", cardinality, LARGEST_CARDINALITY)?;
    let width = number("group width", width, LARGEST_GROUP_WIDTH)?;
    let plan = plan::resnext_imagenet(depth, cardinality, width)
        .or_else(|| plan::resnext_small(depth, cardinality, width))
        .ok_or_else(|| format!("no ResNeXt has depth {depth}"))?;
    Ok((format!("resnext-{depth}-{cardinality}x{width}d"), Plan::Residual(plan)))
}

/// DenseNet-BC for small images.
fn dense_bc(depth: &str, growth: &str) -> Result<(String, Plan), String> {
    let depth = number("depth", depth, LARGEST_DEPTH)?;
    let growth = number("growth", growth, LARGEST_GROWTH)?;
    let plan = plan::dense_bc(depth, growth)?;
    Ok((format!("densenet-bc-{depth}-{growth}"), Plan::Dense(plan)))
}

/// A network that a table lists by its depth.
fn listed(family: &str, depth: &str, plan: impl Fn(u32) -> Option<Plan>) -> Result<(String, Plan), String> {
    let depth = number("depth", depth, LARGEST_DEPTH)?;
    let plan = plan(depth).ok_or_else(|| format!("no network of this family has depth {depth}"))?;
    Ok((format!("{family}-{depth}"), plan))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_read_and_written_alike() {
        for name in ["wrn-10-1", "wrn-28-10", "wrn-40-2-b313", "wrn-34-1.5-imagenet", "resnet-50"] {
            assert_eq!(name.parse::<Architecture>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn widths_are_read_to_the_hundredth() {
        for (text, expected) in [("1", 100), ("1.5", 150), ("2.0", 200), ("0.25", 25), ("256", 25_600)] {
            assert_eq!(hundredths(text), Ok(expected), "{text}");
        }
        for text in
            ["", ".", "1.", ".5", "0", "0.00", "-1", "+1", "1.234", "256.01", "1e2", "٣", "99999999999"]
        {
            assert!(hundredths(text).is_err(), "{text}");
        }
    }
}
