//! A GPU with one stream: what is issued runs in order. The only place that talks to the driver.
//!
//! Device memory is no memory of this process, so a wrong address in a launch cannot break it; what could, the number
//! and sizes of a kernel's arguments, is checked against the kernel's own declaration.
#![expect(unsafe_code, reason = "the driver's interface is C")]

use std::{
    collections::HashMap,
    ffi::c_void,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use cudarc::{
    driver::{
        CudaContext, CudaEvent, CudaFunction, CudaSlice, CudaStream, DevicePtr, DriverError, result,
        sys::{self, CUdevice_attribute_enum as Attribute, CUfunction_attribute_enum as FunctionAttribute},
    },
    nvrtc::Ptx,
};

use super::{
    launch::{Launch, SHARED_PLAIN},
    ptx,
};
use crate::error::KernelError;

/// Of the compute capability that the PTX is compiled for, 8.0; older devices do not take it.
const LEAST_MAJOR: i32 = 8;

/// What a GPU is.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Its number among the process's devices.
    pub ordinal: usize,
    /// As the driver names it.
    pub name: String,
    /// The newest CUDA that its driver knows, 1000 times the major and 10 times the minor version.
    pub driver: i32,
    /// Major and minor.
    pub compute_capability: (i32, i32),
    /// Memory, bytes.
    pub memory: usize,
    /// Memory that is free, bytes.
    pub free: usize,
    /// Multiprocessors.
    pub multiprocessors: i32,
    /// Memory's bandwidth by clock and bus width, bytes per second; 0 where the driver does not say.
    pub bandwidth: f64,
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg {
    Address(u64),
    U32(u32),
    U64(u64),
    F32(f32),
}

impl Arg {
    fn bytes(self) -> usize {
        match self {
            Self::Address(_) | Self::U64(_) => 8,
            Self::U32(_) | Self::F32(_) => 4,
        }
    }

    /// Its bits, in the first of eight bytes on.
    fn bits(self) -> u64 {
        match self {
            Self::Address(value) | Self::U64(value) => value,
            Self::U32(value) => value.into(),
            Self::F32(value) => value.to_bits().into(),
        }
    }
}

/// A piece of device memory, given back when dropped.
#[derive(Debug)]
pub(crate) struct Region {
    slice: CudaSlice<u8>,
    address: u64,
}

impl Region {
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.slice.len()
    }
}

/// A kernel ready to be launched.
struct Loaded {
    function: CudaFunction,
    /// Sizes of its parameters, bytes.
    parameters: Vec<usize>,
    /// Dynamic shared memory that it may have, bytes.
    shared: AtomicU32,
}

/// An open GPU.
pub(crate) struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: Mutex<HashMap<&'static str, Arc<Loaded>>>,
    ordinal: usize,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{}", self.ordinal)
    }
}

/// How many GPUs there are: 0 without a driver.
///
/// # Errors
/// When there is a driver that does not start.
pub(crate) fn count() -> Result<usize, KernelError> {
    // SAFETY: loads a library, whose initialisers run as they would in any program that links it.
    if !unsafe { sys::is_culib_present() } {
        return Ok(0);
    }
    match CudaContext::device_count() {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        // A driver's library with no device behind it, as in a container that was given none.
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(error) => Err(KernelError::Absent { device: "cuda".into(), reason: said(error) }),
    }
}

impl Device {
    /// Opens a GPU.
    ///
    /// # Errors
    /// When there is none of this number, or it is too old.
    pub(crate) fn open(ordinal: usize) -> Result<Self, KernelError> {
        let absent = |reason| KernelError::Absent { device: format!("cuda:{ordinal}"), reason };
        // SAFETY: as in `count`.
        if !unsafe { sys::is_culib_present() } {
            return Err(absent("the driver's library (libcuda.so.1) was not found on this machine".into()));
        }
        let devices = count()?;
        if ordinal >= devices {
            return Err(absent(format!("this machine has {devices} devices, counted from 0")));
        }
        let context = CudaContext::new(ordinal).map_err(|error| absent(said(error)))?;
        let (major, minor) = context.compute_capability().map_err(|error| absent(said(error)))?;
        if major < LEAST_MAJOR {
            let reason =
                format!("its compute capability is {major}.{minor}, the kernels are for {LEAST_MAJOR}.0 and newer");
            return Err(absent(reason));
        }
        // SAFETY: with one stream, whatever is issued later runs later: there is nothing for events to order.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(|error| absent(said(error)))?;
        Ok(Self { context, stream, kernels: Mutex::default(), ordinal })
    }

