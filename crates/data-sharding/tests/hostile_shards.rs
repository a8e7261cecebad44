//! Whatever bytes tar files, indices, manifests and MAT files hold: a data set that can be read or an error, never a
//! panic, and never more memory than the file could fill.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod mat_support;
mod shards_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use data_sharding::{PrepareKind, PrepareOptions, Progress, ReadMode, ShardSet, SourceKind, prepare, verify};
use mat_support as mat;
use proptest::prelude::*;
use shards_support::{contents, image_folder, jpeg, options, prepare_folder, tar};
use tempfile::{TempDir, tempdir};

/// Remembers the largest request for memory.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// Buffers of fixed size, the decoder's tables and the system's own needs stay far below this; a length out of a
/// damaged file would not.
const SENSIBLE: usize = 8 << 20;

#[allow(unsafe_code)]
// SAFETY: all calls go to the system's allocator as they are.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// What happened to a good file.
#[derive(Clone, Debug)]
enum Damage {
    Replaced(Vec<u8>),
    Cut(usize),
    Appended(Vec<u8>),
    Overwritten(Vec<(usize, Vec<u8>)>),
}

/// Bytes that mean much in many formats.
fn telling_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 1..5),
        1 => Just(vec![0xff; 8]),
        1 => Just(vec![0; 8]),
        1 => Just(vec![0xff, 0xff, 0xff, 0x7f]),
        1 => Just(b"77777777777".to_vec()),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = prop_oneof![3 => 0..200_usize, 1 => 0..20_000_usize];
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..700).prop_map(Damage::Replaced),
        1 => (0..20_000_usize).prop_map(Damage::Cut),
        1 => prop::collection::vec(any::<u8>(), 1..600).prop_map(Damage::Appended),
        6 => prop::collection::vec((place, telling_bytes()), 1..5).prop_map(Damage::Overwritten),
    ]
}

fn apply(damage: Damage, mut bytes: Vec<u8>) -> Vec<u8> {
    match damage {
        Damage::Replaced(new) => bytes = new,
        Damage::Cut(at) => bytes.truncate(at % (bytes.len() + 1)),
        Damage::Appended(more) => bytes.extend(more),
        Damage::Overwritten(changes) => {
            let length = bytes.len();
            for (at, new) in changes {
                new.into_iter().enumerate().for_each(|(i, value)| bytes[(at + i) % length] = value);
            }
        }
    }
    bytes
}

/// Opens and, if that goes well, uses everything.
fn open_and_use(folder: &Path, mode: ReadMode) -> Result<usize, String> {
    let set = ShardSet::open(folder, mode).map_err(|error| error.to_string())?;
    let mut buffer = Vec::new();
    for sample in 0..set.len() {
        let bytes = set.bytes(sample, &mut buffer).map_err(|error| error.to_string())?;
        let _ = bytes.len();
        assert!((set.label(sample) as usize) < set.classes().len());
        let _ = (set.size(sample), set.seek_record(sample), set.describe(sample));
    }
    Ok(set.len())
}

/// Runs `work` and sees that it asked for no absurd memory.
fn watched<T>(work: impl FnOnce() -> T) -> T {
    LARGEST.store(0, Ordering::Relaxed);
    let result = work();
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest < SENSIBLE, "{largest} bytes at once");
    result
}

/// A prepared data set, made once.
fn prepared() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let dir = tempdir().unwrap();
        image_folder(&dir.path().join("in"), 2, 6);
        prepare_folder(&dir.path().join("in"), &dir.path().join("out"), &options()).unwrap();
        dir
    });
    Box::leak(folder.path().join("out").into_boxed_path())
}

