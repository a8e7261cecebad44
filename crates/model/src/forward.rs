//! The interpreter: runs a network's tree on tensors. Knows nodes, not architectures.

use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use rand::{Rng, RngExt};
use tch::{Kind, Tensor};
use torch_ext::random;
use torch_ext::recompute::{NormArguments, Recomputed, norm_relu};
use torch_ext::sync_norm::{self, Ranks};

use crate::checkpoint::{Lasting, run_block};
use crate::error::ModelError;
use crate::init::keyed;
use crate::memory::Memory;
use crate::network::Network;
use crate::options::ShortcutInput;
use crate::spec::{Node, Residual, Shortcut, Survival};

/// Tell these uses of the seed from each other and from every other one.
const DROPOUT_DOMAIN: u64 = u64::from_le_bytes(*b"dropout\0");
const SURVIVAL_DOMAIN: u64 = u64::from_le_bytes(*b"survival");

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
    /// By the batch itself.
    Batch {
        /// Where its mean and unbiased variance are written.
        batch: &'a [Statistics],
        /// What is written instead for layers of a block that stochastic depth leaves out, so that an average
        /// over micro batches leaves their running statistics where they are.
        running: &'a [Statistics],
    },
    /// By the batches of all ranks together. They must run the same layers: no stochastic depth, and nothing that runs a
    /// part of the network again.
    Synchronized {
        /// Where their mean and unbiased variance are written.
        batch: &'a [Statistics],
        /// The ranks.
        ranks: &'a Ranks,
    },
    /// By these.
    Running(&'a [Statistics]),
}

/// Identity of what one forward pass draws: dropout masks, and which blocks are left out (design rule 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKey {
    /// The run's seed.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
    /// Index of the micro batch in the global batch.
    pub micro_batch: u64,
}

/// Told the index of a parameter before an operation reads it; returns when it may be read.
pub type BeforeUse<'a> = &'a dyn Fn(usize) -> Result<(), ModelError>;

/// Everything that a forward pass needs beside its input.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// In the order of [`Network::parameters`].
    pub parameters: &'a [Tensor],
    /// For parameters that are still being written while the pass begins. Backward reads what the pass has read.
    pub before_use: Option<BeforeUse<'a>>,
    /// Statistics of batch norm.
    pub norm: Norm<'a>,
    /// For training. Without it dropout does nothing, and with stochastic depth every block is there, scaled.
    pub draws: Option<DrawKey>,
    /// What is kept for backward. Changes no bit of outputs, statistics and gradients.
    pub memory: Memory,
}

impl Network {
    /// Logits `[N, classes]` of images `[N, C, H, W]`, best given in channels_last order. Works under
    /// autocast; runs on the device of its tensors.
    ///
    /// # Errors
    /// When libtorch refuses an operation, for example for lack of memory; when [`Norm::Synchronized`] meets stochastic
    /// depth or another memory mode than plain, with which the ranks would wait for each other in vain.
    ///
    /// # Panics
    /// When the pass holds fewer parameters or statistics than the network declares.
    pub fn forward(&self, input: &Tensor, pass: &Pass) -> Result<Tensor, ModelError> {
        if matches!(pass.norm, Norm::Synchronized { .. }) {
            self.require_the_same_layers_on_all_ranks(pass.memory)?;
        }
        let context = Context {
            parameters: pass.parameters,
            before_use: pass.before_use,
            statistics: match pass.norm {
                Norm::Batch { batch, running } => UsedStatistics::Batch(Some(Written { batch, running })),
                Norm::Synchronized { batch, ranks } => UsedStatistics::Synchronized { batch, ranks },
                Norm::Running(statistics) => UsedStatistics::Running(statistics),
            },
            draws: pass.draws,
            recompute: pass.memory == Memory::Recompute,
            lasting: (pass.memory == Memory::Checkpoint).then(|| Lasting::new(pass)),
        };
        Ok(run(&self.root, &Value::kept(input.shallow_clone()), &context)?.tensor)
    }

