//! WRN-n-k for small images: the paper's table 1 with blocks B(3,3).
//!
//! ```text
//! conv1  3x3, 16                     block:  a = ReLU(BN(x))
//! conv2  N blocks of 16k, stride 1           branch = conv3x3(a) - BN - ReLU - [dropout] - conv3x3
//! conv3  N blocks of 32k, stride 2           out = branch + x, or branch + conv1x1(a) where shapes differ
//! conv4  N blocks of 64k, stride 2
//! BN - ReLU - average pool - fc
//! ```
//! The stride of a group sits on the first convolution of its first block and on the projection.

use crate::architecture::Architecture;
use crate::builder::Builder;
use crate::options::{Options, Projection};
use crate::spec::{Node, Shortcut};

/// Channels of the first convolution, which is not widened.
const STEM_CHANNELS: u32 = 16;

/// Channels before widening and stride of each group.
const GROUPS: [(u32, u32); 3] = [(16, 1), (32, 2), (64, 2)];

pub(crate) fn build(architecture: Architecture, options: &Options, builder: &mut Builder) -> Node {
    let mut size = options.image_size;
    let mut channels = STEM_CHANNELS;
    let mut nodes = vec![builder.conv("conv0", options.in_channels, channels, 3, 1, size)];
    builder.stage("conv1", size, format!("3x3, {channels}"));
    for (group, (base, group_stride)) in GROUPS.into_iter().enumerate() {
        let outputs = base * architecture.width;
        for block in 0..architecture.blocks() {
            let stride = if block == 0 { group_stride } else { 1 };
            let projects = channels != outputs
                || stride != 1
                || (block == 0 && options.projection == Projection::FirstBlock);
            let name = format!("group{group}.block{block}");
            nodes.push(residual(builder, options, &name, channels, outputs, stride, size, projects));
            size = size.div_ceil(stride);
            channels = outputs;
        }
        let content = format!("[3x3, {outputs}; 3x3, {outputs}] x {}", architecture.blocks());
        builder.stage(&format!("conv{}", group + 2), size, content);
    }
    nodes.extend(builder.norm_relu("bn", channels));
    nodes.push(Node::GlobalAveragePool);
    nodes.push(builder.linear("fc", channels, options.classes));
    builder.stage("avg-pool", 1, format!("{size}x{size} average, fc {} classes", options.classes));
    Node::Sequence(nodes)
}

#[allow(clippy::too_many_arguments, reason = "the eight facts of a block")]
fn residual(
    builder: &mut Builder,
    options: &Options,
    name: &str,
    inputs: u32,
    outputs: u32,
    stride: u32,
    size: u32,
    projects: bool,
) -> Node {
    let shared = Node::Sequence(builder.norm_relu(&format!("{name}.bn0"), inputs).into());
    let mut branch = vec![builder.conv(&format!("{name}.conv0"), inputs, outputs, 3, stride, size)];
    branch.extend(builder.norm_relu(&format!("{name}.bn1"), outputs));
    branch.extend(builder.dropout());
    branch.push(builder.conv(&format!("{name}.conv1"), outputs, outputs, 3, 1, size.div_ceil(stride)));
    let shortcut = if projects {
        let conv = builder.conv(&format!("{name}.convdim"), inputs, outputs, 1, stride, size);
        Shortcut::Projection { conv: Box::new(conv), input: options.shortcut_input }
    } else {
        Shortcut::Identity
    };
    Node::Residual { shared: Box::new(shared), branch: Box::new(Node::Sequence(branch)), shortcut }
}
