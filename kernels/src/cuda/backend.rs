//! The operations: each one checks its operands and issues the launches or products that it is made of.

use bytemuck::{cast_slice, cast_slice_mut};
use half::bf16;

use super::{
    Cuda, CudaBuffer, CudaIndices, CudaWeight,
    device::Arg,
    launch,
    memory::Element::{self, Bf16, F32},
};
use crate::{
    backend::{
        AdamW, Attention, Backend, Direction, LoraShape, Precision, Projection, ProjectionBack, Readout, Sight,
        Targets, Wanted, Write,
    },
    error::KernelError,
};

/// Addresses first, then the rest: the order of every kernel's parameters.
fn args<const N: usize, const M: usize>(addresses: [u64; N], rest: [Arg; M]) -> Vec<Arg> {
    addresses.into_iter().map(Arg::Address).chain(rest).collect()
}

fn u32_of(value: usize) -> Arg {
    Arg::U32(u32::try_from(value).expect("dimensions are far below 2^32"))
}

fn u64_of(value: usize) -> Arg {
    Arg::U64(value as u64)
}

impl Cuda {
    fn matrix(&self, [rows, width]: [usize; 2], element: Element) -> Result<CudaBuffer, KernelError> {
        Ok(CudaBuffer::new(self.pool.rows(rows, width * element.bytes())?, rows * width, element))
    }
}

impl Backend for Cuda {
    type Buffer = CudaBuffer;
    type Indices = CudaIndices;
    type Weight = CudaWeight;

    fn alloc(&self, shape: [usize; 2]) -> Result<CudaBuffer, KernelError> {
        self.matrix(shape, F32)
    }

    fn alloc_activation(&self, shape: [usize; 2]) -> Result<CudaBuffer, KernelError> {
        self.matrix(shape, Bf16)
    }

    fn finish(&self) -> Result<(), KernelError> {
        self.device.synchronise()
    }

    fn expect_rows(&self, rows: usize) {
        self.pool.expect(rows);
    }

    fn upload(&self, values: &[f32]) -> Result<CudaBuffer, KernelError> {
        let block = self.pool.scratch(size_of_val(values))?;
        self.device.write(block.address(), cast_slice(values))?;
        Ok(CudaBuffer::new(block, values.len(), F32))
    }

    fn download(&self, buffer: &CudaBuffer) -> Result<Vec<f32>, KernelError> {
        match buffer.element() {
            F32 => {
                let mut values = vec![0.0; buffer.len()];
                self.device.read(buffer.address(), cast_slice_mut(&mut values))?;
                Ok(values)
            }
            Bf16 => {
                let mut bits = vec![0_u16; buffer.len()];
                self.device.read(buffer.address(), cast_slice_mut(&mut bits))?;
                Ok(bits.into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect())
            }
        }
    }

    fn indices(&self, values: &[u32]) -> Result<CudaIndices, KernelError> {
        let block = self.pool.scratch(size_of_val(values))?;
        self.device.write(block.address(), cast_slice(values))?;
        Ok(CudaIndices { block, len: values.len() })
    }

    fn weight(&self, shape: [usize; 2], values: &[f32], precision: Precision) -> Result<CudaWeight, KernelError> {
        self.hold(shape, values, precision)
    }

    fn merged(&self, weight: &CudaWeight, params: &CudaBuffer, pair: &LoraShape) -> Result<CudaWeight, KernelError> {
        self.merge(weight, params, pair)
    }

    fn zero(&self, buffer: &mut CudaBuffer) -> Result<(), KernelError> {
        let bytes = buffer.len() * buffer.element().bytes();
        self.device.zero(buffer.address_mut(), bytes)
    }

    fn copy(&self, from: &CudaBuffer, to: &mut CudaBuffer, at: usize) -> Result<(), KernelError> {
        let (n, element) = (from.len(), to.element());
        let to = to.of_mut(element, at + n) + (at * element.bytes()) as u64;
        match (from.element(), element) {
            (F32, Bf16) => self.round(from.address(), to, n),
            (Bf16, F32) => self.device.launch(&launch::to_f32(n)?, &args([from.address(), to], [u64_of(n)])),
            _ => self.device.copy(from.address(), to, n * element.bytes()),
        }
    }

    fn embed(&self, table: &CudaWeight, ids: &CudaIndices, out: &mut CudaBuffer) -> Result<(), KernelError> {
        let out = out.of_mut(F32, ids.len * table.columns);
        self.rows_of(table, ids.address(), ids.len, out)
    }

