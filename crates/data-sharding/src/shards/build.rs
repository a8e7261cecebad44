//! From shards to a data set: scans them in parallel and joins what is found into the sample index, the seek index and
//! the manifest. Whatever was scanned before an interruption is not scanned again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::fragment::{self, Fragment};
use super::manifest::{self, FileEntry, LOCK, Manifest, Origin, SAMPLE_INDEX, SEEK_INDEX, ShardEntry};
use super::record::SampleIndex;
use super::record::{HEADER_BYTES, RECORD_BYTES, SampleIndexWriter};
use super::seek_index::{SeekIndex, SeekIndexWriter};
use crate::atomic::unwritable;
use crate::error::DataError;
use crate::file;
use crate::own_file;
use crate::parallel;
use crate::progress::Progress;

/// A data set to be made from shards.
pub(crate) struct Build<'a> {
    pub(crate) folder: &'a Path,
    /// File names of the shards, in order.
    pub(crate) shards: Vec<String>,
    /// Names by label; none to number them, from 0 to the highest label found.
    pub(crate) classes: Option<Vec<String>>,
    pub(crate) origin: Option<Origin>,
    /// What the shards must still be, where a manifest says so.
    pub(crate) known: Option<Vec<ShardEntry>>,
    /// Whether the seek index is wanted.
    pub(crate) seek: bool,
    pub(crate) threads: usize,
    pub(crate) progress: &'a Progress,
}

impl Build<'_> {
    /// `make` is called with the number of each shard, and makes it where it is missing. The caller holds the
    /// folder's lock. The manifest is written last: with it, the data set is complete.
    pub(crate) fn run(&self, make: impl Fn(usize) -> Result<(), DataError> + Sync) -> Result<(), DataError> {
        parallel::for_each(
            self.shards.len(),
            self.threads,
            || (),
            |(), shard| {
                make(shard)?;
                let path = self.shard(shard);
                if Fragment::read(&path, self.seek).is_none() {
                    let advance = |bytes| self.progress.advance(bytes);
                    Fragment::of_shard(&path, shard as u32, self.seek, advance)?.write(&path)?;
                } else if let Ok(metadata) = fs::metadata(&path) {
                    self.progress.advance(metadata.len());
                }
                Ok(())
            },
        )?;
        self.join()?;
        self.tidy()
    }

    fn shard(&self, shard: usize) -> PathBuf {
        self.folder.join(&self.shards[shard])
    }

    fn fragment(&self, shard: usize) -> Result<Fragment, DataError> {
        let path = self.shard(shard);
        match Fragment::read(&path, self.seek) {
            Some(fragment) => Ok(fragment),
            None => Fragment::of_shard(&path, shard as u32, self.seek, |_| ()),
        }
    }

    fn join(&self) -> Result<(), DataError> {
        let index_path = self.folder.join(SAMPLE_INDEX);
        let mut index = SampleIndexWriter::create(&index_path)?;
        let mut shards = Vec::with_capacity(self.shards.len());
        let (mut samples, mut highest, mut labels) = (0, None, BTreeSet::new());
        for (number, name) in self.shards.iter().enumerate() {
            let fragment = self.fragment(number)?;
            for record in &fragment.records {
                let mut record = *record;
                record.shard = number as u32;
                highest = highest.max(Some((record.label, number)));
                labels.insert(record.label);
                index.push(&record)?;
            }
            samples += fragment.records.len();
            let entry = ShardEntry {
                file: name.clone(),
                bytes: fragment.bytes,
                samples: fragment.records.len() as u64,
                checksum: format!("{:032x}", fragment.checksum),
            };
            if self.known.as_ref().is_some_and(|known| known[number] != entry) {
                return Err(DataError::Invalid {
                    path: self.shard(number),
                    problem: "is not what the manifest says".into(),
                    expected: "an undamaged shard; `wrn-dist data verify` says more".into(),
                });
            }
            shards.push(entry);
        }
        let Some((highest_label, of_shard)) = highest else {
            return Err(DataError::Empty { path: self.folder.into() });
        };
        if u32::try_from(samples).is_err() {
            return Err(self.invalid(format!("holds {samples} samples"), "fewer than 2^32"));
        }
        let classes = match &self.classes {
            Some(names) => names.clone(),
            None => {
                let gaps = gaps(highest_label, &labels).map_err(|(problem, expected)| {
                    DataError::Invalid { path: self.shard(of_shard), problem, expected }
                })?;
                if let Some(sentence) = gaps {
                    self.progress.warn(&format!("{}: {sentence}", self.folder.display()));
                }
                (0..=highest_label).map(|label| label.to_string()).collect()
            }
        };
        if highest_label as usize >= classes.len() {
            let expected = format!("labels of its {} classes", classes.len());
            return Err(self.invalid(format!("has the label {highest_label}"), &expected));
        }
        let checksum = index.commit(samples as u64, shards.len() as u32, classes.len() as u32)?;
        if self.seek {
            let mut seek = SeekIndexWriter::create(&self.folder.join(SEEK_INDEX), samples)?;
            for number in 0..self.shards.len() {
                let Some(records) = self.fragment(number)?.seek else { continue };
                let mut rest = &records.bytes[..];
                for &length in &records.lengths {
                    let (record, after) = rest.split_at(length as usize);
                    seek.push(record)?;
                    rest = after;
                }
            }
            seek.commit(checksum)?;
        }
        let index = FileEntry {
            file: SAMPLE_INDEX.into(),
            bytes: (HEADER_BYTES + RECORD_BYTES * samples) as u64,
            checksum: format!("{checksum:032x}"),
        };
        Manifest::new(self.origin.clone(), classes, index, shards).write(self.folder)
    }

    /// Removes what only an interrupted run needs.
    pub(crate) fn tidy(&self) -> Result<(), DataError> {
        for shard in 0..self.shards.len() {
            remove(&fragment::path_of(&self.shard(shard)))?;
        }
        Ok(())
    }

    fn invalid(&self, problem: String, expected: &str) -> DataError {
        DataError::Invalid { path: self.folder.into(), problem, expected: expected.into() }
    }
}

