//! How sure a number is: means over seeds, bootstrap intervals, and paired comparisons of two arms.
//!
//! Utterances of one dialogue are no independent draws, so the bootstrap resamples whole dialogues. Confusion counts add,
//! so a draw adds the tallies of the dialogues it picked, and the weighted F1 comes from [`Metric`] as everywhere else.

use std::collections::BTreeMap;

use insula_proto::{corpus::Label, tally::Tally};
use rand::Rng as _;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng as _};
use serde::{Deserialize, Serialize};

use crate::metric::Metric;

/// Part of the draws that an interval leaves out at each end.
const TAIL: f64 = 0.025;

/// Draws below which an end of the interval would be the most extreme draw: `1 / TAIL`.
const FEWEST_DRAWS: u32 = 40;

/// One utterance's answer, in the strict reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The dialogue it belongs to.
    pub dialogue: String,
    /// Index of the annotated label.
    pub gold: u16,
    /// Index of the label that was answered; `None`: unreadable.
    pub label: Option<u16>,
}

/// What cannot be computed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StatisticsError {
    /// Nothing to count.
    #[error("no answers: expected those of at least one seed")]
    Empty,
    /// A label that the label set does not have.
    #[error("dialogue '{dialogue}': label {label} is none of {labels} labels")]
    Label {
        /// Where it stands.
        dialogue: String,
        /// The index.
        label: u16,
        /// Size of the label set.
        labels: usize,
    },
    /// Two lists of answers that are not about the same utterances.
    #[error("the answers cannot be paired: {0}")]
    NotPaired(String),
    /// A bootstrap over one dialogue would say that it is certain.
    #[error("{0} dialogue: an interval needs at least 2 to resample")]
    TooFewDialogues(usize),
    /// Too few draws for an interval of 95%.
    #[error("{0} draws: expected at least {FEWEST_DRAWS} for an interval of 95%")]
    TooFewDraws(u32),
}

/// Mean and spread of one number over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Seeds.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Sample standard deviation (`n - 1` below the line); absent for one seed, which has no spread.
    pub sd: Option<f64>,
}

/// Ends of a 95% interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// 2.5% of the draws lie below.
    pub low: f64,
    /// 2.5% of the draws lie above.
    pub high: f64,
}

/// One arm against another over the same utterances.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Weighted F1 of the first less that of the second, a fraction.
    pub difference: f64,
    /// Of the difference.
    pub interval: Interval,
    /// Two-sided, from 0 to 1.
    pub p_value: f64,
}

/// How a bootstrap draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Resamples.
    pub draws: u32,
    /// The only source of chance: the same seed draws the same dialogues.
    pub seed: u64,
}

impl Default for Bootstrap {
    /// Two thousand draws: an end of the interval then rests on fifty of them.
    fn default() -> Self {
        Self { draws: 2000, seed: 42 }
    }
}

/// One arm's answers on one split: a tally per dialogue for each seed.
#[derive(Debug, Clone, PartialEq)]
pub struct ArmAnswers {
    labels: usize,
    dialogues: Vec<DialogueGold>,
    /// By seed, then in the order of `dialogues`.
    tallies: Vec<Vec<Tally>>,
}

/// What makes a dialogue the same as another list's: its name and its gold labels in order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DialogueGold {
    name: String,
    gold: Vec<u16>,
}

/// Mean and sample standard deviation of some seeds' values; `None` of no values.
pub fn summary(values: &[f64]) -> Option<Summary> {
    let count = values.len();
    if count == 0 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / count as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some(Summary { count, mean, sd: (count > 1).then(|| (squares / (count - 1) as f64).sqrt()) })
}

impl ArmAnswers {
    /// Counts the answers of one arm, a list for each seed, over a set of `labels` labels.
    ///
    /// Dialogues may stand in any order; within a dialogue the answers stand in the order of its turns.
    ///
    /// # Errors
    /// When there is nothing to count, a label is outside the set, or two seeds answered different utterances.
    pub fn new(labels: usize, seeds: &[Vec<Answered>]) -> Result<Self, StatisticsError> {
        let mut arms = seeds.iter().map(|answers| Self::of_one_seed(labels, answers));
        let mut whole = arms.next().ok_or(StatisticsError::Empty)??;
        for arm in arms {
            let arm = arm?;
            whole.check_paired(&arm)?;
            whole.tallies.extend(arm.tallies);
        }
        Ok(whole)
    }

    fn of_one_seed(labels: usize, answers: &[Answered]) -> Result<Self, StatisticsError> {
        let mut by_dialogue: BTreeMap<&str, (Vec<u16>, Tally)> = BTreeMap::new();
        for Answered { dialogue, gold, label } in answers {
            if let Some(&label) =
                [Some(gold), label.as_ref()].into_iter().flatten().find(|l| usize::from(**l) >= labels)
            {
                return Err(StatisticsError::Label { dialogue: dialogue.clone(), label, labels });
            }
            let (golds, tally) = by_dialogue.entry(dialogue).or_insert_with(|| (vec![], Tally::new(labels)));
            golds.push(*gold);
            tally.count(Label(*gold), label.map(Label));
        }
        if by_dialogue.is_empty() {
            return Err(StatisticsError::Empty);
        }
        let parts =
            by_dialogue.into_iter().map(|(name, (gold, tally))| (DialogueGold { name: name.into(), gold }, tally));
        let (dialogues, tallies) = parts.unzip();
        Ok(Self { labels, dialogues, tallies: vec![tallies] })
    }

