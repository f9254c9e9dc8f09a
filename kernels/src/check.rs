//! Every operation of a backend against the CPU's, on made-up values: what `insula doctor --gpu` runs on a person's GPU.
//!
//! Values are rounded to bfloat16 first, so that a backend whose activations are that starts from the same numbers; what
//! may differ then is how each operation rounds its results.

use half::bf16;

use crate::{
    backend::{
        AdamW, Attention, Backend, Direction, LoraShape, Precision, Projection, ProjectionBack, Sight, Targets, Wanted,
        Write,
    },
    cpu::Cpu,
    error::KernelError,
};

/// A bfloat16 result is off by a relative 2^-9 at most where it is rounded once; some operations round on the way too.
const ROUNDED: f64 = 8e-3;
/// Of float32 results, and sums of rounded products.
const EXACT: f64 = 1e-4;

/// One operation at one shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The operation, as [`Backend`] names it.
    pub operation: &'static str,
    /// At which shape.
    pub shape: String,
    /// Frobenius norm of the difference over that of the CPU's result; infinite where a value is not finite.
    pub off: f64,
    /// What it may be.
    pub most: f64,
}

impl Checked {
    /// Whether the results agree.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.off <= self.most
    }
}

/// Dimensions of what is computed.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Tokens.
    pub tokens: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of a wide layer.
    pub wide: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Widths of attention heads.
    pub heads: &'static [usize],
}

impl Scale {
    /// A layer of a 1B model on a slot.
    pub const USUAL: Self =
        Self { tokens: 1283, hidden: 2048, wide: 5632, vocab: 32003, heads: &[64, 80, 96, 128, 256] };
    /// Small enough to be interpreted.
    pub const SMALL: Self = Self { tokens: 37, hidden: 96, wide: 130, vocab: 251, heads: &[8, 64] };
}

/// Compares every operation.
///
/// # Errors
/// When a device refuses.
pub fn operations<B: Backend>(cpu: &Cpu, other: &B, scale: Scale) -> Result<Vec<Checked>, KernelError> {
    let mut all = Vec::new();
    let (of_cpu, of_other) = (results(cpu, scale)?, results(other, scale)?);
    for (expected, found) in of_cpu.into_iter().zip(of_other) {
        let Left { operation, shape, most, .. } = expected;
        all.push(Checked { operation, shape, off: distance(&found.values, &expected.values), most });
    }
    Ok(all)
}

fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "results of one length");
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = expected.iter().map(|b| square(*b)).sum();
    let off = (difference / norm.max(f64::MIN_POSITIVE)).sqrt();
    if off.is_finite() { off } else { f64::INFINITY }
}

/// What an operation left.
struct Left {
    operation: &'static str,
    shape: String,
    values: Vec<f32>,
    most: f64,
}

/// The operations on one backend, with the same values on any.
struct Run<'a, B: Backend> {
    backend: &'a B,
    results: Vec<Left>,
}

/// Numbers that look random, the same everywhere: in -1..1, rounded to bfloat16.
fn made(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bf16::from_f32((state >> 40) as f32 / (1 << 23) as f32 - 1.0).to_f32()
    };
    (0..len).map(|_| next()).collect()
}

/// Ends of a made-up forest's subtrees: each row's within its parent's.
fn forest(seed: u64, rows: usize) -> Vec<u32> {
    let choice = made(seed, rows);
    let mut end = vec![0; rows];
    let mut open: Vec<usize> = vec![rows];
    for row in 0..rows {
        while open.last().is_some_and(|end| *end <= row) {
            open.pop();
        }
        let within = open.last().copied().unwrap_or(rows);
        let length = 1 + ((choice[row] + 1.0) / 2.0 * (within - row - 1) as f32) as usize;
        end[row] = (row + length) as u32;
        open.push(row + length);
    }
    end
}