/// Shards made elsewhere bring no class names; numbers stand in for them up to this.
const LARGEST_NUMBERED_CLASS: u32 = 1 << 20;
/// From here on a label is taken for a stray one, unless most of those below it occur. No published set of images has
/// more classes.
const FIRST_STRAY_LABEL: u32 = 1 << 16;

/// What is to be said where not all labels up to the highest occur: each is a class, and an output of the network. An
/// error, with what was expected, where that cannot be meant.
fn gaps(highest: u32, labels: &BTreeSet<u32>) -> Result<Option<String>, (String, String)> {
    let has = format!("has the label {highest}");
    if highest >= LARGEST_NUMBERED_CLASS {
        return Err((has, format!("labels below {LARGEST_NUMBERED_CLASS}")));
    }
    let (classes, found) = (highest as usize + 1, labels.len());
    let Some(lowest) = (0..=highest).find(|label| !labels.contains(label)) else { return Ok(None) };
    if highest >= FIRST_STRAY_LABEL && found < classes / 2 {
        let problem = format!("{has} where the data set has {found} different label(s)");
        return Err((problem, "the numbers of the classes, from 0 on without large gaps".into()));
    }
    Ok(Some(format!(
        "labels go up to {highest}, but {} of these {classes} classes have no sample, the first is {lowest}; the \
         network gets outputs for them too",
        classes - found
    )))
}

/// Removes a file, which may be missing.
pub(crate) fn remove(path: &Path) -> Result<(), DataError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(unwritable(path)(e)),
        _ => Ok(()),
    }
}

