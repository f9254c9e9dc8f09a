//! The pickles that papers on conversations pass around, as COSMIC's authors made them.
//!
//! ```text
//! iemocap, emorynlp, dailydialog: [speakers, labels, sentences, train, test, valid]
//! meld:                 [speakers, emotions, sentiments, sentences, train, test, valid]
//! ```
//! The first parts are dicts from a dialogue's id to a list with an entry for each utterance; the last three are the
//! ids of a split's dialogues. A label is a number whose meaning only the authors' code tells; which corpus a pickle
//! is, and so which numbering holds, is told by its file's name.

use std::collections::HashMap;

use insula_proto::{corpus::Split, job::CorpusSpec};

use super::{
    CorpusError, Layout, Surveyed, WholeFile, emorynlp,
    gather::{Gathered, Gathering, RawTurn, Speakers},
    iemocap,
    pickle::{Item, Pickle},
    settle::{Settled, settle},
};

/// Which corpus a pickle is of: what its labels' numbers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbering {
    /// happy, sad, neutral, angry, excited, frustrated; speakers are `M` and `F`.
    Iemocap,
    /// neutral, surprise, fear, sadness, joy, disgust, anger.
    Meld,
    /// Joyful, Mad, Peaceful, Neutral, Sad, Powerful, Scared.
    EmoryNlp,
    /// happiness, neutral, anger, sadness, fear, surprise, disgust: not DailyDialog's own order.
    DailyDialog,
}

/// DailyDialog's labels as COSMIC numbers them.
pub(super) const DAILYDIALOG: [&str; 7] = ["happiness", "neutral", "anger", "sadness", "fear", "surprise", "disgust"];

/// MELD's labels as its file writes and COSMIC numbers them.
const MELD: [&str; 7] = ["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"];

/// The corpora by a word of their file's name.
const STEMS: [(&str, Numbering); 4] = [
    ("iemocap", Numbering::Iemocap),
    ("meld", Numbering::Meld),
    ("emorynlp", Numbering::EmoryNlp),
    ("dailydialog", Numbering::DailyDialog),
];

/// How many times its file's size a corpus may unfold to: shared sentences are few.
const UNFOLDING_MAX: usize = 16;

impl Numbering {
    /// Told by the name of a `.pkl` file.
    fn of(name: &str) -> Option<Self> {
        let stem: String = name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
        STEMS.iter().find(|(word, _)| stem.contains(word)).map(|(_, numbering)| *numbering)
    }

    /// What the numbers mean, from 0 on.
    fn names(self) -> &'static [&'static str] {
        match self {
            Numbering::Iemocap => &iemocap::LABELS,
            Numbering::Meld => &MELD,
            Numbering::EmoryNlp => &emorynlp::LABELS,
            Numbering::DailyDialog => &DAILYDIALOG,
        }
    }

    fn speakers(self) -> Speakers {
        match self {
            Numbering::Iemocap => Speakers::Gender,
            _ => Speakers::ByAppearance,
        }
    }
}

/// Which of a folder's file names is the corpus's pickle: the one that is named just like a corpus, else the only one.
///
/// # Errors
/// When there is none, or several that could be.
pub fn pickle_file<'a>(folder: &str, names: &'a [String]) -> Result<&'a str, CorpusError> {
    let stem = |name: &str| name.to_lowercase().strip_suffix(".pkl").map(str::to_owned);
    let pickles: Vec<&str> = names.iter().map(String::as_str).filter(|name| stem(name).is_some()).collect();
    let exact: Vec<&str> = pickles
        .iter()
        .copied()
        .filter(|name| stem(name).is_some_and(|stem| STEMS.iter().any(|(word, _)| *word == stem)))
        .collect();
    match (exact.as_slice(), pickles.as_slice()) {
        ([one], _) | ([], [one]) => Ok(one),
        (_, found) => {
            let found = if found.is_empty() { "no .pkl file".into() } else { found.join(", ") };
            Err(CorpusError::PickleFiles { folder: folder.into(), found })
        }
    }
}

