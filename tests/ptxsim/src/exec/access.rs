//! Loads, stores and atomics: lanes' addresses to bytes, checked on the way.
//!
//! The bytes of all lanes pass through one buffer, lane after lane, so that lanes with neighbouring addresses, nearly
//! all of them, cost one call of the global memory.

use super::shadow::Writes;
use super::warp::Warp;
use super::{Env, Outcome, banks, lanes, trouble};
use crate::fault::{FaultKind, MemorySpace};
use crate::program::{Address, Atomic, Base, Elements, LOCAL_WINDOW, Row, SHARED_WINDOW, Space, Type, WINDOW_BYTES};

/// Up to 16 bytes of each lane.
pub(super) type Buffer = [u8; 512];

/// The addresses of an access within a space that is not generic any more.
pub(super) struct Place {
    pub space: MemorySpace,
    pub addresses: [u64; 32],
    pub mask: u32,
    pub bytes: usize,
}

impl Warp {
    pub(super) fn addresses(&self, address: &Address) -> [u64; 32] {
        let offset = address.offset;
        match address.base {
            Base::None => [offset; 32],
            Base::Row64(row) => self.registers.w64[row as usize].map(|base| base.wrapping_add(offset)),
            Base::Row32(row) => {
                self.registers.w32[row as usize].map(|base| u64::from(base.wrapping_add(offset as u32)))
            }
        }
    }
}

