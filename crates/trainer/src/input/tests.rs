//! What the device does with a batch, against the pool's own work and against plain loops.

use data_sharding::{ImageShape, OnBadSample, PoolOptions, RandomErasing, SampleKey};

use super::*;
use crate::config::ChannelConstants;
use crate::feed::Feed;

const SHAPE: ImageShape = ImageShape { height: 6, width: 6, channels: 3 };
const COUNT: usize = 16;

fn feed(augmentation: &Augmentation) -> Feed {
    let keys = (0..COUNT as u32).map(|sample| SampleKey { sample, epoch: 2, repetition: 0 }).collect();
    let options =
        PoolOptions { workers: 1, batch_size: COUNT, prefetch: 1, on_bad_sample: OnBadSample::Error };
    let byte = |at: usize| (at / SHAPE.bytes() * 53 + at % SHAPE.bytes() * 29) as u8;
    let data = made_up::data_set(SHAPE, (0..COUNT * SHAPE.bytes()).map(byte).collect());
    Feed::start(Device::Cpu, data, augmentation.clone(), Box::new(std::iter::once(keys)), options).unwrap()
}

fn parameters(augmentation: &Augmentation) -> Vec<DeviceParameters> {
    feed(augmentation).next().unwrap().batch().device_parameters().to_vec()
}

fn input(augmentation: &Augmentation) -> Input {
    let constants = ChannelConstants { mean: vec![120.0, 110.0, 100.0], std: vec![50.0, 60.0, 70.0] };
    Input::new(Some(&NormalizeConfig::Channels(constants)), None, augmentation.clone(), Device::Cpu).unwrap()
}

fn augmentation() -> Augmentation {
    let crop = Crop::Padded { padding: 2, mode: PaddingMode::Reflect };
    Augmentation { seed: 5, flip: true, crop, ..Augmentation::none() }
}

/// `[N, H, W, C]`
fn loaded(augmentation: &Augmentation, mix: Option<&MixDraw>) -> Tensor {
    let (images, _) = input(augmentation).load(&mut feed(augmentation).next().unwrap(), mix).unwrap();
    images.permute([0, 2, 3, 1]).contiguous()
}

#[test]
fn a_crop_on_the_device_is_the_pools() {
    for flip in [true, false] {
        for padding in [0, 1, 4] {
            let crop = Crop::Padded { padding, mode: PaddingMode::Reflect };
            let in_pool = Augmentation { flip, crop, ..augmentation() };
            let on_device = Augmentation { crop_on_device: true, ..in_pool.clone() };
            assert_eq!(loaded(&in_pool, None), loaded(&on_device, None), "flip {flip}, padding {padding}");
        }
    }
}

#[test]
fn erased_boxes_are_zero_and_nothing_else_is() {
    let plain = augmentation();
    let erase = RandomErasing { probability: 0.6, area: (0.1, 0.4), aspect: (0.5, 2.0) };
    let erasing = Augmentation { erase: Some(erase), ..plain.clone() };
    let parameters = parameters(&erasing);
    let (before, after) = (loaded(&plain, None), loaded(&erasing, None));
    let mut erased = 0;
    for (sample, [left, top, right, bottom]) in parameters.iter().map(|sample| sample.erase).enumerate() {
        for (y, x) in (0..6).flat_map(|y| (0..6).map(move |x| (y, x))) {
            let inside = (left..right).contains(&x) && (top..bottom).contains(&y);
            for channel in 0..3 {
                let at = |images: &Tensor| images.double_value(&[sample as i64, y.into(), x.into(), channel]);
                assert_eq!(at(&after), if inside { 0.0 } else { at(&before) });
            }
            erased += usize::from(inside);
        }
    }
    assert!(erased > 10, "{erased} pixels");
}

#[test]
fn lighting_shifts_the_colours_of_each_image() {
    let lit = Augmentation { lighting: 0.5, ..augmentation() };
    let parameters = parameters(&lit);
    let shift = loaded(&lit, None) - loaded(&augmentation(), None);
    for (sample, parameters) in parameters.iter().enumerate() {
        for (channel, std) in [50.0, 60.0, 70.0].into_iter().enumerate() {
            let expected = f64::from(parameters.color_offset[channel]) / std;
            let found = shift.select(0, sample as i64).select(2, channel as i64);
            assert!((&found - expected).abs().max().double_value(&[]) < 1e-5);
            assert!(expected != 0.0);
        }
    }
}

#[test]
fn mixed_images_are_averages_or_collages_with_their_partners() {
    let plain = loaded(&augmentation(), None);
    let partners: Vec<i64> = (0..COUNT as i64).rev().collect();
    let others = plain.index_select(0, &Tensor::from_slice(&partners));
    let averaged =
        loaded(&augmentation(), Some(&MixDraw { weight: 0.3, partners: partners.clone(), paste: None }));
    let expected = &plain * 0.3 + &others * 0.7;
    assert!((averaged - expected).abs().max().double_value(&[]) < 1e-6);

    let paste = PasteBox { left: 1, top: 2, right: 4, bottom: 6 };
    let collage = loaded(&augmentation(), Some(&MixDraw { weight: 0.3, partners, paste: Some(paste) }));
    let expected = plain.copy();
    let place = |images: &Tensor| images.slice(1, 2, 6, 1).slice(2, 1, 4, 1);
    place(&expected).copy_(&place(&others));
    assert_eq!(collage, expected);
}

#[test]
fn test_images_are_not_augmented_on_the_device() {
    let everything = Augmentation {
        lighting: 0.5,
        erase: Some(RandomErasing { probability: 1.0, area: (0.1, 0.4), aspect: (0.5, 2.0) }),
        crop_on_device: true,
        ..augmentation()
    };
    let plain = Augmentation::none();
    let (images, labels) = input(&everything).load_test(&mut feed(&plain).next().unwrap()).unwrap();
    assert_eq!(images, input(&plain).load(&mut feed(&plain).next().unwrap(), None).unwrap().0);
    assert_eq!(Vec::<i64>::try_from(labels).unwrap(), (0..COUNT as i64).collect::<Vec<_>>());
}
