//! The data sets this crate can read, as a table of facts. How their files are read is in `idx` and `cifar`.

use std::fmt;
use std::str::FromStr;

use crate::error::DataError;
use crate::source::ImageShape;

/// A data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceKind {
    /// Fashion-MNIST, four IDX files.
    FashionMnist,
    /// CIFAR-10, the binary version.
    Cifar10,
    /// CIFAR-100, the binary version, with its 100 fine labels.
    Cifar100,
    /// SVHN, cropped digits, as `prepare` brings it into the form of CIFAR-10; trained on `train` and `extra`, as the
    /// paper does.
    Svhn,
    /// SVHN trained on `train` alone.
    SvhnWithoutExtra,
}

/// One of the two halves that every data set comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// What is learned from.
    Train,
    /// What is measured on.
    Test,
}

/// What is known of a data set before its files are opened.
#[derive(Debug)]
pub struct SourceFacts {
    /// Name in configurations.
    pub name: &'static str,
    /// Images as stored.
    pub image: ImageShape,
    /// Names of the classes where the files bring none, by label.
    pub classes: &'static [&'static str],
    /// Default mean a channel, on 0 to 255. For both CIFARs those of CIFAR-10, as the Wide ResNet code has
    /// it; for SVHN none, as in the paper, which divides by 255 only.
    pub mean: &'static [f64],
    /// Default standard deviation a channel, on 0 to 255.
    pub std: &'static [f64],
    /// Where the files come from.
    pub(crate) origin: &'static str,
}

static FASHION_MNIST: SourceFacts = SourceFacts {
    name: "fashion-mnist",
    image: ImageShape { height: 28, width: 28, channels: 1 },
    classes: &[
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ],
    mean: &[72.94],
    std: &[90.02],
    origin: "Debian's package dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist",
};

static CIFAR10: SourceFacts = SourceFacts {
    name: "cifar10",
    image: ImageShape { height: 32, width: 32, channels: 3 },
    classes: &["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    mean: &[125.3, 123.0, 113.9],
    std: &[63.0, 62.1, 66.7],
    origin: "from cifar-10-binary.tar.gz",
};

#[rustfmt::skip]
static CIFAR100: SourceFacts = SourceFacts {
    name: "cifar100",
    image: ImageShape { height: 32, width: 32, channels: 3 },
    classes: &[
        "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
        "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
        "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur",
        "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard",
        "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
        "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree",
        "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket",
        "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
        "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
        "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
    ],
    mean: &[125.3, 123.0, 113.9],
    std: &[63.0, 62.1, 66.7],
    origin: "from cifar-100-binary.tar.gz",
};

static SVHN: SourceFacts = SourceFacts {
    name: "svhn",
    image: ImageShape { height: 32, width: 32, channels: 3 },
    classes: &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    mean: &[0.0, 0.0, 0.0],
    std: &[255.0, 255.0, 255.0],
    origin: "made by `wrn-dist data prepare svhn` from train_32x32.mat, extra_32x32.mat and test_32x32.mat",
};

static SVHN_WITHOUT_EXTRA: SourceFacts = SourceFacts { name: "svhn-without-extra", ..SVHN };

impl SourceKind {
    pub(crate) const ALL: [SourceKind; 5] = [
        SourceKind::FashionMnist,
        SourceKind::Cifar10,
        SourceKind::Cifar100,
        SourceKind::Svhn,
        SourceKind::SvhnWithoutExtra,
    ];

    /// What is known of this data set.
    #[must_use]
    pub fn facts(self) -> &'static SourceFacts {
        match self {
            SourceKind::FashionMnist => &FASHION_MNIST,
            SourceKind::Cifar10 => &CIFAR10,
            SourceKind::Cifar100 => &CIFAR100,
            SourceKind::Svhn => &SVHN,
            SourceKind::SvhnWithoutExtra => &SVHN_WITHOUT_EXTRA,
        }
    }

    /// As a choice for [`choose`].
    pub(crate) fn named(self) -> (&'static str, Self) {
        (self.facts().name, self)
    }
}

/// The choice that `name` names.
pub(crate) fn choose<T: Copy>(choices: &[(&'static str, T)], name: &str) -> Result<T, DataError> {
    let found = choices.iter().find(|(known, _)| *known == name);
    found.map(|(_, choice)| *choice).ok_or_else(|| DataError::UnknownKind {
        name: name.into(),
        known: choices.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", "),
    })
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.facts().name)
    }
}

impl FromStr for SourceKind {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        choose(&Self::ALL.map(Self::named), name)
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Test => "test",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused_with_the_choice() {
        for kind in SourceKind::ALL {
            assert_eq!(kind.to_string().parse::<SourceKind>().unwrap(), kind);
        }
        let error = "Cifar10".parse::<SourceKind>().unwrap_err().to_string();
        assert_eq!(
            error,
            "`Cifar10` is no known data set; expected one of fashion-mnist, cifar10, cifar100, svhn, svhn-without-extra"
        );
        let fetched = "fashion-mnist".parse::<crate::FetchKind>().unwrap_err().to_string();
        assert!(fetched.ends_with("expected one of cifar10, cifar100, svhn"), "{fetched}");
        let prepared = "mnist".parse::<crate::PrepareKind>().unwrap_err().to_string();
        assert!(
            prepared.contains("expected one of imagenet, imagefolder, fashion-mnist, cifar10,"),
            "{prepared}"
        );
    }

    #[test]
    fn tables_have_one_constant_a_channel_and_distinct_classes() {
        for (kind, classes) in SourceKind::ALL.into_iter().zip([10, 10, 100, 10, 10]) {
            let facts = kind.facts();
            assert_eq!(facts.mean.len(), facts.image.channels as usize);
            assert_eq!(facts.std.len(), facts.image.channels as usize);
            let distinct: std::collections::BTreeSet<_> = facts.classes.iter().collect();
            assert_eq!((facts.classes.len(), distinct.len()), (classes, classes), "{kind}");
        }
        assert!(CIFAR100.classes.is_sorted(), "CIFAR-100's labels are in alphabetical order");
    }
}
