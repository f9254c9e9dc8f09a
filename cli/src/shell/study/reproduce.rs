//! `insula reproduce instructerc`: the paper's experiments on one's own base, its tables and figures.

use std::path::Path;

use insula_coordinator::{
    corpus::Corpus,
    shell::corpora::read_job,
    study::{
        halving::Early,
        instructerc::{Asked, Effort, Experiment, plan},
        outcome::Outcome,
        published::{CORPORA, Published},
        reproduction::study,
        sweep::equal_updates,
        tables::{html, markdown},
    },
};
use insula_proto::{
    corpus::Split,
    job::{BaseSpec, CorpusSpec, JobSpec, LabelsSpec},
    settings::{Layer, layered},
};

use super::{computed, fleet::Fleet, write_all};
use crate::{
    args::{InstructercArgs, Matching},
    failure::Failure,
    shell::{out::say, settings},
};

/// The unified labels, part of the binary so that the command needs no files.
const LABELS: &str = include_str!("../../../../configs/labels/feeling-wheel.toml");

/// Seeds where the person named none: the paper averages three runs.
const SEEDS: [u64; 3] = [42, 43, 44];

/// Runs all experiments and leaves the report.
///
/// # Errors
/// When an argument cannot be worked with, a job is refused, or the study is interrupted.
pub async fn reproduce(args: InstructercArgs, verbose: u8) -> Result<(), Failure> {
    let plan = experiments(&args)?;
    if args.dry_run {
        for experiment in &plan {
            let from = experiment.from.map(|from| format!(" (after {})", plan[from].spec.name));
            say!("{}{}", experiment.spec.name, from.unwrap_or_default());
        }
        return Ok(());
    }
    let jobs: Vec<_> = plan.iter().map(|e| super::Asked { spec: e.spec.clone(), from: e.from }).collect();
    let mut fleet = Fleet::start(&args.study, verbose).await?;
    let outcomes = computed(&mut fleet, &jobs, &Early::default()).await;
    fleet.close().await;
    let files = report(&plan, &outcomes?, args.quick);
    write_all(&args.out, &files)?;
    for (name, _) in &files {
        say!("{}", args.out.join(name).display());
    }
    Ok(())
}

/// The plan with every setting the person made.
fn experiments(args: &InstructercArgs) -> Result<Vec<Experiment>, Failure> {
    let input = |problem: String| Failure::Input(problem);
    let labels: LabelsSpec = toml::from_str(LABELS).map_err(|e| Failure::operation("read the unified labels", e))?;
    let mut corpora = Vec::new();
    for given in &args.corpora {
        corpora.push(corpus(given)?);
    }
    let order = |key: &str| CORPORA.iter().position(|(known, _)| *known == key);
    corpora.sort_by_key(|(key, _)| order(key));
    if let Some(pair) = corpora.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(input(format!("--corpora {} is given twice", pair[0].0)));
    }
    let seeds = match (args.seeds.is_empty(), args.quick) {
        (false, _) => args.seeds.clone(),
        (true, true) => SEEDS[..1].to_vec(),
        (true, false) => SEEDS.to_vec(),
    };
    let effort = if args.quick { Effort::quick() } else { Effort::paper() };
    let mut base = BaseSpec::clone(&JobSpec::default().base);
    base.source.clone_from(&args.base);
    let mut plan = plan(&Asked { base, corpora, labels, seeds, effort });
    for experiment in &mut plan {
        let set = layered(&experiment.spec, &[Layer::CommandLine(args.sets.clone())]);
        experiment.spec = settings::whole(set.map_err(|e| input(e.to_string()))?)?;
    }
    if args.matching == Matching::Updates {
        match_updates(&mut plan)?;
    }
    Ok(plan)
}

/// `meld=PATH`.
fn corpus(given: &str) -> Result<(String, CorpusSpec), Failure> {
    let keys = || CORPORA.map(|(key, _)| key).join(", ");
    let wrong = |problem: &str| Failure::Input(format!("--corpora {given}: {problem}"));
    let (key, path) = given.split_once('=').ok_or_else(|| wrong("expected KEY=PATH, such as meld=corpora/meld"))?;
    if !CORPORA.iter().any(|(known, _)| *known == key) {
        return Err(wrong(&format!("'{key}' is none of the paper's corpora: expected one of {}", keys())));
    }
    if !Path::new(path).exists() {
        return Err(wrong("there is no such folder or file"));
    }
    Ok((key.to_owned(), CorpusSpec { path: path.to_owned(), ..CorpusSpec::default() }))
}

/// Gives the jobs of one share equal updates: a corpus alone is trained as long as the mix.
fn match_updates(plan: &mut [Experiment]) -> Result<(), Failure> {
    let mut samples = Vec::new();
    for experiment in plan.iter() {
        samples.push(pass_of(&experiment.spec)?);
    }
    let mut jobs: Vec<&mut JobSpec> = plan.iter_mut().map(|experiment| &mut experiment.spec).collect();
    equal_updates(&mut jobs, &samples);
    Ok(())
}

/// Samples of one pass of a job's training.
pub(super) fn pass_of(spec: &JobSpec) -> Result<u64, Failure> {
    let corpora = read_job(spec, &[Split::Train]).map_err(|e| Failure::Input(e.to_string()))?;
    let utterances = |corpus: &Corpus| corpus.splits[&Split::Train].iter().map(|d| d.utterances.len() as u64).sum();
    Ok(spec.sampled(&corpora.iter().map(utterances).collect::<Vec<_>>()))
}

/// The report's files, by name.
fn report(plan: &[Experiment], outcomes: &[Result<Outcome, String>], quick: bool) -> Vec<(String, String)> {
    let published = Published::instructerc();
    let study = study(plan, outcomes, quick, &published);
    let mut files = vec![
        ("report.md".to_owned(), markdown::render(&study, &published)),
        ("report.html".to_owned(), html::render(&study, &published)),
        ("study.json".to_owned(), study.to_json(&published)),
    ];
    files.extend(study.figures.iter().map(|figure| (format!("{}.svg", figure.id), figure.svg.clone())));
    files
}
