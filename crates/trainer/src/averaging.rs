//! The exponential moving average of the weights (`train.averaging`), a second set of weights that is evaluated and
//! saved beside the one that is trained. Batch norm's running statistics are averaged in the same way, as torchvision's
//! references do. Flat memory like the weights themselves; a pure function of the step, so no counter is kept.
//!
//! Rule of `torch.optim.swa_utils` with `get_ema_multi_avg_fn`: `average += (1 - decay) * (weights - average)`.

use model::{Network, Statistics};
use tch::Tensor;
use torch_ext::flat;

use crate::config::{AveragingConfig, ConfigError, LoadedConfig};
use crate::error::Error;
use crate::flat::FlatLayout;
use crate::skip::change_unless;

/// Refuses values that make no sense.
pub(crate) fn check(loaded: &LoadedConfig) -> Result<(), ConfigError> {
    let Some(AveragingConfig { warmup_epochs, .. }) = loaded.config.train.averaging else {
        return Ok(());
    };
    let error = |key: &str, message: String| Err(loaded.error(&format!("train.averaging.{key}"), message));
    let epochs = f64::from(loaded.config.train.epochs);
    if !(0.0..=epochs).contains(&warmup_epochs) {
        return error("warmup_epochs", format!("{warmup_epochs} is outside 0 to train.epochs ({epochs})"));
    }
    Ok(())
}

/// When the average moves, and how far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rule {
    decay: f64,
    every_steps: u64,
    warmup_steps: u64,
}

/// What an update does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Move {
    Stay,
    Copy,
    /// By this share of the way to the weights.
    Towards(f64),
}

impl Rule {
    pub(crate) fn new(config: &AveragingConfig, steps_per_epoch: u64) -> Self {
        Rule {
            decay: config.decay,
            every_steps: config.every_steps.into(),
            warmup_steps: (config.warmup_epochs * steps_per_epoch as f64).round() as u64,
        }
    }

    /// After `completed` steps of the whole run. Updates of the warm-up copy, and so does the first one after it.
    fn after(&self, completed: u64) -> Move {
        match completed {
            _ if !completed.is_multiple_of(self.every_steps) => Move::Stay,
            _ if completed <= self.warmup_steps + self.every_steps => Move::Copy,
            _ => Move::Towards(1.0 - self.decay),
        }
    }
}

/// The averaged weights and statistics.
pub(crate) struct Averaged {
    rule: Rule,
    /// As [`State::flat_parameters`](crate::state::State::flat_parameters).
    pub(crate) parameters: Tensor,
    /// As [`State::running_statistics`](crate::state::State::running_statistics).
    pub(crate) running_statistics: Tensor,
    /// In the network's forward order.
    pub(crate) views: Vec<Tensor>,
    pub(crate) running_views: Vec<Statistics>,
}

impl Averaged {
    /// Memory for the average of these flat buffers, with their present content.
    pub(crate) fn new(
        rule: Rule,
        network: &Network,
        layout: &FlatLayout,
        parameters: &Tensor,
        running_statistics: &Tensor,
    ) -> Result<Self, Error> {
        let copy = |tensor: &Tensor| -> Result<Tensor, Error> {
            let mut copy = tensor.f_detach()?.f_zeros_like()?;
            copy.f_copy_(tensor)?;
            Ok(copy)
        };
        let (parameters, running_statistics) = (copy(parameters)?, copy(running_statistics)?);
        let mut segments: Vec<_> = layout.segments.iter().collect();
        segments.sort_by_key(|placed| placed.parameter);
        let views = segments
            .into_iter()
            .map(|placed| {
                let shape = &network.parameters()[placed.parameter].shape;
                Ok(flat::view(&parameters, placed.offset as i64, shape)?)
            })
            .collect::<Result<_, Error>>()?;
        let part = |range: std::ops::Range<usize>| {
            running_statistics.f_narrow(0, range.start as i64, range.len() as i64)
        };
        let running_views = layout
            .statistics()
            .map(|(mean, variance)| Ok(Statistics { mean: part(mean)?, variance: part(variance)? }))
            .collect::<Result<_, Error>>()?;
        Ok(Averaged { rule, parameters, running_statistics, views, running_views })
    }

    /// The average of a run that has not begun.
    pub(crate) fn begin(&self, parameters: &Tensor, running_statistics: &Tensor) -> Result<(), Error> {
        self.apply(Move::Copy, parameters, running_statistics, None)
    }

    /// Whether [`Averaged::update`] after `completed` steps of the whole run changes anything.
    pub(crate) fn moves_after(&self, completed: u64) -> bool {
        self.rule.after(completed) != Move::Stay
    }

    /// Takes the weights in as they are after `completed` steps of the whole run; on a device that leaves the last one out,
    /// where `skip`, `[1]`, is 1, it leaves this out, too.
    pub(crate) fn update(
        &self,
        completed: u64,
        parameters: &Tensor,
        running_statistics: &Tensor,
        skip: Option<&Tensor>,
    ) -> Result<(), Error> {
        self.apply(self.rule.after(completed), parameters, running_statistics, skip)
    }

    fn apply(
        &self,
        by: Move,
        parameters: &Tensor,
        running_statistics: &Tensor,
        skip: Option<&Tensor>,
    ) -> Result<(), Error> {
        if by == Move::Stay {
            return Ok(());
        }
        let _no_grad = tch::no_grad_guard();
        for (average, now) in [(&self.parameters, parameters), (&self.running_statistics, running_statistics)]
        {
            change_unless(skip, average, |average| {
                match by {
                    Move::Stay => {}
                    Move::Copy => average.f_copy_(now)?,
                    Move::Towards(share) => drop(average.f_lerp_(now, share)?),
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_moves_when_the_rule_says_so_and_begins_as_a_copy() {
        use Move::{Copy, Stay, Towards};
        let moves = |every_steps, warmup_epochs| {
            let config = AveragingConfig { decay: 0.75, every_steps, warmup_epochs };
            let rule = Rule::new(&config, 4);
            (1..=8).map(|completed| rule.after(completed)).collect::<Vec<_>>()
        };
        let on = Towards(0.25);
        assert_eq!(moves(1, 0.0), [Copy, on, on, on, on, on, on, on]);
        assert_eq!(moves(3, 0.0), [Stay, Stay, Copy, Stay, Stay, on, Stay, Stay]);
        assert_eq!(moves(2, 1.0), [Stay, Copy, Stay, Copy, Stay, Copy, Stay, on]);
        assert_eq!(moves(1, 0.5), [Copy, Copy, Copy, on, on, on, on, on]);
    }
}
