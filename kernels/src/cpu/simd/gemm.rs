//! Matrix product: `C (+)= A B`, with B packed in panels of [`PANEL`] columns.
//!
//! ```text
//!            B: panel 0     panel 1                     a panel is [k][16]: 16 neighbouring columns of row k,
//!          k ┌───16───┐   ┌───16───┐                    then of row k + 1, ...; the last one is padded
//!            └────────┘   └────────┘
//!   A: 6 rows x k          C: 6 x 16 in twelve registers, k summed in blocks that stay in the L1 cache
//! ```
//! Each element of C is the same chain of operations (over k in order, in blocks that depend on k alone) wherever it
//! falls in a tile, whatever the number of rows, columns or threads: results don't depend on any of them. That is why
//! this is not the `gemm` crate, whose sums change with the shape.

use rayon::prelude::*;

use super::has_avx2;

/// Columns of a packed panel: two AVX registers.
pub(crate) const PANEL: usize = 16;
/// Rows of a register tile: 6 x 2 accumulators, 2 of B and 1-2 of A fill the sixteen registers.
const TILE: usize = 6;
/// Most of k summed in one go: a panel of it (20 KB) and six rows of A (7.5 KB) share a 32 KB L1 cache.
const DEPTH_MAX: usize = 320;
/// Rows of C per task: A's block (96 x 320 floats) stays in the L2 cache.
const ROWS_PER_TASK: usize = 96;
/// Most columns of C per task: enough tasks for many threads, few enough that A's block is reread seldom.
const COLUMNS_PER_TASK: usize = 512;

/// The left operand: element (i, k) is `data[i * row + k * column]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left<'a> {
    /// Elements.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub column: usize,
}

impl<'a> Left<'a> {
    /// A row-major matrix of rows `row` apart.
    pub(crate) fn rows(data: &'a [f32], row: usize) -> Self {
        Self { data, row, column: 1 }
    }

    /// The transpose of a row-major matrix of rows `column` apart.
    pub(crate) fn transposed(data: &'a [f32], column: usize) -> Self {
        Self { data, row: 1, column }
    }

    fn check(&self, m: usize, k: usize) {
        assert!((m - 1) * self.row + (k - 1) * self.column < self.data.len(), "left operand is shorter than {m} x {k}");
    }
}

/// The right operand: panels `panel` values apart, of which the first rows count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Right<'a> {
    /// Elements.
    pub data: &'a [f32],
    /// Distance between panels.
    pub panel: usize,
}

impl<'a> Right<'a> {
    /// Panels of exactly `k` rows.
    pub(crate) fn packed(data: &'a [f32], k: usize) -> Self {
        Self { data, panel: k * PANEL }
    }
}

/// Sizes of a product and what happens to C: `m x k` times `k x n`, rows of C `stride` apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    /// Rows of C.
    pub m: usize,
    /// Columns of A.
    pub k: usize,
    /// Columns of C.
    pub n: usize,
    /// Distance between rows of C.
    pub stride: usize,
    /// Whether C is added to.
    pub add: bool,
}

/// Length of B packed for `k x n`.
pub(crate) fn packed_len(k: usize, n: usize) -> usize {
    n.div_ceil(PANEL) * PANEL * k
}

/// The product on all threads of the current rayon pool.
pub(crate) fn parallel(product: Product, a: Left<'_>, b: Right<'_>, c: &mut [f32]) {
    if product.m == 0 || product.n == 0 {
        return;
    }
    check(product, a, b, c.len());
    let columns = columns_per_task(product.n);
    let (tall, wide) = (product.m.div_ceil(ROWS_PER_TASK), product.n.div_ceil(columns));
    let out = Shared(c.as_mut_ptr());
    (0..tall * wide).into_par_iter().for_each(|task| {
        let (i, j) = (task % tall * ROWS_PER_TASK, task / tall * columns);
        let rows = i..product.m.min(i + ROWS_PER_TASK);
        let columns = j..product.n.min(j + columns);
        // SAFETY: `check` proved all operands long enough for the whole product; tasks are disjoint blocks of C, and
        // C is borrowed mutably for the whole call.
        unsafe { block(product, a, b, out.get(), rows, columns) };
    });
}

