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
    macs: u64,
    dropout_layers: u64,
    /// Parameters and multiply-adds that earlier stages account for.
    accounted: (u64, u64),
}

impl<'a> Builder<'a> {
    pub(crate) fn new(options: &'a Options) -> Self {
        Builder {
            options,
            parameters: Vec::new(),
            norms: Vec::new(),
            stages: Vec::new(),
            convolutions: 0,
            macs: 0,
            dropout_layers: 0,
            accounted: (0, 0),
        }
    }

    fn parameter(&mut self, name: String, shape: Vec<i64>, role: Role, init: Init) -> usize {
        self.parameters.push(Parameter { name, shape, role, init });
        self.parameters.len() - 1
    }

    /// A convolution with an odd square kernel, padded to keep the size, on an image of side `size`.
    pub(crate) fn conv(
        &mut self,
        name: &str,
        inputs: u32,
        outputs: u32,
        kernel: u32,
        stride: u32,
        size: u32,
    ) -> Node {
        let area = f64::from(kernel * kernel);
        let fan = match self.options.conv_init {
            ConvInit::FanIn => area * f64::from(inputs),
            ConvInit::FanOut => area * f64::from(outputs),
        };
        let shape = [outputs, inputs, kernel, kernel].map(i64::from).to_vec();
        let output = u64::from(size.div_ceil(stride));
        self.macs += output * output * shape.iter().product::<i64>() as u64;
        self.convolutions += 1;
        let init = Init::Normal { std: (2.0 / fan).sqrt() };
        let weight = self.parameter(format!("{name}.weight"), shape, Role::ConvWeight, init);
        Node::Conv { weight, stride: i64::from(stride), padding: i64::from(kernel / 2) }
    }

    /// Batch norm.
    pub(crate) fn norm(&mut self, name: &str, channels: u32) -> Node {
        let channels = i64::from(channels);
        let gain_init = match self.options.gamma_init {
            GammaInit::Uniform => Init::Uniform { low: 0.0, high: 1.0 },
            GammaInit::One => Init::Constant(1.0),
        };
        let gain = self.parameter(format!("{name}.weight"), vec![channels], Role::NormGain, gain_init);
        let bias =
            self.parameter(format!("{name}.bias"), vec![channels], Role::NormBias, Init::Constant(0.0));
        self.norms.push(NormLayer { name: name.to_owned(), channels });
        Node::Norm { gain, bias, layer: self.norms.len() - 1 }
    }

    /// Dropout, or nothing when the options switch it off.
    pub(crate) fn dropout(&mut self) -> Option<Node> {
        let probability = self.options.dropout;
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
        self.macs += u64::from(inputs) * u64::from(outputs);
        let weight = self.parameter(format!("{name}.weight"), shape, Role::LinearWeight, init);
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
        let parameters: u64 = self.parameters.iter().map(Parameter::elements).sum();
        self.stages.push(Stage {
            name: name.to_owned(),
            output,
            content,
            parameters: parameters - self.accounted.0,
            macs: self.macs - self.accounted.1,
        });
        self.accounted = (parameters, self.macs);
    }
}
