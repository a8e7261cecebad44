//! Writes MAT files of version 5 element by element, also ones that MATLAB would not.

#![allow(dead_code, clippy::unwrap_used)] // Each test file uses some of it; all of it is test code.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

pub(crate) const UINT8: u32 = 2;
pub(crate) const DOUBLE: u32 = 9;
const INT8: u32 = 1;
const UINT16: u32 = 4;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// Header and elements.
pub(crate) fn file(elements: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("{:<124}", "MATLAB 5.0 MAT-file").into_bytes();
    bytes.extend([0, 1, b'I', b'M']);
    bytes.extend(elements.concat());
    bytes
}

/// An element, in the short form where it fits.
pub(crate) fn element(kind: u32, data: &[u8]) -> Vec<u8> {
    if (1..=4).contains(&data.len()) {
        let mut bytes = (kind | (data.len() as u32) << 16).to_le_bytes().to_vec();
        bytes.extend(data);
        bytes.resize(8, 0);
        return bytes;
    }
    let mut bytes = [kind.to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn matrix(class: u8, dimensions: &[i32], name: &str, content: &[u8]) -> Vec<u8> {
    let sides: Vec<u8> = dimensions.iter().flat_map(|side| side.to_le_bytes()).collect();
    let header = [
        element(UINT32, &[class, 0, 0, 0, 0, 0, 0, 0]),
        element(INT32, &sides),
        element(INT8, name.as_bytes()),
    ];
    element(MATRIX, &[&header.concat(), content].concat())
}

/// An array of numbers whose data have the given type.
pub(crate) fn numbers(name: &str, dimensions: &[i32], kind: u32, data: &[u8]) -> Vec<u8> {
    matrix(if kind == UINT8 { 9 } else { 6 }, dimensions, name, &element(kind, data))
}

pub(crate) fn double(name: &str, value: f64) -> Vec<u8> {
    numbers(name, &[1, 1], DOUBLE, &value.to_le_bytes())
}

pub(crate) fn text(name: &str, value: &str) -> Vec<u8> {
    let units: Vec<u8> = value.encode_utf16().flat_map(u16::to_le_bytes).collect();
    matrix(4, &[1, value.len() as i32], name, &element(UINT16, &units))
}

/// A struct array; each element has a matrix a field.
pub(crate) fn structs(name: &str, fields: &[&str], elements: &[Vec<Vec<u8>>]) -> Vec<u8> {
    let mut names = Vec::new();
    for field in fields {
        names.extend(field.as_bytes());
        names.resize(names.len().next_multiple_of(32), 0);
    }
    let content = [element(INT32, &32_i32.to_le_bytes()), element(INT8, &names), elements.concat().concat()];
    matrix(2, &[elements.len() as i32, 1], name, &content.concat())
}

/// Wraps an element as MATLAB does by default.
pub(crate) fn compressed(element: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(element).unwrap();
    let data = encoder.finish().unwrap();
    [&COMPRESSED.to_le_bytes()[..], &(data.len() as u32).to_le_bytes(), &data].concat()
}

/// SVHN's file with these labels, 1 to 10; pixels depend on the sample.
pub(crate) fn svhn(labels: &[u8], compress: bool) -> Vec<u8> {
    let pixels: Vec<u8> = (0..labels.len() * 3072).map(svhn_pixel).collect();
    let x = numbers("X", &[32, 32, 3, labels.len() as i32], UINT8, &pixels);
    // MATLAB stores doubles as bytes where that loses nothing.
    let y = numbers("y", &[labels.len() as i32, 1], UINT8, labels);
    let elements = [x, y];
    file(&if compress { elements.map(|element| compressed(&element)) } else { elements })
}

/// The value at a place of `X`, as it is stored.
pub(crate) fn svhn_pixel(at: usize) -> u8 {
    (at * 7 + at / 1024 * 13 + at / 3072 * 5) as u8
}
