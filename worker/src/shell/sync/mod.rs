//! How the members of a gang reach each other: over TCP, each with every other.
//!
//! ```text
//! Listener: accepts at any time, keeps who calls until the gang is formed     Seating: the gang, by heartbeats
//! form: dial the lower ranks, await the higher -> Mesh -> level: all at the same update -> exchange, update by update
//! ```
//!
//! A member that is cut off is noticed by the system's keepalive; one that hangs, by the coordinator, whose next
//! generation is without it. So nothing here waits for a member that the gang goes on without, and nothing else is
//! called too slow: computing slots may take minutes.

mod form;
mod gpus;
mod level;
mod listener;
mod mesh;
mod peer;
mod seating;
mod socket;

pub use form::{Unreachable, form};
pub use level::Standing;
pub use listener::{Listener, ListenerConfig};
pub use mesh::Mesh;
pub use seating::{Seating, Seats, gang_of};
