//! A gang as its members know it.

use super::Peer;

/// Who trains together, from one update to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gang {
    /// Only grows; a member that comes or goes ends it.
    pub generation: u32,
    /// This member's place among the seats.
    pub rank: usize,
    /// By rank.
    pub seats: Vec<Seat>,
    /// Authenticates what the members send each other.
    pub key: [u8; 32],
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Its lease.
    pub lease: u64,
    /// Its worker's name.
    pub worker: String,
    /// Where it is reached, `HOST:PORT`.
    pub address: String,
}

/// Why something is no gang that this worker can be in.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("gang of generation {generation}: {problem}")]
pub struct GangError {
    /// Which one.
    pub generation: u32,
    /// What is wrong.
    pub problem: String,
}

impl Gang {
    /// A gang in which `lease` has the seat `rank`.
    ///
    /// # Errors
    /// When the seat is another's, or the members could not reach or believe each other.
    pub fn new(generation: u32, rank: u32, seats: Vec<Seat>, key: &[u8], lease: u64) -> Result<Self, GangError> {
        let wrong = |problem: String| Err(GangError { generation, problem });
        let own = seats.get(rank as usize).map(|seat| seat.lease);
        if own != Some(lease) {
            let of = own.map_or("nobody's".into(), |own| format!("lease {own}'s"));
            return wrong(format!("seat {rank} of {} is {of}, expected lease {lease}'s", seats.len()));
        }
        let together = seats.len() > 1;
        if let Some(seat) = seats.iter().find(|seat| together && seat.address.is_empty()) {
            return wrong(format!("{} has no address, expected HOST:PORT", seat.worker));
        }
        let key = match key.try_into() {
            Ok(key) => key,
            Err(_) if !together => [0; 32],
            Err(_) => return wrong(format!("its key has {} bytes, expected 32", key.len())),
        };
        Ok(Self { generation, rank: rank as usize, seats, key })
    }

    /// The number of members.
    #[must_use]
    pub fn world(&self) -> usize {
        self.seats.len()
    }

    /// A member, for people.
    #[must_use]
    pub fn peer(&self, rank: usize) -> Peer {
        Peer { rank, worker: self.seats[rank].worker.clone() }
    }

    /// The first of this gang's members that another gang is without.
    #[must_use]
    pub fn missing_from(&self, other: &Gang) -> Option<usize> {
        let stays = |seat: &Seat| other.seats.iter().any(|other| other.lease == seat.lease);
        self.seats.iter().position(|seat| !stays(seat))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(lease: u64, address: &str) -> Seat {
        Seat { lease, worker: format!("worker-{lease}"), address: address.into() }
    }

    #[test]
    fn a_gang_that_could_not_work_is_refused() {
        let two = || vec![seat(4, "a:1"), seat(9, "b:1")];
        assert_eq!(Gang::new(1, 1, two(), &[7; 32], 9).unwrap().peer(0).to_string(), "rank 0 (worker-4)");
        let refused = |rank, seats, key: &[u8]| Gang::new(3, rank, seats, key, 9).unwrap_err().problem;
        assert_eq!(refused(0, two(), &[7; 32]), "seat 0 of 2 is lease 4's, expected lease 9's");
        assert_eq!(refused(2, two(), &[7; 32]), "seat 2 of 2 is nobody's, expected lease 9's");
        assert_eq!(refused(1, two(), &[7; 5]), "its key has 5 bytes, expected 32");
        assert_eq!(
            refused(1, vec![seat(4, ""), seat(9, "b:1")], &[7; 32]),
            "worker-4 has no address, expected HOST:PORT"
        );
        assert!(Gang::new(1, 0, vec![seat(9, "")], &[], 9).is_ok(), "nobody calls a gang of one");
    }

    #[test]
    fn who_is_gone_is_told_by_the_leases() {
        let gang = |seats: Vec<Seat>| Gang::new(1, 0, seats, &[7; 32], 4).unwrap();
        let (three, two) =
            (gang(vec![seat(4, "a"), seat(9, "b"), seat(11, "c")]), gang(vec![seat(4, "a"), seat(11, "c")]));
        assert_eq!((three.missing_from(&two), two.missing_from(&three)), (Some(1), None));
    }
}
