//! The paper's other blocks, the networks for ImageNet and the baselines: parameters and multiply-adds
//! against a layer-by-layer count in PyTorch, and names against torchvision's.
//!
//! The parameters of the blocks agree with the paper's tables 2 and 3, those for ImageNet with table 7 and
//! torchvision, resnet-164's convolutions and parameters with the authors' training log.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::collections::HashSet;

use common::network;
use model::{Architecture, Options, Parameter};

/// Architecture, convolutions, parameters with 10 and with 100 classes, multiply-adds with 10 classes at 32
/// px.
#[rustfmt::skip]
const SMALL: &[(&str, u32, u64, u64, u64)] = &[
    ("wrn-40-2-b131", 58, 1_429_082, 1_440_692, 208_061_696),
    ("wrn-40-2-b31", 40, 1_211_354, 1_222_964, 176_604_416),
    ("wrn-40-2-b13", 40, 1_297_370, 1_308_980, 189_187_328),
    ("wrn-40-2-b311", 58, 1_343_066, 1_354_676, 195_478_784),
    ("wrn-28-2-b33", 28, 1_467_610, 1_479_220, 214_353_152),
    ("wrn-22-2-b313", 31, 1_145_498, 1_157_108, 167_167_232),
    ("wrn-40-2-b3", 40, 2_243_546, 2_255_156, 327_599_360),
    ("wrn-40-2-b333", 40, 2_243_546, 2_255_156, 327_599_360),
    ("wrn-40-2-b3333", 40, 2_243_546, 2_255_156, 327_599_360),
    ("wrn-16-4-b55", 16, 7_549_402, 7_572_532, 1_080_478_208),
    ("wrn-16-4-b35", 16, 5_501_402, 5_524_532, 795_265_536),
    ("resnet-20", 19, 269_722, 275_572, 40_551_040),
    ("resnet-32", 31, 464_154, 470_004, 68_862_592),
    ("resnet-44", 43, 658_586, 664_436, 97_174_144),
    ("resnet-56", 55, 853_018, 858_868, 125_485_696),
    ("resnet-110", 109, 1_727_962, 1_733_812, 252_887_680),
    ("resnet-1202", 1201, 19_421_274, 19_427_124, 2_829_238_912),
    ("preact-resnet-110", 111, 1_730_522, 1_736_372, 253_149_824),
    ("preact-resnet-164", 166, 1_703_258, 1_726_388, 244_500_992),
    ("preact-resnet-1001", 1003, 10_327_706, 10_350_836, 1_487_849_984),
];

/// Architecture, convolutions, parameters and multiply-adds with 1000 classes at 224 px.
#[rustfmt::skip]
const IMAGENET: &[(&str, u32, u64, u64)] = &[
    ("resnet-18", 20, 11_689_512, 1_814_073_344),
    ("wrn-18-1-imagenet", 20, 11_689_512, 1_814_073_344),
    ("wrn-18-1.5-imagenet", 21, 25_875_816, 3_866_327_040),
    ("wrn-18-2-imagenet", 21, 45_618_216, 6_695_706_624),
    ("wrn-18-3-imagenet", 21, 101_783_976, 14_724_378_624),
    ("resnet-34", 36, 21_797_672, 3_663_761_408),
    ("wrn-34-1.5-imagenet", 37, 48_613_608, 8_028_125_184),
    ("wrn-34-2-imagenet", 37, 86_036_008, 14_094_458_880),
    ("wrn-34-3-imagenet", 37, 192_712_872, 31_371_571_200),
    ("resnet-50", 53, 25_557_032, 4_089_184_256),
    ("resnet-101", 104, 44_549_160, 7_801_405_440),
    ("resnet-152", 155, 60_192_808, 11_513_626_624),
    ("wrn-50-1-bottleneck", 53, 25_557_032, 4_089_184_256),
    ("wrn-50-2-bottleneck", 53, 68_883_240, 11_398_021_120),
    ("wrn-101-2-bottleneck", 104, 126_886_696, 22_753_050_624),
];

fn names() -> impl Iterator<Item = &'static str> {
    SMALL.iter().map(|row| row.0).chain(IMAGENET.iter().map(|row| row.0))
}

/// Convolutions, parameters, multiply-adds; checks that the stages add up to them.
fn counts(architecture: &str, classes: u32, image_size: u32) -> (u32, u64, u64) {
    let network = network(architecture, &Options { classes, image_size, ..Options::default() });
    let declared = |parameter: &Parameter| parameter.shape.iter().product::<i64>() as u64;
    assert_eq!(network.parameters().iter().map(declared).sum::<u64>(), network.parameter_count());
    let sum = |of: &dyn Fn(&model::Stage) -> u64| network.stages().iter().map(of).sum::<u64>();
    assert_eq!(sum(&|stage| stage.parameters), network.parameter_count(), "{architecture}");
    assert_eq!(sum(&|stage| stage.macs), network.macs(), "{architecture}");
    (network.convolutions(), network.parameter_count(), network.macs())
}

