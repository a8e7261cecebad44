//! Reads everything that belongs to a data set of shards and names all that is wrong, instead of the first thing.
//! Repairs nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::archive::{self, Scan};
use super::build;
use super::manifest::{self, MANIFEST, Manifest, SAMPLE_INDEX, SEEK_INDEX, ShardEntry};
use super::record::{Record, SampleIndex};
use super::seek_index::SeekIndex;
use crate::error::DataError;
use crate::jpeg;
use crate::parallel;
use crate::progress::Progress;

/// So many samples of a shard, or seek records, are named one by one.
const NAMED: usize = 5;

/// What is wrong with the data set in `folder`, a sentence each.
pub(crate) fn verify(folder: &Path, progress: &Progress) -> Result<Vec<String>, DataError> {
    let mut problems = Vec::new();
    if !manifest::exists(folder) {
        let sentence = "has no manifest, so it is unfinished or was made elsewhere; `wrn-dist data prepare` finishes it, \
                        `wrn-dist data index` indexes shards made elsewhere";
        return Ok(vec![format!("{}: {sentence}", folder.join(MANIFEST).display())]);
    }
    let manifest = match Manifest::read(folder) {
        Ok((manifest, _)) => manifest,
        Err(error) => return Ok(vec![error.to_string()]),
    };
    let listed: BTreeSet<&String> = manifest.shards.iter().map(|shard| &shard.file).collect();
    for name in build::find_shards(folder)? {
        if !listed.contains(&name) {
            problems
                .push(format!("{}: is a shard that the manifest does not list", folder.join(name).display()));
        }
    }

    let index = open_index(folder, &manifest).map_err(|error| problems.push(error)).ok();
    let seek = index.as_ref().and_then(|index| open_seek_index(folder, index, &mut problems));

    let bytes = manifest.shards.iter().map(|shard| shard.bytes).sum();
    progress.stage(format!("verifying {}", folder.display()), bytes);
    let found: Vec<Mutex<Found>> = manifest.shards.iter().map(|_| Mutex::default()).collect();
    let mut first = Vec::with_capacity(manifest.shards.len());
    let mut count = 0_usize;
    for shard in &manifest.shards {
        first.push(count);
        count = count.saturating_add(usize::try_from(shard.samples).unwrap_or(usize::MAX));
    }
    parallel::for_each(
        manifest.shards.len(),
        parallel::cores(),
        || (),
        |(), number| {
            let shard = &manifest.shards[number];
            let indices = (index.as_ref(), seek.as_ref());
            let this = verify_shard(folder, shard, number, indices, first[number], progress);
            *found[number].lock().unwrap_or_else(PoisonError::into_inner) = this;
            Ok(())
        },
    )?;
    progress.finish();
    let mut other_records = Vec::new();
    for found in found {
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        problems.extend(found.problems);
        other_records.extend(found.other_records);
    }
    if !other_records.is_empty() {
        problems.push(format!(
            "{}: its records are not those of the images of {}; remove it, and `wrn-dist data index` makes it anew",
            folder.join(SEEK_INDEX).display(),
            some_of("sample", &other_records)
        ));
    }
    Ok(problems)
}

/// What is wrong with one shard.
#[derive(Default)]
struct Found {
    problems: Vec<String>,
    /// Samples whose image gives another seek record than the index has.
    other_records: Vec<usize>,
}

fn open_index(folder: &Path, manifest: &Manifest) -> Result<SampleIndex, String> {
    let path = folder.join(&manifest.index.file);
    let sizes: Vec<u64> = manifest.shards.iter().map(|shard| shard.bytes).collect();
    let index =
        SampleIndex::open(&path, &sizes, manifest.classes.len()).map_err(|error| error.to_string())?;
    let checksum = format!("{:032x}", index.checksum());
    if checksum != manifest.index.checksum || index.len() as u64 != manifest.samples {
        return Err(format!(
            "{}: is the index of another data set: {} samples with checksum {checksum}; expected {} with {}",
            path.display(),
            index.len(),
            manifest.samples,
            manifest.index.checksum
        ));
    }
    Ok(index)
}

