//! Parameters and multiply-adds against numbers counted by hand and by others.
//!
//! The table holds every network of the paper's tables 4 to 6 with B(3,3) blocks, and small ones. 40-4 with
//! 10 classes is printed in the authors' training log; 16-10, 28-10 and 40-8 agree with the tests of a public
//! collection of models.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use common::network;
use model::{Options, Projection, Role};

struct Row {
    architecture: &'static str,
    convolutions: u32,
    parameters_10: u64,
    parameters_100: u64,
    without_projections_10: u64,
    macs_10: u64,
}

#[rustfmt::skip]
const TABLE: &[Row] = &[
    row("wrn-40-1", 39, 563_930, 569_780, 561_370, 83_280_512),
    row("wrn-40-2", 40, 2_243_546, 2_255_156, 2_232_794, 327_599_360),
    row("wrn-40-4", 40, 8_949_210, 8_972_340, 8_907_226, 1_298_582_016),
    row("wrn-40-8", 40, 35_748_314, 35_794_484, 35_582_426, 5_172_024_320),
    row("wrn-40-10", 40, 55_841_754, 55_899_444, 55_583_194, 8_074_483_968),
    row("wrn-28-10", 28, 36_479_194, 36_536_884, 36_220_634, 5_243_328_768),
    row("wrn-28-12", 28, 52_517_850, 52_587_060, 52_146_138, 7_543_905_792),
    row("wrn-22-8", 22, 17_158_106, 17_204_276, 16_992_218, 2_454_115_328),
    row("wrn-22-10", 22, 26_797_914, 26_855_604, 26_539_354, 3_827_751_168),
    row("wrn-16-8", 16, 10_961_370, 11_007_540, 10_795_482, 1_548_145_664),
    row("wrn-16-10", 16, 17_116_634, 17_174_324, 16_858_074, 2_412_173_568),
    row("wrn-16-4", 16, 2_748_890, 2_772_020, 2_706_906, 392_612_352),
    row("wrn-52-1", 51, 758_362, 764_212, 755_802, 111_592_064),
    row("wrn-28-2", 28, 1_467_610, 1_479_220, 1_456_858, 214_353_152),
    row("wrn-10-1", 9, 77_850, 83_700, 75_290, 12_501_632),
    row("wrn-10-2", 10, 303_706, 315_316, 292_954, 44_483_840),
];

const fn row(
    architecture: &'static str,
    convolutions: u32,
    parameters_10: u64,
    parameters_100: u64,
    without_projections_10: u64,
    macs_10: u64,
) -> Row {
    Row { architecture, convolutions, parameters_10, parameters_100, without_projections_10, macs_10 }
}

#[test]
fn parameters_and_macs_equal_the_table() {
    for row in TABLE {
        let name = row.architecture;
        let [depth, width] = [1, 2].map(|part| name.split('-').nth(part).unwrap().parse::<u64>().unwrap());
        let blocks = (depth - 4) / 6;
        for (classes, parameters) in [(10, row.parameters_10), (100, row.parameters_100)] {
            let network = network(name, &Options { classes, ..Options::default() });
            assert_eq!(network.parameter_count(), parameters, "parameters of {name}, {classes} classes");
            assert_eq!(network.convolutions(), row.convolutions, "convolutions of {name}");
            assert_eq!(network.classes(), classes);
            // The classifier has 64k inputs.
            let macs = row.macs_10 + 64 * width * (u64::from(classes) - 10);
            assert_eq!(network.macs(), macs, "multiply-adds of {name}, {classes} classes");

            // What is declared is what is counted.
            let size = |shape: &[i64]| shape.iter().product::<i64>() as u64;
            let of = |wanted: &dyn Fn(&model::Parameter) -> bool| {
                network.parameters().iter().filter(|p| wanted(p)).map(|p| size(&p.shape)).sum::<u64>()
            };
            assert_eq!(of(&|_| true), parameters, "{name}");
            let projections = of(&|p| p.name.contains("convdim"));
            assert_eq!(row.parameters_10 - projections, row.without_projections_10, "projections of {name}");
            let norms = of(&|p| matches!(p.role, Role::NormGain | Role::NormBias));
            assert_eq!(norms, 32 + 448 * blocks * width, "batch norms of {name}");
            let classifier = of(&|p| matches!(p.role, Role::LinearWeight | Role::LinearBias));
            assert_eq!(classifier, (64 * width + 1) * u64::from(classes), "classifier of {name}");
            let tensors = 18 * blocks + if width == 1 { 7 } else { 8 };
            assert_eq!(network.parameters().len() as u64, tensors, "tensors of {name}");
            assert_eq!(network.norms().len() as u64, 6 * blocks + 1, "batch norms of {name}");

            // The rows of the paper's table 1 add up to the whole.
            let stages = network.stages();
            assert_eq!(stages.iter().map(|stage| stage.parameters).sum::<u64>(), parameters, "{name}");
            assert_eq!(stages.iter().map(|stage| stage.macs).sum::<u64>(), macs, "{name}");
        }
    }
}

