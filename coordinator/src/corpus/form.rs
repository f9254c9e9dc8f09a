//! Which of the known forms a folder's files have, and which file holds which split.

use insula_proto::corpus::Split;

use super::{CorpusError, iemocap::SESSIONS, listed};

/// How a corpus's files are to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A CSV for each split: MELD's or EmoryNLP's columns.
    Csv,
    /// A JSON for each split: EmoryNLP's episodes.
    EmoryNlpJson,
    /// A JSON-lines file for each split: one's own dialogues.
    Jsonl,
    /// IEMOCAP's folders, one for each session.
    Iemocap,
    /// One pickle for all splits.
    Cosmic,
}

impl Form {
    /// How the files of a split end.
    fn ending(self) -> &'static str {
        match self {
            Form::Csv => ".csv",
            Form::EmoryNlpJson => ".json",
            Form::Jsonl => ".jsonl",
            Form::Iemocap => ".txt",
            Form::Cosmic => ".pkl",
        }
    }

    /// The words one of which is in the name of a split's file, and how a message says so.
    fn words(self, split: Split) -> (&'static [&'static str], &'static str) {
        match (self, split) {
            (Form::EmoryNlpJson, Split::Train) => (&["train", "trn"], "'train' or 'trn'"),
            (Form::EmoryNlpJson, Split::Test) => (&["test", "tst"], "'test' or 'tst'"),
            (_, Split::Train) => (&["train"], "'train'"),
            (_, Split::Dev) => (&["dev", "valid"], "'dev' or 'valid'"),
            (_, Split::Test) => (&["test"], "'test'"),
        }
    }

    fn is_split(self, name: &str, split: Split) -> bool {
        let name = name.to_lowercase();
        name.ends_with(self.ending()) && self.words(split).0.iter().any(|word| name.contains(word))
    }
}

/// The form of a folder's files, by the layout asked for and the names in it. Told by the names, the first of these
/// holds: CSV, JSON lines, EmoryNLP's JSON, IEMOCAP's sessions, a pickle.
///
/// # Errors
/// When the layout is none, or is to be told and nothing known is there.
pub fn form_of(folder: &str, layout: &str, names: &[String]) -> Result<Form, CorpusError> {
    let has = |ending: &str| names.iter().any(|name| name.to_lowercase().ends_with(ending));
    let json = || names.iter().any(|name| Split::ALL.iter().any(|&split| Form::EmoryNlpJson.is_split(name, split)));
    match layout {
        "meld" => Ok(Form::Csv),
        "emorynlp" if !has(".csv") && json() => Ok(Form::EmoryNlpJson),
        "emorynlp" => Ok(Form::Csv),
        "iemocap" => Ok(Form::Iemocap),
        "cosmic" => Ok(Form::Cosmic),
        "jsonl" => Ok(Form::Jsonl),
        "auto" | "" if has(".csv") => Ok(Form::Csv),
        "auto" | "" if has(".jsonl") => Ok(Form::Jsonl),
        "auto" | "" if json() => Ok(Form::EmoryNlpJson),
        "auto" | "" if names.iter().any(|name| SESSIONS.contains(&name.as_str())) => Ok(Form::Iemocap),
        "auto" | "" if has(".pkl") => Ok(Form::Cosmic),
        "auto" | "" => Err(CorpusError::NoCorpus { folder: folder.into() }),
        other => Err(CorpusError::NotALayout(other.into())),
    }
}

/// Which of a folder's file names holds `split`.
///
/// # Errors
/// When none does, or several do, or the only one could be another split's too.
pub fn split_file<'a>(form: Form, folder: &str, names: &'a [String], split: Split) -> Result<&'a str, CorpusError> {
    let alike: Vec<&str> =
        names.iter().map(String::as_str).filter(|n| n.to_lowercase().ends_with(form.ending())).collect();
    let splits_of = |name: &str| Split::ALL.iter().filter(|&&split| form.is_split(name, split)).count();
    let mine: Vec<&str> = alike.iter().copied().filter(|name| form.is_split(name, split)).collect();
    match mine.as_slice() {
        [name] if splits_of(name) == 1 => Ok(name),
        found => {
            let ending = form.ending();
            let found = match (found, alike.is_empty()) {
                ([], true) => format!("no {ending} file at all"),
                ([], false) => format!("none among {}", listed(alike.iter().copied())),
                (found, _) => listed(found.iter().copied()),
            };
            let expected = form.words(split).1;
            Err(CorpusError::SplitFiles { folder: folder.into(), ending, split, expected, found })
        }
    }
}
