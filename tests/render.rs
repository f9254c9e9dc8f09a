//! `insula corpus render` prints the paper's prompts, byte for byte: its tasks are the training's.
#![expect(clippy::unwrap_used, reason = "a test whose fixture fails stops there")]

mod support;

use std::path::Path;

use serde_json::Value;
use support::{
    corpora::{turn, write_emorynlp, write_meld},
    fail, insula, succeed,
};

/// The beginning of a prompt that shows a conversation.
const OPENING: &str = "Now you are expert of sentiment and emotional analysis. The following conversation noted between \
    '### ###' involves several speakers. ### ";

/// MELD's labels in the paper's order.
const MELD: &str = "neutral, surprise, fear, sad, joyful, disgust, angry";

/// A dialogue of nine speakers, one with quotes in it, and one that begins anew.
fn corpus(home: &Path) {
    let names = ["Ann", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida"];
    let mut nine: Vec<_> = names.iter().map(|name| turn(name, format!("I'm {name}."), "neutral")).collect();
    nine.push(turn("Bo", "Bye.", "sadness"));
    let quoted = vec![
        turn("Zoe", "Hi.", "joy"),
        turn("Yan", "He said \"no\", twice.", "anger"),
        turn("Zoe", "\"No\"?", "surprise"),
        turn("Xi", "###\u{a0}<ok>", "disgust"),
    ];
    write_meld(&home.join("corpus"), "test", &[nine, quoted]);
}

/// Prompt and target of an utterance.
fn rendered(home: &Path, id: &str, task: &str, window: u32) -> (String, String) {
    let (corpus, window) = (home.join("corpus"), window.to_string());
    let mut command = insula(home);
    command.args(["corpus", "render", "--split", "test", "--task", task, "--window", &window]).arg(&corpus);
    let lines = succeed(command.arg("--json"));
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines.into_iter().find(|line| line["id"] == id).unwrap();
    let text = |key: &str| line[key].as_str().unwrap().to_owned();
    (text("prompt"), text("target"))
}

#[test]
fn the_main_prompt_ends_with_its_target() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    corpus(home);
    let main = |id, window, history: &str, target: &str, label: &str| {
        let expected = format!("{OPENING}{history} ### Please select the emotional label of <{target}> from <{MELD}>:");
        assert_eq!(rendered(home, id, "main", window), (expected, label.to_owned()), "{id}, window {window}");
    };
    // Turn 0: the target is all there is, whatever the window.
    main("test/0/0", 12, "\t Speaker_0:\"I'm Ann.\"", " Speaker_0:\"I'm Ann.\"", "neutral");
    main("test/0/0", 0, "\t Speaker_0:\"I'm Ann.\"", " Speaker_0:\"I'm Ann.\"", "neutral");
    // Quotes stay as they are said; speakers are numbered anew by their first appearance.
    main(
        "test/1/1",
        12,
        "\t Speaker_0:\"Hi.\"\t Speaker_1:\"He said \"no\", twice.\"",
        " Speaker_1:\"He said \"no\", twice.\"",
        "angry",
    );
    // The window's edges: none before, as many as there are, and one less.
    main("test/1/2", 0, "\t Speaker_0:\"\"No\"?\"", " Speaker_0:\"\"No\"?\"", "surprise");
    let all = "\t Speaker_0:\"Hi.\"\t Speaker_1:\"He said \"no\", twice.\"\t Speaker_0:\"\"No\"?\"\
        \t Speaker_2:\"###\u{a0}<ok>\"";
    main("test/1/3", 3, all, " Speaker_2:\"###\u{a0}<ok>\"", "disgust");
    main("test/1/3", 4, all, " Speaker_2:\"###\u{a0}<ok>\"", "disgust");
    main(
        "test/1/3",
        2,
        "\t Speaker_1:\"He said \"no\", twice.\"\t Speaker_0:\"\"No\"?\"\t Speaker_2:\"###\u{a0}<ok>\"",
        " Speaker_2:\"###\u{a0}<ok>\"",
        "disgust",
    );
    // The ninth speaker, and the second who speaks again.
    main("test/0/8", 0, "\t Speaker_8:\"I'm Ida.\"", " Speaker_8:\"I'm Ida.\"", "neutral");
    main("test/0/9", 1, "\t Speaker_8:\"I'm Ida.\"\t Speaker_1:\"Bye.\"", " Speaker_1:\"Bye.\"", "sad");
}

