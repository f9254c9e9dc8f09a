//! A base whose weights were all trained, as a Hugging Face folder: it loads in transformers, and here as a base again.
//!
//! Four files: `config.json` says the architecture's dimensions, `model.safetensors` holds the weights in float32,
//! `tokenizer.json` and `tokenizer_config.json` the tokenizer, whatever the base's own format was. What no base of ours
//! holds is not written: a chat template, generation settings. Equal weights give equal bytes.

use serde_json::{Value, json};
use thiserror::Error;

use crate::base::{ModelConfig, Refusal, RopeScaling, safe};
use crate::parameters::{Layout, Parameters};
use crate::tokenize::Tokenizer;

/// Name of the file with the dimensions.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the file with the weights.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the file with the tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Name of the file that says how the tokenizer is to be used.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// A tuned base that can't be read or written.
#[derive(Debug, Error)]
pub enum TunedError {
    /// `model.safetensors` is damaged, or not of the model.
    #[error("{WEIGHTS_FILE}: {0}")]
    Weights(String),
    /// The tokenizer can't be written.
    #[error("{TOKENIZER_FILE}: {0}")]
    Tokenizer(String),
}

/// All files but the weights, by name.
///
/// # Errors
/// When the tokenizer can't be written.
pub fn side_files(model: &ModelConfig, tokenizer: &Tokenizer) -> Result<[(&'static str, Vec<u8>); 3], TunedError> {
    let text = |value: &Value| format!("{value:#}\n").into_bytes();
    Ok([
        (CONFIG_FILE, text(&config_json(model, tokenizer.eos()))),
        (TOKENIZER_FILE, tokenizer.to_json().map_err(TunedError::Tokenizer)?),
        (TOKENIZER_CONFIG_FILE, text(&tokenizer_config_json(tokenizer))),
    ])
}

/// The bytes of `model.safetensors`.
///
/// # Errors
/// When the weights can't be described by a safetensors header, which no real model brings about.
pub fn weights_bytes(parameters: &Parameters) -> Result<Vec<u8>, TunedError> {
    let segments = parameters.layout.segments.iter();
    let tensors: Vec<_> = segments
        .map(|segment| (segment.name.as_str(), segment.shape.as_slice(), &parameters.params[segment.range()]))
        .collect();
    safe::encode(&tensors, Some("pt")).map_err(|error| TunedError::Weights(error.to_string()))
}

/// Reads the weights of a model of this shape.
///
/// # Errors
/// When the file is damaged, or lacks a tensor, or has another one or one of another shape.
pub fn from_bytes(weights: &[u8], model: &ModelConfig) -> Result<Parameters, TunedError> {
    let tensors = safe::parse(weights, 0).map_err(|refusal: Refusal| TunedError::Weights(refusal.to_string()))?;
    let layout = Layout::new(model);
    for segment in &layout.segments {
        let (name, expected) = (&segment.name, &segment.shape);
        match tensors.get(name) {
            None => return Err(TunedError::Weights(format!("tensor {name} is missing"))),
            Some(found) if found.shape != *expected => {
                let found = &found.shape;
                return Err(TunedError::Weights(format!("tensor {name} has shape {found:?}, expected {expected:?}")));
            }
            Some(_) => {}
        }
    }
    if let Some(stray) = tensors.keys().find(|name| layout.find(name).is_none()) {
        return Err(TunedError::Weights(format!("tensor {stray} is not part of the base")));
    }
    let mut params = vec![0.0; layout.len()];
    for segment in &layout.segments {
        tensors[&segment.name].decode(weights, &mut params[segment.range()]);
    }
    Ok(Parameters { layout, params })
}

/// What transformers, and [`crate::base::Base`], need to know of the architecture.
fn config_json(model: &ModelConfig, eos: u32) -> Value {
    // The shortest decimal that reads back as the same float32: 1e-5, not 9.99999974e-6.
    let eps: f64 = model.rms_eps.to_string().parse().unwrap_or(f64::from(model.rms_eps));
    json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "eos_token_id": eos,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "max_position_embeddings": model.context,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads,
        "rms_norm_eps": eps,
        "rope_scaling": model.rope_scaling.map(RopeScaling::json),
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tied,
        "torch_dtype": "float32",
        "vocab_size": model.vocab,
    })
}

fn tokenizer_config_json(tokenizer: &Tokenizer) -> Value {
    json!({ "eos_token": tokenizer.eos_text(), "tokenizer_class": "PreTrainedTokenizerFast" })
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
            rope_theta: 1e5,
            rope_scaling: None,
            rms_eps: 1e-5,
            context: 64,
            tied: false,
        }
    }

    fn parameters() -> Parameters {
        let layout = Layout::new(&model());
        let params = (0..layout.len()).map(|i| i as f32 / 64.0 - 3.0).collect();
        Parameters { layout, params }
    }

    #[test]
    fn weights_survive_the_round_trip_and_their_bytes_are_always_the_same() {
        let bytes = weights_bytes(&parameters()).unwrap();
        assert_eq!(bytes, weights_bytes(&parameters()).unwrap());
        assert_eq!(from_bytes(&bytes, &model()).unwrap(), parameters());
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("lm_head.weight").unwrap().shape(), [11, 8]);
    }

    #[test]
    fn weights_of_another_model_are_refused_by_name() {
        let bytes = weights_bytes(&parameters()).unwrap();
        let refused = |model: ModelConfig| from_bytes(&bytes, &model).unwrap_err().to_string();
        let error = refused(ModelConfig { layers: 3, ..model() });
        assert_eq!(error, "model.safetensors: tensor model.layers.2.input_layernorm.weight is missing");
        let error = refused(ModelConfig { tied: true, ..model() });
        assert_eq!(error, "model.safetensors: tensor lm_head.weight is not part of the base");
        let error = refused(ModelConfig { vocab: 12, ..model() });
        assert_eq!(error, "model.safetensors: tensor model.embed_tokens.weight has shape [11, 8], expected [12, 8]");
        assert!(from_bytes(&bytes[..bytes.len() - 1], &model()).is_err());
    }

    #[test]
    fn the_written_configuration_reads_back() {
        let text = config_json(&model(), 7).to_string();
        assert!(text.contains("\"rms_norm_eps\":1e-5") || text.contains("\"rms_norm_eps\":0.00001"), "{text}");
        assert_eq!(crate::base::parse_config(text.as_bytes()).unwrap(), model());
    }
}
