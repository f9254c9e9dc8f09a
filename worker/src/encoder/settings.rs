//! What an encoder's files ask for: BERT's `config.json`, and sentence-transformers' settings where there are any.
//!
//! Whatever they ask for that is not computed here is refused by name: an encoder that opens is one whose numbers are
//! right.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::base::{BaseError, Folder, Refusal};

/// How a text's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    /// The mean of all tokens, the special ones included.
    Mean,
    /// The first token.
    First,
}

/// Everything about an encoder but its weights and its vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    /// Rows of the table of words.
    pub(super) vocab: usize,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) layers: usize,
    /// Divides `hidden`.
    pub(super) heads: usize,
    /// Rows of the table of places.
    pub(super) positions: usize,
    /// Rows of the table of token types; the first one is used.
    pub(super) types: usize,
    /// Added to the variance inside LayerNorm.
    pub(super) eps: f32,
    /// Longest text in tokens, the special ones included; at most `positions`.
    pub(super) max_tokens: usize,
    /// Whether text is put in lower case before the tokenizer sees it.
    pub(super) lower_case: bool,
    pub(super) pooling: Pooling,
    /// Whether embeddings are scaled to length 1.
    pub(super) normalise: bool,
}

/// The keys of `config.json` that say what is computed. Absent keys have transformers' defaults.
#[derive(Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: Option<usize>,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    is_decoder: Option<bool>,
    add_cross_attention: Option<bool>,
    quantization_config: Option<Value>,
}

/// `sentence_bert_config.json`.
#[derive(Debug, Default, Deserialize)]
struct Sentences {
    max_seq_length: Option<usize>,
    do_lower_case: Option<bool>,
}

/// An entry of `modules.json`.
#[derive(Debug, Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Settings {
    pub(super) fn read(folder: &Folder, path: &Path) -> Result<Settings, BaseError> {
        let about = |name: &str| {
            let path = path.join(name);
            move |refusal: Refusal| refusal.about(&path)
        };
        let mut settings = parse_config(&folder.config).map_err(about("config.json"))?;
        if let Some(json) = folder.settings.get("sentence_bert_config.json") {
            settings.read_sentences(json).map_err(about("sentence_bert_config.json"))?;
        }
        if let Some(json) = folder.settings.get("1_Pooling/config.json") {
            settings.read_pooling(json).map_err(about("1_Pooling/config.json"))?;
        }
        if let Some(json) = folder.settings.get("modules.json") {
            settings.read_modules(json).map_err(about("modules.json"))?;
        }
        Ok(settings)
    }

    fn read_sentences(&mut self, json: &[u8]) -> Result<(), Refusal> {
        let sentences: Sentences = parse(json)?;
        if let Some(most) = sentences.max_seq_length {
            if most == 0 {
                return Refusal::malformed("max_seq_length is 0, expected at least 1");
            }
            self.max_tokens = most.min(self.positions);
        }
        self.lower_case = sentences.do_lower_case.unwrap_or(false);
        Ok(())
    }

    /// Older files have a flag for each way (`pooling_mode_mean_tokens`), newer ones may name it (`pooling_mode`).
    fn read_pooling(&mut self, json: &[u8]) -> Result<(), Refusal> {
        let config: Map<String, Value> = parse(json)?;
        if let Some(width) = config.get("word_embedding_dimension").and_then(Value::as_u64)
            && width != self.hidden as u64
        {
            return Refusal::malformed(format!("word_embedding_dimension is {width}, expected {}", self.hidden));
        }
        let set = config.iter().filter(|(key, value)| key.starts_with("pooling_mode_") && **value == Value::Bool(true));
        let mut ways: Vec<&str> = set.map(|(key, _)| &key["pooling_mode_".len()..]).collect();
        if let Some(named) = config.get("pooling_mode") {
            ways.push(named.as_str().unwrap_or("(not a name)"));
        }
        self.pooling = match ways.as_slice() {
            [] | ["mean_tokens" | "mean"] => Pooling::Mean,
            ["cls_token" | "cls"] => Pooling::First,
            others => {
                return Refusal::unsupported(format!("pooling {others:?} is not supported, only one of mean and cls"));
            }
        };
        Ok(())
    }

    fn read_modules(&mut self, json: &[u8]) -> Result<(), Refusal> {
        let modules: Vec<Module> = parse(json)?;
        let kinds: Vec<(&str, &str)> = modules
            .iter()
            .map(|module| (module.kind.rsplit('.').next().unwrap_or_default(), module.path.as_str()))
            .collect();
        self.normalise = match kinds.as_slice() {
            [("Transformer", ""), ("Pooling", "1_Pooling")] => false,
            [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", _)] => true,
            others => {
                return Refusal::unsupported(format!(
                    "modules {others:?} are not supported: expected Transformer in the folder itself, Pooling in \
                     1_Pooling, and perhaps Normalize"
                ));
            }
        };
        Ok(())
    }
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(json).map_err(|error| Refusal::Malformed(error.to_string()))
}

