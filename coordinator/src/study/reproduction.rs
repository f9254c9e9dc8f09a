//! The paper's tables and figures from the outcomes of its plan.

use std::collections::BTreeMap;

use insula_proto::job::{Arm, Share};

use super::{
    figure::{self, ScalingPoint, WindowPoint},
    instructerc::{ALL, Experiment, PLAIN, Place, WHOLE, ZERO_SHOT},
    outcome::{Outcome, Reading, Runs},
    published::{Mix, Published},
    statistics::Bootstrap,
    tables::{Cell, Figure, Significance, Study, TableName},
};

/// What one row of one table is: seeds of it are runs of one arm.
type Row = (TableName, String, Option<Mix>, String);

/// Everything a finished plan says. `outcomes` are in the plan's order; an experiment without one says why.
///
/// # Panics
/// When there are not as many outcomes as experiments.
pub fn study(plan: &[Experiment], outcomes: &[Result<Outcome, String>], quick: bool, published: &Published) -> Study {
    assert_eq!(plan.len(), outcomes.len(), "every experiment has an outcome");
    let rows = rows(plan, outcomes);
    let mut study = Study { title: "InstructERC, reproduced".into(), quick, ..Study::default() };
    let first = outcomes.iter().flatten().next();
    study.base = first.map_or_else(String::new, |o| o.report.provenance.base.source.clone());
    study.cells = rows.iter().map(|(row, of)| cell(row, of)).collect();
    study.significance = significance(&rows);
    study.figures = figures(&rows, &study.cells, published);
    study.notes = notes(plan);
    for (experiment, outcome) in plan.iter().zip(outcomes) {
        match outcome {
            Ok(outcome) => {
                study.jobs.push(outcome.source(&experiment.keys.join("+")));
                let warned = outcome.report.warnings.iter();
                study.warnings.extend(warned.map(|text| format!("{}: {text}", experiment.spec.name)));
            }
            Err(why) => study.warnings.push(format!("{}: {why}", experiment.spec.name)),
        }
    }
    study
}

fn notes(plan: &[Experiment]) -> Vec<String> {
    let demonstrations = "demonstrations in training are chosen among all labels, not the sample's own, which would give \
                          the answer away";
    let mut notes = vec![
        "unreadable answers are repaired as the paper does, which its numbers are measured by; strict: they count as wrong"
            .to_owned(),
        demonstrations.to_owned(),
    ];
    notes.push("no LoRA dropout (the paper: 0.05)".into());
    notes.push(
        "data scaling: ours, single too, is the main prompt with unified labels; the paper prints its whole method's \
         numbers for single at share 1"
            .into(),
    );
    if plan.iter().all(|experiment| experiment.spec.train.updates > 0) {
        notes.push("every training takes the same number of updates, whatever its samples".into());
    }
    notes
}

/// The runs of one row on one corpus, and why others are missing.
struct Of<'a> {
    outcomes: Vec<&'a Outcome>,
    missing: Vec<&'a str>,
    seeds: Vec<u64>,
    arm: Arm,
}

fn rows<'a>(plan: &[Experiment], outcomes: &'a [Result<Outcome, String>]) -> BTreeMap<Row, Of<'a>> {
    let mut rows: BTreeMap<Row, Of<'a>> = BTreeMap::new();
    for (experiment, outcome) in plan.iter().zip(outcomes) {
        for Place { table, row, mix, arm } in &experiment.places {
            for key in &experiment.keys {
                let of = rows.entry((*table, row.clone(), *mix, key.clone()));
                let of = of.or_insert(Of { outcomes: vec![], missing: vec![], seeds: vec![], arm: *arm });
                match outcome {
                    Ok(outcome) => {
                        of.outcomes.push(outcome);
                        of.seeds.push(experiment.spec.seed);
                    }
                    Err(why) => of.missing.push(why),
                }
            }
        }
    }
    rows
}

impl<'a> Of<'a> {
    /// Read as the paper reads answers: its numbers stand beside these.
    fn runs<'k>(&self, key: &'k str) -> Runs<'k>
    where
        'a: 'k,
    {
        Runs { outcomes: self.outcomes.clone(), arm: self.arm, key, reading: Reading::Paper }
    }
}

fn cell((table, row, mix, key): &Row, of: &Of<'_>) -> Cell {
    let numbers = of.runs(key).numbers(Bootstrap::default());
    let empty =
        Cell { mix: *mix, ..Cell::missing(*table, row, key, of.missing.first().unwrap_or(&"no run of it ended")) };
    let Some(numbers) = numbers else { return empty };
    let trained = of.outcomes[0].report.training.as_ref();
    let note = of.missing.first().map(|why| format!("a seed is missing: {why}"));
    Cell {
        mean: Some(numbers.mean),
        sd: numbers.sd,
        interval: numbers.interval,
        accuracy: Some(numbers.accuracy),
        strict: Some(numbers.other_reading).filter(|_| numbers.unreadable > 0.0),
        seeds: of.seeds.clone(),
        updates: trained.map(|t| u64::from(t.updates)),
        samples: trained.map(|_| of.outcomes[0].report.provenance.samples_trained_on),
        jobs: of.outcomes.iter().map(|o| o.job.clone()).collect(),
        note: note.or(numbers.without_interval.map(|why| format!("no interval: {why}"))),
        ..empty
    }
}

