//! An evaluation lease: shards and an adapter in, tallies and predictions out.

use std::time::Instant;

use insula_proto::{
    corpus::{CorpusManifest, Dialogue},
    job::{Arm, JobSpec},
    v1::{EvaluateTask, Evaluated, Lease, Progress, report_request::Report},
};

use super::{
    failure::Unfinished,
    link::Link,
    loaded::{Loaded, spec_of},
    peak_rss_bytes,
    tokens::{ShardDialogues, for_each_shard},
    training::fetch_shards,
};
use crate::{
    adapter::Adapter,
    evaluate::{self, Counts, Setting},
    peft,
    prompt::{Example, MainTask},
    trie::LabelTrie,
};

/// Evaluates the lease's shards, or leaves off where the link says so.
pub fn evaluate(loaded: &mut Loaded, lease: &Lease, task: &EvaluateTask, link: &Link) -> Result<(), Unfinished> {
    let spec = spec_of(lease)?;
    let corpus: CorpusManifest = lease.corpus.clone().unwrap_or_default().try_into().map_err(Unfinished::bug)?;
    let setting = Setting {
        arm: serde_json::from_value::<Arm>(task.arm.as_str().into()).map_err(Unfinished::bug)?,
        corpus: &corpus.name,
        split: task.split.parse().map_err(Unfinished::bug)?,
        labels: &corpus.labels,
        mode: spec.evaluate.mode,
        max_new_tokens: spec.evaluate.max_new_tokens as usize,
    };
    let adapter = fetch_adapter(task, loaded, link)?;
    let shards: Vec<_> = task.shards.iter().map(|shard| shard.digest.clone()).collect();
    let shards = fetch_shards(&shards, link)?;
    let evaluated = answer_all(loaded, &spec, &setting, adapter.as_ref(), &shards, lease, link)?;
    link.report(&loaded.digest, Report::Evaluated(evaluated))
}

/// The lease's adapter, where it has one.
fn fetch_adapter(task: &EvaluateTask, loaded: &Loaded, link: &Link) -> Result<Option<Adapter>, Unfinished> {
    if task.adapter.is_empty() {
        return Ok(None);
    }
    let fetch = |name: &str| {
        let file = task.adapter.iter().find(|file| file.name == name);
        let file = file.ok_or_else(|| Unfinished::bug(format!("the lease's adapter has no {name}")))?;
        link.get(&file.digest)
    };
    let files = peft::PeftFiles { config: fetch(peft::CONFIG_FILE)?, weights: fetch(peft::WEIGHTS_FILE)? };
    peft::from_files(&files, &loaded.config).map(Some).map_err(Unfinished::bug)
}

#[expect(clippy::disallowed_methods, reason = "the shell measures how long evaluation takes")]
fn answer_all(
    loaded: &mut Loaded,
    spec: &JobSpec,
    setting: &Setting<'_>,
    adapter: Option<&Adapter>,
    shards: &[ShardDialogues],
    lease: &Lease,
    link: &Link,
) -> Result<Evaluated, Unfinished> {
    let began = Instant::now();
    let (window, context) = (spec.data.window as usize, loaded.config.context);
    let task = MainTask::new(&loaded.tokenizer, setting.labels, window, context, setting.max_new_tokens)
        .map_err(Unfinished::bad_data)?;
    let eos = loaded.tokenizer.eos();
    let labels: Vec<Vec<u32>> = task.targets().iter().map(|t| t[..t.len() - 1].to_vec()).collect();
    let trie = LabelTrie::new(&labels, eos).map_err(Unfinished::bad_data)?;
    let dialogues: Vec<&Dialogue> = shards.iter().flat_map(|shard| &shard.dialogues).collect();
    let examples = tokenised(&task, shards, link)?;
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
        let (engine, tokenizer) = (&mut loaded.engine, &loaded.tokenizer);
        evaluate::forest(engine, tokenizer, adapter, &trie, setting, &group, &mut counts, &mut lines)?;
        first = last;
        let samples_per_s = counts.samples as f64 / began.elapsed().as_secs_f64();
        let what = lease.what.clone();
        let progress = Progress { done: counts.samples, total, samples_per_s, what, ..Progress::default() };
        link.progress.send_replace(Some(progress));
    }
    let predictions = link.put("predictions.jsonl", &lines)?;
    Ok(Evaluated {
        strict: Some((&counts.strict).into()),
        paper: Some((&counts.paper).into()),
        close_margins: counts.close_margins,
        dropped_utterances: counts.dropped_utterances,
        tree_tokens: counts.tree_tokens,
        seconds: began.elapsed().as_secs_f64(),
        peak_rss_bytes: peak_rss_bytes(),
        predictions: Some(predictions),
        external: None,
    })
}

/// The examples of every turn, by dialogue.
fn tokenised(task: &MainTask<'_>, shards: &[ShardDialogues], link: &Link) -> Result<Vec<Vec<Example>>, Unfinished> {
    let mut by_shard: Vec<Vec<Vec<Example>>> = vec![Vec::new(); shards.len()];
    for_each_shard(task, &shards.iter().collect::<Vec<_>>(), link, |place, prompts| {
        let completed = |(dialogue, prompts): (&Dialogue, Vec<_>)| {
            let turns = prompts.into_iter().enumerate();
            turns.map(|(turn, prompt)| task.completed(dialogue, turn, prompt)).collect()
        };
        let dialogues = shards[place].dialogues.iter().zip(prompts).map(completed);
        by_shard[place] = dialogues.collect::<Result<_, _>>().map_err(Unfinished::bad_data)?;
        Ok(())
    })?;
    Ok(by_shard.into_iter().flatten().collect())
}
