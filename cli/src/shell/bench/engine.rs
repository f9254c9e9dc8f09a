//! `insula bench engine`: a few updates and a few dialogues on the path of a job, timed.
//!
//! ```text
//! GEMM peak -> base in memory -> a warm-up update -> K timed updates -> GEMM peak -> test dialogues -> GEMM peak
//! ```
//! The peak is measured three times, around what it judges, since machines change their speed under load. Everything is
//! computed by one engine on a [`Timed`] backend, so that memory is counted once; timing costs under a thousandth.

use std::{collections::BTreeMap, path::Path, sync::OnceLock, time::Duration, time::Instant};

use insula_coordinator::{corpus::Corpus, shell::corpora::read_splits};
use insula_kernels::{
    Backend, Cpu,
    timed::{Entries, Ledger, Timed},
};
use insula_proto::{
    corpus::{Dialogue, Split},
    job::{Arm, JobSpec},
};
use insula_worker::{
    adapter::{Adapter, AdapterConfig, Target},
    base::{Base, fetch::ResolvedBase},
    device::Device,
    engine::{Compute, Engine, Example, precision_of},
    evaluate::{self, Counts},
    peft,
    plan::{self, Turns},
    prompt::{self, Prompter},
    seed::{self, Purpose},
    shell::peak_rss_bytes,
    tokenize::Tokenizer,
    train::{Trained as WhatIsTrained, Training},
    trie::LabelTrie,
};

use super::{
    super::{model::resolve, out, out::say, settings},
    gemm_peak,
};
use crate::{
    args::EngineBenchArgs,
    bench::{
        engine::{Center, Evaluate, Lap, Report, Setting, Speed, Train, Work, layer_parameters, operations},
        given::{self, GivenTraining},
    },
    failure::Failure,
};

/// `insula bench engine`
pub fn run(args: &EngineBenchArgs) -> Result<(), Failure> {
    let spec = job_spec(args)?;
    let device = Device::of(args.device.device, args.threads).map_err(input)?;
    let mut gemm_gflops = vec![gemm(&device)?];
    let mut bench = Bench::load(args, &device, spec)?;
    let trained = bench.train()?;
    gemm_gflops.push(gemm(&device)?);
    let evaluated = if args.samples > 0 { Some(bench.evaluate(&trained.adapter)?) } else { None };
    let peak_rss_bytes = peak_rss_bytes();
    gemm_gflops.push(gemm(&device)?);
    let report = bench.report(gemm_gflops, trained, evaluated, peak_rss_bytes);
    if args.json {
        say!("{}", serde_json::to_string(&report).map_err(|e| Failure::operation("print the report", e))?);
    } else {
        out::print(format_args!("{}", report.text()));
    }
    Ok(())
}

/// Time since this command first asked.
#[expect(clippy::disallowed_methods, reason = "a benchmark asks the time")]
pub fn now() -> Duration {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed()
}

fn gemm(device: &Device) -> Result<f64, Failure> {
    match device {
        Device::Cpu { threads } => gemm_peak::measure(*threads).map_err(operation),
        Device::Cuda { gpu, .. } => Ok(gpu.product_peak().map_err(operation)? / 1e9),
    }
}

fn operation(error: impl std::fmt::Display) -> Failure {
    Failure::Operation(error.to_string())
}

fn input(error: impl std::fmt::Display) -> Failure {
    Failure::Input(error.to_string())
}

/// The settings of configs/jobs/meld.toml, with what was typed over them.
fn job_spec(args: &EngineBenchArgs) -> Result<JobSpec, Failure> {
    let mut defaults = JobSpec::default();
    defaults.base.source.clone_from(&args.base);
    defaults.corpus.path.clone_from(&args.corpus);
    defaults.data.window = args.window;
    (defaults.train.batch, defaults.train.lr, defaults.train.epochs) = (args.batch, 1e-3, 1);
    let spec = settings::plain(&defaults, None, &args.sets, |_| vec![])?;
    let violations = spec.violations();
    if violations.is_empty() { Ok(spec) } else { Err(Failure::violations(&violations)) }
}

