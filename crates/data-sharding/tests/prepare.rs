//! Archives as their authors publish them, in miniature, to data sets that the readers open.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;
mod jpeg_support;
mod mat_support;
mod shards_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::{cifar_record, gzip, write_cifar, write_fashion_mnist};
use data_sharding::{
    Adapt, PrepareKind, PrepareOptions, Progress, ReadMode, ShardSet, SourceKind, Split, index, open,
    prepare, verify,
};
use mat_support as mat;
use shards_support::{contents, image_folder, jpeg, options, png, prepare_folder, tar, tar_as_it_is};
use tempfile::{TempDir, tempdir};

fn prepare_kind(kind: &str, source: &Path, destination: &Path) -> Result<(), String> {
    let kind: PrepareKind = kind.parse().unwrap();
    prepare(kind, source, destination, &options(), &Progress::silent()).map_err(|error| error.to_string())
}

fn cmyk_jpeg() -> Vec<u8> {
    let coding = jpeg_support::Coding {
        subsampling: turbojpeg_sys::TJSAMP_TJSAMP_444,
        colorspace: Some(turbojpeg_sys::TJCS_TJCS_CMYK),
        ..jpeg_support::PLAIN
    };
    jpeg_support::encode(&jpeg_support::picture(4, 20, 12, 3), 4, 20, 12, coding)
}

/// WordNet ids of the miniature's classes, sorted, and their words. The kit numbers them in another order.
const CLASSES: [(&str, &str, u32); 4] = [
    ("n01440764", "tench, Tinca tinca", 3),
    ("n02012849", "crane", 1),
    ("n03126707", "crane", 4),
    ("n04599235", "wool, woolen, woollen", 2),
];
/// Classes of the validation images as places in `CLASSES`.
const VALIDATION: [usize; 6] = [2, 0, 3, 1, 0, 2];

fn devkit(classes: &[(&str, &str, u32)]) -> Vec<u8> {
    let fields = ["ILSVRC2012_ID", "WNID", "words", "num_children", "children"];
    let synset = |id: u32, wordnet: &str, words: &str, children: f64| {
        let child = mat::numbers("", &[1, 2], mat::UINT8, &[7, 8]);
        vec![
            mat::double("", id.into()),
            mat::text("", wordnet),
            mat::text("", words),
            mat::double("", children),
            child,
        ]
    };
    let mut synsets: Vec<_> =
        classes.iter().map(|&(wordnet, words, id)| synset(id, wordnet, words, 0.0)).collect();
    synsets.push(synset(1001, "n00001740", "entity", 3.0));
    synsets.rotate_left(2);
    let meta = mat::file(&[mat::compressed(&mat::structs("synsets", &fields, &synsets))]);
    let truth: String = VALIDATION.iter().map(|&class| format!("{}\n", CLASSES[class].2)).collect();
    gzip(&tar(&[
        ("ILSVRC2012_devkit_t12/readme.txt", b"hello"),
        ("ILSVRC2012_devkit_t12/data/meta.mat", &meta),
        ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.as_bytes()),
    ]))
}

/// The three archives. Image i of class c is `20 + c` pixels wide and `10 + i` high.
fn imagenet() -> TempDir {
    let dir = tempdir().unwrap();
    let mut inner = Vec::new();
    // Classes in any order, as the archive is not sorted.
    for class in [2, 0, 3, 1] {
        let wordnet = CLASSES[class].0;
        let images: Vec<(String, Vec<u8>)> = (0..3 + class)
            .map(|image| {
                let (width, height) = (20 + class as u32, 10 + image as u32);
                let bytes = match (class, image) {
                    (1, 0) => png(width, height, 5),
                    (0, 2) => cmyk_jpeg(),
                    _ => jpeg(width, height, class * 10 + image),
                };
                (format!("{wordnet}_{image}.JPEG"), bytes)
            })
            .collect();
        let files: Vec<(&str, &[u8])> = images.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
        inner.push((format!("{wordnet}.tar"), tar(&files)));
    }
    let files: Vec<(&str, &[u8])> = inner.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
    fs::write(dir.path().join("ILSVRC2012_img_train.tar"), tar(&files)).unwrap();
    let images: Vec<(String, Vec<u8>)> = (0..VALIDATION.len())
        .map(|image| (format!("ILSVRC2012_val_{:08}.JPEG", image + 1), jpeg(30 + image as u32, 9, image)))
        .collect();
    let files: Vec<(&str, &[u8])> = images.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
    fs::write(dir.path().join("ILSVRC2012_img_val.tar"), tar(&files)).unwrap();
    fs::write(dir.path().join("ILSVRC2012_devkit_t12.tar.gz"), devkit(&CLASSES)).unwrap();
    dir
}

