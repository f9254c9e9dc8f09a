//! The CPU backend: float32 on the threads it was given, one operation per file.
//!
//! Operations run one after the other, each spread over a thread pool of this backend's own. What must be vectorised or
//! needs `unsafe` is in `simd`; everything else is plain slices.

pub mod adamw;
mod attention;
mod buffer;
mod cross_entropy;
pub(crate) mod pack;
mod project;
pub(crate) mod quant;
mod rms_norm;
mod rotary;
mod rows;
pub(crate) mod simd;
pub mod slices;
mod swiglu;
mod weight;

use std::sync::Arc;

pub use attention::scratch_per_token as attention_scratch;
pub use buffer::{CpuBuffer, CpuIndices};
pub use project::UNPACKED_BYTES;
pub use simd::vector_units;
pub use weight::CpuWeight;

use crate::backend::{
    AdamW, Attention, Backend, Direction, LoraShape, Precision, Projection, ProjectionBack, Readout, Sight, Targets,
    Wanted, Write,
};
use crate::error::KernelError;
use attention::{Saved, Seen};
use buffer::Arena;

/// The host's processor, with a fixed number of threads.
#[derive(Debug, Clone)]
pub struct Cpu {
    pool: Arc<rayon::ThreadPool>,
    arena: Arc<Arena>,
}

impl Cpu {
    /// A backend with `threads` compute threads (0: one per core).
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn new(threads: usize) -> Result<Self, KernelError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("compute-{i}"))
            .build()
            .map_err(|error| KernelError::Threads { threads, reason: error.to_string() })?;
        Ok(Self { pool: Arc::new(pool), arena: Arc::default() })
    }

    /// How many threads compute.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// How many buffers were taken from the system so far: in a loop over slots of a known size, none.
    #[must_use]
    pub fn fresh_buffers(&self) -> u64 {
        self.arena.fresh()
    }

    /// Runs `operation` on the compute threads: plain code that rayon spreads over them, and this backend's operations.
    pub fn install<R: Send>(&self, operation: impl FnOnce() -> R + Send) -> R {
        self.pool.install(operation)
    }

    fn run<R: Send>(&self, operation: impl FnOnce() -> R + Send) -> Result<R, KernelError> {
        Ok(self.pool.install(operation))
    }
}

fn seen<'a>(sight: &Sight<'a, CpuIndices>) -> Seen<'a> {
    Seen { query: &sight.query.0, start: &sight.start.0, end: &sight.end.0 }
}

impl Backend for Cpu {
    type Buffer = CpuBuffer;
    type Indices = CpuIndices;
    type Weight = CpuWeight;

    fn alloc(&self, shape: [usize; 2]) -> Result<CpuBuffer, KernelError> {
        Ok(self.arena.rows(shape))
    }

    fn expect_rows(&self, rows: usize) {
        self.arena.expect(rows);
    }

    fn upload(&self, values: &[f32]) -> Result<CpuBuffer, KernelError> {
        let mut buffer = self.arena.rows([1, values.len()]);
        buffer.copy_from_slice(values);
        Ok(buffer)
    }

    fn download(&self, buffer: &CpuBuffer) -> Result<Vec<f32>, KernelError> {
        Ok(buffer.to_vec())
    }

    fn take(&self, buffer: CpuBuffer) -> Result<Vec<f32>, KernelError> {
        Ok(buffer.into_vec())
    }

    fn indices(&self, values: &[u32]) -> Result<CpuIndices, KernelError> {
        Ok(CpuIndices(values.to_vec()))
    }

    fn weight(&self, shape: [usize; 2], values: &[f32], precision: Precision) -> Result<CpuWeight, KernelError> {
        self.run(|| CpuWeight::new(shape, values, precision))
    }

    fn merged(&self, weight: &CpuWeight, params: &CpuBuffer, pair: &LoraShape) -> Result<CpuWeight, KernelError> {
        self.run(|| project::merged(&self.arena, weight, params, pair))
    }

    fn zero(&self, buffer: &mut CpuBuffer) -> Result<(), KernelError> {
        buffer.fill(0.0);
        Ok(())
    }

    fn copy(&self, from: &CpuBuffer, to: &mut CpuBuffer, at: usize) -> Result<(), KernelError> {
        self.run(|| rows::copy(from, &mut to[at..][..from.len()]))
    }

    fn embed(&self, table: &CpuWeight, ids: &CpuIndices, out: &mut CpuBuffer) -> Result<(), KernelError> {
        self.run(|| rows::embed(table, &ids.0, out))
    }

