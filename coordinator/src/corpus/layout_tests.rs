//! EmoryNLP's JSON, IEMOCAP's folders, COSMIC's pickles and JSON lines, on small stand-ins. Every text below is synthetic:
//! nothing of IEMOCAP is in it.

use std::collections::BTreeMap;

use insula_proto::{corpus::Split, job::CorpusSpec};
use proptest::prelude::*;

use super::{pickle::writer::Plain, *};

fn spec() -> CorpusSpec {
    CorpusSpec::default()
}

fn file(path: &str, bytes: impl Into<Vec<u8>>) -> WholeFile {
    WholeFile { path: path.into(), bytes: bytes.into() }
}

/// Dialogue and utterance, speaker's number and name, text and label of everything in a split.
fn shown(corpus: &Corpus, split: Split) -> Vec<String> {
    let label = |gold| corpus.labels.name(gold);
    let dialogues = corpus.splits[&split].iter();
    dialogues
        .flat_map(|d| {
            d.utterances
                .iter()
                .map(|u| format!("{}/{} {} {}: {} -> {}", d.id, u.id, u.speaker, u.speaker_name, u.text, label(u.gold)))
        })
        .collect()
}

const SCENES: &str = r#"{"episodes": [{"scenes": [
    {"utterances": [
        {"utterance_id": "s01_e02_c03_u002", "speakers": ["Ann Lee"], "transcript": "Hm?", "emotion": "Neutral"},
        {"utterance_id": "s01_e02_c03_u001", "speakers": ["Bo", "Cy O'Day"], "transcript": "Hey!", "emotion": "Joyful", "tokens": []},
        {"utterance_id": "s01_e02_c03_u004", "speakers": ["Ann Lee"], "transcript": " ", "emotion": "Sad"},
        {"utterance_id": "s01_e02_c03_u005", "speakers": ["Ann Lee"], "transcript": "So.", "emotion": null}]},
    {"utterances": []},
    {"utterances": [{"utterance_id": "s01_e02_c04_u001", "speakers": [], "transcript": "Oh", "emotion": null}]}]}]}"#;

fn scenes(text: &str) -> Result<Corpus, CorpusError> {
    emorynlp_json("emory", &spec(), [(Split::Dev, file("e-dev.json", text))].into())?.collect()
}

#[test]
fn emorynlps_json_has_the_csvs_ids_speakers_and_labels() {
    let corpus = scenes(SCENES).unwrap();
    assert_eq!(corpus.labels.names(), emorynlp::LABELS);
    assert_eq!(
        shown(&corpus, Split::Dev),
        ["dev/s1_e2_c3/1 0 ['Bo', \"Cy O'Day\"]: Hey! -> Joyful", "dev/s1_e2_c3/2 1 ['Ann Lee']: Hm? -> Neutral",]
    );
    let left_out = LeftOut { unlabelled: 2, other_label: 0, empty: 1, dialogues: 1 };
    assert_eq!(corpus.left_out[&Split::Dev], left_out);
    let cases = [
        (
            SCENES.replace("\"Joyful\"", "\"Glad\""),
            "dialogue s1_e2_c3, utterance 1: unknown label 'Glad': expected one of Joyful, Mad,",
        ),
        (SCENES.replace("c03_u004", "c03_x4"), "utterance s01_e02_c03_x4: is not an utterance_id"),
        (
            SCENES.replace("c03_u004", "c05_u004"),
            "utterance s01_e02_c05_u004: stands in scene s1_e2_c3: expected its own",
        ),
        (SCENES.replace("c03_u002", "c03_u001"), "dialogue s1_e2_c3: has two utterances 1"),
        (SCENES.replace("c04_u001", "c03_u001"), "dialogue s1_e2_c3: stands there twice"),
        (SCENES.replace("\"emotion\": \"Sad\"", "\"mood\": \"Sad\""), "line 5: missing field `emotion`"),
        ("{\"episodes\": []}".into(), "the dev split is empty"),
    ];
    for (text, expected) in cases {
        let error = scenes(&text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("e-dev.json: {expected}")), "{error}\nexpected {expected}");
    }
}

