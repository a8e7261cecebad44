//! The configuration file as typed sections: one field a key, with its default and its meaning.
//!
//! Whether the values make sense together is decided in `crate::plan`; reading the file and telling
//! where a key stands in it is [`load`]'s business.

mod comm;
mod data;
mod health;
mod load;
mod locate;
mod max_wall;
mod optimizer;
pub(crate) mod ranges;

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use comm::Overlap;
pub use data::{
    AutoAugmentKind, ChannelConstants, ColorJitterConfig, CropKind, CropPadding, DataConfig, FilterKind,
    GrowingSize, ImageSizeConfig, NamedNormalization, NormalizeConfig, OnBadSampleKind, ReadKind,
    SampleOrder,
};
pub use health::{AveragingConfig, LossScaleConfig, LossSpikeConfig, OnNan, OnSpike, RollBackConfig};
pub use load::{ConfigError, LoadedConfig, load};
pub use max_wall::MaxWall;
pub use model::Memory;
pub use optimizer::{OptimizerConfig, OptimizerKind};

/// A whole run, as written in YAML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Seed of everything random: weights, sample order, augmentation, dropout.
    #[serde(default)]
    pub seed: u64,
    /// The network.
    pub model: ModelConfig,
    /// The data set and what is done to its images.
    pub data: DataConfig,
    /// Epochs, batches and the promise about reproducibility.
    pub train: TrainConfig,
    /// The update rule.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The learning rate over time.
    pub schedule: ScheduleConfig,
    /// Number formats.
    #[serde(default)]
    pub precision: PrecisionConfig,
    /// The exchange of gradients.
    #[serde(default)]
    pub comm: CommConfig,
    /// What is saved, and when.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// What is reported, and where.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
}

/// `model:` the network and the choices that public implementations make differently.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Architecture string, for example `wrn-28-10`.
    pub arch: String,
    /// Number of classes; the data set's own when absent.
    #[serde(default)]
    pub classes: Option<u32>,
    /// Dropout probability inside each residual branch (paper: 0, or 0.3 for CIFAR).
    #[serde(default)]
    pub dropout: f64,
    /// Dropout probability of what passes over the shortcuts: the paper's counter-example.
    #[serde(default)]
    pub shortcut_dropout: f64,
    /// Probability with which training leaves out the last residual block; that of the others grows linearly up
    /// to it (Huang et al. 2016: 0.5).
    #[serde(default)]
    pub stochastic_depth: f64,
    /// Spread of the convolutions' initial weights.
    #[serde(default)]
    pub conv_init: model::ConvInit,
    /// Initial scale of batch norm: uniform in (0, 1) as in the official code, or 1.
    #[serde(default)]
    pub gamma_init: model::GammaInit,
    /// Begin with residual blocks that change nothing: the scale of a branch's last batch norm, or the weights of
    /// its last convolution where batch norm comes before, start at 0.
    #[serde(default)]
    pub zero_init_residual: bool,
    /// What the 1x1 projection reads: the pre-activated input (official) or the raw one.
    #[serde(default)]
    pub shortcut_input: model::ShortcutInput,
    /// Which blocks have a projection.
    #[serde(default)]
    pub projection: model::Projection,
    /// Normalise by the running statistics while training and leave them as they are (fine-tuning).
    #[serde(default)]
    pub frozen_norm: bool,
    /// Batch norm over the global batch rather than over each micro batch, forward and backward: each rank then has one
    /// micro batch, and ranks wait for each other in every such layer. A rank that fails ends the job alone, and where
    /// a gradient becomes infinite or NaN is not searched for. The run can go on on another number of ranks, with the
    /// same batch norm; what is drawn for each micro batch (dropout, mixup) is then drawn for other ones.
    #[serde(default)]
    pub sync_norm: bool,
    /// A checkpoint whose weights and running statistics a new run begins with: what `model import` made, a
    /// run's folder, or one of its checkpoints. Drawn from the seed when absent.
    #[serde(default)]
    pub weights: Option<PathBuf>,
    /// SHA-256 that the file of these weights must have; written into the resolved configuration. Resuming
    /// needs it, but not the file.
    #[serde(default)]
    pub weights_sha256: Option<String>,
    /// Begin with a new classifier, whatever classifier the weights have (fine-tuning).
    #[serde(default)]
    pub new_classifier: bool,
    /// Weight of the newest batch in the running statistics.
    #[serde(default = "defaults::norm_momentum")]
    pub norm_momentum: f64,
}

