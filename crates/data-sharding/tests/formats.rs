//! The readers against files made by hand, whole and damaged, and against the real Fashion-MNIST where it is
//! installed.

mod common;

use std::fs;
use std::path::Path;

use common::{cifar_record, gzip, idx_images, idx_labels, write_cifar, write_fashion_mnist};
use data_sharding::{Adapt, DataError, ImageShape, SourceKind, Split, open};
use tempfile::tempdir;

fn error(kind: SourceKind, root: &Path, split: Split) -> String {
    let error = open(kind, root, split, Adapt::default()).err().expect("opened in spite of the damage");
    // What stands before the folder's name differs from run to run.
    error.to_string().replace(&root.display().to_string(), "ROOT")
}

#[test]
fn idx_files_are_read_plain_and_gzipped() {
    for gzipped in [false, true] {
        let dir = tempdir().unwrap();
        write_fashion_mnist(dir.path(), "train", &[3, 9, 0], gzipped);
        let source = open(SourceKind::FashionMnist, dir.path(), Split::Train, Adapt::default()).unwrap();
        assert_eq!((source.len(), source.is_empty()), (3, false));
        assert_eq!(source.image(), ImageShape { height: 28, width: 28, channels: 1 });
        assert_eq!(source.classes()[9], "Ankle boot");
        assert_eq!([0, 1, 2].map(|sample| source.label(sample)), [3, 9, 0]);
        let mut pixels = vec![0; 784];
        source.decode(2, &mut pixels).unwrap();
        assert_eq!(pixels, idx_images(3)[16 + 2 * 784..]);
        assert!(source.name().starts_with("fashion-mnist train set in "));
    }
}

#[test]
fn splits_come_from_their_own_files() {
    let dir = tempdir().unwrap();
    write_fashion_mnist(dir.path(), "train", &[1, 2], false);
    write_fashion_mnist(dir.path(), "t10k", &[5], true);
    let test = open(SourceKind::FashionMnist, dir.path(), Split::Test, Adapt::default()).unwrap();
    assert_eq!((test.len(), test.label(0)), (1, 5));
}

#[test]
fn images_are_padded_and_grey_is_repeated() {
    let dir = tempdir().unwrap();
    write_fashion_mnist(dir.path(), "train", &[1, 2], false);
    let adapt = Adapt { pad_to: Some(32), channels: Some(3) };
    let plain = open(SourceKind::FashionMnist, dir.path(), Split::Train, Adapt::default()).unwrap();
    let adapted = open(SourceKind::FashionMnist, dir.path(), Split::Train, adapt).unwrap();
    assert_eq!(adapted.image(), ImageShape { height: 32, width: 32, channels: 3 });
    assert_eq!(adapted.fingerprint(), plain.fingerprint(), "the stored data are the same");

    let (mut small, mut large) = (vec![0; 784], vec![7; 32 * 32 * 3]);
    plain.decode(1, &mut small).unwrap();
    adapted.decode(1, &mut large).unwrap();
    for (index, value) in large.iter().enumerate() {
        let (row, column) = (index / 96, index / 3 % 32);
        let inside = (2..30).contains(&row) && (2..30).contains(&column);
        let expected = if inside { small[(row - 2) * 28 + column - 2] } else { 0 };
        assert_eq!(*value, expected, "row {row} column {column}");
    }
}

