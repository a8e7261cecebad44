//! What is saved is read back, the right ones stay, and no damage goes unnoticed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::content::{encode, encode_checksums};
use super::read::latest;
use super::retention::list;
use super::write::save;
use super::*;

const KEEP: Keep = Keep { last: 2, best: 0 };

fn tensor(name: &str, values: Vec<f32>) -> NamedTensor {
    NamedTensor { name: name.into(), shape: vec![values.len()], values }
}

fn state(step: u64, top1_error: Option<f64>) -> RunState {
    RunState {
        format: FORMAT,
        arch: "wrn-10-1".into(),
        classes: 10,
        epoch: 1,
        step,
        epoch_loss_sum: 0.1 + 0.2,
        epoch_correct: 5,
        epoch_skipped: 1,
        epoch_counted: 9,
        epoch_skipped_samples: 2,
        top1_error,
        best_top1_error: Some(1.0 / 3.0),
        meaning: [("seed".to_owned(), "1".to_owned())].into(),
        data: "abc".into(),
        ..RunState::default()
    }
}

fn parts() -> BTreeMap<Part, Vec<NamedTensor>> {
    let weights = vec![tensor("a", vec![1.0, -0.0, f32::MIN_POSITIVE]), tensor("b", vec![])];
    let averaged = vec![tensor("a", vec![0.25; 3])];
    [(Part::Weights, weights), (Part::Optimizer, vec![tensor("a", vec![0.5; 3])]), (Part::Averaged, averaged)]
        .into()
}

fn save_with(folder: &Path, state: &RunState, keep: Keep) -> PathBuf {
    let parts = parts().into_iter().map(|(part, tensors)| (part, Ok(tensors)));
    save(folder, state, parts, keep).unwrap().path
}

fn save_step(folder: &Path, step: u64) -> PathBuf {
    save_with(folder, &state(step, None), KEEP)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_saved_is_read_back_and_only_the_newest_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("checkpoints");
    assert_eq!(latest(&folder).unwrap(), None);
    for step in [10, 200, 3000] {
        save_step(&folder, step);
    }
    let newest = latest(&folder).unwrap().unwrap();
    for path in [newest.as_path(), &folder, dir.path(), &folder.join("latest")] {
        let mut read = load_all(path).unwrap();
        // A file may hold its tensors in any order.
        read.parts.values_mut().for_each(|tensors| tensors.sort_by(|a, b| a.name.cmp(&b.name)));
        assert_eq!(read.state, state(3000, None), "floats are read back bit for bit");
        assert_eq!(read.parts, parts());
    }
    let weights = load(&newest, &[Part::Weights]).unwrap();
    assert_eq!(weights.tensors(Part::Optimizer), []);
    let averaged = load(&newest.join("averaged.safetensors"), &[Part::Weights]).unwrap();
    assert_eq!(averaged.tensors(Part::Weights), parts()[&Part::Averaged], "they are the weights then");
    assert_eq!(names(&folder), ["latest", "step-000000200", "step-000003000"]);
}

#[test]
fn the_best_are_kept_beside_the_newest_and_the_pointer_names_the_first_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let keep = Keep { last: 1, best: 2 };
    for (step, error) in [(1, Some(0.5)), (2, Some(0.25)), (3, None), (4, Some(0.25)), (5, Some(0.75))] {
        save_with(dir.path(), &state(step, error), keep);
    }
    assert_eq!(names(dir.path()), ["best", "latest", "step-000000002", "step-000000004", "step-000000005"]);
    assert_eq!(load(&dir.path().join("best"), &[]).unwrap().state.step, 2);
    // A run that keeps none has no pointer to one.
    save_with(dir.path(), &state(6, None), Keep { last: 1, best: 0 });
    assert_eq!(names(dir.path()), ["latest", "step-000000006"]);
}

#[test]
fn checkpoints_of_later_steps_than_the_latest_are_not_gone_on_from() {
    let dir = tempfile::tempdir().unwrap();
    for step in [1, 2, 9] {
        save_with(dir.path(), &state(step, None), Keep { last: 3, best: 0 });
    }
    save_step(dir.path(), 4);
    assert_eq!(names(dir.path()), ["latest", "step-000000002", "step-000000004", "step-000000009"]);
    let in_order: Vec<_> = candidates(dir.path()).unwrap();
    assert_eq!(in_order, ["step-000000004", "step-000000002"].map(|name| dir.path().join(name)));
    save_step(dir.path(), 9);
    assert_eq!(names(dir.path()), ["latest", "step-000000004", "step-000000009"]);
}

