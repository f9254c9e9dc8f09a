//! The adapter: LoRA's low-rank pairs, all of them in one flat vector of named segments.
//!
//! One vector so that gradients add, optimizers step and bytes travel without knowing what a segment means; the
//! [`Layout`] says which part is which, in PEFT's names and shapes.
//!
//! ```text
//!   layer 0: q.A [r,in] q.B [out,r] | k.A k.B | ... | layer 1: q.A ...
//! ```

use std::collections::BTreeSet;

use insula_kernels::LoraShape;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::base::ModelConfig;

/// A linear layer of the base that may carry a low-rank pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Attention's output projection.
    O,
    /// The MLP's gate projection.
    Gate,
    /// The MLP's up projection.
    Up,
    /// The MLP's down projection.
    Down,
}

impl Target {
    /// All seven, in the order of the forward pass.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The module's name in Hugging Face's and PEFT's files.
    #[must_use]
    pub fn module(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The target of a module name.
    #[must_use]
    pub fn of_module(module: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.module() == module)
    }

    /// The target of a name in settings: `q`, `k`, `v`, `o`, `gate`, `up`, `down`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.module().strip_suffix("_proj") == Some(name))
    }

    /// The part of a layer the module belongs to.
    #[must_use]
    pub fn block(self) -> &'static str {
        match self {
            Self::Q | Self::K | Self::V | Self::O => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        }
    }

    /// `[out, in]` of the module's weight.
    #[must_use]
    pub fn shape(self, model: &ModelConfig) -> [usize; 2] {
        let (q, kv) = (model.heads * model.head_dim, model.kv_heads * model.head_dim);
        match self {
            Self::Q => [q, model.hidden],
            Self::K | Self::V => [kv, model.hidden],
            Self::O => [model.hidden, q],
            Self::Gate | Self::Up => [model.intermediate, model.hidden],
            Self::Down => [model.hidden, model.intermediate],
        }
    }

    /// The module's full name in layer `layer`.
    #[must_use]
    pub fn path(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.{}", self.block(), self.module())
    }
}

/// Which pairs there are, and how wide.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// LoRA's width.
    pub r: usize,
    /// Numerator of the scaling `alpha / r`.
    pub alpha: f64,
    /// The modules adapted, in every layer.
    pub targets: BTreeSet<Target>,
}

impl AdapterConfig {
    /// `alpha / r`.
    #[must_use]
    pub fn scaling(&self) -> f32 {
        (self.alpha / self.r as f64) as f32
    }
}

/// Which matrix of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `A: [r, in]`, down.
    A,
    /// `B: [out, r]`, up.
    B,
}

/// One matrix inside the flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Layer, from 0.
    pub layer: usize,
    /// Module.
    pub target: Target,
    /// A or B.
    pub side: Side,
    /// Rows and columns, row-major.
    pub shape: [usize; 2],
    /// Index of the first element.
    pub offset: usize,
}

impl Segment {
    /// PEFT's parameter name without the `base_model.model.` prefix its files add.
    #[must_use]
    pub fn name(&self) -> String {
        let side = match self.side {
            Side::A => "lora_A",
            Side::B => "lora_B",
        };
        format!("{}.{side}.weight", self.target.path(self.layer))
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// The segment's place in the flat vector.
    #[must_use]
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.elements()
    }
}

/// The segments of one adapter, in order, without gaps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// All segments: by layer, then target, A before B.
    pub segments: Vec<Segment>,
    per_layer: Vec<Target>,
}

impl Layout {
    /// The layout of `config`'s pairs on `model`.
    #[must_use]
    pub fn new(config: &AdapterConfig, model: &ModelConfig) -> Self {
        let mut segments = Vec::new();
        let mut offset = 0;
        for layer in 0..model.layers {
            for target in &config.targets {
                let [output, input] = target.shape(model);
                for (side, shape) in [(Side::A, [config.r, input]), (Side::B, [output, config.r])] {
                    segments.push(Segment { layer, target: *target, side, shape, offset });
                    offset += shape[0] * shape[1];
                }
            }
        }
        Self { segments, per_layer: config.targets.iter().copied().collect() }
    }

    /// Length of the flat vector.
    #[must_use]
    pub fn len(&self) -> usize {
        self.segments.last().map_or(0, |segment| segment.range().end)
    }

    /// Whether there is nothing to train.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Where the pair of `target` in `layer` lies, if adapted.
    #[must_use]
    pub fn pair(&self, layer: usize, target: Target, scale: f32) -> Option<LoraShape> {
        let index = self.per_layer.iter().position(|t| *t == target)?;
        let first = (layer * self.per_layer.len() + index) * 2;
        let (a, b) = (self.segments.get(first)?, self.segments.get(first + 1)?);
        let ([r, input], [output, _]) = (a.shape, b.shape);
        Some(LoraShape { r, input, output, a: a.offset, b: b.offset, scale })
    }
}

