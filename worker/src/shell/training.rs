//! A training lease: shards in, updates, checkpoints and epoch adapters out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use insula_proto::{
    corpus::{CorpusManifest, Split},
    ids::Digest,
    job::{JobSpec, Parameters},
    shard,
    v1::{self, Artifact, EpochTrained, Lease, TrainTask, report_request::Report},
};

use super::{
    failure::Unfinished,
    link::Link,
    loaded::{Loaded, spec_of},
    peak_rss_bytes,
    tokens::{ShardDialogues, for_each_shard},
};
use crate::{
    adapter::{Adapter, AdapterConfig, Target},
    checkpoint::{Manifest, Origin, State},
    engine::Example,
    peft,
    plan::{self, Sample},
    prompt::MainTask,
    seed::{self, Purpose},
    train::{Advanced, Trained, Training},
    tuned,
};

/// Trains to the end, or until the link says to leave off.
pub fn train(loaded: &mut Loaded, lease: &Lease, task: &TrainTask, link: &Link) -> Result<(), Unfinished> {
    let spec = spec_of(lease)?;
    let corpus: CorpusManifest = lease.corpus.clone().unwrap_or_default().try_into().map_err(Unfinished::bug)?;
    let origin = origin(&spec, &corpus, loaded);
    let prepared = prepare(loaded, &spec, &corpus, link)?;
    let dropped_utterances = prepared.dropped_utterances;
    let mut training = begin(prepared, loaded, &spec)?;
    resume(&mut training, task, &origin, link)?;
    link.log(&format!("training: {} of {} updates done", training.progress().update, training.updates()));
    while !training.finished() {
        if let Err(leaving) = link.go_on() {
            if matches!(leaving, Unfinished::Stopping) {
                checkpoint(&training, &origin, link)?;
            }
            return Err(leaving);
        }
        let advanced = advance(&mut training, loaded)?;
        tell(&training, &advanced, lease, link);
        if let Some(epoch) = advanced.finished_epoch {
            let adapter = store_trained(training.trained(), loaded, link)?;
            link.report(&loaded.digest, Report::Epoch(EpochTrained { epoch, adapter }))?;
        }
        let due = training.progress().update.is_multiple_of(spec.train.checkpoint_updates);
        if due || advanced.finished_epoch.is_some() {
            checkpoint(&training, &origin, link)?;
        }
    }
    link.report(&loaded.digest, Report::Trained(summary(&training, dropped_utterances)))
}

/// What this run's checkpoints must agree on.
fn origin(spec: &JobSpec, corpus: &CorpusManifest, loaded: &Loaded) -> Origin {
    let settings = serde_json::to_vec(spec).expect("settings are plain data");
    Origin { spec: Digest::of(&settings), corpus: corpus.digest.clone(), base: loaded.digest.clone() }
}

/// The samples of the training split, tokenised.
struct Prepared {
    samples: Vec<Sample>,
    examples: BTreeMap<Sample, Example>,
    dropped_utterances: u64,
}

fn prepare(loaded: &Loaded, spec: &JobSpec, corpus: &CorpusManifest, link: &Link) -> Result<Prepared, Unfinished> {
    let shards = corpus.splits.get(&Split::Train).map(|split| split.shards.clone()).unwrap_or_default();
    let digests: Vec<_> = shards.iter().map(|shard| shard.digest.to_string()).collect();
    let shards = fetch_shards(&digests, link)?;
    let turns: Vec<usize> = shards.iter().flat_map(|s| &s.dialogues).map(|d| d.utterances.len()).collect();
    let samples = plan::select(&turns, spec.data.share, spec.seed);
    if samples.is_empty() {
        let (all, share) = (turns.iter().sum::<usize>(), spec.data.share);
        return Err(Unfinished::bad_data(format!("data.share {share} of {all} training samples keeps none")));
    }
    let (window, new_tokens) = (spec.data.window as usize, spec.evaluate.max_new_tokens as usize);
    let task = MainTask::new(&loaded.tokenizer, &corpus.labels, window, loaded.config.context, new_tokens)
        .map_err(Unfinished::bad_data)?;
    tokenised(&task, &shards, samples, link)
}

