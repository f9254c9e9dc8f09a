//! Device memory: a book of allocations at addresses of its own, which no host pointer can alias.
//!
//! ```text
//! | block | gap | block | gap | ...       addresses only grow: a freed address is never given out again,
//!                                          so a use after free is always noticed
//! ```
//! Bytes are kept in 32-bit atomics: kernels, copies and products of several streams may touch one block at the same
//! time, as on a GPU, and the outcome of a race is a wrong number, never undefined behaviour in this process.
//! Invariants: blocks do not overlap; `used` is the sum of the live blocks' sizes rounded up to `GRAIN`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What fresh and freed memory is filled with: NaN as float32, bfloat16 and float64.
pub const POISON: u8 = 0xFF;
/// Allocations are aligned to this, and take a multiple of it: what `cuMemAlloc` promises.
pub const GRAIN: u64 = 256;
/// Unmapped bytes after each block: wide enough that a small overrun cannot reach the next one.
const GAP: u64 = 64 << 10;

/// Bytes that several threads may read and write.
pub struct Words {
    words: Box<[AtomicU32]>,
}

impl Words {
    /// At least `bytes` bytes, each of them `byte`.
    pub fn filled(bytes: usize, byte: u8) -> Words {
        let word = u32::from_le_bytes([byte; 4]);
        Words { words: (0..bytes.div_ceil(4)).map(|_| AtomicU32::new(word)).collect() }
    }

    /// Copies the bytes from `offset` on.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let (first, skip) = (offset / 4, offset % 4);
        let (head, body) = into.split_at_mut(head_length(skip, into.len()));
        if !head.is_empty() {
            head.copy_from_slice(&self.word(first)[skip..skip + head.len()]);
        }
        let first = first + skip.div_ceil(4);
        for (chunk, word) in body.chunks_mut(4).zip(&self.words[first..]) {
            chunk.copy_from_slice(&word.load(Relaxed).to_le_bytes()[..chunk.len()]);
        }
    }

    /// Stores `from` from `offset` on. A part of a word is exchanged as a whole, so that neighbours written by another
    /// stream at the same time are kept.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let (first, skip) = (offset / 4, offset % 4);
        let (head, body) = from.split_at(head_length(skip, from.len()));
        if !head.is_empty() {
            self.patch(first, skip, head);
        }
        let first = first + skip.div_ceil(4);
        for (index, chunk) in body.chunks(4).enumerate() {
            match chunk.try_into() {
                Ok(whole) => self.words[first + index].store(u32::from_le_bytes(whole), Relaxed),
                Err(_) => self.patch(first + index, 0, chunk),
            }
        }
    }

    /// Sets `count` bytes from `offset` on to `byte`.
    pub fn fill(&self, offset: usize, count: usize, byte: u8) {
        let page = [byte; 4096];
        let mut done = 0;
        while done < count {
            // The first piece ends at a word, so that the others are whole words.
            let piece = if done == 0 { 4096 - offset % 4 } else { 4096 }.min(count - done);
            self.write(offset + done, &page[..piece]);
            done += piece;
        }
    }

    fn word(&self, index: usize) -> [u8; 4] {
        self.words[index].load(Relaxed).to_le_bytes()
    }

    fn patch(&self, index: usize, skip: usize, bytes: &[u8]) {
        let patched = |word: u32| {
            let mut whole = word.to_le_bytes();
            whole[skip..skip + bytes.len()].copy_from_slice(bytes);
            Some(u32::from_le_bytes(whole))
        };
        self.words[index].fetch_update(Relaxed, Relaxed, patched).expect("the closure never declines");
    }
}

/// How many of `length` bytes lie in the word that begins `skip` bytes before them.
fn head_length(skip: usize, length: usize) -> usize {
    if skip == 0 { 0 } else { length.min(4 - skip) }
}

/// One live allocation.
pub struct Block {
    /// Its first address.
    pub base: u64,
    /// Its length as asked for; an access beyond it is an error.
    pub bytes: u64,
    /// Its contents.
    pub words: Words,
}

impl Block {
    /// The offset of `[address, address + bytes)` in this block, if it lies inside.
    pub fn offset(&self, address: u64, bytes: u64) -> Option<usize> {
        let offset = address.checked_sub(self.base)?;
        (offset <= self.bytes && bytes <= self.bytes - offset).then_some(offset as usize)
    }
}