#[test]
fn imagenet_labels_are_places_among_the_sorted_wordnet_ids() {
    let (source, out) = (imagenet(), tempdir().unwrap());
    prepare_kind("imagenet", source.path(), out.path()).unwrap();
    let train = ShardSet::open(&out.path().join("train"), ReadMode::Read).unwrap();
    let names = [
        "n01440764 tench, Tinca tinca",
        "n02012849 crane",
        "n03126707 crane",
        "n04599235 wool, woolen, woollen",
    ];
    assert_eq!(train.classes(), names);
    assert_eq!(train.len(), 3 + 4 + 5 + 6);
    let mut found = BTreeMap::new();
    for sample in 0..train.len() {
        let described = train.describe(sample);
        let (name, _) = described.split_once(" in ").unwrap();
        found.insert(name.to_owned(), (train.label(sample) as usize, train.size(sample)));
    }
    let mut number = 0;
    for (class, (wordnet, ..)) in CLASSES.iter().enumerate() {
        for image in 0..3 + class {
            let extension = if (class, image) == (1, 0) { "png" } else { "jpg" };
            let size =
                if (class, image) == (0, 2) { (20, 12) } else { (20 + class as u32, 10 + image as u32) };
            let name = format!("{number:08}-{wordnet}_{image}.{extension}");
            assert_eq!(found.get(&name), Some(&(class, size)), "{name}");
            number += 1;
        }
    }
    let validation = ShardSet::open(&out.path().join("val"), ReadMode::Read).unwrap();
    assert_eq!((validation.len(), validation.classes()), (6, train.classes()));
    for sample in 0..6 {
        let image = validation.size(sample).0 as usize - 30;
        assert_eq!(validation.label(sample) as usize, VALIDATION[image], "validation image {}", image + 1);
    }
    assert_eq!(verify(out.path(), &Progress::silent()).unwrap(), [""; 0]);
    let files: Vec<String> = contents(out.path())
        .into_keys()
        .filter(|name| name.contains("/.") || name.starts_with('.'))
        .collect();
    assert_eq!(files, [""; 0], "nothing temporary is left");
}

