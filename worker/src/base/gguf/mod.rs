//! GGUF: one file with the configuration, the tokenizer and the (mostly quantised) tensors of a base.
//!
//! Three things differ from Hugging Face's folder and are undone here: the tensors have other names, their
//! dimensions are written innermost first, and llama.cpp reorders the rows of the q and k projections so that the
//! two numbers that a rotation mixes lie side by side (see [`Rows::Interleaved`]).

mod cursor;
mod header;

use std::collections::BTreeMap;

use header::{Header, required};

use super::ModelConfig;
use super::error::Refusal;
use super::tensors::{Rows, Stored};
use crate::tokenize::{GgufVocabulary, TokenKind};

/// What a GGUF file holds, in the terms of the rest of the worker.
#[derive(Debug)]
pub(crate) struct GgufContents {
    pub(crate) config: ModelConfig,
    pub(crate) name: Option<String>,
    pub(crate) tensors: BTreeMap<String, Stored>,
}

/// Reads everything but the tokenizer from the bytes of a GGUF file.
pub(crate) fn parse(file: &[u8]) -> Result<GgufContents, Refusal> {
    let header = Header::parse(file)?;
    expect_plain_llama(&header)?;
    let tensors = named_tensors(&header, head_counts(&header)?)?;
    let config = config_of(&header, &tensors)?;
    let name = header.string("general.name")?.map(str::to_owned);
    Ok(GgufContents { config, name, tensors })
}

/// Reads the tokenizer from the bytes of a GGUF file.
pub(crate) fn parse_vocabulary(file: &[u8]) -> Result<GgufVocabulary, Refusal> {
    vocabulary_of(&Header::parse(file)?)
}

/// Refuses files whose model computes something else than the plain Llama architecture.
fn expect_plain_llama(header: &Header<'_>) -> Result<(), Refusal> {
    let architecture = required(header.string("general.architecture")?, "general.architecture")?;
    if architecture != "llama" {
        return Refusal::unsupported(format!("architecture {architecture:?}: only llama is supported today"));
    }
    if header.unsigned("split.count")?.unwrap_or(1) > 1 {
        return Refusal::unsupported("is one of several split files; join them into one GGUF file first");
    }
    if header.unsigned("llama.expert_count")?.unwrap_or(0) > 0 {
        return Refusal::unsupported("llama.expert_count is not 0: mixtures of experts are not supported");
    }
    let scaling = header.string("llama.rope.scaling.type")?.unwrap_or("none");
    if scaling != "none" || header.has("llama.rope.scale_linear") {
        return Refusal::unsupported(format!("rope scaling {scaling:?} is not supported"));
    }
    Ok(())
}

/// Numbers of query heads and of key/value heads.
#[derive(Clone, Copy)]
struct HeadCounts {
    queries: usize,
    keys: usize,
}

fn head_counts(header: &Header<'_>) -> Result<HeadCounts, Refusal> {
    let queries = dimension(header, "llama.attention.head_count")?;
    let keys =
        header.unsigned("llama.attention.head_count_kv")?.map_or(Ok(queries), |count| whole(count, "head_count_kv"))?;
    Ok(HeadCounts { queries, keys })
}

fn whole(value: u64, key: &str) -> Result<usize, Refusal> {
    match usize::try_from(value) {
        Ok(value) if value > 0 => Ok(value),
        _ => Refusal::malformed(format!("{key} is {value}, expected at least 1")),
    }
}

fn dimension(header: &Header<'_>, key: &str) -> Result<usize, Refusal> {
    whole(required(header.unsigned(key)?, key)?, key)
}

fn config_of(header: &Header<'_>, tensors: &BTreeMap<String, Stored>) -> Result<ModelConfig, Refusal> {
    let HeadCounts { queries: heads, keys: kv_heads } = head_counts(header)?;
    let hidden = dimension(header, "llama.embedding_length")?;
    let head_dim = head_dim(header, hidden, heads)?;
    let embedding = tensors.get("model.embed_tokens.weight").map(|tensor| tensor.shape[0]);
    Ok(ModelConfig {
        vocab: required(embedding, "token_embd.weight")
            .or_else(|_| Refusal::malformed("has no tensor token_embd.weight"))?,
        hidden,
        intermediate: dimension(header, "llama.feed_forward_length")?,
        layers: dimension(header, "llama.block_count")?,
        heads,
        kv_heads,
        head_dim,
        rope_theta: header.float("llama.rope.freq_base")?.unwrap_or(10_000.0),
        rope_scaling: None,
        rms_eps: {
            let key = "llama.attention.layer_norm_rms_epsilon";
            required(header.float(key)?, key)? as f32
        },
        context: dimension(header, "llama.context_length")?,
        tied: !tensors.contains_key("lm_head.weight"),
    })
}

/// Width of a head: as stated, or the embedding's share; rotated as a whole, equal for keys and values.
fn head_dim(header: &Header<'_>, hidden: usize, heads: usize) -> Result<usize, Refusal> {
    let share = (hidden / heads) as u64;
    let stated = header.unsigned("llama.attention.key_length")?.unwrap_or(share);
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        let other = header.unsigned(key)?.unwrap_or(stated);
        if other != stated {
            return Refusal::unsupported(format!("{key} is {other}; only heads of one width ({stated}) are supported"));
        }
    }
    whole(stated, "llama.attention.key_length")
}

