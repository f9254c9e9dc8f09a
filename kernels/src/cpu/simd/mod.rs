//! The one room of the CPU backend that may say `unsafe`: intrinsics, and slices shared out over threads.
//!
//! Everything here has a safe face. Loops over slices are written once in plain Rust ([`math`]) and compiled twice, for
//! any x86-64 and for AVX2 + FMA; which of the two runs is found out at run time. Both add in the same order, so they
//! agree bit for bit. The matrix product ([`gemm`]) has a hand-written tile for AVX2.
#![expect(unsafe_code, reason = "vector intrinsics and disjoint tiles of one output; each block says why it is sound")]

pub(crate) mod gemm;
pub(crate) mod math;
pub(crate) mod transpose;

/// The vector instructions this backend computes with here, for people.
pub fn vector_units() -> &'static str {
    if has_avx2() { "AVX2 with FMA" } else { "the compiler's baseline (no AVX2 with FMA)" }
}

/// Whether this machine has AVX2 and FMA (the answer is cached by the standard library).
#[inline]
pub(crate) fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}
