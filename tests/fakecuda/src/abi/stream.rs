//! Driver entry points: streams, capture, graphs.
#![expect(unsafe_code, reason = "an exported name is unsafe by its nature; there is no unsafe block here")]

use std::ffi::{c_int, c_uint};
use std::sync::Arc;

use super::call::entry_points;
use super::device::stored;
use super::pointers::{Host, HostFunction, Out};
use crate::capture::{Capture, Mode};
use crate::codes::Code;
use crate::context::{EXECUTABLES, GRAPHS, Owned, STREAMS, current, event, stream};
use crate::stream::Work;

entry_points! {
fn cuStreamCreate(handle: Out<usize>, _flags: c_uint) -> Code {
    create(handle)
}
fn cuStreamCreateWithPriority(handle: Out<usize>, _flags: c_uint, _priority: c_int) -> Code {
    create(handle)
}
fn cuStreamDestroy_v2(handle: usize) -> Code {
    let owned = STREAMS.remove(handle).ok_or(Code::INVALID_HANDLE)?;
    // What is queued is still done.
    owned.value.close();
    owned.device.health.check()
}
fn cuStreamSynchronize(handle: usize) -> Code {
    let Owned { value: stream, device } = stream(handle)?;
    if let Some(capture) = stream.capture() {
        capture.invalidate();
        return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
    }
    stream.synchronise();
    device.health.check()
}
fn cuStreamQuery(handle: usize) -> Code {
    let Owned { value: stream, device } = stream(handle)?;
    if let Some(capture) = stream.capture() {
        capture.invalidate();
        return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
    }
    if !stream.idle() { return Err(Code::NOT_READY) }
    device.health.check()
}
fn cuStreamWaitEvent(handle: usize, awaited: usize, _flags: c_uint) -> Code {
    event(awaited)?.value.hold(&stream(handle)?.value)
}
fn cuLaunchHostFunc(handle: usize, function: HostFunction, argument: Host) -> Code {
    if function.is_null() { return Err(Code::INVALID_VALUE) }
    let call = move || {
        function.call(argument);
        Ok(())
    };
    stream(handle)?.value.submit(Work::new(call))
}
fn cuStreamBeginCapture_v2(handle: usize, mode: c_int) -> Code {
    // The legacy default stream cannot be captured.
    if handle < 2 { return Err(Code::STREAM_CAPTURE_UNSUPPORTED) }
    let mode = Mode::from_number(mode).ok_or(Code::INVALID_VALUE)?;
    Capture::begin(&stream(handle)?.value, mode)
}
fn cuStreamEndCapture(handle: usize, graph: Out<usize>) -> Code {
    let captured = Capture::end(&stream(handle)?.value);
    let (handle, ended) = match captured {
        Ok(work) => (GRAPHS.insert(Arc::new(work)), Ok(())),
        Err(code) => (0, Err(code)),
    };
    stored(graph.put(handle))?;
    ended
}
fn cuStreamIsCapturing(handle: usize, status: Out<c_int>) -> Code {
    let capture = stream(handle)?.value.capture();
    let number = capture.map_or(0, |capture| if capture.is_invalid() { 2 } else { 1 });
    stored(status.put(number))
}
fn cuGraphInstantiateWithFlags(executable: Out<usize>, graph: usize, flags: u64) -> Code {
    current()?;
    let work = GRAPHS.get(graph).ok_or(Code::INVALID_HANDLE)?;
    // Freeing at the launch (1) and node priorities (8) make no difference here; launches from the device (4) are
    // not modelled.
    if flags & !0b1001 != 0 { return Err(Code::INVALID_VALUE) }
    stored(executable.put(EXECUTABLES.insert(work)))
}
fn cuGraphUpload(executable: usize, handle: usize) -> Code {
    stream(handle)?;
    EXECUTABLES.get(executable).map(drop).ok_or(Code::INVALID_HANDLE)
}
fn cuGraphLaunch(executable: usize, handle: usize) -> Code {
    let stream = stream(handle)?.value;
    let work = EXECUTABLES.get(executable).ok_or(Code::INVALID_HANDLE)?;
    work.iter().try_for_each(|work| stream.submit(work.clone()))
}
fn cuGraphDestroy(graph: usize) -> Code {
    GRAPHS.remove(graph).map(drop).ok_or(Code::INVALID_HANDLE)
}
fn cuGraphExecDestroy(executable: usize) -> Code {
    EXECUTABLES.remove(executable).map(drop).ok_or(Code::INVALID_HANDLE)
}
}

fn create(handle: Out<usize>) -> Result<(), Code> {
    let device = current()?;
    let stream = device.new_stream()?;
    stored(handle.put(STREAMS.insert(Arc::new(Owned { value: stream, device }))))
}
