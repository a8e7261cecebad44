//! How averaged gradients change the weights: update rules over the flat buffers, and clipping. Where gradients come
//! from and how ranks exchange shares is not decided here.
//!
//! | file | holds |
//! |---|---|
//! | [`rule`] | the configured rule with its numbers, checked |
//! | [`memory`] | what a rule remembers of past gradients, in shares and whole |
//! | [`gathering`] | other ranks' new weights, while the next forward pass begins |
//! | [`share`] | which parameters are this rank's to update |
//! | [`layerwise`] | LARS and LAMB |
//! | [`norms`], [`square_sum`] | norms that are equal on all ranks, bit for bit |
//!
//! A gradient that an update has used may be overwritten.

pub(crate) mod gathering;
mod layerwise;
pub(crate) mod memory;
mod norms;
pub(crate) mod rule;
mod share;
mod square_sum;
#[cfg(test)]
mod tests;

use std::ops::Range;

use model::Role;
use tch::{Device, Kind, Tensor};
use torch_ext::optimizer::{AdamW, Sgd, fused_adamw, fused_sgd, fused_sgd_unless};

use self::layerwise::Layers;
use self::memory::{OptimizerState, Shards, narrow};
use self::norms::{Norms, Piece};
use self::rule::{Adam, Rule};
use crate::config::OptimizerConfig;
use crate::error::Error;
use crate::state::State;

/// What is added to the norm that clips, as in PyTorch.
const CLIP_EPSILON: f64 = 1e-6;

/// Views of parameters that are updated alike, with their gradients and what is remembered of them.
struct Group {
    parameters: Vec<Tensor>,
    gradients: Vec<Tensor>,
    /// By buffer of the optimizer's state.
    memory: Vec<Vec<Tensor>>,
    weight_decay: f64,
    /// With a layerwise rule: the segment that this is of.
    segment: usize,
}

/// The update rule and the parameters it applies to.
pub(crate) struct Optimizer {
    rule: Rule,
    clip_norm: Option<f64>,
    groups: Vec<Group>,
    norms: Norms,
    layers: Layers,
    parameters: Tensor,
    gradients: Tensor,
    updates: Option<Tensor>,
}

fn refs(tensors: &[Tensor]) -> Vec<&Tensor> {
    tensors.iter().collect()
}

impl Optimizer {
    /// Makes room in `state` for what the rule remembers; with `shards`, of this rank's share.
    pub(crate) fn new(
        config: &OptimizerConfig,
        state: &mut State,
        shards: Option<Shards>,
    ) -> Result<Self, Error> {
        let rule = Rule::new(config);
        let len = state.layout.parameters_len;
        let device = state.flat_parameters.device();
        state.optimizer = OptimizerState::new(rule.memory(), rule.counts_updates(), len, shards, device)?;
        Self::with_memory(config, rule, state, state.flat_parameters.shallow_clone(), &(0..len))
    }

    /// As [`Optimizer::new`] before it, for the elements `range` alone. Its updates do not count as changes of the
    /// weights that autograd watches over.
    pub(crate) fn of_range(
        config: &OptimizerConfig,
        state: &State,
        range: &Range<usize>,
    ) -> Result<Self, Error> {
        Self::with_memory(config, Rule::new(config), state, state.flat_parameters.f_data()?, range)
    }

    fn with_memory(
        config: &OptimizerConfig,
        rule: Rule,
        state: &State,
        parameters: Tensor,
        range: &Range<usize>,
    ) -> Result<Self, Error> {
        let gradients = state.gradients()?;
        let decay_of = decay_of(config);
        let layers: Vec<_> = (state.layout.segments.iter())
            .map(|placed| (decay_of(placed.role), is_weight(placed.role)))
            .collect();
        Ok(Optimizer {
            rule,
            clip_norm: config.clip_norm,
            groups: groups(config, rule, state, [&parameters, &gradients], range)?,
            norms: norms(state),
            layers: Layers::new(&layers, parameters.device())?,
            parameters,
            gradients,
            updates: state.optimizer.updates().map(Tensor::shallow_clone),
        })
    }

