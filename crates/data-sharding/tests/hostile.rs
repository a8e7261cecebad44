//! Whatever bytes the files hold, opening them gives a valid data set or an error, never a panic.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::fs;
use std::path::Path;

use common::{cifar_record, gzip, idx_images, idx_labels};
use data_sharding::{Adapt, SourceKind, Split, open};
use proptest::prelude::*;
use tempfile::tempdir;

/// What happened to a good file.
#[derive(Clone, Debug)]
enum Damage {
    Nothing,
    Replaced(Vec<u8>),
    Cut(usize),
    Appended(Vec<u8>),
    Overwritten(Vec<(usize, u8)>),
}

fn damage() -> impl Strategy<Value = Damage> {
    // Most places are in headers and labels, where bytes mean something.
    let place = prop_oneof![3 => 0..24_usize, 1 => 0..8000_usize];
    prop_oneof![
        Just(Damage::Nothing),
        prop::collection::vec(any::<u8>(), 0..64).prop_map(Damage::Replaced),
        (0..8000_usize).prop_map(Damage::Cut),
        prop::collection::vec(any::<u8>(), 1..8).prop_map(Damage::Appended),
        prop::collection::vec((place, any::<u8>()), 1..4).prop_map(Damage::Overwritten),
    ]
}

fn apply(damage: Damage, mut bytes: Vec<u8>) -> Vec<u8> {
    match damage {
        Damage::Nothing => {}
        Damage::Replaced(new) => bytes = new,
        Damage::Cut(at) => bytes.truncate(at % (bytes.len() + 1)),
        Damage::Appended(more) => bytes.extend(more),
        Damage::Overwritten(changes) => {
            let len = bytes.len();
            changes.into_iter().for_each(|(at, value)| bytes[at % len] = value);
        }
    }
    bytes
}

/// Opens and, if that went well, uses everything. Gives whether it went well.
fn opened_and_used(kind: SourceKind, root: &Path) -> bool {
    let source = match open(kind, root, Split::Test, Adapt::default()) {
        Ok(source) => source,
        Err(error) => {
            assert!(error.to_string().starts_with(&root.display().to_string()), "names the file: {error}");
            return false;
        }
    };
    assert!(!source.is_empty());
    let mut pixels = vec![0; source.image().bytes()];
    for sample in 0..source.len() {
        source.decode(sample, &mut pixels).unwrap();
        assert!((source.label(sample) as usize) < source.classes().len());
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn idx_readers_survive_any_bytes(
        images in damage(), labels in damage(), zipped in damage(), compress in any::<bool>(),
    ) {
        let intact = matches!((&images, &labels), (Damage::Nothing, Damage::Nothing))
            && (!compress || matches!(zipped, Damage::Nothing));
        let dir = tempdir().unwrap();
        let mut image_bytes = apply(images, idx_images(3));
        if compress {
            image_bytes = apply(zipped, gzip(&image_bytes));
        }
        fs::write(dir.path().join("t10k-images-idx3-ubyte"), image_bytes).unwrap();
        fs::write(dir.path().join("t10k-labels-idx1-ubyte"), apply(labels, idx_labels(&[1, 5, 9]))).unwrap();
        prop_assert!(opened_and_used(SourceKind::FashionMnist, dir.path()) || !intact);
    }

    #[test]
    fn cifar_readers_survive_any_bytes(
        hundred in any::<bool>(), images in damage(), names in damage(),
    ) {
        let intact = matches!((&images, &names), (Damage::Nothing, Damage::Nothing));
        let (kind, image_file, names_file) = if hundred {
            (SourceKind::Cifar100, "test.bin", "fine_label_names.txt")
        } else {
            (SourceKind::Cifar10, "test_batch.bin", "batches.meta.txt")
        };
        let dir = tempdir().unwrap();
        let records = (0..3).flat_map(|i| cifar_record(kind, i)).collect();
        fs::write(dir.path().join(image_file), apply(images, records)).unwrap();
        let classes = kind.facts().classes.join("\n");
        fs::write(dir.path().join(names_file), apply(names, classes.into_bytes())).unwrap();
        prop_assert!(opened_and_used(kind, dir.path()) || !intact);
    }
}
