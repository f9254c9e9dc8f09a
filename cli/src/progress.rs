//! A job's events as a person reads them: plain lines, and the text of a bar.

use insula_proto::v1::{EpochScored, JobEvent, JobState, Progress, TaskChanged, job_event::Event};

/// A state's name, lower-case.
pub fn state_name(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "unknown",
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

/// The line for an event; `None` where a person does not need one.
pub fn line(event: &JobEvent) -> Option<String> {
    Some(match event.event.as_ref()? {
        Event::State(state) => state_name(JobState::try_from(*state).unwrap_or_default()).to_owned(),
        Event::Note(note) => note.clone(),
        Event::Progress(progress) => progress_text(progress),
        Event::Task(TaskChanged { what, state, worker, .. }) => match (state.as_str(), worker.is_empty()) {
            ("leased", false) => format!("{what}: started on {worker}"),
            ("done" | "failed", _) => format!("{what}: {state}"),
            _ => return None,
        },
        Event::Epoch(EpochScored { epoch, weighted_f1, best }) => {
            let best = if *best { ", best so far" } else { "" };
            format!("epoch {epoch}: weighted F1 on dev {:.2}{best}", 100.0 * weighted_f1)
        }
    })
}

/// Progress in words: `train: update 12/39, epoch 1, loss 1.234, lr 0.00018, 3.1 samples/s`.
pub fn progress_text(progress: &Progress) -> String {
    let Progress { update, updates, epoch, loss, lr, samples_per_s, done, total, what } = progress;
    let speed = if *samples_per_s > 0.0 { format!(", {samples_per_s:.1} samples/s") } else { String::new() };
    if *updates > 0 {
        format!("{what}: update {update}/{updates}, epoch {epoch}, loss {loss:.4}, lr {lr:.2e}{speed}")
    } else {
        format!("{what}: {done}/{total}{speed}")
    }
}

/// Progress for a bar, short enough for 80 columns: `train 12/39, epoch 1, loss 1.235, 4.0 samples/s, 1m48s left`.
pub fn bar_text(progress: &Progress) -> String {
    let Progress { update, updates, epoch, loss, samples_per_s, done, total, what, .. } = progress;
    let far = match *updates {
        0 => format!("{what} {done}/{total}"),
        _ => format!("{what} {update}/{updates}, epoch {epoch}, loss {loss:.3}"),
    };
    let speed = if *samples_per_s > 0.0 { format!(", {samples_per_s:.1} samples/s") } else { String::new() };
    let left = time_left(progress).map(|left| format!(", {left} left")).unwrap_or_default();
    format!("{far}{speed}{left}")
}

/// Time left at the present speed, `3m12s`; `None` before there is a speed.
pub fn time_left(progress: &Progress) -> Option<String> {
    let left = progress.total.checked_sub(progress.done)? as f64;
    if progress.samples_per_s <= 0.0 {
        return None;
    }
    let seconds = (left / progress.samples_per_s).round() as u64;
    Some(if seconds >= 60 { format!("{}m{:02}s", seconds / 60, seconds % 60) } else { format!("{seconds}s") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event: Event) -> JobEvent {
        JobEvent { resume_token: "7".into(), at_ms: 0, event: Some(event) }
    }

    #[test]
    fn events_read_as_sentences() {
        let progress = Progress {
            update: 12,
            updates: 39,
            epoch: 1,
            loss: 1.23456,
            lr: 1.8e-4,
            samples_per_s: 4.0,
            done: 192,
            total: 624,
            what: "train".into(),
        };
        assert_eq!(time_left(&progress).unwrap(), "1m48s");
        assert_eq!(bar_text(&progress), "train 12/39, epoch 1, loss 1.235, 4.0 samples/s, 1m48s left");
        let text = line(&event(Event::Progress(progress))).unwrap();
        assert_eq!(text, "train: update 12/39, epoch 1, loss 1.2346, lr 1.80e-4, 4.0 samples/s");
        let epoch = EpochScored { epoch: 2, weighted_f1: 0.5536, best: true };
        assert_eq!(line(&event(Event::Epoch(epoch))).unwrap(), "epoch 2: weighted F1 on dev 55.36, best so far");
        let waiting = TaskChanged { index: 1, what: "train".into(), state: "ready".into(), worker: String::new() };
        assert_eq!(line(&event(Event::Task(waiting))), None);
    }
}
