//! Where a base's tensors lie, and how they are read as float32 in Hugging Face's order.

use std::collections::BTreeMap;
use std::ops::Range;

use super::ModelConfig;
use super::error::Refusal;
use super::quant::Encoding;

/// A tensor in one of a base's files. Made by the parsers, which see to it that `bytes` lies inside the file and
/// holds exactly `shape`'s elements in whole blocks per row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    /// Index of the file.
    pub(crate) file: usize,
    /// The tensor's bytes in that file.
    pub(crate) bytes: Range<usize>,
    pub(crate) encoding: Encoding,
    /// Outermost dimension first; never empty.
    pub(crate) shape: Vec<usize>,
    pub(crate) rows: Rows,
}

/// In which order the rows of a matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// As Hugging Face has them.
    InOrder,
    /// As llama.cpp has them for q and k: within each head, stored row `2 j + i` is Hugging Face's row
    /// `i * head_dim / 2 + j` (i in 0..2), which brings the two rows of one rotation together.
    Interleaved {
        /// Number of heads that the rows are divided into.
        heads: usize,
    },
}

impl Stored {
    /// Number of elements.
    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Decodes the tensor from its `file`'s bytes into `out`, which holds [`Stored::elements`].
    pub(crate) fn decode(&self, file: &[u8], out: &mut [f32]) {
        let bytes = &file[self.bytes.clone()];
        match self.rows {
            Rows::InOrder => self.encoding.decode(bytes, out),
            Rows::Interleaved { heads } => self.decode_interleaved(bytes, heads, out),
        }
    }

    fn decode_interleaved(&self, bytes: &[u8], heads: usize, out: &mut [f32]) {
        let (rows, width) = (self.shape[0], out.len() / self.shape[0]);
        let (head_dim, row_bytes) = (rows / heads, bytes.len() / rows);
        for (row, source) in bytes.chunks_exact(row_bytes).enumerate() {
            let (head, within) = (row / head_dim, row % head_dim);
            let target = head * head_dim + within % 2 * (head_dim / 2) + within / 2;
            self.encoding.decode(source, &mut out[target * width..][..width]);
        }
    }
}

/// The projections and norms of one layer, as (part, rows, columns); norms have no columns.
fn layer_shapes(config: &ModelConfig) -> Option<[(&'static str, Vec<usize>); 9]> {
    let ModelConfig { hidden, intermediate, .. } = *config;
    let queries = config.heads.checked_mul(config.head_dim)?;
    let keys = config.kv_heads.checked_mul(config.head_dim)?;
    Some([
        ("input_layernorm", vec![hidden]),
        ("self_attn.q_proj", vec![queries, hidden]),
        ("self_attn.k_proj", vec![keys, hidden]),
        ("self_attn.v_proj", vec![keys, hidden]),
        ("self_attn.o_proj", vec![hidden, queries]),
        ("post_attention_layernorm", vec![hidden]),
        ("mlp.gate_proj", vec![intermediate, hidden]),
        ("mlp.up_proj", vec![intermediate, hidden]),
        ("mlp.down_proj", vec![hidden, intermediate]),
    ])
}

/// Checks that every tensor the configuration asks for is there in its shape, and nothing else.
///
/// After this, every product of the configuration's numbers is bounded by the size of a real file.
pub(crate) fn check(config: &ModelConfig, tensors: &BTreeMap<String, Stored>) -> Result<(), Refusal> {
    let table = [config.vocab, config.hidden];
    expect_shape(tensors, "model.embed_tokens.weight", &table)?;
    expect_shape(tensors, "model.norm.weight", &table[1..])?;
    if !config.tied {
        expect_shape(tensors, "lm_head.weight", &table)?;
    }
    let Some(shapes) = layer_shapes(config) else {
        return Refusal::malformed(format!("{} heads of width {} overflow", config.heads, config.head_dim));
    };
    for layer in 0..config.layers {
        for (part, shape) in &shapes {
            expect_shape(tensors, &format!("model.layers.{layer}.{part}.weight"), shape)?;
        }
    }
    match tensors.keys().find(|name| !is_part_of(config, name)) {
        Some(stray) => Refusal::unsupported(format!(
            "tensor {stray} is not a part of the plain llama architecture with {} layers (biases are not supported)",
            config.layers
        )),
        None => Ok(()),
    }
}

fn expect_shape(tensors: &BTreeMap<String, Stored>, name: &str, expected: &[usize]) -> Result<(), Refusal> {
    match tensors.get(name) {
        None => Refusal::malformed(format!("tensor {name} is missing")),
        Some(tensor) if tensor.shape == expected => Ok(()),
        Some(tensor) => {
            Refusal::malformed(format!("tensor {name} has shape {:?}, expected {expected:?}", tensor.shape))
        }
    }
}

/// A tensor that the architecture has no use for would mean that the model computes something else.
fn is_part_of(config: &ModelConfig, name: &str) -> bool {
    let outer = ["model.embed_tokens.weight", "model.norm.weight"];
    if outer.contains(&name) || (!config.tied && name == "lm_head.weight") {
        return true;
    }
    let layered = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let Some((layer, part)) = layered else { return false };
    let parts = layer_shapes(config).into_iter().flatten();
    layer.parse::<usize>().is_ok_and(|layer| layer < config.layers)
        && parts.into_iter().any(|(known, _)| part.strip_suffix(".weight") == Some(known))
}
