//! `train.max_wall:` the time that a process may take.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When a run stops by itself before its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "String")]
pub enum MaxWall {
    /// Shortly before the end of the Slurm job that it belongs to; never outside of one.
    #[default]
    Auto,
    /// Never.
    None,
    /// So long after the process began.
    After(Duration),
}

const EXPECTED: &str = "expected `auto`, `none`, or a time above 0 with units such as 11h55m or 90s";

/// The spellings in YAML.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected `auto`, `none`, or a time above 0 with units such as 11h55m or 90s")]
enum Text {
    Word(String),
}

impl TryFrom<Text> for MaxWall {
    type Error = String;

    fn try_from(Text::Word(text): Text) -> Result<Self, String> {
        match text.as_str() {
            "auto" => Ok(MaxWall::Auto),
            "none" => Ok(MaxWall::None),
            text => match humantime::parse_duration(text) {
                Ok(Duration::ZERO) => Err(format!("{text}: {EXPECTED}")),
                Ok(duration) => Ok(MaxWall::After(duration)),
                Err(reason) => Err(format!("`{text}`: {reason}; {EXPECTED}")),
            },
        }
    }
}

impl From<MaxWall> for String {
    fn from(value: MaxWall) -> Self {
        value.to_string()
    }
}

impl fmt::Display for MaxWall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaxWall::Auto => f.pad("auto"),
            MaxWall::None => f.pad("none"),
            MaxWall::After(duration) => f.pad(&humantime::format_duration(*duration).to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<MaxWall, String> {
        serde_yaml::from_str(yaml).map_err(|error| error.to_string())
    }

    #[test]
    fn times_have_units_and_are_written_as_they_are_read() {
        let cases = [
            ("auto", MaxWall::Auto),
            ("none", MaxWall::None),
            ("11h55m", MaxWall::After(Duration::from_secs(11 * 3600 + 55 * 60))),
            ("1day 90s", MaxWall::After(Duration::from_secs(24 * 3600 + 90))),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text), Ok(expected));
            assert_eq!(read(&serde_yaml::to_string(&expected).unwrap()), Ok(expected), "{text}");
        }
        for text in ["0s", "90", "soon", "-5m", "[1]"] {
            let error = read(text).unwrap_err();
            assert!(error.contains("such as 11h55m"), "{text}: {error}");
        }
    }
}