#[test]
fn a_run_that_goes_on_from_an_earlier_step_has_none_of_later_ones() {
    for (later, stays) in [(Later::Removed, None), (Later::SetAside, Some("abandoned"))] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("checkpoints");
        let keep = Keep { last: 9, best: 1 };
        assert!(drop_later(&folder, 1, later, keep).unwrap().is_empty(), "there is no folder yet");
        // The second time, those that were set aside before are replaced.
        for _ in 0..2 {
            for (step, error) in [(1, Some(0.5)), (2, None), (7, Some(0.25)), (9, None)] {
                save_with(&folder, &state(step, error), keep);
            }
            assert_eq!(drop_later(&folder, 2, later, keep).unwrap(), [7, 9], "{later:?}");
            let expected = stays.into_iter().chain(["best", "latest", "step-000000001", "step-000000002"]);
            assert_eq!(names(&folder), expected.collect::<Vec<_>>());
            assert_eq!(load(&folder.join("latest"), &[]).unwrap().state.step, 2);
            assert_eq!(load(&folder.join("best"), &[]).unwrap().state.step, 1, "{later:?}");
        }
        if let Some(place) = stays {
            assert_eq!(names(&folder.join(place)), ["step-000000007", "step-000000009"]);
            assert_eq!(load_all(&folder.join(place).join("step-000000009")).unwrap().state.step, 9);
        }
        assert!(drop_later(&folder, 2, later, keep).unwrap().is_empty());
    }
}

#[test]
fn an_old_checkpoint_that_cannot_be_removed_is_no_failed_save() {
    let dir = tempfile::tempdir().unwrap();
    let keep = Keep { last: 1, best: 0 };
    // Not a folder, so it cannot go as one.
    fs::write(dir.path().join("step-000000001"), "").unwrap();
    let written = |step| {
        let parts = parts().into_iter().map(|(part, tensors)| (part, Ok(tensors)));
        save(dir.path(), &state(step, None), parts, keep).unwrap()
    };
    for step in [2, 3, 4] {
        let written = written(step);
        assert!(written.untidy.as_ref().is_some_and(|why| why.contains("cannot remove")), "{written:?}");
        assert_eq!(latest(dir.path()).unwrap(), Some(written.path));
    }
    let stays = ".former-step-000000001.partial";
    assert_eq!(names(dir.path()), [stays, "latest", "step-000000004"], "all others go");
    fs::remove_file(dir.path().join(stays)).unwrap();
    assert_eq!(written(5).untidy, None);
    assert_eq!(names(dir.path()), ["latest", "step-000000005"]);
}

#[test]
fn a_lost_or_wrong_pointer_falls_back_to_the_highest_step_and_strangers_stay() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    for step in [1, 2] {
        save_step(folder, step);
    }
    fs::create_dir(folder.join("step-mine")).unwrap();
    fs::create_dir(folder.join(".step-000000007.partial")).unwrap();
    for pointer in [Some(&b"step-000000008"[..]), Some(b"../elsewhere"), Some(b""), Some(b"\xff"), None] {
        match pointer {
            Some(name) => fs::write(folder.join(LATEST), name).unwrap(),
            None => fs::remove_file(folder.join(LATEST)).unwrap(),
        }
        assert_eq!(latest(folder).unwrap().unwrap(), folder.join("step-000000002"), "{pointer:?}");
    }
    save_with(folder, &state(3, None), Keep { last: 1, best: 0 });
    assert_eq!(names(folder), ["latest", "step-000000003", "step-mine"]);
}