/// `train:` how long, in which portions, and how reproducibly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the training set.
    pub epochs: u32,
    /// Samples of one optimizer step, over all ranks.
    pub global_batch: usize,
    /// Samples that go through the network at once; batch norm normalises over these.
    /// The global batch divided by the number of ranks when absent; `auto`: the largest divisor of that which
    /// `memory_limit_gib` allows, or where that is absent, on GPUs only, with which a step runs on every rank; kept when
    /// a run goes on from a checkpoint.
    #[serde(default)]
    pub micro_batch: Option<AutoOr>,
    /// Memory of a rank for weights, gradients, the optimizer's memory, activations and what operations need while they run, as
    /// estimated before the run: what `micro_batch: auto` may use.
    #[serde(default)]
    pub memory_limit_gib: Option<f64>,
    /// What is promised about equal bits.
    #[serde(default)]
    pub determinism: Determinism,
    /// libtorch's threads a rank: `auto` shares the usable cores among the ranks of the host.
    #[serde(default)]
    pub threads: AutoOr,
    /// Where the network runs.
    #[serde(default)]
    pub device: DeviceChoice,
    /// On a GPU: cuDNN tries its algorithms on the first batch of each shape and keeps the fastest, which may be
    /// another one each time. `determinism: off` alone allows it, and has it when this is absent.
    #[serde(default)]
    pub autotune: Option<bool>,
    /// What is kept of each forward pass for backward: `plain`, `recompute` (the outputs of batch norm and ReLU
    /// are computed again: about half the memory) or `checkpoint` (whole blocks are: least memory, slowest).
    /// The results are the same to the bit.
    #[serde(default)]
    pub memory: Memory,
    /// Epochs between evaluations; the last epoch is always evaluated.
    #[serde(default = "defaults::one")]
    pub evaluate_every_epochs: u32,
    /// What to do with a step whose averaged gradient is infinite or NaN somewhere.
    #[serde(default)]
    pub on_nan: OnNan,
    /// Share of each label that is spread evenly over all classes (Szegedy et al. 2016: 0.1), mixed labels included.
    /// The training loss contains it, evaluation does not.
    #[serde(default)]
    pub label_smoothing: f64,
    /// What to do when the loss jumps.
    #[serde(default)]
    pub loss_spike: LossSpikeConfig,
    /// How far `roll-back` goes back, how often, and with which learning rate it goes on.
    #[serde(default)]
    pub roll_back: RollBackConfig,
    /// A moving average of the weights; none when absent.
    #[serde(default)]
    pub averaging: Option<AveragingConfig>,
    /// Steps between comparisons of what all ranks hold a copy of, which must be equal to the bit: weights and running
    /// statistics, averaged ones too, and the optimizer's memory unless `optimizer.shard` shares it out; 0 for never.
    /// Takes about the time of reading them once.
    #[serde(default = "defaults::check_replicas_every")]
    pub check_replicas_every: u64,
    /// How long a process may run, such as `11h55m`: after that it saves, stops and ends with code 75 as it does
    /// on request. `auto` ends it in a Slurm job two minutes before the job's time is over (`SLURM_JOB_END_TIME`;
    /// of a job shorter than 20 minutes the last tenth), elsewhere never; so does `none` everywhere. Leave time
    /// for one step, or for 8 test batches, and a save.
    #[serde(default)]
    pub max_wall: MaxWall,
}

/// `train.determinism:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Determinism {
    /// The same bits on every rank count that leaves a power of two of micro batches a rank.
    World,
    /// The same bits each time the same command runs.
    #[default]
    Run,
    /// No promise; libraries may pick whatever algorithm is fastest at the moment.
    Off,
}

/// `train.device:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceChoice {
    /// A GPU where libtorch finds one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU whose number is the local rank.
    Cuda,
}

/// `auto` or a number above zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "AutoOrText", into = "AutoOrText")]
pub enum AutoOr {
    /// Derived from the machine.
    #[default]
    Auto,
    /// As given.
    Exactly(NonZeroUsize),
}

/// The two spellings of [`AutoOr`] in YAML.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected `auto` or a whole number above 0")]
enum AutoOrText {
    Number(usize),
    Word(String),
}

