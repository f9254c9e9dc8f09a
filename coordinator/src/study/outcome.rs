//! What came of a study's jobs: reports and predictions to answers, answers to numbers with their intervals.

use std::collections::BTreeMap;

use insula_proto::{corpus::LabelSet, job::Arm};
use serde::Deserialize;

use super::{
    statistics::{Answered, ArmAnswers, Bootstrap, Comparison, Interval, StatisticsError, compare, interval, summary},
    tables::JobSource,
};
use crate::report::{ArmReport, Report};

/// A finished job, as far as a study reads it.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its id.
    pub job: String,
    /// Its report.
    pub report: Report,
    labels: LabelSet,
    /// By reading, arm and corpus, in the order of the predictions.
    answers: BTreeMap<(Reading, String, String), Vec<Answered>>,
}

/// What an answer's text is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reading {
    /// An unreadable answer is wrong.
    Strict,
    /// An unreadable answer is repaired as the paper does: what its own numbers are measured by.
    Paper,
}

/// Why a job's files say nothing to a study.
#[derive(Debug, thiserror::Error)]
pub enum OutcomeError {
    /// The report does not read.
    #[error("{job}: its report does not read: {problem}")]
    Report {
        /// The job.
        job: String,
        /// What is wrong.
        problem: String,
    },
    /// A prediction does not read.
    #[error("{job}: prediction {line}: {problem}")]
    Prediction {
        /// The job.
        job: String,
        /// Its line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

/// One line of predictions.jsonl, as far as it is read here.
#[derive(Deserialize)]
struct Prediction {
    arm: String,
    corpus: String,
    id: String,
    gold: String,
    label: Option<String>,
    paper_label: String,
}

impl Outcome {
    /// A job's outcome from its report.json and predictions.jsonl.
    ///
    /// # Errors
    /// When one of them does not read.
    pub fn new(job: &str, report: &str, predictions: &str) -> Result<Self, OutcomeError> {
        let wrong = |problem: String| OutcomeError::Report { job: job.into(), problem };
        let report = Report::from_json(report).map_err(|e| wrong(e.to_string()))?;
        let labels = LabelSet::new(report.provenance.corpus.labels.clone()).map_err(|e| wrong(e.to_string()))?;
        let mut answers: BTreeMap<(Reading, String, String), Vec<Answered>> = BTreeMap::new();
        for (place, line) in predictions.lines().enumerate() {
            let wrong = |problem: String| OutcomeError::Prediction { job: job.into(), line: place + 1, problem };
            let said: Prediction = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
            let find = |label: &str| {
                let found = labels.find(label).ok_or_else(|| wrong(format!("'{label}' is not a label of the job")));
                found.map(|label| label.0)
            };
            let (dialogue, _) = said.id.rsplit_once('/').unwrap_or((&said.id, ""));
            let gold = find(&said.gold)?;
            let strict = said.label.as_deref().map(find).transpose()?;
            for (reading, label) in [(Reading::Strict, strict), (Reading::Paper, Some(find(&said.paper_label)?))] {
                let key = (reading, said.arm.clone(), said.corpus.clone());
                answers.entry(key).or_default().push(Answered { dialogue: dialogue.to_owned(), gold, label });
            }
        }
        Ok(Self { job: job.into(), report, labels, answers })
    }

    /// An arm's row in the report: of the corpus `key` where the job mixes several, else of its only one.
    pub fn arm(&self, arm: Arm, key: &str) -> Option<&ArmReport> {
        let mut rows = self.report.arms.iter().filter(|row| row.name == arm.as_str());
        match self.report.provenance.corpus.parts.len() {
            0 | 1 => rows.next(),
            _ => rows.find(|row| row.corpus == key),
        }
    }

    fn answers(&self, reading: Reading, arm: Arm, key: &str) -> Option<&Vec<Answered>> {
        let row = self.arm(arm, key)?;
        self.answers.get(&(reading, row.name.clone(), row.corpus.clone()))
    }

    /// Where its numbers come from.
    pub fn source(&self, corpus: &str) -> JobSource {
        let from = &self.report.provenance;
        JobSource {
            job: self.job.clone(),
            name: from.recipe.name.clone(),
            corpus: corpus.into(),
            corpus_digest: from.corpus.digest.to_string(),
            base: from.base.source.clone(),
            base_digest: from.base.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
            recipe: serde_json::to_string(&from.recipe).expect("a job has only text keys"),
            seed: from.seed,
            commit: from.commit.clone(),
        }
    }
}

/// The same experiment under several seeds: the runs of one row on one corpus.
#[derive(Debug, Clone)]
pub struct Runs<'a> {
    /// Its runs, one for each seed.
    pub outcomes: Vec<&'a Outcome>,
    /// The arm that is looked at.
    pub arm: Arm,
    /// Key of the corpus.
    pub key: &'a str,
    /// How its answers are read.
    pub reading: Reading,
}

/// What some runs say together.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbers {
    /// Weighted F1, mean over seeds, a fraction.
    pub mean: f64,
    /// Its sample standard deviation over seeds.
    pub sd: Option<f64>,
    /// 95% by bootstrap over dialogues; absent where there are too few.
    pub interval: Option<Interval>,
    /// Why there is no interval.
    pub without_interval: Option<String>,
    /// Accuracy, mean over seeds.
    pub accuracy: f64,
    /// Weighted F1 under the other reading, mean over seeds.
    pub other_reading: f64,
    /// Part of the answers that are unreadable, mean over seeds.
    pub unreadable: f64,
}

impl Runs<'_> {
    fn answers(&self) -> Result<ArmAnswers, StatisticsError> {
        let seeds: Vec<_> =
            self.outcomes.iter().filter_map(|o| o.answers(self.reading, self.arm, self.key)).cloned().collect();
        ArmAnswers::new(self.outcomes.first().map_or(0, |o| o.labels.len()), &seeds)
    }

    /// The numbers; `None` where no run has the arm.
    pub fn numbers(&self, bootstrap: Bootstrap) -> Option<Numbers> {
        let rows: Vec<&ArmReport> = self.outcomes.iter().filter_map(|o| o.arm(self.arm, self.key)).collect();
        let values = |pick: fn(&ArmReport) -> f64| rows.iter().map(|row| pick(row)).collect::<Vec<_>>();
        let strict = summary(&values(|row| row.weighted_f1))?;
        let paper = summary(&values(|row| row.paper_weighted_f1))?;
        let unreadable = summary(&values(|row| row.unreadable as f64 / row.samples.max(1) as f64))?.mean;
        let (f1, other_reading, accuracy) = match self.reading {
            Reading::Strict => (strict, paper.mean, values(|row| row.accuracy)),
            Reading::Paper => (paper, strict.mean, values(|row| row.paper_accuracy)),
        };
        let accuracy = summary(&accuracy)?.mean;
        let found = self.answers().and_then(|answers| interval(&answers, bootstrap));
        let (interval, without_interval) = match found {
            Ok(interval) => (Some(interval), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Some(Numbers { mean: f1.mean, sd: f1.sd, interval, without_interval, accuracy, other_reading, unreadable })
    }

    /// How these compare with others on the same utterances.
    ///
    /// # Errors
    /// When they did not answer the same, or too few dialogues.
    pub fn compared(&self, other: &Runs<'_>, bootstrap: Bootstrap) -> Result<Comparison, StatisticsError> {
        compare(&self.answers()?, &other.answers()?, bootstrap)
    }
}
