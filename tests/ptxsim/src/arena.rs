//! A global memory for tests: allocations with red zones between them and poison inside them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;

use crate::fault::OutOfBounds;
use crate::launch::Memory;

/// Where the first allocation lies: high enough that a null pointer with an offset hits nothing.
const FIRST: u64 = 0x7000_0000_0000;
/// Alignment of every allocation, as cudaMalloc's.
const ALIGN: u64 = 256;
/// Bytes that belong to nobody after each allocation.
const RED_ZONE: u64 = 4096;
/// What fresh memory holds: a NaN as float32, bf16 and f16.
const POISON: u8 = 0xff;

/// Allocations of global memory. Addresses are never used twice, so a stale pointer is always found out.
#[derive(Debug, Default)]
pub struct Arena {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    live: BTreeMap<u64, Vec<u8>>,
    freed: BTreeMap<u64, u64>,
    used: u64,
}

impl Arena {
    /// An empty arena.
    pub fn new() -> Arena {
        Arena::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change to the maps is one call, so a panic elsewhere leaves them whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `bytes` of poisoned memory at an address that is a multiple of 256.
    pub fn alloc(&self, bytes: usize) -> u64 {
        let mut inner = self.inner();
        let address = FIRST + inner.used;
        inner.used += (bytes as u64).next_multiple_of(ALIGN) + RED_ZONE;
        inner.live.insert(address, vec![POISON; bytes]);
        address
    }

    /// A new allocation that holds `data`.
    pub fn upload<T: Pod>(&self, data: &[T]) -> u64 {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let address = self.alloc(bytes.len());
        self.inner().live.insert(address, bytes.to_vec());
        address
    }

    /// `count` values from `address` on.
    ///
    /// # Errors
    /// When they are not all within one live allocation.
    pub fn download<T: Pod>(&self, address: u64, count: usize) -> Result<Vec<T>, OutOfBounds> {
        let mut values = vec![T::zeroed(); count];
        self.read(address, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Overwrites what lies at `address`.
    ///
    /// # Errors
    /// When the data does not fit within one live allocation.
    pub fn put<T: Pod>(&self, address: u64, data: &[T]) -> Result<(), OutOfBounds> {
        self.write(address, bytemuck::cast_slice(data))
    }

    /// Gives an allocation back.
    ///
    /// # Errors
    /// When no live allocation begins at `address`.
    pub fn free(&self, address: u64) -> Result<(), OutOfBounds> {
        let mut inner = self.inner();
        match inner.live.remove(&address) {
            Some(data) => {
                inner.freed.insert(address, data.len() as u64);
                Ok(())
            }
            None => Err(inner.out_of_bounds(address, 0)),
        }
    }
}

impl Inner {
    fn out_of_bounds(&self, address: u64, bytes: usize) -> OutOfBounds {
        let nearest = self.live.range(..=address).next_back().map(|(&start, data)| (start, data.len() as u64));
        let freed = self.freed.range(..=address).next_back();
        let freed = freed.is_some_and(|(&start, &len)| address < start + len);
        OutOfBounds { address, bytes: bytes as u64, nearest, freed }
    }
}

impl Memory for Arena {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), OutOfBounds> {
        let inner = self.inner();
        let found = inner.live.range(..=address).next_back().and_then(|(&start, data)| {
            let at = usize::try_from(address - start).ok()?;
            data.get(at..at.checked_add(into.len())?)
        });
        match found {
            Some(data) => {
                into.copy_from_slice(data);
                Ok(())
            }
            None => Err(inner.out_of_bounds(address, into.len())),
        }
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), OutOfBounds> {
        let mut inner = self.inner();
        let found = inner.live.range_mut(..=address).next_back().and_then(|(&start, data)| {
            let at = usize::try_from(address - start).ok()?;
            data.get_mut(at..at.checked_add(from.len())?)
        });
        match found {
            Some(data) => {
                data.copy_from_slice(from);
                Ok(())
            }
            None => Err(inner.out_of_bounds(address, from.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_uploaded_comes_back_and_nothing_beyond_it() {
        let arena = Arena::new();
        let at = arena.upload(&[1.0_f32, 2.0, 3.0]);
        assert_eq!(arena.download::<f32>(at + 4, 2), Ok(vec![2.0, 3.0]));
        let beyond = arena.download::<f32>(at + 8, 2).expect_err("4 bytes too many");
        assert_eq!(beyond, OutOfBounds { address: at + 8, bytes: 8, nearest: Some((at, 12)), freed: false });
    }

    #[test]
    fn fresh_memory_is_poison_and_freed_memory_is_gone() {
        let arena = Arena::new();
        let at = arena.alloc(4);
        assert!(arena.download::<f32>(at, 1).expect("live")[0].is_nan());
        arena.free(at).expect("live");
        assert!(arena.read(at, &mut [0; 4]).expect_err("freed").freed);
        assert!(arena.free(at).is_err(), "twice");
        assert_ne!(arena.alloc(4), at);
    }
}