impl TryFrom<AutoOrText> for AutoOr {
    type Error = String;

    fn try_from(text: AutoOrText) -> Result<Self, String> {
        let expected = "expected `auto` or a whole number above 0";
        match text {
            AutoOrText::Word(word) if word == "auto" => Ok(AutoOr::Auto),
            AutoOrText::Word(word) => Err(format!("`{word}`: {expected}")),
            AutoOrText::Number(number) => {
                NonZeroUsize::new(number).map(AutoOr::Exactly).ok_or(format!("0: {expected}"))
            }
        }
    }
}

impl From<AutoOr> for AutoOrText {
    fn from(value: AutoOr) -> Self {
        match value {
            AutoOr::Auto => AutoOrText::Word("auto".into()),
            AutoOr::Exactly(number) => AutoOrText::Number(number.get()),
        }
    }
}

/// `schedule:` the learning rate at each step. Keys that a kind does not use must be absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// The curve.
    pub kind: ScheduleKind,
    /// The base learning rate: of `one-cycle` the peak, else the rate after warm-up.
    pub rate: f64,
    /// Epochs of linear warm-up, step by step; not for `one-cycle`, which has its own.
    #[serde(default)]
    pub warmup_epochs: f64,
    /// Learning rate at the first step of the warm-up: 0 when absent, with `scale_rate` the rate before it is scaled.
    #[serde(default)]
    pub warmup_from: Option<f64>,
    /// Multiplies `rate` and `final_rate` by what the global batch is larger than the one they were found for:
    /// `{reference_batch: 256}` (Goyal et al. 2017), also with `rule: square-root` (You et al. 2019, for LAMB).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_rate: Option<ScaleRate>,
    /// `step`: 1-based epochs from whose start the rate is multiplied by `factor` once more.
    #[serde(default)]
    pub milestones: Option<Vec<u32>>,
    /// `step`: multiplier at each milestone.
    #[serde(default)]
    pub factor: Option<f64>,
    /// `polynomial`: exponent of the remaining share.
    #[serde(default)]
    pub power: Option<f64>,
    /// `cosine`, `polynomial`: the rate at the end.
    #[serde(default)]
    pub final_rate: Option<f64>,
    /// `one-cycle`: share of the run at which the peak is reached.
    #[serde(default)]
    pub peak_at: Option<f64>,
    /// `one-cycle`: the first rate is the peak divided by this.
    #[serde(default)]
    pub initial_divisor: Option<f64>,
    /// `one-cycle`: the last rate is the first one divided by this.
    #[serde(default)]
    pub final_divisor: Option<f64>,
}

impl ScheduleConfig {
    /// Writes what is derived from other keys.
    fn write_defaults(&mut self) {
        let unscaled = if self.scale_rate.is_some() { self.rate } else { 0.0 };
        self.warmup_from.get_or_insert(unscaled);
    }
}

/// `schedule.scale_rate:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleRate {
    /// The global batch at which the rate stays as it is.
    pub reference_batch: usize,
    /// How the rate follows the global batch.
    #[serde(default)]
    pub rule: ScaleRule,
}

/// `schedule.scale_rate.rule:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleRule {
    /// As the global batch.
    #[default]
    Linear,
    /// As its square root.
    SquareRoot,
}

/// `schedule.kind:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// The same rate throughout.
    Constant,
    /// Lowered at milestones.
    Step,
    /// Half a cosine from `rate` to `final_rate` (Loshchilov & Hutter, without restarts).
    Cosine,
    /// `(1 - progress)^power`.
    Polynomial,
    /// Up and down once (Smith; the cosine form of PyTorch's OneCycleLR, momentum left alone).
    OneCycle,
}

/// `precision:`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrecisionConfig {
    /// Number format of the forward and backward pass; weights and sums stay fp32.
    pub dtype: Dtype,
    /// On a GPU: fp32 convolutions and products may round what they multiply to TF32's 10 bits behind the point (sums
    /// stay fp32), for several times the speed on Ampere and later. Ignored on the CPU.
    pub tf32: bool,
    /// `fp16`: how the loss is scaled.
    pub loss_scale: Option<LossScaleConfig>,
}

