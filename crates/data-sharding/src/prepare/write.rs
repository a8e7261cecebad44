//! From a listing to a finished folder of shards, going on where an earlier attempt was interrupted.

use std::fs;
use std::path::Path;

use super::listing::{Listing, Sample};
use super::options::PrepareOptions;
use super::plan::Plan;
use super::resample::Resampler;
use crate::atomic::{self, unwritable};
use crate::error::DataError;
use crate::image_size::{ImageFormat, ImageProbe};
use crate::progress::Progress;
use crate::shards::archive::ShardWriter;
use crate::shards::build::{self, Build, Lock, remove};
use crate::shards::manifest::{self, Manifest, Origin, UNFINISHED};

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
    // A data set that was finished earlier may have been damaged since, or get the seek index only now.
    build::index_locked(folder, options.seek_index, build.threads, progress)
}

/// Whether the folder already holds all of the plan. A folder with anything else in it is refused.
fn claim(folder: &Path, plan: &Plan) -> Result<bool, DataError> {
    let other = |what: String| DataError::Invalid {
        path: folder.into(),
        problem: format!("holds {what}"),
        expected: "an empty folder, or an earlier attempt with the same source and options".into(),
    };
    // Whatever was made while bad files were an error has none left out.
    let fits = |earlier: &Origin| [&plan.origin, &plan.without_skipping].contains(&earlier);
    if manifest::exists(folder) {
        let (manifest, _) = Manifest::read(folder)?;
        return match manifest.origin {
            Some(earlier) if fits(&earlier) => Ok(true),
            earlier => Err(other(format!("another data set{}", differences(earlier.as_ref(), &plan.origin)))),
        };
    }
    let path = folder.join(UNFINISHED);
    match fs::read(&path) {
        Ok(text) => {
            let earlier = serde_json::from_slice::<Origin>(&text).ok();
            if !earlier.as_ref().is_some_and(fits) {
                let what = "an unfinished data set of another source or with other options";
                return Err(other(format!("{what}{}", differences(earlier.as_ref(), &plan.origin))));
            }
        }
        Err(_) => {
            let mut entries = fs::read_dir(folder).map_err(unwritable(folder))?.flatten();
            if entries.any(|entry| !entry.file_name().to_string_lossy().starts_with('.')) {
                return Err(other("other files".into()));
            }
        }
    }
    let text = serde_json::to_vec(&plan.origin).map_err(|e| unwritable(&path)(e.into()))?;
    atomic::write(&path, &text)?;
    Ok(false)
}

/// What sets an earlier plan apart from the one of now, by the names of the options, in parentheses.
fn differences(earlier: Option<&Origin>, now: &Origin) -> String {
    let Some(earlier) = earlier else { return String::new() };
    let mib = |origin: &Origin| (origin.shard_bytes >> 20).to_string();
    let parts = [
        ("its source", earlier.source.clone(), now.source.clone()),
        ("--seed", earlier.seed.to_string(), now.seed.to_string()),
        ("--shard-mib", mib(earlier), mib(now)),
        ("--cap-shorter, --cap-longer and --quality", earlier.images.clone(), now.images.clone()),
    ];
    let named: Vec<String> = parts
        .into_iter()
        .filter(|(_, then, now)| then != now)
        .map(|(name, then, now)| format!("{name}: then {then}, now {now}"))
        .collect();
    match named.is_empty() {
        true => " (made with --skip-bad, or its source has changed)".into(),
        false => format!(" ({})", named.join("; ")),
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
    let mut probe = ImageProbe::new()?;
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
        let stored = probe.header(&image).and_then(|(format, width, height)| {
            let scaled = match &mut resampler {
                Some(resampler) => resampler.scale(&image, width, height),
                None => Ok(None),
            };
            match scaled.map_err(|reason| format!("cannot be decoded: {reason}"))? {
                Some(scaled) => Ok((ImageFormat::Jpeg, scaled)),
                None => probe.decode(&image, width, height).map(|()| (format, &image[..])),
            }
        });
        match stored.map_err(bad) {
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
