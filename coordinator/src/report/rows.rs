//! The tables of a report as rows of text, which Markdown and terminal draw each in their own way.

use insula_proto::job::{Arm, Parameters};

use super::{ArmReport, Report};

/// A table: its first row is the header, its first column text, the others numbers.
pub(super) type Rows = Vec<Vec<String>>;

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// A fraction in per cent with two decimals.
pub(super) fn percent(fraction: f64) -> String {
    format!("{:.2}", fraction * 100.0)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}

/// What a row of an arm is called: its corpus stands in it where there are several.
pub(super) fn title(report: &Report, arm: &ArmReport) -> String {
    match report.provenance.corpus.parts.len() {
        0 | 1 => arm.name.clone(),
        _ => format!("{} on {}", arm.name, arm.corpus),
    }
}

/// Metrics by arm.
pub(super) fn summary(report: &Report) -> Rows {
    let mut rows = vec![row(["", "W-F1", "macro F1", "accuracy", "W-F1 paper", "unreadable", "samples"])];
    for arm in &report.arms {
        rows.push(vec![
            title(report, arm),
            percent(arm.weighted_f1),
            percent(arm.macro_f1),
            percent(arm.accuracy),
            percent(arm.paper_weighted_f1),
            arm.unreadable.to_string(),
            arm.samples.to_string(),
        ]);
    }
    rows
}

/// What the arms cost.
pub(super) fn cost(report: &Report) -> Rows {
    let mut rows = vec![row(["", "seconds", "samples/s", "peak memory", "tree tokens", "dropped", "close"])];
    let line = |name: &str, seconds: f64, speed: f64, bytes, tokens: u64, dropped: u64, close: String| {
        let numbers = [format!("{seconds:.1}"), format!("{speed:.1}"), mebibytes(bytes), tokens.to_string()];
        [name.to_owned()].into_iter().chain(numbers).chain([dropped.to_string(), close]).collect::<Vec<_>>()
    };
    for stage in &report.earlier_stages {
        let name = format!("training {}", stage.objectives);
        let speed = stage.samples as f64 / stage.seconds.max(f64::MIN_POSITIVE);
        let [seconds, speed] = [stage.seconds, speed].map(|value| format!("{value:.1}"));
        rows.push([name, seconds, speed].into_iter().chain(["-"; 4].map(String::from)).collect());
    }
    if let Some(t) = &report.training {
        let cells = (t.peak_rss_bytes, t.tree_tokens, t.dropped_utterances);
        rows.push(line("training", t.seconds, t.samples_per_s, cells.0, cells.1, cells.2, "-".into()));
    }
    for a in &report.arms {
        let cells = (a.peak_rss_bytes, a.tree_tokens, a.dropped_utterances);
        let close = a.close_margins.to_string();
        rows.push(line(&title(report, a), a.seconds, a.samples_per_s, cells.0, cells.1, cells.2, close));
    }
    rows
}

/// What answers of an endpoint cost; `None` where no arm asked one.
pub(super) fn endpoint(report: &Report) -> Option<Rows> {
    let mut rows = vec![row(["", "tokens in", "tokens out", "USD", "kept answers"])];
    for arm in &report.arms {
        if let Some(e) = &arm.external {
            let numbers = [e.input_tokens.to_string(), e.output_tokens.to_string(), format!("{:.4}", e.usd)];
            rows.push([title(report, arm)].into_iter().chain(numbers).chain([e.cached.to_string()]).collect());
        }
    }
    (rows.len() > 1).then_some(rows)
}

/// An arm's metrics by label.
pub(super) fn labels(arm: &ArmReport) -> Rows {
    let mut rows = vec![row(["label", "precision", "recall", "F1", "support"])];
    for l in &arm.labels {
        let numbers = [percent(l.precision), percent(l.recall), percent(l.f1), l.support.to_string()];
        rows.push([l.label.clone()].into_iter().chain(numbers).collect());
    }
    rows
}