#[test]
fn names_that_lead_out_of_an_archive_lead_nowhere() {
    let devkit = fs::read(imagenet().path().join("ILSVRC2012_devkit_t12.tar.gz")).unwrap();
    let image = jpeg(9, 8, 1);
    for way in ["../../", "a/../../../", "..//..//", "ROOT/"] {
        let dir = tempdir().unwrap();
        let leading_out = |file: &str| way.replace("ROOT", &dir.path().display().to_string()) + file;
        let [evil, label] = ["evil.jpg", "evil.cls"].map(leading_out);
        let [shards, source, out] = ["shards/train", "in/imagenet", "out/imagenet"].map(|name| {
            let folder = dir.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            folder
        });

        // Shards of somebody else.
        fs::write(shards.join("s.tar"), tar_as_it_is(&[(&evil, &image), (&label, b"0")])).unwrap();
        index(&shards, &Progress::silent()).unwrap();
        let set = ShardSet::open(&shards, ReadMode::Read).unwrap();
        assert_eq!((set.len(), set.bytes(0, &mut Vec::new()).unwrap()), (1, &image[..]), "{way}");

        // ImageNet's archives: the outer one and the inner ones, and that of the validation images.
        let write = |file: &str, members: &[(String, Vec<u8>)]| {
            let members: Vec<(&str, &[u8])> =
                members.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
            fs::write(source.join(file), tar_as_it_is(&members)).unwrap();
        };
        let inner = tar_as_it_is(&[(&evil, &image)]);
        let outer = CLASSES.map(|(id, ..)| (leading_out(&format!("{id}.tar")), inner.clone()));
        write("ILSVRC2012_img_train.tar", &outer);
        let name = |number: usize| leading_out(&format!("ILSVRC2012_val_{number:08}.JPEG"));
        let validation: Vec<_> = (1..=VALIDATION.len()).map(|number| (name(number), image.clone())).collect();
        write("ILSVRC2012_img_val.tar", &validation);
        fs::write(source.join("ILSVRC2012_devkit_t12.tar.gz"), &devkit).unwrap();
        prepare_kind("imagenet", &source, &out).unwrap();
        assert_eq!(ShardSet::open(&out.join("train"), ReadMode::Read).unwrap().len(), CLASSES.len(), "{way}");
        assert_eq!(verify(&out, &Progress::silent()).unwrap(), [""; 0], "{way}");

        let places = ["shards/train/", "in/imagenet/ILSVRC2012_", "out/imagenet/"];
        for file in contents(dir.path()).into_keys() {
            let inside = places.iter().any(|place| file.starts_with(place));
            assert!(inside && !file.contains("evil"), "{way}evil.jpg became {file}");
        }
        assert!(!Path::new(&evil).exists(), "{evil} seen from this test's own folder");
    }
}

#[test]
fn archives_that_are_not_the_published_ones_are_refused_when_strict() {
    let (source, out) = (imagenet(), tempdir().unwrap());
    let strict = PrepareOptions { strict: true, ..options() };
    let error = prepare(PrepareKind::ImageNet, source.path(), out.path(), &strict, &Progress::silent());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("ILSVRC2012_devkit_t12.tar.gz: has the MD5 "), "{error}");
    assert!(error.contains("expected fa75699e90414af021442c21a62c3abf, as the published"), "{error}");
}

#[test]
fn imagenet_archives_that_do_not_belong_together_are_refused() {
    let damage = |name: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let (source, out) = (imagenet(), tempdir().unwrap());
        let path = source.path().join(name);
        fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
        let result = prepare_kind("imagenet", source.path(), out.path());
        result.unwrap_err().replace(&source.path().display().to_string(), "ROOT")
    };
    let cases: Vec<(String, &str)> = vec![
        (
            damage("ILSVRC2012_devkit_t12.tar.gz", &|_| devkit(&CLASSES[..3])),
            "ground_truth.txt is `2`; expected an ILSVRC2012_ID of a class in meta.mat",
        ),
        (
            damage("ILSVRC2012_devkit_t12.tar.gz", &|_| gzip(&tar(&[("data/meta.mat", b"oops")]))),
            "meta.mat: has 4 bytes; expected a MAT file",
        ),
        (
            damage("ILSVRC2012_devkit_t12.tar.gz", &|bytes| bytes[..200].to_vec()),
            "ROOT/ILSVRC2012_devkit_t12.tar.gz: ",
        ),
        (damage("ILSVRC2012_img_val.tar", &|bytes| bytes[..4000].to_vec()), "ROOT/ILSVRC2012_img_val.tar: "),
        (
            damage("ILSVRC2012_img_val.tar", &|_| tar(&[("ILSVRC2012_val_00000007.JPEG", b"x")])),
            "holds `ILSVRC2012_val_00000007.JPEG`; expected ILSVRC2012_val_00000001.JPEG to 00000006",
        ),
        (
            damage("ILSVRC2012_img_train.tar", &|_| tar(&[("n01440764.tar", b"")])),
            "has 1 classes, the development kit 4, not the same",
        ),
        (
            damage("ILSVRC2012_img_train.tar", &|_| tar(&[("x\x1b[2J\n.tar", b"")])),
            "holds `x\\u{1b}[2J\\n.tar`; expected archives",
        ),
        (
            damage("ILSVRC2012_img_train.tar", &|_| tar(&[("photos.tar", b"")])),
            "holds `photos.tar`; expected archives named like n01440764.tar",
        ),
    ];
    for (error, message) in cases {
        assert!(error.contains(message), "{error}\nlacks {message}");
    }
    let (source, out) = (imagenet(), tempdir().unwrap());
    fs::remove_file(source.path().join("ILSVRC2012_devkit_t12.tar.gz")).unwrap();
    let error = prepare_kind("imagenet", source.path(), out.path()).unwrap_err();
    assert!(error.contains("labels of the validation images found; expected ILSVRC2012_devkit"), "{error}");
}

