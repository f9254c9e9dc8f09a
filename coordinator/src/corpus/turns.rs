//! Turns to dialogues: grouped by dialogue in order of first appearance, ordered by number, speakers numbered.

use std::collections::BTreeMap;

use insula_proto::corpus::{Dialogue, Utterance};

use super::{CorpusError, Reading, listed, table::Row};

/// One row's worth, before it is known where in its dialogue it stands.
pub(super) struct Turn {
    pub(super) line: u64,
    pub(super) dialogue: String,
    pub(super) number: u64,
    pub(super) utterance: Utterance,
}

impl Reading<'_> {
    /// One row's turn; the columns every layout shares are read here.
    pub(super) fn turn(&self, row: &Row, dialogue: String, columns: &Columns) -> Result<Turn, CorpusError> {
        let number = self.table.number(row, "Utterance_ID", columns.utterance_id)?;
        let utterance = Utterance {
            id: row.field(columns.utterance_id).trim().to_owned(),
            speaker: 0, // numbered once the dialogue is in order
            speaker_name: self.table.text(row, "Speaker", columns.speaker)?.to_owned(),
            text: self.table.text(row, "Utterance", columns.utterance)?.to_owned(),
            gold: self.label(row, columns.emotion)?,
        };
        Ok(Turn { line: row.line, dialogue, number, utterance })
    }

    fn label(&self, row: &Row, column: usize) -> Result<insula_proto::corpus::Label, CorpusError> {
        let written = row.field(column);
        let name = self.rename.get(written).map_or(written, String::as_str);
        self.labels.find(name).ok_or_else(|| CorpusError::UnknownLabel {
            file: self.table.file().into(),
            row: row.line,
            label: written.to_owned(),
            expected: self.writable_labels(),
        })
    }

    /// What a file may write: the labels, and the names that are renamed to one of them.
    fn writable_labels(&self) -> String {
        let renamed = self.rename.iter().filter(|(_, to)| self.labels.find(to).is_some()).map(|(from, _)| from);
        listed(self.labels.names().iter().chain(renamed).map(String::as_str))
    }

    /// The dialogues of all turns.
    pub(super) fn dialogues(&self, turns: Vec<Turn>) -> Result<Vec<Dialogue>, CorpusError> {
        if turns.is_empty() {
            return Err(CorpusError::EmptySplit { file: self.table.file().into(), split: self.split });
        }
        let mut places = BTreeMap::new();
        let mut groups: Vec<(String, Vec<Turn>)> = Vec::new();
        for turn in turns {
            let place = *places.entry(turn.dialogue.clone()).or_insert(groups.len());
            if place == groups.len() {
                groups.push((turn.dialogue.clone(), Vec::new()));
            }
            groups[place].1.push(turn);
        }
        groups.into_iter().map(|(id, turns)| self.dialogue(id, turns)).collect()
    }

    fn dialogue(&self, id: String, mut turns: Vec<Turn>) -> Result<Dialogue, CorpusError> {
        turns.sort_by_key(|turn| turn.number);
        if let Some(pair) = turns.windows(2).find(|pair| pair[0].number == pair[1].number) {
            return Err(CorpusError::SameUtterance {
                file: self.table.file().into(),
                row: pair[1].line,
                dialogue: id,
                utterance: pair[1].number,
                first: pair[0].line,
            });
        }
        let mut speakers: Vec<String> = Vec::new();
        let mut numbered = |name: &String| {
            let place = speakers.iter().position(|s| s == name).unwrap_or_else(|| {
                speakers.push(name.clone());
                speakers.len() - 1
            });
            u32::try_from(place).expect("a file in memory has fewer than 2^32 speakers")
        };
        let utterances = turns.into_iter().map(|turn| {
            let speaker = numbered(&turn.utterance.speaker_name);
            Utterance { speaker, ..turn.utterance }
        });
        let utterances = utterances.collect();
        Ok(Dialogue { id, utterances })
    }
}

/// Where the columns that every layout shares stand.
pub(super) struct Columns {
    utterance: usize,
    speaker: usize,
    emotion: usize,
    utterance_id: usize,
}

impl Columns {
    pub(super) fn of(reading: &Reading<'_>) -> Result<Self, CorpusError> {
        Ok(Self {
            utterance: reading.table.column("Utterance")?,
            speaker: reading.table.column("Speaker")?,
            emotion: reading.table.column("Emotion")?,
            utterance_id: reading.table.column("Utterance_ID")?,
        })
    }
}
