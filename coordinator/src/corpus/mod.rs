//! Bytes to dialogues, one dialogue at a time: a CSV of any length is read in the memory of its longest dialogue.
//!
//! ```text
//!          .--records--> survey: is it whole? its columns? do dialogues stand together?      first pass
//! CSV -----|
//!          '--records--> turns --> dialogues, in order of first appearance                   second pass
//! JSON lines --> dialogues, a line each
//! EmoryNLP's JSON, IEMOCAP's folders, COSMIC's pickles --> whole, in memory --> dialogues
//! ```
//!
//! A CSV is read twice, so that a file is known to be sound in its form before anything is made of it, and so that a
//! dialogue can be let go when the next begins. Where rows of a dialogue stand apart, the file's turns are gathered in
//! memory. The layouts that are read whole are limited in size.
//!
//! Nothing is guessed and nothing is skipped in silence: what cannot be read is an error naming file and place (a row
//! is the line number an editor shows; a CSV's header is line 1), and what a layout leaves out is counted in
//! [`LeftOut`]. Opening the files is [`crate::shell::corpora`]'s work, and [`form_of`] says which files those are.
//! Which labels there are is settled in one place, `settle`; [`describe`] counts what was read, and [`preflight`] says
//! what is wrong with it.

mod cosmic;
pub mod describe;
mod emorynlp;
mod emorynlp_json;
mod error;
mod form;
mod gather;
mod iemocap;
mod jsonl;
mod mapping;
mod meld;
pub mod pickle;
pub mod preflight;
mod records;
mod settle;
mod survey;
mod text;
mod turns;

use std::{collections::BTreeMap, io::Read};

use insula_proto::{
    corpus::{Dialogue, LabelSet, Split},
    job::CorpusSpec,
};

pub use self::{
    cosmic::{Numbering, cosmic, pickle_file},
    emorynlp_json::emorynlp_json,
    error::CorpusError,
    form::{Form, form_of, split_file},
    gather::LeftOut,
    iemocap::{IemocapDialogue, SESSIONS, iemocap, iemocap_splits},
};
use self::{
    gather::Gathered,
    jsonl::Lines,
    mapping::Mapping,
    records::Records,
    settle::{Settled, settle},
    survey::{Key, Survey, survey},
    turns::Reading,
};

/// How a corpus's files are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// MELD's CSV: `Dialogue_ID`, `Utterance_ID`, `Speaker`, `Utterance`, `Emotion`.
    Meld,
    /// EmoryNLP's CSV: as MELD's, but a dialogue is `Season`, `Episode` and `Scene_ID`.
    EmoryNlp,
    /// EmoryNLP's own JSON.
    EmoryNlpJson,
    /// IEMOCAP's folders.
    Iemocap,
    /// A pickle of COSMIC's authors.
    Cosmic(Numbering),
    /// One's own dialogues as JSON lines.
    Jsonl,
}

/// Where the layout's name in a [`CorpusSpec`] leads, for a CSV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Told by the CSV header.
    Auto,
    /// Said outright.
    Named(Layout),
}

/// A corpus that was read: its labels, and the dialogues of the splits that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    /// What people call it: its folder's name.
    pub name: String,
    /// How its files are laid out.
    pub layout: Layout,
    /// The closed label set.
    pub labels: LabelSet,
    /// Dialogues in the order of the file.
    pub splits: BTreeMap<Split, Vec<Dialogue>>,
    /// What the files hold besides.
    pub left_out: BTreeMap<Split, LeftOut>,
}

/// Largest file whose dialogues may stand apart: its turns are gathered in memory, which takes about twice its size
/// (reckoned).
pub const SCATTERED_BYTES_MAX: u64 = 1 << 30;

/// One split's file, as it lies on disk.
pub struct SplitFile {
    /// Its path, as error messages show it.
    pub path: String,
    /// Opens it at its beginning; called once for each pass.
    pub open: Box<Opener>,
}

/// What opens a file.
pub type Opener = dyn Fn() -> std::io::Result<Box<dyn Read + Send>> + Send + Sync;

/// A file that is small enough to be held whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeFile {
    /// Its path, as error messages show it.
    pub path: String,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// Dialogues as they are read; after an error there are no more.
pub type Dialogues<'a> = Box<dyn Iterator<Item = Result<Dialogue, CorpusError>> + 'a>;

/// A corpus whose files were looked through once: their form is sound, their rows may be yet to be read.
pub struct Surveyed {
    name: String,
    layout: Layout,
    settled: Settled,
    /// The labels its own become, where they are mapped.
    mapping: Option<Mapping>,
    source: Source,
}

/// Where the dialogues come from.
enum Source {
    Csv(BTreeMap<Split, (SplitFile, Survey)>),
    Lines(BTreeMap<Split, SplitFile>),
    Whole(BTreeMap<Split, Gathered>),
}

