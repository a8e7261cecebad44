//! The tables of translation: which naming knows which family, and where its names and shapes differ from
//! ours.

use std::borrow::Cow;

use super::Naming;
use crate::spec::{Parameter, Role};

/// A family of networks, recognised by the names of its parameters.
#[derive(Debug, PartialEq)]
pub(super) struct Family {
    /// Name of its first parameter.
    stem: &'static str,
    /// A part of some parameter's name; empty where the stem says it all.
    part: &'static str,
    /// Who else has such networks.
    namings: &'static [Naming],
    /// Those of them that store the classifier as a convolution of 1x1.
    convolutional_classifier: &'static [Naming],
}

/// The first row that fits counts.
const FAMILIES: &[Family] = &[
    // The authors' networks, with batch norm before the convolutions; their code has no squeeze and excitation.
    family("conv0.weight", ".se.", &[], &[]),
    family("conv0.weight", "", &[Naming::WrnOfficial], &[]),
    // ResNets, with batch norm after the convolutions; torchvision has none with squeeze and excitation.
    family("conv1.weight", ".se.", &[Naming::Timm], &[]),
    family("conv1.weight", "", &[Naming::Torchvision, Naming::Timm], &[]),
    // DenseNets.
    family("features.conv0.weight", "", &[Naming::Torchvision, Naming::Timm], &[]),
    // Dual path networks.
    family("features.conv1_1.conv.weight", "", &[Naming::Timm], &[Naming::Timm]),
    // Any other.
    family("", "", &[], &[]),
];

const fn family(
    stem: &'static str,
    part: &'static str,
    namings: &'static [Naming],
    convolutional_classifier: &'static [Naming],
) -> Family {
    Family { stem, part, namings, convolutional_classifier }
}

impl Family {
    /// That of a network with these parameters.
    pub(super) fn of(parameters: &[Parameter]) -> &'static Family {
        let fits = |family: &&Family| {
            let stem = parameters.first().is_some_and(|first| first.name.starts_with(family.stem));
            stem && parameters.iter().any(|parameter| parameter.name.contains(family.part))
        };
        FAMILIES.iter().find(fits).unwrap_or(&FAMILIES[FAMILIES.len() - 1])
    }

    pub(super) fn knows(&self, naming: Naming) -> bool {
        naming == Naming::Own || self.namings.contains(&naming)
    }

    /// The shape in which `naming` stores a parameter.
    pub(super) fn shape(&self, naming: Naming, parameter: &Parameter) -> Vec<i64> {
        let mut shape = parameter.shape.clone();
        if parameter.role == Role::LinearWeight && self.convolutional_classifier.contains(&naming) {
            shape.extend([1, 1]);
        }
        shape
    }
}

/// Endings of our names that a naming does not write.
const DROPPED_ENDINGS: &[(Naming, Role, &str)] = &[(Naming::WrnOfficial, Role::ConvWeight, ".weight")];

/// The name that `naming` gives to a parameter.
pub(super) fn name(naming: Naming, parameter: &Parameter) -> &str {
    let own = parameter.name.as_str();
    let dropped = DROPPED_ENDINGS.iter().find(|(of, role, _)| (*of, *role) == (naming, parameter.role));
    dropped.and_then(|(.., ending)| own.strip_suffix(ending)).unwrap_or(own)
}

/// Whether batch norms have a counter of batches.
pub(super) fn counts_batches(naming: Naming) -> bool {
    naming != Naming::WrnOfficial
}

/// Parts of names within `denselayer…` that torchvision wrote otherwise until 2017; its published files of
/// DenseNet's weights still do.
const FORMER_PARTS: &[(&str, &str)] =
    &[(".norm.1.", ".norm1."), (".norm.2.", ".norm2."), (".conv.1.", ".conv1."), (".conv.2.", ".conv2.")];

pub(super) fn current_name(name: &str) -> Cow<'_, str> {
    let former = |(former, _): &&(&str, &str)| name.contains("denselayer") && name.contains(former);
    match FORMER_PARTS.iter().find(former) {
        Some((former, current)) => Cow::Owned(name.replacen(former, current, 1)),
        None => Cow::Borrowed(name),
    }
}
