//! Collects parameters, norm layers and counts while a network's tree is put together.

use crate::init::Init;
use crate::options::{ConvInit, GammaInit, Options};
use crate::spec::{Node, NormLayer, Parameter, Role, Stage};

/// The declaration of a network in the making. Follows the image's size through the strides.
pub(crate) struct Builder<'a> {
    options: &'a Options,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) norms: Vec<NormLayer>,
    pub(crate) stages: Vec<Stage>,
    pub(crate) convolutions: u32,
    dropout_layers: u64,
    /// Added to the variance by batch norm.
    norm_epsilon: f64,
    /// Number of parameters that earlier stages account for.
    accounted: usize,
}

/// A convolution with an odd square kernel, padded to keep the size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConvShape {
    pub(crate) inputs: u32,
    pub(crate) outputs: u32,
    pub(crate) kernel: u32,
    pub(crate) stride: u32,
    pub(crate) groups: u32,
}

impl ConvShape {
    /// One group.
    pub(crate) fn new(inputs: u32, outputs: u32, kernel: u32, stride: u32) -> Self {
        ConvShape { inputs, outputs, kernel, stride, groups: 1 }
    }
}

/// Torch's default.
const NORM_EPSILON: f64 = 1e-5;

impl<'a> Builder<'a> {
    pub(crate) fn new(options: &'a Options) -> Self {
        Builder {
            norm_epsilon: NORM_EPSILON,
            options,
            parameters: Vec::new(),
            norms: Vec::new(),
            stages: Vec::new(),
            convolutions: 0,
            dropout_layers: 0,
            accounted: 0,
        }
    }

    fn parameter(&mut self, name: String, shape: Vec<i64>, role: Role, init: Init) -> usize {
        self.parameters.push(Parameter { name, shape, role, macs: 0, init });
        self.parameters.len() - 1
    }

    /// A weight each element of which is used for `positions` pixels of an image.
    fn weight(&mut self, name: String, shape: Vec<i64>, role: Role, init: Init, positions: u64) -> usize {
        let weight = self.parameter(name, shape, role, init);
        self.parameters[weight].macs = positions * self.parameters[weight].elements();
        weight
    }

    /// For the norm layers that follow.
    pub(crate) fn set_norm_epsilon(&mut self, epsilon: f64) {
        self.norm_epsilon = epsilon;
    }

    /// A convolution without bias, on an image of side `size`.
    pub(crate) fn conv(&mut self, name: &str, shape: ConvShape, size: u32) -> Node {
        self.convolutions += 1;
        self.add_conv(name, shape, size, self.conv_init(shape), false)
    }

    /// The last convolution of a branch whose batch norms come before its convolutions.
    pub(crate) fn last_conv(&mut self, name: &str, shape: ConvShape, size: u32) -> Node {
        self.convolutions += 1;
        let zero = self.options.zero_init_residual;
        let init = if zero { Init::Constant(0.0) } else { self.conv_init(shape) };
        self.add_conv(name, shape, size, init, false)
    }

    fn conv_init(&self, shape: ConvShape) -> Init {
        let area = f64::from(shape.kernel * shape.kernel);
        let fan = match self.options.conv_init {
            ConvInit::FanIn => area * f64::from(shape.inputs / shape.groups),
            ConvInit::FanOut => area * f64::from(shape.outputs),
        };
        Init::Normal { std: (2.0 / fan).sqrt() }
    }

    fn add_conv(&mut self, name: &str, conv: ConvShape, size: u32, init: Init, bias: bool) -> Node {
        let ConvShape { inputs, outputs, kernel, stride, groups } = conv;
        let shape = [outputs, inputs / groups, kernel, kernel].map(i64::from).to_vec();
        let output = u64::from(size.div_ceil(stride));
        let name_of_weight = format!("{name}.weight");
        let weight = self.weight(name_of_weight, shape, Role::ConvWeight, init, output * output);
        let bias = bias.then(|| {
            let shape = vec![i64::from(outputs)];
            self.parameter(format!("{name}.bias"), shape, Role::ConvBias, Init::Constant(0.0))
        });
        let (stride, padding, groups) = (i64::from(stride), i64::from(kernel / 2), i64::from(groups));
        Node::Conv { weight, bias, stride, padding, groups }
    }

