//! Opens a corpus's files for [`crate::corpus`] to read.
#![expect(clippy::disallowed_methods, reason = "the room that opens corpus files")]

use std::{collections::BTreeMap, fs, path::Path};

use insula_proto::{corpus::Split, job::CorpusSpec};

use crate::corpus::{self, Corpus, CorpusError, SplitFile};

/// Largest file read: 30 times MELD's train split is 33 MB, so this is far above any corpus of dialogues (guessed).
const FILE_BYTES_MAX: u64 = 1 << 30;

/// All three splits of the corpus in `spec.path`.
///
/// # Errors
/// See [`CorpusError`]; the first thing that is wrong, with file and row.
pub fn read_corpus(spec: &CorpusSpec) -> Result<Corpus, CorpusError> {
    read_splits(spec, &Split::ALL)
}

/// One split of the corpus in `spec.path`; files of other splits may be missing or wrong.
///
/// # Errors
/// See [`CorpusError`].
pub fn read_split(spec: &CorpusSpec, split: Split) -> Result<Corpus, CorpusError> {
    read_splits(spec, &[split])
}

/// The splits asked for, of the corpus in `spec.path`.
///
/// # Errors
/// See [`CorpusError`].
pub fn read_splits(spec: &CorpusSpec, splits: &[Split]) -> Result<Corpus, CorpusError> {
    let folder = Path::new(&spec.path);
    let names = file_names(folder)?;
    let mut files = BTreeMap::new();
    for &split in splits {
        let name = corpus::split_file(&spec.path, &names, split)?;
        files.insert(split, read_file(&folder.join(name))?);
    }
    corpus::read(&name_of(folder), spec, &files)
}

/// The folder's own name, even where the path ends in `.` or `..`.
fn name_of(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    whole.file_name().map_or_else(|| "corpus".into(), |name| name.to_string_lossy().into_owned())
}

fn file_names(folder: &Path) -> Result<Vec<String>, CorpusError> {
    let unreadable = |source| CorpusError::Unreadable { path: folder.display().to_string(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        names.push(entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn read_file(path: &Path) -> Result<SplitFile, CorpusError> {
    let name = path.display().to_string();
    let unreadable = |source| CorpusError::Unreadable { path: name.clone(), source };
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(CorpusError::TooLarge { path: name, bytes, most: FILE_BYTES_MAX });
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    Ok(SplitFile { path: name, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use insula_proto::job::JobSpec;

    fn spec(path: impl Into<String>) -> CorpusSpec {
        CorpusSpec { path: path.into(), ..JobSpec::default().corpus }
    }

    /// Dialogues and utterances of every split of a published corpus, where it is at hand.
    fn counts(name: &str) -> Option<Vec<(usize, usize)>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpora").join(name);
        if !folder.is_dir() {
            println!("skipped: the published corpus {name} is not at hand");
            return None;
        }
        let corpus = read_corpus(&spec(folder.to_string_lossy())).unwrap();
        assert_eq!(corpus.name, name);
        let count = |dialogues: &Vec<insula_proto::corpus::Dialogue>| {
            (dialogues.len(), dialogues.iter().map(|d| d.utterances.len()).sum())
        };
        Some(corpus.splits.values().map(count).collect())
    }

    #[test]
    fn meld_reads_whole() {
        if let Some(counts) = counts("meld") {
            assert_eq!(counts, [(1038, 9989), (114, 1109), (280, 2610)]);
        }
    }

    #[test]
    fn emorynlp_reads_whole() {
        if let Some(counts) = counts("emorynlp") {
            assert_eq!(counts, [(659, 7551), (89, 954), (79, 984)]);
        }
    }

    #[test]
    fn one_split_reads_where_the_others_are_missing() {
        let folder = tempfile::tempdir().unwrap();
        let text = "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\nHi,Ross,joy,0,0\n";
        fs::write(folder.path().join("test.csv"), text).unwrap();
        let spec = spec(folder.path().to_string_lossy());
        assert_eq!(read_split(&spec, Split::Test).unwrap().splits[&Split::Test][0].id, "test/0");
        let error = read_corpus(&spec).unwrap_err();
        assert!(matches!(error, CorpusError::SplitFiles { split: Split::Train, .. }), "{error}");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = read_corpus(&spec("no/such/folder")).unwrap_err();
        assert!(error.to_string().starts_with("no/such/folder: cannot be read: "), "{error}");
        assert_eq!(error.field(), "corpus.path");
    }
}
