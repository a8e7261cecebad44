//! Convolutions, parameters and multiply-adds, exactly.
//!
//! The numbers of the table were counted layer by layer in PyTorch, with the descriptions of `parity.py` and the
//! networks of torchvision and timm. They agree with what others print: 40-4 with the authors' training log,
//! 16-10, 28-10 and 40-8 with the tests of a public collection of models, the blocks B(M) with the paper's
//! tables 2 and 3, the networks for ImageNet with its table 7, resnet-164's with the authors' log, and
//! ResNeXt, DenseNet, SE-ResNet-50 and DPN-92 with their papers.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::collections::HashSet;

use common::network;
use model::{Architecture, Network, Options, Parameter, Projection, Role};

/// Number of classes of each column of parameters.
const CLASSES: [u32; 3] = [10, 100, 1000];

struct Row {
    architecture: &'static str,
    /// Side of the images that it was published for.
    image_size: u32,
    convolutions: u32,
    /// For each of [`CLASSES`].
    parameters: [u64; 3],
    /// For the first of [`CLASSES`].
    macs: u64,
}

#[rustfmt::skip]
const TABLE: &[Row] = &[
    row("wrn-10-1", 32, 9, [77_850, 83_700, 142_200], 12_501_632),
    row("wrn-10-2", 32, 10, [303_706, 315_316, 431_416], 44_483_840),
    row("wrn-16-4", 32, 16, [2_748_890, 2_772_020, 3_003_320], 392_612_352),
    row("wrn-16-8", 32, 16, [10_961_370, 11_007_540, 11_469_240], 1_548_145_664),
    row("wrn-16-10", 32, 16, [17_116_634, 17_174_324, 17_751_224], 2_412_173_568),
    row("wrn-22-8", 32, 22, [17_158_106, 17_204_276, 17_665_976], 2_454_115_328),
    row("wrn-22-10", 32, 22, [26_797_914, 26_855_604, 27_432_504], 3_827_751_168),
    row("wrn-28-2", 32, 28, [1_467_610, 1_479_220, 1_595_320], 214_353_152),
    row("wrn-28-10", 32, 28, [36_479_194, 36_536_884, 37_113_784], 5_243_328_768),
    row("wrn-28-12", 32, 28, [52_517_850, 52_587_060, 53_279_160], 7_543_905_792),
    row("wrn-40-1", 32, 39, [563_930, 569_780, 628_280], 83_280_512),
    row("wrn-40-2", 32, 40, [2_243_546, 2_255_156, 2_371_256], 327_599_360),
    row("wrn-40-4", 32, 40, [8_949_210, 8_972_340, 9_203_640], 1_298_582_016),
    row("wrn-40-8", 32, 40, [35_748_314, 35_794_484, 36_256_184], 5_172_024_320),
    row("wrn-40-10", 32, 40, [55_841_754, 55_899_444, 56_476_344], 8_074_483_968),
    row("wrn-52-1", 32, 51, [758_362, 764_212, 822_712], 111_592_064),
    row("wrn-40-2-b131", 32, 58, [1_429_082, 1_440_692, 1_556_792], 208_061_696),
    row("wrn-40-2-b31", 32, 40, [1_211_354, 1_222_964, 1_339_064], 176_604_416),
    row("wrn-40-2-b13", 32, 40, [1_297_370, 1_308_980, 1_425_080], 189_187_328),
    row("wrn-40-2-b311", 32, 58, [1_343_066, 1_354_676, 1_470_776], 195_478_784),
    row("wrn-22-2-b313", 32, 31, [1_145_498, 1_157_108, 1_273_208], 167_167_232),
    row("wrn-40-2-b3", 32, 40, [2_243_546, 2_255_156, 2_371_256], 327_599_360),
    row("wrn-40-2-b333", 32, 40, [2_243_546, 2_255_156, 2_371_256], 327_599_360),
    row("wrn-40-2-b3333", 32, 40, [2_243_546, 2_255_156, 2_371_256], 327_599_360),
    row("wrn-16-4-b55", 32, 16, [7_549_402, 7_572_532, 7_803_832], 1_080_478_208),
    row("wrn-16-4-b35", 32, 16, [5_501_402, 5_524_532, 5_755_832], 795_265_536),
    row("resnet-20", 32, 19, [269_722, 275_572, 334_072], 40_551_040),
    row("resnet-32", 32, 31, [464_154, 470_004, 528_504], 68_862_592),
    row("resnet-44", 32, 43, [658_586, 664_436, 722_936], 97_174_144),
    row("resnet-56", 32, 55, [853_018, 858_868, 917_368], 125_485_696),
    row("resnet-110", 32, 109, [1_727_962, 1_733_812, 1_792_312], 252_887_680),
    row("resnet-1202", 32, 1201, [19_421_274, 19_427_124, 19_485_624], 2_829_238_912),
    row("preact-resnet-110", 32, 111, [1_730_522, 1_736_372, 1_794_872], 253_149_824),
    row("preact-resnet-164", 32, 166, [1_703_258, 1_726_388, 1_957_688], 244_500_992),
    row("preact-resnet-1001", 32, 1003, [10_327_706, 10_350_836, 10_582_136], 1_487_849_984),
    row("resnext-29-8x64d", 32, 31, [34_426_698, 34_518_948, 35_441_448], 5_387_266_048),
    row("resnext-29-16x64d", 32, 31, [68_155_210, 68_247_460, 69_169_960], 10_688_866_304),
    row("se-wrn-16-8", 32, 16, [11_049_290, 11_095_460, 11_557_160], 1_548_231_680),
    row("se-resnet-110", 32, 109, [1_762_666, 1_768_516, 1_827_016], 252_919_936),
    row("densenet-bc-100-12", 32, 99, [769_162, 800_032, 1_108_732], 287_929_692),
    row("densenet-bc-190-40", 32, 189, [25_624_430, 25_821_620, 27_793_520], 9_301_945_740),
    row("resnet-18", 224, 20, [11_181_642, 11_227_812, 11_689_512], 1_813_566_464),
    row("resnet-34", 224, 36, [21_289_802, 21_335_972, 21_797_672], 3_663_254_528),
    row("resnet-50", 224, 53, [23_528_522, 23_712_932, 25_557_032], 4_087_156_736),
    row("resnet-101", 224, 104, [42_520_650, 42_705_060, 44_549_160], 7_799_377_920),
    row("resnet-152", 224, 155, [58_164_298, 58_348_708, 60_192_808], 11_511_599_104),
    row("wrn-18-1-imagenet", 224, 20, [11_181_642, 11_227_812, 11_689_512], 1_813_566_464),
    row("wrn-18-1.5-imagenet", 224, 21, [25_114_506, 25_183_716, 25_875_816], 3_865_566_720),
    row("wrn-18-2-imagenet", 224, 21, [44_603_466, 44_695_716, 45_618_216], 6_694_692_864),
    row("wrn-18-3-imagenet", 224, 21, [100_262_346, 100_400_676, 101_783_976], 14_722_857_984),
    row("wrn-34-1.5-imagenet", 224, 37, [47_852_298, 47_921_508, 48_613_608], 8_027_364_864),
    row("wrn-34-2-imagenet", 224, 37, [85_021_258, 85_113_508, 86_036_008], 14_093_445_120),
    row("wrn-34-3-imagenet", 224, 37, [191_191_242, 191_329_572, 192_712_872], 31_370_050_560),
    row("wrn-50-1-bottleneck", 224, 53, [23_528_522, 23_712_932, 25_557_032], 4_087_156_736),
    row("wrn-50-2-bottleneck", 224, 53, [66_854_730, 67_039_140, 68_883_240], 11_395_993_600),
    row("wrn-101-2-bottleneck", 224, 104, [124_858_186, 125_042_596, 126_886_696], 22_751_023_104),
    row("resnext-50-32x4d", 224, 53, [23_000_394, 23_184_804, 25_028_904], 4_228_452_352),
    row("resnext-101-32x8d", 224, 104, [86_762_826, 86_947_236, 88_791_336], 16_411_987_968),
    row("densenet-121", 224, 120, [6_964_106, 7_056_356, 7_978_856], 2_833_147_904),
    row("densenet-161", 224, 160, [26_494_090, 26_692_900, 28_681_000], 7_725_721_152),
    row("densenet-169", 224, 168, [12_501_130, 12_650_980, 14_149_480], 3_358_195_968),
    row("densenet-201", 224, 200, [18_112_138, 18_285_028, 20_013_928], 4_289_465_088),
    row("se-resnet-18", 224, 20, [11_271_754, 11_317_924, 11_779_624], 1_813_654_528),
    row("se-resnet-50", 224, 53, [26_059_514, 26_243_924, 28_088_024], 4_089_671_680),
    row("se-resnet-101", 224, 104, [47_298_362, 47_482_772, 49_326_872], 7_804_121_088),
    row("se-resnext-50-32x4d", 224, 53, [25_531_386, 25_715_796, 27_559_896], 4_230_967_296),
    row("dpn-68", 224, 71, [11_786_932, 11_861_902, 12_611_602], 2_325_339_776),
    row("dpn-92", 224, 95, [35_006_282, 35_248_292, 37_668_392], 6_499_023_104),
    row("dpn-98", 224, 101, [58_908_618, 59_150_628, 61_570_728], 11_668_556_032),
    row("dpn-107", 224, 110, [84_255_690, 84_497_700, 86_917_800], 18_296_103_168),
    row("dpn-131", 224, 134, [76_592_394, 76_834_404, 79_254_504], 16_010_987_776),
];

