//! The pointers of C callers, as types that only a C caller can make: the fields are private and nothing here makes
//! one, so every value comes from an argument of an entry point, and with it the caller's promise, in the words of the
//! CUDA documentation, that it points to what the function says.
#![expect(unsafe_code, reason = "C callers hand over raw pointers")]

use std::alloc::Layout;
use std::ffi::{CStr, c_char, c_void};

/// Where a result goes.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Stores the result; false if the pointer is null.
    #[must_use]
    pub fn put(self, value: T) -> bool {
        if !self.0.is_null() {
            // SAFETY: the C caller promises room for one `T` here that nobody else uses during the call.
            unsafe { self.0.write_unaligned(value) };
        }
        !self.0.is_null()
    }

    /// Stores the result `index` of an array; false if the pointer is null.
    #[must_use]
    pub fn put_nth(self, index: usize, value: T) -> bool {
        if !self.0.is_null() {
            // SAFETY: the C caller promises an array that is longer than every index the function's meaning asks for.
            unsafe { self.0.add(index).write_unaligned(value) };
        }
        !self.0.is_null()
    }
}

impl Out<c_char> {
    /// Stores a text of at most `length` bytes with its final zero; false if the pointer is null or nothing fits.
    #[must_use]
    pub fn put_text(self, text: &str, length: i32) -> bool {
        let room = usize::try_from(length).unwrap_or(0);
        if self.0.is_null() || room == 0 {
            return false;
        }
        let count = text.len().min(room - 1);
        // SAFETY: the C caller promises `length` bytes; `count + 1 <= length`, and `text` is ours.
        unsafe {
            self.0.copy_from_nonoverlapping(text.as_ptr().cast(), count);
            self.0.add(count).write(0);
        }
        true
    }
}

/// Where an argument lies.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// The argument; `None` if the pointer is null.
    pub fn get(self) -> Option<T> {
        // SAFETY: the C caller promises one `T` here.
        (!self.0.is_null()).then(|| unsafe { self.0.read_unaligned() })
    }

    /// The argument `index` of an array.
    pub fn nth(self, index: usize) -> Option<T> {
        // SAFETY: the C caller promises an array that is longer than every index the function's meaning asks for.
        (!self.0.is_null()).then(|| unsafe { self.0.add(index).read_unaligned() })
    }
}

/// A text that ends in a zero.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Text(*const c_char);

impl Text {
    /// The text; `None` if the pointer is null or the text is not UTF-8.
    pub fn get(self) -> Option<String> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the C caller promises a zero at the end.
        unsafe { CStr::from_ptr(self.0) }.to_str().ok().map(str::to_owned)
    }
}

/// Host memory, for as long as the function it was given to may use it: beyond the call for asynchronous copies.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Host(*mut c_void);

// SAFETY: a pointer is a number; who reads or writes through it answers for the timing, see `read` and `write`.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    /// The address as a number.
    pub fn address(self) -> usize {
        self.0.addr()
    }

    /// Whether there is nothing.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Copies the first bytes out.
    pub fn read(self, into: &mut [u8]) {
        // SAFETY: the C caller promises this many readable bytes, until the copy is done. The bytes are copied by
        // address, without a reference, because the host may hold one to its buffer.
        unsafe { into.as_mut_ptr().copy_from(self.0.cast(), into.len()) };
    }

    /// Copies bytes in.
    pub fn write(self, from: &[u8]) {
        // SAFETY: the C caller promises this many writable bytes, until the copy is done, and not to touch them before.
        unsafe { self.0.cast::<u8>().copy_from(from.as_ptr(), from.len()) };
    }
}

/// A new piece of page-aligned host memory, or `None` if the host has no more.
pub fn allocate_host(bytes: usize) -> Option<Host> {
    let layout = host_layout(bytes)?;
    // SAFETY: the layout's size is not zero.
    let memory = unsafe { std::alloc::alloc(layout) };
    (!memory.is_null()).then_some(Host(memory.cast()))
}

/// Gives host memory back: `bytes` is the length it was allocated with, which the device's list of pinned ranges has
/// handed out for this address, once.
pub fn free_host(memory: Host, bytes: usize) {
    if let Some(layout) = host_layout(bytes) {
        // SAFETY: `allocate_host` gave the memory with this layout, and the list forgot it, so this is the only time.
        unsafe { std::alloc::dealloc(memory.0.cast(), layout) };
    }
}

fn host_layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1), 4096).ok()
}

/// A function of the host that a stream calls (`CUhostFn`), with its argument.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct HostFunction(Option<unsafe extern "C" fn(*mut c_void)>);

impl HostFunction {
    /// Whether there is none.
    pub fn is_null(self) -> bool {
        self.0.is_none()
    }

    /// Calls it.
    pub fn call(self, argument: Host) {
        if let Some(function) = self.0 {
            // SAFETY: the C caller promises a function that may be called with this argument from any thread.
            unsafe { function(argument.0) };
        }
    }
}

/// `void **kernelParams`: an array of pointers, one a parameter, each to a value as long as the kernel declares.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Parameters(*mut *mut c_void);

impl Parameters {
    /// Copies the parameter `index` out; false if the array or the pointer is null.
    #[must_use]
    pub fn read(self, index: usize, into: &mut [u8]) -> bool {
        if self.0.is_null() {
            return false;
        }
        // SAFETY: the C caller promises a pointer for every parameter that the kernel declares.
        let value = unsafe { self.0.add(index).read_unaligned() };
        if value.is_null() {
            return false;
        }
        // SAFETY: and behind it as many bytes as the kernel declares for it.
        unsafe { into.as_mut_ptr().copy_from(value.cast(), into.len()) };
        true
    }
}
