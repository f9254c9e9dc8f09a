//! What can be typed to measure.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::DeviceArgs;

/// `insula bench`
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Train and evaluate on a corpus for a short while: rates, useful arithmetic, time of each kind of operation.
    Engine(EngineBenchArgs),
    /// Shard a synthetic corpus: utterances and bytes a second, peak memory and, with a base, tokens a second.
    Data(DataBenchArgs),
    /// Drive a coordinator with trials that compute nothing: trials and GetJob calls a second, memory, restart.
    Fleet(FleetBenchArgs),
}

/// `insula bench engine`
#[derive(Debug, Args)]
pub struct EngineBenchArgs {
    /// The base: a .gguf, a folder, or pip:PACKAGE.
    #[arg(long, value_name = "BASE")]
    pub base: String,
    /// The corpus's folder: its train split is trained on, its test split evaluated.
    #[arg(long, value_name = "DIR")]
    pub corpus: String,
    /// Preceding utterances in a prompt.
    #[arg(long, default_value_t = 12, value_name = "N")]
    pub window: u32,
    /// Samples of an update.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub batch: u32,
    /// Set any other key of a job over configs/jobs/meld.toml's values: `--set slot_tokens=4096`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// What computes.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Compute threads; one per core by default.
    #[arg(long, default_value_t = 0, value_name = "N", hide_default_value = true)]
    pub threads: usize,
    /// Updates timed, after one to warm up.
    #[arg(long, default_value_t = 4, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    pub updates: u32,
    /// Compute the updates of this file instead (a line each: a JSON list of {"prompt", "target"}), with torch's AdamW at
    /// a constant rate.
    #[arg(long, value_name = "FILE", conflicts_with = "updates")]
    pub batches: Option<PathBuf>,
    /// The constant learning rate of --batches.
    #[arg(long, default_value_t = 2e-4, value_name = "RATE")]
    pub batches_lr: f64,
    /// Start from this adapter, a folder as PEFT writes it; by default a fresh one.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Test samples evaluated, the first of the split; 0 for none.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub samples: usize,
    /// Evaluate with this adapter, a folder as PEFT writes it; by default the one just trained.
    #[arg(long, value_name = "DIR")]
    pub evaluate_adapter: Option<PathBuf>,
    /// Write the answers to this file, a line of JSON each, as a job does.
    #[arg(long, value_name = "FILE")]
    pub predictions: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `insula bench data`
#[derive(Debug, Args)]
pub struct DataBenchArgs {
    /// Utterances of the corpus.
    #[arg(long, default_value_t = 2_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(3..))]
    pub utterances: u64,
    /// Also tokenise prompts with this base's tokenizer: a .gguf, a folder, or pip:PACKAGE.
    #[arg(long, value_name = "BASE")]
    pub base: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `insula bench fleet`
#[derive(Debug, Args)]
pub struct FleetBenchArgs {
    /// Trials timed from submit to their job's end.
    #[arg(long, default_value_t = 5000, value_name = "N", value_parser = clap::value_parser!(u64).range(100..))]
    pub trials: u64,
    /// Simulated workers, which answer at once.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub workers: u32,
    /// Trials stored while GetJob, polling and memory are measured; the bars are meant at 100000.
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1000..))]
    pub stored: u64,
    /// Clients that call GetJob.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub clients: u32,
    /// Seconds that each rate of GetJob is measured for; polling takes four times as long.
    #[arg(long, default_value_t = 5, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// Make the coordinator's state in this folder, whose disk is then what is measured; by default where temporary
    /// files lie.
    #[arg(long, value_name = "DIR")]
    pub at: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
