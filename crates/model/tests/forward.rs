//! The forward pass: shapes, memory order, precision, dropout and statistics. Numbers are compared with
//! PyTorch in `parity.rs`.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use common::{Weights, images, network, relative_error, values, variants, waves};
use model::{DrawKey, Memory, ModelError, Network, Norm, Options, Pass};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::{autocast, flat, layout};

fn cross_entropy(network: &Network, input: &Tensor, pass: &Pass) -> Tensor {
    let labels = Tensor::arange(input.size()[0], (Kind::Int64, Device::Cpu));
    network.forward(input, pass).unwrap().to_kind(Kind::Float).cross_entropy_for_logits(&labels)
}

#[test]
fn logits_have_a_row_an_image_and_a_column_a_class() {
    for (classes, image_size, in_channels, count) in
        [(10, 32, 3, 2), (100, 32, 3, 3), (7, 28, 1, 2), (10, 64, 3, 1)]
    {
        let network =
            network("wrn-10-1", &Options { classes, image_size, in_channels, ..Options::default() });
        let weights = Weights::new(&network, 1);
        let side = i64::from(image_size);
        let input = layout::channels_last(&waves(&[count, i64::from(in_channels), side, side], 0.0)).unwrap();
        for pass in [weights.training(), weights.evaluation()] {
            let logits = network.forward(&input, &pass).unwrap();
            assert_eq!((logits.size(), logits.kind()), (vec![count, i64::from(classes)], Kind::Float));
            assert!(logits.isfinite().all().int64_value(&[]) == 1);
        }
    }
}

#[test]
fn gradients_keep_channels_last_down_to_the_images_in_fp32_and_bf16() {
    let families = [
        "wrn-10-1-b313",
        "resnet-20",
        "wrn-18-0.25-imagenet",
        "wrn-50-0.25-bottleneck",
        "preact-resnet-164",
        "resnext-29-2x4d",
        "se-wrn-10-1",
        "densenet-bc-22-4",
        "dpn-68",
    ];
    let cases = (variants().into_iter().map(|(variant, options)| ("wrn-16-2", variant, options)))
        .chain(families.map(|family| (family, "paper", Options::default())));
    for (architecture, variant, options) in cases {
        let network = network(architecture, &options);
        for precision in [Kind::Float, Kind::BFloat16] {
            let weights = Weights::new(&network, 1);
            let input = images(2).set_requires_grad(true);
            let places: Vec<_> = weights.leaves.iter().map(|leaf| leaf.grad().data_ptr()).collect();
            let loss = {
                let _guard = autocast::Guard::new(Device::Cpu, precision).unwrap();
                cross_entropy(&network, &input, &weights.training())
            };
            loss.backward();
            assert!(layout::is_channels_last(&input.grad()), "{architecture}, {variant}, {precision:?}");
            for ((leaf, place), parameter) in weights.leaves.iter().zip(places).zip(network.parameters()) {
                let gradient = leaf.grad();
                let name = &parameter.name;
                assert_eq!(gradient.data_ptr(), place, "{name} got a gradient outside of the flat buffer");
                assert_eq!(gradient.stride(), flat::strides(&parameter.shape), "{name}");
                assert!(gradient.abs().sum(Kind::Double).double_value(&[]) > 0.0, "{name} has no gradient");
            }
        }
    }
}

#[test]
fn the_memory_order_of_the_images_does_not_change_the_result() {
    let network = network("wrn-10-2", &Options::default());
    let weights = Weights::new(&network, 1);
    let (ordered, contiguous) = (images(4), images(4).contiguous());
    assert!(!layout::is_channels_last(&contiguous));
    let run = |input: &Tensor| network.forward(input, &weights.training()).unwrap();
    assert!(relative_error(&run(&contiguous), &run(&ordered)) < 1e-5);
}

