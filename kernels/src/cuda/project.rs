//! Linear layers with their low-rank pairs on a GPU: every product is cuBLASLt's, of operands rounded to bfloat16.

use super::{
    Cuda, CudaBuffer,
    blas::{Operand, Product},
    device::Arg,
    launch,
    memory::{Block, Element},
    weight::CudaWeight,
};
use crate::{
    backend::{LoraShape, Projection, ProjectionBack, Write},
    error::KernelError,
};

impl Write {
    fn beta(self) -> f32 {
        match self {
            Self::Set => 0.0,
            Self::Add => 1.0,
        }
    }
}

/// A pair in bfloat16: A and B, and the memory that they lie in.
struct Pair {
    a: u64,
    b: u64,
    _held: Block,
}

impl Cuda {
    /// A buffer's values in bfloat16.
    pub(super) fn rounded(&self, buffer: &CudaBuffer) -> Result<u64, KernelError> {
        buffer.rounded(|| {
            let block = self.pool.scratch(buffer.len() * Element::Bf16.bytes())?;
            self.round(buffer.address(), block.address(), buffer.len())?;
            Ok(block)
        })
    }

    /// Rounds float32 values.
    pub(super) fn round(&self, from: u64, to: u64, len: usize) -> Result<(), KernelError> {
        let args = [Arg::Address(from), Arg::Address(to), Arg::U64(len as u64), Arg::F32(1.0)];
        self.device.launch(&launch::to_bf16(len)?, &args)
    }

    /// A pair's two matrices, rounded. Each begins where sixteen bytes do, whatever the pair's place in the buffer.
    fn pair(&self, params: &CudaBuffer, shape: &LoraShape) -> Result<Pair, KernelError> {
        let (a_len, b_len) = (shape.r * shape.input, shape.output * shape.r);
        let b_at = (a_len * Element::Bf16.bytes()).next_multiple_of(16);
        let held = self.pool.scratch(b_at + b_len * Element::Bf16.bytes())?;
        let (a, b) = (held.address(), held.address() + b_at as u64);
        let from = |at: usize, len: usize| params.of(Element::F32, at + len) + (at * Element::F32.bytes()) as u64;
        self.round(from(shape.a, a_len), a, a_len)?;
        self.round(from(shape.b, b_len), b, b_len)?;
        Ok(Pair { a, b, _held: held })
    }

