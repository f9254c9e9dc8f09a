//! The arithmetic of a matrix product, in a fixed order: every element of the product is one float32 sum over `k`
//! ascending that begins at zero, each product and each sum rounded once. Blocking changes the speed, never a bit, so a
//! plain loop is the exact meaning.

/// Rows and columns of the part of the product that is summed at once: what the 16 SSE registers of a baseline x86-64
/// hold beside the operands.
const ROWS: usize = 4;
const COLS: usize = 8;

/// A matrix of float32 in any arrangement: element (r, c) is `data[r * row_step + c * col_step]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The elements, with whatever lies between them.
    pub data: &'a [f32],
    /// From a row to the next.
    pub row_step: usize,
    /// From a column to the next.
    pub col_step: usize,
}

impl View<'_> {
    fn at(&self, row: usize, col: usize) -> f32 {
        self.data[row * self.row_step + col * self.col_step]
    }
}

/// The product of `a: [m, k]` and `b: [k, n]`, row-major.
pub fn product(a: View<'_>, b: View<'_>, m: usize, n: usize, k: usize) -> Vec<f32> {
    let rows = row_panels(a, m, k);
    let mut out = vec![0.0; m * n];
    let mut panel = vec![[0.0; COLS]; k];
    for col in (0..n).step_by(COLS) {
        let width = COLS.min(n - col);
        for (p, row) in panel.iter_mut().enumerate() {
            row[..width].iter_mut().enumerate().for_each(|(c, x)| *x = b.at(p, col + c));
        }
        for (index, strip) in rows.chunks_exact(k.max(1)).enumerate() {
            let sums = tile(strip, &panel);
            let first = index * ROWS;
            for (r, sums) in sums.iter().enumerate().take(ROWS.min(m - first)) {
                out[(first + r) * n + col..][..width].copy_from_slice(&sums[..width]);
            }
        }
    }
    out
}

/// `a` in strips of `ROWS` rows, each strip column by column; rows that do not exist are zero.
fn row_panels(a: View<'_>, m: usize, k: usize) -> Vec<[f32; ROWS]> {
    let strips = m.div_ceil(ROWS);
    let element = |strip: usize, p: usize| {
        std::array::from_fn(|r| if strip * ROWS + r < m { a.at(strip * ROWS + r, p) } else { 0.0 })
    };
    (0..strips).flat_map(|strip| (0..k).map(move |p| element(strip, p))).collect()
}

fn tile(a: &[[f32; ROWS]], b: &[[f32; COLS]]) -> [[f32; COLS]; ROWS] {
    let mut sums = [[0.0; COLS]; ROWS];
    for (a, b) in a.iter().zip(b) {
        for (sums, x) in sums.iter_mut().zip(a) {
            for (sum, y) in sums.iter_mut().zip(b) {
                *sum += x * y;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        (0..count as u32).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
    }

    #[test]
    fn every_shape_and_arrangement_gives_the_bits_of_the_plain_loop() {
        for (m, n, k) in [(1, 1, 1), (4, 8, 3), (5, 9, 7), (13, 17, 33), (3, 1, 64), (2, 3, 0)] {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
                let view = |data, t, rows: usize, cols: usize| {
                    let (row_step, col_step) = if t { (1, rows) } else { (cols, 1) };
                    View { data, row_step, col_step }
                };
                let (a, b) = (view(&a, ta, m, k), view(&b, tb, k, n));
                let plain: Vec<f32> =
                    (0..m * n).map(|i| (0..k).fold(0.0, |sum, p| sum + a.at(i / n, p) * b.at(p, i % n))).collect();
                assert_eq!(product(a, b, m, n, k), plain, "{m} {n} {k} {ta} {tb}");
            }
        }
    }
}