    fn project(
        &self,
        x: &CudaBuffer,
        params: &CudaBuffer,
        layers: &mut [Projection<'_, Self>],
        write: Write,
    ) -> Result<(), KernelError> {
        self.project_forward(x, params, layers, write)
    }

    fn project_back(
        &self,
        x: Option<&CudaBuffer>,
        params: &CudaBuffer,
        layers: &[ProjectionBack<'_, Self>],
        grads: &mut CudaBuffer,
        dx: Option<(&mut CudaBuffer, Write)>,
    ) -> Result<(), KernelError> {
        self.project_backward(x, params, layers, grads, dx)
    }

    fn weight_gradient(
        &self,
        x: &CudaBuffer,
        dy: &CudaBuffer,
        shape: [usize; 2],
        grads: &mut CudaBuffer,
        at: usize,
    ) -> Result<(), KernelError> {
        self.gradient_of_weight(x, dy, shape, grads, at)
    }

    fn rms_norm(&self, x: &CudaBuffer, gain: &CudaBuffer, eps: f32, y: &mut CudaBuffer) -> Result<(), KernelError> {
        let (n, width) = (x.len(), gain.len());
        let operands = [x.of(F32, n), gain.of(F32, width), y.of_mut(Bf16, n)];
        self.device.launch(&launch::rms_norm(n / width, width)?, &args(operands, [u32_of(width), Arg::F32(eps)]))
    }

    fn rms_norm_back(
        &self,
        x: &CudaBuffer,
        gain: &CudaBuffer,
        eps: f32,
        dy: &CudaBuffer,
        dx: &mut CudaBuffer,
    ) -> Result<(), KernelError> {
        let (n, width) = (x.len(), gain.len());
        let operands = [x.of(F32, n), gain.of(F32, width), dy.of(F32, n), dx.of_mut(F32, n)];
        self.device.launch(&launch::rms_norm_back(n / width, width)?, &args(operands, [u32_of(width), Arg::F32(eps)]))
    }

    fn gain_gradient(
        &self,
        x: &CudaBuffer,
        eps: f32,
        dy: &CudaBuffer,
        width: usize,
        grads: &mut CudaBuffer,
        at: usize,
    ) -> Result<(), KernelError> {
        let (n, rows) = (x.len(), x.len() / width);
        let inverse = self.alloc([rows, 1])?;
        let of_rows = args([x.of(F32, n), inverse.address()], [u32_of(width), Arg::F32(eps)]);
        self.device.launch(&launch::inverse_rms(rows, width)?, &of_rows)?;
        let grads = grads.of_mut(F32, at + width) + (at * F32.bytes()) as u64;
        let operands = [x.address(), inverse.address(), dy.of(F32, n), grads];
        self.device.launch(&launch::gain_gradient(width)?, &args(operands, [u32_of(rows), u32_of(width)]))
    }

    fn rotary(
        &self,
        x: &mut CudaBuffer,
        table: &CudaBuffer,
        head_dim: usize,
        direction: Direction,
    ) -> Result<(), KernelError> {
        let tokens = table.len() / head_dim;
        let heads = x.len() / table.len();
        let sign = match direction {
            Direction::Forward => 1.0,
            Direction::Backward => -1.0,
        };
        let operands = [x.of_mut(Bf16, tokens * heads * head_dim), table.of(F32, table.len())];
        let rest = [u32_of(heads), u32_of(head_dim), Arg::F32(sign)];
        self.device.launch(&launch::rotary(tokens, heads, head_dim)?, &args(operands, rest))
    }

    fn attention(
        &self,
        shape: Attention,
        sight: &Sight<'_, CudaIndices>,
        q: &CudaBuffer,
        k: &CudaBuffer,
        v: &CudaBuffer,
        out: &mut CudaBuffer,
        lse: &mut CudaBuffer,
    ) -> Result<(), KernelError> {
        let seen = Seen::new(shape, sight);
        let operands = [
            q.of(Bf16, seen.q_len()),
            k.of(Bf16, seen.k_len()),
            v.of(Bf16, seen.k_len()),
            out.of_mut(Bf16, seen.q_len()),
            lse.of_mut(F32, seen.queries * shape.heads),
            sight.query.address(),
            sight.start.address(),
            sight.end.address(),
        ];
        let launch = launch::attention(seen.queries, seen.keys, shape.heads, shape.head_dim)?;
        self.device.launch(&launch, &args(operands, seen.rest()))
    }

    fn attention_back(
        &self,
        shape: Attention,
        sight: &Sight<'_, CudaIndices>,
        q: &CudaBuffer,
        k: &CudaBuffer,
        v: &CudaBuffer,
        out: &CudaBuffer,
        lse: &CudaBuffer,
        dout: &CudaBuffer,
        dq: &mut CudaBuffer,
        dk: &mut CudaBuffer,
        dv: &mut CudaBuffer,
    ) -> Result<(), KernelError> {
        let seen = Seen::new(shape, sight);
        let (q_len, k_len) = (seen.q_len(), seen.k_len());
        let delta = self.alloc([seen.queries, shape.heads])?;
        let dout = dout.of(Bf16, q_len);
        let rest = [u32_of(shape.heads), u32_of(shape.head_dim)];
        let of_delta = args([out.of(Bf16, q_len), dout, delta.address()], rest);
        self.device.launch(&launch::attention_delta(seen.queries, shape.heads, shape.head_dim)?, &of_delta)?;

        let (q, k, v) = (q.of(Bf16, q_len), k.of(Bf16, k_len), v.of(Bf16, k_len));
        let lse = lse.of(F32, seen.queries * shape.heads);
        let (query, start, end) = (sight.query.address(), sight.start.address(), sight.end.address());
        let read = [q, k, v, dout, lse, delta.address(), query, start, end];
        let of_queries = [&args(read, [])[..], &args([dq.of_mut(Bf16, q_len)], seen.rest())].concat();
        self.device
            .launch(&launch::attention_dq(seen.queries, seen.keys, shape.heads, shape.head_dim)?, &of_queries)?;
        let written = [dk.of_mut(Bf16, k_len), dv.of_mut(Bf16, k_len)];
        let of_keys = [&args(read, [])[..], &args(written, seen.rest())].concat();
        self.device.launch(&launch::attention_dkv(seen.queries, seen.keys, shape.kv_heads, shape.head_dim)?, &of_keys)
    }

    fn swiglu(&self, gate: &CudaBuffer, up: &CudaBuffer, out: &mut CudaBuffer) -> Result<(), KernelError> {
        let n = gate.len();
        let operands = [gate.of(Bf16, n), up.of(Bf16, n), out.of_mut(Bf16, n)];
        self.device.launch(&launch::swiglu(n)?, &args(operands, [u64_of(n)]))
    }

    fn swiglu_back(
        &self,
        gate: &CudaBuffer,
        up: &CudaBuffer,
        dout: &mut CudaBuffer,
        dup: &mut CudaBuffer,
    ) -> Result<(), KernelError> {
        let n = gate.len();
        let operands = [gate.of(Bf16, n), up.of(Bf16, n), dout.of_mut(Bf16, n), dup.of_mut(Bf16, n)];
        self.device.launch(&launch::swiglu_back(n)?, &args(operands, [u64_of(n)]))
    }

    fn gather_rows(
        &self,
        x: &CudaBuffer,
        rows: &CudaIndices,
        width: usize,
        out: &mut CudaBuffer,
    ) -> Result<(), KernelError> {
        let element = x.element();
        let launch = match element {
            F32 => launch::gather_rows_f32(rows.len, width)?,
            Bf16 => launch::gather_rows_bf16(rows.len, width)?,
        };
        let operands = [x.address(), rows.address(), out.of_mut(element, rows.len * width)];
        self.device.launch(&launch, &args(operands, [u32_of(width)]))
    }

    fn scatter_add_rows(
        &self,
        x: &CudaBuffer,
        rows: &CudaIndices,
        width: usize,
        out: &mut CudaBuffer,
    ) -> Result<(), KernelError> {
        let operands = [x.of(F32, rows.len * width), rows.address(), out.of_mut(F32, 0)];
        let launch = launch::scatter_add_rows(rows.len, width)?;
        self.device.launch(&launch, &args(operands, [u32_of(rows.len), u32_of(width)]))
    }

    fn cross_entropy(
        &self,
        logits: &mut CudaBuffer,
        vocab: usize,
        targets: &Targets<'_, CudaIndices, CudaBuffer>,
        loss: &mut CudaBuffer,
    ) -> Result<(), KernelError> {
        let rows = loss.len();
        let Targets { offsets, ids, weights } = targets;
        let addresses = [offsets.address(), ids.address(), weights.of(F32, ids.len), loss.of_mut(F32, rows)];
        let head = args([logits.of_mut(F32, rows * vocab)], [u32_of(vocab)]);
        self.device.launch(&launch::cross_entropy(rows)?, &[&head[..], &args(addresses, [])].concat())
    }

    fn read_out(&self, logits: &CudaBuffer, vocab: usize, wanted: &Wanted<'_>) -> Result<Readout, KernelError> {
        let rows = wanted.offsets.len() - 1;
        // Entries are counted from the first row's first.
        let first = wanted.offsets[0];
        let entries = first as usize..wanted.offsets[rows] as usize;
        let offsets: Vec<u32> = wanted.offsets.iter().map(|offset| offset - first).collect();
        let (offsets, ids) = (self.indices(&offsets)?, self.indices(&wanted.ids[entries.clone()])?);
        let log_probs = self.alloc([1, entries.len()])?;
        let (best, margin) = (self.pool.rows(rows, size_of::<u32>())?, self.alloc([rows, 1])?);
        let head = args([logits.of(F32, rows * vocab)], [u32_of(vocab)]);
        let rest = [offsets.address(), ids.address(), log_probs.address(), best.address(), margin.address()];
        self.device.launch(&launch::read_out(rows)?, &[&head[..], &args(rest, [])].concat())?;
        let mut out =
            Readout { log_probs: self.download(&log_probs)?, best: vec![0; rows], margin: self.download(&margin)? };
        self.device.read(best.address(), cast_slice_mut(&mut out.best))?;
        // A row of NaN alone has no greatest logit; as on the CPU the first stands for it.
        out.best.iter_mut().filter(|best| **best as usize >= vocab).for_each(|best| *best = 0);
        Ok(out)
    }

    fn adamw(
        &self,
        step: &AdamW,
        gradient: &CudaBuffer,
        params: &mut CudaBuffer,
        first: &mut CudaBuffer,
        second: &mut CudaBuffer,
    ) -> Result<(), KernelError> {
        let n = gradient.len();
        let correction = |beta: f32| (1.0 - f64::from(beta).powi(step.step.cast_signed())) as f32;
        let constants = [
            step.lr,
            step.beta1,
            step.beta2,
            step.eps,
            step.weight_decay,
            correction(step.beta1),
            correction(step.beta2),
            step.gradient_scale,
        ];
        let operands = [gradient.of(F32, n), params.of_mut(F32, n), first.of_mut(F32, n), second.of_mut(F32, n)];
        let all = [&args(operands, [u64_of(n)])[..], &constants.map(Arg::F32)].concat();
        self.device.launch(&launch::adamw(n)?, &all)
    }

    fn sum_squares(&self, values: &CudaBuffer) -> Result<f64, KernelError> {
        let n = values.len();
        let mut sums = vec![0.0_f64; n.div_ceil(launch::SQUARES_CHUNK)];
        let partial = self.pool.scratch(size_of_val(&sums[..]))?;
        let all = [&args([values.of(F32, n)], [u64_of(n)])[..], &args([partial.address()], [])].concat();
        self.device.launch(&launch::sum_squares(n)?, &all)?;
        self.device.read(partial.address(), cast_slice_mut(&mut sums))?;
        Ok(sums.into_iter().sum())
    }
}

/// An attention's sizes.
struct Seen {
    shape: Attention,
    queries: usize,
    keys: usize,
}

impl Seen {
    fn new(shape: Attention, sight: &Sight<'_, CudaIndices>) -> Self {
        assert_eq!(sight.start.len, sight.end.len, "a first and a last query number for each key");
        Self { shape, queries: sight.query.len, keys: sight.start.len }
    }

    fn q_len(&self) -> usize {
        self.queries * self.shape.heads * self.shape.head_dim
    }

    fn k_len(&self) -> usize {
        self.keys * self.shape.kv_heads * self.shape.head_dim
    }

    /// What follows the addresses.
    fn rest(&self) -> [Arg; 6] {
        let Attention { heads, kv_heads, head_dim } = self.shape;
        let [a, b, c, d, e] = [self.queries, self.keys, heads, kv_heads, head_dim].map(u32_of);
        [a, b, c, d, e, Arg::F32(1.0 / (head_dim as f32).sqrt())]
    }
}
