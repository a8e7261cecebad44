//! The interpreter: runs a network's tree on tensors. Knows nodes, not architectures.

use rand::{Rng, RngExt};
use tch::{Kind, Tensor};
use torch_ext::random;

use crate::error::ModelError;
use crate::init::keyed;
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

/// Everything that a forward pass needs beside its input.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// In the order of [`Network::parameters`].
    pub parameters: &'a [Tensor],
    /// Statistics of batch norm.
    pub norm: Norm<'a>,
    /// For training. Without it dropout does nothing, and with stochastic depth every block is there, scaled.
    pub draws: Option<DrawKey>,
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

fn run(node: &Node, input: &Tensor, pass: &Pass) -> Result<Tensor, ModelError> {
    Ok(match node {
        Node::Sequence(nodes) => {
            let mut value = input.shallow_clone();
            for node in nodes {
                value = run(node, &value, pass)?;
            }
            value
        }
        Node::Conv { weight, bias, stride, padding, groups } => input.f_conv2d(
            &pass.parameters[*weight],
            bias.map(|bias| &pass.parameters[bias]),
            [*stride, *stride],
            [*padding, *padding],
            [1, 1],
            *groups,
        )?,
        Node::Norm { gain, bias, layer, epsilon } => {
            // Momentum 1 makes "running" statistics of this batch alone; the caller averages over micro
            // batches and ranks.
            let (statistics, by_batch, momentum) = match pass.norm {
                Norm::Batch { batch, .. } => (&batch[*layer], true, 1.0),
                Norm::Running(statistics) => (&statistics[*layer], false, 0.0),
            };
            input.f_batch_norm(
                Some(&pass.parameters[*gain]),
                Some(&pass.parameters[*bias]),
                Some(&statistics.mean),
                Some(&statistics.variance),
                by_batch,
                momentum,
                *epsilon,
                true,
            )?
        }
        Node::Relu => input.shallow_clone().f_relu_()?,
        Node::MaxPool { kernel, stride, padding } => {
            input.f_max_pool2d([*kernel, *kernel], [*stride, *stride], [*padding, *padding], [1, 1], false)?
        }
        Node::AveragePool => input.f_avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>)?,
        Node::Dropout { probability, layer } => match pass.draws {
            Some(DrawKey { seed, step, micro_batch }) => {
                let mut generator = keyed(&[seed, step, micro_batch, DROPOUT_DOMAIN.wrapping_add(*layer)]);
                random::dropout(input, *probability, generator.next_u64())?
            }
            None => input.shallow_clone(),
        },
        Node::GlobalAveragePool => input.f_mean_dim([2, 3].as_slice(), false, None::<Kind>)?,
        Node::Linear { weight, bias } => {
            input.f_linear(&pass.parameters[*weight], Some(&pass.parameters[*bias]))?
        }
        Node::SqueezeExcite { excite } => {
            let means = input.f_mean_dim([2, 3].as_slice(), true, None::<Kind>)?;
            input.f_mul(&run(excite, &means, pass)?.f_sigmoid()?)?
        }
        Node::Append(branch) => Tensor::f_cat(&[input, &run(branch, input, pass)?], 1)?,
        Node::DualPath { path, branch, residual } => {
            dual_path(path.as_deref(), branch, *residual, input, pass)?
        }
        Node::Residual(block) => residual(block, input, pass)?,
    })
}

fn residual(block: &Residual, input: &Tensor, pass: &Pass) -> Result<Tensor, ModelError> {
    // Weight of the branch; none when it is left out.
    let weight = match (block.survival, pass.draws) {
        (None, _) => Some(1.0),
        (Some(survival), Some(key)) => survival.survives(key).then_some(1.0),
        (Some(survival), None) => Some(survival.probability),
    };
    if weight.is_none() {
        block.optional_parts().try_for_each(|part| keep_statistics(part, pass))?;
    }
    let shared = match weight.is_some() || block.shortcut_reads_shared() {
        true => run(&block.shared, input, pass)?,
        false => input.shallow_clone(),
    };
    let branch = weight.map(|weight| scaled(run(&block.branch, &shared, pass)?, weight)).transpose()?;
    let mut other = match &block.shortcut {
        Shortcut::Identity => input.shallow_clone(),
        Shortcut::Projection { path, input: ShortcutInput::Preactivated } => run(path, &shared, pass)?,
        Shortcut::Projection { path, input: ShortcutInput::Raw } => run(path, input, pass)?,
        // A pool of single pixels instead of an index, whose gradient would lose the channels_last order.
        Shortcut::ZeroPad { stride, channels } => input
            .f_avg_pool2d([1, 1], [*stride, *stride], [0, 0], false, false, None::<i64>)?
            .f_constant_pad_nd([0, 0, 0, 0, 0, *channels])?,
    };
    if let Some(dropout) = &block.shortcut_dropout {
        other = run(dropout, &other, pass)?;
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
fn keep_statistics(part: &Node, pass: &Pass) -> Result<(), ModelError> {
    let Norm::Batch { batch, running } = pass.norm else { return Ok(()) };
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
    input: &Tensor,
    pass: &Pass,
) -> Result<Tensor, ModelError> {
    let carried = match path {
        Some(path) => run(path, input, pass)?,
        None => input.shallow_clone(),
    };
    let branch = run(branch, input, pass)?;
    let rest = |tensor: &Tensor| tensor.f_narrow(1, residual, tensor.size()[1] - residual);
    let sum = carried.f_narrow(1, 0, residual)?.f_add(&branch.f_narrow(1, 0, residual)?)?;
    Ok(Tensor::f_cat(&[sum, rest(&carried)?, rest(&branch)?], 1)?)
}
