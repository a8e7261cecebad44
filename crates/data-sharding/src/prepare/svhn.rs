//! SVHN's cropped digits from MATLAB's files to records of CIFAR-10's form. `X` holds each image as planes R, G, B, each
//! column by column, which are turned into rows; label 10 is the digit 0.

use std::io::Write;
use std::path::Path;

use crate::atomic::AtomicFile;
use crate::error::DataError;
use crate::mat::MatFile;
use crate::progress::Progress;

const SIDE: usize = 32;
const CHANNELS: usize = 3;
const PLANE: usize = SIDE * SIDE;
const IMAGE: usize = CHANNELS * PLANE;

/// Writes the images and labels of the `.mat` file `from` as records to `to`.
pub(crate) fn convert(from: &Path, to: &Path, progress: &Progress) -> Result<(), DataError> {
    let labels = read_labels(from)?;
    let mut file = MatFile::open(from)?;
    while let Some(matrix) = file.next()? {
        if matrix.name != "X" {
            continue;
        }
        let expected = [SIDE, SIDE, CHANNELS, labels.len()].map(|side| side as u64);
        if matrix.dimensions != expected {
            let problem = format!("X is {:?}", matrix.dimensions);
            return Err(invalid(from, &problem, &format!("{expected:?}, as y has {} labels", labels.len())));
        }
        let mut pixels = matrix.numbers()?;
        if !pixels.are_bytes() {
            return Err(invalid(from, "X does not hold unsigned bytes", "uint8"));
        }
        progress.stage(format!("converting {}", from.display()), (labels.len() * IMAGE) as u64);
        let mut output = AtomicFile::create(to)?;
        let (mut columns, mut record) = ([0; IMAGE], [0; 1 + IMAGE]);
        for &label in &labels {
            pixels.bytes(&mut columns)?;
            record[0] = label;
            for (rows, columns) in record[1..].chunks_exact_mut(PLANE).zip(columns.chunks_exact(PLANE)) {
                for (row, rows) in rows.chunks_exact_mut(SIDE).enumerate() {
                    rows.iter_mut()
                        .enumerate()
                        .for_each(|(column, pixel)| *pixel = columns[row + SIDE * column]);
                }
            }
            output.write_all(&record).map_err(output.failed())?;
            progress.advance(IMAGE as u64);
        }
        pixels.finish()?;
        progress.finish();
        return output.commit();
    }
    Err(invalid(from, "has no variable X", "the images as X"))
}

/// Labels 0 to 9.
fn read_labels(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut file = MatFile::open(path)?;
    while let Some(matrix) = file.next()? {
        if matrix.name != "y" {
            continue;
        }
        let mut numbers = matrix.numbers()?;
        let mut labels = Vec::new();
        for sample in 0..numbers.count {
            let label = numbers.number()?;
            if !(1.0..=10.0).contains(&label) || label.fract() != 0.0 {
                return Err(invalid(
                    path,
                    &format!("label {label} of sample {sample} is out of range"),
                    "1 to 10",
                ));
            }
            labels.push(if label == 10.0 { 0 } else { label as u8 });
        }
        if labels.is_empty() {
            return Err(DataError::Empty { path: path.into() });
        }
        numbers.finish()?;
        return Ok(labels);
    }
    Err(invalid(path, "has no variable y", "the labels as y"))
}

fn invalid(path: &Path, problem: &str, expected: &str) -> DataError {
    DataError::Invalid { path: path.into(), problem: problem.into(), expected: expected.into() }
}
