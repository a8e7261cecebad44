//! Whole values in memory: numbers, text, structs and cells. For small variables.

use std::path::Path;

use super::stream::{Matrix, Tag, matrix_header};
use super::{
    CLASS_CELL, CLASS_CHAR, CLASS_STRUCT, DEEPEST, INT8, INT16, LONGEST_NAME, MATRIX, UINT8, UINT16, UTF8,
    UTF16, invalid, number, value_bytes,
};
use crate::error::DataError;

/// A value of a variable.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    /// Numbers in column-major order, as stored.
    Numbers {
        kind: u32,
        bytes: &'a [u8],
    },
    Text(String),
    /// Elements one after the other, each with a value a field.
    Struct {
        fields: Vec<String>,
        values: Vec<Value<'a>>,
    },
    Cells(Vec<Value<'a>>),
}

impl Value<'_> {
    /// The first number.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Value::Numbers { kind, bytes } => number(*kind, bytes.get(..value_bytes(*kind)?)?),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Parses a variable, whose [`content`](Matrix::content) has been read.
pub(crate) fn parse<'a>(path: &Path, class: u32, content: &'a [u8]) -> Result<Value<'a>, DataError> {
    let mut rest = content;
    value(class, &mut rest, 0)
        .map_err(|problem| invalid(path, problem, "a MAT file of version 5 as published"))
}

/// One element off the front of `rest`: its type and data.
fn element<'a>(rest: &mut &'a [u8]) -> Result<(u32, &'a [u8]), String> {
    let before = *rest;
    let tag = Tag::read(rest).map_err(|e| format!("has a damaged variable: {e}"))?;
    if tag.small.is_some() {
        return Ok((tag.kind, &before[4..4 + tag.bytes as usize]));
    }
    let data = rest.get(..tag.bytes as usize).ok_or("has a variable that ends too early")?;
    let end = rest.len().min(tag.bytes as usize + tag.padding() as usize);
    *rest = &rest[end..];
    Ok((tag.kind, data))
}

fn value<'a>(class: u32, rest: &mut &'a [u8], depth: usize) -> Result<Value<'a>, String> {
    if depth > DEEPEST {
        return Err(format!("has a variable with more than {DEEPEST} levels"));
    }
    match class {
        CLASS_STRUCT => {
            let (_, length) = element(rest)?;
            let length = length.first_chunk().map_or(0, |&word| u32::from_le_bytes(word)) as usize;
            if !(1..=LONGEST_NAME).contains(&length) {
                return Err(format!("has field names of {length} bytes"));
            }
            let (_, names) = element(rest)?;
            let fields: Vec<String> = names.chunks_exact(length).map(text_until_zero).collect();
            let values = if fields.is_empty() { Vec::new() } else { matrices(rest, depth)? };
            Ok(Value::Struct { fields, values })
        }
        CLASS_CELL => Ok(Value::Cells(matrices(rest, depth)?)),
        CLASS_CHAR => {
            let (kind, bytes) = element(rest)?;
            let text = match kind {
                UINT16 | INT16 | UTF16 => {
                    let units: Vec<u16> =
                        bytes.as_chunks().0.iter().map(|&unit| u16::from_le_bytes(unit)).collect();
                    String::from_utf16_lossy(&units)
                }
                INT8 | UINT8 | UTF8 => String::from_utf8_lossy(bytes).into_owned(),
                other => return Err(format!("has text of type {other}")),
            };
            Ok(Value::Text(text))
        }
        _ => {
            let (kind, bytes) = element(rest)?;
            value_bytes(kind).ok_or_else(|| format!("has numbers of type {kind}"))?;
            Ok(Value::Numbers { kind, bytes })
        }
    }
}

/// All matrices up to the end.
fn matrices<'a>(rest: &mut &'a [u8], depth: usize) -> Result<Vec<Value<'a>>, String> {
    let mut values = Vec::new();
    while !rest.is_empty() {
        let (kind, mut content) = element(rest)?;
        if kind != MATRIX {
            return Err(format!("has an element of type {kind} where a matrix should be"));
        }
        if content.is_empty() {
            // MATLAB's way of writing an empty matrix.
            values.push(Value::Numbers { kind: UINT8, bytes: &[] });
            continue;
        }
        let (class, ..) = matrix_header(&mut content).map_err(|e| format!("has a damaged matrix: {e}"))?;
        values.push(value(class, &mut content, depth + 1)?);
    }
    Ok(values)
}

fn text_until_zero(bytes: &[u8]) -> String {
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

impl Matrix<'_> {
    /// Whether this variable is a struct array.
    pub(crate) fn is_struct(&self) -> bool {
        self.class == CLASS_STRUCT
    }
}
