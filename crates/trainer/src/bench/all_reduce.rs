//! `wrn-dist bench allreduce`: the exchange by itself, over a range of sizes, in the columns of nccl-tests.
//!
//! ```text
//! algbw = bytes / time
//! busbw = algbw * 2 (n - 1) / n        the rate at which each rank's link must carry data, whatever the algorithm
//! ```

use std::fmt::Write;
use std::time::Duration;

use allreduce::{Region, RegionDevice, measure_all_reduce, values_to_sum, wrong_sums};
use serde::Serialize;
use tch::{Device, Tensor};

use crate::backend;
use crate::config::{Backend, CommConfig, Compression, Reduce};
use crate::error::Error;
use crate::gpu;
use crate::memory::region_of;
use crate::session::{Command, Session, with_session};
use crate::tensor_device::{exchange_device, region_on_device};

/// What `wrn-dist bench allreduce` was asked to do.
#[derive(Clone, Copy, Debug)]
pub struct AllReduceOptions {
    /// Smallest size in bytes of fp32 values.
    pub min_bytes: usize,
    /// Largest size; each is four times the one before.
    pub max_bytes: usize,
    /// What carries the sums.
    pub backend: Backend,
    /// Who decides the order of the sum.
    pub reduce: Reduce,
    /// How values travel.
    pub compression: Compression,
    /// All-reduces of each size that are measured.
    pub iterations: usize,
    /// All-reduces of each size before that.
    pub warmup: usize,
}

/// All sizes; times are those of rank 0, which begins with the others.
#[derive(Clone, Debug, Serialize)]
pub struct AllReduceBench {
    /// Number of ranks.
    pub world_size: usize,
    /// What carries the messages.
    pub transport: String,
    /// What carries the sums, never `auto`.
    pub backend: Backend,
    /// Where rank 0's values lie, such as `Cpu` or `Cuda(0)`.
    pub memory: String,
    /// Who decides the order of the sum.
    pub reduce: Reduce,
    /// How values travel.
    pub compression: Compression,
    /// One row a size.
    pub rows: Vec<AllReduceRow>,
}

/// One size.
#[derive(Clone, Debug, Serialize)]
pub struct AllReduceRow {
    /// Of fp32 values.
    pub bytes: usize,
    /// Median time of an all-reduce.
    pub median_seconds: f64,
    /// Shortest time of one.
    pub min_seconds: f64,
    /// Bytes a second that an all-reduce takes, in 10^9, from the median.
    pub algbw: f64,
    /// Bytes a second that a rank sends, in 10^9, were it a ring.
    pub busbw: f64,
    /// Elements of wrong value on any rank.
    pub wrong: u64,
}

const GROWTH: usize = 4;

/// Measures; collective over all ranks. A result on rank 0 only.
///
/// # Errors
/// The failure, already printed.
pub fn bench_all_reduce(options: AllReduceOptions) -> Result<Option<AllReduceBench>, Error> {
    let backend = backend::for_sums(options.backend, options.reduce);
    let config = CommConfig { backend, reduce: options.reduce, ..CommConfig::default() };
    let command = Command::new(
        "bench allreduce",
        &[
            ("min-kib", (options.min_bytes / 1024).to_string()),
            ("max-kib", (options.max_bytes / 1024).to_string()),
            ("backend", options.backend.name().into()),
            ("reduce", format!("{:?}", options.reduce)),
            ("compression", format!("{:?}", options.compression)),
            ("iterations", options.iterations.to_string()),
            ("warmup", options.warmup.to_string()),
        ],
    );
    with_session(&command, &config, |session| {
        session.agree_on_backend()?;
        let memory = session.agree(Memory::choose(session))?;
        gpu::expect_own(session, memory.device)?;
        session.spin_on_a_spare_core(0);
        let sizes = std::iter::successors(Some(options.min_bytes), |bytes| bytes.checked_mul(GROWTH));
        let rows = sizes
            .take_while(|&bytes| bytes <= options.max_bytes)
            .map(|bytes| row(session, &memory, options, bytes))
            .collect::<Result<_, Error>>()?;
        Ok(session.is_leader().then(|| AllReduceBench {
            world_size: session.topology().world_size,
            transport: session.comm().description().to_owned(),
            backend,
            memory: format!("{:?}", memory.device),
            reduce: options.reduce,
            compression: options.compression,
            rows,
        }))
    })
}