    /// Whether the host has no part in an update, so that a device can leave it out by itself. It has one where norms are
    /// those of all ranks' shares, which travel through its memory.
    pub(crate) fn runs_on_device(&self) -> bool {
        let needs_norms = self.rule.is_layerwise() || self.clip_norm.is_some();
        !needs_norms || self.norms.stay_on_device()
    }

    /// Applies the averaged gradient. Gives its norm, `[1]` in fp64 on the device, where that limits it. Collective with
    /// shards. Where `skip`, `[1]` on the device, is 1, everything but the gradient stays as it is.
    pub(crate) fn step(&self, learning_rate: f64, skip: Option<&Tensor>) -> Result<Option<Tensor>, Error> {
        let norm = self.clip()?;
        match self.rule {
            Rule::Sgd { momentum, dampening, nesterov } => {
                for group in &self.groups {
                    let weight_decay = group.weight_decay;
                    let sgd = Sgd { learning_rate, momentum, dampening, weight_decay, nesterov };
                    group.sgd(&sgd, skip)?;
                }
            }
            Rule::AdamW(adam) => {
                let step = self.count_update(skip)?;
                for group in &self.groups {
                    let adamw = adam.with(learning_rate, group.weight_decay);
                    group.adamw(&refs(&group.parameters), &adamw, &step, skip)?;
                }
            }
            Rule::Lars { momentum, trust_coefficient } => {
                self.lars(learning_rate, momentum, trust_coefficient, skip)?;
            }
            Rule::Lamb(adam) => self.lamb(learning_rate, adam, skip)?,
        }
        Ok(norm)
    }

    /// Scales the gradient down to the largest norm allowed; gives its norm before.
    fn clip(&self) -> Result<Option<Tensor>, Error> {
        let Some(largest) = self.clip_norm else { return Ok(None) };
        let norm = self.norms.square_sum(&self.gradients)?.f_sqrt()?;
        let factor = norm.f_add_scalar(CLIP_EPSILON)?.f_reciprocal()?.f_mul_scalar(largest)?;
        // Where that costs no wait, gradients that stay as they are need not be read and written.
        if factor.device() != Device::Cpu || factor.f_double_value(&[0])? < 1.0 {
            let factor = factor.f_clamp_max(1.0)?.f_to_kind(Kind::Float)?;
            for gradient in self.groups.iter().flat_map(|group| &group.gradients) {
                let _ = gradient.shallow_clone().f_mul_(&factor)?;
            }
        }
        Ok(Some(norm))
    }

    /// Number of the update that now begins, from 1 on; `[1]` on the device. One that is left out does not count.
    fn count_update(&self, skip: Option<&Tensor>) -> Result<Tensor, Error> {
        let mut updates = self.updates.as_ref().map(Tensor::shallow_clone).ok_or_else(|| {
            Error::Other("this rule needs the number of an update, and nobody counts them".into())
        })?;
        let _ = updates.f_add_scalar_(1.0)?;
        if let Some(skip) = skip {
            let _ = updates.f_sub_(skip)?;
        }
        Ok(updates)
    }
}

impl Adam {
    fn with(self, learning_rate: f64, weight_decay: f64) -> AdamW {
        AdamW { learning_rate, betas: self.betas, epsilon: self.epsilon, weight_decay }
    }
}

impl Group {
    fn sgd(&self, sgd: &Sgd, skip: Option<&Tensor>) -> Result<(), Error> {
        // A first step with its own rule differs only by dampening (PyTorch's SGD); momentum starts from
        // zero here.
        let first_step = false;
        let [momentum] = self.memory.as_slice() else { return Err(wrong_memory(1, self.memory.len())) };
        let (parameters, gradients) = (refs(&self.parameters), refs(&self.gradients));
        Ok(match skip {
            Some(skip) => fused_sgd_unless(skip, &parameters, &gradients, &refs(momentum), sgd),
            None => fused_sgd(&parameters, &gradients, &refs(momentum), sgd, first_step),
        }?)
    }

