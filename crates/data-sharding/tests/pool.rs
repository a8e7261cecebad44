//! The decoder pool from outside: order, bounds, failures, and its end.

#![allow(clippy::unwrap_used)] // All of it is test code.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use data_sharding::jpeg::ImageEncoder;
use data_sharding::{
    Adapt, Augmentation, Batch, Crop, DataError, EncodedSource, Filter, ImageShape, ImageSize, Labelled,
    OnBadSample, PaddingMode, Pool, PoolOptions, RandomErasing, RandomResizedCrop, SampleKey, Source,
    SourceKind, Split, default_workers, open,
};

const SHAPE: ImageShape = ImageShape { height: 8, width: 8, channels: 3 };

/// Images whose every byte tells the sample, with faults where a test wants them.
#[derive(Default)]
struct Synthetic {
    samples: usize,
    classes: Vec<String>,
    damaged: Option<usize>,
    unreadable: Option<usize>,
    panicking: Option<usize>,
    /// Sleeps the longer the smaller the sample, so that later ones are done first.
    uneven: bool,
    decoded: AtomicUsize,
    gate: Option<Gate>,
}

/// Holds decoders up until it is opened.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    /// Decoders that have come so far.
    arrived: AtomicUsize,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        let open = self.open.lock().unwrap();
        drop(self.changed.wait_while(open, |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

impl Labelled for Synthetic {
    fn name(&self) -> &str {
        "made-up set"
    }

    fn len(&self) -> usize {
        self.samples
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn fingerprint(&self) -> &str {
        "0"
    }

    fn label(&self, sample: usize) -> u32 {
        sample as u32 % 10
    }
}

impl Source for Synthetic {
    fn image(&self) -> ImageShape {
        SHAPE
    }

    fn decode(&self, sample: usize, pixels: &mut [u8]) -> Result<(), DataError> {
        if let Some(gate) = &self.gate {
            gate.pass();
        }
        if self.uneven {
            thread::sleep(Duration::from_micros(50 * (64 - sample as u64 % 64)));
        }
        if self.panicking == Some(sample) {
            panic!("index out of bounds at {sample}");
        }
        if self.damaged == Some(sample) {
            let data_set = self.name().into();
            return Err(DataError::Decode { data_set, sample, reason: "bad Huffman code".into() });
        }
        if self.unreadable == Some(sample) {
            return Err(DataError::Io {
                path: "shard-3".into(),
                source: std::io::Error::other("disk on fire"),
            });
        }
        for (index, byte) in pixels.iter_mut().enumerate() {
            *byte = (sample * 7 + index) as u8;
        }
        self.decoded.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

fn augmenting() -> Augmentation {
    let crop = Crop::Padded { padding: 2, mode: PaddingMode::Reflect };
    Augmentation { seed: 3, flip: true, crop, ..Augmentation::none() }
}

fn start(
    source: Arc<Synthetic>,
    augmentation: Augmentation,
    requests: Box<dyn Iterator<Item = Vec<SampleKey>> + Send>,
    options: PoolOptions,
) -> Result<Pool, DataError> {
    Pool::start(source as Arc<dyn Source>, augmentation, requests, options)
}

fn key(sample: u32) -> SampleKey {
    SampleKey { sample, epoch: 1, repetition: 0 }
}

/// `batches` requests of `size` samples, numbered through.
fn requests(batches: u32, size: u32) -> Box<dyn Iterator<Item = Vec<SampleKey>> + Send> {
    Box::new((0..batches).map(move |batch| (batch * size..(batch + 1) * size).map(key).collect()))
}

fn options(workers: usize, batch_size: usize, prefetch: usize) -> PoolOptions {
    PoolOptions { workers, batch_size, prefetch, on_bad_sample: OnBadSample::Error }
}

/// Fails the test instead of hanging it.
fn within_seconds<T: Send + 'static>(seconds: u64, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        let _ = sender.send(work());
    });
    let result = receiver.recv_timeout(Duration::from_secs(seconds));
    if result.is_err() && thread.is_finished() {
        thread.join().expect("the work panicked");
    }
    result.expect("still at work after the time limit")
}

#[test]
fn batches_come_in_the_order_of_requests_with_their_samples() {
    let source = Arc::new(Synthetic { samples: 640, uneven: true, ..Default::default() });
    let pool = start(source, Augmentation::none(), requests(40, 16), options(3, 16, 4)).unwrap();
    let mut count = 0;
    for (batch, images) in pool.enumerate() {
        let images = images.unwrap();
        assert_eq!((images.len(), images.shape()), (16, [16, 8, 8, 3]));
        assert_eq!(images.images().len(), 16 * SHAPE.bytes());
        for slot in 0..16 {
            let sample = batch * 16 + slot;
            let expected: Vec<u8> = (0..SHAPE.bytes()).map(|index| (sample * 7 + index) as u8).collect();
            assert_eq!(images.images()[slot * SHAPE.bytes()..][..SHAPE.bytes()], expected);
            assert_eq!(images.labels()[slot], sample as i64 % 10);
        }
        count += 1;
    }
    assert_eq!(count, 40);
}

#[test]
fn batches_are_the_same_bytes_for_any_number_of_workers() {
    let all = |workers, prefetch| {
        let source = Arc::new(Synthetic { samples: 500, ..Default::default() });
        let sizes = [13, 1, 32, 7, 32];
        let requests = (0..5_u64).flat_map(move |epoch| {
            sizes.into_iter().enumerate().map(move |(repetition, size)| {
                let keys = (0..size).map(|i| (i * 37 + size * 11 + epoch as u32) % 500);
                keys.map(|sample| SampleKey { sample, epoch, repetition: repetition as u32 }).collect()
            })
        });
        let pool = start(source, augmenting(), Box::new(requests), options(workers, 32, prefetch)).unwrap();
        pool.map(|batch| {
            let batch = batch.unwrap();
            (batch.images().to_vec(), batch.labels().to_vec())
        })
        .collect::<Vec<_>>()
    };
    let expected = all(1, 1);
    assert_eq!(
        expected.iter().map(|(_, labels)| labels.len()).collect::<Vec<_>>(),
        [13, 1, 32, 7, 32].repeat(5)
    );
    for (workers, prefetch) in [(1, 4), (2, 2), (7, 1), (7, 5)] {
        assert_eq!(all(workers, prefetch), expected, "{workers} workers, {prefetch} buffers");
    }
}

#[test]
fn epochs_and_repetitions_augment_differently() {
    let source = Arc::new(Synthetic { samples: 64, ..Default::default() });
    let keys =
        |epoch, repetition| (0..64).map(move |sample| SampleKey { sample, epoch, repetition }).collect();
    let requests: Vec<Vec<SampleKey>> = vec![keys(0, 0), keys(0, 0), keys(1, 0), keys(0, 1)];
    let pool = start(source, augmenting(), Box::new(requests.into_iter()), options(2, 64, 2)).unwrap();
    let batches: Vec<_> = pool.map(|batch| batch.unwrap().images().to_vec()).collect();
    assert_eq!(batches[0], batches[1]);
    assert_ne!(batches[0], batches[2]);
    assert_ne!(batches[0], batches[3]);
    assert_ne!(batches[2], batches[3]);
}

#[test]
fn workers_wait_when_the_consumer_does_not_take() {
    let source = Arc::new(Synthetic { samples: 8000, ..Default::default() });
    let mut pool = start(Arc::clone(&source), augmenting(), requests(1000, 8), options(2, 8, 3)).unwrap();
    let settled = || {
        let mut last = usize::MAX;
        while last != source.decoded.load(Ordering::SeqCst) {
            last = source.decoded.load(Ordering::SeqCst);
            thread::sleep(Duration::from_millis(100));
        }
        last
    };
    assert_eq!(settled(), 3 * 8, "all three buffers are filled and no more");
    let first = pool.next().unwrap().unwrap();
    let second = pool.next().unwrap().unwrap();
    assert_eq!(settled(), 3 * 8, "buffers in the consumer's hands are not free");
    drop(first);
    assert_eq!(settled(), 4 * 8);
    drop(second);
    assert_eq!(settled(), 5 * 8);
}

#[test]
fn buffers_are_reused() {
    let source = Arc::new(Synthetic { samples: 1600, ..Default::default() });
    let pool = start(source, augmenting(), requests(100, 16), options(2, 16, 3)).unwrap();
    let places: BTreeSet<usize> = pool.map(|batch| batch.unwrap().images().as_ptr() as usize).collect();
    assert!(places.len() <= 3, "{} different buffers", places.len());
}

/// Sizes of all batches, and the error at the end if there is one.
fn outcomes(mut pool: Pool) -> Vec<Result<usize, String>> {
    let outcomes =
        pool.by_ref().map(|result| result.map(|batch| batch.len()).map_err(|error| error.to_string()));
    let outcomes = outcomes.collect();
    assert!(pool.next().is_none(), "an ended pool stays ended");
    outcomes
}

#[test]
fn a_bad_sample_or_a_panic_is_an_error_that_names_it_and_ends_the_pool() {
    let whole = || Synthetic { samples: 400, ..Default::default() };
    let faults: [(&dyn Fn() -> Synthetic, &str); 5] = [
        (&|| Synthetic { damaged: Some(77), ..whole() }, "77 cannot be decoded: bad Huffman code"),
        (
            &|| Synthetic { unreadable: Some(70), ..whole() },
            "70 cannot be decoded: shard-3: cannot be read: disk on fire",
        ),
        (
            &|| Synthetic { panicking: Some(77), ..whole() },
            "77 cannot be decoded: panic: index out of bounds at 77",
        ),
        (
            &|| Synthetic { damaged: Some(77), panicking: Some(79), ..whole() },
            "77 cannot be decoded: bad Huffman code",
        ),
        (
            &|| Synthetic { damaged: Some(78), panicking: Some(71), ..whole() },
            "71 cannot be decoded: panic: index out of bounds at 71",
        ),
    ];
    for (faulty, message) in faults {
        let cases = [1, 2, 7].into_iter().flat_map(|w| [(w, Augmentation::none()), (w, augmenting())]);
        for (workers, transform) in cases {
            let source = Arc::new(faulty());
            let results = within_seconds(20, move || {
                outcomes(start(source, transform, requests(40, 10), options(workers, 10, 4)).unwrap())
            });
            let mut expected = vec![Ok(10); 7];
            expected.push(Err(format!("made-up set: sample {message}")));
            assert_eq!(results, expected, "{workers} workers");
        }
    }
}

#[test]
fn bad_requests_are_errors_at_their_place() {
    let size = "expected 1 to 4, the size of a batch buffer";
    for (bad, message) in [
        (vec![], format!("request 2 asks for 0 samples; {size}")),
        ((0..5).map(key).collect(), format!("request 2 asks for 5 samples; {size}")),
        (vec![key(1), key(50)], "made-up set: sample 50 does not exist; expected 0 to 49".into()),
    ] {
        let source = Arc::new(Synthetic { samples: 50, ..Default::default() });
        let requests = vec![vec![key(0)], vec![key(1)], bad, vec![key(2)]];
        let results: Vec<_> = within_seconds(20, move || {
            let pool = start(source, Augmentation::none(), Box::new(requests.into_iter()), options(2, 4, 1))
                .unwrap();
            pool.map(|result| result.map(|batch| batch.len()).map_err(|error| error.to_string())).collect()
        });
        assert_eq!(results, [Ok(1), Ok(1), Err(message)]);
    }
}

#[test]
fn a_panic_among_the_requests_is_an_error() {
    let source = Arc::new(Synthetic { samples: 50, ..Default::default() });
    let requests =
        (0..3).map(|batch| if batch == 1 { panic!("no order for epoch 1") } else { vec![key(batch)] });
    let results = within_seconds(20, move || {
        outcomes(start(source, Augmentation::none(), Box::new(requests), options(2, 4, 2)).unwrap())
    });
    let message = "the list of requests failed at request 1: no order for epoch 1";
    assert_eq!(results, [Ok(1), Err(message.into())]);
}

#[test]
fn options_out_of_range_are_refused() {
    for (options, transform, message) in [
        (options(0, 8, 2), augmenting(), "number of decoder threads is 0; expected 1 to 1024"),
        (options(1, 0, 2), augmenting(), "batch size is 0; expected 1 to 1048576"),
        (options(1, 8, usize::MAX), augmenting(), "prefetch is 18446744073709551615; expected 1 to 1024"),
        (
            options(1, 8, 2),
            Augmentation { crop: Crop::Padded { padding: 8, mode: PaddingMode::Zero }, ..augmenting() },
            "crop_padding is 8; expected less than the image's 8 pixels",
        ),
    ] {
        let source = Arc::new(Synthetic { samples: 8, ..Default::default() });
        let error = start(source, transform, requests(1, 8), options).err().unwrap();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn dropping_in_mid_stream_joins_all_threads_and_batches_stay_valid() {
    for workers in [1, 2, 7] {
        for taken in [0, 1, 3] {
            let source = Arc::new(Synthetic { samples: 100_000, ..Default::default() });
            let watched = Arc::downgrade(&source);
            let held = within_seconds(20, move || {
                let mut pool =
                    start(source, Augmentation::none(), requests(1000, 100), options(workers, 100, 4))
                        .unwrap();
                let held: Vec<_> = (0..taken).map(|_| pool.next().unwrap().unwrap()).collect();
                drop(pool);
                held
            });
            assert_eq!(watched.strong_count(), 0, "every thread's share of the source is gone");
            for (index, batch) in held.iter().enumerate() {
                assert_eq!(batch.images()[0], (index * 100 * 7) as u8);
                assert_eq!(batch.len(), 100);
            }
        }
    }
}

#[test]
fn dropping_waits_for_the_samples_in_work_and_no_more() {
    let source = Arc::new(Synthetic { samples: 1000, gate: Some(Gate::default()), ..Default::default() });
    let gate = source.gate.as_ref().unwrap();
    let pool = start(Arc::clone(&source), augmenting(), requests(10, 100), options(2, 100, 2)).unwrap();
    while gate.arrived.load(Ordering::SeqCst) < 2 {
        thread::yield_now();
    }
    let ended = thread::spawn(move || drop(pool));
    thread::sleep(Duration::from_millis(200));
    assert!(!ended.is_finished(), "threads in the middle of a sample are waited for");
    gate.open();
    within_seconds(20, move || ended.join().unwrap());
    assert_eq!(source.decoded.load(Ordering::SeqCst), 2, "one sample a worker");
}

#[test]
fn a_pool_ends_with_its_requests() {
    for batches in [0, 1, 2] {
        let source = Arc::new(Synthetic { samples: 8, ..Default::default() });
        let pool = start(source, augmenting(), requests(batches, 4), options(2, 4, 3)).unwrap();
        assert_eq!(within_seconds(20, move || outcomes(pool)), vec![Ok(4); batches as usize]);
    }
}

#[test]
fn worker_counts_share_the_processors() {
    let alone = default_workers(1, 1);
    assert!((1..=16).contains(&alone));
    assert!(default_workers(2, 1) <= alone);
    assert_eq!((default_workers(0, 1), default_workers(usize::MAX, 1)), (alone, 1));
}

#[test]
fn real_images_pass_through_unchanged_without_augmentation() {
    let root = Path::new("/usr/share/datasets/fashion-mnist");
    if !root.exists() {
        eprintln!("skipped: {} is not installed", root.display());
        return;
    }
    let adapt = Adapt { pad_to: Some(32), channels: Some(3) };
    let source = open(SourceKind::FashionMnist, root, Split::Test, adapt).unwrap();
    let pool =
        Pool::start(Arc::clone(&source), Augmentation::none(), requests(10, 1000), options(2, 1000, 3))
            .unwrap();
    let mut image = vec![0; source.image().bytes()];
    let mut sample = 0;
    for batch in pool {
        let batch = batch.unwrap();
        for (pixels, &label) in batch.images().chunks_exact(image.len()).zip(batch.labels()) {
            source.decode(sample, &mut image).unwrap();
            assert_eq!((pixels, label), (&image[..], i64::from(source.label(sample))));
            sample += 1;
        }
    }
    assert_eq!(sample, 10_000);
}

/// Images and labels of all batches.
type Bytes = Vec<(Vec<u8>, Vec<i64>)>;

fn bytes(pool: Pool) -> Bytes {
    pool.map(|batch| {
        let batch = batch.unwrap();
        (batch.images().to_vec(), batch.labels().to_vec())
    })
    .collect()
}

fn skipping(workers: usize, batch_size: usize) -> PoolOptions {
    PoolOptions { on_bad_sample: OnBadSample::Skip, ..options(workers, batch_size, 3) }
}

#[test]
fn a_skipped_sample_changes_no_other_place() {
    let whole = || Synthetic { samples: 40, ..Default::default() };
    let erase = RandomErasing { probability: 0.5, area: (0.1, 0.3), aspect: (0.5, 2.0) };
    let augmentation = Augmentation { lighting: 0.1, erase: Some(erase), ..augmenting() };
    let collect = |source: Synthetic, workers| {
        let pool =
            start(Arc::new(source), augmentation.clone(), requests(4, 10), skipping(workers, 10)).unwrap();
        let batches = pool.map(Result::unwrap).map(|batch| {
            let reasons: Vec<_> = batch.skipped().iter().map(ToString::to_string).collect();
            (batch.images().to_vec(), batch.labels().to_vec(), batch.device_parameters().to_vec(), reasons)
        });
        batches.collect::<Vec<_>>()
    };
    let good = collect(whole(), 2);
    assert!(good.iter().all(|(_, _, _, reasons)| reasons.is_empty()));
    for workers in [1, 3] {
        let bad = collect(Synthetic { damaged: Some(12), panicking: Some(17), ..whole() }, workers);
        for (index, (good, bad)) in good.iter().zip(&bad).enumerate() {
            if index != 1 {
                assert_eq!(good, bad);
                continue;
            }
            let (images, labels, device, reasons) = bad;
            for slot in 0..10 {
                let image = &images[slot * SHAPE.bytes()..][..SHAPE.bytes()];
                if [2, 7].contains(&slot) {
                    assert!(image.iter().all(|&byte| byte == 0));
                    assert_eq!((labels[slot], device[slot]), (Batch::SKIPPED, Default::default()));
                } else {
                    assert_eq!(image, &good.0[slot * SHAPE.bytes()..][..SHAPE.bytes()]);
                    assert_eq!((labels[slot], device[slot]), (good.1[slot], good.2[slot]));
                }
            }
            assert_eq!(reasons.len(), 2);
            assert!(reasons[0].contains("sample 12") && reasons[1].contains("sample 17"), "{reasons:?}");
        }
    }
}

#[test]
fn files_that_cannot_be_read_are_never_skipped() {
    let source = Arc::new(Files { unreadable: Some(3), ..files(6) });
    let mut pool =
        Pool::start(source as Arc<dyn EncodedSource>, cropping(16), requests(1, 6), skipping(2, 6)).unwrap();
    let error = pool.next().unwrap().err().unwrap().to_string();
    assert_eq!(error, "shard-3: cannot be read: disk on fire");
}

fn cropping(size: u32) -> Augmentation {
    let crop = RandomResizedCrop::default();
    Augmentation {
        seed: 3,
        flip: true,
        crop: Crop::RandomResized { crop, size: ImageSize::constant(size), filter: Filter::Bilinear },
        ..Augmentation::none()
    }
}

#[test]
fn sizes_follow_the_epoch_and_do_not_mix() {
    let size = ImageSize { from: 8, to: 16, until: 2, step: 4 };
    let crop = Crop::RandomResized { crop: RandomResizedCrop::default(), size, filter: Filter::Bicubic };
    let augmentation = Augmentation { crop, ..cropping(0) };
    let keys = |epochs: [u64; 3]| -> Vec<SampleKey> {
        epochs.map(|epoch| SampleKey { sample: epoch as u32, epoch, repetition: 0 }).to_vec()
    };
    let requests = vec![keys([0; 3]), keys([1; 3]), keys([2, 3, 7]), keys([0, 1, 0])];
    let source = Arc::new(Synthetic { samples: 10, ..Default::default() });
    let pool = start(source, augmentation, Box::new(requests.into_iter()), options(2, 3, 2)).unwrap();
    let outcomes: Vec<_> =
        pool.map(|batch| batch.map(|batch| batch.shape()).map_err(|e| e.to_string())).collect();
    let mixed = "request 3 mixes epochs whose images have different sizes; expected one size a batch";
    assert_eq!(outcomes, [Ok([3, 8, 8, 3]), Ok([3, 12, 12, 3]), Ok([3, 16, 16, 3]), Err(mixed.into())]);
}

/// JPEGs of one colour each, of all sizes.
struct Files {
    files: Vec<Vec<u8>>,
    unreadable: Option<usize>,
}

fn color(sample: usize) -> [u8; 3] {
    [40 + 7 * sample as u8, 200 - 5 * sample as u8, 90]
}

fn files(samples: usize) -> Files {
    let mut encoder = ImageEncoder::new(95).unwrap();
    let files = (0..samples).map(|sample| {
        let (width, height) = (20 + 13 * sample as u32, 90 - 3 * sample as u32);
        let rgb = color(sample).repeat((width * height) as usize);
        let mut file = Vec::new();
        encoder.encode(&rgb, width, height, &mut file).unwrap();
        file
    });
    Files { files: files.collect(), unreadable: None }
}

impl Labelled for Files {
    fn name(&self) -> &str {
        "made-up files"
    }

    fn len(&self) -> usize {
        self.files.len()
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn fingerprint(&self) -> &str {
        "0"
    }

    fn label(&self, sample: usize) -> u32 {
        sample as u32
    }
}

impl EncodedSource for Files {
    fn read<'a>(&'a self, sample: usize, _: &'a mut Vec<u8>) -> Result<&'a [u8], DataError> {
        if self.unreadable == Some(sample) {
            return Err(DataError::Io {
                path: "shard-3".into(),
                source: std::io::Error::other("disk on fire"),
            });
        }
        Ok(&self.files[sample])
    }

    fn seek_record(&self, _: usize) -> Option<&[u8]> {
        None
    }

    fn describe(&self, sample: usize) -> String {
        format!("{sample}.jpg")
    }
}

#[test]
fn files_become_squares_for_any_number_of_workers() {
    let source: Arc<dyn EncodedSource> = Arc::new(files(20));
    let run = |augmentation: Augmentation, workers| {
        bytes(
            Pool::start(Arc::clone(&source), augmentation, requests(2, 10), options(workers, 10, 2)).unwrap(),
        )
    };
    let middle = Augmentation::of_test(Crop::Center { shorter: 20, size: 16, filter: Filter::Bicubic });
    for augmentation in [cropping(16), middle] {
        let batches = run(augmentation.clone(), 1);
        for (sample, image) in batches.iter().flat_map(|(images, _)| images.chunks(16 * 16 * 3)).enumerate() {
            let worst =
                image.chunks(3).flat_map(|p| p.iter().zip(color(sample)).map(|(a, b)| a.abs_diff(b))).max();
            assert!(worst <= Some(3), "sample {sample} is off by {worst:?}");
        }
        assert_eq!(batches[1].1, (10..20).collect::<Vec<i64>>());
        for workers in [2, 7] {
            assert_eq!(run(augmentation.clone(), workers), batches, "{workers} workers");
        }
    }
}

#[test]
fn damaged_files_are_errors_with_their_place_or_skipped() {
    let mut damaged = files(6);
    let half = damaged.files[4].len() / 2;
    damaged.files[4].truncate(half);
    damaged.files[5] = b"<html>not found</html>".to_vec();
    let source: Arc<dyn EncodedSource> = Arc::new(damaged);
    let middle = Augmentation::of_test(Crop::Center { shorter: 16, size: 16, filter: Filter::Bilinear });
    let mut pool =
        Pool::start(Arc::clone(&source), middle.clone(), requests(1, 6), options(2, 6, 1)).unwrap();
    let error = pool.next().unwrap().err().unwrap().to_string();
    assert!(error.starts_with("made-up files: sample 4 cannot be decoded: 4.jpg: JPEG"), "{error}");
    let mut pool = Pool::start(source, middle, requests(1, 6), skipping(2, 6)).unwrap();
    let batch = pool.next().unwrap().unwrap();
    assert_eq!(batch.labels(), [0, 1, 2, 3, Batch::SKIPPED, Batch::SKIPPED]);
    assert_eq!(batch.skipped().len(), 2);
    assert!(batch.skipped()[1].to_string().contains("5.jpg: starts with"));
}

#[test]
fn what_does_not_fit_the_images_is_refused() {
    let source: Arc<dyn EncodedSource> = Arc::new(files(1));
    let refusal = |augmentation| {
        Pool::start(Arc::clone(&source), augmentation, requests(1, 1), options(1, 1, 1))
            .err()
            .unwrap()
            .to_string()
    };
    assert!(refusal(Augmentation::none()).contains("must be scaled"));
    let center =
        |shorter, size| Augmentation::of_test(Crop::Center { shorter, size, filter: Filter::Bilinear });
    assert!(
        refusal(center(64, 65)).contains("size of the centre crop is 65; expected at most the 64 pixels")
    );
    assert!(refusal(cropping(0)).contains("image size is 0; expected 1 to 8192"));
}

#[test]
fn the_time_of_every_stage_is_measured() {
    let source: Arc<dyn EncodedSource> = Arc::new(files(10));
    let mut pool = Pool::start(source, cropping(16), requests(1, 10), options(2, 10, 1)).unwrap();
    pool.next().unwrap().unwrap();
    let times = pool.stage_times();
    assert_eq!(times.samples, 10);
    assert!(times.decode > Duration::ZERO && times.resize > Duration::ZERO, "{times:?}");
}
