//! The same networks in PyTorch: `parity.py` builds them on its own from the papers' descriptions, or takes
//! torchvision's, and computes with our weights.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Weights, network, relative_error, values, waves};
use model::{Network, Options, Projection, ShortcutInput, Statistics};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use torch_ext::layout;

/// Images of a batch, and the side of those of small networks. Small, since the fewer numbers pass a ReLU,
/// the less likely is one that another order of summation brings to its other side, which would change a
/// gradient by far more than rounding.
const BATCH: i64 = 4;
const SIDE: u32 = 16;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity.py");

/// Why the comparison cannot run here, if it cannot.
fn obstacle(module: &str) -> Option<String> {
    match Command::new("python3").args(["-c", &format!("import {module}")]).output() {
        Err(error) => Some(format!("python3 does not start: {error}")),
        Ok(output) if !output.status.success() => Some(format!("python3 has no {module}")),
        Ok(_) => None,
    }
}

/// One tensor as `NAME.f32` (values in logical order, little endian); its line in `tensors.txt` has name and
/// shape.
fn write_tensor(folder: &Path, index: &mut String, name: &str, tensor: &Tensor) {
    let bytes: Vec<_> = values(tensor).iter().flat_map(|value| value.to_le_bytes()).collect();
    fs::write(folder.join(format!("{name}.f32")), bytes).unwrap();
    let shape: Vec<_> = tensor.size().iter().map(i64::to_string).collect();
    writeln!(index, "{name} {}", shape.join(" ")).unwrap();
}

fn read_tensor(folder: &Path, name: &str, shape: &[i64]) -> Tensor {
    let bytes = fs::read(folder.join(format!("{name}.f32"))).unwrap();
    let values: Vec<_> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Tensor::from_slice(&values).reshape(shape)
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
    statistics: f64,
}

const SINGLE: Precision = Precision { kind: Kind::Float, logits: 1e-5, gradients: 3e-5, statistics: 3e-5 };

/// For deep networks: there some numbers do land on the other side of a ReLU or lose to their neighbour in a
/// max pool, so that single precision says little about gradients, and `DOUBLE` has to.
const SINGLE_DEEP: Precision =
    Precision { kind: Kind::Float, logits: 1e-4, gradients: 5e-2, statistics: 1e-4 };

/// For those of torchvision in training. Between the contiguous and the channels_last order of the same
/// images, PyTorch itself gives wide_resnet101_2 logits that differ by 3e-4 and gradients that differ by
/// 8e-2.
const SINGLE_DEEPEST: Precision =
    Precision { kind: Kind::Float, logits: 1e-3, gradients: 0.2, statistics: 1e-3 };

/// Answers come back in single precision.
const DOUBLE: Precision = Precision { kind: Kind::Double, logits: 1e-6, gradients: 1e-6, statistics: 1e-6 };

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

/// What `parity.py` is asked: a network in a folder.
struct Case {
    name: String,
    training: bool,
    image_size: u32,
    precision: Precision,
    network: Network,
    weights: Weights,
    folder: TempDir,
}

impl Case {
    fn new(architecture: &str, training: bool, options: &Options) -> Self {
        Case::with("", SINGLE, architecture, training, options)
    }

    /// With one more argument of the script.
    fn with(
        argument: &str,
        precision: Precision,
        architecture: &str,
        training: bool,
        options: &Options,
    ) -> Self {
        let network = network(architecture, options);
        let weights = Weights::new(&network, 5);
        let folder = tempfile::tempdir().unwrap();

        let mut index = String::new();
        let mut write = |name: &str, tensor: &Tensor| write_tensor(folder.path(), &mut index, name, tensor);
        write("images", &images(options.image_size));
        for (parameter, leaf) in network.parameters().iter().zip(&weights.leaves) {
            write(&parameter.name, leaf);
        }
        for (norm, running) in network.norms().iter().zip(&weights.running) {
            write(&format!("{}.running_mean", norm.name), &running.mean);
            write(&format!("{}.running_var", norm.name), &running.variance);
        }
        fs::write(folder.path().join("tensors.txt"), index).unwrap();

        let mut arguments = format!("{architecture} {} {argument}", options.classes);
        for (flag, on) in [
            (" --raw-shortcut", options.shortcut_input == ShortcutInput::Raw),
            (" --always-project", options.projection == Projection::FirstBlock),
            (" --training", training),
            (" --double", precision.kind == Kind::Double),
        ] {
            arguments.push_str(if on { flag } else { "" });
        }
        fs::write(folder.path().join("arguments.txt"), &arguments).unwrap();
        let weights = if precision.kind == Kind::Double { doubled(&weights) } else { weights };
        Case {
            name: arguments,
            training,
            image_size: options.image_size,
            precision,
            network,
            weights,
            folder,
        }
    }