/// The engine on its timed backend, and what every phase needs.
struct Bench<'a> {
    args: &'a EngineBenchArgs,
    spec: JobSpec,
    resolved: ResolvedBase,
    base: Base,
    tokenizer: Tokenizer,
    engine: Box<dyn Compute>,
    ledger: Ledger,
    device: Device,
    /// Compute threads: one drives a GPU.
    threads: usize,
    /// Buffers that the backend under the timed one took from the system so far.
    fresh_buffers: Box<dyn Fn() -> u64>,
}

/// What training leaves: its laps and the adapter.
struct Trained {
    data: String,
    laps: Vec<Lap>,
    losses: Vec<f64>,
    entries: Entries,
    fresh_buffers: u64,
    page_faults: u64,
    peak_rss_bytes: u64,
    adapter: Adapter,
}

/// What evaluation leaves.
struct Evaluated {
    lap: Lap,
    forests: usize,
    counts: Counts,
    entries: Entries,
}

/// Where the updates come from.
enum Updates {
    /// The first of a job's first epoch.
    Job(Box<Training>),
    /// A file.
    Given(Box<GivenTraining>, std::vec::IntoIter<Vec<Example>>),
}

/// An engine whose operations are timed, and where their times are written.
fn timed<B>(backend: B, base: &Base, spec: &JobSpec) -> Result<(Box<dyn Compute>, Ledger), Failure>
where
    B: Backend + Send + 'static,
    B::Buffer: Send,
    B::Weight: Send,
{
    let timed = Timed::new(backend, now);
    let ledger = timed.ledger();
    let engine = Engine::load(timed, &base.config, base, precision_of(spec.base.precision)).map_err(input)?;
    Ok((Box::new(engine), ledger))
}

impl<'a> Bench<'a> {
    fn load(args: &'a EngineBenchArgs, device: &Device, spec: JobSpec) -> Result<Self, Failure> {
        let resolved = resolve(&args.base, None)?;
        let base = Base::open(&resolved.path).map_err(input)?;
        let tokenizer = base.tokenizer().map_err(input)?;
        let (mut engine, ledger, threads, fresh_buffers): (_, _, _, Box<dyn Fn() -> u64>) = match device {
            Device::Cpu { threads } => {
                let cpu = Cpu::new(*threads).map_err(operation)?;
                let (engine, ledger) = timed(cpu.clone(), &base, &spec)?;
                (engine, ledger, cpu.threads(), Box::new(move || cpu.fresh_buffers()))
            }
            Device::Cuda { gpu, .. } => {
                let (gpu, (engine, ledger)) = (gpu.clone(), timed(gpu.clone(), &base, &spec)?);
                (engine, ledger, 1, Box::new(move || gpu.fresh_buffers()))
            }
        };
        engine.set_recompute(spec.train.recompute);
        Ok(Self {
            args,
            spec,
            resolved,
            base,
            tokenizer,
            engine,
            ledger,
            device: device.clone(),
            threads,
            fresh_buffers,
        })
    }

    fn corpus(&self, split: Split) -> Result<Corpus, Failure> {
        read_splits(&self.spec.corpus, &[split]).map_err(input)
    }

    fn main_task<'t>(&self, tokenizer: &'t Tokenizer, corpus: &'t Corpus) -> Result<Prompter<'t>, Failure> {
        let (window, context) = (self.spec.data.window as usize, self.base.config.context);
        let new_tokens = self.spec.evaluate.max_new_tokens as usize;
        Prompter::main(tokenizer, &corpus.labels, window, context, new_tokens).map_err(input)
    }

