//! Shards that `prepare` makes and shards made elsewhere: opened, read by other tools, and verified when damaged.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod shards_support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use data_sharding::{Cap, PrepareOptions, Progress, ReadMode, ShardSet, Side, index, jpeg, verify};
use shards_support::{contents, image_folder, jpeg, options, png, prepare_folder, tar};
use tempfile::tempdir;
use xxhash_rust::xxh3::xxh3_64;

fn problems(folder: &Path) -> Vec<String> {
    let problems = verify(folder, &Progress::silent()).unwrap();
    problems.iter().map(|problem| problem.replace(&format!("{}/", folder.display()), "")).collect()
}

fn open(folder: &Path) -> Result<ShardSet, String> {
    let error =
        |error: data_sharding::DataError| error.to_string().replace(&format!("{}/", folder.display()), "");
    ShardSet::open(folder, ReadMode::Read).map_err(error)
}

#[test]
fn every_sample_comes_back_with_its_bytes_label_size_and_seek_record() {
    let dir = tempdir().unwrap();
    let (source, shards) = (dir.path().join("in"), dir.path().join("out"));
    image_folder(&source, 3, 20);
    prepare_folder(&source, &shards, &options()).unwrap();
    assert!(contents(&shards).keys().filter(|name| name.ends_with(".tar")).count() > 3);
    for mode in [ReadMode::Read, ReadMode::Map] {
        let set = ShardSet::open(&shards, mode).unwrap();
        assert_eq!((set.len(), set.is_empty()), (60, false));
        assert_eq!(set.classes(), ["class-0", "class-1", "class-2"]);
        let (mut seen, mut buffer) = (BTreeSet::new(), Vec::new());
        for sample in 0..set.len() {
            let bytes = set.bytes(sample, &mut buffer).unwrap();
            let described = set.describe(sample);
            let number: usize = described[..8].parse().unwrap();
            assert!(described[8..].starts_with(&format!("-img_{:03}.jpg in ", number % 20)), "{described}");
            assert_eq!(
                bytes,
                fs::read(source.join(format!("class-{}/img.{:03}.JPEG", number / 20, number % 20))).unwrap()
            );
            assert_eq!(set.label(sample) as usize, number / 20);
            assert_eq!(set.size(sample), (16 + number as u32 % 40, 24 + number as u32 % 7));
            assert_eq!(set.seek_record(sample), jpeg::seek::build(bytes).unwrap().as_deref());
            seen.insert(number);
        }
        assert_eq!(seen.len(), 60, "each once");
        let error = set.bytes(60, &mut buffer).unwrap_err().to_string();
        assert!(error.ends_with("sample 60 does not exist; expected 0 to 59"), "{error}");
    }
    assert_eq!(problems(&shards), [""; 0]);
}

#[test]
fn classes_mix_and_the_order_depends_on_the_seed_alone() {
    let dir = tempdir().unwrap();
    let source = dir.path().join("in");
    image_folder(&source, 2, 40);
    let prepared = |name: &str, options: PrepareOptions| {
        let folder = dir.path().join(name);
        prepare_folder(&source, &folder, &options).unwrap();
        folder
    };
    let first = prepared("first", options());
    let set = open(&first).unwrap();
    let changes = (1..set.len()).filter(|&sample| set.label(sample) != set.label(sample - 1)).count();
    assert!((20..60).contains(&changes), "{changes} changes of class among 80 samples");
    let again = prepared("again", PrepareOptions { threads: 1, ..options() });
    assert!(contents(&first) == contents(&again), "one thread gives the same bytes as two");
    let other = prepared("other", PrepareOptions { seed: 1, ..options() });
    assert_ne!(open(&other).unwrap().fingerprint(), set.fingerprint());
}

#[test]
fn python_reads_the_shards_with_its_own_tar_module() {
    let dir = tempdir().unwrap();
    let (source, shards) = (dir.path().join("in"), dir.path().join("out"));
    image_folder(&source, 2, 5);
    fs::write(source.join("class-1/really.jpeg"), png(9, 8, 1)).unwrap();
    prepare_folder(&source, &shards, &options()).unwrap();
    let script = "
import sys, glob, tarfile
for shard in sorted(glob.glob(sys.argv[1] + '/*.tar')):
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
        for image, label in zip(members[::2], members[1::2]):
            key, extension = image.name.split('.', 1)
            assert label.name == key + '.cls', label.name
            assert image.isreg() and image.mtime == 0 and image.uid == 0
            print(key, extension, image.offset_data, image.size, int(tar.extractfile(label).read()))
";
    let Ok(python) = Command::new("python3").args(["-c", script]).arg(&shards).output() else {
        return eprintln!("SKIPPED python: there is no python3");
    };
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let text = String::from_utf8(python.stdout).unwrap();
    let set = open(&shards).unwrap();
    assert_eq!(text.lines().count(), 11);
    let mut buffer = Vec::new();
    for (sample, line) in text.lines().enumerate() {
        let fields: Vec<&str> = line.split(' ').collect();
        let length = set.bytes(sample, &mut buffer).unwrap().len();
        assert!(set.describe(sample).starts_with(&format!("{}.{} in", fields[0], fields[1])), "{line}");
        assert_eq!((fields[3], fields[4]), (&*length.to_string(), &*set.label(sample).to_string()));
    }
    assert!(text.contains("-really png "), "the extension follows the content");
}

