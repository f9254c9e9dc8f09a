//! Turns of a file that is read whole to dialogues: what has no label or no text is left out and counted.

use std::collections::BTreeSet;

use insula_proto::corpus::{Dialogue, Split, Utterance};
use serde::Serialize;

use super::{
    CorpusError,
    settle::{Settled, Written},
};

/// Utterances of a file that became no utterances of the corpus; they are no targets and no context.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Nobody said a label, or the annotators did not agree.
    pub unlabelled: u64,
    /// The layout knows the label, but it is not of the label set.
    pub other_label: u64,
    /// Nothing is said.
    pub empty: u64,
    /// Dialogues of which nothing was left.
    pub dialogues: u64,
}

impl LeftOut {
    /// Utterances left out.
    pub fn utterances(&self) -> u64 {
        self.unlabelled + self.other_label + self.empty
    }
}

/// One turn as a file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawTurn {
    /// Unique within the dialogue.
    pub(super) id: String,
    pub(super) speaker: String,
    pub(super) text: String,
    /// `None`: there is no label.
    pub(super) label: Option<String>,
}

/// How speakers get their numbers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Speakers {
    /// As they first speak, among the utterances that are kept.
    ByAppearance,
    /// IEMOCAP's: M is 0 and F is 1, whoever begins.
    Gender,
}

/// One split being gathered.
#[derive(Debug)]
pub(super) struct Gathering<'a> {
    settled: &'a Settled,
    split: Split,
    speakers: Speakers,
    ids: BTreeSet<String>,
    gathered: Gathered,
}

/// One split, gathered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Gathered {
    pub(super) dialogues: Vec<Dialogue>,
    pub(super) left_out: LeftOut,
}

impl<'a> Gathering<'a> {
    pub(super) fn new(settled: &'a Settled, split: Split, speakers: Speakers) -> Self {
        Self { settled, split, speakers, ids: BTreeSet::new(), gathered: Gathered::default() }
    }

    /// Takes in a dialogue's turns in order.
    ///
    /// # Errors
    /// When the dialogue was there already, two turns have one id, or a label is unknown.
    pub(super) fn take(&mut self, file: &str, dialogue: &str, turns: Vec<RawTurn>) -> Result<(), CorpusError> {
        let malformed =
            |problem| CorpusError::Malformed { file: file.into(), place: format!("dialogue {dialogue}"), problem };
        let id = format!("{}/{dialogue}", self.split);
        if !self.ids.insert(id.clone()) {
            return Err(malformed("stands there twice".into()));
        }
        let (mut seen, mut utterances) = (BTreeSet::new(), Vec::new());
        for turn in turns {
            let Some(utterance) = self.utterance(file, dialogue, turn)? else { continue };
            if !seen.insert(utterance.id.clone()) {
                return Err(malformed(format!("has two utterances {}", utterance.id)));
            }
            utterances.push(utterance);
        }
        if utterances.is_empty() {
            self.gathered.left_out.dialogues += 1;
            return Ok(());
        }
        number_speakers(&mut utterances, self.speakers);
        self.gathered.dialogues.push(Dialogue { id, utterances });
        Ok(())
    }

    /// The utterance of a turn, its speaker yet without a number; `None`: it is left out.
    fn utterance(&mut self, file: &str, dialogue: &str, turn: RawTurn) -> Result<Option<Utterance>, CorpusError> {
        let RawTurn { id, speaker, text, label } = turn;
        let left_out = &mut self.gathered.left_out;
        let Some(label) = label else {
            left_out.unlabelled += 1;
            return Ok(None);
        };
        let gold = match self.settled.read(&label) {
            Written::Target(gold) => gold,
            Written::Ignored => {
                let unlabelled = super::iemocap::NO_AGREEMENT == label;
                *(if unlabelled { &mut left_out.unlabelled } else { &mut left_out.other_label }) += 1;
                return Ok(None);
            }
            Written::Unknown => {
                let (file, place) = (file.into(), format!("dialogue {dialogue}, utterance {id}"));
                return Err(CorpusError::UnknownLabelIn { file, place, label, expected: self.settled.writable() });
            }
        };
        if text.trim().is_empty() {
            left_out.empty += 1;
            return Ok(None);
        }
        Ok(Some(Utterance { id, speaker: 0, speaker_name: speaker, text, gold }))
    }

    /// The split.
    ///
    /// # Errors
    /// When nothing is in it.
    pub(super) fn finish(self, file: &str) -> Result<Gathered, CorpusError> {
        if self.gathered.dialogues.is_empty() {
            return Err(CorpusError::NoUtterances { file: file.into(), split: self.split });
        }
        Ok(self.gathered)
    }
}

/// Gives every speaker of a dialogue a number.
pub(super) fn number_speakers(utterances: &mut [Utterance], speakers: Speakers) {
    let mut names: Vec<String> = match speakers {
        Speakers::ByAppearance => vec![],
        Speakers::Gender => ["M", "F"].map(String::from).to_vec(),
    };
    for utterance in utterances {
        let place = names.iter().position(|name| *name == utterance.speaker_name).unwrap_or_else(|| {
            names.push(utterance.speaker_name.clone());
            names.len() - 1
        });
        utterance.speaker = u32::try_from(place).expect("a dialogue in memory has fewer than 2^32 speakers");
    }
}
