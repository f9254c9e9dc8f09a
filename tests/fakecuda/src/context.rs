//! What C callers hold: the calling thread's context, and the tables of handles. Streams and events know their device,
//! because the driver needs no current context to work with them.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use insula_ptxsim::Module;

use crate::capture;
use crate::codes::Code;
use crate::device::{Device, device, devices};
use crate::event::Event;
use crate::kernel::Function;
use crate::stream::{Stream, Work};
use crate::table::Table;

/// Context handles are this plus the device's ordinal.
const FIRST: usize = 0xC000_0000;
/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD`; here both mean the device's default stream.
const DEFAULT_STREAMS: [usize; 3] = [0, 1, 2];

/// Something that belongs to a device.
pub struct Owned<T> {
    /// The thing.
    pub value: Arc<T>,
    /// Its device.
    pub device: &'static Arc<Device>,
}

/// A module of a device's context.
pub static MODULES: Table<Module> = Table::new();
/// Kernels that have been looked up. The driver ends them with their module; here they stay, for nothing refers to them.
pub static FUNCTIONS: Table<Function> = Table::new();
/// Captured graphs.
pub static GRAPHS: Table<Vec<Work>> = Table::new();
/// Graphs that can be launched.
pub static EXECUTABLES: Table<Vec<Work>> = Table::new();
/// Streams.
pub static STREAMS: Table<Owned<Stream>> = Table::new();
/// Events.
pub static EVENTS: Table<Owned<Event>> = Table::new();

static INITIALISED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// `cuInit` has been called.
pub fn initialise() {
    INITIALISED.store(true, SeqCst);
}

/// Refuses what comes before `cuInit`.
pub fn initialised() -> Result<(), Code> {
    if INITIALISED.load(SeqCst) { Ok(()) } else { Err(Code::NOT_INITIALIZED) }
}

/// The handle of a device's primary context.
pub fn handle(device: &Device) -> usize {
    FIRST + device.ordinal
}

/// The device of a context handle, if somebody retains the context.
pub fn of_handle(handle: usize) -> Result<&'static Arc<Device>, Code> {
    let ordinal = handle.checked_sub(FIRST).and_then(|ordinal| i32::try_from(ordinal).ok());
    let device = device(ordinal.ok_or(Code::INVALID_CONTEXT)?).map_err(|_| Code::INVALID_CONTEXT)?;
    if device.is_retained() { Ok(device) } else { Err(Code::INVALID_CONTEXT) }
}

/// The context handle that this thread has set; 0 is none.
pub fn current_handle() -> usize {
    CURRENT.get()
}

/// Sets this thread's context; 0 is none.
pub fn set_current(handle: usize) -> Result<(), Code> {
    initialised()?;
    if handle != 0 {
        of_handle(handle)?;
    }
    CURRENT.set(handle);
    Ok(())
}

/// The device of this thread's context, if it is sound.
pub fn current() -> Result<&'static Arc<Device>, Code> {
    initialised()?;
    let device = of_handle(CURRENT.get())?;
    device.health.check()?;
    Ok(device)
}

/// The device of this thread's context for a call that may wait for other work, which a capture forbids.
pub fn current_uncaptured() -> Result<&'static Arc<Device>, Code> {
    let device = current()?;
    capture::forbid()?;
    Ok(device)
}

/// A stream, if its context is sound.
pub fn stream(handle: usize) -> Result<Owned<Stream>, Code> {
    if DEFAULT_STREAMS.contains(&handle) {
        let device = current()?;
        return Ok(Owned { value: device.default_stream()?, device });
    }
    sound(&STREAMS, handle)
}

/// An event, if its context is sound.
pub fn event(handle: usize) -> Result<Owned<Event>, Code> {
    sound(&EVENTS, handle)
}

fn sound<T>(table: &Table<Owned<T>>, handle: usize) -> Result<Owned<T>, Code> {
    let owned = table.get(handle).ok_or(Code::INVALID_HANDLE)?;
    owned.device.health.check()?;
    Ok(Owned { value: owned.value.clone(), device: owned.device })
}

/// The device whose memory an address belongs to.
pub fn device_of(address: u64) -> Option<&'static Arc<Device>> {
    devices().iter().find(|device| device.book.find(address, 0).is_ok())
}
