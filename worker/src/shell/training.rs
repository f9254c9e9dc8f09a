//! A training lease: shards in, updates, checkpoints and epoch adapters out.

use std::collections::{BTreeMap, BTreeSet};

use insula_kernels::Cuda;
use insula_proto::{
    corpus::{CorpusManifest, Dialogue, Split},
    ids::Digest,
    job::{ClassWeights, JobSpec, Objective, Parameters, Stage},
    v1::{self, Artifact, EpochTrained, FailureClass, Lease, LedgerSegment, TrainTask, report_request::Report},
};
use rayon::prelude::*;

use super::{
    demonstrations::{Demonstrations, turns},
    evaluating::hold_trained,
    failure::Unfinished,
    link::Link,
    loaded::{Loaded, spec_of},
    peak_rss_bytes,
    shards::{self, ShardDialogues, corpus_of},
    tokens::for_each_shard,
    updates::{self, Course, Desk},
};
use crate::{
    adapter::{Adapter, AdapterConfig, Target},
    checkpoint::{Manifest, Origin, State},
    engine::{Compute, EngineError, Example, precision_of},
    ledger::Line,
    memory, peft,
    plan::{self, Sample},
    prompt::{self, Prompter},
    seed::{self, Purpose},
    train::{Advanced, Trained, Training},
    tuned, weights,
};

/// Trains a stage to the end, or until the link says to leave off.
pub fn train(loaded: &mut Loaded, lease: &Lease, task: &TrainTask, link: &Link) -> Result<(), Unfinished> {
    let spec = spec_of(lease)?;
    let corpus = corpus_of(lease)?;
    let place = task.stage as usize;
    let stage = spec.training_stages().into_iter().nth(place);
    let stage = stage.ok_or_else(|| Unfinished::bug(format!("the lease is for stage {place}, which the job lacks")))?;
    let origin = origin(&spec, place, task, &corpus, loaded);
    let prepared = prepare(loaded, &spec, &stage, task, &corpus, link)?;
    let dropped_utterances = prepared.dropped_utterances;
    let trained = start(loaded, &spec, place, task, link)?;
    let seed = seed::of_stage(spec.seed, place);
    let mut training = Training::new(stage, seed, prepared.samples, prepared.examples, trained);
    resume(&mut training, task, &origin, link)?;
    link.log(&format!("{}: {} of {} updates done", lease.what, training.progress().update, training.updates()));
    let members = Digest::of(&serde_json::to_vec(&origin).expect("an origin is plain data"));
    let (seats, pause_epoch) = (link.seats(), task.pause_epoch);
    fits_the_gpu(loaded, &spec, &training)?;
    let mut desk = LeaseDesk { loaded, link, lease, origin, dropped_utterances };
    updates::run(Course { training: &mut training, desk: &mut desk, seats: &seats, origin: members, pause_epoch })
}

/// A lease's own desk: computes with the base in memory, reports to the coordinator.
struct LeaseDesk<'a> {
    loaded: &'a mut Loaded,
    link: &'a Link,
    lease: &'a Lease,
    origin: Origin,
    dropped_utterances: u64,
}

impl Desk for LeaseDesk<'_> {
    fn engine(&mut self) -> &mut dyn Compute {
        self.loaded.engine.as_mut()
    }

    fn gpu(&self) -> Option<&Cuda> {
        self.loaded.gpu.as_ref()
    }

    fn tell(&mut self, training: &Training, advanced: &Advanced, shared: f64) {
        tell(training, advanced, shared, self.lease, self.link);
    }

    fn epoch(&mut self, training: &Training, epoch: u32) -> Result<(), Unfinished> {
        let adapter = store_trained(training.trained(), self.loaded, self.link)?;
        self.link.report(&self.loaded.digest, Report::Epoch(EpochTrained { epoch, adapter }))
    }

    fn checkpoint(&mut self, training: &Training, lines: &[Line]) -> Result<(), Unfinished> {
        checkpoint(training, lines, &self.origin, self.link)
    }

    fn trained(&mut self, training: &Training) -> Result<(), Unfinished> {
        let summary = summary(training, self.dropped_utterances);
        self.link.report(&self.loaded.digest, Report::Trained(summary))
    }

    fn log(&mut self, line: &str) {
        self.link.log(line);
    }
}

