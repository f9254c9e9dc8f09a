//! What can be typed for many jobs at once.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{AccessArgs, DeviceArgs, StateArgs};

/// Who computes many jobs.
#[derive(Debug, Args)]
pub struct StudyArgs {
    /// Address of a running coordinator with workers of its own, http://HOST:PORT or https://HOST:PORT; without it, both
    /// are started here.
    #[arg(long, env = "INSULA_COORDINATOR", value_name = "URL")]
    pub coordinator: Option<String>,
    /// What it takes to be let in there.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Workers to start here.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: u32,
    /// Threads of each; all cores shared between them by default.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// What they compute on.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Where local state is kept; the same command over the same state goes on where it was interrupted.
    #[command(flatten)]
    pub state: StateArgs,
}

/// `insula sweep`
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// The sweep (TOML); see configs/sweeps.
    pub file: PathBuf,
    /// Set a key of every trial over the sweep's own [set]: `--set data.share=1/16`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Only print the trials.
    #[arg(long)]
    pub dry_run: bool,
    /// Leave sweep.md and sweep.json in this folder.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print the results as JSON.
    #[arg(long)]
    pub json: bool,
    /// Who computes.
    #[command(flatten)]
    pub study: StudyArgs,
}

/// `insula reproduce`
#[derive(Debug, Subcommand)]
pub enum ReproduceCommand {
    /// InstructERC (arXiv 2309.11911): main table, ablations, windows, impact weights, all parameters, data scaling.
    Instructerc(InstructercArgs),
}

/// `insula reproduce instructerc`
#[derive(Debug, Args)]
pub struct InstructercArgs {
    /// The base: a .gguf, a Hugging Face folder, or pip:PACKAGE.
    #[arg(long, value_name = "BASE")]
    pub base: String,
    /// The corpora, each by its key in the paper's tables: iemocap=PATH meld=PATH emorynlp=PATH.
    #[arg(long, value_name = "KEY=PATH", num_args = 1.., required = true)]
    pub corpora: Vec<String>,
    /// Seeds of every experiment.
    #[arg(long, value_name = "SEED", value_delimiter = ',')]
    pub seeds: Vec<u64>,
    /// Small shares and few updates: whether everything works, in half an hour on a laptop; one seed unless told.
    #[arg(long)]
    pub quick: bool,
    /// In data scaling, give every job of a share as many updates as the one that takes the most.
    #[arg(long = "match", value_enum, default_value_t = Matching::Epochs)]
    pub matching: Matching,
    /// Set a key of every job: `--set base.precision=bf16`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Only print the experiments.
    #[arg(long)]
    pub dry_run: bool,
    /// Leave report.md, report.html, study.json and the figures in this folder.
    #[arg(long, default_value = "instructerc", value_name = "DIR")]
    pub out: PathBuf,
    /// Who computes.
    #[command(flatten)]
    pub study: StudyArgs,
}

/// What jobs that are compared have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Matching {
    /// Passes over their samples.
    Epochs,
    /// Updates.
    Updates,
}
