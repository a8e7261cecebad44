//! Batch norm over ranks within a whole network. Numbers of several ranks are compared in torch-ext's tests and by the
//! end-to-end tests.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::sync::{Arc, Mutex};

use common::{Weights, images, network, relative_error};
use model::{DrawKey, Memory, Norm, Options, Pass};
use tch::Kind;
use torch_ext::sync_norm::Ranks;

/// A rank alone that counts its averages.
fn alone() -> (Ranks, Arc<Mutex<usize>>) {
    let calls = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&calls);
    let average = move |_: &mut [f32]| {
        *counted.lock().unwrap() += 1;
        Ok(())
    };
    (Ranks { count: 1, average: Arc::new(average) }, calls)
}

#[test]
fn one_rank_computes_what_it_computes_by_itself() {
    for architecture in ["wrn-10-1", "resnet-20", "se-wrn-10-1", "densenet-bc-22-4"] {
        let network = network(architecture, &Options::default());
        let (ranks, calls) = alone();
        let (ordinary, synchronized) = (Weights::new(&network, 1), Weights::new(&network, 1));
        let loss = |weights: &Weights, pass: &Pass| {
            network.forward(&images(4), pass).unwrap().square().sum(Kind::Float).backward();
            weights.gradients.shallow_clone()
        };
        let expected = loss(&ordinary, &ordinary.training());
        let norm = Norm::Synchronized { batch: &synchronized.batch, ranks: &ranks };
        let found = loss(&synchronized, &Pass { norm, ..synchronized.training() });
        let error = relative_error(&found, &expected);
        // A ReLU may fall to the other side of zero where an activation lies within a rounding of it.
        assert!(error < 1e-3, "{architecture}: gradients off by {error}");
        for (found, expected) in synchronized.batch.iter().zip(&ordinary.batch) {
            assert!(relative_error(&found.mean, &expected.mean) < 1e-4, "{architecture}");
            assert!(relative_error(&found.variance, &expected.variance) < 1e-4, "{architecture}");
        }
        assert_eq!(*calls.lock().unwrap(), 3 * network.norms().len(), "twice forward, once backward");
    }
}

#[test]
fn what_would_run_other_layers_on_other_ranks_is_refused() {
    let key = DrawKey { seed: 1, step: 2, micro_batch: 3 };
    for (options, memory, word) in [
        (Options { stochastic_depth: 0.5, ..Options::default() }, Memory::Plain, "stochastic depth"),
        (Options::default(), Memory::Recompute, "recompute"),
        (Options::default(), Memory::Checkpoint, "checkpoint"),
    ] {
        let network = network("wrn-10-1", &options);
        let weights = Weights::new(&network, 1);
        let (ranks, calls) = alone();
        let norm = Norm::Synchronized { batch: &weights.batch, ranks: &ranks };
        let pass = Pass { norm, draws: Some(key), memory, ..weights.training() };
        let message = network.forward(&images(2), &pass).unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
        assert_eq!(*calls.lock().unwrap(), 0, "no rank waits for another");
    }
}