#[test]
fn counts_of_networks_for_small_images_equal_the_table() {
    for &(architecture, convolutions, parameters_10, parameters_100, macs) in SMALL {
        assert_eq!(counts(architecture, 10, 32), (convolutions, parameters_10, macs), "{architecture}");
        let (_, parameters, more_macs) = counts(architecture, 100, 32);
        assert_eq!(parameters, parameters_100, "{architecture}, 100 classes");
        // A bias for each class is no multiply-add.
        assert_eq!(more_macs - macs, parameters_100 - parameters_10 - 90, "{architecture}, 100 classes");
    }
}

#[test]
fn counts_of_imagenet_networks_equal_the_table() {
    for &(architecture, convolutions, parameters, macs) in IMAGENET {
        assert_eq!(counts(architecture, 1000, 224), (convolutions, parameters, macs), "{architecture}");
    }
}

#[test]
fn the_papers_tables_2_and_3_have_as_many_blocks_as_their_depths_say() {
    for (architecture, blocks) in [
        ("wrn-40-2-b131", 6),
        ("wrn-40-2-b31", 6),
        ("wrn-40-2-b13", 6),
        ("wrn-40-2-b311", 6),
        ("wrn-28-2", 4),
        ("wrn-22-2-b313", 3),
        ("wrn-40-2-b3", 12),
        ("wrn-40-2-b33", 6),
        ("wrn-40-2-b333", 4),
        ("wrn-40-2-b3333", 3),
    ] {
        let network = network(architecture, &Options::default());
        let first_group: HashSet<_> = (network.parameters().iter())
            .filter_map(|parameter| parameter.name.strip_prefix("group0."))
            .filter_map(|rest| rest.split('.').next())
            .collect();
        assert_eq!(first_group.len(), blocks, "{architecture}");
    }
}

#[test]
fn names_are_unique() {
    for architecture in names() {
        let network = network(architecture, &Options::default());
        let parameters: HashSet<_> = network.parameters().iter().map(|p| p.name.as_str()).collect();
        assert_eq!(parameters.len(), network.parameters().len(), "{architecture}");
        let norms: HashSet<_> = network.norms().iter().map(|norm| norm.name.as_str()).collect();
        assert_eq!(norms.len(), network.norms().len(), "{architecture}");
        assert!(norms.iter().all(|norm| parameters.contains(format!("{norm}.weight").as_str())));
    }
}

#[test]
fn names_and_shapes_of_a_bottleneck_are_torchvisions() {
    let network = network("wrn-50-2-bottleneck", &Options { classes: 1000, ..Options::default() });
    let of: Vec<_> = (network.parameters().iter())
        .filter(|parameter| !parameter.name.starts_with("layer") || parameter.name.starts_with("layer2.0."))
        .map(|parameter| (parameter.name.as_str(), parameter.shape.as_slice()))
        .collect();
    let expected: &[(&str, &[i64])] = &[
        ("conv1.weight", &[64, 3, 7, 7]),
        ("bn1.weight", &[64]),
        ("bn1.bias", &[64]),
        ("layer2.0.conv1.weight", &[256, 256, 1, 1]),
        ("layer2.0.bn1.weight", &[256]),
        ("layer2.0.bn1.bias", &[256]),
        ("layer2.0.conv2.weight", &[256, 256, 3, 3]),
        ("layer2.0.bn2.weight", &[256]),
        ("layer2.0.bn2.bias", &[256]),
        ("layer2.0.conv3.weight", &[512, 256, 1, 1]),
        ("layer2.0.bn3.weight", &[512]),
        ("layer2.0.bn3.bias", &[512]),
        ("layer2.0.downsample.0.weight", &[512, 256, 1, 1]),
        ("layer2.0.downsample.1.weight", &[512]),
        ("layer2.0.downsample.1.bias", &[512]),
        ("fc.weight", &[1000, 2048]),
        ("fc.bias", &[1000]),
    ];
    assert_eq!(of, expected);
}

#[test]
fn stages_of_an_imagenet_network_are_the_papers_table() {
    let network = network("resnet-50", &Options { classes: 1000, image_size: 224, ..Options::default() });
    let stages: Vec<_> = (network.stages().iter())
        .map(|stage| (stage.name.as_str(), stage.output, stage.content.as_str()))
        .collect();
    assert_eq!(
        stages,
        [
            ("conv1", 112, "7x7, 64, stride 2"),
            ("conv2", 56, "max pool; [1x1, 64; 3x3, 64; 1x1, 256] x 3"),
            ("conv3", 28, "[1x1, 128; 3x3, 128; 1x1, 512] x 4"),
            ("conv4", 14, "[1x1, 256; 3x3, 256; 1x1, 1024] x 6"),
            ("conv5", 7, "[1x1, 512; 3x3, 512; 1x1, 2048] x 3"),
            ("avg-pool", 1, "7x7 average, fc 1000 classes"),
        ]
    );
}

#[test]
fn an_architecture_knows_the_images_that_it_was_published_for() {
    let usual = |name: &str| {
        let architecture: Architecture = name.parse().unwrap();
        (architecture.usual_image_size(), architecture.usual_classes())
    };
    assert!(SMALL.iter().all(|row| usual(row.0) == (32, 10)));
    assert!(IMAGENET.iter().all(|row| usual(row.0) == (224, 1000)));
}
