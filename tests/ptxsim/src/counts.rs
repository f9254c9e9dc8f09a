//! What a launch did, counted: the figures of a roofline.

use std::collections::BTreeMap;
use std::ops::{Add, AddAssign};

/// Bytes asked for in one memory space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes loaded by all lanes.
    pub loaded_bytes: u64,
    /// Bytes stored by all lanes.
    pub stored_bytes: u64,
    /// 32-byte sectors that the loads touch, each counted once per warp instruction. 0 for shared memory.
    pub loaded_sectors: u64,
    /// 32-byte sectors that the stores touch. 0 for shared memory.
    pub stored_sectors: u64,
}

/// What a launch did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Warp instructions by opcode with its modifiers, such as `fma.rn.f32`.
    pub instructions: BTreeMap<String, u64>,
    /// Warp instructions in all.
    pub warp_instructions: u64,
    /// Lane instructions: each warp instruction times the lanes that ran it.
    pub lane_instructions: u64,
    /// Float operations: an fma is 2, mma.m16n8k16 is 4096, minima, maxima and signs are 0, every other one is 1.
    pub float_operations: u64,
    /// mma instructions, per warp.
    pub mma: u64,
    /// Global memory, cp.async and atomics included (an atomic loads and stores).
    pub global: Traffic,
    /// Shared memory, cp.async and ldmatrix included.
    pub shared: Traffic,
    /// Local memory (spills and arrays that do not fit registers).
    pub local: Traffic,
    /// Wavefronts of shared memory beyond the fewest possible.
    pub shared_bank_conflicts: u64,
    /// Barriers of the block, counted once per block.
    pub barriers: u64,
    /// Blocks.
    pub blocks: u64,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Traffic) {
        self.loaded_bytes += other.loaded_bytes;
        self.stored_bytes += other.stored_bytes;
        self.loaded_sectors += other.loaded_sectors;
        self.stored_sectors += other.stored_sectors;
    }
}

impl AddAssign<&Counts> for Counts {
    fn add_assign(&mut self, other: &Counts) {
        for (opcode, count) in &other.instructions {
            *self.instructions.entry(opcode.clone()).or_default() += count;
        }
        self.warp_instructions += other.warp_instructions;
        self.lane_instructions += other.lane_instructions;
        self.float_operations += other.float_operations;
        self.mma += other.mma;
        self.global += other.global;
        self.shared += other.shared;
        self.local += other.local;
        self.shared_bank_conflicts += other.shared_bank_conflicts;
        self.barriers += other.barriers;
        self.blocks += other.blocks;
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        *self += &other;
    }
}

impl Add for Counts {
    type Output = Counts;

    fn add(mut self, other: Counts) -> Counts {
        self += &other;
        self
    }
}
