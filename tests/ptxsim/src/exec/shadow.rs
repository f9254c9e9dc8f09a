//! Who wrote and read which bytes, and when: the memory behind the memory that finds races.
//!
//! Time is cut into epochs: a block's begin and each of its barriers start a new one. As blocks run one after another,
//! an epoch before the block's first one belongs to another block. Two accesses to a grain, one of them a write, race
//! when they come from different blocks, or from different warps of one block within one epoch. Lanes of one warp are
//! told apart in shared memory only (`lane_shadow`).

use std::collections::HashMap;

use super::lane_shadow::{Clash, Lane, LaneCell};
use crate::fault::{Access, FaultKind, MemorySpace, lane_list};
use crate::launch::Checks;
use crate::program::Site;

/// Epoch, whether atomic, and warp, in one word; 0 is "nobody".
type Stamp = u32;
const WARP_BITS: u32 = 6;
const ATOMIC: u32 = 1 << WARP_BITS;
const EPOCH_SHIFT: u32 = WARP_BITS + 1;
const EPOCH_MAX: u32 = u32::MAX >> EPOCH_SHIFT;
/// Several warps within one epoch: no warp has this number.
const MANY: u32 = (1 << WARP_BITS) - 1;
/// Several blocks.
const BLOCKS: Stamp = u32::MAX;

fn epoch(stamp: Stamp) -> u32 {
    stamp >> EPOCH_SHIFT
}

fn warp(stamp: Stamp) -> u32 {
    stamp & MANY
}

/// The present epoch and the first one of the block.
#[derive(Debug, Default)]
pub(super) struct Clock {
    now: u32,
    block_began: u32,
    /// First epoch and index of each block, to name it.
    blocks: Vec<(u32, [u32; 3])>,
}

impl Clock {
    pub(super) fn begin_block(&mut self, block: [u32; 3], shared: &mut SharedShadow, global: &mut GlobalShadow) {
        self.tick(shared, global);
        self.block_began = self.now;
        if shared.checks.races {
            self.blocks.push((self.now, block));
        }
    }

    pub(super) fn pass_barrier(&mut self, shared: &mut SharedShadow, global: &mut GlobalShadow) {
        self.tick(shared, global);
    }

    fn tick(&mut self, shared: &mut SharedShadow, global: &mut GlobalShadow) {
        self.now += 1;
        if self.now >= EPOCH_MAX {
            // After 33 million epochs all is forgotten, so that a race with what came before goes unseen.
            shared.forget();
            global.pages.clear();
            global.index.clear();
            self.blocks.clear();
            (self.now, self.block_began) = (2, 1);
        }
    }

    fn who(&self, stamp: Stamp) -> String {
        if stamp == BLOCKS {
            "several blocks".to_owned()
        } else if epoch(stamp) < self.block_began {
            let at = self.blocks.partition_point(|&(began, _)| began <= epoch(stamp));
            let [x, y, z] = at.checked_sub(1).map_or([0; 3], |at| self.blocks[at].1);
            format!("block ({x},{y},{z}) warp {}", warp(stamp))
        } else if warp(stamp) == MANY {
            "several warps".to_owned()
        } else {
            format!("warp {}", warp(stamp))
        }
    }
}

/// One access as the shadow sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Note {
    pub address: u64,
    pub bytes: usize,
    pub warp: u32,
    pub lane: Lane,
    /// The instruction.
    pub pc: u32,
}

/// How an access writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writes {
    Plain,
    Atomic,
}

/// What an access ran into: the earlier access's kind, stamp and instruction, at this address.
#[derive(Debug, Clone, Copy)]
pub(super) enum Finding {
    Race { address: u64, what: &'static str, other: &'static str, stamp: Stamp, pc: u32 },
    Lanes { address: u64, what: &'static str, clash: Clash },
    InFlight { address: u64, what: &'static str, pc: u32 },
    Uninitialised { address: u64 },
}

impl Finding {
    pub(super) fn kind(self, space: MemorySpace, clock: &Clock, sites: &[Site]) -> FaultKind {
        let access = |what, who, pc: u32| {
            let site = &sites[pc as usize];
            Box::new(Access { what, who, line: site.line, text: site.text.clone() })
        };
        match self {
            Finding::Race { address, what, other, stamp, pc } => {
                FaultKind::Race { space, address, what, other: access(other, clock.who(stamp), pc) }
            }
            Finding::Lanes { address, what, clash } => {
                let who = format!("lane {} of the same warp", lane_list(clash.lanes));
                FaultKind::Race { space, address, what, other: access(clash.other, who, clash.pc) }
            }
            Finding::InFlight { address, what, pc } => {
                let other = access("unfinished copy", "cp.async".to_owned(), pc);
                FaultKind::Race { space, address, what, other }
            }
            Finding::Uninitialised { address } => FaultKind::Uninitialised { space, address },
        }
    }
}

/// Last writer and last reader of a grain, with their instructions.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    writer: Stamp,
    reader: Stamp,
    writer_pc: u32,
    reader_pc: u32,
}

impl Cell {
    /// A stamp that must not meet an access of `warp` now.
    fn clashes(stamp: Stamp, clock: &Clock, by: u32) -> bool {
        stamp != 0
            && (epoch(stamp) < clock.block_began || stamp == BLOCKS || (epoch(stamp) == clock.now && warp(stamp) != by))
    }

