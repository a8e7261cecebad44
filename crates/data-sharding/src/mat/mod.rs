//! MATLAB's MAT files of version 5, as SVHN and ImageNet's development kit have them: element by element from a
//! stream, whole where they are small. Reads little-endian files; not those of version 7.3, which are HDF5. Format:
//! MathWorks, "MAT-File Format", chapter 1.
//!
//! ```text
//! file    = header of 128 bytes, elements
//! element = type u32 | bytes u32 | data, padded to 8 bytes unless compressed
//!         | type u16 | bytes u16 | up to 4 bytes of data      where that fits
//! matrix  = elements: flags, dimensions, name, then what its class needs
//! ```

mod stream;
mod value;

use std::path::Path;

pub(crate) use stream::MatFile;
pub(crate) use value::{Value, parse};

use crate::error::DataError;

/// Types of elements, those that are needed.
const INT8: u32 = 1;
const UINT8: u32 = 2;
const INT16: u32 = 3;
const UINT16: u32 = 4;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const SINGLE: u32 = 7;
const DOUBLE: u32 = 9;
const INT64: u32 = 12;
const UINT64: u32 = 13;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
const UTF8: u32 = 16;
const UTF16: u32 = 17;

/// Classes of matrices that are no arrays of numbers.
const CLASS_CELL: u32 = 1;
const CLASS_STRUCT: u32 = 2;
const CLASS_CHAR: u32 = 4;

/// More than the deepest nesting that any data set has.
const DEEPEST: usize = 8;
/// Dimensions of a matrix and bytes of a name.
const MOST_DIMENSIONS: usize = 32;
const LONGEST_NAME: usize = 256;

/// Bytes of one value of a type; none for types that are no numbers.
fn value_bytes(kind: u32) -> Option<usize> {
    Some(match kind {
        INT8 | UINT8 | UTF8 => 1,
        INT16 | UINT16 | UTF16 => 2,
        INT32 | UINT32 | SINGLE => 4,
        DOUBLE | INT64 | UINT64 => 8,
        _ => return None,
    })
}

/// One value as a number, from as many bytes as its type has.
fn number(kind: u32, bytes: &[u8]) -> Option<f64> {
    Some(match kind {
        INT8 => i8::from_le_bytes(bytes.try_into().ok()?).into(),
        UINT8 => (*bytes.first()?).into(),
        INT16 => i16::from_le_bytes(bytes.try_into().ok()?).into(),
        UINT16 => u16::from_le_bytes(bytes.try_into().ok()?).into(),
        INT32 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
        UINT32 => u32::from_le_bytes(bytes.try_into().ok()?).into(),
        SINGLE => f32::from_le_bytes(bytes.try_into().ok()?).into(),
        DOUBLE => f64::from_le_bytes(bytes.try_into().ok()?),
        INT64 => i64::from_le_bytes(bytes.try_into().ok()?) as f64,
        UINT64 => u64::from_le_bytes(bytes.try_into().ok()?) as f64,
        _ => return None,
    })
}

fn invalid(path: &Path, problem: impl Into<String>, expected: impl Into<String>) -> DataError {
    DataError::Invalid { path: path.into(), problem: problem.into(), expected: expected.into() }
}
