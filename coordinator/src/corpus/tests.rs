//! What the readers accept and refuse, on small files written here and on the published ones where they are at hand.

use std::{collections::BTreeMap, io::Cursor};

use insula_proto::{
    corpus::{Label, Split},
    job::CorpusSpec,
};

use proptest::prelude::*;

use super::*;

const MELD: &str = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\r\n\
    1,\"Well, hi.\",Ross,neutral,neutral,4,2\r\n\
    2,\"He said \"\"no\"\".\nTwice.\",Rachel,joy,positive,4,0\r\n\
    3,Oh!,Ross,sadness,negative,9,0\r\n\
    4,Yes,Ross,anger,negative,4,7\r\n";

const EMORYNLP: &str = "Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode\n\
    Hello,\"['A', 'B']\",Joyful,1,1,1,2\nHi,['A'],Mad,1,3,1,2\nOh,['A'],Scared,1,1,2,2\n";

fn spec() -> CorpusSpec {
    CorpusSpec::default()
}

fn file_of(text: &[u8]) -> SplitFile {
    let text = text.to_vec();
    SplitFile { path: "sample/train.csv".into(), open: Box::new(move || Ok(Box::new(Cursor::new(text.clone())))) }
}

fn read_train(text: &[u8], spec: &CorpusSpec) -> Result<Corpus, CorpusError> {
    Surveyed::new("sample", spec, BTreeMap::from([(Split::Train, file_of(text))]))?.collect()
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
    assert_eq!(split_file(Form::Csv, "f", &good, Split::Dev).unwrap(), "valid.CSV");
    assert_eq!(split_file(Form::Csv, "f", &good, Split::Train).unwrap(), "X_Train.csv");
    let error = |n: &[&str], split| split_file(Form::Csv, "f", &names(n), split).unwrap_err().to_string();
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

/// Generated rows: dialogue, utterance, text, label; every text is quoted where it must be.
fn csv_of(rows: &[(u64, u64, String, usize)]) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID"]).unwrap();
    for (dialogue, number, text, label) in rows {
        let speaker = format!("speaker {}", (dialogue + number) % 3);
        writer
            .write_record([text, &speaker, meld::LABELS[*label], &dialogue.to_string(), &number.to_string()])
            .unwrap();
    }
    writer.into_inner().unwrap()
}

/// What a file says, by a library and maps in memory.
fn told_otherwise(bytes: &[u8]) -> Vec<(String, Vec<Shown>)> {
    let mut order: Vec<u64> = Vec::new();
    let mut groups: BTreeMap<u64, BTreeMap<u64, csv::StringRecord>> = BTreeMap::new();
    for row in csv::Reader::from_reader(bytes).records().map(Result::unwrap) {
        let (dialogue, number) = (row[3].parse().unwrap(), row[4].parse().unwrap());
        order.extend(Some(dialogue).filter(|d| !groups.contains_key(d)));
        groups.entry(dialogue).or_default().insert(number, row);
    }
    let dialogue = |id: &u64| {
        let mut speakers: Vec<&str> = Vec::new();
        let turns = groups[id].values().map(|row| {
            speakers.extend(Some(&row[1]).filter(|name| !speakers.contains(name)));
            let speaker = speakers.iter().position(|name| *name == &row[1]).unwrap() as u32;
            let gold = meld::LABELS.iter().position(|label| *label == &row[2]).unwrap() as u16;
            (row[4].to_owned(), speaker, row[0].to_owned(), gold)
        });
        (format!("train/{id}"), turns.collect())
    };
    order.iter().map(dialogue).collect()
}

proptest! {
    #[test]
    fn a_stream_reads_what_maps_in_memory_read(
        rows in prop::collection::btree_map((0u64..9, 0u64..12), ("[a-c \",\r\né]{0,9}x", 0usize..7), 1..60),
        scattered in any::<bool>(),
    ) {
        let mut rows: Vec<_> = rows.into_iter().map(|((d, u), (text, label))| (d, u, text, label)).collect();
        if scattered {
            rows.sort_by_key(|(dialogue, utterance, ..)| (utterance % 5, dialogue * 7 % 9));
        }
        let bytes = csv_of(&rows);
        prop_assert_eq!(shown(&read_train(&bytes, &spec()).unwrap()), told_otherwise(&bytes));
    }

    #[test]
    fn records_are_the_csv_librarys_where_no_quote_is_broken(text in "([a-bé ]{0,3}|\"([a-b,\r\n]|\"\"){0,4}\"|[,\r\n]){0,40}") {
        let mut records = Records::new("f", text.as_bytes());
        let mut ours = Vec::new();
        let broken = loop {
            match records.advance() {
                Ok(true) => ours.push(records.record().fields().map(str::to_owned).collect::<Vec<_>>()),
                Ok(false) => break false,
                Err(_) => break true,
            }
        };
        let mut library = csv::ReaderBuilder::new().flexible(true).has_headers(false).from_reader(text.as_bytes());
        let theirs = library.records().map(|row| row.unwrap().iter().map(str::to_owned).collect::<Vec<_>>());
        prop_assert!(broken || ours == theirs.collect::<Vec<_>>(), "{ours:?}");
    }
}

