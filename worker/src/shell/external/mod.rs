//! An evaluation lease whose base is an endpoint: prompts are sent as text, answers kept as they come, then counted.
//!
//! ```text
//! shards -> prompts -> those without a kept answer -> threads that ask -> kept answers -> tallies, predictions
//! ```
//! An answer is on disk before it counts, so a worker that is killed, or a later job with the same prompts, asks only for
//! what is missing.

mod asking;
mod keeping;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use insula_proto::{
    corpus::Dialogue,
    endpoint::Endpoint,
    ids::Digest,
    job::{JobSpec, Objective},
    v1::{EvaluateTask, Evaluated, ExternalUsage, Lease, Progress, report_request::Report},
};

use self::{
    asking::{Crew, Line, Word},
    keeping::KeptFile,
};
use super::{
    demonstrations::Demonstrations,
    evaluating::setting_of,
    failure::Unfinished,
    link::Link,
    loaded::spec_of,
    peak_rss_bytes,
    shards::{self, ShardDialogues, corpus_of},
    work::WorkerConfig,
};
use crate::{
    evaluate::{self, Counts, Setting},
    external::{self, Answered},
    prompt::Form,
};

/// The computing thread looks so often whether to leave off.
const LOOK: Duration = Duration::from_millis(100);
/// Looks after leaving off, in which answers under way, which cost money, are still taken in: five seconds.
const LAST_LOOKS: usize = 50;
/// Retries told in the job's log; there may be thousands.
const RETRIES_TOLD: usize = 20;

/// Evaluates the lease's shard at an endpoint, or leaves off where the link says so.
pub fn evaluate(
    endpoint: &Endpoint,
    config: &WorkerConfig,
    lease: &Lease,
    task: &EvaluateTask,
    link: &Link,
) -> Result<(), Unfinished> {
    let spec = spec_of(lease)?;
    let digest = external::base_digest(endpoint);
    if let Some(expected) = spec.base.digest.as_ref().filter(|expected| **expected != digest) {
        return Err(Unfinished::bad_data(format!("base {endpoint} is {digest}, but base.digest is {expected}")));
    }
    let corpus = corpus_of(lease)?;
    let of_lease = shards::of_evaluation(task)?;
    let setting = setting_of(&spec, &corpus, &of_lease, task)?;
    let shard = shards::fetch(&corpus, std::slice::from_ref(&of_lease), link)?.remove(0);
    let behind = Demonstrations::for_evaluation(&spec, &corpus, &shard, task, setting.arm, link)?;
    let prompts = prompts(&spec, &setting, &shard, &behind);
    let evaluated = answer_all(endpoint, config, &spec, &setting, &shard, &prompts, task, lease, link)?;
    link.report(&digest, Report::Evaluated(evaluated))
}

/// The prompts of all turns, in order, each with its digest.
fn prompts(
    spec: &JobSpec,
    setting: &Setting<'_>,
    shard: &ShardDialogues,
    behind: &Demonstrations,
) -> Vec<(Digest, String)> {
    let form = Form::of(Objective::Main, spec.data.template, setting.labels, 0..0);
    let dialogues = (0..).zip(&shard.dialogues);
    let turns = dialogues.flat_map(|(place, d)| (0..d.utterances.len()).map(move |turn| (place, d, turn)));
    let prompt = |(place, dialogue, turn): (u32, &Dialogue, usize)| {
        let text = form.render(&dialogue.utterances, turn, spec.data.window as usize);
        let text = text + behind.of(place, u32::try_from(turn).expect("a dialogue has fewer than 2^32 turns"));
        (Digest::of(text.as_bytes()), text)
    };
    turns.map(prompt).collect()
}