const TRANSCRIPTION: &str = "Ses01F_impro01_F000 [001.0000-002.0000]: Synthetic: hello.\n\
    M: (a remark without an id)\n\
    Ses01F_impro01_M000 [002.0000-003.0000]: Synthetic: who is there?\n\
    Ses01F_impro01_MXX0 [003.0000-003.5000]: Synthetic: unlabelled.\n\
    Ses01F_impro01_F001 [004.0000-005.0000]: Synthetic: surprise!\n\
    Ses01F_impro01_M001 [005.0000-006.0000]: \n\
    Ses01F_impro01_M002 [006.0000-007.0000]: Synthetic: no one agrees\n";

const EVALUATION: &str = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n\
    [1.0000 - 2.0000]\tSes01F_impro01_F000\texc\t[2.5000, 2.5000, 2.5000]\nC-E2:\tExcited;\t()\n\n\
    [2.0000 - 3.0000]\tSes01F_impro01_M000\tang\t[2.5000, 2.5000, 2.5000]\n\
    [4.0000 - 5.0000]\tSes01F_impro01_F001\tsur\t[2.5000, 2.5000, 2.5000]\n\
    [5.0000 - 6.0000]\tSes01F_impro01_M001\tneu\t[2.5000, 2.5000, 2.5000]\n\
    [6.0000 - 7.0000]\tSes01F_impro01_M002\txxx\t[2.5000, 2.5000, 2.5000]\n\
    [7.0000 - 8.0000]\tSes01F_impro01_M003\tneu\t[2.5000, 2.5000, 2.5000]\n";

fn session(transcription: &str, evaluation: &str, spec: &CorpusSpec) -> Result<Corpus, CorpusError> {
    let dialogue = IemocapDialogue {
        name: "Ses01F_impro01".into(),
        transcription: file("t.txt", transcription),
        evaluation: file("e.txt", evaluation),
    };
    iemocap("iemocap", spec, "f", [(Split::Train, vec![dialogue])].into())?.collect()
}

#[test]
fn iemocap_keeps_its_six_labels_and_counts_the_rest() {
    let corpus = session(TRANSCRIPTION, EVALUATION, &spec()).unwrap();
    assert_eq!(corpus.labels.names().join(" "), "happy sad neutral angry excited frustrated");
    assert_eq!(
        shown(&corpus, Split::Train),
        [
            // F begins, and is 1 all the same.
            "train/Ses01F_impro01/F000 1 F: Synthetic: hello. -> excited",
            "train/Ses01F_impro01/M000 0 M: Synthetic: who is there? -> angry",
        ]
    );
    let left_out = LeftOut { unlabelled: 2, other_label: 1, empty: 2, dialogues: 0 };
    assert_eq!(corpus.left_out[&Split::Train], left_out);
    // Who learns surprise says so.
    let mut surprised = spec();
    surprised.labels = ["excited", "angry", "neutral", "surprised"].map(String::from).to_vec();
    surprised.rename.insert("sur".into(), "surprised".into());
    let corpus = session(TRANSCRIPTION, EVALUATION, &surprised).unwrap();
    assert_eq!(corpus.splits[&Split::Train][0].utterances.len(), 3);
    let cases = [
        (TRANSCRIPTION.replace("_F000 ", "_F000:"), EVALUATION.to_owned(), "t.txt: line 1: 'Ses01F_impro01_F000:[001"),
        (TRANSCRIPTION.replace("_M000", "_X000"), EVALUATION.to_owned(), "t.txt: line 3: 'Ses01F_impro01_X000 "),
        (TRANSCRIPTION.to_owned(), EVALUATION.replace("F000\texc", "F000 exc"), "e.txt: line 3: '[1.0000 - 2.0000]"),
        (
            TRANSCRIPTION.to_owned(),
            EVALUATION.replace("exc", "glee"),
            "t.txt: dialogue Ses01F_impro01, utterance F000: unknown label 'glee'",
        ),
        (
            TRANSCRIPTION.to_owned(),
            EVALUATION.replace("_F001", "_F000"),
            "e.txt: line 7: Ses01F_impro01_F000 stands there twice",
        ),
        (String::new(), String::new(), "f: the train split is empty"),
    ];
    for (transcription, evaluation, expected) in cases {
        let error = session(&transcription, &evaluation, &spec()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}\nexpected {expected}");
    }
}