    fn project(
        &self,
        x: &CpuBuffer,
        params: &CpuBuffer,
        layers: &mut [Projection<'_, Self>],
        write: Write,
    ) -> Result<(), KernelError> {
        let layers = layers.iter_mut().map(|Projection { weight, pair, y }| {
            let pair = pair.as_mut().map(|(shape, down)| (*shape, &mut ***down));
            project::Forward { weight, pair, y }
        });
        let mut layers: Vec<_> = layers.collect();
        self.run(|| project::forward(&self.arena, x, params, &mut layers, write == Write::Add))
    }

    fn project_back(
        &self,
        x: Option<&CpuBuffer>,
        params: &CpuBuffer,
        layers: &[ProjectionBack<'_, Self>],
        grads: &mut CpuBuffer,
        dx: Option<(&mut CpuBuffer, Write)>,
    ) -> Result<(), KernelError> {
        let layers = layers.iter().map(|ProjectionBack { weight, pair, dy }| {
            let pair = pair.map(|(shape, down)| (shape, &**down));
            project::Backward { weight, pair, dy }
        });
        let layers: Vec<_> = layers.collect();
        let dx = dx.map(|(dx, write)| (&mut **dx, write == Write::Add));
        self.run(|| project::backward(&self.arena, x.map(|x| &**x), params, &layers, grads, dx))
    }

    fn weight_gradient(
        &self,
        x: &CpuBuffer,
        dy: &CpuBuffer,
        shape: [usize; 2],
        grads: &mut CpuBuffer,
        at: usize,
    ) -> Result<(), KernelError> {
        let grads = &mut grads[at..][..shape[0] * shape[1]];
        self.run(|| project::weight_gradient(&self.arena, x, dy, shape, grads))
    }

    fn rms_norm(&self, x: &CpuBuffer, gain: &CpuBuffer, eps: f32, y: &mut CpuBuffer) -> Result<(), KernelError> {
        self.run(|| rms_norm::forward(x, gain, eps, y))
    }

    fn rms_norm_back(
        &self,
        x: &CpuBuffer,
        gain: &CpuBuffer,
        eps: f32,
        dy: &CpuBuffer,
        dx: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        self.run(|| rms_norm::backward(x, gain, eps, dy, dx))
    }

    fn gain_gradient(
        &self,
        x: &CpuBuffer,
        eps: f32,
        dy: &CpuBuffer,
        width: usize,
        grads: &mut CpuBuffer,
        at: usize,
    ) -> Result<(), KernelError> {
        self.run(|| rms_norm::gain_gradient(x, eps, dy, &mut grads[at..][..width]))
    }

    fn rotary(
        &self,
        x: &mut CpuBuffer,
        table: &CpuBuffer,
        head_dim: usize,
        direction: Direction,
    ) -> Result<(), KernelError> {
        self.run(|| rotary::apply(x, table, head_dim, direction))
    }

    fn attention(
        &self,
        shape: Attention,
        sight: &Sight<'_, CpuIndices>,
        q: &CpuBuffer,
        k: &CpuBuffer,
        v: &CpuBuffer,
        out: &mut CpuBuffer,
        lse: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        self.run(|| attention::forward(&self.arena, shape, seen(sight), q, k, v, out, lse))
    }

    fn attention_back(
        &self,
        shape: Attention,
        sight: &Sight<'_, CpuIndices>,
        q: &CpuBuffer,
        k: &CpuBuffer,
        v: &CpuBuffer,
        out: &CpuBuffer,
        lse: &CpuBuffer,
        dout: &CpuBuffer,
        dq: &mut CpuBuffer,
        dk: &mut CpuBuffer,
        dv: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        let saved = Saved { q, k, v, out, lse, dout };
        self.run(|| attention::backward(&self.arena, shape, seen(sight), &saved, dq, dk, dv))
    }

    fn swiglu(&self, gate: &CpuBuffer, up: &CpuBuffer, out: &mut CpuBuffer) -> Result<(), KernelError> {
        self.run(|| swiglu::forward(gate, up, out))
    }

    fn swiglu_back(
        &self,
        gate: &CpuBuffer,
        up: &CpuBuffer,
        dout: &mut CpuBuffer,
        dup: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        self.run(|| swiglu::backward(gate, up, dout, dup))
    }

    fn gather_rows(
        &self,
        x: &CpuBuffer,
        rows: &CpuIndices,
        width: usize,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        self.run(|| rows::gather(x, &rows.0, width, out))
    }

    fn scatter_add_rows(
        &self,
        x: &CpuBuffer,
        rows: &CpuIndices,
        width: usize,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        self.run(|| rows::scatter_add(x, &rows.0, width, out))
    }

    fn cross_entropy(
        &self,
        logits: &mut CpuBuffer,
        vocab: usize,
        targets: &Targets<'_, CpuIndices, CpuBuffer>,
        loss: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        let Targets { offsets, ids, weights } = targets;
        self.run(|| cross_entropy::forward_backward(logits, vocab, &offsets.0, &ids.0, weights, loss))
    }

    fn read_out(&self, logits: &CpuBuffer, vocab: usize, wanted: &Wanted<'_>) -> Result<Readout, KernelError> {
        self.run(|| cross_entropy::read_out(logits, vocab, wanted))
    }

    fn adamw(
        &self,
        step: &AdamW,
        gradient: &CpuBuffer,
        params: &mut CpuBuffer,
        first: &mut CpuBuffer,
        second: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        adamw::step(step, gradient, params, first, second);
        Ok(())
    }

    fn sum_squares(&self, values: &CpuBuffer) -> Result<f64, KernelError> {
        Ok(adamw::sum_squares(values))
    }
}