#[expect(clippy::disallowed_methods, reason = "the shell measures how long evaluation takes")]
#[expect(clippy::too_many_arguments, reason = "the parts of one lease")]
fn answer_all(
    endpoint: &Endpoint,
    config: &WorkerConfig,
    spec: &JobSpec,
    setting: &Setting<'_>,
    shard: &ShardDialogues,
    prompts: &[(Digest, String)],
    task: &EvaluateTask,
    lease: &Lease,
    link: &Link,
) -> Result<Evaluated, Unfinished> {
    let began = Instant::now();
    let mut answers = Answers::open(endpoint, config, spec, prompts, task.spent_usd, link)?;
    answers.ask_the_rest(endpoint, prompts, |asked, done| {
        let samples_per_s = asked as f64 / began.elapsed().as_secs_f64();
        let (total, what) = (prompts.len() as u64, lease.what.clone());
        link.progress.send_replace(Some(Progress { done, total, samples_per_s, what, ..Progress::default() }));
    })?;
    let mut counts = Counts::new(setting.labels.len());
    let mut lines = Vec::new();
    let mut digests = prompts.iter().map(|(digest, _)| digest);
    for dialogue in &shard.dialogues {
        for (turn, digest) in (0..dialogue.utterances.len()).zip(&mut digests) {
            let text = answers.known.get(digest).map(|answered| answered.text.as_str());
            let text = text.ok_or_else(|| Unfinished::bug(format!("prompt {digest} has no answer")))?;
            evaluate::write_down(setting, dialogue, turn, text, None, &mut counts, &mut lines);
        }
    }
    let predictions = link.put("predictions.jsonl", lines)?;
    Ok(Evaluated {
        strict: Some((&counts.strict).into()),
        paper: Some((&counts.paper).into()),
        close_margins: 0,
        dropped_utterances: 0,
        tree_tokens: 0,
        seconds: began.elapsed().as_secs_f64(),
        peak_rss_bytes: peak_rss_bytes(),
        predictions: Some(predictions),
        external: Some(answers.usage),
        copied: 0,
    })
}

/// The answers of a lease, as they grow.
struct Answers<'a> {
    spec: &'a JobSpec,
    link: &'a Link,
    file: KeptFile,
    /// Of the lease's prompts.
    known: BTreeMap<Digest, Answered>,
    usage: ExternalUsage,
    /// What the job's answers have cost, the kept ones of this lease included.
    cost: f64,
}

impl<'a> Answers<'a> {
    /// The kept answers to `prompts`.
    fn open(
        endpoint: &Endpoint,
        config: &WorkerConfig,
        spec: &'a JobSpec,
        prompts: &[(Digest, String)],
        spent_usd: f64,
        link: &'a Link,
    ) -> Result<Self, Unfinished> {
        let cache = config.cache.as_ref().ok_or_else(|| {
            Unfinished::bad_data("no folder to keep answers in: set INSULA_CACHE, XDG_CACHE_HOME or HOME")
        })?;
        let (folder, name) = (cache.join("external"), external::kept_file(endpoint, spec.evaluate.max_new_tokens));
        let (file, mut kept) = KeptFile::open(&folder, &name).map_err(|error| unwritable(&folder, &error))?;
        if kept.damaged > 0 {
            link.log(&format!("{}: {} damaged lines are passed over", folder.join(&name).display(), kept.damaged));
        }
        let wanted: BTreeSet<&Digest> = prompts.iter().map(|(digest, _)| digest).collect();
        let known: BTreeMap<Digest, Answered> =
            wanted.iter().filter_map(|digest| kept.answers.remove_entry(*digest)).collect();
        let price = |answered: &Answered| spec.endpoint.usd(answered.input_tokens, answered.output_tokens);
        let cost = spent_usd + known.values().map(price).sum::<f64>();
        let cached = (prompts.len() - (wanted.len() - known.len())) as u64;
        link.log(&format!("{endpoint}: {} prompts, {cached} answers are at hand", prompts.len()));
        Ok(Self { spec, link, file, known, usage: ExternalUsage { cached, ..ExternalUsage::default() }, cost })
    }

    /// Asks every prompt that has no answer yet; `tell` hears how many were asked, and how many prompts are answered.
    fn ask_the_rest(
        &mut self,
        endpoint: &Endpoint,
        prompts: &[(Digest, String)],
        tell: impl Fn(u64, u64),
    ) -> Result<(), Unfinished> {
        // Each once, in the corpus's order: what is kept of an interrupted job is its beginning.
        let (mut seen, mut questions) = (BTreeSet::new(), Vec::new());
        for prompt in prompts {
            if !self.known.contains_key(&prompt.0) && seen.insert(&prompt.0) {
                questions.push(prompt);
            }
        }
        if questions.is_empty() {
            return Ok(());
        }
        self.within_bound(questions.len())?;
        let line = Line::new(endpoint, self.spec, key(&self.spec.endpoint.key_env)?);
        let texts = questions.iter().map(|(_, text)| text.clone()).collect();
        let crew = Crew::start(line, texts, self.spec.endpoint.concurrency as usize).map_err(Unfinished::bug)?;
        let asked = self.listen(&crew, &questions, &tell);
        if asked.is_err() {
            self.take_in_the_last(&crew, &questions);
        }
        asked.map_err(|unfinished| match unfinished {
            Unfinished::Failed { class, message } => {
                let (kept, all) = (self.answered(prompts), prompts.len());
                let message = format!("{endpoint}: {message}; {kept} of {all} answers are kept");
                Unfinished::Failed { class, message }
            }
            leaving => leaving,
        })
    }

