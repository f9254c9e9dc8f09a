//! The trials of a sweep.

use std::collections::BTreeMap;

use insula_proto::{job::JobSpec, settings::SettingsError};
use toml::Value;

use super::{Random, Sweep, SweepError, TRIALS_MAX, draw::stream};

/// Draws tried for each one wanted, where draws repeat: enough to find all of a few dozen values.
const TRIES: u32 = 1000;

/// One point of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// Its place in the sweep, from 0.
    pub index: usize,
    /// The sweep's name and what this trial sets; the job's name too.
    pub name: String,
    /// What varies, by the alphabet: key and value as `--set` takes them; the seed last.
    pub settings: Vec<(String, String)>,
    /// The whole job.
    pub spec: JobSpec,
}

impl Trial {
    /// The same with another seed.
    pub fn with_seed(&self, seed: u64) -> Trial {
        let settings = self.settings.iter().filter(|(key, _)| key != "seed").cloned();
        let settings = settings.chain([("seed".to_owned(), seed.to_string())]).collect();
        let name = format!("{} seed={seed}", self.name.split(" seed=").next().unwrap_or(&self.name));
        let spec = JobSpec { seed, name: name.clone(), ..self.spec.clone() };
        Trial { index: self.index, name, settings, spec }
    }

    /// What trials of one arm have in common: their settings but for the seed, `data.window=5`.
    pub fn arm(&self) -> String {
        let settings = self.settings.iter().filter(|(key, _)| key != "seed");
        settings.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }
}

/// The arms in the order they first appear, each with its trials' places in `trials`.
pub fn arms(trials: &[Trial]) -> Vec<(String, Vec<usize>)> {
    let mut arms: Vec<(String, Vec<usize>)> = Vec::new();
    let mut places = BTreeMap::new();
    for (place, trial) in trials.iter().enumerate() {
        let arm = *places.entry(trial.arm()).or_insert(arms.len());
        if arm == arms.len() {
            arms.push((trial.arm(), vec![]));
        }
        arms[arm].1.push(place);
    }
    arms
}

impl Sweep {
    /// How many trials it asks for; `u64::MAX` for more than fit.
    pub fn count(&self) -> u64 {
        let grid = self.grid.iter().map(|(_, values)| values.len() as u64);
        let random = self.random.as_ref().map_or(1, |random| u64::from(random.trials));
        let seeds = (self.seeds.len() as u64).max(1);
        grid.chain([random, seeds]).fold(1, u64::saturating_mul)
    }
}

/// All trials of a sweep. `base` puts assignments `KEY=VALUE` over the job file's settings, as
/// [`settings::layered`](insula_proto::settings::layered) does with a command line.
///
/// # Errors
/// When there are more than [`TRIALS_MAX`], too few different draws, settings that the job refuses, or two trials that
/// are the same job.
pub fn expand(
    sweep: &Sweep,
    base: &dyn Fn(&[String]) -> Result<JobSpec, SettingsError>,
) -> Result<Vec<Trial>, SweepError> {
    let count = sweep.count();
    if count > TRIALS_MAX {
        return Err(SweepError::TooMany { sweep: sweep.name.clone(), count });
    }
    let mut trials = Vec::new();
    for settings in points(sweep)? {
        let trial = trial(sweep, trials.len(), settings, base)?;
        trials.push(trial);
    }
    check_different(&trials)?;
    Ok(trials)
}

/// What each trial sets, in order.
fn points(sweep: &Sweep) -> Result<Vec<Vec<(String, Value)>>, SweepError> {
    let mut dimensions: Vec<Vec<Vec<(String, Value)>>> = Vec::new();
    for (key, values) in &sweep.grid {
        dimensions.push(values.iter().map(|value| vec![(key.clone(), value.clone())]).collect());
    }
    if let Some(random) = &sweep.random {
        dimensions.push(draws(random, &sweep.name)?);
    }
    if !sweep.seeds.is_empty() {
        // TOML has no whole numbers beyond i64, so seeds out of a file fit.
        let seed = |seed: &u64| vec![("seed".to_owned(), Value::Integer(i64::try_from(*seed).unwrap_or(i64::MAX)))];
        dimensions.push(sweep.seeds.iter().map(seed).collect());
    }
    let start = vec![vec![]];
    Ok(dimensions.into_iter().fold(start, |points, dimension| {
        let extended =
            |point: &Vec<_>| -> Vec<_> { dimension.iter().map(|more| [&point[..], more].concat()).collect() };
        points.iter().flat_map(extended).collect()
    }))
}

