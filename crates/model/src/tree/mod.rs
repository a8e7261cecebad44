//! From a plan to a tree of nodes, with the names of its parameters. One file a kind of plan; what they share
//! is here.

mod dense;
mod dual_path;
mod residual;

use crate::builder::{Builder, ConvShape};
use crate::error::ModelError;
use crate::options::{Options, Projection, ShortcutInput};
use crate::plan::{Plan, Stem};
use crate::spec::Node;

/// The tree of the network that `plan` describes.
///
/// # Errors
/// When an option has no meaning for this plan.
pub(crate) fn build(plan: &Plan, options: &Options, builder: &mut Builder) -> Result<Node, ModelError> {
    match plan {
        Plan::Residual(plan) => residual::build(plan, options, builder),
        Plan::Dense(plan) => {
            refuse_options_of_residual_networks(options, "a DenseNet")?;
            dense::build(plan, options, builder)
        }
        Plan::DualPath(plan) => {
            refuse_options_of_residual_networks(options, "a dual path network")?;
            if options.dropout > 0.0 {
                return Err(ModelError::Option(format!(
                    "dropout is {}, but a dual path network has no place for it; leave it at 0",
                    options.dropout
                )));
            }
            Ok(dual_path::build(plan, options, builder))
        }
    }
}

fn refuse_options_of_residual_networks(options: &Options, network: &str) -> Result<(), ModelError> {
    let plain = Options::default();
    for (option, changed) in [
        ("shortcut_input", options.shortcut_input != ShortcutInput::default()),
        ("projection", options.projection != Projection::default()),
        ("zero_init_residual", options.zero_init_residual != plain.zero_init_residual),
        ("shortcut_dropout", options.shortcut_dropout != plain.shortcut_dropout),
        ("stochastic_depth", options.stochastic_depth != plain.stochastic_depth),
    ] {
        if changed {
            return Err(ModelError::Option(format!(
                "{option} is set, but {network} has no residual blocks for it; leave it out"
            )));
        }
    }
    Ok(())
}

/// The stem's convolution, with batch norm and ReLU when it has a name for the norm, and its max pool.
/// `size` becomes that of the image behind it.
fn stem(
    stem: Stem,
    (conv, norm): (&str, Option<&str>),
    options: &Options,
    size: &mut u32,
    builder: &mut Builder,
) -> Vec<Node> {
    let shape = ConvShape::new(options.in_channels, stem.channels, stem.kernel, stem.stride);
    let mut nodes = vec![builder.conv(conv, shape, *size)];
    if let Some(norm) = norm {
        nodes.extend([builder.norm(norm, stem.channels), Node::Relu]);
    }
    *size = size.div_ceil(stem.stride);
    let stride = if stem.stride == 1 { String::new() } else { format!(", stride {}", stem.stride) };
    builder.stage("conv1", *size, format!("{0}x{0}, {1}{stride}", stem.kernel, stem.channels));
    if stem.pool {
        nodes.push(Node::MaxPool { kernel: 3, stride: 2, padding: 1 });
        *size = size.div_ceil(2);
    }
    nodes
}

/// The average over an image of side `size` and the classifier called `name`.
fn head(name: &str, channels: u32, options: &Options, size: u32, builder: &mut Builder) -> [Node; 2] {
    let linear = builder.linear(name, channels, options.classes);
    let content = format!("{size}x{size} average, fc {} classes", options.classes);
    builder.stage("avg-pool", 1, content);
    [Node::GlobalAveragePool, linear]
}

/// A convolution in the table, such as `3x3, 64` or `3x3, 256, 32 groups`.
fn conv_content(kernel: u32, channels: u32, groups: u32) -> String {
    let groups = if groups == 1 { String::new() } else { format!(", {groups} groups") };
    format!("{kernel}x{kernel}, {channels}{groups}")
}
