//! Frozen matrices in memory: kept packed, the way the forward product reads them.
//!
//! A matrix `W: [rows, columns]` is stored once, as the panels of B = W^T (see `simd::gemm`): sixteen neighbouring rows
//! of W side by side, column after column, the last panel padded with zeros. The forward product, which training and
//! decoding both do most, packs nothing; the backward product turns 16 x 16 blocks around; a row is a strided read.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::pack;
use super::quant::{Bits, Quantised};
use super::simd::gemm::{PANEL, packed_len};
use super::simd::math;
use crate::backend::Precision;

/// Panels in the precision they are stored in.
#[derive(Debug)]
enum Panels {
    /// As given.
    F32(Vec<f32>),
    /// Rounded to nearest even.
    Bf16(Vec<bf16>),
    /// In blocks that share a scale.
    Quantised(Quantised),
}

/// A frozen matrix `[rows, columns]`.
#[derive(Debug)]
pub struct CpuWeight {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    panels: Panels,
}

impl CpuWeight {
    /// Packs row-major `values`.
    pub(crate) fn new([rows, columns]: [usize; 2], values: &[f32], precision: Precision) -> Self {
        assert_eq!(values.len(), rows * columns, "a weight holds rows x columns values");
        let mut panels = vec![0.0; packed_len(columns, rows)];
        pack::transposed(values, rows, columns, &mut panels);
        let panels = match precision {
            Precision::F32 => Panels::F32(panels),
            Precision::Bf16 => Panels::Bf16(panels.par_iter().copied().map(bf16::from_f32).collect()),
            Precision::Q8 => Panels::Quantised(Quantised::new(&panels, columns, Bits::Eight)),
            Precision::Q4 => Panels::Quantised(Quantised::new(&panels, columns, Bits::Four)),
        };
        Self { rows, columns, panels }
    }

    /// Copies row `row` into `out: [columns]`.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        let first = row / PANEL * PANEL * self.columns + row % PANEL;
        match &self.panels {
            Panels::F32(panels) => {
                out.iter_mut().zip(panels[first..].iter().step_by(PANEL)).for_each(|(out, value)| *out = *value);
            }
            Panels::Bf16(panels) => {
                out.iter_mut()
                    .zip(panels[first..].iter().step_by(PANEL))
                    .for_each(|(out, value)| *out = value.to_f32());
            }
            Panels::Quantised(panels) => {
                out.iter_mut().enumerate().for_each(|(k, out)| *out = panels.at(first + k * PANEL));
            }
        }
    }

    /// The panels of B = W^T where they lie in float32.
    pub(crate) fn panels(&self) -> Option<&[f32]> {
        match &self.panels {
            Panels::F32(panels) => Some(panels),
            Panels::Bf16(_) | Panels::Quantised(_) => None,
        }
    }

    /// Writes the panels of some rows of W, from a whole panel on: `[packed_len(columns, rows)]` of B = W^T.
    pub(crate) fn widen(&self, rows: &Range<usize>, to: &mut [f32]) {
        let panel = PANEL * self.columns;
        let (first, count) = (rows.start / PANEL, rows.len().div_ceil(PANEL));
        to[..count * panel].par_chunks_mut(panel).enumerate().for_each(|(p, to)| self.read((first + p) * panel, to));
    }

    /// Writes the panels of B = those rows of W, from a whole panel on: `[packed_len(rows, columns)]`.
    pub(crate) fn turn(&self, rows: &Range<usize>, to: &mut [f32]) {
        let first = rows.start / PANEL * PANEL * self.columns;
        match &self.panels {
            Panels::F32(panels) => pack::turned(&panels[first..], rows.len(), self.columns, to),
            _ => pack::turned_from(|at, to| self.read(first + at, to), rows.len(), self.columns, to),
        }
    }

    /// Copies stored values from `at` on, widened.
    fn read(&self, at: usize, to: &mut [f32]) {
        match &self.panels {
            Panels::F32(panels) => to.copy_from_slice(&panels[at..][..to.len()]),
            Panels::Bf16(panels) => math::widen(&panels[at..][..to.len()], to),
            Panels::Quantised(panels) => panels.read(at, to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_both_packings_are_those_of_the_matrix() {
        for [rows, columns] in [[1, 1], [16, 16], [17, 5], [40, 33], [3, 70]] {
            let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            for precision in [Precision::F32, Precision::Bf16, Precision::Q8, Precision::Q4] {
                let weight = CpuWeight::new([rows, columns], &values, precision);
                let mut expected = vec![0.0; values.len()];
                expected.chunks_mut(columns).enumerate().for_each(|(row, out)| weight.read_row(row, out));
                let off = expected.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let most = match precision {
                    Precision::F32 => 0.0,
                    Precision::Bf16 | Precision::Q8 => 0.005 * values.len() as f32,
                    Precision::Q4 => 0.05 * values.len() as f32,
                };
                assert!(off <= most, "{precision:?}: off by {off}");
                let mut row = vec![0.0; columns];
                weight.read_row(rows - 1, &mut row);
                assert_eq!(row, expected[(rows - 1) * columns..]);
                let mut reference = vec![f32::NAN; packed_len(columns, rows)];
                pack::transposed(&expected, rows, columns, &mut reference);
                let mut wide = vec![f32::NAN; reference.len()];
                weight.widen(&(0..rows), &mut wide);
                assert_eq!(wide, reference);
                assert!(weight.panels().is_none_or(|panels| panels == reference));
                let mut reference = vec![f32::NAN; packed_len(rows, columns)];
                pack::straight(&expected, rows, columns, &mut reference);
                let mut packed = vec![f32::NAN; reference.len()];
                weight.turn(&(0..rows), &mut packed);
                assert_eq!(packed, reference, "{rows} x {columns}");
                if rows > PANEL {
                    let mut part = vec![f32::NAN; packed_len(rows - PANEL, columns)];
                    weight.turn(&(PANEL..rows), &mut part);
                    pack::straight(&expected[PANEL * columns..], rows - PANEL, columns, &mut packed);
                    assert_eq!(part, packed[..part.len()]);
                }
            }
        }
    }
}