    fn require_the_same_layers_on_all_ranks(&self, memory: Memory) -> Result<(), ModelError> {
        let mut stochastic = false;
        self.root.visit(&mut |node| {
            stochastic |= matches!(node, Node::Residual(block) if block.survival.is_some());
        });
        match (stochastic, memory) {
            (false, Memory::Plain) => Ok(()),
            (true, _) => {
                Err(ModelError::Option("batch norm over several ranks excludes stochastic depth".into()))
            }
            (_, memory) => {
                Err(ModelError::Option(format!("batch norm over several ranks excludes memory: {memory}")))
            }
        }
    }

    /// Parameters of the blocks that stochastic depth leaves out of the training pass with this key: it gives
    /// them no gradient. Empty without stochastic depth.
    #[must_use]
    pub fn left_out(&self, key: DrawKey) -> Vec<usize> {
        let mut parameters = Vec::new();
        self.root.visit(&mut |node| match node {
            Node::Residual(block) if block.survival.is_some_and(|survival| !survival.survives(key)) => {
                block.optional_parts().for_each(|part| parameters.extend(part.recording_order()));
            }
            _ => {}
        });
        parameters
    }
}

impl Survival {
    fn survives(self, DrawKey { seed, step, micro_batch }: DrawKey) -> bool {
        let mut generator = keyed(&[seed, step, micro_batch, SURVIVAL_DOMAIN.wrapping_add(self.block)]);
        generator.random::<f64>() < self.probability
    }
}

/// What batch norm does with its statistics.
#[derive(Clone, Copy)]
pub(crate) enum UsedStatistics<'a> {
    /// Normalises by the batch's own, and writes them down if told where.
    Batch(Option<Written<'a>>),
    /// Normalises by those of all ranks' batches, and writes them down.
    Synchronized { batch: &'a [Statistics], ranks: &'a Ranks },
    /// Normalises by these.
    Running(&'a [Statistics]),
}

/// As [`Norm::Batch`].
#[derive(Clone, Copy)]
pub(crate) struct Written<'a> {
    batch: &'a [Statistics],
    running: &'a [Statistics],
}

/// Everything that nodes need beside their input.
pub(crate) struct Context<'a> {
    pub(crate) parameters: &'a [Tensor],
    pub(crate) before_use: Option<BeforeUse<'a>>,
    pub(crate) statistics: UsedStatistics<'a>,
    pub(crate) draws: Option<DrawKey>,
    /// Whether batch norm with ReLU gives its output up ([`torch_ext::recompute`]).
    pub(crate) recompute: bool,
    /// Set when blocks are checkpointed: what they need in backward.
    pub(crate) lasting: Option<Arc<Lasting>>,
}

impl<'a> Context<'a> {
    fn parameter(&self, index: usize) -> Result<&'a Tensor, ModelError> {
        if let Some(before_use) = self.before_use {
            before_use(index)?;
        }
        Ok(&self.parameters[index])
    }
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
        Node::Conv { weight, bias, stride, padding, groups } => {
            let output = input.f_conv2d(
                context.parameter(*weight)?,
                bias.map(|bias| context.parameter(bias)).transpose()?,
                [*stride, *stride],
                [*padding, *padding],
                [1, 1],
                *groups,
            )?;
            if let Some(recomputed) = &input.recomputed {
                recomputed.feeds(&output)?;
            }
            output
        }
        Node::Norm { gain, bias, layer, epsilon } => norm(*gain, *bias, *layer, *epsilon, input, context)?,
        Node::Relu => input.shallow_clone().f_relu_()?,
        Node::MaxPool { kernel, stride, padding } => {
            input.f_max_pool2d([*kernel, *kernel], [*stride, *stride], [*padding, *padding], [1, 1], false)?
        }
        Node::AveragePool => input.f_avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>)?,
        Node::Dropout { probability, layer } => match dropout_key(*layer, context) {
            Some(key) => random::dropout(input, *probability, key)?,
            None => input.shallow_clone(),
        },
        Node::GlobalAveragePool => input.f_mean_dim([2, 3].as_slice(), false, None::<Kind>)?,
        Node::Linear { weight, bias } => {
            input.f_linear(context.parameter(*weight)?, Some(context.parameter(*bias)?))?
        }
        Node::SqueezeExcite { excite } => {
            let means = input.f_mean_dim([2, 3].as_slice(), true, None::<Kind>)?;
            input.f_mul(&run(excite, &Value::kept(means), context)?.f_sigmoid()?)?
        }
        Node::Append(branch) => Tensor::f_cat(&[&input.tensor, &run(branch, input, context)?.tensor], 1)?,
        Node::DualPath { path, branch, residual } => {
            dual_path(path.as_deref(), branch, *residual, input, context)?
        }
        Node::Residual(block) => residual(block, input, context)?,
    }))
}

