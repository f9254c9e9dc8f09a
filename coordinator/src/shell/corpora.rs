//! Opens a corpus's files for [`crate::corpus`] to read.
#![expect(clippy::disallowed_methods, reason = "the room that opens corpus files")]

use std::{collections::BTreeMap, fs, io::Read as _, path::Path};

use insula_proto::{
    corpus::Split,
    job::{CorpusSpec, JobSpec, LabelsSpec},
};

use crate::corpus::{
    self, Corpus, CorpusError, Form, IemocapDialogue, SESSIONS, SplitFile, Surveyed, WholeFile, form_of,
};

/// Largest file that is sharded: as much as is read in the two minutes a call may take, at the speed measured.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// Largest file that is read into memory whole: 30 times MELD's train split is 33 MB (guessed).
const COLLECTED_BYTES_MAX: u64 = 1 << 30;

/// Largest file of a layout that is read whole: 20 times EmoryNLP's JSON (reckoned), and COSMIC's pickles are smaller.
const WHOLE_BYTES_MAX: u64 = 64 << 20;

/// The label set beside JSON lines.
const LABELS: &str = "labels.json";

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

/// The splits asked for, of all corpora of a job one after the other, in memory, labels mapped.
///
/// # Errors
/// As [`read_splits`]; and as [`Surveyed::mapped`].
pub fn read_job(spec: &JobSpec, splits: &[Split]) -> Result<Vec<Corpus>, CorpusError> {
    let read = |(name, corpus): (Option<&str>, &CorpusSpec)| {
        survey_splits(corpus, splits, COLLECTED_BYTES_MAX)?.mapped(&spec.labels, name)?.collect()
    };
    spec.all_corpora().into_iter().map(read).collect()
}

fn survey_splits(spec: &CorpusSpec, splits: &[Split], bytes_max: u64) -> Result<Surveyed, CorpusError> {
    let path = Path::new(&spec.path);
    // A pickle may be named itself.
    let (folder, names) = match path.is_file() {
        true => (path.parent().unwrap_or(path), vec![last_name(path)]),
        false => (path, file_names(path)?),
    };
    let name = name_of(path);
    let form = form_of(&spec.path, &spec.layout, &names)?;
    let file_of = |&split: &Split| Ok((split, folder.join(corpus::split_file(form, &spec.path, &names, split)?)));
    match form {
        Form::Csv | Form::Jsonl => {
            let open = |split| file_of(split).and_then(|(split, path)| Ok((split, split_file(&path, bytes_max)?)));
            let files = splits.iter().map(open).collect::<Result<_, CorpusError>>()?;
            match form {
                Form::Csv => Surveyed::new(&name, spec, files),
                _ => Surveyed::lines(&name, spec, files, listed_labels(folder, &names)?),
            }
        }
        Form::EmoryNlpJson => {
            let read = |split| file_of(split).and_then(|(split, path)| Ok((split, whole_file(&path)?)));
            corpus::emorynlp_json(&name, spec, splits.iter().map(read).collect::<Result<_, CorpusError>>()?)
        }
        Form::Iemocap => corpus::iemocap(&name, spec, &spec.path, iemocap_dialogues(folder, splits)?),
        Form::Cosmic => {
            let file = whole_file(&folder.join(corpus::pickle_file(&spec.path, &names)?))?;
            corpus::cosmic(&name, spec, &file, splits)
        }
    }
}

/// The labels in `labels.json`, where there is one: a list in prompt order.
fn listed_labels(folder: &Path, names: &[String]) -> Result<Option<Vec<String>>, CorpusError> {
    if !names.iter().any(|name| name == LABELS) {
        return Ok(None);
    }
    let file = whole_file(&folder.join(LABELS))?;
    let labels = serde_json::from_slice(&file.bytes).map_err(|error| CorpusError::Malformed {
        file: file.path,
        place: format!("line {}", error.line()),
        problem: format!("{error}: expected a list of labels in prompt order"),
    })?;
    Ok(Some(labels))
}