/// Where the values of a measurement lie.
struct Memory {
    device: Device,
    /// Where the communicator works there rather than on the host's memory: with one stream for all sizes.
    exchange: Option<RegionDevice>,
}

impl Memory {
    /// As gradients do in training.
    fn choose(session: &Session) -> Result<Memory, Error> {
        let (comm, topology) = (session.comm(), session.topology());
        if comm.sums_host_memory() {
            let on_device = topology.world_size > 1 && comm.sums_device_memory();
            return Memory::at(Device::Cpu, on_device);
        }
        if torch_ext::runtime::device_count() == 0 {
            return Err(Error::Usage(format!(
                "NCCL sums the memory of GPUs, and libtorch finds none on {}; expected --backend {}",
                topology.host,
                Backend::Mpi.name()
            )));
        }
        Memory::at(gpu::of_rank(topology)?, true)
    }

    fn at(device: Device, on_device: bool) -> Result<Memory, Error> {
        Ok(Memory { device, exchange: on_device.then(|| exchange_device(device)).transpose()? })
    }

    fn regions(&self, tensors: [&Tensor; 2]) -> Result<[Region; 2], Error> {
        let Some(device) = &self.exchange else {
            return Ok([region_of(tensors[0])?, region_of(tensors[1])?]);
        };
        Ok([region_on_device(tensors[0], device)?, region_on_device(tensors[1], device)?])
    }
}

fn row(
    session: &Session,
    memory: &Memory,
    options: AllReduceOptions,
    bytes: usize,
) -> Result<AllReduceRow, Error> {
    let (comm, wire) = (session.comm(), options.compression.wire());
    let (rank, world_size) = (session.topology().rank, session.topology().world_size);
    let prepared = || -> Result<_, Error> {
        let values = values_to_sum(rank, bytes / size_of::<f32>());
        let source = Tensor::f_from_slice(&values)?.f_to_device(memory.device)?;
        let sums = source.f_zeros_like()?;
        Ok((memory.regions([&source, &sums])?, sums))
    };
    let ([source, values], sums) = session.agree(prepared())?;
    let mut durations =
        measure_all_reduce(comm, [&source, &values], wire, options.warmup, options.iterations)?;
    let sums = Vec::<f32>::try_from(&sums.f_to_device(Device::Cpu)?)?;
    let wrong = wrong_sums(&sums, world_size, wire);
    let wrong_of_all = comm.all_gather((wrong as u64).to_le_bytes().to_vec())?;
    let wrong = wrong_of_all
        .iter()
        .filter_map(|bytes| bytes.as_slice().try_into().ok())
        .map(u64::from_le_bytes)
        .sum();
    durations.sort_unstable();
    let seconds = |duration: Option<&Duration>| duration.map_or(0.0, Duration::as_secs_f64);
    let median_seconds = seconds(durations.get(durations.len() / 2));
    let world_size = world_size as f64;
    let algbw = bytes as f64 / median_seconds / 1e9;
    Ok(AllReduceRow {
        bytes,
        median_seconds,
        min_seconds: seconds(durations.first()),
        algbw,
        busbw: algbw * 2.0 * (world_size - 1.0) / world_size,
        wrong,
    })
}

impl AllReduceBench {
    /// A table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{} rank(s), {}, backend {}, memory {}, reduce {}, compression {}\n{:>12}{:>14}{:>14}{:>12}{:>12}{:>8}\n",
            self.world_size,
            self.transport,
            self.backend.name(),
            self.memory,
            name(&self.reduce),
            name(&self.compression),
            "bytes",
            "median us",
            "min us",
            "algbw GB/s",
            "busbw GB/s",
            "wrong"
        );
        for row in &self.rows {
            let _ = writeln!(
                text,
                "{:>12}{:>14.1}{:>14.1}{:>12.3}{:>12.3}{:>8}",
                row.bytes,
                1e6 * row.median_seconds,
                1e6 * row.min_seconds,
                row.algbw,
                row.busbw,
                row.wrong
            );
        }
        text
    }
}

/// As in a configuration.
fn name(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
