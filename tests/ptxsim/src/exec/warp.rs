//! One warp: its registers, its groups of lanes, its instruction loop.
//!
//! Lanes that stand at the same instruction form a group. The group with the lowest instruction runs, and groups that
//! meet become one. For code laid out in its structure's order, which compilers emit, that is where the branches of an
//! `if` or the laps of a loop join again. Where code jumps backwards out of a loop, a group may come to a warp-wide
//! instruction before its other members do: it stands there, as on hardware, until they have come. When none can come any
//! more, or one of them exits, that is a fault. (Hardware lets the others go on when a member exits; a kernel that lives
//! by that is refused here.)

use super::lane_shadow::Lane;
use super::shadow::Note;
use super::{Env, Outcome, Trouble, alu, collective, trouble};
use crate::fault::FaultKind;
use crate::launch::Launch;
use crate::program::{Code, PredSource, Program, Special};

/// The three register files, one row of 32 lanes a register.
#[derive(Debug)]
pub(super) struct Registers {
    pub w32: Vec<[u32; 32]>,
    pub w64: Vec<[u64; 32]>,
    pub predicates: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Warp {
    pub index: u32,
    pub registers: Registers,
    /// `.local` memory, one thread's after another's.
    pub local: Vec<u8>,
    /// Which bytes of `local` this block has written.
    pub local_written: Vec<bool>,
    /// Lanes that have threads.
    present: u32,
    /// Lanes that have not exited.
    pub alive: u32,
    /// The running group.
    active: u32,
    pub pc: u32,
    /// How often the lanes have met: at a barrier, a bar.warp.sync, or where a block begins.
    meetings: u32,
    /// The other groups.
    waiting: Vec<Group>,
    pub copies: super::copies::Copies,
    /// Rows of special registers that differ from block to block: row, axis.
    block_rows: Vec<(u32, usize)>,
}

/// Lanes that stand at one instruction.
#[derive(Debug, Clone, Copy)]
struct Group {
    pc: u32,
    lanes: u32,
    /// The lanes that the instruction needs, where some of them have not come yet; else 0.
    needed: u32,
}

impl Group {
    fn stands(&self) -> bool {
        self.needed != 0
    }
}

/// Why a warp's loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Barrier,
    Exited,
}

impl Warp {
    pub(super) fn new(program: &Program, launch: &Launch<'_>, index: u32) -> Warp {
        let files = &program.files;
        let mut registers = Registers {
            w32: vec![[0; 32]; files.rows32],
            w64: vec![[0; 32]; files.rows64],
            predicates: vec![0; files.predicates],
        };
        for &(row, value) in &files.constants32 {
            registers.w32[row as usize] = [value; 32];
        }
        for &(row, value) in &files.constants64 {
            registers.w64[row as usize] = [value; 32];
        }
        let mut block_rows = Vec::new();
        for &(row, special) in &files.specials {
            if let Special::Block(axis) = special {
                block_rows.push((row, axis));
            }
            registers.w32[row as usize] = std::array::from_fn(|lane| special_value(special, launch, index, lane));
        }
        let threads: u32 = launch.block.iter().product();
        let here = (threads - index * 32).min(32);
        let local = program.local_bytes * 32;
        Warp {
            index,
            registers,
            local: vec![0xff; local],
            local_written: vec![false; local],
            present: if here == 32 { u32::MAX } else { (1 << here) - 1 },
            alive: 0,
            active: 0,
            pc: 0,
            meetings: 0,
            waiting: Vec::new(),
            copies: super::copies::Copies::default(),
            block_rows,
        }
    }

    pub(super) fn begin_block(&mut self, block: [u32; 3]) {
        for &(row, axis) in &self.block_rows {
            self.registers.w32[row as usize] = [block[axis]; 32];
        }
        self.alive = self.present;
        self.active = self.present;
        self.pc = 0;
        self.meet();
        self.waiting.clear();
        self.copies = super::copies::Copies::default();
        self.local_written.fill(false);
    }

    /// The lanes have met: what they did to shared memory before is ordered before what they do from here on. Part of
    /// the lanes meeting counts as all of them, so that a race with the others goes unseen.
    pub(super) fn meet(&mut self) {
        self.meetings = self.meetings.wrapping_add(1);
    }

