//! Where numbers that are not finite come from: the step that brought them, computed once more by each rank alone.

use super::Engine;
use crate::error::Error;
use crate::fault::FaultKind;
use crate::feed::Feed;
use crate::health::evidence::NotFinite;

impl Engine<'_> {
    /// Whether a step cannot be computed once more as it was. With weights that are updated early what was not finite is
    /// in them already, and ranks that normalise together would have to search together and find at the same place.
    fn hides_origins(&self) -> bool {
        self.updates_early || self.norm_ranks.is_some()
    }

    /// The first parameter whose gradient is not finite in the average of the last step, where the step
    /// [hides](Engine::hides_origins) what that comes from.
    pub(crate) fn not_finite_in_average(&self) -> Result<Option<String>, Error> {
        if !self.hides_origins() || self.state.optimizer.shards().is_some() {
            return Ok(None);
        }
        Ok(self.first_not_finite()?.map(|segment| self.segment_names(&[segment])))
    }

    /// The first segment whose gradient is not finite.
    fn first_not_finite(&self) -> Result<Option<usize>, Error> {
        let gradients = self.state.gradients()?;
        for (index, segment) in self.state.layout.segments.iter().enumerate() {
            let gradient = gradients.f_narrow(0, segment.offset as i64, segment.len as i64)?;
            if gradient.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Computes this rank's part of `step` once more, without the others, to find out what is not finite in it.
    /// `feed` yields the same micro batches again.
    pub(crate) fn find_not_finite(&mut self, step: u64, feed: &mut Feed) -> Result<Option<NotFinite>, Error> {
        if self.hides_origins() {
            return Ok(None);
        }
        self.enter(step, "search for what is not finite");
        for micro_batch in self.plan.batches.local_micro_batches() {
            let _ = self.state.exchange.f_zero_()?;
            let (images, targets) = self.load(&mut feed.next()?, step, micro_batch)?;
            let loss = self.forward(&images, &targets, step, micro_batch)?;
            let value = loss.f_double_value(&[])?;
            if !value.is_finite() {
                let what = format!("the loss became {value}");
                return Ok(Some(NotFinite { micro_batch, what, tensor: None }));
            }
            if self.fault_of(step) == Some(FaultKind::Nan) {
                self.spoil_gradient()?;
            }
            self.backward(&loss)?;
            if let Some(segment) = self.first_not_finite()? {
                let name = self.segment_names(&[segment]);
                let what = format!("the gradient of {name} became infinite or NaN");
                return Ok(Some(NotFinite { micro_batch, what, tensor: Some(name) }));
            }
        }
        Ok(None)
    }
}
