//! Several members train one trial together: what they agree on, apart from how they reach each other.
//!
//! ```text
//! an update's slots --share_out--> a run of slots for each rank --each computes its own--> subtrees of the sum
//!        subtrees, losses, announcements --Exchange--> the whole gradient, all slots' losses, all announcements
//! ```
//!
//! The sum is finished in the slots' order ([`crate::reduce`]) and losses are added in it, so the gradient and the loss
//! are the same bits for any number of members. [`Solo`] is the gang of one; [`crate::shell::sync::Mesh`] exchanges
//! over TCP, or where every member has a GPU of its own by NCCL, behind [`Exchange`].

pub mod frame;
mod gang;
mod share;

pub use gang::{Gang, GangError, Seat};
pub use share::share_out;

use std::{fmt, ops::Range};

use insula_kernels::KernelError;

use crate::reduce::{Node, TreeSum};

/// What a slot adds to an update beside its gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlotFacts {
    /// Weighted losses of its supervised tokens, summed.
    pub loss_sum: f64,
    /// Tokens computed.
    pub tree_tokens: u64,
}

/// What a member tells the others in every update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Announcement {
    /// The newest generation it has heard of.
    pub generation: u32,
    /// It leaves after this update.
    pub leaving: bool,
    /// The last update of which it knows a checkpoint.
    pub checkpointed: u32,
}

/// What one member brings to an update.
#[derive(Debug)]
pub struct Part {
    /// The update, from 1.
    pub update: u32,
    /// Length of the gradient.
    pub len: usize,
    /// Every rank's run of slots.
    pub runs: Vec<Range<usize>>,
    /// This rank's subtrees, in order.
    pub nodes: Vec<Node>,
    /// This rank's slots, in order.
    pub facts: Vec<SlotFacts>,
    /// What it tells.
    pub announced: Announcement,
    /// Whether GPUs that are joined may add in an order of their own.
    pub fast: bool,
}

/// What every member has after an update's exchange: the same bits everywhere.
#[derive(Debug, PartialEq)]
pub struct Whole {
    /// The sum of all slots' gradients.
    pub gradient: Vec<f32>,
    /// All slots, in order.
    pub facts: Vec<SlotFacts>,
    /// What each rank told.
    pub announced: Vec<Announcement>,
}

/// What makes the members' parts of an update one.
pub trait Exchange {
    /// This member's rank.
    fn rank(&self) -> usize;

    /// The number of members.
    fn world(&self) -> usize;

    /// Adds this member's part to everybody's.
    ///
    /// # Errors
    /// When a member is lost, or what it sent is not what was to come; nothing of the update is to be used then.
    fn exchange(&mut self, part: Part) -> Result<Whole, SyncError>;
}

/// The gang of one: its part is the whole.
#[derive(Debug, Clone, Copy)]
pub struct Solo;

impl Exchange for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    /// Copies nothing.
    fn exchange(&mut self, part: Part) -> Result<Whole, SyncError> {
        let mut sum = TreeSum::default();
        part.nodes.into_iter().for_each(|node| sum.push_node(node));
        let gradient = sum.finish().expect("an update has at least one slot");
        Ok(Whole { gradient, facts: part.facts, announced: vec![part.announced] })
    }
}

/// The piece of a vector of `len` that `rank` of `world` finishes the sum of.
#[must_use]
pub fn piece(len: usize, rank: usize, world: usize) -> Range<usize> {
    let at = |rank: usize| (len as u128 * rank as u128 / world as u128) as usize;
    at(rank)..at(rank + 1)
}

/// Why members could not go on together.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The connection to a member failed.
    #[error("{peer}: {doing}: {problem}")]
    Broken {
        /// Which member.
        peer: Peer,
        /// What was being done.
        doing: &'static str,
        /// What the system says.
        problem: std::io::Error,
    },
    /// A frame that is damaged, foreign or out of turn.
    #[error("{peer}: {problem}")]
    Frame {
        /// Who sent it.
        peer: Peer,
        /// What is wrong with it.
        problem: frame::FrameError,
    },
    /// A member computed another part than it was to, or stands elsewhere.
    #[error("{peer}: {what} is {got}, expected {expected}")]
    Disagrees {
        /// Which member.
        peer: Peer,
        /// What differs.
        what: &'static str,
        /// What it said.
        got: String,
        /// What is so here.
        expected: String,
    },
    /// A member would not be connected with.
    #[error("{peer} refuses the connection: {reason}")]
    Refused {
        /// Which member.
        peer: Peer,
        /// Why, in its words.
        reason: String,
    },
    /// A newer generation is without one of this one's members.
    #[error("generation {newer} goes on without {peer}")]
    Gone {
        /// Who is no longer in it.
        peer: Peer,
        /// The newer generation.
        newer: u32,
    },
    /// A newer generation was formed.
    #[error("generation {newer} takes this one's place")]
    Superseded {
        /// The newer generation.
        newer: u32,
    },
    /// Nothing came for too long.
    #[error("no end of {doing} for {seconds} s")]
    Deadline {
        /// What was being done.
        doing: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// The GPUs could not be joined, or their exchange failed with nobody lost.
    #[error("between the GPUs: {problem}")]
    Gpu {
        /// What the device or NCCL says.
        problem: KernelError,
    },
    /// The lease is gone.
    #[error("the lease is no longer this worker's")]
    Abandoned,
    /// This worker is to leave.
    #[error("this worker is to leave")]
    Leaving,
}

/// A member as people know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its rank.
    pub rank: usize,
    /// Its worker's name.
    pub worker: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} ({})", self.rank, self.worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_tile_a_vector() {
        for (len, world) in [(0, 3), (1, 4), (10, 3), (1 << 40, 7)] {
            let pieces: Vec<_> = (0..world).map(|rank| piece(len, rank, world)).collect();
            assert_eq!((pieces[0].start, pieces[world - 1].end), (0, len));
            assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
    }
}
