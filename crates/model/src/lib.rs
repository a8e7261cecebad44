//! Networks as specifications: an architecture string and options become a tree of few kinds of nodes, from
//! which names, counts, initial weights and the forward pass all follow.
//!
//! Reading order: `architecture` (the string) → `plan` (its numbers) → `tree` (its nodes and names) → `spec`
//! (what nodes there are) → `forward` (their interpreter; `checkpoint` runs blocks again for it, `footprint`
//! counts what it keeps). `names` is what other programs call the tensors. Holds no weights: the caller owns the
//! tensors and passes them to [`Network::forward`].
//!
//! | string | network |
//! |---|---|
//! | `wrn-28-10` | the paper's WRN-n-k with blocks B(3,3), for images of 32 px |
//! | `wrn-40-2-b313` | the same with other blocks, here B(3,1,3) |
//! | `wrn-34-2-imagenet` | WRN-34-2 of the paper's table 7: basic blocks, batch norm after the convolutions, 224 px |
//! | `wrn-50-2-bottleneck` | torchvision's `wide_resnet50_2`, any width |
//! | `resnet-50` | He et al. 2015 for ImageNet, stride on the 3x3 convolution |
//! | `resnet-110` | He et al. 2015 for small images, shortcuts without parameters |
//! | `preact-resnet-164` | He et al. 2016 for small images: basic blocks up to depth 110, bottlenecks beyond |
//! | `resnext-29-8x64d`, `resnext-50-32x4d` | Xie et al. 2016 for small images and for ImageNet |
//! | `se-wrn-16-8`, `se-resnet-50` | any of the above with squeeze and excitation, Hu et al. 2017 |
//! | `densenet-bc-100-12`, `densenet-121` | Huang et al. 2016 for small images and for ImageNet |
//! | `dpn-92` | Chen et al. 2017 for ImageNet |
//!
//! Stochastic depth (Huang et al. 2016) is an option of every residual network. Not there of the networks that
//! the paper compares with or cites: VGG, NIN, DSN, Highway networks, FitNets, ELU
//! networks, Inception-ResNet-v2, pre-ResNet-200.
//!
//! Source of the architecture: Zagoruyko & Komodakis, *Wide Residual Networks*, 2016 (arXiv 1605.07146), and
//! the authors' code, szagoruyko/wide-residual-networks.

mod architecture;
mod builder;
mod checkpoint;
mod error;
mod footprint;
mod forward;
mod grammar;
mod init;
mod memory;
mod names;
mod network;
mod options;
mod plan;
mod spec;
mod tree;

pub use architecture::Architecture;
pub use error::ModelError;
pub use forward::{BeforeUse, DrawKey, Norm, Pass, Statistics};
pub use init::normal_values;
pub use memory::Memory;
pub use names::{Content, NamedTensor, Naming, current_name};
pub use network::Network;
pub use options::{ConvInit, GammaInit, Options, Projection, ShortcutInput};
pub use spec::{NormLayer, Parameter, Role, Stage};
