//! The status numbers of the three libraries, each its own type. Numbers and texts are those of the CUDA 12.8 headers.

use std::ffi::CStr;

/// A status of one of the libraries: what an entry point returns to its C caller.
pub trait Status: Sized {
    /// The number that the C caller sees; 0 is success.
    fn number(&self) -> i32;
    /// The status with this number, as a fault plan asks for it.
    fn from_number(number: i32) -> Self;
}

/// A `CUresult` other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub i32);

/// A `cublasStatus_t` other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LtCode(pub i32);

/// A `ncclResult_t` other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NcclCode(pub i32);

macro_rules! statuses {
    ($($kind:ident),*) => { $(
        impl Status for $kind {
            fn number(&self) -> i32 { self.0 }
            fn from_number(number: i32) -> Self { $kind(number) }
        }
    )* };
}
statuses!(Code, LtCode, NcclCode);

/// A driver error under a call of cuBLASLt.
impl From<Code> for LtCode {
    fn from(code: Code) -> LtCode {
        if code == Code::OUT_OF_MEMORY { LtCode::ALLOC_FAILED } else { LtCode::EXECUTION_FAILED }
    }
}

/// A driver error under a call of NCCL.
impl From<Code> for NcclCode {
    fn from(_: Code) -> NcclCode {
        NcclCode::UNHANDLED_CUDA_ERROR
    }
}

macro_rules! codes {
    ($($constant:ident = $number:literal, $name:literal, $text:literal;)*) => {
        impl Code {
            $(#[doc = $text] pub const $constant: Code = Code($number);)*

            /// The enumerator's name, `cuGetErrorName`; `None` for a number that no driver returns.
            pub fn name(number: i32) -> Option<&'static CStr> {
                match number { 0 => Some(c"CUDA_SUCCESS"), $($number => Some($name),)* _ => None }
            }

            /// The sentence of `cuGetErrorString`.
            pub fn text(number: i32) -> Option<&'static str> {
                match number { 0 => Some("no error\0"), $($number => Some(concat!($text, "\0")),)* _ => None }
            }
        }
    };
}

codes! {
    INVALID_VALUE = 1, c"CUDA_ERROR_INVALID_VALUE", "invalid argument";
    OUT_OF_MEMORY = 2, c"CUDA_ERROR_OUT_OF_MEMORY", "out of memory";
    NOT_INITIALIZED = 3, c"CUDA_ERROR_NOT_INITIALIZED", "initialization error";
    DEINITIALIZED = 4, c"CUDA_ERROR_DEINITIALIZED", "driver shutting down";
    DEVICE_UNAVAILABLE = 46, c"CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable";
    NO_DEVICE = 100, c"CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected";
    INVALID_DEVICE = 101, c"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal";
    INVALID_IMAGE = 200, c"CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid";
    INVALID_CONTEXT = 201, c"CUDA_ERROR_INVALID_CONTEXT", "invalid device context";
    NO_BINARY_FOR_GPU = 209, c"CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device";
    ECC_UNCORRECTABLE = 214, c"CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered";
    INVALID_PTX = 218, c"CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed";
    NVLINK_UNCORRECTABLE = 220, c"CUDA_ERROR_NVLINK_UNCORRECTABLE", "uncorrectable NVLink error detected during the execution";
    UNSUPPORTED_PTX_VERSION = 222, c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain.";
    FILE_NOT_FOUND = 301, c"CUDA_ERROR_FILE_NOT_FOUND", "file not found";
    OPERATING_SYSTEM = 304, c"CUDA_ERROR_OPERATING_SYSTEM", "OS call failed or operation not supported on this OS";
    INVALID_HANDLE = 400, c"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle";
    ILLEGAL_STATE = 401, c"CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state";
    NOT_FOUND = 500, c"CUDA_ERROR_NOT_FOUND", "named symbol not found";
    NOT_READY = 600, c"CUDA_ERROR_NOT_READY", "device not ready";
    ILLEGAL_ADDRESS = 700, c"CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered";
    LAUNCH_OUT_OF_RESOURCES = 701, c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch";
    LAUNCH_TIMEOUT = 702, c"CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated";
    ASSERT = 710, c"CUDA_ERROR_ASSERT", "device-side assert triggered";
    ILLEGAL_INSTRUCTION = 715, c"CUDA_ERROR_ILLEGAL_INSTRUCTION", "an illegal instruction was encountered";
    MISALIGNED_ADDRESS = 716, c"CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address";
    LAUNCH_FAILED = 719, c"CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure";
    NOT_PERMITTED = 800, c"CUDA_ERROR_NOT_PERMITTED", "operation not permitted";
    NOT_SUPPORTED = 801, c"CUDA_ERROR_NOT_SUPPORTED", "operation not supported";
    SYSTEM_NOT_READY = 802, c"CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized";
    SYSTEM_DRIVER_MISMATCH = 803, c"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination";
    STREAM_CAPTURE_UNSUPPORTED = 900, c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing";
    STREAM_CAPTURE_INVALIDATED = 901, c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture";
    STREAM_CAPTURE_MERGE = 902, c"CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences";
    STREAM_CAPTURE_UNMATCHED = 903, c"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began";
    STREAM_CAPTURE_UNJOINED = 904, c"CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work";
    STREAM_CAPTURE_ISOLATION = 905, c"CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream";
    STREAM_CAPTURE_IMPLICIT = 906, c"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking stream";
    CAPTURED_EVENT = 907, c"CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream";
    STREAM_CAPTURE_WRONG_THREAD = 908, c"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread";
    UNKNOWN = 999, c"CUDA_ERROR_UNKNOWN", "unknown error";
}

