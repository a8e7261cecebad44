//! Finds infinities and NaN in a gradient, at the speed of memory.

/// Elements that are looked at between two decisions whether to go on.
const BLOCK: usize = 4096;

/// Whether no element is infinite or NaN.
pub(crate) fn all_finite(values: &[f32]) -> bool {
    values.chunks(BLOCK).all(|block| block.iter().fold(0, |any, value| any | not_finite(*value)) == 0)
}

/// Multiplies by `factor`; whether the products are finite.
pub(crate) fn scale(values: &mut [f32], factor: f32) -> bool {
    if factor == 1.0 {
        return all_finite(values);
    }
    let scale_block = |block: &mut [f32]| {
        block.iter_mut().fold(0, |any, value| {
            *value *= factor;
            any | not_finite(*value)
        })
    };
    values.chunks_mut(BLOCK).map(scale_block).fold(0, |any, block| any | block) == 0
}

/// 1 if so, else 0: without a branch, so that the compiler uses vectors.
fn not_finite(value: f32) -> u32 {
    /// All bits of the exponent: only infinities and NaN have them all set.
    const EXPONENT: u32 = 0x7f80_0000;
    u32::from(value.to_bits() & EXPONENT == EXPONENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_value_that_is_not_finite_is_found_wherever_it_is() {
        let finite = [0.0, -0.0, 1.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, -1e-45];
        for len in [0, 1, 3, 8, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7] {
            let mut values: Vec<f32> = finite.iter().copied().cycle().take(len).collect();
            assert!(all_finite(&values), "{len} values");
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0xff80_0001)] {
                for place in [0, len / 2, len.saturating_sub(1)].into_iter().filter(|&place| place < len) {
                    let good = std::mem::replace(&mut values[place], bad);
                    assert!(!all_finite(&values), "{bad} at {place} of {len}");
                    values[place] = good;
                }
            }
        }
    }

    #[test]
    fn scaling_tells_whether_the_products_are_finite() {
        let mut values = vec![3.0; 2 * BLOCK + 1];
        assert!(scale(&mut values, 0.5));
        assert_eq!(values, vec![1.5; 2 * BLOCK + 1]);
        values[BLOCK] = f32::NAN;
        for factor in [1.0, 2.0] {
            assert!(!scale(&mut values, factor));
        }
        assert_eq!((values[0], values[2 * BLOCK]), (3.0, 3.0), "the others are scaled all the same");
        assert!(!scale(&mut [1e38, 0.0], 10.0), "a product beyond the range");
    }
}