    pub(crate) fn facts(&self) -> Result<Facts, KernelError> {
        let asked = |operation| move |error| self.refused(operation, error);
        let attribute = |which| self.context.attribute(which).map_err(asked("attribute"));
        let (free, memory) = self.context.mem_get_info().map_err(asked("memory"))?;
        let clock = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?; // kHz
        let width = attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?; // bits
        Ok(Facts {
            ordinal: self.ordinal,
            driver: driver_version().map_err(asked("driver version"))?,
            name: self.context.name().map_err(asked("name"))?,
            compute_capability: self.context.compute_capability().map_err(asked("compute capability"))?,
            memory,
            free,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            bandwidth: 2.0 * 1e3 * f64::from(clock) * f64::from(width) / 8.0,
        })
    }

    pub(crate) fn uuid(&self) -> Result<[u8; 16], KernelError> {
        let uuid = self.context.uuid().map_err(|error| self.refused("uuid", error))?;
        Ok(uuid.bytes.map(|byte| u8::from_ne_bytes(byte.to_ne_bytes())))
    }

    /// The stream, for libraries that issue to it.
    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Makes the calling thread's driver calls this device's.
    pub(crate) fn bind(&self) -> Result<(), KernelError> {
        self.context.bind_to_thread().map_err(|error| self.refused("bind", error))
    }

