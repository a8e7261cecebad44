//! The interpreter: runs a network's tree on tensors. Knows nodes, not architectures.

use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use rand::Rng;
use tch::{Kind, Tensor};
use torch_ext::random;
use torch_ext::recompute::{NormArguments, Recomputed, norm_relu};

use crate::checkpoint::{Lasting, run_block};
use crate::error::ModelError;
use crate::init::keyed;
use crate::memory::Memory;
use crate::network::Network;
use crate::options::ShortcutInput;
use crate::spec::{Node, Shortcut};

/// Added to the variance (Torch's default).
const NORM_EPSILON: f64 = 1e-5;

/// Tells this use of the seed from every other one.
const DROPOUT_DOMAIN: u64 = u64::from_le_bytes(*b"dropout\0");

/// Mean and variance `[C]` of one norm layer, fp32.
#[derive(Debug)]
pub struct Statistics {
    /// Mean.
    pub mean: Tensor,
    /// Unbiased variance.
    pub variance: Tensor,
}

/// What batch norm normalises by; one entry a layer, in the order of [`Network::norms`].
#[derive(Clone, Copy, Debug)]
pub enum Norm<'a> {
    /// By the batch itself, whose mean and unbiased variance are written into these.
    Batch(&'a [Statistics]),
    /// By these.
    Running(&'a [Statistics]),
}

/// Identity of the dropout masks of one forward pass (design rule 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
    /// Index of the micro batch in the global batch.
    pub micro_batch: u64,
}

/// Everything that a forward pass needs beside its input.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// In the order of [`Network::parameters`].
    pub parameters: &'a [Tensor],
    /// Statistics of batch norm.
    pub norm: Norm<'a>,
    /// Masks; without it dropout does nothing.
    pub dropout: Option<DropoutKey>,
    /// What is kept for backward. Changes no bit of outputs, statistics and gradients.
    pub memory: Memory,
}

impl Network {
    /// Logits `[N, classes]` of images `[N, C, H, W]`, best given in channels_last order. Works under
    /// autocast; runs on the device of its tensors.
    ///
    /// # Errors
    /// When libtorch refuses an operation, for example for lack of memory.
    ///
    /// # Panics
    /// When the pass holds fewer parameters or statistics than the network declares.
    pub fn forward(&self, input: &Tensor, pass: &Pass) -> Result<Tensor, ModelError> {
        let context = Context {
            parameters: pass.parameters,
            statistics: match pass.norm {
                Norm::Batch(statistics) => UsedStatistics::Batch(Some(statistics)),
                Norm::Running(statistics) => UsedStatistics::Running(statistics),
            },
            dropout: pass.dropout,
            recompute: pass.memory == Memory::Recompute,
            lasting: (pass.memory == Memory::Checkpoint).then(|| Lasting::new(pass)),
        };
        Ok(run(&self.root, &Value::kept(input.shallow_clone()), &context)?.tensor)
    }
}

/// What batch norm does with its statistics.
#[derive(Clone, Copy)]
pub(crate) enum UsedStatistics<'a> {
    /// Normalises by the batch's own, and writes them down if told where.
    Batch(Option<&'a [Statistics]>),
    /// Normalises by these.
    Running(&'a [Statistics]),
}

/// Everything that nodes need beside their input.
pub(crate) struct Context<'a> {
    pub(crate) parameters: &'a [Tensor],
    pub(crate) statistics: UsedStatistics<'a>,
    pub(crate) dropout: Option<DropoutKey>,
    /// Whether batch norm with ReLU gives its output up ([`torch_ext::recompute`]).
    pub(crate) recompute: bool,
    /// Set when blocks are checkpointed: what they need in backward.
    pub(crate) lasting: Option<Arc<Lasting>>,
}

/// A node's output; used as the tensor it is.
pub(crate) struct Value {
    pub(crate) tensor: Tensor,
    /// Set when a convolution that reads it need not keep it.
    recomputed: Option<Rc<Recomputed>>,
}

impl Value {
    pub(crate) fn kept(tensor: Tensor) -> Self {
        Value { tensor, recomputed: None }
    }
}

impl Deref for Value {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.tensor
    }
}

