//! What a GPU reaches: its own copy and product as ceilings, and the kernels against them.

use super::{
    Cuda,
    blas::{Operand, Product},
    memory::Element,
};
use crate::{
    backend::{AdamW, Attention, Backend, Sight, Write},
    error::KernelError,
};

/// Dimensions of what is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Values of the copy, four bytes each.
    pub values: usize,
    /// Side of the square product.
    pub side: usize,
    /// Tokens of the kernels' matrices.
    pub tokens: usize,
    /// Their width.
    pub width: usize,
    /// How often each is repeated.
    pub repeat: u32,
}

impl Size {
    /// Large enough that caches do not help.
    pub const USUAL: Self = Self { values: 1 << 28, side: 8192, tokens: 8192, width: 4096, repeat: 20 };
    /// For a stand-in that interprets.
    pub const SMALL: Self = Self { values: 1 << 10, side: 64, tokens: 32, width: 64, repeat: 1 };
}

/// How fast something is.
#[derive(Debug, Clone, PartialEq)]
pub struct Reached {
    /// What.
    pub what: &'static str,
    /// Seconds of one.
    pub seconds: f64,
    /// Bytes read and written a second.
    pub bytes: f64,
    /// Floating-point operations a second.
    pub operations: f64,
}

impl Cuda {
    /// Seconds that one of several issues of `work` takes on the device, after one that does not count.
    ///
    /// # Errors
    /// When the device refuses.
    fn seconds(&self, repeat: u32, mut work: impl FnMut() -> Result<(), KernelError>) -> Result<f64, KernelError> {
        work()?;
        let begun = self.device.mark()?;
        (0..repeat).try_for_each(|_| work())?;
        let ended = self.device.mark()?;
        self.device.synchronise()?;
        Ok(self.device.between(&begun, &ended)? / f64::from(repeat))
    }

    /// Measures the ceilings, then kernels of each kind.
    ///
    /// # Errors
    /// When the device refuses or has no room.
    pub fn measure(&self, size: Size) -> Result<Vec<Reached>, KernelError> {
        let Size { values, side, tokens, width, repeat } = size;
        let mut all = Vec::new();
        let mut note = |what, seconds: f64, bytes: usize, operations: usize| {
            all.push(Reached { what, seconds, bytes: bytes as f64 / seconds, operations: operations as f64 / seconds });
        };
        let (from, mut to) = (self.alloc([1, values])?, self.alloc([1, values])?);
        note("copy", self.seconds(repeat, || self.copy(&from, &mut to, 0))?, 8 * values, 0);
        drop((from, to));

        note("product", self.product(side, repeat)?, 6 * side * side, 2 * side * side * side);

        let n = tokens * width;
        let mut x = self.alloc([tokens, width])?;
        self.zero(&mut x)?;
        let (gain, mut y) = (self.upload(&vec![1.0; width])?, self.zeroed([tokens, width])?);
        note("rms_norm", self.seconds(repeat, || self.rms_norm(&x, &gain, 1e-5, &mut y))?, 6 * n, 4 * n);
        let (gate, up) = (self.zeroed([tokens, width])?, self.zeroed([tokens, width])?);
        note("swiglu", self.seconds(repeat, || self.swiglu(&gate, &up, &mut y))?, 6 * n, 6 * n);
        let mut residual = self.alloc([tokens, width])?;
        self.zero(&mut residual)?;
        let dy = self.alloc([tokens, width])?;
        let back = || self.rms_norm_back(&x, &gain, 1e-5, &dy, &mut residual);
        note("rms_norm_back", self.seconds(repeat, back)?, 16 * n, 10 * n);
        let step =
            AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0, step: 1, gradient_scale: 1.0 };
        let (mut params, mut first, mut second) = (self.alloc([1, n])?, self.alloc([1, n])?, self.alloc([1, n])?);
        for buffer in [&mut params, &mut first, &mut second] {
            self.zero(buffer)?;
        }
        let adamw = || self.adamw(&step, &x, &mut params, &mut first, &mut second);
        note("adamw", self.seconds(repeat, adamw)?, 28 * n, 15 * n);
        drop((params, first, second, residual, gate, up));
        self.measure_attention(size, &mut note)?;
        let mut q4 = self.zeroed([tokens, width])?;
        let weight = self.weight([width, width], &vec![0.5; width * width], crate::backend::Precision::Q4)?;
        let dequantised = || self.matmul(&y, &weight, &mut q4, Write::Set);
        let (bytes, operations) = (width * width / 2 + 4 * n, 2 * n * width);
        note("product of a Q4 weight", self.seconds(repeat, dequantised)?, bytes, operations);
        Ok(all)
    }

    /// Floating-point operations a second of a large product: what a slot's arithmetic is judged by.
    ///
    /// # Errors
    /// When the device refuses or has no room.
    pub fn product_peak(&self) -> Result<f64, KernelError> {
        const SIDE: usize = 4096;
        Ok(2.0 * (SIDE as f64).powi(3) / self.product(SIDE, 20)?)
    }

    /// Seconds of a square bfloat16 product.
    fn product(&self, side: usize, repeat: u32) -> Result<f64, KernelError> {
        let matrix = || self.zeroed([side, side]);
        let (a, b, mut c) = (matrix()?, matrix()?, matrix()?);
        let product = Product {
            a: Operand::plain(a.address()),
            b: Operand::transposed(b.address()),
            c: c.address_mut(),
            element: Element::Bf16,
            shape: [side; 3],
            alpha: 1.0,
            beta: 0.0,
        };
        self.seconds(repeat, || self.blas.multiply(&product))
    }

    fn measure_attention(
        &self,
        size: Size,
        note: &mut impl FnMut(&'static str, f64, usize, usize),
    ) -> Result<(), KernelError> {
        let Size { tokens, width, repeat, .. } = size;
        let head_dim = 64;
        let shape = Attention { heads: (width / head_dim).max(1), kv_heads: (width / head_dim).max(1), head_dim };
        let wide = [tokens, shape.heads * head_dim];
        let (q, k, v) = (self.zeroed(wide)?, self.zeroed(wide)?, self.zeroed(wide)?);
        let (mut out, mut lse) = (self.zeroed(wide)?, self.alloc([tokens, shape.heads])?);
        // One sequence: a chain.
        let order: Vec<u32> = (0..tokens as u32).collect();
        let (start, end) = (self.indices(&order)?, self.indices(&vec![tokens as u32; tokens])?);
        let sight = Sight { query: &start, start: &start, end: &end };
        let n = tokens * shape.heads * head_dim;
        // Half of the square is seen; two products forward, five backward.
        let operations = 2 * 2 * tokens * n / 2;
        let forward = || self.attention(shape, &sight, &q, &k, &v, &mut out, &mut lse);
        note("attention", self.seconds(repeat, forward)?, 8 * n, operations);
        let dout = self.zeroed(wide)?;
        let (mut dq, mut dk, mut dv) = (self.zeroed(wide)?, self.zeroed(wide)?, self.zeroed(wide)?);
        let backward = || self.attention_back(shape, &sight, &q, &k, &v, &out, &lse, &dout, &mut dq, &mut dk, &mut dv);
        note("attention_back", self.seconds(repeat, backward)?, 16 * n, operations / 2 * 5);
        Ok(())
    }

    fn zeroed(&self, shape: [usize; 2]) -> Result<super::CudaBuffer, KernelError> {
        let mut buffer = self.alloc_activation(shape)?;
        self.zero(&mut buffer)?;
        Ok(buffer)
    }
}
