//! Where a dotted key stands in a YAML text. Knows nothing of what the keys mean.

use marked_yaml::{Node, parse_yaml};

/// The 1-based line of `key` (such as `train.global_batch`), or of the nearest enclosing key that the text
/// has: a missing key is reported at its section.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let root = parse_yaml(0, text).ok()?;
    let mut node = &root;
    let mut line = None;
    for part in key.split('.') {
        let Node::Mapping(mapping) = node else { break };
        let Some((name, value)) = mapping.iter().find(|(name, _)| name.as_str() == part) else { break };
        line = name.span().start().map(|marker| marker.line()).or(line);
        node = value;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::line_of;

    #[test]
    fn a_key_is_found_at_its_own_line_and_a_missing_one_at_its_section() {
        let text = "seed: 1\nmodel:\n  arch: wrn-10-1\n  # remark\n  dropout: 0.3\ntrain: {epochs: 2}\n";
        for (key, line) in [
            ("seed", Some(1)),
            ("model.arch", Some(3)),
            ("model.dropout", Some(5)),
            ("model.absent", Some(2)),
            ("train.epochs", Some(6)),
            ("absent", None),
        ] {
            assert_eq!(line_of(text, key), line, "{key}");
        }
    }
}
