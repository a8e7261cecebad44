//! Changes that a device leaves out by itself, so that the host need not know whether a step is any good before it queues
//! the next one.

use tch::{Device, Kind, Tensor};

use crate::error::Error;
use crate::flat::Tail;
use crate::loss_scale::ScaleOnDevice;
use crate::state::State;

/// Whether the averages of a step are used, decided where they lie.
pub(crate) struct DeviceDecision {
    /// `[1]`, true once a step has been left out, where that ends the run or leads it back: what has been queued behind
    /// that step is left out, too, and changes nothing of what the host looks into.
    held: Tensor,
    /// Whether it is used.
    holds: bool,
}

impl DeviceDecision {
    /// On `device`. With `holds`, steps are left out until [`DeviceDecision::release`] once one has been that no smaller
    /// loss scale helps.
    pub(crate) fn new(device: Device, holds: bool) -> Result<Self, Error> {
        Ok(DeviceDecision { held: Tensor::f_zeros([1], (Kind::Bool, device))?, holds })
    }

    /// `[1]`, fp32: 1 where the averages in `state`, of a loss times `loss_scale`, are not to be used, since one is
    /// infinite or NaN or a rank failed; else 0.
    pub(crate) fn skip(&self, state: &State, loss_scale: Option<&ScaleOnDevice>) -> Result<Tensor, Error> {
        let not_finite = state.tail(Tail::NotFinite)?.f_gt(0.0)?;
        let failed = state.tail(Tail::Failed)?.f_gt(0.0)?;
        let mut skip = not_finite.f_logical_or(&failed)?;
        if self.holds {
            let for_good = match loss_scale {
                None => skip.shallow_clone(),
                Some(scale) => {
                    not_finite.f_logical_and(&scale.can_shrink()?.f_logical_not()?)?.f_logical_or(&failed)?
                }
            };
            let mut held = self.held.shallow_clone();
            let _ = held.f_logical_or_(&for_good)?;
            skip = skip.f_logical_or(&held)?;
        }
        Ok(skip.f_to_kind(Kind::Float)?)
    }

    /// The run goes on from elsewhere.
    pub(crate) fn release(&self) -> Result<(), Error> {
        let _ = self.held.shallow_clone().f_zero_()?;
        Ok(())
    }
}

/// Changes `tensor` in place, unless `skip`, `[1]` on its device, is 1.
pub(crate) fn change_unless(
    skip: Option<&Tensor>,
    tensor: &Tensor,
    change: impl FnOnce(&mut Tensor) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut place = tensor.shallow_clone();
    let Some(skip) = skip else { return change(&mut place) };
    let mut changed = place.f_empty_like()?;
    changed.f_copy_(&place)?;
    change(&mut changed)?;
    // What is not a number is not taken, where a product with zero would keep it.
    let chosen = place.f_where_self(&skip.f_gt(0.0)?, &changed)?;
    Ok(place.f_copy_(&chosen)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LossScaleConfig;
    use crate::loss_scale::LossScale;

    #[test]
    fn a_change_is_left_out_whatever_it_would_have_been() {
        let tensor = Tensor::from_slice(&[1.0_f32, 2.0]);
        let change = |skip: Option<f32>, factor: f64| {
            let skip = skip.map(|skip| Tensor::from_slice(&[skip]));
            let multiply = |tensor: &mut Tensor| {
                let _ = tensor.f_mul_scalar_(factor)?;
                Ok(())
            };
            change_unless(skip.as_ref(), &tensor, multiply).unwrap();
            Vec::<f32>::try_from(&tensor).unwrap()
        };
        assert_eq!(change(Some(1.0), f64::NAN), [1.0, 2.0]);
        assert_eq!(change(Some(0.0), 2.0), [2.0, 4.0]);
        assert_eq!(change(None, 0.5), [1.0, 2.0]);
    }

    #[test]
    fn once_a_step_is_left_out_later_ones_are_until_it_is_released_if_it_holds() {
        let network = model::Network::new(&"wrn-10-1".parse().unwrap(), &model::Options::default()).unwrap();
        let state = State::new(&network, 0, Device::Cpu, 1).unwrap();
        for holds in [true, false] {
            let decision = DeviceDecision::new(Device::Cpu, holds).unwrap();
            let skip = |tail: Tail, count: f64| {
                let _ = state.exchange.shallow_clone().zero_();
                let _ = state.tail(tail).unwrap().fill_(count);
                decision.skip(&state, None).unwrap().double_value(&[0])
            };
            assert_eq!(skip(Tail::Loss, 3.0), 0.0);
            assert_eq!(skip(Tail::Failed, 0.25), 1.0);
            assert_eq!(skip(Tail::Loss, 3.0), f64::from(u8::from(holds)));
            decision.release().unwrap();
            assert_eq!(skip(Tail::Stop, 1.0), 0.0);
            assert_eq!(skip(Tail::NotFinite, 2.0), 1.0);
        }
    }

    #[test]
    fn what_a_smaller_loss_scale_helps_does_not_hold_later_steps() {
        let network = model::Network::new(&"wrn-10-1".parse().unwrap(), &model::Options::default()).unwrap();
        let state = State::new(&network, 0, Device::Cpu, 1).unwrap();
        let decision = DeviceDecision::new(Device::Cpu, true).unwrap();
        let config = LossScaleConfig { initial: 2.0, ..LossScaleConfig::default() };
        let scale = ScaleOnDevice::new(Device::Cpu).unwrap();
        scale.set(&LossScale::new(&config)).unwrap();
        let mut step = |entry: Tail| {
            let _ = state.exchange.shallow_clone().zero_();
            let _ = state.tail(entry).unwrap().fill_(1.0);
            let skip = decision.skip(&state, Some(&scale)).unwrap();
            scale.step(&config, &skip).unwrap();
            skip.double_value(&[0])
        };
        // The scale falls to 1, from where it cannot fall.
        assert_eq!([Tail::NotFinite, Tail::Loss].map(&mut step), [1.0, 0.0]);
        assert_eq!([Tail::NotFinite, Tail::Loss].map(&mut step), [1.0, 1.0]);
        decision.release().unwrap();
        scale.set(&LossScale::new(&config)).unwrap();
        let mut failed = |entry: Tail| {
            let _ = state.exchange.shallow_clone().zero_();
            let _ = state.tail(entry).unwrap().fill_(1.0);
            decision.skip(&state, Some(&scale)).unwrap().double_value(&[0])
        };
        assert_eq!([Tail::Failed, Tail::Loss].map(&mut failed), [1.0, 1.0]);
    }
}