    /// Whether both are about the same utterances.
    fn check_paired(&self, other: &Self) -> Result<(), StatisticsError> {
        let refuse = |problem: String| Err(StatisticsError::NotPaired(problem));
        if self.labels != other.labels {
            return refuse(format!("one is over {} labels, the other over {}", self.labels, other.labels));
        }
        let named =
            |arm: &Self| arm.dialogues.iter().map(|d| (d.name.clone(), d.gold.clone())).collect::<BTreeMap<_, _>>();
        let (mine, theirs) = (named(self), named(other));
        let lacking =
            |has: &BTreeMap<String, _>, of: &BTreeMap<String, _>| has.keys().find(|d| !of.contains_key(*d)).cloned();
        if let Some(name) = lacking(&mine, &theirs).or_else(|| lacking(&theirs, &mine)) {
            let counts = (mine.len(), theirs.len());
            return refuse(format!("dialogue '{name}' is in one alone (of {} and {} dialogues)", counts.0, counts.1));
        }
        let differs = mine.iter().find(|(name, gold)| theirs.get(*name) != Some(*gold));
        match differs {
            None => Ok(()),
            Some((name, gold)) if theirs[name].len() != gold.len() => refuse(format!(
                "dialogue '{name}' has {} answers in one and {} in the other",
                gold.len(),
                theirs[name].len()
            )),
            Some((name, _)) => refuse(format!("dialogue '{name}' has other gold labels in one than in the other")),
        }
    }

    /// Seeds.
    pub fn seeds(&self) -> usize {
        self.tallies.len()
    }

    /// Dialogues answered.
    pub fn dialogues(&self) -> usize {
        self.dialogues.len()
    }

    /// Utterances answered by each seed.
    pub fn utterances(&self) -> usize {
        self.dialogues.iter().map(|dialogue| dialogue.gold.len()).sum()
    }

    /// Each seed's metrics over all dialogues.
    pub fn metrics(&self) -> Vec<Metric> {
        let all: Vec<_> = (0..self.dialogues.len()).collect();
        self.tallies.iter().map(|tallies| self.metric(tallies, &all)).collect()
    }

    fn metric(&self, tallies: &[Tally], picked: &[usize]) -> Metric {
        let mut sum = Tally::new(self.labels);
        picked.iter().for_each(|&dialogue| sum.add(&tallies[dialogue]));
        Metric::of(&sum)
    }

    /// The seeds' mean weighted F1 over the picked dialogues.
    fn weighted_f1(&self, picked: &[usize]) -> f64 {
        let f1: f64 = self.tallies.iter().map(|tallies| self.metric(tallies, picked).weighted_f1).sum();
        f1 / self.tallies.len() as f64
    }
}

/// The 95% interval of an arm's weighted F1 (mean over its seeds), by percentiles of a bootstrap over dialogues.
///
/// The dialogues are drawn once for all seeds, so the interval says what other dialogues would have given; how much
/// seeds differ is [`summary`]'s to say.
///
/// # Errors
/// When there are fewer than 2 dialogues or 40 draws.
pub fn interval(arm: &ArmAnswers, bootstrap: Bootstrap) -> Result<Interval, StatisticsError> {
    resampled(arm.dialogues(), bootstrap, |picked| arm.weighted_f1(picked)).map(|draws| percentiles(&draws))
}

/// Compares two arms on the same draws of dialogues.
///
/// The p value is the part of the draws whose difference lies on the other side of 0 (or on it), doubled; one draw is
/// added to both counts, as no finite number of draws makes sure.
///
/// # Errors
/// When the arms did not answer the same utterances, or as for [`interval`].
pub fn compare(first: &ArmAnswers, second: &ArmAnswers, bootstrap: Bootstrap) -> Result<Comparison, StatisticsError> {
    first.check_paired(second)?;
    let difference = |picked: &[usize]| first.weighted_f1(picked) - second.weighted_f1(picked);
    let draws = resampled(first.dialogues(), bootstrap, difference)?;
    let beyond = draws.iter().filter(|d| **d <= 0.0).count().min(draws.iter().filter(|d| **d >= 0.0).count());
    let all: Vec<_> = (0..first.dialogues()).collect();
    Ok(Comparison {
        difference: difference(&all),
        interval: percentiles(&draws),
        p_value: (2.0 * (beyond + 1) as f64 / (draws.len() + 1) as f64).min(1.0),
    })
}

/// The statistic of every draw, ascending.
fn resampled(
    dialogues: usize,
    bootstrap: Bootstrap,
    statistic: impl Fn(&[usize]) -> f64,
) -> Result<Vec<f64>, StatisticsError> {
    if dialogues < 2 {
        return Err(StatisticsError::TooFewDialogues(dialogues));
    }
    if bootstrap.draws < FEWEST_DRAWS {
        return Err(StatisticsError::TooFewDraws(bootstrap.draws));
    }
    let mut chance = ChaCha8Rng::seed_from_u64(bootstrap.seed);
    let mut picked = vec![0; dialogues];
    let mut draw = || {
        picked.iter_mut().for_each(|dialogue| *dialogue = chance.random_range(0..dialogues));
        statistic(&picked)
    };
    let mut draws: Vec<f64> = (0..bootstrap.draws).map(|_| draw()).collect();
    draws.sort_unstable_by(f64::total_cmp);
    Ok(draws)
}

/// Both ends, between two draws linearly as numpy's `percentile` does. The upper end counts from above with the lower
/// end's weights, so that the interval of `-x` is exactly that of `x` mirrored.
fn percentiles(ascending: &[f64]) -> Interval {
    let last = ascending.len() - 1;
    let place = TAIL * last as f64;
    let (whole, part) = (place.floor() as usize, place.fract());
    let between = |near: usize, far: usize| ascending[near] * (1.0 - part) + ascending[far] * part;
    Interval { low: between(whole, whole + 1), high: between(last - whole, last - whole - 1) }
}

#[cfg(test)]
#[path = "statistics_tests.rs"]
mod tests;
