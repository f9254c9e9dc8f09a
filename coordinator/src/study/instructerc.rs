//! The experiments of InstructERC's paper as jobs: which there are, what each starts from, and which cells of which table
//! its numbers stand in.
//!
//! ```text
//! corpus, seed --> speaker stage ---.--> main + impact + demonstrations   main table, ablation "full", window 12, ...
//!                  (one job, whose  |--> the same without impact, without demonstrations
//!                  adapter is what  '--> the same with windows 1, 5, 20 and impact weights 0.05, 0.2
//!                  the others start from)
//!                  (fresh adapter) ----> without speaker, without both; plain; all parameters; data scaling
//! ```
//! The paper loads the speaker stage's adapter before each second stage, and the stage does not depend on the window, so
//! one job serves them all.

use insula_proto::job::{
    Arm, BaseSpec, Candidates, CorpusSpec, JobSpec, LabelsSpec, Mix, Objective, Parameters, Share, StageSpec, Template,
};

use super::{published, tables::TableName};

/// What a person asks to be reproduced.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The base.
    pub base: BaseSpec,
    /// Key (`meld`) and place of every corpus, in the paper's order.
    pub corpora: Vec<(String, CorpusSpec)>,
    /// The unified labels.
    pub labels: LabelsSpec,
    /// Seeds of every experiment.
    pub seeds: Vec<u64>,
    /// How much is done.
    pub effort: Effort,
}

/// How much is done of each experiment.
#[derive(Debug, Clone, PartialEq)]
pub struct Effort {
    /// Part of the training samples, but for data scaling.
    pub share: Share,
    /// Part of dev's and test's dialogues.
    pub evaluated: Share,
    /// Updates of every training; `None`: the paper's epochs.
    pub updates: Option<u32>,
    /// Samples of an update.
    pub batch: u32,
    /// Peak learning rate of adapters.
    pub lr: f64,
    /// Peak learning rate where all parameters are trained.
    pub lr_all: f64,
    /// Shares of the data-scaling experiment.
    pub shares: Vec<Share>,
}

impl Effort {
    /// What the authors' code does.
    pub fn paper() -> Self {
        let shares = [1, 2, 4, 8, 16, 32, 64].map(|n| share(&format!("1/{n}")));
        Self {
            share: Share::WHOLE,
            evaluated: Share::WHOLE,
            updates: None,
            batch: 32,
            lr: 2e-4,
            lr_all: 2e-5,
            shares: shares.to_vec(),
        }
    }

    /// Small shares and few updates: whether everything works, in half an hour on a laptop. The rate is what a small base
    /// wants.
    pub fn quick() -> Self {
        Self {
            share: share("1/32"),
            evaluated: share("1/26"),
            updates: Some(4),
            batch: 8,
            lr: 1e-3,
            lr_all: 2e-5,
            shares: vec![share("1/32"), share("1/64")],
        }
    }
}

fn share(text: &str) -> Share {
    text.parse().expect("the share is written here")
}

/// A cell that an experiment fills, one for each of its corpora and seeds.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// The table.
    pub table: TableName,
    /// The row, as published ones are written.
    pub row: String,
    /// How the corpora were put together, for data scaling.
    pub mix: Option<published::Mix>,
    /// Which of the job's arms.
    pub arm: Arm,
}

/// One job of the study.
#[derive(Debug, Clone, PartialEq)]
pub struct Experiment {
    /// The job; what it starts from is filled in when that has an id.
    pub spec: JobSpec,
    /// Keys of its corpora.
    pub keys: Vec<String>,
    /// Place in the plan of the experiment whose adapter it starts from.
    pub from: Option<usize>,
    /// What its numbers are for; empty: another experiment's beginning.
    pub places: Vec<Place>,
}

/// Row of the main table: the bare base.
pub const ZERO_SHOT: &str = "zero-shot";
/// Row of the main table: LoRA on the utterance alone.
pub const PLAIN: &str = "LoRA + backbone";
/// Row of the main table: LoRA with all of InstructERC.
pub const WHOLE: &str = "LoRA + InstructERC";
/// Row of the main table: every weight trained on the main prompt.
pub const ALL: &str = "all parameters";

/// The whole study, each experiment after the one it starts from.
pub fn plan(asked: &Asked) -> Vec<Experiment> {
    let mut plan = Vec::new();
    for (key, corpus) in &asked.corpora {
        for &seed in &asked.seeds {
            of_corpus(asked, key, corpus, seed, &mut plan);
        }
    }
    for &seed in &asked.seeds {
        scaling(asked, seed, &mut plan);
    }
    plan
}

/// Epochs of the authors' code.
mod epochs {
    pub const PLAIN: u32 = 6;
    pub const SPEAKER: u32 = 3;
    pub const SECOND: u32 = 15;
    pub const ALL: u32 = 6;
    pub const UNIFIED: u32 = 8;
}

