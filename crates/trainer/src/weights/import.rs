//! `wrn-dist model import`: another program's file becomes a checkpoint.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::{Architecture, Content, Naming, Network, Options, Projection};
use safetensors::tensor::TensorView;

use super::{WeightsError, file, fit};
use crate::checkpoint::{self, Imported, NamedTensor, RunState};
use crate::error::Error;

/// What `wrn-dist model import` was asked to do.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Architecture string of the network that the weights are of.
    pub architecture: String,
    /// Number of classes; the file's own when absent.
    pub classes: Option<u32>,
    /// Channels of the network's images.
    pub channels: u32,
    /// Whose names the file has; found out when absent.
    pub naming: Option<Naming>,
    /// Leave the classifier out, so that training begins with a new one.
    pub new_classifier: bool,
    /// The file, safetensors.
    pub input: PathBuf,
    /// The folder of the new checkpoint.
    pub output: PathBuf,
}

/// What a name that every tensor has before its own means: the network was wrapped for several GPUs.
const WRAPPER: &str = "module.";

/// Reads a file of weights and writes a checkpoint without optimizer; says in a sentence what was done.
///
/// # Errors
/// When the file is no safetensors, lacks a tensor, has one of another shape or one too many, or holds numbers
/// that are not finite. Then nothing is written.
pub fn import_weights(options: &ImportOptions) -> Result<String, Error> {
    let ImportOptions { input, output, new_classifier, .. } = options;
    let architecture: Architecture = options.architecture.parse()?;
    checkpoint::refuse_existing(output)?;
    let network = |classes, projection| {
        let options = Options { classes, in_channels: options.channels, projection, ..Options::default() };
        Network::new(&architecture, &options)
    };
    let usual_classes = options.classes.unwrap_or_else(|| architecture.usual_classes());
    let usual = network(usual_classes, Projection::default())?;
    let bytes = file::read(input, usual.parameter_count())?;
    let parsed = file::parse(input, &bytes)?;
    let found = Found::new(parsed.iter());

    let classes = found.classes(&usual).unwrap_or(usual.classes());
    if let Some(expected) = options.classes.filter(|expected| *expected != classes && !new_classifier) {
        return Err(WeightsError::Classes { path: input.clone(), found: classes, expected }.into());
    }
    let fitted = |projection| -> Result<_, Error> {
        let network = network(classes, projection)?;
        let naming = match options.naming {
            Some(naming) => {
                super::require_naming(&network, &architecture, naming)?;
                naming
            }
            None => found.closest_naming(&network, *new_classifier),
        };
        let misfits = found.misfits(&network, naming, *new_classifier);
        Ok((network, naming, misfits, projection))
    };
    let mut fit = fitted(Projection::default())?;
    if !fit.2.is_empty() {
        // A network of width 1 may have a projection in its first group, too.
        fit = Some(fitted(Projection::FirstBlock)?).filter(|other| other.2.is_empty()).unwrap_or(fit);
    }
    let (network, naming, misfits, projection) = fit;
    if !misfits.is_empty() {
        let network = format!("{architecture} with {classes} classes and the names of {naming}");
        return Err(WeightsError::Misfit { path: input.clone(), network, misfits }.into());
    }
    let weights = found.weights(&network, naming, *new_classifier, input)?;
    let state = RunState {
        format: checkpoint::FORMAT,
        arch: architecture.to_string(),
        classes: options.classes.unwrap_or(classes),
        meaning: projection_of_config(projection)?,
        imported: Some(Imported {
            file: input.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            sha256: checkpoint::checksum(&bytes),
            naming: naming.to_string(),
            classifier: !new_classifier,
        }),
        ..RunState::default()
    };
    let tensors = weights.len();
    checkpoint::save_weights(output, &state, weights)?;
    Ok(format!(
        "{}: {} tensors of {architecture}, {}, from names of {naming}\n",
        output.display(),
        tensors,
        if *new_classifier { "without classifier".into() } else { format!("{classes} classes") },
    ))
}

/// As `Config::meaning` would have it.
fn projection_of_config(projection: Projection) -> Result<BTreeMap<String, String>, Error> {
    let value = serde_yaml::to_string(&projection).map_err(|error| Error::Other(error.to_string()))?;
    Ok([("model.projection".to_owned(), value.trim_end().to_owned())].into())
}

/// The tensors of a file under their current names; counters of batches are left out.
struct Found<'a> {
    tensors: Vec<(String, TensorView<'a>)>,
}

