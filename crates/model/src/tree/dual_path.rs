//! From a plan to a tree: dual path networks, every convolution of which but the stem's reads what batch norm
//! and ReLU leave of its input.
//!
//! Names of parameters and the norms' epsilon of 0.001 are timm's, which has the latter from the authors'
//! weights. (timm's source names an ELU before the average; what it runs is the authors' ReLU.)

use super::{conv_content, head, stem};
use crate::builder::{Builder, ConvShape};
use crate::options::Options;
use crate::plan::{DualPath, DualStage};
use crate::spec::Node;

const NORM_EPSILON: f64 = 1e-3;

pub(super) fn build(plan: &DualPath, options: &Options, builder: &mut Builder) -> Node {
    builder.set_norm_epsilon(NORM_EPSILON);
    let mut size = options.image_size;
    let names = ("features.conv1_1.conv", Some("features.conv1_1.bn"));
    let mut nodes = stem(plan.stem, names, options, &mut size, builder);
    let mut channels = plan.stem.channels;
    for (number, stage) in (2..).zip(&plan.stages) {
        for block in 1..=stage.blocks {
            let name = format!("features.conv{number}_{block}");
            let first = block == 1;
            let stride = if first { stage.stride } else { 1 };
            nodes.push(dual_block(plan, stage, builder, &name, channels, stride, first, size));
            channels = if first { stage.residual + 3 * stage.growth } else { channels + stage.growth };
            size = size.div_ceil(stride);
        }
        let pool = if number == 2 { "max pool; " } else { "" };
        let inner = [
            conv_content(1, stage.inner, 1),
            conv_content(3, stage.inner, plan.cardinality),
            format!("{} + {}", conv_content(1, stage.residual, 1), stage.growth),
        ];
        let content = format!("{pool}[{}] x {}", inner.join("; "), stage.blocks);
        builder.stage(&format!("conv{number}"), size, content);
    }
    nodes.extend([builder.norm("features.conv5_bn_ac.bn", channels), Node::Relu]);
    nodes.extend(head("classifier", channels, options, size, builder));
    Node::Sequence(nodes)
}

#[allow(clippy::too_many_arguments)] // The facts of one block.
fn dual_block(
    plan: &DualPath,
    stage: &DualStage,
    builder: &mut Builder,
    name: &str,
    channels: u32,
    stride: u32,
    first: bool,
    size: u32,
) -> Node {
    let path = first.then(|| {
        let outputs = stage.residual + 2 * stage.growth;
        let shape = ConvShape::new(channels, outputs, 1, stride);
        Box::new(Node::Sequence(activated_conv(builder, &format!("{name}.c1x1_w_s{stride}"), shape, size)))
    });
    let outputs = stage.residual + stage.growth;
    let middle =
        ConvShape { groups: plan.cardinality, ..ConvShape::new(stage.inner, stage.inner, 3, stride) };
    let branch = [
        ("c1x1_a", ConvShape::new(channels, stage.inner, 1, 1), size),
        ("c3x3_b", middle, size),
        ("c1x1_c", ConvShape::new(stage.inner, outputs, 1, 1), size.div_ceil(stride)),
    ]
    .into_iter()
    .flat_map(|(part, shape, size)| activated_conv(builder, &format!("{name}.{part}"), shape, size))
    .collect();
    Node::DualPath { path, branch: Box::new(Node::Sequence(branch)), residual: stage.residual.into() }
}

/// Batch norm, ReLU and a convolution.
fn activated_conv(builder: &mut Builder, name: &str, shape: ConvShape, size: u32) -> Vec<Node> {
    let norm = builder.norm(&format!("{name}.bn"), shape.inputs);
    vec![norm, Node::Relu, builder.conv(&format!("{name}.conv"), shape, size)]
}
