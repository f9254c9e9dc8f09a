//! The operations a transformer needs, over buffers that live wherever the backend keeps them.
//!
//! Shapes are row-major and written `[rows, columns]`; `T` is a number of tokens (or of chosen rows). Operations are
//! issued in order and may complete later; only the ones that return host values wait.

use crate::error::KernelError;

/// How a frozen weight is stored; arithmetic is always float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Four bytes an element.
    F32,
    /// Two bytes an element, widened while it is being packed.
    Bf16,
    /// Eight bits an element and a scale for 32 inputs of an output, as GGUF's Q8_0.
    Q8,
    /// Four bits an element, a scale and a least value, as GGUF's Q4_1.
    Q4,
}

/// Whether a product replaces what its output held or is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// The output is overwritten.
    Set,
    /// The product is added to the output.
    Add,
}

/// Which way a rotation turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// By the token's angle, as in the forward pass.
    Forward,
    /// By minus the angle: the transpose, as in the backward pass.
    Backward,
}

/// One low-rank pair inside a flat parameter buffer: `A: [r, input]` at `a`, `B: [output, r]` at `b`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraShape {
    /// LoRA's width.
    pub r: usize,
    /// Columns of A: the width of the input.
    pub input: usize,
    /// Rows of B: the width of the output.
    pub output: usize,
    /// Index of A's first element.
    pub a: usize,
    /// Index of B's first element.
    pub b: usize,
    /// alpha / r.
    pub scale: f32,
}

/// One of the linear layers that read the same input.
#[derive(Debug)]
pub struct Projection<'a, B: Backend + ?Sized> {
    /// The frozen matrix `[out, in]`.
    pub weight: &'a B::Weight,
    /// The low-rank pair that is added, and where `down = x A^T: [T, r]` goes.
    pub pair: Option<(LoraShape, &'a mut B::Buffer)>,
    /// The output, `[T, out]`.
    pub y: &'a mut B::Buffer,
}

/// The way back through a [`Projection`].
#[derive(Debug)]
pub struct ProjectionBack<'a, B: Backend + ?Sized> {
    /// The frozen matrix `[out, in]`.
    pub weight: &'a B::Weight,
    /// The low-rank pair, and its `down: [T, r]` of the forward pass.
    pub pair: Option<(LoraShape, &'a B::Buffer)>,
    /// The output's gradient, `[T, out]`.
    pub dy: &'a B::Buffer,
}

/// Dimensions of grouped-query attention; scores are scaled by `head_dim^-1/2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

/// Who sees whom: query `q` sees key `k` iff `start[k] <= query[q] < end[k]`.
///
/// For a token forest `query[i] = start[i] = i` and `end[i]` is the end of i's subtree; a subset of queries, or tokens
/// decoded later, only need other numbers under the same rule.
#[derive(Debug)]
pub struct Sight<'a, I> {
    /// One number per query row.
    pub query: &'a I,
    /// First query number each key is visible to.
    pub start: &'a I,
    /// One past the last query number each key is visible to.
    pub end: &'a I,
}

/// Supervised tokens per row, compressed: row `r` has the entries `offsets[r]..offsets[r + 1]`.
#[derive(Debug)]
pub struct Targets<'a, I, F> {
    /// `[rows + 1]`, ascending from 0.
    pub offsets: &'a I,
    /// Token id of each entry.
    pub ids: &'a I,
    /// How much each entry counts, 0 or more.
    pub weights: &'a F,
}

/// Tokens whose log-probability is asked for, compressed like [`Targets`].
#[derive(Debug)]
pub struct Wanted<'a> {
    /// `[rows + 1]`, ascending from 0.
    pub offsets: &'a [u32],
    /// Token id of each entry.
    pub ids: &'a [u32],
}

/// What evaluation reads from rows of logits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Readout {
    /// Log-probability of each wanted entry, in order.
    pub log_probs: Vec<f32>,
    /// Per row: the id of the greatest logit, the lowest id among equals.
    pub best: Vec<u32>,
    /// Per row: the greatest logit minus the second greatest.
    pub margin: Vec<f32>,
}