#[test]
fn shards_made_elsewhere_are_indexed_on_first_use() {
    let dir = tempdir().unwrap();
    let long = format!("{}/deep.jpeg", "folder/".repeat(30));
    let long_label = long.replace("jpeg", "cls");
    let (a, b) = (jpeg(20, 10, 1), png(7, 9, 2));
    let first = tar(&[
        ("__meta__.json", b"{}"),
        ("x/one.jpg", &a),
        ("x/one.cls", b"2\n"),
        ("x/one.json", b"{\"any\": 1}"),
        ("x/two.cls", b"0"),
        ("x/two.seg.png", b"no image of this sample"),
        ("x/two.PNG", &b),
    ]);
    fs::write(dir.path().join("a.tar"), first).unwrap();
    fs::write(
        dir.path().join("b.tar"),
        tar(&[(&long, &a), (&long_label, b" 1 "), ("broken.jpg", b"oops"), ("broken.cls", b"0")]),
    )
    .unwrap();
    assert!(problems(dir.path())[0].contains("has no manifest"));

    let set = open(dir.path()).unwrap();
    let labels: Vec<u32> = (0..set.len()).map(|sample| set.label(sample)).collect();
    let sizes: Vec<(u32, u32)> = (0..set.len()).map(|sample| set.size(sample)).collect();
    assert_eq!(labels, [2, 0, 1, 0]);
    assert_eq!(sizes, [(20, 10), (7, 9), (20, 10), (0, 0)]);
    assert_eq!(set.classes(), ["0", "1", "2"]);
    let mut buffer = Vec::new();
    assert_eq!(set.bytes(2, &mut buffer).unwrap(), a);
    assert_eq!(set.bytes(1, &mut buffer).unwrap(), b);
    assert!(!set.has_seek_index() && set.seek_record(0).is_none());
    assert_eq!(problems(dir.path()), [""; 0]);

    // The seek index can be added later, and changes nothing else.
    let before = contents(dir.path());
    index(dir.path(), &Progress::silent()).unwrap();
    let set = open(dir.path()).unwrap();
    assert!(set.has_seek_index() && set.seek_record(0) == jpeg::seek::build(&a).unwrap().as_deref());
    assert!(set.seek_record(0).is_some() && set.seek_record(1).is_none() && set.seek_record(3).is_none());
    let mut after = contents(dir.path());
    assert!(after.remove("seek.index").is_some() && after == before);
    assert_eq!(problems(dir.path()), [""; 0]);
}

#[test]
fn wrong_shards_made_elsewhere_are_refused_in_words() {
    let image = jpeg(8, 8, 0);
    let whole = tar(&[("a.jpg", &image), ("a.cls", b"1")]);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (tar(&[("a.jpg", &image), ("b.cls", b"1")]), "sample `a` has no .cls with its label"),
        (tar(&[("a.cls", b"1")]), "sample `a` has no .jpg, .jpeg or .png"),
        (
            tar(&[("a.jpg", &image), ("a.cls", b"cat")]),
            "`a.cls` holds \"cat\"; expected the number of a class",
        ),
        (tar(&[("a.jpg", &image), ("a.png", &image), ("a.cls", b"1")]), "sample `a` has two images"),
        (
            tar(&[("a.jpg", &image), ("a.cls", b"4294967295")]),
            "has the label 4294967295; expected labels below 1048576",
        ),
        (
            tar(&[("a.jpg", &image), ("a.cls", b"0"), ("b.jpg", &image), ("b.cls", b"1048575")]),
            "s.tar: has the label 1048575 where the data set has 2 different label(s)",
        ),
        (tar(&[("\x1b[31ma\r.cls", b"1")]), "sample `\\u{1b}[31ma\\r` has no .jpg"),
        (tar(&[("readme.txt", b"hello")]), "holds no samples"),
        (whole[..700].to_vec(), "`a.jpg` is said to have"),
        (b"no tar at all, but long enough to be a header of one. ".repeat(20), "is damaged after byte 0"),
    ];
    for (bytes, message) in cases {
        let dir = tempdir().unwrap();
        fs::write(dir.path().join("s.tar"), bytes).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(error.contains(message), "{error}\nlacks {message}");
        let left: Vec<String> =
            contents(dir.path()).into_keys().filter(|name| !name.starts_with('.')).collect();
        assert_eq!(left, ["s.tar"], "no index of a wrong shard is left");
    }
    let dir = tempdir().unwrap();
    assert!(
        open(dir.path())
            .unwrap_err()
            .contains("no file with the samples found; expected manifest.json or shards")
    );
}

