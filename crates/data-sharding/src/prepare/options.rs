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
    /// Leave out files that are no JPEG or PNG or cannot be decoded, with a warning each, instead of stopping at the first.
    pub skip_bad: bool,
    /// Make larger images smaller; otherwise image files stay as they are, to the byte.
    pub cap: Option<Cap>,
    /// Build the seek index, so that of a crop nothing around it need be entropy-decoded.
    pub seek_index: bool,
}

/// A longest side of images. Those within it stay as they are, to the byte; others become JPEGs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// Which side is meant.
    pub side: Side,
    /// Its greatest length in pixels.
    pub pixels: u32,
    /// Quality of the JPEGs, 1 to 100 on libjpeg's scale.
    pub quality: u8,
}

/// A side of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The shorter one.
    Shorter,
    /// The longer one.
    Longer,
}

impl Default for PrepareOptions {
    /// Seed 0, shards of 512 MiB, as many threads as cores, original images, with a seek index.
    fn default() -> Self {
        PrepareOptions {
            seed: 0,
            shard_bytes: 512 << 20,
            threads: crate::parallel::cores(),
            strict: false,
            skip_bad: false,
            cap: None,
            seek_index: true,
        }
    }
}

impl PrepareOptions {
    /// What is done to images, for the manifest.
    pub(crate) fn images(&self) -> String {
        match self.cap {
            None => "original".into(),
            Some(Cap { side, pixels, quality }) => {
                let side = if side == Side::Shorter { "shorter" } else { "longer" };
                format!("{side} side at most {pixels} pixels, JPEG quality {quality}")
            }
        }
    }
}
