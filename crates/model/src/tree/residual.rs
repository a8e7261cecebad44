//! From a plan to a tree: residual networks with batch norm before or after their convolutions.
//!
//! ```text
//! before:  a = ReLU(BN(x))                              after:  branch = conv(x) - BN [- ReLU - [dropout] - conv - BN]...
//!          branch = conv(a) [- BN - ReLU - [dropout] - conv]...  out = ReLU(branch + x), or
//!          out = branch + x, or                                  out = ReLU(branch + BN(conv1x1(x))), or
//!          out = branch + conv1x1(a)                             out = ReLU(branch + x padded with channels of zeros)
//! ```
//! Squeeze and excitation scales the branch before the sum. Names of parameters are those of the authors'
//! PyTorch code (before) and of torchvision (after).

use super::{conv_content, head, stem};
use crate::builder::{Builder, ConvShape};
use crate::error::ModelError;
use crate::options::{Options, Projection, ShortcutInput};
use crate::plan::{Activation, Conv, Group, Residual, Widening};
use crate::spec::{self, Node, Shortcut, Survival};

/// What a block does to an image.
struct Block<'a> {
    name: String,
    group: &'a Group,
    inputs: u32,
    stride: u32,
    /// Side of its input.
    size: u32,
    /// Among all blocks, from 1.
    number: u32,
}

/// What every block of a network shares.
struct Common<'a> {
    plan: &'a Residual,
    options: &'a Options,
    blocks: u32,
}

pub(super) fn build(plan: &Residual, options: &Options, builder: &mut Builder) -> Result<Node, ModelError> {
    refuse_what_does_not_apply(plan, options)?;
    let common = Common { plan, options, blocks: plan.groups.iter().map(|group| group.blocks).sum() };
    let mut size = options.image_size;
    let names = match plan.activation {
        Activation::Before => ("conv0", None),
        Activation::After => ("conv1", Some("bn1")),
    };
    let mut nodes = stem(plan.stem, names, options, &mut size, builder);
    let mut channels = plan.stem.channels;
    let mut number = 0;
    for (index, group) in plan.groups.iter().enumerate() {
        for block in 0..group.blocks {
            let name = match plan.activation {
                Activation::Before => format!("group{index}.block{block}"),
                Activation::After => format!("layer{}.{block}", index + 1),
            };
            number += 1;
            let stride = if block == 0 { group.stride } else { 1 };
            let block_facts = Block { name, group, inputs: channels, stride, size, number };
            let always = block == 0 && options.projection == Projection::FirstBlock;
            let changes = always || channels != block_facts.outputs() || stride != 1;
            match plan.activation {
                Activation::Before => nodes.push(before(&common, builder, &block_facts, changes)),
                Activation::After => nodes.push(after(&common, builder, &block_facts, changes)),
            }
            size = size.div_ceil(stride);
            channels = block_facts.outputs();
        }
        builder.stage(&format!("conv{}", index + 2), size, content(plan, index));
    }
    if plan.activation == Activation::Before {
        nodes.extend([builder.norm("bn", channels), Node::Relu]);
    }
    nodes.extend(head("fc", channels, options, size, builder));
    Ok(Node::Sequence(nodes))
}

fn refuse_what_does_not_apply(plan: &Residual, options: &Options) -> Result<(), ModelError> {
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

/// A group's line in the table.
fn content(plan: &Residual, index: usize) -> String {
    let group = &plan.groups[index];
    let mut parts: Vec<_> =
        group.convs.iter().map(|conv| conv_content(conv.kernel, conv.channels, conv.groups)).collect();
    if plan.squeeze {
        parts.push("SE".into());
    }
    let pool = if plan.stem.pool && index == 0 { "max pool; " } else { "" };
    format!("{pool}[{}] x {}", parts.join("; "), group.blocks)
}

impl Block<'_> {
    fn outputs(&self) -> u32 {
        self.group.convs.last().map_or(self.inputs, |conv| conv.channels)
    }

    /// Its convolutions, with batch norm, ReLU and any dropout before each but the first. The first is called
    /// `conv{first}`.
    fn branch(&self, common: &Common, builder: &mut Builder, first: usize) -> Vec<Node> {
        let (mut channels, mut size) = (self.inputs, self.size);
        let mut nodes = Vec::new();
        let ends_in_conv = common.plan.activation == Activation::Before;
        for (number, &Conv { kernel, channels: outputs, groups }) in self.group.convs.iter().enumerate() {
            if number > 0 {
                nodes.extend([builder.norm(&format!("{}.bn{number}", self.name), channels), Node::Relu]);
                nodes.extend(builder.dropout(common.options.dropout));
            }
            let stride = if number == common.plan.strided { self.stride } else { 1 };
            let name = format!("{}.conv{}", self.name, number + first);
            let shape = ConvShape { inputs: channels, outputs, kernel, stride, groups };
            let last = ends_in_conv && number + 1 == self.group.convs.len();
            nodes.push(match last {
                true => builder.last_conv(&name, shape, size),
                false => builder.conv(&name, shape, size),
            });
            size = size.div_ceil(stride);
            channels = outputs;
        }
        nodes
    }

    /// The 1x1 convolution on its shortcut.
    fn projection(&self, builder: &mut Builder, name: &str) -> Node {
        let shape = ConvShape::new(self.inputs, self.outputs(), 1, self.stride);
        builder.conv(&format!("{}.{name}", self.name), shape, self.size)
    }

    fn squeeze(&self, common: &Common, builder: &mut Builder) -> Option<Node> {
        common.plan.squeeze.then(|| builder.squeeze_excite(&format!("{}.se", self.name), self.outputs()))
    }

    fn residual(
        &self,
        common: &Common,
        builder: &mut Builder,
        shared: Vec<Node>,
        branch: Vec<Node>,
        shortcut: Shortcut,
    ) -> Node {
        let shortcut_dropout = builder.dropout(common.options.shortcut_dropout);
        let last_death = common.options.stochastic_depth;
        let survival = (last_death > 0.0).then(|| Survival {
            probability: 1.0 - last_death * f64::from(self.number) / f64::from(common.blocks),
            block: self.number.into(),
        });
        Node::Residual(Box::new(spec::Residual {
            shared: Node::Sequence(shared),
            branch: Node::Sequence(branch),
            shortcut,
            shortcut_dropout,
            survival,
        }))
    }
}

fn before(common: &Common, builder: &mut Builder, block: &Block, changes: bool) -> Node {
    let shared = vec![builder.norm(&format!("{}.bn0", block.name), block.inputs), Node::Relu];
    let mut branch = block.branch(common, builder, 0);
    branch.extend(block.squeeze(common, builder));
    let shortcut = if changes {
        let path = Box::new(block.projection(builder, "convdim"));
        Shortcut::Projection { path, input: common.options.shortcut_input }
    } else {
        Shortcut::Identity
    };
    block.residual(common, builder, shared, branch, shortcut).into_block()
}

fn after(common: &Common, builder: &mut Builder, block: &Block, changes: bool) -> Node {
    let outputs = block.outputs();
    let mut branch = block.branch(common, builder, 1);
    branch.push(builder.last_norm(&format!("{}.bn{}", block.name, block.group.convs.len()), outputs));
    branch.extend(block.squeeze(common, builder));
    let shortcut = match (changes, common.plan.widening) {
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
    let sum = block.residual(common, builder, Vec::new(), branch, shortcut);
    Node::Sequence(vec![sum, Node::Relu]).into_block()
}
