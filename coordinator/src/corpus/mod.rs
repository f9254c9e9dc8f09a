//! Bytes to dialogues, one dialogue at a time: a file of any length is read in the memory of its longest dialogue.
//!
//! ```text
//!          .--records--> survey: is it whole? its columns? do dialogues stand together?      first pass
//! bytes ---|
//!          '--records--> turns --> dialogues, in order of first appearance                   second pass
//! ```
//!
//! Two passes, so that a file is known to be sound in its form before anything is made of it, and so that a dialogue
//! can be let go when the next begins. Where rows of a dialogue stand apart, the file's turns are gathered in memory.
//!
//! Nothing is guessed and nothing is skipped: a row that cannot be read is an error naming file and row, where the row
//! is the line number an editor shows (the header is line 1). Opening the files is [`crate::shell::corpora`]'s work.

mod emorynlp;
mod error;
mod meld;
mod records;
mod survey;
mod turns;

use std::{collections::BTreeMap, io::Read};

use insula_proto::{
    corpus::{Dialogue, LabelSet, Split},
    job::CorpusSpec,
};

pub use self::error::CorpusError;
use self::{
    records::Records,
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
}

/// Where the layout's name in a [`CorpusSpec`] leads.
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
    /// The closed label set.
    pub labels: LabelSet,
    /// Dialogues in the order of the file.
    pub splits: BTreeMap<Split, Vec<Dialogue>>,
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

/// Dialogues as they are read; after an error there are no more.
pub type Dialogues<'a> = Box<dyn Iterator<Item = Result<Dialogue, CorpusError>> + 'a>;

/// A corpus whose files were looked through once: their form is sound, their rows are yet to be read.
pub struct Surveyed {
    name: String,
    layout: Layout,
    labels: LabelSet,
    rename: BTreeMap<String, String>,
    files: BTreeMap<Split, (SplitFile, Survey)>,
}

impl Layout {
    /// The name in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Layout::Meld => "meld",
            Layout::EmoryNlp => "emorynlp",
        }
    }

    /// The layout of this name in settings.
    pub fn named(name: &str) -> Option<Self> {
        [Layout::Meld, Layout::EmoryNlp].into_iter().find(|layout| layout.as_str() == name)
    }

    /// The labels of a corpus in this layout that names none of its own.
    pub fn label_set(self) -> LabelSet {
        let labels = self.labels().iter().map(|&label| label.to_owned()).collect();
        LabelSet::new(labels).expect("a layout's own labels are a label set")
    }

    /// The label set in prompt order.
    fn labels(self) -> &'static [&'static str] {
        match self {
            Layout::Meld => &meld::LABELS,
            Layout::EmoryNlp => &emorynlp::LABELS,
        }
    }

    /// Label in the file -> label of the set.
    fn rename(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Layout::Meld => &meld::RENAME,
            Layout::EmoryNlp => &[],
        }
    }

    /// The columns whose numbers make a dialogue another.
    fn key(self) -> &'static [&'static str] {
        match self {
            Layout::Meld => &meld::KEY,
            Layout::EmoryNlp => &emorynlp::KEY,
        }
    }

    /// Unique within the corpus.
    fn dialogue_id(self, split: Split, key: Key) -> String {
        match (self, key) {
            (Layout::Meld, [dialogue, ..]) => format!("{split}/{dialogue}"),
            (Layout::EmoryNlp, [season, episode, scene]) => format!("{split}/s{season}_e{episode}_c{scene}"),
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

/// The words a split's file has one of in its name.
const NAMES: [(Split, &[&str], &str); 3] = [
    (Split::Train, &["train"], "'train'"),
    (Split::Dev, &["dev", "valid"], "'dev' or 'valid'"),
    (Split::Test, &["test"], "'test'"),
];

/// Which of a folder's file names holds `split`.
///
/// # Errors
/// When none does, or several do, or the only one could be another split's too.
pub fn split_file<'a>(folder: &str, names: &'a [String], split: Split) -> Result<&'a str, CorpusError> {
    let csv: Vec<&String> = names.iter().filter(|n| n.to_lowercase().ends_with(".csv")).collect();
    let holds = |name: &str, words: &[&str]| words.iter().any(|word| name.to_lowercase().contains(word));
    let splits_of = |name: &str| NAMES.iter().filter(|(_, words, _)| holds(name, words)).count();
    let (_, words, expected) = NAMES.iter().find(|(s, ..)| *s == split).expect("every split has its words");
    let mine: Vec<&&String> = csv.iter().filter(|name| holds(name, words)).collect();
    match mine.as_slice() {
        [name] if splits_of(name) == 1 => Ok(name),
        found => {
            let found = match (found, csv.is_empty()) {
                ([], true) => "no .csv file at all".to_owned(),
                ([], false) => format!("none among {}", listed(csv.iter().map(|n| n.as_str()))),
                (found, _) => listed(found.iter().map(|n| n.as_str())),
            };
            Err(CorpusError::SplitFiles { folder: folder.into(), split, expected, found })
        }
    }
}

impl SplitFile {
    fn records(&self) -> Result<Records<Box<dyn Read + Send>>, CorpusError> {
        match (self.open)() {
            Ok(source) => Ok(Records::new(&self.path, source)),
            Err(source) => Err(CorpusError::Unreadable { path: self.path.clone(), source }),
        }
    }
}

impl Surveyed {
    /// Looks through all files of a corpus: the first pass.
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
        let (labels, rename) = (label_set(layout, spec)?, renaming(layout, spec));
        Ok(Self { name: name.into(), layout, labels, rename, files: surveyed })
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The closed label set.
    pub fn labels(&self) -> &LabelSet {
        &self.labels
    }

    /// The splits whose files are here, in order.
    pub fn splits(&self) -> impl Iterator<Item = Split> {
        self.files.keys().copied()
    }

    /// The dialogues of a split in order of first appearance: the second pass.
    ///
    /// # Errors
    /// When the file has no rows, lacks a column, or is too large for dialogues that stand apart.
    ///
    /// # Panics
    /// When the split's file is not here.
    pub fn dialogues(&self, split: Split) -> Result<Dialogues<'_>, CorpusError> {
        let (file, survey) = &self.files[&split];
        if let Some(row) = survey.scattered.filter(|_| survey.bytes > SCATTERED_BYTES_MAX) {
            return Err(CorpusError::Scattered { file: file.path.clone(), row, most: SCATTERED_BYTES_MAX });
        }
        let (layout, labels, rename) = (self.layout, &self.labels, &self.rename);
        Reading { file: &file.path, split, layout, labels, rename, survey }.dialogues(file.records()?)
    }

    /// Every dialogue at once: for corpora that are known to be small.
    ///
    /// # Errors
    /// The first thing that is wrong, with file and row.
    pub fn collect(self) -> Result<Corpus, CorpusError> {
        let read = |split| Ok((split, self.dialogues(split)?.collect::<Result<_, _>>()?));
        let splits = self.splits().map(read).collect::<Result<_, CorpusError>>()?;
        Ok(Corpus { name: self.name, labels: self.labels, splits })
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

fn label_set(layout: Layout, spec: &CorpusSpec) -> Result<LabelSet, CorpusError> {
    let own = || layout.labels().iter().map(|l| (*l).to_owned()).collect();
    let labels = if spec.labels.is_empty() { own() } else { spec.labels.clone() };
    Ok(LabelSet::new(labels)?)
}

fn renaming(layout: Layout, spec: &CorpusSpec) -> BTreeMap<String, String> {
    let own = layout.rename().iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned()));
    own.chain(spec.rename.clone()).collect()
}

/// `a, b and c` without the `and`: names in a message.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