#[test]
fn an_interrupted_preparation_goes_on_and_ends_with_the_same_bytes() {
    let dir = tempdir().unwrap();
    let source = dir.path().join("in");
    image_folder(&source, 3, 12);
    let whole = dir.path().join("whole");
    prepare_folder(&source, &whole, &options()).unwrap();
    // A file that is no image stops the work in the middle; then it is made right.
    let victim = source.join("class-1/img.004.JPEG");
    let image = fs::read(&victim).unwrap();
    let out = dir.path().join("out");
    fs::write(&victim, vec![b'?'; image.len()]).unwrap();
    let error = prepare_folder(&source, &out, &PrepareOptions { threads: 1, ..options() }).unwrap_err();
    assert!(
        error.contains("class-1/img.004.JPEG: is no image; expected a whole JPEG or PNG file"),
        "{error}"
    );
    let partly = contents(&out);
    assert!(!partly.contains_key("manifest.json"));
    let error = ShardSet::open(&out, ReadMode::Read).unwrap_err().to_string();
    assert!(error.contains("holds an unfinished data set; expected a finished one"), "{error}");
    assert!(verify(&out, &Progress::silent()).unwrap()[0].contains("has no manifest, so it is unfinished"));
    fs::write(&victim, &image).unwrap();
    prepare_folder(&source, &out, &options()).unwrap();
    assert!(contents(&out) == contents(&whole));
    // Once more changes nothing.
    prepare_folder(&source, &out, &options()).unwrap();
    assert!(contents(&out) == contents(&whole));
}

#[test]
fn images_that_training_could_not_decode_are_named_in_its_words() {
    let whole = jpeg(200, 160, 1);
    let cut = whole[..whole.len() / 2].to_vec();
    let mut huge_jpeg = whole.clone();
    let frame = huge_jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    huge_jpeg[frame + 5..frame + 9].copy_from_slice(&[65_500_u16.to_be_bytes(); 2].concat());
    let small_png = png(20, 16, 1);
    let mut huge_png = small_png.clone();
    huge_png[16..24].copy_from_slice(&[60_000_u32.to_be_bytes(); 2].concat());
    let mut long_png = small_png.clone();
    long_png[16..24].copy_from_slice(&[100_000_u32.to_be_bytes(), 1_u32.to_be_bytes()].concat());
    let cases = [
        (cut, "cannot be decoded: JPEG decoder: "),
        (huge_jpeg, "cannot be decoded: claims 65500x65500 pixels"),
        (huge_png, "cannot be decoded: claims 60000x60000 pixels"),
        (long_png, "has 100000x1 pixels, and no side may be longer than 65535"),
        (small_png[..small_png.len() / 2].to_vec(), "cannot be decoded: PNG decoder: "),
        (b"GIF89a, no JPEG or PNG".to_vec(), "is no image"),
    ];
    for (bytes, said) in cases {
        let dir = tempdir().unwrap();
        let (source, out) = (dir.path().join("in"), dir.path().join("out"));
        image_folder(&source, 1, 2);
        fs::write(source.join("class-0/bad.jpg"), bytes).unwrap();
        let error = prepare_folder(&source, &out, &options()).unwrap_err();
        assert!(error.contains(&format!("class-0/bad.jpg: {said}")), "{error}");
        prepare_folder(&source, &out, &PrepareOptions { skip_bad: true, ..options() }).unwrap();
        assert_eq!(ShardSet::open(&out, ReadMode::Read).unwrap().len(), 2);
    }
}