#[test]
fn bf16_is_used_under_autocast_and_close_to_fp32() {
    let network = network("wrn-16-2", &Options::default());
    let run = |precision: Kind| {
        let weights = Weights::new(&network, 1);
        let logits = {
            let _guard = autocast::Guard::new(Device::Cpu, precision).unwrap();
            network.forward(&images(8), &weights.training()).unwrap()
        };
        assert_eq!(logits.kind(), precision);
        logits.to_kind(Kind::Float).square().sum(Kind::Float).backward();
        assert!(weights.leaves.iter().all(|leaf| leaf.grad().kind() == Kind::Float));
        assert!(weights.batch.iter().all(|layer| layer.mean.kind() == Kind::Float));
        (logits, weights.gradients, weights.batch)
    };
    let (exact, exact_gradients, exact_statistics) = run(Kind::Float);
    let (logits, gradients, statistics) = run(Kind::BFloat16);
    let off = relative_error(&logits, &exact);
    assert!((1e-6..5e-2).contains(&off), "logits off by {off}");
    let off = relative_error(&gradients, &exact_gradients);
    assert!((1e-6..0.15).contains(&off), "gradients off by {off}");
    for (layer, exact) in statistics.iter().zip(&exact_statistics) {
        assert!(relative_error(&layer.mean, &exact.mean) < 5e-2);
        assert!(relative_error(&layer.variance, &exact.variance) < 5e-2);
    }
}

#[test]
fn dropout_changes_with_every_part_of_its_key_and_with_nothing_else() {
    let network = network("wrn-16-1", &Options { dropout: 0.3, ..Options::default() });
    let weights = Weights::new(&network, 1);
    let run = |draws: Option<DrawKey>| {
        no_grad(|| values(&network.forward(&images(2), &Pass { draws, ..weights.training() }).unwrap()))
    };
    let key = DrawKey { seed: 1, step: 2, micro_batch: 3 };
    let kept = run(Some(key));
    tch::manual_seed(99);
    assert_eq!(run(Some(key)), kept, "the same key");
    let mut seen = vec![kept, run(None)];
    assert_eq!(run(None), seen[1]);
    for other in [
        DrawKey { seed: 2, ..key },
        DrawKey { step: 3, ..key },
        DrawKey { micro_batch: 4, ..key },
        DrawKey { seed: 1 | 1 << 40, ..key },
        // The same numbers in other places are another key.
        DrawKey { seed: 2, step: 1, ..key },
        DrawKey { seed: 1, step: 3, micro_batch: 2 },
    ] {
        let logits = run(Some(other));
        assert!(!seen.contains(&logits), "{other:?} gives what an earlier key gave");
        seen.push(logits);
    }
}

#[test]
fn a_key_changes_nothing_in_a_network_without_dropout() {
    let network = network("wrn-10-1", &Options::default());
    let weights = Weights::new(&network, 1);
    let run = |draws| values(&network.forward(&images(2), &Pass { draws, ..weights.training() }).unwrap());
    assert_eq!(run(None), run(Some(DrawKey { seed: 1, step: 2, micro_batch: 3 })));
}

#[test]
fn batch_statistics_are_the_mean_and_unbiased_variance_of_what_a_layer_reads() {
    let network = network("wrn-10-1", &Options::default());
    let weights = Weights::new(&network, 1);
    let _ = network.forward(&images(3), &weights.training()).unwrap();
    assert_eq!(network.norms()[0].name, "group0.block0.bn0");
    let read = images(3).conv2d(&weights.leaves[0], None::<&Tensor>, 1, 1, 1, 1);
    let axes = [0i64, 2, 3];
    let expected_mean = read.mean_dim(axes.as_slice(), false, Kind::Float);
    let expected_variance = read.var_dim(axes.as_slice(), true, false);
    assert!(relative_error(&weights.batch[0].mean, &expected_mean) < 1e-5);
    assert!(relative_error(&weights.batch[0].variance, &expected_variance) < 1e-5);
    // Every layer's old content is gone.
    for layer in &weights.batch {
        assert!(layer.mean.abs().max().double_value(&[]) < 1e3);
        assert!(layer.variance.min().double_value(&[]) >= 0.0);
    }
}

