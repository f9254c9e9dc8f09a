//! A base: a frozen pretrained model on disk, opened for reading.
//!
//! Whatever the file format, the rest of the worker sees one shape: a [`ModelConfig`] and a [`TensorSource`] that
//! answers in Hugging Face's tensor names (`model.layers.0.self_attn.q_proj.weight`, ...), row-major, rotary in
//! Hugging Face's half-split order.
//!
//! ```text
//! fetch::resolve("pip:..." or a path) -> ResolvedBase
//! Base::open(path) -> gguf | hf + safe  -> tensors (where each lies, in which encoding) -> quant (float32)
//!                     \-- tokenizer() -> crate::tokenize
//! ```
//! Files come from outside and are not believed: every size is checked against the file before it is used, so a
//! truncated or hostile file is an error and never a panic or an allocation that the file does not justify.

mod cached;
mod digest;
mod error;
pub mod fetch;
mod folder;
mod gguf;
mod hf;
mod map;
mod open;
mod pip;
mod quant;
mod rope;
pub(crate) mod safe;
pub(crate) mod shell;
mod tensors;

pub use error::BaseError;
pub(crate) use error::Refusal;
#[cfg(test)]
pub(crate) use hf::parse_config;
pub use open::Base;
pub use rope::RopeScaling;
pub use shell::default_cache_dir;

pub(crate) use digest::hex;
pub(crate) use folder::Folder;
pub(crate) use rope::frequencies;
pub(crate) use tensors::Stored;

/// The Llama architecture's dimensions and constants.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Number of token ids the embedding table has rows for.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the frequencies are scaled, if they are.
    pub rope_scaling: Option<RopeScaling>,
    /// Added to the mean square inside RMSNorm.
    pub rms_eps: f32,
    /// Longest sequence, in tokens, that the base was made for.
    pub context: usize,
    /// Whether the LM head is the embedding table.
    pub tied: bool,
}

/// Named tensors of a base, read one at a time as float32.
pub trait TensorSource: Sync {
    /// Shape of the named tensor, outermost dimension first; `None` where the base has no such tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// Writes the tensor's elements, row-major, dequantised to float32, into `out`.
    ///
    /// # Errors
    /// When the tensor is absent, or `out.len()` differs from its number of elements.
    fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<(), BaseError>;
}
