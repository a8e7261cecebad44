//! From the bytes of a batch to the numbers a network reads and the targets of its loss. Decoding, crops and colours
//! of bytes are the pool's.

mod channels;
#[cfg(test)]
pub(crate) mod made_up;
mod targets;
#[cfg(test)]
mod tests;
mod whitening;

use data_sharding::{Augmentation, Crop, DeviceParameters, MixDraw, PaddingMode, PasteBox};
use tch::kind::Element;
use tch::{Device, Kind, Tensor};
use torch_ext::copy;

pub(crate) use targets::Targets;
pub(crate) use whitening::Whitening;

use self::channels::Channels;
use self::whitening::Whitener;
use crate::config::NormalizeConfig;
use crate::error::Error;
use crate::feed::Delivery;

/// Does on the device, in this order: lighting, normalisation, the crop where whitening comes before
/// it, erasing, and mixing.
pub(crate) struct Input {
    device: Device,
    normalization: Normalization,
    train: Augmentation,
}

enum Normalization {
    Channels(Channels),
    Whitening(Whitener),
}

impl Input {
    /// `whitening` where `normalize` asks for it.
    pub(crate) fn new(
        normalize: Option<&NormalizeConfig>,
        whitening: Option<&Whitening>,
        train: Augmentation,
        device: Device,
    ) -> Result<Self, Error> {
        let normalization = match (normalize, whitening) {
            (Some(NormalizeConfig::Channels(constants)), _) => {
                Normalization::Channels(Channels::new(constants, device)?)
            }
            (Some(NormalizeConfig::Named(_)), Some(whitening)) => {
                Normalization::Whitening(Whitener::new(whitening, device)?)
            }
            _ => return Err(Error::Other("normalisation is not resolved".into())),
        };
        Ok(Input { device, normalization, train })
    }

    /// Training images `[N, C, H, W]` in channels_last fp32, and what the loss compares with.
    pub(crate) fn load(
        &self,
        delivery: &mut Delivery,
        mix: Option<&MixDraw>,
    ) -> Result<(Tensor, Targets), Error> {
        let mut pixels = self.normalize(delivery, self.train.lighting > 0.0)?;
        let batch = delivery.batch();
        let parameters = batch.device_parameters();
        if self.train.crop_on_device {
            pixels = self.crop(pixels, parameters)?;
        }
        if self.train.erase.is_some() {
            self.erase(&mut pixels, parameters)?;
        }
        let labels = on_device(batch.labels(), self.device)?;
        let partners = match mix {
            Some(draw) => Some(on_device(&draw.partners, self.device)?),
            None => None,
        };
        let targets = match (mix, &partners) {
            (Some(draw), Some(partners)) => {
                blend(&mut pixels, partners, draw)?;
                Targets::mixed(labels, partners, draw.weight, batch.skipped().len())?
            }
            _ => Targets::plain(labels, batch.skipped().len()),
        };
        // A permuted [N, H, W, C] tensor is channels_last: no copy.
        Ok((pixels.f_permute([0, 3, 1, 2])?, targets))
    }

    /// Test images `[N, C, H, W]` in channels_last fp32, and labels `[N]`.
    pub(crate) fn load_test(&self, delivery: &mut Delivery) -> Result<(Tensor, Tensor), Error> {
        let pixels = self.normalize(delivery, false)?;
        let labels = on_device(delivery.batch().labels(), self.device)?;
        Ok((pixels.f_permute([0, 3, 1, 2])?, labels))
    }

    /// `[N, H, W, C]`
    fn normalize(&self, delivery: &mut Delivery, lighting: bool) -> Result<Tensor, Error> {
        match &self.normalization {
            Normalization::Channels(channels) => channels.apply(delivery, lighting),
            Normalization::Whitening(whitener) => whitener.apply(&delivery.floats()?),
        }
    }

    /// One number of each sample, `[N, 1, 1]`.
    fn column(&self, values: impl Iterator<Item = i32>) -> Result<Tensor, Error> {
        let values: Vec<i64> = values.map(i64::from).collect();
        Ok(on_device(&values, self.device)?.f_reshape([-1, 1, 1])?)
    }