impl<'a> Found<'a> {
    fn new(tensors: impl Iterator<Item = (&'a str, TensorView<'a>)>) -> Self {
        let tensors: Vec<_> = tensors.collect();
        let wrapped = tensors.iter().all(|(name, _)| name.starts_with(WRAPPER));
        let unwrapped = |name: &'a str| if wrapped { &name[WRAPPER.len()..] } else { name };
        let tensors = tensors
            .into_iter()
            .filter_map(|(name, view)| Some((model::current_name(unwrapped(name))?.into_owned(), view)))
            .collect();
        Found { tensors }
    }

    fn get(&self, name: &str) -> Option<&TensorView<'a>> {
        self.tensors.iter().find(|(of, _)| of == name).map(|(_, view)| view)
    }

    /// Number of classes of the file's classifier, if it has one.
    fn classes(&self, network: &Network) -> Option<u32> {
        let classifier = network.parameters().iter().rfind(|parameter| {
            Content::Parameter(parameter.role).is_classifier() && parameter.shape.len() == 1
        })?;
        let &[classes] = self.get(&classifier.name)?.shape() else { return None };
        u32::try_from(classes).ok()
    }

    /// Expected tensors: names of the naming, our own names, and shapes of the naming.
    fn expected(network: &Network, naming: Naming, new_classifier: bool) -> Vec<Expected> {
        (network.named_tensors(naming).into_iter())
            .filter(|tensor| tensor.content != Content::BatchCount)
            .map(|tensor| Expected {
                shape: tensor.shape.iter().map(|&side| side as usize).collect(),
                wanted: !(new_classifier && tensor.content.is_classifier()),
                variance: tensor.content == Content::Statistic && tensor.own_name.ends_with(".running_var"),
                name: tensor.name,
                own_name: tensor.own_name,
            })
            .collect()
    }

    fn misfits(&self, network: &Network, naming: Naming, new_classifier: bool) -> Vec<String> {
        let expected = Self::expected(network, naming, new_classifier);
        let unwanted = |name: &str| expected.iter().any(|tensor| tensor.name == name && !tensor.wanted);
        let mut misfits = fit::misfits(
            expected
                .iter()
                .filter(|tensor| tensor.wanted)
                .map(|tensor| (tensor.name.as_str(), &*tensor.shape)),
            (self.tensors.iter())
                .filter(|(name, _)| !unwanted(name))
                .map(|(name, view)| (name.as_str(), view.shape())),
        );
        let formats = (self.tensors.iter())
            .filter_map(|(name, view)| Some(format!("{name} holds {}", file::check_format(view).err()?)));
        misfits.extend(formats);
        misfits
    }

    /// The naming that leaves the fewest misfits; the preferred one of several.
    fn closest_naming(&self, network: &Network, new_classifier: bool) -> Naming {
        let count = |naming: &Naming| self.misfits(network, *naming, new_classifier).len();
        network.namings().into_iter().min_by_key(count).unwrap_or(Naming::Own)
    }

    /// The wanted tensors under our own names and shapes.
    fn weights(
        &self,
        network: &Network,
        naming: Naming,
        new_classifier: bool,
        origin: &Path,
    ) -> Result<Vec<NamedTensor>, Error> {
        let mut own: BTreeMap<String, Vec<usize>> = (network.named_tensors(Naming::Own).into_iter())
            .map(|tensor| (tensor.own_name, tensor.shape.iter().map(|&side| side as usize).collect()))
            .collect();
        let mut weights = Vec::new();
        let mut reasons = Vec::new();
        for expected in
            Self::expected(network, naming, new_classifier).into_iter().filter(|tensor| tensor.wanted)
        {
            let (Some(view), Some(shape)) = (self.get(&expected.name), own.remove(&expected.own_name)) else {
                return Err(Error::Other(format!("{} was there a moment ago", expected.name)));
            };
            let values = file::values(view)?;
            if !values.iter().all(|value| value.is_finite()) {
                reasons.push(format!("{} has numbers that are not finite", expected.name));
            } else if expected.variance && values.iter().any(|&value| value < 0.0) {
                reasons.push(format!("{} has negative numbers, which no variance is", expected.name));
            }
            weights.push(NamedTensor { name: expected.own_name, shape, values });
        }
        if reasons.is_empty() {
            return Ok(weights);
        }
        Err(WeightsError::Numbers { path: origin.to_owned(), reasons }.into())
    }
}

struct Expected {
    name: String,
    own_name: String,
    shape: Vec<usize>,
    /// Not a classifier that is to be left out.
    wanted: bool,
    /// Never negative.
    variance: bool,
}
