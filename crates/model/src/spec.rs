//! The nodes of which a network's tree is made, and what it declares of itself. Pure data.

use crate::init::Init;
use crate::options::ShortcutInput;

/// What a parameter is for; decides, for example, whether it decays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Weight `[O, I / groups, H, W]` of a convolution.
    ConvWeight,
    /// Bias of a convolution of squeeze and excitation; no other convolution has one.
    ConvBias,
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
    /// Stable name, after the authors' PyTorch code (`group0.block0.conv0.weight`), torchvision
    /// (`layer1.0.conv1.weight`) or timm (`layer1.0.se.fc1.weight`).
    pub name: String,
    /// Logical shape.
    pub shape: Vec<i64>,
    /// What it is for.
    pub role: Role,
    /// Multiply-adds for one image of the layer whose weight this is; 0 for what is no such weight.
    pub macs: u64,
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
    /// Square kernel.
    Conv { weight: usize, bias: Option<usize>, stride: i64, padding: i64, groups: i64 },
    /// Batch norm; `epsilon` is added to the variance.
    Norm { gain: usize, bias: usize, layer: usize, epsilon: f64 },
    /// In place: every ReLU here follows a batch norm, a convolution or a sum, whose backward does not need its
    /// output.
    Relu,
    /// Maximum over a square window.
    MaxPool { kernel: i64, stride: i64, padding: i64 },
    /// Mean over 2x2 pixels, stride 2.
    AveragePool,
    /// `layer` is part of the key of its mask.
    Dropout { probability: f64, layer: u64 },
    /// Mean over all pixels: `[N, C, H, W]` to `[N, C]`.
    GlobalAveragePool,
    /// Classifier.
    Linear { weight: usize, bias: usize },
    /// Channels scaled by what `excite` makes of their means.
    SqueezeExcite { excite: Box<Node> },
    /// `branch(shared(x)) + shortcut`.
    Residual(Box<Residual>),
    /// x, and behind its channels those of this of x.
    Append(Box<Node>),
    /// With `p = path(x)` (or x) and `b = branch(x)`: the first `residual` channels of p + b, then the others
    /// of p, then the others of b.
    DualPath { path: Option<Box<Node>>, branch: Box<Node>, residual: i64 },
}

/// A residual block.
#[derive(Clone, Debug)]
pub(crate) struct Residual {
    /// What both branch and projection read.
    pub(crate) shared: Node,
    pub(crate) branch: Node,
    pub(crate) shortcut: Shortcut,
    /// On the other summand.
    pub(crate) shortcut_dropout: Option<Node>,
    /// With stochastic depth.
    pub(crate) survival: Option<Survival>,
}

/// A block that some training passes leave out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Survival {
    /// With which it is there.
    pub(crate) probability: f64,
    /// Number of the block, part of the key of its draws.
    pub(crate) block: u64,
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

impl Residual {
    /// Whether `shared` is needed even when the branch is left out.
    pub(crate) fn shortcut_reads_shared(&self) -> bool {
        matches!(self.shortcut, Shortcut::Projection { input: ShortcutInput::Preactivated, .. })
    }

    /// The parts that run only when the block is there.
    pub(crate) fn optional_parts(&self) -> impl Iterator<Item = &Node> {
        let shared = (!self.shortcut_reads_shared()).then_some(&self.shared);
        shared.into_iter().chain([&self.branch])
    }
}

impl Node {
    /// Calls `visit` with this node and every node below it, in the order in which they run.
    pub(crate) fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Node)) {
        visit(self);
        match self {
            Node::Sequence(nodes) => nodes.iter().for_each(|node| node.visit(visit)),
            Node::SqueezeExcite { excite } => excite.visit(visit),
            Node::Append(branch) => branch.visit(visit),
            Node::DualPath { path, branch, .. } => {
                path.iter().for_each(|path| path.visit(visit));
                branch.visit(visit);
            }
            Node::Residual(block) => {
                block.shared.visit(visit);
                block.branch.visit(visit);
                if let Shortcut::Projection { path, .. } = &block.shortcut {
                    path.visit(visit);
                }
                block.shortcut_dropout.iter().for_each(|dropout| dropout.visit(visit));
            }
            Node::Conv { .. }
            | Node::Norm { .. }
            | Node::Relu
            | Node::MaxPool { .. }
            | Node::AveragePool
            | Node::Dropout { .. }
            | Node::GlobalAveragePool
            | Node::Linear { .. } => {}
        }
    }

    /// The parameters in the order in which autograd records their use.
    ///
    /// Where one operation has two parameters, the one whose gradient autograd delivers first stands last, so
    /// that the reverse of the whole is the order of readiness.
    pub(crate) fn recording_order(&self) -> Vec<usize> {
        let mut order = Vec::new();
        self.visit(&mut |node| match node {
            Node::Conv { weight, bias, .. } => order.extend(bias.iter().chain([weight])),
            Node::Norm { gain, bias, .. } => order.extend([*bias, *gain]),
            Node::Linear { weight, bias } => order.extend([*weight, *bias]),
            _ => {}
        });
        order
    }

    /// The norm layers, in the order in which they run.
    pub(crate) fn norm_layers(&self) -> Vec<usize> {
        let mut layers = Vec::new();
        self.visit(&mut |node| {
            if let Node::Norm { layer, .. } = node {
                layers.push(*layer);
            }
        });
        layers
    }
}