/// Draws of all keys, no two the same.
fn draws(random: &Random, sweep: &str) -> Result<Vec<Vec<(String, Value)>>, SweepError> {
    let mut streams: Vec<_> = random.keys.iter().map(|(key, range)| (key, range, stream(random.seed, key))).collect();
    let mut found = BTreeMap::new();
    let mut order = Vec::new();
    for _ in 0..u64::from(random.trials) * u64::from(TRIES) {
        if order.len() == random.trials as usize {
            break;
        }
        let drawn: Vec<_> = streams.iter_mut().map(|(key, range, chance)| (key.clone(), range.draw(chance))).collect();
        let text: Vec<_> = drawn.iter().map(|(_, value)| value.to_string()).collect();
        if found.insert(text, ()).is_none() {
            order.push(drawn);
        }
    }
    if order.len() < random.trials as usize {
        let (trials, found) = (random.trials, order.len());
        return Err(SweepError::TooFewDraws { sweep: sweep.into(), trials, found });
    }
    Ok(order)
}

fn trial(
    sweep: &Sweep,
    index: usize,
    point: Vec<(String, Value)>,
    base: &dyn Fn(&[String]) -> Result<JobSpec, SettingsError>,
) -> Result<Trial, SweepError> {
    let (mut settings, seed): (Vec<_>, Vec<_>) = point.into_iter().partition(|(key, _)| key != "seed");
    settings.sort_by(|a, b| a.0.cmp(&b.0));
    settings.extend(seed);
    let settings: Vec<_> = settings.into_iter().map(|(key, value)| (key, text(&value))).collect();
    let name = name(&sweep.name, &settings);
    let fixed = sweep.set.iter().map(|(key, value)| format!("{key}={}", text(value)));
    let varied = settings.iter().map(|(key, value)| format!("{key}={value}"));
    let named = format!("name={}", Value::String(name.clone()));
    let assignments: Vec<_> = fixed.chain(varied).chain([named]).collect();
    match base(&assignments) {
        Ok(spec) => Ok(Trial { index, name, settings, spec }),
        Err(problem) => Err(SweepError::Trial { trial: name, problem }),
    }
}

/// `windows: window=5 seed=1`.
fn name(sweep: &str, settings: &[(String, String)]) -> String {
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let shown: Vec<_> = settings.iter().map(|(key, value)| format!("{}={value}", last(key))).collect();
    if shown.is_empty() { sweep.to_owned() } else { format!("{sweep}: {}", shown.join(" ")) }
}

/// A value as `--set` takes it: text bare where it reads back as the same text.
fn text(value: &Value) -> String {
    let toml = value.to_string();
    match value {
        Value::String(bare) => {
            let plain = !bare.is_empty() && bare.trim() == bare && !bare.contains(['\n', '\r', '#', '"', '\'']);
            let reads_as_other = format!("value = {bare}").parse::<toml::Table>().is_ok();
            if plain && !reads_as_other { bare.clone() } else { toml }
        }
        _ => toml,
    }
}

/// No two trials compute the same: names aside, their jobs differ.
fn check_different(trials: &[Trial]) -> Result<(), SweepError> {
    let mut seen: BTreeMap<String, &Trial> = BTreeMap::new();
    for trial in trials {
        let nameless = JobSpec { name: String::new(), ..trial.spec.clone() };
        let text = serde_json::to_string(&nameless).expect("a job has only text keys");
        if let Some(first) = seen.insert(text, trial) {
            return Err(SweepError::Duplicate { first: first.name.clone(), second: trial.name.clone() });
        }
    }
    Ok(())
}

/// For [`Match::Updates`](super::Match::Updates): every job takes as many updates as the one that takes the most of those
/// with its share, so that a corpus alone is trained as long as a mix. `samples` are each job's of one pass. Jobs with
/// stages of their own recipes, and those that train nothing, are left as they are.
///
/// # Panics
/// When there are not as many numbers of samples as jobs.
pub fn equal_updates(jobs: &mut [&mut JobSpec], samples: &[u64]) {
    assert_eq!(jobs.len(), samples.len(), "every job has its number of samples");
    let takes_part = |job: &JobSpec| job.trains() && job.stages.is_empty();
    let mut most: BTreeMap<String, u32> = BTreeMap::new();
    for (job, samples) in jobs.iter().zip(samples).filter(|(job, _)| takes_part(job)) {
        let known = most.entry(job.data.share.to_string()).or_default();
        *known = updates(job, *samples).max(*known);
    }
    for job in jobs.iter_mut().filter(|job| takes_part(job)) {
        job.train.updates = most[&job.data.share.to_string()];
    }
}

/// Updates of a job's training over so many samples.
fn updates(job: &JobSpec, samples: u64) -> u32 {
    let passes = samples.div_ceil(u64::from(job.train.batch.max(1))) * u64::from(job.train.epochs);
    if job.train.updates > 0 { job.train.updates } else { u32::try_from(passes).unwrap_or(u32::MAX) }
}
