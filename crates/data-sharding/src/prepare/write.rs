//! From a listing to a finished folder of shards, going on where an earlier attempt was interrupted.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::listing::{Listing, Sample};
use super::options::PrepareOptions;
use super::plan::Plan;
use super::resample::Resampler;
use crate::atomic::{self, unwritable};
use crate::error::DataError;
use crate::image_size::{HeaderReader, ImageFormat};
use crate::progress::Progress;
use crate::shards::archive::ShardWriter;
use crate::shards::build::{self, Build, Lock, remove};
use crate::shards::manifest::{self, Manifest, UNFINISHED};

/// What is being made in a folder, until its manifest says it.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct State {
    plan: String,
}

/// Makes the shards of `listing` in `folder`.
pub(crate) fn write(
    listing: &Listing,
    folder: &Path,
    options: &PrepareOptions,
    progress: &Progress,
) -> Result<(), DataError> {
    fs::create_dir_all(folder).map_err(unwritable(folder))?;
    let _lock = Lock::wait(folder)?;
    let plan = Plan::new(listing, options)?;
    let build = Build {
        folder,
        shards: plan.shard_names(),
        classes: Some(listing.classes.clone()),
        origin: Some(plan.origin.clone()),
        known: None,
        seek: options.seek_index,
        threads: options.threads.max(1),
        progress,
    };
    if !claim(folder, &plan)? {
        progress.stage(format!("{} to {}", listing.source, folder.display()), 2 * plan.bytes(listing));
        build.run(|shard| {
            write_shard(listing, &plan, shard, &folder.join(&build.shards[shard]), options, progress)
        })?;
        progress.finish();
    }
    build.tidy()?;
    remove(&folder.join(UNFINISHED))?;
    // A data set that was finished without a seek index may get one now.
    if options.seek_index { build::index_locked(folder, true, build.threads, progress) } else { Ok(()) }
}

/// Whether the folder already holds all of the plan. A folder with anything else in it is refused.
fn claim(folder: &Path, plan: &Plan) -> Result<bool, DataError> {
    let other = |what: &str| DataError::Invalid {
        path: folder.into(),
        problem: format!("holds {what}"),
        expected: "an empty folder, or an earlier attempt with the same source and options".into(),
    };
    if manifest::exists(folder) {
        let (manifest, _) = Manifest::read(folder)?;
        return match manifest.origin {
            Some(origin) if origin == plan.origin => Ok(true),
            _ => Err(other("another data set")),
        };
    }
    let state = State { plan: plan.origin.plan.clone() };
    let path = folder.join(UNFINISHED);
    match fs::read(&path) {
        Ok(text) if serde_json::from_slice::<State>(&text).is_ok_and(|earlier| earlier == state) => Ok(false),
        Ok(_) => Err(other("an unfinished data set of another source or with other options")),
        Err(_) => {
            let mut entries = fs::read_dir(folder).map_err(unwritable(folder))?.flatten();
            if entries.any(|entry| !entry.file_name().to_string_lossy().starts_with('.')) {
                return Err(other("other files"));
            }
            let text = serde_json::to_vec(&state).map_err(|e| unwritable(&path)(e.into()))?;
            atomic::write(&path, &text)?;
            Ok(false)
        }
    }
}

fn write_shard(
    listing: &Listing,
    plan: &Plan,
    shard: usize,
    path: &Path,
    options: &PrepareOptions,
    progress: &Progress,
) -> Result<(), DataError> {
    // A shard gets its name only when it is complete.
    if let Ok(metadata) = fs::metadata(path) {
        progress.advance(metadata.len());
        return Ok(());
    }
    let mut writer = ShardWriter::create(path)?;
    let mut headers = HeaderReader::new()?;
    let mut resampler = options.cap.map(Resampler::new).transpose()?;
    let mut image = Vec::new();
    for (index, sample) in plan.samples(listing, shard) {
        listing.read(sample, &mut image)?;
        progress.advance(sample.length);
        let bad = |problem: String| DataError::Invalid {
            path: listing.path_of(sample),
            problem,
            expected: "a whole JPEG or PNG file".into(),
        };
        let stored = match headers.read(&image) {
            None => Err(bad("is no image".into())),
            Some((format, width, height)) => match &mut resampler {
                None => Ok((format, &image[..])),
                Some(resampler) => match resampler.scale(&image, width, height) {
                    Ok(None) => Ok((format, &image[..])),
                    Ok(Some(scaled)) => Ok((ImageFormat::Jpeg, scaled)),
                    Err(reason) => Err(bad(format!("cannot be decoded: {reason}"))),
                },
            },
        };
        match stored {
            Ok((format, bytes)) => writer.push(&key(index, sample), format, bytes, sample.label)?,
            Err(error) if options.skip_bad => progress.warn(&format!("left out: {error}")),
            Err(error) => return Err(error),
        }
    }
    writer.commit()
}

/// Name of a sample in its shard: its index in the listing, which makes it unique, and what can be kept of its own
/// name. Other tools cut names at dots, and tar's header has room for 100 bytes.
fn key(index: u32, sample: &Sample) -> String {
    let base = sample.name.rsplit('/').next().unwrap_or_default();
    let stem = base.rsplit_once('.').map_or(base, |(stem, _)| stem);
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '_' };
    let stem: String = stem.chars().take(80).map(plain).collect();
    format!("{index:08}-{stem}")
}
