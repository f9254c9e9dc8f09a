//! Buffers on a GPU that go back to their pool when dropped, so that a training loop allocates only while its slots grow.
//!
//! As on the CPU, storage is kept by the width of its rows and is as long as the longest slot is expected to be: memory
//! can be told beforehand, and a slot is never refused because of how earlier ones left the memory cut up. One stream
//! issues everything, so storage may be handed on at once: who had it before is done with it by the time it is written.

use std::{
    collections::BTreeMap,
    mem::size_of,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use super::device::{Device, Region};
use crate::error::KernelError;

/// Rows that are few get no more than they need.
const FEW: usize = 64;
/// What every allocation is a multiple of, bytes: vectors of sixteen bytes may be read past a buffer's last value.
const GRAIN: usize = 256;

/// What storage may be used for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Rows of this many bytes.
    Rows(usize),
    /// Anything, by the power of two that holds it.
    Scratch(usize),
}

/// Free storage of one device.
#[derive(Debug)]
pub(crate) struct Pool {
    device: Arc<Device>,
    free: Mutex<BTreeMap<Kind, Vec<Region>>>,
    expected: AtomicUsize,
    taken: AtomicU64,
}

/// Storage in use.
#[derive(Debug)]
pub(crate) struct Block {
    region: Option<Region>,
    address: u64,
    kind: Kind,
    pool: Arc<Pool>,
}

impl Pool {
    pub(crate) fn new(device: Arc<Device>) -> Self {
        Self { device, free: Mutex::default(), expected: AtomicUsize::new(0), taken: AtomicU64::new(0) }
    }

    pub(crate) fn fresh_buffers(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Bytes that lie here to be used again.
    pub(crate) fn idle_bytes(&self) -> usize {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.values().flatten().map(Region::bytes).sum()
    }

    /// From now on storage for more than a few rows has room for this many.
    pub(crate) fn expect(&self, rows: usize) {
        self.expected.fetch_max(rows, Ordering::Relaxed);
    }

    /// `rows` rows of `row_bytes` each.
    pub(crate) fn rows(self: &Arc<Self>, rows: usize, row_bytes: usize) -> Result<Block, KernelError> {
        let room = if rows > FEW { rows.max(self.expected.load(Ordering::Relaxed)) } else { rows };
        self.block(Kind::Rows(row_bytes), rows * row_bytes, room * row_bytes)
    }

    /// So many bytes for a while.
    pub(crate) fn scratch(self: &Arc<Self>, bytes: usize) -> Result<Block, KernelError> {
        let room = bytes.max(1).next_power_of_two();
        self.block(Kind::Scratch(room), bytes, room)
    }

    /// So many bytes for good: exactly as many, since they do not come back soon.
    pub(crate) fn kept(self: &Arc<Self>, bytes: usize) -> Result<Block, KernelError> {
        self.block(Kind::Scratch(bytes), bytes, bytes)
    }

    fn block(self: &Arc<Self>, kind: Kind, bytes: usize, room: usize) -> Result<Block, KernelError> {
        let region = match self.reuse(kind, bytes) {
            Some(region) => region,
            None => self.fresh(room.max(1).next_multiple_of(GRAIN))?,
        };
        Ok(Block { address: region.address(), region: Some(region), kind, pool: Arc::clone(self) })
    }

    /// The smallest free region of the kind that is long enough.
    fn reuse(&self, kind: Kind, bytes: usize) -> Option<Region> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let regions = free.get_mut(&kind)?;
        let fits = regions.iter().enumerate().filter(|(_, region)| region.bytes() >= bytes);
        let (place, _) = fits.min_by_key(|(_, region)| region.bytes())?;
        Some(regions.swap_remove(place))
    }

    /// New storage; where there is no room, what lies free is given back first.
    fn fresh(&self, bytes: usize) -> Result<Region, KernelError> {
        self.taken.fetch_add(1, Ordering::Relaxed);
        match self.device.region(bytes) {
            Err(KernelError::NoRoom { .. }) => {
                self.free.lock().unwrap_or_else(PoisonError::into_inner).clear();
                self.device.synchronise()?;
                self.device.region(bytes)
            }
            other => other,
        }
    }
}

impl Block {
    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(region) = self.region.take() {
            let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.entry(self.kind).or_default().push(region);
        }
    }
}

/// What a buffer's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    Bf16,
}

impl Element {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::Bf16 => 2,
        }
    }
}

/// Values on a GPU: float32, or bfloat16 where they are what one product leaves to the next.
#[derive(Debug)]
pub struct CudaBuffer {
    block: Block,
    len: usize,
    element: Element,
    /// float32 values rounded for a product, until they change.
    rounded: OnceLock<Block>,
}

impl CudaBuffer {
    pub(crate) fn new(block: Block, len: usize, element: Element) -> Self {
        Self { block, len, element, rounded: OnceLock::new() }
    }

    /// How many values.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn element(&self) -> Element {
        self.element
    }

    /// Where it begins, to be read.
    pub(crate) fn address(&self) -> u64 {
        self.block.address()
    }

    /// Where it begins, to be written.
    pub(crate) fn address_mut(&mut self) -> u64 {
        self.rounded.take();
        self.block.address()
    }

    /// Where its values lie as bfloat16; `round` makes them from float32.
    pub(crate) fn rounded(&self, round: impl FnOnce() -> Result<Block, KernelError>) -> Result<u64, KernelError> {
        if self.element == Element::Bf16 {
            return Ok(self.address());
        }
        if let Some(block) = self.rounded.get() {
            return Ok(block.address());
        }
        let block = round()?;
        Ok(self.rounded.get_or_init(|| block).address())
    }

    /// Its address, having checked that it is of this kind and at least so long.
    ///
    /// # Panics
    /// When it is not: the caller broke an invariant.
    pub(crate) fn of(&self, element: Element, len: usize) -> u64 {
        assert_eq!(self.element, element, "kind of a buffer's values");
        assert!(self.len >= len, "a buffer of {} values, {len} wanted", self.len);
        self.address()
    }

    /// As [`CudaBuffer::of`], to be written.
    pub(crate) fn of_mut(&mut self, element: Element, len: usize) -> u64 {
        self.of(element, len);
        self.address_mut()
    }
}

/// u32 values on a GPU.
#[derive(Debug)]
pub struct CudaIndices {
    pub(crate) block: Block,
    pub(crate) len: usize,
}

impl CudaIndices {
    pub(crate) fn address(&self) -> u64 {
        self.block.address()
    }
}