/// Keeps other processes from making the same data set. Released, and its file removed, when dropped.
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits until no other process works in `folder`.
    pub(crate) fn wait(folder: &Path) -> Result<Self, DataError> {
        let path = folder.join(LOCK);
        loop {
            let file = own_file::open_to_append(&path).map_err(unwritable(&path))?;
            // Some network file systems have no locks; there it is up to the user not to start two at once.
            let _ = file.lock();
            // The one who held it may have removed the file that was opened here.
            if same_file(&file, &path) {
                return Ok(Lock { path, _file: file });
            }
        }
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The shards in a folder, by name, ordered.
pub(crate) fn find_shards(folder: &Path) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| file::unreadable(folder, e))? {
        let name = entry.map_err(|e| file::unreadable(folder, e))?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.ends_with(".tar") && !name.starts_with('.')) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether the sample index, and if it is wanted the seek index, are there, whole, and belong to the manifest.
fn has_indices(folder: &Path, manifest: &Manifest, seek: bool) -> bool {
    let sizes: Vec<u64> = manifest.shards.iter().map(|shard| shard.bytes).collect();
    SampleIndex::open(&folder.join(SAMPLE_INDEX), &sizes, manifest.classes.len()).is_ok_and(|index| {
        format!("{:032x}", index.checksum()) == manifest.index.checksum
            && (!seek || SeekIndex::open(&folder.join(SEEK_INDEX), index.len(), index.checksum()).is_ok())
    })
}

/// Makes indices and manifest for shards that were made elsewhere, or anew with a seek index for any shards.
pub(crate) fn index(folder: &Path, seek: bool, threads: usize, progress: &Progress) -> Result<(), DataError> {
    let _lock = Lock::wait(folder)?;
    index_locked(folder, seek, threads, progress)
}

/// As [`index`], for callers who hold the lock.
pub(crate) fn index_locked(
    folder: &Path,
    seek: bool,
    threads: usize,
    progress: &Progress,
) -> Result<(), DataError> {
    if manifest::is_unfinished(folder) {
        return Err(DataError::Invalid {
            path: folder.into(),
            problem: "holds an unfinished data set".into(),
            expected: "a finished one; `wrn-dist data prepare` as before goes on".into(),
        });
    }
    // Another process may have done it meanwhile.
    let made = manifest::exists(folder).then(|| Manifest::read(folder)).transpose()?;
    if let Some((manifest, _)) = &made {
        manifest.check_sizes(folder)?;
        if has_indices(folder, manifest, seek) {
            return Ok(());
        }
    }
    let shards = match &made {
        Some((manifest, _)) => manifest.shards.iter().map(|shard| shard.file.clone()).collect(),
        None => find_shards(folder)?,
    };
    if shards.is_empty() {
        return Err(super::missing(folder));
    }
    let bytes =
        shards.iter().filter_map(|name| fs::metadata(folder.join(name)).ok()).map(|data| data.len()).sum();
    progress.stage(format!("indexing {}", folder.display()), bytes);
    let (origin, classes, known) = match made {
        Some((manifest, _)) => (manifest.origin, Some(manifest.classes), Some(manifest.shards)),
        None => (None, None, None),
    };
    let build = Build { folder, shards, classes, origin, known, seek, threads, progress };
    build.run(|_| Ok(()))?;
    progress.finish();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_with_gaps_are_told_and_stray_ones_refused() {
        let labels = |labels: &[u32]| {
            gaps(*labels.iter().max().unwrap(), &labels.iter().copied().collect())
                .map(|said| said.unwrap_or_default())
                .map_err(|(problem, _)| problem)
        };
        assert_eq!(labels(&[1, 0, 2]), Ok(String::new()));
        for (few, said) in
            [(&[0, 9][..], "8 of these 10 classes have no sample, the first is 1"), (&[1], "the first is 0")]
        {
            let sentence = labels(few).unwrap();
            assert!(sentence.contains(said), "{sentence}");
        }
        for stray in [1 << 16, (1 << 20) - 1, 1 << 20, u32::MAX] {
            let sentence = labels(&[0, 1, stray]).unwrap_err();
            assert!(sentence.contains(&format!("has the label {stray}")), "{sentence}");
        }
        assert!(labels(&[0, 1, (1 << 16) - 1]).unwrap().contains("65533 of these 65536"));
        let many: Vec<u32> = (0..1 << 17).filter(|label| label % 3 != 0).collect();
        assert!(labels(&many).is_ok(), "most of them occur");
    }
}
