//! Matrix products: `C (+)= A1 B1 + A2 B2 + ...`, several such sums at a time.
//!
//! ```text
//!            B: panel 0     panel 1                     a panel is [k][16]: 16 neighbouring columns of row k,
//!          k ┌───16───┐   ┌───16───┐                    then of row k + 1, ...; the last one is padded
//!            └────────┘   └────────┘
//!   A: rows x k            C: 12 x 32 in twenty-four registers of AVX-512, or 6 x 16 in twelve of AVX2
//! ```
//! Each element of C is the same chain of operations (term after term, over k in order, in blocks that depend on k
//! alone) wherever it falls in a tile, whatever the number of rows, columns or threads and the width of the vectors:
//! results don't depend on any of them. That is why this is not a library, whose sums change with the shape.
//!
//! A sum of several terms costs no pass over C of its own: LoRA's thin products ride behind the frozen weight's, and
//! the gradients of projections that share an input are one sum. Several sums in one call share their tasks out
//! together, so that threads meet once.

use std::ops::Range;

use rayon::prelude::*;

use super::{Vectors, tile::Tile, vectors};

/// Columns of a packed panel: one AVX-512 register or two AVX ones.
pub(crate) const PANEL: usize = 16;
/// Most of k summed in one go: a panel of it and the tile's rows of A stay in the nearest caches.
const DEPTH_MAX: usize = 320;
/// Rows of C per task: a multiple of every tile's height; panels are read from L2 so many times fewer.
const ROWS_PER_TASK: usize = 96;
/// Most columns of C per task: their panels (295 KB at k = 576) and A's block stay in the L2 cache.
const COLUMNS_PER_TASK: usize = 128;

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

/// The right operand: element (k, j) is `data[j / 16 * panel + k * row + j % 16]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Right<'a> {
    /// Elements.
    pub data: &'a [f32],
    /// Distance between panels.
    pub panel: usize,
    /// Distance between rows.
    pub row: usize,
}

impl<'a> Right<'a> {
    /// Packed panels of exactly `k` rows.
    pub(crate) fn packed(data: &'a [f32], k: usize) -> Self {
        Self { data, panel: k * PANEL, row: PANEL }
    }

    /// A row-major matrix of rows `row` apart, as it lies; its columns must be whole panels.
    pub(crate) fn rows(data: &'a [f32], row: usize) -> Self {
        Self { data, panel: PANEL, row }
    }

    fn check(&self, k: usize, n: usize) {
        let last = (n.div_ceil(PANEL) - 1) * self.panel + (k - 1) * self.row + PANEL;
        assert!(last <= self.data.len(), "right operand is shorter than {k} x {n}");
    }
}

/// One product of a sum: `m x k` times `k x n`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Term<'a> {
    /// The left operand.
    pub a: Left<'a>,
    /// The right operand.
    pub b: Right<'a>,
    /// Columns of the left, rows of the right.
    pub k: usize,
}

/// Where a sum goes: `m x n`, rows of C `stride` apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Distance between rows of C.
    pub stride: usize,
    /// Whether C is added to.
    pub add: bool,
}

/// A sum of products and its output.
#[derive(Debug)]
pub(crate) struct Sum<'a> {
    /// Its size.
    pub shape: Shape,
    /// What is added up, in this order; at least one.
    pub terms: Vec<Term<'a>>,
    /// C.
    pub c: &'a mut [f32],
}

/// Length of B packed for `k x n`.
pub(crate) fn packed_len(k: usize, n: usize) -> usize {
    n.div_ceil(PANEL) * PANEL * k
}

