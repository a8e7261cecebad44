//! How many bytes autograd keeps for backward, counted along the tree without tensors. Mirrors
//! [`crate::forward`]: one line a node that says what its backward needs.

use std::collections::HashMap;

use tch::Kind;

use crate::memory::Memory;
use crate::network::Network;
use crate::options::ShortcutInput;
use crate::spec::{Node, Residual, Shortcut};

/// Bytes of an index of a max pool.
const INDEX_BYTES: u64 = 8;

impl Network {
    /// Bytes a sample that a training step holds at its fullest for the sake of backward, with activations of
    /// `kind`: everything that is kept, and of [`Memory::Checkpoint`] also the inside of the block that runs
    /// again. Without gradients and what an operation needs while it runs, and without anything whose size does
    /// not depend on the batch.
    #[must_use]
    pub fn activation_bytes(&self, memory: Memory, kind: Kind) -> u64 {
        let mut count = Count {
            network: self,
            number_bytes: kind.elt_size_in_bytes() as u64,
            recompute: memory == Memory::Recompute,
            checkpoint: memory == Memory::Checkpoint,
            kept: HashMap::new(),
            tensors: 0,
            fullest: 0,
        };
        let (channels, side) = self.image_shape();
        let input = count.output(i64::from(channels), i64::from(side));
        count.run(&self.root, input);
        count.fullest.max(count.kept_bytes())
    }
}

/// A tensor of one sample: `[C, H, W]` with H = W.
#[derive(Clone, Copy)]
struct Value {
    /// Tells tensors apart; what happens in place keeps it.
    tensor: u64,
    channels: i64,
    side: i64,
    /// Whether a convolution that reads it need not keep it.
    recomputed: bool,
}

struct Count<'a> {
    network: &'a Network,
    number_bytes: u64,
    recompute: bool,
    checkpoint: bool,
    /// Bytes of the tensors that backward needs.
    kept: HashMap<u64, u64>,
    tensors: u64,
    /// The most that blocks which run again hold together with what was kept before them.
    fullest: u64,
}

impl Count<'_> {
    fn kept_bytes(&self) -> u64 {
        self.kept.values().sum()
    }

    fn output(&mut self, channels: i64, side: i64) -> Value {
        self.tensors += 1;
        Value { tensor: self.tensors, channels, side, recomputed: false }
    }

    fn keep(&mut self, value: Value) {
        self.kept.insert(value.tensor, value.numbers() * self.number_bytes);
    }

    /// A tensor beside the network's own, such as a mask.
    fn keep_extra(&mut self, bytes: u64) {
        self.tensors += 1;
        self.kept.insert(self.tensors, bytes);
    }

    fn run(&mut self, node: &Node, input: Value) -> Value {
        match node {
            Node::Sequence(nodes) => self.run_sequence(nodes, input),
            Node::Block(block) if self.checkpoint => self.run_block(block, input),
            Node::Block(block) => self.run(block, input),
            Node::Conv { weight, stride, padding, .. } => {
                if !input.recomputed {
                    self.keep(input);
                }
                let [outputs, _, kernel, _] = self.network.parameters()[*weight].shape[..] else {
                    return input;
                };
                self.output(outputs, (input.side + 2 * padding - kernel) / stride + 1)
            }
            Node::Norm { .. } => {
                self.keep(input);
                self.output(input.channels, input.side)
            }
            Node::Relu => {
                self.keep(input);
                input
            }
            Node::MaxPool { kernel, stride, padding } => {
                self.keep(input);
                let output = self.output(input.channels, (input.side + 2 * padding - kernel) / stride + 1);
                self.keep_extra(output.numbers() * INDEX_BYTES);
                output
            }
            Node::AveragePool => {
                self.keep(input);
                self.output(input.channels, input.side / 2)
            }
            Node::Dropout { .. } => {
                self.keep_extra(input.numbers() * self.number_bytes);
                self.output(input.channels, input.side)
            }
            Node::GlobalAveragePool => self.output(input.channels, 1),
            Node::Linear { weight, .. } => {
                self.keep(input);
                self.output(self.network.parameters()[*weight].shape[0], 1)
            }
            Node::SqueezeExcite { excite } => {
                let means = self.output(input.channels, 1);
                let scale = self.run(excite, means);
                // The sigmoid's result, and both factors of the product.
                let scale = self.output(scale.channels, 1);
                self.keep(scale);
                self.keep(input);
                self.output(input.channels, input.side)
            }
            Node::Append(branch) => {
                let appended = self.run(branch, input);
                self.output(input.channels + appended.channels, input.side)
            }
            Node::DualPath { path, branch, residual } => {
                let carried = path.as_deref().map_or(input, |path| self.run(path, input));
                let branch = self.run(branch, input);
                self.output(carried.channels + branch.channels - residual, branch.side)
            }
            Node::Residual(block) => self.run_residual(block, input),
        }
    }

    /// As if stochastic depth never left a block out.
    fn run_residual(&mut self, block: &Residual, input: Value) -> Value {
        let shared = self.run(&block.shared, input);
        let sum = self.run(&block.branch, shared);
        match &block.shortcut {
            Shortcut::Identity => {}
            Shortcut::Projection { path, input: ShortcutInput::Preactivated } => {
                self.run(path, shared);
            }
            Shortcut::Projection { path, input: ShortcutInput::Raw } => {
                self.run(path, input);
            }
            Shortcut::ZeroPad { .. } => self.keep(input),
        }
        if let Some(dropout) = &block.shortcut_dropout {
            self.run(dropout, sum);
        }
        sum
    }

    fn run_sequence(&mut self, nodes: &[Node], input: Value) -> Value {
        let mut value = input;
        let mut rest = nodes;
        while let [node, after @ ..] = rest {
            (value, rest) = match rest {
                [Node::Norm { .. }, Node::Relu, Node::Dropout { .. }, after @ ..]
                | [Node::Norm { .. }, Node::Relu, after @ ..]
                    if self.recompute =>
                {
                    self.keep(value);
                    (Value { recomputed: true, ..self.output(value.channels, value.side) }, after)
                }
                _ => (self.run(node, value), after),
            };
        }
        value
    }

    /// The inside counts only while the block runs again; what comes out lives on.
    fn run_block(&mut self, block: &Node, input: Value) -> Value {
        self.keep(input);
        let before = self.kept.clone();
        self.checkpoint = false;
        let output = self.run(block, input);
        self.checkpoint = true;
        self.fullest = self.fullest.max(self.kept_bytes());
        self.kept = before;
        output
    }
}

impl Value {
    fn numbers(self) -> u64 {
        (self.channels * self.side * self.side) as u64
    }
}
