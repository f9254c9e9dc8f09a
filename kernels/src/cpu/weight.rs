//! Frozen matrices in memory.

use half::bf16;

use crate::backend::Precision;

/// Elements in the precision they are stored in.
#[derive(Debug)]
pub(crate) enum Values {
    /// As given.
    F32(Vec<f32>),
    /// Rounded to nearest even.
    Bf16(Vec<bf16>),
}

/// A frozen matrix `[rows, columns]`, row-major.
#[derive(Debug)]
pub struct CpuWeight {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) values: Values,
}

impl CpuWeight {
    pub(crate) fn new([rows, columns]: [usize; 2], values: &[f32], precision: Precision) -> Self {
        assert_eq!(values.len(), rows * columns, "a weight holds rows x columns values");
        let values = match precision {
            Precision::F32 => Values::F32(values.to_vec()),
            Precision::Bf16 => Values::Bf16(values.iter().copied().map(bf16::from_f32).collect()),
        };
        Self { rows, columns, values }
    }

    /// Copies row `row` into `out: [columns]`.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        let range = row * self.columns..(row + 1) * self.columns;
        match &self.values {
            Values::F32(values) => out.copy_from_slice(&values[range]),
            Values::Bf16(values) => super::simd::math::widen(&values[range], out),
        }
    }
}
