//! A very small Llama made on the spot, written as GGUF and as a Hugging Face folder.
#![allow(dead_code, reason = "each test crate uses some of it")]

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use serde_json::{Value, json};

/// Hidden width, MLP width, vocabulary, layers, heads, key/value heads, head width.
pub const HIDDEN: usize = 32;
const MLP: usize = 64;
pub const VOCAB: usize = 260;
const LAYERS: usize = 2;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 8;

/// Tensors by Hugging Face's names: shape and values, all exact in half precision.
pub fn tensors() -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let (queries, keys) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        for (part, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![queries, HIDDEN]),
            ("self_attn.k_proj", vec![keys, HIDDEN]),
            ("self_attn.v_proj", vec![keys, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, queries]),
            ("mlp.gate_proj", vec![MLP, HIDDEN]),
            ("mlp.up_proj", vec![MLP, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, MLP]),
        ] {
            shapes.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    let filled = |(salt, (name, shape)): (usize, (String, Vec<usize>))| {
        // Whole numbers below 2^8 over 64: exact in float16 and bfloat16 alike.
        let values = (0..shape.iter().product()).map(|i: usize| ((i * 37 + salt * 11) % 255) as f32 / 64.0 - 2.0);
        (name, (shape, values.map(|v| bf16::from_f32(v).to_f32()).collect()))
    };
    shapes.into_iter().enumerate().map(filled).collect()
}

/// The `config.json` of the model.
pub fn config() -> Value {
    json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": MLP,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 128,
        "tie_word_embeddings": true, "eos_token_id": 0,
    })
}

/// A safetensors file of some tensors, as `dtype`.
pub fn safetensors(tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>, dtype: &str) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (shape, values)) in tensors {
        let start = data.len();
        for &value in values {
            match dtype {
                "F32" => data.extend(value.to_le_bytes()),
                "F16" => data.extend(f16::from_f32(value).to_le_bytes()),
                _ => data.extend(bf16::from_f32(value).to_le_bytes()),
            }
        }
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// A safetensors file with this header.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// Writes the model as a Hugging Face folder of one file.
pub fn write_folder(folder: &Path, dtype: &str) {
    super::write(&folder.join("config.json"), config().to_string().as_bytes());
    super::write(&folder.join("model.safetensors"), &safetensors(&tensors(), dtype));
}

/// A GGUF file, part by part.
pub struct Gguf {
    pub version: u32,
    /// Key, and the value's type and bytes.
    pub metadata: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<GgufTensor>,
    pub alignment: usize,
}

pub struct GgufTensor {
    pub name: String,
    /// Innermost first.
    pub dimensions: Vec<u64>,
    pub kind: u32,
    pub data: Vec<u8>,
    /// Written instead of the true offset.
    pub offset: Option<u64>,
}

pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

pub fn string(value: &str) -> Vec<u8> {
    [&8u32.to_le_bytes()[..], &text(value)].concat()
}

pub fn number(value: u32) -> Vec<u8> {
    [4u32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub fn float(value: f32) -> Vec<u8> {
    [6u32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub fn strings(values: &[String]) -> Vec<u8> {
    let items: Vec<u8> = values.iter().flat_map(|value| text(value)).collect();
    [&9u32.to_le_bytes()[..], &8u32.to_le_bytes(), &(values.len() as u64).to_le_bytes(), &items].concat()
}

impl Gguf {
    /// The model, with a byte-level vocabulary and two merges.
    pub fn tiny() -> Gguf {
        let metadata = vec![
            ("general.architecture", string("llama")),
            ("general.name", string("tiny")),
            ("llama.block_count", number(LAYERS as u32)),
            ("llama.context_length", number(128)),
            ("llama.embedding_length", number(HIDDEN as u32)),
            ("llama.feed_forward_length", number(MLP as u32)),
            ("llama.attention.head_count", number(HEADS as u32)),
            ("llama.attention.head_count_kv", number(KV_HEADS as u32)),
            ("llama.rope.freq_base", float(1e4)),
            ("llama.attention.layer_norm_rms_epsilon", float(1e-5)),
            ("tokenizer.ggml.model", string("gpt2")),
            ("tokenizer.ggml.pre", string("gpt-2")),
            ("tokenizer.ggml.tokens", strings(&vocabulary())),
            ("tokenizer.ggml.token_type", token_types()),
            ("tokenizer.ggml.merges", strings(&["h e".into(), "l l".into()])),
            ("tokenizer.ggml.eos_token_id", number(0)),
        ];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let tensors =
            tensors().into_iter().map(|(name, (shape, values))| gguf_tensor(&name, &shape, &values)).collect();
        Gguf { version: 3, metadata, tensors, alignment: 32 }
    }

    pub fn set(mut self, key: &str, value: Vec<u8>) -> Gguf {
        self.metadata.retain(|(other, _)| other != key);
        self.metadata.push((key.to_owned(), value));
        self
    }

    pub fn without(mut self, key: &str) -> Gguf {
        self.metadata.retain(|(other, _)| other != key);
        self.tensors.retain(|tensor| tensor.name != key);
        self
    }

    pub fn tensor(&mut self, name: &str) -> &mut GgufTensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            file.extend(text(key));
            file.extend(value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            data.resize(usize::next_multiple_of(data.len(), self.alignment), 0);
            file.extend(text(&tensor.name));
            file.extend((tensor.dimensions.len() as u32).to_le_bytes());
            tensor.dimensions.iter().for_each(|dimension| file.extend(dimension.to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            file.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
        }
        file.resize(usize::next_multiple_of(file.len(), self.alignment), 0);
        file.extend(data);
        file
    }
}

/// `<eos>`, the 256 letters of byte-level BPE, `he`, `ll`, and a token that text is searched for.
fn vocabulary() -> Vec<String> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100u32..;
    let letters = (0..256u32).map(|byte| if printable(byte) { byte } else { others.next().unwrap() });
    let mut tokens = vec!["<eos>".to_owned()];
    tokens.extend(letters.map(|letter| char::from_u32(letter).unwrap().to_string()));
    tokens.extend(["he", "ll", "<user>"].map(str::to_owned));
    tokens
}

fn token_types() -> Vec<u8> {
    let kinds = (0..VOCAB as i32).map(|id| match id {
        0 => 3,
        259 => 4,
        _ => 1i32,
    });
    let items: Vec<u8> = kinds.flat_map(i32::to_le_bytes).collect();
    [&9u32.to_le_bytes()[..], &5u32.to_le_bytes(), &(VOCAB as u64).to_le_bytes(), &items].concat()
}

/// A tensor under llama.cpp's name, in its order of rows.
fn gguf_tensor(name: &str, shape: &[usize], values: &[f32]) -> GgufTensor {
    let renamed = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let other = renamed.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
    let values = match name {
        _ if name.contains("q_proj") => interleaved(values, HEADS),
        _ if name.contains("k_proj") => interleaved(values, KV_HEADS),
        _ => values.to_vec(),
    };
    GgufTensor {
        name: other,
        dimensions: shape.iter().rev().map(|&dimension| dimension as u64).collect(),
        kind: 0,
        data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        offset: None,
    }
}

/// llama.cpp's `permute`: reshape to [heads, 2, head_dim / 2, columns], swap the middle axes.
fn interleaved(values: &[f32], heads: usize) -> Vec<f32> {
    let half = HEAD_DIM / 2;
    let row = |index: usize| &values[index * HIDDEN..][..HIDDEN];
    let order =
        (0..heads).flat_map(|head| (0..half).flat_map(move |j| (0..2).map(move |i| head * HEAD_DIM + i * half + j)));
    order.flat_map(row).copied().collect()
}
