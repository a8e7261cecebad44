//! From a plan to a tree: residual networks with batch norm before or after their convolutions.
//!
//! ```text
//! before:  a = ReLU(BN(x))                              after:  branch = conv(x) - BN [- ReLU - [dropout] - conv - BN]...
//!          branch = conv(a) [- BN - ReLU - [dropout] - conv]...  out = ReLU(branch + x), or
//!          out = branch + x, or                                  out = ReLU(branch + BN(conv1x1(x))), or
//!          out = branch + conv1x1(a)                             out = ReLU(branch + x padded with channels of zeros)
//! ```
//! Names of parameters are those of the authors' PyTorch code (before) and of torchvision (after).

use std::sync::Arc;

use crate::builder::Builder;
use crate::error::ModelError;
use crate::options::{Options, Projection, ShortcutInput};
use crate::plan::{Activation, Group, Plan, Widening};
use crate::spec::{Node, Shortcut};

/// What a block does to an image.
struct Block<'a> {
    name: String,
    group: &'a Group,
    inputs: u32,
    stride: u32,
    /// Side of its input.
    size: u32,
}

/// The tree of the network that `plan` describes.
pub(crate) fn build(plan: &Plan, options: &Options, builder: &mut Builder) -> Result<Node, ModelError> {
    refuse_what_does_not_apply(plan, options)?;
    let mut size = options.image_size;
    let mut nodes = stem(plan, options.in_channels, &mut size, builder);
    let mut channels = plan.stem.channels;
    for (index, group) in plan.groups.iter().enumerate() {
        for block in 0..group.blocks {
            let name = match plan.activation {
                Activation::Before => format!("group{index}.block{block}"),
                Activation::After => format!("layer{}.{block}", index + 1),
            };
            let stride = if block == 0 { group.stride } else { 1 };
            let first = Block { name, group, inputs: channels, stride, size };
            let always = block == 0 && options.projection == Projection::FirstBlock;
            let changes = always || channels != first.outputs() || stride != 1;
            match plan.activation {
                Activation::Before => nodes.push(before(plan, options, builder, &first, changes)),
                Activation::After => nodes.push(after(plan, builder, &first, changes)),
            }
            size = size.div_ceil(stride);
            channels = first.outputs();
        }
        builder.stage(&format!("conv{}", index + 2), size, content(plan, index));
    }
    if plan.activation == Activation::Before {
        nodes.extend([builder.norm("bn", channels), Node::Relu]);
    }
    nodes.push(Node::GlobalAveragePool);
    nodes.push(builder.linear("fc", channels, options.classes));
    builder.stage("avg-pool", 1, format!("{size}x{size} average, fc {} classes", options.classes));
    Ok(Node::Sequence(nodes))
}

fn refuse_what_does_not_apply(plan: &Plan, options: &Options) -> Result<(), ModelError> {
    let refuse = |message: &str| Err(ModelError::Option(message.to_owned()));
    if plan.activation == Activation::After && options.shortcut_input == ShortcutInput::Raw {
        return refuse(
            "shortcut_input is raw, but a network with batch norm after its convolutions has no other input to choose; leave \
             it at preactivated",
        );
    }
    if plan.widening == Widening::ZeroPad && options.projection == Projection::FirstBlock {
        return refuse(
            "projection is first-block, but this network's shortcuts have no projections; leave it at when-shapes-differ",
        );
    }
    Ok(())
}

fn stem(plan: &Plan, in_channels: u32, size: &mut u32, builder: &mut Builder) -> Vec<Node> {
    let stem = plan.stem;
    let mut nodes = Vec::new();
    let conv = |name, builder: &mut Builder| {
        builder.conv(name, in_channels, stem.channels, stem.kernel, stem.stride, *size)
    };
    match plan.activation {
        Activation::Before => nodes.push(conv("conv0", builder)),
        Activation::After => {
            nodes.extend([conv("conv1", builder), builder.norm("bn1", stem.channels), Node::Relu]);
        }
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

/// A group's line in the table.
fn content(plan: &Plan, index: usize) -> String {
    let group = &plan.groups[index];
    let convs: Vec<_> =
        group.convs.iter().map(|conv| format!("{0}x{0}, {1}", conv.kernel, conv.channels)).collect();
    let pool = if plan.stem.pool && index == 0 { "max pool; " } else { "" };
    format!("{pool}[{}] x {}", convs.join("; "), group.blocks)
}

impl Block<'_> {
    fn outputs(&self) -> u32 {
        self.group.convs.last().map_or(self.inputs, |conv| conv.channels)
    }

    /// Its convolutions, with batch norm, ReLU and any dropout before each but the first. The first is called
    /// `conv{first}`.
    fn branch(&self, builder: &mut Builder, strided: usize, first: usize) -> Vec<Node> {
        let (mut channels, mut size) = (self.inputs, self.size);
        let mut nodes = Vec::new();
        for (number, conv) in self.group.convs.iter().enumerate() {
            if number > 0 {
                nodes.extend([builder.norm(&format!("{}.bn{number}", self.name), channels), Node::Relu]);
                nodes.extend(builder.dropout());
            }
            let stride = if number == strided { self.stride } else { 1 };
            let name = format!("{}.conv{}", self.name, number + first);
            nodes.push(builder.conv(&name, channels, conv.channels, conv.kernel, stride, size));
            size = size.div_ceil(stride);
            channels = conv.channels;
        }
        nodes
    }

    /// The 1x1 convolution on its shortcut.
    fn projection(&self, builder: &mut Builder, name: &str) -> Node {
        let name = format!("{}.{name}", self.name);
        builder.conv(&name, self.inputs, self.outputs(), 1, self.stride, self.size)
    }
}

fn before(plan: &Plan, options: &Options, builder: &mut Builder, block: &Block, changes: bool) -> Node {
    let shared = vec![builder.norm(&format!("{}.bn0", block.name), block.inputs), Node::Relu];
    let branch = block.branch(builder, plan.strided, 0);
    let shortcut = if changes {
        let path = Box::new(block.projection(builder, "convdim"));
        Shortcut::Projection { path, input: options.shortcut_input }
    } else {
        Shortcut::Identity
    };
    Node::Block(Arc::new(Node::Residual {
        shared: Box::new(Node::Sequence(shared)),
        branch: Box::new(Node::Sequence(branch)),
        shortcut,
    }))
}

fn after(plan: &Plan, builder: &mut Builder, block: &Block, changes: bool) -> Node {
    let outputs = block.outputs();
    let mut branch = block.branch(builder, plan.strided, 1);
    branch.push(builder.norm(&format!("{}.bn{}", block.name, block.group.convs.len()), outputs));
    let shortcut = match (changes, plan.widening) {
        (false, _) => Shortcut::Identity,
        (true, Widening::ZeroPad) => {
            Shortcut::ZeroPad { stride: i64::from(block.stride), channels: i64::from(outputs - block.inputs) }
        }
        (true, Widening::Projection) => {
            let conv = block.projection(builder, "downsample.0");
            let norm = builder.norm(&format!("{}.downsample.1", block.name), outputs);
            let path = Box::new(Node::Sequence(vec![conv, norm]));
            Shortcut::Projection { path, input: ShortcutInput::Raw }
        }
    };
    let sum = Node::Residual {
        shared: Box::new(Node::Sequence(Vec::new())),
        branch: Box::new(Node::Sequence(branch)),
        shortcut,
    };
    Node::Block(Arc::new(Node::Sequence(vec![sum, Node::Relu])))
}
