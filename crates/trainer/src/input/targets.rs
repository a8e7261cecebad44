//! What the loss of a micro batch compares the logits with: labels, or two weighted labels where images are mixed.

use data_sharding::Batch;
use tch::{Kind, Reduction, Tensor};

use crate::error::Error;

/// The right answers of a micro batch.
pub(crate) struct Targets {
    /// `[N]`, that of a skipped sample [`Batch::SKIPPED`].
    pub(crate) labels: Tensor,
    mixed: Option<Mixed>,
    /// Samples without a right answer.
    pub(crate) skipped: usize,
}

struct Mixed {
    /// Of `labels`; `partners` have the rest.
    weight: f64,
    partners: Tensor,
}

impl Targets {
    pub(super) fn plain(labels: Tensor, skipped: usize) -> Self {
        Targets { labels, mixed: None, skipped }
    }

    pub(super) fn mixed(
        labels: Tensor,
        partners: &Tensor,
        weight: f64,
        skipped: usize,
    ) -> Result<Self, Error> {
        let partners = labels.f_index_select(0, partners)?;
        Ok(Targets { labels, mixed: Some(Mixed { weight, partners }), skipped })
    }

    /// Mean cross-entropy over all samples of the micro batch; for mixed images with the soft targets, which is the
    /// weighted sum over both labels. The share `smoothing` of each target is spread evenly over all classes. A
    /// skipped sample counts as one whose loss is 0, so that the others weigh what they would without it; what is
    /// reported of a step is divided by the others alone.
    pub(crate) fn loss(&self, logits: &Tensor, smoothing: f64) -> Result<Tensor, Error> {
        let sum = if self.skipped > 0 { Reduction::Sum } else { Reduction::Mean };
        let entropy = |labels: &Tensor| {
            logits.f_cross_entropy_loss::<&Tensor>(labels, None, sum, Batch::SKIPPED, smoothing)
        };
        let own = entropy(&self.labels)?;
        let loss = match &self.mixed {
            None => own,
            Some(Mixed { weight, partners }) => {
                own.f_mul_scalar(*weight)?.f_add(&entropy(partners)?.f_mul_scalar(1.0 - weight)?)?
            }
        };
        Ok(if self.skipped > 0 { loss.f_div_scalar(logits.size()[0])? } else { loss })
    }

    /// Number of samples whose most probable class is their own label, a scalar.
    pub(crate) fn correct(&self, logits: &Tensor) -> Result<Tensor, Error> {
        Ok(logits.f_argmax(1, false)?.f_eq_tensor(&self.labels)?.f_sum(Kind::Float)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits() -> Tensor {
        Tensor::from_slice(&[1.0_f32, 2.0, -1.0, 0.5, 0.1, 0.3, -2.0, 0.0, 2.0]).reshape([3, 3])
    }

    fn value(tensor: &Tensor) -> f64 {
        tensor.double_value(&[])
    }

    #[test]
    fn mixed_labels_are_a_soft_target() {
        let labels = Tensor::from_slice(&[1_i64, 0, 2]);
        let partners = Tensor::from_slice(&[2_i64, 0, 1]);
        let targets = Targets::mixed(labels.shallow_clone(), &partners, 0.7, 0).unwrap();
        let soft = labels.one_hot(3) * 0.7 + labels.index_select(0, &partners).one_hot(3) * 0.3;
        let expected = -(logits().log_softmax(1, Kind::Float) * soft).sum(Kind::Float) / 3;
        assert!((value(&targets.loss(&logits(), 0.0).unwrap()) - value(&expected)).abs() < 1e-6);
        assert_eq!(value(&targets.correct(&logits()).unwrap()), 3.0);
    }

    #[test]
    fn skipped_samples_add_nothing_and_take_no_weight_from_others() {
        let whole = Targets::plain(Tensor::from_slice(&[1_i64, 0, 2]), 0);
        let each: Vec<f64> = (0..3)
            .map(|sample| {
                let own = Targets::plain(whole.labels.narrow(0, sample, 1), 0);
                value(&own.loss(&logits().narrow(0, sample, 1), 0.0).unwrap())
            })
            .collect();
        let skipped = Targets::plain(Tensor::from_slice(&[1_i64, Batch::SKIPPED, 2]), 1);
        let loss = value(&skipped.loss(&logits(), 0.0).unwrap());
        assert!((loss - (each[0] + each[2]) / 3.0).abs() < 1e-6);
        assert_eq!(value(&skipped.correct(&logits()).unwrap()), 2.0);
        let none = Targets::plain(Tensor::from_slice(&[Batch::SKIPPED; 3]), 3);
        assert_eq!(value(&none.loss(&logits(), 0.0).unwrap()), 0.0);
        let partners = Tensor::from_slice(&[1_i64, 2, 0]);
        let mixed = Targets::mixed(skipped.labels, &partners, 0.6, 1).unwrap();
        assert!(value(&mixed.loss(&logits(), 0.0).unwrap()).is_finite());
    }
    #[test]
    fn smoothed_labels_are_a_soft_target_mixed_and_skipped_ones_too() {
        let smoothing = 0.1;
        let labels = Tensor::from_slice(&[1_i64, 0, 2]);
        let soft = |labels: &Tensor| labels.one_hot(3) * (1.0 - smoothing) + smoothing / 3.0;
        let each = |targets: Tensor| {
            -(logits().log_softmax(1, Kind::Float) * targets).sum_dim_intlist(1, false, Kind::Float)
        };
        let plain = Targets::plain(labels.shallow_clone(), 0);
        let expected = each(soft(&labels)).mean(Kind::Float);
        assert!((value(&plain.loss(&logits(), smoothing).unwrap()) - value(&expected)).abs() < 1e-6);

        let partners = Tensor::from_slice(&[2_i64, 0, 1]);
        let mixed = Targets::mixed(labels.shallow_clone(), &partners, 0.7, 0).unwrap();
        let both = soft(&labels) * 0.7 + soft(&labels.index_select(0, &partners)) * 0.3;
        let expected = each(both).mean(Kind::Float);
        assert!((value(&mixed.loss(&logits(), smoothing).unwrap()) - value(&expected)).abs() < 1e-6);

        let skipped = Targets::plain(Tensor::from_slice(&[1_i64, Batch::SKIPPED, 2]), 1);
        let losses = each(soft(&labels));
        let expected = (losses.double_value(&[0]) + losses.double_value(&[2])) / 3.0;
        assert!((value(&skipped.loss(&logits(), smoothing).unwrap()) - expected).abs() < 1e-6);
    }
}
