//! What is refused, and whether the sentence helps.

#![allow(clippy::unwrap_used)] // All of it is test code.

use model::{Architecture, ModelError, Network, Options};

#[test]
fn a_name_that_is_no_network_is_refused_with_itself_the_reason_and_what_exists() {
    for (name, reason) in [
        ("", "form"),
        ("wrn", "form"),
        ("wrn-28", "form"),
        ("wrn-28-10-1", "form"),
        ("wrn28-10", "form"),
        ("WRN-28-10", "form"),
        ("resnet-28-10", "form"),
        ("wrn_28_10", "form"),
        (" wrn-28-10", "form"),
        ("wrn-28-10 ", "width"),
        ("wrn--10", "depth"),
        ("wrn-28-", "width"),
        ("wrn-28-ten", "width"),
        ("wrn-28-1.5", "width"),
        ("wrn-28-+10", "width"),
        ("wrn-28-٣", "width"),
        ("wrn-28-0", "width"),
        ("wrn-28-100000", "width"),
        ("wrn-28-99999999999999999999", "width"),
        ("wrn-0-1", "depth"),
        ("wrn-100000-1", "depth"),
        ("wrn-4-1", "10 and 16"),
        ("wrn-9-1", "10 and 16"),
        ("wrn-11-1", "10 and 16"),
        ("wrn-27-10", "22 and 28"),
        ("wrn-29-10", "28 and 34"),
        ("wrn-18-2", "16 and 22"),
        ("wrn-28-10-b", "block `b`"),
        ("wrn-28-10-b32", "block `b32`"),
        ("wrn-28-10-b3x", "block `b3x`"),
        ("wrn-28-10-b33 ", "block `b33 `"),
        ("wrn-28-10-b333333333", "1 to 8 odd digits"),
        ("wrn-28-10-B33", "form"),
        ("wrn-28-10-b33-1", "form"),
        ("wrn-41-2-b333", "40 and 49"),
        ("wrn-4-2-b3", "7 and 10"),
        ("wrn-23-2-b313", "22 and 28"),
        ("wrn-28-2-imagenet", "no imagenet network has depth 28"),
        ("wrn-50-2-imagenet", "no imagenet network has depth 50"),
        ("wrn-34-2-bottleneck", "no bottleneck network has depth 34"),
        ("wrn-34-1.33-imagenet", "whole channels"),
        ("wrn-34-0-imagenet", "width"),
        ("wrn-34-1.5.2-imagenet", "width"),
        ("wrn-34-257-imagenet", "width"),
        ("resnet-35", "depth 35"),
        ("resnet-fifty", "depth"),
        ("preact-resnet-18", "depth 18"),
        ("preact-110", "form"),
        ("se-", "form"),
        ("se-se-wrn-16-8", "form"),
        ("se-densenet-121", "form"),
        ("se-wrn-17-8", "16 and 22"),
        ("resnext-29", "form"),
        ("resnext-29-8x64", "<cardinality>x<width>d"),
        ("resnext-29-8d", "<cardinality>x<width>d"),
        ("resnext-29-0x64d", "cardinality"),
        ("resnext-30-8x64d", "no ResNeXt has depth 30"),
        ("densenet-bc-100", "form"),
        ("densenet-bc-101-12", "100 and 106"),
        ("densenet-bc-100-0", "growth"),
        ("densenet-100", "depth 100"),
        ("dpn-93", "depth 93"),
    ] {
        let error = name.parse::<Architecture>().unwrap_err();
        assert!(matches!(error, ModelError::Architecture { .. }));
        let message = error.to_string();
        for part in
            [&format!("`{name}`"), reason, "6N+4", "wrn-28-10", "imagenet", "bottleneck", "preact", "dpn"]
        {
            assert!(message.contains(part), "{name:?}: `{part}` is not in: {message}");
        }
    }
}

