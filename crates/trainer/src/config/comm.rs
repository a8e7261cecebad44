//! `comm.overlap` and its spellings.

use serde::{Deserialize, Serialize};

/// `comm.overlap:` what of the exchange goes on beside backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "OverlapText", into = "OverlapText")]
pub enum Overlap {
    /// `false`: nothing. All buckets are exchanged after backward.
    Nothing,
    /// `true`: each bucket is exchanged as soon as its gradients are complete.
    #[default]
    Exchange,
    /// `sync+step`: moreover, the communication thread updates a bucket's weights as soon as it has their averages. The
    /// same bits. Where gradients of a GPU pass through host memory after backward, as over MPI, the update comes after
    /// that.
    ExchangeAndStep,
}

impl Overlap {
    /// Whether buckets are exchanged while backward still runs.
    #[must_use]
    pub fn exchanges_early(self) -> bool {
        self != Overlap::Nothing
    }
}

/// The spellings of [`Overlap`] in YAML.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected `true`, `false` or `sync+step`")]
enum OverlapText {
    Flag(bool),
    Word(String),
}

const SYNC_AND_STEP: &str = "sync+step";

impl TryFrom<OverlapText> for Overlap {
    type Error = String;

    fn try_from(text: OverlapText) -> Result<Self, String> {
        match text {
            OverlapText::Flag(false) => Ok(Overlap::Nothing),
            OverlapText::Flag(true) => Ok(Overlap::Exchange),
            OverlapText::Word(word) if word == SYNC_AND_STEP => Ok(Overlap::ExchangeAndStep),
            OverlapText::Word(word) => {
                Err(format!("`{word}`: expected `true`, `false` or `{SYNC_AND_STEP}`"))
            }
        }
    }
}

impl From<Overlap> for OverlapText {
    fn from(overlap: Overlap) -> Self {
        match overlap {
            Overlap::Nothing => OverlapText::Flag(false),
            Overlap::Exchange => OverlapText::Flag(true),
            Overlap::ExchangeAndStep => OverlapText::Word(SYNC_AND_STEP.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_reads_back_as_it_was_written() {
        for text in ["true", "false", "sync+step"] {
            let overlap: Overlap = serde_yaml::from_str(text).unwrap();
            assert_eq!(serde_yaml::to_string(&overlap).unwrap().trim(), text);
        }
        let refused = serde_yaml::from_str::<Overlap>("step").unwrap_err().to_string();
        assert!(refused.contains("`step`: expected `true`, `false` or `sync+step`"), "{refused}");
    }
}
