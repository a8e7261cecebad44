//! `train.micro_batch: auto` on a GPU without `train.memory_limit_gib`: the largest micro batch with which a step of the
//! run fits into the memory of every rank's GPU, found out by running it. Decides once, before the first step of a run.

use std::num::NonZeroUsize;

use allreduce::{CommThread, Solo};

use super::candidates;
use crate::config::{AutoOr, LoadedConfig};
use crate::device::{Compute, expects_gpu};
use crate::engine::{Engine, StepError, Wishes};
use crate::error::Error;
use crate::plan::Plan;
use crate::session::Session;
use crate::train::{decoder_threads, training_feed};

/// What libtorch's error says where an allocation failed.
const OUT_OF_MEMORY: &str = "out of memory";

/// Collective: makes `auto` definite, if every rank is to find it out on a GPU.
pub(crate) fn resolve(session: &Session, loaded: &mut LoadedConfig) -> Result<(), Error> {
    let train = &loaded.config.train;
    let mine = train.micro_batch == Some(AutoOr::Auto)
        && train.memory_limit_gib.is_none()
        && expects_gpu(&loaded.config);
    // Ranks that want different things go on to where configurations are compared.
    if session.any(!mine)? {
        return Ok(());
    }
    let compute = Compute::set_up(session, loaded)?;
    let own = session.agree(largest(session, loaded, compute))?;
    let answers = session.comm().all_gather(own.to_string().into_bytes())?;
    let chosen = smallest(own, &answers);
    if session.is_leader() {
        tracing::info!("train.micro_batch: auto became {chosen}: a step with it fits into every rank's GPU");
    }
    loaded.config.train.micro_batch = Some(AutoOr::Exactly(chosen));
    Ok(())
}

/// The answer that suits every rank: GPUs may differ in memory, or in what else lies there.
fn smallest(own: NonZeroUsize, answers: &[Vec<u8>]) -> NonZeroUsize {
    let answers = answers.iter().filter_map(|answer| String::from_utf8_lossy(answer).parse().ok());
    answers.min().unwrap_or(own)
}

/// This rank's answer.
fn largest(session: &Session, loaded: &LoadedConfig, compute: Compute) -> Result<NonZeroUsize, Error> {
    let topology = session.topology();
    let mut tried = loaded.clone();
    let mut plan_with = |micro_batch: Option<NonZeroUsize>| {
        tried.config.train.micro_batch = micro_batch.map(AutoOr::Exactly);
        Plan::open(&tried, topology.rank, topology.world_size)
    };
    let candidates = candidates(&plan_with(None)?);
    let found = first_that_fits(&candidates, |micro_batch| {
        let plan = plan_with(Some(micro_batch))?;
        let workers = decoder_threads(&plan, session, compute);
        let fits = runs_a_step(&plan, compute, workers);
        if compute.device.is_cuda() {
            torch_ext::runtime::free_cached_device_memory()?;
        }
        fits
    })?;
    found.ok_or_else(|| {
        let message = "auto: a step does not fit into the GPU's memory even with one image at a time; expected a smaller \
                       network or image, or train.memory: recompute or checkpoint";
        loaded.error("train.micro_batch", message).into()
    })
}

/// The first of `candidates`, which need less and less memory, that fits. By bisection.
fn first_that_fits(
    candidates: &[NonZeroUsize],
    mut fits: impl FnMut(NonZeroUsize) -> Result<bool, Error>,
) -> Result<Option<NonZeroUsize>, Error> {
    let (mut low, mut high) = (0, candidates.len());
    while low < high {
        // The first try is the largest: mostly it fits.
        let middle = if high == candidates.len() && low == 0 { 0 } else { low.midpoint(high) };
        if fits(candidates[middle])? {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(candidates.get(low).copied())
}

/// Whether the last step of `plan`, whose images are the largest, fits: a step of the whole engine, but that it is
/// exchanged with nobody.
fn runs_a_step(plan: &Plan, compute: Compute, workers: usize) -> Result<bool, Error> {
    let step = plan.total_steps() - 1;
    let run = || -> Result<(), Error> {
        let comm = CommThread::start(|| Ok(Box::new(Solo::new())))?;
        let mut engine = Engine::new(plan, compute, comm.clone())?;
        let mut feed = training_feed(plan, compute.device, step, workers)?;
        match engine.step(step, 0.0, &Wishes::default, &mut feed) {
            Ok(_) => Ok(comm.shutdown()?),
            Err(StepError::Here(error) | StepError::Exchange(error)) => Err(error),
            Err(StepError::Elsewhere) => Err(Error::Other("the trial of a step failed".into())),
        }
    };
    match run() {
        Ok(()) => Ok(true),
        Err(error) if error.to_string().contains(OUT_OF_MEMORY) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_that_fits_is_found_with_few_tries_and_the_first_at_once() {
        let candidates: Vec<_> = [64, 32, 16, 8, 4, 2, 1].into_iter().filter_map(NonZeroUsize::new).collect();
        for (most, expected, tries) in
            [(64, Some(64), 1), (63, Some(32), 4), (5, Some(4), 4), (1, Some(1), 4), (0, None, 4)]
        {
            let mut tried = 0;
            let found = first_that_fits(&candidates, |micro_batch| {
                tried += 1;
                Ok(micro_batch.get() <= most)
            });
            assert_eq!(found.unwrap().map(NonZeroUsize::get), expected, "{most}");
            assert!(tried <= tries, "{most}: {tried} tries");
        }
    }

    #[test]
    fn ranks_take_the_smallest_answer_whoever_has_it() {
        let answers = |of: [usize; 3]| of.map(|answer| answer.to_string().into_bytes());
        // As text 128 comes before 64.
        for (of, expected) in [([128, 64, 128], 64), ([8, 16, 64], 8), ([256, 128, 32], 32), ([4, 4, 4], 4)] {
            for own in of {
                let own = NonZeroUsize::new(own).unwrap();
                assert_eq!(smallest(own, &answers(of)).get(), expected, "{of:?}");
            }
        }
    }

    #[test]
    fn a_failure_of_another_kind_is_no_answer() {
        let candidates = [NonZeroUsize::MIN];
        let found = first_that_fits(&candidates, |_| Err(Error::Other("the data is damaged".into())));
        assert_eq!(found.unwrap_err().to_string(), "the data is damaged");
    }
}