/// The examples of the samples. Prompts are made by whole shards, for the whole fleet, but only of shards with samples.
fn tokenised(
    task: &MainTask<'_>,
    shards: &[ShardDialogues],
    samples: Vec<Sample>,
    link: &Link,
) -> Result<Prepared, Unfinished> {
    let mut needed = Vec::new();
    let (mut first, mut left) = (0, samples.as_slice());
    for shard in shards {
        let end = first + u32::try_from(shard.dialogues.len()).expect("a split has fewer than 2^32 dialogues");
        let (of_shard, after) = left.split_at(left.partition_point(|sample| sample.dialogue < end));
        if !of_shard.is_empty() {
            needed.push((shard, first, of_shard));
        }
        (first, left) = (end, after);
    }
    let (mut examples, mut dropped_utterances) = (BTreeMap::new(), 0);
    let wanted: Vec<_> = needed.iter().map(|(shard, ..)| *shard).collect();
    for_each_shard(task, &wanted, link, |place, mut prompts| {
        let (shard, first, samples) = needed[place];
        for sample in samples {
            let (dialogue, turn) = ((sample.dialogue - first) as usize, sample.turn as usize);
            let prompt = prompts[dialogue][turn].take();
            let example = task.completed(&shard.dialogues[dialogue], turn, prompt).map_err(Unfinished::bad_data)?;
            dropped_utterances += example.dropped_utterances as u64;
            let prompt_tokens = example.prompt_ids.len();
            let ids = [example.prompt_ids, example.target_ids].concat();
            examples.insert(*sample, Example { ids, prompt_tokens, weight: 1.0 });
        }
        Ok(())
    })?;
    Ok(Prepared { samples, examples, dropped_utterances })
}

/// Some shards with their dialogues, in order.
pub fn fetch_shards(digests: &[String], link: &Link) -> Result<Vec<ShardDialogues>, Unfinished> {
    let fetch = |digest: &String| {
        link.go_on()?;
        let bytes = link.get(digest)?;
        let dialogues = shard::decode(&bytes).map_err(|e| Unfinished::bad_data(format!("shard {digest}: {e}")))?;
        Ok(ShardDialogues { digest: digest.clone(), dialogues })
    };
    digests.iter().map(fetch).collect()
}

fn begin(prepared: Prepared, loaded: &mut Loaded, spec: &JobSpec) -> Result<Training, Unfinished> {
    let trained = match spec.train.parameters {
        Parameters::Lora => {
            loaded.hold_base()?;
            Trained::Adapter(fresh_adapter(loaded, spec)?)
        }
        Parameters::All => Trained::All(loaded.weights_to_train()?),
    };
    Ok(Training::new(spec.clone(), prepared.samples, prepared.examples, trained))
}

fn fresh_adapter(loaded: &Loaded, spec: &JobSpec) -> Result<Adapter, Unfinished> {
    let target = |name: &String| {
        serde_json::from_value::<Target>(name.as_str().into()).map_err(|e| Unfinished::bad_data(format!("{name}: {e}")))
    };
    let targets: BTreeSet<Target> = spec.adapter.targets.iter().map(target).collect::<Result<_, _>>()?;
    let config = AdapterConfig { r: spec.adapter.r as usize, alpha: f64::from(spec.adapter.alpha), targets };
    Ok(Adapter::init(config, &loaded.config, seed::number(spec.seed, Purpose::Adapter)))
}

/// Continues from the newest checkpoint that is whole; a damaged one is named and the one before it is tried.
fn resume(training: &mut Training, task: &TrainTask, origin: &Origin, link: &Link) -> Result<(), Unfinished> {
    for checkpoint in &task.checkpoints {
        match restored(training, &checkpoint.manifest_digest, origin, link) {
            Ok(()) => return Ok(()),
            Err(Unfinished::Failed { message, .. }) => {
                link.log(&format!("checkpoint of update {} is passed over: {message}", checkpoint.update));
            }
            Err(leaving) => return Err(leaving),
        }
    }
    Ok(())
}

