//! What a run does when the numbers of a step go wrong: a gradient that is not finite, a loss that jumps. All ranks see
//! the same averages, so they come to the same decision.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Run;
use crate::checkpoint::{self, Checkpoint, Later, RunState};
use crate::config::{OnNan, OnSpike};
use crate::engine::StepOutcome;
use crate::error::Error;
use crate::health::evidence;
use crate::health::roll_back::{self, Found, RollBack};
use crate::loss_scale::LossScale;
use crate::telemetry::{MetricsFile, Record};
use crate::train::broadcast_state;
use crate::train::resume::{require_own, share, take_over, told_as_passed_over};

/// So many steps without an update, one after the other, will not be followed by a good one.
const MOST_SKIPPED: u64 = 16;

/// What helps against numbers that are not finite, since a run's own schedule stays as it is.
pub(super) const ADVICE: &str = "go on from the last checkpoint with train.on_nan: roll-back, which lowers the learning rate, or \
                                 begin another run (--out) with a lower schedule.rate or a longer warm-up";

/// How a step is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// As any other, or as one that changed nothing.
    Usual,
    /// Its loss jumped.
    Spike,
    /// The run stands at an earlier checkpoint now.
    RolledBack,
}

impl Run<'_> {
    /// Collective: decides about `step`, counted from 0, whose outcome is not in the run's position yet.
    pub(super) fn judge(
        &mut self,
        step: u64,
        learning_rate: f64,
        outcome: &StepOutcome,
    ) -> Result<Judgement, Error> {
        let scale_of_step = self.position.health.loss_scale;
        let scale = &mut self.position.health.loss_scale;
        let overflow = !outcome.updated && scale.is_some_and(|scale| scale.can_shrink());
        if let (Some(scale), Some(config)) = (scale, &self.plan.config.precision.loss_scale) {
            scale.step(config, outcome.updated);
        }
        let place = format!(
            "step {} (epoch {}, learning rate {learning_rate})",
            step + 1,
            step / self.plan.steps_per_epoch + 1
        );
        if !outcome.updated {
            let origins = &outcome.not_finite_ranks;
            return self.leave_out(step, learning_rate, &place, origins, overflow, scale_of_step);
        }
        self.position.health.skipped_in_a_row = 0;
        let config = &self.plan.config.train.loss_spike;
        let Some(spike) = self.position.health.losses.step(config, outcome.loss) else {
            return Ok(Judgement::Usual);
        };
        let sentence = format!(
            "{place}: its loss of {:.4} is far above the usual {:.4} (deviation {:.4}){}",
            spike.loss,
            spike.usual,
            spike.deviation,
            self.hosts
                .name_highest(&outcome.rank_losses)
                .map_or_else(String::new, |rank| format!(", highest on {rank}")),
        );
        match config.action {
            OnSpike::Ignore => return Ok(Judgement::Usual),
            OnSpike::Warn if spike.begins => self.progress.say(&sentence),
            OnSpike::Warn => {}
            OnSpike::RollBack => return self.roll_back(step, sentence),
        }
        Ok(Judgement::Spike)
    }

    /// Collective: a step whose averaged gradient is not finite is left out, or leads back to a checkpoint, or is the
    /// end of the run. `origins` are the ranks whose own gradient it is, where that is known. With `overflow` it is fp16's
    /// range that was left, which a smaller loss scale mends.
    fn leave_out(
        &mut self,
        step: u64,
        learning_rate: f64,
        place: &str,
        origins: &[usize],
        overflow: bool,
        scale_of_step: Option<LossScale>,
    ) -> Result<Judgement, Error> {
        self.position.epoch_skipped += 1;
        if overflow {
            return Ok(Judgement::Usual);
        }
        let skipped_in_a_row = &mut self.position.health.skipped_in_a_row;
        *skipped_in_a_row += 1;
        let named = self.hosts.name(origins);
        let not_finite = match &named {
            Some(ranks) => format!("its gradient is infinite or NaN on {ranks}"),
            None => "its gradient is infinite or NaN somewhere".into(),
        };
        let advice = match self.plan.config.train.on_nan {
            OnNan::RollBack => return self.roll_back(step, format!("{place}: {not_finite}")),
            OnNan::Skip if *skipped_in_a_row < MOST_SKIPPED => {
                self.progress.say(&format!("{place} is left out: {not_finite}"));
                return Ok(Judgement::Usual);
            }
            OnNan::Skip => format!("so many steps have been left out that the run is ended; {ADVICE}"),
            OnNan::Stop => format!("{ADVICE}; or go on with train.on_nan: skip, which leaves such steps out"),
        };
        self.engine.discard()?;
        let average = self.session.agree(self.engine.not_finite_in_average())?;
        // Where it comes from is known after another look at the same samples.
        self.engine.set_loss_scale(scale_of_step.as_ref())?;
        let found = self.feed(step).and_then(|mut feed| self.engine.find_not_finite(step, &mut feed));
        let what = found.as_ref().ok().and_then(Option::as_ref);
        let saved =
            evidence::save(self.session, self.plan, &self.dir, step, learning_rate, average.clone(), what)?;
        if let Some(path) = saved {
            self.progress.say(&format!("evidence: {}", path.display()));
        }
        let failure = |what: &str| Error::Other(format!("{what} at {place}; {advice}"));
        let found = found.and_then(|found| found.map_or(Ok(()), |found| Err(failure(&found.what))));
        self.session.agree(found)?;
        let error = failure(&match (average, origins, named) {
            (None, ..) => "the average over the ranks became infinite or NaN".into(),
            // The error is that rank's, and names it.
            (Some(name), [_], _) => format!("the gradient of {name} became infinite or NaN"),
            (Some(name), _, Some(ranks)) => {
                format!("the gradient of {name} became infinite or NaN on {ranks}")
            }
            (Some(name), _, None) => format!("the averaged gradient of {name} became infinite or NaN"),
        });
        let is_origin = origins.is_empty() || origins.contains(&self.session.topology().rank);
        self.session.agree(if is_origin { Err(error) } else { Ok(Judgement::Usual) })
    }

    /// Collective: goes back to an earlier checkpoint, with a lower learning rate from there.
    pub(super) fn roll_back(&mut self, step: u64, reason: String) -> Result<Judgement, Error> {
        let config = &self.plan.config.train.roll_back;
        let mut roll_backs = self.position.health.roll_backs.clone();
        if roll_backs.len() >= config.most as usize {
            let most = config.most;
            return self.session.agree(Err(Error::Other(format!(
                "{reason}; the run has gone back to an earlier checkpoint {most} times, which is train.roll_back.most"
            ))));
        }
        self.session.flight().enter(Some(step + 1), "roll-back");
        self.engine.discard()?;
        // What is being written may be what the run goes back to. If it is no good, that is one more reason.
        let _ = self.await_writer()?;
        self.engine.forget_fault();
        let rate_factor = self.position.health.rate_factor() * config.rate_factor;
        if !roll_back::lowers_the_rate(rate_factor) {
            return self.session.agree(Err(Error::Other(format!(
                "{reason}; one more way back would leave {rate_factor} of the learning rate (train.roll_back.rate_factor: {})",
                config.rate_factor
            ))));
        }
        let restored = if self.session.is_leader() {
            self.restore().map(Some).map_err(|error| Error::Other(format!("{reason}; {error}")))
        } else {
            Ok(None)
        };
        if let Some((path, position)) = self.session.agree(restored)? {
            self.saving.began_at(position.step, path);
            self.position = position;
        }
        self.position = share(self.session, &self.position)?;
        broadcast_state(self.session, &self.engine)?;
        let roll_back = RollBack { from_step: step + 1, to_step: self.position.step, reason, rate_factor };
        roll_backs.push(roll_back.clone());
        self.position.health.roll_backs = roll_backs;
        self.position.health.skipped_in_a_row = 0;
        self.epoch_images = 0;
        self.epoch_duration = Duration::ZERO;
        self.progress.say(&format!(
            "{}; back to the checkpoint of step {} with {rate_factor} times the scheduled learning rate ({} of at most {} \
             times)",
            roll_back.reason,
            roll_back.to_step,
            self.position.health.roll_backs.len(),
            config.most
        ));
        if self.metrics.is_some() {
            match MetricsFile::open(&self.dir.metrics(), self.position.epoch, self.position.step) {
                Ok(metrics) => self.metrics = Some(metrics),
                Err(error) => {
                    self.progress.warn(&format!("lines of steps that no longer count stay: {error}"))
                }
            }
        }
        self.record(Record::RollBack(roll_back));
        // The checkpoint must know of it, for a resume before the next one.
        self.saved = None;
        self.save()?;
        Ok(Judgement::RolledBack)
    }

    /// On rank 0: an earlier checkpoint's tensors in place of the present ones.
    fn restore(&self) -> Result<(PathBuf, RunState), Error> {
        let folder = self.dir.checkpoints();
        let check = |path: &Path, saved: &Checkpoint| require_own(self.plan, path, saved);
        let config = &self.plan.config.train.roll_back;
        let Found { path, checkpoint, passed_over, fewer } =
            roll_back::find(&folder, self.position.step, config, self.plan.network.parameter_count(), check)?;
        for warning in passed_over.iter().map(told_as_passed_over).chain(fewer) {
            self.progress.warn(&warning);
        }
        let position = take_over(self.plan, &self.engine, checkpoint, &path, self.position.versions.clone())?;
        checkpoint::drop_later(&folder, position.step, Later::Removed, self.saving.keep())?;
        Ok((path, position))
    }
}
