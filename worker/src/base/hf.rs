//! A Hugging Face folder's `config.json`, as far as the plain Llama architecture goes.
//!
//! Whatever the file asks for that insula would not compute is refused by name: a base that loads is a base whose
//! numbers are right.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::Refusal;
use super::{ModelConfig, RopeScaling};

/// The keys of `config.json` that say what is computed. Absent keys have transformers' defaults.
#[derive(Debug, Deserialize)]
struct Config {
    model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    tie_word_embeddings: Option<bool>,
    rope_theta: Option<f64>,
    rope_parameters: Option<Map<String, Value>>,
    rope_scaling: Option<Map<String, Value>>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<Value>,
}

/// The configuration that the bytes of a `config.json` describe.
pub(crate) fn parse_config(json: &[u8]) -> Result<ModelConfig, Refusal> {
    expect_llama(json)?;
    let config: Config = serde_json::from_slice(json).map_err(|error| Refusal::Malformed(error.to_string()))?;
    expect_plain(&config)?;
    let heads = config.num_attention_heads;
    if heads == 0 {
        return Refusal::malformed("num_attention_heads is 0, expected at least 1");
    }
    Ok(ModelConfig {
        vocab: config.vocab_size,
        hidden: config.hidden_size,
        intermediate: config.intermediate_size,
        layers: config.num_hidden_layers,
        heads,
        kv_heads: config.num_key_value_heads.unwrap_or(heads),
        head_dim: config.head_dim.unwrap_or(config.hidden_size / heads),
        rope_theta: rope_theta(&config)?,
        rope_scaling: rope_scaling(&config)?,
        rms_eps: config.rms_norm_eps.unwrap_or(1e-6) as f32,
        context: config.max_position_embeddings.unwrap_or(2048),
        tied: config.tie_word_embeddings.unwrap_or(false),
    })
}

/// The end-of-sequence token of a `config.json`; the first, where there are several.
pub(crate) fn parse_eos(json: &[u8]) -> Option<u32> {
    let config: Value = serde_json::from_slice(json).ok()?;
    let eos = config.get("eos_token_id")?;
    let eos = eos.as_array().map_or(Some(eos), |several| several.first())?;
    u32::try_from(eos.as_u64()?).ok()
}

/// The end-of-sequence token's text in a `tokenizer_config.json`: written bare, or as an object with `content`.
pub(crate) fn parse_eos_text(json: &[u8]) -> Option<String> {
    let config: Value = serde_json::from_slice(json).ok()?;
    let eos = config.get("eos_token")?;
    eos.as_str().or_else(|| eos.get("content")?.as_str()).map(str::to_owned)
}

/// Other architectures have other keys, so this comes before the rest is read.
fn expect_llama(json: &[u8]) -> Result<(), Refusal> {
    let config: Value = serde_json::from_slice(json).map_err(|error| Refusal::Malformed(error.to_string()))?;
    match config.get("model_type").and_then(Value::as_str) {
        Some("llama") => Ok(()),
        Some(other) => Refusal::unsupported(format!("model_type {other:?}: only llama is supported today")),
        None => Refusal::malformed("model_type is missing"),
    }
}

fn expect_plain(config: &Config) -> Result<(), Refusal> {
    debug_assert_eq!(config.model_type.as_deref(), Some("llama"), "expect_llama comes first");
    if let Some(act) = config.hidden_act.as_deref().filter(|&act| act != "silu") {
        return Refusal::unsupported(format!("hidden_act {act:?} is not supported, only \"silu\""));
    }
    if config.attention_bias == Some(true) || config.mlp_bias == Some(true) {
        let key = if config.mlp_bias == Some(true) { "mlp_bias" } else { "attention_bias" };
        return Refusal::unsupported(format!("{key} is true: biases are not supported"));
    }
    if config.quantization_config.as_ref().is_some_and(|value| !value.is_null()) {
        return Refusal::unsupported("quantization_config is set: only plain float weights are supported here");
    }
    if let Some(factor) = config.partial_rotary_factor.filter(|&factor| factor != 1.0) {
        return Refusal::unsupported(format!("partial_rotary_factor {factor} is not supported, only 1"));
    }
    Ok(())
}

