//! From the model's text to an answer.
//!
//! `strict` believes only a label and nothing else; whatever differs is unreadable, counted, and wrong. `paper` is
//! InstructERC's repair, under which nothing is ever unreadable ("unhappy" is read as happy); it exists to compare with
//! the published numbers. A report names which of the two it used.

use insula_proto::corpus::{Label, LabelSet};

/// What the model said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A label of the set.
    Read(Label),
    /// The text as generated, which is no label.
    Unreadable(String),
}

impl Answer {
    /// The label, where one was read.
    pub fn label(&self) -> Option<Label> {
        match self {
            Answer::Read(label) => Some(*label),
            Answer::Unreadable(_) => None,
        }
    }
}

/// Reads `text` as a label if, but for white space around it, it is one, case and all.
pub fn strict(text: &str, labels: &LabelSet) -> Answer {
    labels.find(text.trim()).map_or_else(|| Answer::Unreadable(text.to_owned()), Answer::Read)
}

/// Reads `text` as InstructERC's authors do: the first place where any label stands, the longest label there; where
/// there is none, the label of least edit distance, the first of equals.
pub fn paper(text: &str, labels: &LabelSet) -> Label {
    first_label_inside(text, labels).unwrap_or_else(|| nearest_label(text, labels))
}

fn first_label_inside(text: &str, labels: &LabelSet) -> Option<Label> {
    let names = labels.names();
    let longest_at =
        |(at, _)| names.iter().filter(|name| text[at..].starts_with(name.as_str())).max_by_key(|name| name.len());
    let name = text.char_indices().find_map(longest_at)?;
    labels.find(name)
}

fn nearest_label(text: &str, labels: &LabelSet) -> Label {
    let nearest = labels.names().iter().min_by_key(|name| strsim::levenshtein(text, name));
    nearest.and_then(|name| labels.find(name)).expect("a label set is never empty and finds its own names")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> LabelSet {
        LabelSet::new(names.iter().map(|name| (*name).to_owned()).collect()).unwrap()
    }

    fn meld() -> LabelSet {
        set(&["neutral", "surprise", "fear", "sad", "joyful", "disgust", "angry"])
    }

    #[test]
    fn strict_reads_a_bare_label_and_nothing_else() {
        let labels = meld();
        for (text, expected) in [("joyful", "joyful"), (" \n sad\t", "sad"), ("neutral", "neutral")] {
            assert_eq!(strict(text, &labels), Answer::Read(labels.find(expected).unwrap()), "{text:?}");
        }
        for text in ["", "  ", "Joyful", "joyful.", "joyful sad", "joyfu", "unhappy"] {
            assert_eq!(strict(text, &labels), Answer::Unreadable(text.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn paper_takes_the_first_longest_label_inside_the_text() {
        let iemocap = set(&["happy", "sad", "neutral", "angry", "excited", "frustrated"]);
        let nested = set(&["joy", "joyful", "full"]);
        let cases = [
            (&iemocap, "unhappy", "happy"),
            (&iemocap, "not angry but sad", "angry"),
            (&iemocap, "sadangry", "sad"),
            (&iemocap, "« excited »", "excited"),
            (&nested, "so joyfull", "joyful"),
            (&nested, "so joyous", "joy"),
            (&nested, "fulljoy", "full"),
        ];
        for (labels, text, expected) in cases {
            assert_eq!(labels.name(paper(text, labels)), expected, "{text:?}");
        }
    }

    #[test]
    fn paper_falls_back_to_the_least_edit_distance_and_to_the_first_of_equals() {
        let labels = meld();
        let cases = [("", "sad"), ("Sad", "sad"), ("suprise", "surprise"), ("ANGRY", "fear"), ("anger", "angry")];
        for (text, expected) in cases {
            assert_eq!(labels.name(paper(text, &labels)), expected, "{text:?}");
        }
        assert_eq!(paper("x", &set(&["ab", "cd"])), Label(0));
        // Case counts: no label is inside "Mad", which is one replacement from "mad" and from "sad".
        assert_eq!(paper("Mad", &set(&["sad", "mad"])), Label(0));
    }

    #[test]
    fn edit_distance_is_levenshteins_in_characters() {
        for (a, b, distance) in
            [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("é", "e", 1), ("flaw", "lawn", 2)]
        {
            assert_eq!(strsim::levenshtein(a, b), distance, "{a:?} {b:?}");
            assert_eq!(strsim::levenshtein(b, a), distance, "{b:?} {a:?}");
        }
    }
}
