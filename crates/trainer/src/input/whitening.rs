//! Global contrast normalisation and ZCA whitening as pylearn2's `make_cifar10_gcn_whitened.py` does them, the
//! preprocessing of the paper's Tables 2 to 4. Fitted once to a training set and kept in the user's cache: in
//! `wrn-dist` below `$XDG_CACHE_HOME` or, without that, `~/.cache`. Data sets may lie where nobody can write.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use data_sharding::{DataError, DataSet, ImageShape};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use tch::{Device, Kind, Tensor};

use crate::checkpoint::replace_file_by;
use crate::data::whitens;
use crate::error::Error;
use crate::files;
use crate::memory::region_of;
use crate::plan::Plan;
use crate::session::Session;

/// Norm of a contrast-normalised image, and what is added to the covariance's eigenvalues: pylearn2's
/// `GlobalContrastNormalization(scale=55.)` and `ZCA()`, whose `filter_bias` is 0.1.
const SCALE: f64 = 55.0;
const FILTER_BIAS: f64 = 0.1;
/// Images of a smaller norm are not divided by it.
const LEAST_NORM: f64 = 1e-8;
/// Images that are taken up at a time while fitting.
const CHUNK: usize = 2000;
/// Bytes before the numbers of a kept file.
const LARGEST_HEADER: u64 = 1 << 16;

/// The fitted transformation of flattened images, whose length is D: `(x - mean) · matrix`.
pub(crate) struct Whitening {
    /// `[D]`
    mean: Tensor,
    /// `[D, D]`, symmetric.
    matrix: Tensor,
}

impl Whitening {
    /// Collective: rank 0 reads or fits it, the others receive the same bits. `None` where images are not whitened.
    pub(crate) fn prepare(session: &Session, plan: &Plan) -> Result<Option<Self>, Error> {
        if !whitens(&plan.config.data) {
            return Ok(None);
        }
        let dimensions = plan.data.image.bytes() as i64;
        let local = if session.is_leader() {
            Whitening::read_or_fit(&plan.data.train, plan.data.image, cache().as_deref())
        } else {
            let zeros =
                |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Float, Device::Cpu)).map_err(Error::from);
            zeros(&[dimensions])
                .and_then(|mean| Ok(Whitening { mean, matrix: zeros(&[dimensions, dimensions])? }))
        };
        let whitening = session.agree(local)?;
        for tensor in [&whitening.mean, &whitening.matrix] {
            session.comm().broadcast(region_of(&tensor.f_view([-1])?)?, 0)?;
        }
        Ok(Some(whitening))
    }

    /// `cache` is the folder where it is kept.
    fn read_or_fit(data: &DataSet, image: ImageShape, cache: Option<&Path>) -> Result<Self, Error> {
        let path = cache.map(|cache| kept_at(data, image, cache));
        if let Some(whitening) = path.as_ref().and_then(|path| Whitening::read(path, image)) {
            return Ok(whitening);
        }
        let place = path.as_ref().map_or_else(String::new, |path| format!(", kept in {}", path.display()));
        eprintln!("fitting ZCA whitening to {} images{place}", data.len());
        let whitening = Whitening::fit(data, image)?;
        // Without it the next start fits again.
        if let Some(Err(error)) = path.map(|path| whitening.keep(&path)) {
            eprintln!("warning: the whitening is not kept: {error}");
        }
        Ok(whitening)
    }

    /// To all images of a source of pixels.
    pub(crate) fn fit(data: &DataSet, image: ImageShape) -> Result<Self, Error> {
        let DataSet::Pixels(source) = data else {
            return Err(Error::Other("only images of one size can be whitened".into()));
        };
        let dimensions = image.bytes();
        let double = (Kind::Double, Device::Cpu);
        let _no_grad = tch::no_grad_guard();
        let mut sum = Tensor::f_zeros([dimensions as i64], double)?;
        let mut products = Tensor::f_zeros([dimensions as i64; 2], double)?;
        let mut bytes = vec![0; dimensions * CHUNK.min(source.len())];
        for begin in (0..source.len()).step_by(CHUNK) {
            let count = CHUNK.min(source.len() - begin);
            for (sample, pixels) in (begin..).zip(bytes.chunks_exact_mut(dimensions).take(count)) {
                source.decode(sample, pixels).map_err(|error: DataError| Error::from(error))?;
            }
            let shape = [count as i64, dimensions as i64];
            let images = Tensor::f_from_data_size(&bytes[..count * dimensions], &shape, Kind::Uint8)?;
            let images = contrast_normalized(&images.f_to_kind(Kind::Double)?)?;
            let _ = sum.f_add_(&images.f_sum_dim_intlist([0_i64].as_slice(), false, Kind::Double)?)?;
            let _ = products.f_addmm_(&images.f_tr()?, &images)?;
        }
        let samples = source.len() as f64;
        let mean = sum.f_div_scalar(samples)?;
        let covariance = products.f_div_scalar(samples)?.f_sub(&mean.f_outer(&mean)?)?;
        let bias = Tensor::f_eye(dimensions as i64, double)?.f_mul_scalar(FILTER_BIAS)?;
        let (eigenvalues, eigenvectors) = covariance.f_add(&bias)?.f_linalg_eigh("L")?;
        let scaled = eigenvectors.f_mul(&eigenvalues.f_rsqrt()?)?;
        let matrix = scaled.f_matmul(&eigenvectors.f_tr()?)?;
        let single =
            |tensor: Tensor| -> Result<Tensor, Error> { Ok(tensor.f_to_kind(Kind::Float)?.f_contiguous()?) };
        Ok(Whitening { mean: single(mean)?, matrix: single(matrix)? })
    }

    /// `None` unless the file is whole and of these images.
    fn read(path: &Path, image: ImageShape) -> Option<Self> {
        let dimensions = image.bytes();
        let most = 4 * dimensions as u64 * (1 + dimensions as u64) + LARGEST_HEADER;
        let bytes = files::read(path, most).ok()?;
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let tensor = |name: &str, shape: &[usize]| {
            let view = tensors.tensor(name).ok()?;
            let whole = view.dtype() == Dtype::F32 && view.shape() == shape;
            let shape: Vec<i64> = shape.iter().map(|&side| side as i64).collect();
            whole.then(|| Tensor::f_from_data_size(view.data(), &shape, Kind::Float).ok()).flatten()
        };
        Some(Whitening {
            mean: tensor("mean", &[dimensions])?,
            matrix: tensor("matrix", &[dimensions, dimensions])?,
        })
    }

    fn keep(&self, path: &Path) -> Result<(), Error> {
        let dimensions = self.mean.size()[0] as usize;
        let bytes = |tensor: &Tensor| -> Result<Vec<u8>, Error> {
            let mut values = vec![0.0_f32; tensor.numel()];
            tensor.f_copy_data(&mut values, tensor.numel())?;
            Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
        };
        let (mean, matrix) = (bytes(&self.mean)?, bytes(&self.matrix)?);
        let view = |shape: Vec<usize>, data| {
            TensorView::new(Dtype::F32, shape, data).map_err(|error| Error::Other(error.to_string()))
        };
        let tensors = HashMap::from([
            ("mean", view(vec![dimensions], &mean)?),
            ("matrix", view(vec![dimensions, dimensions], &matrix)?),
        ]);
        let file = serialize(tensors, None).map_err(|error| Error::Other(error.to_string()))?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        }
        // Two runs may have fitted at the same time.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let own = path.with_file_name(format!(".{}-{name}", std::process::id()));
        Ok(replace_file_by(&own, path, &file)?)
    }
}