impl Env<'_> {
    /// Resolves the space and checks alignment and, but for global memory, bounds.
    pub(super) fn place(
        &self,
        warp: &Warp,
        mask: u32,
        space: Space,
        address: &Address,
        bytes: usize,
    ) -> Outcome<Place> {
        let mut addresses = warp.addresses(address);
        let space = resolve(space, &mut addresses, mask)?;
        let size = match space {
            MemorySpace::Global => u64::MAX,
            MemorySpace::Shared => self.shared.len() as u64,
            MemorySpace::Local => self.program.local_bytes as u64,
            MemorySpace::Param | MemorySpace::Constant => self.constant_space(space).len() as u64,
        };
        for lane in lanes(mask) {
            let (address, bytes) = (addresses[lane], bytes as u64);
            if address & (bytes - 1) != 0 {
                return trouble(1 << lane, FaultKind::Misaligned { space, address, width: bytes });
            }
            if address.checked_add(bytes).is_none_or(|end| end > size) {
                return trouble(1 << lane, FaultKind::BeyondSpace { space, address, bytes, size });
            }
        }
        Ok(Place { space, addresses, mask, bytes })
    }

    pub(super) fn load(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        space: Space,
        read_only: bool,
        to: &Elements,
        from: &Address,
    ) -> Outcome {
        let place = self.place(warp, mask, space, from, to.total_bytes())?;
        let mut buffer = [0; 512];
        self.fetch(warp, &place, &mut buffer, read_only)?;
        unpack(warp, to, mask, &buffer);
        Ok(())
    }

    pub(super) fn store(&mut self, warp: &mut Warp, mask: u32, space: Space, from: &Elements, to: &Address) -> Outcome {
        let place = self.place(warp, mask, space, to, from.total_bytes())?;
        let mut buffer = [0; 512];
        pack(warp, from, mask, &mut buffer);
        self.put(warp, &place, &buffer, Writes::Plain)
    }

    /// Reads the lanes' bytes into the buffer, counted and checked.
    pub(super) fn fetch(&mut self, warp: &Warp, place: &Place, buffer: &mut Buffer, read_only: bool) -> Outcome {
        let &Place { space, ref addresses, mask, bytes } = place;
        let loaded = u64::from(mask.count_ones()) * bytes as u64;
        match space {
            MemorySpace::Global => {
                self.counts.global.loaded_bytes += loaded;
                self.counts.global.loaded_sectors += banks::sectors(addresses, mask);
                self.fetch_global(place, buffer)?;
                self.note_global_reads(warp, place, read_only)
            }
            MemorySpace::Shared => {
                self.counts.shared.loaded_bytes += loaded;
                self.counts.shared_bank_conflicts += banks::conflicts(addresses, mask, bytes);
                for lane in lanes(mask) {
                    let at = addresses[lane] as usize;
                    buffer[lane * bytes..][..bytes].copy_from_slice(&self.shared[at..at + bytes]);
                    self.note_shared_read(warp, 1 << lane, lane as u32, (addresses[lane], bytes))?;
                }
                Ok(())
            }
            MemorySpace::Local => {
                self.counts.local.loaded_bytes += loaded;
                self.counts.local.loaded_sectors += loaded.div_ceil(32);
                for lane in lanes(mask) {
                    let at = lane * self.program.local_bytes + addresses[lane] as usize;
                    if self.launch.checks.uninitialised
                        && let Some(bad) = warp.local_written[at..at + bytes].iter().position(|written| !written)
                    {
                        let address = addresses[lane] + bad as u64;
                        return trouble(1 << lane, FaultKind::Uninitialised { space, address });
                    }
                    buffer[lane * bytes..][..bytes].copy_from_slice(&warp.local[at..at + bytes]);
                }
                Ok(())
            }
            MemorySpace::Param | MemorySpace::Constant => {
                let source = self.constant_space(space);
                for lane in lanes(mask) {
                    let at = addresses[lane] as usize;
                    buffer[lane * bytes..][..bytes].copy_from_slice(&source[at..at + bytes]);
                }
                Ok(())
            }
        }
    }

    /// Writes the lanes' bytes from the buffer, counted and checked; of lanes that write the same bytes the last stays.
    fn put(&mut self, warp: &mut Warp, place: &Place, buffer: &Buffer, how: Writes) -> Outcome {
        let &Place { space, ref addresses, mask, bytes } = place;
        let stored = u64::from(mask.count_ones()) * bytes as u64;
        match space {
            MemorySpace::Global => {
                self.counts.global.stored_bytes += stored;
                self.counts.global.stored_sectors += banks::sectors(addresses, mask);
                self.put_global(place, buffer)?;
                self.note_global_writes(warp, place, how)
            }
            MemorySpace::Shared => {
                self.counts.shared.stored_bytes += stored;
                self.counts.shared_bank_conflicts += banks::conflicts(addresses, mask, bytes);
                for lane in lanes(mask) {
                    let at = addresses[lane] as usize;
                    self.note_shared_write(warp, lane as u32, (addresses[lane], bytes), how)?;
                    self.shared[at..at + bytes].copy_from_slice(&buffer[lane * bytes..][..bytes]);
                }
                Ok(())
            }
            MemorySpace::Local => {
                self.counts.local.stored_bytes += stored;
                self.counts.local.stored_sectors += stored.div_ceil(32);
                for lane in lanes(mask) {
                    let at = lane * self.program.local_bytes + addresses[lane] as usize;
                    warp.local[at..at + bytes].copy_from_slice(&buffer[lane * bytes..][..bytes]);
                    warp.local_written[at..at + bytes].fill(true);
                }
                Ok(())
            }
            MemorySpace::Param | MemorySpace::Constant => {
                trouble(mask, FaultKind::Unsupported(format!("a store to {space} memory")))
            }
        }
    }

    fn fetch_global(&self, place: &Place, buffer: &mut Buffer) -> Outcome {
        let bytes = place.bytes;
        for (first, count) in runs(place) {
            let address = place.addresses[first];
            let into = &mut buffer[first * bytes..][..count * bytes];
            if self.memory.read(address, into).is_ok() {
                continue;
            }
            // One lane at a time, to name the one at fault; or the run spans two allocations and all are right.
            for lane in first..first + count {
                let into = &mut buffer[lane * bytes..][..bytes];
                if let Err(bounds) = self.memory.read(place.addresses[lane], into) {
                    return trouble(1 << lane, FaultKind::OutOfBounds(bounds));
                }
            }
        }
        Ok(())
    }

    fn put_global(&self, place: &Place, buffer: &Buffer) -> Outcome {
        let bytes = place.bytes;
        for (first, count) in runs(place) {
            if self.memory.write(place.addresses[first], &buffer[first * bytes..][..count * bytes]).is_ok() {
                continue;
            }
            for lane in first..first + count {
                if let Err(bounds) = self.memory.write(place.addresses[lane], &buffer[lane * bytes..][..bytes]) {
                    return trouble(1 << lane, FaultKind::OutOfBounds(bounds));
                }
            }
        }
        Ok(())
    }

    fn note_global_reads(&mut self, warp: &Warp, place: &Place, read_only: bool) -> Outcome {
        if !self.launch.checks.races {
            return Ok(());
        }
        for (first, count) in runs(place) {
            let (address, bytes) = (place.addresses[first], count * place.bytes);
            let note = warp.note(first as u32, address, bytes);
            if let Some(found) = self.global_shadow.read(&self.clock, &note, read_only) {
                let kind = found.kind(MemorySpace::Global, &self.clock, &self.program.sites);
                return trouble(lanes_of_run(first, count), kind);
            }
        }
        Ok(())
    }

    fn note_global_writes(&mut self, warp: &Warp, place: &Place, how: Writes) -> Outcome {
        if !self.launch.checks.races {
            return Ok(());
        }
        for (first, count) in runs(place) {
            let (address, bytes) = (place.addresses[first], count * place.bytes);
            let note = warp.note(first as u32, address, bytes);
            if let Some(found) = self.global_shadow.write(&self.clock, &note, how) {
                let kind = found.kind(MemorySpace::Global, &self.clock, &self.program.sites);
                return trouble(lanes_of_run(first, count), kind);
            }
        }
        Ok(())
    }

    /// `reader` is the lane that reads, or all of them; `at_fault` the lanes to name.
    pub(super) fn note_shared_read(
        &mut self,
        warp: &Warp,
        at_fault: u32,
        reader: u32,
        (address, bytes): (u64, usize),
    ) -> Outcome {
        let note = warp.note(reader, address, bytes);
        match self.shared_shadow.read(&self.clock, &note) {
            None => Ok(()),
            Some(found) => trouble(at_fault, found.kind(MemorySpace::Shared, &self.clock, &self.program.sites)),
        }
    }

    pub(super) fn note_shared_write(
        &mut self,
        warp: &Warp,
        lane: u32,
        (address, bytes): (u64, usize),
        how: Writes,
    ) -> Outcome {
        let note = warp.note(lane, address, bytes);
        match self.shared_shadow.write(&self.clock, &note, how) {
            None => Ok(()),
            Some(found) => trouble(1 << lane, found.kind(MemorySpace::Shared, &self.clock, &self.program.sites)),
        }
    }

    /// Lanes run one after another, each reading what the one before wrote.
    #[expect(clippy::too_many_arguments, reason = "an atomic has that many operands")]
    pub(super) fn atomic(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        space: Space,
        (op, of): (Atomic, Type),
        to: Option<Row>,
        address: &Address,
        (a, b): (Row, Row),
    ) -> Outcome {
        let bytes = of.bytes();
        let place = self.place(warp, mask, space, address, bytes)?;
        for lane in lanes(mask) {
            let one = Place { mask: 1 << lane, ..place };
            let mut buffer = [0; 512];
            self.peek(warp, &one, lane, &mut buffer)?;
            let slot = lane * bytes;
            let (old, x, y) = if bytes == 8 {
                let old = u64::from_le_bytes(eight(&buffer[slot..]));
                (old, warp.registers.w64[a as usize][lane], warp.registers.w64[b as usize][lane])
            } else {
                let old = u64::from(u32::from_le_bytes(four(&buffer[slot..])));
                let row = |row: Row| u64::from(warp.registers.w32[row as usize][lane]);
                (old, row(a), row(b))
            };
            let new = atomically(op, of, old, x, y);
            buffer[slot..slot + bytes].copy_from_slice(&new.to_le_bytes()[..bytes]);
            self.put(warp, &one, &buffer, Writes::Atomic)?;
            match to {
                Some(row) if bytes == 8 => warp.registers.w64[row as usize][lane] = old,
                Some(row) => warp.registers.w32[row as usize][lane] = old as u32,
                None => {}
            }
        }
        Ok(())
    }

    /// The read half of an atomic: no note of a read, as the write half notes the whole.
    fn peek(&mut self, warp: &Warp, place: &Place, lane: usize, buffer: &mut Buffer) -> Outcome {
        let (address, bytes) = (place.addresses[lane], place.bytes);
        match place.space {
            MemorySpace::Global => {
                self.counts.global.loaded_bytes += bytes as u64;
                self.counts.global.loaded_sectors += 1;
                self.fetch_global(place, buffer)
            }
            MemorySpace::Shared => {
                self.counts.shared.loaded_bytes += bytes as u64;
                let note = warp.note(lane as u32, address, bytes);
                if let Some(found) = self.shared_shadow.written(&self.clock, &note) {
                    return trouble(1 << lane, found.kind(MemorySpace::Shared, &self.clock, &self.program.sites));
                }
                let at = address as usize;
                buffer[lane * bytes..][..bytes].copy_from_slice(&self.shared[at..at + bytes]);
                Ok(())
            }
            other => trouble(1 << lane, FaultKind::Unsupported(format!("an atomic in {other} memory"))),
        }
    }
}