fn norm(
    gain: usize,
    bias: usize,
    layer: usize,
    epsilon: f64,
    input: &Tensor,
    context: &Context,
) -> Result<Tensor, ModelError> {
    if let UsedStatistics::Synchronized { batch, ranks } = context.statistics {
        let Statistics { mean, variance } = &batch[layer];
        let (gain, bias) = (context.parameter(gain)?, context.parameter(bias)?);
        return Ok(sync_norm::batch_norm(input, gain, bias, (mean, variance), epsilon, ranks)?);
    }
    let norm = norm_arguments(gain, bias, layer, epsilon, context)?;
    Ok(input.f_batch_norm(
        Some(norm.gain),
        Some(norm.bias),
        norm.statistics.map(|(mean, _)| mean),
        norm.statistics.map(|(_, variance)| variance),
        norm.by_batch,
        norm.momentum,
        norm.epsilon,
        true,
    )?)
}

fn run_sequence(mut nodes: &[Node], input: &Value, context: &Context) -> Result<Value, ModelError> {
    let mut value = None;
    while let [node, rest @ ..] = nodes {
        let current = value.as_ref().unwrap_or(input);
        let (next, after) = match nodes {
            [Node::Norm { gain, bias, layer, epsilon }, Node::Relu, after @ ..] if context.recompute => {
                let (dropout, after) = match after {
                    [Node::Dropout { probability, layer }, after @ ..] => {
                        (dropout_key(*layer, context).map(|key| (*probability, key)), after)
                    }
                    after => (None, after),
                };
                let norm = norm_arguments(*gain, *bias, *layer, *epsilon, context)?;
                let (tensor, recomputed) = norm_relu(current, norm, dropout)?;
                (Value { tensor, recomputed: recomputed.map(Rc::new) }, after)
            }
            _ => (run(node, current, context)?, rest),
        };
        (value, nodes) = (Some(next), after);
    }
    Ok(value.unwrap_or_else(|| Value { tensor: input.shallow_clone(), recomputed: input.recomputed.clone() }))
}

fn norm_arguments<'a>(
    gain: usize,
    bias: usize,
    layer: usize,
    epsilon: f64,
    context: &Context<'a>,
) -> Result<NormArguments<'a>, ModelError> {
    // Momentum 1 makes "running" statistics of this batch alone; the caller averages over micro batches and
    // ranks.
    let (statistics, by_batch, momentum) = match context.statistics {
        UsedStatistics::Batch(written) => (written.map(|written| &written.batch[layer]), true, 1.0),
        UsedStatistics::Synchronized { .. } => {
            return Err(ModelError::Option("batch norm over several ranks is not recomputed".into()));
        }
        UsedStatistics::Running(statistics) => (Some(&statistics[layer]), false, 0.0),
    };
    Ok(NormArguments {
        gain: context.parameter(gain)?,
        bias: context.parameter(bias)?,
        statistics: statistics.map(|statistics| (&statistics.mean, &statistics.variance)),
        by_batch,
        momentum,
        epsilon,
    })
}

