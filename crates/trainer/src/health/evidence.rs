//! What is kept of a run that had to end because its numbers did: `evidence/step-N.json` in the run's folder, with the
//! step, the ranks, what was not finite there and from which samples. Small; weights are in the checkpoints.

use std::path::PathBuf;

use data_sharding::SampleKey;
use serde::{Deserialize, Serialize};

use crate::checkpoint::replace_file;
use crate::error::Error;
use crate::files;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::session::Session;

/// Something that is not finite in one micro batch of one rank.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NotFinite {
    /// Index in the global batch.
    pub(crate) micro_batch: usize,
    /// What became infinite or NaN, as the beginning of a sentence.
    pub(crate) what: String,
    /// The parameter whose gradient it is; absent when it is the loss already.
    pub(crate) tensor: Option<String>,
}

/// The file.
#[derive(Serialize)]
struct Evidence {
    /// Counted from 1, as the epoch.
    step: u64,
    epoch: u64,
    learning_rate: f64,
    /// The first parameter whose averaged gradient is not finite, where it cannot be told from which rank that comes.
    averaged_gradient: Option<String>,
    ranks: Vec<RankEvidence>,
}

/// What one rank found.
#[derive(Serialize, Deserialize)]
struct RankEvidence {
    rank: usize,
    host: String,
    what: String,
    tensor: Option<String>,
    micro_batch: usize,
    /// Of the micro batch, in its order.
    samples: Vec<Sample>,
}

#[derive(Serialize, Deserialize)]
struct Sample {
    /// Index in the training data.
    index: u32,
    /// Which of the epoch's copies of it; others are augmented otherwise.
    repetition: u32,
}

/// Collective: rank 0 writes down what the ranks found in `step`, counted from 0, or in their average. The path, on
/// rank 0; a file that cannot be written is no reason to end otherwise than the run does.
pub(crate) fn save(
    session: &Session,
    plan: &Plan,
    dir: &RunDir,
    step: u64,
    learning_rate: f64,
    averaged_gradient: Option<String>,
    found: Option<&NotFinite>,
) -> Result<Option<PathBuf>, Error> {
    let mine = found.map(|found| RankEvidence {
        rank: session.topology().rank,
        host: session.topology().host.clone(),
        what: found.what.clone(),
        tensor: found.tensor.clone(),
        micro_batch: found.micro_batch,
        samples: samples(plan, step, found.micro_batch),
    });
    let json = |error: serde_json::Error| Error::Other(error.to_string());
    let mine = mine.map_or(Ok(Vec::new()), |mine| serde_json::to_vec(&mine)).map_err(json)?;
    let all = session.comm().all_gather(mine)?;
    if !session.is_leader() {
        return Ok(None);
    }
    let evidence = Evidence {
        step: step + 1,
        epoch: step / plan.steps_per_epoch + 1,
        learning_rate,
        averaged_gradient,
        ranks: all.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect(),
    };
    let folder = dir.root().join("evidence");
    let path = folder.join(format!("step-{:09}.json", evidence.step));
    let text = serde_json::to_vec_pretty(&evidence).map_err(json)?;
    let written = files::create_folder(&folder)
        .map_err(Error::file("create", &folder))
        .and_then(|()| Ok(replace_file(&path, &text)?));
    match written {
        Ok(()) => Ok(Some(path)),
        Err(error) => {
            tracing::error!("the evidence is lost: {error}");
            Ok(None)
        }
    }
}

fn samples(plan: &Plan, step: u64, micro_batch: usize) -> Vec<Sample> {
    let (epoch, within) = (step / plan.steps_per_epoch, (step % plan.steps_per_epoch) as usize);
    let keys = plan.data.sampler.epoch(epoch).keys(plan.batches.positions(within, micro_batch));
    keys.into_iter()
        .map(|SampleKey { sample, repetition, .. }| Sample { index: sample, repetition })
        .collect()
}