    pub(super) fn project_forward(
        &self,
        x: &CudaBuffer,
        params: &CudaBuffer,
        layers: &mut [Projection<'_, Self>],
        write: Write,
    ) -> Result<(), KernelError> {
        let from = self.rounded(x)?;
        for Projection { weight, pair, y } in layers {
            let (input, output) = (weight.columns, weight.rows);
            let rows = x.len() / input;
            let element = y.element();
            let y = y.of_mut(element, rows * output);
            self.blas.multiply(&Product {
                a: Operand::plain(from),
                b: Operand::transposed(self.dense(weight)?.address()),
                c: y,
                element,
                shape: [rows, output, input],
                alpha: 1.0,
                beta: write.beta(),
            })?;
            let Some((shape, down)) = pair else { continue };
            let pair = self.pair(params, shape)?;
            let down = down.of_mut(Element::Bf16, rows * shape.r);
            self.blas.multiply(&Product {
                a: Operand::plain(from),
                b: Operand::transposed(pair.a),
                c: down,
                element: Element::Bf16,
                shape: [rows, shape.r, input],
                alpha: 1.0,
                beta: 0.0,
            })?;
            self.blas.multiply(&Product {
                a: Operand::plain(down),
                b: Operand::transposed(pair.b),
                c: y,
                element,
                shape: [rows, output, shape.r],
                alpha: shape.scale,
                beta: 1.0,
            })?;
        }
        Ok(())
    }

    pub(super) fn project_backward(
        &self,
        x: Option<&CudaBuffer>,
        params: &CudaBuffer,
        layers: &[ProjectionBack<'_, Self>],
        grads: &mut CudaBuffer,
        mut dx: Option<(&mut CudaBuffer, Write)>,
    ) -> Result<(), KernelError> {
        for ProjectionBack { weight, pair, dy } in layers {
            let (input, output) = (weight.columns, weight.rows);
            let rows = dy.len() / output;
            let from = self.rounded(dy)?;
            if let Some((dx, write)) = &mut dx {
                let element = dx.element();
                self.blas.multiply(&Product {
                    a: Operand::plain(from),
                    b: Operand::plain(self.dense(weight)?.address()),
                    c: dx.of_mut(element, rows * input),
                    element,
                    shape: [rows, input, output],
                    alpha: 1.0,
                    beta: write.beta(),
                })?;
                // What further layers give is added.
                *write = Write::Add;
            }
            let Some((shape, down)) = pair else { continue };
            let x = self.rounded(x.expect("a layer with a pair is given its input"))?;
            let down = down.of(Element::Bf16, rows * shape.r);
            let into = dx.as_mut().map(|(dx, _)| &mut **dx);
            self.pair_backward(&self.pair(params, shape)?, shape, rows, [x, down, from], grads, into)?;
        }
        Ok(())
    }

    /// The gradients of a pair, and what it adds to the input's.
    fn pair_backward(
        &self,
        pair: &Pair,
        shape: &LoraShape,
        rows: usize,
        [x, down, dy]: [u64; 3],
        grads: &mut CudaBuffer,
        dx: Option<&mut CudaBuffer>,
    ) -> Result<(), KernelError> {
        let LoraShape { r, input, output, scale, .. } = *shape;
        let (a_end, b_end) = (shape.a + r * input, shape.b + output * r);
        let grads = grads.of_mut(Element::F32, a_end.max(b_end));
        let at = |index: usize| grads + (index * Element::F32.bytes()) as u64;
        // The gradient at the down projection.
        let back = self.pool.rows(rows, r * Element::Bf16.bytes())?;
        self.blas.multiply(&Product {
            a: Operand::plain(dy),
            b: Operand::plain(pair.b),
            c: back.address(),
            element: Element::Bf16,
            shape: [rows, r, output],
            alpha: scale,
            beta: 0.0,
        })?;
        self.blas.multiply(&Product {
            a: Operand::transposed(dy),
            b: Operand::plain(down),
            c: at(shape.b),
            element: Element::F32,
            shape: [output, r, rows],
            alpha: scale,
            beta: 1.0,
        })?;
        self.blas.multiply(&Product {
            a: Operand::transposed(back.address()),
            b: Operand::plain(x),
            c: at(shape.a),
            element: Element::F32,
            shape: [r, input, rows],
            alpha: 1.0,
            beta: 1.0,
        })?;
        let Some(dx) = dx else { return Ok(()) };
        let element = dx.element();
        self.blas.multiply(&Product {
            a: Operand::plain(back.address()),
            b: Operand::plain(pair.a),
            c: dx.of_mut(element, rows * input),
            element,
            shape: [rows, input, r],
            alpha: 1.0,
            beta: 1.0,
        })
    }

    /// `grads[at..] += dy^T x`.
    pub(super) fn gradient_of_weight(
        &self,
        x: &CudaBuffer,
        dy: &CudaBuffer,
        [output, input]: [usize; 2],
        grads: &mut CudaBuffer,
        at: usize,
    ) -> Result<(), KernelError> {
        let grads = grads.of_mut(Element::F32, at + output * input) + (at * Element::F32.bytes()) as u64;
        self.blas.multiply(&Product {
            a: Operand::transposed(self.rounded(dy)?),
            b: Operand::plain(self.rounded(x)?),
            c: grads,
            element: Element::F32,
            shape: [output, input, x.len() / input],
            alpha: 1.0,
            beta: 1.0,
        })
    }

    /// `W + scale * B A`, rounded once.
    pub(super) fn merge(
        &self,
        weight: &CudaWeight,
        params: &CudaBuffer,
        shape: &LoraShape,
    ) -> Result<CudaWeight, KernelError> {
        let (rows, columns) = (weight.rows, weight.columns);
        let pair = self.pair(params, shape)?;
        let delta = self.pool.scratch(rows * columns * Element::F32.bytes())?;
        self.blas.multiply(&Product {
            a: Operand::plain(pair.b),
            b: Operand::plain(pair.a),
            c: delta.address(),
            element: Element::F32,
            shape: [rows, columns, shape.r],
            alpha: shape.scale,
            beta: 0.0,
        })?;
        let out = self.pool.kept(rows * columns * Element::Bf16.bytes())?;
        let args = [self.dense(weight)?.address(), delta.address(), out.address()].map(Arg::Address);
        let len = rows * columns;
        self.device.launch(&launch::merge(len)?, &[&args[..], &[Arg::U64(len as u64)]].concat())?;
        Ok(self.held([rows, columns], out))
    }
}
