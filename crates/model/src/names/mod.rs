//! What other programs call the tensors of our networks: the state dictionaries of torchvision and timm, and
//! the flat dictionary of the authors' PyTorch code. Knows names and shapes, neither values nor files.
//!
//! A network's own names follow the publication it is known from, so most of the translation is identity;
//! the tables of [`rules`] hold what differs.

mod rules;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use self::rules::Family;
use crate::network::Network;
use crate::spec::Role;

/// Whose names the tensors of a file have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Naming {
    /// torchvision's state dictionaries.
    Torchvision,
    /// timm's state dictionaries.
    Timm,
    /// The authors' PyTorch code (szagoruyko/wide-residual-networks, folder `pytorch`): as our own, but
    /// convolutions without `.weight`, and no counters of batches.
    WrnOfficial,
    /// Our own, those of checkpoints, as a state dictionary of PyTorch.
    Own,
}

/// Every naming and its name on the command line, in the order in which `auto` prefers them.
const NAMINGS: [(Naming, &str); 4] = [
    (Naming::Torchvision, "torchvision"),
    (Naming::Timm, "timm"),
    (Naming::WrnOfficial, "wrn-official"),
    (Naming::Own, "own"),
];

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMINGS.iter().find(|(naming, _)| naming == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Naming {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        NAMINGS.iter().find(|(_, name)| *name == text).map(|(naming, _)| *naming).ok_or_else(|| {
            let known = NAMINGS.map(|(_, name)| name).join(", ");
            format!("`{text}` is no naming; expected one of {known}")
        })
    }
}

/// A tensor of a network as another program stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTensor {
    /// What the naming calls it.
    pub name: String,
    /// What we call it; an entry [`Content::BatchCount`] has no counterpart among our tensors.
    pub own_name: String,
    /// Its shape there. The number of elements and their order are the same as ours.
    pub shape: Vec<i64>,
    /// What it holds.
    pub content: Content,
}

/// What a tensor of a state dictionary holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A parameter.
    Parameter(Role),
    /// Running mean or variance of a batch norm.
    Statistic,
    /// How many batches a batch norm has seen, a whole number.
    BatchCount,
}

impl Content {
    /// Whether it belongs to the last layer, whose size is the number of classes.
    #[must_use]
    pub fn is_classifier(self) -> bool {
        matches!(self, Content::Parameter(Role::LinearWeight | Role::LinearBias))
    }
}

impl Network {
    /// The namings in which this network can be written, the preferred one first. The last is always
    /// [`Naming::Own`].
    #[must_use]
    pub fn namings(&self) -> Vec<Naming> {
        let family = Family::of(self.parameters());
        NAMINGS.iter().map(|(naming, _)| *naming).filter(|naming| family.knows(*naming)).collect()
    }

    /// Every tensor of this network as `naming` stores it: parameters, running statistics and, where the
    /// naming has them, counters of batches.
    #[must_use]
    pub fn named_tensors(&self, naming: Naming) -> Vec<NamedTensor> {
        let family = Family::of(self.parameters());
        let mut tensors: Vec<_> = (self.parameters().iter())
            .map(|parameter| NamedTensor {
                name: rules::name(naming, parameter).to_owned(),
                own_name: parameter.name.clone(),
                shape: family.shape(naming, parameter),
                content: Content::Parameter(parameter.role),
            })
            .collect();
        for norm in self.norms() {
            for (suffix, content) in STATISTICS {
                let counter = content == Content::BatchCount;
                if counter && !rules::counts_batches(naming) {
                    continue;
                }
                let name = format!("{}.{suffix}", norm.name);
                tensors.push(NamedTensor {
                    own_name: name.clone(),
                    name,
                    shape: if counter { Vec::new() } else { vec![norm.channels] },
                    content,
                });
            }
        }
        tensors
    }
}

/// What a batch norm keeps beside its parameters.
const STATISTICS: [(&str, Content); 3] = [
    ("running_mean", Content::Statistic),
    ("running_var", Content::Statistic),
    (BATCH_COUNT, Content::BatchCount),
];