#[test]
fn verify_names_everything_that_is_wrong_at_once() {
    let dir = tempdir().unwrap();
    let (source, shards) = (dir.path().join("in"), dir.path().join("out"));
    image_folder(&source, 4, 20);
    prepare_folder(&source, &shards, &options()).unwrap();
    let names: Vec<String> = contents(&shards).into_keys().filter(|name| name.ends_with(".tar")).collect();
    assert!(names.len() >= 5);
    let change = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(shards.join(name)).unwrap();
        change(&mut bytes);
        fs::write(shards.join(name), bytes).unwrap();
    };
    change(&names[0], &|bytes| bytes[700] ^= 1); // in an image
    change(&names[1], &|bytes| bytes.truncate(3000));
    fs::remove_file(shards.join(&names[2])).unwrap();
    change(&names[3], &|bytes| bytes[100] = b'7'); // in a header
    fs::write(shards.join("extra.tar"), b"").unwrap();
    change("seek.index", &|bytes| *bytes.last_mut().unwrap() ^= 1);

    let found = problems(&shards);
    let expected = [
        ("extra.tar", "is a shard that the manifest does not list"),
        ("seek.index", "damaged records of sample 79"),
        (&names[0], "has the checksum"),
        (&names[1], "has 3000 bytes; expected"),
        (&names[1], "ends"),
        (&names[2], "cannot be read"),
        (&names[3], "is damaged after byte 0"),
    ];
    for (file, message) in &expected[..4] {
        assert!(
            found.iter().any(|problem| problem.contains(file) && problem.contains(message)),
            "{found:#?}\nlacks {file}: {message}"
        );
    }
    for (file, _) in &expected {
        assert!(found.iter().any(|problem| problem.contains(file)), "{found:#?}\nlacks {file}");
    }
    assert_eq!(found.iter().filter(|problem| problem.contains(&names[4])).count(), 0, "{found:#?}");
    let error = open(&shards).unwrap_err();
    assert!(error.contains("bytes; expected") || error.contains("cannot be read"), "{error}");
}

/// A seek index whose checksums are right, made for images of the same sizes in the same order.
#[test]
fn verify_compares_seek_records_with_the_images() {
    let dir = tempdir().unwrap();
    let (source, shards) = (dir.path().join("in"), dir.path().join("out"));
    image_folder(&source, 1, 3);
    prepare_folder(&source, &shards, &options()).unwrap();
    let mut seek = fs::read(shards.join("seek.index")).unwrap();
    let entry = 64 + 16;
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let begin = 64 + 3 * 16 + word(&seek, entry) as usize;
    let length = word(&seek, entry + 8) as u32 as usize;
    // The first entry's DC value, behind the checksum and the identity of the file and a distance of 0 bits.
    seek[begin + 18] ^= 2;
    let inner = xxh3_64(&seek[begin + 9..begin + length]).to_le_bytes();
    seek[begin + 1..begin + 9].copy_from_slice(&inner);
    let outer = (xxh3_64(&seek[begin..begin + length]) as u32).to_le_bytes();
    seek[entry + 12..entry + 16].copy_from_slice(&outer);
    let entries = xxh3_64(&seek[64..64 + 3 * 16]).to_le_bytes();
    seek[48..56].copy_from_slice(&entries);
    let header = xxh3_64(&seek[..56]).to_le_bytes();
    seek[56..64].copy_from_slice(&header);
    fs::write(shards.join("seek.index"), &seek).unwrap();

    assert!(open(&shards).unwrap().seek_record(1).is_some(), "nothing else tells");
    let found = problems(&shards);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].starts_with("seek.index: ") && found[0].contains("of sample 1; remove it"),
        "{found:#?}"
    );
    fs::remove_file(shards.join("seek.index")).unwrap();
    index(&shards, &Progress::silent()).unwrap();
    assert_eq!(problems(&shards), [""; 0]);
}