    /// Row and column indices, `[1, H, 1]` and `[1, 1, W]`.
    fn places(&self, height: i64, width: i64) -> Result<(Tensor, Tensor), Error> {
        let count = |count: i64| Tensor::f_arange(count, (Kind::Int64, self.device));
        Ok((count(height)?.f_reshape([1, -1, 1])?, count(width)?.f_reshape([1, 1, -1])?))
    }

    fn erase(&self, pixels: &mut Tensor, parameters: &[DeviceParameters]) -> Result<(), Error> {
        if parameters.iter().all(|sample| sample.erase[2] == 0) {
            return Ok(());
        }
        let [left, top, right, bottom] =
            [0, 1, 2, 3].map(|edge| self.column(parameters.iter().map(|sample| sample.erase[edge])));
        let (rows, columns) = self.places(pixels.size()[1], pixels.size()[2])?;
        let inside = |places: &Tensor, begin: Tensor, end: Tensor| -> Result<Tensor, Error> {
            Ok(places.f_ge_tensor(&begin)?.f_logical_and(&places.f_lt_tensor(&end)?)?)
        };
        let mask = inside(&rows, top?, bottom?)?.f_logical_and(&inside(&columns, left?, right?)?)?;
        let _ = pixels.f_masked_fill_(&mask.f_unsqueeze(-1)?, 0.0)?;
        Ok(())
    }

    /// The flip and padded crop that the pool has left to the device.
    fn crop(&self, pixels: Tensor, parameters: &[DeviceParameters]) -> Result<Tensor, Error> {
        let (padding, mode) = match self.train.crop {
            Crop::Padded { padding, mode } => (i64::from(padding), mode),
            _ => (0, PaddingMode::Zero),
        };
        let (height, width) = (pixels.size()[1], pixels.size()[2]);
        let margins = [padding; 4];
        let planes = pixels.f_permute([0, 3, 1, 2])?;
        let padded = match mode {
            _ if padding == 0 => planes,
            PaddingMode::Reflect => planes.f_reflection_pad2d(margins)?,
            PaddingMode::Zero => planes.f_constant_pad_nd(margins)?,
        };
        let padded = padded.f_permute([0, 2, 3, 1])?;
        let [flip, row, column] =
            [0, 1, 2].map(|entry| self.column(parameters.iter().map(|sample| sample.placement[entry])));
        let (rows, columns) = self.places(height, width)?;
        let (rows, columns) = (rows.f_add(&row?)?, columns.f_add(&column?)?);
        // The mirrored image is the one that was padded, evenly on both sides.
        let mirrored = columns.f_neg()?.f_add_scalar(width + 2 * padding - 1)?;
        let columns = mirrored.f_where_self(&flip?.f_to_kind(Kind::Bool)?, &columns)?;
        let samples =
            Tensor::f_arange(pixels.size()[0], (Kind::Int64, self.device))?.f_reshape([-1, 1, 1])?;
        Ok(padded.f_index(&[Some(samples), Some(rows), Some(columns)])?)
    }
}

/// A few numbers of each sample, for which the host does not wait.
fn on_device<T: Element>(numbers: &[T], device: Device) -> Result<Tensor, Error> {
    Ok(copy::to_device(&Tensor::f_from_slice(numbers)?, device)?)
}

/// Mixup: every pixel averaged with the partner's. Cutmix: the partner's box.
fn blend(pixels: &mut Tensor, partners: &Tensor, draw: &MixDraw) -> Result<(), Error> {
    match draw.paste {
        None => {
            let others = pixels.f_index_select(0, partners)?;
            let _ = pixels.f_mul_scalar_(draw.weight)?;
            let _ = pixels.f_add_(&others.f_mul_scalar(1.0 - draw.weight)?)?;
        }
        Some(PasteBox { left, top, right, bottom }) => {
            let mut place = pixels.f_slice(1, i64::from(top), i64::from(bottom), 1)?.f_slice(
                2,
                i64::from(left),
                i64::from(right),
                1,
            )?;
            let others = place.f_index_select(0, partners)?;
            place.f_copy_(&others)?;
        }
    }
    Ok(())
}
