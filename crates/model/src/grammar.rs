//! What architecture strings look like, for people who have written another: the forms that there are, one family a
//! line, and the string that was perhaps meant. Which strings are networks `architecture.rs` decides.

use std::fmt::Write;

/// The form of each family, and what it is for.
const FAMILIES: [(&str, &str); 13] = [
    ("wrn-<depth>-<width>", "small images; depth = 6N+4 (10, 16, 22, 28, 40, ...): wrn-28-10"),
    (
        "wrn-<depth>-<width>-b<kernels>",
        "blocks of other convolutions, depth = 6N+4, or 3lN+4 where all l kernels are equal: wrn-40-2-b313",
    ),
    ("wrn-<18|34>-<width>-imagenet", "widths such as 1.5 too: wrn-34-2-imagenet"),
    ("wrn-<50|101|152>-<width>-bottleneck", "ImageNet: wrn-50-2-bottleneck"),
    ("resnet-<18|34|50|101|152>", "ImageNet"),
    ("resnet-<20|32|44|56|110|1202>", "small images"),
    ("preact-resnet-<20|32|44|56|110|164|1001>", "small images"),
    ("resnext-<50|101|152>-<cardinality>x<width>d", "ImageNet: resnext-50-32x4d"),
    ("resnext-<20|29|38>-<cardinality>x<width>d", "small images: resnext-29-8x64d"),
    ("se-<any of these>", "with squeeze and excitation: se-wrn-16-8"),
    ("densenet-bc-<depth>-<growth>", "small images; depth = 6N+4: densenet-bc-100-12"),
    ("densenet-<121|161|169|201>", "ImageNet"),
    ("dpn-<68|92|98|107|131>", "ImageNet"),
];

/// Strings near which a misspelt one may lie.
const EXAMPLES: [&str; 14] = [
    "wrn-28-10",
    "wrn-40-2-b313",
    "wrn-34-2-imagenet",
    "wrn-50-2-bottleneck",
    "resnet-50",
    "resnet-110",
    "preact-resnet-164",
    "resnext-50-32x4d",
    "resnext-29-8x64d",
    "se-wrn-16-8",
    "se-resnet-50",
    "densenet-bc-100-12",
    "densenet-121",
    "dpn-92",
];
/// So many letters may be wrong.
const MOST_TYPOS: usize = 2;

/// Other spellings of families, from PyTorch's and timm's names, and ours.
const SPELLINGS: [(&str, &str); 10] = [
    ("wide-resnet", "wrn"),
    ("wideresnet", "wrn"),
    ("preactresnet", "preact-resnet"),
    ("preact-resnet", "preact-resnet"),
    ("wrn", "wrn"),
    ("resnet", "resnet"),
    ("resnext", "resnext"),
    ("densenet-bc", "densenet-bc"),
    ("densenet", "densenet"),
    ("dpn", "dpn"),
];

/// All forms, each a line of its own.
pub(crate) fn families() -> String {
    let width = FAMILIES.iter().map(|(form, _)| form.len()).max().unwrap_or(0);
    FAMILIES.iter().fold(String::new(), |mut text, (form, what)| {
        let _ = write!(text, "\n  {form:<width$}  {what}");
        text
    })
}

/// The string that `text` may have been meant for. `is_network` tells which strings are some.
pub(crate) fn suggestion(text: &str, is_network: impl Fn(&str) -> bool) -> Option<String> {
    let (usual, known) = usual_spelling(text);
    let spelt = ["", "-bottleneck", "-imagenet"].map(|ending| format!("{usual}{ending}"));
    let near = || {
        // Of a known family the number is wrong, for which its form says more than any guess.
        let distances =
            EXAMPLES.iter().filter(|_| !known).map(|example| (distance(&usual, example), *example));
        distances.min().filter(|(typos, _)| *typos <= MOST_TYPOS).map(|(_, example)| example.to_owned())
    };
    spelt.into_iter().find(|spelt| spelt != text && is_network(spelt)).or_else(near)
}

/// In small letters, with hyphens between the parts and the usual name of the family; and whether that is known.
fn usual_spelling(text: &str) -> (String, bool) {
    let text = text.trim().to_lowercase().replace(['_', ' '], "-");
    let plain = text.strip_prefix("se").map(|rest| rest.trim_start_matches('-'));
    let family = |text: &str| {
        SPELLINGS.iter().find_map(|(spelling, usual)| {
            let rest = text.strip_prefix(spelling)?.trim_start_matches('-');
            Some(format!("{usual}-{rest}"))
        })
    };
    match plain.and_then(family).map(|plain| format!("se-{plain}")).or_else(|| family(&text)) {
        Some(usual) => (usual, true),
        None => (text, false),
    }
}

/// Letters to insert, remove or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (above, letter) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], above + 1);
        for (column, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        for (a, b, expected) in [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("wnr", "wrn", 2)] {
            assert_eq!((distance(a, b), distance(b, a)), (expected, expected), "{a} {b}");
        }
    }
}