/// The user's cache; none without a home.
fn cache() -> Option<PathBuf> {
    cache_of(|name| std::env::var_os(name).map(PathBuf::from))
}

/// As the XDG base directory specification has it: relative paths do not count.
fn cache_of(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |path: &PathBuf| path.is_absolute();
    let base = variable("XDG_CACHE_HOME").filter(absolute);
    let base = base.or_else(|| variable("HOME").filter(absolute).map(|home| home.join(".cache")));
    base.map(|base| base.join("wrn-dist"))
}

/// The file is named after what was whitened, so that it never serves other images.
fn kept_at(data: &DataSet, image: ImageShape, folder: &Path) -> PathBuf {
    let ImageShape { height, width, channels } = image;
    folder.join(format!("zca-{}-{height}x{width}x{channels}.safetensors", data.fingerprint()))
}

/// `[N, D]`: each image less its mean, scaled to norm [`SCALE`].
fn contrast_normalized(images: &Tensor) -> Result<Tensor, Error> {
    let kind = images.kind();
    let centered = images.f_sub(&images.f_mean_dim([1_i64].as_slice(), true, kind)?)?;
    let norms = centered.f_square()?.f_sum_dim_intlist([1_i64].as_slice(), true, kind)?.f_sqrt()?;
    let scales = norms.f_div_scalar(SCALE)?;
    let scales = scales.f_masked_fill(&scales.f_lt(LEAST_NORM)?, 1.0)?;
    Ok(centered.f_div(&scales)?)
}

/// The transformation on a device.
pub(super) struct Whitener {
    mean: Tensor,
    matrix: Tensor,
}

impl Whitener {
    pub(super) fn new(whitening: &Whitening, device: Device) -> Result<Self, Error> {
        Ok(Whitener {
            mean: whitening.mean.f_to_device(device)?,
            matrix: whitening.matrix.f_to_device(device)?,
        })
    }