#[test]
fn iemocaps_splits_have_the_papers_sizes() {
    let names = |session: usize, count: usize| {
        (0..count).map(move |n| (SESSIONS[session], format!("Ses0{}_{n:02}", session + 1)))
    };
    let all: Vec<_> =
        names(0, 28).chain(names(1, 30)).chain(names(2, 32)).chain(names(3, 30)).chain(names(4, 31)).collect();
    let splits = iemocap_splits(all.clone());
    let count = |split| splits.values().filter(|&&s| s == split).count();
    assert_eq!([Split::Train, Split::Dev, Split::Test].map(count), [108, 12, 31]);
    let dev = |session: &str| splits.iter().filter(|(n, s)| **s == Split::Dev && n.starts_with(session)).count();
    assert_eq!(["Ses01", "Ses02", "Ses03", "Ses04"].map(dev), [2, 3, 4, 3]);
    assert_eq!(iemocap_splits(all.into_iter().rev()), splits, "whatever order they are found in");
}

/// A pickle of two dialogues with the ids `a` and 7, the first train's and dev's, the second test's.
fn parts(speakers: [Plain; 2], labels: [Plain; 2], sentences: [Plain; 2]) -> Vec<Plain> {
    let by_id = |[first, second]: [Plain; 2]| Plain::Dict(vec![(Plain::text("a"), first), (Plain::Int(7), second)]);
    let ids = [Plain::Set(vec![Plain::text("a")]), Plain::ints([7]), Plain::texts(["a"])]; // train, test, valid
    [by_id(speakers), by_id(labels), by_id(sentences)].into_iter().chain(ids).collect()
}

fn pickled(path: &str, parts: Vec<Plain>, spec: &CorpusSpec) -> Result<Corpus, CorpusError> {
    cosmic("c", spec, &file(path, Plain::List(parts).pickled()), &Split::ALL)?.collect()
}

fn iemocap_parts() -> Vec<Plain> {
    parts(
        [Plain::texts(["F", "M"]), Plain::texts(["M"])],
        [Plain::ints([4, 0]), Plain::ints([5])],
        [Plain::texts(["Synthetic one", "Synthetic two"]), Plain::texts(["Synthetic three"])],
    )
}

#[test]
fn cosmics_pickles_are_read_by_their_numbering() {
    let corpus = pickled("x/iemocap.pkl", iemocap_parts(), &spec()).unwrap();
    assert_eq!(
        [Split::Train, Split::Test].map(|split| shown(&corpus, split).join("; ")),
        [
            "train/a/0 1 F: Synthetic one -> excited; train/a/1 0 M: Synthetic two -> happy",
            "test/7/0 0 M: Synthetic three -> frustrated"
        ]
    );
    // MELD: one-hot speakers, sentiments between, and a string of Python 2 with Windows' apostrophe.
    let one_hot = |at: usize| Plain::ints((0..9).map(|place| i64::from(place == at)));
    let mut meld = parts(
        [Plain::list([one_hot(3), one_hot(0), one_hot(3)]), Plain::list([one_hot(8)])],
        [Plain::ints([4, 0, 6]), Plain::ints([3])],
        [
            Plain::list([Plain::Bytes(b"It\x92s on".to_vec()), Plain::text("It\u{92}s off"), Plain::text("né")]),
            Plain::texts(["no"]),
        ],
    );
    meld.insert(2, Plain::dict([]));
    let corpus = pickled("meld.pkl", meld, &spec()).unwrap();
    assert_eq!(
        shown(&corpus, Split::Dev),
        ["dev/a/0 0 3: It’s on -> joyful", "dev/a/1 1 0: It’s off -> neutral", "dev/a/2 0 3: né -> angry"]
    );
    assert_eq!(corpus.layout.as_str(), "cosmic");
    let emory = parts(
        [Plain::texts(["0"]), Plain::texts(["1"])],
        [Plain::ints([2]), Plain::ints([6])],
        [Plain::texts(["a"]), Plain::texts(["b"])],
    );
    assert_eq!(
        shown(&pickled("EmoryNLP.pkl", emory.clone(), &spec()).unwrap(), Split::Test),
        ["test/7/0 0 1: b -> Scared"]
    );
    let daily = pickled("dailydialog.pkl", emory, &spec()).unwrap();
    assert_eq!(shown(&daily, Split::Test), ["test/7/0 0 1: b -> disgust"]);
    assert_eq!(daily.labels.names().join(" "), "happiness neutral anger sadness fear surprise disgust");
}

