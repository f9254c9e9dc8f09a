//! Why a corpus cannot be read: each with the file, and where it is about one, the row.

use insula_proto::corpus::{LabelSetError, Split};

use super::pickle::PickleError;

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
        "{folder}: expected exactly one {ending} file with {expected} in its name for the {split} split, found {found}"
    )]
    SplitFiles {
        /// The corpus's folder.
        folder: String,
        /// How the file's name ends.
        ending: &'static str,
        /// The split.
        split: Split,
        /// What its file's name must contain.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A layout that is none.
    #[error("layout '{0}': expected auto, meld, emorynlp, iemocap, cosmic or jsonl")]
    NotALayout(String),
    /// Nothing that is a corpus.
    #[error(
        "{folder}: no corpus is here: expected .csv files (meld, emorynlp), .jsonl files (jsonl), emotion-detection-*.json files (emorynlp), folders Session1 to Session5 (iemocap) or a .pkl file (cosmic)"
    )]
    NoCorpus {
        /// The folder.
        folder: String,
    },
    /// A layout without labels of its own, and none given.
    #[error(
        "{folder}: the layout has no labels of its own: expected corpus.labels to list them, or a file labels.json to"
    )]
    NoLabels {
        /// The folder.
        folder: String,
    },
    /// Not exactly one pickle.
    #[error("{folder}: expected exactly one of iemocap.pkl, meld.pkl, emorynlp.pkl or dailydialog.pkl, found {found}")]
    PickleFiles {
        /// The folder.
        folder: String,
        /// What is there.
        found: String,
    },
    /// A pickle of which corpus?
    #[error(
        "{file}: what its labels' numbers mean is told by the file's name: expected iemocap, meld, emorynlp or dailydialog in it"
    )]
    WhichPickle {
        /// The file.
        file: String,
    },
    /// A pickle that is none, or more than data.
    #[error("{file}: {source}")]
    Pickle {
        /// The file.
        file: String,
        /// Where and why.
        source: PickleError,
    },
    /// Something is not as the layout has it.
    #[error("{file}: {place}: {problem}")]
    Malformed {
        /// The file.
        file: String,
        /// Row, line, dialogue or utterance.
        place: String,
        /// What is wrong, and what was expected.
        problem: String,
    },
    /// A label outside the label set, in a file without rows.
    #[error("{file}: {place}: unknown label '{label}': expected one of {expected}")]
    UnknownLabelIn {
        /// The file.
        file: String,
        /// Dialogue and utterance.
        place: String,
        /// The label in the file.
        label: String,
        /// What the file may say.
        expected: String,
    },
    /// A split without utterances, in a file that is no CSV.
    #[error("{file}: the {split} split is empty: expected at least one labelled utterance")]
    NoUtterances {
        /// The file, or the folder.
        file: String,
        /// The split.
        split: Split,
    },
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
    /// A mapping of labels that does not know a corpus.
    #[error("labels.map has no mapping for {corpus}: expected one beside {known}")]
    NoMap {
        /// The corpus.
        corpus: String,
        /// What is mapped.
        known: String,
    },
    /// A mapping of labels with a hole.
    #[error("label '{label}' of {corpus} is not mapped: expected it beside {known} in labels.map.{corpus}")]
    Unmapped {
        /// The corpus.
        corpus: String,
        /// Its label.
        label: String,
        /// Its labels that are mapped.
        known: String,
    },
    /// A mapping of labels under which all of them stay apart.
    #[error("labels.map merges nothing: no two labels of {corpora} become one; leave it out to keep each corpus's own")]
    MergesNothing {
        /// What is mapped.
        corpora: String,
    },
    /// Not UTF-8.
    #[error("{file}: row {row}: byte {byte} is not valid UTF-8")]
    NotUtf8 {
        /// The file.
        file: String,
        /// Line number.
        row: u64,
        /// Byte offset in the file, from 0.
        byte: u64,
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
    /// A row longer than any.
    #[error("{file}: row {row}: more than {most} bytes in one row: expected its quotes to close before")]
    LongRow {
        /// The file.
        file: String,
        /// Line on which it begins.
        row: u64,
        /// The limit.
        most: usize,
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
    /// A dialogue in pieces, in a file too large to be put together in memory.
    #[error(
        "{file}: row {row}: more of an earlier dialogue, in a file of more than {most} bytes: expected the rows of a dialogue together in a file so large"
    )]
    Scattered {
        /// The file.
        file: String,
        /// Line of the row that comes back to a dialogue.
        row: u64,
        /// The limit.
        most: u64,
    },
    /// The file is not what it was a moment ago.
    #[error("{file}: changed while it was read: try again")]
    Changed {
        /// The file.
        file: String,
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
            Self::Labels(_) | Self::NoLabels { .. } => "corpus.labels",
            Self::NoMap { .. } | Self::Unmapped { .. } | Self::MergesNothing { .. } => "labels.map",
            _ => "corpus.path",
        }
    }
}
