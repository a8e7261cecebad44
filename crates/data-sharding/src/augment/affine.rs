//! Shear, translation and rotation with nearest-neighbour interpolation, as torchvision does them on Pillow
//! images, to the bit. What comes from outside the image is black.

/// From a pixel of the result to one of the image: x' = m0·x + m1·y + m2, y' = m3·x + m4·y + m5, in pixels, where
/// pixel centres lie at halves.
type Matrix = [f64; 6];

/// One operation with its magnitude.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Affine {
    /// Columns a row, about the upper left corner.
    ShearX(f64),
    /// Rows a column, about the upper left corner.
    ShearY(f64),
    /// Pixels to the right, the fraction dropped.
    TranslateX(f64),
    /// Pixels down, the fraction dropped.
    TranslateY(f64),
    /// Degrees counter-clockwise about the middle.
    Rotate(f64),
}

impl Affine {
    pub(super) fn apply(self, width: usize, pixels: &mut [u8], scratch: &mut Vec<u8>) {
        let height = pixels.len() / (3 * width);
        transform(self.matrix(width as f64, height as f64), width, pixels, scratch);
    }

    fn matrix(self, width: f64, height: f64) -> Matrix {
        match self {
            // torchvision goes over the angle, which costs it the last bits.
            Affine::ShearX(slope) => [1.0, slope.atan().to_degrees().to_radians().tan(), 0.0, 0.0, 1.0, 0.0],
            Affine::ShearY(slope) => [1.0, 0.0, 0.0, slope.atan().to_degrees().to_radians().tan(), 1.0, 0.0],
            Affine::TranslateX(pixels) => [1.0, 0.0, -pixels.trunc(), 0.0, 1.0, 0.0],
            Affine::TranslateY(pixels) => [1.0, 0.0, 0.0, 0.0, 1.0, -pixels.trunc()],
            Affine::Rotate(degrees) => {
                let angle = -degrees.rem_euclid(360.0).to_radians();
                let (sin, cos) = (round_15(angle.sin()), round_15(angle.cos()));
                let (x, y) = (width / 2.0, height / 2.0);
                [cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y]
            }
        }
    }
}

/// To 15 decimal places, so that right angles are exact.
fn round_15(value: f64) -> f64 {
    (value * 1e15).round_ties_even() / 1e15
}

/// Pillow's `affine_fixed`: 16.16 fixed point, accumulated along rows and columns.
fn transform(matrix: Matrix, width: usize, pixels: &mut [u8], scratch: &mut Vec<u8>) {
    scratch.clear();
    scratch.extend_from_slice(pixels);
    let image = scratch.as_chunks::<3>().0;
    let height = image.len() / width;
    let fixed = |value: f64| (value * 65536.0 + 0.5).floor() as i64;
    let [m0, m1, m2, m3, m4, m5] = matrix;
    let (along_x, down_x, along_y, down_y) = (fixed(m0), fixed(m1), fixed(m3), fixed(m4));
    let mut row_x = fixed(m2 + m0 * 0.5 + m1 * 0.5);
    let mut row_y = fixed(m5 + m3 * 0.5 + m4 * 0.5);
    for row in pixels.as_chunks_mut::<3>().0.chunks_exact_mut(width) {
        let (mut x, mut y) = (row_x, row_y);
        for pixel in row {
            let (column, line) = ((x >> 16) as usize, (y >> 16) as usize);
            // Negative places have become huge.
            *pixel = if column < width && line < height { image[line * width + column] } else { [0; 3] };
            x += along_x;
            y += along_y;
        }
        row_x += down_x;
        row_y += down_y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 columns, 2 rows; red tells the pixel.
    const IMAGE: [u8; 18] = [1, 0, 9, 2, 0, 9, 3, 0, 9, 4, 0, 9, 5, 0, 9, 6, 0, 9];

    fn reds(affine: Affine) -> Vec<u8> {
        let mut pixels = IMAGE;
        affine.apply(3, &mut pixels, &mut Vec::new());
        pixels.iter().step_by(3).copied().collect()
    }

    #[test]
    fn pixels_move_the_way_that_is_said() {
        for (affine, expected) in [
            (Affine::TranslateX(1.9), [0, 1, 2, 0, 4, 5]),
            (Affine::TranslateX(-1.0), [2, 3, 0, 5, 6, 0]),
            (Affine::TranslateY(1.0), [0, 0, 0, 1, 2, 3]),
            (Affine::Rotate(0.0), [1, 2, 3, 4, 5, 6]),
            (Affine::Rotate(180.0), [6, 5, 4, 3, 2, 1]),
            (Affine::Rotate(-360.0), [1, 2, 3, 4, 5, 6]),
            (Affine::ShearX(1.0), [2, 3, 0, 6, 0, 0]),
            (Affine::ShearY(-1.0), [1, 0, 0, 4, 2, 0]),
        ] {
            assert_eq!(reds(affine), expected, "{affine:?}");
        }
    }
}
