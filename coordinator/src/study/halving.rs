//! Asynchronous successive halving (Li et al. 2018, "A System for Massively Parallel Hyperparameter Tuning") and median
//! stopping (Golovin et al. 2017, "Google Vizier"), by weighted F1 on dev.
//!
//! ```text
//! all trials --to the first rung's epoch--> pause --the best 1/eta of those that came so far--> to the next rung ... --> end
//!                                             '-- nobody is left that could come: the others are stopped
//! ```
//! Decisions only: they depend on what the trials have come to, not on when it was looked at.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// When trials are given up early.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halving {
    /// Of the trials that reach a rung, one in `eta` goes on.
    #[serde(default = "three")]
    pub eta: u32,
    /// Epochs after which trials pause, rising.
    pub rungs: Vec<u32>,
    /// Seeds that a trial which reaches its end is run again with.
    #[serde(default)]
    pub replicate: Vec<u64>,
}

fn three() -> u32 {
    3
}

/// Median stopping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Median {
    /// Epochs that every trial gets before it is looked at.
    pub after: u32,
}

/// Which trials of a search are given up early.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Early {
    /// By rungs.
    pub halving: Option<Halving>,
    /// By the median of the others.
    pub median: Option<Median>,
}

impl Early {
    /// Whether every trial is computed to its end.
    pub fn is_none(&self) -> bool {
        self.halving.is_none() && self.median.is_none()
    }

    /// What to do now.
    pub fn decide(&self, trials: &[Standing]) -> Vec<Decision> {
        let halved = self.halving.iter().flat_map(|halving| halving.decide(trials));
        halved.chain(self.median.iter().flat_map(|median| median.decide(trials))).collect()
    }
}

/// What a trial has come to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// Weighted F1 on dev by epoch, a fraction.
    pub scores: BTreeMap<u32, f64>,
    /// Where it stands.
    pub stage: Standstill,
}

/// Where a trial stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Standstill {
    /// It is queued or computed.
    #[default]
    Running,
    /// It pauses after this epoch.
    Paused(u32),
    /// It has ended, however.
    Ended,
}

/// What to do about a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It goes on to this epoch; 0: to its end.
    Resume {
        /// The trial's place.
        trial: usize,
        /// Where it pauses next.
        pause_epoch: u32,
    },
    /// It is not worth more.
    Stop {
        /// The trial's place.
        trial: usize,
        /// Why, in a sentence.
        why: String,
    },
}

impl Halving {
    /// Checks the rungs against the epochs of the trials.
    ///
    /// # Errors
    /// What is wrong, and what was expected.
    pub fn check(&self, epochs: u32) -> Result<(), String> {
        if self.eta < 2 {
            return Err(format!("halving.eta = {}: expected at least 2", self.eta));
        }
        let rising = self.rungs.is_sorted_by(|a, b| a < b);
        if self.rungs.is_empty() || !rising || self.rungs[0] == 0 || self.rungs.last() >= Some(&epochs) {
            let (rungs, last) = (&self.rungs, epochs.saturating_sub(1));
            return Err(format!(
                "halving.rungs = {rungs:?}: expected rising epochs from 1 to {last}, before train.epochs"
            ));
        }
        Ok(())
    }

    /// What to do now. Nothing is asked twice of a trial that was told to go on: it is `Running` then.
    pub fn decide(&self, trials: &[Standing]) -> Vec<Decision> {
        let mut decisions = Vec::new();
        for (place, &epoch) in self.rungs.iter().enumerate() {
            let next = self.rungs.get(place + 1).copied().unwrap_or(0);
            decisions.extend(self.of_rung(trials, epoch, next));
        }
        decisions
    }

    fn of_rung(&self, trials: &[Standing], epoch: u32, next: u32) -> Vec<Decision> {
        let mut came: Vec<(usize, f64)> =
            trials.iter().enumerate().filter_map(|(trial, of)| Some((trial, *of.scores.get(&epoch)?))).collect();
        // The best first; of equals the earlier trial, so that the order is one.
        came.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let waits = |trial: usize| trials[trial].stage == Standstill::Paused(epoch);
        // Whoever has not come here and neither has ended nor is stopped below may come yet.
        let all_came = trials.iter().all(|of| of.scores.contains_key(&epoch) || of.stage == Standstill::Ended);
        let mut go_on = came.len() / self.eta as usize;
        if all_came && !came.is_empty() {
            go_on = go_on.max(1);
        }
        let promoted = came[..go_on].iter().filter(|(trial, _)| waits(*trial));
        let promoted = promoted.map(|&(trial, _)| Decision::Resume { trial, pause_epoch: next });
        let stopped = came[go_on..].iter().filter(|(trial, _)| all_came && waits(*trial)).map(|&(trial, score)| {
            let (rank, of) = (came.iter().position(|(t, _)| *t == trial).unwrap_or(0) + 1, came.len());
            let why = format!("weighted F1 {:.2} on dev after epoch {epoch} is number {rank} of {of}", 100.0 * score);
            Decision::Stop { trial, why }
        });
        promoted.chain(stopped).collect()
    }
}