fn named_tensors(header: &Header<'_>, heads: HeadCounts) -> Result<BTreeMap<String, Stored>, Refusal> {
    let mut tensors = BTreeMap::new();
    for tensor in &header.tensors {
        let (name, rows) = hugging_face_name(tensor.name, heads)?;
        let stored = Stored {
            file: 0,
            bytes: tensor.bytes.clone(),
            encoding: tensor.encoding,
            shape: tensor.shape.clone(),
            rows,
        };
        if tensors.insert(name, stored).is_some() {
            return Refusal::malformed(format!("tensor {} is given twice under different spellings", tensor.name));
        }
    }
    Ok(tensors)
}

/// Hugging Face's name for a tensor of architecture `llama`, and the order its rows are stored in.
fn hugging_face_name(name: &str, heads: HeadCounts) -> Result<(String, Rows), Refusal> {
    let plain = |name: &str| Ok((name.to_owned(), Rows::InOrder));
    match name {
        "token_embd.weight" => return plain("model.embed_tokens.weight"),
        "output_norm.weight" => return plain("model.norm.weight"),
        "output.weight" => return plain("lm_head.weight"),
        "rope_freqs.weight" => return Refusal::unsupported("rope scaling (tensor rope_freqs.weight) is not supported"),
        _ => {}
    }
    let layered = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let layered = layered.and_then(|(layer, part)| Some((layer.parse::<usize>().ok()?, layer_part(part, heads)?)));
    match layered {
        Some((layer, (part, rows))) => Ok((format!("model.layers.{layer}.{part}.weight"), rows)),
        None => Refusal::unsupported(format!("tensor {name}: not a part of the plain llama architecture")),
    }
}

fn layer_part(part: &str, heads: HeadCounts) -> Option<(&'static str, Rows)> {
    Some(match part {
        "attn_norm.weight" => ("input_layernorm", Rows::InOrder),
        "attn_q.weight" => ("self_attn.q_proj", Rows::Interleaved { heads: heads.queries }),
        "attn_k.weight" => ("self_attn.k_proj", Rows::Interleaved { heads: heads.keys }),
        "attn_v.weight" => ("self_attn.v_proj", Rows::InOrder),
        "attn_output.weight" => ("self_attn.o_proj", Rows::InOrder),
        "ffn_norm.weight" => ("post_attention_layernorm", Rows::InOrder),
        "ffn_gate.weight" => ("mlp.gate_proj", Rows::InOrder),
        "ffn_up.weight" => ("mlp.up_proj", Rows::InOrder),
        "ffn_down.weight" => ("mlp.down_proj", Rows::InOrder),
        _ => return None,
    })
}

fn vocabulary_of(header: &Header<'_>) -> Result<GgufVocabulary, Refusal> {
    let model = required(header.string("tokenizer.ggml.model")?, "tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Refusal::unsupported(format!(
            "tokenizer.ggml.model {model:?} is not supported, only \"gpt2\" (byte-level BPE); \
             a Hugging Face folder with tokenizer.json works"
        ));
    }
    let tokens = strings(header, "tokenizer.ggml.tokens")?;
    let kinds = token_kinds(header, tokens.len())?;
    let eos = required(header.unsigned("tokenizer.ggml.eos_token_id")?, "tokenizer.ggml.eos_token_id")?;
    match u32::try_from(eos) {
        Ok(eos) if (eos as usize) < tokens.len() => Ok(GgufVocabulary {
            pre: header.string("tokenizer.ggml.pre")?.unwrap_or("default").to_owned(),
            merges: strings(header, "tokenizer.ggml.merges")?,
            tokens,
            kinds,
            eos,
        }),
        _ => Refusal::malformed(format!("tokenizer.ggml.eos_token_id is {eos}, expected below {}", tokens.len())),
    }
}

fn strings(header: &Header<'_>, key: &str) -> Result<Vec<String>, Refusal> {
    let array = required(header.array(key)?, key)?;
    let text = |(index, value)| match value {
        Ok(cursor::Value::String(bytes)) => std::str::from_utf8(bytes)
            .map(str::to_owned)
            .or_else(|_| Refusal::malformed(format!("{key}: element {index} is not UTF-8"))),
        Ok(_) => Refusal::malformed(format!("{key}: elements are {:?}, expected strings", array.kind)),
        Err(refusal) => Err(refusal),
    };
    array.values().enumerate().map(text).collect()
}

/// The kind of each token; all normal where the file does not say.
fn token_kinds(header: &Header<'_>, tokens: usize) -> Result<Vec<TokenKind>, Refusal> {
    let key = "tokenizer.ggml.token_type";
    let Some(array) = header.array(key)? else { return Ok(vec![TokenKind::Normal; tokens]) };
    if array.count != tokens {
        return Refusal::malformed(format!("{key} has {} elements, expected {tokens}", array.count));
    }
    let kind = |value| match value? {
        cursor::Value::Unsigned(3) | cursor::Value::Signed(3) => Ok(TokenKind::Control),
        cursor::Value::Unsigned(4) | cursor::Value::Signed(4) => Ok(TokenKind::UserDefined),
        cursor::Value::Unsigned(_) | cursor::Value::Signed(_) => Ok(TokenKind::Normal),
        _ => Refusal::malformed(format!("{key}: elements are {:?}, expected whole numbers", array.kind)),
    };
    array.values().map(kind).collect()
}
