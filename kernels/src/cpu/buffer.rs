//! Buffers that go back to their arena when dropped, so that a training loop allocates only while sizes still grow.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Free storage of one backend.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    free: Mutex<Vec<Vec<f32>>>,
}

/// float32 values in host memory, returned to their arena on drop.
#[derive(Debug)]
pub struct CpuBuffer {
    storage: Vec<f32>,
    len: usize,
    arena: Arc<Arena>,
}

impl Arena {
    /// A buffer of `len` values, contents unspecified: the tightest free storage at most twice too long, else fresh
    /// storage in place of the longest one that is too short (which bounds the arena by the most buffers ever alive).
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> CpuBuffer {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |storage: &Vec<f32>| storage.len() >= len && storage.len() / 2 <= len;
        let tightest = (0..free.len()).filter(|&i| fits(&free[i])).min_by_key(|&i| free[i].len());
        let storage = match tightest {
            Some(i) => free.swap_remove(i),
            None => {
                let outgrown = (0..free.len()).filter(|&i| free[i].len() < len).max_by_key(|&i| free[i].len());
                if let Some(i) = outgrown {
                    drop(free.swap_remove(i));
                }
                drop(free);
                vec![0.0; len]
            }
        };
        CpuBuffer { storage, len, arena: Arc::clone(self) }
    }
}

impl Drop for CpuBuffer {
    fn drop(&mut self) {
        let storage = std::mem::take(&mut self.storage);
        self.arena.free.lock().unwrap_or_else(PoisonError::into_inner).push(storage);
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
    fn storage_is_reused_and_replaced_rather_than_hoarded() {
        let arena = Arc::new(Arena::default());
        let address = arena.take(100).as_ptr();
        assert_eq!(arena.take(60).as_ptr(), address);
        drop(arena.take(300));
        let lengths: Vec<usize> = arena.free.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(lengths, [300]);
    }
}
