//! An evaluation lease: shards and an adapter in, tallies and predictions out.

use std::time::Instant;

use insula_proto::{
    corpus::{CorpusManifest, Dialogue, Shard},
    job::{Arm, JobSpec, Objective},
    v1::{Artifact, EvaluateTask, Evaluated, Lease, Progress, report_request::Report},
};
use rayon::prelude::*;

use super::{
    demonstrations::Demonstrations,
    failure::Unfinished,
    link::Link,
    loaded::{Loaded, spec_of},
    peak_rss_bytes,
    shards::{self, ShardDialogues, corpus_of},
    tokens::for_each_shard,
};
use crate::{
    adapter::Adapter,
    evaluate::{self, Counts, Setting},
    peft,
    prompt::{Example, Prompter},
    trie::LabelTrie,
    tuned,
};

/// Evaluates the lease's shards, or leaves off where the link says so.
pub fn evaluate(loaded: &mut Loaded, lease: &Lease, task: &EvaluateTask, link: &Link) -> Result<(), Unfinished> {
    let spec = spec_of(lease)?;
    let corpus = corpus_of(lease)?;
    let of_lease = shards::of_evaluation(task)?;
    let setting = setting_of(&spec, &corpus, &of_lease, task)?;
    let adapter = hold_trained(&task.adapter, loaded, link)?;
    let shard = shards::fetch(&corpus, std::slice::from_ref(&of_lease), link)?.remove(0);
    let behind = Demonstrations::for_evaluation(&spec, &corpus, &shard, task, setting.arm, link)?;
    let evaluated = answer_all(loaded, &spec, &corpus, &setting, adapter.as_ref(), &shard, &behind, lease, link)?;
    link.report(&loaded.digest, Report::Evaluated(evaluated))
}

/// What every prediction of a lease shares.
pub fn setting_of<'a>(
    spec: &JobSpec,
    corpus: &'a CorpusManifest,
    shard: &Shard,
    task: &EvaluateTask,
) -> Result<Setting<'a>, Unfinished> {
    Ok(Setting {
        arm: serde_json::from_value::<Arm>(task.arm.as_str().into()).map_err(Unfinished::bug)?,
        corpus: corpus.part_name(shard),
        split: task.split.parse().map_err(Unfinished::bug)?,
        labels: &corpus.labels,
        mode: spec.evaluate.mode,
        max_new_tokens: spec.evaluate.max_new_tokens as usize,
    })
}

/// A lease's adapter, where it has one; where it has weights instead, the engine holds these from here on, and else the
/// base's.
pub fn hold_trained(files: &[Artifact], loaded: &mut Loaded, link: &Link) -> Result<Option<Adapter>, Unfinished> {
    let find = |name: &str| files.iter().find(|file| file.name == name);
    if let Some(weights) = find(tuned::WEIGHTS_FILE) {
        loaded.hold_tuned(&weights.digest, link)?;
        return Ok(None);
    }
    loaded.hold_base()?;
    if files.is_empty() {
        return Ok(None);
    }
    let fetch = |name: &str| {
        let file = find(name).ok_or_else(|| Unfinished::bug(format!("the lease's adapter has no {name}")))?;
        link.get(&file.digest)
    };
    let files = peft::PeftFiles { config: fetch(peft::CONFIG_FILE)?, weights: fetch(peft::WEIGHTS_FILE)? };
    peft::from_files(&files, &loaded.config).map(Some).map_err(Unfinished::bug)
}

