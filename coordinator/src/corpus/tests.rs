//! What the readers accept and refuse, on small files written here and on the published ones where they are at hand.

use std::collections::BTreeMap;

use insula_proto::{
    corpus::{Label, Split},
    job::{CorpusSpec, JobSpec},
};

use super::*;

const MELD: &str = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\r\n\
    1,\"Well, hi.\",Ross,neutral,neutral,4,2\r\n\
    2,\"He said \"\"no\"\".\nTwice.\",Rachel,joy,positive,4,0\r\n\
    3,Oh!,Ross,sadness,negative,9,0\r\n\
    4,Yes,Ross,anger,negative,4,7\r\n";

const EMORYNLP: &str = "Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode\n\
    Hello,\"['A', 'B']\",Joyful,1,1,1,2\nHi,['A'],Mad,1,3,1,2\nOh,['A'],Scared,1,1,2,2\n";

fn spec() -> CorpusSpec {
    JobSpec::default().corpus
}

fn read_train(text: &[u8], spec: &CorpusSpec) -> Result<Corpus, CorpusError> {
    let file = SplitFile { path: "sample/train.csv".into(), bytes: text.to_vec() };
    read("sample", spec, &BTreeMap::from([(Split::Train, file)]))
}

fn refusal(text: &[u8]) -> String {
    read_train(text, &spec()).expect_err("the file is wrong").to_string()
}

/// Id, speaker, text and gold of an utterance.
type Shown = (String, u32, String, u16);

/// Every utterance, by dialogue.
fn shown(corpus: &Corpus) -> Vec<(String, Vec<Shown>)> {
    let turn = |u: &insula_proto::corpus::Utterance| (u.id.clone(), u.speaker, u.text.clone(), u.gold.0);
    let dialogues = corpus.splits[&Split::Train].iter();
    dialogues.map(|d| (d.id.clone(), d.utterances.iter().map(turn).collect())).collect()
}

#[test]
fn meld_dialogues_are_ordered_by_utterance_id_and_speakers_by_first_word() {
    let corpus = read_train(MELD.as_bytes(), &spec()).unwrap();
    let turn = |id: &str, speaker, text: &str, gold| (id.to_owned(), speaker, text.to_owned(), gold);
    assert_eq!(
        shown(&corpus),
        [
            (
                "train/4".to_owned(),
                vec![turn("0", 0, "He said \"no\".\nTwice.", 4), turn("2", 1, "Well, hi.", 0), turn("7", 1, "Yes", 6)]
            ),
            ("train/9".to_owned(), vec![turn("0", 0, "Oh!", 3)]),
        ]
    );
}

