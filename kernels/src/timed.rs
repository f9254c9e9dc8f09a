//! A backend that delegates every operation to another one and sums how long each kind took.
//!
//! For benchmarks alone: the plain backend carries no instrumentation. What it costs is two readings of the clock and a
//! lock for each operation, under a microsecond where operations take milliseconds; and on a backend that completes
//! operations later a wait for each, so that its time is its own.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    backend::{
        AdamW, Attention, Backend, Direction, LoraShape, Precision, Projection, ProjectionBack, Readout, Sight,
        Targets, Wanted, Write,
    },
    error::KernelError,
};

/// Calls of one kind of operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// How many.
    pub calls: u64,
    /// Their wall time, summed.
    pub time: Duration,
}

/// What a backend did since its [`Ledger`] was last taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries {
    /// By the operation's name in [`Backend`].
    pub operations: BTreeMap<&'static str, Spent>,
    /// Values in the buffers asked for by `alloc`, `alloc_activation` and `upload`.
    pub buffer_values: u64,
}

/// Where a [`Timed`] backend writes, and whoever measures reads.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<Entries>>);

impl Ledger {
    /// The entries so far; the ledger starts anew.
    pub fn take(&self) -> Entries {
        self.with(std::mem::take)
    }

    fn with<R>(&self, change: impl FnOnce(&mut Entries) -> R) -> R {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Time since some fixed instant: the clock is the caller's.
pub type Clock = fn() -> Duration;

/// `B`, with every operation timed.
pub struct Timed<B> {
    inner: B,
    clock: Clock,
    ledger: Ledger,
}

impl<B: fmt::Debug> fmt::Debug for Timed<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timed").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<B: Backend> Timed<B> {
    /// Times `inner`'s operations by `clock`.
    pub fn new(inner: B, clock: Clock) -> Self {
        Self { inner, clock, ledger: Ledger::default() }
    }

    /// Where the times are written.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.ledger.clone()
    }

    fn timed<R>(&self, operation: &'static str, run: impl FnOnce(&B) -> R) -> R {
        let began = (self.clock)();
        let result = run(&self.inner);
        // What fails is said by the operation that reads values next, as it would be without this wrapper.
        let _ = self.inner.finish();
        let time = (self.clock)().saturating_sub(began);
        self.ledger.with(|entries| {
            let spent = entries.operations.entry(operation).or_default();
            spent.calls += 1;
            spent.time += time;
        });
        result
    }
}

/// One line for each operation of [`Backend`] that is delegated as it is.
macro_rules! delegate {
    ($($operation:ident($($operand:ident: $kind:ty),*) -> $result:ty;)*) => {
        $(fn $operation(&self, $($operand: $kind),*) -> Result<$result, KernelError> {
            self.timed(stringify!($operation), |inner| inner.$operation($($operand),*))
        })*
    };
}

impl<B: Backend> Backend for Timed<B> {
    type Buffer = B::Buffer;
    type Indices = B::Indices;
    type Weight = B::Weight;

    fn alloc(&self, shape: [usize; 2]) -> Result<B::Buffer, KernelError> {
        self.ledger.with(|entries| entries.buffer_values += (shape[0] * shape[1]) as u64);
        self.timed("alloc", |inner| inner.alloc(shape))
    }

    fn alloc_activation(&self, shape: [usize; 2]) -> Result<B::Buffer, KernelError> {
        self.ledger.with(|entries| entries.buffer_values += (shape[0] * shape[1]) as u64);
        self.timed("alloc", |inner| inner.alloc_activation(shape))
    }

    fn expect_rows(&self, rows: usize) {
        self.inner.expect_rows(rows);
    }

    fn upload(&self, values: &[f32]) -> Result<B::Buffer, KernelError> {
        self.ledger.with(|entries| entries.buffer_values += values.len() as u64);
        self.timed("upload", |inner| inner.upload(values))
    }