#[test]
fn a_network_that_may_have_been_meant_is_named() {
    for (name, meant) in [
        ("WRN-28-10", "wrn-28-10"),
        ("wrn28-10", "wrn-28-10"),
        ("wrn_28_10", "wrn-28-10"),
        ("WideResNet-28-10", "wrn-28-10"),
        ("wide_resnet50_2", "wrn-50-2-bottleneck"),
        ("wide_resnet101_2", "wrn-101-2-bottleneck"),
        ("wrn-50-2", "wrn-50-2-bottleneck"),
        ("wrn-18-2", "wrn-18-2-imagenet"),
        ("ResNet50", "resnet-50"),
        ("resnext50_32x4d", "resnext-50-32x4d"),
        ("seresnet50", "se-resnet-50"),
        ("se_wrn_16_8", "se-wrn-16-8"),
        ("preactresnet-110", "preact-resnet-110"),
        ("densenet121", "densenet-121"),
        ("dpn92", "dpn-92"),
        ("wnr-28-10", "wrn-28-10"),
        ("resent-50", "resnet-50"),
        (" wrn-16-8", "wrn-16-8"),
    ] {
        let message = name.parse::<Architecture>().unwrap_err().to_string();
        assert!(message.contains(&format!("; did you mean {meant}?")), "{name}: {message}");
    }
    for name in ["", "transformer", "vgg-16", "wrn-29-10-b", "resnet-35"] {
        let message = name.parse::<Architecture>().unwrap_err().to_string();
        assert!(!message.contains("did you mean"), "{name}: {message}");
        // The forms that there are, one a line.
        assert!(
            message.lines().count() > 10 && message.contains("\n  resnet-<18|34|50|101|152>"),
            "{message}"
        );
    }
}

#[test]
fn names_are_read_and_written_alike_and_differ_when_the_networks_do() {
    let names = [
        "wrn-10-1",
        "wrn-16-8",
        "wrn-28-10",
        "wrn-28-1",
        "wrn-40-10",
        "wrn-52-1",
        "wrn-202-2",
        "wrn-34-2",
        "wrn-34-2-imagenet",
        "wrn-34-1.5-imagenet",
        "wrn-34-1.25-imagenet",
        "wrn-50-2-bottleneck",
        "wrn-101-2-bottleneck",
        "resnet-50",
        "resnet-110",
        "preact-resnet-110",
        "preact-resnet-1001",
        "wrn-40-2-b313",
        "wrn-40-2-b333",
        "wrn-28-2-b35",
        "wrn-28-2-b53",
        "se-wrn-28-2-b53",
        "se-wrn-16-8",
        "se-resnet-50",
        "se-resnet-110",
        "resnext-29-8x64d",
        "resnext-29-16x64d",
        "resnext-29-64x8d",
        "resnext-50-32x4d",
        "se-resnext-50-32x4d",
        "densenet-bc-100-12",
        "densenet-121",
        "dpn-92",
    ];
    let parsed = names.map(|name| name.parse::<Architecture>().unwrap());
    for (index, (name, architecture)) in names.iter().zip(&parsed).enumerate() {
        assert_eq!(architecture.to_string(), *name);
        assert!(parsed[..index].iter().all(|other| other != architecture));
    }
}

#[test]
fn another_spelling_of_a_network_is_written_in_the_usual_one() {
    for (spelling, usual) in [
        ("wrn-28-10-b33", "wrn-28-10"),
        ("wrn-028-010", "wrn-28-10"),
        ("wrn-34-2.0-imagenet", "wrn-34-2-imagenet"),
        ("wrn-34-1.50-imagenet", "wrn-34-1.5-imagenet"),
        ("resnet-050", "resnet-50"),
        ("se-resnext-050-032x4d", "se-resnext-50-32x4d"),
    ] {
        let [architecture, expected] = [spelling, usual].map(|name| name.parse::<Architecture>().unwrap());
        assert_eq!(architecture, expected);
        assert_eq!(architecture.to_string(), usual);
    }
}

