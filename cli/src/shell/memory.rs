//! What a job will take of a worker's memory, from its settings, its corpus and its base.

use std::{collections::BTreeMap, path::Path};

use insula_coordinator::{corpus::Corpus, shell::corpora::read_job};
use insula_proto::{
    corpus::Split,
    ids::Digest,
    job::{JobSpec, Objective, Parameters, Stage},
};
use insula_worker::{
    adapter::{AdapterConfig, Target},
    base::{Base, default_cache_dir, fetch},
    engine::precision_of,
    memory::{self, Memory, Plan},
    plan::{self, Sample, Turns},
    prompt::{Example, Form, Prompter},
    seed,
    tokenize::Tokenizer,
    trie::LabelTrie,
};

use super::{model::resolve, settings};
use crate::{args::SettingsArgs, failure::Failure};

/// Largest corpus that is tokenised unasked, bytes of its files: 30 times MELD, a few seconds.
const UNASKED_BYTES_MAX: u64 = 48 << 20;

/// The prediction for a job that is about to be submitted, in a line; `None` where its base or corpus is not on this
/// machine, or so large that telling would take long.
pub fn note(spec: &JobSpec) -> Option<String> {
    let digest = spec.base.digest.as_ref().map(Digest::as_str);
    let base = fetch::at_hand(&spec.base.source, digest, &default_cache_dir()?).ok()?;
    let corpora = spec.all_corpora();
    let bytes = corpora.iter().map(|(_, corpus)| folder_bytes(Path::new(&corpus.path))).sum::<Option<u64>>()?;
    if bytes > UNASKED_BYTES_MAX {
        return None;
    }
    let forecast = of_job(spec, &base.path).ok()?;
    Some(format!("memory: {}", line(&forecast, super::doctor::free_bytes()).0))
}

/// What is told of a job before it is computed.
pub struct Forecast {
    /// Of a worker.
    pub memory: Memory,
    /// Prompts that are evaluated, with the whole of dev and test.
    prompts: usize,
    /// Those of them that are longer than the base's context.
    truncated: usize,
    /// Oldest utterances left out of these.
    dropped_utterances: usize,
}

#[expect(clippy::disallowed_methods, reason = "looks how large a corpus is before reading it")]
fn folder_bytes(folder: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(folder).ok()?;
    Some(entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|metadata| metadata.len()).sum())
}

/// The peak of a worker that computes the job of these settings; its base is fetched where it is not here yet.
///
/// # Errors
/// As [`of_job`], and when the settings cannot be worked with or the base cannot be had.
pub fn of_settings(args: &SettingsArgs) -> Result<Forecast, Failure> {
    let spec = settings::job(args)?;
    if let Some(endpoint) = spec.external() {
        return Err(Failure::Input(format!("{endpoint} is asked elsewhere: it takes no memory here worth telling")));
    }
    let base = resolve(&spec.base.source, spec.base.digest.as_ref().map(Digest::as_str))?;
    of_job(&spec, &base.path)
}

/// The peak of a worker that computes this job with the base at `path`. Reads and tokenises the whole corpus.
///
/// # Errors
/// When the base or the corpus cannot be read.
pub fn of_job(spec: &JobSpec, path: &Path) -> Result<Forecast, Failure> {
    let input = |e: &dyn std::fmt::Display| Failure::Input(e.to_string());
    let base = Base::open(path).map_err(|e| input(&e))?;
    let tokenizer = base.tokenizer().map_err(|e| input(&e))?;
    let corpus = pooled(read_job(spec, &Split::ALL).map_err(|e| input(&e))?);
    let (window, new_tokens) = (spec.data.window as usize, spec.evaluate.max_new_tokens as usize);
    let form = Form::of(Objective::Main, spec.data.template, &corpus.labels, 0..0);
    let task = Prompter::new(&tokenizer, form, window, base.config.context, new_tokens);
    let task = task.map_err(|e| input(&e))?;
    let examples = |split| -> Result<Vec<Vec<Example>>, Failure> {
        task.all_examples(corpus.splits.get(&split).map_or(&[], Vec::as_slice)).map_err(|e| input(&e))
    };
    let labels: Vec<Vec<u32>> = task.targets().iter().map(|t| t[..t.len() - 1].to_vec()).collect();
    let trie = LabelTrie::new(&labels, tokenizer.eos()).map_err(|e| input(&e))?;
    let trained = spec.trains();
    let (mut slot_tokens, mut slots) = (0, 0);
    if trained {
        for (place, stage) in spec.training_stages().iter().enumerate() {
            let (longest, most) = largest_update(spec, place, stage, &base, &tokenizer, &corpus)?;
            (slot_tokens, slots) = (slot_tokens.max(longest), slots.max(most));
        }
    }
    let (mut forest_tokens, mut prompts, mut truncated, mut dropped_utterances) = (0, 0, 0, 0);
    for split in [Split::Dev, Split::Test].into_iter().filter(|split| trained || *split == Split::Test) {
        let examples = examples(split)?;
        let longest = memory::longest_forest(&examples, spec.train.slot_tokens as usize, trie.nodes());
        forest_tokens = forest_tokens.max(longest);
        for example in examples.iter().flatten() {
            prompts += 1;
            truncated += usize::from(example.dropped_utterances > 0);
            dropped_utterances += example.dropped_utterances;
        }
    }
    let targets = spec.adapter.targets.iter().filter_map(|name| Target::named(name)).collect();
    let adapter = AdapterConfig { r: spec.adapter.r as usize, alpha: f64::from(spec.adapter.alpha), targets };
    let precision = precision_of(spec.base.precision);
    let (recompute, merge) = (spec.train.recompute, spec.evaluate.merge);
    let base_bytes = base.bytes();
    let model = &base.config;
    let memory = memory::predict(&Plan {
        model,
        base_bytes,
        precision,
        parameters: spec.train.parameters,
        adapter: &adapter,
        recompute,
        merge,
        slot_tokens,
        slots,
        forest_tokens,
    });
    Ok(Forecast { memory, prompts, truncated, dropped_utterances })
}