    fn read(&mut self, clock: &Clock, note: &Note, address: u64) -> Option<Finding> {
        let by = note.warp;
        if Cell::clashes(self.writer, clock, by) {
            let (stamp, pc) = (self.writer, self.writer_pc);
            return Some(Finding::Race { address, what: "read", other: "write", stamp, pc });
        }
        let old = self.reader;
        if old == BLOCKS {
            return None;
        }
        self.reader = if old != 0 && epoch(old) < clock.block_began {
            BLOCKS
        } else if epoch(old) == clock.now && warp(old) != by {
            (clock.now << EPOCH_SHIFT) | MANY
        } else {
            (clock.now << EPOCH_SHIFT) | by
        };
        self.reader_pc = note.pc;
        None
    }

    fn write(&mut self, clock: &Clock, note: &Note, address: u64, how: Writes) -> Option<Finding> {
        let by = note.warp;
        let atomic = how == Writes::Atomic;
        let both_atomic = atomic && self.writer & ATOMIC != 0;
        if !both_atomic && Cell::clashes(self.writer, clock, by) {
            let (stamp, pc) = (self.writer, self.writer_pc);
            return Some(Finding::Race { address, what: "write", other: "write", stamp, pc });
        }
        if Cell::clashes(self.reader, clock, by) {
            let (stamp, pc) = (self.reader, self.reader_pc);
            return Some(Finding::Race { address, what: "write", other: "read", stamp, pc });
        }
        let shared_by =
            if both_atomic && epoch(self.writer) == clock.now && warp(self.writer) != by { MANY } else { by };
        self.writer = (clock.now << EPOCH_SHIFT) | if atomic { ATOMIC } else { 0 } | shared_by;
        self.writer_pc = note.pc;
        None
    }
}

fn grains_of(note: &Note, bits: u32) -> std::ops::Range<u64> {
    note.address >> bits..(note.address + note.bytes as u64 + (1 << bits) - 1) >> bits
}

/// The shadow of a block's shared memory.
#[derive(Debug)]
pub(super) struct SharedShadow {
    checks: Checks,
    /// Logarithm of the grain's bytes.
    grain: u32,
    cells: Vec<Cell>,
    /// The same grains, within a warp.
    lane_cells: Vec<LaneCell>,
    /// The cp.async that is still to fill a grain: instruction + 1, or 0.
    in_flight: Vec<u32>,
    any_in_flight: bool,
}

impl SharedShadow {
    pub(super) fn new(bytes: usize, grain: usize, checks: Checks) -> SharedShadow {
        let cells = if checks.races || checks.uninitialised { bytes.div_ceil(grain) } else { 0 };
        SharedShadow {
            checks,
            grain: grain.trailing_zeros(),
            cells: vec![Cell::default(); cells],
            lane_cells: vec![LaneCell::default(); cells],
            in_flight: vec![0; cells],
            any_in_flight: false,
        }
    }

    pub(super) fn begin_block(&mut self) {
        if std::mem::take(&mut self.any_in_flight) {
            self.in_flight.fill(0);
        }
    }

    fn forget(&mut self) {
        self.cells.fill(Cell::default());
    }

    fn grains(&self, note: &Note) -> std::ops::Range<usize> {
        if self.cells.is_empty() {
            return 0..0;
        }
        let range = grains_of(note, self.grain);
        range.start as usize..range.end as usize
    }

    pub(super) fn read(&mut self, clock: &Clock, note: &Note) -> Option<Finding> {
        for at in self.grains(note) {
            let address = (at as u64) << self.grain;
            if self.checks.races && self.in_flight[at] != 0 {
                return Some(Finding::InFlight { address, what: "read", pc: self.in_flight[at] - 1 });
            }
            let cell = &mut self.cells[at];
            if epoch(cell.writer) < clock.block_began {
                if self.checks.uninitialised {
                    return Some(Finding::Uninitialised { address });
                }
                // Another block's: shared memory begins anew with each.
                *cell = Cell {
                    reader: if epoch(cell.reader) < clock.block_began { 0 } else { cell.reader },
                    ..Cell::default()
                };
            }
            if epoch(cell.reader) < clock.block_began {
                cell.reader = 0;
            }
            if !self.checks.races {
                continue;
            }
            if let Some(found) = cell.read(clock, note, address) {
                return Some(found);
            }
            if let Some(clash) = self.lane_cells[at].read(note.lane, note.pc) {
                return Some(Finding::Lanes { address, what: "read", clash });
            }
        }
        None
    }

