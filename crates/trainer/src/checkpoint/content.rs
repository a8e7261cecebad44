//! The bytes of a checkpoint's files. Touches no disk.

use std::borrow::Cow;
use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, SafeTensors, View};
use sha2::{Digest, Sha256};

use super::NamedTensor;

/// SHA-256 in hexadecimal.
pub(crate) fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checksums by file name, as `sha256sum` writes them.
pub(super) fn encode_checksums(checksums: &BTreeMap<String, String>) -> String {
    checksums.iter().map(|(file, checksum)| format!("{checksum}  {file}\n")).collect()
}

/// The opposite of [`encode_checksums`], which is the only form that is read; `None` for anything else.
pub(super) fn decode_checksums(bytes: &[u8]) -> Option<BTreeMap<String, String>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let pairs = text.strip_suffix('\n')?.split('\n').map(|line| {
        let (checksum, file) = line.split_once("  ")?;
        Some((file.to_owned(), checksum.to_owned()))
    });
    let checksums: BTreeMap<_, _> = pairs.collect::<Option<_>>()?;
    (encode_checksums(&checksums) == text).then_some(checksums)
}

/// A tensor whose bytes exist only while they are copied into the file.
struct Encoded<'a>(&'a NamedTensor);

impl View for Encoded<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        for (place, value) in bytes.chunks_exact_mut(size_of::<f32>()).zip(&self.0.values) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        size_of_val(self.0.values.as_slice())
    }
}

/// A file of tensors.
pub(super) fn encode(tensors: &[NamedTensor]) -> Result<Vec<u8>, String> {
    if let Some(odd) =
        tensors.iter().find(|tensor| tensor.shape.iter().product::<usize>() != tensor.values.len())
    {
        return Err(format!("{} has shape {:?} and {} values", odd.name, odd.shape, odd.values.len()));
    }
    let views = tensors.iter().map(|tensor| (tensor.name.as_str(), Encoded(tensor)));
    safetensors::serialize(views, None).map_err(|error| error.to_string())
}

/// Whether all numbers are. Looks at each without a way out, so that the compiler takes many at once.
pub(super) fn is_finite(values: &[f32]) -> bool {
    values.iter().fold(true, |finite, value| finite & value.is_finite())
}

/// The opposite of [`encode`]; tensors may come in another order. Numbers that are not finite are damage: none are saved.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<NamedTensor>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    file.iter()
        .map(|(name, view)| {
            if view.dtype() != Dtype::F32 {
                return Err(format!("{name} is {:?}, expected F32", view.dtype()));
            }
            let values: Vec<f32> = view
                .data()
                .chunks_exact(size_of::<f32>())
                .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
                .collect();
            if !is_finite(&values) {
                return Err(format!("{name} holds numbers that are infinite or NaN"));
            }
            Ok(NamedTensor { name: name.to_owned(), shape: view.shape().to_vec(), values })
        })
        .collect()
}
