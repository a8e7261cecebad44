//! From the bytes of a batch to the numbers a network reads. Decoding and augmentation are the pool's.

use data_sharding::Batch;
use tch::{Device, Kind, Tensor};

use crate::config::NormalizeConfig;
use crate::error::Error;

/// Copies to the device and normalises there.
pub(crate) struct Input {
    device: Device,
    mean: Tensor,
    reciprocal_std: Tensor,
}

impl Input {
    pub(crate) fn new(normalize: &NormalizeConfig, device: Device) -> Result<Self, Error> {
        let constants = |values: &[f64]| -> Result<Tensor, Error> {
            let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
            Ok(Tensor::f_from_slice(&values)?.f_to_device(device)?)
        };
        let reciprocal: Vec<f64> = normalize.std.iter().map(|std| 1.0 / std).collect();
        Ok(Input { device, mean: constants(&normalize.mean)?, reciprocal_std: constants(&reciprocal)? })
    }

    /// Images `[N, C, H, W]` in channels_last fp32, and labels `[N]`.
    pub(crate) fn load(&self, batch: &Batch) -> Result<(Tensor, Tensor), Error> {
        let shape = batch.shape().map(|side| side as i64);
        let bytes =
            Tensor::f_from_data_size(batch.images(), &shape, Kind::Uint8)?.f_to_device(self.device)?;
        let mut pixels = bytes.f_to_kind(Kind::Float)?;
        let _ = pixels.f_sub_(&self.mean)?;
        let _ = pixels.f_mul_(&self.reciprocal_std)?;
        // A permuted [N, H, W, C] tensor is channels_last: no copy.
        let images = pixels.f_permute([0, 3, 1, 2])?;
        let labels = Tensor::f_from_slice(batch.labels())?.f_to_device(self.device)?;
        Ok((images, labels))
    }
}
