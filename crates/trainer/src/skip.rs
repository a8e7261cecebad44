//! Changes that a device leaves out by itself, so that the host need not know whether a step is any good before it queues
//! the next one.

use tch::{Device, Kind, Tensor};

use crate::error::Error;
use crate::flat::Tail;
use crate::state::State;

/// Whether the averages of a step are used, decided where they lie.
pub(crate) struct DeviceDecision {
    /// `[1]`, 1 once a step has been left out, where that ends the run or leads it back: what has been queued behind that
    /// step is left out, too, and changes nothing of what the host looks into.
    held: Tensor,
    /// Whether it is used.
    holds: bool,
}

impl DeviceDecision {
    /// On `device`. With `holds`, steps are left out until [`DeviceDecision::release`] once one has been.
    pub(crate) fn new(device: Device, holds: bool) -> Result<Self, Error> {
        Ok(DeviceDecision { held: Tensor::f_zeros([1], (Kind::Float, device))?, holds })
    }

    /// `[1]`: 1 where the averages in `state` are not to be used, since one is infinite or NaN or a rank failed; else 0.
    pub(crate) fn skip(&self, state: &State) -> Result<Tensor, Error> {
        let reasons = state.tail(Tail::NotFinite)?.f_add(&state.tail(Tail::Failed)?)?;
        let skip = reasons.f_gt(0.0)?.f_to_kind(Kind::Float)?;
        if !self.holds {
            return Ok(skip);
        }
        let held = self.held.f_maximum(&skip)?;
        self.held.shallow_clone().f_copy_(&held)?;
        Ok(held)
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
        let state = State::new(&network, 0, Device::Cpu).unwrap();
        for holds in [true, false] {
            let decision = DeviceDecision::new(Device::Cpu, holds).unwrap();
            let skip = |tail: Tail, count: f64| {
                let _ = state.exchange.shallow_clone().zero_();
                let _ = state.tail(tail).unwrap().fill_(count);
                decision.skip(&state).unwrap().double_value(&[0])
            };
            assert_eq!(skip(Tail::Loss, 3.0), 0.0);
            assert_eq!(skip(Tail::Failed, 0.25), 1.0);
            assert_eq!(skip(Tail::Loss, 3.0), f64::from(u8::from(holds)));
            decision.release().unwrap();
            assert_eq!(skip(Tail::Stop, 1.0), 0.0);
            assert_eq!(skip(Tail::NotFinite, 2.0), 1.0);
        }
    }
}
