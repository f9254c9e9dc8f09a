//! Driver entry points: events.
#![expect(unsafe_code, reason = "an exported name is unsafe by its nature; there is no unsafe block here")]

use std::ffi::c_uint;
use std::sync::Arc;

use super::call::entry_points;
use super::device::stored;
use super::pointers::Out;
use crate::codes::Code;
use crate::context::{EVENTS, Owned, current, event, stream};
use crate::event::Event;

/// `CU_EVENT_DISABLE_TIMING`.
const UNTIMED: c_uint = 2;

entry_points! {
fn cuEventCreate(handle: Out<usize>, flags: c_uint) -> Code {
    let event = Owned { value: Event::new(flags & UNTIMED == 0), device: current()? };
    stored(handle.put(EVENTS.insert(Arc::new(event))))
}
fn cuEventDestroy_v2(handle: usize) -> Code {
    let owned = EVENTS.remove(handle).ok_or(Code::INVALID_HANDLE)?;
    owned.device.health.check()
}
fn cuEventRecord(handle: usize, on: usize) -> Code {
    let (event, stream) = (event(handle)?, stream(on)?);
    if event.device.ordinal != stream.device.ordinal { return Err(Code::INVALID_HANDLE) }
    event.value.record(&stream.value)
}
fn cuEventQuery(handle: usize) -> Code {
    let event = event(handle)?;
    event.value.query()?;
    event.device.health.check()
}
fn cuEventSynchronize(handle: usize) -> Code {
    let event = event(handle)?;
    event.value.synchronise()?;
    event.device.health.check()
}
fn cuEventElapsedTime(ms: Out<f32>, from: usize, to: usize) -> Code {
    stored(ms.put(event(from)?.value.elapsed_ms(&event(to)?.value)?))
}
fn cuEventElapsedTime_v2(ms: Out<f32>, from: usize, to: usize) -> Code {
    stored(ms.put(event(from)?.value.elapsed_ms(&event(to)?.value)?))
}
}