// The largest request is one number for all threads.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn tar_files_of_any_bytes_are_indexed_or_refused(damage in damage(), mapped in any::<bool>()) {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let image = jpeg(8, 8, 0);
        let long = "long/".repeat(40);
        let whole = tar(&[
            ("a.jpg", &image), ("a.cls", b"1"), (&format!("{long}b.png"), &image), (&format!("{long}b.cls"), b"0"),
        ]);
        let dir = tempdir().unwrap();
        fs::write(dir.path().join("s.tar"), apply(damage, whole)).unwrap();
        let mode = if mapped { ReadMode::Map } else { ReadMode::Read };
        let opened = watched(|| open_and_use(dir.path(), mode));
        if let Err(error) = &opened {
            prop_assert!(error.starts_with(&dir.path().display().to_string()), "names the file: {error}");
        } else {
            prop_assert_eq!(verify(dir.path(), &Progress::silent()).unwrap(), [""; 0]);
        }
    }

    #[test]
    fn damaged_files_of_a_data_set_are_noticed_by_verify(which in any::<prop::sample::Index>(), damage in damage()) {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let whole = contents(prepared());
        let dir = tempdir().unwrap();
        whole.iter().for_each(|(name, bytes)| fs::write(dir.path().join(name), bytes).unwrap());
        let (name, bytes) = whole.iter().nth(which.index(whole.len())).unwrap();
        let damaged = apply(damage, bytes.clone());
        fs::write(dir.path().join(name), &damaged).unwrap();
        let _ = watched(|| open_and_use(dir.path(), ReadMode::Read));
        let problems = watched(|| verify(dir.path(), &Progress::silent()));
        let noticed = problems.is_err() || !problems.unwrap().is_empty();
        // The manifest is text, in which some changes (a class's name, white space) leave another good manifest.
        prop_assert!(noticed || damaged == *bytes || name == "manifest.json", "{name}");
    }

    #[test]
    fn mat_files_of_any_bytes_are_converted_or_refused(damage in damage(), compress in any::<bool>()) {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let dir = tempdir().unwrap();
        fs::write(dir.path().join("train_32x32.mat"), apply(damage, mat::svhn(&[1, 10], compress))).unwrap();
        fs::write(dir.path().join("test_32x32.mat"), mat::svhn(&[2], true)).unwrap();
        let kind = PrepareKind::Small(SourceKind::SvhnWithoutExtra);
        let out = dir.path().join("out");
        let result = watched(|| prepare(kind, dir.path(), &out, &options(), &Progress::silent()));
        if result.is_err() {
            prop_assert!(!out.join("manifest.json").exists());
        }
    }

    #[test]
    fn development_kits_of_any_bytes_are_read_or_refused(damage in damage(), compress in any::<bool>()) {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let fields = ["ILSVRC2012_ID", "WNID", "words", "num_children"];
        let synset = |id: f64, wordnet: &str| vec![
            mat::double("", id), mat::text("", wordnet), mat::text("", "words"), mat::double("", 0.0),
        ];
        let synsets = mat::structs("synsets", &fields, &[synset(1.0, "n00000002"), synset(2.0, "n00000001")]);
        let meta = if compress {
            mat::file(&[mat::compressed(&apply(damage, synsets))])
        } else {
            apply(damage, mat::file(&[synsets]))
        };
        let kit = tar(&[("meta.mat", &meta), ("ILSVRC2012_validation_ground_truth.txt", b"2\n")]);
        let dir = tempdir().unwrap();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &kit).unwrap();
        fs::write(dir.path().join("ILSVRC2012_devkit_t12.tar.gz"), encoder.finish().unwrap()).unwrap();
        let validation = tar(&[("ILSVRC2012_val_00000001.JPEG", &jpeg(8, 8, 1))]);
        fs::write(dir.path().join("ILSVRC2012_img_val.tar"), validation).unwrap();
        let out = dir.path().join("out");
        let result = watched(|| prepare(PrepareKind::ImageNet, dir.path(), &out, &options(), &Progress::silent()));
        if result.is_ok() {
            prop_assert_eq!(open_and_use(&out.join("val"), ReadMode::Read), Ok(1));
        }
    }

    #[test]
    fn nested_archives_of_any_bytes_are_listed_or_refused(outer in damage(), inner in damage(), which in 0..3) {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let image = jpeg(8, 8, 0);
        let mut inner_tar = tar(&[("n00000001_1.JPEG", &image), ("n00000001_2.JPEG", &image)]);
        if which != 0 {
            inner_tar = apply(inner, inner_tar);
        }
        let mut outer_tar = tar(&[("n00000001.tar", &inner_tar)]);
        if which != 1 {
            outer_tar = apply(outer, outer_tar);
        }
        let (dir, out) = (tempdir().unwrap(), tempdir().unwrap());
        fs::write(dir.path().join("ILSVRC2012_img_train.tar"), outer_tar).unwrap();
        let options = PrepareOptions { skip_bad: true, ..options() };
        let _ = watched(|| prepare(PrepareKind::ImageNet, dir.path(), out.path(), &options, &Progress::silent()));
    }
}

#[test]
fn a_bomb_of_zeros_is_not_inflated_into_memory() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // 200 MB of zeros in 200 KB, as the name of a variable, as its pixels, and as its labels.
    let zeros = vec![0; 200 << 20];
    let bombs = [
        mat::numbers("X", &[32, 32, 3, (zeros.len() / 3072) as i32], mat::UINT8, &zeros),
        mat::numbers("y", &[zeros.len() as i32, 1], mat::UINT8, &zeros),
    ];
    for bomb in bombs {
        let file = mat::file(&[mat::compressed(&bomb), mat::numbers("y", &[2, 1], mat::UINT8, &[1, 2])]);
        drop(bomb);
        let dir = tempdir().unwrap();
        fs::write(dir.path().join("train_32x32.mat"), file).unwrap();
        let kind = PrepareKind::Small(SourceKind::SvhnWithoutExtra);
        let result =
            watched(|| prepare(kind, dir.path(), &dir.path().join("out"), &options(), &Progress::silent()));
        assert!(result.is_err());
    }
}

/// Shards of somebody else come with links under every name that is written beside them.
#[test]
fn links_in_a_data_set_of_others_lead_no_writing_to_other_files() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let image = jpeg(8, 8, 0);
    let shard = tar(&[("a.jpg", &image), ("a.cls", b"0")]);
    let written = ["samples.index", "seek.index", "manifest.json", ".s.tar.part"];
    let temporary = written.iter().map(|name| format!(".{name}.tmp"));
    let names = written.iter().map(|name| (*name).to_owned()).chain(temporary).chain([".lock".into()]);
    for name in names {
        for target in ["precious", "missing"] {
            let (dir, other) = (tempdir().unwrap(), tempdir().unwrap());
            fs::write(dir.path().join("s.tar"), &shard).unwrap();
            fs::write(other.path().join("precious"), "mine").unwrap();
            std::os::unix::fs::symlink(other.path().join(target), dir.path().join(&name)).unwrap();
            let indexed = data_sharding::index(dir.path(), &Progress::silent());
            assert_eq!(fs::read_to_string(other.path().join("precious")).unwrap(), "mine", "{name}");
            assert!(!other.path().join("missing").exists(), "{name}");
            if name == ".lock" {
                assert!(indexed.unwrap_err().to_string().contains("symbolic link"));
            }
        }
    }
}