#[test]
fn impossible_adaptations_are_refused_before_files_are_read() {
    let margin = "is impossible, as the margin is equal on all sides; expected an even number of pixels more";
    for (kind, pad_to, channels, message) in [
        (
            SourceKind::FashionMnist,
            Some(31),
            None,
            format!("28x28 with 1 channel(s): pad_to 31 {margin}, 28 to 1024"),
        ),
        (SourceKind::FashionMnist, Some(24), None, format!("pad_to 24 {margin}, 28 to 1024")),
        (SourceKind::Cifar10, Some(u32::MAX - 1), None, format!("pad_to 4294967294 {margin}, 32 to 1024")),
        (
            SourceKind::FashionMnist,
            None,
            Some(2),
            "channels 2 is impossible; expected 1 or 3, the grey value".into(),
        ),
        (
            SourceKind::Cifar100,
            None,
            Some(1),
            "cifar100 images are 32x32 with 3 channel(s): channels 1".into(),
        ),
        (SourceKind::Cifar10, None, Some(0), "channels 0 is impossible; expected 3".into()),
    ] {
        let adapt = Adapt { pad_to, channels };
        let error = open(kind, Path::new("/nowhere"), Split::Train, adapt).err().unwrap().to_string();
        assert!(error.contains(&message), "{error}");
    }
}

#[test]
fn damaged_idx_files_are_named_with_what_was_expected() {
    let images = idx_images(3);
    let labels = idx_labels(&[0, 1, 2]);
    let with = |bytes: &[u8], at: usize, new: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    let longer = |bytes: &[u8]| [bytes, &[0; 5]].concat();
    let zipped = gzip(&images);
    let image_file = "train-images-idx3-ubyte";
    let label_file = "train-labels-idx1-ubyte";
    let cases: Vec<(&str, &str, Vec<u8>, &str)> = vec![
        (
            "empty file",
            image_file,
            vec![],
            "ROOT/train-images-idx3-ubyte: truncated: expected at least 16 bytes, the header of an IDX file of images, found 0",
        ),
        (
            "half a header",
            label_file,
            labels[..7].to_vec(),
            "ROOT/train-labels-idx1-ubyte: truncated: expected at least 8 bytes, the header of an IDX file of labels, found 7",
        ),
        (
            "wrong mark",
            image_file,
            labels.clone(),
            "ROOT/train-images-idx3-ubyte: truncated: expected at least 16 bytes, the header of an IDX file of images, found 11",
        ),
        (
            "labels that are images",
            label_file,
            images.clone(),
            "ROOT/train-labels-idx1-ubyte: starts with 0x00000803; expected 0x00000801, the mark of an IDX file of unsigned bytes with 1 dimension(s)",
        ),
        (
            "floats",
            image_file,
            with(&images, 2, &[0x0d]),
            "ROOT/train-images-idx3-ubyte: starts with 0x00000d03; expected 0x00000803, the mark of an IDX file of unsigned bytes with 3 dimension(s)",
        ),
        (
            "other image size",
            image_file,
            with(&images, 11, &[32, 0, 0, 0, 30]),
            "ROOT/train-images-idx3-ubyte: images are 32x30 (height x width); expected 28x28",
        ),
        (
            "huge dimensions",
            image_file,
            with(&images, 4, &[255; 12]),
            "ROOT/train-images-idx3-ubyte: images are 4294967295x4294967295 (height x width); expected 28x28",
        ),
        (
            "huge count",
            image_file,
            with(&images, 4, &[255; 4]),
            "ROOT/train-images-idx3-ubyte: truncated: expected 3367254359296 bytes, a header of 16 and 4294967295 images of 28x28 bytes, found 2368",
        ),
        (
            "truncated",
            image_file,
            images[..2000].to_vec(),
            "ROOT/train-images-idx3-ubyte: truncated: expected 2368 bytes, a header of 16 and 3 images of 28x28 bytes, found 2000",
        ),
        (
            "too long",
            image_file,
            longer(&images),
            "ROOT/train-images-idx3-ubyte: too long: expected 2368 bytes, a header of 16 and 3 images of 28x28 bytes, found 2373",
        ),
        (
            "truncated labels",
            label_file,
            labels[..10].to_vec(),
            "ROOT/train-labels-idx1-ubyte: truncated: expected 11 bytes, a header of 8 and 3 labels, found 10",
        ),
        (
            "label out of range",
            label_file,
            with(&labels, 9, &[10]),
            "ROOT/train-labels-idx1-ubyte: label 10 of sample 1 is out of range; expected 0 to 9",
        ),
        (
            "fewer labels",
            label_file,
            idx_labels(&[0, 1]),
            "ROOT/train-images-idx3-ubyte has 3 images but ROOT/train-labels-idx1-ubyte has 2 labels; expected equal counts",
        ),
        (
            "no labels",
            label_file,
            idx_labels(&[]),
            "ROOT/train-labels-idx1-ubyte: holds no samples; expected at least one",
        ),
        (
            "no images",
            image_file,
            idx_images(0),
            "ROOT/train-images-idx3-ubyte: holds no samples; expected at least one",
        ),
        (
            "too long, gzipped",
            image_file,
            gzip(&longer(&images)),
            "ROOT/train-images-idx3-ubyte: too long: expected 2368 bytes, a header of 16 and 3 images of 28x28 bytes, found 2369 or more, decompressed",
        ),
        (
            "truncated, then gzipped",
            image_file,
            gzip(&images[..2000]),
            "ROOT/train-images-idx3-ubyte: truncated: expected 2368 bytes, a header of 16 and 3 images of 28x28 bytes, found 2000, decompressed",
        ),
        (
            "huge count, gzipped",
            image_file,
            gzip(&with(&images, 4, &[255; 4])),
            "ROOT/train-images-idx3-ubyte: truncated: expected 3367254359296 bytes, a header of 16 and 4294967295 images of 28x28 bytes, found 2368, decompressed",
        ),
        (
            "wrong gzip checksum",
            image_file,
            with(&zipped, zipped.len() - 8, &[1, 2, 3]),
            "ROOT/train-images-idx3-ubyte: corrupt gzip stream after 2368 decoded bytes: corrupt gzip stream does not have a matching checksum",
        ),
    ];
    for (case, file, bytes, message) in cases {
        let dir = tempdir().unwrap();
        write_fashion_mnist(dir.path(), "train", &[0, 1, 2], false);
        fs::write(dir.path().join(file), bytes).unwrap();
        assert_eq!(error(SourceKind::FashionMnist, dir.path(), Split::Train), message, "{case}");
    }
}