    /// An access of the present instruction, as the shadows note it.
    pub(super) fn note(&self, lane: u32, address: u64, bytes: usize) -> Note {
        // A block has at most 32 warps; the top bit keeps the interval from being 0.
        let interval = self.meetings << 5 | self.index | 1 << 31;
        Note { address, bytes, warp: self.index, lane: Lane { number: lane, interval }, pc: self.pc }
    }

    /// The lanes in which a predicate operand is true.
    pub(super) fn predicate(&self, source: PredSource) -> u32 {
        self.registers.predicate(source)
    }

    /// Runs until all lanes have exited or a barrier is reached.
    pub(super) fn run(&mut self, env: &mut Env<'_>) -> Outcome<Stop> {
        let program = env.program;
        loop {
            if !self.waiting.is_empty() {
                self.converge();
            }
            let at = self.pc as usize;
            let instruction = &program.instructions[at];
            let mut mask = self.active;
            if let Some(guard) = instruction.guard {
                mask &= self.predicate(PredSource { row: guard.row, negated: guard.negated });
            }
            let tally = &mut env.tally[at];
            tally.0 += 1;
            tally.1 += u64::from(mask.count_ones());
            match &instruction.code {
                Code::Branch { target, uniform } => {
                    self.branch(mask, *target, *uniform)?;
                    continue;
                }
                Code::Exit => {
                    if self.exit(program, mask)? {
                        return Ok(Stop::Exited);
                    }
                    continue;
                }
                _ if mask == 0 => {}
                Code::Barrier { .. } => match self.meet_barrier(mask) {
                    Err(_) if self.stand(self.present) => env.uncount(at, mask),
                    met => return met.map(|()| Stop::Barrier),
                },
                code => match self.execute(env, code, mask) {
                    Err(trouble) if self.stands_for(&trouble) => env.uncount(at, mask),
                    done => done?,
                },
            }
            if self.active != 0 {
                self.pc += 1;
            }
        }
    }

    fn execute(&mut self, env: &mut Env<'_>, code: &Code, mask: u32) -> Outcome {
        match code {
            Code::Load { space, read_only, to, from } => env.load(self, mask, *space, *read_only, to, from),
            Code::Store { space, from, to } => env.store(self, mask, *space, from, to),
            Code::Atomic { space, op, of, to, address, a, b } => {
                env.atomic(self, mask, *space, (*op, *of), *to, address, (*a, *b))
            }
            Code::CopyAsync { to, from, bytes, source_bytes } => {
                env.copy_async(self, mask, to, from, usize::from(*bytes), *source_bytes)
            }
            Code::CopyCommit => {
                self.copies.commit(mask);
                Ok(())
            }
            Code::CopyWait { pending } => env.copy_wait(self, mask, *pending),
            Code::LoadMatrix { transposed, count, to, from } => {
                env.load_matrix(self, mask, *transposed, &to[..usize::from(*count)], from)
            }
            Code::Mma { to, a, b, c } => collective::mma(self, mask, to, a, b, c),
            Code::Shuffle { .. } | Code::Vote { .. } | Code::Reduce { .. } | Code::SyncWarp { .. } => {
                collective::execute(self, code, mask)
            }
            Code::ActiveMask { to } => {
                for lane in super::lanes(mask) {
                    self.registers.w32[*to as usize][lane] = self.active;
                }
                Ok(())
            }
            Code::Fence => Ok(()),
            _ => {
                alu::execute(&mut self.registers, code, mask);
                Ok(())
            }
        }
    }

    /// Makes the group with the lowest instruction the running one and joins those that stand there.
    fn converge(&mut self) {
        loop {
            let here = |group: &Group| self.active != 0 && group.pc == self.pc;
            let order = |group: &Group| (!here(group), group.stands(), group.pc);
            let first = self.waiting.iter().enumerate().min_by_key(|(_, group)| order(group));
            let Some((at, &group)) = first else { return };
            if self.active != 0 && group.pc != self.pc && (group.stands() || group.pc > self.pc) {
                return;
            }
            self.waiting.swap_remove(at);
            if self.active == 0 {
                (self.pc, self.active) = (group.pc, group.lanes);
            } else if group.pc == self.pc {
                self.active |= group.lanes;
            } else {
                self.waiting.push(Group { pc: self.pc, lanes: self.active, needed: 0 });
                (self.pc, self.active) = (group.pc, group.lanes);
            }
        }
    }

