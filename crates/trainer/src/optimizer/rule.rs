//! The configured update rule with all its numbers, checked. Computes nothing.

use crate::config::{Compression, ConfigError, LoadedConfig, OptimizerConfig, OptimizerKind};

/// An update rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    Sgd { momentum: f64, dampening: f64, nesterov: bool },
    Lars { momentum: f64, trust_coefficient: f64 },
    Lamb(Adam),
    AdamW(Adam),
}

/// The numbers of Adam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Adam {
    pub(crate) betas: [f64; 2],
    pub(crate) epsilon: f64,
}

impl Rule {
    pub(crate) fn new(config: &OptimizerConfig) -> Self {
        let mut config = config.clone();
        config.write_defaults();
        let momentum = config.momentum.unwrap_or_default();
        let adam =
            Adam { betas: config.betas.unwrap_or_default(), epsilon: config.epsilon.unwrap_or_default() };
        match config.kind {
            OptimizerKind::Sgd => Rule::Sgd {
                momentum,
                dampening: config.dampening.unwrap_or_default(),
                nesterov: config.nesterov.unwrap_or_default(),
            },
            OptimizerKind::Lars => {
                Rule::Lars { momentum, trust_coefficient: config.trust_coefficient.unwrap_or_default() }
            }
            OptimizerKind::Lamb => Rule::Lamb(adam),
            OptimizerKind::Adamw => Rule::AdamW(adam),
        }
    }

    /// What stands behind a parameter's name for each thing that the rule remembers of it; PyTorch's words.
    pub(crate) fn memory(self) -> &'static [&'static str] {
        match self {
            Rule::Sgd { .. } | Rule::Lars { .. } => &[""],
            Rule::Lamb(_) | Rule::AdamW(_) => &[".exp_avg", ".exp_avg_sq"],
        }
    }

    /// Whether an update depends on how many came before it.
    pub(crate) fn counts_updates(self) -> bool {
        matches!(self, Rule::Lamb(_) | Rule::AdamW(_))
    }

    /// Whether an update depends on the norms of whole tensors.
    pub(crate) fn is_layerwise(self) -> bool {
        matches!(self, Rule::Lars { .. } | Rule::Lamb(_))
    }
}

/// Checks the section.
///
/// # Errors
/// When a key belongs to another kind, or keys exclude each other.
pub(crate) fn check(loaded: &LoadedConfig) -> Result<(), ConfigError> {
    let config = &loaded.config.optimizer;
    let error = |key: &str, message: String| Err(loaded.error(&format!("optimizer.{key}"), message));
    if let [key, others @ ..] = &*config.unused_keys() {
        let others: String = others.iter().map(|other| format!(", nor is {other}")).collect();
        let kind = config.kind.name();
        return error(key, format!("is not used by kind {kind}{others}; leave it out (--set KEY=null)"));
    }
    if config.nesterov == Some(true) {
        if config.momentum == Some(0.0) {
            return error("momentum", "optimizer.nesterov: true needs a momentum above 0".into());
        }
        if config.dampening != Some(0.0) {
            return error("dampening", "optimizer.nesterov: true needs a dampening of 0".into());
        }
    }
    if config.shard && loaded.config.comm.compression != Compression::None {
        return error(
            "shard",
            "shares of gradients travel as fp32; expected false with comm.compression, or comm.compression: none"
                .into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn message(optimizer: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        let text = format!(
            "model: {{arch: wrn-10-1}}\ndata: {{kind: cifar10, path: d}}\ntrain: {{epochs: 1, global_batch: 8}}\nschedule: {{kind: constant, rate: 1}}\noptimizer: {optimizer}\n"
        );
        std::fs::write(&path, text).unwrap();
        check(&load(&path, &[]).unwrap()).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn impossible_values_and_keys_of_other_kinds_name_their_key() {
        for (text, key) in [
            ("{betas: [0.9, 0.99]}", "optimizer.betas: is not used by kind sgd"),
            ("{trust_coefficient: 0.1}", "optimizer.trust_coefficient: is not used by kind sgd"),
            ("{kind: lars, nesterov: true}", "optimizer.nesterov: is not used by kind lars; leave it out"),
            (
                "{kind: lamb, momentum: 0.9, nesterov: true}",
                "is not used by kind lamb, nor is nesterov; leave it out",
            ),
            ("{kind: lars, epsilon: 1e-8}", "optimizer.epsilon"),
            ("{kind: lamb, momentum: 0.9}", "optimizer.momentum: is not used by kind lamb"),
            ("{kind: adamw, reset_momentum_at_milestones: false}", "optimizer.reset_momentum_at_milestones"),
            ("{momentum: 0}", "optimizer.momentum"),
            ("{dampening: 0.1}", "optimizer.dampening"),
            ("{shard: true}\ncomm: {compression: bf16}", "optimizer.shard"),
        ] {
            let message = message(text);
            assert!(message.contains(key) && message.contains("c.yaml:5"), "{text}: {message}");
        }
        for text in
            ["{}", "{kind: lars, momentum: 0.8}", "{kind: lamb, clip_norm: 1}", "{kind: adamw, shard: true}"]
        {
            assert_eq!(message(text), "", "{text}");
        }
    }
}