/// All corpora as one, their dialogues one after the other.
fn pooled(corpora: Vec<Corpus>) -> Corpus {
    let mut corpora = corpora.into_iter();
    let mut whole = corpora.next().expect("a job has at least one corpus");
    for corpus in corpora {
        for (split, dialogues) in corpus.splits {
            whole.splits.entry(split).or_default().extend(dialogues);
        }
    }
    whole
}

/// Tree tokens of a stage's longest slot, and the most slots of an update where that matters.
fn largest_update(
    spec: &JobSpec,
    place: usize,
    stage: &Stage,
    base: &Base,
    tokenizer: &Tokenizer,
    corpus: &Corpus,
) -> Result<(usize, usize), Failure> {
    let dialogues = corpus.splits.get(&Split::Train).map_or(&[][..], Vec::as_slice);
    let turns: Vec<Turns> = dialogues.iter().map(|d| Turns { turns: d.utterances.len(), part: 0 }).collect();
    let samples = plan::asked(&plan::select(&turns, spec.data.share, spec.data.mix, spec.seed), &stage.objectives);
    let speakers = dialogues.iter().flat_map(|d| &d.utterances).map(|u| u.speaker + 1).max().unwrap_or(0);
    let (window, new_tokens) = (spec.data.window as usize, spec.evaluate.max_new_tokens as usize);
    let mut sequences: BTreeMap<Sample, Vec<u32>> = BTreeMap::new();
    for &objective in &stage.objectives {
        let form = Form::of(objective, spec.data.template, &corpus.labels, 0..speakers);
        let prompter = Prompter::new(tokenizer, form, window, base.config.context, new_tokens);
        let prompter = prompter.map_err(|e| Failure::Input(e.to_string()))?;
        for sample in samples.iter().filter(|sample| sample.objective == objective) {
            let example = prompter.example(&dialogues[sample.dialogue as usize], sample.turn as usize);
            let example = example.map_err(|e| Failure::Input(e.to_string()))?;
            sequences.insert(*sample, [example.prompt_ids, example.target_ids].concat());
        }
    }
    let (seed, sequence) = (seed::of_stage(spec.seed, place), |sample: &Sample| sequences[sample].as_slice());
    let slots = match spec.train.parameters {
        Parameters::Lora => 0,
        Parameters::All => memory::most_slots(stage, seed, &samples, sequence),
    };
    Ok((memory::longest_slot(stage, seed, &samples, sequence), slots))
}

/// The prediction in a line, and whether so much is free.
pub fn line(forecast: &Forecast, free: Option<u64>) -> (String, bool) {
    let Forecast { memory, prompts, truncated, dropped_utterances } = forecast;
    let gigabytes = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
    let peak = memory.peak();
    let mut line = format!(
        "{} predicted for a worker at its peak (weights {}, activations {})",
        gigabytes(peak),
        gigabytes(memory.weights),
        gigabytes(memory.activations),
    );
    let fits = free.is_none_or(|free| peak <= free);
    if let (false, Some(free)) = (fits, free) {
        line += &format!("; {} are free: lower train.slot_tokens, or set train.recompute = true", gigabytes(free));
    }
    if *truncated > 0 {
        line += &format!(
            "; {truncated} of {prompts} prompts are longer than the base's context: {dropped_utterances} of their oldest \
             utterances are left out"
        );
    }
    (line, fits)
}
