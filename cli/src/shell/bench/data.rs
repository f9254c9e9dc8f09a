//! `insula bench data`: how fast a corpus becomes shards on disk, and in how much memory.
#![expect(clippy::disallowed_methods, reason = "writes a corpus to measure with, and asks the time")]

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    time::Instant,
};

use bytes::Bytes;
use insula_coordinator::shell::{artifacts::Artifacts, sharding::shard_job};
use insula_proto::{
    corpus::{CorpusManifest, Dialogue, Split},
    job::{CorpusSpec, JobSpec},
    shard,
};
use insula_worker::{prompt::Prompter, shell::peak_rss_bytes};
use serde::Serialize;

use crate::{
    args::DataBenchArgs,
    failure::Failure,
    shell::{corpus::open_tokenizer, out::say},
    synthetic::{HEADER, Synthetic},
};

/// Chance begins here; another seed is another corpus of the same shape.
const SEED: u64 = 7;

/// Prompts that are tokenised to learn how fast that is: a second or two of work.
const PROMPTS: usize = 10_000;

/// What was measured.
#[derive(Debug, Serialize)]
struct Figures {
    utterances: u64,
    bytes: u64,
    seconds: f64,
    utterances_per_s: f64,
    bytes_per_s: f64,
    shards: usize,
    /// Of the whole process, from its start to the end of the sharding.
    peak_rss_bytes: u64,
    #[serde(flatten)]
    tokens: Option<TokenFigures>,
}

/// How fast prompts become tokens.
#[derive(Debug, Serialize)]
struct TokenFigures {
    prompts_per_s: f64,
    tokens_per_s: f64,
}

/// Measures and prints.
///
/// # Errors
/// When the disk refuses, or the base cannot be had.
pub fn run(args: &DataBenchArgs) -> Result<(), Failure> {
    let folder = tempfile::tempdir().map_err(|e| Failure::operation("make a temporary folder", e))?;
    let corpus = folder.path().join("corpus");
    let written = write_corpus(&corpus, args.utterances).map_err(|e| Failure::operation("write the corpus", e))?;
    let runtime = tokio::runtime::Runtime::new().map_err(|e| Failure::operation("start the async runtime", e))?;
    let figures = runtime.block_on(measured(args, folder.path(), &corpus, written))?;
    if args.json {
        say!("{}", serde_json::to_value(&figures).map_err(|e| Failure::operation("print the figures", e))?);
    } else {
        say!("{}", text(&figures));
    }
    Ok(())
}

async fn measured(args: &DataBenchArgs, folder: &Path, corpus: &Path, bytes: u64) -> Result<Figures, Failure> {
    let store = folder.join("artifacts");
    std::fs::create_dir(&store).map_err(|e| Failure::operation("make the artifact store", e))?;
    let artifacts = Artifacts::open(&store).await.map_err(|e| Failure::operation("open the artifact store", e))?;
    let corpus = CorpusSpec { path: corpus.display().to_string(), ..CorpusSpec::default() };
    let spec = JobSpec { corpus: corpus.into(), ..JobSpec::default() };
    let began = Instant::now();
    let sharded = shard_job(&spec, &artifacts).await.map_err(|e| Failure::operation("shard the corpus", e))?;
    let manifest = sharded.manifest;
    let seconds = began.elapsed().as_secs_f64();
    let peak_rss_bytes = peak_rss_bytes();
    let utterances = manifest.splits.values().map(|split| split.utterances()).sum::<u64>();
    assert_eq!(utterances, args.utterances, "every utterance that was written is in a shard");
    let tokens = match &args.base {
        Some(base) => Some(tokenised(base, &manifest, &artifacts).await?),
        None => None,
    };
    Ok(Figures {
        utterances,
        bytes,
        seconds,
        utterances_per_s: utterances as f64 / seconds,
        bytes_per_s: bytes as f64 / seconds,
        shards: manifest.splits.values().map(|split| split.shards.len()).sum(),
        peak_rss_bytes,
        tokens,
    })
}

/// Writes nine tenths of the utterances as train, the rest as dev and test; returns the bytes of all files.
fn write_corpus(folder: &Path, utterances: u64) -> std::io::Result<u64> {
    std::fs::create_dir(folder)?;
    let small = (utterances / 20).max(1);
    let sizes = [utterances - 2 * small, small, small];
    let mut bytes = 0;
    for (split, size) in Split::ALL.into_iter().zip(sizes) {
        let mut file = BufWriter::new(File::create(folder.join(format!("{split}.csv")))?);
        let mut source = Synthetic::new(SEED + split as u64);
        let (mut csv, mut left) = (String::from(HEADER), size);
        while left > 0 {
            left -= source.dialogue(left, &mut csv);
            file.write_all(csv.as_bytes())?;
            bytes += csv.len() as u64;
            csv.clear();
        }
        file.flush()?;
    }
    Ok(bytes)
}

/// Tokenises the prompts of the first shards.
async fn tokenised(base: &str, manifest: &CorpusManifest, artifacts: &Artifacts) -> Result<TokenFigures, Failure> {
    let (tokenizer, config) = open_tokenizer(base)?;
    let mut dialogues: Vec<Dialogue> = Vec::new();
    for shard in &manifest.splits[&Split::Train].shards {
        if dialogues.iter().map(|d| d.utterances.len()).sum::<usize>() >= PROMPTS {
            break;
        }
        let bytes: Bytes = artifacts.get(&shard.digest).await.map_err(|e| Failure::operation("read a shard", e))?;
        dialogues.extend(shard::decode(&bytes).map_err(|e| Failure::operation("decode a shard", e))?);
    }
    let job = JobSpec::default();
    let (window, new_tokens) = (job.data.window as usize, job.evaluate.max_new_tokens as usize);
    let task = Prompter::main(&tokenizer, &manifest.labels, window, config.context, new_tokens);
    let began = Instant::now();
    let examples = task.and_then(|task| task.all_examples(&dialogues)).map_err(|e| Failure::Input(e.to_string()))?;
    let seconds = began.elapsed().as_secs_f64();
    let prompts = examples.iter().map(Vec::len).sum::<usize>() as f64;
    let tokens = examples.iter().flatten().map(|example| example.prompt_ids.len()).sum::<usize>() as f64;
    Ok(TokenFigures { prompts_per_s: prompts / seconds, tokens_per_s: tokens / seconds })
}

fn text(figures: &Figures) -> String {
    let Figures { utterances, bytes, seconds, shards, .. } = figures;
    let mut text = format!(
        "{utterances} utterances, {:.1} MB of CSV, into {shards} shards on disk in {seconds:.2} s\n\
         {:.0} utterances/s, {:.1} MB/s, peak resident memory {:.0} MB",
        *bytes as f64 / 1e6,
        figures.utterances_per_s,
        figures.bytes_per_s / 1e6,
        figures.peak_rss_bytes as f64 / 1e6,
    );
    if let Some(tokens) = &figures.tokens {
        text += &format!("\n{:.0} prompts/s, {:.0} tokens/s tokenised", tokens.prompts_per_s, tokens.tokens_per_s);
    }
    text
}