    /// Leaves the running group where it is until others come; false when no other group can move.
    fn stand(&mut self, needed: u32) -> bool {
        if self.waiting.iter().all(Group::stands) {
            return false;
        }
        self.waiting.push(Group { pc: self.pc, lanes: self.active, needed });
        self.active = 0;
        true
    }

    /// Whether an instruction failed only because lanes are still to come.
    fn stands_for(&mut self, trouble: &Trouble) -> bool {
        match trouble.kind {
            FaultKind::NotConverged { needed, .. } => self.stand(needed),
            _ => false,
        }
    }

    fn branch(&mut self, taken: u32, target: u32, uniform: bool) -> Outcome {
        if taken == self.active {
            self.pc = target;
        } else if taken == 0 {
            self.pc += 1;
        } else if uniform {
            return trouble(taken, FaultKind::NotConverged { active: taken, needed: self.active });
        } else {
            self.waiting.push(Group { pc: target, lanes: taken, needed: 0 });
            self.active &= !taken;
            self.pc += 1;
        }
        Ok(())
    }

    /// Ends the lanes of the mask; true when none is left. Lanes that others stand waiting for must not end.
    fn exit(&mut self, program: &Program, mask: u32) -> Outcome<bool> {
        self.alive &= !mask;
        self.active &= !mask;
        if let Some(&Group { pc, lanes, needed }) = self.waiting.iter().find(|group| group.needed & mask != 0) {
            self.pc = pc;
            if let Code::Barrier { .. } = program.instructions[pc as usize].code {
                self.meet_barrier(lanes)?;
            }
            return trouble(lanes, FaultKind::NotConverged { active: lanes, needed });
        }
        if self.alive == 0 {
            return Ok(true);
        }
        if self.active != 0 {
            self.pc += 1;
        }
        Ok(false)
    }

    /// All threads of the warp have to be here, none exited or elsewhere.
    fn meet_barrier(&self, mask: u32) -> Outcome {
        if mask == self.present {
            return Ok(());
        }
        let exited = self.present & !self.alive;
        let how = format!("of warp {}, lanes {mask:08x} come, lanes {exited:08x} have exited", self.index);
        trouble(mask, FaultKind::BarrierDivergence(how))
    }

    /// A warp-wide instruction has to be run by exactly its members, as far as they have not exited.
    pub(super) fn check_members(&self, mask: u32, members: u32) -> Outcome {
        let row = &self.registers.w32[members as usize];
        for lane in super::lanes(mask) {
            let needed = row[lane] & self.alive;
            if needed != mask {
                return trouble(mask, FaultKind::NotConverged { active: mask, needed });
            }
        }
        Ok(())
    }

    /// mma and ldmatrix need all 32 lanes.
    pub(super) fn check_full(mask: u32) -> Outcome {
        if mask == u32::MAX {
            Ok(())
        } else {
            trouble(mask, FaultKind::NotConverged { active: mask, needed: u32::MAX })
        }
    }
}

impl Registers {
    pub(super) fn predicate(&self, source: PredSource) -> u32 {
        let bits = self.predicates[source.row as usize];
        if source.negated { !bits } else { bits }
    }

    /// Sets a predicate in the lanes of the mask.
    pub(super) fn set_predicate(&mut self, row: u32, mask: u32, bits: u32) {
        let old = &mut self.predicates[row as usize];
        *old = (*old & !mask) | (bits & mask);
    }
}

fn special_value(special: Special, launch: &Launch<'_>, warp: u32, lane: usize) -> u32 {
    let [x, y, z] = launch.block;
    let lane = lane as u32;
    let thread = warp * 32 + lane;
    match special {
        Special::Thread(axis) => [thread % x, thread / x % y, thread / (x * y) % z][axis],
        Special::Threads(axis) => launch.block[axis],
        // Set when a block begins.
        Special::Block(_) => 0,
        Special::Blocks(axis) => launch.grid[axis],
        Special::Lane => lane,
        Special::Warp => warp,
        Special::LaneMaskEq => 1 << lane,
        Special::LaneMaskLt => (1 << lane) - 1,
        Special::LaneMaskLe => u32::MAX >> (31 - lane),
        Special::LaneMaskGe => u32::MAX << lane,
        Special::LaneMaskGt => !(u32::MAX >> (31 - lane)),
    }
}
