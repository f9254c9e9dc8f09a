//! Panels of quantised values: blocks of 32 rows of a panel, a scale (and least value) for each of its sixteen columns.
//!
//! ```text
//!   q8   value = scale * q           q in -127..=127      9 bits a weight
//!   q4   value = least + scale * q   q in 0..=15          5 bits a weight
//! ```
//! A column of a block is 32 neighbouring inputs of one output, as in GGUF's Q8_0 and Q4_1, and scales are float16 as
//! there: a base that was quantised so is held as it is in its file, value for value.

use half::f16;
use rayon::prelude::*;

use super::simd::gemm::PANEL;
use super::simd::math;

/// Neighbouring inputs of an output that share a scale: rows of a panel.
pub(crate) const BLOCK: usize = 32;

/// One block of a panel.
#[derive(Debug, Clone, Copy)]
struct Scales {
    scale: [f16; PANEL],
    least: [f16; PANEL],
}

/// How values are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bits {
    Eight,
    Four,
}

impl Bits {
    /// Bytes of one row of a panel.
    fn row(self) -> usize {
        match self {
            Bits::Eight => PANEL,
            Bits::Four => PANEL / 2,
        }
    }
}

/// Quantised panels of `depth` rows each.
#[derive(Debug)]
pub(crate) struct Quantised {
    bits: Bits,
    depth: usize,
    scales: Vec<Scales>,
    values: Vec<u8>,
}

impl Quantised {
    /// Quantises float32 panels of `depth` rows each.
    pub(crate) fn new(panels: &[f32], depth: usize, bits: Bits) -> Self {
        let count = panels.len() / (depth * PANEL);
        let mut values = vec![0; panels.len() / PANEL * bits.row()];
        let of_panel = values.par_chunks_mut(depth * bits.row()).zip(panels.par_chunks(depth * PANEL));
        let scales: Vec<Vec<Scales>> = of_panel
            .map(|(values, panel)| {
                let blocks = values.chunks_mut(BLOCK * bits.row()).zip(panel.chunks(BLOCK * PANEL));
                blocks.map(|(values, block)| quantise(block, bits, values)).collect()
            })
            .collect();
        debug_assert_eq!(scales.len(), count);
        Self { bits, depth, scales: scales.concat(), values }
    }

    /// Widens stored values from `at` on; `at` and the length are whole rows within one panel.
    pub(crate) fn read(&self, at: usize, to: &mut [f32]) {
        let (panel, mut row) = (at / PANEL / self.depth, at / PANEL % self.depth);
        let mut bytes = &self.values[at / PANEL * self.bits.row()..];
        let mut rest = to;
        while !rest.is_empty() {
            let rows = (BLOCK - row % BLOCK).min(rest.len() / PANEL);
            let scales = &self.scales[panel * self.depth.div_ceil(BLOCK) + row / BLOCK];
            let (scale, least) = (scales.scale.map(f16::to_f32), scales.least.map(f16::to_f32));
            let (block, after) = rest.split_at_mut(rows * PANEL);
            match self.bits {
                Bits::Eight => math::widen_q8(bytes, &scale, block),
                Bits::Four => math::widen_q4(bytes, &scale, &least, block),
            }
            bytes = &bytes[rows * self.bits.row()..];
            (rest, row) = (after, row + rows);
        }
    }

    /// One value.
    pub(crate) fn at(&self, index: usize) -> f32 {
        let mut row = [0.0; PANEL];
        self.read(index / PANEL * PANEL, &mut row);
        row[index % PANEL]
    }
}

/// What the values of a block share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    pub scale: f16,
    /// Zero with eight bits.
    pub least: f16,
}

impl Step {
    /// For these values, as GGUF's quantisers choose it.
    pub(crate) fn of(values: impl Iterator<Item = f32>, bits: Bits) -> Self {
        let (low, high) = values.fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
        match bits {
            Bits::Eight => Self { scale: f16::from_f32(low.abs().max(high.abs()) / 127.0), least: f16::ZERO },
            Bits::Four => Self { scale: f16::from_f32((high - low) / 15.0), least: f16::from_f32(low) },
        }
    }

    /// The number of steps nearest to a value: with eight bits a two's complement byte, with four 0 to 15.
    pub(crate) fn count(self, value: f32, bits: Bits) -> u8 {
        let scale = self.scale.to_f32();
        let steps = if scale == 0.0 { 0.0 } else { ((value - self.least.to_f32()) / scale).round() };
        match bits {
            Bits::Eight => (steps.clamp(-127.0, 127.0) as i8).cast_unsigned(),
            Bits::Four => steps.clamp(0.0, 15.0) as u8,
        }
    }
}

/// Quantises some rows of a panel.
fn quantise(block: &[f32], bits: Bits, values: &mut [u8]) -> Scales {
    let steps: [Step; PANEL] = std::array::from_fn(|j| Step::of(block.iter().skip(j).step_by(PANEL).copied(), bits));
    for (row, bytes) in block.chunks_exact(PANEL).zip(values.chunks_exact_mut(bits.row())) {
        for (j, x) in row.iter().enumerate() {
            let count = steps[j].count(*x, bits);
            match bits {
                Bits::Eight => bytes[j] = count,
                Bits::Four => bytes[j % 8] |= count << (j / 8 * 4),
            }
        }
    }
    Scales { scale: steps.map(|step| step.scale), least: steps.map(|step| step.least) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panels(depth: usize, count: usize) -> Vec<f32> {
        (0..depth * count * PANEL).map(|i| ((i * 2_654_435_761) % 1009) as f32 / 500.0 - 1.0).collect()
    }

    #[test]
    fn values_are_off_by_half_a_step_at_most() {
        for (bits, most) in [(Bits::Eight, 1.02 / 254.0), (Bits::Four, 2.02 / 30.0 + 1e-3)] {
            let original = panels(70, 3);
            let quantised = Quantised::new(&original, 70, bits);
            let mut read = vec![0.0; original.len()];
            read.chunks_mut(70 * PANEL).enumerate().for_each(|(p, to)| quantised.read(p * 70 * PANEL, to));
            let worst = original.iter().zip(&read).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= most, "{bits:?}: {worst}");
            assert_eq!(quantised.at(70 * PANEL + 35), read[70 * PANEL + 35]);
        }
    }

    #[test]
    fn values_that_were_quantised_alike_stay_as_they_are() {
        let scale = f16::from_f32(0.0123).to_f32();
        let least = f16::from_f32(-0.091).to_f32();
        // Every column of a block has the least and the greatest step, as a quantiser leaves it.
        let step = |i: usize| match i / PANEL % BLOCK {
            0 => 0,
            1 => 15,
            row => (row * 7 + i) % 16,
        };
        let four: Vec<f32> = (0..64 * PANEL).map(|i| least + scale * step(i) as f32).collect();
        let eight: Vec<f32> =
            (0..64 * PANEL).map(|i| scale * (if step(i) == 15 { 127 } else { step(i) }) as f32).collect();
        for (bits, original) in [(Bits::Four, four), (Bits::Eight, eight)] {
            let mut read = vec![0.0; original.len()];
            Quantised::new(&original, 64, bits).read(0, &mut read);
            assert_eq!(read, original, "{bits:?}");
        }
    }
}
