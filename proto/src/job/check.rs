//! What settings cannot be worked with, all of it at once, so that a person can mend it in one go.

use serde::{Deserialize, Serialize};

use super::{Arm, CorpusSpec, JobSpec, Objective, Parameters, Precision, StageSpec, Template, TrainSpec};
use crate::{corpus::LabelSet, endpoint, ids::JobId};

/// A setting that cannot be worked with: where, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The key, as in the job file: `train.lr`.
    pub field: String,
    /// The value and the expectation, in a sentence.
    pub description: String,
}

/// The names a target can have.
pub const TARGETS: [&str; 7] = ["q", "k", "v", "o", "gate", "up", "down"];

/// The names a corpus's layout can have.
pub const LAYOUTS: [&str; 6] = ["auto", "meld", "emorynlp", "iemocap", "cosmic", "jsonl"];

/// What was found so far.
#[derive(Default)]
struct Check(Vec<Violation>);

impl Check {
    fn that(&mut self, holds: bool, field: &str, description: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Violation { field: field.into(), description: description() });
        }
    }

    /// A number that must lie in a range.
    fn within<T: PartialOrd + std::fmt::Display>(&mut self, value: T, range: std::ops::RangeInclusive<T>, field: &str) {
        let expected = || format!("{value}: expected {} to {}", range.start(), range.end());
        self.that(range.contains(&value), field, expected);
    }
}

impl JobSpec {
    /// Everything about the settings that cannot work, so that a person can mend all of it at once.
    pub fn violations(&self) -> Vec<Violation> {
        let mut check = Check::default();
        check.that(!self.name.trim().is_empty(), "name", || "is empty: expected a name for people to read".into());
        check.within(self.workers, 1..=64, "workers");
        check.within(self.schedule.min_workers, 1..=self.workers.max(1), "schedule.min_workers");
        check.within(self.schedule.priority, -100..=100, "schedule.priority");
        let named = self.schedule.user.chars().count() <= 100 && !self.schedule.user.contains(char::is_control);
        check.that(named, "schedule.user", || "expected at most 100 characters, none of them a line break".into());
        self.check_corpora(&mut check);
        self.check_labels(&mut check);
        check.within(self.data.window, 0..=10_000, "data.window");
        self.check_retrieval(&mut check);
        check.that(!self.base.source.is_empty(), "base.source", || "is empty: expected a path or pip:PACKAGE".into());
        self.check_adapter(&mut check);
        check_recipe(&self.train, "train", &mut check);
        let held = self.train.parameters == Parameters::Lora || self.base.precision == Precision::F32;
        check.that(held, "base.precision", || {
            let precision = format!("{:?}", self.base.precision).to_lowercase();
            format!("'{precision}' with train.parameters = \"all\": expected f32, which trained weights are held in")
        });
        self.check_stages(&mut check);
        check.within(self.evaluate.max_new_tokens, 1..=256, "evaluate.max_new_tokens");
        self.check_arms(&mut check);
        check.0.extend(endpoint::violations(self));
        check.0
    }

    fn check_corpora(&self, check: &mut Check) {
        if self.corpora.is_empty() {
            return check_corpus(&self.corpus, "corpus", check);
        }
        check.that(*self.corpus == CorpusSpec::default(), "corpus", || {
            "is set beside corpora: expected one of the two".into()
        });
        for (name, corpus) in &self.corpora {
            check_corpus(corpus, &format!("corpora.{name}"), check);
        }
    }

    fn check_labels(&self, check: &mut Check) {
        let labels = &self.labels;
        if labels.names.is_empty() {
            check.that(labels.map.is_empty(), "labels.names", || {
                "is empty beside labels.map: expected the labels that are mapped to".into()
            });
            return check.that(labels.file.is_empty(), "labels.file", || {
                format!("'{}' was not read: expected the labels themselves in labels.names and labels.map", labels.file)
            });
        }
        if let Err(error) = LabelSet::new(labels.names.clone()) {
            check.that(false, "labels.names", || error.to_string());
        }
        for (corpus, map) in &labels.map {
            for (from, to) in map.iter().filter(|(_, to)| !labels.names.contains(to)) {
                let expected = labels.names.join(", ");
                check.that(false, &format!("labels.map.{corpus}"), || {
                    format!("'{from}' is mapped to '{to}': expected one of {expected}")
                });
            }
        }
    }

