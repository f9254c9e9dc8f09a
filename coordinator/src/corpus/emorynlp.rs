//! EmoryNLP: scenes of Friends with seven emotions of the Feeling Wheel. A speaker is a Python list literal, kept as the
//! name, so that people who speak together are one speaker.

use insula_proto::corpus::Dialogue;

use super::{CorpusError, Reading, turns::Columns};

/// The papers' order in prompts.
pub(super) const LABELS: [&str; 7] = ["Joyful", "Mad", "Peaceful", "Neutral", "Sad", "Powerful", "Scared"];

/// The dialogues of one file; a dialogue's id is `SPLIT/s{Season}_e{Episode}_c{Scene_ID}`.
pub(super) fn read(reading: &Reading<'_>) -> Result<Vec<Dialogue>, CorpusError> {
    let columns = Columns::of(reading)?;
    let table = reading.table;
    let (season, episode, scene) = (table.column("Season")?, table.column("Episode")?, table.column("Scene_ID")?);
    let turns = table.rows().iter().map(|row| {
        let season = table.number(row, "Season", season)?;
        let episode = table.number(row, "Episode", episode)?;
        let scene = table.number(row, "Scene_ID", scene)?;
        reading.turn(row, format!("{}/s{season}_e{episode}_c{scene}", reading.split), &columns)
    });
    reading.dialogues(turns.collect::<Result<_, _>>()?)
}