/// Key of the mask of a dropout layer, if there is to be one.
fn dropout_key(layer: u64, context: &Context) -> Option<u64> {
    let DrawKey { seed, step, micro_batch } = context.draws?;
    Some(keyed(&[seed, step, micro_batch, DROPOUT_DOMAIN.wrapping_add(layer)]).next_u64())
}

fn residual(block: &Residual, input: &Value, context: &Context) -> Result<Tensor, ModelError> {
    // Weight of the branch; none when it is left out.
    let weight = match (block.survival, context.draws) {
        (None, _) => Some(1.0),
        (Some(survival), Some(key)) => survival.survives(key).then_some(1.0),
        (Some(survival), None) => Some(survival.probability),
    };
    if weight.is_none() {
        block.optional_parts().try_for_each(|part| keep_statistics(part, context))?;
    }
    let shared = match weight.is_some() || block.shortcut_reads_shared() {
        true => run(&block.shared, input, context)?,
        false => Value::kept(input.shallow_clone()),
    };
    let branch =
        weight.map(|weight| scaled(run(&block.branch, &shared, context)?.tensor, weight)).transpose()?;
    let mut other = match &block.shortcut {
        Shortcut::Identity => input.shallow_clone(),
        Shortcut::Projection { path, input: ShortcutInput::Preactivated } => {
            run(path, &shared, context)?.tensor
        }
        Shortcut::Projection { path, input: ShortcutInput::Raw } => run(path, input, context)?.tensor,
        // A pool of single pixels instead of an index, whose gradient would lose the channels_last order.
        Shortcut::ZeroPad { stride, channels } => input
            .f_avg_pool2d([1, 1], [*stride, *stride], [0, 0], false, false, None::<i64>)?
            .f_constant_pad_nd([0, 0, 0, 0, 0, *channels])?,
    };
    if let Some(dropout) = &block.shortcut_dropout {
        other = run(dropout, &Value::kept(other), context)?.tensor;
    }
    match branch {
        // In place: the backward of what a branch ends in does not need its output.
        Some(mut branch) => Ok(branch.f_add_(&other)?),
        // A copy, since a ReLU in place may follow and others need the input.
        None => Ok(other.f_mul_scalar(1.0)?),
    }
}

fn scaled(branch: Tensor, weight: f64) -> Result<Tensor, ModelError> {
    Ok(if weight == 1.0 { branch } else { branch.f_mul_scalar(weight)? })
}

/// Stands for the statistics that the norm layers of a part would have written, had it run.
fn keep_statistics(part: &Node, context: &Context) -> Result<(), ModelError> {
    let UsedStatistics::Batch(Some(Written { batch, running })) = context.statistics else { return Ok(()) };
    let _no_grad = tch::no_grad_guard();
    for layer in part.norm_layers() {
        // Below autograd's version check: batch norm keeps these tensors, and with them whatever shares their
        // memory, for a backward that does not read them.
        batch[layer].mean.f_data()?.f_copy_(&running[layer].mean)?;
        batch[layer].variance.f_data()?.f_copy_(&running[layer].variance)?;
    }
    Ok(())
}

fn dual_path(
    path: Option<&Node>,
    branch: &Node,
    residual: i64,
    input: &Value,
    context: &Context,
) -> Result<Tensor, ModelError> {
    let carried = match path {
        Some(path) => run(path, input, context)?.tensor,
        None => input.shallow_clone(),
    };
    let branch = run(branch, input, context)?.tensor;
    let rest = |tensor: &Tensor| tensor.f_narrow(1, residual, tensor.size()[1] - residual);
    let sum = carried.f_narrow(1, 0, residual)?.f_add(&branch.f_narrow(1, 0, residual)?)?;
    Ok(Tensor::f_cat(&[sum, rest(&carried)?, rest(&branch)?], 1)?)
}