/// Several sums, on all threads of the current rayon pool.
pub(crate) fn all(sums: &mut [Sum<'_>]) {
    let mut tasks = Vec::new();
    for (index, sum) in sums.iter_mut().enumerate() {
        if sum.shape.m == 0 || sum.shape.n == 0 {
            continue;
        }
        check(sum.shape, &sum.terms, sum.c.len());
        let out = Shared(sum.c.as_mut_ptr());
        tasks.extend(blocks(sum.shape).map(|(rows, columns)| (index, out, rows, columns)));
    }
    let sums = &*sums;
    let vectors = vectors();
    tasks.into_par_iter().with_max_len(1).for_each(|(index, out, rows, columns)| {
        let sum = &sums[index];
        // SAFETY: `check` proved all operands long enough for the whole sum; tasks are disjoint blocks of their C, each
        // of which is borrowed mutably for the whole call.
        unsafe { block(vectors, sum.shape, &sum.terms, out.get(), rows, columns) };
    });
}

/// The sum on the calling thread.
pub(crate) fn serial(shape: Shape, terms: &[Term<'_>], c: &mut [f32]) {
    if shape.m == 0 || shape.n == 0 {
        return;
    }
    check(shape, terms, c.len());
    // SAFETY: `check` proved all operands long enough for the whole sum; C is borrowed mutably.
    unsafe { block(vectors(), shape, terms, c.as_mut_ptr(), 0..shape.m, 0..shape.n) };
}

fn check(shape: Shape, terms: &[Term<'_>], c: usize) {
    let Shape { m, n, stride, .. } = shape;
    assert!(!terms.is_empty(), "a sum needs a term");
    for Term { a, b, k } in terms {
        assert!(*k > 0, "a product needs a depth");
        a.check(m, *k);
        b.check(*k, n);
    }
    assert!(n <= stride && (m - 1) * stride + n <= c, "output is shorter than {m} x {n}");
}

/// The blocks of C that are tasks: those of the same columns stand together, since they read the same panels.
fn blocks(shape: Shape) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let Shape { m, n, .. } = shape;
    let wide = columns_per_task(n);
    (0..n).step_by(wide).flat_map(move |j| {
        let columns = j..n.min(j + wide);
        (0..m).step_by(ROWS_PER_TASK).map(move |i| (i..m.min(i + ROWS_PER_TASK), columns.clone()))
    })
}

fn columns_per_task(n: usize) -> usize {
    n.div_ceil(n.div_ceil(COLUMNS_PER_TASK)).next_multiple_of(2 * PANEL)
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

// SAFETY: only `all` makes one, and its tasks write disjoint blocks.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// One block of C, by one thread.
///
/// # Safety
/// The operands must pass `check`; nobody else may touch these rows and columns of C. `columns.start` is a multiple of
/// `PANEL`.
unsafe fn block(
    vectors: Vectors,
    shape: Shape,
    terms: &[Term<'_>],
    c: *mut f32,
    rows: Range<usize>,
    columns: Range<usize>,
) {
    let mut add = shape.add;
    for term in terms {
        let step = depth(term.k);
        for from in (0..term.k).step_by(step) {
            // SAFETY: the caller's promise.
            unsafe { pass(vectors, shape, term, from..term.k.min(from + step), add, c, rows.clone(), columns.clone()) };
            add = true;
        }
    }
}

/// One stretch of one term's depth, over a block of C.
///
/// # Safety
/// As [`block`]; `depth` lies within the term's.
#[expect(clippy::too_many_arguments, reason = "the operands of one loop nest; a struct would only rename them")]
unsafe fn pass(
    vectors: Vectors,
    shape: Shape,
    term: &Term<'_>,
    depth: Range<usize>,
    add: bool,
    c: *mut f32,
    rows: Range<usize>,
    columns: Range<usize>,
) {
    let Term { a, b, .. } = term;
    let (tall, wide) = vectors.tile();
    // Equal heights: a tile of a few rows leaves the machine half idle.
    let tall = rows.len().div_ceil(rows.len().div_ceil(tall));
    for j in columns.clone().step_by(wide) {
        let width = wide.min(columns.end - j);
        let right = b.data[j / PANEL * b.panel + depth.start * b.row..].as_ptr();
        for i in rows.clone().step_by(tall) {
            let height = tall.min(rows.end - i);
            let left = a.data[i * a.row + depth.start * a.column..].as_ptr();
            let tile = Tile {
                depth: depth.len(),
                a: left,
                row: a.row,
                column: a.column,
                b: right,
                panel: b.panel,
                step: b.row,
                add,
            };
            // SAFETY: `check` covers `height` rows from `i` and this depth of A and the panels from column `j` of B; the
            // tile of C lies inside the block this call owns.
            unsafe { tile.run(vectors, height, width, c.add(i * shape.stride + j), shape.stride) };
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

    fn naive(shape: Shape, a: Left<'_>, k: usize, b: &[f32], c: &mut [f32]) {
        for i in 0..shape.m {
            for j in 0..shape.n {
                let sum: f64 =
                    (0..k).map(|k| f64::from(a.data[i * a.row + k * a.column]) * f64::from(b[k * shape.n + j])).sum();
                let out = &mut c[i * shape.stride + j];
                *out = if shape.add { *out + sum as f32 } else { sum as f32 };
            }
        }
    }

    fn packed(b: &[f32], k: usize, n: usize) -> Vec<f32> {
        let mut panels = vec![f32::NAN; packed_len(k, n)];
        pack::straight(b, k, n, &mut panels);
        panels
    }

    const SHAPES: [[usize; 3]; 8] =
        [[1, 1, 1], [6, 3, 16], [7, 5, 17], [12, 9, 32], [100, 700, 33], [13, 64, 530], [97, 321, 48], [50, 20, 1100]];

    #[test]
    fn every_shape_agrees_with_the_definition() {
        for [m, k, n] in SHAPES {
            for add in [false, true] {
                let (a, b) = (values(m * k, 1), values(k * n, 2));
                let panels = packed(&b, k, n);
                let shape = Shape { m, n, stride: n + 3, add };
                let mut c = values(m * (n + 3), 3);
                let mut expected = c.clone();
                let term = Term { a: Left::rows(&a, k), b: Right::packed(&panels, k), k };
                all(&mut [Sum { shape, terms: vec![term], c: &mut c }]);
                naive(shape, term.a, k, &b, &mut expected);
                let worst = c.iter().zip(&expected).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-6 * k as f32 + 1e-6, "{m}x{k}x{n} add {add}: off by {worst}");
            }
        }
    }

    #[test]
    fn every_width_of_vectors_this_machine_has_gives_the_same_bits() {
        for [m, k, n] in SHAPES {
            let (a, b) = (values(m * k, 1), values(k * n, 2));
            let panels = packed(&b, k, n);
            let shape = Shape { m, n, stride: n, add: true };
            let term = Term { a: Left::rows(&a, k), b: Right::packed(&panels, k), k };
            let of = |vectors| {
                let mut c = values(m * n, 3);
                // SAFETY: the operands have the term's sizes, and C is owned.
                unsafe { block(vectors, shape, &[term], c.as_mut_ptr(), 0..m, 0..n) };
                c
            };
            let widths: Vec<Vectors> = Vectors::fused().filter(|v| *v <= vectors()).collect();
            if widths.len() < 2 {
                println!("skipped: this machine has {widths:?} alone");
            }
            widths.windows(2).for_each(|pair| assert_eq!(of(pair[0]), of(pair[1]), "{m}x{k}x{n}: {pair:?}"));
        }
    }

    #[test]
    fn a_sum_is_its_terms_one_after_the_other_and_several_sums_are_each_alone() {
        let (m, n) = (61, 96);
        let (a, b) = (values(m * 40, 1), values(40 * n, 2));
        let (thin, wide) = (values(m * 4, 3), values(4 * n, 4));
        let panels = packed(&b, 40, n);
        let terms = [
            Term { a: Left::rows(&a, 40), b: Right::packed(&panels, 40), k: 40 },
            Term { a: Left::rows(&thin, 4), b: Right::rows(&wide, n), k: 4 },
        ];
        let shape = Shape { m, n, stride: n, add: false };
        let mut apart = vec![0.0; m * n];
        all(&mut [Sum { shape, terms: terms[..1].to_vec(), c: &mut apart }]);
        let shape_added = Shape { add: true, ..shape };
        all(&mut [Sum { shape: shape_added, terms: terms[1..].to_vec(), c: &mut apart }]);
        let (mut first, mut second) = (vec![0.0; m * n], vec![0.0; m * n]);
        let both = [(terms.to_vec(), &mut first), (terms[..1].to_vec(), &mut second)];
        all(&mut both.map(|(terms, c)| Sum { shape, terms, c }));
        assert_eq!(first, apart);
        assert_ne!(second, apart);
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_beside_it() {
        let (m, k, n) = (101, 333, 40);
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let panels = packed(&b, k, n);
        let term = Term { a: Left::rows(&a, k), b: Right::packed(&panels, k), k };
        let mut whole = vec![0.0; m * n];
        all(&mut [Sum { shape: Shape { m, n, stride: n, add: false }, terms: vec![term], c: &mut whole }]);
        for i in [0, 50, 100] {
            let mut alone = vec![0.0; n];
            let term = Term { a: Left::rows(&a[i * k..], k), ..term };
            serial(Shape { m: 1, n, stride: n, add: false }, &[term], &mut alone);
            assert_eq!(alone, whole[i * n..][..n]);
        }
    }
}