#[test]
fn wrong_indices_are_refused_and_named() {
    let dir = tempdir().unwrap();
    let (source, shards) = (dir.path().join("in"), dir.path().join("out"));
    image_folder(&source, 2, 10);
    prepare_folder(&source, &shards, &options()).unwrap();
    let other = dir.path().join("other");
    prepare_folder(&source, &other, &PrepareOptions { seed: 9, ..options() }).unwrap();
    let read = |folder: &Path, name: &str| fs::read(folder.join(name)).unwrap();
    let flipped = |name: &str, at: usize| {
        let mut bytes = read(&shards, name);
        bytes[at] ^= 1;
        bytes
    };
    let samples = read(&shards, "samples.index");
    let seek = read(&shards, "seek.index");
    let manifest = String::from_utf8(read(&shards, "manifest.json")).unwrap();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "samples.index",
            samples[..50].to_vec(),
            "samples.index: has 50 bytes; expected a header of 64 bytes",
        ),
        ("samples.index", samples[..samples.len() - 20].to_vec(), "promises 20 samples but has 380 bytes"),
        ("samples.index", flipped("samples.index", 0), "is no sample index"),
        ("samples.index", flipped("samples.index", 70), "do not have its checksum"),
        ("samples.index", read(&other, "samples.index"), "is the index of another data set"),
        ("seek.index", read(&other, "seek.index"), "belongs to another data set"),
        ("seek.index", seek[..seek.len() - 1].to_vec(), "bytes behind its header"),
        ("seek.index", flipped("seek.index", 66), "entries do not have their checksum"),
        ("seek.index", flipped("seek.index", 20), "header does not have its checksum"),
        (
            "manifest.json",
            manifest.replace("shard-000001", "../shard-000001").into(),
            "expected names of files in the same folder",
        ),
        (
            "manifest.json",
            manifest.replace("\"samples\": 20", "\"samples\": 21").into(),
            "not the sum over its shards",
        ),
        ("manifest.json", manifest.replace("shards 1", "shards 9").into(), "expected `wrn-dist shards 1`"),
        ("manifest.json", b"[]".to_vec(), "is no manifest"),
    ];
    for (name, bytes, message) in cases {
        let before = read(&shards, name);
        fs::write(shards.join(name), bytes).unwrap();
        let error = open(&shards).unwrap_err();
        assert!(error.starts_with(name) && error.contains(message), "{error}\nlacks {message}");
        assert!(problems(&shards).iter().any(|problem| problem.contains(message)), "{message}");
        fs::write(shards.join(name), before).unwrap();
    }
    assert_eq!(problems(&shards), [""; 0]);

    // A single damaged seek record costs speed, not the run.
    fs::write(shards.join("seek.index"), flipped("seek.index", seek.len() - 1)).unwrap();
    let set = open(&shards).unwrap();
    let without = (0..20).filter(|&sample| set.seek_record(sample).is_none()).count();
    assert_eq!((without, set.seek_record(19)), (1, None));
}

#[test]
fn capped_images_are_scaled_and_others_keep_their_bytes() {
    let dir = tempdir().unwrap();
    let (source, shards) = (dir.path().join("in"), dir.path().join("out"));
    fs::create_dir_all(source.join("a")).unwrap();
    let images = [("0.jpg", jpeg(100, 50, 1)), ("1.jpg", jpeg(32, 32, 2)), ("2.png", png(64, 200, 3))];
    images.iter().for_each(|(name, bytes)| fs::write(source.join("a").join(name), bytes).unwrap());
    let cap = Some(Cap { side: Side::Shorter, pixels: 32, quality: 95 });
    prepare_folder(&source, &shards, &PrepareOptions { cap, ..options() }).unwrap();
    let set = open(&shards).unwrap();
    let mut buffer = Vec::new();
    let mut found: Vec<_> = (0..3)
        .map(|sample| {
            let bytes = set.bytes(sample, &mut buffer).unwrap().to_vec();
            (set.describe(sample)[..13].to_owned(), set.size(sample), bytes)
        })
        .collect();
    found.sort();
    let sizes: Vec<_> = found.iter().map(|(name, size, _)| (&name[..], *size)).collect();
    assert_eq!(
        sizes,
        [("00000000-0.jp", (64, 32)), ("00000001-1.jp", (32, 32)), ("00000002-2.jp", (32, 100))]
    );
    assert_eq!(found[1].2, images[1].1, "small enough");
    // Average colour survives scaling and encoding.
    let mean = |bytes: &[u8], (width, height): (u32, u32)| {
        let mut rgb = Vec::new();
        let whole = jpeg::Region::whole(width, height);
        jpeg::ImageDecoder::new().unwrap().decode(bytes, whole, None, None, &mut rgb).unwrap();
        rgb.iter().map(|&value| f64::from(value)).sum::<f64>() / rgb.len() as f64
    };
    assert!((mean(&found[0].2, (64, 32)) - mean(&images[0].1, (100, 50))).abs() < 3.0);
    let error = prepare_folder(&source, &shards, &options()).unwrap_err();
    assert!(error.contains("holds another data set"), "{error}");
}
