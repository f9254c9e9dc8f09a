//! A device and its one context, the primary one: memory, streams, pinned host ranges, health.
//!
//! Invariant: while nobody retains the context it has no allocation, no stream and no failure.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::codes::Code;
use crate::health::Health;
use crate::memory::Book;
use crate::settings::settings;
use crate::stream::Stream;

/// One of the process's devices.
pub struct Device {
    /// Its place in the list of devices.
    pub ordinal: usize,
    /// Its memory.
    pub book: Book,
    /// The first failure of its context.
    pub health: Arc<Health>,
    context: Mutex<Context>,
    pinned: Mutex<BTreeMap<usize, usize>>,
}

#[derive(Default)]
struct Context {
    retained: usize,
    default: Option<Arc<Stream>>,
    /// Every stream whose work may not be done yet, also those that have been destroyed.
    streams: Vec<Arc<Stream>>,
}

/// The devices, made at the first call.
pub fn devices() -> &'static [Arc<Device>] {
    static DEVICES: OnceLock<Vec<Arc<Device>>> = OnceLock::new();
    DEVICES.get_or_init(|| (0..settings().devices).map(|ordinal| Arc::new(Device::new(ordinal))).collect())
}

/// The device with this ordinal.
pub fn device(ordinal: i32) -> Result<&'static Arc<Device>, Code> {
    usize::try_from(ordinal).ok().and_then(|ordinal| devices().get(ordinal)).ok_or(Code::INVALID_DEVICE)
}

impl Device {
    fn new(ordinal: usize) -> Device {
        // Far from each other and from every host pointer, so that a stray address names its device.
        let first = 0x0d00_0000_0000 + ((ordinal as u64) << 38);
        Device {
            ordinal,
            book: Book::new(first, settings().memory),
            health: Arc::default(),
            context: Mutex::default(),
            pinned: Mutex::default(),
        }
    }

    /// One more user of the context.
    pub fn retain(&self) {
        self.context().retained += 1;
    }

    /// One user fewer; the last one ends the context, and with it its memory and its failure.
    pub fn release(&self) -> Result<(), Code> {
        let mut context = self.context();
        context.retained = context.retained.checked_sub(1).ok_or(Code::INVALID_CONTEXT)?;
        if context.retained > 0 {
            return Ok(());
        }
        let ended = std::mem::take(&mut *context);
        drop(context);
        ended.streams.iter().for_each(|stream| stream.close());
        ended.streams.iter().for_each(|stream| stream.synchronise());
        self.report_leaks();
        self.book.clear();
        self.health.reset();
        Ok(())
    }

    /// Whether anybody retains the context.
    pub fn is_retained(&self) -> bool {
        self.context().retained > 0
    }

    /// The default stream. It is ordered with no other stream: CUDA orders it with the blocking ones, and work that
    /// relies on that fails here.
    pub fn default_stream(&self) -> Result<Arc<Stream>, Code> {
        let mut context = self.context();
        if let Some(stream) = &context.default {
            return Ok(stream.clone());
        }
        let stream = self.start(&mut context)?;
        context.default = Some(stream.clone());
        Ok(stream)
    }

    /// A new stream.
    pub fn new_stream(&self) -> Result<Arc<Stream>, Code> {
        self.start(&mut self.context())
    }

    fn start(&self, context: &mut Context) -> Result<Arc<Stream>, Code> {
        let name = format!("fakecuda {}.{}", self.ordinal, context.streams.len());
        let stream = Stream::start(name, self.health.clone(), settings().jitter_us);
        let stream = stream.map_err(|_| Code::OPERATING_SYSTEM)?;
        context.streams.retain(|stream| !stream.ended());
        context.streams.push(stream.clone());
        Ok(stream)
    }

    /// Waits for all work of all streams.
    pub fn synchronise(&self) {
        let streams = self.context().streams.clone();
        streams.iter().for_each(|stream| stream.synchronise());
    }

    /// Notes `bytes` of pinned host memory at `address`.
    pub fn pin(&self, address: usize, bytes: usize) {
        self.pinned().insert(address, bytes);
    }

    /// Forgets pinned memory; returns its length.
    pub fn unpin(&self, address: usize) -> Option<usize> {
        self.pinned().remove(&address)
    }

    /// Whether all of `[address, address + bytes)` is pinned.
    pub fn is_pinned(&self, address: usize, bytes: usize) -> bool {
        let pinned = self.pinned();
        let below = pinned.range(..=address).next_back();
        below.is_some_and(|(base, length)| address - base <= *length && bytes <= length - (address - base))
    }

    fn report_leaks(&self) {
        let live = self.book.live();
        if !settings().leaks || live.is_empty() {
            return;
        }
        eprintln!("fakecuda: device {}: {} allocations outlive their context:", self.ordinal, live.len());
        live.iter().for_each(|block| eprintln!("fakecuda:   {} bytes at {:#x}", block.bytes, block.base));
    }

    fn context(&self) -> MutexGuard<'_, Context> {
        self.context.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pinned(&self) -> MutexGuard<'_, BTreeMap<usize, usize>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