impl Layout {
    /// The name in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Layout::Meld => "meld",
            Layout::EmoryNlp | Layout::EmoryNlpJson => "emorynlp",
            Layout::Iemocap => "iemocap",
            Layout::Cosmic(_) => "cosmic",
            Layout::Jsonl => "jsonl",
        }
    }

    /// The layout of this name in settings, where it has labels of its own that its files do not say.
    pub fn named(name: &str) -> Option<Self> {
        [Layout::Meld, Layout::EmoryNlp, Layout::Iemocap].into_iter().find(|layout| layout.as_str() == name)
    }

    /// The labels of a corpus in this layout that names none of its own; `None` where the layout has none.
    pub fn label_set(self) -> Option<LabelSet> {
        let labels = self.labels().iter().map(|&label| label.to_owned()).collect();
        LabelSet::new(labels).ok()
    }

    /// The label set in prompt order; empty: the layout has none of its own.
    fn labels(self) -> &'static [&'static str] {
        match self {
            Layout::Meld | Layout::Cosmic(Numbering::Meld) => &meld::LABELS,
            Layout::EmoryNlp | Layout::EmoryNlpJson | Layout::Cosmic(Numbering::EmoryNlp) => &emorynlp::LABELS,
            Layout::Iemocap | Layout::Cosmic(Numbering::Iemocap) => &iemocap::LABELS,
            Layout::Cosmic(Numbering::DailyDialog) => &cosmic::DAILYDIALOG,
            Layout::Jsonl => &[],
        }
    }

    /// Label in the file -> label of the set.
    fn rename(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Layout::Meld | Layout::Cosmic(Numbering::Meld) => &meld::RENAME,
            Layout::Iemocap => &iemocap::RENAME,
            _ => &[],
        }
    }

    /// Labels a file may write without their being learnt.
    fn ignored(self) -> &'static [&'static str] {
        match self {
            Layout::Iemocap => &iemocap::IGNORED,
            _ => &[],
        }
    }

    /// The columns whose numbers make a dialogue another, in a CSV.
    fn key(self) -> &'static [&'static str] {
        match self {
            Layout::EmoryNlp => &emorynlp::KEY,
            _ => &meld::KEY,
        }
    }

    /// Unique within the corpus, for a CSV.
    fn dialogue_id(self, split: Split, key: Key) -> String {
        match (self, key) {
            (Layout::EmoryNlp, [season, episode, scene]) => format!("{split}/s{season}_e{episode}_c{scene}"),
            (_, [dialogue, ..]) => format!("{split}/{dialogue}"),
        }
    }

    /// The corpus a mapping of labels knows it by: the layout's name, or what a pickle holds.
    fn corpus(self) -> &'static str {
        match self {
            Layout::Cosmic(Numbering::Meld) => "meld",
            Layout::Cosmic(Numbering::EmoryNlp) => "emorynlp",
            Layout::Cosmic(Numbering::Iemocap) => "iemocap",
            Layout::Cosmic(Numbering::DailyDialog) => "dailydialog",
            other => other.as_str(),
        }
    }

    fn of_header(header: &[String]) -> Option<Self> {
        let has = |column: &str| header.iter().any(|c| c == column);
        match (has("Dialogue_ID"), has("Scene_ID")) {
            (true, _) => Some(Layout::Meld),
            (false, true) => Some(Layout::EmoryNlp),
            (false, false) => None,
        }
    }
}

impl Asked {
    fn parse(layout: &str) -> Result<Self, CorpusError> {
        match layout {
            "auto" | "" => Ok(Asked::Auto),
            "meld" => Ok(Asked::Named(Layout::Meld)),
            "emorynlp" => Ok(Asked::Named(Layout::EmoryNlp)),
            other => Err(CorpusError::NotALayout(other.into())),
        }
    }
}

impl SplitFile {
    fn opened(&self) -> Result<Box<dyn Read + Send>, CorpusError> {
        (self.open)().map_err(|source| CorpusError::Unreadable { path: self.path.clone(), source })
    }

    fn records(&self) -> Result<Records<Box<dyn Read + Send>>, CorpusError> {
        Ok(Records::new(&self.path, self.opened()?))
    }
}

impl Surveyed {
    /// Looks through all CSV files of a corpus: the first pass.
    ///
    /// # Errors
    /// The first thing that is wrong with a file's form, with file and row; then with layout or labels.
    pub fn new(name: &str, spec: &CorpusSpec, files: BTreeMap<Split, SplitFile>) -> Result<Self, CorpusError> {
        let asked = Asked::parse(&spec.layout)?;
        let mut surveyed = BTreeMap::new();
        for (split, file) in files {
            let survey = survey(file.records()?, asked)?;
            surveyed.insert(split, (file, survey));
        }
        let layout = layout_of(asked, surveyed.values())?;
        let settled = settle(layout, spec, None)?;
        Ok(Self { name: name.into(), layout, settled, mapping: None, source: Source::Csv(surveyed) })
    }

