//! Choices that public implementations of the same network make differently. Defaults are the paper's.

use serde::{Deserialize, Serialize};

/// Spread of a convolution's initial weights: `N(0, sqrt(2 / fan))` (He et al. 2015).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConvInit {
    /// fan = inputs a weight sees; the official code since September 2016.
    #[default]
    FanIn,
    /// fan = kernel area times output channels, however many groups there are; the official code before,
    /// torchvision and timm.
    FanOut,
}

/// Initial scale of batch norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GammaInit {
    /// Uniform in (0, 1): what Torch's default made of the official code.
    #[default]
    Uniform,
    /// 1, as PyTorch's default.
    One,
}

/// What a projection shortcut of a pre-activation network reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShortcutInput {
    /// The block's input after its first batch norm and ReLU, as the official code.
    #[default]
    Preactivated,
    /// The block's input itself, as some other implementations.
    Raw,
}

/// Which blocks have a projection shortcut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Projection {
    /// Those whose number of channels changes, as the official code; with width 1 the first group then has
    /// none.
    #[default]
    WhenShapesDiffer,
    /// The first block of every group, so that a network of width 1, too, has as many convolutions as its
    /// name says.
    FirstBlock,
}

/// Everything about a network beside its architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Spread of initial convolution weights.
    pub conv_init: ConvInit,
    /// Initial scale of batch norm.
    pub gamma_init: GammaInit,
    /// What projections read.
    pub shortcut_input: ShortcutInput,
    /// Where projections are.
    pub projection: Projection,
    /// Begin with blocks that change nothing (Goyal et al. 2017, section 5.1): the scale of each branch's last
    /// batch norm is 0 at first, or, where batch norm comes before, the weights of its last convolution.
    pub zero_init_residual: bool,
    /// Dropout probability, 0 to 1, 1 excluded: before every convolution of a residual block but its first; in
    /// a DenseNet after the last convolution of each layer.
    pub dropout: f64,
    /// Dropout probability of what passes over the shortcut: the paper's counter-example (section 2.4, after
    /// He et al. 2016, section 3.1).
    pub shortcut_dropout: f64,
    /// Probability with which the last block is left out of a training pass; that of the others grows linearly
    /// up to it (Huang et al. 2016, arXiv 1603.09382, section 3). In evaluation branches are scaled by the
    /// probability that they are there.
    pub stochastic_depth: f64,
    /// Number of classes.
    pub classes: u32,
    /// Side of the square input images in pixels.
    pub image_size: u32,
    /// Channels of the input images.
    pub in_channels: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            conv_init: ConvInit::default(),
            gamma_init: GammaInit::default(),
            shortcut_input: ShortcutInput::default(),
            projection: Projection::default(),
            zero_init_residual: false,
            dropout: 0.0,
            shortcut_dropout: 0.0,
            stochastic_depth: 0.0,
            classes: 10,
            image_size: 32,
            in_channels: 3,
        }
    }
}