    /// Prompts that have an answer.
    fn answered(&self, prompts: &[(Digest, String)]) -> usize {
        prompts.iter().filter(|(digest, _)| self.known.contains_key(digest)).count()
    }

    fn listen(
        &mut self,
        crew: &Crew,
        questions: &[&(Digest, String)],
        tell: &impl Fn(u64, u64),
    ) -> Result<(), Unfinished> {
        let (mut asked, mut retries) = (0, 0);
        while asked < questions.len() {
            self.link.go_on()?;
            match crew.listen(LOOK) {
                Ok(Some(Word::Done(place, Ok(answered)))) => {
                    self.take_in(&questions[place].0, answered)?;
                    asked += 1;
                    tell(asked as u64, self.usage.cached + asked as u64);
                    self.within_bound(questions.len() - asked)?;
                }
                Ok(Some(Word::Done(_, Err(why)))) => return Err(Unfinished::endpoint(why)),
                Ok(Some(Word::Again(why))) => {
                    retries += 1;
                    if retries <= RETRIES_TOLD {
                        self.link.log(&why);
                    }
                }
                Ok(None) => {}
                Err(()) => return Err(Unfinished::bug("the threads that ask have ended before they were done")),
            }
        }
        if retries > RETRIES_TOLD {
            self.link.log(&format!("{retries} requests were tried again in all"));
        }
        Ok(())
    }

    /// After leaving off: what is under way may have been paid for already.
    fn take_in_the_last(&mut self, crew: &Crew, questions: &[&(Digest, String)]) {
        crew.halt();
        let mut looks = 0;
        while looks < LAST_LOOKS {
            match crew.listen(LOOK) {
                Ok(Some(Word::Done(place, Ok(answered)))) => {
                    if self.take_in(&questions[place].0, answered).is_err() {
                        return;
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => looks += 1,
                Err(()) => return,
            }
        }
    }

    fn take_in(&mut self, prompt: &Digest, answered: Answered) -> Result<(), Unfinished> {
        let kept = self.file.keep(prompt, &answered);
        kept.map_err(|error| Unfinished::bad_data(format!("an answer cannot be kept: {error}")))?;
        let usd = self.spec.endpoint.usd(answered.input_tokens, answered.output_tokens);
        self.cost += usd;
        self.usage.usd += usd;
        self.usage.input_tokens += answered.input_tokens;
        self.usage.output_tokens += answered.output_tokens;
        self.known.insert(prompt.clone(), answered);
        Ok(())
    }

    /// Whether the job may go on spending, with so many prompts left to ask.
    fn within_bound(&self, left: usize) -> Result<(), Unfinished> {
        let most = self.spec.endpoint.max_usd;
        if left == 0 || most == 0.0 || self.cost < most {
            return Ok(());
        }
        let cost = self.cost;
        Err(Unfinished::endpoint(format!(
            "its answers have cost {cost:.4} USD and {left} more are wanted, but endpoint.max_usd is {most}: raise it and \
             submit the job again to go on"
        )))
    }
}

fn unwritable(folder: &std::path::Path, error: &std::io::Error) -> Unfinished {
    Unfinished::bad_data(format!("answers cannot be kept in {}: {error}", folder.display()))
}

/// The key, where the settings name a variable for it.
#[expect(clippy::disallowed_methods, reason = "keys are in the environment, so that no file and no report holds one")]
fn key(variable: &str) -> Result<Option<String>, Unfinished> {
    if variable.is_empty() {
        return Ok(None);
    }
    let key = std::env::var(variable).unwrap_or_default();
    match key.trim() {
        "" => Err(Unfinished::endpoint(format!(
            "the environment variable {variable} is not set where this worker runs: expected the endpoint's key, or \
             endpoint.key_env = \"\" where it wants none"
        ))),
        key if key.chars().all(|c| c.is_ascii_graphic()) => Ok(Some(key.to_owned())),
        _ => Err(Unfinished::endpoint(format!(
            "the environment variable {variable} holds something that is no key: expected letters, digits and signs"
        ))),
    }
}
