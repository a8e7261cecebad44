//! Architecture strings such as `wrn-28-10`.

use std::fmt;
use std::str::FromStr;

use crate::error::ModelError;

/// A network's name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Architecture {
    /// Nominal number of convolutions, n = 6N + 4.
    pub(crate) depth: u32,
    /// Widening factor k.
    pub(crate) width: u32,
}

/// What exists, for error messages.
const KNOWN: &str = "wrn-<depth>-<width> with depth = 6N+4 (10, 16, 22, 28, 40, ...) and width of 1 or more, such as wrn-28-10";

/// Beyond these a network would fit no machine, and sizes could overflow.
const LARGEST_DEPTH: u32 = 10_000;
const LARGEST_WIDTH: u32 = 256;

impl FromStr for Architecture {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let error = |reason: String| ModelError::Architecture {
            text: text.to_owned(),
            reason,
            known: KNOWN.to_owned(),
        };
        let parts: Vec<&str> = text.split('-').collect();
        let ["wrn", depth, width] = parts[..] else {
            return Err(error("it does not have the form of a known family".into()));
        };
        let number = |name: &str, digits: &str, largest: u32| match digits.parse::<u32>() {
            Ok(number)
                if digits.bytes().all(|byte| byte.is_ascii_digit()) && (1..=largest).contains(&number) =>
            {
                Ok(number)
            }
            _ => Err(error(format!("its {name} `{digits}` is no whole number from 1 to {largest}"))),
        };
        let depth = number("depth", depth, LARGEST_DEPTH)?;
        let width = number("width", width, LARGEST_WIDTH)?;
        if depth < 10 || (depth - 4) % 6 != 0 {
            let below = (depth.max(10) - 4) / 6 * 6 + 4;
            return Err(error(format!(
                "depth {depth} is not 6N+4; the nearest are {below} and {}",
                below + 6
            )));
        }
        Ok(Architecture { depth, width })
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wrn-{}-{}", self.depth, self.width)
    }
}

impl Architecture {
    /// Blocks in each of the three groups, N.
    pub(crate) fn blocks(&self) -> u32 {
        (self.depth - 4) / 6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_read_and_written_alike() {
        for name in ["wrn-10-1", "wrn-16-8", "wrn-28-10", "wrn-40-4"] {
            assert_eq!(name.parse::<Architecture>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_exists() {
        for (name, part) in [
            ("wrn-28", "form"),
            ("resnet-50", "form"),
            ("", "form"),
            ("wrn-28-10-2", "form"),
            ("wrn-29-10", "28 and 34"),
            ("wrn-4-1", "10 and 16"),
            ("wrn-28-0", "width"),
            ("wrn-28-+2", "width"),
            ("wrn-99999999999-1", "depth"),
        ] {
            let message = name.parse::<Architecture>().unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("wrn-28-10"), "{message}");
        }
    }
}
