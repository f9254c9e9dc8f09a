//! What a training leaves on its way: checkpoints, the ledger, epochs, and the best of them.

use insula_proto::{
    ids::{JobId, TaskIndex},
    tally::Tally,
};

use super::{
    super::{
        event::{Artifact, Checkpoint, FailureClass, LedgerSegment, Story},
        state::{Job, Training},
        task::TaskKind,
    },
    Fold,
};
use crate::metric::Metric;

impl Fold<'_> {
    /// The stage of the training that a task is.
    fn stage(&mut self, job: JobId, task: TaskIndex) -> &mut Training {
        let job = self.job(job);
        match job.task(task).kind {
            TaskKind::Train { stage } => &mut job.stages[stage],
            other => unreachable!("only a training reports checkpoints and epochs, not {other:?}"),
        }
    }

    pub(super) fn checkpoint_kept(&mut self, job: JobId, task: TaskIndex, checkpoint: &Checkpoint) {
        self.made_progress(job, task);
        let stage = self.stage(job, task);
        // Equal recipes give equal states, so a newer one stays good when a gang goes on from before it. The two newest stay.
        stage.checkpoints.retain(|known| known.update != checkpoint.update);
        let place = stage.checkpoints.partition_point(|known| known.update > checkpoint.update);
        // What the ledger says is kept once, in the ledger.
        stage.checkpoints.insert(place, Checkpoint { ledger: None, ..checkpoint.clone() });
        stage.checkpoints.truncate(2);
        // The same holds for the ledger: of updates that were computed twice, the first time is written down.
        let next = stage.ledger.last().map_or(1, |last| last.last.saturating_add(1));
        if let Some(segment) = checkpoint.ledger.as_ref().filter(|segment| segment.last >= next) {
            stage.ledger.push(LedgerSegment { first: segment.first.max(next), ..segment.clone() });
        }
        self.note(job, format!("checkpoint kept after update {}", checkpoint.update));
    }

    pub(super) fn epoch_trained(&mut self, job: JobId, task: TaskIndex, epoch: u32, adapter: &[Artifact]) {
        if self.stage(job, task).epochs.contains_key(&epoch) {
            self.note(job, format!("epoch {epoch} was trained again and its adapter differs; the first one is kept"));
            return;
        }
        self.made_progress(job, task);
        self.stage(job, task).epochs.insert(epoch, adapter.to_vec());
        let stage =
            if self.job(job).stages.len() > 1 { format!("{}: ", self.job(job).what(task)) } else { String::new() };
        self.note(job, format!("{stage}epoch {epoch} trained"));
        self.open_tasks(job);
    }

    fn made_progress(&mut self, job: JobId, task: TaskIndex) {
        self.job(job).tasks[task.0 as usize].failures.remove(&FailureClass::LostWorker);
    }

    /// Scores every epoch whose dev shards are all evaluated, and chooses the best once all are.
    pub(super) fn score_epochs(&mut self, id: JobId) {
        let epochs = self.job(id).epochs();
        for epoch in 1..=epochs {
            if !self.job(id).training().dev.contains_key(&epoch)
                && let Some(weighted_f1) = dev_score(self.job(id), epoch)
            {
                self.last_stage(id).dev.insert(epoch, weighted_f1);
                let best = best_epoch(self.job(id).training()) == Some(epoch);
                self.tell(id, Story::Epoch { epoch, weighted_f1, best });
            }
        }
        let job = self.job(id);
        let (ended, evaluates) = (job.trained().len() == job.stages.len(), job.spec.evaluates());
        let training = self.last_stage(id);
        if training.best.is_none() && ended {
            match evaluates {
                true if training.dev.len() == epochs as usize => training.best = best_epoch(training),
                true => {}
                // Nothing is scored: what the training came to is what it leaves.
                false => training.best = Some(epochs),
            }
        }
    }

    fn last_stage(&mut self, id: JobId) -> &mut Training {
        self.job(id).stages.last_mut().expect("a training has at least one stage")
    }
}

/// Weighted F1 of an epoch on dev, by the strict tally; `None` until all of its shards are evaluated.
fn dev_score(job: &Job, epoch: u32) -> Option<f64> {
    let of_epoch = |kind| matches!(kind, TaskKind::Dev { epoch: e, .. } if e == epoch);
    let shards = job.tasks.iter().filter(|task| of_epoch(task.kind)).count();
    let evaluated = job.evaluated(of_epoch);
    if evaluated.is_empty() || evaluated.len() < shards {
        return None;
    }
    let mut sum = Tally::new(job.corpus.labels.len());
    evaluated.iter().for_each(|e| sum.add(&e.strict));
    Some(Metric::of(&sum).weighted_f1)
}

/// The epoch of greatest weighted F1 on dev; of equals the earliest, which trained least.
fn best_epoch(training: &Training) -> Option<u32> {
    let better = |best: Option<(u32, f64)>, (&epoch, &score): (&u32, &f64)| match best {
        Some((_, highest)) if highest >= score => best,
        _ => Some((epoch, score)),
    };
    training.dev.iter().fold(None, better).map(|(epoch, _)| epoch)
}
