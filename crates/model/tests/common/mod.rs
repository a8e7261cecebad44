//! A network with tensors of its own, as the trainer lays them: flat parameters and gradients.

#![allow(dead_code, clippy::unwrap_used)] // Each test file uses some of it; all of it is test code.

#[path = "../../../torch-ext/tests/common/values.rs"]
mod values;

use model::{Architecture, Memory, Network, Norm, Options, Pass, Statistics};
use tch::{Device, Kind, Tensor};
use torch_ext::{flat, layout};

pub(crate) use values::*;

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

pub(crate) fn network(architecture: &str, options: &Options) -> Network {
    Network::new(&architecture.parse::<Architecture>().unwrap(), options).unwrap()
}

/// Images `[count, 3, 32, 32]` in channels_last order.
pub(crate) fn images(count: i64) -> Tensor {
    layout::channels_last(&waves(&[count, 3, 32, 32], 0.3)).unwrap()
}

/// The tensors of a network.
pub(crate) struct Weights {
    pub(crate) leaves: Vec<Tensor>,
    pub(crate) gradients: Tensor,
    /// Filled with what no batch has: a forward pass must overwrite it.
    pub(crate) batch: Vec<Statistics>,
    /// Mean and variance that differ from channel to channel.
    pub(crate) running: Vec<Statistics>,
}

impl Weights {
    /// Initial values from `seed`.
    pub(crate) fn new(network: &Network, seed: u64) -> Self {
        let len = |shape: &[i64]| shape.iter().product::<i64>();
        let total = network.parameters().iter().map(|parameter| len(&parameter.shape)).sum::<i64>();
        let (flat_parameters, gradients) = (Tensor::zeros([total], FLOAT), Tensor::zeros([total], FLOAT));
        let mut offset = 0;
        let mut leaves = Vec::new();
        for (index, parameter) in network.parameters().iter().enumerate() {
            let initial =
                Tensor::from_slice(&network.initial(index, seed)).reshape(parameter.shape.as_slice());
            flat::view(&flat_parameters, offset, &parameter.shape).unwrap().copy_(&initial);
            let leaf = flat::leaf(&flat_parameters, offset, &parameter.shape).unwrap();
            flat::bind_gradient(&leaf, &gradients, offset).unwrap();
            leaves.push(leaf);
            offset += len(&parameter.shape);
        }
        let statistics = |make: &dyn Fn(i64, f64) -> Statistics| {
            network.norms().iter().zip(0u8..).map(|(norm, i)| make(norm.channels, f64::from(i))).collect()
        };
        let batch = statistics(&|channels, _| Statistics {
            mean: Tensor::full([channels], 1e9, FLOAT),
            variance: Tensor::full([channels], -1e9, FLOAT),
        });
        let running = statistics(&|channels, phase| Statistics {
            mean: waves(&[channels], phase) * 0.2,
            variance: waves(&[channels], phase + 100.0) * 0.3 + 1.0,
        });
        Weights { leaves, gradients, batch, running }
    }

    /// A pass in training mode, without dropout.
    pub(crate) fn training(&self) -> Pass<'_> {
        Pass {
            parameters: &self.leaves,
            norm: Norm::Batch { batch: &self.batch, running: &self.running },
            draws: None,
            memory: Memory::Plain,
            before_use: None,
        }
    }

    /// A pass with running statistics.
    pub(crate) fn evaluation(&self) -> Pass<'_> {
        Pass { norm: Norm::Running(&self.running), ..self.training() }
    }
}

/// Every choice away from the paper's, one at a time and all together.
pub(crate) fn variants() -> Vec<(&'static str, Options)> {
    use model::{ConvInit, GammaInit, Projection, ShortcutInput};
    let paper = Options::default;
    vec![
        ("paper", paper()),
        ("dropout", Options { dropout: 0.3, ..paper() }),
        ("fan-out", Options { conv_init: ConvInit::FanOut, ..paper() }),
        ("gamma one", Options { gamma_init: GammaInit::One, ..paper() }),
        ("raw shortcut", Options { shortcut_input: ShortcutInput::Raw, ..paper() }),
        ("projection in every group", Options { projection: Projection::FirstBlock, ..paper() }),
        (
            "all",
            Options {
                conv_init: ConvInit::FanOut,
                gamma_init: GammaInit::One,
                shortcut_input: ShortcutInput::Raw,
                projection: Projection::FirstBlock,
                dropout: 0.3,
                ..paper()
            },
        ),
    ]
}

/// Those of [`variants`] that have a meaning for `architecture`.
pub(crate) fn variants_of(architecture: &str) -> Vec<(&'static str, Options)> {
    let architecture = architecture.parse::<Architecture>().unwrap();
    let mut variants = variants();
    variants.retain(|(_, options)| Network::new(&architecture, options).is_ok());
    variants
}
