//! Between the flat tensors of a run and a checkpoint's named ones. Reads and writes no files.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use model::{Network, Role, Statistics};
use tch::{Device, Tensor};
use torch_ext::flat;

pub(crate) use crate::checkpoint::Part;
use crate::checkpoint::{CheckpointError, LazyTensors, NamedTensor};
use crate::error::Error;
use crate::state::State;
use crate::weights::fit;

/// Copies a part to host memory, where training cannot change it any more, as fast as memory allows. What is left
/// to do, to bring it into logical order, is for the thread that writes.
pub(crate) fn snapshot(network: &Network, state: &State, part: Part) -> Result<LazyTensors, Error> {
    let _no_grad = tch::no_grad_guard();
    let copies = (tensors(network, state, part)?.into_iter())
        .map(|(name, tensor)| {
            let tensor = tensor.f_detach()?;
            let copy = match tensor.device() {
                Device::Cpu => {
                    let mut copy = tensor.f_empty_like()?;
                    copy.f_copy_(&tensor)?;
                    copy
                }
                _ => tensor.f_to_device(Device::Cpu)?,
            };
            Ok((name, copy))
        })
        .collect::<Result<Vec<(String, Tensor)>, Error>>()?;
    Ok(Box::new(move || {
        let named = copies.into_iter().map(|(name, tensor)| named(name, &tensor));
        named.collect::<Result<_, Error>>().map_err(|error| CheckpointError::Tensors(error.to_string()))
    }))
}

/// Contiguous in logical order.
fn named(name: String, tensor: &Tensor) -> Result<NamedTensor, Error> {
    let mut values = vec![0.0; tensor.numel()];
    tensor.f_contiguous()?.f_copy_data(&mut values, tensor.numel())?;
    let shape = tensor.size().iter().map(|&side| side as usize).collect();
    Ok(NamedTensor { name, shape, values })
}

/// What becomes of the last layer, whose size is the number of classes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Classifier {
    /// Copied in as everything else.
    Saved,
    /// Stays as it is.
    Fresh,
}

/// Copies a part in. Nothing is changed unless every name and shape fits; otherwise all that do not are
/// listed.
pub(crate) fn import(
    network: &Network,
    state: &State,
    part: Part,
    classifier: Classifier,
    saved: &[NamedTensor],
    origin: &Path,
) -> Result<(), Error> {
    let is_classifier: HashSet<&str> = (network.parameters().iter())
        .filter(|parameter| matches!(parameter.role, Role::LinearWeight | Role::LinearBias))
        .map(|parameter| parameter.name.as_str())
        .collect();
    if part == Part::Optimizer {
        state.optimizer.make_room()?;
    }
    let wanted = |name: &str| classifier == Classifier::Saved || !is_classifier.contains(name);
    let places: Vec<_> = (tensors(network, state, part)?.into_iter())
        .filter(|(name, _)| wanted(name))
        .map(|(name, place)| {
            let shape: Vec<usize> = place.size().iter().map(|&side| side as usize).collect();
            (name, shape, place)
        })
        .collect();
    let saved = || saved.iter().filter(|tensor| wanted(&tensor.name));
    let misfits = fit::misfits(
        places.iter().map(|(name, shape, _)| (name.as_str(), &**shape)),
        saved().map(|tensor| (tensor.name.as_str(), &*tensor.shape)),
    );
    if !misfits.is_empty() {
        let (path, reason) = (origin.to_owned(), misfits.join("; "));
        return Err(CheckpointError::Foreign { path, reason }.into());
    }
    let by_name: HashMap<&str, &NamedTensor> = saved().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let _no_grad = tch::no_grad_guard();
    for (name, _, mut place) in places {
        if let Some(tensor) = by_name.get(name.as_str()) {
            place.f_copy_(&Tensor::f_from_slice(&tensor.values)?.f_reshape(place.size())?)?;
        }
    }
    Ok(())
}

fn tensors(network: &Network, state: &State, part: Part) -> Result<Vec<(String, Tensor)>, Error> {
    let weights = |flat: &Tensor| vec![("", flat.shallow_clone())];
    let (flats, running) = match (part, &state.averaged) {
        (Part::Weights, _) => (weights(&state.flat_parameters), Some(&state.running_views)),
        (Part::Optimizer, _) => (state.optimizer.whole()?, None),
        (Part::Averaged, Some(averaged)) => (weights(&averaged.parameters), Some(&averaged.running_views)),
        (Part::Averaged, None) => (Vec::new(), None),
    };
    let mut named = Vec::new();
    for (suffix, flat) in &flats {
        for placed in &state.layout.segments {
            let declared = &network.parameters()[placed.parameter];
            let view = flat::view(flat, placed.offset as i64, &declared.shape)?;
            named.push((format!("{}{suffix}", declared.name), view));
        }
    }
    if let (Part::Optimizer, Some(updates)) = (part, state.optimizer.updates()) {
        named.push(("step".into(), updates.f_view([0_i64; 0].as_slice())?));
    }
    if let Some(running) = running {
        for (norm, Statistics { mean, variance }) in network.norms().iter().zip(running) {
            named.push((format!("{}.running_mean", norm.name), mean.shallow_clone()));
            named.push((format!("{}.running_var", norm.name), variance.shallow_clone()));
        }
    }
    Ok(named)
}
