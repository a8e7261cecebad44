//! Between the flat tensors of a run and a checkpoint's named ones. Reads and writes no files.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use model::{Network, Role, Statistics};
use tch::{Device, Tensor};
use torch_ext::flat;

use crate::checkpoint::{CheckpointError, NamedTensor};
use crate::error::Error;
use crate::state::State;
use crate::weights::fit;

/// Which flat buffer a checkpoint's parameters mirror.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Parameters and running statistics.
    Weights,
    /// Momentum.
    Optimizer,
    /// Averaged parameters and running statistics, under the names of the weights; nothing where none are averaged.
    Averaged,
}

/// Copies a part out, by name, contiguous in logical order.
pub(crate) fn export(network: &Network, state: &State, part: Part) -> Result<Vec<NamedTensor>, Error> {
    tensors(network, state, part)?
        .into_iter()
        .map(|(name, tensor)| {
            let host = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
            let mut values = vec![0.0; host.numel()];
            host.f_copy_data(&mut values, host.numel())?;
            let shape = tensor.size().iter().map(|&side| side as usize).collect();
            Ok(NamedTensor { name, shape, values })
        })
        .collect()
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
    let (flat, running) = match (part, &state.averaged) {
        (Part::Weights, _) => (&state.flat_parameters, Some(&state.running_views)),
        (Part::Optimizer, _) => (&state.momentum, None),
        (Part::Averaged, Some(averaged)) => (&averaged.parameters, Some(&averaged.running_views)),
        (Part::Averaged, None) => return Ok(Vec::new()),
    };
    let mut named = Vec::new();
    for placed in &state.layout.segments {
        let declared = &network.parameters()[placed.parameter];
        named.push((declared.name.clone(), flat::view(flat, placed.offset as i64, &declared.shape)?));
    }
    if let Some(running) = running {
        for (norm, Statistics { mean, variance }) in network.norms().iter().zip(running) {
            named.push((format!("{}.running_mean", norm.name), mean.shallow_clone()));
            named.push((format!("{}.running_var", norm.name), variance.shallow_clone()));
        }
    }
    Ok(named)
}