#[test]
fn a_numbering_can_be_set() {
    let mut other = spec();
    other.labels = ["calm", "wild"].map(String::from).to_vec();
    other.rename = [("4", "wild"), ("0", "calm"), ("5", "calm")].map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    let corpus = pickled("iemocap.pkl", iemocap_parts(), &other).unwrap();
    assert_eq!(shown(&corpus, Split::Train)[0], "train/a/0 1 F: Synthetic one -> wild");
}

#[test]
fn what_is_wrong_with_a_cosmic_pickle_is_said_with_the_dialogue() {
    let with = |place: usize, part: Plain| {
        let mut parts = iemocap_parts();
        parts[place] = part;
        parts
    };
    let both = |first: Plain| Plain::Dict(vec![(Plain::text("a"), first), (Plain::Int(7), Plain::ints([5]))]);
    let cases = [
        (vec![], "the pickle: is a list of 0 parts, expected 6 or 7 parts"),
        (with(1, both(Plain::ints([4]))), "dialogue a: has 2 speakers, 1 labels and 2 sentences: expected as many"),
        (with(1, both(Plain::ints([4, 9]))), "dialogue a, utterance 1: unknown label '9': expected one of happy, sad,"),
        (
            with(1, both(Plain::list([Plain::Int(4), Plain::list([])]))),
            "dialogue a, utterance 1: its label is a list, expected a whole number",
        ),
        (with(1, both(Plain::text("x"))), "dialogue a: its labels are a str, expected a list"),
        (with(1, Plain::dict([])), "dialogue a: has no labels"),
        (with(2, Plain::ints([1])), "the sentences: are a list, expected a dict"),
        (with(3, Plain::Int(3)), "the train ids: are an int, expected a list"),
        (with(3, Plain::list([Plain::list([])])), "the train ids: one is a list, expected text"),
        (with(3, Plain::texts(["a", "a"])), "dialogue a: stands there twice"),
        (with(5, Plain::list([])), "the dev split is empty"),
        (
            with(0, both(Plain::list([Plain::ints([0, 0]), Plain::ints([0, 1])]))),
            "dialogue a, utterance 0: its speaker is a list",
        ),
    ];
    for (parts, expected) in cases {
        let error = pickled("iemocap.pkl", parts, &spec()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("iemocap.pkl: {expected}")), "{error}\nexpected {expected}");
    }
    let error = pickled("mine.pkl", iemocap_parts(), &spec()).unwrap_err();
    assert!(error.to_string().starts_with("mine.pkl: what its labels' numbers mean is told by the file's name"));
    let evil = file("meld.pkl", b"cos\nsystem\n(S'echo hi'\ntR.".as_slice());
    let error = cosmic("c", &spec(), &evil, &Split::ALL).err().unwrap();
    assert!(error.to_string().starts_with("meld.pkl: byte 0: opcode GLOBAL would call os.system: a pickle with code"));
}