#[test]
fn the_speaker_prompt_offers_every_speaker_and_shows_no_dialogue() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    corpus(home);
    let nine = "Speaker_0, Speaker_1, Speaker_2, Speaker_3, Speaker_4, Speaker_5, Speaker_6, Speaker_7, Speaker_8";
    let cases = [
        ("test/0/0", "I'm Ann.", "Speaker_0"),
        ("test/0/8", "I'm Ida.", "Speaker_8"),
        ("test/0/9", "Bye.", "Speaker_1"),
        ("test/1/1", "He said \"no\", twice.", "Speaker_1"),
        ("test/1/3", "###\u{a0}<ok>", "Speaker_2"),
    ];
    for (id, text, speaker) in cases {
        let expected = format!(
            "Now you are expert of sentiment and emotional analysis. Please select the Speaker label of the utterance \
             <Speaker: {text}> from <{nine}>:"
        );
        for window in [0, 12] {
            assert_eq!(rendered(home, id, "speaker", window), (expected.clone(), speaker.to_owned()));
        }
    }
}

#[test]
fn the_impact_prompt_shows_the_history_without_the_target() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    corpus(home);
    let impact = |id, window, history: &str, speaker: u32, label: &str| {
        let expected = format!(
            "{OPENING}{history}###Based on the above historical utterances, next utterance is spoken by <{speaker}>, \
             please predict the emotion states of <{speaker}> from <{MELD}>:"
        );
        assert_eq!(rendered(home, id, "impact", window), (expected, label.to_owned()), "{id}, window {window}");
    };
    impact("test/1/1", 12, "\t Speaker_0:\"Hi.\"", 1, "angry");
    impact("test/1/2", 2, "\t Speaker_0:\"Hi.\"\t Speaker_1:\"He said \"no\", twice.\"", 0, "surprise");
    impact("test/1/2", 1, "\t Speaker_1:\"He said \"no\", twice.\"", 0, "surprise");
    impact("test/0/9", 1, "\t Speaker_8:\"I'm Ida.\"", 1, "sad");
    // At turn 0 there is no history: the main prompt again.
    for id in ["test/0/0", "test/1/0"] {
        assert_eq!(rendered(home, id, "impact", 12), rendered(home, id, "main", 12));
    }
}

#[test]
fn the_plain_prompt_is_the_utterance_and_the_labels() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    corpus(home);
    for (id, text, label) in [
        ("test/0/0", "I'm Ann.", "neutral"),
        ("test/0/8", "I'm Ida.", "neutral"),
        ("test/1/1", "He said \"no\", twice.", "angry"),
        ("test/1/3", "###\u{a0}<ok>", "disgust"),
    ] {
        let expected = format!("Please select the emotional label of <{text}> from <{MELD}>:");
        for window in [0, 12] {
            assert_eq!(rendered(home, id, "plain", window), (expected.clone(), label.to_owned()));
        }
    }
}

#[test]
fn emorynlps_labels_keep_their_case_and_what_is_read_is_printed_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let dialogue = vec![turn("Monica Geller", "Oh, \"great\".", "Mad"), turn("Ross Geller", "Hm?", "Peaceful")];
    write_emorynlp(&home.join("corpus"), "test", &[dialogue]);
    let labels = "Joyful, Mad, Peaceful, Neutral, Sad, Powerful, Scared";
    let mut command = insula(home);
    command.args(["corpus", "render", "corpus", "--split", "test", "--task", "main", "-n", "2"]);
    let first = "\t Speaker_0:\"Oh, \"great\".\"";
    let expected = format!(
        "test/s1_e1_c0/0\n{OPENING}{first} ### Please select the emotional label of < Speaker_0:\"Oh, \"great\".\"> from \
         <{labels}>:\n-> Mad\n\n\
         test/s1_e1_c0/1\n{OPENING}{first}\t Speaker_1:\"Hm?\" ### Please select the emotional label of < \
         Speaker_1:\"Hm?\"> from <{labels}>:\n-> Peaceful\n\n"
    );
    assert_eq!(succeed(&mut command), expected);
    let said = fail(insula(home).args(["corpus", "render", "corpus", "--task", "emotion"]), 2);
    assert!(said.contains("emotion") && said.contains("main, speaker, impact, plain"), "{said}");
}