/// `precision.dtype:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// 32-bit throughout.
    #[default]
    Fp32,
    /// bfloat16 under autocast.
    Bf16,
    /// IEEE half precision under autocast, with a loss scale that adapts. Meant for GPUs: CPUs without fp16 arithmetic
    /// are very slow at it.
    Fp16,
}

impl Dtype {
    /// As libtorch calls it.
    #[must_use]
    pub fn kind(self) -> tch::Kind {
        match self {
            Dtype::Fp32 => tch::Kind::Float,
            Dtype::Bf16 => tch::Kind::BFloat16,
            Dtype::Fp16 => tch::Kind::Half,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Dtype::Fp32 => "fp32",
            Dtype::Bf16 => "bf16",
            Dtype::Fp16 => "fp16",
        })
    }
}

/// `comm:` the exchange of gradients between ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommConfig {
    /// What carries the sums of gradients.
    pub backend: Backend,
    /// Who decides the order of the sum.
    pub reduce: Reduce,
    /// What of the exchange goes on while backward still runs.
    pub overlap: Overlap,
    /// How gradients travel between the ranks. Batch statistics, loss and counts are never compressed.
    pub compression: Compression,
    /// `power-sgd`: rank of the matrices that stand for a gradient; more is closer to it and larger. 2 when absent.
    pub power_sgd_rank: Option<usize>,
    /// `power-sgd`: so many steps of the run come first whose gradients travel as they are: early gradients are the
    /// hardest to approximate. 1000 when absent.
    pub power_sgd_start_step: Option<u64>,
    /// Size of the first bucket in KiB: small, so that the exchange starts early.
    pub first_bucket_kib: usize,
    /// Size of the other buckets in KiB.
    pub bucket_kib: usize,
    /// NCCL: most thread blocks (CTAs) that an operation takes from the GPU, beside those of backward; fewer make the
    /// exchange slower. NCCL's own choice when absent.
    pub nccl_max_ctas: Option<u16>,
    /// Seconds after which a collective that has not finished, or a rank that is silent, ends the job. More than
    /// the longest time for which one rank may keep the others waiting, such as to read a checkpoint; it need not
    /// cover a save. Ranks that meet over TCP wait so long for the last one to start.
    pub timeout_s: u32,
    /// When the ranks compare which collectives they are about to run.
    pub check: CollectiveCheck,
}

impl Default for CommConfig {
    fn default() -> Self {
        // PyTorch's reducer.hpp: kDefaultFirstBucketBytes, kDefaultBucketBytesCap.
        CommConfig {
            backend: Backend::Auto,
            reduce: Reduce::Ordered,
            overlap: Overlap::Exchange,
            compression: Compression::None,
            power_sgd_rank: None,
            power_sgd_start_step: None,
            first_bucket_kib: 1024,
            bucket_kib: 25 * 1024,
            nccl_max_ctas: None,
            timeout_s: 600,
            check: CollectiveCheck::Start,
        }
    }
}

/// `comm.backend:` what ranks agree on, and the weights that a run begins with, travel over MPI, or TCP
/// without it, in any case.
///
/// It may change when a run goes on. With `comm.reduce: ordered` and gradients in fp32 the bits stay the same. With
/// `comm.compression: bf16` or `fp16` NCCL rounds every rank's values, and MPI with several ranks on each of several
/// hosts each host's sums: as another arrangement of the ranks on hosts, that changes the rounding, not the meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// NCCL where the network runs on a GPU and nothing is configured that is MPI's alone: `comm.reduce: mpi`,
    /// `comm.compression: power-sgd`, `model.sync_norm`, or `train.determinism: world` with several micro batches a
    /// rank. A run that exchanges a GPU's gradients in host memory says why as it starts.
    #[default]
    Auto,
    /// MPI, or TCP where ranks were started without it. Gradients of a GPU pass through host memory, after backward.
    Mpi,
    /// NCCL, found at run time: the library that `WRN_DIST_NCCL` names, else libtorch's, else the system's
    /// `libnccl.so.2`.
    Nccl,
}

impl Backend {
    /// As in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Backend::Auto => "auto",
            Backend::Mpi => "mpi",
            Backend::Nccl => "nccl",
        }
    }
}

