//! The tensors of a run: flat parameters, gradients, optimizer state and statistics, and the views that the network
//! computes with. Holds them; what happens to them is the business of [`crate::engine`].

use model::{Network, Statistics};
use tch::{Device, Kind, Tensor};
use torch_ext::flat;

use crate::averaging::Averaged;
use crate::error::Error;
use crate::flat::{FlatLayout, Tail};
use crate::optimizer::memory::OptimizerState;

/// All tensors that live as long as the run.
pub(crate) struct State {
    pub(crate) layout: FlatLayout,
    /// All parameters, fp32.
    pub(crate) flat_parameters: Tensor,
    /// Leaves that view `flat_parameters`, in the network's forward order.
    pub(crate) parameters: Vec<Tensor>,
    /// Gradients, batch statistics and tail: what is summed over the ranks.
    pub(crate) exchange: Tensor,
    /// Has room for nothing until there is an [`Optimizer`](crate::optimizer::Optimizer).
    pub(crate) optimizer: OptimizerState,
    /// Statistics of the micro batch that ran last, written by batch norm.
    pub(crate) batch_statistics: Tensor,
    pub(crate) batch_views: Vec<Statistics>,
    /// Running statistics, used by evaluation.
    pub(crate) running_statistics: Tensor,
    pub(crate) running_views: Vec<Statistics>,
    /// Where weights are averaged.
    pub(crate) averaged: Option<Averaged>,
}

impl State {
    /// Initial weights from `seed`, running mean 0 and variance 1, of one of `ranks`.
    pub(crate) fn new(network: &Network, seed: u64, device: Device, ranks: usize) -> Result<Self, Error> {
        let layout = FlatLayout::new(network, ranks);
        let zeros = |len: usize| Tensor::f_zeros([len as i64], (Kind::Float, device));
        let flat_parameters = zeros(layout.parameters_len)?;
        let exchange = zeros(layout.exchange_len())?;
        let optimizer = OptimizerState::new(&[], false, layout.parameters_len, None, device)?;
        let batch_statistics = zeros(layout.statistics_len())?;
        let mut running_statistics = zeros(layout.statistics_len())?;

        let mut parameters = Vec::with_capacity(layout.segments.len());
        let mut by_parameter: Vec<_> = layout.segments.iter().collect();
        by_parameter.sort_by_key(|placed| placed.parameter);
        for placed in by_parameter {
            let shape = &network.parameters()[placed.parameter].shape;
            let values = Tensor::f_from_slice(&network.initial(placed.parameter, seed))?
                .f_reshape(shape.as_slice())?;
            flat::view(&flat_parameters, placed.offset as i64, shape)?.f_copy_(&values)?;
            let leaf = flat::leaf(&flat_parameters, placed.offset as i64, shape)?;
            flat::bind_gradient(&leaf, &exchange, placed.offset as i64)?;
            parameters.push(leaf);
        }
        let views = |statistics: &Tensor| -> Result<Vec<Statistics>, Error> {
            layout
                .statistics()
                .map(|(mean, variance)| {
                    let part = |range: &std::ops::Range<usize>| {
                        statistics.f_narrow(0, range.start as i64, range.len() as i64)
                    };
                    Ok(Statistics { mean: part(&mean)?, variance: part(&variance)? })
                })
                .collect()
        };
        let batch_views = views(&batch_statistics)?;
        let running_views = views(&running_statistics)?;
        for Statistics { variance, .. } in &running_views {
            let _ = variance.shallow_clone().f_fill_(1.0)?;
        }
        running_statistics = running_statistics.f_set_requires_grad(false)?;
        Ok(State {
            layout,
            flat_parameters,
            parameters,
            exchange,
            optimizer,
            batch_statistics,
            batch_views,
            running_statistics,
            running_views,
            averaged: None,
        })
    }

    /// View of the gradients.
    pub(crate) fn gradients(&self) -> Result<Tensor, Error> {
        Ok(self.exchange.f_narrow(0, 0, self.layout.parameters_len as i64)?)
    }

    /// View of the summed batch statistics.
    pub(crate) fn summed_statistics(&self) -> Result<Tensor, Error> {
        let range = self.layout.statistics_range();
        Ok(self.exchange.f_narrow(0, range.start as i64, range.len() as i64)?)
    }

    /// View of one number of the tail.
    pub(crate) fn tail(&self, entry: Tail) -> Result<Tensor, Error> {
        Ok(self.exchange.f_narrow(0, (self.layout.tail_offset() + entry as usize) as i64, 1)?)
    }

    /// View of the loss that rank `rank` tells the others.
    pub(crate) fn rank_loss(&self, rank: usize) -> Result<Tensor, Error> {
        Ok(self.exchange.f_narrow(0, (self.layout.rank_losses().start + rank) as i64, 1)?)
    }

    /// View of the tail and of what each rank tells.
    pub(crate) fn whole_tail(&self) -> Result<Tensor, Error> {
        let begin = self.layout.tail_offset();
        Ok(self.exchange.f_narrow(0, begin as i64, (self.layout.exchange_len() - begin) as i64)?)
    }
}