#[test]
fn bad_files_can_be_left_out() {
    let dir = tempdir().unwrap();
    let (source, out) = (dir.path().join("in"), dir.path().join("out"));
    image_folder(&source, 2, 5);
    fs::write(source.join("class-0/bad.jpg"), b"not an image").unwrap();
    fs::write(source.join("class-0/empty.png"), b"").unwrap();
    fs::write(source.join("class-1/notes.txt"), b"not even by name").unwrap();
    prepare_folder(&source, &out, &PrepareOptions { skip_bad: true, ..options() }).unwrap();
    assert_eq!(ShardSet::open(&out, ReadMode::Read).unwrap().len(), 10);
    assert_eq!(verify(&out, &Progress::silent()).unwrap(), [""; 0]);
}

#[test]
fn bad_files_can_be_left_out_where_an_attempt_without_that_has_failed_and_not_the_other_way_round() {
    let dir = tempdir().unwrap();
    let (source, out, whole) = (dir.path().join("in"), dir.path().join("out"), dir.path().join("whole"));
    image_folder(&source, 3, 12);
    let bad = source.join("class-1/zz.jpg");
    fs::write(&bad, b"not an image").unwrap();
    let skipping = PrepareOptions { skip_bad: true, ..options() };
    prepare_folder(&source, &out, &PrepareOptions { threads: 1, ..options() }).unwrap_err();
    // With other options it is refused, and they are named.
    let error = prepare_folder(&source, &out, &PrepareOptions { seed: 3, ..skipping.clone() }).unwrap_err();
    assert!(
        error.contains(
            "an unfinished data set of another source or with other options (--seed: then 0, now 3)"
        ),
        "{error}"
    );
    prepare_folder(&source, &out, &skipping).unwrap();
    prepare_folder(&source, &whole, &skipping).unwrap();
    assert!(contents(&out) == contents(&whole));
    let error = prepare_folder(&source, &out, &options()).unwrap_err();
    assert!(error.contains("another data set (made with --skip-bad, or its source has changed)"), "{error}");

    // Nothing was left out of what was prepared without it.
    fs::remove_file(&bad).unwrap();
    let sound = dir.path().join("sound");
    prepare_folder(&source, &sound, &options()).unwrap();
    prepare_folder(&source, &sound, &skipping).unwrap();
}