    /// Makes update number `step` of `parameters`, by this group's gradients.
    fn adamw(
        &self,
        parameters: &[&Tensor],
        adamw: &AdamW,
        step: &Tensor,
        skip: Option<&Tensor>,
    ) -> Result<(), Error> {
        let [first, second] = self.memory.as_slice() else { return Err(wrong_memory(2, self.memory.len())) };
        let moments = [&*refs(first), &*refs(second)];
        fused_adamw(parameters, &refs(&self.gradients), moments, adamw, step, skip)?;
        Ok(())
    }
}

fn wrong_memory(expected: usize, found: usize) -> Error {
    Error::Other(format!("the update rule needs {expected} buffers, not {found}"))
}

/// Weights of convolutions and of the classifier: what decays and adapts under every rule.
fn is_weight(role: Role) -> bool {
    matches!(role, Role::ConvWeight | Role::LinearWeight)
}

/// The weight decay of parameters of a role.
fn decay_of(config: &OptimizerConfig) -> impl Fn(Role) -> f64 + Copy + use<> {
    let mut config = config.clone();
    config.write_defaults();
    let decay = config.weight_decay.unwrap_or_default();
    move |role| if config.decay_norm_and_bias == Some(true) || is_weight(role) { decay } else { 0.0 }
}

/// One group a decay, or with a layerwise rule one a segment; of what lies within `range`.
fn groups(
    config: &OptimizerConfig,
    rule: Rule,
    state: &State,
    [parameters, gradients]: [&Tensor; 2],
    range: &Range<usize>,
) -> Result<Vec<Group>, Error> {
    let decay_of = decay_of(config);
    let mut groups = Vec::new();
    let mut add = |ranges: &[Range<usize>], weight_decay: f64, segment: usize| -> Result<(), Error> {
        let cut = |part: &Range<usize>| part.start.max(range.start)..part.end.min(range.end);
        let parts = ranges.iter().map(cut).filter(|part| !part.is_empty());
        let own: Vec<_> = parts.flat_map(|part| state.optimizer.share().within(&part)).collect();
        let views = |flat: &Tensor| -> Result<Vec<Tensor>, Error> {
            own.iter().map(|(range, _)| narrow(flat, range)).collect()
        };
        let remembered = |buffer: &Tensor| -> Result<Vec<Tensor>, Error> {
            own.iter().map(|(range, offset)| narrow(buffer, &(*offset..offset + range.len()))).collect()
        };
        if !own.is_empty() {
            groups.push(Group {
                parameters: views(parameters)?,
                gradients: views(gradients)?,
                memory: state.optimizer.buffers().map(remembered).collect::<Result<_, Error>>()?,
                weight_decay,
                segment,
            });
        }
        Ok(())
    };
    if rule.is_layerwise() {
        for (segment, placed) in state.layout.segments.iter().enumerate() {
            add(&[state.layout.extent(segment)], decay_of(placed.role), segment)?;
        }
    } else {
        let (with, without) = state.layout.decay_ranges(|role| decay_of(role) != 0.0);
        add(&with, decay_of(Role::ConvWeight), 0)?;
        add(&without, 0.0, 0)?;
    }
    Ok(groups)
}

fn norms(state: &State) -> Norms {
    let segments = state.layout.segments.len();
    let mut pieces = Vec::new();
    for segment in 0..segments {
        let extent = state.layout.extent(segment);
        let own = state.optimizer.share().within(&extent).into_iter();
        pieces.extend(own.map(|(range, _)| Piece { segment, segment_begin: extent.start, range }));
    }
    Norms { pieces, segments, comm: state.optimizer.shards().map(|shards| shards.comm.clone()) }
}
