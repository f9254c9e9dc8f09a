//! Answers that were paid for, a line of JSON each, appended as they come.
//!
//! A line that was torn by a crash, or that two writers tangled, is passed over: its prompt is asked again.

use std::collections::BTreeMap;

use insula_proto::ids::Digest;
use serde::{Deserialize, Serialize};

use super::Answered;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    prompt: Digest,
    #[serde(flatten)]
    answered: Answered,
}

/// What a file of kept answers holds.
#[derive(Debug, Default, PartialEq)]
pub struct Kept {
    /// Answers by the digest of their prompt.
    pub answers: BTreeMap<Digest, Answered>,
    /// Lines that could not be read.
    pub damaged: usize,
    /// Whether the last line was torn: what is appended next must begin a new one.
    pub torn: bool,
}

/// Reads a file of kept answers.
pub fn read(bytes: &[u8]) -> Kept {
    let mut kept = Kept { torn: bytes.last().is_some_and(|&last| last != b'\n'), ..Kept::default() };
    for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice::<Line>(line) {
            Ok(Line { prompt, answered }) => drop(kept.answers.insert(prompt, answered)),
            Err(_) => kept.damaged += 1,
        }
    }
    kept
}

/// The line of an answer, its end included.
pub fn line(prompt: &Digest, answered: &Answered) -> Vec<u8> {
    let line = Line { prompt: prompt.clone(), answered: answered.clone() };
    let mut bytes = serde_json::to_vec(&line).expect("an answer is plain data");
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_answers_read_back_and_torn_lines_are_passed_over() {
        let answered = |text: &str| Answered { text: text.into(), input_tokens: 7, output_tokens: 2 };
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let mut file = line(&one, &answered("joyful\nindeed"));
        file.extend(b"{\"prompt\":\"sha256:00\",\"text\":\"sad\"}\n");
        file.extend(line(&two, &answered("sad")));
        let whole = read(&file);
        assert_eq!((whole.answers.len(), whole.damaged, whole.torn), (2, 1, false));
        assert_eq!(whole.answers[&one], answered("joyful\nindeed"));
        for cut in 1..line(&two, &answered("sad")).len() {
            let torn = read(&file[..file.len() - cut]);
            assert!(torn.torn && torn.answers.contains_key(&one), "{cut}");
            // Without its end alone, the line still says everything.
            assert_eq!(torn.answers.contains_key(&two), cut == 1);
        }
        assert_eq!(read(b""), Kept::default());
    }
}
