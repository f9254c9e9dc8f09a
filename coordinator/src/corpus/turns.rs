//! The second pass over a file: rows to turns, turns to dialogues; a dialogue is done when the next one begins.
//!
//! Dialogues come in order of first appearance, their utterances in order of their numbers, their speakers numbered by
//! first word. Where a file comes back to dialogues that had ended, all of its turns are gathered first.

use std::{collections::BTreeMap, io::Read, iter::from_fn};

use insula_proto::corpus::{Dialogue, Label, Split, Utterance};

use super::{
    CorpusError, Dialogues, Layout,
    gather::{Speakers, number_speakers},
    records::{Record, Records},
    settle::{Settled, Written},
    survey::{Key, Survey},
};

/// What the rows of one file are read by.
#[derive(Debug, Clone)]
pub(super) struct Reading<'a> {
    pub(super) file: &'a str,
    pub(super) split: Split,
    pub(super) layout: Layout,
    pub(super) settled: &'a Settled,
    pub(super) survey: &'a Survey,
}

/// One row's worth, before it is known where in its dialogue it stands.
struct Turn {
    line: u64,
    dialogue: Key,
    number: u64,
    utterance: Utterance,
}

/// Where the columns stand.
struct Columns {
    utterance: usize,
    speaker: usize,
    emotion: usize,
    utterance_id: usize,
    /// The dialogue's key, each with its name.
    key: Vec<(&'static str, usize)>,
}

impl<'a> Reading<'a> {
    /// The file's dialogues, one at a time.
    ///
    /// # Errors
    /// When a column is missing or there is no row at all; each dialogue may be an error of its own.
    pub(super) fn dialogues<R: Read + 'a>(self, records: Records<R>) -> Result<Dialogues<'a>, CorpusError> {
        let columns = self.columns()?;
        let mut turns = self.clone().turns(records, columns)?.peekable();
        if turns.peek().is_none() {
            return Err(CorpusError::EmptySplit { file: self.file.into(), split: self.split });
        }
        if self.survey.scattered.is_some() {
            let gathered = gather(turns)?;
            return Ok(Box::new(gathered.into_iter().map(move |turns| self.dialogue(turns))));
        }
        Ok(Box::new(from_fn(move || {
            let mut whole = match turns.next()? {
                Ok(first) => vec![first],
                Err(error) => return Some(Err(error)),
            };
            while let Some(turn) = turns.next_if(|turn| turn.as_ref().is_ok_and(|t| t.dialogue == whole[0].dialogue)) {
                whole.extend(turn);
            }
            Some(self.dialogue(whole))
        })))
    }

    fn columns(&self) -> Result<Columns, CorpusError> {
        let header = &self.survey.header;
        let place = |column: &'static str| {
            header.iter().position(|c| c == column).ok_or_else(|| {
                let found = if header.is_empty() { "an empty file".into() } else { header.join(",") };
                CorpusError::MissingColumn { file: self.file.into(), column, found }
            })
        };
        Ok(Columns {
            utterance: place("Utterance")?,
            speaker: place("Speaker")?,
            emotion: place("Emotion")?,
            utterance_id: place("Utterance_ID")?,
            key: self.layout.key().iter().map(|&name| place(name).map(|at| (name, at))).collect::<Result<_, _>>()?,
        })
    }

    /// All rows' turns; the last item is an error where the file is not the one that was surveyed.
    fn turns<R: Read + 'a>(
        self,
        mut records: Records<R>,
        columns: Columns,
    ) -> Result<impl Iterator<Item = Result<Turn, CorpusError>> + 'a, CorpusError> {
        records.advance()?; // the header
        let changed = |file: &str| CorpusError::Changed { file: file.into() };
        let mut ended = false;
        Ok(from_fn(move || match records.advance() {
            _ if ended => None,
            Ok(true) if records.record().len() == self.survey.header.len() => {
                Some(self.turn(records.record(), &columns))
            }
            Ok(true) => Some(Err(changed(self.file))),
            Ok(false) => {
                ended = true;
                (records.bytes() != self.survey.bytes).then(|| Err(changed(self.file)))
            }
            Err(error) => Some(Err(error)),
        }))
    }

    fn turn(&self, row: &Record, columns: &Columns) -> Result<Turn, CorpusError> {
        let mut dialogue = Key::default();
        for (part, (name, place)) in dialogue.iter_mut().zip(&columns.key) {
            *part = self.number(row, name, *place)?;
        }
        let number = self.number(row, "Utterance_ID", columns.utterance_id)?;
        let utterance = Utterance {
            id: row.field(columns.utterance_id).trim().to_owned(),
            speaker: 0, // numbered once the dialogue is in order
            speaker_name: self.text(row, "Speaker", columns.speaker)?.to_owned(),
            text: self.text(row, "Utterance", columns.utterance)?.to_owned(),
            gold: self.label(row, columns.emotion)?,
        };
        Ok(Turn { line: row.line, dialogue, number, utterance })
    }

    /// A field that must be a whole number.
    fn number(&self, row: &Record, column: &'static str, place: usize) -> Result<u64, CorpusError> {
        let value = row.field(place);
        let not_a_number =
            |_| CorpusError::NotANumber { file: self.file.into(), row: row.line, column, value: value.into() };
        value.trim().parse().map_err(not_a_number)
    }

    /// A field that must not be blank, as it stands.
    fn text<'r>(&self, row: &'r Record, column: &'static str, place: usize) -> Result<&'r str, CorpusError> {
        let text = row.field(place);
        if text.trim().is_empty() {
            return Err(CorpusError::EmptyText { file: self.file.into(), row: row.line, column });
        }
        Ok(text)
    }

    fn label(&self, row: &Record, place: usize) -> Result<Label, CorpusError> {
        let written = row.field(place);
        match self.settled.read(written) {
            Written::Target(label) => Ok(label),
            Written::Ignored | Written::Unknown => Err(CorpusError::UnknownLabel {
                file: self.file.into(),
                row: row.line,
                label: written.to_owned(),
                expected: self.settled.writable(),
            }),
        }
    }

    /// The dialogue of all its turns, of which there is at least one.
    fn dialogue(&self, mut turns: Vec<Turn>) -> Result<Dialogue, CorpusError> {
        let id = self.layout.dialogue_id(self.split, turns[0].dialogue);
        turns.sort_by_key(|turn| turn.number);
        if let Some(pair) = turns.windows(2).find(|pair| pair[0].number == pair[1].number) {
            let (row, utterance, first) = (pair[1].line, pair[1].number, pair[0].line);
            return Err(CorpusError::SameUtterance { file: self.file.into(), row, dialogue: id, utterance, first });
        }
        let mut utterances: Vec<Utterance> = turns.into_iter().map(|turn| turn.utterance).collect();
        number_speakers(&mut utterances, Speakers::ByAppearance);
        Ok(Dialogue { id, utterances })
    }
}

/// All turns by dialogue, in order of first appearance.
fn gather(turns: impl Iterator<Item = Result<Turn, CorpusError>>) -> Result<Vec<Vec<Turn>>, CorpusError> {
    let mut places = BTreeMap::new();
    let mut groups: Vec<Vec<Turn>> = Vec::new();
    for turn in turns {
        let turn = turn?;
        let place = *places.entry(turn.dialogue).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.push(turn),
            None => groups.push(vec![turn]),
        }
    }
    Ok(groups)
}
