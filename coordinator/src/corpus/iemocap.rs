//! IEMOCAP as its owners hand it out: transcriptions, and evaluations that name each utterance's emotion.
//!
//! The test split is Session5, as everywhere. The papers' dev split is a random tenth of the other sessions' dialogues
//! that nobody published; here it is every tenth dialogue of Sessions 1 to 4 in the order of their names, which takes
//! from each session. So 120 dialogues become 108 and 12, as in the papers, but not the same ones.
//!
//! Utterances without one of the six labels are left out, as in the pickles the papers use. By the owners' evaluations
//! 7380 utterances have one (595 happy); the pickles have 7433 (648 happy; nobody says where the 53 come from), and the
//! papers' 5163, 647 and 1623 utterances are the pickle's: read it with the layout `cosmic` to compare with them.

use std::collections::BTreeMap;

use insula_proto::{corpus::Split, job::CorpusSpec};

use super::{
    CorpusError, Layout, Surveyed, WholeFile,
    gather::{Gathering, RawTurn, Speakers},
    settle::settle,
    text::decoded,
};

/// The papers' order in prompts.
pub(super) const LABELS: [&str; 6] = ["happy", "sad", "neutral", "angry", "excited", "frustrated"];

/// The evaluations' abbreviations.
pub(super) const RENAME: [(&str, &str); 6] =
    [("hap", "happy"), ("sad", "sad"), ("neu", "neutral"), ("ang", "angry"), ("exc", "excited"), ("fru", "frustrated")];

/// The annotators did not agree.
pub(super) const NO_AGREEMENT: &str = "xxx";

/// What is annotated but not learnt: nothing agreed on, surprise, fear, disgust, other.
pub(super) const IGNORED: [&str; 5] = [NO_AGREEMENT, "sur", "fea", "dis", "oth"];

/// The sessions, by the names of their folders.
pub const SESSIONS: [&str; 5] = ["Session1", "Session2", "Session3", "Session4", "Session5"];

/// The session of the test split.
const TEST_SESSION: &str = SESSIONS[4];

/// Every so many dialogues of the other sessions one is dev's.
const DEV_EVERY: usize = 10;

/// One dialogue's two files.
#[derive(Debug)]
pub struct IemocapDialogue {
    /// `Ses01F_impro01`.
    pub name: String,
    /// Its words.
    pub transcription: WholeFile,
    /// Its labels.
    pub evaluation: WholeFile,
}

/// The split of every dialogue, given as session and name, in the order of the names.
pub fn iemocap_splits(dialogues: impl IntoIterator<Item = (&'static str, String)>) -> BTreeMap<String, Split> {
    let mut splits = BTreeMap::new();
    for (session, name) in dialogues {
        splits.insert(name, if session == TEST_SESSION { Split::Test } else { Split::Train });
    }
    let learnt = splits.values_mut().filter(|split| **split == Split::Train);
    learnt.skip(DEV_EVERY - 1).step_by(DEV_EVERY).for_each(|split| *split = Split::Dev);
    splits
}

/// A corpus of the dialogues of some splits; `folder` is its name in messages.
///
/// # Errors
/// See [`CorpusError`]; with file and line.
pub fn iemocap(
    name: &str,
    spec: &CorpusSpec,
    folder: &str,
    splits: BTreeMap<Split, Vec<IemocapDialogue>>,
) -> Result<Surveyed, CorpusError> {
    let settled = settle(Layout::Iemocap, spec, None)?;
    let mut gathered = BTreeMap::new();
    for (split, dialogues) in splits {
        let mut gathering = Gathering::new(&settled, split, Speakers::Gender);
        for dialogue in dialogues {
            gathering.take(&dialogue.transcription.path, &dialogue.name, turns(&dialogue)?)?;
        }
        gathered.insert(split, gathering.finish(folder)?);
    }
    Ok(Surveyed::of_whole(name, Layout::Iemocap, settled, gathered))
}

/// The turns of a transcription, in its order.
fn turns(dialogue: &IemocapDialogue) -> Result<Vec<RawTurn>, CorpusError> {
    let mut labels = labels(&dialogue.evaluation)?;
    let file = &dialogue.transcription;
    let mut turns = Vec::new();
    for (line, text) in decoded(&file.bytes).lines().enumerate() {
        // Remarks and what was said by the way have no id.
        if !text.starts_with("Ses") {
            continue;
        }
        let malformed = || {
            let expected = "is no turn: expected such as 'Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.'";
            malformed(file, line, format!("'{}' {expected}", head(text)))
        };
        let (id, rest) = text.split_once(' ').ok_or_else(malformed)?;
        let (_, said) = rest.split_once("]:").ok_or_else(malformed)?;
        let letter = id.rsplit('_').next().and_then(|number| number.chars().next());
        let speaker = letter.filter(|letter| matches!(letter, 'M' | 'F')).ok_or_else(malformed)?;
        let short = id.strip_prefix(&dialogue.name).and_then(|rest| rest.strip_prefix('_')).unwrap_or(id);
        turns.push(RawTurn {
            id: short.into(),
            speaker: speaker.into(),
            text: said.trim().into(),
            label: labels.remove(id),
        });
    }
    // A label without words is told as an utterance without text.
    turns.extend(labels.into_iter().map(|(id, label)| RawTurn {
        id,
        speaker: String::new(),
        text: String::new(),
        label: Some(label),
    }));
    Ok(turns)
}

/// The labels of an evaluation, by utterance: lines such as `[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[...]`.
fn labels(file: &WholeFile) -> Result<BTreeMap<String, String>, CorpusError> {
    let mut labels = BTreeMap::new();
    for (line, text) in decoded(&file.bytes).lines().enumerate().filter(|(_, text)| text.starts_with('[')) {
        let fields: Vec<&str> = text.split('\t').map(str::trim).collect();
        let [_, id, label, _valence, ..] = fields.as_slice() else {
            let problem =
                format!("'{}' has {} fields, expected time, turn, emotion and [V, A, D]", head(text), fields.len());
            return Err(malformed(file, line, problem));
        };
        if labels.insert((*id).to_owned(), (*label).to_owned()).is_some() {
            return Err(malformed(file, line, format!("{id} stands there twice")));
        }
    }
    Ok(labels)
}

fn malformed(file: &WholeFile, line: usize, problem: String) -> CorpusError {
    CorpusError::Malformed { file: file.path.clone(), place: format!("line {}", line + 1), problem }
}

/// As much of a line as a message needs.
fn head(text: &str) -> String {
    text.chars().take(60).collect()
}
