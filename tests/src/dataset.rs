//! A small data set in Fashion-MNIST's own format, whose classes can be learned.

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

const SIDE: usize = 28;
const CLASSES: usize = 10;

/// Sizes of the data set.
#[derive(Clone, Copy, Debug)]
pub struct FashionMnist {
    /// Training images.
    pub train: usize,
    /// Test images.
    pub test: usize,
}

/// Writes the four IDX files below `folder`, compressed as Debian's package has them.
pub fn write_fashion_mnist(folder: &Path, sizes: FashionMnist) {
    for (prefix, count, first) in [("train", sizes.train, 0), ("t10k", sizes.test, 1_000_000)] {
        let mut images = header(&[count as u32, SIDE as u32, SIDE as u32], 3);
        let mut labels = header(&[count as u32], 1);
        for sample in first..first + count {
            let label = sample % CLASSES;
            labels.push(label as u8);
            images.extend((0..SIDE * SIDE).map(|pixel| shade(label, sample, pixel)));
        }
        write_gzip(&folder.join(format!("{prefix}-images-idx3-ubyte.gz")), &images);
        write_gzip(&folder.join(format!("{prefix}-labels-idx1-ubyte.gz")), &labels);
    }
}

/// IDX: two zero bytes, type 8 (unsigned byte), number of dimensions, then each as big-endian u32.
fn header(dimensions: &[u32], count: u8) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, count];
    bytes.extend(dimensions.iter().flat_map(|side| side.to_be_bytes()));
    bytes
}

/// A bright bar whose place depends on the class, over noise that depends on the sample.
fn shade(label: usize, sample: usize, pixel: usize) -> u8 {
    let (row, column) = (pixel / SIDE, pixel % SIDE);
    let bar = if label.is_multiple_of(2) { row } else { column };
    let bright = bar / 5 == label / 2;
    let mut noise = (sample * 1_000_003 + pixel) as u64;
    noise = (noise ^ (noise >> 15)).wrapping_mul(0x2c1b_3c6d_9b97_a4c5);
    let noise = (noise >> 58) as u8;
    if bright { 180 + noise } else { noise }
}

fn write_gzip(path: &Path, bytes: &[u8]) {
    let file = std::fs::File::create(path).expect("the test's folder is writable");
    let mut encoder = GzEncoder::new(file, Compression::fast());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish().map(drop))
        .expect("the test's folder is writable");
}
