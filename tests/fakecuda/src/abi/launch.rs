//! Driver entry points: modules, functions, launches.
#![expect(unsafe_code, reason = "an exported name is unsafe by its nature; there is no unsafe block here")]
#![expect(clippy::disallowed_methods, reason = "cuModuleLoad reads the file that it is given")]

use std::ffi::{c_int, c_uint};
use std::sync::Arc;

use insula_ptxsim::Module;

use super::call::entry_points;
use super::device::stored;
use super::pointers::{Out, Parameters, Text};
use crate::codes::Code;
use crate::context::{FUNCTIONS, MODULES, Owned, current, stream};
use crate::journal;
use crate::kernel::{Function, Shape};
use crate::settings::settings;
use crate::stream::Work;

entry_points! {
fn cuModuleLoadData(handle: Out<usize>, image: Text) -> Code {
    current()?;
    // A cubin is no text; only PTX can be interpreted.
    load(handle, &image.get().ok_or(Code::INVALID_IMAGE)?)
}
fn cuModuleLoad(handle: Out<usize>, path: Text) -> Code {
    current()?;
    let path = path.get().ok_or(Code::INVALID_VALUE)?;
    load(handle, &std::fs::read_to_string(path).map_err(|_| Code::FILE_NOT_FOUND)?)
}
fn cuModuleUnload(handle: usize) -> Code {
    current()?;
    MODULES.remove(handle).map(drop).ok_or(Code::INVALID_HANDLE)
}
fn cuModuleGetFunction(handle: Out<usize>, module: usize, name: Text) -> Code {
    current()?;
    let module = MODULES.get(module).ok_or(Code::INVALID_HANDLE)?;
    let function = Function::find(&module, &name.get().ok_or(Code::INVALID_VALUE)?)?;
    stored(handle.put(FUNCTIONS.insert(Arc::new(function))))
}
fn cuFuncGetAttribute(value: Out<c_int>, attribute: c_int, function: usize) -> Code {
    let function = FUNCTIONS.get(function).ok_or(Code::INVALID_HANDLE)?;
    let (major, minor) = settings().capability;
    let number = match attribute {
        0 => function.threads_max() as c_int,
        1 => function.static_shared() as c_int,
        // Constants, spills and registers are decided by ptxas, which is not here.
        2..=4 | 7 => 0,
        5 | 6 => major * 10 + minor,
        8 => function.dynamic_max() as c_int,
        9 => -1,
        _ => return Err(Code::INVALID_VALUE),
    };
    stored(value.put(number))
}
fn cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) -> Code {
    current()?;
    let function = FUNCTIONS.get(function).ok_or(Code::INVALID_HANDLE)?;
    match attribute {
        8 => {
            let bytes = u32::try_from(value).map_err(|_| Code::INVALID_VALUE)?;
            function.set_dynamic_max(bytes, settings().capability)
        }
        // How the cache is split is a hint.
        9 => Ok(()),
        _ => Err(Code::INVALID_VALUE),
    }
}
fn cuFuncSetCacheConfig(function: usize, _config: c_int) -> Code {
    FUNCTIONS.get(function).map(drop).ok_or(Code::INVALID_HANDLE)
}
fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: Out<c_int>, function: usize, threads: c_int, dynamic_shared: usize,
) -> Code {
    stored(blocks.put(occupancy(function, threads, dynamic_shared)?))
}
fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    blocks: Out<c_int>, function: usize, threads: c_int, dynamic_shared: usize, _flags: c_uint,
) -> Code {
    stored(blocks.put(occupancy(function, threads, dynamic_shared)?))
}
fn cuLaunchKernel(
    function: usize,
    grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
    block_x: c_uint, block_y: c_uint, block_z: c_uint,
    dynamic_shared: c_uint,
    on: usize,
    parameters: Parameters,
    extra: usize,
) -> Code {
    let Owned { value: stream, device } = stream(on)?;
    let function = FUNCTIONS.get(function).ok_or(Code::INVALID_HANDLE)?;
    // A buffer of packed parameters, the other way to hand them over, is not modelled.
    if extra != 0 { return Err(Code::NOT_SUPPORTED) }
    let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], dynamic_shared };
    journal::detail(|| format!("{} grid={:?} block={:?} shared={dynamic_shared}", function.name(), shape.grid, shape.block));
    function.check(&shape)?;
    let packed = pack(&function, parameters)?;
    stream.submit(Work::new(move || function.run(&shape, &packed, &device.book, settings().checks)))
}
}

fn load(handle: Out<usize>, text: &str) -> Result<(), Code> {
    let module = Module::parse(text).map_err(|error| {
        eprintln!("fakecuda: PTX: {error}");
        Code::INVALID_PTX
    })?;
    stored(handle.put(MODULES.insert(Arc::new(module))))
}

/// The parameters as the kernel sees them: copied at the launch, each at its declared offset.
fn pack(function: &Function, parameters: Parameters) -> Result<Vec<u8>, Code> {
    let kernel = function.kernel();
    let mut packed = vec![0; kernel.param_bytes()];
    for (index, param) in kernel.params().iter().enumerate() {
        if !parameters.read(index, &mut packed[param.offset..][..param.size]) {
            return Err(Code::INVALID_VALUE);
        }
    }
    Ok(packed)
}

/// Blocks of a multiprocessor by threads and shared memory alone; registers are not known. The multiprocessor is that
/// of `cuDeviceGetAttribute`: 2048 threads, 32 blocks.
fn occupancy(function: usize, threads: c_int, dynamic_shared: usize) -> Result<c_int, Code> {
    let function = FUNCTIONS.get(function).ok_or(Code::INVALID_HANDLE)?;
    let threads = u32::try_from(threads).ok().filter(|threads| *threads > 0).ok_or(Code::INVALID_VALUE)?;
    if threads > function.threads_max() {
        return Ok(0);
    }
    let shared = function.static_shared() as usize + dynamic_shared;
    let room = crate::kernel::shared_max(settings().capability) as usize;
    let by_shared = room.checked_div(shared).unwrap_or(usize::MAX);
    Ok((2048 / threads.next_multiple_of(32)).min(by_shared.min(32) as u32) as c_int)
}