/// The product on the calling thread.
pub(crate) fn serial(product: Product, a: Left<'_>, b: Right<'_>, c: &mut [f32]) {
    if product.m == 0 || product.n == 0 {
        return;
    }
    check(product, a, b, c.len());
    // SAFETY: `check` proved all operands long enough for the whole product; C is borrowed mutably.
    unsafe { block(product, a, b, c.as_mut_ptr(), 0..product.m, 0..product.n) };
}

fn check(product: Product, a: Left<'_>, b: Right<'_>, c: usize) {
    let Product { m, k, n, stride, .. } = product;
    assert!(k > 0, "a product needs a depth");
    a.check(m, k);
    assert!((n.div_ceil(PANEL) - 1) * b.panel + k * PANEL <= b.data.len(), "packed operand is shorter than {k} x {n}");
    assert!(n <= stride && (m - 1) * stride + n <= c, "output is shorter than {m} x {n}");
}

fn columns_per_task(n: usize) -> usize {
    n.div_ceil(n.div_ceil(COLUMNS_PER_TASK)).next_multiple_of(PANEL)
}

fn depth(k: usize) -> usize {
    k.div_ceil(k.div_ceil(DEPTH_MAX))
}

/// A pointer that may cross threads because its users write disjoint places.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

impl Shared {
    fn get(&self) -> *mut f32 {
        self.0
    }
}

// SAFETY: only `parallel` makes one, and its tasks write disjoint blocks.
unsafe impl Sync for Shared {}

/// One block of C, by one thread.
///
/// # Safety
/// The operands must pass `check`; nobody else may touch these rows and columns of C. `columns.start` is a multiple of
/// `PANEL`.
unsafe fn block(
    product: Product,
    a: Left<'_>,
    b: Right<'_>,
    c: *mut f32,
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
) {
    let Product { k, stride, .. } = product;
    let (step, wide) = (depth(k), has_avx2());
    for from in (0..k).step_by(step) {
        let depth = step.min(k - from);
        let add = product.add || from > 0;
        for j in columns.clone().step_by(PANEL) {
            let b = b.data[j / PANEL * b.panel + from * PANEL..][..depth * PANEL].as_ptr();
            let width = PANEL.min(columns.end - j);
            for i in rows.clone().step_by(TILE) {
                let height = TILE.min(rows.end - i);
                let left = a.data[i * a.row + from * a.column..].as_ptr();
                let tile = Tile { depth, a: left, row: a.row, column: a.column, b, add };
                // SAFETY: the caller's `check` covers `height` rows from `i` and `depth` columns from `from` of A, the
                // panel was sliced to `depth` rows, and the tile of C lies inside the block this call owns.
                unsafe { tile.run(wide, height, width, c.add(i * stride + j), stride) };
            }
        }
    }
}

/// Operands of one register tile.
struct Tile {
    depth: usize,
    a: *const f32,
    row: usize,
    column: usize,
    b: *const f32,
    add: bool,
}

impl Tile {
    /// # Safety
    /// `a` readable for `height` rows and `depth` columns, `b` for `depth` rows of `PANEL`, C writable for `height`
    /// rows of `width`.
    unsafe fn run(&self, wide: bool, height: usize, width: usize, c: *mut f32, stride: usize) {
        if width == PANEL {
            // SAFETY: the caller's promise.
            return unsafe { self.dispatch(wide, height, c, stride) };
        }
        let mut edge = [0.0f32; TILE * PANEL];
        // SAFETY: C is writable for `height` rows of `width`; the scratch tile has room for any height.
        unsafe {
            for i in 0..height {
                for j in 0..width {
                    edge[i * PANEL + j] = if self.add { *c.add(i * stride + j) } else { 0.0 };
                }
            }
            self.dispatch(wide, height, edge.as_mut_ptr(), PANEL);
            for i in 0..height {
                for j in 0..width {
                    *c.add(i * stride + j) = edge[i * PANEL + j];
                }
            }
        }
    }

