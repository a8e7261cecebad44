//! Four inks to three lights, as Pillow does it. Nothing else needs a conversion of our own.

/// Converts the first `pixels` CMYK pixels of `cmyk`, as they stand in a JPEG, to RGB.
///
/// JPEGs of four components are taken as Adobe writes them, inverted, whether or not they carry its marker; that is
/// Pillow's `CMYK;I` raw mode. The conversion is its `cmyk2rgb`: each light is what the black leaves, less the ink's
/// share of it, rounded.
pub(super) fn cmyk_to_rgb(cmyk: &[u8], rgb: &mut [u8]) {
    for (rgb, cmyk) in rgb.chunks_exact_mut(3).zip(cmyk.chunks_exact(4)) {
        let light = u32::from(cmyk[3]);
        for (out, &ink) in rgb.iter_mut().zip(cmyk) {
            let product = u32::from(255 - ink) * light + 128;
            let share = ((product >> 8) + product) >> 8;
            *out = (light - share.min(light)) as u8;
        }
    }
}