/// The constants of one AdamW step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Number of this step, from 1, for the bias correction.
    pub step: u32,
    /// The gradient is multiplied by this first (clipping, and sum to mean).
    pub gradient_scale: f32,
}

/// A device and its operations. See the module's text for conventions.
pub trait Backend {
    /// float32 values on the device.
    type Buffer;
    /// u32 values on the device.
    type Indices;
    /// A frozen matrix `[out, in]` on the device, in the precision it was given.
    type Weight;

    /// A matrix of `[rows, width]` whose contents are unspecified.
    ///
    /// # Errors
    /// When the device has no room.
    fn alloc(&self, shape: [usize; 2]) -> Result<Self::Buffer, KernelError>;

    /// A matrix of `[rows, width]` for what one product leaves to the next, contents unspecified: in the precision that the
    /// device's products read, which is float32 unless a backend says otherwise. Every operation says which of its
    /// operands may be such a matrix; [`Backend::upload`] and [`Backend::download`] speak float32 always.
    ///
    /// # Errors
    /// When the device has no room.
    fn alloc_activation(&self, shape: [usize; 2]) -> Result<Self::Buffer, KernelError> {
        self.alloc(shape)
    }

    /// Waits for every operation before it, where operations complete later.
    ///
    /// # Errors
    /// When one of them failed.
    fn finish(&self) -> Result<(), KernelError> {
        Ok(())
    }

    /// Says that matrices of up to so many rows will be asked for, so that room for them can be made at once.
    fn expect_rows(&self, rows: usize);

    /// A buffer holding `values`.
    ///
    /// # Errors
    /// When the device has no room or refuses the transfer.
    fn upload(&self, values: &[f32]) -> Result<Self::Buffer, KernelError>;

    /// The buffer's values; waits for the operations before it.
    ///
    /// # Errors
    /// When the device refuses the transfer, or an operation before it failed.
    fn download(&self, buffer: &Self::Buffer) -> Result<Vec<f32>, KernelError>;

    /// The values of a buffer that is of no more use: [`Backend::download`] without a second copy where there can be one.
    ///
    /// # Errors
    /// As [`Backend::download`].
    fn take(&self, buffer: Self::Buffer) -> Result<Vec<f32>, KernelError> {
        self.download(&buffer)
    }

    /// Indices holding `values`.
    ///
    /// # Errors
    /// When the device has no room or refuses the transfer.
    fn indices(&self, values: &[u32]) -> Result<Self::Indices, KernelError>;

    /// A frozen matrix `[shape[0], shape[1]]` from row-major `values`.
    ///
    /// # Errors
    /// When the device has no room or refuses the transfer.
    fn weight(&self, shape: [usize; 2], values: &[f32], precision: Precision) -> Result<Self::Weight, KernelError>;

    /// `W + scale * B A`, in float32: the weight with the pair merged into it.
    ///
    /// # Errors
    /// When the device has no room or refuses.
    fn merged(
        &self,
        weight: &Self::Weight,
        params: &Self::Buffer,
        pair: &LoraShape,
    ) -> Result<Self::Weight, KernelError>;

    /// Sets every value to zero.
    ///
    /// # Errors
    /// When the device refuses.
    fn zero(&self, buffer: &mut Self::Buffer) -> Result<(), KernelError>;

    /// Copies all of `from` into `to`, starting at `to[at]`, in `to`'s precision.
    ///
    /// # Errors
    /// When the device refuses.
    fn copy(&self, from: &Self::Buffer, to: &mut Self::Buffer, at: usize) -> Result<(), KernelError>;

    /// `out[t] = table[ids[t]]`; `out: [T, in]`.
    ///
    /// # Errors
    /// When the device refuses.
    fn embed(&self, table: &Self::Weight, ids: &Self::Indices, out: &mut Self::Buffer) -> Result<(), KernelError>;

