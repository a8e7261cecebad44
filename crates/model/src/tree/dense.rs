//! From a plan to a tree: DenseNets with bottlenecks and compression.
//!
//! ```text
//! layer:       x ‖ conv3x3(ReLU(BN(conv1x1(ReLU(BN(x)))))) [- dropout]
//! transition:  average 2x2 of conv1x1(ReLU(BN(x)))
//! ```
//! Names of parameters are torchvision's; the last norm is called after the number of groups, as its norm5.

use super::{conv_content, head, stem};
use crate::builder::{Builder, ConvShape};
use crate::error::ModelError;
use crate::options::Options;
use crate::plan::{self, Dense};
use crate::spec::Node;

pub(super) fn build(plan: &Dense, options: &Options, builder: &mut Builder) -> Result<Node, ModelError> {
    let mut size = options.image_size;
    let norm = plan.activated_stem.then_some("features.norm0");
    let mut nodes = stem(plan.stem, ("features.conv0", norm), options, &mut size, builder);
    let mut channels = plan.stem.channels;
    for (group, &layers) in (1..).zip(&plan.layers) {
        for layer in 1..=layers {
            let name = format!("features.denseblock{group}.denselayer{layer}");
            nodes.push(dense_layer(plan.growth, options, builder, &name, channels, size));
            channels += plan.growth;
        }
        let inner = plan.growth * plan::BOTTLENECK_TIMES;
        let layer = format!("[{}; {}]", conv_content(1, inner, 1), conv_content(3, plan.growth, 1));
        let mut content = format!("{layer} x {layers}");
        let output = size;
        if group < plan.layers.len() {
            let name = format!("features.transition{group}");
            let kept = channels / plan::COMPRESSION;
            nodes.extend([builder.norm(&format!("{name}.norm"), channels), Node::Relu]);
            let shape = ConvShape::new(channels, kept, 1, 1);
            nodes.extend([builder.conv(&format!("{name}.conv"), shape, size), Node::AveragePool]);
            channels = kept;
            size /= 2;
            if size == 0 {
                return Err(ModelError::Option(format!(
                    "image_size is {}, of which the averages between this network's groups leave nothing; take larger images",
                    options.image_size
                )));
            }
            content += &format!("; {}, 2x2 average", conv_content(1, kept, 1));
        }
        builder.stage(&format!("dense{group}"), output, content);
    }
    let last_norm = format!("features.norm{}", plan.layers.len() + 1);
    nodes.extend([builder.norm(&last_norm, channels), Node::Relu]);
    nodes.extend(head("classifier", channels, options, size, builder));
    Ok(Node::Sequence(nodes))
}

fn dense_layer(
    growth: u32,
    options: &Options,
    builder: &mut Builder,
    name: &str,
    channels: u32,
    size: u32,
) -> Node {
    let inner = growth * plan::BOTTLENECK_TIMES;
    let mut nodes = vec![
        builder.norm(&format!("{name}.norm1"), channels),
        Node::Relu,
        builder.conv(&format!("{name}.conv1"), ConvShape::new(channels, inner, 1, 1), size),
        builder.norm(&format!("{name}.norm2"), inner),
        Node::Relu,
        builder.conv(&format!("{name}.conv2"), ConvShape::new(inner, growth, 3, 1), size),
    ];
    nodes.extend(builder.dropout(options.dropout));
    Node::Append(Box::new(Node::Sequence(nodes)))
}
