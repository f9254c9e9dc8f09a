//! A forest on the device: ids, angles, who sees whom, and which rows are read at the end.

use insula_kernels::{Backend, KernelError, Sight};

use crate::base::{ModelConfig, frequencies};
use crate::forest::Forest;

/// The rows something downstream reads.
pub(crate) struct Chosen<B: Backend> {
    pub(crate) rows: B::Indices,
    pub(crate) count: usize,
    pub(crate) angles: B::Buffer,
}

/// A forest on the device.
pub(crate) struct Scene<B: Backend> {
    pub(crate) tokens: usize,
    pub(crate) ids: B::Indices,
    /// `[T, head_dim]`: see [`Backend::rotary`].
    pub(crate) angles: B::Buffer,
    pub(crate) chosen: Chosen<B>,
    start: B::Indices,
    end: B::Indices,
}

impl<B: Backend> Scene<B> {
    /// The forest, of which `rows` (ascending) are read.
    pub(crate) fn upload(
        backend: &B,
        config: &ModelConfig,
        forest: &Forest,
        rows: &[u32],
    ) -> Result<Self, KernelError> {
        let order: Vec<u32> = (0..forest.len() as u32).collect();
        let positions: Vec<u32> = rows.iter().map(|row| forest.positions[*row as usize]).collect();
        let chosen = Chosen {
            rows: backend.indices(rows)?,
            count: rows.len(),
            angles: backend.upload(&angles(config, &positions))?,
        };
        Ok(Self {
            tokens: forest.len(),
            ids: backend.indices(&forest.tokens)?,
            angles: backend.upload(&angles(config, &forest.positions))?,
            chosen,
            start: backend.indices(&order)?,
            end: backend.indices(&forest.end)?,
        })
    }

    /// Every row looking, or the chosen ones only.
    pub(crate) fn sight(&self, chosen: bool) -> Sight<'_, B::Indices> {
        let query = if chosen { &self.chosen.rows } else { &self.start };
        Sight { query, start: &self.start, end: &self.end }
    }
}

/// Rotary angles of each position, `[T, head_dim]`: cosines of the half head's angles, then sines.
///
/// Angles in float64: at position 400 a float32 angle is already off by 3e-5.
pub(crate) fn angles(config: &ModelConfig, positions: &[u32]) -> Vec<f32> {
    let frequencies = frequencies(config.rope_theta, config.head_dim, config.rope_scaling);
    let mut table = Vec::with_capacity(positions.len() * config.head_dim);
    for position in positions {
        let angle = |frequency: &f64| f64::from(*position) * frequency;
        table.extend(frequencies.iter().map(|f| angle(f).cos() as f32));
        table.extend(frequencies.iter().map(|f| angle(f).sin() as f32));
    }
    table
}
