//! Following a job to its end: a bar on a terminal, plain lines elsewhere.

use std::{
    error::Error as _,
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use insula_proto::v1::{JobEvent, JobState, Progress, WatchRequest, job_event::Event};
use tonic::Code;

use super::{client::Client, out::tell};
use crate::{
    failure::Failure,
    progress::{bar_text, line, time_left},
};

/// Pause before a broken watch is taken up again after its last token.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// A watch is taken up again so many times in a row without an event before the coordinator counts as gone.
const RETRIES: u32 = 20;

/// Shows a job's events until it ends, and says how.
///
/// # Errors
/// When the coordinator refuses, or stays away.
pub async fn follow(client: &Client, job: &str, resume_token: &str, shown: &mut Shown) -> Result<JobState, Failure> {
    let mut token = resume_token.to_owned();
    let mut state = JobState::Unspecified;
    let mut broken = 0;
    loop {
        let request = WatchRequest { job_id: job.to_owned(), resume_token: token.clone() };
        let mut events = match client.jobs().watch(request).await {
            Ok(events) => events.into_inner(),
            // A line that breaks in the middle of a call is `Unknown`, with what broke as its source.
            Err(status) if (status.code() == Code::Unavailable || status.source().is_some()) && broken < RETRIES => {
                broken += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
            Err(status) => return Err(client.failure(&status)),
        };
        loop {
            match events.message().await {
                Ok(Some(event)) => {
                    broken = 0;
                    token.clone_from(&event.resume_token);
                    if let Some(Event::State(now)) = event.event {
                        state = JobState::try_from(now).unwrap_or_default();
                    }
                    shown.event(&event);
                }
                Ok(None) if is_last(state) => return Ok(state),
                Ok(None) | Err(_) if broken < RETRIES => {
                    broken += 1;
                    tokio::time::sleep(RETRY_PAUSE).await;
                    break;
                }
                Ok(None) => return Err(Failure::Operation(format!("the watch of {job} ended before the job did"))),
                Err(status) => return Err(client.failure(&status)),
            }
        }
    }
}

fn is_last(state: JobState) -> bool {
    matches!(state, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}

/// Where a job's events are shown.
pub enum Shown {
    /// A bar that moves, lines above it.
    Bar(ProgressBar),
    /// A line each.
    Lines,
    /// A line of JSON each, on stdout.
    Json,
}

impl Shown {
    /// What suits stderr.
    pub fn for_stderr() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines;
        }
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{spinner} {bar:16} {wide_msg}").expect("a fixed template parses");
        bar.set_style(style.progress_chars("━╸─"));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self::Bar(bar)
    }

    /// A line that is no event.
    pub fn note(&self, text: &str) {
        match self {
            Self::Bar(bar) => bar.suspend(|| tell(text)),
            Self::Lines | Self::Json => tell(text),
        }
    }

    /// How far something is, where that can be shown in place.
    pub fn progress(&self, progress: &Progress) {
        if let Self::Bar(bar) = self {
            show_progress(bar, progress);
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }

    fn event(&mut self, event: &JobEvent) {
        match self {
            Self::Json => print_json(event),
            Self::Bar(bar) => match &event.event {
                Some(Event::Progress(progress)) => show_progress(bar, progress),
                _ => {
                    if let Some(text) = line(event) {
                        bar.suspend(|| tell(&text));
                    }
                }
            },
            Self::Lines => {
                if let Some(text) = line(event) {
                    let left = match &event.event {
                        Some(Event::Progress(progress)) => time_left(progress).map(|t| format!(", {t} left")),
                        _ => None,
                    };
                    tell(&format!("{text}{}", left.unwrap_or_default()));
                }
            }
        }
    }
}

fn show_progress(bar: &ProgressBar, progress: &Progress) {
    bar.set_length(progress.total.max(1));
    bar.set_position(progress.done);
    bar.set_message(bar_text(progress));
}

fn print_json(event: &JobEvent) {
    let mut value = serde_json::json!({ "resume_token": event.resume_token, "at_ms": event.at_ms });
    let (key, content) = match &event.event {
        None => return,
        Some(Event::State(state)) => {
            ("state", crate::progress::state_name(JobState::try_from(*state).unwrap_or_default()).into())
        }
        Some(Event::Note(note)) => ("note", note.as_str().into()),
        Some(Event::Progress(p)) => (
            "progress",
            serde_json::json!({
                "what": p.what, "update": p.update, "updates": p.updates, "epoch": p.epoch, "loss": p.loss, "lr": p.lr,
                "samples_per_s": p.samples_per_s, "done": p.done, "total": p.total,
            }),
        ),
        Some(Event::Task(t)) => {
            ("task", serde_json::json!({ "index": t.index, "what": t.what, "state": t.state, "worker": t.worker }))
        }
        Some(Event::Epoch(e)) => {
            ("epoch", serde_json::json!({ "epoch": e.epoch, "weighted_f1": e.weighted_f1, "best": e.best }))
        }
    };
    value[key] = content;
    // A closed pipe ends the watch at the next event; there is nobody to tell.
    let _ = writeln!(std::io::stdout(), "{value}");
}