/// Refuses a training that the GPU has no room for before it begins.
fn fits_the_gpu(loaded: &Loaded, spec: &JobSpec, training: &Training) -> Result<(), Unfinished> {
    let Some(gpu) = &loaded.gpu else { return Ok(()) };
    let targets = spec.adapter.targets.iter().filter_map(|name| Target::named(name)).collect();
    let plan = memory::Plan {
        model: &loaded.config,
        base_bytes: 0,
        precision: precision_of(loaded.precision),
        parameters: spec.train.parameters,
        adapter: &AdapterConfig { r: spec.adapter.r as usize, alpha: f64::from(spec.adapter.alpha), targets },
        recompute: spec.train.recompute,
        merge: false,
        slot_tokens: training.longest_slot(),
        slots: 0,
        forest_tokens: 0,
    };
    let (wanted, facts) = (memory::gpu::predict(&plan).computing, gpu.facts().map_err(EngineError::from)?);
    if wanted <= facts.free as u64 {
        return Ok(());
    }
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    let message = format!(
        "{}: slots of {} tokens take {:.2} GB beside the base, {:.2} GB are free: lower train.slot_tokens, set \
        train.recompute = true, or hold the base in fewer bits (base.precision)",
        facts.name,
        plan.slot_tokens,
        gigabytes(wanted),
        gigabytes(facts.free as u64)
    );
    Err(Unfinished::Failed { class: FailureClass::OutOfMemory, message })
}

/// What this run's checkpoints must agree on: settings, stage and what it starts from; corpus; base.
fn origin(spec: &JobSpec, stage: usize, task: &TrainTask, corpus: &CorpusManifest, loaded: &Loaded) -> Origin {
    let start: Vec<_> = task.adapter.iter().map(|file| file.digest.as_str()).collect();
    let settings = serde_json::to_vec(&(spec, stage, start)).expect("settings are plain data");
    Origin { spec: Digest::of(&settings), corpus: corpus.digest.clone(), base: loaded.digest.clone() }
}

/// The samples of a stage, tokenised.
struct Prepared {
    samples: Vec<Sample>,
    examples: BTreeMap<Sample, Example>,
    dropped_utterances: u64,
}

fn prepare(
    loaded: &Loaded,
    spec: &JobSpec,
    stage: &Stage,
    task: &TrainTask,
    corpus: &CorpusManifest,
    link: &Link,
) -> Result<Prepared, Unfinished> {
    let shards = shards::of_split(corpus, Split::Train, link)?;
    let turns = turns(&shards);
    let selected = plan::select(&turns, spec.data.share, spec.data.mix, spec.seed);
    if selected.is_empty() {
        let (all, share) = (turns.iter().map(|d| d.turns).sum::<usize>(), spec.data.share);
        return Err(Unfinished::bad_data(format!("data.share {share} of {all} training samples keeps none")));
    }
    let samples = plan::asked(&selected, &stage.objectives);
    let mut prepared = Prepared { samples, examples: BTreeMap::new(), dropped_utterances: 0 };
    let places = placed(&shards, &selected);
    for &objective in &stage.objectives {
        let behind = match objective {
            Objective::Main => Demonstrations::for_training(spec, corpus, &shards, &task.embeddings, &selected, link)?,
            Objective::Speaker | Objective::Impact => Demonstrations::none(),
        };
        for part in parts(&shards) {
            let prompter = shards::prompter(loaded, spec, corpus, objective, part)?;
            let of_part: Vec<_> = places.iter().filter(|place| place.shard.part == part).copied().collect();
            tokenised(&prompter, objective, &of_part, &behind, &mut prepared, link)?;
        }
    }
    if stage.train.class_weights == ClassWeights::Balanced {
        weigh_classes(&mut prepared, &shards, corpus.labels.len());
    }
    Ok(prepared)
}

