//! Where each parameter lies in the flat buffers (design rule 3). Pure arithmetic, no tensors.
//!
//! ```text
//! parameters, momentum:  | segment | segment | … |
//! exchange buffer:       | gradients, same segments | batch statistics | tail | losses, marks: one of each a rank |
//! ```
//! Segments stand in the order in which backward completes their gradients, so that a bucket is a contiguous
//! range.

use std::ops::Range;

use allreduce::{Bucket, Segment, plan_buckets};
use model::{Network, Role};

use crate::config::CommConfig;

/// Segments start at multiples of this many fp32 elements: 256 bytes.
const ALIGNMENT: usize = 64;

/// What is summed over the ranks beside gradients and batch statistics, at the end of the exchange buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Tail {
    /// Mean loss of each micro batch.
    Loss,
    /// Correct predictions of each micro batch.
    Correct,
    /// Ranks that were asked to stop.
    Stop,
    /// Ranks that failed within this step.
    Failed,
    /// Samples of each micro batch that were skipped.
    Skipped,
    /// Rank 0, if it wants to save after this step.
    Save,
    /// What the exchange found to be infinite or NaN.
    NotFinite,
}

impl Tail {
    pub(crate) const LEN: usize = 7;
}

/// One parameter's place.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    /// Index in [`Network::parameters`].
    pub(crate) parameter: usize,
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) role: Role,
}

/// The segment table.
#[derive(Clone, Debug)]
pub(crate) struct FlatLayout {
    /// In the order of readiness.
    pub(crate) segments: Vec<Placed>,
    names: Vec<String>,
    /// Channels of each norm layer, in forward order.
    norm_channels: Vec<usize>,
    /// Length of the parameter, gradient and momentum part.
    pub(crate) parameters_len: usize,
    /// Ranks that tell each other about themselves.
    ranks: usize,
}

impl FlatLayout {
    /// For an exchange among `ranks`.
    pub(crate) fn new(network: &Network, ranks: usize) -> Self {
        let mut offset = 0;
        let mut segments = Vec::new();
        let mut names = Vec::new();
        for parameter in network.readiness_order() {
            let declared = &network.parameters()[parameter];
            let len = declared.shape.iter().product::<i64>() as usize;
            segments.push(Placed { parameter, offset, len, role: declared.role });
            names.push(declared.name.clone());
            offset = (offset + len).next_multiple_of(ALIGNMENT);
        }
        let norm_channels = network.norms().iter().map(|norm| norm.channels as usize).collect();
        FlatLayout { segments, names, norm_channels, parameters_len: offset, ranks }
    }

    /// Mean and variance of every norm layer.
    pub(crate) fn statistics_len(&self) -> usize {
        2 * self.norm_channels.iter().sum::<usize>()
    }

    /// Ranges of mean and variance of each norm layer within the statistics part.
    pub(crate) fn statistics(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + '_ {
        self.norm_channels.iter().scan(0, |offset, &channels| {
            let mean = *offset..*offset + channels;
            let variance = mean.end..mean.end + channels;
            *offset = variance.end;
            Some((mean, variance))
        })
    }

    /// Range of the statistics part in the exchange buffer.
    pub(crate) fn statistics_range(&self) -> Range<usize> {
        self.parameters_len..self.parameters_len + self.statistics_len()
    }

    /// Offset of the tail in the exchange buffer.
    pub(crate) fn tail_offset(&self) -> usize {
        self.statistics_range().end
    }

    /// Where each rank tells its own part of the mean loss.
    pub(crate) fn rank_losses(&self) -> Range<usize> {
        let begin = self.tail_offset() + Tail::LEN;
        begin..begin + self.ranks
    }

    /// Where each rank tells whether its own gradient, before the sum, is infinite or NaN somewhere.
    pub(crate) fn rank_marks(&self) -> Range<usize> {
        let begin = self.rank_losses().end;
        begin..begin + self.ranks
    }

    /// Length of the exchange buffer.
    pub(crate) fn exchange_len(&self) -> usize {
        self.rank_marks().end
    }

    /// The table as the exchange needs it.
    pub(crate) fn exchange_segments(&self) -> Vec<Segment> {
        self.segments
            .iter()
            .zip(&self.names)
            .map(|(placed, name)| Segment {
                name: name.clone(),
                range: placed.offset..placed.offset + placed.len,
            })
            .collect()
    }

    /// How the exchange buffer is cut.
    pub(crate) fn buckets(&self, comm: &CommConfig) -> Vec<Bucket> {
        let (first_bytes, bytes) = (comm.first_bucket_kib * 1024, comm.bucket_kib * 1024);
        plan_buckets(&self.exchange_segments(), self.exchange_len(), first_bytes, bytes)
    }

    /// Elements of a segment and the padding behind it.
    pub(crate) fn extent(&self, segment: usize) -> Range<usize> {
        let end = self.segments.get(segment + 1).map_or(self.parameters_len, |next| next.offset);
        self.segments[segment].offset..end
    }

    /// Contiguous ranges whose parameters decay, and those whose parameters do not.
    pub(crate) fn decay_ranges(
        &self,
        decays: impl Fn(Role) -> bool,
    ) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
        let (mut with, mut without): (Vec<Range<usize>>, Vec<Range<usize>>) = (Vec::new(), Vec::new());
        for (index, placed) in self.segments.iter().enumerate() {
            let extent = self.extent(index);
            let group = if decays(placed.role) { &mut with } else { &mut without };
            match group.last_mut() {
                Some(last) if last.end == extent.start => last.end = extent.end,
                _ => group.push(extent),
            }
        }
        (with, without)
    }

    /// The table as text, one segment a line; ranks must agree on it.
    pub(crate) fn description(&self) -> String {
        self.segments
            .iter()
            .zip(&self.names)
            .map(|(placed, name)| format!("{name} {}+{}\n", placed.offset, placed.len))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> FlatLayout {
        let network = Network::new(&"wrn-10-1".parse().unwrap(), &model::Options::default()).unwrap();
        FlatLayout::new(&network, 2)
    }

    #[test]
    fn segments_are_aligned_disjoint_and_hold_every_parameter_once() {
        let layout = layout();
        assert_eq!(
            layout.segments.iter().map(|placed| placed.len).sum::<usize>(),
            77_850,
            "wrn-facts §2, WRN-10-1"
        );
        for pair in layout.segments.windows(2) {
            assert!(pair[0].offset + pair[0].len <= pair[1].offset);
            assert_eq!(pair[1].offset * 4 % 256, 0);
        }
        let mut parameters: Vec<_> = layout.segments.iter().map(|placed| placed.parameter).collect();
        parameters.sort_unstable();
        assert!(parameters.iter().enumerate().all(|(index, &parameter)| index == parameter));
    }

    #[test]
    fn decay_groups_cover_the_buffer_without_overlap() {
        let layout = layout();
        for decays in [|_: Role| true, |role| matches!(role, Role::ConvWeight | Role::LinearWeight)] {
            let (with, without) = layout.decay_ranges(decays);
            let mut all = [with, without].concat();
            all.sort_by_key(|range| range.start);
            assert_eq!(all.first().unwrap().start, 0);
            assert_eq!(all.last().unwrap().end, layout.parameters_len);
            assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
        let (with, without) = layout.decay_ranges(|_| true);
        assert!(with.len() == 1 && without.is_empty(), "one range when everything decays");
    }
}
