//! The LM head at the chosen rows: loss and its gradient, or what evaluation reads. A block of rows at a time, so that
//! logits never outgrow [`LOGIT_ROWS`] rows.

use insula_kernels::{Backend, KernelError, Readout, Targets, Wanted, Write};

use super::forward::Passed;
use super::{Adapted, Llama};
use crate::forest::Supervision;

/// Rows of logits at a time: 128 rows of a 49,152-token vocabulary are 25 MB; fewer rows would pack the head more often
/// than needed.
pub(crate) const LOGIT_ROWS: usize = 128;

impl<B: Backend> Llama<B> {
    /// The summed loss, and its gradient at the last residual, `[R, hidden]`; the gradients of the head and the last norm
    /// are added into `grads`, where they are trained.
    pub(crate) fn loss(
        &self,
        passed: &Passed<B>,
        supervision: &Supervision,
        adapted: &Adapted<B>,
        grads: &mut B::Buffer,
    ) -> Result<(f64, B::Buffer), KernelError> {
        let (hidden, vocab) = (self.config.hidden, self.config.vocab);
        let rows = supervision.rows.len();
        let normed = self.normed(&passed.last, &self.norm, rows)?;
        let mut dnormed = self.backend.alloc([rows, hidden])?;
        let mut total = 0.0;
        for from in (0..rows).step_by(LOGIT_ROWS) {
            let to = rows.min(from + LOGIT_ROWS);
            let mut logits = self.logits_of(&normed, from, to)?;
            let (offsets, entries) = entries(supervision, from, to);
            let (offsets, ids) =
                (self.backend.indices(&offsets)?, self.backend.indices(&supervision.ids[entries.clone()])?);
            let weights = self.backend.upload(&supervision.weights[entries])?;
            let targets = Targets { offsets: &offsets, ids: &ids, weights: &weights };
            let mut loss = self.backend.alloc([to - from, 1])?;
            self.backend.cross_entropy(&mut logits, vocab, &targets, &mut loss)?;
            total += self.backend.download(&loss)?.into_iter().map(f64::from).sum::<f64>();
            if let Some(whole) = &adapted.whole {
                let part = self.rows_of(&normed, from, to)?;
                self.backend.weight_gradient(&part, &logits, [vocab, hidden], grads, whole.head())?;
            }
            let mut part = self.backend.alloc([to - from, hidden])?;
            self.backend.matmul_back(&logits, self.head_weight(), &mut part, Write::Set)?;
            self.backend.copy(&part, &mut dnormed, from * hidden)?;
        }
        if let Some(whole) = &adapted.whole {
            let (eps, at) = (self.config.rms_eps, whole.last_norm());
            self.backend.gain_gradient(&passed.last, eps, &dnormed, hidden, grads, at)?;
        }
        let mut dlast = self.backend.alloc([rows, hidden])?;
        self.backend.zero(&mut dlast)?;
        self.backend.rms_norm_back(&passed.last, &self.norm, self.config.rms_eps, &dnormed, &mut dlast)?;
        Ok((total, dlast))
    }

    /// Reads out the logits of the residual rows `last: [rows, hidden]`.
    pub(super) fn read_out(&self, last: &B::Buffer, rows: usize, wanted: &Wanted<'_>) -> Result<Readout, KernelError> {
        let normed = self.normed(last, &self.norm, rows)?;
        let mut all = Readout::default();
        for from in (0..rows).step_by(LOGIT_ROWS) {
            let to = rows.min(from + LOGIT_ROWS);
            let logits = self.logits_of(&normed, from, to)?;
            let part = Wanted { offsets: &wanted.offsets[from..=to], ids: wanted.ids };
            let part = self.backend.read_out(&logits, self.config.vocab, &part)?;
            all.log_probs.extend(part.log_probs);
            all.best.extend(part.best);
            all.margin.extend(part.margin);
        }
        Ok(all)
    }

    /// What evaluation reads at the chosen rows.
    pub(crate) fn read_chosen(
        &self,
        passed: &Passed<B>,
        rows: usize,
        wanted: &Wanted<'_>,
    ) -> Result<Readout, KernelError> {
        self.read_out(&passed.last, rows, wanted)
    }

    /// The logits themselves, `[rows, vocab]`: for tests and inspection, not for a loop.
    pub(crate) fn logits(&self, passed: &Passed<B>, rows: usize) -> Result<Vec<f32>, KernelError> {
        let normed = self.normed(&passed.last, &self.norm, rows)?;
        let mut all = Vec::with_capacity(rows * self.config.vocab);
        for from in (0..rows).step_by(LOGIT_ROWS) {
            all.extend(self.backend.download(&self.logits_of(&normed, from, rows.min(from + LOGIT_ROWS))?)?);
        }
        Ok(all)
    }

    fn rows_of(&self, normed: &B::Buffer, from: usize, to: usize) -> Result<B::Buffer, KernelError> {
        let order: Vec<u32> = (from as u32..to as u32).collect();
        let mut part = self.backend.alloc_activation([to - from, self.config.hidden])?;
        self.backend.gather_rows(normed, &self.backend.indices(&order)?, self.config.hidden, &mut part)?;
        Ok(part)
    }

    fn logits_of(&self, normed: &B::Buffer, from: usize, to: usize) -> Result<B::Buffer, KernelError> {
        let part = self.rows_of(normed, from, to)?;
        let mut logits = self.backend.alloc([to - from, self.config.vocab])?;
        self.backend.matmul(&part, self.head_weight(), &mut logits, Write::Set)?;
        Ok(logits)
    }
}

/// Offsets (from 0) of rows `from..to`, and where their entries lie.
fn entries(supervision: &Supervision, from: usize, to: usize) -> (Vec<u32>, std::ops::Range<usize>) {
    let bounds = &supervision.offsets[from..=to];
    let (first, last) = (bounds[0], bounds[bounds.len() - 1]);
    (bounds.iter().map(|offset| offset - first).collect(), first as usize..last as usize)
}