    fn check_retrieval(&self, check: &mut Check) {
        check.within(self.retrieval.k, 0..=16, "retrieval.k");
        if self.retrieval.k > 0 {
            let named = !self.retrieval.encoder.is_empty();
            check.that(named, "retrieval.encoder", || "is empty: expected a path or pip:PACKAGE".into());
            check.that(self.data.template == Template::InstructErc, "retrieval.k", || {
                "demonstrations stand behind InstructERC's prompts: expected 0 with data.template = \"plain\"".into()
            });
        }
    }

    fn check_adapter(&self, check: &mut Check) {
        let a = &self.adapter;
        check.within(a.r, 1..=1024, "adapter.r");
        check.within(a.alpha, 1..=1 << 20, "adapter.alpha");
        check.that(!a.targets.is_empty(), "adapter.targets", || {
            "is empty: expected some of q k v o gate up down".into()
        });
        for (place, target) in a.targets.iter().enumerate() {
            let known = TARGETS.contains(&target.as_str());
            check.that(known, "adapter.targets", || format!("'{target}': expected one of q k v o gate up down"));
            let twice = a.targets[..place].contains(target);
            check.that(!twice, "adapter.targets", || format!("'{target}' stands there twice"));
        }
        let from = a.from.is_empty() || a.from.parse::<JobId>().is_ok();
        check.that(from, "adapter.from", || format!("'{}': expected a job, such as job-3", a.from));
    }

    fn check_stages(&self, check: &mut Check) {
        for (place, (spec, stage)) in self.stages.iter().zip(self.training_stages()).enumerate() {
            let key = format!("stages.{place}");
            self.check_objectives(spec, &format!("{key}.objectives"), check);
            if let Some(weight) = spec.impact_weight {
                let has = |objective| spec.objectives.contains(&objective);
                let both = has(Objective::Main) && has(Objective::Impact);
                let field = format!("{key}.impact_weight");
                check.that(both, &field, || format!("{weight}: expected it only beside main and impact"));
                let holds = weight.is_finite() && weight >= 0.0;
                check.that(holds, &field, || format!("{weight}: expected 0 or more"));
            }
            if stage.train != self.train {
                check_recipe(&stage.train, &key, check);
            }
        }
    }

    fn check_objectives(&self, stage: &StageSpec, field: &str, check: &mut Check) {
        let objectives = &stage.objectives;
        check.that(!objectives.is_empty(), field, || "is empty: expected some of main, speaker, impact".into());
        for (place, objective) in objectives.iter().enumerate() {
            let twice = objectives[..place].contains(objective);
            check.that(!twice, field, || format!("'{}' stands there twice", objective.as_str()));
            let fits = self.data.template == Template::InstructErc || *objective == Objective::Main;
            check.that(fits, field, || {
                format!("'{}': expected main alone with data.template = \"plain\"", objective.as_str())
            });
        }
    }

    fn check_arms(&self, check: &mut Check) {
        let arms = &self.evaluate.arms;
        if !self.evaluates() {
            return check.that(arms.is_empty(), "evaluate.arms", || {
                "the last stage does not learn main, so nothing can be evaluated: expected no arms, for a job that others \
                 start from, or main among its objectives"
                    .into()
            });
        }
        check.that(!arms.is_empty(), "evaluate.arms", || "is empty: expected zero-shot, trained or both".into());
        let shuffled = arms.contains(&Arm::ShuffledDemonstrations);
        let few = arms.contains(&Arm::FewShot);
        check.that(!few || self.retrieval.k > 0, "evaluate.arms", || {
            "few-shot: expected it only with retrieval.k above 0".into()
        });
        check.that(!shuffled || (self.retrieval.k > 0 && arms.contains(&Arm::Trained)), "evaluate.arms", || {
            "shuffled-demonstrations: expected it only beside trained, with retrieval.k above 0".into()
        });
    }
}