/// An adapter's weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// What it adapts.
    pub config: AdapterConfig,
    /// Which part of `params` is which.
    pub layout: Layout,
    /// All weights, `[layout.len()]`.
    pub params: Vec<f32>,
}

impl Adapter {
    /// A fresh adapter as PEFT starts one: A uniform in `±1/sqrt(in)` (Kaiming with a = sqrt 5), B zero.
    ///
    /// Every segment draws from its own stream of `seed`, so a target more or less does not move the others.
    #[must_use]
    pub fn init(config: AdapterConfig, model: &ModelConfig, seed: u64) -> Self {
        let mut adapter = Self::zeros(config, model);
        for segment in adapter.layout.segments.iter().filter(|segment| segment.side == Side::A) {
            let bound = 1.0 / (segment.shape[1] as f32).sqrt();
            let mut stream = ChaCha8Rng::seed_from_u64(seed);
            stream.set_stream((segment.layer * Target::ALL.len()) as u64 + segment.target as u64);
            for value in &mut adapter.params[segment.range()] {
                // 24 random bits: every value an f32 holds exactly, in [0, 1).
                let unit = (stream.next_u32() >> 8) as f32 / (1 << 24) as f32;
                *value = (2.0 * unit - 1.0) * bound;
            }
        }
        adapter
    }

    /// An adapter of zeros, for weights that come from a file.
    #[must_use]
    pub fn zeros(config: AdapterConfig, model: &ModelConfig) -> Self {
        let layout = Layout::new(&config, model);
        let params = vec![0.0; layout.len()];
        Self { config, layout, params }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelConfig {
        ModelConfig {
            vocab: 11,
            hidden: 6,
            intermediate: 10,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            rope_theta: 1e4,
            rope_scaling: None,
            rms_eps: 1e-5,
            context: 64,
            tied: true,
        }
    }

    fn config(targets: &[Target]) -> AdapterConfig {
        AdapterConfig { r: 2, alpha: 3.0, targets: targets.iter().copied().collect() }
    }

    #[test]
    fn segments_are_named_as_peft_names_them_and_leave_no_gaps() {
        let layout = Layout::new(&config(&[Target::Down, Target::Q]), &model());
        let names: Vec<String> = layout.segments.iter().map(Segment::name).collect();
        assert_eq!(names[0], "model.layers.0.self_attn.q_proj.lora_A.weight");
        assert_eq!(names[7], "model.layers.1.mlp.down_proj.lora_B.weight");
        let ends = layout.segments.iter().map(|s| s.range().end);
        assert!(layout.segments.iter().skip(1).zip(ends).all(|(next, end)| next.offset == end));
        assert_eq!(layout.len(), 2 * (2 * 6 + 8 * 2 + 2 * 10 + 6 * 2));
    }

    #[test]
    fn a_pair_is_found_where_its_segments_are() {
        let layout = Layout::new(&config(&[Target::Q, Target::Down]), &model());
        let pair = layout.pair(1, Target::Down, 1.5).unwrap();
        assert_eq!(
            (pair.input, pair.output, pair.a, pair.b),
            (10, 6, layout.segments[6].offset, layout.segments[7].offset)
        );
        assert_eq!(layout.pair(0, Target::K, 1.5), None);
    }

    #[test]
    fn a_fresh_adapter_is_bounded_seeded_and_zero_in_b() {
        let one = Adapter::init(config(&[Target::Q]), &model(), 7);
        let two = Adapter::init(config(&[Target::Q, Target::V]), &model(), 7);
        let bound = 1.0 / 6f32.sqrt();
        for segment in &one.layout.segments {
            let values = &one.params[segment.range()];
            let twin = two.layout.segments.iter().find(|s| s.name() == segment.name()).unwrap();
            assert_eq!(values, &two.params[twin.range()]);
            match segment.side {
                Side::A => assert!(values.iter().all(|v| v.abs() <= bound) && values.iter().any(|v| *v != 0.0)),
                Side::B => assert!(values.iter().all(|v| *v == 0.0)),
            }
        }
        assert_ne!(one.params, Adapter::init(config(&[Target::Q]), &model(), 8).params);
    }

    #[test]
    fn targets_are_written_as_short_words() {
        assert_eq!(serde_json::to_string(&Target::Gate).unwrap(), "\"gate\"");
        assert_eq!(Target::of_module("down_proj"), Some(Target::Down));
        assert_eq!(Target::of_module("lm_head"), None);
    }
}
