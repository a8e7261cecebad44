//! Reads a configuration file, applies `--set` overrides and names the origin of every mistake.
//!
//! Text → YAML value → overrides merged in → typed [`Config`]. An error carries the key, and with it the line
//! of the file or the `--set` argument that the key came from.

use std::path::{Path, PathBuf};
use std::string::FromUtf8Error;

use serde_yaml::{Mapping, Value};
use sha2::{Digest, Sha256};

use super::{Config, Determinism, locate, ranges};
use crate::files;

/// Far more than all keys with comments take.
const LARGEST_BYTES: u64 = 1 << 20;

/// What is wrong with a configuration, and where it was written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("{} is not valid YAML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        message: String,
    },
    /// A key or its value is wrong.
    #[error("{origin}: {key}: {message}")]
    Key {
        /// File and line, or the `--set` argument.
        origin: String,
        /// Dotted key.
        key: String,
        /// What was wrong and what was expected.
        message: String,
    },
    /// A `--set` argument that does not have the form `key=value`.
    #[error("--set {argument}: {message}")]
    Override {
        /// The argument as given.
        argument: String,
        /// What was expected.
        message: String,
    },
}

/// A configuration together with what is needed to tell where its keys came from.
#[derive(Clone, Debug)]
pub struct LoadedConfig {
    /// The typed values.
    pub config: Config,
    path: PathBuf,
    text: String,
    overrides: Vec<Override>,
}

#[derive(Clone, Debug)]
struct Override {
    key: String,
    argument: String,
}

/// Reads `path` and applies `overrides`, each `a.b=value` with the value in YAML.
///
/// # Errors
/// When the file cannot be read, is not YAML, or has an unknown key, a missing key or a value of another
/// type or out of its range.
pub fn load(path: &Path, overrides: &[String]) -> Result<LoadedConfig, ConfigError> {
    let not_text =
        |error: FromUtf8Error| std::io::Error::new(std::io::ErrorKind::InvalidData, error.utf8_error());
    let text = files::read(path, LARGEST_BYTES)
        .and_then(|bytes| String::from_utf8(bytes).map_err(not_text))
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    let loaded = parse(path, text, overrides)?;
    // Before anything is done with them: ranks, for one, meet within a configured time.
    ranges::check(&loaded)?;
    Ok(loaded)
}

/// As [`load`], with numbers of any size.
pub(super) fn parse(path: &Path, text: String, arguments: &[String]) -> Result<LoadedConfig, ConfigError> {
    let syntax = |message: String| ConfigError::Syntax { path: path.to_owned(), message };
    let mut value: Value = serde_yaml::from_str(&text).map_err(|error| syntax(error.to_string()))?;
    if !value.is_mapping() {
        return Err(syntax("expected sections such as `model:` at the top level".into()));
    }
    let mut overrides = Vec::with_capacity(arguments.len());
    for argument in arguments {
        overrides.push(apply_override(&mut value, argument)?);
    }
    let origins = Origins { path, text: &text, overrides: &overrides };
    let mut config: Config = serde_path_to_error::deserialize(value.clone()).map_err(|error| {
        let path = error.path().to_string();
        let mut message = error.inner().to_string();
        if message.contains(NO_WORD) {
            message = "expected one of the words that this key knows".into();
            if let Some(words) = words_of(value, &path) {
                message = format!("expected {words}");
            }
        }
        origins.error(&key_of(&path, &message), message)
    })?;
    config.write_defaults();
    Ok(LoadedConfig { config, path: path.to_owned(), text, overrides })
}

/// What serde_yaml says of a value that is no word where the key takes one of several.
const NO_WORD: &str = "Value::Tagged enum";

/// The words that the key at `path` takes: it tells them itself when it is given one that it does not know.
fn words_of(mut value: Value, path: &str) -> Option<String> {
    let mut node = &mut value;
    for part in path.split('.') {
        node = node.get_mut(part)?;
    }
    *node = Value::String(String::new());
    let message = serde_yaml::from_value::<Config>(value).err()?.to_string();
    message.split_once("expected ").map(|(_, words)| words.to_owned())
}

/// What serde says of a key that a section does not have.
const UNKNOWN: &str = "unknown field `";

/// serde reports an unknown or missing field at the enclosing section; the field's name is in its message.
fn key_of(path: &str, message: &str) -> String {
    let section = if path == "." { "" } else { path };
    let field = [UNKNOWN, "missing field `"]
        .iter()
        .find_map(|prefix| message.strip_prefix(prefix)?.split('`').next())
        .unwrap_or("");
    match (section.is_empty(), field.is_empty()) {
        (true, _) => field.to_owned(),
        (false, true) => section.to_owned(),
        (false, false) if section == field || section.ends_with(&format!(".{field}")) => section.to_owned(),
        (false, false) => format!("{section}.{field}"),
    }
}

