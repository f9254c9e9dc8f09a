//! One's own corpus: a dialogue a line, as JSON.
//!
//! ```json
//! {"id": "monday-1", "utterances": [{"speaker": "Ann", "text": "Hooray!", "label": "joy"}]}
//! ```
//! A dialogue without `id` is named by its line, an utterance without one by its place; other keys are passed over.
//! Read line by line, in the memory of the longest one.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    io::{BufRead, BufReader, Read},
    iter::from_fn,
};

use insula_proto::corpus::{Dialogue, Split, Utterance};
use serde::Deserialize;

use super::{
    CorpusError, Dialogues,
    gather::{Speakers, number_speakers},
    settle::{Settled, Written},
};

/// Longest line. No dialogue is a tenth of it.
const LINE_BYTES_MAX: usize = 16 << 20;

#[derive(Deserialize)]
struct Line {
    id: Option<Id>,
    utterances: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    id: Option<Id>,
    speaker: String,
    text: String,
    label: String,
}

/// A name or a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(u64),
}

impl Id {
    fn text(self) -> String {
        match self {
            Id::Text(text) => text,
            Id::Number(number) => number.to_string(),
        }
    }
}

/// What the lines of one file are read by.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a> {
    pub(super) file: &'a str,
    pub(super) split: Split,
    pub(super) settled: &'a Settled,
}

impl<'a> Lines<'a> {
    /// The file's dialogues, one at a time.
    pub(super) fn dialogues<R: Read + 'a>(self, source: R) -> Dialogues<'a> {
        let mut source = BufReader::new(source);
        let (mut line, mut given, mut failed) = (0, 0u64, false);
        // Ids that were seen, as hashes: a file may hold more ids than memory should.
        let mut seen = HashSet::new();
        Box::new(from_fn(move || {
            while !failed {
                line += 1;
                let dialogue = match self.line(&mut source, line) {
                    Ok(Some(text)) if text.trim().is_empty() => continue,
                    Ok(Some(text)) => self.dialogue(line, &text, &mut seen),
                    Ok(None) if given == 0 => {
                        Err(CorpusError::NoUtterances { file: self.file.into(), split: self.split })
                    }
                    Ok(None) => return None,
                    Err(error) => Err(error),
                };
                given += 1;
                failed = dialogue.is_err();
                return Some(dialogue);
            }
            None
        }))
    }

    /// The next line; `None`: there is none.
    fn line(&self, source: &mut impl BufRead, row: u64) -> Result<Option<String>, CorpusError> {
        let mut bytes = Vec::new();
        let read = source.take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut bytes);
        match read.map_err(|source| CorpusError::Unreadable { path: self.file.into(), source })? {
            0 => return Ok(None),
            length if length > LINE_BYTES_MAX => {
                return Err(self.wrong(row, format!("is longer than {LINE_BYTES_MAX} bytes: expected a dialogue")));
            }
            _ => {}
        }
        let text = String::from_utf8(bytes);
        text.map(Some).map_err(|error| {
            self.wrong(row, format!("byte {} of it is not valid UTF-8", error.utf8_error().valid_up_to()))
        })
    }

    fn dialogue(&self, row: u64, text: &str, seen: &mut HashSet<u64>) -> Result<Dialogue, CorpusError> {
        // A byte order mark is no part of the first line.
        let line: Line = serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|error| {
            // The library counts lines within the line.
            let said = error.to_string();
            let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said);
            self.wrong(
                row,
                format!(
                    "column {}: {said}; expected {{\"utterances\": [{{\"speaker\", \"text\", \"label\"}}]}}",
                    error.column()
                ),
            )
        })?;
        let id = line.id.map_or_else(|| row.to_string(), Id::text);
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        if id.trim().is_empty() || !seen.insert(hasher.finish()) {
            return Err(self.wrong(row, format!("its id '{id}' is empty or was there before: expected one of its own")));
        }
        let mut utterances: Vec<Utterance> = Vec::new();
        let mut ids = HashSet::new();
        for (place, turn) in line.utterances.into_iter().enumerate() {
            let utterance = self.utterance(row, place, turn)?;
            if !ids.insert(utterance.id.clone()) {
                return Err(self.wrong(row, format!("has two utterances '{}'", utterance.id)));
            }
            utterances.push(utterance);
        }
        if utterances.is_empty() {
            return Err(self.wrong(row, format!("dialogue '{id}' has no utterances: expected at least one")));
        }
        number_speakers(&mut utterances, Speakers::ByAppearance);
        Ok(Dialogue { id: format!("{}/{id}", self.split), utterances })
    }

    fn utterance(&self, row: u64, place: usize, turn: Turn) -> Result<Utterance, CorpusError> {
        let Turn { id, speaker, text, label } = turn;
        for (column, value) in [("speaker", &speaker), ("text", &text)] {
            if value.trim().is_empty() {
                return Err(self.wrong(row, format!("utterance {place}: {column} is empty: expected text")));
            }
        }
        let Written::Target(gold) = self.settled.read(&label) else {
            let expected = self.settled.writable();
            return Err(CorpusError::UnknownLabel { file: self.file.into(), row, label, expected });
        };
        let id = id.map_or_else(|| place.to_string(), Id::text);
        Ok(Utterance { id, speaker: 0, speaker_name: speaker, text, gold })
    }

    fn wrong(&self, row: u64, problem: String) -> CorpusError {
        CorpusError::Malformed { file: self.file.into(), place: format!("row {row}"), problem }
    }
}
