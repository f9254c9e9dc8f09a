//! `insula sweep`: trials of one job, side by side.

use std::path::Path;

use comfy_table::{Table, TableStyle};
use insula_coordinator::study::{
    halving::Early,
    outcome::{Outcome, Reading, Runs},
    statistics::Bootstrap,
    sweep::{Match, Sweep, Trial, arms, equal_updates, expand},
};
use insula_proto::{
    job::{Arm, JobSpec},
    settings::{Layer, layered},
};
use serde::Serialize;

use super::{Asked, computed, fleet::Fleet, reproduce::pass_of, write_all};
use crate::{
    args::{SettingsArgs, SweepArgs},
    failure::Failure,
    shell::{
        out::{self, say},
        settings,
    },
};

/// One arm of a sweep on one corpus.
#[derive(Debug, Serialize)]
struct Row {
    /// The settings that make it, without the seed.
    trial: String,
    /// The report's row.
    arm: &'static str,
    corpus: String,
    seeds: Vec<u64>,
    jobs: Vec<String>,
    /// Mean over seeds, a fraction.
    weighted_f1: Option<f64>,
    sd: Option<f64>,
    /// 95% by bootstrap over dialogues.
    interval: Option<[f64; 2]>,
    accuracy: Option<f64>,
    /// Weighted F1 where unreadable answers are repaired as the paper does.
    paper_weighted_f1: Option<f64>,
    updates: Option<u32>,
    /// Against the first row of the same corpus.
    difference: Option<f64>,
    difference_interval: Option<[f64; 2]>,
    p_value: Option<f64>,
    /// What is missing, and why.
    note: Option<String>,
}

/// Runs a sweep and prints its arms.
///
/// # Errors
/// When the sweep cannot be expanded, a trial is refused, or the wait is interrupted.
pub async fn sweep(args: SweepArgs, verbose: u8) -> Result<(), Failure> {
    let (sweep, trials) = trials(&args)?;
    if args.dry_run {
        trials.iter().for_each(|trial| say!("{}", trial.name));
        return Ok(());
    }
    let mut fleet = Fleet::start(&args.study, verbose).await?;
    let searched = searched(&mut fleet, &sweep.early, trials).await;
    fleet.close().await;
    let (trials, outcomes) = searched?;
    let rows = rows(&trials, &outcomes);
    let json = serde_json::to_string_pretty(&serde_json::json!({ "sweep": sweep.name, "rows": rows }));
    let json = json.map_err(|e| Failure::operation("print the results", e))? + "\n";
    if let Some(folder) = &args.out {
        let markdown = format!("# {}\n\n{}", sweep.name, markdown(&rows));
        write_all(folder, &[("sweep.md".into(), markdown), ("sweep.json".into(), json.clone())])?;
    }
    if args.json {
        out::print(format_args!("{json}"));
    } else {
        out::print(format_args!("{}\n", text(&rows)));
    }
    Ok(())
}

/// Computes the trials; and where the search asks for it, those that reached their end once more with other seeds.
async fn searched(
    fleet: &mut Fleet,
    early: &Early,
    mut trials: Vec<Trial>,
) -> Result<(Vec<Trial>, Vec<Result<Outcome, String>>), Failure> {
    let asked = |trial: &Trial| Asked { spec: trial.spec.clone(), from: None };
    let mut jobs: Vec<_> = trials.iter().map(asked).collect();
    if let Some(halving) = &early.halving {
        jobs.iter_mut().for_each(|job| job.spec.schedule.pause_epoch = halving.rungs[0]);
    }
    let mut outcomes = computed(fleet, &jobs, early).await?;
    let seeds = early.halving.iter().flat_map(|halving| &halving.replicate);
    let ended: Vec<_> = trials.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok()).map(|(t, _)| t).collect();
    // A seed counts once in an arm: the sweep may have had it already, or two trials of the arm may have come to their end.
    let mut again: Vec<Trial> = Vec::new();
    for (trial, &seed) in ended.iter().flat_map(|trial| seeds.clone().map(move |seed| (*trial, seed))) {
        let same = |other: &Trial| other.spec.seed == seed && other.arm() == trial.arm();
        if !ended.iter().copied().any(same) && !again.iter().any(same) {
            again.push(trial.with_seed(seed));
        }
    }
    outcomes.extend(computed(fleet, &again.iter().map(asked).collect::<Vec<_>>(), &Early::default()).await?);
    trials.extend(again);
    Ok((trials, outcomes))
}

#[expect(clippy::disallowed_methods, reason = "the sweep is read from the file the person named")]
fn trials(args: &SweepArgs) -> Result<(Sweep, Vec<Trial>), Failure> {
    let input = |e: &dyn std::fmt::Display| Failure::Input(e.to_string());
    let text =
        std::fs::read_to_string(&args.file).map_err(|e| Failure::Input(format!("{}: {e}", args.file.display())))?;
    let sweep = Sweep::parse(&args.file, &text).map_err(|e| input(&e))?;
    let job = args.file.parent().unwrap_or(Path::new("")).join(&sweep.job);
    let base = settings::unchecked(&SettingsArgs { job: Some(job), sets: vec![] })?;
    let of = |sets: &[String]| {
        let sets = sets.iter().chain(&args.sets).cloned().collect();
        layered(&base, &[Layer::CommandLine(sets)])
    };
    let mut trials = expand(&sweep, &of).map_err(|e| input(&e))?;
    for trial in &mut trials {
        trial.spec = settings::whole(trial.spec.clone()).map_err(|failure| super::named(&trial.name, failure))?;
    }
    if let Some(halving) = &sweep.early.halving {
        for trial in &trials {
            let epochs = trial.spec.training_stages().last().map_or(0, |stage| stage.train.epochs);
            halving.check(epochs).map_err(|problem| Failure::Input(format!("{}: {problem}", trial.name)))?;
            if !trial.spec.evaluates() {
                let problem = "pauses for a score on dev, and its last stage does not learn what is evaluated";
                return Err(Failure::Input(format!("{}: halving {problem}: expected one that does", trial.name)));
            }
        }
    }
    if sweep.matching == Match::Updates {
        let samples = trials.iter().map(|trial| pass_of(&trial.spec)).collect::<Result<Vec<_>, _>>()?;
        equal_updates(&mut trials.iter_mut().map(|trial| &mut trial.spec).collect::<Vec<&mut JobSpec>>(), &samples);
    }
    Ok((sweep, trials))
}