    /// The adapter in a folder, or a fresh one.
    fn adapter(&self, folder: Option<&Path>) -> Result<Adapter, Failure> {
        if let Some(folder) = folder {
            return peft::read_folder(folder, &self.base.config).map_err(input);
        }
        let target = |name: &String| serde_json::from_value::<Target>(name.as_str().into()).map_err(input);
        let targets = self.spec.adapter.targets.iter().map(target).collect::<Result<_, _>>()?;
        let config =
            AdapterConfig { r: self.spec.adapter.r as usize, alpha: f64::from(self.spec.adapter.alpha), targets };
        Ok(Adapter::init(config, &self.base.config, seed::number(self.spec.seed, Purpose::Adapter)))
    }

    fn train(&mut self) -> Result<Trained, Failure> {
        let (data, mut updates, count) = self.updates()?;
        let (_, warm_up) = updates.advance(self.engine.as_mut())?;
        let (mut laps, mut losses) = (vec![], vec![warm_up]);
        self.ledger.take();
        let (fresh, faults) = ((self.fresh_buffers)(), page_faults());
        for _ in 1..count {
            let (lap, loss) = updates.advance(self.engine.as_mut())?;
            laps.push(lap);
            losses.push(loss);
        }
        Ok(Trained {
            data,
            laps,
            losses,
            entries: self.ledger.take(),
            fresh_buffers: (self.fresh_buffers)() - fresh,
            page_faults: page_faults().saturating_sub(faults),
            peak_rss_bytes: peak_rss_bytes(),
            adapter: updates.into_adapter(),
        })
    }

    /// The data's name, the updates, and how many there are.
    fn updates(&self) -> Result<(String, Updates, usize), Failure> {
        let adapter = self.adapter(self.args.adapter.as_deref())?;
        let Some(file) = &self.args.batches else {
            let (name, training) = self.job(adapter)?;
            let count = (self.args.updates + 1).min(training.updates()) as usize;
            return enough(name, Updates::Job(Box::new(training)), count);
        };
        let given = given::parse(&read(file)?, &self.tokenizer).map_err(|e| in_file(file, e))?;
        let training = GivenTraining::new(adapter, self.args.batches_lr, self.spec.train.slot_tokens as usize);
        let count = given.len();
        enough(file.display().to_string(), Updates::Given(Box::new(training), given.into_iter()), count)
    }

    /// The corpus's name and a job's training, of as many epochs as hold the updates asked for; those are tokenised.
    fn job(&self, adapter: Adapter) -> Result<(String, Training), Failure> {
        let corpus = self.corpus(Split::Train)?;
        let dialogues = &corpus.splits[&Split::Train];
        let turns: Vec<Turns> = dialogues.iter().map(|d| Turns { turns: d.utterances.len(), part: 0 }).collect();
        let mut spec = self.spec.clone();
        let samples = plan::select(&turns, spec.data.share, spec.data.mix, spec.seed);
        let (updates, batch) = (self.args.updates as usize + 1, spec.train.batch as usize);
        let epochs = updates.div_ceil(samples.len().div_ceil(batch).max(1));
        spec.train.epochs = u32::try_from(epochs).expect("at most one more than the updates");
        let task = self.main_task(&self.tokenizer, &corpus)?;
        let order = (1..=spec.train.epochs)
            .flat_map(|epoch| plan::pass(&samples, spec.train.batching, batch, spec.seed, epoch))
            .take(updates)
            .flatten();
        let mut examples = BTreeMap::new();
        for sample in order {
            let example = task.example(&dialogues[sample.dialogue as usize], sample.turn as usize).map_err(input)?;
            let prompt_tokens = example.prompt_ids.len();
            let ids = [example.prompt_ids, example.target_ids].concat();
            examples.insert(sample, Example { ids, prompt_tokens, weight: 1.0 });
        }
        Ok((
            corpus.name.clone(),
            Training::new(spec.training_stages().remove(0), spec.seed, samples, examples, adapter),
        ))
    }

