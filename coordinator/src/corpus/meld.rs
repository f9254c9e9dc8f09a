//! MELD: scenes of Friends with seven emotions. Its `Utterance_ID`s have gaps and train's dialogue 60 is missing.

use insula_proto::corpus::Dialogue;

use super::{CorpusError, Reading, turns::Columns};

/// The papers' order in prompts.
pub(super) const LABELS: [&str; 7] = ["neutral", "surprise", "fear", "sad", "joyful", "disgust", "angry"];

/// The file's nouns become the papers' adjectives.
pub(super) const RENAME: [(&str, &str); 3] = [("joy", "joyful"), ("sadness", "sad"), ("anger", "angry")];

/// The dialogues of one file; a dialogue's id is `SPLIT/Dialogue_ID`.
pub(super) fn read(reading: &Reading<'_>) -> Result<Vec<Dialogue>, CorpusError> {
    let columns = Columns::of(reading)?;
    let dialogue_id = reading.table.column("Dialogue_ID")?;
    let turns = reading.table.rows().iter().map(|row| {
        let dialogue = reading.table.number(row, "Dialogue_ID", dialogue_id)?;
        reading.turn(row, format!("{}/{dialogue}", reading.split), &columns)
    });
    reading.dialogues(turns.collect::<Result<_, _>>()?)
}