/// A row of one of the tables.
type TableRow = (TableName, &'static str);

/// Pairs of rows that the paper's claims are about.
const PAIRS: [(TableRow, TableRow); 7] = [
    ((TableName::Main, WHOLE), (TableName::Main, PLAIN)),
    ((TableName::Main, WHOLE), (TableName::Main, ZERO_SHOT)),
    ((TableName::Main, WHOLE), (TableName::Main, ALL)),
    ((TableName::Ablation, "full"), (TableName::Ablation, "without impact")),
    ((TableName::Ablation, "full"), (TableName::Ablation, "without speaker")),
    ((TableName::Ablation, "full"), (TableName::Ablation, "without both")),
    ((TableName::Ablation, "full"), (TableName::Ablation, "without retrieval")),
];

fn significance(rows: &BTreeMap<Row, Of<'_>>) -> Vec<Significance> {
    let mut found = Vec::new();
    let keys: std::collections::BTreeSet<&String> = rows.keys().map(|(.., key)| key).collect();
    for key in keys {
        for ((table_a, a), (table_b, b)) in PAIRS {
            let of = |table, row: &str| rows.get(&(table, row.to_owned(), None, key.clone()));
            let (Some(first), Some(second)) = (of(table_a, a), of(table_b, b)) else { continue };
            let compared = first.runs(key).compared(&second.runs(key), Bootstrap::default());
            let (comparison, note) = match compared {
                Ok(comparison) => (Some(comparison), None),
                Err(error) => (None, Some(error.to_string())),
            };
            found.push(Significance { corpus: key.clone(), first: a.into(), second: b.into(), comparison, note });
        }
    }
    found
}

fn figures(rows: &BTreeMap<Row, Of<'_>>, cells: &[Cell], published: &Published) -> Vec<Figure> {
    let of_table = |table| cells.iter().filter(move |cell| cell.table == table && cell.mean.is_some());
    let jobs = |table| of_table(table).flat_map(|cell| cell.jobs.clone()).collect::<Vec<_>>();
    let mut figures = Vec::new();
    let point = |cell: &Cell| {
        let share: Share = cell.row.parse().ok()?;
        let (corpus, mix, weighted_f1) = (cell.corpus.clone(), cell.mix?, cell.mean?);
        Some(ScalingPoint { corpus, mix, share, weighted_f1, interval: cell.interval })
    };
    let scaling: Vec<_> = of_table(TableName::DataScaling).filter_map(point).collect();
    if !scaling.is_empty() {
        figures.push(Figure {
            id: "data-scaling".into(),
            title: "Data scaling".into(),
            caption:
                "Weighted F1 on test over the share of the training samples, unified labels. Solid: ours, with 95% \
                      intervals; dashed: the paper's LLaMA2-7B."
                    .into(),
            jobs: jobs(TableName::DataScaling),
            svg: figure::scaling(&scaling, published),
        });
    }
    let point = |cell: &Cell| {
        let (corpus, window, weighted_f1) = (cell.corpus.clone(), cell.row.parse().ok()?, cell.mean?);
        Some(WindowPoint { corpus, window, weighted_f1, interval: cell.interval })
    };
    let windows: Vec<_> = of_table(TableName::Window).filter_map(point).collect();
    if !windows.is_empty() {
        figures.push(Figure {
            id: "window".into(),
            title: "Window".into(),
            caption: "Weighted F1 on test over the preceding utterances shown. Solid: ours; dashed: the paper's."
                .into(),
            jobs: jobs(TableName::Window),
            svg: figure::window(&windows, published),
        });
    }
    for ((_, row, _, key), of) in rows.iter().filter(|((table, row, ..), _)| *table == TableName::Main && row == WHOLE)
    {
        let Some((outcome, arm)) = of.outcomes.first().and_then(|o| Some((o, o.arm(of.arm, key)?))) else { continue };
        figures.push(Figure {
            id: format!("confusion-{key}"),
            title: format!("{row} on {key}"),
            caption: "Who was taken for whom on test, read strictly: per cent of each gold label, counts beneath."
                .into(),
            jobs: vec![outcome.job.clone()],
            svg: figure::confusion(&format!("{row} on {key}"), &arm.confusion),
        });
    }
    figures
}
