//! What a user can ask of `prepare`.

/// How a data set is prepared.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Decides the order in which samples lie in the shards.
    pub seed: u64,
    /// Size in bytes at which a new shard is begun.
    pub shard_bytes: u64,
    /// Threads that read, check and write.
    pub threads: usize,
    /// Refuse archives that are not the published ones, instead of warning.
    pub strict: bool,
    /// Leave out files that are no JPEG or PNG, with a warning each, instead of stopping at the first.
    pub skip_bad: bool,
}

impl Default for PrepareOptions {
    /// Seed 0, shards of 512 MiB, as many threads as cores.
    fn default() -> Self {
        PrepareOptions {
            seed: 0,
            shard_bytes: 512 << 20,
            threads: crate::parallel::cores(),
            strict: false,
            skip_bad: false,
        }
    }
}

impl PrepareOptions {
    /// What is done to images, for the manifest.
    pub(crate) fn images(&self) -> String {
        "original".into()
    }
}