fn results<B: Backend>(backend: &B, scale: Scale) -> Result<Vec<Left>, KernelError> {
    let mut run = Run { backend, results: Vec::new() };
    for precision in [Precision::Bf16, Precision::Q8, Precision::Q4] {
        run.linear(scale, precision)?;
    }
    run.norms(scale)?;
    run.rows(scale)?;
    run.gates(scale)?;
    for &head_dim in scale.heads {
        for (heads, kv_heads) in [(4, 4), (6, 2), (3, 1)] {
            run.attention(scale.tokens, Attention { heads, kv_heads, head_dim })?;
        }
    }
    run.head(scale)?;
    run.optimizer(scale)?;
    Ok(run.results)
}

impl<B: Backend> Run<'_, B> {
    fn note(
        &mut self,
        operation: &'static str,
        shape: String,
        buffer: &B::Buffer,
        most: f64,
    ) -> Result<(), KernelError> {
        let values = self.backend.download(buffer)?;
        self.results.push(Left { operation, shape, values, most });
        Ok(())
    }

    /// An activation of made-up values.
    fn activation(&self, seed: u64, shape: [usize; 2]) -> Result<B::Buffer, KernelError> {
        let mut buffer = self.backend.alloc_activation(shape)?;
        self.backend.copy(&self.full(seed, shape)?, &mut buffer, 0)?;
        Ok(buffer)
    }

    fn full(&self, seed: u64, [rows, width]: [usize; 2]) -> Result<B::Buffer, KernelError> {
        self.backend.upload(&made(seed, rows * width))
    }

    fn linear(&mut self, scale: Scale, precision: Precision) -> Result<(), KernelError> {
        let Scale { tokens, hidden, wide, .. } = scale;
        let (backend, r) = (self.backend, 7);
        let shape = format!("{tokens} x {hidden} -> {wide}, {precision:?}");
        let weight = backend.weight([wide, hidden], &made(1, wide * hidden), precision)?;
        let params = self.full(2, [1, r * (hidden + wide)])?;
        let pair = LoraShape { r, input: hidden, output: wide, a: 0, b: r * hidden, scale: 0.25 };
        let x = self.activation(3, [tokens, hidden])?;
        let mut down = backend.alloc_activation([tokens, r])?;
        let mut y = self.full(4, [tokens, wide])?;
        let layer = Projection { weight: &weight, pair: Some((pair, &mut down)), y: &mut y };
        backend.project(&x, &params, &mut [layer], Write::Add)?;
        self.note("project", shape.clone(), &y, ROUNDED)?;
        let mut y = backend.alloc_activation([tokens, wide])?;
        backend.matmul(&x, &weight, &mut y, Write::Set)?;
        self.note("matmul", shape.clone(), &y, ROUNDED)?;

        let dy = self.activation(5, [tokens, wide])?;
        let mut grads = self.full(6, [1, r * (hidden + wide)])?;
        let mut dx = self.full(7, [tokens, hidden])?;
        let layers = [ProjectionBack { weight: &weight, pair: Some((pair, &down)), dy: &dy }];
        backend.project_back(Some(&x), &params, &layers, &mut grads, Some((&mut dx, Write::Add)))?;
        self.note("project_back: grads", shape.clone(), &grads, ROUNDED)?;
        self.note("project_back: dx", shape.clone(), &dx, ROUNDED)?;

        let merged = backend.merged(&weight, &params, &pair)?;
        let ids: Vec<u32> = (0..tokens).map(|i| (i * 31 % wide) as u32).collect();
        let mut rows = backend.alloc([tokens, hidden])?;
        backend.embed(&merged, &backend.indices(&ids)?, &mut rows)?;
        self.note("merged", shape.clone(), &rows, ROUNDED)?;
        backend.embed(&weight, &backend.indices(&ids)?, &mut rows)?;
        self.note("embed", shape.clone(), &rows, EXACT)?;
        if precision == Precision::Bf16 {
            let mut grads = self.full(8, [1, 5 + wide * hidden])?;
            backend.weight_gradient(&x, &dy, [wide, hidden], &mut grads, 5)?;
            self.note("weight_gradient", shape, &grads, EXACT)?;
        }
        Ok(())
    }

    fn norms(&mut self, scale: Scale) -> Result<(), KernelError> {
        let Scale { tokens, hidden, .. } = scale;
        let (backend, shape) = (self.backend, format!("{tokens} x {hidden}"));
        let (x, gain, dy) =
            (self.full(11, [tokens, hidden])?, self.full(12, [1, hidden])?, self.full(13, [tokens, hidden])?);
        let mut y = backend.alloc_activation([tokens, hidden])?;
        backend.rms_norm(&x, &gain, 1e-5, &mut y)?;
        self.note("rms_norm", shape.clone(), &y, ROUNDED)?;
        let mut dx = self.full(14, [tokens, hidden])?;
        backend.rms_norm_back(&x, &gain, 1e-5, &dy, &mut dx)?;
        self.note("rms_norm_back", shape.clone(), &dx, EXACT)?;
        let mut grads = self.full(15, [1, hidden + 3])?;
        backend.gain_gradient(&x, 1e-5, &dy, hidden, &mut grads, 3)?;
        self.note("gain_gradient", shape, &grads, EXACT)
    }

    fn rows(&mut self, scale: Scale) -> Result<(), KernelError> {
        let Scale { tokens, hidden, .. } = scale;
        let backend = self.backend;
        let chosen: Vec<u32> = (0..tokens / 2 + 1).map(|i| (i * 7 % tokens) as u32).collect();
        let (count, shape) = (chosen.len(), format!("{} of {tokens} x {hidden}", chosen.len()));
        let rows = backend.indices(&chosen)?;
        for (operation, x) in [
            ("gather_rows, float32", self.full(21, [tokens, hidden])?),
            ("gather_rows", self.activation(22, [tokens, hidden])?),
        ] {
            let mut out = match operation {
                "gather_rows" => backend.alloc_activation([count, hidden])?,
                _ => backend.alloc([count, hidden])?,
            };
            backend.gather_rows(&x, &rows, hidden, &mut out)?;
            self.note(operation, shape.clone(), &out, 0.0)?;
        }
        let repeated: Vec<u32> = (0..count).map(|i| (i * i % 5) as u32).collect();
        let mut out = self.full(23, [tokens, hidden])?;
        let x = self.full(24, [count, hidden])?;
        backend.scatter_add_rows(&x, &backend.indices(&repeated)?, hidden, &mut out)?;
        self.note("scatter_add_rows", shape, &out, EXACT)
    }

    fn gates(&mut self, scale: Scale) -> Result<(), KernelError> {
        let Scale { tokens, wide, .. } = scale;
        let (backend, shape) = (self.backend, format!("{tokens} x {wide}"));
        let (gate, up) = (self.activation(31, [tokens, wide])?, self.activation(32, [tokens, wide])?);
        let mut out = backend.alloc_activation([tokens, wide])?;
        backend.swiglu(&gate, &up, &mut out)?;
        self.note("swiglu", shape.clone(), &out, ROUNDED)?;
        let mut dout = self.activation(33, [tokens, wide])?;
        let mut dup = backend.alloc_activation([tokens, wide])?;
        backend.swiglu_back(&gate, &up, &mut dout, &mut dup)?;
        self.note("swiglu_back: gate", shape.clone(), &dout, ROUNDED)?;
        self.note("swiglu_back: up", shape, &dup, ROUNDED)
    }

    fn attention(&mut self, tokens: usize, shape: Attention) -> Result<(), KernelError> {
        let Attention { heads, kv_heads, head_dim } = shape;
        let (backend, text) = (self.backend, format!("{tokens} tokens, {heads}/{kv_heads} heads of {head_dim}"));
        let table = made(41, tokens * head_dim);
        let mut q = self.activation(42, [tokens, heads * head_dim])?;
        for (operation, direction) in [("rotary", Direction::Forward), ("rotary, backward", Direction::Backward)] {
            backend.rotary(&mut q, &backend.upload(&table)?, head_dim, direction)?;
            self.note(operation, text.clone(), &q, ROUNDED)?;
        }
        let q = self.activation(43, [tokens, heads * head_dim])?;
        let (k, v) =
            (self.activation(44, [tokens, kv_heads * head_dim])?, self.activation(45, [tokens, kv_heads * head_dim])?);
        let order: Vec<u32> = (0..tokens as u32).collect();
        let (start, end) = (backend.indices(&order)?, backend.indices(&forest(46, tokens))?);
        let sight = Sight { query: &start, start: &start, end: &end };
        let mut out = backend.alloc_activation([tokens, heads * head_dim])?;
        let mut lse = backend.alloc([tokens, heads])?;
        backend.attention(shape, &sight, &q, &k, &v, &mut out, &mut lse)?;
        self.note("attention", text.clone(), &out, ROUNDED)?;
        self.note("attention: lse", text.clone(), &lse, 1e-3)?;
        let dout = self.activation(47, [tokens, heads * head_dim])?;
        let mut dq = backend.alloc_activation([tokens, heads * head_dim])?;
        let mut dk = backend.alloc_activation([tokens, kv_heads * head_dim])?;
        let mut dv = backend.alloc_activation([tokens, kv_heads * head_dim])?;
        backend.attention_back(shape, &sight, &q, &k, &v, &out, &lse, &dout, &mut dq, &mut dk, &mut dv)?;
        // Gradients are differences of numbers that were rounded on the way.
        self.note("attention_back: dq", text.clone(), &dq, 3.0 * ROUNDED)?;
        self.note("attention_back: dk", text.clone(), &dk, 3.0 * ROUNDED)?;
        self.note("attention_back: dv", text, &dv, 2.0 * ROUNDED)
    }

    fn head(&mut self, scale: Scale) -> Result<(), KernelError> {
        let (backend, vocab, rows) = (self.backend, scale.vocab, scale.tokens / 3 + 1);
        let shape = format!("{rows} x {vocab}");
        // Rows supervise none, one or two tokens.
        let offsets: Vec<u32> = (0..=rows).map(|row| (row / 3 * 3 + [0, 0, 1][row % 3]) as u32).collect();
        let entries = offsets[rows] as usize;
        let ids: Vec<u32> = (0..entries).map(|i| (i * 97 % vocab) as u32).collect();
        let weights: Vec<f32> = made(51, entries).into_iter().map(f32::abs).collect();
        let mut logits = self.full(52, [rows, vocab])?;
        let wanted = Wanted { offsets: &offsets, ids: &ids };
        let readout = backend.read_out(&logits, vocab, &wanted)?;
        let best = readout.best.into_iter().map(|id| id as f32).collect();
        for (operation, values, most) in [
            ("read_out: log-probabilities", readout.log_probs, EXACT),
            ("read_out: best", best, 0.0),
            ("read_out: margin", readout.margin, EXACT),
        ] {
            self.results.push(Left { operation, shape: shape.clone(), values, most });
        }
        let (offsets, ids, weights) = (backend.indices(&offsets)?, backend.indices(&ids)?, backend.upload(&weights)?);
        let targets = Targets { offsets: &offsets, ids: &ids, weights: &weights };
        let mut loss = backend.alloc([rows, 1])?;
        backend.cross_entropy(&mut logits, vocab, &targets, &mut loss)?;
        self.note("cross_entropy: loss", shape.clone(), &loss, EXACT)?;
        self.note("cross_entropy: gradient", shape, &logits, EXACT)
    }

    fn optimizer(&mut self, scale: Scale) -> Result<(), KernelError> {
        let (backend, n) = (self.backend, scale.tokens * scale.hidden + 3);
        let gradient = self.full(61, [1, n])?;
        let (mut params, mut first) = (self.full(62, [1, n])?, self.full(63, [1, n])?);
        let mut second = backend.upload(&made(64, n).into_iter().map(f32::abs).collect::<Vec<_>>())?;
        let step =
            AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 3, gradient_scale: 0.5 };
        backend.adamw(&step, &gradient, &mut params, &mut first, &mut second)?;
        self.note("adamw", n.to_string(), &params, 1e-5)?;
        let squares = backend.sum_squares(&gradient)? as f32;
        self.results.push(Left { operation: "sum_squares", shape: n.to_string(), values: vec![squares], most: 1e-6 });
        Ok(())
    }
}
