//! A lease's corpus: its manifest, its dialogues, and how they are asked about.

use insula_proto::{
    corpus::{CorpusManifest, Dialogue, Shard, Split},
    job::{JobSpec, Objective},
    shard,
    v1::{EvaluateTask, Lease},
};

use super::{failure::Unfinished, link::Link, loaded::Loaded};
use crate::prompt::{Form, Prompter};

/// One shard and what is in it.
pub struct ShardDialogues {
    /// Its digest, as text.
    pub digest: String,
    /// Which part of the corpus it is of.
    pub part: u32,
    /// The number of its part's first speaker: in a mix, speakers of one corpus are not those of another.
    pub first_speaker: u32,
    /// Its dialogues.
    pub dialogues: Vec<Dialogue>,
}

/// The lease's corpus, parsed.
pub fn corpus_of(lease: &Lease) -> Result<CorpusManifest, Unfinished> {
    lease.corpus.clone().unwrap_or_default().try_into().map_err(Unfinished::bug)
}

/// The one shard that an evaluation is of.
pub fn of_evaluation(task: &EvaluateTask) -> Result<Shard, Unfinished> {
    match task.shards.as_slice() {
        [one] => one.clone().try_into().map_err(Unfinished::bug),
        shards => Err(Unfinished::bug(format!("the lease has {} shards, expected one", shards.len()))),
    }
}

/// All dialogues of a split, by shard, in order.
pub fn of_split(corpus: &CorpusManifest, split: Split, link: &Link) -> Result<Vec<ShardDialogues>, Unfinished> {
    let shards = corpus.splits.get(&split).map_or(&[][..], |split| &split.shards);
    fetch(corpus, shards, link)
}

/// Some shards of a corpus with their dialogues, in order.
pub fn fetch(corpus: &CorpusManifest, shards: &[Shard], link: &Link) -> Result<Vec<ShardDialogues>, Unfinished> {
    let first_speakers = JobSpec::first_speakers(&corpus.parts);
    let fetch = |of: &Shard| {
        link.go_on()?;
        let digest = of.digest.to_string();
        let bytes = link.get(&digest)?;
        let mut dialogues = shard::decode(&bytes).map_err(|e| Unfinished::bad_data(format!("shard {digest}: {e}")))?;
        let first_speaker = first_speakers.get(of.part as usize).copied().unwrap_or(0);
        dialogues.iter_mut().flat_map(|d| &mut d.utterances).for_each(|u| u.speaker += first_speaker);
        Ok(ShardDialogues { digest, part: of.part, first_speaker, dialogues })
    };
    shards.iter().map(fetch).collect()
}

/// What makes the prompts of an objective for a part of the corpus.
pub fn prompter<'a>(
    loaded: &'a Loaded,
    spec: &JobSpec,
    corpus: &CorpusManifest,
    objective: Objective,
    part: u32,
) -> Result<Prompter<'a>, Unfinished> {
    let first = JobSpec::first_speakers(&corpus.parts).get(part as usize).copied().unwrap_or(0);
    let speakers = corpus.parts.get(part as usize).map_or(0, |part| part.speakers);
    let form = Form::of(objective, spec.data.template, &corpus.labels, first..first + speakers);
    let (window, new_tokens) = (spec.data.window as usize, spec.evaluate.max_new_tokens as usize);
    Prompter::new(&loaded.tokenizer, form, window, loaded.config.context, new_tokens).map_err(Unfinished::bad_data)
}
