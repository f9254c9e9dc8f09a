//! The Llama architecture, forward and backward written out, once for every backend.
//!
//! ```text
//!   ids ─ embed ─ x ┬─ norm ─ q,k,v ─ rotary ─ attention ─ o ─(+)─ mid ┬─ norm ─ gate,up ─ swiglu ─ down ─(+)─ x' ...
//!                   └───────────────────────────────────────┘          └────────────────────────────────┘
//!   ... last x ─ norm ─ head ─ cross entropy          each of q k v o gate up down: y = x W^T (+ scale x A^T B^T)
//! ```
//! Saved per token and layer for the backward pass: x, q, k, v (rotated), attention's output and log-sum-exp, mid, gate,
//! up, and LoRA's r-wide down projections; or x alone, and the layer is computed again. Norms and SwiGLU are always
//! computed again. In the last layer only the rows that
//! something reads ([`scene::Chosen`]) go through q, attention, o and the MLP; the head sees those rows alone. Below the
//! first adapter no gradient is computed.
//!
//! Where all weights are trained ([`Adapted::everything`]) the same backward pass goes down to the embedding and adds each
//! weight's gradient on its way.

mod adapted;
mod backward;
mod decode;
mod forward;
mod head;
mod load;
mod scene;

use insula_kernels::{Attention, Backend, Precision};

pub(crate) use adapted::Adapted;
pub(crate) use decode::Chain;
pub(crate) use forward::{Keep, Passed};
pub(crate) use head::LOGIT_ROWS;
pub use load::LoadError;
pub(crate) use load::{check_tensors, of_tables};
pub(crate) use scene::Scene;

use crate::adapter::Target;
use crate::base::ModelConfig;

/// One decoder layer's weights.
pub(crate) struct Layer<B: Backend> {
    attention_norm: B::Buffer,
    mlp_norm: B::Buffer,
    /// By [`Target`], in its order.
    weights: [B::Weight; 7],
}

impl<B: Backend> Layer<B> {
    fn weight(&self, target: Target) -> &B::Weight {
        &self.weights[target as usize]
    }
}

/// A model on a backend.
pub(crate) struct Llama<B: Backend> {
    pub(crate) backend: B,
    pub(crate) config: ModelConfig,
    /// How its weights are held.
    pub(crate) precision: Precision,
    embedding: B::Weight,
    /// `None` where the head is the embedding.
    head: Option<B::Weight>,
    norm: B::Buffer,
    layers: Vec<Layer<B>>,
}

impl<B: Backend> Llama<B> {
    fn head_weight(&self) -> &B::Weight {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    fn attention_shape(&self) -> Attention {
        let ModelConfig { heads, kv_heads, head_dim, .. } = self.config;
        Attention { heads, kv_heads, head_dim }
    }

    fn q_width(&self) -> usize {
        self.config.heads * self.config.head_dim
    }

    fn kv_width(&self) -> usize {
        self.config.kv_heads * self.config.head_dim
    }
}
