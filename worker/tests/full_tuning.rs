//! Training all weights of a base: the gradient, and what the engine makes of changed weights.
#![expect(clippy::unwrap_used, reason = "a test whose fixture fails stops there")]

#[path = "common/tiny.rs"]
mod tiny;

use insula_kernels::{Cpu, Precision};
use insula_worker::engine::{Engine, EvalMode, Example};
use insula_worker::parameters::Parameters;
use insula_worker::trie::LabelTrie;
use tiny::{Source, config, engine, examples, farthest};

fn parameters(tied: bool) -> Parameters {
    Parameters::read(&config(tied), &Source::new(&config(tied))).unwrap()
}

fn loss(engine: &mut Engine<Cpu>, parameters: &Parameters, examples: &[Example]) -> f64 {
    engine.set_weights(parameters).unwrap();
    engine.full_gradient(examples).unwrap().loss_sum
}

/// Central differences along the gradient of one segment at a time: each slope is that segment's norm.
#[test]
fn the_gradient_of_every_segment_is_the_slope_of_the_loss() {
    for tied in [true, false] {
        let (mut engine, center, examples) = (engine(tied, 2), parameters(tied), examples());
        let gradient = engine.full_gradient(&examples).unwrap().gradient;
        assert_eq!(gradient.len(), center.layout.len());
        for segment in &center.layout.segments {
            let along = &gradient[segment.range()];
            let norm = along.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt();
            let step = 0.02 / norm;
            let mut loss_at = |side: f64| {
                let mut moved = center.clone();
                let values = &mut moved.params[segment.range()];
                values.iter_mut().zip(along).for_each(|(p, g)| *p += (side * step * f64::from(*g)) as f32);
                loss(&mut engine, &moved, &examples)
            };
            let slope = (loss_at(1.0) - loss_at(-1.0)) / (2.0 * step * norm);
            let off = (slope / norm - 1.0).abs();
            assert!(norm > 1e-3 && off < 5e-3, "{} (tied {tied}): slope {slope}, norm {norm}", segment.name);
        }
    }
}

#[test]
fn rows_of_tokens_that_never_occur_have_no_gradient_where_the_head_is_apart() {
    let gradient = engine(false, 2).full_gradient(&examples()).unwrap().gradient;
    let layout = parameters(false).layout;
    let embedding = &gradient[layout.find("model.embed_tokens.weight").unwrap().range()];
    for (token, row) in embedding.chunks(config(false).hidden).enumerate() {
        // All tokens of the examples but the last of each, which is not computed.
        let occurs = [1, 5, 9, 2, 7, 3, 11, 4, 22, 8, 14, 20, 13].contains(&token);
        assert_eq!(row.iter().any(|g| *g != 0.0), occurs, "token {token}");
    }
}

#[test]
fn the_gradient_is_the_sum_of_its_examples_and_has_one_value_for_any_threads_and_recomputing() {
    for tied in [true, false] {
        let merged = engine(tied, 2).full_gradient(&examples()).unwrap();
        assert_eq!(engine(tied, 1).full_gradient(&examples()).unwrap(), merged);
        let mut again = engine(tied, 2);
        again.set_recompute(true);
        assert_eq!(again.full_gradient(&examples()).unwrap(), merged);
        let mut sum = vec![0.0; merged.gradient.len()];
        for example in examples() {
            let alone = again.full_gradient(&[example]).unwrap().gradient;
            sum.iter_mut().zip(&alone).for_each(|(sum, g): (&mut f32, _)| *sum += g);
        }
        assert!(farthest(&merged.gradient, &sum) < 1e-6, "off by {}", farthest(&merged.gradient, &sum));
    }
}

#[test]
fn the_base_comes_back_as_it_was() {
    let mut engine = engine(false, 2);
    let trie = LabelTrie::new(&[vec![5, 6], vec![5], vec![7, 8, 9]], 0).unwrap();
    let prompts: Vec<Vec<u32>> = examples().iter().map(|e| e.ids[..e.prompt_tokens].to_vec()).collect();
    let answers = |engine: &mut Engine<Cpu>| engine.evaluate(None, &prompts, &trie, EvalMode::Greedy, 4).unwrap();
    let before = answers(&mut engine);
    let mut moved = parameters(false);
    moved.params.iter_mut().for_each(|p| *p *= 1.25);
    engine.set_weights(&moved).unwrap();
    assert_ne!(answers(&mut engine), before);
    engine.set_weights(&Source::new(&config(false))).unwrap();
    assert_eq!(answers(&mut engine), before);
}

#[test]
fn weights_that_do_not_fit_are_refused_and_change_nothing() {
    let (mut engine, examples) = (engine(true, 1), examples());
    let before = engine.full_gradient(&examples).unwrap();
    let mut short = Source::new(&config(true));
    short.0.remove("model.layers.1.mlp.up_proj.weight");
    let refused = engine.set_weights(&short).unwrap_err().to_string();
    assert!(refused.starts_with("tensor model.layers.1.mlp.up_proj.weight: absent"), "{refused}");
    assert_eq!(engine.full_gradient(&examples).unwrap(), before);
    let config = config(true);
    let mut narrow = Engine::load(Cpu::new(1).unwrap(), &config, &Source::new(&config), Precision::Bf16).unwrap();
    let refused = narrow.full_gradient(&examples).unwrap_err().to_string();
    assert_eq!(refused, "all weights are to be trained, but the base is held as Bf16; expected F32");
}