impl Median {
    /// The running trials whose best score so far is below the median of what the others had come to on average by then.
    pub fn decide(&self, trials: &[Standing]) -> Vec<Decision> {
        let mut decisions = Vec::new();
        for (trial, standing) in trials.iter().enumerate() {
            let Some((&epoch, _)) = standing.scores.last_key_value() else { continue };
            if standing.stage == Standstill::Ended || epoch < self.after {
                continue;
            }
            let others: Vec<f64> = trials
                .iter()
                .enumerate()
                .filter(|(other, of)| *other != trial && of.scores.contains_key(&epoch))
                .map(|(_, of)| mean(of.scores.range(..=epoch).map(|(_, score)| *score)))
                .collect();
            let best = standing.scores.values().copied().fold(f64::MIN, f64::max);
            if let Some(median) = median(others).filter(|median| best < *median) {
                let (best, median) = (100.0 * best, 100.0 * median);
                let why = format!("weighted F1 {best:.2} on dev after epoch {epoch} is below the median {median:.2}");
                decisions.push(Decision::Stop { trial, why });
            }
        }
        decisions
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count.max(1))
}

/// The middle one, or the mean of the two in the middle; `None` of fewer than two, which say little.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 | 1 => None,
        odd if odd % 2 == 1 => Some(values[half]),
        _ => Some(f64::midpoint(values[half - 1], values[half])),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn paused(epoch: u32, score: f64) -> Standing {
        Standing { scores: [(epoch, score)].into(), stage: Standstill::Paused(epoch) }
    }

    fn halving() -> Halving {
        Halving { eta: 3, rungs: vec![1, 3], replicate: vec![] }
    }

    #[test]
    fn a_third_of_those_that_came_goes_on_without_waiting_for_the_rest() {
        let running = Standing::default();
        let mut trials =
            vec![paused(1, 0.5), paused(1, 0.7), paused(1, 0.6), running.clone(), running.clone(), running];
        assert_eq!(halving().decide(&trials), [Decision::Resume { trial: 1, pause_epoch: 3 }]);
        trials[1].stage = Standstill::Running;
        assert_eq!(halving().decide(&trials), [], "it is told once");
        (trials[3], trials[4]) = (paused(1, 0.65), paused(1, 0.1));
        assert_eq!(halving().decide(&trials), [], "a third of five is one");
        trials[5] = paused(1, 0.2);
        let decided = halving().decide(&trials);
        assert_eq!(decided[0], Decision::Resume { trial: 3, pause_epoch: 3 });
        assert_eq!(decided.len(), 5, "everybody has come: the others are stopped");
        let why = "weighted F1 60.00 on dev after epoch 1 is number 3 of 6".to_owned();
        assert_eq!(decided[1], Decision::Stop { trial: 2, why });
    }

    #[test]
    fn of_fewer_than_eta_the_best_goes_on_once_nobody_can_come() {
        let mut trials = vec![paused(1, 0.4), Standing::default()];
        assert_eq!(halving().decide(&trials), []);
        trials[1].stage = Standstill::Ended;
        assert_eq!(halving().decide(&trials), [Decision::Resume { trial: 0, pause_epoch: 3 }]);
    }

    #[test]
    fn a_trial_below_the_median_of_the_others_is_stopped() {
        let of = |scores: &[f64]| Standing {
            scores: (1..).zip(scores.iter().copied()).collect(),
            stage: Standstill::Running,
        };
        let trials = [of(&[0.5, 0.6]), of(&[0.4, 0.5]), of(&[0.3, 0.31]), of(&[0.2])];
        let stopped = |after| {
            let decided = Median { after }.decide(&trials).into_iter();
            decided.map(|d| match d {
                Decision::Stop { trial, .. } => trial,
                Decision::Resume { .. } => unreachable!("the median lets nobody go on"),
            })
        };
        assert_eq!(stopped(1).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(stopped(2).collect::<Vec<_>>(), [2], "a trial of one epoch has time");
    }

    #[test]
    fn rungs_that_cannot_be_are_refused_by_name() {
        let wrong = Halving { rungs: vec![3, 1], ..halving() }.check(4).unwrap_err();
        assert_eq!(wrong, "halving.rungs = [3, 1]: expected rising epochs from 1 to 3, before train.epochs");
        assert!(Halving { eta: 1, ..halving() }.check(4).unwrap_err().starts_with("halving.eta = 1"));
        assert!(halving().check(3).is_err() && halving().check(4).is_ok());
    }

    proptest! {
        #[test]
        fn in_whatever_order_trials_come_the_search_ends_and_the_best_of_the_first_rung_is_never_stopped_there(
            scores in prop::collection::vec(0.0f64..1.0, 1..20), order in any::<prop::sample::Index>(), eta in 2u32..5,
        ) {
            let halving = Halving { eta, rungs: vec![1, 2], replicate: vec![] };
            let mut trials = vec![Standing::default(); scores.len()];
            let mut goals = vec![1u32; scores.len()];
            let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(b.cmp(a))).unwrap();
            for turn in 0..scores.len() * 8 {
                let running: Vec<_> = (0..trials.len()).filter(|&t| trials[t].stage == Standstill::Running).collect();
                if let Some(&trial) = running.get((order.index(97) + turn) % running.len().max(1)) {
                    let epoch = goals[trial];
                    trials[trial].scores.insert(if epoch == 0 { 3 } else { epoch }, scores[trial]);
                    trials[trial].stage = if epoch == 0 { Standstill::Ended } else { Standstill::Paused(epoch) };
                }
                for decision in halving.decide(&trials) {
                    match decision {
                        Decision::Resume { trial, pause_epoch } => {
                            goals[trial] = pause_epoch;
                            trials[trial].stage = Standstill::Running;
                        }
                        Decision::Stop { trial, .. } => {
                            prop_assert!(trial != best);
                            trials[trial].stage = Standstill::Ended;
                        }
                    }
                }
            }
            prop_assert!(trials.iter().all(|of| of.stage == Standstill::Ended));
            prop_assert!(trials[best].scores.contains_key(&3));
        }
    }
}