    fn evaluate(&mut self, trained: &Adapter) -> Result<Evaluated, Failure> {
        let corpus = self.corpus(Split::Test)?;
        let given = self.args.evaluate_adapter.as_deref();
        let adapter = given.map(|folder| self.adapter(Some(folder))).transpose()?;
        let adapter = adapter.as_ref().unwrap_or(trained);
        let began = now();
        self.ledger.take();
        let (dialogues, examples) = self.test_examples(&corpus)?;
        let setting = evaluate::Setting {
            arm: Arm::Trained,
            corpus: &corpus.name,
            split: Split::Test,
            labels: &corpus.labels,
            mode: self.spec.evaluate.mode,
            max_new_tokens: self.spec.evaluate.max_new_tokens as usize,
        };
        let labels = self.tokenizer.label_tokens(corpus.labels.names()).map_err(input)?;
        let bare: Vec<Vec<u32>> = labels.iter().map(|ids| ids[..ids.len() - 1].to_vec()).collect();
        let trie = LabelTrie::new(&bare, self.tokenizer.eos()).map_err(input)?;
        let mut counts = Counts::new(corpus.labels.len());
        let (mut lines, mut forests, mut first) = (Vec::new(), 0, 0);
        while first < examples.len() {
            let last = first + evaluate::next_forest(&examples[first..], self.spec.train.slot_tokens as usize);
            let group: Vec<(&Dialogue, &[prompt::Example])> =
                dialogues[first..last].iter().zip(examples[first..last].iter().map(Vec::as_slice)).collect();
            let (engine, tokenizer) = (self.engine.as_mut(), &self.tokenizer);
            evaluate::forest(engine, tokenizer, Some(adapter), &trie, &setting, &group, &mut counts, &mut lines)
                .map_err(operation)?;
            (first, forests) = (last, forests + 1);
        }
        let seconds = (now() - began).as_secs_f64();
        let tokens = examples.iter().flatten().map(|e| e.prompt_ids.len() as u64).sum();
        let lap = Lap { seconds, samples: counts.samples, tokens, tree_tokens: counts.tree_tokens };
        let entries = self.ledger.take();
        self.args.predictions.as_deref().map(|file| write(file, &lines)).transpose()?;
        Ok(Evaluated { lap, forests, counts, entries })
    }

    /// The dialogues of the first samples asked for, and their prompts; the last dialogue may be cut.
    fn test_examples<'c>(&self, corpus: &'c Corpus) -> Result<(&'c [Dialogue], Vec<Vec<prompt::Example>>), Failure> {
        let task = self.main_task(&self.tokenizer, corpus)?;
        let all = &corpus.splits[&Split::Test];
        let (mut left, mut examples) = (self.args.samples, Vec::new());
        for dialogue in all {
            let turns = 0..dialogue.utterances.len().min(left);
            if turns.is_empty() {
                break;
            }
            left -= turns.len();
            examples.push(turns.map(|turn| task.example(dialogue, turn)).collect::<Result<_, _>>().map_err(input)?);
        }
        Ok((&all[..examples.len()], examples))
    }

    fn report(&self, gemm_gflops: Vec<f64>, t: Trained, e: Option<Evaluated>, peak_rss_bytes: u64) -> Report {
        let peak = gemm_gflops.iter().copied().fold(0.0, f64::max);
        let parameters = layer_parameters(&self.base.config);
        let updates = t.laps.len() as u64;
        let wall = Duration::from_secs_f64(t.laps.iter().map(|lap| lap.seconds).sum());
        let count = |name: &str| t.entries.operations.get(name).map_or(0, |spent| spent.calls);
        let train = Train {
            speed: Speed::of(&t.laps, Center::Median, Work::Training, parameters, peak),
            updates: t.laps.len(),
            losses: t.losses,
            buffers_per_update: (count("alloc") + count("upload")) / updates,
            buffer_bytes_per_update: 4 * t.entries.buffer_values / updates,
            fresh_buffers_per_update: t.fresh_buffers as f64 / updates as f64,
            page_faults_per_update: t.page_faults / updates,
            peak_rss_bytes: t.peak_rss_bytes,
            operations: operations(&t.entries, wall),
        };
        Report {
            setting: self.setting(t.data, &t.adapter),
            gemm_peak_gflops: peak,
            gemm_gflops,
            useful_gflops: train.speed.useful_gflops,
            peak_rss_bytes,
            train,
            evaluate: e.map(|e| Evaluate {
                speed: Speed::of(&[e.lap], Center::Total, Work::Evaluation, parameters, peak),
                forests: e.forests,
                labels_answered: e.counts.samples - e.counts.strict.unreadable(),
                close_margins: e.counts.close_margins,
                operations: operations(&e.entries, Duration::from_secs_f64(e.lap.seconds)),
            }),
        }
    }

    fn setting(&self, data: String, adapter: &Adapter) -> Setting {
        let targets = adapter.config.targets.iter();
        Setting {
            base: self.resolved.source.clone(),
            base_digest: self.resolved.digest.clone(),
            precision: format!("{:?}", self.spec.base.precision).to_lowercase(),
            layer_parameters: layer_parameters(&self.base.config),
            data,
            window: self.spec.data.window,
            batch: self.spec.train.batch,
            slot_tokens: self.spec.train.slot_tokens,
            r: adapter.config.r,
            targets: targets.map(|target| target.module().trim_end_matches("_proj").to_owned()).collect(),
            threads: self.threads,
            vector_units: match &self.device {
                Device::Cpu { .. } => insula_kernels::cpu::vector_units().to_owned(),
                Device::Cuda { kind, .. } => kind.clone(),
            },
        }
    }
}