/// An arm's confusion counts; columns are headed by the labels' first `letters`.
pub(super) fn confusion(arm: &ArmReport, letters: usize) -> Rows {
    let short = |name: &String| name.chars().take(letters).collect::<String>();
    let heads = ["gold \\ answer".to_owned()].into_iter().chain(arm.confusion.columns.iter().map(short));
    let mut rows = vec![heads.collect::<Vec<_>>()];
    for (gold, counts) in arm.confusion.rows.iter().zip(&arm.confusion.counts) {
        rows.push([gold.clone()].into_iter().chain(counts.iter().map(u64::to_string)).collect());
    }
    rows
}

/// Dev scores by epoch.
pub(super) fn epochs(report: &Report) -> Option<Rows> {
    let training = report.training.as_ref()?;
    let mut rows = vec![row(["epoch", "W-F1 on dev", "chosen"])];
    for e in &training.epochs {
        let chosen = if e.best { "best" } else { "" };
        rows.push(vec![e.epoch.to_string(), percent(e.weighted_f1), chosen.into()]);
    }
    Some(rows)
}

/// What the result was made from, name and value.
pub(super) fn provenance(report: &Report) -> Vec<(&'static str, String)> {
    let p = &report.provenance;
    let splits = p.corpus.splits.iter();
    let sizes: Vec<_> = splits.map(|(split, s)| format!("{split} {}/{}", s.dialogues, s.utterances)).collect();
    let digest = p.base.digest.as_ref().map_or("unknown".to_owned(), |digest| digest.to_string());
    let (r, t) = (&p.recipe, &p.recipe.train);
    let mut lines = vec![
        ("insula", format!("{} ({})", p.insula_version, p.commit)),
        ("job", format!("{} '{}'", p.job_id, r.name)),
        ("corpus", p.corpus.name.clone()),
        ("corpus digest", p.corpus.digest.to_string()),
        ("dialogues/utterances", sizes.join(", ")),
        ("base", p.base.source.clone()),
        ("base digest", digest),
        ("evaluation", format!("{:?}, window {}", p.evaluate, r.data.window).to_lowercase()),
        ("seed", p.seed.to_string()),
    ];
    if let Some(training) = &report.training {
        let targets = r.adapter.targets.join(" ");
        lines.push(match t.parameters {
            Parameters::Lora => ("adapter", format!("LoRA r {} alpha {} on {targets}", r.adapter.r, r.adapter.alpha)),
            Parameters::All => ("trained", "all weights of the base".into()),
        });
        lines.push(("recipe", format!("lr {}, warm-up {}, {} epochs", t.lr, t.warmup, t.epochs)));
        lines.push(("updates", format!("{} of {} samples", training.updates, t.batch)));
        lines.push(("trained on", format!("{} samples (share {})", p.samples_trained_on, r.data.share)));
        if !r.stages.is_empty() {
            let stages = r.training_stages().iter().map(|stage| stage.name()).collect::<Vec<_>>();
            lines.push(("stages", stages.join(", then ")));
        }
        if r.retrieval.k > 0 {
            lines.push(("demonstrations", format!("{} by {}", r.retrieval.k, r.retrieval.encoder)));
        }
        lines.push(("best epoch", training.best_epoch.to_string()));
        if let (Some(first), Some(last)) = (training.losses.first(), training.losses.last()) {
            let shown = |loss: &Option<f32>| loss.map_or("not finite".into(), |loss| format!("{loss:.4}"));
            lines.push(("loss, first to last", format!("{} to {}", shown(first), shown(last))));
        }
    }
    lines
}

/// The arms whose details are shown: the trained ones where there are any, one for each corpus.
pub(super) fn detailed(report: &Report) -> Vec<&ArmReport> {
    let trained: Vec<_> = report.arms.iter().filter(|arm| arm.name == Arm::Trained.as_str()).collect();
    if trained.is_empty() { report.arms.iter().collect() } else { trained }
}