/// Every file of a checkpoint as it is, and each way of damaging it: cut anywhere, or with any byte changed.
fn each_damage(checkpoint: &Path, mut check: impl FnMut(&str)) {
    for name in names(checkpoint) {
        let path = checkpoint.join(&name);
        let whole = fs::read(&path).unwrap();
        let mut try_with = |bytes: &[u8], what: String| {
            fs::write(&path, bytes).unwrap();
            check(&format!("{name} {what}"));
        };
        for len in 0..whole.len() {
            try_with(&whole[..len], format!("cut to {len} bytes"));
        }
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[place] ^= 1 << (place % 8);
            try_with(&bytes, format!("with byte {place} changed"));
        }
        try_with(&[&whole[..], b"\n"].concat(), "with a byte too many".into());
        fs::remove_file(&path).unwrap();
        check(&format!("{name} removed"));
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn any_damage_is_found_and_the_checkpoint_before_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let before = save_step(dir.path(), 1);
    let newest = save_step(dir.path(), 2);
    assert!(newest_whole(dir.path(), |_, _| Ok(())).unwrap().unwrap().2.is_empty());
    each_damage(&newest, |what| {
        let error = load_all(&newest).expect_err(what);
        assert!(error.to_string().contains(newest.to_str().unwrap()), "{what}: {error}");
        let (path, found, passed_over) = newest_whole(dir.path(), |_, _| Ok(())).unwrap().unwrap();
        assert_eq!((&path, found.state.step, passed_over.len()), (&before, 1, 1), "{what}");
    });
    let (path, ..) = newest_whole(dir.path(), |_, _| Ok(())).unwrap().unwrap();
    assert_eq!(path, newest, "repaired");
}

#[test]
fn what_is_no_regular_file_of_a_sensible_length_is_not_read() {
    use std::os::unix::fs::symlink;

    let dir = tempfile::tempdir().unwrap();
    let before = save_step(dir.path(), 1);
    let newest = save_step(dir.path(), 2);
    let fifo = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let sparse = |path: &Path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
    type Kind<'a> = (&'a dyn Fn(&Path), &'a str);
    let kinds: [Kind; 5] = [
        (&fifo, "it is a FIFO, expected a regular file"),
        (&|path| fs::create_dir(path).unwrap(), "it is a folder, expected a regular file"),
        (&|path| symlink("/dev/zero", path).unwrap(), "it is a device, expected a regular file"),
        (&|path| symlink("nowhere", path).unwrap(), ""),
        (&sparse, "it has 1099511627776 bytes, expected at most "),
    ];
    for file in [STATE, CHECKSUMS, Part::Weights.file(), Part::Optimizer.file()] {
        let (path, aside) = (newest.join(file), dir.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        for (make, part) in kinds {
            make(&path);
            let message = load_all(&newest).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains(file), "{file}: {message}");
            let (found, ..) = newest_whole(dir.path(), |_, _| Ok(())).unwrap().unwrap();
            assert_eq!(found, before, "{file}: {message}");
            fs::remove_dir(&path).or_else(|_| fs::remove_file(&path)).unwrap();
        }
        // A store that keeps equal files once has links to them.
        symlink(&aside, &path).unwrap();
        assert!(load_all(&newest).is_ok(), "{file}");
        fs::rename(&aside, &path).unwrap();
    }
    for name in [LATEST, BEST] {
        let path = dir.path().join(name);
        let _ = fs::remove_file(&path);
        fifo(&path);
        let parts = parts().into_iter().map(|(part, tensors)| (part, Ok(tensors)));
        let saved = save(dir.path(), &state(3, Some(0.5)), parts, Keep { last: 9, best: 1 });
        let message = match saved {
            Ok(written) => written.untidy.unwrap(),
            Err(error) => error.to_string(),
        };
        let expected = format!("cannot replace {}: it is a FIFO", path.display());
        assert!(message.contains(&expected), "{message}");
        fs::remove_file(&path).unwrap();
    }
}

/// Writes a checkpoint whose checksums fit and whose content no run has saved.
fn forge(folder: &Path, state: &RunState, parts: &BTreeMap<Part, Vec<NamedTensor>>) {
    let tensors = parts.iter().map(|(part, tensors)| (part.file(), encode(tensors).unwrap()));
    let mut files: BTreeMap<&str, Vec<u8>> = tensors.collect();
    files.insert(STATE, serde_json::to_vec(state).unwrap());
    let sums = files.iter().map(|(name, bytes)| ((*name).to_owned(), checksum(bytes))).collect();
    fs::remove_dir_all(folder).unwrap();
    fs::create_dir(folder).unwrap();
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
    }
    fs::write(folder.join(CHECKSUMS), encode_checksums(&sums)).unwrap();
}

