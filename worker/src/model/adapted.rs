//! The adapter on the device, and the linear layers it changes.

use insula_kernels::{Backend, KernelError, LoraShape, Write};

use super::Llama;
use crate::adapter::{Adapter, Layout, Target};

/// An adapter's weights on the device.
pub(crate) struct Adapted<B: Backend> {
    pub(crate) params: B::Buffer,
    layout: Layout,
    scale: f32,
}

impl<B: Backend> Adapted<B> {
    pub(crate) fn upload(backend: &B, adapter: &Adapter) -> Result<Self, KernelError> {
        let params = backend.upload(&adapter.params)?;
        Ok(Self { params, layout: adapter.layout.clone(), scale: adapter.config.scaling() })
    }

    pub(crate) fn pair(&self, layer: usize, target: Target) -> Option<LoraShape> {
        self.layout.pair(layer, target, self.scale)
    }

    pub(crate) fn adapts(&self, targets: &[Target]) -> bool {
        targets.iter().any(|target| self.pair(0, *target).is_some())
    }
}

/// LoRA's down projections `x A^T: [T, r]` of one layer, by target.
pub(crate) type Downs<B> = [Option<<B as Backend>::Buffer>; 7];

/// One linear layer: where, and with which adapter.
pub(super) struct Linear<'a, B: Backend> {
    pub model: &'a Llama<B>,
    pub layer: usize,
    pub adapted: Option<&'a Adapted<B>>,
}

impl<B: Backend> Clone for Linear<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Linear<'_, B> {}

impl<B: Backend> Linear<'_, B> {
    /// `y (+)= x W^T (+ LoRA)` for `x: [rows, in]`; the down projection goes to `downs`.
    pub(super) fn forward(
        &self,
        target: Target,
        x: &B::Buffer,
        rows: usize,
        y: &mut B::Buffer,
        write: Write,
        downs: &mut Downs<B>,
    ) -> Result<(), KernelError> {
        let backend = &self.model.backend;
        backend.matmul(x, self.model.layers[self.layer].weight(target), y, write)?;
        if let Some((adapted, shape)) = self.pair(target) {
            let mut down = backend.alloc(rows * shape.r)?;
            backend.lora(x, &adapted.params, &shape, &mut down, y)?;
            downs[target as usize] = Some(down);
        }
        Ok(())
    }

    /// `y = x W^T (+ LoRA)` into a fresh buffer.
    pub(super) fn fresh(
        &self,
        target: Target,
        x: &B::Buffer,
        rows: usize,
        downs: &mut Downs<B>,
    ) -> Result<B::Buffer, KernelError> {
        let [output, _] = target.shape(&self.model.config);
        let mut y = self.model.backend.alloc(rows * output)?;
        self.forward(target, x, rows, &mut y, Write::Set, downs)?;
        Ok(y)
    }

    /// The pair's gradients into `grads`, and where `dx` is asked for `dx (+)= dy W (+ LoRA)`.
    ///
    /// `x` may be `None` where the target is not adapted.
    pub(super) fn backward(
        &self,
        target: Target,
        x: Option<&B::Buffer>,
        downs: &Downs<B>,
        dy: &B::Buffer,
        grads: &mut B::Buffer,
        mut dx: Option<(&mut B::Buffer, Write)>,
    ) -> Result<(), KernelError> {
        let backend = &self.model.backend;
        if let Some((dx, write)) = &mut dx {
            backend.matmul_back(dy, self.model.layers[self.layer].weight(target), dx, *write)?;
        }
        if let (Some((adapted, shape)), Some(x), Some(down)) = (self.pair(target), x, &downs[target as usize]) {
            backend.lora_back(x, down, dy, &adapted.params, &shape, grads, dx.map(|(dx, _)| dx))?;
        }
        Ok(())
    }

    fn pair(&self, target: Target) -> Option<(&Adapted<B>, LoraShape)> {
        let adapted = self.adapted?;
        Some((adapted, adapted.pair(self.layer, target)?))
    }
}