/// Parts of the whole method.
#[derive(Clone, Copy)]
struct Parts {
    speaker: bool,
    impact: Option<f64>,
    demonstrations: bool,
    window: u32,
}

/// The paper's best.
const WHOLE_METHOD: Parts = Parts { speaker: true, impact: Some(0.1), demonstrations: true, window: 12 };

fn of_corpus(asked: &Asked, key: &str, corpus: &CorpusSpec, seed: u64, plan: &mut Vec<Experiment>) {
    let name = |what: &str| format!("{key} {what}, seed {seed}");
    let job = |what: &str, epochs: u32| {
        let spec = base_job(asked, name(what), seed, epochs);
        JobSpec { corpus: corpus.clone().into(), ..spec }
    };
    let main = |row: &str, arm| place(TableName::Main, row, arm);
    let mut plain = job("plain", epochs::PLAIN);
    plain.data.template = Template::Plain;
    if asked.effort.updates.is_none() {
        plain.train.batch = 16; // as the authors'
    }
    let keys = vec![key.to_owned()];
    let push = |spec, from, places, plan: &mut Vec<Experiment>| {
        plan.push(Experiment { spec, keys: keys.clone(), from, places });
    };
    push(plain, None, vec![main(PLAIN, Arm::Trained)], plan);
    let mut all = job("all parameters", epochs::ALL);
    (all.train.parameters, all.train.lr) = (Parameters::All, asked.effort.lr_all);
    all.train.checkpoint_updates = 1000; // a state of all weights is three times as large as the base
    let places = vec![main(ALL, Arm::Trained), place(TableName::AllParameters, ALL, Arm::Trained)];
    push(all, None, places, plan);
    // The bare base answers alike under every seed.
    if asked.seeds.first() == Some(&seed) {
        let mut zero = job("zero-shot", 1);
        zero.evaluate.arms = vec![Arm::ZeroShot];
        push(zero, None, vec![main(ZERO_SHOT, Arm::ZeroShot)], plan);
    }

    let mut speaker = job("speaker stage", epochs::SPEAKER);
    speaker.stages = vec![stage(&[Objective::Speaker], None)];
    speaker.evaluate.arms = vec![];
    let first = plan.len();
    push(speaker, None, vec![], plan);
    for (what, parts, mut places) in methods() {
        if what == "whole" {
            places.extend([main(WHOLE, Arm::Trained), place(TableName::AllParameters, "LoRA", Arm::Trained)]);
        }
        let mut spec = job(&what, epochs::SECOND);
        spec.data.window = parts.window;
        let objectives: &[_] = match parts.impact {
            Some(_) => &[Objective::Main, Objective::Impact],
            None => &[Objective::Main],
        };
        spec.stages = vec![stage(objectives, parts.impact)];
        spec.retrieval.k = u32::from(parts.demonstrations);
        spec.retrieval.training = Candidates::Any;
        push(spec, parts.speaker.then_some(first), places, plan);
    }
}

/// The whole method and what is left out of it or set otherwise, each with its cells.
fn methods() -> Vec<(String, Parts, Vec<Place>)> {
    let trained = |table, row: &str| place(table, row, Arm::Trained);
    let ablation = |row| vec![trained(TableName::Ablation, row)];
    let whole = vec![
        trained(TableName::Ablation, "full"),
        trained(TableName::Window, "12"),
        trained(TableName::ImpactWeight, "0.1"),
    ];
    let mut without_impact = ablation("without impact");
    without_impact.push(trained(TableName::ImpactWeight, "0"));
    let all = WHOLE_METHOD;
    let mut methods = vec![
        ("whole".into(), all, whole),
        ("without impact".into(), Parts { impact: None, ..all }, without_impact),
        ("without speaker".into(), Parts { speaker: false, ..all }, ablation("without speaker")),
        ("without both".into(), Parts { speaker: false, impact: None, ..all }, ablation("without both")),
        ("without retrieval".into(), Parts { demonstrations: false, ..all }, ablation("without retrieval")),
    ];
    for window in [1, 5, 20] {
        let places = vec![trained(TableName::Window, &window.to_string())];
        methods.push((format!("window {window}"), Parts { window, ..all }, places));
    }
    for weight in [0.05, 0.2] {
        let places = vec![trained(TableName::ImpactWeight, &weight.to_string())];
        methods.push((format!("impact weight {weight}"), Parts { impact: Some(weight), ..all }, places));
    }
    methods
}