const BATCH_COUNT: &str = "num_batches_tracked";

/// `name` as the current version of its program writes it, or `None` if it names a counter of batches, which
/// has no influence on what a network computes.
#[must_use]
pub fn current_name(name: &str) -> Option<Cow<'_, str>> {
    if name.rsplit('.').next() == Some(BATCH_COUNT) {
        return None;
    }
    Some(rules::current_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Architecture, Options};

    fn network(architecture: &str) -> Network {
        Network::new(&architecture.parse::<Architecture>().unwrap(), &Options::default()).unwrap()
    }

    #[test]
    fn a_network_is_written_in_the_namings_of_its_family() {
        use Naming::{Own, Timm, Torchvision, WrnOfficial};
        for (architecture, namings) in [
            ("wrn-10-1", &[WrnOfficial, Own][..]),
            ("preact-resnet-164", &[WrnOfficial, Own]),
            ("resnet-50", &[Torchvision, Timm, Own]),
            ("wrn-50-2-bottleneck", &[Torchvision, Timm, Own]),
            ("resnext-50-32x4d", &[Torchvision, Timm, Own]),
            ("densenet-121", &[Torchvision, Timm, Own]),
            ("se-resnet-50", &[Timm, Own]),
            ("dpn-92", &[Timm, Own]),
            ("se-wrn-16-8", &[Own]),
        ] {
            assert_eq!(network(architecture).namings(), namings, "{architecture}");
        }
    }

    #[test]
    fn the_authors_write_convolutions_without_a_suffix_and_count_no_batches() {
        let network = network("wrn-10-2");
        let names = |naming| -> Vec<String> {
            network.named_tensors(naming).into_iter().map(|tensor| tensor.name).collect()
        };
        let official = names(Naming::WrnOfficial);
        for name in [
            "conv0",
            "group0.block0.conv0",
            "group2.block0.convdim",
            "group1.block0.bn0.weight",
            "group1.block0.bn1.running_var",
            "bn.bias",
            "fc.weight",
        ] {
            assert!(official.iter().any(|official| official == name), "{name}");
        }
        assert!(official.iter().all(|name| !name.ends_with(BATCH_COUNT)));
        let own = names(Naming::Own);
        assert_eq!(own.len(), official.len() + network.norms().len(), "a counter for each batch norm");
        assert!(own.iter().any(|name| name == "conv0.weight"));
    }

    #[test]
    fn timm_stores_the_classifier_of_a_dual_path_network_as_a_convolution() {
        let shape = |architecture, naming| {
            let tensors = network(architecture).named_tensors(naming);
            tensors.into_iter().find(|tensor| tensor.name == "classifier.weight").unwrap().shape
        };
        assert_eq!(shape("dpn-92", Naming::Timm), [10, 2688, 1, 1]);
        assert_eq!(shape("dpn-92", Naming::Own), [10, 2688]);
        assert_eq!(shape("densenet-121", Naming::Timm), [10, 1024]);
    }

    #[test]
    fn names_of_older_files_are_brought_up_to_date() {
        let dense = "features.denseblock1.denselayer16";
        for (name, current) in [
            (format!("{dense}.norm.1.weight"), Some(format!("{dense}.norm1.weight"))),
            (format!("{dense}.conv.2.weight"), Some(format!("{dense}.conv2.weight"))),
            (format!("{dense}.norm1.running_var"), Some(format!("{dense}.norm1.running_var"))),
            ("layer1.0.conv1.weight".to_owned(), Some("layer1.0.conv1.weight".to_owned())),
            ("bn1.num_batches_tracked".to_owned(), None),
            ("num_batches_tracked".to_owned(), None),
        ] {
            assert_eq!(current_name(&name).map(Cow::into_owned), current, "{name}");
        }
    }

    #[test]
    fn namings_are_read_and_written_alike() {
        for (naming, name) in NAMINGS {
            assert_eq!(name.parse::<Naming>(), Ok(naming));
            assert_eq!(naming.to_string(), name);
        }
        assert!("keras".parse::<Naming>().unwrap_err().contains("wrn-official"));
    }
}