#[test]
fn a_pickle_of_few_bytes_cannot_become_a_corpus_of_many() {
    // One long sentence, memo 1, shared by every utterance of a dialogue: `h\x01` is two bytes.
    let times = 20_000;
    let sentence = [b"X\x10\x27\0\0".as_slice(), &[b'x'; 10_000], b"q\x01"].concat();
    let shared = |one: &[u8]| [b"}(X\x01\0\0\0a](".as_slice(), &one.repeat(times), b"eu"].concat();
    let ids = b"](X\x01\0\0\0ae".repeat(3);
    let bytes =
        [b"](".as_slice(), &sentence, b"0", &shared(b"X\x01\0\0\0M"), &shared(b"K\0"), &shared(b"h\x01"), &ids, b"e."]
            .concat();
    let error = cosmic("c", &spec(), &file("iemocap.pkl", bytes), &Split::ALL).err().unwrap().to_string();
    assert_eq!(error, "iemocap.pkl: the pickle: unfolds to more than 16 times its size: expected a corpus");
}

#[test]
fn a_folders_pickle_is_found() {
    let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(pickle_file("f", &names(&["meld_sentences.pkl", "MELD.pkl", "a.txt"])).unwrap(), "MELD.pkl");
    assert_eq!(pickle_file("f", &names(&["old_iemocap.pkl"])).unwrap(), "old_iemocap.pkl");
    for several in [&["a.pkl", "b.pkl"][..], &["meld.pkl", "iemocap.pkl"], &["a.csv"]] {
        assert!(pickle_file("f", &names(several)).unwrap_err().to_string().starts_with("f: expected exactly one of"));
    }
}

const LINES: &str = "{\"id\": \"m-1\", \"utterances\": [{\"speaker\": \"Ann\", \"text\": \"Hi\", \"label\": \"good\"}, \
    {\"id\": 9, \"speaker\": \"Bo\", \"text\": \"Oh né\", \"label\": \"bad\", \"mood\": 3}]}\r\n\n\
    {\"utterances\": [{\"speaker\": \"Bo\", \"text\": \"Well\", \"label\": \"good\"}]}";

fn lines(text: &str, listed: Option<&[&str]>) -> Result<Corpus, CorpusError> {
    let text = text.to_owned();
    let open = move || Ok(Box::new(std::io::Cursor::new(text.clone().into_bytes())) as Box<dyn Read + Send>);
    let files = [(Split::Test, SplitFile { path: "t.jsonl".into(), open: Box::new(open) })].into();
    let listed = listed.map(|labels| labels.iter().map(|l| l.to_string()).collect());
    Surveyed::lines("own", &CorpusSpec { path: "own".into(), ..spec() }, files, listed)?.collect()
}

#[test]
fn json_lines_are_a_dialogue_each() {
    let corpus = lines(LINES, Some(&["good", "bad"])).unwrap();
    assert_eq!(
        shown(&corpus, Split::Test),
        ["test/m-1/0 0 Ann: Hi -> good", "test/m-1/9 1 Bo: Oh né -> bad", "test/3/0 0 Bo: Well -> good"]
    );
    let none = lines(LINES, None).unwrap_err();
    assert_eq!(none.field(), "corpus.labels");
    assert_eq!(
        none.to_string(),
        "own: the layout has no labels of its own: expected corpus.labels to list them, or a file labels.json to"
    );
    let cases = [
        (LINES.replace("\"bad\"", "\"glum\""), "row 1: unknown label 'glum': expected one of good, bad"),
        (LINES.replace("\"Well\"", "\" \""), "row 3: utterance 0: text is empty: expected text"),
        (LINES.replace("\"label\": \"bad\"", "\"lable\": \"bad\""), "row 1: column "),
        (
            LINES.replace("{\"utterances\"", "{\"id\": \"m-1\", \"utterances\""),
            "row 3: its id 'm-1' is empty or was there before",
        ),
        (LINES.replace("\"id\": 9", "\"id\": 0"), "row 1: has two utterances '0'"),
        ("{\"utterances\": []}".into(), "row 1: dialogue '1' has no utterances"),
        (LINES[..LINES.len() - 1].into(), "row 3: column "),
        ("\n".into(), "the test split is empty: expected at least one labelled utterance"),
    ];
    for (text, expected) in cases {
        let error = lines(&text, Some(&["good", "bad"])).unwrap_err().to_string();
        assert!(error.starts_with(&format!("t.jsonl: {expected}")), "{error}\nexpected {expected}");
    }
}

