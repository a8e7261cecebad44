//! `wrn-dist data show`: a picture of training images as the network gets them.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use data_sharding::SampleKey;
use tch::{Device, Kind, Tensor};

use crate::config::{self, NormalizeConfig};
use crate::data::whitens;
use crate::error::Error;
use crate::feed::Feed;
use crate::input::Input;
use crate::plan::Plan;

/// What `wrn-dist data show` was asked to do.
#[derive(Clone, Debug)]
pub struct ShowOptions {
    /// The configuration file.
    pub config: PathBuf,
    /// `--set` arguments.
    pub overrides: Vec<String>,
    /// Samples, taken evenly from the training set: the rows.
    pub samples: usize,
    /// Epochs whose augmentation is shown: the columns.
    pub epochs: usize,
    /// The first of these, counted from 1.
    pub first_epoch: u32,
    /// The PNG file.
    pub out: PathBuf,
}

/// Pixels between images.
const GAP: usize = 2;
/// Larger pictures are a slip of the pen.
const MOST_BYTES: usize = 1 << 30;

/// Draws one row a sample and one column an epoch: cropped, coloured, erased and mixed, with the normalisation undone.
/// Gives a sentence about the picture.
///
/// # Errors
/// What is wrong with the configuration or the data, or a file that cannot be written.
pub fn show_samples(options: &ShowOptions) -> Result<String, Error> {
    let loaded = config::load(&options.config, &options.overrides)?;
    let plan = Plan::open(&loaded, 0, 1)?;
    if whitens(&plan.config.data) {
        return Err(loaded
            .error("data.normalize", "whitened images have no colours to show; --set another")
            .into());
    }
    let samples = options.samples.clamp(1, plan.data.train.len());
    let epochs = options.epochs.max(1);
    let first_epoch = u64::from(options.first_epoch.max(1)) - 1;
    let stride = plan.data.train.len() / samples;
    let requests = (first_epoch..first_epoch + epochs as u64).map(move |epoch| {
        (0..samples).map(|row| SampleKey { sample: (row * stride) as u32, epoch, repetition: 0 }).collect()
    });
    let data = &plan.data;
    let mut feed = Feed::start(
        Device::Cpu,
        data.train.clone(),
        data.train_augmentation.clone(),
        Box::new(requests),
        data.pool_options(1, samples, 2),
    )?;
    let normalize = plan.config.data.normalize.as_ref();
    let input = Input::new(normalize, None, data.train_augmentation.clone(), Device::Cpu)?;
    let mut columns = Vec::with_capacity(epochs);
    for epoch in first_epoch..first_epoch + epochs as u64 {
        let mut delivery = feed.next()?;
        let [len, height, width, _] = delivery.batch().shape();
        let mix = data.mix.draw(plan.config.seed, epoch, 0, len, (width as u32, height as u32));
        let (images, _) = input.load(&mut delivery, mix.as_ref())?;
        columns.push(bytes_of(&images, normalize)?);
    }
    let picture = Picture::of(&columns)?;
    picture.write(&options.out)?;
    Ok(format!(
        "{}: {samples} samples of {} in epochs {} to {}\n",
        options.out.display(),
        data.train.name(),
        first_epoch + 1,
        first_epoch + epochs as u64
    ))
}

/// Images `[N, H, W, 3]` as bytes.
struct Images {
    bytes: Vec<u8>,
    count: usize,
    height: usize,
    width: usize,
}