/// The files of IEMOCAP's dialogues, in the order of their names.
fn iemocap_dialogues(folder: &Path, splits: &[Split]) -> Result<BTreeMap<Split, Vec<IemocapDialogue>>, CorpusError> {
    let mut places = BTreeMap::new();
    for session in SESSIONS {
        // A session that is missing is missed: its split would come out short without a word.
        for file in file_names(&folder.join(session).join("dialog/transcriptions"))? {
            // Archives from a Mac hold a "._" beside every file.
            if let Some(name) = file.strip_suffix(".txt").filter(|name| !name.starts_with('.')) {
                places.insert(name.to_owned(), session);
            }
        }
    }
    let split_of = corpus::iemocap_splits(places.iter().map(|(name, session)| (*session, name.clone())));
    let mut dialogues: BTreeMap<Split, Vec<_>> = splits.iter().map(|&split| (split, vec![])).collect();
    for (name, split) in split_of {
        let Some(dialogues) = dialogues.get_mut(&split) else { continue };
        let dialog = folder.join(places[&name]).join("dialog");
        let file = |kind: &str| whole_file(&dialog.join(kind).join(format!("{name}.txt")));
        let (transcription, evaluation) = (file("transcriptions")?, file("EmoEvaluation")?);
        dialogues.push(IemocapDialogue { name, transcription, evaluation });
    }
    Ok(dialogues)
}

/// The folder's or file's own name, even where the path ends in `.` or `..`; of a file without its ending.
fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let name = if whole.is_file() { whole.file_stem() } else { whole.file_name() };
    name.map_or_else(|| "corpus".into(), |name| name.to_string_lossy().into_owned())
}

fn last_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
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

/// A file's name in messages; the file must have at most `bytes_max`.
fn checked(path: &Path, bytes_max: u64) -> Result<String, CorpusError> {
    let name = path.display().to_string();
    let unreadable = |source| CorpusError::Unreadable { path: name.clone(), source };
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > bytes_max {
        return Err(CorpusError::TooLarge { path: name, bytes, most: bytes_max });
    }
    Ok(name)
}

fn split_file(path: &Path, bytes_max: u64) -> Result<SplitFile, CorpusError> {
    let name = checked(path, bytes_max)?;
    let path = path.to_path_buf();
    Ok(SplitFile { path: name, open: Box::new(move || Ok(Box::new(fs::File::open(&path)?))) })
}