/// The settings that a `config.json` alone gives: mean pooling and no scaling, as sentence-transformers has it.
fn parse_config(json: &[u8]) -> Result<Settings, Refusal> {
    let value: Value = parse(json)?;
    match value.get("model_type").and_then(Value::as_str) {
        Some("bert") => {}
        Some(other) => return Refusal::unsupported(format!("model_type {other:?}: a sentence encoder must be a bert")),
        None => return Refusal::malformed("model_type is missing"),
    }
    let config: Config = parse(json)?;
    expect_plain(&config)?;
    let heads = config.num_attention_heads;
    if heads == 0 || config.hidden_size == 0 || !config.hidden_size.is_multiple_of(heads) {
        let hidden = config.hidden_size;
        return Refusal::malformed(format!(
            "num_attention_heads is {heads}, which does not divide hidden_size {hidden}"
        ));
    }
    let positions = config.max_position_embeddings.unwrap_or(512);
    let eps = config.layer_norm_eps.unwrap_or(1e-12);
    if !(eps.is_finite() && eps >= 0.0) {
        return Refusal::malformed(format!("layer_norm_eps is {eps}, expected a finite number of at least 0"));
    }
    Ok(Settings {
        vocab: config.vocab_size,
        hidden: config.hidden_size,
        intermediate: config.intermediate_size,
        layers: config.num_hidden_layers,
        heads,
        positions,
        types: config.type_vocab_size.unwrap_or(2),
        eps: eps as f32,
        max_tokens: positions,
        lower_case: false,
        pooling: Pooling::Mean,
        normalise: false,
    })
}

fn expect_plain(config: &Config) -> Result<(), Refusal> {
    if let Some(act) = config.hidden_act.as_deref().filter(|&act| act != "gelu") {
        return Refusal::unsupported(format!("hidden_act {act:?} is not supported, only \"gelu\""));
    }
    if let Some(kind) = config.position_embedding_type.as_deref().filter(|&kind| kind != "absolute") {
        return Refusal::unsupported(format!("position_embedding_type {kind:?} is not supported, only \"absolute\""));
    }
    if config.is_decoder == Some(true) || config.add_cross_attention == Some(true) {
        return Refusal::unsupported("is_decoder or add_cross_attention is true: expected an encoder");
    }
    if config.quantization_config.as_ref().is_some_and(|value| !value.is_null()) {
        return Refusal::unsupported("quantization_config is set: only plain float weights are supported here");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plain() -> Value {
        json!({
            "model_type": "bert", "vocab_size": 97, "hidden_size": 48, "intermediate_size": 88,
            "num_hidden_layers": 3, "num_attention_heads": 6, "hidden_act": "gelu",
        })
    }

    fn settings() -> Settings {
        parse_config(plain().to_string().as_bytes()).unwrap()
    }

    #[test]
    fn absent_files_and_keys_have_the_libraries_defaults() {
        let Settings { positions, types, eps, max_tokens, lower_case, pooling, normalise, .. } = settings();
        assert_eq!((positions, types, eps, max_tokens), (512, 2, 1e-12, 512));
        assert_eq!((lower_case, pooling, normalise), (false, Pooling::Mean, false));
    }

    #[test]
    fn settings_of_sentence_transformers_are_followed() {
        let mut settings = settings();
        settings.read_sentences(br#"{"max_seq_length": 128, "do_lower_case": true}"#).unwrap();
        assert_eq!((settings.max_tokens, settings.lower_case), (128, true));
        settings.read_sentences(br#"{"max_seq_length": 1000}"#).unwrap();
        assert_eq!((settings.max_tokens, settings.lower_case), (512, false), "no more than there are places");
        settings.read_pooling(br#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#).unwrap();
        assert_eq!(settings.pooling, Pooling::First);
        settings.read_pooling(br#"{"pooling_mode": "mean"}"#).unwrap();
        assert_eq!(settings.pooling, Pooling::Mean);
        let modules = |kinds: &[(&str, &str)]| {
            let module = |(kind, path): &(&str, &str)| json!({"type": format!("a.b.{kind}"), "path": path});
            Value::Array(kinds.iter().map(module).collect()).to_string()
        };
        let pooled = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")];
        settings.read_modules(modules(&pooled).as_bytes()).unwrap();
        assert!(settings.normalise);
        settings.read_modules(modules(&pooled[..2]).as_bytes()).unwrap();
        assert!(!settings.normalise);
        let dense = modules(&[pooled[0], pooled[1], ("Dense", "2_Dense")]);
        assert!(settings.read_modules(dense.as_bytes()).unwrap_err().to_string().contains("Dense"));
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        let cases = [
            ("model_type", json!("roberta")),
            ("hidden_act", json!("relu")),
            ("position_embedding_type", json!("relative_key")),
            ("is_decoder", json!(true)),
            ("quantization_config", json!({"quant_method": "awq"})),
            ("num_attention_heads", json!(5)),
            ("num_attention_heads", json!(0)),
            ("layer_norm_eps", json!(-1.0)),
        ];
        for (key, value) in cases {
            let mut config = plain();
            config[key] = value.clone();
            let refusal = parse_config(config.to_string().as_bytes()).expect_err(key);
            assert!(refusal.to_string().contains(key), "{key}: {value}: {refusal}");
        }
        let mut settings = settings();
        let both = br#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#;
        for bad in [&both[..], br#"{"pooling_mode_max_tokens": true}"#, br#"{"word_embedding_dimension": 3}"#] {
            assert!(settings.read_pooling(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert!(settings.read_sentences(br#"{"max_seq_length": 0}"#).is_err());
    }
}
