//! Layered settings: defaults < file < environment `INSULA_*` < command line, with unknown keys refused.
//!
//! A key is a path into the job file, `train.lr`. On the command line and in the environment the last part alone will do
//! where only one key ends so: `lr`. In the environment a path is written in capitals, with two underscores for the dot:
//! `INSULA_TRAIN__LR`.

use std::path::{Path, PathBuf};

use config::{Config, FileFormat};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Why settings could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A key that no setting has.
    #[error("unknown key '{key}' in {layer}{}", .nearest.as_ref().map(|k| format!(": did you mean '{k}'?")).unwrap_or_default())]
    UnknownKey {
        /// The key, as written.
        key: String,
        /// Where it was written.
        layer: String,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// A bare last part that several keys end with.
    #[error("key '{key}' in {layer} could be any of {}: write one of them whole", .candidates.join(", "))]
    Ambiguous {
        /// The key, as written.
        key: String,
        /// Where it was written.
        layer: String,
        /// What it could mean.
        candidates: Vec<String>,
    },
    /// Text that is not TOML.
    #[error("{}: {problem}", .file.display())]
    Toml {
        /// The file.
        file: PathBuf,
        /// What the parser said, with line and column.
        problem: String,
    },
    /// `--set` without a value.
    #[error("--set {0}: expected KEY=VALUE")]
    NotAnAssignment(String),
    /// A value of the wrong kind.
    #[error("{0}")]
    Value(String),
}

/// One layer above the defaults.
#[derive(Debug, Clone)]
pub enum Layer {
    /// A file's text, and its path for messages.
    File {
        /// Where it was read.
        path: PathBuf,
        /// The TOML in it.
        text: String,
    },
    /// The environment's `INSULA_*` variables.
    Environment(Vec<(String, String)>),
    /// `KEY=VALUE` from the command line, later ones over earlier ones.
    CommandLine(Vec<String>),
}

/// A layer as assignments of values to whole keys, and the name messages call it by.
struct Assignments {
    layer: String,
    values: Vec<(String, Value)>,
}

/// Puts `layers` over `defaults`, in order.
///
/// # Errors
/// See [`SettingsError`].
pub fn layered<T: Serialize + DeserializeOwned>(defaults: &T, layers: &[Layer]) -> Result<T, SettingsError> {
    let bottom = serde_json::to_value(defaults).map_err(|e| SettingsError::Value(e.to_string()))?;
    let known = Keys::of(&bottom);
    let mut settings = Config::builder().add_source(source(&bottom));
    let mut last = String::from("the defaults");
    for layer in layers {
        let Assignments { layer, values } = layer.assignments(&known)?;
        for (key, value) in values {
            settings = settings.add_source(source(&nested(&key, value)));
        }
        last = layer;
    }
    let wrong = |problem: String| SettingsError::Value(format!("{problem} (last layer: {last})"));
    let merged = settings.build().map_err(|problem| wrong(problem.to_string()))?;
    merged.clone().try_deserialize().map_err(|problem| wrong(explained::<T>(&problem.to_string(), merged)))
}

/// What is wrong with the merged settings, for people. Of a word that is none of those expected, `config` says which
/// Rust type lacks it; `serde_json` says which words would do, but not where.
fn explained<T: DeserializeOwned>(problem: &str, merged: Config) -> String {
    let better = || {
        let (word, key) = problem.split_once(" does not have variant constructor ")?.1.split_once(" for key ")?;
        let tree: Value = merged.try_deserialize().ok()?;
        let expected = serde_json::from_value::<T>(tree).err()?.to_string();
        expected.starts_with(&format!("unknown variant `{word}`")).then(|| format!("{expected} for key {key}"))
    };
    better().unwrap_or_else(|| problem.to_owned())
}

/// A tree of values as a source for `config`, which merges sources key by key.
fn source(tree: &Value) -> config::File<config::FileSourceString, FileFormat> {
    config::File::from_str(&tree.to_string(), FileFormat::Json)
}

/// The tree in which `key` (a dotted path) is `value` and nothing else stands.
fn nested(key: &str, value: Value) -> Value {
    key.rsplit('.').fold(value, |inner, part| Value::Object([(part.to_owned(), inner)].into_iter().collect()))
}