/// All of a file; the limit holds even where it grows meanwhile.
fn whole_file(path: &Path) -> Result<WholeFile, CorpusError> {
    let name = checked(path, WHOLE_BYTES_MAX)?;
    let mut bytes = Vec::new();
    let file = fs::File::open(path).and_then(|file| file.take(WHOLE_BYTES_MAX).read_to_end(&mut bytes));
    file.map_err(|source| CorpusError::Unreadable { path: name.clone(), source })?;
    Ok(WholeFile { path: name, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(path: impl Into<String>) -> CorpusSpec {
        CorpusSpec { path: path.into(), ..CorpusSpec::default() }
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

    /// IEMOCAP's folders with synthetic words: two dialogues a session, but ten in the first.
    fn synthetic_iemocap(folder: &Path) {
        for (session, count) in SESSIONS.into_iter().zip([10, 2, 2, 2, 2]) {
            let dialog = folder.join(session).join("dialog");
            for kind in ["transcriptions", "EmoEvaluation"] {
                fs::create_dir_all(dialog.join(kind)).unwrap();
            }
            fs::write(dialog.join("transcriptions/._Ses_junk.txt"), [0, 5, 22, 7]).unwrap();
            for n in 0..count {
                let name = format!("Ses0{}F_impro{n:02}", &session[7..]);
                let turn = |id: &str| format!("{name}_{id} [1.0-2.0]: Synthetic words, one\u{92}s own.\n");
                fs::write(dialog.join(format!("transcriptions/{name}.txt")), turn("F000") + &turn("M000")).unwrap();
                let label = |id: &str, label: &str| format!("[1.0 - 2.0]\t{name}_{id}\t{label}\t[2.5, 2.5, 2.5]\n");
                let labels = label("F000", "hap") + &label("M000", if n % 2 == 0 { "fru" } else { "xxx" });
                fs::write(dialog.join(format!("EmoEvaluation/{name}.txt")), labels).unwrap();
            }
        }
    }

    #[test]
    fn iemocaps_folders_are_found_and_split() {
        let folder = tempfile::tempdir().unwrap();
        synthetic_iemocap(folder.path());
        let spec = spec(folder.path().to_string_lossy());
        let corpus = read_splits(&spec, &Split::ALL).unwrap();
        let ids = |split| corpus.splits[&split].iter().map(|d| d.id.as_str()).collect::<Vec<_>>();
        assert_eq!(ids(Split::Dev), ["dev/Ses01F_impro09"]);
        assert_eq!(ids(Split::Test), ["test/Ses05F_impro00", "test/Ses05F_impro01"]);
        assert_eq!(ids(Split::Train).len(), 15);
        assert_eq!((corpus.left_out[&Split::Dev].unlabelled, corpus.left_out[&Split::Train].unlabelled), (1, 7));
        assert_eq!(corpus.splits[&Split::Test][0].utterances[0].text, "Synthetic words, one’s own.");
        assert_eq!(read_splits(&spec, &[Split::Test]).unwrap().splits[&Split::Test], corpus.splits[&Split::Test]);
        fs::remove_file(folder.path().join("Session5/dialog/EmoEvaluation/Ses05F_impro01.txt")).unwrap();
        let error = read_splits(&spec, &Split::ALL).unwrap_err().to_string();
        assert!(error.contains("EmoEvaluation") && error.contains("Ses05F_impro01.txt: cannot be read"), "{error}");
        fs::remove_dir_all(folder.path().join("Session3")).unwrap();
        let error = read_splits(&spec, &Split::ALL).unwrap_err().to_string();
        assert!(error.contains("Session3"), "{error}");
    }

    #[test]
    fn json_lines_take_their_labels_from_beside_them() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        for split in Split::ALL {
            let line = r#"{"utterances": [{"speaker": "Ann", "text": "Hi", "label": "good"}]}"#;
            write(&format!("{split}.jsonl"), line);
        }
        let mut spec = spec(folder.path().to_string_lossy());
        assert_eq!(read_splits(&spec, &Split::ALL).unwrap_err().field(), "corpus.labels");
        write("labels.json", r#"["bad", "good"]"#);
        let corpus = read_splits(&spec, &Split::ALL).unwrap();
        assert_eq!(corpus.splits[&Split::Dev][0].utterances[0].gold.0, 1);
        spec.labels = ["good", "bad"].map(String::from).to_vec();
        assert_eq!(read_splits(&spec, &Split::ALL).unwrap().splits[&Split::Dev][0].utterances[0].gold.0, 0);
        write("labels.json", "{}");
        let error = read_splits(&spec, &Split::ALL).unwrap_err().to_string();
        assert!(error.contains("labels.json: line 1: ") && error.contains("expected a list of labels"), "{error}");
    }

    #[test]
    fn a_pickle_is_read_by_its_own_path_and_by_its_folders() {
        let folder = tempfile::tempdir().unwrap();
        let pickle = folder.path().join("dailydialog.pkl");
        // [{'d': ['0']}, {'d': [1]}, {'d': ['Synthetic']}, ['d'], ['d'], ['d']] in protocol 0
        let part = |value: &str| format!("(dVd\n(l{value}as");
        let (speakers, labels, sentences) = (part("V0\n"), part("I1\n"), part("VSynthetic\n"));
        let text = format!("(l{speakers}a{labels}a{sentences}a{}.", "(lVd\naa".repeat(3));
        fs::write(&pickle, text).unwrap();
        for path in [pickle.as_path(), folder.path()] {
            let corpus = read_splits(&spec(path.to_string_lossy()), &Split::ALL).unwrap();
            assert_eq!(corpus.splits[&Split::Dev][0].utterances[0].text, "Synthetic");
        }
        assert_eq!(read_splits(&spec(pickle.to_string_lossy()), &Split::ALL).unwrap().name, "dailydialog");
        fs::write(&pickle, b"cos\nsystem\n(S'touch never'\ntR.").unwrap();
        let error = read_splits(&spec(pickle.to_string_lossy()), &Split::ALL).unwrap_err().to_string();
        assert!(error.contains("dailydialog.pkl: byte 0: opcode GLOBAL would call os.system"), "{error}");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = read_splits(&spec("no/such/folder"), &Split::ALL).unwrap_err();
        assert!(error.to_string().starts_with("no/such/folder: cannot be read: "), "{error}");
        assert_eq!(error.field(), "corpus.path");
    }
}