const fn row(
    architecture: &'static str,
    image_size: u32,
    convolutions: u32,
    parameters: [u64; 3],
    macs: u64,
) -> Row {
    Row { architecture, image_size, convolutions, parameters, macs }
}

fn elements(parameter: &Parameter) -> u64 {
    parameter.shape.iter().product::<i64>() as u64
}

fn sum(network: &Network, of: impl Fn(&Parameter) -> bool) -> u64 {
    network.parameters().iter().filter(|parameter| of(parameter)).map(elements).sum()
}

#[test]
fn convolutions_parameters_and_macs_equal_the_table() {
    for row in TABLE {
        for (classes, parameters) in CLASSES.into_iter().zip(row.parameters) {
            let name = format!("{} with {classes} classes", row.architecture);
            let options = Options { classes, image_size: row.image_size, ..Options::default() };
            let network = network(row.architecture, &options);
            assert_eq!(network.convolutions(), row.convolutions, "{name}");
            assert_eq!(network.parameter_count(), parameters, "{name}");
            // A class more is a row of weights, each a multiply-add, and a bias, which is none.
            let more_classes = u64::from(classes - CLASSES[0]);
            let macs = row.macs + (parameters - row.parameters[0]) - more_classes;
            assert_eq!(network.macs(), macs, "{name}");

            // What is declared is what is counted, and the stages add up to it.
            assert_eq!(sum(&network, |_| true), parameters, "{name}");
            let stages = network.stages();
            assert_eq!(stages.iter().map(|stage| stage.parameters).sum::<u64>(), parameters, "{name}");
            assert_eq!(stages.iter().map(|stage| stage.macs).sum::<u64>(), macs, "{name}");
        }
    }
}

