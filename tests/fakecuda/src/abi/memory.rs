//! Driver entry points: device and pinned host memory, copies, fills.
//!
//! An asynchronous copy between the device and pinned host memory touches the host's bytes when the stream gets there.
//! From pageable memory the driver copies first, and to pageable memory it waits; so does this one. In a capture every
//! copy touches the host's bytes at the replay.
#![expect(unsafe_code, reason = "an exported name is unsafe by its nature; there is no unsafe block here")]

use std::ffi::{c_int, c_uint};
use std::sync::Arc;

use super::call::entry_points;
use super::device::stored;
use super::pointers::{Host, Out, allocate_host, free_host};
use crate::codes::Code;
use crate::context::{Owned, current, current_uncaptured, device_of, of_handle, stream};
use crate::device::Device;
use crate::health::Failure;
use crate::journal;
use crate::memory::BadAddress;
use crate::stream::{Stream, Work};

entry_points! {
fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) -> Code {
    allocate(current_uncaptured()?, address, bytes)
}
fn cuMemAllocAsync(address: Out<u64>, bytes: usize, on: usize) -> Code {
    let stream = uncaptured(stream(on)?)?;
    allocate(stream.device, address, bytes)
}
fn cuMemFree_v2(address: u64) -> Code {
    let device = current_uncaptured()?;
    if address == 0 { return Ok(()) }
    // The driver waits for all work before it takes memory away.
    device.synchronise();
    current()?;
    device.book.free(address).map_err(|bad| invalid("cuMemFree", &bad))
}
fn cuMemFreeAsync(address: u64, on: usize) -> Code {
    let Owned { value: stream, device } = uncaptured(stream(on)?)?;
    if address == 0 { return Ok(()) }
    let (block, _) = device.book.find(address, 0).map_err(|bad| invalid("cuMemFreeAsync", &bad))?;
    if block.base != address { return Err(Code::INVALID_VALUE) }
    drop(block);
    stream.submit(Work::new(move || device.book.free(address).map_err(|bad| fault("cuMemFreeAsync", &bad))))
}
fn cuMemHostAlloc(memory: Out<Host>, bytes: usize, _flags: c_uint) -> Code {
    let device = current_uncaptured()?;
    if bytes == 0 { return Err(Code::INVALID_VALUE) }
    let host = allocate_host(bytes).ok_or(Code::OUT_OF_MEMORY)?;
    device.pin(host.address(), bytes);
    stored(memory.put(host))
}
fn cuMemFreeHost(memory: Host) -> Code {
    let device = current_uncaptured()?;
    // Copies under way may still touch it.
    device.synchronise();
    let bytes = device.unpin(memory.address()).ok_or(Code::INVALID_VALUE)?;
    free_host(memory, bytes);
    Ok(())
}
fn cuMemcpyHtoD_v2(to: u64, from: Host, bytes: usize) -> Code {
    let device = current_uncaptured()?;
    let stream = device.default_stream()?;
    submit_up(&stream, device, to, from, bytes)?;
    stream.synchronise();
    current().map(drop)
}
fn cuMemcpyHtoDAsync_v2(to: u64, from: Host, bytes: usize, on: usize) -> Code {
    let Owned { value: stream, device } = stream(on)?;
    submit_up(&stream, device, to, from, bytes)
}
fn cuMemcpyDtoH_v2(to: Host, from: u64, bytes: usize) -> Code {
    let device = current_uncaptured()?;
    let stream = device.default_stream()?;
    submit_down(&stream, device, to, from, bytes)?;
    stream.synchronise();
    current().map(drop)
}
fn cuMemcpyDtoHAsync_v2(to: Host, from: u64, bytes: usize, on: usize) -> Code {
    let Owned { value: stream, device } = stream(on)?;
    submit_down(&stream, device, to, from, bytes)?;
    if stream.capture().is_none() && !device.is_pinned(to.address(), bytes) {
        stream.synchronise();
        device.health.check()?;
    }
    Ok(())
}
fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> Code {
    let device = current_uncaptured()?;
    let stream = device.default_stream()?;
    submit_across(&stream, device, to, device, from, bytes)?;
    stream.synchronise();
    current().map(drop)
}
fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, on: usize) -> Code {
    let Owned { value: stream, device } = stream(on)?;
    // Addresses are unified: they name their device.
    let (target, source) = (device_of(to).unwrap_or(device), device_of(from).unwrap_or(device));
    submit_across(&stream, target, to, source, from, bytes)
}
fn cuMemcpyPeerAsync(to: u64, to_context: usize, from: u64, from_context: usize, bytes: usize, on: usize) -> Code {
    let stream = stream(on)?.value;
    submit_across(&stream, of_handle(to_context)?, to, of_handle(from_context)?, from, bytes)
}
fn cuMemsetD8_v2(to: u64, byte: u8, bytes: usize) -> Code {
    let device = current_uncaptured()?;
    let stream = device.default_stream()?;
    submit_fill(&stream, device, to, byte, bytes)?;
    stream.synchronise();
    current().map(drop)
}
fn cuMemsetD8Async(to: u64, byte: u8, bytes: usize, on: usize) -> Code {
    let Owned { value: stream, device } = stream(on)?;
    submit_fill(&stream, device, to, byte, bytes)
}
fn cuDeviceGetDefaultMemPool(pool: Out<usize>, ordinal: c_int) -> Code {
    default_pool(pool, ordinal)
}
fn cuDeviceGetMemPool(pool: Out<usize>, ordinal: c_int) -> Code {
    default_pool(pool, ordinal)
}
fn cuMemPoolSetAttribute(pool: usize, _attribute: c_int, _value: Host) -> Code {
    // Only thresholds of what the pool keeps: this one keeps nothing.
    pool_device(pool).map(drop)
}
fn cuMemPoolGetAttribute(pool: usize, attribute: c_int, value: Out<u64>) -> Code {
    let device = pool_device(pool)?;
    let number = match attribute { 4 => 0, 5..=8 => device.book.used(), _ => return Err(Code::NOT_SUPPORTED) };
    stored(value.put(number))
}
fn cuMemPoolTrimTo(pool: usize, _keep: usize) -> Code {
    pool_device(pool).map(drop)
}
}

