//! A Llama of a few hundred weights, made on the spot and kept in memory.
#![allow(dead_code, reason = "each test crate uses some of it")]

use std::collections::BTreeMap;

use insula_kernels::{Cpu, Precision};
use insula_worker::base::{BaseError, ModelConfig, TensorSource};
use insula_worker::engine::{Engine, Example};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Two layers, two queries to a key; widths that fill no panel.
pub fn config(tied: bool) -> ModelConfig {
    ModelConfig {
        vocab: 23,
        hidden: 12,
        intermediate: 20,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        rope_theta: 1e4,
        rope_scaling: None,
        rms_eps: 1e-5,
        context: 64,
        tied,
    }
}

/// Tensors by name.
#[derive(Debug, Clone)]
pub struct Source(pub BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Source {
    /// Norms around 1, everything else within a third of 0.
    pub fn new(config: &ModelConfig) -> Self {
        let mut chance = ChaCha8Rng::seed_from_u64(5);
        let mut around = |middle: f32, count: usize| -> Vec<f32> {
            let unit = |bits: u32| (bits >> 8) as f32 / (1 << 23) as f32 - 1.0;
            (0..count).map(|_| middle + unit(chance.next_u32()) / 3.0).collect()
        };
        let (hidden, mlp) = (config.hidden, config.intermediate);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let mut all = BTreeMap::new();
        let mut matrix = |name: String, rows, columns| {
            all.insert(format!("{name}.weight"), (vec![rows, columns], around(0.0, rows * columns)));
        };
        matrix("model.embed_tokens".into(), config.vocab, hidden);
        if !config.tied {
            matrix("lm_head".into(), config.vocab, hidden);
        }
        for layer in 0..config.layers {
            let shapes = [
                ("self_attn.q_proj", queries, hidden),
                ("self_attn.k_proj", keys, hidden),
                ("self_attn.v_proj", keys, hidden),
                ("self_attn.o_proj", hidden, queries),
                ("mlp.gate_proj", mlp, hidden),
                ("mlp.up_proj", mlp, hidden),
                ("mlp.down_proj", hidden, mlp),
            ];
            shapes.into_iter().for_each(|(part, rows, columns)| {
                matrix(format!("model.layers.{layer}.{part}"), rows, columns);
            });
        }
        let norms = (0..config.layers)
            .flat_map(|layer| ["input", "post_attention"].map(|norm| format!("model.layers.{layer}.{norm}_layernorm")));
        for name in norms.chain(["model.norm".to_owned()]) {
            all.insert(format!("{name}.weight"), (vec![hidden], around(1.0, hidden)));
        }
        Self(all)
    }
}

impl TensorSource for Source {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).map(|(shape, _)| shape.clone())
    }

    fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<(), BaseError> {
        let (_, values) = self.0.get(name).ok_or_else(|| BaseError::MissingTensor { name: name.to_owned() })?;
        out.copy_from_slice(values);
        Ok(())
    }
}

/// The model in memory, computing with `threads` threads.
pub fn engine(tied: bool, threads: usize) -> Engine<Cpu> {
    let config = config(tied);
    Engine::load(Cpu::new(threads).unwrap(), &config, &Source::new(&config), Precision::F32).unwrap()
}

/// An example of weight 1.
pub fn example(ids: &[u32], prompt_tokens: usize) -> Example {
    Example { ids: ids.to_vec(), prompt_tokens, weight: 1.0 }
}

/// Some that share prefixes, one of them twice.
pub fn examples() -> Vec<Example> {
    vec![
        example(&[1, 5, 9, 2, 7, 3, 11, 0], 6),
        example(&[1, 5, 9, 2, 7, 4, 22, 0], 6),
        example(&[1, 5, 9, 8, 0], 3),
        example(&[1, 5, 9, 8, 0], 3),
        example(&[14, 2, 20, 9, 13, 0], 4),
    ]
}

/// Greatest distance of two vectors' elements, over the greatest of the second.
pub fn farthest(ours: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(ours.len(), expected.len());
    let most = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |most: f32, value| most.max(value.abs()));
    most(&mut ours.iter().zip(expected).map(|(a, b)| a - b)) / most(&mut expected.iter().copied())
}