/// The scaling that either place asks for.
fn rope_scaling(config: &Config) -> Result<Option<RopeScaling>, Refusal> {
    let places = [("rope_scaling", &config.rope_scaling), ("rope_parameters", &config.rope_parameters)];
    let mut found = None;
    for (key, rope) in places {
        let asked = rope.as_ref().map_or(Ok(None), |rope| RopeScaling::parse(key, rope))?;
        found = found.or(asked);
    }
    Ok(found)
}

fn rope_theta(config: &Config) -> Result<f64, Refusal> {
    let inner = config.rope_parameters.as_ref().and_then(|rope| rope.get("rope_theta"));
    match inner.map(Value::as_f64) {
        Some(Some(theta)) => Ok(theta),
        Some(None) => Refusal::malformed("rope_parameters.rope_theta is not a number"),
        None => Ok(config.rope_theta.unwrap_or(10_000.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Value {
        serde_json::json!({
            "model_type": "llama", "vocab_size": 97, "hidden_size": 48, "intermediate_size": 88,
            "num_hidden_layers": 3, "num_attention_heads": 6, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        })
    }

    fn with(key: &str, value: Value) -> Result<ModelConfig, Refusal> {
        let mut config = plain();
        config[key] = value;
        parse_config(config.to_string().as_bytes())
    }

    #[test]
    fn absent_keys_have_transformers_defaults() {
        let config = parse_config(plain().to_string().as_bytes()).unwrap();
        let expected = ModelConfig {
            vocab: 97,
            hidden: 48,
            intermediate: 88,
            layers: 3,
            heads: 6,
            kv_heads: 6,
            head_dim: 8,
            rope_theta: 10_000.0,
            rope_scaling: None,
            rms_eps: 1e-5,
            context: 2048,
            tied: false,
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn theta_is_read_from_either_place() {
        assert_eq!(with("rope_theta", 5e5.into()).unwrap().rope_theta, 5e5);
        let inner = serde_json::json!({"rope_theta": 1e5, "rope_type": "default"});
        assert_eq!(with("rope_parameters", inner).unwrap().rope_theta, 1e5);
    }

    #[test]
    fn llama_3_scaling_is_read_from_either_place_and_whole() {
        let mut rope = serde_json::json!({"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
        let expected =
            RopeScaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        for key in ["rope_scaling", "rope_parameters"] {
            assert_eq!(with(key, rope.clone()).unwrap().rope_scaling, Some(expected));
        }
        assert_eq!(RopeScaling::parse("again", expected.json().as_object().unwrap()).unwrap(), Some(expected));
        rope["low_freq_factor"] = 4.0.into();
        assert!(with("rope_scaling", rope.clone()).is_err());
        rope.as_object_mut().unwrap().remove("low_freq_factor");
        let refused = with("rope_scaling", rope).unwrap_err().to_string();
        assert!(refused.contains("rope_scaling.low_freq_factor is missing"), "{refused}");
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        let cases = [
            ("model_type", Value::from("gemma")),
            ("hidden_act", "gelu".into()),
            ("attention_bias", true.into()),
            ("mlp_bias", true.into()),
            ("partial_rotary_factor", 0.5.into()),
            ("quantization_config", serde_json::json!({"quant_method": "awq"})),
            ("rope_scaling", serde_json::json!({"rope_type": "yarn", "factor": 8.0})),
            ("rope_scaling", serde_json::json!({"type": "linear", "factor": 2.0})),
            ("rope_parameters", serde_json::json!({"rope_theta": 1e4, "factor": 8.0})),
        ];
        for (key, value) in cases {
            let refusal = with(key, value.clone()).expect_err(key);
            assert!(matches!(&refusal, Refusal::Unsupported(what) if what.contains(key)), "{key}: {value}: {refusal}");
        }
    }

    #[test]
    fn the_end_of_sequence_is_found_in_every_spelling() {
        assert_eq!(parse_eos(br#"{"eos_token_id": 2}"#), Some(2));
        assert_eq!(parse_eos(br#"{"eos_token_id": [7, 8]}"#), Some(7));
        assert_eq!(parse_eos(br#"{"eos_token_id": null}"#), None);
        assert_eq!(parse_eos_text(br#"{"eos_token": "</s>"}"#).as_deref(), Some("</s>"));
        assert_eq!(parse_eos_text(br#"{"eos_token": {"content": "</s>"}}"#).as_deref(), Some("</s>"));
    }
}
