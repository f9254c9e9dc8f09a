//! Settings from where they lie: defaults, file, environment, command line.

use std::path::{Path, PathBuf};

use insula_proto::{
    job::{JobSpec, LabelsSpec},
    settings::{Layer, layered},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{args::SettingsArgs, failure::Failure};

/// The settings of a job. A relative path in the job file is meant from that file's folder.
pub fn job(args: &SettingsArgs) -> Result<JobSpec, Failure> {
    whole(unchecked(args)?)
}

/// The settings of a job before they are checked, its paths as seen from here.
pub fn unchecked(args: &SettingsArgs) -> Result<JobSpec, Failure> {
    let mut defaults = JobSpec::default();
    let file = args.job.as_deref().map(file_layer).transpose()?;
    if let (Some(path), Some(layer)) = (&args.job, &file) {
        let alone: JobSpec = layered(&defaults, std::slice::from_ref(layer)).map_err(input)?;
        defaults = anchored(alone, path.parent().unwrap_or(Path::new("")));
    }
    layered(&defaults, &[environment(), Layer::CommandLine(args.sets.clone())]).map_err(input)
}

/// A job's settings with what they name read in: the mapping of labels; checked, and with its paths absolute.
///
/// # Errors
/// When the mapping cannot be read, or the settings cannot be worked with.
pub fn whole(mut spec: JobSpec) -> Result<JobSpec, Failure> {
    if !spec.labels.file.is_empty() && spec.labels.names.is_empty() {
        spec.labels = labels(&spec.labels.file)?.into();
    }
    let violations = spec.violations();
    if violations.is_empty() { Ok(absolute(spec)) } else { Err(Failure::violations(&violations)) }
}

/// The mapping of labels in a file: `names`, and a table `map.LAYOUT` for each corpus.
#[expect(clippy::disallowed_methods, reason = "the mapping is read from the file the settings name")]
fn labels(file: &str) -> Result<LabelsSpec, Failure> {
    let wrong = |problem: String| Failure::Input(format!("labels.file {file}: {problem}"));
    let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
    let labels: LabelsSpec = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    if labels.names.is_empty() {
        return Err(wrong("names is empty: expected the labels that are mapped to".into()));
    }
    Ok(LabelsSpec { file: file.to_owned(), ..labels })
}

/// Settings of another kind (coordinator, worker). Those that `paths` gives are meant from the file's folder where they
/// stand in the file.
pub fn plain<T: Clone + Serialize + DeserializeOwned>(
    defaults: &T,
    config: Option<&Path>,
    sets: &[String],
    paths: fn(&mut T) -> Vec<&mut PathBuf>,
) -> Result<T, Failure> {
    let mut settings = defaults.clone();
    if let Some(file) = config {
        settings = layered(&settings, &[file_layer(file)?]).map_err(input)?;
        for path in paths(&mut settings).into_iter().filter(|path| !path.as_os_str().is_empty()) {
            *path = file.parent().unwrap_or(Path::new("")).join(&*path);
        }
    }
    layered(&settings, &[Layer::CommandLine(sets.to_vec())]).map_err(input)
}

/// A path that a setting names; empty names none.
pub fn named(path: PathBuf) -> Option<PathBuf> {
    Some(path).filter(|path| !path.as_os_str().is_empty())
}

fn input(error: impl std::fmt::Display) -> Failure {
    Failure::Input(error.to_string())
}

#[expect(clippy::disallowed_methods, reason = "settings are read from the file the person named")]
fn file_layer(path: &Path) -> Result<Layer, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::Input(format!("{}: {e}", path.display())))?;
    Ok(Layer::File { path: path.to_owned(), text })
}

#[expect(clippy::disallowed_methods, reason = "INSULA_* variables are a layer of the settings")]
fn environment() -> Layer {
    Layer::Environment(std::env::vars().filter(|(name, _)| name.starts_with("INSULA_")).collect())
}

/// Every path of a job's settings: corpora, the mapping of labels, base and encoder where they are paths.
fn paths(spec: &mut JobSpec) -> impl Iterator<Item = &mut String> {
    let corpora = spec.corpora.values_mut().map(|corpus| &mut corpus.path);
    let named = [&mut spec.corpus.path, &mut spec.labels.file].into_iter();
    let models = [&mut spec.base.source, &mut spec.retrieval.encoder].into_iter().filter(|source| is_path(source));
    corpora.chain(named).chain(models).filter(|path| !path.is_empty())
}

/// The spec with its relative paths read from `folder`.
pub fn anchored(mut spec: JobSpec, folder: &Path) -> JobSpec {
    for path in paths(&mut spec) {
        *path = folder.join(&*path).display().to_string();
    }
    spec
}

/// The spec with its paths absolute, since coordinator and workers may stand in other folders; without `..` where the
/// path exists here.
fn absolute(mut spec: JobSpec) -> JobSpec {
    for path in paths(&mut spec) {
        let given = PathBuf::from(&*path);
        if let Ok(whole) = given.canonicalize().or_else(|_| std::path::absolute(&given)) {
            *path = whole.display().to_string();
        }
    }
    spec
}

/// Whether a base's source is a path rather than `pip:` or another scheme.
fn is_path(source: &str) -> bool {
    !source.split_once(':').is_some_and(|(scheme, _)| scheme.len() > 1 && scheme.chars().all(char::is_alphanumeric))
}
