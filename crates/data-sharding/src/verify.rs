//! What `wrn-dist data verify` checks in a folder: one half of a data set, or all halves in folders below it.

use std::path::Path;

use crate::error::DataError;
use crate::prepare::Files;
use crate::progress::Progress;
use crate::shards;
use crate::text::printable;

/// Reads everything that belongs to the prepared data set in `folder` and gives a sentence for each thing that is
/// wrong; none where all is well.
///
/// # Errors
/// If the folder itself cannot be read, or holds no data set.
pub fn verify(folder: &Path, progress: &Progress) -> Result<Vec<String>, DataError> {
    let mut problems = Vec::new();
    if let Some(files) = Files::read(folder) {
        problems = files.verify(folder, progress);
    } else {
        for half in shards::halves(folder)? {
            problems.extend(shards::verify::verify(&half, progress)?);
        }
    }
    Ok(problems.iter().map(|problem| printable(problem).into_owned()).collect())
}
