//! Which demonstration stands behind which prompt: the embeddings of a lease's shards, searched.
//!
//! Candidates are the training samples that the job's share keeps: what a job may not learn from it is not shown either.

use std::collections::BTreeMap;

use insula_proto::{
    corpus::{CorpusManifest, Label, Split, Utterance},
    ids::Digest,
    job::{Arm, Candidates, JobSpec},
    v1::{Embedding, EvaluateTask},
};
use rand::Rng as _;

use super::{
    failure::Unfinished,
    link::Link,
    shards::{self, ShardDialogues},
};
use crate::{
    embeddings,
    plan::{self, Sample, Turns},
    retrieve::{self, Balance, Candidate, Itself, Place, Query, Rule, render_demonstration},
    seed::{Purpose, generator},
};

/// What stands behind each prompt of a lease, by the dialogue's place and the turn's.
#[derive(Debug, Default)]
pub struct Demonstrations(BTreeMap<(u32, u32), Shown>);

#[derive(Debug)]
struct Shown {
    text: String,
    first_label: Label,
}

/// Where an utterance stands: the place of its dialogue, and its own in that.
type Turn = (u32, u32);

impl Demonstrations {
    /// Nothing stands behind any prompt.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether nothing stands behind any prompt.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// What stands behind a prompt, with the space before it.
    pub fn of(&self, dialogue: u32, turn: u32) -> &str {
        self.0.get(&(dialogue, turn)).map_or("", |shown| &shown.text)
    }

    /// The label of the first demonstration behind a prompt.
    pub fn first_label(&self, dialogue: u32, turn: u32) -> Option<Label> {
        self.0.get(&(dialogue, turn)).map(|shown| shown.first_label)
    }

    /// Those of the samples of a training, which are never their own.
    pub fn for_training(
        spec: &JobSpec,
        corpus: &CorpusManifest,
        train: &[ShardDialogues],
        embedded: &[Embedding],
        samples: &[Sample],
        link: &Link,
    ) -> Result<Self, Unfinished> {
        if spec.retrieval.k == 0 {
            return Ok(Self::none());
        }
        let rows = rows_of(train, embedded, link)?;
        let base = base_of(spec, train, &rows, samples)?;
        let utterances = by_turn(train);
        let query = |sample: &Sample| {
            let turn = (sample.dialogue, sample.turn);
            let rule = match spec.retrieval.training {
                Candidates::SameLabel => Rule::SameLabel(utterances[&turn].gold),
                Candidates::Any => Rule::Any,
            };
            (turn, Query { embedding: rows.of(turn), rule, itself: Itself { place: Some(place(turn)), text: None } })
        };
        let queries: Vec<_> = samples.iter().map(query).collect();
        Ok(Self::found(spec, corpus, &base, &queries, None))
    }

    /// Those of an evaluated shard; with labels drawn at random where the arm says so.
    pub fn for_evaluation(
        spec: &JobSpec,
        corpus: &CorpusManifest,
        shard: &ShardDialogues,
        task: &EvaluateTask,
        arm: Arm,
        link: &Link,
    ) -> Result<Self, Unfinished> {
        if spec.retrieval.k == 0 || arm == Arm::ZeroShot {
            return Ok(Self::none());
        }
        let train = shards::of_split(corpus, Split::Train, link)?;
        let samples = plan::select(&turns(&train), spec.data.share, spec.data.mix, spec.seed);
        let base = base_of(spec, &train, &rows_of(&train, &task.train_embeddings, link)?, &samples)?;
        let evaluated = std::slice::from_ref(shard);
        let rows = rows_of(evaluated, &task.embeddings, link)?;
        let query =
            |turn: &Turn| (*turn, Query { embedding: rows.of(*turn), rule: Rule::Any, itself: Itself::default() });
        let queries: Vec<_> = by_turn(evaluated).keys().map(query).collect();
        let shuffled = (arm == Arm::ShuffledDemonstrations).then_some(shard.digest.as_str());
        Ok(Self::found(spec, corpus, &base, &queries, shuffled))
    }

