//! A sweep's file: TOML to [`Sweep`], every key checked against the settings a job has.

use std::path::{Path, PathBuf};

use insula_proto::{
    job::JobSpec,
    settings::{self, Layer},
};
use serde::Deserialize;

use super::{Match, Random, Sweep, SweepError, draw::Range};
use crate::study::halving::{Early, Halving, Median};

/// Keys a sweep sets itself: the trial's name is made of the sweep's.
const OWN: &str = "name";

/// The file as it stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SweepFile {
    name: String,
    job: PathBuf,
    #[serde(default, rename = "match")]
    matching: MatchName,
    seeds: Option<Vec<u64>>,
    #[serde(default)]
    set: toml::Table,
    #[serde(default)]
    grid: toml::Table,
    random: Option<RandomFile>,
    halving: Option<Halving>,
    median: Option<Median>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RandomFile {
    trials: u32,
    seed: u64,
    keys: toml::Table,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum MatchName {
    #[default]
    Epochs,
    Updates,
}

impl Sweep {
    /// The sweep in `text`, which was read from `file`.
    ///
    /// # Errors
    /// When the text is no sweep, a key is no setting (the nearest one is named) or is given twice, or a value is
    /// nothing its key takes.
    pub fn parse(file: &Path, text: &str) -> Result<Self, SweepError> {
        let wrong = |problem: String| SweepError::File { file: file.to_owned(), problem };
        let read: SweepFile = toml::from_str(text).map_err(|e| wrong(e.to_string()))?;
        let matching = match read.matching {
            MatchName::Epochs => Match::Epochs,
            MatchName::Updates => Match::Updates,
        };
        let grid = leaves(read.grid, &|_| false).into_iter().map(|(key, value)| {
            let values = listed(value).ok_or_else(|| format!("[grid] {key}: expected a list of values, not empty"))?;
            Ok((key, values))
        });
        let sweep = Sweep {
            name: read.name,
            job: read.job,
            matching,
            seeds: read.seeds.clone().unwrap_or_default(),
            set: leaves(read.set, &|_| false),
            grid: grid.collect::<Result<_, String>>().map_err(wrong)?,
            random: read.random.map(random).transpose().map_err(wrong)?,
            early: Early { halving: read.halving, median: read.median },
        };
        if sweep.name.trim().is_empty() {
            return Err(wrong("name is empty: expected a name for people to read".into()));
        }
        if read.seeds.is_some_and(|seeds| seeds.is_empty()) {
            return Err(wrong("seeds is empty: expected some seeds, or no such line".into()));
        }
        sweep.check_repeats().map_err(wrong)?;
        sweep.check_settings(file)?;
        Ok(sweep)
    }

    /// Each key in one part of the sweep, each value of it once.
    fn check_repeats(&self) -> Result<(), String> {
        let mut keys: Vec<(&str, &str)> = self.set.iter().map(|(key, _)| (key.as_str(), "[set]")).collect();
        keys.extend(self.grid.iter().map(|(key, _)| (key.as_str(), "[grid]")));
        keys.extend(self.random.iter().flat_map(|r| &r.keys).map(|(key, _)| (key.as_str(), "[random.keys]")));
        if !self.seeds.is_empty() {
            keys.push(("seed", "seeds"));
        }
        keys.sort_unstable();
        if let Some(pair) = keys.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("key '{}' stands in {} and in {}: expected one", pair[0].0, pair[0].1, pair[1].1));
        }
        if let Some((_, part)) = keys.iter().find(|(key, _)| *key == OWN) {
            return Err(format!("key '{OWN}' in {part}: a sweep names its trials itself"));
        }
        for (key, values) in &self.grid {
            if let Some(value) = repeated(values) {
                return Err(format!("[grid] {key}: the value {value} stands there twice"));
            }
        }
        repeated(&self.seeds).map_or(Ok(()), |seed| Err(format!("seeds: {seed} stands there twice")))
    }

    /// Every key and value against the default job, so that a slip is found before anything is expanded.
    fn check_settings(&self, file: &Path) -> Result<(), SweepError> {
        let set = self.set.iter().map(|(key, value)| ("[set]", key, value));
        let grid = self.grid.iter().flat_map(|(key, values)| values.iter().map(move |v| ("[grid]", key, v)));
        let random = self.random.iter().flat_map(|r| &r.keys);
        let drawn: Vec<_> =
            random.flat_map(|(key, range)| range.samples().into_iter().map(move |v| (key, v))).collect();
        let drawn = drawn.iter().map(|(key, value)| ("[random.keys]", *key, value));
        for (part, key, value) in set.chain(grid).chain(drawn) {
            let text = toml::Table::from_iter([nested(key, value.clone())]).to_string();
            // A layer of a file takes whole keys only, as a sweep does, and its path is what messages call it by.
            let layer = Layer::File { path: format!("the sweep's {part}").into(), text };
            settings::layered(&JobSpec::default(), &[layer])
                .map_err(|problem| SweepError::Setting { file: file.to_owned(), problem })?;
        }
        Ok(())
    }
}

fn random(file: RandomFile) -> Result<Random, String> {
    if file.trials == 0 {
        return Err("[random] trials = 0: expected at least 1".into());
    }
    let range = |(key, value): (String, toml::Value)| {
        Range::of(value).map(|range| (key.clone(), range)).map_err(|problem| format!("[random.keys] {key}: {problem}"))
    };
    let keys: Vec<_> = leaves(file.keys, &Range::is_one).into_iter().map(range).collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Err("[random.keys] is empty: expected a key to draw".into());
    }
    Ok(Random { trials: file.trials, seed: file.seed, keys })
}

/// Whole keys and their values, by the alphabet. `[grid.train] lr = ..`, `train.lr = ..` and `"train.lr" = ..` say the
/// same; a table that `whole` knows is a value.
fn leaves(table: toml::Table, whole: &dyn Fn(&toml::Table) -> bool) -> Vec<(String, toml::Value)> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) if !whole(&inner) => {
                found.extend(leaves(inner, whole).into_iter().map(|(rest, value)| (format!("{key}.{rest}"), value)));
            }
            value => found.push((key, value)),
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn listed(value: toml::Value) -> Option<Vec<toml::Value>> {
    match value {
        toml::Value::Array(values) if !values.is_empty() => Some(values),
        _ => None,
    }
}

/// `a.b.c` and a value as the table `a` holds it.
fn nested(key: &str, value: toml::Value) -> (String, toml::Value) {
    match key.split_once('.') {
        None => (key.to_owned(), value),
        Some((first, rest)) => (first.to_owned(), toml::Value::Table(toml::Table::from_iter([nested(rest, value)]))),
    }
}

fn repeated<T: PartialEq>(values: &[T]) -> Option<&T> {
    values.iter().enumerate().find(|(place, value)| values[..*place].contains(value)).map(|(_, value)| value)
}
