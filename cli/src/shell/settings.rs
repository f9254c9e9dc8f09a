//! Settings from where they lie: defaults, file, environment, command line.

use std::path::{Path, PathBuf};

use insula_proto::{
    job::JobSpec,
    settings::{Layer, layered},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{args::SettingsArgs, failure::Failure};

/// The settings of a job. A relative path in the job file is meant from that file's folder.
pub fn job(args: &SettingsArgs) -> Result<JobSpec, Failure> {
    let mut defaults = JobSpec::default();
    let file = args.job.as_deref().map(file_layer).transpose()?;
    if let (Some(path), Some(layer)) = (&args.job, &file) {
        let alone: JobSpec = layered(&defaults, std::slice::from_ref(layer)).map_err(input)?;
        defaults = anchored(alone, path.parent().unwrap_or(Path::new("")));
    }
    let spec = layered(&defaults, &[environment(), Layer::CommandLine(args.sets.clone())]).map_err(input)?;
    let violations = spec.violations();
    if violations.is_empty() { Ok(absolute(spec)) } else { Err(Failure::violations(&violations)) }
}

/// Settings of another kind (coordinator, worker).
pub fn plain<T: Serialize + DeserializeOwned>(
    defaults: &T,
    config: Option<&Path>,
    sets: &[String],
) -> Result<T, Failure> {
    let mut layers: Vec<_> = config.map(file_layer).transpose()?.into_iter().collect();
    layers.push(Layer::CommandLine(sets.to_vec()));
    layered(defaults, &layers).map_err(input)
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

/// The spec with its relative paths read from `folder`.
fn anchored(mut spec: JobSpec, folder: &Path) -> JobSpec {
    let anchor = |path: &mut String| {
        if !path.is_empty() {
            *path = folder.join(&*path).display().to_string();
        }
    };
    anchor(&mut spec.corpus.path);
    if is_path(&spec.base.source) {
        anchor(&mut spec.base.source);
    }
    spec
}

/// The spec with its paths absolute, since coordinator and workers may stand in other folders; without `..` where the
/// path exists here.
fn absolute(mut spec: JobSpec) -> JobSpec {
    let absolute = |path: &mut String| {
        let given = PathBuf::from(&*path);
        if let Ok(whole) = given.canonicalize().or_else(|_| std::path::absolute(&given)) {
            *path = whole.display().to_string();
        }
    };
    absolute(&mut spec.corpus.path);
    if is_path(&spec.base.source) {
        absolute(&mut spec.base.source);
    }
    spec
}

/// Whether a base's source is a path rather than `pip:` or another scheme.
fn is_path(source: &str) -> bool {
    !source.split_once(':').is_some_and(|(scheme, _)| scheme.len() > 1 && scheme.chars().all(char::is_alphanumeric))
}
