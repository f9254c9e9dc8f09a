//! What the members of gangs send each other. A member goes on once it has heard all others; each does at its own time,
//! so that some have finished an update when one dies and others have not.

use std::collections::BTreeMap;

use insula_proto::ids::{JobId, TaskIndex};

use super::{super::Seating, process::Process};

/// A meeting of a generation: of the gang's beginning (update 0 of this key), or of an update.
type Meeting = (JobId, TaskIndex, u32, u32);

/// What a member sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    process: usize,
    /// Its finished updates.
    update: u32,
    /// Whose ledger lines it lacks.
    history_from: u32,
    /// The newest generation it has heard of.
    heard: u32,
}

/// All that was sent.
#[derive(Debug, Default)]
pub(super) struct Exchange(BTreeMap<Meeting, BTreeMap<usize, Sent>>);

impl Exchange {
    /// A process dies; what it had sent may or may not arrive.
    pub(super) fn died(&mut self, process: usize, sent_arrives: bool) {
        if !sent_arrives {
            self.0.values_mut().for_each(|sent| sent.retain(|_, by| by.process != process));
        }
    }

    /// A member computes: meets the others of a new generation, or finishes an update with them, or waits.
    pub(super) fn compute(&mut self, processes: &mut [Process], n: usize, chance: u32) {
        let Some(hold) = &processes[n].holds else { return };
        let training = &hold.training;
        if !training.due.is_empty() {
            return;
        }
        let stops = training.update == training.updates || training.paused() || training.recalled;
        let broken = training.gang.as_ref().is_none_or(|gang| is_broken(processes, gang));
        match (&training.gang, &training.next) {
            (_, Some(next)) if broken => {
                let next = next.clone();
                self.form(processes, n, next);
            }
            (Some(gang), _) if !broken && !stops && chance < 90 => {
                let gang = gang.clone();
                self.update(processes, n, &gang);
            }
            _ => {}
        }
    }

    fn form(&mut self, processes: &mut [Process], n: usize, next: Seating) {
        let meeting = (next.job, next.task, next.generation, 0);
        let Some(all) = self.send(processes, n, meeting, &next) else { return };
        let source = all.values().max_by_key(|sent| (sent.update, std::cmp::Reverse(sent.process)));
        let Sent { update, history_from, .. } = *source.expect("a gang has a member");
        let hold = processes[n].holds.as_mut().expect("who forms a gang holds a lease");
        let training = &mut hold.training;
        if training.update < update {
            (training.update, training.history_from) = (update, history_from);
        }
        (training.gang, training.next) = (Some(next), None);
        training.owe();
    }

    fn update(&mut self, processes: &mut [Process], n: usize, gang: &Seating) {
        let done = processes[n].holds.as_ref().map_or(0, |hold| hold.training.update);
        let meeting = (gang.job, gang.task, gang.generation, done + 1);
        let Some(all) = self.send(processes, n, meeting, gang) else { return };
        assert!(all.values().all(|sent| sent.update == done), "the members of a gang are at one update");
        let hold = processes[n].holds.as_mut().expect("who computes holds a lease");
        let training = &mut hold.training;
        training.update += 1;
        training.owe();
        if all.values().any(|sent| sent.heard > gang.generation) && training.due.is_empty() {
            training.gang = None;
        }
    }

    /// Sends a member's part to a meeting; everybody's once all have come.
    fn send(
        &mut self,
        processes: &[Process],
        n: usize,
        meeting: Meeting,
        gang: &Seating,
    ) -> Option<BTreeMap<usize, Sent>> {
        let training = &processes[n].holds.as_ref()?.training;
        let heard = training.next.as_ref().map_or(0, |next| next.generation);
        let (update, history_from) = (training.update, training.history_from);
        let sent = self.0.entry(meeting).or_default();
        sent.entry(gang.rank).or_insert(Sent { process: n, update, history_from, heard });
        (sent.len() == gang.seats.len()).then(|| sent.clone())
    }
}

/// Whether a member can see that a gang is no more: one of the others has died, given up, or gone on to another.
fn is_broken(processes: &[Process], gang: &Seating) -> bool {
    let there = |lease| {
        processes.iter().filter_map(|process| process.holds.as_ref()).any(|hold| {
            let of = |seating: &Option<Seating>| seating.as_ref().is_some_and(|g| g.generation == gang.generation);
            hold.lease == lease && (of(&hold.training.gang) || of(&hold.training.next))
        })
    };
    !gang.seats.iter().all(|(lease, ..)| there(*lease))
}
