//! Small corpora of a test's own, written in the layouts that insula reads.

use std::{fs, path::Path};

use serde_json::{Value, json};

/// Who says what, and its label as the layout writes it.
pub struct Turn {
    pub speaker: String,
    pub text: String,
    pub label: String,
}

pub fn turn(speaker: &str, text: impl Into<String>, label: &str) -> Turn {
    Turn { speaker: speaker.into(), text: text.into(), label: label.into() }
}

/// So many turns by so many speakers in dialogues of `length` and one of what is left; each label has a text that gives
/// it away.
pub fn dialogues(turns: usize, length: usize, speakers: &[&str], said: &[(&str, &str)]) -> Vec<Vec<Turn>> {
    let one = |at: usize| {
        let (text, label) = said[(at * 7 + at / length) % said.len()];
        turn(speakers[at % length % speakers.len()], format!("{text} {}", at % 5), label)
    };
    let all: Vec<usize> = (0..turns).collect();
    all.chunks(length).map(|dialogue| dialogue.iter().map(|&at| one(at)).collect()).collect()
}

/// A split as MELD has it.
pub fn write_meld(folder: &Path, split: &str, dialogues: &[Vec<Turn>]) {
    let mut csv = String::from("Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\r\n");
    for (dialogue, turns) in dialogues.iter().enumerate() {
        for (at, Turn { speaker, text, label }) in turns.iter().enumerate() {
            csv += &format!("{at},{},{speaker},{label},x,{dialogue},{at}\r\n", quoted(text));
        }
    }
    write(&folder.join(format!("{split}_sent_emo.csv")), &csv);
}

/// A split as EmoryNLP has it.
pub fn write_emorynlp(folder: &Path, split: &str, dialogues: &[Vec<Turn>]) {
    let mut csv =
        String::from("Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode,Start_Time,End_Time\r\n");
    for (scene, turns) in dialogues.iter().enumerate() {
        for (at, Turn { speaker, text, label }) in turns.iter().enumerate() {
            csv += &format!("{},['{speaker}'],{label},{scene},{at},1,1,x,x\r\n", quoted(text));
        }
    }
    write(&folder.join(format!("emorynlp_{split}_final.csv")), &csv);
}

/// A split as JSON lines.
pub fn write_lines(folder: &Path, split: &str, dialogues: &[Vec<Turn>]) {
    let turn = |Turn { speaker, text, label }: &Turn| json!({ "speaker": speaker, "text": text, "label": label });
    let line = |turns: &Vec<Turn>| {
        let utterances: Vec<Value> = turns.iter().map(turn).collect();
        json!({ "utterances": utterances }).to_string() + "\n"
    };
    write(&folder.join(format!("{split}.jsonl")), &dialogues.iter().map(line).collect::<String>());
}

/// A text file and the folders it lies in.
pub fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}
