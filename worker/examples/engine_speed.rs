//! How fast a slot is trained on this machine: SmolLM2-135M's dimensions, random weights, synthetic dialogues.
//!
//! `cargo run --release -p insula-worker --example engine_speed [repeats] [threads] [examples]`
#![expect(clippy::disallowed_methods, reason = "a benchmark asks the time")]

use std::error::Error;
use std::time::Instant;

use insula_kernels::{Cpu, Precision};
use insula_worker::adapter::{Adapter, AdapterConfig, Target};
use insula_worker::base::{BaseError, ModelConfig, TensorSource};
use insula_worker::engine::{Engine, EvalMode, Example};
use insula_worker::forest::count_tree_tokens;
use insula_worker::trie::LabelTrie;

/// Matrix-product parameters of SmolLM2-135M's layers.
const N: f64 = 106.2e6;

fn smollm2() -> ModelConfig {
    ModelConfig {
        vocab: 49152,
        hidden: 576,
        intermediate: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        rope_theta: 100_000.0,
        rms_eps: 1e-5,
        context: 2048,
        tied: true,
    }
}

/// Weights from a hash of their index, about as large as a trained model's.
struct Random(ModelConfig);

impl TensorSource for Random {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let c = &self.0;
        let module = name.trim_end_matches(".weight").rsplit('.').next()?;
        match Target::of_module(module) {
            Some(target) => Some(target.shape(c).to_vec()),
            None if module == "embed_tokens" => Some(vec![c.vocab, c.hidden]),
            None => Some(vec![c.hidden]),
        }
    }

    fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<(), BaseError> {
        let spread = if name.contains("norm") { 0.0 } else { 0.07 };
        for (i, value) in out.iter_mut().enumerate() {
            let hash = (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
            *value = (hash as f32 / (1 << 23) as f32 - 1.0) * spread + if spread == 0.0 { 1.0 } else { 0.0 };
        }
        Ok(())
    }
}

/// Prompts of dialogues as MELD's: an instruction, a window that grows by a turn, a question that names the last turn.
fn examples(count: usize) -> Vec<Example> {
    let token = |seed: usize| (seed.wrapping_mul(2_654_435_761) >> 7) as u32 % 49_000 + 3;
    let run = |seed: usize, len: usize| (0..len).map(move |i| token(seed * 1000 + i));
    (0..count)
        .map(|i| {
            let (dialogue, turn) = (i / 8, i % 8);
            let mut ids: Vec<u32> = run(1, 22).collect();
            for past in 0..=turn {
                ids.extend(run(100 + dialogue * 50 + past, 22));
            }
            ids.extend(run(9000 + i, 62));
            let prompt_tokens = ids.len();
            ids.extend([token(i % 7), token(50 + i % 7), 2]);
            Example { ids, prompt_tokens }
        })
        .collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let number = |i: usize, default: usize| std::env::args().nth(i).and_then(|s| s.parse().ok()).unwrap_or(default);
    let (repeats, threads, count) = (number(1, 3), number(2, 2), number(3, 16));
    let config = smollm2();
    let mut engine = Engine::load(Cpu::new(threads)?, &config, &Random(config.clone()), Precision::F32)?;
    let targets = [Target::Q, Target::K, Target::V].into();
    let adapter = Adapter::init(AdapterConfig { r: 16, alpha: 16.0, targets }, &config, 1);
    let examples = examples(count);
    let all: usize = examples.iter().map(|example| example.ids.len()).sum();
    println!("{count} examples, {all} tokens, threads {threads}, f32");
    for _ in 0..repeats {
        let start = Instant::now();
        let slot = engine.slot_gradient(&adapter, &examples)?;
        report("train", start.elapsed().as_secs_f64(), count, slot.tree_tokens, 4.0 * N);
    }
    let prompts: Vec<Vec<u32>> = examples.iter().map(|e| e.ids[..e.prompt_tokens].to_vec()).collect();
    let trie = LabelTrie::new(&(0..7).map(|i| vec![100 + i, 200 + i]).collect::<Vec<_>>(), 2)?;
    let tree = count_tree_tokens(&prompts) + 14 * count as u64;
    for mode in [EvalMode::Score, EvalMode::Greedy] {
        let start = Instant::now();
        engine.evaluate(Some(&adapter), &prompts, &trie, mode, 5)?;
        report(&format!("{mode:?}").to_lowercase(), start.elapsed().as_secs_f64(), count, tree, 2.0 * N);
    }
    Ok(())
}

fn report(what: &str, seconds: f64, examples: usize, tree_tokens: u64, flop_per_token: f64) {
    println!(
        "{what:>7}: {seconds:6.2} s, {:6.2} samples/s, {:6.0} tree tokens/s, {:6.1} useful GFLOP/s ({tree_tokens} tree tokens)",
        examples as f64 / seconds,
        tree_tokens as f64 / seconds,
        tree_tokens as f64 * flop_per_token / seconds / 1e9,
    );
}