#[test]
fn what_no_run_saves_is_damage_also_where_the_checksums_fit() {
    let dir = tempfile::tempdir().unwrap();
    let before = save_step(dir.path(), 1);
    let newest = save_step(dir.path(), 2);
    let expect = |parts: BTreeMap<Part, Vec<NamedTensor>>, state: RunState, expected: &str| {
        forge(&newest, &state, &parts);
        let message = load_all(&newest).unwrap_err().to_string();
        assert!(message.contains("is damaged: ") && message.contains(expected), "{message}");
        let (found, _, passed_over) = newest_whole(dir.path(), |_, _| Ok(())).unwrap().unwrap();
        assert_eq!((found, passed_over.len()), (before.clone(), 1));
    };
    for part in [Part::Weights, Part::Optimizer, Part::Averaged] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut parts = parts();
            parts.get_mut(&part).unwrap()[0].values[1] = value;
            expect(
                parts,
                state(2, None),
                &format!("{}: a holds numbers that are infinite or NaN", part.file()),
            );
        }
    }
    let mut without = parts();
    without.remove(&Part::Optimizer);
    expect(without, state(2, None), "it has no optimizer.safetensors");
    expect(parts(), state(3, None), "state.json says step 3, unlike the folder's name");
    forge(&newest, &state(2, None), &parts());
    assert!(load_all(&newest).is_ok());
    let check = |path: &Path, found: &Checkpoint| match found.state.step {
        2 => Err(CheckpointError::Damaged { path: path.to_owned(), reason: "odd".into() }),
        _ => Ok(()),
    };
    assert_eq!(newest_whole(dir.path(), check).unwrap().unwrap().0, before);
}

#[test]
fn a_pointer_that_names_nothing_is_told_where_it_is_what_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    let newest = save_step(dir.path(), 2);
    assert_eq!(pointer_warning(dir.path()), None);
    fs::write(dir.path().join(LATEST), "nonsense").unwrap();
    let sentence = pointer_warning(dir.path()).unwrap();
    assert!(
        sentence.contains("latest names no checkpoint") && sentence.ends_with("step-000000002"),
        "{sentence}"
    );
    for named in [newest.clone(), newest.join(Part::Weights.file()), newest.join(Part::Averaged.file())] {
        assert_eq!(pointer_warning(&named), None, "{}", named.display());
    }
    fs::remove_file(dir.path().join(LATEST)).unwrap();
    assert_eq!(pointer_warning(dir.path()), None);
}

#[test]
fn what_a_terminal_obeys_is_written_out_in_messages() {
    let dir = tempfile::tempdir().unwrap();
    let newest = save_step(dir.path(), 1);
    let evil = format!("{}  \u{1b}[31mred\n", "0".repeat(64));
    let sums = fs::read_to_string(newest.join(CHECKSUMS)).unwrap();
    fs::write(newest.join(CHECKSUMS), evil + &sums).unwrap();
    let message = load_all(&newest).unwrap_err().to_string();
    assert!(message.contains("SHA256SUMS names \\u{1b}[31mred, which"), "{message}");
}

#[test]
fn where_no_checkpoint_is_whole_each_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for step in [1, 2] {
        fs::remove_file(save_step(dir.path(), step).join(CHECKSUMS)).unwrap();
    }
    let message = newest_whole(dir.path(), |_, _| Ok(())).unwrap_err().to_string();
    for part in ["step-000000001", "step-000000002", "SHA256SUMS"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(newest_whole(&dir.path().join("nothing"), |_, _| Ok(())).unwrap().is_none());
}

#[test]
fn a_checkpoint_of_another_format_is_not_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    save_step(dir.path(), 1);
    save_with(dir.path(), &RunState { format: FORMAT + 1, ..state(2, None) }, KEEP);
    let message = newest_whole(dir.path(), |_, _| Ok(())).unwrap_err().to_string();
    assert!(message.contains("format is 3, this version reads 2"), "{message}");
}

#[test]
fn a_place_without_a_checkpoint_says_what_it_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let message = load_all(dir.path()).unwrap_err().to_string();
    assert!(message.contains("state.json") && message.contains(dir.path().to_str().unwrap()), "{message}");
}