#[test]
fn a_damaged_finished_data_set_is_not_called_ready() {
    let dir = tempdir().unwrap();
    let (photos, shards) = (dir.path().join("photos"), dir.path().join("shards"));
    image_folder(&photos, 3, 12);
    let (records, small) = (dir.path().join("records"), dir.path().join("small"));
    fs::create_dir(&records).unwrap();
    write_cifar(&records, SourceKind::Cifar100, 3);
    for (kind, source, out, file) in [
        ("imagefolder", &photos, &shards, "shard-000001.tar"),
        ("cifar100", &records, &small, "cifar-100-binary/test.bin"),
    ] {
        prepare_kind(kind, source, out).unwrap();
        let whole = contents(out);
        let path = out.join(file);
        let shorter = &whole[file][..whole[file].len() - 7];
        let expected =
            format!("{} bytes, as the manifest says; `wrn-dist data verify` names", whole[file].len());
        for (damage, found) in
            [(Some(shorter), format!("has {} bytes", shorter.len())), (None, "cannot be read".into())]
        {
            match damage {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let refused = prepare_kind(kind, source, out).unwrap_err();
            assert!(refused.starts_with(&format!("{}: {found}", path.display())), "{refused}");
            assert!(refused.contains(&expected), "{refused}");
            // Indexing looks too.
            let indexed = index(out, &Progress::silent()).unwrap_err().to_string();
            match kind {
                "imagefolder" => assert_eq!(indexed, refused),
                _ => assert!(
                    indexed.contains("is that of cifar100, which is kept in the files of its own"),
                    "{indexed}"
                ),
            }
        }
        fs::write(&path, &whole[file]).unwrap();
        prepare_kind(kind, source, out).unwrap();
        assert!(contents(out) == whole);
    }
    // What can be made anew is.
    let whole = contents(&shards);
    for name in ["samples.index", "seek.index"] {
        fs::write(shards.join(name), b"oops").unwrap();
        prepare_kind("imagefolder", &photos, &shards).unwrap();
        assert!(contents(&shards) == whole, "{name}");
    }
}

#[test]
fn a_destination_within_an_image_folder_is_refused_before_anything_is_made() {
    let dir = tempdir().unwrap();
    let source = dir.path().join("in");
    image_folder(&source, 2, 2);
    std::os::unix::fs::symlink(&source, dir.path().join("link")).unwrap();
    let before = contents(&source);
    for out in
        [source.clone(), source.join("out"), source.join("class-0/deep/out"), dir.path().join("link/out")]
    {
        let error = prepare_folder(&source, &out, &options()).unwrap_err();
        let expected =
            format!("lies in {}, which is the source; expected a folder outside of it", source.display());
        assert!(error.contains(&expected), "{error}");
    }
    assert!(contents(&source) == before && fs::read_dir(&source).unwrap().count() == 2);
    prepare_folder(&source, &dir.path().join("in-shards"), &options()).unwrap();
}

#[test]
fn a_preparation_that_comes_to_nothing_leaves_no_folder() {
    let dir = tempdir().unwrap();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for kind in ["imagenet", "imagefolder", "cifar10", "cifar100", "svhn", "fashion-mnist"] {
        prepare_kind(kind, &empty, &dir.path().join("a/b/out")).unwrap_err();
        assert!(!dir.path().join("a").exists(), "{kind}");
    }
}

#[test]
fn halves_of_an_image_folder_become_data_sets_of_their_own() {
    let dir = tempdir().unwrap();
    let (source, out) = (dir.path().join("in"), dir.path().join("out"));
    image_folder(&source.join("train"), 3, 4);
    image_folder(&source.join("val"), 3, 2);
    prepare_folder(&source, &out, &options()).unwrap();
    let samples = |half: &str| ShardSet::open(&out.join(half), ReadMode::Read).unwrap().len();
    assert_eq!((samples("train"), samples("val")), (12, 6));
    fs::remove_file(out.join("val/shard-000000.tar")).unwrap();
    let problems = verify(&out, &Progress::silent()).unwrap();
    assert!(
        problems.len() == 1 && problems[0].contains("val/shard-000000.tar: cannot be read"),
        "{problems:?}"
    );
}

#[test]
fn halves_with_other_class_folders_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (source, destination) = (folder.path().join("source"), folder.path().join("prepared"));
    for class in ["train/ant", "train/bee", "val/ant", "val/cat"] {
        fs::create_dir_all(source.join(class)).unwrap();
        fs::write(source.join(class).join("1.jpg"), cmyk_jpeg()).unwrap();
    }
    let refused = prepare_kind("imagefolder", &source, &destination).unwrap_err();
    assert!(refused.contains("missing bee, additional cat"), "{refused}");
    assert!(!destination.join("train").exists());
}

#[test]
fn an_occupied_folder_is_left_alone() {
    let dir = tempdir().unwrap();
    let (source, out) = (dir.path().join("in"), dir.path().join("out"));
    image_folder(&source, 1, 2);
    fs::create_dir(&out).unwrap();
    fs::write(out.join("thesis.tex"), b"years of work").unwrap();
    let error = prepare_folder(&source, &out, &options()).unwrap_err();
    assert!(error.contains("holds other files; expected an empty folder"), "{error}");
    assert_eq!(contents(&out).into_keys().collect::<Vec<_>>(), ["thesis.tex"]);
}

