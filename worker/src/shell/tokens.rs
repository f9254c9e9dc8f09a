//! The token cache from the worker's side: what the fleet has tokenised is fetched, what it has not is claimed, made,
//! and stored for the others.

use std::{panic::resume_unwind, thread, time::Duration};

use insula_proto::ids::Digest;

use super::{
    failure::Unfinished,
    link::{Claim, Link},
    shards::ShardDialogues,
};
use crate::{
    prompt::Prompter,
    tokens::{self, Prompts},
};

/// Pause before asking again for what another worker is making: a shard takes it some tens of milliseconds.
const PAUSE: Duration = Duration::from_millis(50);

/// Shards asked for side by side. A shard is tens of milliseconds of tokenising and several syncs of the coordinator's
/// disk, which side by side are mostly one another's.
const AT_ONCE: usize = 8;

/// Hands the prompts of every shard to `each`, with the shard's place, in whatever order they are to be had: while
/// another worker makes one, the next is looked at.
///
/// # Errors
/// As the link's; a failure where the tokenizer refuses a text.
pub fn for_each_shard(
    task: &Prompter<'_>,
    shards: &[&ShardDialogues],
    link: &Link,
    mut each: impl FnMut(usize, Prompts) -> Result<(), Unfinished>,
) -> Result<(), Unfinished> {
    let mut left: Vec<usize> = (0..shards.len()).collect();
    while !left.is_empty() {
        let mut busy = Vec::new();
        for places in left.chunks(AT_ONCE) {
            link.go_on()?;
            let at_once = places.iter().map(|&place| shards[place]).collect::<Vec<_>>();
            for (&place, prompts) in places.iter().zip(of_shards(task, &at_once, link)) {
                match prompts? {
                    Some(prompts) => each(place, prompts)?,
                    None => busy.push(place),
                }
            }
        }
        if busy.len() == left.len() {
            link.pause(PAUSE);
        }
        left = busy;
    }
    Ok(())
}

/// What [`of_shard`] says of each of a few shards, asked side by side.
fn of_shards(task: &Prompter<'_>, shards: &[&ShardDialogues], link: &Link) -> Vec<Result<Option<Prompts>, Unfinished>> {
    thread::scope(|scope| {
        let asked: Vec<_> = shards.iter().map(|shard| scope.spawn(|| of_shard(task, shard, link))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// The prompts of a shard; `None`: another worker is making them.
fn of_shard(task: &Prompter<'_>, shard: &ShardDialogues, link: &Link) -> Result<Option<Prompts>, Unfinished> {
    let key = tokens::key(task, &shard.digest, shard.first_speaker);
    let artifact = match link.claim_tokens(&key, "")? {
        Claim::Cached(artifact) => artifact,
        Claim::Granted => return made(task, shard, &key, link).map(Some),
        Claim::Busy => return Ok(None),
    };
    let fetched =
        link.get(&artifact).and_then(|bytes| tokens::decode(&bytes, task, &shard.dialogues).map_err(Unfinished::bug));
    match fetched {
        Ok(prompts) => {
            tracing::debug!("tokens of shard {} from the cache", shard.digest);
            Ok(Some(prompts))
        }
        Err(Unfinished::Failed { message, .. }) => {
            link.log(&format!("tokens of shard {} are made again: {message}", shard.digest));
            match link.claim_tokens(&key, &artifact)? {
                Claim::Granted => made(task, shard, &key, link).map(Some),
                Claim::Cached(_) | Claim::Busy => Ok(None),
            }
        }
        Err(leaving) => Err(leaving),
    }
}

/// Makes what was claimed, and stores it before anybody is told.
fn made(task: &Prompter<'_>, shard: &ShardDialogues, key: &Digest, link: &Link) -> Result<Prompts, Unfinished> {
    let prompts = task.prompts(&shard.dialogues).map_err(Unfinished::bad_data)?;
    let artifact = link.put("tokens", tokens::encode(&prompts))?;
    link.fulfil_tokens(key, &artifact.digest)?;
    tracing::debug!("tokens of shard {} made", shard.digest);
    Ok(prompts)
}
