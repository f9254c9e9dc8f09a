//! What a kernel did wrong, and where.

use std::fmt;

/// An access outside of every live allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutOfBounds {
    /// The first byte asked for.
    pub address: u64,
    /// How many bytes were asked for.
    pub bytes: u64,
    /// Start and bytes of the nearest live allocation at or below the address, where there is one.
    pub nearest: Option<(u64, u64)>,
    /// The address lies in memory that was freed.
    pub freed: bool,
}

impl fmt::Display for OutOfBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x} are in no live allocation", self.bytes, self.address)?;
        if self.freed {
            write!(f, " (freed)")?;
        }
        match self.nearest {
            Some((start, bytes)) => {
                write!(f, "; the nearest below is {start:#x} of {bytes} bytes, {} past its start", self.address - start)
            }
            None => write!(f, "; none lies below"),
        }
    }
}

impl std::error::Error for OutOfBounds {}

/// A memory space, as faults name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are PTX's")]
pub enum MemorySpace {
    Param,
    Constant,
    Global,
    Shared,
    Local,
}

impl fmt::Display for MemorySpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemorySpace::Param => "param",
            MemorySpace::Constant => "const",
            MemorySpace::Global => "global",
            MemorySpace::Shared => "shared",
            MemorySpace::Local => "local",
        })
    }
}

/// The other side of a race.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// What it did: "write", "read", "cp.async in flight".
    pub what: &'static str,
    /// Who: "warp 3", "another block".
    pub who: String,
    /// Line of the PTX.
    pub line: u32,
    /// The instruction.
    pub text: String,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// Global memory outside of every live allocation.
    OutOfBounds(OutOfBounds),
    /// Shared, local, param or const memory beyond its size.
    BeyondSpace {
        /// Which memory.
        space: MemorySpace,
        /// First byte asked for, relative to the space.
        address: u64,
        /// Bytes asked for.
        bytes: u64,
        /// Bytes that there are.
        size: u64,
    },
    /// An address that is not a multiple of the access's width.
    Misaligned {
        /// Which memory.
        space: MemorySpace,
        /// The address.
        address: u64,
        /// What it has to be a multiple of.
        width: u64,
    },
    /// Two accesses to the same bytes, at least one of them a write, with nothing that orders them.
    Race {
        /// Which memory.
        space: MemorySpace,
        /// The first byte that both touch.
        address: u64,
        /// What the faulting instruction did: "write" or "read".
        what: &'static str,
        /// The earlier access.
        other: Box<Access>,
    },
    /// Not all threads of the block came to the same barrier.
    BarrierDivergence(String),
    /// Shared or local memory read before anything was written there.
    Uninitialised {
        /// Which memory.
        space: MemorySpace,
        /// The first such byte, relative to the space.
        address: u64,
    },
    /// A warp-wide instruction with lanes missing.
    NotConverged {
        /// The lanes that run it, a bit each.
        active: u32,
        /// The lanes that should.
        needed: u32,
    },
    /// A shuffle reads the register of a lane that does not take part.
    ShuffleSource {
        /// That lane.
        source: u32,
    },
    /// The launch itself is wrong: sizes, threads, parameters.
    BadLaunch(String),
    /// Something that the interpreter does not model.
    Unsupported(String),
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultKind::OutOfBounds(bounds) => write!(f, "out of bounds: {bounds}"),
            FaultKind::BeyondSpace { space, address, bytes, size } => {
                write!(f, "out of bounds: {bytes} bytes at {address:#x} of {space} memory, which has {size}")
            }
            FaultKind::Misaligned { space, address, width } => {
                write!(f, "misaligned: {space} address {address:#x} is no multiple of {width}")
            }
            FaultKind::Race { space, address, what, other } => write!(
                f,
                "race: {what} of {space} memory at {address:#x} against the {} of {} at line {} `{}`",
                other.what, other.who, other.line, other.text
            ),
            FaultKind::BarrierDivergence(how) => write!(f, "barrier divergence: {how}"),
            FaultKind::Uninitialised { space, address } => {
                write!(f, "uninitialised: {space} memory at {address:#x} is read before it is written")
            }
            FaultKind::NotConverged { active, needed } => {
                write!(f, "not converged: lanes {active:08x} run it, {needed:08x} should")
            }
            FaultKind::ShuffleSource { source } => write!(f, "shuffle from lane {source}, which takes no part"),
            FaultKind::BadLaunch(why) => write!(f, "bad launch: {why}"),
            FaultKind::Unsupported(what) => write!(f, "unsupported: {what}"),
        }
    }
}

/// The first wrong thing that a kernel did; the launch ends there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What went wrong.
    pub kind: FaultKind,
    /// The kernel's name.
    pub kernel: String,
    /// The block's index, x, y, z.
    pub block: [u32; 3],
    /// The warp within the block.
    pub warp: u32,
    /// The lanes concerned, a bit each.
    pub lanes: u32,
    /// The line of the PTX, from 1; 0 when no instruction is at fault.
    pub line: u32,
    /// The instruction's text.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "{}: {}", self.kernel, self.kind)?;
        if self.line > 0 {
            write!(f, "; block ({x},{y},{z}) warp {} lanes {}", self.warp, lane_list(self.lanes))?;
            write!(f, ", ptx line {} `{}`", self.line, self.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// "0-3,7" for the mask 0x8f.
pub(crate) fn lane_list(mask: u32) -> String {
    let mut parts = Vec::new();
    let mut lane = 0;
    while lane < 32 {
        let run = (mask >> lane).trailing_ones();
        match run {
            0 => {}
            1 => parts.push(lane.to_string()),
            _ => parts.push(format!("{lane}-{}", lane + run - 1)),
        }
        lane += run + 1;
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_print_as_ranges() {
        assert_eq!(lane_list(0x8f), "0-3,7");
        assert_eq!(lane_list(u32::MAX), "0-31");
        assert_eq!(lane_list(1 << 31), "31");
    }
}
