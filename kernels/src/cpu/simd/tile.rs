//! A register tile of a matrix product, by the width of the machine's vectors.

use super::{Vectors, gemm::PANEL};

/// Rows and columns of the greatest tile of any width.
const TALL: usize = 12;
const WIDE: usize = 2 * PANEL;

/// Operands of one register tile.
pub(super) struct Tile {
    /// How much of k is summed.
    pub depth: usize,
    pub a: *const f32,
    /// Distance between rows of A.
    pub row: usize,
    /// Distance between columns of A.
    pub column: usize,
    pub b: *const f32,
    /// Distance between panels of B.
    pub panel: usize,
    /// Distance between rows of B.
    pub step: usize,
    /// Whether C is added to.
    pub add: bool,
}

impl Vectors {
    /// Rows and columns of a tile. AVX-512: 12 x 2 accumulators, 2 of B and the broadcast fill 27 of 32 registers;
    /// AVX2: 6 x 2 accumulators, 2 of B and 1-2 of A fill the sixteen.
    pub(super) fn tile(self) -> (usize, usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => (TALL, WIDE),
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => (6, PANEL),
            Vectors::Plain => (4, PANEL),
        }
    }
}

impl Tile {
    /// # Safety
    /// `vectors` is at most what this machine has; `height` and `width` at most its tile. `a` is readable for `height`
    /// rows and `depth` columns, `b` for `depth` rows of every panel that `width` touches, C writable for `height` rows
    /// of `width`.
    pub(super) unsafe fn run(&self, vectors: Vectors, height: usize, width: usize, c: *mut f32, stride: usize) {
        if width.is_multiple_of(PANEL) {
            // SAFETY: the caller's promise.
            return unsafe { self.dispatch(vectors, height, width / PANEL, c, stride) };
        }
        let mut edge = [0.0f32; TALL * WIDE];
        let panels = width.div_ceil(PANEL);
        // SAFETY: C is writable for `height` rows of `width`; the scratch tile has room for any.
        unsafe {
            for i in 0..height {
                for j in 0..width {
                    edge[i * WIDE + j] = if self.add { *c.add(i * stride + j) } else { 0.0 };
                }
            }
            self.dispatch(vectors, height, panels, edge.as_mut_ptr(), WIDE);
            for i in 0..height {
                for j in 0..width {
                    *c.add(i * stride + j) = edge[i * WIDE + j];
                }
            }
        }
    }

    /// # Safety
    /// As [`Tile::run`], with whole panels in C.
    unsafe fn dispatch(&self, vectors: Vectors, height: usize, panels: usize, c: *mut f32, stride: usize) {
        /// Calls the tile of as many rows as there are.
        macro_rules! by_height {
            ($tile:ident, $panels:literal, [$($rows:literal)*]) => {
                match height {
                    $($rows => self.$tile::<$rows, $panels>(c, stride),)*
                    _ => unreachable!("a tile has at most as many rows as its vectors allow"),
                }
            };
        }
        // SAFETY: the caller's promise.
        unsafe {
            match (vectors, panels) {
                #[cfg(target_arch = "x86_64")]
                (Vectors::Avx512, 1) => by_height!(avx512, 1, [1 2 3 4 5 6 7 8 9 10 11 12]),
                #[cfg(target_arch = "x86_64")]
                (Vectors::Avx512, _) => by_height!(avx512, 2, [1 2 3 4 5 6 7 8 9 10 11 12]),
                #[cfg(target_arch = "x86_64")]
                (Vectors::Avx2, _) => by_height!(avx2, 1, [1 2 3 4 5 6]),
                (Vectors::Plain, _) => by_height!(plain, 1, [1 2 3 4]),
            }
        }
    }

    /// Calls `step` once per row of depth, four to a turn of the loop: 5% faster than one by one (docs/lab.md).
    #[inline(always)]
    fn each_depth(&self, mut step: impl FnMut()) {
        for _ in 0..self.depth / 4 {
            step();
            step();
            step();
            step();
        }
        for _ in 0..self.depth % 4 {
            step();
        }
    }

