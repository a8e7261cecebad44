//! Normalisation by constants a channel, after the lighting noise: `((pixel + offset) - mean) · (1 / std)` in single
//! precision, the same on every device.

use std::mem::MaybeUninit;

use data_sharding::DeviceParameters;
use tch::{Device, Tensor};

use super::on_device;
use crate::config::ChannelConstants;
use crate::error::Error;
use crate::feed::Delivery;
use crate::memory::filled;

/// Pixels that are worked on at a time on the host: enough that the compiler uses its widest instructions.
const PIXELS: usize = 16;

pub(super) struct Channels {
    mean: Vec<f32>,
    reciprocal_std: Vec<f32>,
    /// The same on the device.
    mean_tensor: Tensor,
    reciprocal_tensor: Tensor,
}

impl Channels {
    pub(super) fn new(constants: &ChannelConstants, device: Device) -> Result<Self, Error> {
        let mean: Vec<f32> = constants.mean.iter().map(|&mean| mean as f32).collect();
        let reciprocal_std: Vec<f32> = constants.std.iter().map(|std| (1.0 / std) as f32).collect();
        Ok(Channels {
            mean_tensor: Tensor::f_from_slice(&mean)?.f_to_device(device)?,
            reciprocal_tensor: Tensor::f_from_slice(&reciprocal_std)?.f_to_device(device)?,
            mean,
            reciprocal_std,
        })
    }

    /// `[N, H, W, C]`
    pub(super) fn apply(&self, delivery: &mut Delivery, lighting: bool) -> Result<Tensor, Error> {
        let batch = delivery.batch();
        if let Some(bytes) = delivery.on_host() {
            let shape = batch.shape().map(|side| side as i64);
            let parameters = if lighting { batch.device_parameters() } else { &[] };
            return filled(&shape, |output| self.on_host(bytes, batch.len(), parameters, output));
        }
        let mut pixels = delivery.floats()?;
        if lighting {
            let parameters = delivery.batch().device_parameters();
            let offsets: Vec<f32> = parameters.iter().flat_map(|sample| sample.color_offset).collect();
            let offsets = on_device(&offsets, pixels.device())?.f_reshape([-1, 1, 1, 3])?;
            let _ = pixels.f_add_(&offsets)?;
        }
        let _ = pixels.f_sub_(&self.mean_tensor)?;
        let _ = pixels.f_mul_(&self.reciprocal_tensor)?;
        Ok(pixels)
    }

    /// In one pass over the memory, where libtorch's operations would make three.
    fn on_host(
        &self,
        bytes: &[u8],
        samples: usize,
        parameters: &[DeviceParameters],
        output: &mut [MaybeUninit<f32>],
    ) {
        let image = bytes.len() / samples;
        let mean = self.mean.repeat(PIXELS);
        let scale = self.reciprocal_std.repeat(PIXELS);
        let mut offset = vec![0.0; mean.len()];
        for (sample, (bytes, output)) in
            bytes.chunks_exact(image).zip(output.chunks_exact_mut(image)).enumerate()
        {
            if let Some(parameters) = parameters.get(sample) {
                offset = parameters.color_offset.repeat(PIXELS);
            }
            for (bytes, output) in bytes.chunks(mean.len()).zip(output.chunks_mut(mean.len())) {
                let constants = offset.iter().zip(&mean).zip(&scale);
                for ((byte, output), ((offset, mean), scale)) in bytes.iter().zip(output).zip(constants) {
                    output.write(((f32::from(*byte) + offset) - mean) * scale);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn the_host_computes_what_a_device_would_to_the_bit() {
        for channels in [1_usize, 3] {
            let constants = ChannelConstants { mean: vec![125.3, 123.0, 113.9], std: vec![63.0, 62.1, 66.7] };
            let constants = ChannelConstants {
                mean: constants.mean[..channels].to_vec(),
                std: constants.std[..channels].to_vec(),
            };
            let normalize = Channels::new(&constants, Device::Cpu).unwrap();
            let shape = [2, 5, 7, channels as i64];
            let bytes: Vec<u8> = (0..2 * 35 * channels).map(|i| (i * 89 % 256) as u8).collect();
            let offsets = [[1.5_f32, -3.25, 0.1], [-7.0, 0.0, 2.5]];
            let parameters =
                offsets.map(|color_offset| DeviceParameters { color_offset, ..DeviceParameters::default() });
            for parameters in [&parameters[..], &[]] {
                if channels == 1 && !parameters.is_empty() {
                    continue;
                }
                let found =
                    filled(&shape, |output| normalize.on_host(&bytes, 2, parameters, output)).unwrap();
                let mut expected = Tensor::from_data_size(&bytes, &shape, Kind::Uint8).to_kind(Kind::Float);
                if !parameters.is_empty() {
                    expected += Tensor::from_slice(&offsets.concat()).reshape([2, 1, 1, 3]);
                }
                let expected = (expected - &normalize.mean_tensor) * &normalize.reciprocal_tensor;
                assert_eq!(found, expected);
            }
        }
    }
}
