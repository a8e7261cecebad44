//! `Memory::Checkpoint`: a block's forward pass keeps its input only, and runs again within backward. The
//! mechanism is [`torch_ext::checkpoint`]; here is what a block needs for its second run.

use std::sync::{Arc, Mutex, PoisonError};

use tch::Tensor;

use crate::error::ModelError;
use crate::forward::{Context, DrawKey, Norm, Pass, Statistics, UsedStatistics, Value, run};
use crate::spec::Node;

/// What a pass lends to its blocks, kept until backward: references to the same tensors.
///
/// On a GPU backward runs on a thread of its own, while the caller waits; hence the lock.
pub(crate) struct Lasting {
    tensors: Mutex<Tensors>,
    draws: Option<DrawKey>,
}

struct Tensors {
    parameters: Vec<Tensor>,
    running: Option<Vec<Statistics>>,
}

impl Lasting {
    pub(crate) fn new(pass: &Pass) -> Arc<Self> {
        let share = |statistics: &Statistics| Statistics {
            mean: statistics.mean.shallow_clone(),
            variance: statistics.variance.shallow_clone(),
        };
        let tensors = Tensors {
            parameters: pass.parameters.iter().map(Tensor::shallow_clone).collect(),
            running: match pass.norm {
                // The first run has written the batch's statistics, and the ranks may be exchanging them.
                Norm::Batch { .. } | Norm::Synchronized { .. } => None,
                Norm::Running(statistics) => Some(statistics.iter().map(share).collect()),
            },
        };
        Arc::new(Lasting { tensors: Mutex::new(tensors), draws: pass.draws })
    }

    /// The block's output with a graph, drawing the same; statistics are not written.
    fn run_again(&self, block: &Node, input: &Tensor) -> Result<Tensor, ModelError> {
        let tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        let context = Context {
            parameters: &tensors.parameters,
            // The first run has waited for them.
            before_use: None,
            statistics: match &tensors.running {
                None => UsedStatistics::Batch(None),
                Some(statistics) => UsedStatistics::Running(statistics),
            },
            draws: self.draws,
            recompute: false,
            lasting: None,
        };
        Ok(run(block, &Value::kept(input.shallow_clone()), &context)?.tensor)
    }
}

/// The block's output, as one node of the graph.
pub(crate) fn run_block(
    block: &Arc<Node>,
    input: &Tensor,
    context: &Context,
    lasting: &Arc<Lasting>,
) -> Result<Tensor, ModelError> {
    let inner = Context {
        parameters: context.parameters,
        before_use: context.before_use,
        statistics: context.statistics,
        draws: context.draws,
        recompute: false,
        lasting: None,
    };
    let (again, lasting) = (Arc::clone(block), Arc::clone(lasting));
    torch_ext::checkpoint::checkpoint(
        input,
        |input| Ok(run(block, &Value::kept(input.shallow_clone()), &inner)?.tensor),
        move |input| lasting.run_again(&again, input),
    )
}
