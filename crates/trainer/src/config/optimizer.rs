//! `optimizer:` the update rule. Which key belongs to which rule, and its default there, stands in one table; whether
//! values make sense is decided in [`crate::optimizer`].

use serde::{Deserialize, Serialize};

/// `optimizer:` how an averaged gradient changes the weights. Keys that a kind does not use must be absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// The update rule.
    pub kind: OptimizerKind,
    /// `sgd`, `lars`: share of the last update that is kept (0.9).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// `sgd`: look ahead by one momentum step (true).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nesterov: Option<bool>,
    /// `sgd`: share of the gradient that does not enter the momentum (0), from the first step on, where PyTorch begins
    /// with the whole gradient.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dampening: Option<f64>,
    /// `lars`: the length of an update in relation to that of the weights, at a rate of 1 and without decay (0.001).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_coefficient: Option<f64>,
    /// `lamb`, `adamw`: shares of the moving averages of the gradient and of its square that are kept (0.9 and 0.999).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f64; 2]>,
    /// `lamb` (1e-6), `adamw` (1e-8): keeps the divisor above zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
    /// `sgd`, `lars`: L2 penalty, added to the gradient (5e-4). `lamb`, `adamw`: share of the weights, times the rate,
    /// that every update takes away (0.01).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Whether batch norm's scale and shift and all biases decay too: `sgd` true, as in the paper, the others false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_norm_and_bias: Option<bool>,
    /// `sgd`, `lars`: start the momentum from zero whenever a milestone lowers the rate, as both official codes do
    /// (false).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_momentum_at_milestones: Option<bool>,
    /// A gradient whose L2 norm over all parameters, after the average over the ranks, is larger is scaled down to
    /// this norm, as PyTorch's `clip_grad_norm_` does. The norm before stands in `metrics.jsonl` as `gradient_norm`.
    /// On a GPU each step waits for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Each rank updates one share of the weights, keeps what the optimizer remembers of this share only (ZeRO, stage
    /// 1), and gets the new weights of the others while its next forward pass runs, which waits for a bucket where it
    /// comes to it; with `train.averaging`, which needs them all, or without `comm.overlap`, before that. The same bits and
    /// as many bytes sent with `comm.reduce: ordered`. Checkpoints do not depend on it.
    pub shard: bool,
}

/// `optimizer.kind:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// Stochastic gradient descent with momentum: the rule of Torch and PyTorch.
    #[default]
    Sgd,
    /// SGD whose rate adapts to the norms of each tensor's weights and gradient (You, Gitman & Ginsburg 2017,
    /// algorithm 1). Batch norm and biases keep the plain rate.
    Lars,
    /// Adam whose updates adapt to the norm of each tensor's weights (You et al. 2019, algorithm 2). Batch norm and
    /// biases keep the plain rate.
    Lamb,
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2017; the form of PyTorch).
    Adamw,
}

impl OptimizerKind {
    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            OptimizerKind::Sgd => "sgd",
            OptimizerKind::Lars => "lars",
            OptimizerKind::Lamb => "lamb",
            OptimizerKind::Adamw => "adamw",
        }
    }
}

/// What a kind uses of the keys that not all use: the default, or `None` where the key has no meaning.
struct Defaults {
    momentum: Option<f64>,
    nesterov: Option<bool>,
    dampening: Option<f64>,
    trust_coefficient: Option<f64>,
    betas: Option<[f64; 2]>,
    epsilon: Option<f64>,
    weight_decay: f64,
    decay_norm_and_bias: bool,
    reset_momentum_at_milestones: Option<bool>,
}

fn defaults(kind: OptimizerKind) -> Defaults {
    let adam = Defaults {
        momentum: None,
        nesterov: None,
        dampening: None,
        trust_coefficient: None,
        betas: Some([0.9, 0.999]),
        epsilon: Some(1e-8),
        weight_decay: 0.01,
        decay_norm_and_bias: false,
        reset_momentum_at_milestones: None,
    };
    let sgd = Defaults {
        momentum: Some(0.9),
        nesterov: Some(true),
        dampening: Some(0.0),
        trust_coefficient: None,
        betas: None,
        epsilon: None,
        weight_decay: 5e-4,
        decay_norm_and_bias: true,
        reset_momentum_at_milestones: Some(false),
    };
    match kind {
        OptimizerKind::Sgd => sgd,
        OptimizerKind::Lars => Defaults {
            nesterov: None,
            dampening: None,
            trust_coefficient: Some(0.001),
            decay_norm_and_bias: false,
            ..sgd
        },
        OptimizerKind::Lamb => Defaults { epsilon: Some(1e-6), ..adam },
        OptimizerKind::Adamw => adam,
    }
}

impl OptimizerConfig {
    /// Writes the defaults of the kind's own keys.
    pub(crate) fn write_defaults(&mut self) {
        let defaults = defaults(self.kind);
        self.momentum = self.momentum.or(defaults.momentum);
        self.nesterov = self.nesterov.or(defaults.nesterov);
        self.dampening = self.dampening.or(defaults.dampening);
        self.trust_coefficient = self.trust_coefficient.or(defaults.trust_coefficient);
        self.betas = self.betas.or(defaults.betas);
        self.epsilon = self.epsilon.or(defaults.epsilon);
        self.weight_decay.get_or_insert(defaults.weight_decay);
        self.decay_norm_and_bias.get_or_insert(defaults.decay_norm_and_bias);
        self.reset_momentum_at_milestones =
            self.reset_momentum_at_milestones.or(defaults.reset_momentum_at_milestones);
    }

    /// The keys that are given though the kind does not use them.
    pub(crate) fn unused_keys(&self) -> Vec<&'static str> {
        let defaults = defaults(self.kind);
        [
            ("momentum", self.momentum.is_some(), defaults.momentum.is_some()),
            ("nesterov", self.nesterov.is_some(), defaults.nesterov.is_some()),
            ("dampening", self.dampening.is_some(), defaults.dampening.is_some()),
            ("trust_coefficient", self.trust_coefficient.is_some(), defaults.trust_coefficient.is_some()),
            ("betas", self.betas.is_some(), defaults.betas.is_some()),
            ("epsilon", self.epsilon.is_some(), defaults.epsilon.is_some()),
            (
                "reset_momentum_at_milestones",
                self.reset_momentum_at_milestones.is_some(),
                defaults.reset_momentum_at_milestones.is_some(),
            ),
        ]
        .into_iter()
        .filter_map(|(key, given, used)| (given && !used).then_some(key))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_belong_to_the_kind_and_leave_its_own_keys_alone() {
        for kind in [OptimizerKind::Sgd, OptimizerKind::Lars, OptimizerKind::Lamb, OptimizerKind::Adamw] {
            let mut config = OptimizerConfig { kind, weight_decay: Some(0.25), ..OptimizerConfig::default() };
            config.write_defaults();
            assert_eq!(config.weight_decay, Some(0.25));
            assert_eq!(config.unused_keys(), [""; 0], "{kind:?}");
            let again = config.clone();
            config.write_defaults();
            assert_eq!(config, again);
        }
        let mut lamb = OptimizerConfig { kind: OptimizerKind::Lamb, ..OptimizerConfig::default() };
        lamb.momentum = Some(0.9);
        lamb.write_defaults();
        assert_eq!((lamb.unused_keys(), lamb.epsilon), (vec!["momentum"], Some(1e-6)));
    }
}