/// The corpus in a pickle; only the splits asked for are read.
///
/// # Errors
/// See [`CorpusError`]; a pickle that would run code is refused.
pub fn cosmic(name: &str, spec: &CorpusSpec, file: &WholeFile, splits: &[Split]) -> Result<Surveyed, CorpusError> {
    let stem = file.path.rsplit(['/', '\\']).next().unwrap_or(&file.path);
    let unknown = || CorpusError::WhichPickle { file: file.path.clone() };
    let layout = Layout::Cosmic(Numbering::of(stem).ok_or_else(unknown)?);
    let settled = settle(layout, spec, None)?;
    let pickle = Pickle::read(&file.bytes).map_err(|source| CorpusError::Pickle { file: file.path.clone(), source })?;
    let Layout::Cosmic(numbering) = layout else { return Err(unknown()) };
    let mut reader = Reader::new(&file.path, &settled, numbering, file.bytes.len(), pickle.root())?;
    let read = |&split: &Split| Ok((split, reader.split(split)?));
    let gathered = splits.iter().map(read).collect::<Result<_, CorpusError>>()?;
    Ok(Surveyed::of_whole(name, layout, settled, gathered))
}

/// Values by a dialogue's id.
type ById<'a> = HashMap<String, Item<'a>>;

/// The parts of a pickle.
struct Reader<'a> {
    file: &'a str,
    settled: &'a Settled,
    numbering: Numbering,
    speakers: ById<'a>,
    labels: ById<'a>,
    sentences: ById<'a>,
    train: Item<'a>,
    dev: Item<'a>,
    test: Item<'a>,
    /// Bytes of text and turns that may still be made.
    room: usize,
}

impl<'a> Reader<'a> {
    fn new(
        file: &'a str,
        settled: &'a Settled,
        numbering: Numbering,
        bytes: usize,
        root: Item<'a>,
    ) -> Result<Self, CorpusError> {
        let parts: Vec<Item> = root.items().map(|parts| parts.take(8).collect()).unwrap_or_default();
        let (speakers, labels, sentences, train, test, dev) = match *parts.as_slice() {
            [speakers, labels, sentences, train, test, dev] => (speakers, labels, sentences, train, test, dev),
            [speakers, labels, _, sentences, train, test, dev] => (speakers, labels, sentences, train, test, dev),
            _ => {
                let expected = "6 or 7 parts: speakers, labels, (sentiments,) sentences, train, test and valid ids";
                let found = if parts.len() > 7 { "more than 7 parts".into() } else { format!("{} parts", parts.len()) };
                return Err(wrong(
                    file,
                    "the pickle".into(),
                    format!("is {} of {found}, expected {expected}", root.kind()),
                ));
            }
        };
        Ok(Self {
            file,
            settled,
            numbering,
            speakers: by_id(file, "the speakers", speakers)?,
            labels: by_id(file, "the labels", labels)?,
            sentences: by_id(file, "the sentences", sentences)?,
            train,
            dev,
            test,
            room: bytes.saturating_mul(UNFOLDING_MAX),
        })
    }

    fn split(&mut self, split: Split) -> Result<Gathered, CorpusError> {
        let ids = match split {
            Split::Train => self.train,
            Split::Dev => self.dev,
            Split::Test => self.test,
        };
        let not_ids = || wrong(self.file, format!("the {split} ids"), format!("are {}, expected a list", ids.kind()));
        let ids = ids.items().ok_or_else(not_ids)?;
        let mut gathering = Gathering::new(self.settled, split, self.numbering.speakers());
        for id in ids {
            let dialogue = id_of(id).ok_or_else(|| {
                let problem = format!("one is {}, expected text or a whole number", id.kind());
                wrong(self.file, format!("the {split} ids"), problem)
            })?;
            let turns = self.turns(&dialogue)?;
            gathering.take(self.file, &dialogue, turns)?;
        }
        gathering.finish(self.file)
    }

