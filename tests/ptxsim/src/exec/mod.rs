//! Running a launch: blocks one after another, the warps of a block in turn from barrier to barrier.

mod access;
mod alu;
mod banks;
mod collective;
mod convert;
mod copies;
mod float;
mod lane_shadow;
mod shadow;
mod warp;

use crate::counts::Counts;
use crate::fault::{Fault, FaultKind, MemorySpace};
use crate::launch::{Launch, Memory};
use crate::module::Kernel;
use crate::program::{Code, Logic, Program, Reduction};
use shadow::{Clock, GlobalShadow, SharedShadow};
use warp::{Stop, Warp};

/// What an instruction did wrong and in which lanes; the place is added by the block loop.
#[derive(Debug)]
struct Trouble {
    kind: FaultKind,
    lanes: u32,
}

type Outcome<T = ()> = Result<T, Box<Trouble>>;

fn trouble<T>(lanes: u32, kind: FaultKind) -> Outcome<T> {
    Err(Box::new(Trouble { kind, lanes }))
}

/// The lanes of a mask, lowest first.
fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = left.trailing_zeros() as usize;
        left &= left.wrapping_sub(1);
        (lane < 32).then_some(lane)
    })
}

/// The memory and the books that the warps of a block share.
struct Env<'l> {
    launch: &'l Launch<'l>,
    program: &'l Program,
    memory: &'l dyn Memory,
    shared: Vec<u8>,
    shared_shadow: SharedShadow,
    global_shadow: GlobalShadow,
    clock: Clock,
    /// Warp and lane instructions by instruction.
    tally: Vec<(u64, u64)>,
    counts: Counts,
    block: [u32; 3],
}

/// The most threads of a block on every architecture.
const THREADS_MAX: u32 = 1024;
/// The most shared memory that any of the architectures gives a block, in bytes (227 KiB).
const SHARED_MAX: usize = 227 * 1024;

/// Runs a launch to its end.
///
/// # Errors
/// The first fault; memory keeps what was written until then.
pub fn run(launch: &Launch<'_>, memory: &dyn Memory) -> Result<Counts, Fault> {
    let kernel = launch.kernel;
    check_launch(launch).map_err(|why| Fault {
        kind: FaultKind::BadLaunch(why),
        kernel: kernel.name.clone(),
        block: [0; 3],
        warp: 0,
        lanes: 0,
        line: 0,
        text: String::new(),
    })?;
    let program = &kernel.program;
    let shared_bytes = kernel.shared_bytes + launch.dynamic_shared as usize;
    let mut env = Env {
        launch,
        program,
        memory,
        shared: vec![0xff; shared_bytes],
        shared_shadow: SharedShadow::new(shared_bytes, program.shared_grain, launch.checks),
        global_shadow: GlobalShadow::new(program.global_grain, launch.checks),
        clock: Clock::default(),
        tally: vec![(0, 0); program.instructions.len()],
        counts: Counts::default(),
        block: [0; 3],
    };
    let threads: u32 = launch.block.iter().product();
    let mut warps: Vec<Warp> = (0..threads.div_ceil(32)).map(|index| Warp::new(program, launch, index)).collect();
    for z in 0..launch.grid[2] {
        for y in 0..launch.grid[1] {
            for x in 0..launch.grid[0] {
                env.block = [x, y, z];
                env.run_block(&mut warps)?;
            }
        }
    }
    Ok(env.into_counts())
}

fn check_launch(launch: &Launch<'_>) -> Result<(), String> {
    let threads = launch.block.iter().try_fold(1_u32, |product, &n| product.checked_mul(n)).unwrap_or(u32::MAX);
    let Kernel { max_threads, shared_bytes, .. } = launch.kernel;
    if launch.grid.contains(&0) || threads == 0 {
        return Err(format!("grid {:?} of blocks {:?} is empty", launch.grid, launch.block));
    }
    if launch.grid[0] > i32::MAX as u32 || launch.grid[1] > 65535 || launch.grid[2] > 65535 {
        return Err(format!("grid {:?} has more than 2147483647, 65535, 65535 blocks", launch.grid));
    }
    if threads > THREADS_MAX || launch.block[2] > 64 {
        return Err(format!("a block of {:?} has more than {THREADS_MAX} threads, or 64 along z", launch.block));
    }
    if let Some(max) = max_threads.filter(|&max| threads > max) {
        return Err(format!("{threads} threads, the kernel was compiled for {max}"));
    }
    let shared = shared_bytes + launch.dynamic_shared as usize;
    if shared > SHARED_MAX {
        return Err(format!("{shared} bytes of shared memory, a block has at most {SHARED_MAX}"));
    }
    let (given, wanted) = (launch.params.len(), launch.kernel.param_bytes());
    if given != wanted {
        return Err(format!("{given} parameter bytes, the kernel takes {wanted}"));
    }
    Ok(())
}