#[test]
fn an_architecture_knows_the_images_and_classes_that_it_was_published_for() {
    for row in TABLE {
        let architecture: Architecture = row.architecture.parse().unwrap();
        assert_eq!(architecture.to_string(), row.architecture);
        assert_eq!(architecture.usual_image_size(), row.image_size, "{architecture}");
        let classes = if row.image_size == 224 { 1000 } else { 10 };
        assert_eq!(architecture.usual_classes(), classes, "{architecture}");
    }
}

#[test]
fn names_of_tensors_are_unique_in_every_naming() {
    for row in TABLE {
        let network = network(row.architecture, &Options::default());
        for naming in network.namings() {
            let tensors = network.named_tensors(naming);
            let names: HashSet<_> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
            assert_eq!(names.len(), tensors.len(), "{} for {naming}", row.architecture);
            for (parameter, tensor) in network.parameters().iter().zip(&tensors) {
                assert_eq!(tensor.own_name, parameter.name);
                assert_eq!(
                    tensor.shape.iter().product::<i64>() as u64,
                    elements(parameter),
                    "{}",
                    tensor.name
                );
            }
        }
        let parameters: HashSet<_> = network.parameters().iter().map(|p| p.name.as_str()).collect();
        assert!(
            network.norms().iter().all(|norm| parameters.contains(format!("{}.weight", norm.name).as_str()))
        );
    }
}

#[test]
fn parts_of_a_wrn_follow_the_closed_forms() {
    for row in TABLE {
        let parts: Vec<_> = row.architecture.split('-').collect();
        let ["wrn", depth, width] = parts[..] else { continue };
        let [depth, width] = [depth, width].map(|part| part.parse::<u64>().unwrap());
        let (name, blocks, narrow) = (row.architecture, (depth - 4) / 6, u64::from(width == 1));
        let network = network(name, &Options::default());
        let projections = sum(&network, |p| p.name.contains("convdim"));
        let expected = 256 * width + 2560 * width * width - 256 * narrow;
        assert_eq!(projections, expected, "projections of {name}");
        let norms = sum(&network, |p| matches!(p.role, Role::NormGain | Role::NormBias));
        assert_eq!(norms, 32 + 448 * blocks * width, "batch norms of {name}");
        let classifier = sum(&network, |p| matches!(p.role, Role::LinearWeight | Role::LinearBias));
        assert_eq!(classifier, (64 * width + 1) * 10, "classifier of {name}");
        assert_eq!(network.parameters().len() as u64, 18 * blocks + 8 - narrow, "tensors of {name}");
        assert_eq!(network.norms().len() as u64, 6 * blocks + 1, "batch norms of {name}");
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