    fn project(
        &self,
        x: &B::Buffer,
        params: &B::Buffer,
        layers: &mut [Projection<'_, Self>],
        write: Write,
    ) -> Result<(), KernelError> {
        let inner = layers.iter_mut().map(|Projection { weight, pair, y }| {
            let pair = pair.as_mut().map(|(shape, down)| (*shape, &mut **down));
            Projection::<B> { weight, pair, y }
        });
        let mut layers: Vec<_> = inner.collect();
        self.timed("project", |inner| inner.project(x, params, &mut layers, write))
    }

    fn project_back(
        &self,
        x: Option<&B::Buffer>,
        params: &B::Buffer,
        layers: &[ProjectionBack<'_, Self>],
        grads: &mut B::Buffer,
        dx: Option<(&mut B::Buffer, Write)>,
    ) -> Result<(), KernelError> {
        let inner = |&ProjectionBack { weight, pair, dy }: &_| ProjectionBack::<B> { weight, pair, dy };
        let layers: Vec<_> = layers.iter().map(inner).collect();
        self.timed("project_back", |inner| inner.project_back(x, params, &layers, grads, dx))
    }

    delegate! {
        download(buffer: &B::Buffer) -> Vec<f32>;
        take(buffer: B::Buffer) -> Vec<f32>;
        indices(values: &[u32]) -> B::Indices;
        weight(shape: [usize; 2], values: &[f32], precision: Precision) -> B::Weight;
        merged(weight: &B::Weight, params: &B::Buffer, pair: &LoraShape) -> B::Weight;
        zero(buffer: &mut B::Buffer) -> ();
        copy(from: &B::Buffer, to: &mut B::Buffer, at: usize) -> ();
        embed(table: &B::Weight, ids: &B::Indices, out: &mut B::Buffer) -> ();
        matmul(x: &B::Buffer, weight: &B::Weight, y: &mut B::Buffer, write: Write) -> ();
        matmul_back(dy: &B::Buffer, weight: &B::Weight, dx: &mut B::Buffer, write: Write) -> ();
        rms_norm(x: &B::Buffer, gain: &B::Buffer, eps: f32, y: &mut B::Buffer) -> ();
        rms_norm_back(x: &B::Buffer, gain: &B::Buffer, eps: f32, dy: &B::Buffer, dx: &mut B::Buffer) -> ();
        weight_gradient(x: &B::Buffer, dy: &B::Buffer, shape: [usize; 2], grads: &mut B::Buffer, at: usize) -> ();
        gain_gradient(x: &B::Buffer, eps: f32, dy: &B::Buffer, width: usize, grads: &mut B::Buffer, at: usize) -> ();
        rotary(x: &mut B::Buffer, table: &B::Buffer, head_dim: usize, direction: Direction) -> ();
        attention(shape: Attention, sight: &Sight<'_, B::Indices>, q: &B::Buffer, k: &B::Buffer, v: &B::Buffer,
            out: &mut B::Buffer, lse: &mut B::Buffer) -> ();
        attention_back(shape: Attention, sight: &Sight<'_, B::Indices>, q: &B::Buffer, k: &B::Buffer, v: &B::Buffer,
            out: &B::Buffer, lse: &B::Buffer, dout: &B::Buffer, dq: &mut B::Buffer, dk: &mut B::Buffer,
            dv: &mut B::Buffer) -> ();
        swiglu(gate: &B::Buffer, up: &B::Buffer, out: &mut B::Buffer) -> ();
        swiglu_back(gate: &B::Buffer, up: &B::Buffer, dout: &mut B::Buffer, dup: &mut B::Buffer) -> ();
        gather_rows(x: &B::Buffer, rows: &B::Indices, width: usize, out: &mut B::Buffer) -> ();
        scatter_add_rows(x: &B::Buffer, rows: &B::Indices, width: usize, out: &mut B::Buffer) -> ();
        cross_entropy(logits: &mut B::Buffer, vocab: usize, targets: &Targets<'_, B::Indices, B::Buffer>,
            loss: &mut B::Buffer) -> ();
        read_out(logits: &B::Buffer, vocab: usize, wanted: &Wanted<'_>) -> Readout;
        adamw(step: &AdamW, gradient: &B::Buffer, params: &mut B::Buffer, first: &mut B::Buffer,
            second: &mut B::Buffer) -> ();
        sum_squares(values: &B::Buffer) -> f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cpu;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A clock that moves by a millisecond whenever it is read.
    fn ticking() -> Duration {
        static READINGS: AtomicU64 = AtomicU64::new(0);
        Duration::from_millis(READINGS.fetch_add(1, Ordering::Relaxed))
    }

    #[test]
    fn operations_are_delegated_and_their_times_summed_by_name() {
        let timed = Timed::new(Cpu::new(1).unwrap(), ticking);
        let ledger = timed.ledger();
        let weight = timed.weight([1, 2], &[3.0, 4.0], Precision::F32).unwrap();
        let (x, mut y) = (timed.upload(&[1.0, 2.0]).unwrap(), timed.alloc([1, 1]).unwrap());
        for write in [Write::Set, Write::Add] {
            timed.matmul(&x, &weight, &mut y, write).unwrap();
        }
        assert_eq!(timed.download(&y).unwrap(), [22.0]);
        let entries = ledger.take();
        assert_eq!(entries.operations["matmul"], Spent { calls: 2, time: Duration::from_millis(2) });
        assert_eq!(entries.operations["download"].calls, 1);
        assert_eq!(entries.buffer_values, 3);
        assert_eq!(ledger.take(), Entries::default());
    }
}