    /// A corpus of JSON lines; `listed` are the labels that lie beside it.
    ///
    /// # Errors
    /// When there are no labels, or they are no label set.
    pub fn lines(
        name: &str,
        spec: &CorpusSpec,
        files: BTreeMap<Split, SplitFile>,
        listed: Option<Vec<String>>,
    ) -> Result<Self, CorpusError> {
        let settled = settle(Layout::Jsonl, spec, listed)?;
        let source = Source::Lines(files);
        Ok(Self { name: name.into(), layout: Layout::Jsonl, settled, mapping: None, source })
    }

    fn of_whole(name: &str, layout: Layout, settled: Settled, splits: BTreeMap<Split, Gathered>) -> Self {
        Self { name: name.into(), layout, settled, mapping: None, source: Source::Whole(splits) }
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How its files are laid out.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The closed label set.
    pub fn labels(&self) -> &LabelSet {
        self.mapping.as_ref().map_or(&self.settled.labels, |mapping| &mapping.labels)
    }

    /// The splits whose files are here, in order.
    pub fn splits(&self) -> impl Iterator<Item = Split> {
        let has = |split: &Split| match &self.source {
            Source::Csv(files) => files.contains_key(split),
            Source::Lines(files) => files.contains_key(split),
            Source::Whole(splits) => splits.contains_key(split),
        };
        Split::ALL.into_iter().filter(has).collect::<Vec<_>>().into_iter()
    }

    /// What a split's file holds besides its dialogues; layouts that leave nothing out have zeros.
    pub fn left_out(&self, split: Split) -> LeftOut {
        match &self.source {
            Source::Whole(splits) => splits.get(&split).map_or_else(LeftOut::default, |gathered| gathered.left_out),
            Source::Csv(_) | Source::Lines(_) => LeftOut::default(),
        }
    }

    /// The dialogues of a split in order of first appearance: the second pass.
    ///
    /// # Errors
    /// When the file has no rows, lacks a column, or is too large for dialogues that stand apart.
    ///
    /// # Panics
    /// When the split's file is not here.
    pub fn dialogues(&self, split: Split) -> Result<Dialogues<'_>, CorpusError> {
        let dialogues = self.own_dialogues(split)?;
        Ok(match &self.mapping {
            Some(mapping) => Box::new(dialogues.map(|dialogue| Ok(mapping.applied(dialogue?)))),
            None => dialogues,
        })
    }

    /// The dialogues with the corpus's own labels.
    fn own_dialogues(&self, split: Split) -> Result<Dialogues<'_>, CorpusError> {
        match &self.source {
            Source::Csv(files) => {
                let (file, survey) = &files[&split];
                if let Some(row) = survey.scattered.filter(|_| survey.bytes > SCATTERED_BYTES_MAX) {
                    return Err(CorpusError::Scattered { file: file.path.clone(), row, most: SCATTERED_BYTES_MAX });
                }
                let (layout, settled) = (self.layout, &self.settled);
                Reading { file: &file.path, split, layout, settled, survey }.dialogues(file.records()?)
            }
            Source::Lines(files) => {
                let file = &files[&split];
                Ok(Lines { file: &file.path, split, settled: &self.settled }.dialogues(file.opened()?))
            }
            Source::Whole(splits) => Ok(Box::new(splits[&split].dialogues.iter().cloned().map(Ok))),
        }
    }

    /// Every dialogue at once: for corpora that are known to be small.
    ///
    /// # Errors
    /// The first thing that is wrong, with file and row.
    pub fn collect(self) -> Result<Corpus, CorpusError> {
        let left_out = self.splits().map(|split| (split, self.left_out(split))).collect();
        let read = |split| Ok((split, self.dialogues(split)?.collect::<Result<_, _>>()?));
        let splits = self.splits().map(read).collect::<Result<_, CorpusError>>()?;
        let labels = self.labels().clone();
        Ok(Corpus { name: self.name, layout: self.layout, labels, splits, left_out })
    }
}

/// The one layout of all files.
fn layout_of<'a>(asked: Asked, files: impl Iterator<Item = &'a (SplitFile, Survey)>) -> Result<Layout, CorpusError> {
    let mut known = None;
    if let Asked::Named(layout) = asked {
        return Ok(layout);
    }
    for (SplitFile { path, .. }, Survey { header, .. }) in files {
        let unknown = || CorpusError::UnknownHeader { file: path.clone(), header: header.join(",") };
        let found = Layout::of_header(header).ok_or_else(unknown)?;
        match known {
            Some(expected) if expected != found => {
                let (found, expected) = (found.as_str(), Layout::as_str(expected));
                return Err(CorpusError::MixedLayouts { file: path.clone(), found, expected });
            }
            _ => known = Some(found),
        }
    }
    Ok(known.unwrap_or(Layout::Meld))
}

/// `a, b and c` without the `and`: names in a message.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod layout_tests;
#[cfg(test)]
mod tests;