    /// # Safety
    /// As [`Tile::run`], with rows of `PANEL` in C.
    unsafe fn dispatch(&self, wide: bool, height: usize, c: *mut f32, stride: usize) {
        // SAFETY: the caller's promise; `wide` is only true where AVX2 and FMA were detected.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if wide {
                return match height {
                    1 => self.avx2::<1>(c, stride),
                    2 => self.avx2::<2>(c, stride),
                    3 => self.avx2::<3>(c, stride),
                    4 => self.avx2::<4>(c, stride),
                    5 => self.avx2::<5>(c, stride),
                    _ => self.avx2::<6>(c, stride),
                };
            }
            self.portable(height, c, stride);
        }
    }

    /// # Safety
    /// As [`Tile::dispatch`], on a machine with AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const ROWS: usize>(&self, c: *mut f32, stride: usize) {
        use std::arch::x86_64::{
            _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps,
        };
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        let (mut a, mut b) = (self.a, self.b);
        let (row, column) = (self.row, self.column);
        // SAFETY: reads stay within `ROWS` rows and `depth` columns of A and `depth` rows of the panel, writes within
        // `ROWS` rows of C; the pointers step past the end only after the last read, and wrapping_add allows that.
        unsafe {
            for _ in 0..self.depth {
                let (left, right) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
                for (i, sum) in sums.iter_mut().enumerate() {
                    let value = _mm256_broadcast_ss(&*a.add(i * row));
                    sum[0] = _mm256_fmadd_ps(value, left, sum[0]);
                    sum[1] = _mm256_fmadd_ps(value, right, sum[1]);
                }
                a = a.wrapping_add(column);
                b = b.wrapping_add(PANEL);
            }
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

    /// # Safety
    /// As [`Tile::dispatch`].
    unsafe fn portable(&self, height: usize, c: *mut f32, stride: usize) {
        for i in 0..height {
            let mut sums = [0.0f32; PANEL];
            // SAFETY: the caller's promise covers row `i < height` of A and C and all of the panel.
            unsafe {
                for k in 0..self.depth {
                    let value = *self.a.add(i * self.row + k * self.column);
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum += value * *self.b.add(k * PANEL + j);
                    }
                }
                for (j, sum) in sums.iter().enumerate() {
                    let out = c.add(i * stride + j);
                    *out = if self.add { *out + sum } else { *sum };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::pack;

    fn values(len: usize, seed: u32) -> Vec<f32> {
        (0..len as u32)
            .map(|i| ((i.wrapping_mul(2654435761).wrapping_add(seed) >> 8) % 1000) as f32 / 500.0 - 1.0)
            .collect()
    }

    fn naive(product: Product, a: Left<'_>, b: &[f32], c: &mut [f32]) {
        for i in 0..product.m {
            for j in 0..product.n {
                let sum: f64 = (0..product.k)
                    .map(|k| f64::from(a.data[i * a.row + k * a.column]) * f64::from(b[k * product.n + j]))
                    .sum();
                let out = &mut c[i * product.stride + j];
                *out = if product.add { *out + sum as f32 } else { sum as f32 };
            }
        }
    }

    #[test]
    fn every_shape_agrees_with_the_definition() {
        for (m, k, n) in [(1, 1, 1), (6, 3, 16), (7, 5, 17), (100, 700, 33), (13, 64, 530), (97, 321, 48)] {
            for add in [false, true] {
                let (a, b) = (values(m * k, 1), values(k * n, 2));
                let mut panels = vec![f32::NAN; packed_len(k, n)];
                pack::straight(&b, k, n, &mut panels);
                let product = Product { m, k, n, stride: n + 3, add };
                let mut c = values(m * (n + 3), 3);
                let mut expected = c.clone();
                parallel(product, Left::rows(&a, k), Right::packed(&panels, k), &mut c);
                naive(product, Left::rows(&a, k), &b, &mut expected);
                let worst = c.iter().zip(&expected).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-6 * k as f32 + 1e-6, "{m}x{k}x{n} add {add}: off by {worst}");
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_beside_it() {
        let (m, k, n) = (101, 333, 40);
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let mut panels = vec![0.0; packed_len(k, n)];
        pack::straight(&b, k, n, &mut panels);
        let mut whole = vec![0.0; m * n];
        parallel(Product { m, k, n, stride: n, add: false }, Left::rows(&a, k), Right::packed(&panels, k), &mut whole);
        for i in [0, 50, 100] {
            let mut alone = vec![0.0; n];
            serial(
                Product { m: 1, k, n, stride: n, add: false },
                Left::rows(&a[i * k..], k),
                Right::packed(&panels, k),
                &mut alone,
            );
            assert_eq!(alone, whole[i * n..][..n]);
        }
    }
}