fn parts(shards: &[ShardDialogues]) -> BTreeSet<u32> {
    shards.iter().map(|shard| shard.part).collect()
}

/// A shard that has samples, with the place of its first dialogue in the split.
#[derive(Clone, Copy)]
struct Placed<'a> {
    shard: &'a ShardDialogues,
    first: u32,
    samples: &'a [Sample],
}

fn placed<'a>(shards: &'a [ShardDialogues], samples: &'a [Sample]) -> Vec<Placed<'a>> {
    let (mut first, mut left, mut placed) = (0, samples, Vec::new());
    for shard in shards {
        let end = first + u32::try_from(shard.dialogues.len()).expect("a split has fewer than 2^32 dialogues");
        let (samples, after) = left.split_at(left.partition_point(|sample| sample.dialogue < end));
        if !samples.is_empty() {
            placed.push(Placed { shard, first, samples });
        }
        (first, left) = (end, after);
    }
    placed
}

/// Adds the examples of an objective. Prompts are made by whole shards, for the whole fleet, but only of shards with
/// samples; those with demonstrations behind them are this job's alone.
fn tokenised(
    prompter: &Prompter<'_>,
    objective: Objective,
    places: &[Placed<'_>],
    behind: &Demonstrations,
    prepared: &mut Prepared,
    link: &Link,
) -> Result<(), Unfinished> {
    let mut add = |sample: &Sample, example: prompt::Example| {
        prepared.dropped_utterances += example.dropped_utterances as u64;
        let prompt_tokens = example.prompt_ids.len();
        let ids = [example.prompt_ids, example.target_ids].concat();
        prepared.examples.insert(Sample { objective, ..*sample }, Example { ids, prompt_tokens, weight: 1.0 });
    };
    if !behind.is_none() {
        for Placed { shard, first, samples } in places {
            link.go_on()?;
            let example = |sample: &Sample| {
                let dialogue = &shard.dialogues[(sample.dialogue - first) as usize];
                prompter.example_behind(dialogue, sample.turn as usize, behind.of(sample.dialogue, sample.turn))
            };
            let examples: Result<Vec<_>, _> = samples.par_iter().map(example).collect();
            samples
                .iter()
                .zip(examples.map_err(Unfinished::bad_data)?)
                .for_each(|(sample, example)| add(sample, example));
        }
        return Ok(());
    }
    let shards: Vec<_> = places.iter().map(|place| place.shard).collect();
    for_each_shard(prompter, &shards, link, |place, mut prompts| {
        let Placed { shard, first, samples } = places[place];
        for sample in samples {
            let (dialogue, turn) = ((sample.dialogue - first) as usize, sample.turn as usize);
            let prompt = prompts[dialogue][turn].take();
            let example = prompter.completed(&shard.dialogues[dialogue], turn, prompt).map_err(Unfinished::bad_data)?;
            add(sample, example);
        }
        Ok(())
    })
}

/// Gives every example that asks for an emotion the weight of its class.
fn weigh_classes(prepared: &mut Prepared, shards: &[ShardDialogues], labels: usize) {
    let dialogues: Vec<&Dialogue> = shards.iter().flat_map(|shard| &shard.dialogues).collect();
    let gold = |sample: &Sample| dialogues[sample.dialogue as usize].utterances[sample.turn as usize].gold.index();
    let mut counts = vec![0; labels];
    let asks_emotion = |sample: &&Sample| sample.objective != Objective::Speaker;
    let turns: BTreeSet<_> =
        prepared.samples.iter().filter(asks_emotion).map(|s| (s.dialogue, s.turn, gold(s))).collect();
    turns.iter().for_each(|&(_, _, gold)| counts[gold] += 1);
    let weights = weights::balanced(&counts);
    for (sample, example) in prepared.examples.iter_mut().filter(|(sample, _)| asks_emotion(sample)) {
        example.weight = weights[gold(sample)] as f32;
    }
}

/// What the stage trains, as it starts: what the lease gives, or a fresh adapter, or the base's own weights.
fn start(
    loaded: &mut Loaded,
    spec: &JobSpec,
    stage: usize,
    task: &TrainTask,
    link: &Link,
) -> Result<Trained, Unfinished> {
    let weights = task.adapter.iter().find(|file| file.name == tuned::WEIGHTS_FILE);
    match (spec.train.parameters, weights) {
        (Parameters::All, Some(weights)) => Ok(Trained::All(loaded.tuned_to_train(&weights.digest, link)?)),
        (Parameters::All, None) if task.adapter.is_empty() => Ok(Trained::All(loaded.weights_to_train()?)),
        (Parameters::All, None) => Err(Unfinished::bad_data(
            "what the training starts from is an adapter, but train.parameters is \"all\": expected a tuned base",
        )),
        (Parameters::Lora, Some(_)) => Err(Unfinished::bad_data(
            "what the training starts from is a tuned base, but train.parameters is \"lora\": expected an adapter",
        )),
        (Parameters::Lora, None) => first_adapter(loaded, spec, stage, task, link).map(Trained::Adapter),
    }
}

fn first_adapter(
    loaded: &mut Loaded,
    spec: &JobSpec,
    stage: usize,
    task: &TrainTask,
    link: &Link,
) -> Result<Adapter, Unfinished> {
    let target = |name: &String| {
        serde_json::from_value::<Target>(name.as_str().into()).map_err(|e| Unfinished::bad_data(format!("{name}: {e}")))
    };
    let targets: BTreeSet<Target> = spec.adapter.targets.iter().map(target).collect::<Result<_, _>>()?;
    let config = AdapterConfig { r: spec.adapter.r as usize, alpha: f64::from(spec.adapter.alpha), targets };
    let shape = |config: &AdapterConfig| {
        let names: Vec<_> = config.targets.iter().map(|target| target.module()).collect();
        format!("r {}, alpha {} on {}", config.r, config.alpha, names.join(" "))
    };
    match hold_trained(&task.adapter, loaded, link)? {
        Some(adapter) if adapter.config == config => Ok(adapter),
        Some(adapter) => Err(Unfinished::bad_data(format!(
            "the adapter that the training starts from has {}; expected this job's {}",
            shape(&adapter.config),
            shape(&config)
        ))),
        None => {
            let seed = seed::number(seed::of_stage(spec.seed, stage), Purpose::Adapter);
            Ok(Adapter::init(config, &loaded.config, seed))
        }
    }
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

/// Progress for whoever watches; a line in the log at the end of each update.
fn tell(training: &Training, advanced: &Advanced, shared: f64, lease: &Lease, link: &Link) {
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
    let exchange = if shared > 1e-4 { format!(", exchange {:.1}%", 100.0 * shared) } else { String::new() };
    let done = format!("update {update}/{updates}: loss {loss:.5}");
    link.log(&format!("{done}, gradient norm {gradient_norm:.4}, lr {lr:.3e}{exchange}"));
}

/// Stores the state, the ledger, then the manifest, then tells the coordinator: in this order.
fn checkpoint(training: &Training, lines: &[Line], origin: &Origin, link: &Link) -> Result<(), Unfinished> {
    let state = link.put("state.safetensors", training.encoded_state())?;
    let ledger = segment(lines, link)?;
    let digest = state.digest.parse().map_err(Unfinished::bug)?;
    let manifest = Manifest::new(origin.clone(), training.progress().clone(), digest).encode();
    let manifest_digest = link.put("manifest.json", manifest)?.digest;
    let update = training.progress().update;
    let checkpoint = v1::Checkpoint { update, manifest_digest, state: Some(state), ledger };
    link.report(&origin.base, Report::Checkpoint(checkpoint))
}

/// The ledger's lines since the checkpoint before, stored.
fn segment(lines: &[Line], link: &Link) -> Result<Option<LedgerSegment>, Unfinished> {
    let (Some(first), Some(last)) = (lines.first(), lines.last()) else { return Ok(None) };
    let text: String = lines.iter().map(|line| line.encode() + "\n").collect();
    let (first, last) = (first.update, last.update);
    Ok(Some(LedgerSegment { first, last, lines: Some(link.put("ledger.jsonl", text.into_bytes())?) }))
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
