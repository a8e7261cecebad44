//! `wrn-dist model export`: a checkpoint's weights as another program's file.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use model::{Architecture, Content, ModelError, Naming, Network, Options};

use super::{NumberFormat, file, fit};
use crate::checkpoint::{self, CheckpointError, NamedTensor, Part, RunState};
use crate::error::Error;
use crate::telemetry::print_warning;

/// What `wrn-dist model export` was asked to do.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// A checkpoint, its file of weights, or a run's folder for its latest checkpoint.
    pub input: PathBuf,
    /// The file to write.
    pub output: PathBuf,
    /// Whose names to write; the first that the network has when absent.
    pub naming: Option<Naming>,
    /// How to store numbers.
    pub format: NumberFormat,
}

/// Writes the weights of a checkpoint as safetensors; says in a sentence what was done.
///
/// # Errors
/// When the checkpoint is damaged or has no classifier, when the naming has no such network, or when a number
/// is beyond the range of the format. Then nothing is written.
pub fn export_weights(options: &ExportOptions) -> Result<String, Error> {
    let ExportOptions { input, output, format, .. } = options;
    checkpoint::refuse_existing(output)?;
    if let Some(warning) = checkpoint::pointer_warning(input) {
        print_warning(&warning);
    }
    let (_, state) = checkpoint::load_state(input)?;
    super::require_classifier(&state, input)?;
    let damaged = |reason: String| CheckpointError::Damaged { path: input.clone(), reason };
    let no_network = |error: ModelError| damaged(format!("state.json describes no network: {error}"));
    let architecture: Architecture = state.arch.parse().map_err(no_network)?;
    let of_network = options_of(&state)
        .map_err(|error| damaged(format!("state.json describes no network: model.projection: {error}")))?;
    // But for the channels of the images.
    let parameters =
        network_of(&architecture, of_network.clone(), &[]).map_err(no_network)?.parameter_count();
    let mut saved = checkpoint::load(input, &[Part::Weights], parameters)?;
    let weights = saved.parts.remove(&Part::Weights).unwrap_or_default();
    let network = network_of(&architecture, of_network, &weights).map_err(no_network)?;
    let naming = match options.naming {
        Some(naming) => {
            super::require_naming(&network, &architecture, naming)?;
            naming
        }
        None => network.namings().first().copied().unwrap_or(Naming::Own),
    };
    let own: Vec<(String, Vec<usize>)> = (network.named_tensors(Naming::Own).into_iter())
        .filter(|tensor| tensor.content != Content::BatchCount)
        .map(|tensor| (tensor.own_name, tensor.shape.iter().map(|&side| side as usize).collect()))
        .collect();
    let misfits = fit::misfits(
        own.iter().map(|(name, shape)| (name.as_str(), &**shape)),
        weights.iter().map(|tensor| (tensor.name.as_str(), &*tensor.shape)),
    );
    if !misfits.is_empty() {
        return Err(damaged(misfits.join("; ")).into());
    }
    let mut weights: BTreeMap<String, Vec<f32>> =
        weights.into_iter().map(|tensor| (tensor.name, tensor.values)).collect();
    let mut tensors = Vec::new();
    let mut counters = Vec::new();
    for tensor in network.named_tensors(naming) {
        match weights.remove(&tensor.own_name) {
            Some(values) => tensors.push(NamedTensor {
                name: tensor.name,
                shape: tensor.shape.iter().map(|&side| side as usize).collect(),
                values,
            }),
            None => counters.push((tensor.name, state.step as i64)),
        }
    }
    // Readers in the way of Hugging Face look for this key.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = file::encode(output, &tensors, &counters, *format, metadata)?;
    checkpoint::replace_file(output, &bytes)?;
    Ok(format!(
        "{}: {} tensors of {architecture}, {} classes, with names of {naming}\n",
        output.display(),
        tensors.len(),
        network.classes()
    ))
}

/// What a checkpoint's state says of its network, beside the architecture.
fn options_of(state: &RunState) -> Result<Options, serde_yaml::Error> {
    let options = Options { classes: state.classes, ..Options::default() };
    match state.meaning.get("model.projection") {
        Some(projection) => Ok(Options { projection: serde_yaml::from_str(projection)?, ..options }),
        None => Ok(options),
    }
}

/// The network whose weights a checkpoint holds.
fn network_of(
    architecture: &Architecture,
    mut options: Options,
    weights: &[NamedTensor],
) -> Result<Network, ModelError> {
    // Only the first convolution knows the channels of the images.
    let first = Network::new(architecture, &options)?.parameters()[0].name.clone();
    let shape = weights.iter().find(|tensor| tensor.name == first).map(|tensor| tensor.shape.as_slice());
    if let Some(&[_, channels, ..]) = shape {
        options.in_channels = u32::try_from(channels).unwrap_or(u32::MAX);
    }
    Network::new(architecture, &options)
}
