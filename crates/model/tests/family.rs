//! The paper's other blocks and the networks for ImageNet: depths, stages, and names against torchvision's.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::collections::HashSet;

use common::network;
use model::Options;

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
