//! The forward pass over a scene.

use insula_kernels::{Backend, Direction, KernelError, Sight, Write};

use super::adapted::{Adapted, Downs, Linear};
use super::{Llama, Scene};
use crate::adapter::Target;

/// What of the forward pass is needed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Only its result.
    Nothing,
    /// Keys and values, to decode on.
    KeysValues,
    /// Everything the backward pass reads.
    All,
    /// Each layer's input, from which the backward pass computes the rest again.
    Inputs,
}

/// What is kept of one layer for the backward pass.
pub(super) enum Kept<B: Backend> {
    State(LayerState<B>),
    Input(B::Buffer),
}

/// What the backward pass reads of one layer.
pub(super) struct LayerState<B: Backend> {
    pub x: B::Buffer,
    pub k: B::Buffer,
    pub v: B::Buffer,
    pub rest: Rest<B>,
    pub downs: Downs<B>,
}

/// The part of a layer after keys and values, at the rows that go through it.
pub(super) struct Rest<B: Backend> {
    pub q: B::Buffer,
    pub attention: B::Buffer,
    pub lse: B::Buffer,
    pub mid: B::Buffer,
    pub gate: B::Buffer,
    pub up: B::Buffer,
}

/// A finished forward pass.
pub(crate) struct Passed<B: Backend> {
    /// Residual stream after the last layer at the chosen rows, `[R, hidden]`, before the final norm.
    pub(super) last: B::Buffer,
    /// With [`Keep::All`] or [`Keep::Inputs`]: one per layer.
    pub(super) kept: Vec<Kept<B>>,
    /// With [`Keep::KeysValues`]: rotated keys and values per layer, `[T, kv_heads * head_dim]`.
    pub(super) keys_values: Vec<(B::Buffer, B::Buffer)>,
}

impl<B: Backend> Llama<B> {
    /// Runs all layers; the last one only at the chosen rows.
    pub(crate) fn forward(&self, scene: &Scene<B>, adapted: &Adapted<B>, keep: Keep) -> Result<Passed<B>, KernelError> {
        let mut x = self.embed(&scene.ids, scene.tokens)?;
        let (mut kept, mut keys_values) = (Vec::new(), Vec::new());
        for layer in 0..self.layers.len() {
            let linear = Linear { model: self, layer, adapted };
            let last = layer + 1 == self.layers.len();
            let (state, y) = self.layer_forward(linear, scene, x, last)?;
            x = y;
            match keep {
                Keep::Nothing => {}
                Keep::KeysValues => keys_values.push((state.k, state.v)),
                // The last layer's state is the first one wanted, so computing it again would save nothing.
                Keep::Inputs if !last => kept.push(Kept::Input(state.x)),
                Keep::All | Keep::Inputs => kept.push(Kept::State(state)),
            }
        }
        Ok(Passed { last: x, kept, keys_values })
    }

    pub(super) fn embed(&self, ids: &B::Indices, tokens: usize) -> Result<B::Buffer, KernelError> {
        let mut x = self.backend.alloc([tokens, self.config.hidden])?;
        self.backend.embed(&self.embedding, ids, &mut x)?;
        Ok(x)
    }

    /// One layer: what its backward pass reads, and its output.
    pub(super) fn layer_forward(
        &self,
        linear: Linear<'_, B>,
        scene: &Scene<B>,
        x: B::Buffer,
        last: bool,
    ) -> Result<(LayerState<B>, B::Buffer), KernelError> {
        let mut downs = Downs::<B>::default();
        let normed = self.attention_normed(linear.layer, &x, scene.tokens)?;
        let (rows, angles) =
            if last { (scene.chosen.count, &scene.chosen.angles) } else { (scene.tokens, &scene.angles) };
        let (q, k, v, gathered);
        if last {
            [k, v] = linear.fresh([Target::K, Target::V], &normed, scene.tokens, &mut downs)?;
            let chosen = self.gather_activation(&normed, scene)?;
            [q] = linear.fresh([Target::Q], &chosen, rows, &mut downs)?;
            gathered = Some(self.gather(&x, scene)?);
        } else {
            [q, k, v] = linear.fresh([Target::Q, Target::K, Target::V], &normed, rows, &mut downs)?;
            gathered = None;
        }
        drop(normed);
        let k = self.rotated(k, &scene.angles)?;
        let looking = Looking { x: gathered.as_ref().unwrap_or(&x), q: self.rotated(q, angles)?, rows };
        let (rest, y) = self.rest_forward(linear, looking, &scene.sight(last), &k, &v, &mut downs)?;
        drop(gathered);
        Ok((LayerState { x, k, v, rest, downs }, y))
    }

