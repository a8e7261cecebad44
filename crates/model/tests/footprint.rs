//! The bytes that the estimate foretells against those that libtorch really holds.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use common::{Weights, network, waves};
use model::{DrawKey, Memory, Options, Pass};
use tch::{Device, Kind, Tensor};
use torch_ext::{autocast, layout, memory};

const BATCH: i64 = 4;

/// Bytes that a forward pass leaves for backward, and the most that is held until that is through.
fn measure(architecture: &str, options: &Options, kind: Kind, mode: Memory) -> (u64, u64) {
    let network = network(architecture, options);
    let weights = Weights::new(&network, 1);
    let side = i64::from(options.image_size);
    let images = layout::channels_last(&waves(&[BATCH, 3, side, side], 0.3)).unwrap();
    let before = memory::host_bytes();
    let _ = memory::take_host_peak_bytes();
    let draws = Some(DrawKey { seed: 1, step: 2, micro_batch: 3 });
    let loss = {
        let _guard = autocast::Guard::new(Device::Cpu, kind).unwrap();
        let pass = Pass { draws, memory: mode, ..weights.training() };
        network.forward(&images, &pass).unwrap().sum(Kind::Float)
    };
    // In fp32 the images themselves are kept, which were there before.
    let given = if kind == Kind::Float { 4 * images.numel() as u64 } else { 0 };
    let kept = memory::host_bytes() - before + given;
    loss.backward();
    (kept, memory::take_host_peak_bytes() - before + given)
}

#[test]
fn the_estimate_is_what_a_step_holds() {
    memory::count_host_memory().unwrap();
    tch::set_num_threads(1);
    // oneDNN's first use leaves things behind.
    let _ = Tensor::zeros([1, 3, 8, 8], (Kind::Float, Device::Cpu)).conv2d(
        &Tensor::zeros([4, 3, 3, 3], (Kind::Float, Device::Cpu)),
        None::<&Tensor>,
        1,
        1,
        1,
        1,
    );
    for (architecture, dropout, image_size) in [
        ("wrn-16-4", 0.0, 32),
        ("wrn-16-4", 0.3, 32),
        ("wrn-10-4-b313", 0.3, 32),
        ("resnet-20", 0.0, 32),
        ("preact-resnet-164", 0.3, 32),
        ("wrn-18-0.5-imagenet", 0.3, 64),
        ("wrn-50-0.25-bottleneck", 0.0, 64),
        ("se-wrn-10-4", 0.3, 32),
        ("resnext-29-2x16d", 0.0, 32),
        ("densenet-bc-40-12", 0.3, 32),
        ("dpn-92", 0.0, 32),
    ] {
        let options = Options { dropout, image_size, ..Options::default() };
        for kind in [Kind::Float, Kind::BFloat16] {
            for mode in Memory::ALL {
                let case = format!("{architecture}, {kind:?}, {mode}, dropout {dropout}");
                let declared = network(architecture, &options);
                let estimate = BATCH as u64 * declared.activation_bytes(mode, kind);
                let (kept, peak) = measure(architecture, &options, kind, mode);
                // Under autocast the casts of all weights are kept too, and each norm keeps four numbers a channel
                // and some more.
                let weights = if kind == Kind::Float { 0 } else { 2 * declared.parameter_count() };
                let norms: i64 = declared.norms().iter().map(|norm| norm.channels).sum();
                let beside = weights + 32 * norms as u64 + 20_000;
                assert!(peak >= estimate, "{case}: at most {peak} are held, expected {estimate} or more");
                if mode == Memory::Checkpoint {
                    // The rest is the inside of a block.
                    let most = estimate + beside;
                    assert!(kept <= most, "{case}: {kept} are kept, expected {most} or less");
                } else {
                    let (least, most) = (estimate * 99 / 100, estimate * 101 / 100 + beside);
                    assert!(
                        (least..=most).contains(&kept),
                        "{case}: {kept} are kept, expected {least} to {most}"
                    );
                }
            }
        }
    }
}
