//! Who within a warp wrote and read which shared bytes since the warp's lanes last met.
//!
//! Lanes run in step here, but a GPU of sm_70 or later promises no order between them: what one lane writes and another
//! reads needs a `bar.warp.sync` (or a barrier of the block) in between. Shuffles, votes and matrix instructions order
//! no memory. Lanes of one store that write the same bytes are let pass: which one wins is nobody's promise, but kernels
//! that store one value from all lanes are right.

/// All lanes at once, as the reader of a matrix row is.
pub(super) const ALL_LANES: u32 = 32;

/// Which lane accesses, in which interval between two meetings of its warp.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lane {
    /// 0 to 31, or [`ALL_LANES`].
    pub number: u32,
    /// Differs between any two intervals of any two warps of a block; never 0.
    pub interval: u32,
}

impl Lane {
    /// The lanes of which this is one, a bit each.
    fn mask(self) -> u32 {
        if self.number == ALL_LANES { u32::MAX } else { 1 << self.number }
    }
}

/// The last writer and the readers of a grain within one interval.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LaneCell {
    written_in: u32,
    writer: u32,
    writer_pc: u32,
    read_in: u32,
    readers: u32,
    reader_pc: u32,
}

/// The other lanes of a clash: what they did, which they are, the instruction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clash {
    pub other: &'static str,
    pub lanes: u32,
    pub pc: u32,
}

impl LaneCell {
    pub(super) fn read(&mut self, lane: Lane, pc: u32) -> Option<Clash> {
        let writer = 1 << self.writer;
        if self.written_in == lane.interval && writer != lane.mask() {
            return Some(Clash { other: "write", lanes: writer, pc: self.writer_pc });
        }
        if self.read_in != lane.interval {
            (self.read_in, self.readers) = (lane.interval, 0);
        }
        self.readers |= lane.mask();
        self.reader_pc = pc;
        None
    }

    pub(super) fn write(&mut self, lane: Lane, pc: u32, atomic: bool) -> Option<Clash> {
        let (writer, readers) = (1 << self.writer, self.readers & !lane.mask());
        if self.written_in == lane.interval && writer != lane.mask() && pc != self.writer_pc {
            return Some(Clash { other: "write", lanes: writer, pc: self.writer_pc });
        }
        if self.read_in == lane.interval && readers != 0 {
            return Some(Clash { other: "read", lanes: readers, pc: self.reader_pc });
        }
        // Atomics are ordered among themselves, so they are no writer to clash with here.
        self.written_in = if atomic { 0 } else { lane.interval };
        (self.writer, self.writer_pc) = (lane.number, pc);
        None
    }
}