/// Undoes the normalisation of `[N, C, H, W]`.
fn bytes_of(images: &Tensor, normalize: Option<&NormalizeConfig>) -> Result<Images, Error> {
    let Some(NormalizeConfig::Channels(constants)) = normalize else {
        return Err(Error::Other("normalisation is not resolved".into()));
    };
    let size = images.size();
    let constant = |values: &[f64]| Tensor::f_from_slice(values)?.f_to_kind(Kind::Float);
    let pixels = images
        .f_permute([0, 2, 3, 1])?
        .f_mul(&constant(&constants.std)?)?
        .f_add(&constant(&constants.mean)?)?;
    let pixels = pixels.f_expand([size[0], size[2], size[3], 3], false)?;
    let bytes = pixels.f_round()?.f_clamp(0.0, 255.0)?.f_to_kind(Kind::Uint8)?.f_contiguous()?;
    let mut values = vec![0; bytes.numel()];
    bytes.f_copy_data(&mut values, bytes.numel())?;
    Ok(Images { bytes: values, count: size[0] as usize, height: size[2] as usize, width: size[3] as usize })
}

/// An RGB picture.
struct Picture {
    width: usize,
    height: usize,
    bytes: Vec<u8>,
}

impl Picture {
    /// A grid whose columns hold images of equal size each.
    fn of(columns: &[Images]) -> Result<Self, Error> {
        let cell = columns.iter().map(|images| images.height.max(images.width)).max().unwrap_or(0) + GAP;
        let rows = columns.iter().map(|images| images.count).max().unwrap_or(0);
        let (width, height) = (cell * columns.len() + GAP, cell * rows + GAP);
        let len = width.saturating_mul(height).saturating_mul(3);
        if len > MOST_BYTES {
            return Err(Error::Other(format!(
                "a picture of {width}x{height} pixels is too large; show fewer samples"
            )));
        }
        let mut bytes = vec![255; len];
        for (column, images) in columns.iter().enumerate() {
            let row_bytes = 3 * images.width;
            for (line, pixels) in images.bytes.chunks_exact(row_bytes).enumerate() {
                let (image, y) = (line / images.height, line % images.height);
                let begin = 3 * ((GAP + image * cell + y) * width + GAP + column * cell);
                bytes[begin..begin + row_bytes].copy_from_slice(pixels);
            }
        }
        Ok(Picture { width, height, bytes })
    }

    fn write(&self, path: &Path) -> Result<(), Error> {
        let file = File::create(path).map_err(Error::file("create", path))?;
        let mut encoder = png::Encoder::new(BufWriter::new(file), self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let written = encoder.write_header().and_then(|mut writer| {
            writer.write_image_data(&self.bytes)?;
            writer.finish()
        });
        written.map_err(|error| Error::file("write", path)(std::io::Error::other(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_several_sizes_stand_in_one_grid() {
        let images = |count: usize, side: usize, value| Images {
            bytes: vec![value; count * side * side * 3],
            count,
            height: side,
            width: side,
        };
        let picture = Picture::of(&[images(2, 3, 10), images(2, 4, 20)]).unwrap();
        assert_eq!((picture.width, picture.height), (14, 14));
        let red = |x: usize, y: usize| picture.bytes[3 * (y * 14 + x)];
        assert_eq!([red(2, 2), red(4, 4), red(5, 5), red(2, 8)], [10, 10, 255, 10]);
        assert_eq!([red(8, 2), red(11, 5), red(8, 8), red(7, 2)], [20, 20, 20, 255]);
    }

    #[test]
    fn normalisation_is_undone() {
        let constants =
            config::ChannelConstants { mean: vec![100.0, 50.0, 25.0], std: vec![50.0, 60.0, 70.0] };
        let bytes = Tensor::from_slice(&[0_u8, 99, 255, 7, 60, 128]).reshape([1, 1, 2, 3]);
        let mean = Tensor::from_slice(&constants.mean).to_kind(Kind::Float);
        let std = Tensor::from_slice(&constants.std).to_kind(Kind::Float);
        let images = ((bytes.to_kind(Kind::Float) - mean) / std).permute([0, 3, 1, 2]);
        let found = bytes_of(&images, Some(&NormalizeConfig::Channels(constants))).unwrap();
        assert_eq!(found.bytes, [0, 99, 255, 7, 60, 128]);
    }
}
