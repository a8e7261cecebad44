//! `wrn-dist data` as a user runs it: prepared, killed, verified, fetched from a server on this machine.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use end_to_end::wrn_dist;

/// A grey baseline JPEG of 8x8 pixels: every table is standard, the only block is flat. `tail` follows the image, where
/// decoders do not look, so that files can be told apart.
fn small_jpeg(tail: u64) -> Vec<u8> {
    let mut bytes = vec![0xff, 0xd8, 0xff, 0xdb, 0, 67, 0];
    bytes.extend([16; 64]);
    bytes.extend([0xff, 0xc0, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0]);
    // One code of one bit for each table: no difference, end of block.
    for class in [0x00, 0x10] {
        bytes.extend([0xff, 0xc4, 0, 20, class, 1]);
        bytes.extend([0; 15]);
        bytes.push(0);
    }
    bytes.extend([0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0, 0x3f, 0xff, 0xd9]);
    bytes.extend(tail.to_le_bytes());
    bytes
}

fn image_folder(root: &Path, classes: u64, each: u64) {
    for class in 0..classes {
        let folder = root.join(format!("class-{class:04}"));
        fs::create_dir_all(&folder).unwrap();
        for image in 0..each {
            fs::write(folder.join(format!("{image}.jpg")), small_jpeg(class * each + image)).unwrap();
        }
    }
}

fn contents(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn preparing_survives_kill_9_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let (source, whole, killed) =
        (dir.path().join("in"), dir.path().join("whole"), dir.path().join("killed"));
    image_folder(&source, 20, 400);
    let begin = Instant::now();
    let arguments = ["data", "prepare", "imagefolder", text(&source)];
    let _ = wrn_dist(1, &[&arguments[..], &[text(&whole), "--shard-mib", "1"]].concat()).expect_code(0);
    let undisturbed = begin.elapsed();
    assert!(contents(&whole).len() > 10);

    let binary = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("wrn-dist");
    // Other moments in each run; WRN_DIST_SEED repeats those of one.
    let seed = std::env::var("WRN_DIST_SEED").ok().and_then(|seed| seed.parse().ok());
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed: u64 = seed.unwrap_or(clock.as_micros() as u64);
    eprintln!("moments of WRN_DIST_SEED={seed}");
    let mut state = seed;
    let mut interrupted = 0;
    for _ in 0..10 {
        // Knuth's MMIX generator; the upper bits are the good ones. Attempts go on from what is there already, so
        // a moment late in the whole time would come too late.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = undisturbed.mul_f64((state >> 11) as f64 / (1_u64 << 53) as f64 / 4.0);
        let mut child = Command::new(&binary)
            .args(arguments)
            .args([text(&killed), "--shard-mib", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(moment);
        child.kill().unwrap();
        let interrupts = !child.wait().unwrap().success();
        eprintln!("killed after {moment:.1?}{}", if interrupts { "" } else { ", too late" });
        interrupted += u32::from(interrupts);
    }
    assert!(interrupted >= 3, "only {interrupted} attempts were interrupted");
    let _ = wrn_dist(1, &[&arguments[..], &[text(&killed), "--shard-mib", "1"]].concat()).expect_code(0);
    assert!(contents(&killed) == contents(&whole), "byte for byte, and nothing else left");
    let _ = wrn_dist(1, &["data", "verify", text(&killed)]).expect_code(0);
}

#[test]
fn verify_names_all_damage_and_ends_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("in"), dir.path().join("out"));
    image_folder(&source, 3, 300);
    let _ = wrn_dist(1, &["data", "prepare", "imagefolder", text(&source), text(&out), "--shard-mib", "1"])
        .expect_code(0);
    let shards: Vec<String> = contents(&out).into_keys().filter(|name| name.ends_with(".tar")).collect();
    assert!(shards.len() > 1);
    fs::remove_file(out.join(&shards[0])).unwrap();
    let mut bytes = fs::read(out.join(&shards[1])).unwrap();
    bytes[600] ^= 1;
    fs::write(out.join(&shards[1]), bytes).unwrap();
    let verified = wrn_dist(1, &["data", "verify", text(&out)]).expect_code(1);
    for part in [format!("{}: cannot be read", shards[0]), format!("{}: has the checksum", shards[1])] {
        assert!(verified.stderr.contains(&part), "{}\nlacks {part}", verified.stderr);
    }
    let _ = wrn_dist(1, &["data", "verify", text(&source)]).expect_code(1);
    // Neither preparing once more nor indexing calls it ready.
    for command in [&["data", "prepare", "imagefolder", text(&source)][..], &["data", "index"]] {
        let out = [text(&out), "--shard-mib", "1"];
        let more = if command.len() > 2 { &out[..] } else { &out[..1] };
        let refused = wrn_dist(1, &[command, more].concat()).expect_code(1);
        assert!(refused.stderr.contains("wrn-dist data verify"), "{}", refused.stderr);
        assert!(!refused.stdout.contains("ready"), "{}", refused.stdout);
    }
}

#[test]
fn wrong_usage_is_told_with_the_choices() {
    for (arguments, choice) in [
        (
            ["data", "prepare", "mnist", "a", "b"],
            "imagenet, imagefolder, fashion-mnist, cifar10, cifar100, svhn",
        ),
        (["data", "fetch", "imagenet", "a", "--from=http://b"], "cifar10, cifar100, svhn"),
        (["data", "fetch", "cifar10", "a", "--from=nonsense"], "expected one such as https://"),
        (["bench", "data", "a", "--batch", "70000"], "1..=65536"),
        (["bench", "data", "a", "--image-size", "9000"], "1..=8192"),
        (["bench", "step", "--config=a", "--delay-ms", "1e9"], "expected 0 to 10000 milliseconds"),
    ] {
        let outcome = wrn_dist(1, &arguments).expect_code(2);
        assert!(outcome.stderr.contains(choice), "{}", outcome.stderr);
    }
}

#[test]
fn a_file_that_is_not_the_published_one_is_not_fetched() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let request = BufReader::new(stream.try_clone().unwrap()).lines();
            let _ = request.map_while(Result::ok).take_while(|line| !line.is_empty()).count();
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nsorry, no");
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let outcome = wrn_dist(1, &["data", "fetch", "cifar10", text(dir.path()), "--from", &url]).expect_code(1);
    let expected =
        format!("{url}/cifar-10-binary.tar.gz: the server has a file of 9 bytes; expected 170052171");
    assert!(outcome.stderr.contains(&expected), "{}", outcome.stderr);
    assert!(outcome.duration < Duration::from_secs(20));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
