//! `wrn-dist plan`

use std::num::NonZeroUsize;

use clap::ValueEnum;
use trainer::{Cluster, EXIT_USAGE, Link};

use super::ConfigArguments;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Number of ranks
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    ranks: u32,
    #[command(flatten)]
    cluster: ClusterArguments,
}

/// The machines of a model of steps on up to 4,096 ranks
#[derive(clap::Args)]
struct ClusterArguments {
    /// Milliseconds of a step without exchange of one of --ranks ranks, as `bench step` measures them; prints how it would
    /// scale
    #[arg(long, value_name = "MS")]
    step_ms: Option<f64>,
    /// Share of backward in a step
    #[arg(long, value_name = "SHARE", requires = "step_ms", default_value_t = 2.0 / 3.0)]
    backward_share: f64,
    /// Ranks on each host
    #[arg(long, value_name = "RANKS", requires = "step_ms", default_value = "8")]
    ranks_a_host: NonZeroUsize,
    /// How sums travel [default: as comm.reduce lets them]
    #[arg(long, value_enum, requires = "step_ms")]
    algorithm: Option<Algorithm>,
    /// Rate of each host's link to the others, in Gbit/s
    #[arg(long, value_name = "GBIT", requires = "step_ms", default_value_t = 100.0)]
    gbit: f64,
    /// Latency of it, in microseconds
    #[arg(long, value_name = "US", requires = "step_ms", default_value_t = 5.0)]
    latency_us: f64,
    /// Rate between the ranks of a host, in Gbit/s
    #[arg(long, value_name = "GBIT", requires = "step_ms", default_value_t = 2400.0)]
    host_gbit: f64,
    /// Latency of it, in microseconds
    #[arg(long, value_name = "US", requires = "step_ms", default_value_t = 2.0)]
    host_latency_us: f64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Algorithm {
    Ring,
    Tree,
    Ordered,
    Hierarchical,
}

impl ClusterArguments {
    fn scaling(&self) -> Result<Option<(Cluster, Option<trainer::Algorithm>)>, String> {
        let Some(step_ms) = self.step_ms else { return Ok(None) };
        let (positive, most) = (1e-9..=1e9, 1e9);
        for (name, value, range, expected) in [
            ("step-ms", step_ms, positive.clone(), "1e-9 to 1e9"),
            ("backward-share", self.backward_share, 0.0..=1.0, "0 to 1"),
            ("gbit", self.gbit, positive.clone(), "1e-9 to 1e9"),
            ("latency-us", self.latency_us, 0.0..=most, "0 to 1e9"),
            ("host-gbit", self.host_gbit, positive, "1e-9 to 1e9"),
            ("host-latency-us", self.host_latency_us, 0.0..=most, "0 to 1e9"),
        ] {
            if !range.contains(&value) {
                return Err(format!("--{name} {value} is out of range; expected {expected}"));
            }
        }
        if matches!(self.algorithm, Some(Algorithm::Hierarchical)) && !self.ranks_a_host.is_power_of_two() {
            let ranks = self.ranks_a_host;
            return Err(format!(
                "--ranks-a-host {ranks}: sums within hosts come first for powers of two only"
            ));
        }
        let link = |latency_us: f64, gbit: f64| Link {
            latency_seconds: latency_us / 1e6,
            bytes_per_second: gbit * 1e9 / 8.0,
        };
        let algorithm = self.algorithm.map(|algorithm| match algorithm {
            Algorithm::Ring => trainer::Algorithm::Ring,
            Algorithm::Tree => trainer::Algorithm::Tree,
            Algorithm::Ordered => trainer::Algorithm::Ordered,
            Algorithm::Hierarchical => trainer::Algorithm::Hierarchical,
        });
        let cluster = Cluster {
            step_seconds: step_ms / 1e3,
            backward_share: self.backward_share,
            ranks_a_host: self.ranks_a_host.get(),
            within: link(self.host_latency_us, self.host_gbit),
            between: link(self.latency_us, self.gbit),
        };
        Ok(Some((cluster, algorithm)))
    }
}

pub(crate) fn run(arguments: &Arguments) -> i32 {
    let config = &arguments.config;
    match arguments.cluster.scaling() {
        Ok(scaling) => super::finish(trainer::describe_plan(
            &config.config,
            &config.overrides,
            arguments.ranks as usize,
            scaling,
        )),
        Err(sentence) => {
            super::complain(&sentence);
            EXIT_USAGE
        }
    }
}
