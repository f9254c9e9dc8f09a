//! Driver entry points: initialisation, devices, contexts, errors, odds and ends.
#![expect(unsafe_code, reason = "an exported name is unsafe by its nature; there is no unsafe block here")]

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::call::entry_points;
use super::pointers::{In, Out, Text};
use crate::codes::Code;
use crate::context::{self, current, current_uncaptured, initialised};
use crate::device::{device, devices};
use crate::kernel::{THREADS_MAX, shared_max};
use crate::settings::settings;

/// The driver's version: CUDA 12.8.
const VERSION: c_int = 12_080;
/// Multiprocessors of the device; small, because grids sized by it are interpreted.
const MULTIPROCESSORS: c_int = 4;

/// An error of a null result pointer.
pub fn stored(stored: bool) -> Result<(), Code> {
    if stored { Ok(()) } else { Err(Code::INVALID_VALUE) }
}

entry_points! {
fn cuInit(flags: c_uint) -> Code {
    if flags != 0 { return Err(Code::INVALID_VALUE) }
    if devices().is_empty() { return Err(Code::NO_DEVICE) }
    context::initialise();
    Ok(())
}
fn cuDriverGetVersion(version: Out<c_int>) -> Code {
    stored(version.put(VERSION))
}
fn cuDeviceGetCount(count: Out<c_int>) -> Code {
    initialised()?;
    stored(count.put(devices().len() as c_int))
}
fn cuDeviceGet(handle: Out<c_int>, ordinal: c_int) -> Code {
    initialised()?;
    device(ordinal)?;
    stored(handle.put(ordinal))
}
fn cuDeviceGetName(name: Out<c_char>, length: c_int, ordinal: c_int) -> Code {
    initialised()?;
    device(ordinal)?;
    // All of one name, as the cards of one kind are.
    stored(name.put_text("fakecuda", length))
}
fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, ordinal: c_int) -> Code {
    identify(uuid, ordinal)
}
fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, ordinal: c_int) -> Code {
    identify(uuid, ordinal)
}
fn cuDeviceTotalMem_v2(bytes: Out<usize>, ordinal: c_int) -> Code {
    initialised()?;
    stored(bytes.put(device(ordinal)?.book.capacity() as usize))
}
fn cuDeviceGetAttribute(value: Out<c_int>, number: c_int, ordinal: c_int) -> Code {
    initialised()?;
    device(ordinal)?;
    stored(value.put(attribute(number, ordinal).ok_or(Code::INVALID_VALUE)?))
}
fn cuDevicePrimaryCtxRetain(context: Out<usize>, ordinal: c_int) -> Code {
    initialised()?;
    let device = device(ordinal)?;
    device.retain();
    stored(context.put(context::handle(device)))
}
fn cuDevicePrimaryCtxRelease_v2(ordinal: c_int) -> Code {
    initialised()?;
    device(ordinal)?.release()
}
fn cuCtxGetCurrent(context: Out<usize>) -> Code {
    initialised()?;
    stored(context.put(context::current_handle()))
}
fn cuCtxSetCurrent(context: usize) -> Code {
    context::set_current(context)
}
fn cuCtxGetDevice(ordinal: Out<c_int>) -> Code {
    stored(ordinal.put(current()?.ordinal as c_int))
}
fn cuCtxSynchronize() -> Code {
    current_uncaptured()?.synchronise();
    current().map(drop)
}
fn cuCtxSetFlags(_flags: c_uint) -> Code {
    current().map(drop)
}
fn cuCtxGetLimit(value: Out<usize>, limit: c_int) -> Code {
    current()?;
    // The stack and printf sizes of the CUDA guide's defaults.
    let bytes = match limit { 0 => 1024, 1 => 1 << 20, 2 => 8 << 20, _ => return Err(Code::INVALID_VALUE) };
    stored(value.put(bytes))
}
fn cuCtxSetLimit(_limit: c_int, _value: usize) -> Code {
    current().map(drop)
}
fn cuCtxGetCacheConfig(config: Out<c_int>) -> Code {
    current()?;
    stored(config.put(0))
}
fn cuCtxSetCacheConfig(_config: c_int) -> Code {
    current().map(drop)
}
fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) -> Code {
    current()?;
    // Priorities are accepted and change nothing.
    stored(least.put(0) & greatest.put(-5))
}
fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> Code {
    let book = &current()?.book;
    let (all, used) = (book.capacity() as usize, book.used() as usize);
    stored(free.put(all - used) & total.put(all))
}
fn cuGetErrorName(number: c_int, name: Out<*const c_char>) -> Code {
    let text = Code::name(number);
    let pointer = text.map_or(std::ptr::null(), |text| text.as_ptr());
    stored(name.put(pointer) && text.is_some())
}
fn cuGetErrorString(number: c_int, text: Out<*const c_char>) -> Code {
    let found = Code::text(number);
    let pointer = found.map_or(std::ptr::null(), |text| text.as_ptr().cast());
    stored(text.put(pointer) && found.is_some())
}
fn cuProfilerStart() -> Code {
    current().map(drop)
}
fn cuProfilerStop() -> Code {
    current().map(drop)
}
fn cuGetExportTable(table: Out<*const c_void>, _id: In<[u8; 16]>) -> Code {
    // NVRTC looks for the symbol and does without the tables.
    stored(table.put(std::ptr::null()))?;
    Err(Code::NOT_FOUND)
}
fn cuGetProcAddress_v2(symbol: Text, function: Out<*const c_void>, _version: c_int, _flags: u64, status: Out<c_int>) -> Code {
    // Callers that link by this function find nothing here and are told so; cudarc looks symbols up by name.
    symbol.get().ok_or(Code::INVALID_VALUE)?;
    let _optional = status.put(1);
    stored(function.put(std::ptr::null()))?;
    Err(Code::NOT_FOUND)
}
}

/// A device attribute by its `CUdevice_attribute` number.
fn attribute(number: c_int, ordinal: c_int) -> Option<c_int> {
    let (major, minor) = settings().capability;
    Some(match number {
        1..=3 => {
            if number == 3 {
                64
            } else {
                THREADS_MAX as c_int
            }
        }
        5 => c_int::MAX,
        6 | 7 => 65_535,
        8 => 48 << 10,
        9 => 64 << 10,
        10 => 32,
        12 | 82 => 65_536,
        // Clock rates in kHz and the bus width make no claim: a stand-in has no speed.
        13 | 36 => 1_000_000,
        14 => 512,
        15 | 19 | 31 | 40 | 41 => 1,
        16 => MULTIPROCESSORS,
        17 | 18 | 20 | 32 | 34 | 35 => 0,
        33 => ordinal + 1,
        37 => 64,
        38 => 4 << 20,
        39 => 2048,
        75 => major,
        76 => minor,
        78..=80 => 1,
        81 | 97 => shared_max((major, minor)) as c_int + if number == 81 { 1024 } else { 0 },
        106 => 32,
        111 => 1024,
        115 => 1,
        // Managed memory, cooperative launches, clusters and the rest are not modelled.
        number if (1..=157).contains(&number) => 0,
        _ => return None,
    })
}

fn identify(uuid: Out<[u8; 16]>, ordinal: c_int) -> Result<(), Code> {
    initialised()?;
    let mut bytes = *b"insula-fakecuda\0";
    bytes[15] = device(ordinal)?.ordinal as u8;
    stored(uuid.put(bytes))
}