/// Runs of lanes that follow one another and whose addresses do too: first lane, lanes.
fn runs(place: &Place) -> impl Iterator<Item = (usize, usize)> {
    let &Place { ref addresses, mask, bytes, .. } = place;
    let mut lane = mask.trailing_zeros() as usize;
    std::iter::from_fn(move || {
        if lane >= 32 {
            return None;
        }
        let first = lane;
        loop {
            lane += 1;
            let follows =
                lane < 32 && mask >> lane & 1 == 1 && addresses[lane] == addresses[lane - 1].wrapping_add(bytes as u64);
            if !follows {
                break;
            }
        }
        let count = lane - first;
        lane = if lane < 32 { lane + (mask >> lane).trailing_zeros() as usize } else { 32 };
        Some((first, count))
    })
}

fn lanes_of_run(first: usize, count: usize) -> u32 {
    (u32::MAX >> (32 - count)) << first
}

/// A generic address says by its window which space it means; all lanes have to mean the same.
fn resolve(space: Space, addresses: &mut [u64; 32], mask: u32) -> Outcome<MemorySpace> {
    let fixed = match space {
        Space::Param => MemorySpace::Param,
        Space::Const => MemorySpace::Constant,
        Space::Global => MemorySpace::Global,
        Space::Shared => MemorySpace::Shared,
        Space::Local => MemorySpace::Local,
        Space::Generic => {
            let of = |address: u64| match address {
                a if (SHARED_WINDOW..SHARED_WINDOW + WINDOW_BYTES).contains(&a) => (MemorySpace::Shared, SHARED_WINDOW),
                a if (LOCAL_WINDOW..LOCAL_WINDOW + WINDOW_BYTES).contains(&a) => (MemorySpace::Local, LOCAL_WINDOW),
                _ => (MemorySpace::Global, 0),
            };
            let (space, window) = of(addresses[mask.trailing_zeros() as usize & 31]);
            for lane in lanes(mask) {
                if of(addresses[lane]).0 != space {
                    let what = "a generic access whose lanes mean different spaces".to_owned();
                    return trouble(mask, FaultKind::Unsupported(what));
                }
                addresses[lane] -= window;
            }
            space
        }
    };
    Ok(fixed)
}

