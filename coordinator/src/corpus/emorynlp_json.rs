//! EmoryNLP as its makers publish it: JSON of episodes, scenes and utterances. Labels, dialogue ids and speakers are the
//! CSV's: a dialogue is season, episode and scene, and a speaker is the list of names as Python writes it.
//!
//! The makers' files hold utterances that the CSV that papers use does not (those without words, and those that could
//! not be found in the films); what is without words is left out here and counted.

use std::collections::BTreeMap;

use insula_proto::{corpus::Split, job::CorpusSpec};
use serde::Deserialize;

use super::{
    CorpusError, Layout, Surveyed, WholeFile,
    gather::{Gathered, Gathering, RawTurn, Speakers},
    settle::{Settled, settle},
};

#[derive(Deserialize)]
struct Season {
    episodes: Vec<Episode>,
}

#[derive(Deserialize)]
struct Episode {
    scenes: Vec<Scene>,
}

#[derive(Deserialize)]
struct Scene {
    utterances: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    /// `s01_e02_c01_u003`.
    utterance_id: String,
    speakers: Vec<String>,
    transcript: String,
    #[serde(deserialize_with = "Option::deserialize")] // missing is an error, null is unlabelled
    emotion: Option<String>,
}

/// A corpus of one JSON file for each split.
///
/// # Errors
/// See [`CorpusError`]; with file and utterance.
pub fn emorynlp_json(
    name: &str,
    spec: &CorpusSpec,
    files: BTreeMap<Split, WholeFile>,
) -> Result<Surveyed, CorpusError> {
    let settled = settle(Layout::EmoryNlpJson, spec, None)?;
    let read = |(split, file): (&Split, &WholeFile)| Ok((*split, split_of(&settled, *split, file)?));
    let splits = files.iter().map(read).collect::<Result<_, CorpusError>>()?;
    Ok(Surveyed::of_whole(name, Layout::EmoryNlpJson, settled, splits))
}

fn split_of(settled: &Settled, split: Split, file: &WholeFile) -> Result<Gathered, CorpusError> {
    let season: Season = serde_json::from_slice(&file.bytes).map_err(|error| CorpusError::Malformed {
        file: file.path.clone(),
        place: format!("line {}", error.line()),
        problem: format!("{error}: expected episodes of scenes of utterances"),
    })?;
    let mut gathering = Gathering::new(settled, split, Speakers::ByAppearance);
    for scene in season.episodes.into_iter().flat_map(|episode| episode.scenes) {
        let Some(first) = scene.utterances.first() else { continue };
        let (dialogue, _) = numbers(&file.path, &first.utterance_id)?;
        let mut turns = Vec::new();
        for turn in scene.utterances {
            let (scene, number) = numbers(&file.path, &turn.utterance_id)?;
            if scene != dialogue {
                let problem = format!("stands in scene {}: expected its own", named(dialogue));
                return Err(wrong(&file.path, &turn.utterance_id, problem));
            }
            let Turn { speakers, transcript, emotion, .. } = turn;
            let speaker = python_list(&speakers);
            turns.push((number, RawTurn { id: number.to_string(), speaker, text: transcript, label: emotion }));
        }
        turns.sort_by_key(|(number, _)| *number);
        gathering.take(&file.path, &named(dialogue), turns.into_iter().map(|(_, turn)| turn).collect())?;
    }
    gathering.finish(&file.path)
}

/// Season, episode and scene of `s01_e02_c03_u004`, and the utterance's number.
fn numbers(file: &str, id: &str) -> Result<([u64; 3], u64), CorpusError> {
    let mut parts = id.split('_');
    let mut next = |letter| parts.next()?.strip_prefix(letter)?.parse::<u64>().ok();
    let read = (next('s'), next('e'), next('c'), next('u'));
    match (read, parts.next()) {
        ((Some(season), Some(episode), Some(scene), Some(number)), None) => Ok(([season, episode, scene], number)),
        _ => Err(wrong(file, id, "is not an utterance_id: expected one such as s01_e02_c03_u004".into())),
    }
}

fn wrong(file: &str, id: &str, problem: String) -> CorpusError {
    CorpusError::Malformed { file: file.into(), place: format!("utterance {id}"), problem }
}

/// The CSV's name of a scene.
fn named([season, episode, scene]: [u64; 3]) -> String {
    format!("s{season}_e{episode}_c{scene}")
}

/// Names as Python prints a list of them, which is what the CSV holds.
fn python_list(names: &[String]) -> String {
    let quoted = |name: &String| match name.contains('\'') {
        true if !name.contains('"') => format!("\"{name}\""),
        _ => format!("'{}'", name.replace('\\', "\\\\").replace('\'', "\\'")),
    };
    format!("[{}]", names.iter().map(quoted).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_names_is_written_as_python_writes_it() {
        let list = |names: &[&str]| python_list(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!(list(&["Monica Geller", "Ross Geller"]), "['Monica Geller', 'Ross Geller']");
        assert_eq!(list(&["Miss O'Brien"]), "[\"Miss O'Brien\"]");
        assert_eq!(list(&[]), "[]");
    }
}