    /// Squeeze and excitation (Hu et al. 2017, arXiv 1709.01507) in timm's form: two 1x1 convolutions with
    /// biases on the channels' means. They do not count as layers.
    pub(crate) fn squeeze_excite(&mut self, name: &str, channels: u32) -> Node {
        let squeezed = squeezed(channels);
        let mut gate = |part: &str, inputs, outputs| {
            let shape = ConvShape::new(inputs, outputs, 1, 1);
            self.add_conv(&format!("{name}.{part}"), shape, 1, self.conv_init(shape), true)
        };
        let excite = vec![gate("fc1", channels, squeezed), Node::Relu, gate("fc2", squeezed, channels)];
        Node::SqueezeExcite { excite: Box::new(Node::Sequence(excite)) }
    }

    /// Batch norm.
    pub(crate) fn norm(&mut self, name: &str, channels: u32) -> Node {
        let gain_init = match self.options.gamma_init {
            GammaInit::Uniform => Init::Uniform { low: 0.0, high: 1.0 },
            GammaInit::One => Init::Constant(1.0),
        };
        self.initialised_norm(name, channels, gain_init)
    }

    /// The last batch norm of a branch, behind its last convolution.
    pub(crate) fn last_norm(&mut self, name: &str, channels: u32) -> Node {
        if self.options.zero_init_residual {
            return self.initialised_norm(name, channels, Init::Constant(0.0));
        }
        self.norm(name, channels)
    }

    fn initialised_norm(&mut self, name: &str, channels: u32, gain_init: Init) -> Node {
        let channels = i64::from(channels);
        let gain = self.parameter(format!("{name}.weight"), vec![channels], Role::NormGain, gain_init);
        let bias =
            self.parameter(format!("{name}.bias"), vec![channels], Role::NormBias, Init::Constant(0.0));
        self.norms.push(NormLayer { name: name.to_owned(), channels });
        Node::Norm { gain, bias, layer: self.norms.len() - 1, epsilon: self.norm_epsilon }
    }

    /// Dropout, or nothing for a probability of 0.
    pub(crate) fn dropout(&mut self, probability: f64) -> Option<Node> {
        if probability == 0.0 {
            return None;
        }
        let layer = self.dropout_layers;
        self.dropout_layers += 1;
        Some(Node::Dropout { probability, layer })
    }

    /// The classifier: weight uniform within 1/sqrt(inputs) (Torch's default), bias 0.
    pub(crate) fn linear(&mut self, name: &str, inputs: u32, outputs: u32) -> Node {
        let bound = 1.0 / f64::from(inputs).sqrt();
        let init = Init::Uniform { low: -bound, high: bound };
        let shape = [outputs, inputs].map(i64::from).to_vec();
        let weight = self.weight(format!("{name}.weight"), shape, Role::LinearWeight, init, 1);
        let bias = self.parameter(
            format!("{name}.bias"),
            vec![i64::from(outputs)],
            Role::LinearBias,
            Init::Constant(0.0),
        );
        Node::Linear { weight, bias }
    }

    /// Closes a row of the table: what was added since the last one.
    pub(crate) fn stage(&mut self, name: &str, output: u32, content: String) {
        let added = &self.parameters[self.accounted..];
        self.stages.push(Stage {
            name: name.to_owned(),
            output,
            content,
            parameters: added.iter().map(Parameter::elements).sum(),
            macs: added.iter().map(|parameter| parameter.macs).sum(),
        });
        self.accounted = self.parameters.len();
    }
}

/// One channel of 16, rounded to a multiple of 8, at least 8 (timm).
fn squeezed(channels: u32) -> u32 {
    const REDUCTION: u32 = 16;
    const DIVISOR: u32 = 8;
    ((channels / REDUCTION + DIVISOR / 2) / DIVISOR * DIVISOR).max(DIVISOR)
}
