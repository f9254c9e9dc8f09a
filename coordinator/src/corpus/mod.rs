//! Bytes to dialogues: one module per corpus layout, all pure.
//!
//! ```text
//! bytes --table--> rows with line numbers --meld | emorynlp--> turns --turns--> Vec<Dialogue>
//! ```
//!
//! Nothing is guessed and nothing is skipped: a row that cannot be read is an error naming file and row, where the row
//! is the line number an editor shows (the header is line 1). Opening the files is [`crate::shell::corpora`]'s work.

mod emorynlp;
mod meld;
mod table;
mod turns;

use std::collections::BTreeMap;

use insula_proto::{
    corpus::{Dialogue, LabelSet, LabelSetError, Split},
    job::CorpusSpec,
};

use self::table::Table;

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

/// One split's file, as it lies on disk.
#[derive(Debug, Clone)]
pub struct SplitFile {
    /// Its path, as error messages show it.
    pub path: String,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// Why a corpus cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The folder, or a file of it, cannot be opened.
    #[error("{path}: cannot be read: {source}")]
    Unreadable {
        /// What was opened.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Larger than any corpus of dialogues.
    #[error("{path}: {bytes} bytes, expected at most {most}")]
    TooLarge {
        /// The file.
        path: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// Not exactly one file for a split.
    #[error(
        "{folder}: expected exactly one .csv file with {expected} in its name for the {split} split, found {found}"
    )]
    SplitFiles {
        /// The corpus's folder.
        folder: String,
        /// The split.
        split: Split,
        /// What its file's name must contain.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A layout that is none.
    #[error("layout '{0}': expected auto, meld or emorynlp")]
    NotALayout(String),
    /// A header of no known layout.
    #[error(
        "{file}: the layout cannot be told by the header '{header}': expected a Dialogue_ID (meld) or Scene_ID (emorynlp) column"
    )]
    UnknownHeader {
        /// The file.
        file: String,
        /// Its columns.
        header: String,
    },
    /// The labels asked for are no label set.
    #[error(transparent)]
    Labels(#[from] LabelSetError),
    /// Not UTF-8.
    #[error("{file}: row {row}: byte {byte} is not valid UTF-8")]
    NotUtf8 {
        /// The file.
        file: String,
        /// Line number.
        row: u64,
        /// Byte offset in the file, from 0.
        byte: usize,
    },
    /// A quote that does not close, or stands where none may.
    #[error("{file}: row {row}: a broken quote: {problem}")]
    Quote {
        /// The file.
        file: String,
        /// Line on which the field begins.
        row: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// More or fewer fields than columns.
    #[error("{file}: row {row}: {found} fields, expected the header's {expected}")]
    Fields {
        /// The file.
        file: String,
        /// Line number.
        row: u64,
        /// Columns.
        expected: usize,
        /// Fields.
        found: usize,
    },
    /// A column the layout needs.
    #[error("{file}: column '{column}' is missing: found {found}")]
    MissingColumn {
        /// The file.
        file: String,
        /// The column.
        column: &'static str,
        /// The header.
        found: String,
    },
    /// A label outside the label set.
    #[error("{file}: row {row}: unknown label '{label}': expected one of {expected}")]
    UnknownLabel {
        /// The file.
        file: String,
        /// Line number.
        row: u64,
        /// The label in the file.
        label: String,
        /// What the file may say.
        expected: String,
    },
    /// Text where a number belongs.
    #[error("{file}: row {row}: {column} is '{value}': expected a whole number")]
    NotANumber {
        /// The file.
        file: String,
        /// Line number.
        row: u64,
        /// The column.
        column: &'static str,
        /// Its text.
        value: String,
    },
    /// Two utterances of a dialogue with one number.
    #[error("{file}: row {row}: dialogue {dialogue} already has an utterance {utterance}, on row {first}")]
    SameUtterance {
        /// The file.
        file: String,
        /// Line of the second.
        row: u64,
        /// The dialogue.
        dialogue: String,
        /// The number.
        utterance: u64,
        /// Line of the first.
        first: u64,
    },
    /// An empty field that must have text.
    #[error("{file}: row {row}: {column} is empty: expected text")]
    EmptyText {
        /// The file.
        file: String,
        /// Line number.
        row: u64,
        /// The column.
        column: &'static str,
    },
    /// A file without utterances.
    #[error("{file}: the {split} split is empty: expected at least one utterance below the header")]
    EmptySplit {
        /// The file.
        file: String,
        /// The split.
        split: Split,
    },
    /// Files of one corpus in two layouts.
    #[error("{file}: has the layout {found}, but the files before it {expected}")]
    MixedLayouts {
        /// The file.
        file: String,
        /// Its layout.
        found: &'static str,
        /// Theirs.
        expected: &'static str,
    },
}

impl CorpusError {
    /// The setting a person would mend, as in the job file.
    pub fn field(&self) -> &'static str {
        match self {
            Self::NotALayout(_) | Self::UnknownHeader { .. } => "corpus.layout",
            Self::Labels(_) => "corpus.labels",
            _ => "corpus.path",
        }
    }
}

impl Layout {
    /// The name in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Layout::Meld => "meld",
            Layout::EmoryNlp => "emorynlp",
        }
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

    fn of_header(table: &Table) -> Result<Self, CorpusError> {
        let has = |column: &str| table.header().iter().any(|c| c == column);
        match (has("Dialogue_ID"), has("Scene_ID")) {
            (true, _) => Ok(Layout::Meld),
            (false, true) => Ok(Layout::EmoryNlp),
            (false, false) => {
                Err(CorpusError::UnknownHeader { file: table.file().into(), header: table.header().join(",") })
            }
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

/// Reads the splits of a corpus from their files' bytes.
///
/// # Errors
/// The first thing that is wrong, with file and row.
pub fn read(name: &str, spec: &CorpusSpec, files: &BTreeMap<Split, SplitFile>) -> Result<Corpus, CorpusError> {
    let asked = Asked::parse(&spec.layout)?;
    let tables = files.iter().map(|(split, file)| Ok((*split, Table::parse(&file.path, &file.bytes)?)));
    let tables = tables.collect::<Result<Vec<_>, CorpusError>>()?;
    let layout = layout_of(asked, &tables)?;
    let labels = label_set(layout, spec)?;
    let rename = renaming(layout, spec);
    let mut splits = BTreeMap::new();
    for (split, table) in &tables {
        let reading = Reading { table, split: *split, labels: &labels, rename: &rename };
        let dialogues = match layout {
            Layout::Meld => meld::read(&reading)?,
            Layout::EmoryNlp => emorynlp::read(&reading)?,
        };
        splits.insert(*split, dialogues);
    }
    Ok(Corpus { name: name.into(), labels, splits })
}

/// What a layout's reader works on.
struct Reading<'a> {
    table: &'a Table,
    split: Split,
    labels: &'a LabelSet,
    rename: &'a BTreeMap<String, String>,
}

/// The one layout of all files.
fn layout_of(asked: Asked, tables: &[(Split, Table)]) -> Result<Layout, CorpusError> {
    let mut known = None;
    if let Asked::Named(layout) = asked {
        return Ok(layout);
    }
    for (_, table) in tables {
        let found = Layout::of_header(table)?;
        match known {
            Some(expected) if expected != found => {
                let (found, expected) = (found.as_str(), Layout::as_str(expected));
                return Err(CorpusError::MixedLayouts { file: table.file().into(), found, expected });
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
