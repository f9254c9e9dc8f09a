//! What can be typed after `insula predict` and `insula serve`.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use insula_proto::job::Precision;

use super::DeviceArgs;

/// What labels dialogues.
#[derive(Debug, Args)]
pub struct PredictorArgs {
    /// The adapter, a folder as PEFT or `insula run --out` writes it; without one, the bare base answers. Where it holds
    /// insula.json, that gives base, labels and window.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// The base: a .gguf, a folder, or pip:PACKAGE.
    #[arg(long, value_name = "BASE")]
    pub base: Option<String>,
    /// The label set, in prompt order.
    #[arg(long, value_name = "A,B,...", value_delimiter = ',', conflicts_with = "corpus_layout")]
    pub labels: Vec<String>,
    /// Take the label set of this corpus layout: meld, emorynlp or iemocap.
    #[arg(long, value_name = "LAYOUT")]
    pub corpus_layout: Option<String>,
    /// Preceding utterances in a prompt; 12 where insula.json does not say otherwise.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=10_000))]
    pub window: Option<u32>,
    /// How the base's weights are held: f32, bf16, q8 or q4.
    #[arg(long, default_value = "f32", value_parser = precision)]
    pub precision: Precision,
    /// What computes.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Compute threads; one per core by default.
    #[arg(long, default_value_t = 0, value_name = "N", hide_default_value = true)]
    pub threads: usize,
}

fn precision(text: &str) -> Result<Precision, String> {
    serde_json::from_value(text.into()).map_err(|_| "expected f32, bf16, q8 or q4".to_owned())
}

/// `insula predict`
#[derive(Debug, Args)]
pub struct PredictArgs {
    /// What labels them.
    #[command(flatten)]
    pub predictor: PredictorArgs,
    /// Print a line of JSON for each utterance.
    #[arg(long)]
    pub json: bool,
    /// Dialogues, a line of JSON each: {"id": "d1", "utterances": [{"speaker": "Ann", "text": "Hi."}, ...]}; - for
    /// standard input.
    #[arg(default_value = "-", value_name = "FILE")]
    pub file: PathBuf,
}

/// `insula serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// What labels the dialogues.
    #[command(flatten)]
    pub predictor: PredictorArgs,
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:7462", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Listen on an address that other machines reach, though connections carry no authentication.
    #[arg(long)]
    pub allow_remote: bool,
}
