//! A network as declared: everything that is known of it without a tensor.

use crate::architecture::Architecture;
use crate::builder::Builder;
use crate::error::ModelError;
use crate::options::Options;
use crate::spec::{Node, NormLayer, Parameter, Stage};
use crate::tree;

/// The specification of a network. Owns no weights.
#[derive(Clone, Debug)]
pub struct Network {
    pub(crate) root: Node,
    parameters: Vec<Parameter>,
    norms: Vec<NormLayer>,
    stages: Vec<Stage>,
    convolutions: u32,
    classes: u32,
}

impl Network {
    /// # Errors
    /// When an option is out of range, or has no meaning for this architecture.
    pub fn new(architecture: &Architecture, options: &Options) -> Result<Self, ModelError> {
        let refuse = |message: String| Err(ModelError::Option(message));
        for (name, probability) in [
            ("dropout", options.dropout),
            ("shortcut_dropout", options.shortcut_dropout),
            ("stochastic_depth", options.stochastic_depth),
        ] {
            if !(0.0..1.0).contains(&probability) {
                return refuse(format!("{name} is {probability}, a probability outside 0 to 1 (1 excluded)"));
            }
        }
        for (name, value, range) in [
            ("classes", options.classes, 1..=1 << 20),
            ("in_channels", options.in_channels, 1..=1 << 10),
            ("image_size", options.image_size, 4..=1 << 11),
        ] {
            if !range.contains(&value) {
                return refuse(format!("{name} is {value}, expected {} to {}", range.start(), range.end()));
            }
        }
        let mut builder = Builder::new(options);
        let root = tree::build(&architecture.plan, options, &mut builder)?;
        let Builder { parameters, norms, stages, convolutions, .. } = builder;
        Ok(Network { root, parameters, norms, stages, convolutions, classes: options.classes })
    }

    /// The trainable tensors, in forward order.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The batch norm layers, in forward order.
    #[must_use]
    pub fn norms(&self) -> &[NormLayer] {
        &self.norms
    }

    /// The order in which one backward pass completes the parameters' gradients, as indices of
    /// [`Network::parameters`].
    ///
    /// Autograd runs the recorded operations backwards and hands a gradient over as soon as it is complete,
    /// so this is the reverse of the order in which [`Network::forward`] uses the parameters. (Under autocast
    /// the casts of the classifier's weight and bias change places, so these two may swap.)
    #[must_use]
    pub fn readiness_order(&self) -> Vec<usize> {
        let mut order = self.root.recording_order();
        order.reverse();
        order
    }

    /// Initial values of a parameter in its logical contiguous order; a function of the seed and the
    /// parameter's name.
    ///
    /// # Panics
    /// When `parameter` is not an index of [`Network::parameters`].
    #[must_use]
    pub fn initial(&self, parameter: usize, seed: u64) -> Vec<f32> {
        let parameter = &self.parameters[parameter];
        parameter.init.draw(parameter.elements() as usize, seed, &parameter.name)
    }

    /// Trainable numbers.
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        self.parameters.iter().map(Parameter::elements).sum()
    }

    /// Multiply-adds of convolutions and classifier for one image; a training step takes about three times as
    /// many.
    #[must_use]
    pub fn macs(&self) -> u64 {
        self.stages.iter().map(|stage| stage.macs).sum()
    }

    /// Convolutions, projections included.
    #[must_use]
    pub fn convolutions(&self) -> u32 {
        self.convolutions
    }

    /// Number of classes.
    #[must_use]
    pub fn classes(&self) -> u32 {
        self.classes
    }

    /// The paper's table 1 for this network.
    #[must_use]
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }
}