impl Env<'_> {
    /// An instruction that was not run after all: its lanes wait for others.
    fn uncount(&mut self, at: usize, mask: u32) {
        self.tally[at].0 -= 1;
        self.tally[at].1 -= u64::from(mask.count_ones());
    }

    fn run_block(&mut self, warps: &mut [Warp]) -> Result<(), Fault> {
        self.counts.blocks += 1;
        self.clock.begin_block(self.block, &mut self.shared_shadow, &mut self.global_shadow);
        self.shared_shadow.begin_block();
        for warp in warps.iter_mut() {
            warp.begin_block(self.block);
        }
        loop {
            for warp in warps.iter_mut().filter(|warp| warp.alive != 0) {
                let stop = warp.run(self);
                if let Err(trouble) = stop {
                    return Err(self.fault(warp, *trouble));
                }
                if let Ok(Stop::Exited) = stop {
                    warp.alive = 0;
                }
            }
            if warps.iter().all(|warp| warp.alive == 0) {
                return Ok(());
            }
            self.release(warps)?;
        }
    }

    /// All warps have stopped at a barrier, or some have exited, which is a fault.
    fn release(&mut self, warps: &mut [Warp]) -> Result<(), Fault> {
        let Some(waiting) = warps.iter().find(|warp| warp.alive != 0) else { return Ok(()) };
        let pc = waiting.pc;
        let odd = warps.iter().find(|warp| warp.alive == 0 || warp.pc != pc);
        if let Some(odd) = odd {
            let how = if odd.alive == 0 {
                format!("warp {} has exited", odd.index)
            } else {
                let site = &self.program.sites[odd.pc as usize];
                format!("warp {} waits at line {} `{}`", odd.index, site.line, site.text)
            };
            let trouble = Trouble { kind: FaultKind::BarrierDivergence(how), lanes: waiting.alive };
            return Err(self.fault(waiting, trouble));
        }
        self.counts.barriers += 1;
        self.clock.pass_barrier(&mut self.shared_shadow, &mut self.global_shadow);
        if let Code::Barrier { reduction } = &self.program.instructions[pc as usize].code {
            reduce(warps, *reduction);
        }
        for warp in warps.iter_mut() {
            warp.pc += 1;
            warp.meet();
        }
        Ok(())
    }

    fn fault(&self, warp: &Warp, trouble: Trouble) -> Fault {
        let site = &self.program.sites[warp.pc as usize];
        Fault {
            kind: trouble.kind,
            kernel: self.launch.kernel.name.clone(),
            block: self.block,
            warp: warp.index,
            lanes: trouble.lanes,
            line: site.line,
            text: site.text.clone(),
        }
    }

    fn into_counts(self) -> Counts {
        let mut counts = self.counts;
        for ((instruction, site), &(warps, lanes)) in
            self.program.instructions.iter().zip(&self.program.sites).zip(&self.tally)
        {
            if warps == 0 {
                continue;
            }
            match counts.instructions.get_mut(&site.opcode) {
                Some(count) => *count += warps,
                None => {
                    counts.instructions.insert(site.opcode.clone(), warps);
                }
            }
            counts.warp_instructions += warps;
            counts.lane_instructions += lanes;
            counts.float_operations += lanes * site.float_operations;
            if matches!(instruction.code, Code::Mma { .. }) {
                counts.mma += warps;
            }
        }
        counts
    }

    /// The bytes of param or const memory that an access of `bytes` at `address` reads.
    fn constant_space(&self, space: MemorySpace) -> &[u8] {
        if space == MemorySpace::Param { self.launch.params } else { &self.program.constants }
    }
}

/// bar.red: combines the predicate of all threads and gives the result to all of them.
fn reduce(warps: &mut [Warp], reduction: Reduction) {
    let set_of = |warp: &Warp, of| warp.predicate(of) & warp.alive;
    match reduction {
        Reduction::None => {}
        Reduction::Popc { to, of } => {
            let count = warps.iter().map(|warp| set_of(warp, of).count_ones()).sum();
            for warp in warps.iter_mut() {
                warp.registers.w32[to as usize] = [count; 32];
            }
        }
        Reduction::Logic { op, to, of } => {
            let result = if op == Logic::And {
                warps.iter().all(|warp| set_of(warp, of) == warp.alive)
            } else {
                warps.iter().any(|warp| set_of(warp, of) != 0)
            };
            for warp in warps.iter_mut() {
                warp.registers.predicates[to as usize] = if result { u32::MAX } else { 0 };
            }
        }
    }
}
