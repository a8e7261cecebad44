//! Global contrast normalisation and ZCA whitening as pylearn2's `make_cifar10_gcn_whitened.py` does them, the
//! preprocessing of the paper's Tables 2 to 4. Fitted once to the training set and kept beside it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use data_sharding::{DataError, DataSet, ImageShape};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use tch::{Device, Kind, Tensor};

use crate::checkpoint::replace_file;
use crate::data::whitens;
use crate::error::Error;
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
            Whitening::read_or_fit(&plan.data.train, plan.data.image, &plan.config.data.path)
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

    fn read_or_fit(data: &DataSet, image: ImageShape, folder: &Path) -> Result<Self, Error> {
        let path = kept_at(data, image, folder);
        if let Some(whitening) = Whitening::read(&path, image) {
            return Ok(whitening);
        }
        eprintln!("fitting ZCA whitening to {} images, which is kept in {}", data.len(), path.display());
        let whitening = Whitening::fit(data, image)?;
        // The folder may well be read-only; then the next start fits again.
        if let Err(error) = whitening.write(&path) {
            tracing::warn!("the whitening is not kept: {error}");
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
        let bytes = std::fs::read(path).ok()?;
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let dimensions = image.bytes();
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

    fn write(&self, path: &Path) -> Result<(), Error> {
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
        Ok(replace_file(path, &file)?)
    }
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