    /// Our own numbers against the script's.
    fn compare(&self) {
        let compare = |what: &str, ours: &Tensor, tolerance: f64| {
            let theirs = read_tensor(self.folder.path(), &format!("answer.{what}"), &ours.size());
            let error = relative_error(ours, &theirs);
            assert!(error < tolerance, "{}: {what} is off by {error}", self.name);
        };
        let Precision { kind, logits: of_logits, gradients, statistics } = self.precision;
        let weights = &self.weights;
        let pass = if self.training { weights.training() } else { weights.evaluation() };
        let logits = self.network.forward(&images(self.image_size).to_kind(kind), &pass).unwrap();
        let labels = Tensor::arange(BATCH, (Kind::Int64, Device::Cpu)) * 2 + 1;
        let loss = logits.cross_entropy_for_logits(&labels);
        loss.backward();

        compare("logits", &logits, of_logits);
        compare("loss", &loss, of_logits);
        for (parameter, leaf) in self.network.parameters().iter().zip(&weights.leaves) {
            compare(&format!("gradient.{}", parameter.name), &leaf.grad(), gradients);
        }
        if self.training {
            for (norm, batch) in self.network.norms().iter().zip(&weights.batch) {
                compare(&format!("mean.{}", norm.name), &batch.mean, statistics);
                compare(&format!("variance.{}", norm.name), &batch.variance, statistics);
            }
        }
    }
}

#[test]
fn logits_gradients_and_batch_statistics_equal_pytorchs() {
    if let Some(reason) = obstacle("torch") {
        eprintln!("SKIPPED python: {reason}; the network is not compared with PyTorch's");
        return;
    }
    let paper = || Options { image_size: SIDE, ..Options::default() };
    let cases = [
        Case::new("wrn-16-1", true, &paper()),
        Case::new("wrn-16-2", true, &Options { classes: 100, ..paper() }),
        Case::new("wrn-16-1", true, &Options { projection: Projection::FirstBlock, ..paper() }),
        Case::new("wrn-10-2", true, &Options { shortcut_input: ShortcutInput::Raw, ..paper() }),
        Case::new("wrn-28-2", false, &paper()),
        Case::new("wrn-10-4", false, &Options { shortcut_input: ShortcutInput::Raw, ..paper() }),
    ];
    compare_all(&cases);
}

#[test]
fn every_block_of_the_paper_equals_its_description_in_pytorch() {
    if let Some(reason) = obstacle("torch") {
        eprintln!("SKIPPED python: {reason}; the blocks B(M) are not compared with PyTorch's");
        return;
    }
    let options = Options { image_size: SIDE, ..Options::default() };
    let raw = Options { shortcut_input: ShortcutInput::Raw, ..options.clone() };
    let cases: Vec<_> = [
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
    ]
    .into_iter()
    .flat_map(|(architecture, training, options)| {
        [SINGLE_DEEP, DOUBLE].map(|precision| Case::with("", precision, architecture, training, options))
    })
    .collect();
    compare_all(&cases);
}

#[test]
fn resnets_for_small_images_equal_their_descriptions_in_pytorch() {
    if let Some(reason) = obstacle("torch") {
        eprintln!("SKIPPED python: {reason}; the ResNets are not compared with PyTorch's");
        return;
    }
    let options = Options { image_size: SIDE, ..Options::default() };
    let cases: Vec<_> = [
        ("resnet-20", true),
        ("resnet-20", false),
        ("resnet-44", true),
        ("preact-resnet-20", true),
        ("preact-resnet-164", false),
    ]
    .into_iter()
    .flat_map(|(architecture, training)| {
        [SINGLE_DEEP, DOUBLE].map(|precision| Case::with("", precision, architecture, training, &options))
    })
    .collect();
    compare_all(&cases);
}

#[test]
#[ignore = "long: five networks of up to half a gigabyte, in PyTorch too; about five minutes"]
fn imagenet_networks_equal_torchvisions() {
    if let Some(reason) = obstacle("torchvision") {
        eprintln!("SKIPPED torchvision: {reason}; the ImageNet networks are not compared with torchvision's");
        return;
    }
    let options = Options { image_size: 64, ..Options::default() };
    for architecture in
        ["resnet-18", "resnet-50", "wrn-18-1.5-imagenet", "wrn-50-2-bottleneck", "wrn-101-2-bottleneck"]
    {
        for (training, precision) in [(true, DOUBLE), (true, SINGLE_DEEPEST), (false, SINGLE_DEEP)] {
            // One at a time, since the largest have half a gigabyte of weights.
            compare_all(&[Case::with("--torchvision", precision, architecture, training, &options)]);
        }
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