#[expect(clippy::disallowed_methods, reason = "the shell measures how long evaluation takes")]
#[expect(clippy::too_many_arguments, reason = "the operands of one evaluation; a struct would only rename them")]
fn answer_all(
    loaded: &mut Loaded,
    spec: &JobSpec,
    corpus: &CorpusManifest,
    setting: &Setting<'_>,
    adapter: Option<&Adapter>,
    shard: &ShardDialogues,
    behind: &Demonstrations,
    lease: &Lease,
    link: &Link,
) -> Result<Evaluated, Unfinished> {
    let began = Instant::now();
    let prompter = shards::prompter(loaded, spec, corpus, Objective::Main, shard.part)?;
    let eos = loaded.tokenizer.eos();
    let labels: Vec<Vec<u32>> = prompter.targets().iter().map(|t| t[..t.len() - 1].to_vec()).collect();
    let trie = LabelTrie::new(&labels, eos).map_err(Unfinished::bad_data)?;
    let dialogues: Vec<&Dialogue> = shard.dialogues.iter().collect();
    let examples = tokenised(&prompter, shard, behind, link)?;
    let total = examples.iter().map(|e| e.len() as u64).sum();
    loaded.engine.set_merge(spec.evaluate.merge);
    loaded.engine.expect_tokens(spec.train.slot_tokens as usize);
    let mut counts = Counts::new(setting.labels.len());
    let mut lines = Vec::new();
    let mut first = 0;
    while first < examples.len() {
        link.go_on()?;
        let last = first + evaluate::next_forest(&examples[first..], spec.train.slot_tokens as usize);
        let group: Vec<(&Dialogue, &[Example])> =
            dialogues[first..last].iter().copied().zip(examples[first..last].iter().map(Vec::as_slice)).collect();
        let (engine, tokenizer) = (loaded.engine.as_mut(), &loaded.tokenizer);
        let read = evaluate::forest(engine, tokenizer, adapter, &trie, setting, &group, &mut counts, &mut lines)?;
        let turns = (first..).zip(&group).flat_map(|(place, (_, of))| of.iter().map(move |e| (place, e.turn)));
        let shown = turns.map(|(dialogue, turn)| behind.first_label(dialogue as u32, turn as u32));
        counts.copied += shown.zip(read).filter(|(shown, read)| read.is_some() && shown == read).count() as u64;
        first = last;
        let samples_per_s = counts.samples as f64 / began.elapsed().as_secs_f64();
        let what = lease.what.clone();
        let progress = Progress { done: counts.samples, total, samples_per_s, what, ..Progress::default() };
        link.progress.send_replace(Some(progress));
    }
    let predictions = link.put("predictions.jsonl", lines)?;
    Ok(Evaluated {
        strict: Some((&counts.strict).into()),
        paper: Some((&counts.paper).into()),
        close_margins: counts.close_margins,
        dropped_utterances: counts.dropped_utterances,
        tree_tokens: counts.tree_tokens,
        seconds: began.elapsed().as_secs_f64(),
        peak_rss_bytes: peak_rss_bytes(),
        predictions: Some(predictions),
        copied: counts.copied,
        external: None,
    })
}

/// The examples of every turn, by dialogue.
fn tokenised(
    prompter: &Prompter<'_>,
    shard: &ShardDialogues,
    behind: &Demonstrations,
    link: &Link,
) -> Result<Vec<Vec<Example>>, Unfinished> {
    if !behind.is_none() {
        let of_dialogue = |(place, dialogue): (usize, &Dialogue)| {
            let example = |turn| prompter.example_behind(dialogue, turn, behind.of(place as u32, turn as u32));
            (0..dialogue.utterances.len()).map(example).collect::<Result<Vec<_>, _>>()
        };
        let examples = shard.dialogues.par_iter().enumerate().map(of_dialogue).collect::<Result<_, _>>();
        return examples.map_err(Unfinished::bad_data);
    }
    let mut examples = Vec::new();
    for_each_shard(prompter, &[shard], link, |_, prompts| {
        let completed = |(dialogue, prompts): (&Dialogue, Vec<_>)| {
            let turns = prompts.into_iter().enumerate();
            turns.map(|(turn, prompt)| prompter.completed(dialogue, turn, prompt)).collect()
        };
        let completed = shard.dialogues.iter().zip(prompts).map(completed);
        examples = completed.collect::<Result<_, _>>().map_err(Unfinished::bad_data)?;
        Ok(())
    })?;
    Ok(examples)
}