fn four(bytes: &[u8]) -> [u8; 4] {
    [bytes[0], bytes[1], bytes[2], bytes[3]]
}

fn eight(bytes: &[u8]) -> [u8; 8] {
    std::array::from_fn(|at| bytes[at])
}

/// Buffer to registers.
fn unpack(warp: &mut Warp, to: &Elements, mask: u32, buffer: &Buffer) {
    let (bytes, total) = (usize::from(to.bytes), to.total_bytes());
    for (element, &row) in to.rows[..usize::from(to.count)].iter().enumerate() {
        for lane in lanes(mask) {
            let source = &buffer[lane * total + element * bytes..];
            let value = match bytes {
                4 => u64::from(u32::from_le_bytes(four(source))),
                8 => u64::from_le_bytes(eight(source)),
                2 => u64::from(u16::from_le_bytes([source[0], source[1]])),
                _ => u64::from(source[0]),
            };
            let value = if to.sign_to == 0 { value } else { sign_extend(value, bytes, to.sign_to) };
            if to.wide {
                warp.registers.w64[row as usize][lane] = value;
            } else {
                warp.registers.w32[row as usize][lane] = value as u32;
            }
        }
    }
}

fn sign_extend(value: u64, bytes: usize, bits: u8) -> u64 {
    let above = 64 - 8 * bytes as u32;
    let extended = ((value << above) as i64 >> above) as u64;
    extended & (u64::MAX >> (64 - u32::from(bits)))
}

/// Registers to buffer.
fn pack(warp: &Warp, from: &Elements, mask: u32, buffer: &mut Buffer) {
    let (bytes, total) = (usize::from(from.bytes), from.total_bytes());
    for (element, &row) in from.rows[..usize::from(from.count)].iter().enumerate() {
        for lane in lanes(mask) {
            let value = if from.wide {
                warp.registers.w64[row as usize][lane]
            } else {
                u64::from(warp.registers.w32[row as usize][lane])
            };
            buffer[lane * total + element * bytes..][..bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        }
    }
}

/// The new value; `x` and `y` are the operands, for cas the comparand and the replacement.
pub(super) fn atomically(op: Atomic, of: Type, old: u64, x: u64, y: u64) -> u64 {
    let (old_f, x_f) = (f32::from_bits(old as u32), f32::from_bits(x as u32));
    match op {
        Atomic::Add if of == Type::F32 => u64::from((old_f + x_f).to_bits()),
        Atomic::Add if of == Type::F64 => (f64::from_bits(old) + f64::from_bits(x)).to_bits(),
        Atomic::Add => old.wrapping_add(x),
        Atomic::Min | Atomic::Max => {
            let greater = match of {
                Type::S32 => old as u32 as i32 > x as u32 as i32,
                Type::S64 => old as i64 > x as i64,
                _ => old > x,
            };
            if greater == (op == Atomic::Max) { old } else { x }
        }
        Atomic::And => old & x,
        Atomic::Or => old | x,
        Atomic::Xor => old ^ x,
        Atomic::Exchange => x,
        Atomic::CompareAndSwap => {
            if old == x {
                y
            } else {
                old
            }
        }
    }
}