#[test]
fn an_option_without_a_meaning_for_the_architecture_is_refused() {
    use model::{Projection, ShortcutInput};
    let raw = Options { shortcut_input: ShortcutInput::Raw, ..Options::default() };
    let first = Options { projection: Projection::FirstBlock, ..Options::default() };
    let zero = Options { zero_init_residual: true, ..Options::default() };
    let dropout = Options { dropout: 0.3, ..Options::default() };
    let shortcut = Options { shortcut_dropout: 0.3, ..Options::default() };
    let stochastic = Options { stochastic_depth: 0.5, ..Options::default() };
    for (architecture, options, part) in [
        ("resnet-50", &raw, Some("shortcut_input is raw")),
        ("resnet-20", &raw, Some("shortcut_input is raw")),
        ("preact-resnet-164", &raw, None),
        ("resnet-20", &first, Some("projection is first-block")),
        ("resnet-18", &first, None),
        ("wrn-40-2-b3", &first, None),
        ("densenet-121", &raw, Some("shortcut_input is set, but a DenseNet")),
        ("densenet-bc-100-12", &zero, Some("zero_init_residual is set, but a DenseNet")),
        ("densenet-bc-100-12", &dropout, None),
        ("densenet-121", &stochastic, Some("stochastic_depth is set, but a DenseNet")),
        ("dpn-92", &dropout, Some("dropout is 0.3, but a dual path network")),
        ("dpn-92", &shortcut, Some("shortcut_dropout is set, but a dual path network")),
        ("dpn-92", &stochastic, Some("stochastic_depth is set, but a dual path network")),
        ("se-resnext-50-32x4d", &stochastic, None),
    ] {
        let error =
            Network::new(&architecture.parse().unwrap(), options).err().map(|error| error.to_string());
        match part {
            Some(part) => assert!(error.as_ref().unwrap().contains(part), "{architecture}: {error:?}"),
            None => assert_eq!(error, None, "{architecture}"),
        }
    }
}

#[test]
fn an_impossible_option_is_refused_by_name() {
    let good = Options::default;
    for (part, options) in [
        ("-0.1", Options { dropout: -0.1, ..good() }),
        ("dropout is 1,", Options { dropout: 1.0, ..good() }),
        ("shortcut_dropout is 1.5,", Options { shortcut_dropout: 1.5, ..good() }),
        ("stochastic_depth is -1,", Options { stochastic_depth: -1.0, ..good() }),
        ("NaN", Options { dropout: f64::NAN, ..good() }),
        ("classes is 0", Options { classes: 0, ..good() }),
        ("in_channels is 0", Options { in_channels: 0, ..good() }),
        ("image_size is 0", Options { image_size: 0, ..good() }),
        ("image_size is 3, expected 4", Options { image_size: 3, ..good() }),
    ] {
        let message = Network::new(&"wrn-10-1".parse().unwrap(), &options).unwrap_err().to_string();
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn the_largest_networks_can_be_declared() {
    // Nothing is allocated for a declaration, however large the network.
    let largest = Options { image_size: 2048, ..Options::default() };
    let network = Network::new(&"wrn-1996-256".parse().unwrap(), &largest).unwrap();
    let (blocks, width, classes) = (332u64, 256u64, 10u64);
    let parameters = 464
        + 2560 * width
        + width * width * (96_768 * blocks - 22_784)
        + 448 * blocks * width
        + 64 * width * classes
        + classes;
    assert_eq!(network.parameter_count(), parameters);
    // The closed form for 32 px, for images of 64 times 64 the area.
    let (blocks, width) = (u128::from(blocks), u128::from(width));
    let convolutions = 442_368 + 2_621_440 * width + width * width * (14_155_776 * blocks - 4_456_448);
    assert_eq!(u128::from(network.macs()), 4096 * convolutions + 64 * width * u128::from(classes));
}

#[test]
fn images_that_vanish_between_the_groups_are_refused() {
    for (image_size, fits) in [(28, false), (33, true)] {
        let options = Options { image_size, ..Options::default() };
        let network = Network::new(&"densenet-121".parse().unwrap(), &options);
        assert_eq!(network.is_ok(), fits, "{image_size}");
        if let Err(error) = network {
            assert!(error.to_string().contains("image_size is 28"), "{error}");
        }
    }
}