#[test]
fn a_gzip_stream_cut_short_is_truncated() {
    let dir = tempdir().unwrap();
    write_fashion_mnist(dir.path(), "train", &[0, 1, 2], true);
    let path = dir.path().join("train-images-idx3-ubyte.gz");
    let whole = fs::read(&path).unwrap();
    for len in [12, whole.len() / 2, whole.len() - 20] {
        fs::write(&path, &whole[..len]).unwrap();
        let error = error(SourceKind::FashionMnist, dir.path(), Split::Train);
        assert!(error.starts_with("ROOT/train-images-idx3-ubyte.gz: truncated: expected "), "{error}");
        assert!(error.ends_with(", decompressed"), "{error}");
    }
}

#[test]
fn missing_files_are_named_with_all_accepted_names() {
    let dir = tempdir().unwrap();
    let root = dir.path();
    let origin = "(Debian's package dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist)";
    assert_eq!(
        error(SourceKind::FashionMnist, root, Split::Test),
        format!(
            "ROOT: no file with the fashion-mnist test images found; expected t10k-images-idx3-ubyte or \
             t10k-images-idx3-ubyte.gz {origin}"
        )
    );
    fs::write(root.join("t10k-images-idx3-ubyte.gz"), gzip(&idx_images(1))).unwrap();
    assert_eq!(
        error(SourceKind::FashionMnist, root, Split::Test),
        format!(
            "ROOT: no file with the fashion-mnist test labels found; expected t10k-labels-idx1-ubyte or \
             t10k-labels-idx1-ubyte.gz {origin}"
        )
    );
    assert_eq!(
        error(SourceKind::Cifar100, root, Split::Train),
        "ROOT: no file with the cifar100 train images found; expected train.bin here or in a folder cifar-100-binary \
         below (from cifar-100-binary.tar.gz)"
    );
    write_cifar(root, SourceKind::Cifar10, 1);
    fs::remove_file(root.join("data_batch_4.bin")).unwrap();
    assert!(error(SourceKind::Cifar10, root, Split::Train).contains("expected data_batch_4.bin here"));
}