fn rows(trials: &[Trial], outcomes: &[Result<Outcome, String>]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut runs: Vec<Runs<'_>> = Vec::new();
    for (name, places) in arms(trials) {
        let missing = places.iter().filter_map(|&place| outcomes[place].as_ref().err().cloned()).next();
        let ended: Vec<(u64, &Outcome)> = places
            .iter()
            .filter_map(|&place| outcomes[place].as_ref().ok().map(|o| (trials[place].spec.seed, o)))
            .collect();
        let Some((_, first)) = ended.first() else {
            rows.push(row(&name, "-", "-", None, missing));
            continue;
        };
        for of in &first.report.arms {
            let Some(arm) = Arm::ALL.into_iter().find(|arm| arm.as_str() == of.name) else { continue };
            let these = Runs {
                outcomes: ended.iter().map(|(_, o)| *o).collect(),
                arm,
                key: &of.corpus,
                reading: Reading::Strict,
            };
            let mut row = row(&name, arm.as_str(), &of.corpus, Some(&these), missing.clone());
            row.seeds = ended.iter().map(|(seed, _)| *seed).collect();
            if let Some(first) = runs.iter().find(|known| known.key == these.key) {
                match these.compared(first, Bootstrap::default()) {
                    Ok(found) => {
                        row.difference = Some(found.difference);
                        row.difference_interval = Some([found.interval.low, found.interval.high]);
                        row.p_value = Some(found.p_value);
                    }
                    Err(error) => row.note = row.note.or(Some(error.to_string())),
                }
            }
            runs.push(these);
            rows.push(row);
        }
    }
    rows
}

fn row(trial: &str, arm: &'static str, corpus: &str, runs: Option<&Runs<'_>>, missing: Option<String>) -> Row {
    let numbers = runs.and_then(|runs| runs.numbers(Bootstrap::default()));
    let outcomes = runs.map_or(&[][..], |runs| &runs.outcomes);
    let trained = arm != Arm::ZeroShot.as_str() && arm != Arm::FewShot.as_str();
    let training = outcomes.first().and_then(|o| o.report.training.as_ref()).filter(|_| trained);
    Row {
        trial: trial.to_owned(),
        arm,
        corpus: corpus.to_owned(),
        seeds: vec![],
        jobs: outcomes.iter().map(|o| o.job.clone()).collect(),
        weighted_f1: numbers.as_ref().map(|n| n.mean),
        sd: numbers.as_ref().and_then(|n| n.sd),
        interval: numbers.as_ref().and_then(|n| n.interval).map(|i| [i.low, i.high]),
        accuracy: numbers.as_ref().map(|n| n.accuracy),
        paper_weighted_f1: numbers.as_ref().map(|n| n.other_reading),
        updates: training.map(|training| training.updates),
        difference: None,
        difference_interval: None,
        p_value: None,
        note: missing.or(numbers.and_then(|n| n.without_interval)),
    }
}

const HEADER: [&str; 10] = [
    "trial",
    "arm",
    "corpus",
    "seeds",
    "updates",
    "W-F1 ± sd [95%]",
    "W-F1 paper",
    "accuracy",
    "to the first [95%]",
    "p",
];

fn cells(row: &Row) -> [String; 10] {
    let percent = |value: f64| format!("{:.2}", 100.0 * value);
    let dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let between = |pair: Option<[f64; 2]>| {
        pair.map_or(String::new(), |[low, high]| format!(" [{}, {}]", percent(low), percent(high)))
    };
    let sd = row.sd.map_or(String::new(), |sd| format!(" ± {}", percent(sd)));
    let f1 = row.weighted_f1.map(|f1| format!("{}{sd}{}", percent(f1), between(row.interval)));
    let difference = row.difference.map(|d| format!("{:+.2}{}", 100.0 * d, between(row.difference_interval)));
    let trial = if row.trial.is_empty() { "as it is".to_owned() } else { row.trial.clone() };
    [
        trial,
        row.arm.to_owned(),
        row.corpus.clone(),
        row.seeds.len().to_string(),
        dash(row.updates.map(|updates| updates.to_string())),
        dash(f1),
        dash(row.paper_weighted_f1.map(percent)),
        dash(row.accuracy.map(percent)),
        dash(difference),
        dash(row.p_value.map(|p| format!("{p:.3}"))),
    ]
}

fn text(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(HEADER);
    table.add_rows(rows.iter().map(cells));
    let notes = rows.iter().filter_map(|row| row.note.as_ref().map(|note| format!("\n{}: {note}", row.trial)));
    table.to_string() + &notes.collect::<String>()
}

fn markdown(rows: &[Row]) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | ").replace('<', "&lt;"));
    let rule = format!("|{}\n", "---|".repeat(HEADER.len()));
    let body: String = rows.iter().map(|row| line(cells(row).to_vec())).collect();
    let notes: String =
        rows.iter().filter_map(|row| row.note.as_ref().map(|note| format!("\n- {}: {note}", row.trial))).collect();
    line(HEADER.map(String::from).to_vec()) + &rule + &body + &notes
}
