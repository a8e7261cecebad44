//! Weights of other programs: `model import`, `model export`, and training that begins with them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use end_to_end::{
    Experiment, FashionMnist, Outcome, mpirun_or_skip, python_module_or_skip, python_or_skip, run_python,
    wrn_dist,
};
use safetensors::SafeTensors;
use tempfile::TempDir;

const ORACLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/oracle/weights.py");

/// So small that no update changes a weight that is not zero; running statistics stay too.
const STANDING_STILL: &[&str] = &["--set", "schedule.rate=1e-30", "--set", "model.frozen_norm=true"];

/// One epoch of a small network.
fn experiment() -> Experiment {
    Experiment::new(
        FashionMnist { train: 64, test: 50 },
        "model: {arch: wrn-10-1}
train: {epochs: 1, global_batch: 16, micro_batch: 8, threads: 1}
schedule: {kind: constant, rate: 0.1}
",
    )
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn import(arguments: &[&str], input: &Path, output: &Path) -> Outcome {
    wrn_dist(1, &[&["model", "import"], arguments, &[text(input), text(output)]].concat())
}

fn export(arguments: &[&str], input: &Path, output: &Path) -> Outcome {
    wrn_dist(1, &[&["model", "export"], arguments, &[text(input), text(output)]].concat())
}

/// Name, shape and single-precision numbers of every tensor.
fn tensors(file: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(file).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    (parsed.iter())
        .map(|(name, view)| {
            let numbers = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            (name.to_owned(), (view.shape().to_vec(), numbers.collect()))
        })
        .collect()
}

fn weights(checkpoint: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    tensors(&checkpoint.join("weights.safetensors"))
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn weights_with_a_projection_in_every_first_block_come_back_too() {
    let experiment = experiment();
    let first_block = ["--set", "model.projection=first-block"];
    let _ = experiment.train("run", 1, &first_block).expect_code(0);
    let (run, file, copy) =
        (experiment.path("run"), experiment.path("copy.safetensors"), experiment.path("copy"));
    let _ = export(&["--to", "wrn-official"], &run, &file).expect_code(0);
    assert!(tensors(&file).contains_key("group0.block0.convdim"));
    let _ = import(&["--arch", "wrn-10-1"], &file, &copy).expect_code(0);
    assert_eq!(weights(&copy), weights(&experiment.checkpoint_folder("run")));
    let again = experiment.path("again.safetensors");
    let _ = export(&["--to", "wrn-official"], &copy, &again).expect_code(0);
    assert_eq!(fs::read(&again).unwrap(), fs::read(&file).unwrap());
}

#[test]
fn exported_weights_come_back_as_they_were_and_are_evaluated_alike() {
    let experiment = experiment();
    let _ = experiment.train("run", 1, &[]).expect_code(0);
    let evaluate = |checkpoint: &Path| {
        wrn_dist(1, &["eval", "--config", experiment.config(), "--checkpoint", text(checkpoint)])
    };
    let run = experiment.path("run");
    let trained = experiment.checkpoint_folder("run");
    let expected = evaluate(&run).expect_code(0).stdout;
    let given = [run.clone(), trained.clone(), trained.join("weights.safetensors")];
    for (input, naming, convolution, count) in [
        (&given[0], "auto", "group0.block0.conv0", "fc.bias"),
        (&given[1], "wrn-official", "group2.block0.convdim", "fc.bias"),
        (&given[2], "own", "conv0.weight", "bn.num_batches_tracked"),
    ] {
        let file = experiment.path(&format!("{naming}.safetensors"));
        let _ = export(&["--to", naming], input, &file).expect_code(0);
        let exported = tensors(&file);
        assert!(
            exported.contains_key(convolution) && exported.contains_key(count),
            "{naming}: {:?}",
            exported.keys()
        );
        let imported = experiment.path(&format!("{naming}-imported"));
        let said = import(&["--arch", "wrn-10-1"], &file, &imported).expect_code(0).stdout;
        assert!(said.contains("10 classes"), "{said}");
        assert_eq!(weights(&imported), weights(&trained), "{naming}");
        assert_eq!(evaluate(&imported).expect_code(0).stdout, expected, "{naming}");
    }
    // The number of steps, as PyTorch counts batches: a whole number of 8 bytes.
    let bytes = fs::read(experiment.path("own.safetensors")).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(parsed.tensor("bn.num_batches_tracked").unwrap().data(), 4_i64.to_le_bytes());
}

#[test]
fn training_begins_with_the_imported_weights_on_any_number_of_ranks() {
    let experiment = experiment();
    let _ = experiment.train("source", 1, &[]).expect_code(0);
    let file = experiment.path("weights.safetensors");
    let _ = export(&[], &experiment.path("source"), &file).expect_code(0);
    let imported = experiment.path("imported");
    let _ = import(&["--arch", "wrn-10-1"], &file, &imported).expect_code(0);
    let set = |path: &Path| format!("model.weights={}", text(path));
    let from_imported = set(&imported);
    let begin = [&["--set", from_imported.as_str()], STANDING_STILL].concat();
    let expected = weights(&imported);
    for ranks in [1, 2] {
        if ranks > 1 && !mpirun_or_skip() {
            continue;
        }
        let name = format!("on-{ranks}");
        let _ = experiment.train(&name, ranks, &begin).expect_code(0);
        for (name, (_, numbers)) in weights(&experiment.checkpoint_folder(&name)) {
            assert!(largest_difference(&numbers, &expected[&name].1) < 1e-20, "{ranks}: {name}");
        }
    }

    // The run knows its weights by their content.
    let config = fs::read_to_string(experiment.path("on-1").join("config.yaml")).unwrap();
    let checksum =
        config.lines().find_map(|line| line.trim().strip_prefix("weights_sha256: ")).unwrap().to_owned();
    let moved = experiment.path("moved");
    fs::rename(&imported, &moved).unwrap();
    let from_moved = set(&moved);
    let at_its_new_place = [&["--set", from_moved.as_str()], STANDING_STILL].concat();
    let _ = experiment.train("on-1", 1, &at_its_new_place).expect_code(0);
    let _ = experiment.train("other", 1, STANDING_STILL).expect_code(0);
    let from_other = set(&experiment.path("other"));
    let other = ["--set", from_other.as_str()];
    let refused = experiment.train("on-1", 1, &[&other, STANDING_STILL].concat()).expect_code(1);
    assert!(refused.stderr.contains("model.weights_sha256 was"), "{}", refused.stderr);
    // A new run needs the file; one that goes on does not, with or without the checksum.
    let gone = experiment.train("new", 1, &begin).expect_code(2);
    assert!(gone.stderr.contains("model.weights") && gone.stderr.contains("imported"), "{}", gone.stderr);
    let _ = experiment.train("on-1", 1, &begin).expect_code(0);
    let checksum = format!("model.weights_sha256={checksum}");
    let known = [&begin[..], &["--set", &checksum]].concat();
    let _ = experiment.train("on-1", 1, &known).expect_code(0);
    let wrong = [&at_its_new_place[..], &["--set", "model.weights_sha256=0123"]].concat();
    let refused = experiment.train("wrong", 1, &wrong).expect_code(1);
    assert!(refused.stderr.contains("model.weights_sha256 says 0123"), "{}", refused.stderr);
}

#[test]
fn a_new_classifier_is_drawn_as_configured_and_the_rest_is_kept() {
    let experiment = experiment();
    let _ = experiment.train("source", 1, &["--set", "model.classes=13"]).expect_code(0);
    let source = experiment.path("source");
    let file = experiment.path("weights.safetensors");
    let _ = export(&[], &source, &file).expect_code(0);
    let import = |arguments: &[&str], output: &str| {
        let arguments = [&["--arch", "wrn-10-1"], arguments].concat();
        import(&arguments, &file, &experiment.path(output))
    };
    let refused = import(&["--classes", "10"], "refused").expect_code(1);
    assert!(refused.stderr.contains("13 classes, expected 10"), "{}", refused.stderr);
    assert!(!experiment.path("refused").exists());
    let _ = import(&["--classes", "10", "--new-classifier"], "without").expect_code(0);
    let without = experiment.path("without");
    assert!(weights(&without).keys().all(|name| !name.starts_with("fc.")));

    // As it is drawn for a network that has no other weights.
    let _ = experiment.train("drawn", 1, STANDING_STILL).expect_code(0);
    let drawn = weights(&experiment.checkpoint_folder("drawn"));
    let kept = weights(&experiment.checkpoint_folder("source"));
    let begin = |path: &Path| format!("model.weights={}", text(path));
    for (name, begin, more) in [
        ("from-import", begin(&without), &[][..]),
        ("from-run", begin(&source), &["--set", "model.new_classifier=true"]),
    ] {
        let arguments = [&["--set", begin.as_str()], STANDING_STILL, more].concat();
        let _ = experiment.train(name, 1, &arguments).expect_code(0);
        for (name, (_, numbers)) in weights(&experiment.checkpoint_folder(name)) {
            let expected = if name.starts_with("fc.") { &drawn[&name] } else { &kept[&name] };
            assert!(largest_difference(&numbers, &expected.1) < 1e-20, "{name}");
        }
    }
    let refused = experiment.train("again", 1, &["--set", &begin(&source)]).expect_code(1);
    assert!(refused.stderr.contains("model.new_classifier"), "{}", refused.stderr);

    for arguments in [
        &["eval", "--config", experiment.config(), "--checkpoint", text(&without)][..],
        &["model", "export", text(&without), text(&experiment.path("out.safetensors"))],
    ] {
        let refused = wrn_dist(1, arguments).expect_code(1);
        assert!(refused.stderr.contains("without a classifier"), "{}", refused.stderr);
    }
    let resume = ["--resume", text(&without)];
    let refused = experiment.train("resumed", 1, &resume).expect_code(1);
    assert!(refused.stderr.contains("model.weights"), "{}", refused.stderr);
    let lonely = experiment.train("lonely", 1, &["--set", "model.new_classifier=true"]).expect_code(2);
    assert!(lonely.stderr.contains("model.new_classifier"), "{}", lonely.stderr);
}

#[test]
fn everything_that_does_not_fit_is_told_at_once_and_nothing_is_written() {
    let experiment = experiment();
    let _ = experiment.train("run", 1, &[]).expect_code(0);
    let file = experiment.path("weights.safetensors");
    let _ = export(&["--to", "own"], &experiment.path("run"), &file).expect_code(0);
    let bytes = fs::read(&file).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let damaged = experiment.path("damaged.safetensors");
    let views: Vec<_> = (parsed.iter())
        .filter(|(name, _)| *name != "bn.bias")
        .map(|(name, view)| match name {
            "conv0.weight" => ("conv9.weight", view),
            "fc.bias" => (name, view),
            "group0.block0.bn0.weight" => (name, parsed.tensor("group2.block0.bn1.weight").unwrap()),
            "group0.block0.bn0.bias" => (name, parsed.tensor("bn.num_batches_tracked").unwrap()),
            _ => (name, view),
        })
        .collect();
    fs::write(&damaged, safetensors::serialize(views, None).unwrap()).unwrap();
    let out = experiment.path("out");
    let refused = import(&["--arch", "wrn-10-1"], &damaged, &out).expect_code(1).stderr;
    for part in [
        "bn.bias [64] is missing",
        "conv0.weight [16, 3, 3, 3] is missing",
        "conv9.weight is not part of the network",
        "group0.block0.bn0.weight is [64], expected [16]",
        "group0.block0.bn0.bias is [], expected [16]",
        "group0.block0.bn0.bias holds I64",
    ] {
        assert!(refused.contains(part), "{refused}\nlacks {part}");
    }
    assert!(!out.exists());

    // A naming, an architecture, a file or an output that cannot be.
    let pickle = experiment.path("weights.pth");
    fs::write(&pickle, b"PK\x03\x04").unwrap();
    let torn = experiment.path("torn.safetensors");
    fs::write(&torn, &bytes[..bytes.len() - 1]).unwrap();
    for (arguments, input, code, part) in [
        (&["--arch", "wrn-10-1", "--from", "torchvision"][..], &file, 2, "expected one of wrn-official, own"),
        (&["--arch", "wrn-11-1"], &file, 2, "6N+4"),
        (&["--arch", "wrn-10-1", "--from", "keras"], &file, 2, "torchvision, timm, wrn-official, own"),
        (&["--arch", "wrn-10-1"], &pickle, 1, "pickle"),
        (&["--arch", "wrn-10-1"], &torn, 1, "no safetensors"),
        (&["--arch", "wrn-10-1"], &experiment.path("nowhere"), 1, "nowhere"),
        (&["--arch", "wrn-10-1", "--channels", "0"], &file, 2, "in_channels is 0"),
    ] {
        let refused = import(arguments, input, &out).expect_code(code).stderr;
        assert!(refused.contains(part), "{refused}\nlacks {part}");
        assert!(!out.exists());
    }
    let run = experiment.path("run");
    let refused = export(&[], &run, &file).expect_code(1).stderr;
    assert!(refused.contains("exists"), "{refused}");
    assert_eq!(fs::read(&file).unwrap(), bytes, "what was there stays");
    let refused = import(&["--arch", "wrn-10-1"], &file, &run).expect_code(1).stderr;
    assert!(refused.contains("exists"), "{refused}");
}

/// Writes weights in another program, imports and exports them; the program must find them as they were.
fn round_trip(name: &str, architecture: &str, formats: &[&str]) {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    for format in formats {
        let original = path(&format!("{format}.original"));
        let _ = run_python(Path::new(ORACLE), &["write", name, text(&original), format]).expect_code(0);
        let imported = path(&format!("{format}.imported"));
        let _ = import(&["--arch", architecture], &original, &imported).expect_code(0);
        let exported = path(&format!("{format}.exported"));
        let dtype = match *format {
            "float16" => "f16",
            "bfloat16" => "bf16",
            _ => "f32",
        };
        let _ = export(&["--dtype", dtype], &imported, &exported).expect_code(0);
        let arguments = ["compare", name, text(&exported), text(&original)];
        let _ = run_python(Path::new(ORACLE), &arguments).expect_code(0);
    }
}

#[test]
fn weights_of_the_authors_code_survive_the_way_in_and_out_in_every_format() {
    if python_or_skip() {
        round_trip("official:16-2", "wrn-16-2", &["float32", "float16", "bfloat16", "float64"]);
        round_trip("official:10-1", "wrn-10-1", &["float32"]);
    }
}

#[test]
fn weights_of_torchvision_survive_the_way_in_and_out() {
    if python_module_or_skip("torchvision") {
        round_trip("torchvision:resnet18", "resnet-18", &["float16"]);
    }
}

#[test]
fn weights_of_timm_survive_the_way_in_and_out() {
    if python_module_or_skip("timm") {
        round_trip("timm:seresnet18", "se-resnet-18", &["float32"]);
        round_trip("timm:dpn68", "dpn-68", &["float32"]);
    }
}

#[test]
#[ignore = "long: networks of up to half a gigabyte"]
fn weights_of_large_networks_survive_the_way_in_and_out() {
    if python_module_or_skip("torchvision") && python_module_or_skip("timm") {
        for (name, architecture) in [
            ("torchvision:resnet50", "resnet-50"),
            ("torchvision:wide_resnet50_2", "wrn-50-2-bottleneck"),
            ("torchvision:wide_resnet101_2", "wrn-101-2-bottleneck"),
            ("torchvision:resnext50_32x4d", "resnext-50-32x4d"),
            ("torchvision:densenet121", "densenet-121"),
            ("timm:wide_resnet50_2", "wrn-50-2-bottleneck"),
            ("timm:seresnet50", "se-resnet-50"),
            ("timm:dpn92", "dpn-92"),
        ] {
            round_trip(name, architecture, &["float32"]);
        }
    }
}