fn apply_override(root: &mut Value, argument: &str) -> Result<Override, ConfigError> {
    let error =
        |message: &str| ConfigError::Override { argument: argument.to_owned(), message: message.to_owned() };
    let (key, text) = argument.split_once('=').ok_or_else(|| error("expected the form key=value"))?;
    if key.split('.').any(str::is_empty) {
        return Err(error("expected a dotted key such as train.epochs before the `=`"));
    }
    let value: Value =
        serde_yaml::from_str(text).map_err(|e| error(&format!("the value is not YAML: {e}")))?;
    let mut node = root;
    for part in key.split('.') {
        if node.is_null() {
            *node = Value::Mapping(Mapping::new());
        }
        let mapping = node
            .as_mapping_mut()
            .ok_or_else(|| error(&format!("`{part}` lies inside a key that is not a section")))?;
        node = mapping.entry(Value::String(part.to_owned())).or_insert(Value::Null);
    }
    *node = value;
    Ok(Override { key: key.to_owned(), argument: argument.to_owned() })
}

struct Origins<'a> {
    path: &'a Path,
    text: &'a str,
    overrides: &'a [Override],
}

impl Origins<'_> {
    fn error(&self, key: &str, message: String) -> ConfigError {
        let from_override = self
            .overrides
            .iter()
            .rev()
            .find(|o| is_within(&o.key, key))
            .map(|o| format!("--set {}", o.argument));
        let origin = from_override.unwrap_or_else(|| match locate::line_of(self.text, key) {
            Some(line) => format!("{}:{line}", self.path.display()),
            None => self.path.display().to_string(),
        });
        ConfigError::Key { origin, key: key.to_owned(), message }
    }
}

impl LoadedConfig {
    /// An error about the value of `key`, at the place where it was written.
    pub(crate) fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        Origins { path: &self.path, text: &self.text, overrides: &self.overrides }.error(key, message.into())
    }

    /// File name without extension, for the name of the run directory.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy().into_owned())
    }
}

