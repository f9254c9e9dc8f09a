//! What others published, as `configs/published/instructerc.toml` has it: numbers to stand beside ours, never in a mean
//! with them.
//!
//! Scores are weighted F1 in **per cent**, as printed; everything of ours is a fraction.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The file, part of the binary so that a report never lacks it.
const INSTRUCTERC: &str = include_str!("../../../configs/published/instructerc.toml");

/// The corpora published numbers are about: key and the name people read, in the paper's order.
pub const CORPORA: [(&str, &str); 3] = [("iemocap", "IEMOCAP"), ("meld", "MELD"), ("emorynlp", "EmoryNLP")];

/// Published numbers and where they were printed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Key of a source and its note.
    pub sources: BTreeMap<String, String>,
    /// In the order of print.
    pub rows: Vec<PublishedRow>,
}

/// One published row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedRow {
    /// The group it belongs to.
    pub table: Group,
    /// The system, or the base under InstructERC.
    pub system: String,
    /// What varies within the group: the window, the weight, the share, what was left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setting: Option<String>,
    /// How corpora were put together (data scaling alone).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Mix>,
    /// Weighted F1 in per cent by corpus; what was not printed is absent.
    pub scores: BTreeMap<String, f64>,
    /// Key into [`Published::sources`].
    pub source: String,
}

/// A group of published rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Bare models under the main prompt.
    ZeroShot,
    /// LoRA on the target utterance alone.
    LoraBackbone,
    /// LoRA with all of InstructERC.
    LoraInstructerc,
    /// Every weight trained.
    AllParameters,
    /// Encoders with a classifier.
    Discriminative,
    /// The best systems since.
    Today,
    /// Parts left out.
    Ablation,
    /// Preceding utterances shown.
    Window,
    /// Weight of the impact task.
    ImpactWeight,
    /// Share of the data and mix of the corpora.
    DataScaling,
}

/// How the training sets of several corpora are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mix {
    /// All are pooled, then the share is drawn.
    Total,
    /// The share is drawn of each, then they are pooled.
    Ratio,
    /// One corpus alone.
    Single,
}

impl Mix {
    /// All of them, in the paper's order.
    pub const ALL: [Mix; 3] = [Mix::Total, Mix::Ratio, Mix::Single];

    /// The name in tables and legends.
    pub fn as_str(self) -> &'static str {
        match self {
            Mix::Total => "total mix",
            Mix::Ratio => "ratio mix",
            Mix::Single => "single",
        }
    }
}

/// A file of published numbers that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("published numbers: {0}")]
pub struct PublishedError(String);

impl Published {
    /// InstructERC's numbers, those it compares itself with, and those of today.
    pub fn instructerc() -> Self {
        Self::parse(INSTRUCTERC).expect("the file in the binary is read by a test")
    }

    /// Published numbers as a file has them.
    ///
    /// # Errors
    /// When the text is no such TOML, a source or corpus is unknown, or a score is no per cent.
    pub fn parse(text: &str) -> Result<Self, PublishedError> {
        let read: Self = toml::from_str(text).map_err(|e| PublishedError(e.to_string()))?;
        for row in &read.rows {
            let refuse = |problem: String| Err(PublishedError(format!("{:?} '{}': {problem}", row.table, row.system)));
            if !read.sources.contains_key(&row.source) {
                return refuse(format!("source '{}' is not under [sources]", row.source));
            }
            for (corpus, score) in &row.scores {
                if !CORPORA.iter().any(|(key, _)| key == corpus) {
                    return refuse(format!("corpus '{corpus}': expected iemocap, meld or emorynlp"));
                }
                if !(0.0..=100.0).contains(score) {
                    return refuse(format!("{corpus} = {score}: expected per cent"));
                }
            }
        }
        Ok(read)
    }

    /// A group's rows in order.
    pub fn group(&self, group: Group) -> impl Iterator<Item = &PublishedRow> {
        self.rows.iter().filter(move |row| row.table == group)
    }

