//! A study's results in the paper's layout: the published numbers and ours, told apart, with what each was made from.
//!
//! [`layout`] turns results into grids of text once; [`markdown`] and [`html`] draw the same grids, and [`Study::to_json`]
//! writes the numbers themselves for scripts. Our numbers are fractions, the published ones per cent as printed; only
//! grids print per cent for both. The JSON's names are a contract: they may be added to, not renamed.

pub mod html;
mod layout;
pub mod markdown;

use insula_proto::VERSION;
use serde::{Deserialize, Serialize};

use super::{
    published::{Mix, Published},
    statistics::{Comparison, Interval},
};
use crate::report::COMMIT;

/// Everything a study found.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Study {
    /// What people call it.
    pub title: String,
    /// Our base, as people call it: `SmolLM2-135M-Instruct, 4 bits`.
    pub base: String,
    /// Whether shares and updates were kept so small that the numbers can be compared with nobody's.
    pub quick: bool,
    /// More for the notes line, a sentence each.
    pub notes: Vec<String>,
    /// What a reader must know before trusting a number: a leak of labels, a training that was not finite.
    pub warnings: Vec<String>,
    /// Our results.
    pub cells: Vec<Cell>,
    /// Pairs of arms compared.
    pub significance: Vec<Significance>,
    /// Drawn by [`figure`](super::figure).
    pub figures: Vec<Figure>,
    /// The jobs that the numbers are from.
    pub jobs: Vec<JobSource>,
}

/// The tables of the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableName {
    /// All systems: weighted F1 and accuracy.
    Main,
    /// Every weight trained, against an adapter.
    AllParameters,
    /// Parts left out.
    Ablation,
    /// Preceding utterances shown.
    Window,
    /// Weight of the impact task.
    ImpactWeight,
    /// Share of the data and mix of the corpora.
    DataScaling,
}

/// One result of ours: an arm on one corpus' test split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The table it stands in.
    pub table: TableName,
    /// Its row: a system's name in [`TableName::Main`] and [`TableName::AllParameters`]; elsewhere the setting, written
    /// as the published rows write it (`12`, `0.1`, `1/16`, `without impact`), so that both stand together.
    pub row: String,
    /// How the corpora were put together; for [`TableName::DataScaling`] alone.
    pub mix: Option<Mix>,
    /// Key of the corpus: `iemocap`, `meld`, `emorynlp`, or another.
    pub corpus: String,
    /// Weighted F1, mean over seeds, a fraction; `None`: there is none, and `note` says why.
    pub mean: Option<f64>,
    /// Sample standard deviation over seeds.
    pub sd: Option<f64>,
    /// 95%, over dialogues.
    pub interval: Option<Interval>,
    /// Accuracy, mean over seeds, a fraction.
    pub accuracy: Option<f64>,
    /// Weighted F1 where unreadable answers count as wrong, mean over seeds; absent where there are none.
    #[serde(default)]
    pub strict: Option<f64>,
    /// Seeds of the runs.
    pub seeds: Vec<u64>,
    /// Optimizer steps of one run.
    pub updates: Option<u64>,
    /// Training samples of one run.
    pub samples: Option<u64>,
    /// Ids of the runs' jobs.
    pub jobs: Vec<String>,
    /// A reason or a caution, for a footnote.
    pub note: Option<String>,
}

impl Cell {
    /// A result that is not there, and why.
    pub fn missing(table: TableName, row: &str, corpus: &str, reason: &str) -> Self {
        Self {
            table,
            row: row.into(),
            mix: None,
            corpus: corpus.into(),
            mean: None,
            sd: None,
            interval: None,
            accuracy: None,
            strict: None,
            seeds: vec![],
            updates: None,
            samples: None,
            jobs: vec![],
            note: Some(reason.into()),
        }
    }
}

/// Two arms compared on one corpus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Significance {
    /// Key of the corpus.
    pub corpus: String,
    /// The arm whose number is taken.
    pub first: String,
    /// The arm it is compared with.
    pub second: String,
    /// What came of it; `None`: `note` says why.
    pub comparison: Option<Comparison>,
    /// A reason or a caution, for a footnote.
    pub note: Option<String>,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Its file's name without `.svg`: letters, digits and hyphens.
    pub id: String,
    /// Over the figure.
    pub title: String,
    /// Under the figure.
    pub caption: String,
    /// Ids of the jobs its numbers are from.
    pub jobs: Vec<String>,
    /// An SVG document that insula drew. It goes into pages as it is; the JSON leaves it out.
    #[serde(skip)]
    pub svg: String,
}

/// What one job's numbers were made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSource {
    /// The job's id.
    pub job: String,
    /// Its name.
    pub name: String,
    /// Key of the corpus.
    pub corpus: String,
    /// Of labels and shards.
    pub corpus_digest: String,
    /// As the job names it.
    pub base: String,
    /// As the workers computed it.
    pub base_digest: String,
    /// The settings, in a line or as JSON.
    pub recipe: String,
    /// The only source of randomness.
    pub seed: u64,
    /// The commit that computed it.
    pub commit: String,
}

/// A whole study as `study.json` has it.
#[derive(Serialize)]
struct StudyFile<'a> {
    insula_version: &'static str,
    commit: &'static str,
    units: Units,
    #[serde(flatten)]
    study: &'a Study,
    published: &'a Published,
}

#[derive(Serialize)]
struct Units {
    cells: &'static str,
    significance: &'static str,
    published: &'static str,
}

impl Study {
    /// The whole study and the published numbers, pretty-printed.
    pub fn to_json(&self, published: &Published) -> String {
        let units = Units { cells: "fraction", significance: "fraction", published: "per cent" };
        let file = StudyFile { insula_version: VERSION, commit: COMMIT, units, study: self, published };
        let mut text = serde_json::to_string_pretty(&file).expect("a study has only text keys");
        text.push('\n');
        text
    }

    /// A study read back from what [`Study::to_json`] wrote; its figures are not drawn.
    ///
    /// # Errors
    /// When the text is no such JSON.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// What stands under the title: whose numbers are whose, and whether they can be compared.
    fn notes_line(&self) -> String {
        let mut parts =
            vec!["published: LLaMA2-7B where no other base is named".into(), format!("ours: {}", self.base)];
        if self.quick {
            parts.push("quick run: shares and updates are small, numbers are not comparable".into());
        }
        parts.extend(self.notes.iter().cloned());
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests;
