//! The nodes of which a network's tree is made, and what it declares of itself. Pure data.

use std::sync::Arc;

use crate::init::Init;
use crate::options::ShortcutInput;

/// What a parameter is for; decides, for example, whether it decays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Weight `[O, I, H, W]` of a convolution.
    ConvWeight,
    /// Scale of a batch norm.
    NormGain,
    /// Shift of a batch norm.
    NormBias,
    /// Weight `[O, I]` of the classifier.
    LinearWeight,
    /// Bias of the classifier.
    LinearBias,
}

/// A trainable tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Stable name, after the authors' PyTorch code (`group0.block0.conv0.weight`) or torchvision
    /// (`layer1.0.conv1.weight`).
    pub name: String,
    /// Logical shape.
    pub shape: Vec<i64>,
    /// What it is for.
    pub role: Role,
    pub(crate) init: Init,
}

impl Parameter {
    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().product::<i64>() as u64
    }
}

/// A batch norm layer, whose running statistics are saved as `NAME.running_mean` and `NAME.running_var`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormLayer {
    /// Name of the layer.
    pub name: String,
    /// Number of channels.
    pub channels: i64,
}

/// A row of the paper's table 1 for this network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Group.
    pub name: String,
    /// Side of its output in pixels.
    pub output: u32,
    /// What it consists of.
    pub content: String,
    /// Trainable numbers.
    pub parameters: u64,
    /// Multiply-adds of convolutions and classifier for one image.
    pub macs: u64,
}

/// A part of the network; the numbers are indices of parameters and norm layers.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    /// One after the other.
    Sequence(Vec<Node>),
    /// Square kernel, no bias.
    Conv { weight: usize, stride: i64, padding: i64 },
    /// Batch norm.
    Norm { gain: usize, bias: usize, layer: usize },
    /// In place: every ReLU here follows a batch norm or a sum, whose backward does not need its output.
    Relu,
    /// Maximum over a square window.
    MaxPool { kernel: i64, stride: i64, padding: i64 },
    /// `layer` is part of the key of its mask.
    Dropout { probability: f64, layer: u64 },
    /// Mean over all pixels: `[N, C, H, W]` to `[N, C]`.
    GlobalAveragePool,
    /// Classifier.
    Linear { weight: usize, bias: usize },
    /// What `Memory::Checkpoint` computes again as a whole: it leaves its input as it is, and what it gives
    /// has no other use of the same memory.
    Block(Arc<Node>),
    /// `branch(shared(x)) + shortcut`.
    Residual { shared: Box<Node>, branch: Box<Node>, shortcut: Shortcut },
}

/// The other summand of a residual block.
#[derive(Clone, Debug)]
pub(crate) enum Shortcut {
    /// The block's input.
    Identity,
    /// A convolution of 1x1, alone or with a batch norm.
    Projection { path: Box<Node>, input: ShortcutInput },
    /// The block's input at every `stride`-th pixel, with so many more channels of zeros.
    ZeroPad { stride: i64, channels: i64 },
}

impl Node {
    /// Appends the parameters to `order` in the order in which autograd records their use.
    ///
    /// Where one operation has two parameters, the one whose gradient autograd delivers first stands last, so
    /// that the reverse of the whole is the order of readiness.
    pub(crate) fn recording_order(&self, order: &mut Vec<usize>) {
        match self {
            Node::Sequence(nodes) => nodes.iter().for_each(|node| node.recording_order(order)),
            Node::Block(node) => node.recording_order(order),
            Node::Conv { weight, .. } => order.push(*weight),
            Node::Norm { gain, bias, .. } => order.extend([*bias, *gain]),
            Node::Linear { weight, bias } => order.extend([*weight, *bias]),
            Node::Relu | Node::MaxPool { .. } | Node::Dropout { .. } | Node::GlobalAveragePool => {}
            Node::Residual { shared, branch, shortcut } => {
                shared.recording_order(order);
                branch.recording_order(order);
                if let Shortcut::Projection { path, .. } = shortcut {
                    path.recording_order(order);
                }
            }
        }
    }
}
