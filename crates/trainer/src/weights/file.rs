//! Safetensors files with numbers of any floating-point format. Knows no networks.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::{Kind, Tensor};

use super::WeightsError;
use crate::checkpoint::NamedTensor;
use crate::error::Error;
use crate::files;

/// How numbers of weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberFormat {
    /// IEEE single precision, as we compute.
    F32,
    /// IEEE half precision: 11 bits of precision, up to 65504.
    F16,
    /// bfloat16: 8 bits of precision, the range of single precision.
    BF16,
}

/// Formats of a file and libtorch's names for them.
const FORMATS: [(Dtype, Kind); 4] = [
    (Dtype::F32, Kind::Float),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::F64, Kind::Double),
];

impl NumberFormat {
    fn dtype(self) -> Dtype {
        match self {
            NumberFormat::F32 => Dtype::F32,
            NumberFormat::F16 => Dtype::F16,
            NumberFormat::BF16 => Dtype::BF16,
        }
    }
}

fn kind(dtype: Dtype) -> Option<Kind> {
    FORMATS.iter().find(|(of, _)| *of == dtype).map(|(_, kind)| *kind)
}

/// A file with the weights of a network with so many parameters, in any format.
pub(super) fn read(path: &Path, parameters: u64) -> Result<Vec<u8>, WeightsError> {
    files::read(path, files::most_bytes_of(parameters)).map_err(|source| WeightsError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })
}

/// The header, whose lengths and shapes are checked against each other and the file's length.
pub(super) fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, WeightsError> {
    SafeTensors::deserialize(bytes).map_err(|error| {
        // What `torch.save` writes is a zip archive; before version 1.6 it was a bare pickle.
        let pickle = bytes.starts_with(b"PK\x03\x04") || matches!(bytes, [0x80, 2..=5, ..]);
        let reason = if pickle {
            "it is a pickle of PyTorch; README says how to turn it into safetensors".to_owned()
        } else {
            format!("it is no whole safetensors file ({error})")
        };
        WeightsError::Format { path: path.to_owned(), reason }
    })
}

/// Whether a tensor holds real numbers of a format that [`values`] reads, else which one it has.
pub(super) fn check_format(view: &TensorView) -> Result<(), String> {
    match kind(view.dtype()) {
        Some(_) => Ok(()),
        None => Err(format!("{:?}, expected F16, BF16, F32 or F64", view.dtype())),
    }
}

/// A tensor's numbers in single precision.
pub(super) fn values(view: &TensorView) -> Result<Vec<f32>, Error> {
    let kind = kind(view.dtype()).ok_or_else(|| Error::Other(format!("{:?} is no number", view.dtype())))?;
    let mut values = vec![0.0; view.shape().iter().product()];
    if !values.is_empty() {
        let tensor = Tensor::f_from_data_size(view.data(), &[values.len() as i64], kind)?;
        tensor.f_to_kind(Kind::Float)?.f_copy_data(&mut values, view.shape().iter().product())?;
    }
    Ok(values)
}