/// The keys that exist: all leaves of the defaults. A table that is empty by default may hold any key.
struct Keys {
    leaves: Vec<String>,
    open: Vec<String>,
}

impl Keys {
    fn of(defaults: &Value) -> Self {
        let mut keys = Keys { leaves: vec![], open: vec![] };
        keys.collect("", defaults);
        keys
    }

    fn collect(&mut self, path: &str, value: &Value) {
        match value {
            Value::Object(table) if table.is_empty() => self.open.push(path.to_owned()),
            Value::Object(table) => {
                for (key, value) in table {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    self.collect(&path, value);
                }
            }
            _ => self.leaves.push(path.to_owned()),
        }
    }

    /// The whole key that `key` means, or why it means none.
    fn resolve(&self, key: &str, layer: &str) -> Result<String, SettingsError> {
        let in_open = |open: &String| key == open || key.starts_with(&format!("{open}."));
        if self.leaves.iter().any(|leaf| leaf == key) || self.open.iter().any(in_open) {
            return Ok(key.to_owned());
        }
        let ending: Vec<_> = self.leaves.iter().filter(|leaf| leaf.rsplit('.').next() == Some(key)).cloned().collect();
        match ending.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(self.unknown(key, layer)),
            _ => Err(SettingsError::Ambiguous { key: key.into(), layer: layer.into(), candidates: ending }),
        }
    }

    fn unknown(&self, key: &str, layer: &str) -> SettingsError {
        let similarity = |leaf: &String| {
            let last = leaf.rsplit('.').next().unwrap_or(leaf);
            strsim::jaro_winkler(leaf, key).max(strsim::jaro_winkler(last, key))
        };
        let nearest = self.leaves.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b))).cloned();
        SettingsError::UnknownKey { key: key.into(), layer: layer.into(), nearest }
    }
}

impl Layer {
    fn assignments(&self, known: &Keys) -> Result<Assignments, SettingsError> {
        match self {
            Layer::File { path, text } => file_assignments(path, text, known),
            Layer::Environment(variables) => environment_assignments(variables, known),
            Layer::CommandLine(sets) => command_line_assignments(sets, known),
        }
    }
}

fn file_assignments(path: &Path, text: &str, known: &Keys) -> Result<Assignments, SettingsError> {
    let wrong = |problem: String| SettingsError::Toml { file: path.to_owned(), problem };
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| wrong(e.to_string()))?;
    let value = serde_json::to_value(table).map_err(|e| wrong(e.to_string()))?;
    let layer = path.display().to_string();
    let mut values = Vec::new();
    flatten("", value, known, &mut values);
    for (key, _) in &values {
        // A file writes keys whole: the short form would read as a top-level setting.
        if known.resolve(key, &layer)? != *key {
            return Err(known.unknown(key, &layer));
        }
    }
    Ok(Assignments { layer, values })
}

/// The leaves of a file's tables; an open table is one value.
fn flatten(path: &str, value: Value, known: &Keys, into: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(table) if !known.open.iter().any(|open| open == path) => {
            for (key, value) in table {
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                flatten(&path, value, known, into);
            }
        }
        value => into.push((path.to_owned(), value)),
    }
}

/// `INSULA_TRAIN__LR=1e-3`. Variables without a double underscore are other things' (`INSULA_CACHE`).
fn environment_assignments(variables: &[(String, String)], known: &Keys) -> Result<Assignments, SettingsError> {
    let mut values = Vec::new();
    for (name, value) in variables {
        let Some(key) = name.strip_prefix("INSULA_").filter(|key| key.contains("__")) else { continue };
        let key = key.to_ascii_lowercase().replace("__", ".");
        values.push((known.resolve(&key, &format!("the environment ({name})"))?, scalar(value)));
    }
    Ok(Assignments { layer: "the environment".into(), values })
}