/// Hands out a few bytes at a time, so that characters and records are torn everywhere.
struct Trickle<'a>(&'a [u8], usize);

impl std::io::Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.1.min(buffer.len());
        self.0.read(&mut buffer[..length])
    }
}

#[test]
fn a_file_longer_than_a_chunk_reads_the_same_and_a_bad_byte_is_found_where_it_is() {
    let text: String = (0..9000).map(|n| format!("{n},\"é,\"\"{n}\n…\"\r\n")).collect();
    let rows = |bytes: &[u8]| {
        let mut records = Records::new("f", Trickle(bytes, 1009));
        let mut rows = Vec::new();
        while records.advance()? {
            rows.push((records.record().line, records.record().field(1).to_owned()));
        }
        Ok::<_, CorpusError>((rows, records.bytes()))
    };
    let (read, bytes) = rows(text.as_bytes()).unwrap();
    let expected: Vec<_> = (0..9000).map(|n| (1 + 2 * n, format!("é,\"{n}\n…"))).collect();
    assert_eq!((read, bytes), (expected, text.len() as u64));
    let mut spoilt = text.clone().into_bytes();
    let at = text.find("8000\n").unwrap();
    spoilt[at] = 0xff;
    assert_eq!(rows(&spoilt).unwrap_err().to_string(), format!("f: row 16001: byte {at} is not valid UTF-8"));
    let torn = &text.as_bytes()[..text.rfind('…').unwrap() + 1];
    assert!(rows(torn).unwrap_err().to_string().starts_with("f: row 18000: byte "));
    for before in [0, 64 << 10] {
        let only_torn = [vec![b'a'; before], vec![0xe2]].concat();
        assert_eq!(rows(&only_torn).unwrap_err().to_string(), format!("f: row 1: byte {before} is not valid UTF-8"));
    }
}

#[test]
fn a_row_without_end_is_told_and_never_held_in_memory() {
    let open = format!("a,b\n1,\"{}", "word \n".repeat(4 << 20));
    let mut records = Records::new("f", open.as_bytes());
    assert!(records.advance().unwrap());
    let error = records.advance().unwrap_err().to_string();
    assert_eq!(error, "f: row 2: a broken quote: it opens a field and is never closed");
    let closed = open + "\"\n";
    let mut records = Records::new("f", closed.as_bytes());
    assert!(records.advance().unwrap());
    let error = records.advance().unwrap_err().to_string();
    assert!(error.starts_with("f: row 2: more than 16777216 bytes in one row"), "{error}");
    let commas = vec![b','; 17 << 20];
    let error = Records::new("f", commas.as_slice()).advance().unwrap_err().to_string();
    assert!(error.starts_with("f: row 1: more than 16777216 bytes in one row"), "{error}");
}

#[test]
fn the_gravest_fault_of_a_file_is_told_before_lesser_ones_above_it() {
    let uncounted = MELD.replace("Oh!", "Oh!,");
    let quote = format!("{uncounted}5,a\"b,Ross,joy,x,4,9\r\n");
    assert!(refusal(quote.as_bytes()).contains("row 7: a broken quote"), "{}", refusal(quote.as_bytes()));
    let bytes = [quote.as_bytes(), b"\xff"].concat();
    assert!(refusal(&bytes).contains("row 8: byte"), "{}", refusal(&bytes));
}

#[test]
fn a_file_that_changes_between_the_passes_is_not_believed() {
    let reads = std::sync::atomic::AtomicUsize::new(0);
    let open = move || {
        let first = reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        let text = if first { MELD.to_owned() } else { MELD.replace("Oh!", "Oh no!") };
        Ok(Box::new(Cursor::new(text.into_bytes())) as Box<dyn Read + Send>)
    };
    let file = SplitFile { path: "train.csv".into(), open: Box::new(open) };
    let surveyed = Surveyed::new("sample", &spec(), BTreeMap::from([(Split::Train, file)])).unwrap();
    assert_eq!(surveyed.collect().unwrap_err().to_string(), "train.csv: changed while it was read: try again");
}
