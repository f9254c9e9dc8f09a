//! The interpreter as a device: memory, launches, and how two results are compared.

use std::sync::OnceLock;

use half::bf16;
use insula_kernels::cuda::launch::{Launch, LaunchError, SHARED_MAX};
use insula_kernels::cuda::ptx::MODULES;
use insula_ptxsim::{Arena, Checks, Copies, Counts, Kernel, Module};

/// What a case gives back: what went wrong, in words.
pub type Outcome = Result<(), String>;

/// A rounding to bfloat16: half a unit in the last of 8 bits.
pub const BF16_ROUNDING: f32 = 1.0 / 256.0;
/// A few roundings of float32, and sums added in another order.
pub const F32_ROUNDING: f32 = 4e-6;

/// The kernels to run: those shipped, one module perhaps in a changed text.
#[derive(Default)]
pub struct Programs {
    changed: Option<(&'static str, Module)>,
    copies: Copies,
}

impl Programs {
    /// The kernels as they are shipped; asynchronous copies land as late as they may.
    pub fn shipped() -> Self {
        Self::default()
    }

    /// Asynchronous copies land at once.
    pub fn eager() -> Self {
        Self { changed: None, copies: Copies::Eager }
    }

    /// One module's text replaced.
    pub fn with(module: &'static str, text: &str) -> Result<Self, String> {
        let parsed = Module::parse(text).map_err(|error| error.to_string())?;
        Ok(Self { changed: Some((module, parsed)), copies: Copies::Lazy })
    }

    fn kernel(&self, name: &str) -> &Kernel {
        let (index, module) =
            MODULES.iter().enumerate().find(|(_, module)| module.kernels.contains(&name)).expect("a shipped kernel");
        let parsed = match &self.changed {
            Some((changed, parsed)) if *changed == module.name => parsed,
            _ => shipped(index),
        };
        parsed.kernel(name).expect("listed kernels are in their module's text")
    }
}

fn shipped(index: usize) -> &'static Module {
    static PARSED: [OnceLock<Module>; MODULES.len()] = [const { OnceLock::new() }; MODULES.len()];
    PARSED[index].get_or_init(|| match Module::parse(MODULES[index].text) {
        Ok(parsed) => parsed,
        Err(error) => panic!("{}.ptx: {error}", MODULES[index].name),
    })
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// A device address, or a count of 64 bits.
    U64(u64),
    /// A count of 32 bits.
    U32(u32),
    /// A number.
    F32(f32),
}

impl Arg {
    fn bytes(self) -> Vec<u8> {
        match self {
            Arg::U64(value) => value.to_le_bytes().to_vec(),
            Arg::U32(value) => value.to_le_bytes().to_vec(),
            Arg::F32(value) => value.to_le_bytes().to_vec(),
        }
    }
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Arg::U64(value)
    }
}

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Arg::U32(value)
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Arg::F32(value)
    }
}

/// Arguments in a kernel's order.
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::device::Arg::from($value)),*] };
}

/// A memory and the kernels that work on it.
pub struct Device<'a> {
    arena: Arena,
    programs: &'a Programs,
}

impl<'a> Device<'a> {
    pub fn new(programs: &'a Programs) -> Self {
        Self { arena: Arena::new(), programs }
    }

    /// The address of `values` in an allocation of their own.
    pub fn put<T: bytemuck::Pod>(&self, values: &[T]) -> u64 {
        self.arena.upload(values)
    }

    /// As [`Device::put`], so many elements past the allocation's start: aligned to the element only.
    pub fn put_shifted<T: bytemuck::Pod>(&self, values: &[T], shift: usize) -> u64 {
        let start = self.arena.alloc((shift + values.len()) * size_of::<T>());
        let address = start + (shift * size_of::<T>()) as u64;
        self.arena.put(address, values).expect("the allocation was made for them");
        address
    }

    /// Room for `len` values, full of NaN.
    pub fn room<T>(&self, len: usize) -> u64 {
        self.arena.alloc(len * size_of::<T>())
    }

    /// As [`Device::room`], so many elements past the allocation's start.
    pub fn room_shifted<T>(&self, len: usize, shift: usize) -> u64 {
        self.arena.alloc((len + shift) * size_of::<T>()) + (shift * size_of::<T>()) as u64
    }

    /// The values at an address.
    pub fn get<T: bytemuck::Pod>(&self, address: u64, len: usize) -> Vec<T> {
        self.arena.download(address, len).expect("tests read what they allocated")
    }

    /// Runs a kernel with all checks on.
    pub fn run(&self, launch: Result<Launch, LaunchError>, args: &[Arg]) -> Result<Counts, String> {
        let launch = launch.expect("test shapes are within every limit");
        let kernel = self.programs.kernel(launch.kernel);
        let threads: u32 = launch.block.iter().product();
        assert!(kernel.max_threads().is_some_and(|most| threads <= most), "{}: {threads} threads", launch.kernel);
        assert!(kernel.shared_bytes() + launch.shared as usize <= SHARED_MAX as usize, "{}", launch.kernel);
        let run = insula_ptxsim::Launch {
            kernel,
            grid: launch.grid,
            block: launch.block,
            dynamic_shared: launch.shared,
            params: &packed(kernel, args),
            checks: Checks { copies: self.programs.copies, ..Checks::default() },
        };
        insula_ptxsim::run(&run, &self.arena).map_err(|fault| fault.to_string())
    }
}

/// Arguments where the kernel's text expects them; their sizes must be its parameters'.
fn packed(kernel: &Kernel, args: &[Arg]) -> Vec<u8> {
    let mut bytes = vec![0; kernel.param_bytes()];
    assert_eq!(args.len(), kernel.params().len(), "{}: arguments", kernel.name());
    for (arg, param) in args.iter().zip(kernel.params()) {
        assert_eq!(arg.bytes().len(), param.size, "{}: the argument at {}", kernel.name(), param.offset);
        bytes[param.offset..][..param.size].copy_from_slice(&arg.bytes());
    }
    bytes
}

/// Deterministic values in [-1, 1).
pub fn values(len: usize, seed: u64) -> Vec<f32> {
    let hash = |i: u64| {
        (i.wrapping_add(seed << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (i << 7)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
    };
    (0..len as u64).map(|i| (hash(i) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Deterministic values in [-1, 1), in bfloat16.
pub fn bf16_values(len: usize, seed: u64) -> Vec<bf16> {
    narrow(&values(len, seed))
}

/// Rounded to bfloat16.
pub fn narrow(values: &[f32]) -> Vec<bf16> {
    values.iter().copied().map(bf16::from_f32).collect()
}

/// Widened to float32.
pub fn wide(values: &[bf16]) -> Vec<f32> {
    values.iter().copied().map(bf16::to_f32).collect()
}

/// Each value within `tolerance` of the expected one, relative to it, or to `least` where it is smaller.
pub fn close(what: &str, ours: &[f32], expected: &[f32], tolerance: f32, least: f32) -> Outcome {
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(expected).enumerate() {
        // Not-a-number is never close.
        let near = (a - b).abs() <= tolerance * b.abs().max(least);
        if a != b && !near {
            return Err(format!("{what}[{i}]: {a}, {b} expected"));
        }
    }
    Ok(())
}

/// The same bits.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, ours: &[T], expected: &[T]) -> Outcome {
    match ours.iter().zip(expected).position(|(a, b)| a != b) {
        Some(i) => Err(format!("{what}[{i}]: {:?}, {:?} expected", ours[i], expected[i])),
        None => Ok(()),
    }
}