    /// The score of a setting (and mix) in a group, per cent.
    pub fn score(&self, group: Group, setting: &str, mix: Option<Mix>, corpus: &str) -> Option<f64> {
        let mut rows = self.group(group).filter(|row| row.setting.as_deref() == Some(setting) && row.mix == mix);
        rows.next()?.scores.get(corpus).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_published_number_is_there() {
        let published = Published::instructerc();
        let sizes = |group| {
            let rows: Vec<_> = published.group(group).collect();
            (rows.len(), rows.iter().map(|row| row.scores.len()).sum::<usize>())
        };
        assert_eq!(sizes(Group::ZeroShot), (5, 15));
        assert_eq!(sizes(Group::LoraBackbone), (4, 12));
        assert_eq!(sizes(Group::LoraInstructerc), (5, 15));
        assert_eq!(sizes(Group::AllParameters), (4, 12));
        assert_eq!(sizes(Group::Discriminative), (7, 19)); // GraphCFC and UniMSE print none for EmoryNLP
        assert_eq!(sizes(Group::Today), (4, 10)); // nor do PRC-Emo and DiaRelay
        assert_eq!(sizes(Group::Ablation), (5, 15));
        assert_eq!(sizes(Group::Window), (4, 12));
        assert_eq!(sizes(Group::ImpactWeight), (4, 4));
        assert_eq!(sizes(Group::DataScaling), (21, 63));
        // Each column's sum, taken from the notes by hand: a digit that slipped would show.
        let sum = |group, corpus: &str| -> f64 {
            let sum: f64 = published.group(group).filter_map(|row| row.scores.get(corpus)).sum();
            (sum * 100.0).round() / 100.0
        };
        let sums = |group| CORPORA.map(|(corpus, _)| sum(group, corpus));
        assert_eq!(sums(Group::ZeroShot), [116.60, 151.07, 94.67]);
        assert_eq!(sums(Group::LoraBackbone), [182.63, 237.38, 139.59]);
        assert_eq!(sums(Group::LoraInstructerc), [308.85, 317.65, 190.56]);
        assert_eq!(sums(Group::AllParameters), [243.67, 232.01, 132.28]);
    }

    #[test]
    fn numbers_stand_where_the_paper_has_them() {
        let published = Published::instructerc();
        let scaling = |share, mix, corpus| published.score(Group::DataScaling, share, Some(mix), corpus);
        assert_eq!(scaling("1/64", Mix::Single, "iemocap"), Some(30.34));
        assert_eq!(scaling("1/16", Mix::Ratio, "meld"), Some(58.42));
        assert_eq!(scaling("1/2", Mix::Total, "emorynlp"), Some(39.18));
        assert_eq!(scaling("1/3", Mix::Total, "emorynlp"), None);
        assert_eq!(published.score(Group::Window, "5", None, "iemocap"), Some(68.65));
        assert_eq!(published.score(Group::ImpactWeight, "0.05", None, "iemocap"), Some(70.67));
        assert_eq!(published.score(Group::ImpactWeight, "0.05", None, "meld"), None);
        assert_eq!(published.score(Group::Ablation, "without both", None, "emorynlp"), Some(39.56));
        let shares: Vec<_> = published.group(Group::DataScaling).filter(|row| row.mix == Some(Mix::Single)).collect();
        let shares: Vec<_> = shares.iter().filter_map(|row| row.setting.as_deref()).collect();
        assert_eq!(shares, ["1", "1/2", "1/4", "1/8", "1/16", "1/32", "1/64"]);
        // At the whole share, single is the paper's main result, and both mixes are one.
        for (corpus, main) in [("iemocap", 71.39), ("meld", 69.15), ("emorynlp", 41.37)] {
            assert_eq!(scaling("1", Mix::Single, corpus), Some(main));
            assert_eq!(scaling("1", Mix::Total, corpus), scaling("1", Mix::Ratio, corpus));
            assert_eq!(published.score(Group::Window, "12", None, corpus), Some(main));
            assert_eq!(published.score(Group::Ablation, "full", None, corpus), Some(main));
        }
    }

    #[test]
    fn a_file_that_is_wrong_is_refused() {
        let with = |row: &str| {
            let text = format!("[sources]\na = 'A'\n[[rows]]\ntable = 'window'\nsystem = 's'\n{row}");
            Published::parse(&text).map(|_| ()).map_err(|e| e.to_string())
        };
        assert_eq!(with("source = 'a'\nscores = { meld = 1 }"), Ok(()));
        let source = with("source = 'b'\nscores = {}").unwrap_err();
        assert_eq!(source, "published numbers: Window 's': source 'b' is not under [sources]");
        assert!(with("source = 'a'\nscores = { mled = 1 }").unwrap_err().contains("corpus 'mled'"));
        assert!(with("source = 'a'\nscores = { meld = 101 }").unwrap_err().contains("meld = 101: expected per cent"));
        assert!(with("source = 'a'\nscores = {}\nyear = 3").unwrap_err().contains("unknown field `year`"));
    }
}