#[test]
fn evaluation_reads_running_statistics_and_leaves_them_alone() {
    let network = network("wrn-10-2", &Options { dropout: 0.5, ..Options::default() });
    let weights = Weights::new(&network, 1);
    let copy = || -> Vec<_> {
        weights.running.iter().flat_map(|s| [values(&s.mean), values(&s.variance)]).collect()
    };
    let before = copy();
    let batch = images(4);
    let together = network.forward(&batch, &weights.evaluation()).unwrap();
    assert_eq!(copy(), before);
    // So an image's logits do not depend on its companions.
    for index in 0..4 {
        let alone = network.forward(&batch.narrow(0, index, 1), &weights.evaluation()).unwrap();
        assert!(relative_error(&alone, &together.narrow(0, index, 1)) < 1e-5);
    }
    let other = network.forward(
        &batch,
        &Pass { norm: Norm::Running(&Weights::new(&network, 1).running), ..weights.evaluation() },
    );
    assert!(other.unwrap().equal(&together));
    let _ = weights.running[0].mean.shallow_clone().fill_(3.0);
    assert!(relative_error(&network.forward(&batch, &weights.evaluation()).unwrap(), &together) > 1e-3);
}

#[test]
fn two_backwards_add_their_gradients() {
    let network = network("wrn-10-2", &Options::default());
    let (first, second) = (images(2), layout::channels_last(&waves(&[2, 3, 32, 32], 9.0)).unwrap());
    let gradients = |batches: &[&Tensor]| {
        let weights = Weights::new(&network, 1);
        for batch in batches {
            cross_entropy(&network, batch, &weights.training()).backward();
        }
        weights.gradients
    };
    let sum = gradients(&[&first]) + gradients(&[&second]);
    assert!(relative_error(&gradients(&[&first, &second]), &sum) < 1e-6);
}

#[test]
fn images_of_another_shape_are_an_error_and_not_a_panic() {
    let network = network("wrn-10-1", &Options::default());
    let weights = Weights::new(&network, 1);
    for shape in [&[2, 1, 32, 32][..], &[2, 3], &[2, 4, 32, 32]] {
        assert!(network.forward(&waves(shape, 0.0), &weights.training()).is_err(), "{shape:?}");
    }
}

/// A network with stochastic depth and every key until a block is left out of one of its passes.
fn stochastic(architecture: &str) -> Network {
    network(architecture, &Options { stochastic_depth: 0.6, ..Options::default() })
}

#[test]
fn stochastic_depth_leaves_whole_blocks_out_and_their_parameters_without_gradient() {
    for architecture in ["wrn-10-2", "resnet-20", "resnet-18", "se-wrn-16-1", "preact-resnet-20"] {
        let network = stochastic(architecture);
        let mut passes_with_losses = 0;
        for micro_batch in 0..4 {
            let weights = Weights::new(&network, 1);
            let key = DrawKey { seed: 5, step: 7, micro_batch };
            let pass = Pass { draws: Some(key), ..weights.training() };
            let output = network.forward(&images(2), &pass).unwrap();
            output.square().sum(None::<Kind>).backward();
            let left_out = network.left_out(key);
            passes_with_losses += usize::from(!left_out.is_empty());
            for (index, parameter) in network.parameters().iter().enumerate() {
                let gradient = weights.leaves[index].grad();
                let touched = gradient.abs().sum(None::<Kind>).double_value(&[]) > 0.0;
                assert_eq!(touched, !left_out.contains(&index), "{architecture}: {}", parameter.name);
            }
            for (norm, (batch, running)) in
                network.norms().iter().zip(weights.batch.iter().zip(&weights.running))
            {
                let gain = format!("{}.weight", norm.name);
                let index = network.parameters().iter().position(|found| found.name == gain).unwrap();
                let kept = values(&batch.mean) == values(&running.mean)
                    && values(&batch.variance) == values(&running.variance);
                assert_eq!(kept, left_out.contains(&index), "{architecture}: statistics of {}", norm.name);
            }
        }
        assert!(passes_with_losses > 0, "{architecture}");
    }
}

