//! The same networks in PyTorch: `parity.py` builds them on its own from the papers' descriptions, or takes
//! torchvision's and timm's. Weights go through safetensors, ours to PyTorch or PyTorch's to us.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use common::{Weights, network, relative_error, waves};
use model::{Content, Naming, Network, Options, Projection, ShortcutInput, Statistics};
use tch::{Device, Kind, Reduction, Tensor};
use tempfile::TempDir;
use torch_ext::layout;

/// Images of a batch, and the side of those of small networks. Small, since the fewer numbers pass a ReLU,
/// the less likely is one that another order of summation brings to its other side, which would change a
/// gradient by far more than rounding.
const BATCH: i64 = 4;
const SIDE: u32 = 16;

/// Gradients below this share of all gradients together count as 0.
const NEGLIGIBLE: f64 = 1e-12;

/// Share of a batch in the running statistics, PyTorch's default.
const MOMENTUM: f64 = 0.1;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity.py");

/// Whether the comparison can run here; says so loudly when it cannot.
fn python_or_skip(module: &str, what: &str) -> bool {
    let reason = match Command::new("python3").args(["-c", &format!("import safetensors, {module}")]).output()
    {
        Err(error) => format!("python3 does not start: {error}"),
        Ok(output) if !output.status.success() => format!("python3 has no safetensors or no {module}"),
        Ok(_) => return true,
    };
    let required = std::env::var("REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name.trim() == "python"), "python is required, but {reason}");
    let line = format!("SKIPPED python: {reason}; {what} are not compared with PyTorch's\n");
    eprint!("{line}");
    if let Some(log) = std::env::var_os("WRN_DIST_SKIP_LOG") {
        let file = OpenOptions::new().create(true).append(true).open(log);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
    false
}

fn images(side: u32) -> Tensor {
    layout::channels_last(&waves(&[BATCH, 3, i64::from(side), i64::from(side)], 0.3)).unwrap()
}

/// How both sides compute, and the largest relative errors.
#[derive(Clone, Copy)]
struct Precision {
    kind: Kind,
    logits: f64,
    gradients: f64,
    /// Of the running statistics after one step.
    statistics: f64,
}

const SINGLE: Precision = Precision { kind: Kind::Float, logits: 1e-5, gradients: 3e-5, statistics: 1e-6 };

/// For deep networks: there some numbers do land on the other side of a ReLU or lose to their neighbour in a
/// max pool, so that single precision says little about gradients, and `DOUBLE` has to.
const SINGLE_DEEP: Precision =
    Precision { kind: Kind::Float, logits: 1e-4, gradients: 5e-2, statistics: 1e-4 };

/// For those of torchvision in training. Between the contiguous and the channels_last order of the same
/// images, PyTorch itself gives wide_resnet101_2 logits that differ by 3e-4 and gradients that differ by
/// 8e-2.
const SINGLE_DEEPEST: Precision =
    Precision { kind: Kind::Float, logits: 1e-3, gradients: 0.2, statistics: 1e-3 };

const DOUBLE: Precision = Precision { kind: Kind::Double, logits: 1e-9, gradients: 1e-8, statistics: 1e-9 };

/// Whose weights both sides compute with.
#[derive(Clone, Copy, PartialEq)]
enum From {
    Us,
    PyTorch,
}

/// Whose network ours is compared with.
#[derive(Clone, Copy)]
enum Source {
    /// Written in `parity.py`, with our own names.
    Description,
    Torchvision,
    Timm,
}

impl Source {
    fn naming(self) -> Naming {
        match self {
            Source::Description => Naming::Own,
            Source::Torchvision => Naming::Torchvision,
            Source::Timm => Naming::Timm,
        }
    }

    fn argument(self) -> &'static str {
        match self {
            Source::Description => "description",
            Source::Torchvision => "torchvision",
            Source::Timm => "timm",
        }
    }
}

/// One forward and backward pass on both sides, in a folder that they share.
struct Case {
    name: String,
    training: bool,
    precision: Precision,
    naming: Naming,
    options: Options,
    network: Network,
    from: From,
    folder: TempDir,
}

impl Case {
    fn new(
        source: Source,
        architecture: &str,
        training: bool,
        precision: Precision,
        from: From,
        options: &Options,
    ) -> Self {
        let network = network(architecture, options);
        let naming = source.naming();
        assert!(network.namings().contains(&naming), "{architecture} has no names of {naming}");
        let folder = tempfile::tempdir().unwrap();
        let mut arguments = format!("{architecture} {} {}", options.classes, source.argument());
        for (flag, on) in [
            (" --raw-shortcut", options.shortcut_input == ShortcutInput::Raw),
            (" --always-project", options.projection == Projection::FirstBlock),
            (" --training", training),
            (" --double", precision.kind == Kind::Double),
            (" --own-weights", from == From::PyTorch),
        ] {
            arguments.push_str(if on { flag } else { "" });
        }
        fs::write(folder.path().join("arguments.txt"), &arguments).unwrap();
        let images = images(options.image_size).contiguous();
        Tensor::write_safetensors(&[("images", images)], folder.path().join("images.safetensors")).unwrap();
        if from == From::Us {
            write_weights(&network, naming, &Weights::new(&network, 5), &weights_file(folder.path()));
        }
        Case { name: arguments, training, precision, naming, options: options.clone(), network, from, folder }
    }

    /// Our own numbers against the script's.
    fn compare(&self) {
        let Precision { kind, logits: of_logits, gradients, statistics } = self.precision;
        let mut weights = Weights::new(&self.network, 5);
        if self.from == From::PyTorch {
            read_weights(&self.network, self.naming, &mut weights, &weights_file(self.folder.path()));
        }
        let weights = if kind == Kind::Double { doubled(&weights) } else { weights };
        let pass = if self.training { weights.training() } else { weights.evaluation() };
        let logits = self.network.forward(&images(self.options.image_size).to_kind(kind), &pass).unwrap();
        let labels = Tensor::arange(BATCH, (Kind::Int64, Device::Cpu)) * 2 + 1;
        let loss = logits.cross_entropy_loss::<Tensor>(&labels, None, Reduction::Mean, -100, 0.0);
        loss.backward();

        let answers: HashMap<String, Tensor> =
            Tensor::read_safetensors(self.folder.path().join("answers.safetensors"))
                .unwrap()
                .into_iter()
                .collect();
        let compare = |what: &str, ours: &Tensor, tolerance: f64| {
            let theirs = answers[what].reshape(ours.size());
            let error = relative_error(ours, &theirs);
            assert!(error < tolerance, "{}: {what} is off by {error}", self.name);
        };
        compare("logits", &logits, of_logits);
        compare("loss", &loss, of_logits);
        let named = self.network.named_tensors(self.naming);
        let norm = |tensor: &Tensor| tensor.norm().double_value(&[]);
        let whole =
            named.iter().zip(&weights.leaves).map(|(_, leaf)| norm(&leaf.grad()).powi(2)).sum::<f64>();
        for (tensor, leaf) in named.iter().zip(&weights.leaves) {
            let what = format!("gradient.{}", tensor.name);
            // Of a shift that the next batch norm takes away again nothing but rounding is left.
            let negligible = NEGLIGIBLE * whole.sqrt();
            if [norm(&leaf.grad()), norm(&answers[&what])].iter().any(|&norm| norm > negligible) {
                compare(&what, &leaf.grad(), gradients);
            }
        }
        if self.training {
            let norms = self.network.norms().iter().zip(weights.running.iter().zip(&weights.batch));
            for (norm, (running, batch)) in norms {
                for (what, running, batch) in [
                    ("running_mean", &running.mean, &batch.mean),
                    ("running_var", &running.variance, &batch.variance),
                ] {
                    let after = running * (1.0 - MOMENTUM) + batch * MOMENTUM;
                    compare(&format!("{}.{what}", norm.name), &after, statistics);
                }
            }
        }
    }
}

fn weights_file(folder: &Path) -> std::path::PathBuf {
    folder.join("weights.safetensors")
}

/// The tensors of a network by our own names: parameters, then mean and variance of each batch norm.
fn by_own_name<'a>(network: &'a Network, weights: &'a Weights) -> HashMap<String, &'a Tensor> {
    let parameters = network.parameters().iter().map(|parameter| parameter.name.clone()).zip(&weights.leaves);
    let statistics = network.norms().iter().zip(&weights.running).flat_map(|(norm, running)| {
        [("mean", &running.mean), ("var", &running.variance)]
            .map(|(what, tensor)| (format!("{}.running_{what}", norm.name), tensor))
    });
    parameters.chain(statistics).collect()
}

fn write_weights(network: &Network, naming: Naming, weights: &Weights, path: &Path) {
    let own = by_own_name(network, weights);
    let tensors: Vec<(String, Tensor)> = (network.named_tensors(naming).into_iter())
        .map(|tensor| {
            let values = match tensor.content {
                Content::BatchCount => Tensor::zeros([0_i64; 0], (Kind::Int64, Device::Cpu)),
                _ => own[&tensor.own_name].detach().reshape(&tensor.shape).contiguous(),
            };
            (tensor.name, values)
        })
        .collect();
    Tensor::write_safetensors(&tensors, path).unwrap();
}

fn read_weights(network: &Network, naming: Naming, weights: &mut Weights, path: &Path) {
    let mut read: HashMap<String, Tensor> = Tensor::read_safetensors(path).unwrap().into_iter().collect();
    let own = by_own_name(network, weights);
    let _no_grad = tch::no_grad_guard();
    for tensor in network.named_tensors(naming) {
        let values = read.remove(&tensor.name).unwrap();
        assert_eq!(values.size(), tensor.shape, "{}", tensor.name);
        if tensor.content != Content::BatchCount {
            let place = own[&tensor.own_name];
            place.shallow_clone().copy_(&values.reshape(place.size()));
        }
    }
    assert!(read.is_empty(), "{:?} are not part of the network", read.keys());
}

/// The tensors of a network in double precision.
fn doubled(weights: &Weights) -> Weights {
    let double = |tensor: &Tensor| tensor.detach().to_kind(Kind::Double);
    let statistics = |layers: &[Statistics]| {
        layers.iter().map(|s| Statistics { mean: double(&s.mean), variance: double(&s.variance) }).collect()
    };
    Weights {
        leaves: weights.leaves.iter().map(|leaf| double(leaf).set_requires_grad(true)).collect(),
        gradients: double(&weights.gradients),
        batch: statistics(&weights.batch),
        running: statistics(&weights.running),
    }
}

/// One start of Python for all of them.
fn compare_all(cases: &[Case]) {
    let output = Command::new("python3")
        .arg(SCRIPT)
        .args(cases.iter().map(|case| case.folder.path()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cases.iter().for_each(Case::compare);
}

#[test]
fn networks_of_the_paper_equal_their_description_in_pytorch() {
    if !python_or_skip("torch", "the paper's networks") {
        return;
    }
    let paper = || Options { image_size: SIDE, ..Options::default() };
    let project = || Options { projection: Projection::FirstBlock, ..paper() };
    let raw = || Options { shortcut_input: ShortcutInput::Raw, ..paper() };
    let cases: Vec<_> = [
        ("wrn-16-1", true, From::Us, paper()),
        ("wrn-16-2", true, From::PyTorch, Options { classes: 100, ..paper() }),
        ("wrn-16-1", true, From::Us, project()),
        ("wrn-10-2", true, From::PyTorch, raw()),
        ("wrn-28-2", false, From::Us, paper()),
        ("wrn-28-2", false, From::PyTorch, paper()),
        ("wrn-10-4", false, From::Us, raw()),
    ]
    .into_iter()
    .map(|(architecture, training, from, options)| {
        Case::new(Source::Description, architecture, training, SINGLE, from, &options)
    })
    .collect();
    compare_all(&cases);
}

/// Each network in single and double precision, with weights from both sides.
fn compare_descriptions(networks: &[(&str, bool, &Options)]) {
    let cases: Vec<_> = networks
        .iter()
        .flat_map(|(architecture, training, options)| {
            [(SINGLE_DEEP, From::PyTorch), (DOUBLE, From::Us)].map(|(precision, from)| {
                Case::new(Source::Description, architecture, *training, precision, from, options)
            })
        })
        .collect();
    compare_all(&cases);
}

#[test]
fn every_block_of_the_paper_equals_its_description_in_pytorch() {
    if !python_or_skip("torch", "the blocks B(M)") {
        return;
    }
    let options = Options { image_size: SIDE, ..Options::default() };
    let raw = Options { shortcut_input: ShortcutInput::Raw, ..options.clone() };
    compare_descriptions(&[
        ("wrn-10-2-b3", true, &options),
        ("wrn-13-1-b333", true, &options),
        ("wrn-16-1-b3333", true, &options),
        ("wrn-10-2-b13", true, &options),
        ("wrn-10-2-b31", true, &options),
        ("wrn-10-2-b131", true, &options),
        ("wrn-10-2-b311", true, &raw),
        ("wrn-10-2-b313", true, &options),
        ("wrn-10-2-b313", false, &options),
        ("wrn-10-1-b55", true, &options),
        ("wrn-10-2-b35", true, &options),
    ]);
}

#[test]
fn resnets_for_small_images_equal_their_descriptions_in_pytorch() {
    if !python_or_skip("torch", "the ResNets for small images") {
        return;
    }
    let options = Options { image_size: SIDE, ..Options::default() };
    compare_descriptions(&[
        ("resnet-20", true, &options),
        ("resnet-20", false, &options),
        ("resnet-44", true, &options),
        ("preact-resnet-20", true, &options),
        ("preact-resnet-164", false, &options),
    ]);
}

#[test]
fn other_blocks_for_small_images_equal_their_descriptions_in_pytorch() {
    if !python_or_skip("torch", "ResNeXt, squeeze and excitation and DenseNet for small images") {
        return;
    }
    let options = Options { image_size: SIDE, ..Options::default() };
    let raw = Options { shortcut_input: ShortcutInput::Raw, ..options.clone() };
    compare_descriptions(&[
        ("se-wrn-10-2", true, &options),
        ("se-wrn-16-1-b313", false, &raw),
        ("se-resnet-20", true, &options),
        ("resnext-20-4x8d", true, &options),
        ("se-resnext-20-2x4d", true, &options),
        ("resnext-29-8x16d", false, &options),
        ("densenet-bc-22-12", true, &options),
        ("densenet-bc-40-6", false, &options),
    ]);
}

/// How the networks of a library are compared.
#[derive(Clone, Copy, PartialEq)]
enum Batches {
    /// One start of Python for each network.
    Together,
    /// One for each case, since the weights of a network take up to half a gigabyte.
    OneByOne,
}

/// Mode of training, precision and direction of each case of a network.
type Parts = [(bool, Precision, From); 3];

const PARTS: Parts =
    [(true, DOUBLE, From::Us), (true, SINGLE_DEEPEST, From::PyTorch), (false, SINGLE_DEEP, From::PyTorch)];

/// For networks of 100 layers and more, whose outputs in single precision depend on the order of every sum.
const DOUBLE_PARTS: Parts =
    [(true, DOUBLE, From::Us), (true, DOUBLE, From::PyTorch), (false, DOUBLE, From::PyTorch)];

fn compare_library(source: Source, architectures: &[&str], image_size: u32, parts: Parts, batches: Batches) {
    if !python_or_skip(source.argument(), "the ImageNet networks") {
        return;
    }
    let options = Options { image_size, ..Options::default() };
    for architecture in architectures {
        let case = |(training, precision, from)| {
            Case::new(source, architecture, training, precision, from, &options)
        };
        match batches {
            Batches::Together => compare_all(&parts.map(case)),
            Batches::OneByOne => parts.into_iter().for_each(|part| compare_all(&[case(part)])),
        }
    }
}

/// Side of small images for networks that halve it five times.
const IMAGENET_SIDE: u32 = 64;

/// Side that the ImageNet networks are made for.
const IMAGENET_FULL_SIDE: u32 = 224;

#[test]
fn networks_of_torchvision_equal_ours() {
    let architectures = ["resnet-18", "wrn-18-1.5-imagenet", "resnet-50", "resnext-50-32x4d", "densenet-121"];
    compare_library(Source::Torchvision, &architectures, IMAGENET_SIDE, PARTS, Batches::Together);
}

#[test]
fn networks_of_timm_equal_ours() {
    let architectures = ["se-resnet-50", "dpn-92"];
    compare_library(Source::Timm, &architectures, IMAGENET_SIDE, PARTS, Batches::Together);
}

#[test]
#[ignore = "long: networks of up to half a gigabyte, in PyTorch too"]
fn large_networks_of_torchvision_equal_ours() {
    let architectures = [
        "resnet-34",
        "resnet-101",
        "resnet-152",
        "resnext-101-32x8d",
        "densenet-161",
        "densenet-169",
        "densenet-201",
        "wrn-50-2-bottleneck",
        "wrn-101-2-bottleneck",
    ];
    compare_library(Source::Torchvision, &architectures, IMAGENET_SIDE, DOUBLE_PARTS, Batches::OneByOne);
}

#[test]
#[ignore = "long: networks of up to a third of a gigabyte, in PyTorch too"]
fn large_networks_of_timm_equal_ours() {
    let architectures = [
        "wrn-50-2-bottleneck",
        "resnet-50",
        "resnext-50-32x4d",
        "densenet-121",
        "se-resnet-18",
        "se-resnet-101",
        "se-resnext-50-32x4d",
        "dpn-68",
        "dpn-98",
        "dpn-107",
        "dpn-131",
    ];
    compare_library(Source::Timm, &architectures, IMAGENET_SIDE, DOUBLE_PARTS, Batches::OneByOne);
}

#[test]
#[ignore = "long: images of 224 px, in double precision too"]
fn networks_of_torchvision_and_timm_equal_ours_on_images_of_their_usual_size() {
    let architectures = ["resnet-18", "resnet-50", "wrn-50-2-bottleneck", "resnext-50-32x4d", "densenet-121"];
    compare_library(Source::Torchvision, &architectures, IMAGENET_FULL_SIDE, PARTS, Batches::OneByOne);
    compare_library(Source::Timm, &["se-resnet-50", "dpn-92"], IMAGENET_FULL_SIDE, PARTS, Batches::OneByOne);
}