#[test]
fn cifar_archives_are_unpacked_and_folders_copied() {
    for (kind, name, folder, archive) in [
        (SourceKind::Cifar10, "cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
        (SourceKind::Cifar100, "cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz"),
    ] {
        let dir = tempdir().unwrap();
        let (source, out, copied) =
            (dir.path().join("in"), dir.path().join("out"), dir.path().join("copied"));
        fs::create_dir_all(source.join(folder)).unwrap();
        write_cifar(&source.join(folder), kind, 2);
        prepare_kind(name, &source, &copied).unwrap();
        let members: Vec<(String, Vec<u8>)> =
            contents(&source).into_iter().chain([("x/readme.html".to_owned(), b"hi".to_vec())]).collect();
        let members: Vec<(&str, &[u8])> =
            members.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
        fs::write(dir.path().join(archive), gzip(&tar(&members))).unwrap();
        prepare_kind(name, &dir.path().join(archive), &out).unwrap();
        assert!(contents(&out) == contents(&copied));

        let train = open(kind, &out, Split::Train, Adapt::default()).unwrap();
        let mut pixels = vec![0; 3072];
        train.decode(1, &mut pixels).unwrap();
        let record = cifar_record(kind, 1);
        assert_eq!(pixels[..3], [0, 1024, 2048].map(|plane| record[record.len() - 3072 + plane]));
        assert_eq!(verify(&out, &Progress::silent()).unwrap(), [""; 0]);
        let test = out.join(folder).join(if name == "cifar10" { "test_batch.bin" } else { "test.bin" });
        let mut bytes = fs::read(&test).unwrap();
        bytes[9] ^= 4;
        fs::write(&test, bytes).unwrap();
        let problems = verify(&out, &Progress::silent()).unwrap();
        assert!(
            problems.len() == 1 && problems[0].contains("bin: has ") && problems[0].contains("expected"),
            "{problems:?}"
        );
    }
}

#[test]
fn a_cut_cifar_archive_is_named_and_can_be_replaced() {
    let dir = tempdir().unwrap();
    let inner = dir.path().join("cifar-10-batches-bin");
    fs::create_dir(&inner).unwrap();
    write_cifar(&inner, SourceKind::Cifar10, 3);
    let members = contents(&inner);
    let members: Vec<(&str, &[u8])> = members.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
    let whole = gzip(&tar(&members));
    let (archive, out) = (dir.path().join("cifar-10-binary.tar.gz"), dir.path().join("out"));
    fs::write(&archive, &whole[..whole.len() / 2]).unwrap();
    let error = prepare_kind("cifar10", dir.path(), &out).unwrap_err();
    assert!(error.contains("cifar-10-binary.tar.gz: is damaged"), "{error}");
    fs::write(&archive, whole).unwrap();
    prepare_kind("cifar10", dir.path(), &out).unwrap();
    let train = open(SourceKind::Cifar10, &out, Split::Train, Adapt::default()).unwrap();
    assert_eq!(train.len(), 15);
}

#[test]
fn fashion_mnist_is_copied_as_it_is() {
    let dir = tempdir().unwrap();
    let (source, out) = (dir.path().join("in"), dir.path().join("out"));
    fs::create_dir(&source).unwrap();
    write_fashion_mnist(&source, "train", &[1, 2, 3], true);
    write_fashion_mnist(&source, "t10k", &[4], false);
    prepare_kind("fashion-mnist", &source, &out).unwrap();
    assert_eq!(open(SourceKind::FashionMnist, &out, Split::Train, Adapt::default()).unwrap().len(), 3);
    assert_eq!(verify(&out, &Progress::silent()).unwrap(), [""; 0]);
}

#[test]
fn svhn_columns_become_rows_and_label_ten_the_digit_zero() {
    for compress in [false, true] {
        let dir = tempdir().unwrap();
        let (source, out) = (dir.path().join("in"), dir.path().join("out"));
        fs::create_dir(&source).unwrap();
        for (name, labels) in [("train", &[1, 10, 3][..]), ("extra", &[9]), ("test", &[10, 2])] {
            fs::write(source.join(format!("{name}_32x32.mat")), mat::svhn(labels, compress)).unwrap();
        }
        prepare_kind("svhn", &source, &out).unwrap();
        let train = open(SourceKind::Svhn, &out, Split::Train, Adapt::default()).unwrap();
        let labels: Vec<u32> = (0..train.len()).map(|sample| train.label(sample)).collect();
        assert_eq!(labels, [1, 0, 3, 9], "train, then extra");
        let mut pixels = vec![0; 3072];
        train.decode(2, &mut pixels).unwrap();
        for (at, &value) in pixels.iter().enumerate() {
            let (row, column, channel) = (at / 96, at / 3 % 32, at % 3);
            assert_eq!(
                value,
                mat::svhn_pixel(row + 32 * column + 1024 * channel + 3072 * 2),
                "{row} {column} {channel}"
            );
        }
        let without = open(SourceKind::SvhnWithoutExtra, &out, Split::Train, Adapt::default()).unwrap();
        assert_eq!(without.len(), 3);
        assert_eq!(open(SourceKind::Svhn, &out, Split::Test, Adapt::default()).unwrap().label(0), 0);
        assert_eq!(verify(&out, &Progress::silent()).unwrap(), [""; 0]);
    }
}

#[test]
fn svhn_is_read_as_scipy_reads_it() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/prepare_scipy.py");
    for (compress, dtype) in [("true", "uint8"), ("false", "float64"), ("true", "float64")] {
        let dir = tempdir().unwrap();
        let python = Command::new("python3").arg(&script).arg(dir.path()).args([compress, dtype]).output();
        match python {
            Ok(python) if python.status.success() => {}
            Ok(python) if !String::from_utf8_lossy(&python.stderr).contains("ModuleNotFoundError") => {
                panic!("{}", String::from_utf8_lossy(&python.stderr))
            }
            _ => return jpeg_support::skip("scipy", "python3 has no scipy"),
        }
        let out = dir.path().join("out");
        prepare_kind("svhn", dir.path(), &out).unwrap();
        for name in ["train", "extra", "test"] {
            let expected = fs::read(dir.path().join(format!("{name}.expected"))).unwrap();
            assert!(
                fs::read(out.join(format!("svhn-binary/{name}.bin"))).unwrap() == expected,
                "{name} {dtype}"
            );
        }
    }
}