    /// So many bytes, contents unspecified.
    pub(crate) fn region(&self, bytes: usize) -> Result<Region, KernelError> {
        // SAFETY: nothing on the host reads it, and no kernel before it is written.
        let slice = unsafe { self.stream.alloc::<u8>(bytes) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = self.context.mem_get_info().unwrap_or((0, 0));
                KernelError::NoRoom { device: format!("cuda:{}", self.ordinal), wanted: bytes, free, total }
            }
            _ => self.refused("allocation", error),
        })?;
        let address = slice.device_ptr(&self.stream).0;
        Ok(Region { slice, address })
    }

    /// Copies bytes to the device; they may be used again when this returns.
    pub(crate) fn write(&self, to: u64, bytes: &[u8]) -> Result<(), KernelError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: from pageable memory the driver copies what it still needs before it returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }
            .map_err(|error| self.refused("copy to the device", error))
    }

    /// Copies bytes from the device, after everything issued before.
    pub(crate) fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), KernelError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `bytes` is there until the stream is done, which is waited for.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, from, self.stream.cu_stream()) };
        let done = self.stream.synchronize();
        copied.and(done).map_err(|error| self.refused("copy from the device", error))
    }

    pub(crate) fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), KernelError> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: device memory only; both pieces are the caller's.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(|error| self.refused("copy on the device", error))
    }

    pub(crate) fn zero(&self, at: u64, bytes: usize) -> Result<(), KernelError> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: device memory only; the piece is the caller's.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream.cu_stream()) }
            .map_err(|error| self.refused("memset", error))
    }

    /// Waits for everything issued; what failed of it is said here.
    pub(crate) fn synchronise(&self) -> Result<(), KernelError> {
        self.bind()?;
        self.stream.synchronize().map_err(|error| self.refused("synchronisation", error))
    }

    /// A mark in the stream, with the time at which it is come to.
    pub(crate) fn mark(&self) -> Result<CudaEvent, KernelError> {
        let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        self.stream.record_event(timed).map_err(|error| self.refused("cuEventRecord", error))
    }

    /// Seconds between two marks that the stream has come past.
    pub(crate) fn between(&self, first: &CudaEvent, second: &CudaEvent) -> Result<f64, KernelError> {
        let milliseconds = first.elapsed_ms(second).map_err(|error| self.refused("cuEventElapsedTime", error))?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    /// Issues a kernel, where there is something for it to do.
    ///
    /// # Panics
    /// When the arguments are not those that the kernel declares.
    pub(crate) fn launch(&self, launch: &Launch, args: &[Arg]) -> Result<(), KernelError> {
        if launch.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let loaded = self.kernel(launch.kernel)?;
        let sizes: Vec<usize> = args.iter().map(|arg| arg.bytes()).collect();
        assert_eq!(sizes, loaded.parameters, "sizes of {}'s arguments", launch.kernel);
        self.allow_shared(&loaded, launch)?;
        let mut bits: Vec<u64> = args.iter().map(|arg| arg.bits()).collect();
        let mut pointers: Vec<*mut c_void> = bits.iter_mut().map(|bits| std::ptr::from_mut(bits).cast()).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        // SAFETY: as many arguments as declared, each of its declared size; the driver copies them before it returns.
        unsafe {
            result::launch_kernel(
                loaded.function.cu_function(),
                (gx, gy, gz),
                (bx, by, bz),
                launch.shared,
                self.stream.cu_stream(),
                &mut pointers,
            )
        }
        .map_err(|error| self.refused(launch.kernel, error))
    }

    /// Much shared memory has to be asked for.
    fn allow_shared(&self, loaded: &Loaded, launch: &Launch) -> Result<(), KernelError> {
        if launch.shared > loaded.shared.load(Ordering::Relaxed) {
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let set = loaded.function.set_attribute(attribute, launch.shared.cast_signed());
            set.map_err(|error| self.refused(launch.kernel, error))?;
            loaded.shared.store(launch.shared, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A kernel, loaded with its module on the first use of one of them.
    fn kernel(&self, name: &'static str) -> Result<Arc<Loaded>, KernelError> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = kernels.get(name) {
            return Ok(Arc::clone(loaded));
        }
        let refused = |error| self.refused(name, error);
        let of_it = ptx::MODULES.iter().find(|module| module.kernels.contains(&name));
        let ptx::Module { text, kernels: entries, .. } = of_it.expect("launches name kernels that are embedded");
        let module = self.context.load_module(Ptx::from_src(*text)).map_err(refused)?;
        for &entry in *entries {
            let function = module.load_function(entry).map_err(refused)?;
            let loaded = Loaded { function, parameters: parameters(text, entry), shared: SHARED_PLAIN.into() };
            kernels.insert(entry, Arc::new(loaded));
        }
        Ok(Arc::clone(&kernels[name]))
    }

    pub(crate) fn refused(&self, operation: &'static str, error: DriverError) -> KernelError {
        KernelError::Device { operation, reason: format!("cuda:{}: {}", self.ordinal, said(error)) }
    }
}

fn driver_version() -> Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: written to before the call returns.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(version)
}

/// What the driver says of an error: its name and its meaning.
pub(crate) fn said(error: DriverError) -> String {
    let text = |said: Result<&std::ffi::CStr, DriverError>| said.ok().map(|text| text.to_string_lossy().into_owned());
    let name = text(error.error_name()).unwrap_or_else(|| format!("{:?}", error.0));
    match text(error.error_string()) {
        Some(meaning) => format!("{meaning} ({name})"),
        None => name,
    }
}

/// Sizes of a kernel's parameters as its PTX declares them, bytes.
fn parameters(text: &str, kernel: &str) -> Vec<usize> {
    let head = format!(".entry {kernel}(");
    let declared = text.split_once(&head).map_or("", |(_, after)| after).split(')').next().unwrap_or("");
    let size = |line: &str| match line.trim().strip_prefix(".param .")?.split_whitespace().next()? {
        "u64" | "b64" | "s64" | "f64" => Some(8),
        "u32" | "b32" | "s32" | "f32" => Some(4),
        _ => None,
    };
    declared.lines().filter_map(size).collect()
}

/// Whether a library can be loaded; cudarc panics where one is missing, so it is asked first.
pub(crate) fn has_library(present: unsafe fn() -> bool) -> bool {
    // SAFETY: loads a library, whose initialisers run as they would in any program that links it.
    unsafe { present() }
}