#[test]
fn what_is_no_regular_file_is_refused_without_reading() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("train.bin")).unwrap();
    let error = error(SourceKind::Cifar100, dir.path(), Split::Train);
    assert_eq!(error, "ROOT/train.bin: cannot be read: not a regular file");
}

#[test]
fn cifar_files_are_read_in_their_folder_and_in_the_one_around_it() {
    for (kind, folder, train_files) in
        [(SourceKind::Cifar10, "cifar-10-batches-bin", 5), (SourceKind::Cifar100, "cifar-100-binary", 1)]
    {
        let dir = tempdir().unwrap();
        let inner = dir.path().join(folder);
        fs::create_dir(&inner).unwrap();
        write_cifar(&inner, kind, 4);
        for root in [dir.path(), &inner] {
            let train = open(kind, root, Split::Train, Adapt::default()).unwrap();
            let test = open(kind, root, Split::Test, Adapt::default()).unwrap();
            assert_eq!((train.len(), test.len()), (4 * train_files, 4), "{kind}");
            assert_eq!(train.image(), ImageShape { height: 32, width: 32, channels: 3 });
            assert_eq!(train.classes().len(), kind.facts().classes.len());
            let mut pixels = vec![0; 3072];
            for sample in 0..train.len() {
                let record = cifar_record(kind, sample);
                let (labels, planes) = record.split_at(record.len() - 3072);
                assert_eq!(train.label(sample), u32::from(labels[labels.len() - 1]), "the fine label");
                train.decode(sample, &mut pixels).unwrap();
                let expected: Vec<u8> =
                    (0..1024).flat_map(|i| [planes[i], planes[1024 + i], planes[2048 + i]]).collect();
                assert_eq!(pixels, expected);
            }
        }
    }
}

#[test]
fn class_names_of_the_archive_are_taken() {
    let dir = tempdir().unwrap();
    write_cifar(dir.path(), SourceKind::Cifar10, 1);
    let names = dir.path().join("batches.meta.txt");
    fs::write(&names, "a\nb\nc\r\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap();
    let source = open(SourceKind::Cifar10, dir.path(), Split::Test, Adapt::default()).unwrap();
    assert_eq!(source.classes(), ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]);
    let expected = "; expected 10 class names, one a line, in UTF-8";
    for (bytes, found) in [
        (b"a\nb\n".to_vec(), "has 2 names"),
        (vec![0xff; 9], "is no text (invalid utf-8 sequence of 1 bytes from index 0)"),
        (vec![b'\n'; 70_000], "has 70000 bytes"),
    ] {
        fs::write(&names, bytes).unwrap();
        let error = error(SourceKind::Cifar10, dir.path(), Split::Test);
        assert_eq!(error, format!("ROOT/batches.meta.txt: {found}{expected}"));
    }
}