fn restored(training: &mut Training, manifest: &str, origin: &Origin, link: &Link) -> Result<(), Unfinished> {
    let manifest = Manifest::decode(&link.get(manifest)?, origin).map_err(Unfinished::bug)?;
    let state = link.get(manifest.state.as_str())?;
    let state = State::decode(&state, training.trained().params().len()).map_err(Unfinished::bug)?;
    training.resume(manifest.progress, state).map_err(Unfinished::bug)
}

#[expect(clippy::disallowed_methods, reason = "the shell measures how long an update takes")]
fn advance(training: &mut Training, loaded: &mut Loaded) -> Result<Advanced, Unfinished> {
    let began = Instant::now();
    let advanced = training.advance(&mut loaded.engine).map_err(Unfinished::from)?;
    training.spent(began.elapsed().as_secs_f64());
    Ok(advanced)
}

/// Progress for whoever watches; a line in the log at the end of each update.
fn tell(training: &Training, advanced: &Advanced, lease: &Lease, link: &Link) {
    let progress = training.progress();
    let speed = progress.samples as f64 / progress.seconds.max(f64::MIN_POSITIVE);
    let total = progress.samples / u64::from(progress.update.max(1)) * u64::from(training.updates());
    link.progress.send_replace(Some(v1::Progress {
        update: progress.update,
        updates: training.updates(),
        epoch: advanced.finished_epoch.unwrap_or_else(|| training.current_epoch()),
        loss: advanced.loss,
        lr: advanced.lr,
        samples_per_s: speed,
        done: progress.samples,
        total: total.max(progress.samples),
        what: lease.what.clone(),
    }));
    let Advanced { loss, gradient_norm, lr, .. } = advanced;
    let (update, updates) = (progress.update, training.updates());
    link.log(&format!("update {update}/{updates}: loss {loss:.5}, gradient norm {gradient_norm:.4}, lr {lr:.3e}"));
}

/// Stores the state, then the manifest, then tells the coordinator: in this order.
fn checkpoint(training: &Training, origin: &Origin, link: &Link) -> Result<(), Unfinished> {
    let state = link.put("state.safetensors", training.encoded_state())?;
    let state = state.digest.parse().map_err(Unfinished::bug)?;
    let manifest = Manifest::new(origin.clone(), training.progress().clone(), state).encode();
    let manifest_digest = link.put("manifest.json", manifest)?.digest;
    let update = training.progress().update;
    link.report(&origin.base, Report::Checkpoint(v1::Checkpoint { update, manifest_digest }))
}

/// Stores an adapter as PEFT's two files, or all weights as a Hugging Face folder's.
fn store_trained(trained: &Trained, loaded: &Loaded, link: &Link) -> Result<Vec<Artifact>, Unfinished> {
    match trained {
        Trained::Adapter(adapter) => {
            let files = peft::to_files(adapter, &loaded.source, loaded.digest.as_str()).map_err(Unfinished::bug)?;
            Ok(vec![link.put(peft::CONFIG_FILE, files.config)?, link.put(peft::WEIGHTS_FILE, files.weights)?])
        }
        Trained::All(parameters) => {
            let weights = tuned::weights_bytes(parameters).map_err(Unfinished::bug)?;
            let mut stored = vec![link.put(tuned::WEIGHTS_FILE, weights)?];
            for (name, bytes) in tuned::side_files(&loaded.config, &loaded.tokenizer).map_err(Unfinished::bug)? {
                stored.push(link.put(name, bytes)?);
            }
            Ok(stored)
        }
    }
}

fn summary(training: &Training, dropped_utterances: u64) -> v1::Trained {
    let progress = training.progress().clone();
    v1::Trained {
        updates: progress.update,
        samples: progress.samples,
        tokens: progress.tokens,
        tree_tokens: progress.tree_tokens,
        seconds: progress.seconds,
        peak_rss_bytes: peak_rss_bytes(),
        losses: progress.losses,
        dropped_utterances,
    }
}