impl Config {
    /// The configuration as YAML, every default written out.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(self).unwrap_or_else(|error| format!("# not representable: {error}\n"))
    }

    /// All values as dotted keys, but for those that may differ between the ranks of one run.
    #[must_use]
    pub fn common_to_ranks(&self) -> Vec<(String, String)> {
        self.keys_without(&["data.path", "data.read", "data.workers", "data.prefetch", "telemetry"])
    }

    /// Defaults that follow from other keys.
    fn write_defaults(&mut self) {
        self.optimizer.write_defaults();
        self.schedule.write_defaults();
        let _ = self.train.autotune.get_or_insert(self.train.determinism == Determinism::Off);
    }

    /// This configuration as if nobody had written `keys`; `None` where one of them has to be written.
    pub(crate) fn without(&self, keys: &[&str]) -> Option<Config> {
        let mut value = serde_yaml::to_value(self).ok()?;
        for key in keys {
            remove(&mut value, key);
        }
        let mut config: Config = serde_yaml::from_value(value).ok()?;
        config.write_defaults();
        Some(config)
    }

    /// Whether there is such a key or section, given here or not.
    pub(crate) fn knows(&self, key: &str) -> bool {
        let Ok(mut value) = serde_yaml::to_value(self) else { return false };
        let mut node = &mut value;
        for part in key.split('.') {
            if !node.is_mapping() {
                *node = Value::Mapping(Mapping::new());
            }
            let Some(section) = node.as_mapping_mut() else { return false };
            node = section.entry(Value::String(part.to_owned())).or_insert(Value::Null);
        }
        // The type says so itself. That the value makes no sense, or others are missing beside it, is another matter.
        serde_yaml::from_value::<Config>(value)
            .map_or_else(|error| !error.to_string().contains(UNKNOWN), |_| true)
    }

    /// The values that decide what a run computes, as dotted keys: two runs whose values agree are the same
    /// experiment. Paths, reporting, thread pools and the shape of the exchange are left out, and the micro batch where
    /// batch norm sees the global batch.
    #[must_use]
    pub fn meaning(&self) -> Vec<(String, String)> {
        const NOT_MEANING: &[&str] = &[
            "model.weights",
            "data.path",
            "data.read",
            "data.workers",
            "data.prefetch",
            "checkpoint",
            "telemetry",
            "comm.backend",
            "comm.overlap",
            "comm.first_bucket_kib",
            "comm.bucket_kib",
            "comm.nccl_max_ctas",
            "comm.timeout_s",
            "comm.check",
            "train.evaluate_every_epochs",
            "train.autotune",
            "train.memory",
            "train.memory_limit_gib",
            "train.on_nan",
            "optimizer.shard",
            "train.max_wall",
            "train.loss_spike",
            "train.roll_back",
            "train.check_replicas_every",
        ];
        let mut meaning = self.keys_without(NOT_MEANING);
        meaning.retain(|(key, _)| !(self.model.sync_norm && key == "train.micro_batch"));
        meaning
    }

    fn keys_without(&self, left_out: &[&str]) -> Vec<(String, String)> {
        let value = serde_yaml::to_value(self).unwrap_or(Value::Null);
        let mut flat = Vec::new();
        flatten("", &value, &mut flat);
        flat.retain(|(key, _)| !left_out.iter().any(|left_out| is_within(left_out, key)));
        flat
    }

    /// SHA-256 over [`Config::meaning`], in hexadecimal.
    #[must_use]
    pub fn meaning_hash(&self) -> String {
        let mut hasher = Sha256::new();
        for (key, value) in self.meaning() {
            hasher.update(format!("{key}={value}\n"));
        }
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Whether `key` is `section` or lies in it.
fn is_within(section: &str, key: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Takes a dotted key out, and with it the sections that then are empty: a section that is there is not the same as one
/// that is not.
fn remove(value: &mut Value, key: &str) {
    let Some(mapping) = value.as_mapping_mut() else { return };
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    if let (Some(rest), Some(section)) = (rest, mapping.get_mut(first)) {
        remove(section, rest);
    }
    let is_empty = |value: &Value| value.as_mapping().is_some_and(Mapping::is_empty);
    if rest.is_none() || mapping.get(first).is_some_and(is_empty) {
        let _ = mapping.remove(first);
    }
}

fn flatten(prefix: &str, value: &Value, flat: &mut Vec<(String, String)>) {
    match value {
        Value::Mapping(mapping) => {
            for (key, value) in mapping {
                let key = key.as_str().unwrap_or_default();
                let path = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
                flatten(&path, value, flat);
            }
        }
        other => {
            let text = serde_yaml::to_string(other).unwrap_or_default();
            flat.push((prefix.to_owned(), text.trim_end().to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AutoOr, Dtype};
    use super::*;

    const GOOD: &str = "model:\n  arch: wrn-10-1\ndata:\n  kind: cifar10\n  path: data\ntrain:\n  epochs: 2\n  global_batch: 8\nschedule:\n  kind: constant\n  rate: 0.1\n";

    fn parsed(text: &str, sets: &[&str]) -> Result<LoadedConfig, ConfigError> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        parse(Path::new("run.yaml"), text.to_owned(), &sets)
    }

    #[test]
    fn files_that_can_be_no_configuration_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("latin-1.yaml"), b"# gr\xfc\xdfe\n").unwrap();
        std::fs::File::create(at("large.yaml")).unwrap().set_len(LARGEST_BYTES + 1).unwrap();
        for (path, expected) in [
            (at("latin-1.yaml"), "utf-8"),
            (at("large.yaml"), "it has 1048577 bytes, expected at most 1048576"),
            ("/dev/null".into(), "it is a device, expected a regular file"),
            (at("none.yaml"), "No such file"),
        ] {
            let said = load(&path, &[]).unwrap_err().to_string();
            let begin = format!("cannot read the configuration {}: ", path.display());
            assert!(said.starts_with(&begin) && said.contains(expected), "{said}");
        }
    }

    #[test]
    fn overrides_replace_and_add_keys() {
        let loaded = parsed(GOOD, &["train.epochs=7", "optimizer.momentum=0.5", "data.workers=3"]).unwrap();
        assert_eq!(loaded.config.train.epochs, 7);
        assert_eq!(loaded.config.optimizer.momentum, Some(0.5));
        assert_eq!(loaded.config.data.workers, AutoOr::Exactly(3.try_into().unwrap()));
        assert_eq!(
            loaded.config.optimizer.nesterov,
            Some(true),
            "other keys of the section keep their defaults"
        );
    }

    #[test]
    fn mistakes_name_their_origin_and_key() {
        let misspelt = GOOD.replace("epochs: 2", "epocs: 2");
        let cases: &[(&str, &[&str], &[&str])] = &[
            (&misspelt, &[], &["run.yaml:7", "train.epocs", "unknown field", "epochs"]),
            (GOOD, &["train.epocs=3"], &["--set train.epocs=3", "train.epocs", "unknown field"]),
            (&GOOD.replace("epochs: 2", "epochs: two"), &[], &["run.yaml:7", "train.epochs", "invalid type"]),
            (GOOD, &["train.epochs=-1"], &["--set train.epochs=-1", "train.epochs", "-1"]),
            (&GOOD.replace("  epochs: 2\n", ""), &[], &["run.yaml:6", "train.epochs", "missing field"]),
            (&GOOD.replace("  rate: 0.1\n", ""), &[], &["run.yaml:9", "schedule.rate", "missing field"]),
            (GOOD, &["data.workers=0"], &["--set data.workers=0", "data.workers", "above 0"]),
            (GOOD, &["schedule.kind=stepp"], &["schedule.kind", "unknown variant", "one-cycle"]),
            (
                GOOD,
                &["schedule.kind=3"],
                &["--set schedule.kind=3: schedule.kind: expected one of", "one-cycle"],
            ),
            (GOOD, &["train.on_nan=[1]"], &["train.on_nan: expected one of", "roll-back"]),
            (GOOD, &["model.conv_init={a: 1}"], &["model.conv_init: expected `fan-in` or `fan-out`"]),
            (GOOD, &["precision.dtype=null"], &["precision.dtype: expected one of", "bf16"]),
            (GOOD, &["train"], &["--set train", "key=value"]),
            (GOOD, &["seed.deep.er=1", "seed.x=1"], &["seed"]),
            ("- a\n", &[], &["run.yaml", "sections"]),
            ("model: [\n", &[], &["run.yaml", "line"]),
        ];
        for (text, sets, parts) in cases {
            let message = parsed(text, sets).expect_err(&format!("{sets:?}")).to_string();
            for part in *parts {
                assert!(message.contains(part), "`{message}` lacks `{part}`");
            }
        }
    }

    #[test]
    fn the_resolved_yaml_reads_back_as_the_same_configuration() {
        let loaded = parsed(GOOD, &[]).unwrap();
        let again = parsed(&loaded.config.to_yaml(), &[]).unwrap();
        assert_eq!(loaded.config, again.config);
    }

    #[test]
    fn a_key_that_is_taken_out_has_its_default_again_and_a_section_without_keys_is_none() {
        let without = |sets: &[&str], keys: &[&str]| parsed(GOOD, sets).unwrap().config.without(keys);
        let plain = parsed(GOOD, &[]).unwrap().config;
        for (set, keys) in [
            ("precision.tf32=true", &["precision.tf32"][..]),
            ("optimizer.momentum=0.5", &["optimizer.momentum"]),
            (
                "train.averaging={decay: 0.9}",
                &["train.averaging.decay", "train.averaging.every_steps", "train.averaging.warmup_epochs"],
            ),
            // One that has a default for each of its keys.
            (
                "precision.loss_scale={initial: 65536}",
                &[
                    "precision.loss_scale.initial",
                    "precision.loss_scale.growth_factor",
                    "precision.loss_scale.backoff_factor",
                    "precision.loss_scale.growth_interval",
                ],
            ),
            (
                "precision={dtype: bf16, tf32: true}",
                &["precision.dtype", "precision.tf32", "precision.loss_scale"],
            ),
        ] {
            assert_eq!(without(&[set], keys).as_ref(), Some(&plain), "{set}");
        }
        assert_eq!(without(&[], &["model.arch"]), None, "it has no default");
        let with = without(&["precision={dtype: bf16, tf32: true}"], &["precision.tf32"]).unwrap();
        assert_eq!((with.precision.dtype, with.precision.tf32), (Dtype::Bf16, false));
    }

    #[test]
    fn keys_of_sections_that_are_not_given_are_known_and_those_of_other_versions_are_not() {
        let config = parsed(GOOD, &["train.averaging={decay: 0.9}"]).unwrap().config;
        for (key, known) in [
            ("precision.tf32", true),
            ("precision.loss_scale.initial", true),
            ("train.averaging", true),
            ("train.averaging.decay", true),
            ("train.micro_batch", true),
            ("model", true),
            ("seed", true),
            // Not written where the kind does not use them.
            ("optimizer.betas", true),
            ("optimizer.reset_momentum_at_milestones", true),
            ("optimizer.clip_norm", true),
            ("schedule.scale_rate", true),
            ("schedule.scale_rate.rule", true),
            ("schedule.scale_rate.later", false),
            ("optimizer.beta", false),
            ("train.averaging.later", false),
            ("train.averages", false),
            ("precision.tf", false),
            ("later.key", false),
            ("", false),
        ] {
            assert_eq!(config.knows(key), known, "{key}");
        }
    }

    #[test]
    fn the_meaning_ignores_where_data_lies_but_not_the_seed() {
        let hash = |sets: &[&str]| parsed(GOOD, sets).unwrap().config.meaning_hash();
        let base = hash(&[]);
        assert_eq!(
            base,
            hash(&["data.path=elsewhere", "data.workers=5", "comm.overlap=false", "train.memory=recompute"])
        );
        assert_ne!(base, hash(&["seed=1"]));
        assert_ne!(base, hash(&["train.epochs=3"]));
    }
}