#[test]
fn damaged_cifar_files_are_named_with_what_was_expected() {
    let ten = SourceKind::Cifar10;
    let hundred = SourceKind::Cifar100;
    let records = |kind, count: usize| (0..count).flat_map(|i| cifar_record(kind, i)).collect::<Vec<u8>>();
    let with = |kind, at: usize, value: u8| {
        let mut bytes = records(kind, 3);
        bytes[at] = value;
        bytes
    };
    let cut = records(ten, 2)[..3073 + 100].to_vec();
    for (kind, bytes, message) in [
        (
            ten,
            cut,
            "ends inside a record: expected a multiple of 3073 bytes (1 of labels, 3072 of pixels; a complete file has 30730000 bytes in 10000 records), found 3173, 100 too many",
        ),
        (
            hundred,
            records(ten, 2),
            "ends inside a record: expected a multiple of 3074 bytes (2 of labels, 3072 of pixels; a complete file has 30740000 bytes in 10000 records), found 6146, 3072 too many",
        ),
        (ten, vec![], "holds no samples; expected at least one"),
        (ten, with(ten, 2 * 3073, 10), "label 10 of sample 2 is out of range; expected 0 to 9"),
        (hundred, with(hundred, 3074, 20), "coarse label 20 of sample 1 is out of range; expected 0 to 19"),
        (
            hundred,
            with(hundred, 3074 + 1, 255),
            "fine label 255 of sample 1 is out of range; expected 0 to 99",
        ),
    ] {
        let dir = tempdir().unwrap();
        let file = if kind == ten { "test_batch.bin" } else { "test.bin" };
        fs::write(dir.path().join(file), bytes).unwrap();
        assert_eq!(error(kind, dir.path(), Split::Test), format!("ROOT/{file}: {message}"));
    }
}

#[test]
fn fingerprint_changes_with_any_byte() {
    let fingerprint = |root: &Path| {
        open(SourceKind::Cifar10, root, Split::Test, Adapt::default()).unwrap().fingerprint().to_string()
    };
    let dir = tempdir().unwrap();
    write_cifar(dir.path(), SourceKind::Cifar10, 2);
    let original = fingerprint(dir.path());
    assert!(original.len() == 32 && original.bytes().all(|byte| byte.is_ascii_hexdigit()), "{original}");
    let path = dir.path().join("test_batch.bin");
    let bytes = fs::read(&path).unwrap();
    for at in [3073, 6145] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        fs::write(&path, changed).unwrap();
        assert_ne!(fingerprint(dir.path()), original, "byte {at}");
    }
}

#[test]
fn decoding_what_is_not_there_is_an_error() {
    let dir = tempdir().unwrap();
    write_cifar(dir.path(), SourceKind::Cifar10, 2);
    let source = open(SourceKind::Cifar10, dir.path(), Split::Test, Adapt::default()).unwrap();
    let missing = source.decode(2, &mut [0; 3072]).unwrap_err();
    assert!(matches!(missing, DataError::NoSuchSample { sample: 2, samples: 2, .. }), "{missing}");
    let short = source.decode(1, &mut [0; 3071]).unwrap_err().to_string();
    assert!(
        short.ends_with("sample 1 cannot be decoded: the buffer has 3071 bytes, an image has 3072"),
        "{short}"
    );
}

#[test]
fn real_fashion_mnist_is_what_is_known_of_it() {
    let root = Path::new("/usr/share/datasets/fashion-mnist");
    if !root.exists() {
        eprintln!("skipped: {} is not installed", root.display());
        return;
    }
    for (split, count) in [(Split::Train, 60_000), (Split::Test, 10_000)] {
        let source = open(SourceKind::FashionMnist, root, split, Adapt::default()).unwrap();
        assert_eq!(source.len(), count);
        let mut of_class = [0; 10];
        (0..count).for_each(|sample| of_class[source.label(sample) as usize] += 1);
        assert_eq!(of_class, [count / 10; 10], "classes are balanced");
        if split == Split::Test {
            continue;
        }
        let (mut sum, mut squares, mut pixels) = (0_u64, 0_u64, vec![0; 784]);
        for sample in 0..count {
            source.decode(sample, &mut pixels).unwrap();
            sum += pixels.iter().map(|&value| u64::from(value)).sum::<u64>();
            squares += pixels.iter().map(|&value| u64::from(value).pow(2)).sum::<u64>();
        }
        let values = (count * 784) as f64;
        let mean = sum as f64 / values;
        let std = (squares as f64 / values - mean * mean).sqrt();
        let facts = SourceKind::FashionMnist.facts();
        assert!((mean - facts.mean[0]).abs() < 0.005 && (std - facts.std[0]).abs() < 0.005, "{mean} {std}");
    }
}
