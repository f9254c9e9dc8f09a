//! The one room of the CPU backend that may say `unsafe`: intrinsics, and slices shared out over threads.
//!
//! Everything here has a safe face. Loops over slices are written once in plain Rust ([`math`]) and compiled for any
//! x86-64, for AVX2 + FMA and for AVX-512; which of them runs is found out at run time. All add in the same order, so
//! they agree bit for bit. The matrix product ([`gemm`]) has hand-written tiles ([`tile`]) for AVX2 and AVX-512.
#![expect(unsafe_code, reason = "vector intrinsics and disjoint tiles of one output; each block says why it is sound")]

pub(crate) mod gemm;
pub(crate) mod math;
mod tile;
pub(crate) mod transpose;

use std::sync::OnceLock;

/// What vectors to compute with, the narrowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Vectors {
    /// What the compiler makes of plain code for the target: SSE2 on x86-64, NEON on ARM.
    Plain,
    /// Eight floats, with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Sixteen floats.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Vectors {
    /// Those that round a multiply-add once, and so agree bit for bit in products.
    #[cfg(test)]
    pub(crate) fn fused() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let all = [Vectors::Avx2, Vectors::Avx512];
        #[cfg(not(target_arch = "x86_64"))]
        let all = [Vectors::Plain];
        all.into_iter()
    }
}

/// The widest vectors this machine has.
#[inline]
pub(crate) fn vectors() -> Vectors {
    static FOUND: OnceLock<Vectors> = OnceLock::new();
    *FOUND.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            let wide = std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512bw")
                && std::arch::is_x86_feature_detected!("avx512dq")
                && std::arch::is_x86_feature_detected!("avx512vl");
            return if wide { Vectors::Avx512 } else { Vectors::Avx2 };
        }
        Vectors::Plain
    })
}

/// The vector instructions this backend computes with here, for people.
pub fn vector_units() -> &'static str {
    match vectors() {
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx512 => "AVX-512",
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx2 => "AVX2 with FMA",
        Vectors::Plain => "the compiler's baseline (no AVX2 with FMA)",
    }
}
