//! Reductions of elements of every format, rank after rank: another order than the binary tree that the project's own
//! reduction uses, so that a test can tell them apart.

use half::{bf16, f16};
use nccl_rs::sys::*;

/// Bytes of an element, if the format is known here.
pub(crate) fn bytes(data_type: ncclDataType_t) -> Option<usize> {
    match data_type {
        ncclUint8 => Some(1),
        ncclFloat16 | ncclBfloat16 => Some(2),
        ncclFloat32 => Some(4),
        _ => None,
    }
}

/// Whether the operation is known here.
pub(crate) fn is_operation(operation: ncclRedOp_t) -> bool {
    (ncclSum..=ncclAvg).contains(&operation)
}

/// Element by element over `rows`, the data of each rank. 16-bit sums are formed in fp32 and rounded once.
pub(crate) fn reduce(rows: &[&[u8]], data_type: ncclDataType_t, operation: ncclRedOp_t) -> Vec<u8> {
    let size = bytes(data_type).unwrap_or(1);
    let len = rows.first().map_or(0, |row| row.len() / size);
    let mut result = Vec::with_capacity(len * size);
    for index in 0..len {
        let of = |row: &&[u8]| read(&row[index * size..][..size], data_type);
        let value = rows.iter().map(of).reduce(|a, b| combine(a, b, operation)).unwrap_or(0.0);
        let value = if operation == ncclAvg { value / rows.len() as f32 } else { value };
        match data_type {
            ncclFloat16 => result.extend(f16::from_f32(value).to_le_bytes()),
            ncclBfloat16 => result.extend(bf16::from_f32(value).to_le_bytes()),
            ncclFloat32 => result.extend(value.to_le_bytes()),
            // Sums wrap round; up to 2^24 fp32 holds them.
            _ => result.push(value as u32 as u8),
        }
    }
    result
}

fn read(bytes: &[u8], data_type: ncclDataType_t) -> f32 {
    match (data_type, bytes) {
        (ncclFloat16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (ncclBfloat16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        (ncclFloat32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (_, bytes) => bytes.first().copied().unwrap_or(0).into(),
    }
}

fn combine(a: f32, b: f32, operation: ncclRedOp_t) -> f32 {
    match operation {
        ncclProd => a * b,
        ncclMax => a.max(b),
        ncclMin => a.min(b),
        _ => a + b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_and_operation() {
        let fp32 = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        let fp16 = |value: f32| f16::from_f32(value).to_le_bytes().to_vec();
        let bf16 = |value: f32| bf16::from_f32(value).to_le_bytes().to_vec();
        let cases = [
            (ncclFloat32, ncclSum, fp32(&[1.5, 2.0]), fp32(&[3.0, -4.0]), fp32(&[4.5, -2.0])),
            (ncclFloat32, ncclProd, fp32(&[1.5]), fp32(&[3.0]), fp32(&[4.5])),
            (ncclFloat32, ncclMax, fp32(&[1.5]), fp32(&[-3.0]), fp32(&[1.5])),
            (ncclFloat32, ncclMin, fp32(&[1.5]), fp32(&[-3.0]), fp32(&[-3.0])),
            (ncclFloat32, ncclAvg, fp32(&[1.0]), fp32(&[2.0]), fp32(&[1.5])),
            (ncclFloat16, ncclSum, fp16(1.0), fp16(0.5), fp16(1.5)),
            (ncclBfloat16, ncclSum, bf16(256.0), bf16(1.0), bf16(257.0)),
            (ncclUint8, ncclSum, vec![250], vec![10], vec![4]),
        ];
        for (data_type, operation, a, b, expected) in cases {
            assert_eq!(reduce(&[&a, &b], data_type, operation), expected, "{data_type} {operation}");
        }
    }
}