    pub(super) fn write(&mut self, clock: &Clock, note: &Note, how: Writes) -> Option<Finding> {
        for at in self.grains(note) {
            let address = (at as u64) << self.grain;
            if self.checks.races && self.in_flight[at] != 0 {
                return Some(Finding::InFlight { address, what: "write", pc: self.in_flight[at] - 1 });
            }
            let cell = &mut self.cells[at];
            if epoch(cell.writer) < clock.block_began {
                cell.writer = 0;
            }
            if epoch(cell.reader) < clock.block_began || !self.checks.races {
                cell.reader = 0;
            }
            if !self.checks.races {
                cell.writer = (clock.now << EPOCH_SHIFT) | note.warp;
                continue;
            }
            if let Some(found) = cell.write(clock, note, address, how) {
                return Some(found);
            }
            if let Some(clash) = self.lane_cells[at].write(note.lane, note.pc, how == Writes::Atomic) {
                return Some(Finding::Lanes { address, what: "write", clash });
            }
        }
        None
    }

    /// Finds bytes that this block has not written: the read half of an atomic, whose write half notes the whole.
    pub(super) fn written(&self, clock: &Clock, note: &Note) -> Option<Finding> {
        let mut grains = self.grains(note).filter(|_| self.checks.uninitialised);
        let bad = grains.find(|&at| epoch(self.cells[at].writer) < clock.block_began)?;
        Some(Finding::Uninitialised { address: (bad as u64) << self.grain })
    }

    /// A copy to these bytes begins.
    pub(super) fn begin_copy(&mut self, note: &Note) {
        for at in self.grains(note) {
            self.in_flight[at] = note.pc + 1;
            self.any_in_flight = true;
        }
    }

    /// The copy has landed: from here on it is a write of the warp that waited.
    pub(super) fn end_copy(&mut self, clock: &Clock, note: &Note) -> Option<Finding> {
        for at in self.grains(note) {
            self.in_flight[at] = 0;
        }
        self.write(clock, note, Writes::Plain)
    }
}

/// Bytes of global memory behind one page of cells.
const PAGE: u64 = 2048;

/// The shadow of global memory, of the pages that a launch touches.
#[derive(Debug)]
pub(super) struct GlobalShadow {
    enabled: bool,
    /// Logarithm of the grain's bytes.
    grain: u32,
    index: HashMap<u64, usize>,
    pages: Vec<Vec<Cell>>,
    /// The page looked up last and its place.
    last: (u64, usize),
}

impl GlobalShadow {
    pub(super) fn new(grain: usize, checks: Checks) -> GlobalShadow {
        GlobalShadow {
            enabled: checks.races,
            grain: grain.trailing_zeros(),
            index: HashMap::new(),
            pages: Vec::new(),
            last: (u64::MAX, 0),
        }
    }

    fn cell(&mut self, grain: u64) -> &mut Cell {
        let per_page = PAGE >> self.grain;
        let (page, at) = (grain / per_page, grain % per_page);
        if self.last.0 != page || self.last.1 >= self.pages.len() {
            let next = self.pages.len();
            let place = *self.index.entry(page).or_insert(next);
            if place == next {
                self.pages.push(vec![Cell::default(); per_page as usize]);
            }
            self.last = (page, place);
        }
        &mut self.pages[self.last.1][at as usize]
    }

    fn grains(&self, note: &Note) -> std::ops::Range<u64> {
        if !self.enabled {
            return 0..0;
        }
        grains_of(note, self.grain)
    }

    /// `read_only`: the load promises that nothing writes there during the whole launch.
    pub(super) fn read(&mut self, clock: &Clock, note: &Note, read_only: bool) -> Option<Finding> {
        for grain in self.grains(note) {
            let address = grain << self.grain;
            let cell = self.cell(grain);
            if read_only && cell.writer != 0 {
                let (stamp, pc) = (cell.writer, cell.writer_pc);
                return Some(Finding::Race { address, what: "read-only load", other: "write", stamp, pc });
            }
            if let Some(found) = cell.read(clock, note, address) {
                return Some(found);
            }
        }
        None
    }

    pub(super) fn write(&mut self, clock: &Clock, note: &Note, how: Writes) -> Option<Finding> {
        for grain in self.grains(note) {
            let address = grain << self.grain;
            let found = self.cell(grain).write(clock, note, address, how);
            if found.is_some() {
                return found;
            }
        }
        None
    }
}