#[test]
fn the_form_of_a_folder_is_told_by_its_names() {
    let form =
        |layout: &str, names: &[&str]| form_of("f", layout, &names.iter().map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(form("auto", &["train.csv", "x.pkl"]).unwrap(), Form::Csv);
    assert_eq!(form("", &["train.jsonl", "labels.json"]).unwrap(), Form::Jsonl);
    assert_eq!(form("auto", &["emotion-detection-trn.json"]).unwrap(), Form::EmoryNlpJson);
    assert_eq!(form("emorynlp", &["emotion-detection-tst.json"]).unwrap(), Form::EmoryNlpJson);
    assert_eq!(form("emorynlp", &["a.csv", "test.json"]).unwrap(), Form::Csv);
    assert_eq!(form("auto", &["Session1", "Session2"]).unwrap(), Form::Iemocap);
    assert_eq!(form("auto", &["meld.pkl"]).unwrap(), Form::Cosmic);
    assert_eq!(form("iemocap", &["meld.pkl"]).unwrap(), Form::Iemocap);
    assert!(form("auto", &["README"]).unwrap_err().to_string().starts_with("f: no corpus is here: expected .csv"));
    let wrong = form("melt", &[]).unwrap_err();
    assert_eq!(wrong.to_string(), "layout 'melt': expected auto, meld, emorynlp, iemocap, cosmic or jsonl");
    assert_eq!(wrong.field(), "corpus.layout");
}

proptest! {
    #[test]
    fn a_damaged_pickle_is_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = Plain::List(iemocap_parts()).pickled();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(if cut { at } else { bytes.len() });
        let _ = cosmic("c", &spec(), &file("iemocap.pkl", bytes), &Split::ALL).map(|s| s.collect());
    }

    #[test]
    fn any_line_is_read_or_refused(text in "[{}\\[\\]\",: a-z0-9\n]{0,80}") {
        let _ = lines(&text, Some(&["good", "bad"]));
    }
}

/// The published CSVs, written as EmoryNLP's JSON and as COSMIC's pickle, are read as the same corpora.
mod published {
    use std::path::Path;

    use super::*;
    use crate::shell::corpora::read_splits;