fn check_corpus(corpus: &CorpusSpec, key: &str, check: &mut Check) {
    check.that(!corpus.path.is_empty(), &format!("{key}.path"), || "is empty: expected the corpus's folder".into());
    let known = LAYOUTS.contains(&corpus.layout.as_str());
    check.that(known, &format!("{key}.layout"), || {
        format!("'{}': expected one of {}", corpus.layout, LAYOUTS.join(", "))
    });
    if !corpus.labels.is_empty()
        && let Err(error) = LabelSet::new(corpus.labels.clone())
    {
        check.that(false, &format!("{key}.labels"), || error.to_string());
    }
}

fn check_recipe(t: &TrainSpec, key: &str, check: &mut Check) {
    let field = |name: &str| format!("{key}.{name}");
    let positive = |value: f64| value.is_finite() && value > 0.0;
    check.within(t.epochs, 1..=1000, &field("epochs"));
    check.within(t.batch, 1..=100_000, &field("batch"));
    check.that(positive(t.lr), &field("lr"), || format!("{}: expected a positive number", t.lr));
    check.within(t.warmup, 0.0..=1.0, &field("warmup"));
    for (name, beta) in [("beta1", t.beta1), ("beta2", t.beta2)] {
        check.that((0.0..1.0).contains(&beta), &field(name), || format!("{beta}: expected 0 up to, not with, 1"));
    }
    check.that(positive(t.eps), &field("eps"), || format!("{}: expected a positive number", t.eps));
    let decay = t.weight_decay;
    check.that(decay.is_finite() && decay >= 0.0, &field("weight_decay"), || format!("{decay}: expected 0 or more"));
    check.that(positive(t.clip_norm), &field("clip_norm"), || format!("{}: expected a positive number", t.clip_norm));
    check.that(t.slot_tokens >= 1, &field("slot_tokens"), || "0: expected at least 1".into());
    check.that(t.checkpoint_updates >= 1, &field("checkpoint_updates"), || "0: expected at least 1".into());
    check.that(t.updates == 0 || t.updates >= t.epochs, &field("updates"), || {
        format!("{}: expected 0, or at least one for each of {} epochs", t.updates, t.epochs)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_that_cannot_work_is_named_at_once() {
        let mut spec = JobSpec::default();
        spec.train.lr = f64::NAN;
        spec.adapter.targets = vec!["q".into(), "z".into(), "q".into()];
        let fields: Vec<_> = spec.violations().into_iter().map(|v| v.field).collect();
        assert_eq!(fields, ["corpus.path", "adapter.targets", "adapter.targets", "train.lr"]);
    }

    #[test]
    fn all_weights_are_trained_in_float32_alone() {
        let mut spec = JobSpec::default();
        spec.corpus.path = "corpus".into();
        spec.train.parameters = Parameters::All;
        assert_eq!(spec.violations(), []);
        spec.base.precision = Precision::Q8;
        let description = "'q8' with train.parameters = \"all\": expected f32, which trained weights are held in";
        let expected = Violation { field: "base.precision".into(), description: description.into() };
        assert_eq!(spec.violations(), [expected]);
    }

    #[test]
    fn stages_mixes_mappings_and_demonstrations_are_checked() {
        let mut spec = JobSpec::default();
        spec.corpora.insert("meld".into(), CorpusSpec { path: "a".into(), ..CorpusSpec::default() });
        spec.corpora.insert("other".into(), CorpusSpec::default());
        spec.labels.names = vec!["glad".into(), "sad".into()];
        spec.labels.map.insert("meld".into(), [("joy".to_owned(), "happy".to_owned())].into());
        spec.retrieval.k = 17;
        spec.adapter.from = "yesterday's".into();
        spec.train.updates = 3;
        let stages = r#"[{"objectives": ["impact"], "impact_weight": 0.1}, {"objectives": ["speaker", "speaker"]}]"#;
        spec.stages = serde_json::from_str(stages).unwrap();
        spec.evaluate.arms = vec![Arm::ShuffledDemonstrations];
        let found = spec.violations();
        let fields: Vec<_> = found.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "corpora.other.path",
                "labels.map.meld",
                "retrieval.k",
                "adapter.from",
                "train.updates",
                "stages.0.impact_weight",
                "stages.1.objectives",
                "evaluate.arms",
            ]
        );
    }
}