impl Updates {
    /// Computes the next update: its lap and its loss.
    fn advance(&mut self, engine: &mut dyn Compute) -> Result<(Lap, f64), Failure> {
        match self {
            Updates::Job(training) => {
                let before = training.progress().clone();
                let began = now();
                let loss = training.advance(engine).map_err(operation)?.loss;
                let seconds = (now() - began).as_secs_f64();
                let after = training.progress();
                let (samples, tokens) = (after.samples - before.samples, after.tokens - before.tokens);
                Ok((Lap { seconds, samples, tokens, tree_tokens: after.tree_tokens - before.tree_tokens }, loss))
            }
            Updates::Given(training, updates) => {
                let update = updates.next().expect("no more updates are asked for than the file has");
                let began = now();
                let (loss, tree_tokens) = training.advance(engine, &update).map_err(operation)?;
                let seconds = (now() - began).as_secs_f64();
                let tokens = update.iter().map(|example| example.ids.len() as u64).sum();
                Ok((Lap { seconds, samples: update.len() as u64, tokens, tree_tokens }, loss))
            }
        }
    }

    fn into_adapter(self) -> Adapter {
        match self {
            Updates::Job(training) => match training.trained() {
                WhatIsTrained::Adapter(adapter) => adapter.clone(),
                WhatIsTrained::All(_) => unreachable!("the benchmark began with an adapter"),
            },
            Updates::Given(training, _) => training.adapter,
        }
    }
}

/// Refuses updates of which none is left after the warm-up.
fn enough(data: String, updates: Updates, count: usize) -> Result<(String, Updates, usize), Failure> {
    if count < 2 {
        return Err(Failure::Input(format!("{data}: {count} updates, at least 2 expected: the first warms up")));
    }
    Ok((data, updates, count))
}

fn in_file(file: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::Input(format!("{}: {error}", file.display()))
}

#[expect(clippy::disallowed_methods, reason = "reads the file the person named")]
fn read(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|e| in_file(file, e))
}

#[expect(clippy::disallowed_methods, reason = "writes the file the person named")]
fn write(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    std::fs::write(file, bytes).map_err(|e| Failure::operation(file.display(), e))
}

/// Minor page faults of this process so far; 0 where the system does not say.
#[expect(clippy::disallowed_methods, reason = "reads what the kernel reports of this process")]
fn page_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the command's name in parentheses: state, six more numbers, then minor faults.
    let numbers = stat.rsplit(')').next().unwrap_or_default();
    numbers.split_whitespace().nth(7).and_then(|n| n.parse().ok()).unwrap_or(0)
}
