//! What is wrong with a corpus, before hours are spent on it: what cannot work is refused, what is seldom meant is warned
//! of.
//!
//! MELD and EmoryNLP, which everybody uses, pass with warnings: a tenth of their test texts occur in train.

use insula_proto::corpus::Split;
use serde::Serialize;

use super::describe::{Description, SplitDescription};

/// Speakers of a dialogue, at most. Meetings have a dozen; with more, a column of ids was read as speakers.
const SPEAKERS_MAX: u64 = 256;

/// Part of a split's utterances whose texts may occur in another before it is told; "Yeah." is said everywhere.
const SHARED_TEXTS: f64 = 0.1;

/// Part of train's utterances that may repeat another's text before it is told; MELD has 0.11, EmoryNLP 0.13.
const REPEATED_TEXTS: f64 = 0.3;

/// Part of train's texts that may carry several labels before it is told; MELD has 0.012, EmoryNLP 0.022.
const TEXTS_WITH_SEVERAL_LABELS: f64 = 0.1;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The job cannot be meant so.
    Refuse,
    /// The job can be done, but look.
    Warn,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// The setting a person would mend, as in the job file.
    pub field: &'static str,
    /// What was found, with its numbers, in a sentence.
    pub text: String,
}

/// Everything found about a corpus; `trains` says whether anything is to be learnt from it.
pub fn preflight(description: &Description, trains: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    for (split, described) in &description.splits {
        of_split(*split, described, &mut found);
    }
    of_labels(description, trains, &mut found);
    of_leakage(description, &mut found);
    found.sort_by_key(|finding| finding.severity);
    found
}

fn refuse(field: &'static str, text: String) -> Finding {
    Finding { severity: Severity::Refuse, field, text }
}

fn warn(field: &'static str, text: String) -> Finding {
    Finding { severity: Severity::Warn, field, text }
}

fn of_split(split: Split, described: &SplitDescription, found: &mut Vec<Finding>) {
    let SplitDescription { samples, most_speakers, left_out, .. } = described;
    if *samples == 0 {
        found.push(refuse("corpus.path", format!("the {split} split is empty: expected at least one utterance")));
        return;
    }
    if *most_speakers > SPEAKERS_MAX {
        let text = format!(
            "a dialogue of the {split} split has {most_speakers} speakers: expected at most {SPEAKERS_MAX}; are the speakers ids?"
        );
        found.push(refuse("corpus.path", text));
    }
    if left_out.utterances() > 0 {
        let text = format!(
            "{} utterances of the {split} split are left out: {} without a label, {} of other labels, {} without text",
            left_out.utterances(),
            left_out.unlabelled,
            left_out.other_label,
            left_out.empty
        );
        found.push(warn("corpus.path", text));
    }
    if split != Split::Train {
        return;
    }
    let repeated = samples.saturating_sub(described.distinct_texts);
    if part(repeated, *samples) > REPEATED_TEXTS {
        let share = per_cent(repeated, *samples);
        found.push(warn("corpus.path", format!("{repeated} of {samples} training utterances ({share}) repeat a text")));
    }
    let (several, texts) = (described.texts_with_several_labels, described.distinct_texts);
    if part(several, texts) > TEXTS_WITH_SEVERAL_LABELS {
        let share = per_cent(several, texts);
        let text = format!("{several} of {texts} different training texts ({share}) carry more than one label");
        found.push(warn("corpus.path", text));
    }
}

fn of_labels(description: &Description, trains: bool, found: &mut Vec<Finding>) {
    let count = |split: Split, label: &String| {
        let split = description.splits.get(&split).filter(|described| described.samples > 0);
        split.map(|described| described.labels.get(label).and_then(serde_json::Value::as_u64).unwrap_or(0))
    };
    let names = |holds: &dyn Fn(&String) -> bool| -> Vec<&str> {
        description.label_set.iter().filter(|label| holds(label)).map(String::as_str).collect()
    };
    let trained = names(&|label| count(Split::Train, label).is_some_and(|n| n > 0));
    if let ([only], true) = (trained.as_slice(), trains) {
        let text = format!("every training utterance is '{only}': expected at least two labels to learn from");
        found.push(refuse("corpus.path", text));
    }
    let unlearnt =
        names(&|label| count(Split::Train, label) == Some(0) && count(Split::Test, label).is_some_and(|n| n > 0));
    if !unlearnt.is_empty() && trains {
        let text = format!("the test split has labels that the train split never shows: {}", unlearnt.join(", "));
        found.push(warn("corpus.labels", text));
    }
    let untested = names(&|label| count(Split::Test, label) == Some(0));
    if !untested.is_empty() {
        let text = format!("the test split has no utterance of {}: nothing is said about them", untested.join(", "));
        found.push(warn("corpus.labels", text));
    }
}