    /// # Safety
    /// As [`Tile::dispatch`], on a machine with AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn avx512<const ROWS: usize, const PANELS: usize>(&self, c: *mut f32, stride: usize) {
        use std::arch::x86_64::{
            _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
        };
        let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
        let (row, column) = (self.row, self.column);
        // A row's address is one of these plus 0, 1 or 2 rows: few enough registers for all of them.
        let mut a = [self.a; 4];
        for (i, base) in a.iter_mut().enumerate() {
            *base = base.wrapping_add(3 * i * row);
        }
        let mut b = self.b;
        // SAFETY: reads stay within `ROWS` rows and `depth` columns of A and `depth` rows of B's panels, writes within
        // `ROWS` rows of C; pointers step past the end only after the last read, and wrapping_add allows that.
        unsafe {
            self.each_depth(|| {
                let mut right = [_mm512_setzero_ps(); PANELS];
                for (p, right) in right.iter_mut().enumerate() {
                    *right = _mm512_loadu_ps(b.add(p * self.panel));
                }
                for (i, sum) in sums.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(*a[i / 3].add(i % 3 * row));
                    for (sum, right) in sum.iter_mut().zip(&right) {
                        *sum = _mm512_fmadd_ps(value, *right, *sum);
                    }
                }
                for base in &mut a {
                    *base = base.wrapping_add(column);
                }
                b = b.wrapping_add(self.step);
            });
            for (i, sum) in sums.iter().enumerate() {
                for (p, sum) in sum.iter().enumerate() {
                    let out = c.add(i * stride + p * PANEL);
                    let sum = if self.add { _mm512_add_ps(_mm512_loadu_ps(out), *sum) } else { *sum };
                    _mm512_storeu_ps(out, sum);
                }
            }
        }
    }

    /// # Safety
    /// As [`Tile::dispatch`], on a machine with AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const ROWS: usize, const PANELS: usize>(&self, c: *mut f32, stride: usize) {
        use std::arch::x86_64::{
            _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps,
        };
        const { assert!(PANELS == 1, "an AVX2 tile is one panel wide") };
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        let (mut a, mut b) = (self.a, self.b);
        let (row, column) = (self.row, self.column);
        // SAFETY: as in `avx512`.
        unsafe {
            self.each_depth(|| {
                let (left, right) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
                for (i, sum) in sums.iter_mut().enumerate() {
                    let value = _mm256_broadcast_ss(&*a.add(i * row));
                    sum[0] = _mm256_fmadd_ps(value, left, sum[0]);
                    sum[1] = _mm256_fmadd_ps(value, right, sum[1]);
                }
                a = a.wrapping_add(column);
                b = b.wrapping_add(self.step);
            });
            for (i, sum) in sums.iter().enumerate() {
                let out = c.add(i * stride);
                if self.add {
                    _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), sum[0]));
                    _mm256_storeu_ps(out.add(8), _mm256_add_ps(_mm256_loadu_ps(out.add(8)), sum[1]));
                } else {
                    _mm256_storeu_ps(out, sum[0]);
                    _mm256_storeu_ps(out.add(8), sum[1]);
                }
            }
        }
    }

    /// Rust that the compiler vectorises: four rows of sixteen sums are sixteen registers of NEON.
    ///
    /// # Safety
    /// As [`Tile::dispatch`].
    unsafe fn plain<const ROWS: usize, const PANELS: usize>(&self, c: *mut f32, stride: usize) {
        const { assert!(PANELS == 1, "a plain tile is one panel wide") };
        let mut sums = [[0.0f32; PANEL]; ROWS];
        // SAFETY: the caller's promise covers `ROWS` rows of A and C and `depth` rows of the panel.
        unsafe {
            for k in 0..self.depth {
                let right = &*self.b.add(k * self.step).cast::<[f32; PANEL]>();
                for (i, sums) in sums.iter_mut().enumerate() {
                    let value = *self.a.add(i * self.row + k * self.column);
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = multiply_add(value, *right, *sum);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                for (j, sum) in sums.iter().enumerate() {
                    let out = c.add(i * stride + j);
                    *out = if self.add { *out + sum } else { *sum };
                }
            }
        }
    }
}

/// `a * b + c`, rounded once where the target has an instruction for it: on ARM the same bits as on x86-64 with FMA.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}
