//! An embedding lease: a shard's utterances in, their sentence embeddings out, once for the whole fleet.

use std::time::{Duration, Instant};

use insula_proto::{
    corpus::Shard,
    ids::Digest,
    v1::{Artifact, EmbedTask, Embedded, Lease, report_request::Report},
};

use super::{
    failure::Unfinished,
    link::{Claim, Link},
    loaded::spec_of,
    shards::{self, corpus_of},
    work::WorkerConfig,
};
use crate::{embeddings, encoder::Encoder};

/// Pause before asking again for what another worker is making: a shard takes it a second or two.
const PAUSE: Duration = Duration::from_millis(200);

/// The sentence encoder a worker holds in memory, and where it was asked for.
pub struct LoadedEncoder {
    source: String,
    encoder: Encoder,
}

/// Embeds the lease's shard, or takes what the fleet has. `at_hand` is the encoder of the last lease.
#[expect(clippy::disallowed_methods, reason = "the shell measures how long embedding takes")]
pub fn embed(
    at_hand: &mut Option<LoadedEncoder>,
    config: &WorkerConfig,
    lease: &Lease,
    task: &EmbedTask,
    link: &Link,
) -> Result<(), Unfinished> {
    let began = Instant::now();
    let (spec, corpus) = (spec_of(lease)?, corpus_of(lease)?);
    let encoder = loaded(at_hand, config, &spec.retrieval.encoder, spec.retrieval.encoder_digest.as_ref())?;
    if !task.encoder_digest.is_empty() && task.encoder_digest != encoder.digest() {
        let (source, found, expected) = (&spec.retrieval.encoder, encoder.digest(), &task.encoder_digest);
        return Err(Unfinished::bad_data(format!(
            "encoder {source} is {found} on this worker, but the job was begun with {expected}"
        )));
    }
    let shard: Shard = task.shard.clone().unwrap_or_default().try_into().map_err(Unfinished::bug)?;
    let digest: Digest = encoder.digest().parse().map_err(Unfinished::bug)?;
    let dialogues = shards::fetch(&corpus, std::slice::from_ref(&shard), link)?.remove(0).dialogues;
    let texts: Vec<&str> = dialogues.iter().flat_map(|d| &d.utterances).map(|u| u.text.as_str()).collect();
    let (stored, cached) = cached_or_made(encoder, &digest, &shard, &texts, link)?;
    let how = if cached { "were embedded before" } else { "are embedded" };
    link.log(&format!("{}: {} utterances {how}", lease.what, texts.len()));
    link.report(
        &digest,
        Report::Embedded(Embedded {
            encoder_digest: digest.to_string(),
            rows: texts.len() as u64,
            width: u32::try_from(encoder.width()).map_err(Unfinished::bug)?,
            embeddings: Some(stored),
            cached,
            seconds: began.elapsed().as_secs_f64(),
        }),
    )
}

/// The encoder at hand where it is the one asked for, or else read anew.
fn loaded<'a>(
    at_hand: &'a mut Option<LoadedEncoder>,
    config: &WorkerConfig,
    source: &str,
    digest: Option<&Digest>,
) -> Result<&'a Encoder, Unfinished> {
    let fits = |known: &LoadedEncoder| {
        known.source == source && digest.is_none_or(|digest| digest.as_str() == known.encoder.digest())
    };
    if !at_hand.as_ref().is_some_and(fits) {
        let cache = config.cache.as_ref().ok_or_else(|| {
            Unfinished::bad_data("no folder to keep encoders in: set INSULA_CACHE, XDG_CACHE_HOME or HOME")
        })?;
        let encoder = Encoder::open(source, digest.map(Digest::as_str), cache).map_err(Unfinished::bad_data)?;
        let encoder = encoder.with_threads(config.threads).map_err(Unfinished::bug)?;
        *at_hand = Some(LoadedEncoder { source: source.to_owned(), encoder });
    }
    Ok(&at_hand.as_ref().expect("it was just put there").encoder)
}

/// A shard's embeddings in the store, and whether they were there before.
fn cached_or_made(
    encoder: &Encoder,
    digest: &Digest,
    shard: &Shard,
    texts: &[&str],
    link: &Link,
) -> Result<(Artifact, bool), Unfinished> {
    let key = embeddings::key(&shard.digest, digest);
    let mut spoilt = String::new();
    loop {
        link.go_on()?;
        match link.claim_tokens(&key, &spoilt)? {
            Claim::Busy => link.pause(PAUSE),
            Claim::Granted => {
                let values = encoder.embed(texts).map_err(Unfinished::bad_data)?;
                let stored = link.put("embeddings", embeddings::encode(digest, encoder.width(), &values))?;
                link.fulfil_tokens(&key, &stored.digest)?;
                return Ok((stored, false));
            }
            Claim::Cached(artifact) => {
                let bytes = link.get(&artifact);
                let whole = bytes.and_then(|bytes| {
                    let decoded = embeddings::decode(&bytes, digest, encoder.width(), texts.len());
                    decoded.map(|_| bytes.len() as u64).map_err(Unfinished::bug)
                });
                match whole {
                    Ok(bytes) => return Ok((Artifact { name: "embeddings".into(), digest: artifact, bytes }, true)),
                    Err(Unfinished::Failed { message, .. }) => {
                        link.log(&format!("embeddings of shard {} are made again: {message}", shard.digest));
                        spoilt = artifact;
                    }
                    Err(leaving) => return Err(leaving),
                }
            }
        }
    }
}
