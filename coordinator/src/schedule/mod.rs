//! Decides who computes what and when. Pure: time comes as a number, the world as requests, decisions go out as events.
//!
//! ```text
//!            judge                      step
//! Request ----------> events (facts) ----------> State', effects
//!    |                    |                          |
//!    '--> Refusal         '--> journal, on disk      '--> stories for watchers, wake-ups for workers
//!         changes nothing      before any effect
//! ```
//!
//! One request at a time. `judge` looks and says what would then be so, or refuses; `step` takes the facts in and
//! cannot refuse. The state is the fold of the journal: a restart folds it again. What must not be replayed (when a
//! worker was last heard) is in the [`Pulse`], which a restart begins afresh, every live lease with its full time.
//!
//! Invariants, asserted by [`State::check`]: at most one live lease per worker, and per task but a training's gang; lease
//! and worker ids only grow; what is ready is exactly what can be handed out; every done task has exactly one result; an
//! ended job holds nothing.

mod check;
mod choose;
pub mod event;
pub mod explain;
pub mod gang;
mod judge;
pub mod keep;
mod policy;
mod pulse;
pub mod queue;
pub mod state;
mod step;
pub mod task;
pub mod tokens;

pub use self::{
    gang::Seating,
    judge::{Answer, Grant, Refusal, Request},
    policy::Policy,
    pulse::Pulse,
    state::{Job, State},
    step::{Effect, step},
};

use self::event::Event;

/// The state with its pulse: what one owner holds.
#[derive(Debug, Clone)]
pub struct Core {
    /// The fold of the journal.
    pub state: State,
    /// When workers were last heard.
    pub pulse: Pulse,
    /// What whoever runs the coordinator has decided.
    pub policy: Policy,
}

/// What came of a request.
#[derive(Debug, Clone)]
pub struct Turn {
    /// What is now so; to be on disk before anything else is done about it.
    pub events: Vec<Event>,
    /// What is to be done, each with the place in `events` of its cause.
    pub effects: Vec<(usize, Effect)>,
    /// For who asked.
    pub answer: Answer,
}

impl Core {
    /// Goes on from a state that was folded from the journal.
    pub fn restored(state: State, now_ms: u64, policy: Policy) -> Self {
        let pulse = Pulse::restarted(&state, now_ms, policy.lease_ms);
        Self { state, pulse, policy }
    }

    /// Takes in one request.
    ///
    /// # Errors
    /// A refusal; nothing has changed then.
    pub fn handle(&mut self, now_ms: u64, request: &Request) -> Result<Turn, Refusal> {
        let (mut events, mut effects) = (Vec::new(), Vec::new());
        let outcome = loop {
            let judgement = judge::judge(self, now_ms, request)?;
            for event in judgement.events {
                let caused = step(&mut self.state, now_ms, &event).into_iter();
                effects.extend(caused.map(|effect| (events.len(), effect)));
                events.push(event);
            }
            match judgement.outcome {
                // Only a lease asks again, and only after its worker was found: the second look refuses nothing.
                judge::Outcome::AskAgain => {}
                outcome => break outcome,
            }
        };
        self.pulse.felt(&self.state, now_ms, request, &events, &outcome);
        let answer = judge::answer(&self.state, outcome);
        Ok(Turn { events, effects, answer })
    }
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod gang_tests;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
