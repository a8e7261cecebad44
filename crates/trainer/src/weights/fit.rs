//! Whether named shapes that were found are those that were expected; all differences at once.

use std::collections::BTreeMap;

/// A sentence for each name of `expected` that is missing or has another shape in `found`, and for each name of
/// `found` that nothing expects. Empty when everything fits.
pub(crate) fn misfits<'a>(
    expected: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    found: impl IntoIterator<Item = (&'a str, &'a [usize])>,
) -> Vec<String> {
    let mut misfits = Vec::new();
    let mut unclaimed = BTreeMap::new();
    for (name, shape) in found {
        if unclaimed.insert(name, shape).is_some() {
            misfits.push(format!("{name} is there twice"));
        }
    }
    for (name, shape) in expected {
        match unclaimed.remove(name) {
            None => misfits.push(format!("{name} {shape:?} is missing")),
            Some(found) if found != shape => misfits.push(format!("{name} is {found:?}, expected {shape:?}")),
            Some(_) => {}
        }
    }
    misfits.extend(unclaimed.keys().map(|name| format!("{name} is not part of the network")));
    misfits
}

#[cfg(test)]
mod tests {
    use super::misfits;

    #[test]
    fn every_difference_is_told_and_nothing_else() {
        let expected: [(&str, &[usize]); 3] = [("a", &[2, 3]), ("b", &[4]), ("c", &[])];
        assert_eq!(misfits(expected, expected), [""; 0]);
        let found: [(&str, &[usize]); 5] = [("z", &[1]), ("y", &[1]), ("b", &[5]), ("c", &[]), ("c", &[])];
        assert_eq!(
            misfits(expected, found),
            [
                "c is there twice",
                "a [2, 3] is missing",
                "b is [5], expected [4]",
                "y is not part of the network",
                "z is not part of the network",
            ]
        );
    }
}
