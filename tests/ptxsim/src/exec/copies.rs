//! cp.async: copies from global to shared memory that are under way until their lane waits for them.

use super::shadow::{Note, Writes};
use super::warp::Warp;
use super::{Env, Outcome, banks, lanes, trouble};
use crate::fault::{FaultKind, MemorySpace};
use crate::launch;
use crate::program::{Address, Row, Space};

/// The copies of one warp that are under way, and how many groups each lane has committed.
#[derive(Debug, Default)]
pub(super) struct Copies {
    under_way: Vec<Copy>,
    committed: [u32; 32],
}

#[derive(Debug, Clone)]
struct Copy {
    lane: usize,
    /// The lane's group, counted from 0; committed when the lane's count is greater.
    group: u32,
    to: usize,
    bytes: usize,
    data: [u8; 16],
    pc: u32,
}

impl Copies {
    pub(super) fn commit(&mut self, mask: u32) {
        lanes(mask).for_each(|lane| self.committed[lane] += 1);
    }
}

impl Env<'_> {
    /// Starts a copy of `bytes`, of which `source_bytes` are read and the others zero.
    pub(super) fn copy_async(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        to: &Address,
        from: &Address,
        bytes: usize,
        source_bytes: Option<Row>,
    ) -> Outcome {
        let target = self.place(warp, mask, Space::Shared, to, bytes)?;
        let source = self.place(warp, mask, Space::Global, from, bytes)?;
        self.counts.shared.stored_bytes += u64::from(mask.count_ones()) * bytes as u64;
        self.counts.shared_bank_conflicts += banks::conflicts(&target.addresses, mask, bytes);
        let mut reading = 0;
        for lane in lanes(mask) {
            let wanted = source_bytes.map_or(bytes, |row| warp.registers.w32[row as usize][lane] as usize);
            if wanted > bytes {
                let what = format!("a copy of {bytes} bytes from {wanted}");
                return trouble(1 << lane, FaultKind::Unsupported(what));
            }
            let mut data = [0; 16];
            if wanted > 0 {
                reading |= 1 << lane;
                self.read_source(warp, lane, source.addresses[lane], &mut data[..wanted])?;
            }
            let to = target.addresses[lane] as usize;
            self.note_shared_write(warp, lane as u32, (target.addresses[lane], bytes), Writes::Plain)?;
            if self.launch.checks.copies == launch::Copies::Eager {
                self.shared[to..to + bytes].copy_from_slice(&data[..bytes]);
            }
            let note = warp.note(lane as u32, target.addresses[lane], bytes);
            self.shared_shadow.begin_copy(&note);
            let group = warp.copies.committed[lane];
            warp.copies.under_way.push(Copy { lane, group, to, bytes, data, pc: warp.pc });
        }
        if reading != 0 {
            self.counts.global.loaded_sectors += banks::sectors(&source.addresses, reading);
        }
        Ok(())
    }

    fn read_source(&mut self, warp: &Warp, lane: usize, address: u64, into: &mut [u8]) -> Outcome {
        self.counts.global.loaded_bytes += into.len() as u64;
        if let Err(bounds) = self.memory.read(address, into) {
            return trouble(1 << lane, FaultKind::OutOfBounds(bounds));
        }
        let note = warp.note(lane as u32, address, into.len());
        match self.global_shadow.read(&self.clock, &note, false) {
            None => Ok(()),
            Some(found) => trouble(1 << lane, found.kind(MemorySpace::Global, &self.clock, &self.program.sites)),
        }
    }

    /// Lands the copies of the mask's lanes but for their last `pending` groups; all of them for `None`.
    pub(super) fn copy_wait(&mut self, warp: &mut Warp, mask: u32, pending: Option<u32>) -> Outcome {
        let mut kept = Vec::new();
        for copy in std::mem::take(&mut warp.copies.under_way) {
            let landed = mask >> copy.lane & 1 == 1
                && pending.is_none_or(|pending| copy.group + pending < warp.copies.committed[copy.lane]);
            if !landed {
                kept.push(copy);
                continue;
            }
            if self.launch.checks.copies == launch::Copies::Lazy {
                self.shared[copy.to..copy.to + copy.bytes].copy_from_slice(&copy.data[..copy.bytes]);
            }
            let note = Note { pc: copy.pc, ..warp.note(copy.lane as u32, copy.to as u64, copy.bytes) };
            if let Some(found) = self.shared_shadow.end_copy(&self.clock, &note) {
                let kind = found.kind(MemorySpace::Shared, &self.clock, &self.program.sites);
                return trouble(1 << copy.lane, kind);
            }
        }
        warp.copies.under_way = kept;
        Ok(())
    }
}
