//! Dual path networks: of a block's output some channels are added to those of its input, as in a ResNeXt,
//! and others are appended to them, as in a DenseNet.
//!
//! Source: Chen et al. 2017 (arXiv 1707.01629), table 1; timm's `dpn.py`, which reads the authors' weights.

use super::Stem;

/// A dual path network for ImageNet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DualPath {
    pub(crate) stem: Stem,
    /// Groups of the 3x3 convolutions.
    pub(crate) cardinality: u32,
    pub(crate) stages: Vec<DualStage>,
}

/// Blocks of one output size.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DualStage {
    pub(crate) blocks: u32,
    /// Of its first block.
    pub(crate) stride: u32,
    /// Channels of the 1x1 and the 3x3 convolution of each block.
    pub(crate) inner: u32,
    /// Channels of the residual path.
    pub(crate) residual: u32,
    /// Channels that each block appends to the dense path.
    pub(crate) growth: u32,
}

/// One row of the table.
struct Row {
    depth: u32,
    stem_kernel: u32,
    stem_channels: u32,
    /// Residual channels of the first stage.
    residual: u32,
    /// Inner channels of the first stage.
    inner: u32,
    cardinality: u32,
    blocks: [u32; 4],
    growth: [u32; 4],
}

#[rustfmt::skip]
const TABLE: &[Row] = &[
    Row { depth: 68, stem_kernel: 3, stem_channels: 10, residual: 64, inner: 128, cardinality: 32, blocks: [3, 4, 12, 3], growth: [16, 32, 32, 64] },
    Row { depth: 92, stem_kernel: 7, stem_channels: 64, residual: 256, inner: 96, cardinality: 32, blocks: [3, 4, 20, 3], growth: [16, 32, 24, 128] },
    Row { depth: 98, stem_kernel: 7, stem_channels: 96, residual: 256, inner: 160, cardinality: 40, blocks: [3, 6, 20, 3], growth: [16, 32, 32, 128] },
    Row { depth: 107, stem_kernel: 7, stem_channels: 128, residual: 256, inner: 200, cardinality: 50, blocks: [4, 8, 20, 3], growth: [20, 64, 64, 128] },
    Row { depth: 131, stem_kernel: 7, stem_channels: 128, residual: 256, inner: 160, cardinality: 40, blocks: [4, 8, 28, 3], growth: [16, 32, 32, 128] },
];

/// A dual path network, or nothing for a depth that the table lacks.
pub(crate) fn dual_path(depth: u32) -> Option<DualPath> {
    let row = TABLE.iter().find(|row| row.depth == depth)?;
    let stages = (0..)
        .zip(row.blocks)
        .zip(row.growth)
        .map(|((index, blocks), growth)| DualStage {
            blocks,
            stride: if index == 0 { 1 } else { 2 },
            inner: row.inner << index,
            residual: row.residual << index,
            growth,
        })
        .collect();
    Some(DualPath {
        stem: Stem { kernel: row.stem_kernel, channels: row.stem_channels, stride: 2, pool: true },
        cardinality: row.cardinality,
        stages,
    })
}