/// Handles of the devices' default pools are this plus the ordinal.
const POOLS: usize = 0xB000_0000;

fn default_pool(pool: Out<usize>, ordinal: c_int) -> Result<(), Code> {
    let device = crate::device::device(ordinal)?;
    stored(pool.put(POOLS + device.ordinal))
}

fn pool_device(pool: usize) -> Result<&'static Arc<Device>, Code> {
    let ordinal = pool.checked_sub(POOLS).and_then(|ordinal| i32::try_from(ordinal).ok());
    crate::device::device(ordinal.ok_or(Code::INVALID_VALUE)?).map_err(|_| Code::INVALID_VALUE)
}

fn allocate(device: &Device, address: Out<u64>, bytes: usize) -> Result<(), Code> {
    journal::detail(|| format!("bytes={bytes}"));
    if bytes == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let base = device.book.allocate(bytes as u64).map_err(|_| Code::OUT_OF_MEMORY)?;
    stored(address.put(base))
}

/// Memory that a graph allocates and frees is not modelled.
fn uncaptured(owned: Owned<Stream>) -> Result<Owned<Stream>, Code> {
    match owned.value.capture() {
        None => Ok(owned),
        Some(capture) => {
            capture.invalidate();
            eprintln!("fakecuda: memory allocated or freed inside a graph is not modelled");
            Err(Code::STREAM_CAPTURE_UNSUPPORTED)
        }
    }
}

/// An address that is wrong at the call.
fn invalid(symbol: &str, bad: &BadAddress) -> Code {
    eprintln!("fakecuda: {symbol}: {bad}");
    Code::INVALID_VALUE
}

/// An address that has become wrong by the time the stream got there.
fn fault(symbol: &str, bad: &BadAddress) -> Failure {
    Failure::new(Code::ILLEGAL_ADDRESS, format!("{symbol}: {bad}"))
}

fn checked(symbol: &str, device: &Device, address: u64, bytes: usize) -> Result<(), Code> {
    journal::detail(|| format!("bytes={bytes}"));
    device.book.find(address, bytes as u64).map(drop).map_err(|bad| invalid(symbol, &bad))
}

fn submit_up(
    stream: &Arc<Stream>,
    device: &'static Arc<Device>,
    to: u64,
    from: Host,
    bytes: usize,
) -> Result<(), Code> {
    const NAME: &str = "copy to the device";
    if bytes == 0 {
        return Ok(());
    }
    if from.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    checked(NAME, device, to, bytes)?;
    let copy = move || {
        let mut staged = vec![0; bytes];
        from.read(&mut staged);
        staged
    };
    if stream.capture().is_some() || device.is_pinned(from.address(), bytes) {
        return stream.submit(Work::new(move || device.book.write(to, &copy()).map_err(|bad| fault(NAME, &bad))));
    }
    let staged = copy();
    stream.submit(Work::new(move || device.book.write(to, &staged).map_err(|bad| fault(NAME, &bad))))
}

fn submit_down(
    stream: &Arc<Stream>,
    device: &'static Arc<Device>,
    to: Host,
    from: u64,
    bytes: usize,
) -> Result<(), Code> {
    const NAME: &str = "copy to the host";
    if bytes == 0 {
        return Ok(());
    }
    if to.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    checked(NAME, device, from, bytes)?;
    stream.submit(Work::new(move || {
        let mut staged = vec![0; bytes];
        device.book.read(from, &mut staged).map_err(|bad| fault(NAME, &bad))?;
        to.write(&staged);
        Ok(())
    }))
}

fn submit_across(
    stream: &Arc<Stream>,
    target: &'static Arc<Device>,
    to: u64,
    source: &'static Arc<Device>,
    from: u64,
    bytes: usize,
) -> Result<(), Code> {
    const NAME: &str = "copy on the device";
    if bytes == 0 {
        return Ok(());
    }
    checked(NAME, target, to, bytes)?;
    checked(NAME, source, from, bytes)?;
    stream.submit(Work::new(move || {
        let mut staged = vec![0; bytes];
        let read = source.book.read(from, &mut staged);
        read.and_then(|()| target.book.write(to, &staged)).map_err(|bad| fault(NAME, &bad))
    }))
}

fn submit_fill(
    stream: &Arc<Stream>,
    device: &'static Arc<Device>,
    to: u64,
    byte: u8,
    bytes: usize,
) -> Result<(), Code> {
    const NAME: &str = "fill";
    if bytes == 0 {
        return Ok(());
    }
    checked(NAME, device, to, bytes)?;
    stream.submit(Work::new(move || {
        let (block, offset) = device.book.find(to, bytes as u64).map_err(|bad| fault(NAME, &bad))?;
        block.words.fill(offset, bytes, byte);
        Ok(())
    }))
}