fn of_leakage(description: &Description, found: &mut Vec<Finding>) {
    for leakage in &description.leakage {
        let (of, within) = (leakage.of, leakage.within);
        if leakage.dialogues > 0 {
            let all = description.splits.get(&of).map_or(0, |described| described.dialogues);
            let text = format!("{} of {all} dialogues of the {of} split stand in {within} too", leakage.dialogues);
            found.push(warn("corpus.path", text));
        }
        if leakage.share > SHARED_TEXTS {
            let all = description.splits.get(&of).map_or(0, |described| described.samples);
            let (utterances, share) = (leakage.utterances, per_cent(leakage.utterances, all));
            let text = format!("the texts of {utterances} of {all} {of} utterances ({share}) occur in {within}");
            found.push(warn("corpus.path", text));
        }
    }
}

fn part(some: u64, all: u64) -> f64 {
    some as f64 / all.max(1) as f64
}

fn per_cent(some: u64, all: u64) -> String {
    format!("{:.1} %", 100.0 * part(some, all))
}

#[cfg(test)]
mod tests {
    use insula_proto::corpus::{Dialogue, Label, LabelSet, Utterance};

    use super::*;
    use crate::corpus::{Layout, LeftOut, describe::Describer};

    /// A split's dialogues of texts and labels.
    type Sketch<'a> = (Split, &'a [&'a [(&'a str, u16)]]);

    /// A corpus of dialogues; every utterance has a speaker of its own where `crowd`.
    fn described(splits: &[Sketch], crowd: bool) -> Description {
        let labels = LabelSet::new(["joy", "sad", "flat"].map(String::from).to_vec()).unwrap();
        let mut describer = Describer::new(&labels, splits.iter().map(|(split, _)| *split));
        for (split, dialogues) in splits {
            for turns in *dialogues {
                let turn = |(at, (text, label)): (usize, &(&str, u16))| Utterance {
                    id: at.to_string(),
                    speaker: if crowd { at as u32 } else { 0 },
                    speaker_name: "Ann".into(),
                    text: (*text).into(),
                    gold: Label(*label),
                };
                let utterances = turns.iter().enumerate().map(turn).collect();
                describer.see(*split, &Dialogue { id: "x".into(), utterances });
            }
        }
        describer.finish("small", Layout::Jsonl, |_| LeftOut::default())
    }

    fn texts(description: &Description, trains: bool) -> Vec<(Severity, String)> {
        preflight(description, trains).into_iter().map(|finding| (finding.severity, finding.text)).collect()
    }

    #[test]
    fn a_sound_corpus_passes_in_silence() {
        let all: [Sketch; 3] = [
            (Split::Train, &[&[("a", 0), ("b", 1), ("c", 2)]]),
            (Split::Dev, &[&[("d", 0)]]),
            (Split::Test, &[&[("e", 0), ("f", 1), ("g", 2)]]),
        ];
        assert_eq!(texts(&described(&all, false), true), []);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let only: [Sketch; 2] =
            [(Split::Train, &[&[("a", 1), ("b", 1)]]), (Split::Test, &[&[("c", 1), ("d", 0), ("e", 2)]])];
        let found = texts(&described(&only, false), true);
        let (refused, warned): (Vec<_>, Vec<_>) = found.into_iter().partition(|(s, _)| *s == Severity::Refuse);
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].1, "every training utterance is 'sad': expected at least two labels to learn from");
        assert_eq!(warned[0].1, "the test split has labels that the train split never shows: joy, flat");
        assert_eq!(texts(&described(&only, false), false), [], "nothing is learnt");
        let empty: [Sketch; 1] = [(Split::Dev, &[])];
        let found = texts(&described(&empty, false), true);
        assert_eq!(found, [(Severity::Refuse, "the dev split is empty: expected at least one utterance".to_owned())]);
        let crowd = [("a", 0u16); 300];
        let found = texts(&described(&[(Split::Dev, &[&crowd])], true), true);
        assert!(found[0].1.starts_with("a dialogue of the dev split has 300 speakers: expected at most 256"));
    }

    #[test]
    fn what_is_seldom_meant_is_warned_of() {
        let shared: [Sketch; 2] = [
            (Split::Train, &[&[("a", 0), ("b", 1)], &[("a", 1), ("a", 2)]]),
            (Split::Test, &[&[("a", 0), ("b", 1)], &[("c", 0), ("d", 1), ("e", 1)]]),
        ];
        let found: Vec<_> = texts(&described(&shared, false), true)
            .into_iter()
            .map(|(s, text)| {
                assert_eq!(s, Severity::Warn);
                text
            })
            .collect();
        assert_eq!(
            found,
            [
                "2 of 4 training utterances (50.0 %) repeat a text",
                "1 of 2 different training texts (50.0 %) carry more than one label",
                "the test split has no utterance of flat: nothing is said about them",
                "1 of 2 dialogues of the test split stand in train too",
                "the texts of 2 of 5 test utterances (40.0 %) occur in train",
            ]
        );
    }

    #[test]
    fn what_was_left_out_is_told() {
        let mut description = described(&[(Split::Test, &[&[("e", 0), ("f", 1), ("g", 2)]])], false);
        let test = description.splits.get_mut(&Split::Test).unwrap();
        test.left_out = LeftOut { unlabelled: 3, other_label: 2, empty: 1, dialogues: 0 };
        let expected =
            "6 utterances of the test split are left out: 3 without a label, 2 of other labels, 1 without text";
        assert_eq!(texts(&description, true), [(Severity::Warn, expected.to_owned())]);
    }
}
