//! Who tokenises what: the token cache's part of the schedule. Every key's prompts are tokenised once by the whole fleet.
//!
//! ```text
//!  unknown --claimed--> Claimed(lease) --fulfilled--> Cached(artifact)
//!     ^------lease ends------'  ^---------claimed anew by who found it spoilt--'
//! ```
//! A key says everything the tokens depend on; what is in it is the workers' affair. A claim lives as long as the
//! lease it was made under: heartbeats renew both, and whoever dies or registers anew loses both. Claims are journalled
//! like leases, so a restart forgets none and hands none out twice.

use std::collections::BTreeMap;

use insula_proto::ids::{Digest, LeaseId, WorkerId};

use super::{
    event::Event,
    judge::{Judgement, Outcome, Refusal, held},
    state::State,
};

/// What is cached and who is at what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Where a key's tokens lie.
    pub cached: BTreeMap<Digest, Digest>,
    /// Under which lease a key is being tokenised.
    pub claims: BTreeMap<Digest, LeaseId>,
}

/// The answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Here they are.
    Cached(Digest),
    /// They are the asker's to make.
    Granted,
    /// Someone else is making them: ask again.
    Busy,
}

impl Tokens {
    pub(super) fn claimed(&mut self, key: &Digest, lease: LeaseId) {
        self.cached.remove(key);
        self.claims.insert(key.clone(), lease);
    }

    pub(super) fn fulfilled(&mut self, key: &Digest, artifact: &Digest) {
        self.claims.remove(key);
        self.cached.insert(key.clone(), artifact.clone());
    }

    pub(super) fn lease_ended(&mut self, lease: LeaseId) {
        self.claims.retain(|_, holder| *holder != lease);
    }

    /// Asserts what must always hold.
    pub(super) fn check(&self, is_live: impl Fn(LeaseId) -> bool) {
        for (key, lease) in &self.claims {
            assert!(is_live(*lease), "a claim's lease is live");
            assert!(!self.cached.contains_key(key), "what is cached is claimed by nobody");
        }
    }
}

/// May this worker tokenise `key`? `spoilt` is the artifact it was sent to before and could not use.
pub(super) fn claim(
    state: &State,
    (worker, lease): (WorkerId, LeaseId),
    key: &Digest,
    spoilt: Option<&Digest>,
) -> Result<Judgement, Refusal> {
    held(state, worker, lease)?;
    let Tokens { cached, claims } = &state.tokens;
    let (claim, event) = match (cached.get(key).filter(|artifact| Some(*artifact) != spoilt), claims.get(key)) {
        (Some(artifact), _) => (Claim::Cached(artifact.clone()), None),
        (None, Some(holder)) if *holder == lease => (Claim::Granted, None),
        (None, Some(_)) => (Claim::Busy, None),
        (None, None) => (Claim::Granted, Some(Event::TokensClaimed { lease, key: key.clone() })),
    };
    Ok(Judgement { events: event.into_iter().collect(), outcome: Outcome::Claim(claim) })
}