    fn turns(&mut self, dialogue: &str) -> Result<Vec<RawTurn>, CorpusError> {
        let file = self.file;
        let place = || format!("dialogue {dialogue}");
        let part = |name: &str, values: &ById<'a>| {
            let value = values.get(dialogue).ok_or_else(|| wrong(file, place(), format!("has no {name}")))?;
            value
                .items()
                .ok_or_else(|| wrong(file, place(), format!("its {name} are {}, expected a list", value.kind())))
        };
        let speakers = part("speakers", &self.speakers)?;
        let labels = part("labels", &self.labels)?;
        let sentences = part("sentences", &self.sentences)?;
        let counts = [speakers.len(), labels.len(), sentences.len()];
        if counts[0] != counts[1] || counts[1] != counts[2] {
            let [speakers, labels, sentences] = counts;
            let problem =
                format!("has {speakers} speakers, {labels} labels and {sentences} sentences: expected as many");
            return Err(wrong(file, place(), problem));
        }
        let mut turns = Vec::new();
        for (at, ((speaker, label), sentence)) in speakers.zip(labels).zip(sentences).enumerate() {
            let place = || format!("dialogue {dialogue}, utterance {at}");
            let expected = |what: &str, found: Item, expected: &str| {
                wrong(file, place(), format!("its {what} is {}, expected {expected}", found.kind()))
            };
            let text = sentence.text().ok_or_else(|| expected("sentence", sentence, "text"))?;
            let speaker = speaker_of(speaker)
                .ok_or_else(|| expected("speaker", speaker, "text, a number, or a list that marks one speaker"))?;
            let label = self.label(label).ok_or_else(|| expected("label", label, "a whole number or text"))?;
            // A pickle of a few bytes may share one sentence a million times.
            self.room = self.room.checked_sub(1 + text.len() + speaker.len() + label.len()).ok_or_else(|| {
                let problem = format!("unfolds to more than {UNFOLDING_MAX} times its size: expected a corpus");
                wrong(file, "the pickle".into(), problem)
            })?;
            turns.push(RawTurn { id: at.to_string(), speaker, text: text.into_owned(), label: Some(label) });
        }
        Ok(turns)
    }

    /// A label's name. Where `corpus.rename` says what a number is, that holds; else the authors' numbering.
    fn label(&self, label: Item) -> Option<String> {
        let Some(number) = label.int() else { return label.text().map(|text| text.into_owned()) };
        let written = number.to_string();
        let known = usize::try_from(number).ok().and_then(|n| self.numbering.names().get(n));
        match known {
            Some(name) if !self.settled.renames(&written) => Some((*name).to_owned()),
            _ => Some(written),
        }
    }
}

/// Who speaks: `M`, a number, or the place of the ones in a one-hot list.
fn speaker_of(speaker: Item) -> Option<String> {
    if let Some(marks) = speaker.items() {
        let marked: Vec<String> =
            marks.enumerate().filter(|(_, mark)| mark.whole() == Some(1)).map(|(at, _)| at.to_string()).collect();
        return (!marked.is_empty()).then(|| marked.join("+"));
    }
    id_of(speaker).filter(|name| !name.trim().is_empty())
}

fn id_of(id: Item) -> Option<String> {
    id.int().map(|number| number.to_string()).or_else(|| id.text().map(|text| text.into_owned()))
}

fn by_id<'a>(file: &str, part: &str, dict: Item<'a>) -> Result<ById<'a>, CorpusError> {
    let not_a_dict = || wrong(file, part.into(), format!("are {}, expected a dict of dialogues", dict.kind()));
    let pairs = dict.pairs().ok_or_else(not_a_dict)?;
    let keyed = |(key, value): (Item<'a>, Item<'a>)| {
        let key_kind = || wrong(file, part.into(), format!("a key is {}, expected text or a number", key.kind()));
        Ok((id_of(key).ok_or_else(key_kind)?, value))
    };
    pairs.map(keyed).collect()
}

fn wrong(file: &str, place: String, problem: String) -> CorpusError {
    CorpusError::Malformed { file: file.into(), place, problem }
}
