//! Buffers that go back to their arena when dropped, so that a training loop allocates only while its slots still grow.
//!
//! Storage is kept by the width of its rows. A slot of a given model needs the same number of buffers of each width,
//! whatever its number of rows, so the arena holds exactly the most buffers that were alive at once, each as long as the
//! longest slot made it: memory can be told beforehand. Room for the longest slot to be expected is asked for at once, which
//! costs address space, but no memory until it is written to.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Rows that are few: a batch of decoded tokens, supervised rows of a slot. Such matrices get no more than they need.
const FEW: usize = 64;

/// Free storage of one backend.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    free: Mutex<BTreeMap<Kind, Vec<Vec<f32>>>>,
    /// Rows that are expected of the longest matrices.
    expected: AtomicUsize,
    fresh: AtomicU64,
}

/// What storage may be used for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Rows of this width.
    Rows(usize),
    /// Packed operands and tiles, by the power of two that holds them.
    Scratch(usize),
}

/// float32 values in host memory, returned to their arena on drop.
#[derive(Debug)]
pub struct CpuBuffer {
    storage: Vec<f32>,
    len: usize,
    kind: Kind,
    arena: Arc<Arena>,
}

impl Arena {
    /// A matrix of these dimensions, contents unspecified.
    pub(crate) fn rows(self: &Arc<Self>, [rows, width]: [usize; 2]) -> CpuBuffer {
        let room = if rows > FEW { rows.max(self.expected.load(Ordering::Relaxed)) } else { rows };
        self.buffer(Kind::Rows(width), rows * width, room * width)
    }

    /// From now on storage for more than a few rows has room for this many.
    pub(crate) fn expect(&self, rows: usize) {
        self.expected.fetch_max(rows, Ordering::Relaxed);
    }

    /// Room for `len` values of any meaning, contents unspecified.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> CpuBuffer {
        let room = len.next_power_of_two();
        self.buffer(Kind::Scratch(room), len, room)
    }

    /// How many times storage came from the system.
    pub(crate) fn fresh(&self) -> u64 {
        self.fresh.load(Ordering::Relaxed)
    }

    /// The shortest free storage that holds `len`, else fresh storage of `room` in place of one that is too short.
    fn buffer(self: &Arc<Self>, kind: Kind, len: usize, room: usize) -> CpuBuffer {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let storages = free.entry(kind).or_default();
        let tightest = (0..storages.len()).filter(|&i| storages[i].len() >= len).min_by_key(|&i| storages[i].len());
        let storage = match tightest {
            Some(i) => storages.swap_remove(i),
            None => {
                let outgrown = storages.pop();
                drop(free);
                drop(outgrown);
                self.fresh.fetch_add(1, Ordering::Relaxed);
                vec![0.0; room]
            }
        };
        CpuBuffer { storage, len, kind, arena: Arc::clone(self) }
    }
}

impl CpuBuffer {
    /// The values, which do not go back to the arena.
    pub(crate) fn into_vec(mut self) -> Vec<f32> {
        let mut values = std::mem::take(&mut self.storage);
        values.truncate(self.len);
        values
    }
}

impl Drop for CpuBuffer {
    fn drop(&mut self) {
        let storage = std::mem::take(&mut self.storage);
        let mut free = self.arena.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.entry(self.kind).or_default().push(storage);
    }
}

impl Deref for CpuBuffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.storage[..self.len]
    }
}

impl DerefMut for CpuBuffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.storage[..self.len]
    }
}

/// u32 values in host memory.
#[derive(Debug, Clone)]
pub struct CpuIndices(pub(crate) Vec<u32>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_is_reused_for_its_width_and_replaced_where_it_is_too_short() {
        let arena = Arc::new(Arena::default());
        let address = arena.rows([100, 3]).as_ptr();
        assert_eq!(arena.rows([60, 3]).as_ptr(), address);
        let (kept, other) = (arena.rows([100, 3]), arena.rows([100, 4]));
        assert_eq!((kept.as_ptr(), arena.fresh()), (address, 2));
        assert_ne!(other.as_ptr(), address);
        drop((kept, other));
        drop(arena.rows([300, 3]));
        assert_eq!(arena.fresh(), 3);
        let lengths = |kind| arena.free.lock().unwrap()[&kind].iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!((lengths(Kind::Rows(3)), lengths(Kind::Rows(4))), (vec![300 * 3], vec![100 * 4]));
        arena.expect(1000);
        drop((arena.rows([400, 3]), arena.rows([10, 5])));
        assert_eq!((lengths(Kind::Rows(3)), lengths(Kind::Rows(5))), (vec![1000 * 3], vec![10 * 5]));
    }
}