impl LtCode {
    /// `CUBLAS_STATUS_NOT_INITIALIZED`: no such handle.
    pub const NOT_INITIALIZED: LtCode = LtCode(1);
    /// `CUBLAS_STATUS_ALLOC_FAILED`.
    pub const ALLOC_FAILED: LtCode = LtCode(3);
    /// `CUBLAS_STATUS_INVALID_VALUE`: shapes, pointers or sizes that do not fit together.
    pub const INVALID_VALUE: LtCode = LtCode(7);
    /// `CUBLAS_STATUS_EXECUTION_FAILED`.
    pub const EXECUTION_FAILED: LtCode = LtCode(13);
    /// `CUBLAS_STATUS_NOT_SUPPORTED`: a combination of types or options that is not modelled.
    pub const NOT_SUPPORTED: LtCode = LtCode(15);
}

impl NcclCode {
    /// A call of the driver failed.
    pub const UNHANDLED_CUDA_ERROR: NcclCode = NcclCode(1);
    /// A call of the system failed.
    pub const SYSTEM_ERROR: NcclCode = NcclCode(2);
    /// An internal check failed.
    pub const INTERNAL_ERROR: NcclCode = NcclCode(3);
    /// An argument has an impossible value.
    pub const INVALID_ARGUMENT: NcclCode = NcclCode(4);
    /// The calls do not fit together, such as collectives that differ between ranks.
    pub const INVALID_USAGE: NcclCode = NcclCode(5);
    /// A peer is gone.
    pub const REMOTE_ERROR: NcclCode = NcclCode(6);
    /// A non-blocking communicator is still at work.
    pub const IN_PROGRESS: NcclCode = NcclCode(7);

    /// The sentence of `ncclGetErrorString`.
    pub fn text(number: i32) -> &'static CStr {
        match number {
            0 => c"no error",
            1 => c"unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
            2 => c"unhandled system error (run with NCCL_DEBUG=INFO for details)",
            3 => c"internal error - please report this issue to the NCCL developers",
            4 => c"invalid argument (run with NCCL_DEBUG=WARN for details)",
            5 => c"invalid usage (run with NCCL_DEBUG=WARN for details)",
            6 => c"remote process exited or there was a network error",
            7 => c"NCCL operation in progress",
            _ => c"unknown result code",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_the_headers_name_and_sentence() {
        assert_eq!(Code::name(719), Some(c"CUDA_ERROR_LAUNCH_FAILED"));
        assert_eq!(Code::text(2), Some("out of memory\0"));
        assert_eq!(Code::name(12345), None);
    }
}