fn job(folder: &Path, step: u64, weights: LazyTensors) -> Job {
    Job {
        folder: folder.to_owned(),
        state: state(step, None),
        parts: vec![(Part::Weights, weights)],
        keep: KEEP,
        earlier: Vec::new(),
    }
}

#[test]
fn a_save_in_the_background_ends_once_and_the_next_one_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::default();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let weights = move || {
        wait.recv().unwrap();
        Ok(vec![tensor("a", vec![1.0])])
    };
    writer.start(job(dir.path(), 1, Box::new(weights))).unwrap();
    assert!(writer.poll().is_none() && !writer.is_idle());
    assert!(writer.wait(Duration::from_millis(20)).is_none(), "it has not been let go");
    assert!(writer.start(job(dir.path(), 2, Box::new(|| Ok(Vec::new())))).is_err());
    go.send(()).unwrap();
    let outcome = writer.wait(Duration::from_secs(60)).unwrap();
    assert_eq!((outcome.step, writer.is_idle()), (1, true));
    assert_eq!(outcome.result.unwrap().path, latest(dir.path()).unwrap().unwrap());
    assert!(writer.poll().is_none());
}

#[test]
fn a_save_that_fails_leaves_what_was_there_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    save_step(dir.path(), 1);
    let before = names(dir.path());
    let failures: [(LazyTensors, &str); 3] = [
        (Box::new(|| Ok(vec![tensor("a", vec![0.0, f32::NAN])])), "a is no longer finite after step 2"),
        (Box::new(|| Err(CheckpointError::Tensors("no memory".into()))), "no memory"),
        (Box::new(|| panic!("a bug")), "panicked"),
    ];
    for (weights, part) in failures {
        let mut writer = Writer::default();
        writer.start(job(dir.path(), 2, weights)).unwrap();
        let error = writer.wait(Duration::from_secs(60)).unwrap().result.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(latest(dir.path()).unwrap().unwrap(), dir.path().join("step-000000001"));
    }
    let gone = dir.path().join("gone").join("checkpoints");
    let mut writer = Writer::default();
    writer.start(job(&gone, 2, Box::new(|| Ok(Vec::new())))).unwrap();
    let error = writer.wait(Duration::from_secs(60)).unwrap().result.unwrap_err().to_string();
    assert!(error.contains("cannot create") && !gone.exists(), "{error}");
    save_step(dir.path(), 3);
    assert!(list(dir.path()).unwrap().1.is_empty(), "what the panic left is removed by the next save");
    assert_eq!(names(dir.path()).len(), before.len() + 1);
}

#[test]
fn a_checkpoint_in_the_making_is_its_owner_s_alone() {
    for umask in ["022", "077"] {
        let mut command = Command::new("sh");
        command.args(["-c", "umask \"$0\" && exec \"$@\"", umask]).arg(std::env::current_exe().unwrap());
        command.args(["checkpoint::tests::saved_under_a_umask", "--exact", "--nocapture"]).env(UMASK, umask);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let passed = output.status.success() && text.contains("1 passed");
        assert!(passed, "{umask}: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
}

const UMASK: &str = "CHECKPOINT_TEST_UMASK";

/// By itself it does nothing.
#[test]
fn saved_under_a_umask() {
    let Ok(umask) = std::env::var(UMASK) else { return };
    let usual = |mode: u32| mode & !u32::from_str_radix(&umask, 8).unwrap();
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("checkpoints");
    let partial = folder.join(".step-000000007.partial");
    let mut seen = Vec::new();
    // When the next part is asked for, those before it are written.
    let parts = parts().into_iter().map(|(part, tensors)| {
        seen.extend(names(&partial));
        assert_eq!(mode(&partial), 0o700);
        (part, Ok(tensors))
    });
    let place = save(&folder, &state(7, None), parts, KEEP).unwrap().path;
    assert!(seen.contains(&"weights.safetensors".to_owned()), "{seen:?}");
    assert_eq!((mode(&place), mode(&folder)), (usual(0o777), usual(0o777)));
    for name in names(&place) {
        assert_eq!(mode(&place.join(&name)), usual(0o666), "{name}");
    }
    assert_eq!(mode(&folder.join("latest")), usual(0o666));
}