/// Unified labels, the main prompt alone: all corpora mixed in two ways, and each alone.
fn scaling(asked: &Asked, seed: u64, plan: &mut Vec<Experiment>) {
    let several = asked.corpora.len() > 1;
    for &share in &asked.effort.shares {
        let places =
            |mix| vec![Place { mix: Some(mix), ..place(TableName::DataScaling, &share.to_string(), Arm::Trained) }];
        let job = |what: String| {
            let mut spec = base_job(asked, format!("{what} {share}, seed {seed}"), seed, epochs::UNIFIED);
            (spec.data.share, spec.labels) = (share, asked.labels.clone().into());
            spec
        };
        for (mix, published) in [(Mix::Total, published::Mix::Total), (Mix::Ratio, published::Mix::Ratio)] {
            let same = mix == Mix::Ratio && share == Share::WHOLE; // the whole of each is the whole of all
            if several && same {
                let total = plan.last_mut().expect("the total mix was planned just now");
                total.places.extend(places(published));
            } else if several {
                let mut spec = job(published.as_str().to_lowercase());
                spec.corpora = asked.corpora.iter().cloned().collect();
                spec.data.mix = mix;
                let keys = asked.corpora.iter().map(|(key, _)| key.clone()).collect();
                plan.push(Experiment { spec, keys, from: None, places: places(published) });
            }
        }
        for (key, corpus) in &asked.corpora {
            let mut spec = job(format!("{key} alone"));
            spec.corpus = corpus.clone().into();
            let keys = vec![key.clone()];
            plan.push(Experiment { spec, keys, from: None, places: places(published::Mix::Single) });
        }
    }
}

fn base_job(asked: &Asked, name: String, seed: u64, epochs: u32) -> JobSpec {
    let effort = &asked.effort;
    let mut spec = JobSpec { name, seed, base: asked.base.clone().into(), ..JobSpec::default() };
    spec.data.share = effort.share;
    (spec.train.batch, spec.train.lr) = (effort.batch, effort.lr);
    (spec.train.epochs, spec.train.updates) = match effort.updates {
        Some(updates) => (1, updates),
        None => (epochs, 0),
    };
    spec.evaluate.dialogues = effort.evaluated;
    spec.evaluate.arms = vec![Arm::Trained];
    spec
}

fn stage(objectives: &[Objective], impact_weight: Option<f64>) -> StageSpec {
    StageSpec {
        objectives: objectives.to_vec(),
        impact_weight,
        epochs: None,
        updates: None,
        batch: None,
        lr: None,
        warmup: None,
    }
}

fn place(table: TableName, row: &str, arm: Arm) -> Place {
    Place { table, row: row.into(), mix: None, arm }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::study::published::{Group, Published};

    fn asked(keys: &[&str], effort: Effort) -> Asked {
        let corpus =
            |key: &&str| ((*key).to_owned(), CorpusSpec { path: format!("corpora/{key}"), ..Default::default() });
        let mut labels = LabelsSpec { names: vec!["joyful".into(), "sad".into()], ..LabelsSpec::default() };
        labels.map.insert("meld".into(), BTreeMap::from([("joyful".into(), "joyful".into())]));
        let base = BaseSpec::clone(&JobSpec::default().base);
        Asked { base, corpora: keys.iter().map(corpus).collect(), labels, seeds: vec![1, 2], effort }
    }

    #[test]
    fn every_job_can_be_submitted_and_starts_from_one_before_it() {
        for effort in [Effort::paper(), Effort::quick()] {
            for keys in [&["meld", "emorynlp"][..], &["iemocap"]] {
                for (place, experiment) in plan(&asked(keys, effort.clone())).iter().enumerate() {
                    assert_eq!(experiment.spec.violations(), [], "{}", experiment.spec.name);
                    assert!(experiment.from.is_none_or(|from| from < place), "{}", experiment.spec.name);
                }
            }
        }
    }

    #[test]
    fn every_published_row_of_ours_has_an_experiment() {
        let published = Published::instructerc();
        let plan = plan(&asked(&["iemocap", "meld", "emorynlp"], Effort::paper()));
        let groups = [
            (Group::Ablation, TableName::Ablation),
            (Group::Window, TableName::Window),
            (Group::ImpactWeight, TableName::ImpactWeight),
            (Group::DataScaling, TableName::DataScaling),
        ];
        for (group, table) in groups {
            for row in published.group(group) {
                let setting = row.setting.as_deref().unwrap_or_default();
                let fits = |p: &Place| p.table == table && p.row == setting && p.mix == row.mix;
                let found = plan.iter().flat_map(|e| &e.places).filter(|p| fits(p)).count();
                assert!(found >= 2, "{group:?} {setting} {:?} has no experiment for each seed", row.mix);
            }
        }
    }

    #[test]
    fn no_two_jobs_are_the_same() {
        let plan = plan(&asked(&["meld", "emorynlp"], Effort::quick()));
        let nameless = plan.iter().map(|e| (JobSpec { name: String::new(), ..e.spec.clone() }, e.from));
        let texts: std::collections::BTreeSet<String> =
            nameless.map(|(spec, from)| format!("{from:?} {}", serde_json::to_string(&spec).unwrap())).collect();
        assert_eq!(texts.len(), plan.len());
    }
}