#[test]
fn wrong_mat_files_are_refused_in_words() {
    let x = mat::numbers("X", &[32, 32, 3, 2], mat::UINT8, &[1; 6144]);
    let y = mat::numbers("y", &[2, 1], mat::UINT8, &[1, 2]);
    let mut broken = mat::compressed(&x);
    let last = broken.len() - 1;
    broken[last] ^= 1;
    let mut version = mat::file(&[]);
    version[125] = 2;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![0; 40], "has 40 bytes; expected a MAT file with a header of 128 bytes"),
        (vec![b' '; 300], "is no MAT file"),
        (version, "version 7.3 (HDF5); expected version 5"),
        (mat::file(std::slice::from_ref(&x)), "has no variable y"),
        (mat::file(std::slice::from_ref(&y)), "has no variable X"),
        (mat::file(&[y.clone(), broken]), "is damaged in the variable"),
        (
            mat::file(&[x.clone(), mat::numbers("y", &[3, 1], mat::UINT8, &[1, 2, 3])]),
            "expected [32, 32, 3, 3]",
        ),
        (mat::file(&[x.clone(), mat::numbers("y", &[2, 1], mat::UINT8, &[1, 11])]), "label 11 of sample 1"),
        (mat::file(&[x.clone(), mat::numbers("y", &[2, 1], mat::UINT8, &[0, 1])]), "label 0 of sample 0"),
        (
            mat::file(&[x.clone(), mat::numbers("y", &[9, 1], mat::UINT8, &[1, 2])]),
            "y has 2 bytes for [9, 1] values",
        ),
        (mat::file(&[x.clone(), y.clone()])[..3000].to_vec(), "behind the end of the file"),
        (mat::file(&[y, mat::text("X", "hello")]), "X is [1, 5]"),
    ];
    for (bytes, message) in cases {
        let (dir, out) = (tempdir().unwrap(), tempdir().unwrap());
        fs::write(dir.path().join("train_32x32.mat"), bytes).unwrap();
        let error = prepare_kind("svhn-without-extra", dir.path(), out.path()).unwrap_err();
        assert!(error.contains("train_32x32.mat: ") && error.contains(message), "{error}\nlacks {message}");
        assert!(!out.path().join("svhn-binary/train.bin").exists(), "no half file");
    }
}