#[test]
fn stochastic_depth_removes_later_blocks_more_often() {
    let network = stochastic("wrn-28-1");
    let passes: u64 = 2000;
    let gain = |group: u32, block: u32| {
        let name = format!("group{group}.block{block}.bn1.weight");
        network.parameters().iter().position(|parameter| parameter.name == name).unwrap()
    };
    let blocks: Vec<usize> =
        (0..3).flat_map(|group| (0..4).map(move |block| (group, block))).map(|(g, b)| gain(g, b)).collect();
    let mut removed = vec![0u32; blocks.len()];
    for step in 0..passes {
        let left_out = network.left_out(DrawKey { seed: 3, step, micro_batch: step % 4 });
        for (count, parameter) in removed.iter_mut().zip(&blocks) {
            *count += u32::from(left_out.contains(parameter));
        }
    }
    for (number, &count) in (1..).zip(&removed) {
        let death = 0.6 * f64::from(number) / 12.0;
        let sigma = (death * (1.0 - death) * passes as f64).sqrt();
        let expected = death * passes as f64;
        assert!((f64::from(count) - expected).abs() < 4.0 * sigma, "block {number}: {count}, not {expected}");
    }
}

#[test]
fn evaluation_scales_each_branch_by_the_probability_that_it_was_there() {
    // One block a group, so that the survival probabilities are 0.8, 0.6 and 0.4.
    let (plain, stochastic) = (network("wrn-10-1", &Options::default()), stochastic("wrn-10-1"));
    let weights = Weights::new(&stochastic, 1);
    let expected = Weights::new(&plain, 1);
    for (name, survival) in
        [("group0.block0.conv1", 0.8), ("group1.block0.conv1", 0.6), ("group2.block0.conv1", 0.4)]
    {
        let weight = format!("{name}.weight");
        let index = plain.parameters().iter().position(|parameter| parameter.name == weight).unwrap();
        no_grad(|| {
            let _ = expected.leaves[index].shallow_clone().f_mul_scalar_(survival).unwrap();
        });
    }
    let scaled = values(&stochastic.forward(&images(2), &weights.evaluation()).unwrap());
    let wanted = values(&plain.forward(&images(2), &expected.evaluation()).unwrap());
    for (found, wanted) in scaled.iter().zip(&wanted) {
        assert!((found - wanted).abs() <= 1e-5 * wanted.abs().max(1.0), "{found} against {wanted}");
    }
}

#[test]
fn dropout_on_shortcuts_leaves_the_branches_alone() {
    let options = Options { shortcut_dropout: 0.5, ..Options::default() };
    let (plain, dropped) = (network("wrn-10-1", &Options::default()), network("wrn-10-1", &options));
    let weights = Weights::new(&plain, 1);
    let key = DrawKey { seed: 1, step: 2, micro_batch: 3 };
    let run = |network: &Network, draws| {
        no_grad(|| values(&network.forward(&images(2), &Pass { draws, ..weights.training() }).unwrap()))
    };
    assert_eq!(run(&plain, None), run(&dropped, None), "evaluation has no masks");
    assert_ne!(run(&plain, Some(key)), run(&dropped, Some(key)));
    assert_eq!(run(&dropped, Some(key)), run(&dropped, Some(key)));
}

#[test]
fn parameters_may_come_as_late_as_their_use() {
    for (architecture, memory) in [
        ("wrn-10-1", Memory::Plain),
        ("wrn-10-1", Memory::Recompute),
        ("wrn-10-1", Memory::Checkpoint),
        ("se-resnet-18", Memory::Plain),
        ("dpn-68", Memory::Plain),
        ("densenet-bc-100-12", Memory::Recompute),
    ] {
        let network = network(architecture, &Options { image_size: 32, ..Options::default() });
        let weights = Weights::new(&network, 1);
        let input = images(2);
        let expected = values(&network.forward(&input, &weights.training()).unwrap());
        let complete: Vec<Tensor> = weights.leaves.iter().map(Tensor::copy).collect();
        no_grad(|| weights.leaves.iter().for_each(|leaf| drop(leaf.shallow_clone().fill_(f64::NAN))));
        let arrive = |index: usize| {
            no_grad(|| weights.leaves[index].shallow_clone().copy_(&complete[index]));
            Ok(())
        };
        let pass = Pass { before_use: Some(&arrive), memory, ..weights.training() };
        assert_eq!(values(&network.forward(&input, &pass).unwrap()), expected, "{architecture}, {memory}");

        let lost = |_| Err(ModelError::Parameter("rank 1 is gone".into()));
        let pass = Pass { before_use: Some(&lost), memory, ..weights.training() };
        assert_eq!(network.forward(&input, &pass).unwrap_err().to_string(), "rank 1 is gone");
    }
}