/// Why an address is no place for an access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadAddress {
    /// The access starts in a live allocation and runs over its end.
    Beyond {
        /// First address of the access.
        address: u64,
        /// Its length.
        bytes: u64,
        /// The allocation's first address.
        base: u64,
        /// The allocation's length.
        length: u64,
    },
    /// The memory has been freed.
    Freed {
        /// First address of the access.
        address: u64,
        /// The former allocation's first address.
        base: u64,
        /// The former allocation's length.
        length: u64,
    },
    /// No allocation was ever there.
    Unknown {
        /// First address of the access.
        address: u64,
        /// The nearest live allocation below: its first address and length.
        below: Option<(u64, u64)>,
    },
}

impl fmt::Display for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadAddress::Beyond { address, bytes, base, length } => {
                let over = (address - base).saturating_add(*bytes).saturating_sub(*length);
                write!(f, "{bytes} bytes at {address:#x} run {over} over the end of the {length} bytes at {base:#x}")
            }
            BadAddress::Freed { address, base, length } => {
                write!(f, "{address:#x} lies in the {length} bytes at {base:#x}, which have been freed")
            }
            BadAddress::Unknown { address, below: Some((base, length)) } => {
                write!(f, "no allocation at {address:#x}; below it are {length} bytes at {base:#x}")
            }
            BadAddress::Unknown { address, below: None } => write!(f, "no allocation at {address:#x}"),
        }
    }
}

impl std::error::Error for BadAddress {}

/// An allocation that does not fit.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfMemory;

#[derive(Default)]
struct Pages {
    used: u64,
    next: u64,
    live: BTreeMap<u64, Arc<Block>>,
    freed: BTreeMap<u64, u64>,
}

/// The allocations of one device.
pub struct Book {
    capacity: u64,
    pages: RwLock<Pages>,
}

impl Book {
    /// An empty memory of `capacity` bytes whose addresses begin at `first`.
    pub fn new(first: u64, capacity: u64) -> Book {
        Book { capacity, pages: RwLock::new(Pages { next: first, ..Pages::default() }) }
    }

    /// All bytes, used or not.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes taken by live allocations.
    pub fn used(&self) -> u64 {
        self.pages().used
    }

    /// A new allocation of `bytes` bytes, poisoned; returns its address.
    pub fn allocate(&self, bytes: u64) -> Result<u64, OutOfMemory> {
        let taken = bytes.max(1).checked_next_multiple_of(GRAIN).ok_or(OutOfMemory)?;
        let mut pages = self.pages_mut();
        if taken > self.capacity - pages.used {
            return Err(OutOfMemory);
        }
        let base = pages.next;
        let block = Block { base, bytes, words: Words::filled(bytes as usize, POISON) };
        pages.used += taken;
        pages.next = base + taken + GAP;
        pages.live.insert(base, Arc::new(block));
        Ok(base)
    }

    /// Ends an allocation, which is poisoned for whoever still works on it.
    pub fn free(&self, address: u64) -> Result<(), BadAddress> {
        let mut pages = self.pages_mut();
        let Some(block) = pages.live.remove(&address) else { return Err(pages.bad(address, 0)) };
        pages.used -= block.bytes.max(1).next_multiple_of(GRAIN);
        pages.freed.insert(address, block.bytes);
        drop(pages);
        if Arc::strong_count(&block) > 1 {
            block.words.fill(0, block.bytes as usize, POISON);
        }
        Ok(())
    }

    /// The block that holds `[address, address + bytes)`, and where in it.
    pub fn find(&self, address: u64, bytes: u64) -> Result<(Arc<Block>, usize), BadAddress> {
        let pages = self.pages();
        let found = pages.live.range(..=address).next_back();
        match found.and_then(|(_, block)| Some((block.clone(), block.offset(address, bytes)?))) {
            // One past the end is a fine place for nothing, but for something it belongs to the gap.
            Some(found) => Ok(found),
            None => Err(pages.bad(address, bytes)),
        }
    }

