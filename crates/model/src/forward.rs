//! The interpreter: runs a network's tree on tensors. Knows nodes, not architectures.

use rand::Rng;
use tch::{Kind, Tensor};
use torch_ext::random;

use crate::error::ModelError;
use crate::init::keyed;
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
        run(&self.root, input, pass)
    }
}

fn run(node: &Node, input: &Tensor, pass: &Pass) -> Result<Tensor, ModelError> {
    Ok(match node {
        Node::Sequence(nodes) => {
            let mut value = input.shallow_clone();
            for node in nodes {
                value = run(node, &value, pass)?;
            }
            value
        }
        Node::Conv { weight, stride, padding } => input.f_conv2d(
            &pass.parameters[*weight],
            None::<&Tensor>,
            [*stride, *stride],
            [*padding, *padding],
            [1, 1],
            1,
        )?,
        Node::Norm { gain, bias, layer } => {
            // Momentum 1 makes "running" statistics of this batch alone; the caller averages over micro
            // batches and ranks.
            let (statistics, by_batch, momentum) = match pass.norm {
                Norm::Batch(statistics) => (&statistics[*layer], true, 1.0),
                Norm::Running(statistics) => (&statistics[*layer], false, 0.0),
            };
            input.f_batch_norm(
                Some(&pass.parameters[*gain]),
                Some(&pass.parameters[*bias]),
                Some(&statistics.mean),
                Some(&statistics.variance),
                by_batch,
                momentum,
                NORM_EPSILON,
                true,
            )?
        }
        Node::Relu => input.shallow_clone().f_relu_()?,
        Node::MaxPool { kernel, stride, padding } => {
            input.f_max_pool2d([*kernel, *kernel], [*stride, *stride], [*padding, *padding], [1, 1], false)?
        }
        Node::Dropout { probability, layer } => match pass.dropout {
            Some(DropoutKey { seed, step, micro_batch }) => {
                let mut generator = keyed(&[seed, step, micro_batch, DROPOUT_DOMAIN.wrapping_add(*layer)]);
                random::dropout(input, *probability, generator.next_u64())?
            }
            None => input.shallow_clone(),
        },
        Node::GlobalAveragePool => input.f_mean_dim([2, 3].as_slice(), false, None::<Kind>)?,
        Node::Linear { weight, bias } => {
            input.f_linear(&pass.parameters[*weight], Some(&pass.parameters[*bias]))?
        }
        Node::Residual { shared, branch, shortcut } => {
            let shared = run(shared, input, pass)?;
            let mut sum = run(branch, &shared, pass)?;
            let other = match shortcut {
                Shortcut::Identity => input.shallow_clone(),
                Shortcut::Projection { path, input: ShortcutInput::Preactivated } => {
                    run(path, &shared, pass)?
                }
                Shortcut::Projection { path, input: ShortcutInput::Raw } => run(path, input, pass)?,
                // A pool of single pixels instead of an index, whose gradient would lose the channels_last
                // order.
                Shortcut::ZeroPad { stride, channels } => input
                    .f_avg_pool2d([1, 1], [*stride, *stride], [0, 0], false, false, None::<i64>)?
                    .f_constant_pad_nd([0, 0, 0, 0, 0, *channels])?,
            };
            // In place: the backward of a convolution or of a batch norm does not need its output.
            sum.f_add_(&other)?
        }
    })
}