/// `comm.reduce:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduce {
    /// A fixed binary tree over the ranks: the same bits whatever the buckets are. Sums within hosts come first.
    #[default]
    Ordered,
    /// The same without regard to hosts: each rank's slices travel to every other rank. In fp32 the same bits.
    FlatOrdered,
    /// MPI's own all-reduce; refused where the ranks talk without MPI, over TCP.
    Mpi,
    /// NCCL's own all-reduce; 16-bit gradients are summed in their own format.
    Nccl,
}

/// `comm.check:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CollectiveCheck {
    /// The table of buckets, once, before the first step.
    #[default]
    Start,
    /// Every single collective too: finds ranks that run different code. Costs a small message to and from
    /// every rank each time.
    Every,
}

/// `comm.compression:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// As fp32.
    #[default]
    None,
    /// Rounded to bf16, summed in fp32.
    Bf16,
    /// Rounded to fp16, summed in fp32.
    Fp16,
    /// Each convolution's and classifier's gradient as the product of two thin matrices, summed in fp32; what a step
    /// leaves out enters the next (Vogels et al. 2019, arXiv 1905.13727). Other gradients travel as they are. Takes the
    /// memory of the weights once more. That memory is not saved: a run that is resumed begins with an empty one, so it
    /// is not bit for bit the run without interruption.
    PowerSgd,
}

impl Compression {
    pub(crate) fn wire(self) -> allreduce::Wire {
        match self {
            Compression::None | Compression::PowerSgd => allreduce::Wire::Fp32,
            Compression::Bf16 => allreduce::Wire::Bf16,
            Compression::Fp16 => allreduce::Wire::Fp16,
        }
    }
}

/// `checkpoint:` when to save, and what to keep. Training pauses for a copy in memory; a thread of rank 0 writes it.
/// A save that fails, for lack of space say, is a warning, and what was saved before stays; only at the end of the
/// run, or when it stops on request, is it an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Epochs between checkpoints; the last epoch is always saved.
    pub every_epochs: u32,
    /// Save after every so many steps too. While the save before is still being written, at the next step after it.
    pub every_steps: Option<u64>,
    /// Save too when so many minutes have passed since the last save.
    pub every_minutes: Option<f64>,
    /// Checkpoints that are kept; older ones are removed after a newer one is complete.
    pub keep_last: usize,
    /// Of the checkpoints that were saved right after an evaluation, those with the lowest test top-1 error are kept
    /// as well, so many of them. `checkpoints/best` names the first.
    pub keep_best: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        CheckpointConfig {
            every_epochs: 1,
            every_steps: None,
            every_minutes: None,
            keep_last: 2,
            keep_best: 1,
        }
    }
}

/// `telemetry:`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Address for Prometheus to scrape, for example `127.0.0.1:9464`; further ranks of the same host
    /// take the ports after it.
    pub prometheus: Option<SocketAddr>,
    /// A rank is named as slow when it works on a step for this many times the median of the other ranks, waiting not
    /// counted, over ten steps. With `model.sync_norm` ranks wait for each other in every layer, which does count: there no
    /// rank is found.
    pub straggler_factor: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        TelemetryConfig { prometheus: None, straggler_factor: 1.5 }
    }
}

/// Defaults that are not the type's own.
mod defaults {
    pub(super) fn yes() -> bool {
        true
    }
    pub(super) fn one() -> u32 {
        1
    }
    pub(super) fn crop_area() -> [f64; 2] {
        [0.08, 1.0]
    }
    pub(super) fn crop_aspect() -> [f64; 2] {
        [3.0 / 4.0, 4.0 / 3.0]
    }
    pub(super) fn rand_operations() -> u32 {
        2
    }
    pub(super) fn rand_magnitude() -> u32 {
        9
    }
    pub(super) fn erase_area() -> [f64; 2] {
        [0.02, 0.33]
    }
    pub(super) fn erase_aspect() -> [f64; 2] {
        [0.3, 3.3]
    }
    pub(super) fn block_samples() -> u32 {
        1024
    }
    pub(super) fn block_buffer() -> u32 {
        16
    }
    pub(super) fn whole() -> f64 {
        1.0
    }
    pub(super) fn size_step() -> u32 {
        32
    }
    pub(super) fn prefetch() -> usize {
        8
    }
    pub(super) fn check_replicas_every() -> u64 {
        100
    }
    pub(super) fn norm_momentum() -> f64 {
        0.1
    }
}