    /// Copies device bytes out.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), BadAddress> {
        let (block, offset) = self.find(address, into.len() as u64)?;
        block.words.read(offset, into);
        Ok(())
    }

    /// Copies bytes in.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), BadAddress> {
        let (block, offset) = self.find(address, from.len() as u64)?;
        block.words.write(offset, from);
        Ok(())
    }

    /// The live blocks in order of address.
    pub fn live(&self) -> Vec<Arc<Block>> {
        self.pages().live.values().cloned().collect()
    }

    /// Why an access fails, for a report.
    pub fn explain(&self, address: u64, bytes: u64) -> BadAddress {
        self.pages().bad(address, bytes)
    }

    /// Ends every allocation, as the end of the context does.
    pub fn clear(&self) {
        let mut pages = self.pages_mut();
        let freed: Vec<_> = pages.live.values().map(|block| (block.base, block.bytes)).collect();
        pages.freed.extend(freed);
        pages.live.clear();
        pages.used = 0;
    }

    fn pages(&self) -> RwLockReadGuard<'_, Pages> {
        self.pages.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn pages_mut(&self) -> RwLockWriteGuard<'_, Pages> {
        self.pages.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn bad(&self, address: u64, bytes: u64) -> BadAddress {
        let below = self.live.range(..=address).next_back().map(|(base, block)| (*base, block.bytes));
        if let Some((base, length)) = below.filter(|(base, length)| address - base < *length) {
            return BadAddress::Beyond { address, bytes, base, length };
        }
        match self.freed.range(..=address).next_back() {
            Some((&base, &length)) if address - base < length.max(1) => BadAddress::Freed { address, base, length },
            _ => BadAddress::Unknown { address, below },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u64 = 0x1000_0000;

    fn book() -> Book {
        Book::new(FIRST, 4096)
    }

    #[test]
    fn bytes_come_back_from_every_offset_and_length() {
        let book = book();
        let base = book.allocate(37).unwrap();
        for offset in 0..9 {
            for length in 0..=28 {
                book.write(base, &[0xAA; 37]).unwrap();
                let bytes: Vec<u8> = (1..=length).collect();
                book.write(base + offset, &bytes).unwrap();
                let mut back = vec![0; 37];
                book.read(base, &mut back).unwrap();
                let mut expected = vec![0xAA; 37];
                expected[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
                assert_eq!(back, expected, "offset {offset} length {length}");
                let mut part = vec![0; bytes.len()];
                book.read(base + offset, &mut part).unwrap();
                assert_eq!(part, bytes);
            }
        }
    }

    #[test]
    fn fresh_memory_is_poison_and_a_fill_touches_its_range_only() {
        let book = book();
        let base = book.allocate(10).unwrap();
        let (block, offset) = book.find(base + 3, 5).unwrap();
        block.words.fill(offset, 5, 7);
        let mut bytes = [0; 10];
        book.read(base, &mut bytes).unwrap();
        assert_eq!(bytes, [0xFF, 0xFF, 0xFF, 7, 7, 7, 7, 7, 0xFF, 0xFF]);
    }

    #[test]
    fn a_long_fill_from_an_odd_offset_is_whole() {
        let words = Words::filled(20_000, 0);
        words.fill(3, 19_000, 9);
        let mut bytes = vec![0; 20_000];
        words.read(0, &mut bytes);
        assert!(bytes.iter().enumerate().all(|(i, b)| *b == if (3..19_003).contains(&i) { 9 } else { 0 }));
    }

    #[test]
    fn an_overrun_a_freed_and_an_unknown_address_are_told_apart() {
        let book = book();
        let base = book.allocate(100).unwrap();
        let other = book.allocate(8).unwrap();
        assert!(matches!(book.read(base + 96, &mut [0; 8]), Err(BadAddress::Beyond { bytes: 8, length: 100, .. })));
        book.free(other).unwrap();
        assert_eq!(book.free(other), Err(BadAddress::Freed { address: other, base: other, length: 8 }));
        assert!(matches!(book.write(base + 100, &[1]), Err(BadAddress::Unknown { below: Some((_, 100)), .. })));
        assert!(matches!(book.find(4, 1), Err(BadAddress::Unknown { below: None, .. })));
        assert!(matches!(book.find(u64::MAX, 8), Err(BadAddress::Unknown { .. })));
        assert!(matches!(book.find(base, u64::MAX), Err(BadAddress::Beyond { .. })));
    }

    #[test]
    fn memory_runs_out_and_comes_back() {
        let book = book();
        let first = book.allocate(2048).unwrap();
        let second = book.allocate(1800).unwrap();
        assert_eq!(book.used(), 4096);
        assert_eq!(book.allocate(1), Err(OutOfMemory));
        assert_eq!(book.allocate(u64::MAX), Err(OutOfMemory));
        book.free(second).unwrap();
        let third = book.allocate(1).unwrap();
        assert!(third > second, "a freed address was given out again");
        book.free(first).unwrap();
        assert_eq!(book.used(), 256);
    }

    #[test]
    fn who_still_holds_a_freed_block_reads_poison() {
        let book = book();
        let base = book.allocate(4).unwrap();
        book.write(base, &[1, 2, 3, 4]).unwrap();
        let (block, _) = book.find(base, 4).unwrap();
        book.free(base).unwrap();
        let mut bytes = [0; 4];
        block.words.read(0, &mut bytes);
        assert_eq!(bytes, [POISON; 4]);
    }
}