/// Opens the seek index, if there is one, and checks each record against its checksum.
fn open_seek_index(folder: &Path, index: &SampleIndex, problems: &mut Vec<String>) -> Option<SeekIndex> {
    let path = folder.join(SEEK_INDEX);
    if matches!(path.try_exists(), Ok(false)) {
        return None;
    }
    match SeekIndex::open(&path, index.len(), index.checksum()) {
        Err(error) => {
            problems.push(error.to_string());
            None
        }
        Ok(seek) => {
            let damaged: Vec<usize> = (0..index.len()).filter(|&sample| seek.get(sample).is_err()).collect();
            if !damaged.is_empty() {
                problems.push(format!(
                    "{}: damaged records of {}",
                    path.display(),
                    some_of("sample", &damaged)
                ));
            }
            Some(seek)
        }
    }
}

fn verify_shard(
    folder: &Path,
    shard: &ShardEntry,
    number: usize,
    (index, seek): (Option<&SampleIndex>, Option<&SeekIndex>),
    first: usize,
    progress: &Progress,
) -> Found {
    let path = folder.join(&shard.file);
    let (mut problems, mut other_records) = (Vec::new(), Vec::new());
    let mut problem = |sentence: String| problems.push(format!("{}: {sentence}", path.display()));
    let mut sample = first;
    // Checksums in the seek index cannot tell who wrote it, and a record that is whole is believed.
    let compare = |image: &[u8]| {
        if let Some(Ok(record)) = seek.map(|seek| seek.get(sample))
            && record != jpeg::seek::build(image).ok().flatten().as_deref()
        {
            other_records.push(sample);
        }
        sample = sample.saturating_add(1);
        Ok(())
    };
    match fs::metadata(&path) {
        Err(error) => problem(format!("cannot be read: {error}")),
        Ok(metadata) => {
            if metadata.len() != shard.bytes {
                problem(format!(
                    "has {} bytes; expected {}, as the manifest says",
                    metadata.len(),
                    shard.bytes
                ));
            }
            match archive::scan(&path, number as u32, compare, |bytes| progress.advance(bytes)) {
                Err(error) => problems.push(error.to_string()),
                Ok(scan) => {
                    let checksum = format!("{:032x}", scan.checksum);
                    if checksum != shard.checksum {
                        problem(format!("has the checksum {checksum}; expected {}", shard.checksum));
                        // Then it is the images that are wrong.
                        other_records.clear();
                    }
                    if scan.records.len() as u64 != shard.samples {
                        let found = scan.records.len();
                        problem(format!(
                            "holds {found} samples; expected {}, as the manifest says",
                            shard.samples
                        ));
                    }
                    if let Some(index) = index {
                        let expected = |at: usize| first.checked_add(at).and_then(|sample| index.get(sample));
                        let wrong = differences(&scan, expected);
                        if !wrong.is_empty() {
                            let wrong: Vec<usize> = wrong.into_iter().map(|at| first + at).collect();
                            let samples = some_of("sample", &wrong);
                            problem(format!("does not have what {SAMPLE_INDEX} says of {samples}"));
                        }
                    }
                }
            }
        }
    }
    Found { problems, other_records }
}

/// Samples of a shard, counted within it, whose record is not as `expected`.
fn differences(scan: &Scan, expected: impl Fn(usize) -> Option<Record>) -> Vec<usize> {
    let records = scan.records.iter().enumerate();
    records.filter(|(at, record)| expected(*at).as_ref() != Some(*record)).map(|(at, _)| at).collect()
}

/// A few of many, in words.
fn some_of(what: &str, numbers: &[usize]) -> String {
    let named: Vec<String> = numbers.iter().take(NAMED).map(usize::to_string).collect();
    let more =
        if numbers.len() > NAMED { format!(" and {} more", numbers.len() - NAMED) } else { String::new() };
    format!("{what} {}{more}", named.join(", "))
}
