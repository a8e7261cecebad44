//! SGD with momentum over the flat buffers. Owns no memory of its own: momentum is part of [`State`].

use std::ops::Range;

use model::Role;
use tch::Tensor;
use torch_ext::optimizer::{Sgd, fused_sgd};

use crate::config::OptimizerConfig;
use crate::error::Error;
use crate::state::State;

/// Views of one decay group: parameters, gradients, momentum.
struct Group {
    parameters: Vec<Tensor>,
    gradients: Vec<Tensor>,
    momentum: Vec<Tensor>,
    weight_decay: f64,
}

/// The update rule and the parameters it applies to.
pub(crate) struct Optimizer {
    config: OptimizerConfig,
    groups: Vec<Group>,
}

impl Optimizer {
    pub(crate) fn new(config: &OptimizerConfig, state: &State) -> Result<Self, Error> {
        Self::with_parameters(config, state, &state.flat_parameters, 0..state.layout.parameters_len)
    }

    /// As [`Optimizer::new`], for the elements `range` alone. Its updates do not count as changes of the weights that
    /// autograd watches over.
    pub(crate) fn of_range(
        config: &OptimizerConfig,
        state: &State,
        range: Range<usize>,
    ) -> Result<Self, Error> {
        Self::with_parameters(config, state, &state.flat_parameters.f_data()?, range)
    }

    fn with_parameters(
        config: &OptimizerConfig,
        state: &State,
        parameters: &Tensor,
        range: Range<usize>,
    ) -> Result<Self, Error> {
        let decays =
            |role| config.decay_norm_and_bias || matches!(role, Role::ConvWeight | Role::LinearWeight);
        let (with, without) = state.layout.decay_ranges(decays);
        let within = |ranges: Vec<Range<usize>>| -> Vec<Range<usize>> {
            let cut = |part: Range<usize>| part.start.max(range.start)..part.end.min(range.end);
            ranges.into_iter().map(cut).filter(|part| !part.is_empty()).collect()
        };
        let (with, without) = (within(with), within(without));
        let gradients = state.gradients()?;
        let views = |tensor: &Tensor, ranges: &[Range<usize>]| -> Result<Vec<Tensor>, Error> {
            ranges
                .iter()
                .map(|range| Ok(tensor.f_narrow(0, range.start as i64, range.len() as i64)?))
                .collect()
        };
        let mut groups = Vec::new();
        for (ranges, weight_decay) in [(with, config.weight_decay), (without, 0.0)] {
            if !ranges.is_empty() {
                groups.push(Group {
                    parameters: views(parameters, &ranges)?,
                    gradients: views(&gradients, &ranges)?,
                    momentum: views(&state.momentum, &ranges)?,
                    weight_decay,
                });
            }
        }
        Ok(Optimizer { config: config.clone(), groups })
    }

    /// Applies the averaged gradient.
    pub(crate) fn step(&self, learning_rate: f64) -> Result<(), Error> {
        for group in &self.groups {
            let sgd = Sgd {
                learning_rate,
                momentum: self.config.momentum,
                dampening: self.config.dampening,
                weight_decay: group.weight_decay,
                nesterov: self.config.nesterov,
            };
            // A first step with its own rule differs only by dampening (PyTorch's SGD); momentum starts from
            // zero here.
            let first_step = false;
            fused_sgd(
                &group.parameters.iter().collect::<Vec<_>>(),
                &group.gradients.iter().collect::<Vec<_>>(),
                &group.momentum.iter().collect::<Vec<_>>(),
                &sgd,
                first_step,
            )?;
        }
        Ok(())
    }

    /// Forgets past gradients.
    pub(crate) fn reset_momentum(state: &mut State) -> Result<(), Error> {
        let _ = state.momentum.f_zero_()?;
        Ok(())
    }
}