fn command_line_assignments(sets: &[String], known: &Keys) -> Result<Assignments, SettingsError> {
    let mut values = Vec::new();
    for set in sets {
        let (key, value) = set.split_once('=').ok_or_else(|| SettingsError::NotAnAssignment(set.clone()))?;
        values.push((known.resolve(key.trim(), "--set")?, scalar(value.trim())));
    }
    Ok(Assignments { layer: "--set".into(), values })
}

/// A value as TOML reads it, or else the text itself: `1e-3`, `["q", "v"]`, `corpora/meld`, `1/16`.
fn scalar(text: &str) -> Value {
    let table = format!("value = {text}").parse::<toml::Table>().ok();
    let value = table.and_then(|mut t| if t.len() == 1 { t.remove("value") } else { None });
    value.and_then(|v| serde_json::to_value(v).ok()).unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobSpec;

    fn with_sets(sets: &[&str]) -> Result<JobSpec, SettingsError> {
        let sets = sets.iter().map(|s| s.to_string()).collect();
        layered(&JobSpec::default(), &[Layer::CommandLine(sets)])
    }

    #[test]
    fn later_layers_win_key_by_key() {
        let file = Layer::File { path: "a.toml".into(), text: "seed = 3\n[train]\nlr = 0.1\nepochs = 2".into() };
        let environment = Layer::Environment(vec![
            ("INSULA_TRAIN__LR".into(), "0.2".into()),
            ("INSULA_CACHE".into(), "somewhere".into()),
        ]);
        let sets = Layer::CommandLine(vec!["train.lr=0.3".into(), "data.share=1/16".into()]);
        let spec = layered(&JobSpec::default(), &[file, environment, sets]).unwrap();
        assert_eq!((spec.seed, spec.train.epochs, spec.train.lr), (3, 2, 0.3));
        assert_eq!(spec.data.share, "1/16".parse().unwrap());
        assert_eq!(spec.data.window, JobSpec::default().data.window);
    }

    #[test]
    fn the_last_part_of_a_key_will_do_on_the_command_line() {
        let spec = with_sets(&["window=5", "r=8", "lr=1e-3", "share=1/4", "targets=[\"q\", \"v\"]"]).unwrap();
        assert_eq!((spec.data.window, spec.adapter.r, spec.train.lr), (5, 8, 1e-3));
        assert_eq!(spec.adapter.targets, ["q", "v"]);
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        let message = with_sets(&["train.lrate=1"]).unwrap_err().to_string();
        assert_eq!(message, "unknown key 'train.lrate' in --set: did you mean 'train.lr'?");
        let file = Layer::File { path: "a.toml".into(), text: "[data]\nwindw = 3".into() };
        let message = layered(&JobSpec::default(), &[file]).unwrap_err().to_string();
        assert_eq!(message, "unknown key 'data.windw' in a.toml: did you mean 'data.window'?");
        let short = Layer::File { path: "a.toml".into(), text: "lr = 3".into() };
        assert!(layered(&JobSpec::default(), &[short]).is_err());
        let environment = Layer::Environment(vec![("INSULA_TRAIN__EPOCH".into(), "2".into())]);
        let message = layered(&JobSpec::default(), &[environment]).unwrap_err().to_string();
        assert!(message.contains("INSULA_TRAIN__EPOCH") && message.contains("train.epochs"), "{message}");
    }

    #[test]
    fn a_value_of_the_wrong_kind_names_its_key() {
        let message = with_sets(&["train.epochs=many"]).unwrap_err().to_string();
        assert!(message.contains("train.epochs"), "{message}");
        let message = with_sets(&["data.share=7"]).unwrap_err().to_string();
        assert!(message.contains("'7' is not a share"), "{message}");
        let message = with_sets(&["base.precision=f64"]).unwrap_err().to_string();
        let expected = "unknown variant `f64`, expected one of `f32`, `bf16`, `q8`, `q4` for key `base.precision`";
        assert!(message.starts_with(expected), "{message}");
    }

    #[test]
    fn an_open_table_takes_any_key() {
        let text = "[corpus.rename]\nJoy = \"Joyful\"".into();
        let spec = layered(&JobSpec::default(), &[Layer::File { path: "a".into(), text }]).unwrap();
        assert_eq!(spec.corpus.rename["Joy"], "Joyful");
    }
}
