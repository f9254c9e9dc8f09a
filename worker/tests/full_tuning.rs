//! Training all weights of a base: the gradient, and what the engine makes of changed weights.
#![expect(clippy::unwrap_used, reason = "a test whose fixture fails stops there")]

mod common;
#[path = "common/made.rs"]
mod made;
#[path = "common/tiny.rs"]
mod tiny;

use std::collections::BTreeMap;

use common::write;
use insula_kernels::{Cpu, Precision};
use insula_proto::job::{JobSpec, Objective, Parameters as What};
use insula_worker::base::{Base, TensorSource};
use insula_worker::checkpoint::State;
use insula_worker::engine::{Compute, Engine, EvalMode, Example};
use insula_worker::parameters::{Parameters, Segment};
use insula_worker::plan::Sample;
use insula_worker::train::Training;
use insula_worker::trie::LabelTrie;
use insula_worker::tuned;
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

/// A training of all weights over the examples, some slots to an update.
fn training() -> Training {
    let mut spec = JobSpec::default();
    spec.train.parameters = What::All;
    (spec.train.epochs, spec.train.batch, spec.train.slot_tokens) = (15, 3, 8);
    (spec.train.lr, spec.train.weight_decay) = (5e-3, 0.01);
    let samples: Vec<Sample> =
        (0..5).map(|dialogue| Sample { dialogue, turn: 0, objective: Objective::Main }).collect();
    let examples: BTreeMap<Sample, Example> = samples.iter().copied().zip(examples()).collect();
    Training::new(spec.training_stages().remove(0), spec.seed, samples, examples, parameters(false))
}

fn advance(training: &mut Training, engine: &mut Engine<Cpu>, updates: u32) -> Vec<f64> {
    (0..updates).map(|_| training.advance(engine).unwrap().loss).collect()
}

#[test]
fn the_loss_falls_and_every_segment_moves() {
    let (mut training, mut engine) = (training(), engine(false, 2));
    let updates = training.updates();
    let losses = advance(&mut training, &mut engine, updates);
    let (first, last) = (losses[0] + losses[1], losses[28] + losses[29]);
    // Two of the examples ask the same and answer differently, so it cannot fall to nothing.
    assert!(last < 0.5 * first, "{losses:?}");
    let before = parameters(false);
    for segment in &before.layout.segments {
        assert_ne!(training.trained().params()[segment.range()], before.params[segment.range()], "{}", segment.name);
    }
}

#[test]
fn a_training_has_the_same_bits_for_any_threads_and_where_it_is_cut_and_resumed() {
    let (mut whole, mut two) = (training(), engine(false, 2));
    advance(&mut whole, &mut two, 7);
    let mut cut = training();
    advance(&mut cut, &mut engine(false, 1), 4);
    let len = parameters(false).layout.len();
    let state = State::decode(&cut.encoded_state(), len).unwrap();
    let mut resumed = training();
    resumed.resume(cut.progress().clone(), state).unwrap();
    // The engine comes from elsewhere and holds whatever it holds.
    advance(&mut resumed, &mut two, 3);
    assert_eq!(resumed.progress().losses, whole.progress().losses);
    assert!(resumed.trained() == whole.trained());
    assert!(resumed.encoded_state() == whole.encoded_state());
}

/// Both forms of a base come back from the folder that is written of them: same weights, same tokens.
#[test]
fn a_tuned_base_is_written_as_a_folder_that_is_a_base() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("tiny.gguf");
    write(&file, &made::Gguf::tiny().bytes());
    let base = Base::open(&file).unwrap();
    let mut parameters = Parameters::read(&base.config, &base).unwrap();
    parameters.params.iter_mut().for_each(|p| *p += 0.125);
    let folder = home.path().join("tuned");
    write_tuned(&folder, &parameters, &base);
    let back = Base::open(&folder).unwrap();
    assert_eq!(back.config, base.config);
    assert_eq!(Parameters::read(&back.config, &back).unwrap(), parameters);
    assert_eq!(back.shape("lm_head.weight"), None);
    let (tokenizer, again) = (base.tokenizer().unwrap(), back.tokenizer().unwrap());
    let text = "hello <user> ,  well\nhe said: <eos>";
    assert_eq!(again.encode(text).unwrap(), tokenizer.encode(text).unwrap());
    assert_eq!((again.eos(), again.eos_text()), (tokenizer.eos(), Some("<eos>".to_owned())));
    let twice = home.path().join("twice");
    write_tuned(&twice, &parameters, &back);
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        assert!(common::read(&folder.join(name)) == common::read(&twice.join(name)), "{name}");
    }
}

fn write_tuned(folder: &std::path::Path, parameters: &Parameters, base: &Base) {
    std::fs::create_dir(folder).unwrap();
    write(&folder.join(tuned::WEIGHTS_FILE), &tuned::weights_bytes(parameters).unwrap());
    for (name, bytes) in tuned::side_files(&base.config, &base.tokenizer().unwrap()).unwrap() {
        write(&folder.join(name), &bytes);
    }
}

/// What `data/full_gradients.py` made of the goldens' sequences with torch.
#[test]
fn parity_full_gradients_are_those_of_torch() {
    let Some(folder) = common::parity().map(|folder| folder.join("tiny")) else { return };
    let golden: serde_json::Value = serde_json::from_str(include_str!("data/full_gradients.json")).unwrap();
    for (name, golden) in golden["models"].as_object().unwrap() {
        let model = folder.join(name);
        if !model.join("golden.json").is_file() {
            println!("skipped: no model in {}", model.display());
            continue;
        }
        let base = Base::open(&model).unwrap();
        let mut engine = Engine::load(Cpu::new(2).unwrap(), &base.config, &base, Precision::F32).unwrap();
        let slot = engine.full_gradient(&sequences(&common::json(&model.join("golden.json")))).unwrap();
        let number = |value: &serde_json::Value| value.as_f64().unwrap();
        let off = (slot.loss_sum / number(&golden["loss"]) - 1.0).abs();
        assert!(off < 1e-5, "{name}: loss {}, {} expected", slot.loss_sum, golden["loss"]);
        let segments = Parameters::read(&base.config, &base).unwrap().layout.segments;
        assert_eq!(segments.len(), golden["gradients"].as_object().unwrap().len());
        for segment in &segments {
            let golden = &golden["gradients"][&segment.name];
            let (norm, along) = summary(&slot.gradient, segment);
            let (golden_norm, golden_along) = (number(&golden["norm"]), number(&golden["along"]));
            let off = (norm - golden_norm).abs().max((along - golden_along).abs() / 10f64.sqrt()) / golden_norm;
            assert!(off < 1e-5, "{name} {}: {norm} and {along}, {golden} expected", segment.name);
        }
    }
}

fn sequences(golden: &serde_json::Value) -> Vec<Example> {
    let ids = |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let example = |sequence: &serde_json::Value| {
        let (prompt, target) = (ids(&sequence["prompt"]), ids(&sequence["target"]));
        tiny::example(&[prompt.as_slice(), &target].concat(), prompt.len())
    };
    golden["sequences"].as_array().unwrap().iter().map(example).collect()
}

/// Frobenius norm, and the scalar product with the script's pattern, whose elements have mean square 10.
fn summary(gradient: &[f32], segment: &Segment) -> (f64, f64) {
    let values = || gradient[segment.range()].iter().map(|g| f64::from(*g));
    let norm = values().map(|g| g * g).sum::<f64>().sqrt();
    (norm, values().enumerate().map(|(i, g)| g * ((i * 37 % 11) as f64 - 5.0)).sum())
}
