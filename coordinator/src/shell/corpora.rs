//! Opens a corpus's files for [`crate::corpus`] to read.
#![expect(clippy::disallowed_methods, reason = "the room that opens corpus files")]

use std::{collections::BTreeMap, fs, path::Path};

use insula_proto::{
    corpus::Split,
    job::{CorpusSpec, LabelsSpec},
};

use crate::corpus::{self, Corpus, CorpusError, SplitFile, Surveyed};

/// Largest file that is sharded: as much as is read in the two minutes a call may take, at the speed measured.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// Largest file that is read into memory whole: 30 times MELD's train split is 33 MB (guessed).
const COLLECTED_BYTES_MAX: u64 = 1 << 30;

/// All three splits of the corpus in `spec.path`, which a job may have a name for, looked through, its labels mapped, and
/// ready to be read in bounded memory.
///
/// # Errors
/// See [`CorpusError`]; the first thing that is wrong with the form of a file, with file and row.
pub fn survey_corpus(spec: &CorpusSpec, labels: &LabelsSpec, called: Option<&str>) -> Result<Surveyed, CorpusError> {
    survey_splits(spec, &Split::ALL, FILE_BYTES_MAX)?.mapped(labels, called)
}

/// The splits asked for, of the corpus in `spec.path`, in memory; files of other splits may be missing or wrong.
///
/// # Errors
/// See [`CorpusError`]; the first thing that is wrong, with file and row.
pub fn read_splits(spec: &CorpusSpec, splits: &[Split]) -> Result<Corpus, CorpusError> {
    survey_splits(spec, splits, COLLECTED_BYTES_MAX)?.collect()
}

fn survey_splits(spec: &CorpusSpec, splits: &[Split], bytes_max: u64) -> Result<Surveyed, CorpusError> {
    let folder = Path::new(&spec.path);
    let names = file_names(folder)?;
    let mut files = BTreeMap::new();
    for &split in splits {
        let name = corpus::split_file(&spec.path, &names, split)?;
        files.insert(split, split_file(&folder.join(name), bytes_max)?);
    }
    Surveyed::new(&name_of(folder), spec, files)
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

fn split_file(path: &Path, bytes_max: u64) -> Result<SplitFile, CorpusError> {
    let name = path.display().to_string();
    let unreadable = |source| CorpusError::Unreadable { path: name.clone(), source };
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > bytes_max {
        return Err(CorpusError::TooLarge { path: name, bytes, most: bytes_max });
    }
    let path = path.to_path_buf();
    Ok(SplitFile { path: name, open: Box::new(move || Ok(Box::new(fs::File::open(&path)?))) })
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
        let corpus = read_splits(&spec(folder.to_string_lossy()), &Split::ALL).unwrap();
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
        assert_eq!(read_splits(&spec, &[Split::Test]).unwrap().splits[&Split::Test][0].id, "test/0");
        let error = read_splits(&spec, &Split::ALL).unwrap_err();
        assert!(matches!(error, CorpusError::SplitFiles { split: Split::Train, .. }), "{error}");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = read_splits(&spec("no/such/folder"), &Split::ALL).unwrap_err();
        assert!(error.to_string().starts_with("no/such/folder: cannot be read: "), "{error}");
        assert_eq!(error.field(), "corpus.path");
    }
}
