//! Modules and kernels: PTX is parsed by `insula_ptxsim`, launches are checked as the driver checks them, and the
//! interpreter runs them against the device's memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use insula_ptxsim::{Checks, FaultKind, Kernel, Launch, Memory, Module, OutOfBounds, run};

use crate::codes::Code;
use crate::health::Failure;
use crate::journal;
use crate::memory::{BadAddress, Block, Book};

/// Dynamic shared memory that a kernel may use without asking, with its static memory.
const SHARED_DEFAULT: u32 = 48 << 10;
/// The most threads of a block.
pub const THREADS_MAX: u32 = 1024;

/// The most shared memory a block may ask for, static and dynamic: the CUDA guide's table by compute capability.
pub fn shared_max(capability: (i32, i32)) -> u32 {
    match capability {
        (8, 0) | (8, 7) => 163 << 10,
        (8, _) | (12, _) => 99 << 10,
        (9, _) | (10, _) => 227 << 10,
        _ => 64 << 10,
    }
}

/// A kernel of a loaded module.
pub struct Function {
    module: Arc<Module>,
    name: String,
    dynamic_max: AtomicU32,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
}

impl Function {
    /// The kernel called `name` of a module.
    pub fn find(module: &Arc<Module>, name: &str) -> Result<Function, Code> {
        let kernel = module.kernel(name).ok_or(Code::NOT_FOUND)?;
        let dynamic_max = SHARED_DEFAULT.saturating_sub(kernel.shared_bytes() as u32);
        Ok(Function { module: module.clone(), name: name.to_owned(), dynamic_max: AtomicU32::new(dynamic_max) })
    }

    /// The kernel's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kernel.
    pub fn kernel(&self) -> &Kernel {
        self.module.kernel(&self.name).expect("`find` has found it, and a module does not change")
    }

    /// Bytes of static shared memory.
    pub fn static_shared(&self) -> u32 {
        self.kernel().shared_bytes() as u32
    }

    /// The most threads of a block: the launch bounds, or the device's limit.
    pub fn threads_max(&self) -> u32 {
        self.kernel().max_threads().unwrap_or(THREADS_MAX).min(THREADS_MAX)
    }

    /// The most dynamic shared memory of a launch.
    pub fn dynamic_max(&self) -> u32 {
        self.dynamic_max.load(Relaxed)
    }

    /// Allows launches with up to `bytes` of dynamic shared memory, as far as the device has it.
    pub fn set_dynamic_max(&self, bytes: u32, capability: (i32, i32)) -> Result<(), Code> {
        if bytes.saturating_add(self.static_shared()) > shared_max(capability) {
            return Err(Code::INVALID_VALUE);
        }
        self.dynamic_max.store(bytes, Relaxed);
        Ok(())
    }

    /// Refuses a launch that the driver refuses.
    pub fn check(&self, shape: &Shape) -> Result<(), Code> {
        let [x, y, z] = shape.block;
        let threads = x as u64 * y as u64 * z as u64;
        let [_, grid_y, grid_z] = shape.grid;
        let empty = shape.grid.contains(&0) || threads == 0;
        let wide = shape.grid[0] > i32::MAX as u32 || grid_y > 65_535 || grid_z > 65_535;
        if empty || wide || z > 64 || threads > THREADS_MAX as u64 || shape.dynamic_shared > self.dynamic_max() {
            return Err(Code::INVALID_VALUE);
        }
        if threads > self.threads_max() as u64 { Err(Code::LAUNCH_OUT_OF_RESOURCES) } else { Ok(()) }
    }

    /// Runs the kernel to its end.
    pub fn run(&self, shape: &Shape, params: &[u8], book: &Book, checks: Checks) -> Result<(), Failure> {
        let Shape { grid, block, dynamic_shared } = *shape;
        let launch = Launch { kernel: self.kernel(), grid, block, dynamic_shared, params, checks };
        let counts = run(&launch, &View::new(book)).map_err(|fault| {
            let code = match &fault.kind {
                FaultKind::OutOfBounds(_) | FaultKind::BeyondSpace { .. } => Code::ILLEGAL_ADDRESS,
                FaultKind::Misaligned { .. } => Code::MISALIGNED_ADDRESS,
                _ => Code::LAUNCH_FAILED,
            };
            Failure::new(code, fault.to_string())
        })?;
        if journal::wanted() {
            journal::line(&format!("kernel {} {counts:?}", self.name));
        }
        Ok(())
    }
}

/// The memory that was live when the kernel began. Looking it up needs no lock; a block that another stream frees
/// meanwhile reads as poison.
struct View<'a> {
    book: &'a Book,
    blocks: Vec<Arc<Block>>,
    /// Index of the block that was found last: most accesses go where the one before went.
    last: AtomicUsize,
}

impl View<'_> {
    fn new(book: &Book) -> View<'_> {
        View { book, blocks: book.live(), last: AtomicUsize::new(0) }
    }

    fn find(&self, address: u64, bytes: usize) -> Result<(&Block, usize), OutOfBounds> {
        let at = |index: usize| {
            let block = self.blocks.get(index)?;
            Some((&**block, block.offset(address, bytes as u64)?))
        };
        if let Some(found) = at(self.last.load(Relaxed)) {
            return Ok(found);
        }
        let index = self.blocks.partition_point(|block| block.base <= address).wrapping_sub(1);
        let found = at(index).ok_or_else(|| self.miss(address, bytes as u64))?;
        self.last.store(index, Relaxed);
        Ok(found)
    }

    fn miss(&self, address: u64, bytes: u64) -> OutOfBounds {
        let (nearest, freed) = match self.book.explain(address, bytes) {
            BadAddress::Beyond { base, length, .. } => (Some((base, length)), false),
            BadAddress::Freed { base, length, .. } => (Some((base, length)), true),
            BadAddress::Unknown { below, .. } => (below, false),
        };
        OutOfBounds { address, bytes, nearest, freed }
    }
}

impl Memory for View<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), OutOfBounds> {
        let (block, offset) = self.find(address, into.len())?;
        block.words.read(offset, into);
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), OutOfBounds> {
        let (block, offset) = self.find(address, from.len())?;
        block.words.write(offset, from);
        Ok(())
    }
}