    fn read(name: &str) -> Option<Corpus> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpora").join(name);
        if !folder.is_dir() {
            println!("skipped: the published corpus {name} is not at hand");
            return None;
        }
        let path = folder.to_string_lossy().into_owned();
        Some(read_splits(&CorpusSpec { path, ..spec() }, &Split::ALL).unwrap())
    }

    /// `['Ann', "Bo's"]` as a list of names.
    fn names(list: &str) -> Vec<String> {
        let inner = list.strip_prefix('[').and_then(|l| l.strip_suffix(']')).unwrap();
        inner.split(", ").map(|name| name[1..name.len() - 1].to_owned()).collect()
    }

    #[test]
    fn emorynlp_as_json_is_emorynlp() {
        let Some(corpus) = read("emorynlp") else { return };
        let written = |(split, dialogues): (&Split, &Vec<Dialogue>)| {
            let scene = |dialogue: &Dialogue| {
                let id = dialogue.id.rsplit('/').next().unwrap();
                let turn = |u: &insula_proto::corpus::Utterance| {
                    let emotion = corpus.labels.name(u.gold);
                    let (id, speakers) = (format!("{id}_u{:03}", u.id.parse::<u64>().unwrap()), names(&u.speaker_name));
                    serde_json::json!({ "utterance_id": id, "speakers": speakers, "transcript": u.text, "emotion": emotion })
                };
                serde_json::json!({ "utterances": dialogue.utterances.iter().map(turn).collect::<Vec<_>>() })
            };
            let scenes: Vec<_> = dialogues.iter().map(scene).collect();
            (*split, file("x.json", serde_json::json!({ "episodes": [{ "scenes": scenes }] }).to_string()))
        };
        let files = corpus.splits.iter().map(written).collect();
        let read = emorynlp_json("emorynlp", &spec(), files).unwrap().collect().unwrap();
        assert_eq!(read.splits, corpus.splits);
        assert!(read.left_out.values().all(|left_out| *left_out == LeftOut::default()));
    }

    #[test]
    fn meld_as_a_pickle_is_meld() {
        let Some(corpus) = read("meld") else { return };
        let (mut speakers, mut labels, mut sentences) = (vec![], vec![], vec![]);
        let mut ids: BTreeMap<Split, Vec<Plain>> = BTreeMap::new();
        let numbers: Vec<i64> = {
            let names = ["neutral", "surprise", "fear", "sad", "joyful", "disgust", "angry"];
            corpus.labels.names().iter().map(|l| names.iter().position(|n| n == l).unwrap() as i64).collect()
        };
        let dialogues = corpus.splits.iter().flat_map(|(split, dialogues)| dialogues.iter().map(move |d| (*split, d)));
        for (id, (split, dialogue)) in dialogues.enumerate() {
            let id = Plain::Int(id as i64);
            ids.entry(split).or_default().push(id.clone());
            let turns = || dialogue.utterances.iter();
            let one_hot = |speaker: u32| Plain::ints((0..9).map(|place| i64::from(place == speaker)));
            speakers.push((id.clone(), Plain::list(turns().map(|u| one_hot(u.speaker)))));
            labels.push((id.clone(), Plain::ints(turns().map(|u| numbers[u.gold.index()]))));
            sentences.push((id, Plain::texts(turns().map(|u| u.text.as_str()))));
        }
        let mut ids = |split| Plain::List(ids.remove(&split).unwrap());
        let (train, test, dev) = (ids(Split::Train), ids(Split::Test), ids(Split::Dev));
        let parts =
            vec![Plain::Dict(speakers), Plain::Dict(labels), Plain::dict([]), Plain::Dict(sentences), train, test, dev];
        let read = pickled("meld.pkl", parts, &spec()).unwrap();
        let of = |corpus: &Corpus| -> Vec<_> {
            let turns = corpus.splits.values().flatten().flat_map(|d| &d.utterances);
            turns.map(|u| (u.speaker, u.text.clone(), corpus.labels.name(u.gold).to_owned())).collect()
        };
        assert_eq!(of(&read), of(&corpus));
        let counts = |corpus: &Corpus| corpus.splits.values().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(counts(&read), counts(&corpus));
    }

    #[test]
    fn the_published_corpora_are_described_as_measured_and_pass_the_preflight() {
        let cases = [("meld", [1038, 114, 280], 31.27, 331, 105, 9), ("emorynlp", [659, 89, 79], 13.25, 166, 148, 9)];
        for (name, dialogues, majority, shared, several, speakers) in cases {
            let Some(corpus) = read(name) else { continue };
            let described = describe::describe(&corpus);
            let of = |split| &described.splits[&split];
            assert_eq!(Split::ALL.map(|split| of(split).dialogues), dialogues);
            let score = 100.0 * of(Split::Test).majority.as_ref().unwrap().weighted_f1;
            assert!((score - majority).abs() < 0.005, "{name}: {score}");
            assert_eq!(described.leakage[0].utterances, shared, "{name}");
            assert_eq!(of(Split::Train).texts_with_several_labels, several, "{name}");
            assert_eq!(of(Split::Train).most_speakers, speakers, "{name}");
            let found = preflight::preflight(&described, true);
            assert!(found.iter().all(|f| f.severity == preflight::Severity::Warn), "{found:?}");
            assert!(found.iter().any(|f| f.text.starts_with(&format!("the texts of {shared} of"))), "{found:?}");
        }
    }
}