    /// Images `[N, H, W, C]` on the scale 0 to 255.
    pub(super) fn apply(&self, pixels: &Tensor) -> Result<Tensor, Error> {
        let flat = contrast_normalized(&pixels.f_reshape([pixels.size()[0], -1])?)?;
        Ok(flat.f_sub(&self.mean)?.f_matmul(&self.matrix)?.f_reshape(pixels.size())?)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::made_up;
    use super::*;

    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/zca.py");
    const SHAPE: ImageShape = ImageShape { height: 4, width: 4, channels: 3 };
    const COUNT: usize = 300;

    /// Gradients with noise, and one image of a single value.
    fn images() -> Vec<u8> {
        let mut state = 3_u32;
        let mut bytes = Vec::new();
        for sample in 0..COUNT {
            for value in 0..SHAPE.bytes() {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let noise = (state >> 26) as usize;
                bytes.push(if sample == 7 { 90 } else { (sample % 50 + 2 * value + noise) as u8 });
            }
        }
        bytes
    }

    fn data() -> DataSet {
        made_up::data_set(SHAPE, images())
    }

    fn whitened(whitening: &Whitening) -> Vec<f64> {
        let shape = [COUNT, 4, 4, 3].map(|side| side as i64);
        let pixels = Tensor::from_data_size(&images(), &shape, Kind::Uint8).to_kind(Kind::Float);
        let result = Whitener::new(whitening, Device::Cpu).unwrap().apply(&pixels).unwrap();
        Vec::try_from(result.to_kind(Kind::Double).flatten(0, -1)).unwrap()
    }

    #[test]
    fn whitened_images_are_those_of_pylearn2() {
        let found = Command::new("python3").args(["-c", "import numpy"]).output();
        if !found.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: python3 has no numpy to compare with");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("images"), folder.path().join("whitened"));
        std::fs::write(&input, images()).unwrap();
        let status = Command::new("python3")
            .arg(SCRIPT)
            .arg(&input)
            .arg(COUNT.to_string())
            .arg(&output)
            .status()
            .unwrap();
        assert!(status.success());
        let expected: Vec<f64> = std::fs::read(&output)
            .unwrap()
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
            .collect();
        let found = whitened(&Whitening::fit(&data(), SHAPE).unwrap());
        let largest = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert_eq!(found.len(), expected.len());
        assert!(largest < 1e-4, "largest difference {largest}");
        assert!(expected.iter().any(|value| value.abs() > 1.0));
    }

    #[test]
    fn whitened_values_are_uncorrelated() {
        let values = whitened(&Whitening::fit(&data(), SHAPE).unwrap());
        let values = Tensor::from_slice(&values).reshape([COUNT as i64, SHAPE.bytes() as i64]);
        let centered = &values - values.mean_dim([0_i64].as_slice(), true, Kind::Double);
        let covariance = centered.tr().matmul(&centered) / COUNT as f64;
        let off_diagonal = &covariance - covariance.diag(0).diag(0);
        // The bias keeps directions without variance small, and everything else near 1.
        assert!(covariance.diag(0).max().double_value(&[]) < 1.01);
        assert!(off_diagonal.abs().max().double_value(&[]) < 0.2);
    }

    #[test]
    fn what_was_kept_is_read_back_and_anything_else_is_fitted_again() {
        let folder = tempfile::tempdir().unwrap();
        // Made when it is needed.
        let cache = folder.path().join("cache/wrn-dist");
        let first = Whitening::read_or_fit(&data(), SHAPE, Some(&cache)).unwrap();
        let path = kept_at(&data(), SHAPE, &cache);
        let kept = Whitening::read(&path, SHAPE).unwrap();
        assert_eq!((&kept.mean, &kept.matrix), (&first.mean, &first.matrix));
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1, "nothing temporary is left");
        let other = ImageShape { height: 2, ..SHAPE };
        assert!(Whitening::read(&path, other).is_none());
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let again = Whitening::read_or_fit(&data(), SHAPE, Some(&cache)).unwrap();
        assert_eq!(again.matrix, first.matrix);
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        // A cache that cannot be written, or none at all, costs time only.
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for cache in [Some(&*file), None] {
            assert_eq!(Whitening::read_or_fit(&data(), SHAPE, cache).unwrap().matrix, first.matrix);
        }
    }

    #[test]
    fn the_cache_is_the_users() {
        let cases = [
            (Some("/x/cache"), Some("/home/a"), Some("/x/cache/wrn-dist")),
            (None, Some("/home/a"), Some("/home/a/.cache/wrn-dist")),
            (Some("relative"), Some("/home/a"), Some("/home/a/.cache/wrn-dist")),
            (Some(""), None, None),
        ];
        for (xdg, home, expected) in cases {
            let variable = |name: &str| if name == "HOME" { home } else { xdg }.map(PathBuf::from);
            assert_eq!(cache_of(variable), expected.map(PathBuf::from), "{xdg:?} {home:?}");
        }
    }
}