    /// `y_i (+)= x W_i^T (+ scale_i * down_i B_i^T, with down_i = x A_i^T)` for layers that read one `x: [T, in]`.
    ///
    /// # Errors
    /// When the device refuses.
    fn project(
        &self,
        x: &Self::Buffer,
        params: &Self::Buffer,
        layers: &mut [Projection<'_, Self>],
        write: Write,
    ) -> Result<(), KernelError>;

    /// The gradients of [`Backend::project`]: adds each pair's into `grads` (laid out like `params`) and, where asked
    /// for, `dx (+)= sum_i dy_i W_i (+ scale_i * dy_i B_i A_i)`. `x` is needed where a layer has a pair.
    ///
    /// # Errors
    /// When the device refuses.
    fn project_back(
        &self,
        x: Option<&Self::Buffer>,
        params: &Self::Buffer,
        layers: &[ProjectionBack<'_, Self>],
        grads: &mut Self::Buffer,
        dx: Option<(&mut Self::Buffer, Write)>,
    ) -> Result<(), KernelError>;

    /// The gradient of a weight itself: `grads[at..] += dy^T x`, `[out, in]` row-major; `x: [T, in]`, `dy: [T, out]`.
    ///
    /// # Errors
    /// When the device refuses.
    fn weight_gradient(
        &self,
        x: &Self::Buffer,
        dy: &Self::Buffer,
        shape: [usize; 2],
        grads: &mut Self::Buffer,
        at: usize,
    ) -> Result<(), KernelError>;

    /// `y (+)= x W^T`; `x: [T, in]`, `y: [T, out]`.
    ///
    /// # Errors
    /// When the device refuses.
    fn matmul(
        &self,
        x: &Self::Buffer,
        weight: &Self::Weight,
        y: &mut Self::Buffer,
        write: Write,
    ) -> Result<(), KernelError> {
        self.project(x, &self.alloc([0, 0])?, &mut [Projection { weight, pair: None, y }], write)
    }

    /// `dx (+)= dy W`; `dy: [T, out]`, `dx: [T, in]`.
    ///
    /// # Errors
    /// When the device refuses.
    fn matmul_back(
        &self,
        dy: &Self::Buffer,
        weight: &Self::Weight,
        dx: &mut Self::Buffer,
        write: Write,
    ) -> Result<(), KernelError> {
        let layers = [ProjectionBack { weight, pair: None, dy }];
        self.project_back(None, &self.alloc([0, 0])?, &layers, &mut self.alloc([0, 0])?, Some((dx, write)))
    }

    /// `y[t] = gain * x[t] / sqrt(mean(x[t]^2) + eps)`; `x, y: [T, width]`, `gain: [width]`.
    ///
    /// # Errors
    /// When the device refuses.
    fn rms_norm(
        &self,
        x: &Self::Buffer,
        gain: &Self::Buffer,
        eps: f32,
        y: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// Adds the norm's input gradient to `dx` (which holds the residual's gradient); `x, dy, dx: [T, width]`.
    ///
    /// # Errors
    /// When the device refuses.
    fn rms_norm_back(
        &self,
        x: &Self::Buffer,
        gain: &Self::Buffer,
        eps: f32,
        dy: &Self::Buffer,
        dx: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// The gradient of a norm's gain: `grads[at..][..width] += sum over t of dy[t] * x[t] / rms(x[t])`; `x, dy: [T, width]`.
    ///
    /// # Errors
    /// When the device refuses.
    fn gain_gradient(
        &self,
        x: &Self::Buffer,
        eps: f32,
        dy: &Self::Buffer,
        width: usize,
        grads: &mut Self::Buffer,
        at: usize,
    ) -> Result<(), KernelError>;

    /// Rotates each head of `x: [T, heads * head_dim]` in place, Hugging Face half-split order, by `table: [T, head_dim]`
    /// (row: the cosines of the first half's angles, then their sines).
    ///
    /// # Errors
    /// When the device refuses.
    fn rotary(
        &self,
        x: &mut Self::Buffer,
        table: &Self::Buffer,
        head_dim: usize,
        direction: Direction,
    ) -> Result<(), KernelError>;

    /// `out[q] = softmax(q K^T / sqrt(head_dim)) V` over the keys `q` sees; `q, out: [Q, heads * head_dim]`,
    /// `k, v: [K, kv_heads * head_dim]` (rows past `sight`'s keys are ignored), `lse: [Q, heads]` gets each softmax's
    /// log-sum-exp. Every query must see at least one key.
    ///
    /// # Errors
    /// When the device refuses.
    #[expect(clippy::too_many_arguments, reason = "one per operand of the product; a struct would only rename them")]
    fn attention(
        &self,
        shape: Attention,
        sight: &Sight<'_, Self::Indices>,
        q: &Self::Buffer,
        k: &Self::Buffer,
        v: &Self::Buffer,
        out: &mut Self::Buffer,
        lse: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// Overwrites `dq`, `dk`, `dv` with the gradients of [`Backend::attention`], given its inputs, outputs and `dout`.
    ///
    /// # Errors
    /// When the device refuses.
    #[expect(clippy::too_many_arguments, reason = "one per operand of the product; a struct would only rename them")]
    fn attention_back(
        &self,
        shape: Attention,
        sight: &Sight<'_, Self::Indices>,
        q: &Self::Buffer,
        k: &Self::Buffer,
        v: &Self::Buffer,
        out: &Self::Buffer,
        lse: &Self::Buffer,
        dout: &Self::Buffer,
        dq: &mut Self::Buffer,
        dk: &mut Self::Buffer,
        dv: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// `out = silu(gate) * up`, element by element.
    ///
    /// # Errors
    /// When the device refuses.
    fn swiglu(&self, gate: &Self::Buffer, up: &Self::Buffer, out: &mut Self::Buffer) -> Result<(), KernelError>;

    /// Turns `dout` into gate's gradient in place and writes up's into `dup`.
    ///
    /// # Errors
    /// When the device refuses.
    fn swiglu_back(
        &self,
        gate: &Self::Buffer,
        up: &Self::Buffer,
        dout: &mut Self::Buffer,
        dup: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// `out[i] = x[rows[i]]`; `x: [T, width]`, `out: [R, width]`.
    ///
    /// # Errors
    /// When the device refuses.
    fn gather_rows(
        &self,
        x: &Self::Buffer,
        rows: &Self::Indices,
        width: usize,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// `out[rows[i]] += x[i]`, in the order of `i`; `x: [R, width]`, `out: [T, width]` (what lies behind it stays).
    ///
    /// # Errors
    /// When the device refuses.
    fn scatter_add_rows(
        &self,
        x: &Self::Buffer,
        rows: &Self::Indices,
        width: usize,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// `loss[r] = sum over r's targets of weight * -log softmax(logits[r])[id]`, and replaces the logits by that sum's
    /// gradient; `logits: [R, vocab]`, `loss: [R]`.
    ///
    /// # Errors
    /// When the device refuses.
    fn cross_entropy(
        &self,
        logits: &mut Self::Buffer,
        vocab: usize,
        targets: &Targets<'_, Self::Indices, Self::Buffer>,
        loss: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// Log-probabilities of the wanted entries, and each row's argmax with its margin; `logits: [R, vocab]`.
    ///
    /// # Errors
    /// When the device refuses.
    fn read_out(&self, logits: &Self::Buffer, vocab: usize, wanted: &Wanted<'_>) -> Result<Readout, KernelError>;

    /// One AdamW step (torch's: decoupled decay, bias correction) on flat buffers of equal length.
    ///
    /// # Errors
    /// When the device refuses.
    fn adamw(
        &self,
        step: &AdamW,
        gradient: &Self::Buffer,
        params: &mut Self::Buffer,
        first: &mut Self::Buffer,
        second: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// Sum of squares in float64, in fixed chunks.
    ///
    /// # Errors
    /// When the device refuses.
    fn sum_squares(&self, values: &Self::Buffer) -> Result<f64, KernelError>;
}