pub(crate) fn run(node: &Node, input: &Value, context: &Context) -> Result<Value, ModelError> {
    Ok(Value::kept(match node {
        Node::Sequence(nodes) => return run_sequence(nodes, input, context),
        Node::Block(block) => match &context.lasting {
            Some(lasting) => run_block(block, input, context, lasting)?,
            None => return run(block, input, context),
        },
        Node::Conv { weight, stride, padding } => {
            let output = input.f_conv2d(
                &context.parameters[*weight],
                None::<&Tensor>,
                [*stride, *stride],
                [*padding, *padding],
                [1, 1],
                1,
            )?;
            if let Some(recomputed) = &input.recomputed {
                recomputed.feeds(&output)?;
            }
            output
        }
        Node::Norm { gain, bias, layer } => {
            let norm = norm_arguments(*gain, *bias, *layer, context);
            input.f_batch_norm(
                Some(norm.gain),
                Some(norm.bias),
                norm.statistics.map(|(mean, _)| mean),
                norm.statistics.map(|(_, variance)| variance),
                norm.by_batch,
                norm.momentum,
                norm.epsilon,
                true,
            )?
        }
        Node::Relu => input.shallow_clone().f_relu_()?,
        Node::MaxPool { kernel, stride, padding } => {
            input.f_max_pool2d([*kernel, *kernel], [*stride, *stride], [*padding, *padding], [1, 1], false)?
        }
        Node::Dropout { probability, layer } => match dropout_key(*layer, context) {
            Some(key) => random::dropout(input, *probability, key)?,
            None => input.shallow_clone(),
        },
        Node::GlobalAveragePool => input.f_mean_dim([2, 3].as_slice(), false, None::<Kind>)?,
        Node::Linear { weight, bias } => {
            input.f_linear(&context.parameters[*weight], Some(&context.parameters[*bias]))?
        }
        Node::Residual { shared, branch, shortcut } => {
            let shared = run(shared, input, context)?;
            let mut sum = run(branch, &shared, context)?.tensor;
            let other = match shortcut {
                Shortcut::Identity => input.shallow_clone(),
                Shortcut::Projection { path, input: ShortcutInput::Preactivated } => {
                    run(path, &shared, context)?.tensor
                }
                Shortcut::Projection { path, input: ShortcutInput::Raw } => run(path, input, context)?.tensor,
                // A pool of single pixels instead of an index, whose gradient would lose the channels_last
                // order.
                Shortcut::ZeroPad { stride, channels } => input
                    .f_avg_pool2d([1, 1], [*stride, *stride], [0, 0], false, false, None::<i64>)?
                    .f_constant_pad_nd([0, 0, 0, 0, 0, *channels])?,
            };
            // In place: the backward of a convolution or of a batch norm does not need its output.
            sum.f_add_(&other)?
        }
    }))
}

fn run_sequence(mut nodes: &[Node], input: &Value, context: &Context) -> Result<Value, ModelError> {
    let mut value = None;
    while let [node, rest @ ..] = nodes {
        let current = value.as_ref().unwrap_or(input);
        let (next, after) = match nodes {
            [Node::Norm { gain, bias, layer }, Node::Relu, after @ ..] if context.recompute => {
                let (dropout, after) = match after {
                    [Node::Dropout { probability, layer }, after @ ..] => {
                        (dropout_key(*layer, context).map(|key| (*probability, key)), after)
                    }
                    after => (None, after),
                };
                let norm = norm_arguments(*gain, *bias, *layer, context);
                let (tensor, recomputed) = norm_relu(current, norm, dropout)?;
                (Value { tensor, recomputed: recomputed.map(Rc::new) }, after)
            }
            _ => (run(node, current, context)?, rest),
        };
        (value, nodes) = (Some(next), after);
    }
    Ok(value.unwrap_or_else(|| Value { tensor: input.shallow_clone(), recomputed: input.recomputed.clone() }))
}

fn norm_arguments<'a>(gain: usize, bias: usize, layer: usize, context: &Context<'a>) -> NormArguments<'a> {
    // Momentum 1 makes "running" statistics of this batch alone; the caller averages over micro batches and
    // ranks.
    let (statistics, by_batch, momentum) = match context.statistics {
        UsedStatistics::Batch(statistics) => (statistics.map(|all| &all[layer]), true, 1.0),
        UsedStatistics::Running(statistics) => (Some(&statistics[layer]), false, 0.0),
    };
    NormArguments {
        gain: &context.parameters[gain],
        bias: &context.parameters[bias],
        statistics: statistics.map(|statistics| (&statistics.mean, &statistics.variance)),
        by_batch,
        momentum,
        epsilon: NORM_EPSILON,
    }
}

/// Key of the mask of a dropout layer, if there is to be one.
fn dropout_key(layer: u64, context: &Context) -> Option<u64> {
    let DropoutKey { seed, step, micro_batch } = context.dropout?;
    Some(keyed(&[seed, step, micro_batch, DROPOUT_DOMAIN.wrapping_add(layer)]).next_u64())
}
