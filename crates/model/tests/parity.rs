//! The same network in PyTorch: `parity.py` builds it on its own from the paper's description, and computes
//! with our weights.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Weights, network, relative_error, values, waves};
use model::{Network, Options, Projection, ShortcutInput};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use torch_ext::layout;

/// Images of a batch, and their side. Small, since the fewer numbers pass a ReLU, the less likely is one that
/// another order of summation brings to its other side, which would change a gradient by far more than
/// rounding.
const BATCH: i64 = 4;
const SIDE: u32 = 16;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity.py");

/// Why the comparison cannot run here, if it cannot.
fn obstacle() -> Option<String> {
    match Command::new("python3").args(["-c", "import torch"]).output() {
        Err(error) => Some(format!("python3 does not start: {error}")),
        Ok(output) if !output.status.success() => Some("python3 has no torch".into()),
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

fn images() -> Tensor {
    layout::channels_last(&waves(&[BATCH, 3, i64::from(SIDE), i64::from(SIDE)], 0.3)).unwrap()
}

/// What `parity.py` is asked: a network in a folder.
struct Case {
    name: String,
    training: bool,
    network: Network,
    weights: Weights,
    folder: TempDir,
}

impl Case {
    fn new(architecture: &str, training: bool, options: &Options) -> Self {
        let network = network(architecture, options);
        let weights = Weights::new(&network, 5);
        let folder = tempfile::tempdir().unwrap();

        let mut index = String::new();
        let mut write = |name: &str, tensor: &Tensor| write_tensor(folder.path(), &mut index, name, tensor);
        write("images", &images());
        for (parameter, leaf) in network.parameters().iter().zip(&weights.leaves) {
            write(&parameter.name, leaf);
        }
        for (norm, running) in network.norms().iter().zip(&weights.running) {
            write(&format!("{}.running_mean", norm.name), &running.mean);
            write(&format!("{}.running_var", norm.name), &running.variance);
        }
        fs::write(folder.path().join("tensors.txt"), index).unwrap();

        let mut arguments = format!("{architecture} {}", options.classes);
        for (flag, on) in [
            (" --raw-shortcut", options.shortcut_input == ShortcutInput::Raw),
            (" --always-project", options.projection == Projection::FirstBlock),
            (" --training", training),
        ] {
            arguments.push_str(if on { flag } else { "" });
        }
        fs::write(folder.path().join("arguments.txt"), &arguments).unwrap();
        Case { name: arguments, training, network, weights, folder }
    }

    /// Our own numbers against the script's.
    fn compare(&self) {
        let compare = |what: &str, ours: &Tensor, tolerance: f64| {
            let theirs = read_tensor(self.folder.path(), &format!("answer.{what}"), &ours.size());
            let error = relative_error(ours, &theirs);
            assert!(error < tolerance, "{}: {what} is off by {error}", self.name);
        };
        let weights = &self.weights;
        let pass = if self.training { weights.training() } else { weights.evaluation() };
        let logits = self.network.forward(&images(), &pass).unwrap();
        let labels = Tensor::arange(BATCH, (Kind::Int64, Device::Cpu)) * 2 + 1;
        let loss = logits.cross_entropy_for_logits(&labels);
        loss.backward();

        compare("logits", &logits, 1e-5);
        compare("loss", &loss, 1e-5);
        for (parameter, leaf) in self.network.parameters().iter().zip(&weights.leaves) {
            compare(&format!("gradient.{}", parameter.name), &leaf.grad(), 3e-5);
        }
        if self.training {
            for (norm, batch) in self.network.norms().iter().zip(&weights.batch) {
                compare(&format!("mean.{}", norm.name), &batch.mean, 3e-5);
                compare(&format!("variance.{}", norm.name), &batch.variance, 3e-5);
            }
        }
    }
}

#[test]
fn logits_gradients_and_batch_statistics_equal_pytorchs() {
    if let Some(reason) = obstacle() {
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
    let output = Command::new("python3")
        .arg(SCRIPT)
        .args(cases.iter().map(|case| case.folder.path()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cases.iter().for_each(Case::compare);
}