/// Tensors and counters as a file's bytes. Numbers that become infinite in `format` are refused.
pub(super) fn encode(
    path: &Path,
    tensors: &[NamedTensor],
    counters: &[(String, i64)],
    format: NumberFormat,
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>, Error> {
    let mut entries = Vec::with_capacity(tensors.len() + counters.len());
    let mut reasons = Vec::new();
    for tensor in tensors {
        let bytes = bytes(&tensor.values, format)?;
        match bytes {
            Some(bytes) => entries.push((tensor.name.as_str(), format.dtype(), tensor.shape.clone(), bytes)),
            None => reasons.push(format!("{} has numbers beyond the range of {format:?}", tensor.name)),
        }
    }
    if !reasons.is_empty() {
        return Err(WeightsError::Numbers { path: path.to_owned(), reasons }.into());
    }
    for (name, count) in counters {
        entries.push((name, Dtype::I64, Vec::new(), count.to_le_bytes().to_vec()));
    }
    let refuse = |reason: safetensors::SafeTensorError| Error::Other(format!("safetensors: {reason}"));
    let views = entries
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(refuse)?;
    safetensors::serialize(views, Some(metadata)).map_err(refuse)
}

/// The bytes of `values` in `format`, or nothing when one of them is not finite there.
fn bytes(values: &[f32], format: NumberFormat) -> Result<Option<Vec<u8>>, Error> {
    if format == NumberFormat::F32 || values.is_empty() {
        let finite = values.iter().all(|value| value.is_finite());
        return Ok(finite.then(|| values.iter().flat_map(|value| value.to_le_bytes()).collect()));
    }
    let kind = kind(format.dtype()).unwrap_or(Kind::Float);
    let converted = Tensor::f_from_slice(values)?.f_to_kind(kind)?;
    if !bool::try_from(&converted.f_isfinite()?.f_all()?)? {
        return Ok(None);
    }
    let bits = converted.f_view_dtype(Kind::Int16)?;
    let mut numbers = vec![0_i16; values.len()];
    bits.f_copy_data(&mut numbers, values.len())?;
    Ok(Some(numbers.iter().flat_map(|bits| bits.to_le_bytes()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> NamedTensor {
        NamedTensor { name: "a".into(), shape: vec![values.len()], values: values.to_vec() }
    }

    #[test]
    fn numbers_are_rounded_to_nearest_even_and_read_back() {
        // 1 + 2^-11 lies between two halves, 1 + 3 * 2^-11 too; the even one is taken. For bfloat16: 2^-8.
        let half = [1.0 + 2f32.powi(-11), 1.0 + 3.0 * 2f32.powi(-11), -65504.0, 2f32.powi(-24), -0.0];
        let half_rounded = [1.0, 1.0 + 2f32.powi(-9), -65504.0, 2f32.powi(-24), -0.0];
        let brain = [1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8), 1e38, 1e-38, -0.0];
        let brain_rounded =
            [1.0, 1.0 + 2f32.powi(-6), f32::from_bits(0x7e96_0000), f32::from_bits(0x006d_0000), -0.0];
        for (format, numbers, rounded) in [
            (NumberFormat::F32, half, half),
            (NumberFormat::F16, half, half_rounded),
            (NumberFormat::BF16, brain, brain_rounded),
        ] {
            let path = Path::new("a.safetensors");
            let bytes =
                encode(path, &[tensor(&numbers)], &[("n".into(), 7)], format, HashMap::new()).unwrap();
            let file = parse(path, &bytes).unwrap();
            let view = file.tensor("a").unwrap();
            check_format(&view).unwrap();
            let read: Vec<_> = values(&view).unwrap().iter().map(|value| value.to_bits()).collect();
            let expected: Vec<_> = rounded.iter().map(|value| value.to_bits()).collect();
            assert_eq!(read, expected, "{format:?}");
            let count = file.tensor("n").unwrap();
            assert_eq!(
                (count.dtype(), count.shape(), count.data()),
                (Dtype::I64, &[][..], &7_i64.to_le_bytes()[..])
            );
            assert!(check_format(&count).unwrap_err().contains("I64"));
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        let encoded = |values: &[f32], format| {
            encode(Path::new("a.safetensors"), &[tensor(values)], &[], format, HashMap::new())
        };
        for (values, format) in [
            ([1.0, 65520.0], NumberFormat::F16),
            ([f32::MAX, 0.0], NumberFormat::BF16),
            ([f32::NAN, 0.0], NumberFormat::F32),
            ([f32::NAN, 0.0], NumberFormat::BF16),
        ] {
            let error = encoded(&values, format).unwrap_err().to_string();
            assert!(error.contains("a has numbers beyond the range of"), "{error}");
        }
        assert!(encoded(&[65504.0], NumberFormat::F16).is_ok());
    }

    #[test]
    fn a_file_that_is_too_large_for_the_network_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let said = read(&path, 10).unwrap_err().to_string();
        assert!(said.contains("it has 1099511627776 bytes, expected at most 1073741904"), "{said}");
        let said = read(Path::new("/dev/null"), 10).unwrap_err().to_string();
        assert_eq!(said, "cannot read /dev/null: it is a device, expected a regular file");
    }

    #[test]
    fn a_pickle_and_a_torn_file_are_told_apart() {
        let path = Path::new("a.pth");
        let sentence = |bytes: &[u8]| parse(path, bytes).unwrap_err().to_string();
        assert!(sentence(b"PK\x03\x04rest").contains("pickle"));
        assert!(sentence(b"\x80\x02rest").contains("pickle"));
        let whole = encode(path, &[tensor(&[1.0, 2.0])], &[], NumberFormat::F32, HashMap::new()).unwrap();
        for len in [0, 7, 20, whole.len() - 1] {
            assert!(sentence(&whole[..len]).contains("is no safetensors file"));
        }
        // A header that claims more bytes than any file has.
        assert!(sentence(&[&u64::MAX.to_le_bytes()[..], b"{}"].concat()).contains("is no safetensors file"));
    }
}