    /// Searches; a shard that is `shuffled` has the demonstrations' labels drawn at random.
    fn found(
        spec: &JobSpec,
        corpus: &CorpusManifest,
        base: &retrieve::Demonstrations,
        queries: &[(Turn, Query<'_>)],
        shuffled: Option<&str>,
    ) -> Self {
        let labels = u16::try_from(corpus.labels.len()).expect("a label set has at most 1000 labels");
        let mut chance = shuffled.map(|shard| {
            let shard = Digest::of(shard.as_bytes()).bytes();
            let shard = u64::from_le_bytes(shard[..8].try_into().expect("8 of 32 bytes"));
            generator(spec.seed, Purpose::ShuffledLabels { shard })
        });
        let searched: Vec<Query<'_>> = queries.iter().map(|(_, query)| *query).collect();
        let hits = base.nearest_of_all(&searched, spec.retrieval.k as usize);
        let mut shown = BTreeMap::new();
        for ((turn, _), hits) in queries.iter().zip(hits) {
            let (mut text, mut first_label) = (String::new(), None);
            for hit in hits {
                let found = base.candidate(hit.index);
                let label = chance.as_mut().map_or(found.label, |chance| Label(chance.random_range(0..labels)));
                text += &format!(" {}", render_demonstration(&found.text, corpus.labels.name(label)));
                first_label.get_or_insert(label);
            }
            if let Some(first_label) = first_label {
                shown.insert(*turn, Shown { text, first_label });
            }
        }
        Self(shown)
    }
}

/// The dialogues of some shards, as far as the plan needs them.
pub fn turns(shards: &[ShardDialogues]) -> Vec<Turns> {
    let of_shard = |shard: &ShardDialogues| {
        let part = shard.part;
        shard.dialogues.iter().map(move |d| Turns { turns: d.utterances.len(), part }).collect::<Vec<_>>()
    };
    shards.iter().flat_map(of_shard).collect()
}

fn place((dialogue, turn): Turn) -> Place {
    Place { corpus: 0, dialogue, turn } // the dialogue's place counts through all parts of a mix
}

fn by_turn(shards: &[ShardDialogues]) -> BTreeMap<Turn, &Utterance> {
    let dialogues = (0..).zip(shards.iter().flat_map(|shard| &shard.dialogues));
    dialogues.flat_map(|(dialogue, d)| (0..).zip(&d.utterances).map(move |(turn, u)| ((dialogue, turn), u))).collect()
}

/// Embeddings of every utterance of some shards.
struct Rows {
    width: usize,
    values: Vec<f32>,
    places: BTreeMap<Turn, usize>,
}

impl Rows {
    fn of(&self, turn: Turn) -> &[f32] {
        &self.values[self.places[&turn] * self.width..][..self.width]
    }
}

fn rows_of(shards: &[ShardDialogues], embedded: &[Embedding], link: &Link) -> Result<Rows, Unfinished> {
    if shards.len() != embedded.len() {
        let (shards, embedded) = (shards.len(), embedded.len());
        return Err(Unfinished::bug(format!("the lease has embeddings of {embedded} shards, expected {shards}")));
    }
    let width = embedded.first().map_or(1, |e| e.width as usize);
    let mut values = Vec::new();
    for (shard, embedded) in shards.iter().zip(embedded) {
        link.go_on()?;
        let encoder: Digest = embedded.encoder_digest.parse().map_err(Unfinished::bug)?;
        let rows = shard.dialogues.iter().map(|d| d.utterances.len()).sum();
        let bytes = link.get(&embedded.artifact)?;
        values.extend(embeddings::decode(&bytes, &encoder, width, rows).map_err(Unfinished::bug)?);
    }
    let places = by_turn(shards).into_keys().zip(0..).collect();
    Ok(Rows { width, values, places })
}

/// What demonstrations are chosen from.
fn base_of(
    spec: &JobSpec,
    train: &[ShardDialogues],
    rows: &Rows,
    samples: &[Sample],
) -> Result<retrieve::Demonstrations, Unfinished> {
    let utterances = by_turn(train);
    let turns = || samples.iter().map(|sample| (sample.dialogue, sample.turn));
    let candidate = |turn: Turn| {
        let utterance = utterances[&turn];
        Candidate { place: place(turn), label: utterance.gold, text: utterance.text.clone() }
    };
    let values: Vec<f32> = turns().flat_map(|turn| rows.of(turn)).copied().collect();
    let balance = if spec.retrieval.balanced { Balance::Rarest { seed: spec.seed } } else { Balance::Off };
    let candidates = turns().map(candidate).collect();
    retrieve::Demonstrations::new(candidates, &values, rows.width, balance).map_err(Unfinished::bug)
}
