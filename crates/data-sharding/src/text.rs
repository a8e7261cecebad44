//! Text of others in messages: names in archives and folders may hold anything, also what a terminal obeys.

use std::borrow::Cow;
use std::path::Path;

/// The text with its control characters written out, such as `\u{1b}`.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return text.into();
    }
    let written = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.into(),
    };
    text.chars().map(written).collect::<String>().into()
}

/// A path as [`printable`] text.
pub(crate) fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out_and_nothing_else_is() {
        assert_eq!(printable("größe \"1\" \\ 日.jpg"), "größe \"1\" \\ 日.jpg");
        assert_eq!(printable("a\x1b[31m\n\u{9b}b\0"), "a\\u{1b}[31m\\n\\u{9b}b\\u{0}");
        assert_eq!(shown(Path::new("x/\ry")), "x/\\ry");
    }
}
