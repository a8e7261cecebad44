//! Which device this rank computes on, and libtorch's process-wide switches. Set before the first operation.

use allreduce::Topology;
use tch::{Device, Kind};

use crate::config::{AutoOr, Config, ConfigError, Determinism, DeviceChoice, Dtype, LoadedConfig};
use crate::error::Error;
use crate::gpu;
use crate::session::Session;

/// Where and how this rank computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compute {
    pub(crate) device: Device,
    /// Number format under autocast; `None` for plain fp32.
    pub(crate) autocast: Option<Kind>,
    /// libtorch's threads within an operation.
    pub(crate) threads: usize,
}

/// libtorch's threads on the host where a GPU computes.
const THREADS_BESIDE_A_GPU: usize = 2;

/// Refuses what the promise of equal bits forbids.
pub(crate) fn check(loaded: &LoadedConfig) -> Result<(), ConfigError> {
    let train = &loaded.config.train;
    if train.autotune == Some(true) && train.determinism != Determinism::Off {
        let message = "the algorithms that are fastest may be others each time; expected false, or train.determinism: off";
        return Err(loaded.error("train.autotune", message));
    }
    Ok(())
}

impl Compute {
    /// Collective: chooses the device of each rank, which no two ranks share if it is a GPU, and sets libtorch's switches.
    pub(crate) fn set_up(session: &Session, loaded: &LoadedConfig) -> Result<Self, Error> {
        let compute = session.agree(Compute::of_rank(loaded, session.topology()))?;
        gpu::expect_own(session, compute.device)?;
        Ok(compute)
    }

    fn of_rank(loaded: &LoadedConfig, topology: &Topology) -> Result<Self, Error> {
        let config = &loaded.config;
        let devices = torch_ext::runtime::device_count();
        let device = match config.train.device {
            DeviceChoice::Cpu => Device::Cpu,
            DeviceChoice::Auto if devices == 0 => Device::Cpu,
            DeviceChoice::Cuda if devices == 0 => {
                let message = "libtorch finds no GPU on this machine";
                return Err(loaded.error("train.device", message).into());
            }
            DeviceChoice::Auto | DeviceChoice::Cuda => gpu::of_rank(topology)?,
        };
        let threads = match config.train.threads {
            AutoOr::Exactly(threads) if threads.get() > usable_cores() => {
                let message = format!(
                    "{threads} threads on {}, where this process may use {} cores; libtorch's threads wait for one another, \
                     so too many are slower by far",
                    topology.host,
                    usable_cores()
                );
                return Err(loaded.error("train.threads", message).into());
            }
            AutoOr::Exactly(threads) => threads.get(),
            // The work is the device's; the cores are for decoding.
            AutoOr::Auto if device.is_cuda() => THREADS_BESIDE_A_GPU.min(usable_cores()),
            AutoOr::Auto => (usable_cores() / topology.local_size).max(1),
        };
        torch_ext::runtime::set_threads(threads, 1)?;
        if device == Device::Cpu && !torch_ext::runtime::keep_freed_memory() {
            tracing::info!(
                "this C library gives freed memory back at once; steps on the CPU are slower for it"
            );
        }
        if device.is_cuda() {
            // Unless asked for, fp32 means fp32; libtorch's default lets convolutions use TF32.
            torch_ext::runtime::set_tf32(config.precision.tf32)?;
            torch_ext::runtime::set_deterministic(config.train.determinism != Determinism::Off)?;
            torch_ext::runtime::set_cudnn_benchmark(config.train.autotune == Some(true))?;
        } else if config.precision.tf32 && topology.rank == 0 {
            tracing::warn!("precision.tf32 is for GPUs: on the CPU fp32 stays fp32");
        }
        let autocast = match config.precision.dtype {
            Dtype::Fp32 => None,
            dtype @ (Dtype::Bf16 | Dtype::Fp16) => Some(dtype.kind()),
        };
        Ok(Compute { device, autocast, threads })
    }
}

/// Whether `config` lets a process on this machine compute on a GPU.
pub(crate) fn expects_gpu(config: &Config) -> bool {
    config.train.device != DeviceChoice::Cpu && torch_ext::runtime::device_count() > 0
}

/// Cores that this process may run on.
pub(crate) fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    #[test]
    fn autotuning_follows_determinism_and_is_refused_where_bits_are_promised() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        let text = "model: {arch: wrn-10-1}\ndata: {kind: cifar10, path: d}\ntrain: {epochs: 1, global_batch: 8}\nschedule: {kind: constant, rate: 1}\n";
        std::fs::write(&path, text).unwrap();
        for (determinism, autotune, expected) in [
            ("run", None, Some(false)),
            ("world", None, Some(false)),
            ("off", None, Some(true)),
            ("off", Some("false"), Some(false)),
            ("off", Some("true"), Some(true)),
            ("run", Some("false"), Some(false)),
            ("run", Some("true"), None),
            ("world", Some("true"), None),
        ] {
            let mut sets = vec![format!("train.determinism={determinism}")];
            sets.extend(autotune.map(|autotune| format!("train.autotune={autotune}")));
            let loaded = load(&path, &sets).unwrap();
            match (check(&loaded), expected) {
                (Ok(()), Some(_)) => assert_eq!(loaded.config.train.autotune, expected, "{sets:?}"),
                (Err(error), None) => assert!(error.to_string().contains("train.autotune"), "{error}"),
                (outcome, _) => panic!("{sets:?}: {outcome:?}"),
            }
        }
    }
}