#[test]
fn stages_are_the_papers_table_1() {
    let network = network("wrn-28-10", &Options::default());
    let stages: Vec<_> = network.stages().iter().map(|stage| (stage.name.as_str(), stage.output)).collect();
    assert_eq!(stages, [("conv1", 32), ("conv2", 32), ("conv3", 16), ("conv4", 8), ("avg-pool", 1)]);
    for (stage, channels) in network.stages()[1..4].iter().zip(["160", "320", "640"]) {
        assert!(stage.content.contains(channels) && stage.content.contains("x 4"), "{}", stage.content);
    }
}

#[test]
fn names_are_unique_and_those_of_the_authors_pytorch_code() {
    let network = network("wrn-10-2", &Options::default());
    let names: Vec<_> = network.parameters().iter().map(|parameter| parameter.name.as_str()).collect();
    let mut expected = vec!["conv0.weight".to_owned()];
    for group in 0..3 {
        for part in [
            "bn0.weight",
            "bn0.bias",
            "conv0.weight",
            "bn1.weight",
            "bn1.bias",
            "conv1.weight",
            "convdim.weight",
        ] {
            expected.push(format!("group{group}.block0.{part}"));
        }
    }
    expected.extend(["bn.weight", "bn.bias", "fc.weight", "fc.bias"].map(str::to_owned));
    assert_eq!(names, expected);
    let norms: Vec<_> = network.norms().iter().map(|norm| (norm.name.as_str(), norm.channels)).collect();
    assert_eq!(norms[..3], [("group0.block0.bn0", 16), ("group0.block0.bn1", 32), ("group1.block0.bn0", 32)]);
    assert_eq!(norms[6], ("bn", 128));
}

#[test]
fn with_a_projection_in_every_group_a_name_counts_its_convolutions_at_width_1_too() {
    let options = Options { projection: Projection::FirstBlock, ..Options::default() };
    for (name, convolutions, parameters) in
        // One more 1x1 convolution from 16 to 16 channels at width 1, none elsewhere.
        [
            ("wrn-40-1", 40, 563_930 + 256),
            ("wrn-16-1", 16, 175_066 + 256),
            ("wrn-28-10", 28, 36_479_194),
        ]
    {
        let network = network(name, &options);
        assert_eq!((network.convolutions(), network.parameter_count()), (convolutions, parameters), "{name}");
    }
    assert_eq!(network("wrn-16-1", &Options::default()).parameter_count(), 175_066);
}

#[test]
fn image_size_and_channels_change_the_counts_as_they_should() {
    let count = |image_size, in_channels| {
        let network = network("wrn-16-4", &Options { image_size, in_channels, ..Options::default() });
        (network.parameter_count(), network.macs())
    };
    let (parameters, macs) = count(32, 3);
    // A grey image saves two input channels of a 3x3 convolution to 16.
    assert_eq!(count(32, 1), (parameters - 2 * 9 * 16, macs - 2 * 9 * 16 * 32 * 32));
    let classifier = 256 * 10;
    assert_eq!(count(64, 3), (parameters, 4 * (macs - classifier) + classifier));
    // 28 → 14 → 7 pixels, not divisible further.
    assert_eq!(count(28, 3), (parameters, (macs - classifier) * 49 / 64 + classifier));
}
