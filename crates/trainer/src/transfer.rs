//! Between the flat tensors of a run and a checkpoint's named ones. Reads and writes no files.

use std::collections::HashMap;
use std::path::Path;

use model::{Network, Statistics};
use tch::{Device, Tensor};
use torch_ext::flat;

use crate::checkpoint::{CheckpointError, NamedTensor};
use crate::error::Error;
use crate::state::State;

/// Which flat buffer a checkpoint's parameters mirror.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Parameters and running statistics.
    Weights,
    /// Momentum.
    Optimizer,
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

/// Copies a part in. Nothing is changed unless every name and shape fits; otherwise all that do not are
/// listed.
pub(crate) fn import(
    network: &Network,
    state: &State,
    part: Part,
    saved: &[NamedTensor],
    origin: &Path,
) -> Result<(), Error> {
    let places = tensors(network, state, part)?;
    let mut by_name: HashMap<&str, &NamedTensor> =
        saved.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut pairs = Vec::with_capacity(places.len());
    let mut misfits = Vec::new();
    for (name, place) in places {
        let shape: Vec<usize> = place.size().iter().map(|&side| side as usize).collect();
        match by_name.remove(name.as_str()) {
            None => misfits.push(format!("{name} {shape:?} is missing")),
            Some(tensor) if tensor.shape != shape => {
                misfits.push(format!("{name} is {:?}, expected {shape:?}", tensor.shape));
            }
            Some(tensor) => pairs.push((place, tensor)),
        }
    }
    let mut unknown: Vec<_> =
        by_name.keys().map(|name| format!("{name} is not part of the network")).collect();
    unknown.sort_unstable();
    misfits.extend(unknown);
    if !misfits.is_empty() {
        let shown = misfits.iter().take(8).cloned().collect::<Vec<_>>().join("; ");
        let more = misfits.len().saturating_sub(8);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        return Err(
            CheckpointError::Foreign { path: origin.to_owned(), reason: format!("{shown}{more}") }.into()
        );
    }
    let _no_grad = tch::no_grad_guard();
    for (mut place, tensor) in pairs {
        let shape: Vec<i64> = tensor.shape.iter().map(|&side| side as i64).collect();
        place.f_copy_(&Tensor::f_from_slice(&tensor.values)?.f_reshape(shape)?)?;
    }
    Ok(())
}

fn tensors(network: &Network, state: &State, part: Part) -> Result<Vec<(String, Tensor)>, Error> {
    let flat = match part {
        Part::Weights => &state.flat_parameters,
        Part::Optimizer => &state.momentum,
    };
    let mut named = Vec::new();
    for placed in &state.layout.segments {
        let declared = &network.parameters()[placed.parameter];
        named.push((declared.name.clone(), flat::view(flat, placed.offset as i64, &declared.shape)?));
    }
    if part == Part::Weights {
        for (norm, Statistics { mean, variance }) in network.norms().iter().zip(&state.running_views) {
            named.push((format!("{}.running_mean", norm.name), mean.shallow_clone()));
            named.push((format!("{}.running_var", norm.name), variance.shallow_clone()));
        }
    }
    Ok(named)
}