/// This worker has made what it claimed.
pub(super) fn fulfil(
    state: &State,
    (worker, lease): (WorkerId, LeaseId),
    key: &Digest,
    artifact: &Digest,
) -> Result<Judgement, Refusal> {
    held(state, worker, lease)?;
    let Tokens { cached, claims } = &state.tokens;
    let events = match claims.get(key) {
        Some(holder) if *holder == lease => {
            vec![Event::TokensCached { lease, key: key.clone(), artifact: artifact.clone() }]
        }
        // The same words twice.
        None if cached.get(key) == Some(artifact) => vec![],
        _ => return Err(Refusal::NotClaimed { key: key.clone(), lease }),
    };
    Ok(Judgement { events, outcome: Outcome::Done })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use insula_proto::job::Arm;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::schedule::{
        Answer, Request,
        event::Report,
        fixture::{Desk, LEASE_MS, evaluated, spec},
        step,
    };

    type Holder = (WorkerId, LeaseId);

    fn key(n: usize) -> Digest {
        Digest::of(format!("key {n}").as_bytes())
    }

    fn artifact(n: usize) -> Digest {
        Digest::of(format!("tokens {n}").as_bytes())
    }

    fn claim(desk: &mut Desk, (worker, lease): Holder, n: usize, spoilt: Option<Digest>) -> Result<Claim, Refusal> {
        match desk.ask(Request::ClaimTokens { worker, lease, key: key(n), spoilt })?.answer {
            Answer::Claim(claim) => Ok(claim),
            other => panic!("a claim was answered with {other:?}"),
        }
    }

    fn fulfil(desk: &mut Desk, (worker, lease): Holder, n: usize) -> Result<(), Refusal> {
        desk.ask(Request::FulfilTokens { worker, lease, key: key(n), artifact: artifact(n) }).map(drop)
    }

    /// A worker of this name with a lease.
    fn holder(desk: &mut Desk, name: &str) -> Holder {
        let worker = desk.register(name);
        let (lease, _) = desk.lease(worker).expect("there is work");
        (worker, lease)
    }

    fn desk() -> Desk {
        let mut desk = Desk::new();
        for n in 0..4 {
            desk.submit(&n.to_string(), spec(&[Arm::ZeroShot], 1));
        }
        desk
    }

    #[test]
    fn the_first_to_ask_makes_them_the_second_waits_and_then_has_them() {
        let mut desk = desk();
        let (one, two) = (holder(&mut desk, "one"), holder(&mut desk, "two"));
        assert_eq!(claim(&mut desk, one, 1, None), Ok(Claim::Granted));
        assert_eq!(claim(&mut desk, one, 1, None), Ok(Claim::Granted), "asking twice is one claim");
        assert_eq!(claim(&mut desk, two, 1, None), Ok(Claim::Busy));
        assert_eq!(claim(&mut desk, two, 2, None), Ok(Claim::Granted), "another key is another matter");
        assert_eq!(fulfil(&mut desk, two, 1), Err(Refusal::NotClaimed { key: key(1), lease: two.1 }));
        fulfil(&mut desk, one, 1).unwrap();
        fulfil(&mut desk, one, 1).expect("the same words twice");
        assert_eq!(claim(&mut desk, two, 1, None), Ok(Claim::Cached(artifact(1))));
        desk.core = desk.replayed();
        assert_eq!(claim(&mut desk, two, 1, None), Ok(Claim::Cached(artifact(1))), "a restart forgets nothing");
        assert_eq!(claim(&mut desk, one, 2, None), Ok(Claim::Busy), "nor who is at it");
    }

    #[test]
    fn a_claim_ends_with_its_lease_however_that_ends() {
        for how in ["expired", "reported", "registered anew"] {
            let mut desk = desk();
            let (one, two) = (holder(&mut desk, "one"), holder(&mut desk, "two"));
            claim(&mut desk, one, 1, None).unwrap();
            match how {
                "expired" => {
                    desk.pass(LEASE_MS - 1);
                    desk.beat(two.0, two.1).unwrap();
                    desk.pass(1);
                }
                "reported" => drop(desk.report(one.0, one.1, Report::Evaluated(evaluated(3))).unwrap()),
                _ => drop(desk.register("one")),
            }
            assert_eq!(claim(&mut desk, two, 1, None), Ok(Claim::Granted), "{how}");
            let stale = Refusal::StaleLease { lease: one.1, worker: one.0 };
            assert_eq!(fulfil(&mut desk, one, 1), Err(stale.clone()), "{how}");
            assert_eq!(claim(&mut desk, one, 1, None), Err(stale), "{how}");
        }
    }

    #[test]
    fn what_is_found_spoilt_is_made_again_by_one() {
        let mut desk = desk();
        let (one, two) = (holder(&mut desk, "one"), holder(&mut desk, "two"));
        claim(&mut desk, one, 1, None).unwrap();
        fulfil(&mut desk, one, 1).unwrap();
        assert_eq!(claim(&mut desk, two, 1, Some(artifact(9))), Ok(Claim::Cached(artifact(1))), "another was spoilt");
        assert_eq!(claim(&mut desk, two, 1, Some(artifact(1))), Ok(Claim::Granted));
        assert_eq!(claim(&mut desk, one, 1, Some(artifact(1))), Ok(Claim::Busy));
        fulfil(&mut desk, two, 1).unwrap();
        assert_eq!(claim(&mut desk, one, 1, None), Ok(Claim::Cached(artifact(1))));
    }

    /// Whoever claims a key finds it unclaimed, or claimed under a lease that is no more; and never made.
    fn check_claims(journal: &[(u64, Event)], seed: u64) {
        let (mut leases, mut keys) = (State::default(), BTreeMap::new());
        for (at_ms, event) in journal {
            match event {
                Event::TokensClaimed { key, lease } => {
                    let before = keys.insert(key.clone(), Some(*lease));
                    let free =
                        before.is_none_or(|holder| holder.is_some_and(|held| !leases.leases.contains_key(&held)));
                    assert!(free, "seed {seed}: {key} was claimed while another was at it, or had made it");
                }
                Event::TokensCached { key, .. } => drop(keys.insert(key.clone(), None)),
                _ => {}
            }
            step(&mut leases, *at_ms, event);
        }
    }

    #[test]
    fn in_every_world_a_key_is_claimed_again_only_after_its_claimant_was_lost() {
        const KEYS: usize = 6;
        for seed in 0..300 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut desk = desk();
            // A process knows its lease and what it was granted, where the answers reached it.
            let mut processes: Vec<Option<(Holder, BTreeSet<usize>)>> = vec![None; random.random_range(2..5)];
            let mut cached = BTreeSet::new();
            for _ in 0..10_000 {
                if cached.len() == KEYS {
                    break;
                }
                let (n, k) = (random.random_range(0..processes.len()), random.random_range(0..KEYS));
                let Some((me, granted)) = &mut processes[n] else {
                    let worker = desk.register(&format!("w{n}"));
                    processes[n] = desk.lease(worker).map(|(lease, _)| ((worker, lease), BTreeSet::new()));
                    continue;
                };
                let before = desk.journal.len();
                let alive = match random.random_range(0..100) {
                    0..4 => false, // the process dies
                    4..18 => {
                        desk.pass(random.random_range(0..LEASE_MS / 3));
                        true
                    }
                    18..45 => desk.beat(me.0, me.1).is_ok(),
                    45..72 => {
                        let answer = claim(&mut desk, *me, k, None);
                        if answer == Ok(Claim::Granted) && random.random_range(0..10) > 0 {
                            granted.insert(k);
                        }
                        answer.is_ok()
                    }
                    _ if granted.contains(&k) => {
                        let answer = fulfil(&mut desk, *me, k);
                        cached.extend(answer.is_ok().then_some(k));
                        answer.is_ok()
                    }
                    _ => true,
                };
                if !alive {
                    processes[n] = None;
                }
                if random.random_range(0..100) < 3 {
                    // The coordinator dies, perhaps before its last write; then nobody heard of that.
                    if random.random_range(0..2) == 0 && desk.journal.len() > before {
                        desk.journal.truncate(before);
                        processes[n] = None;
                    }
                    desk.core = desk.replayed();
                    cached.retain(|k| desk.core.state.tokens.cached.contains_key(&key(*k)));
                }
            }
            assert_eq!(cached.len(), KEYS, "seed {seed}: every key is cached in the end");
            check_claims(&desk.journal, seed);
        }
    }
}