#[test]
fn emorynlp_is_told_by_its_header_and_people_who_speak_together_are_one_speaker() {
    let corpus = read_train(EMORYNLP.as_bytes(), &spec()).unwrap();
    let first = &corpus.splits[&Split::Train][0];
    assert_eq!(first.id, "train/s1_e2_c1");
    assert_eq!(first.utterances[0].speaker_name, "['A', 'B']");
    assert_eq!(first.utterances.iter().map(|u| u.speaker).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(corpus.splits[&Split::Train][1].id, "train/s2_e2_c1");
}

#[test]
fn a_byte_order_mark_is_passed_over() {
    let marked = [b"\xef\xbb\xbf", MELD.as_bytes()].concat();
    assert_eq!(read_train(&marked, &spec()).unwrap(), read_train(MELD.as_bytes(), &spec()).unwrap());
}

#[test]
fn labels_and_their_renaming_can_be_set() {
    let mut spec = spec();
    spec.labels = ["good", "bad", "flat"].map(String::from).to_vec();
    spec.rename = [("neutral", "flat"), ("joy", "good"), ("sadness", "bad"), ("anger", "bad")]
        .map(|(from, to)| (from.to_owned(), to.to_owned()))
        .into();
    let corpus = read_train(MELD.as_bytes(), &spec).unwrap();
    assert_eq!(corpus.splits[&Split::Train][0].utterances[0].gold, Label(0));
    spec.labels.pop();
    let error = read_train(MELD.as_bytes(), &spec).unwrap_err().to_string();
    assert_eq!(
        error,
        "sample/train.csv: row 2: unknown label 'neutral': expected one of good, bad, anger, joy, sadness"
    );
    spec.labels = vec!["one".into()];
    assert_eq!(read_train(MELD.as_bytes(), &spec).unwrap_err().field(), "corpus.labels");
}

#[test]
fn rows_are_named_as_an_editor_counts_them() {
    // The second record spans lines 3 and 4, so the record "4,Yes" stands on line 6.
    let unknown = refusal(MELD.replace("anger", "rage").as_bytes());
    assert!(
        unknown.starts_with("sample/train.csv: row 6: unknown label 'rage': expected one of neutral,"),
        "{unknown}"
    );
    let unix = refusal(MELD.replace("\r\n", "\n\n").replace("anger", "rage").as_bytes());
    assert!(unix.contains("row 10:"), "{unix}");
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_row() {
    let cases = [
        (MELD.replace("Speaker,", "Who,"), "column 'Speaker' is missing: found Sr No.,Utterance,Who,"),
        (MELD.replace(",4,2\r", ",4,two\r"), "row 2: Utterance_ID is 'two': expected a whole number"),
        (MELD.replace(",9,0\r", ",-9,0\r"), "row 5: Dialogue_ID is '-9': expected a whole number"),
        (MELD.replace(",4,7\r", ",4,2\r"), "row 6: dialogue train/4 already has an utterance 2, on row 2"),
        (MELD.replace("Oh!", " "), "row 5: Utterance is empty: expected text"),
        (MELD.replace("Oh!", "Oh!,"), "row 5: 8 fields, expected the header's 7"),
        (MELD.replace("Twice.\"", "Twice."), "row 3: a broken quote: it opens a field and is never closed"),
        (MELD.replace("hi.\"", "hi."), "row 2: a broken quote: text follows the quote that closes a field"),
        (MELD.replace("Oh!", "Oh\"!"), "row 5: a broken quote: a quote inside a field that does not begin with one"),
        (MELD[..MELD.find("\r\n1").unwrap() + 2].to_owned(), "the train split is empty"),
        (String::new(), "the layout cannot be told by the header ''"),
        ("a,b\n1,2\n".into(), "the layout cannot be told by the header 'a,b'"),
    ];
    for (text, expected) in cases {
        let error = refusal(text.as_bytes());
        assert!(error.starts_with("sample/train.csv: ") && error.contains(expected), "{error}\nexpected {expected}");
    }
    let latin1 = MELD.replace("Oh!", "O#h").into_bytes();
    let latin1: Vec<u8> = latin1.into_iter().map(|b| if b == b'#' { 0x92 } else { b }).collect();
    let at = latin1.iter().position(|&b| b == 0x92).unwrap();
    assert_eq!(refusal(&latin1), format!("sample/train.csv: row 5: byte {at} is not valid UTF-8"));
}

#[test]
fn a_splits_file_is_found_by_its_name_and_must_be_the_only_one() {
    let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    let good = names(&["LICENSE", "X_Train.csv", "valid.CSV", "my_test.csv"]);
    assert_eq!(split_file("f", &good, Split::Dev).unwrap(), "valid.CSV");
    assert_eq!(split_file("f", &good, Split::Train).unwrap(), "X_Train.csv");
    let error = |n: &[&str], split| split_file("f", &names(n), split).unwrap_err().to_string();
    let start = "f: expected exactly one .csv file with ";
    assert_eq!(
        error(&["train.csv"], Split::Test),
        format!("{start}'test' in its name for the test split, found none among train.csv")
    );
    assert_eq!(
        error(&["dev.csv", "dev2.csv"], Split::Dev),
        format!("{start}'dev' or 'valid' in its name for the dev split, found dev.csv, dev2.csv")
    );
    assert!(error(&["a.txt"], Split::Dev).ends_with("found no .csv file at all"));
    assert!(error(&["train_dev.csv"], Split::Dev).ends_with("found train_dev.csv"));
}