    /// The residual's chosen rows, `[R, hidden]`.
    fn gather(&self, x: &B::Buffer, scene: &Scene<B>) -> Result<B::Buffer, KernelError> {
        let mut out = self.backend.alloc([scene.chosen.count, self.config.hidden])?;
        self.backend.gather_rows(x, &scene.chosen.rows, self.config.hidden, &mut out)?;
        Ok(out)
    }

    /// The chosen rows of an activation, `[R, hidden]`.
    pub(super) fn gather_activation(&self, x: &B::Buffer, scene: &Scene<B>) -> Result<B::Buffer, KernelError> {
        let mut out = self.backend.alloc_activation([scene.chosen.count, self.config.hidden])?;
        self.backend.gather_rows(x, &scene.chosen.rows, self.config.hidden, &mut out)?;
        Ok(out)
    }

    /// The layer's input after its attention norm.
    pub(super) fn attention_normed(&self, layer: usize, x: &B::Buffer, rows: usize) -> Result<B::Buffer, KernelError> {
        self.normed(x, &self.layers[layer].attention_norm, rows)
    }

    /// The middle residual after the MLP norm.
    pub(super) fn mlp_normed(&self, layer: usize, mid: &B::Buffer, rows: usize) -> Result<B::Buffer, KernelError> {
        self.normed(mid, &self.layers[layer].mlp_norm, rows)
    }

    pub(super) fn normed(&self, x: &B::Buffer, gain: &B::Buffer, rows: usize) -> Result<B::Buffer, KernelError> {
        let mut out = self.backend.alloc_activation([rows, self.config.hidden])?;
        self.backend.rms_norm(x, gain, self.config.rms_eps, &mut out)?;
        Ok(out)
    }

    /// Queries or keys turned to their positions.
    pub(super) fn rotated(&self, mut x: B::Buffer, angles: &B::Buffer) -> Result<B::Buffer, KernelError> {
        self.backend.rotary(&mut x, angles, self.config.head_dim, Direction::Forward)?;
        Ok(x)
    }

    /// Attention and MLP of the rows that look.
    pub(super) fn rest_forward(
        &self,
        linear: Linear<'_, B>,
        looking: Looking<'_, B>,
        sight: &Sight<'_, B::Indices>,
        k: &B::Buffer,
        v: &B::Buffer,
        downs: &mut Downs<B>,
    ) -> Result<(Rest<B>, B::Buffer), KernelError> {
        let backend = &self.backend;
        let Looking { x, q, rows } = looking;
        let mut attention = backend.alloc_activation([rows, self.q_width()])?;
        let mut lse = backend.alloc([rows, self.config.heads])?;
        backend.attention(self.attention_shape(), sight, &q, k, v, &mut attention, &mut lse)?;
        let mut mid = self.copied(x, rows)?;
        linear.forward([Target::O], &attention, rows, [&mut mid], Write::Add, downs)?;
        let normed = self.mlp_normed(linear.layer, &mid, rows)?;
        let [gate, up] = linear.fresh([Target::Gate, Target::Up], &normed, rows, downs)?;
        drop(normed);
        let mut y = self.copied(&mid, rows)?;
        let act = self.activated(&gate, &up, rows)?;
        linear.forward([Target::Down], &act, rows, [&mut y], Write::Add, downs)?;
        Ok((Rest { q, attention, lse, mid, gate, up }, y))
    }

    /// `silu(gate) * up`, `[rows, intermediate]`.
    pub(super) fn activated(&self, gate: &B::Buffer, up: &B::Buffer, rows: usize) -> Result<B::Buffer, KernelError> {
        let mut act = self.backend.alloc_activation([rows, self.config.intermediate])?;
        self.backend.swiglu(gate, up, &mut act)?;
        Ok(act)
    }

    fn copied(&self, x: &B::Buffer, rows: usize) -> Result<B::Buffer, KernelError> {
        let mut out = self.backend.alloc([rows, self.config.hidden])?;
        self.backend.copy(x, &mut out, 0)?;
        Ok(out)
    }
}

/// Rows that pose queries: their residuals and their rotated queries.
pub(super) struct Looking<'a, B: Backend> {
    pub x: &'a B::Buffer,
    pub q: B::Buffer,
    pub rows: usize,
}
