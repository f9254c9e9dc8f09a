//! What is trained, on the device: an adapter and the linear layers it changes, or all weights of the base.

use insula_kernels::{Backend, KernelError, LoraShape, Projection, ProjectionBack, Write};

use super::Llama;
use crate::adapter::{Adapter, Layout, Target};
use crate::parameters;

/// An adapter's weights on the device: beside the base's, or merged into copies of them.
pub(crate) struct Adapted<B: Backend> {
    pub(crate) params: B::Buffer,
    layout: Layout,
    scale: f32,
    /// By layer and target, where merged.
    merged: Vec<[Option<B::Weight>; 7]>,
    /// Where the gradients of the base's weights go, where these are trained.
    pub(super) whole: Option<parameters::Layout>,
}

impl<B: Backend> Adapted<B> {
    pub(crate) fn upload(backend: &B, adapter: &Adapter) -> Result<Self, KernelError> {
        let params = backend.upload(&adapter.params)?;
        let (layout, scale) = (adapter.layout.clone(), adapter.config.scaling());
        Ok(Self { params, layout, scale, merged: Vec::new(), whole: None })
    }

    /// No adapter: the bare base.
    pub(crate) fn nothing(backend: &B) -> Result<Self, KernelError> {
        let params = backend.alloc([0, 0])?;
        Ok(Self { params, layout: Layout::default(), scale: 0.0, merged: Vec::new(), whole: None })
    }

    /// No adapter: all weights of the base are trained.
    pub(crate) fn everything(backend: &B, layout: parameters::Layout) -> Result<Self, KernelError> {
        Ok(Self { whole: Some(layout), ..Self::nothing(backend)? })
    }

    /// The adapter merged into float32 copies of the weights it adapts: fewer operations, equal answers up to rounding.
    pub(crate) fn merge(model: &Llama<B>, adapter: &Adapter) -> Result<Self, KernelError> {
        let beside = Self::upload(&model.backend, adapter)?;
        let mut merged = Vec::with_capacity(model.layers.len());
        for (index, layer) in model.layers.iter().enumerate() {
            let mut weights = [const { None }; 7];
            for target in Target::ALL {
                if let Some(pair) = beside.pair(index, target) {
                    let weight = model.backend.merged(layer.weight(target), &beside.params, &pair)?;
                    weights[target as usize] = Some(weight);
                }
            }
            merged.push(weights);
        }
        Ok(Self { merged, ..Self::nothing(&model.backend)? })
    }

    pub(crate) fn pair(&self, layer: usize, target: Target) -> Option<LoraShape> {
        self.layout.pair(layer, target, self.scale)
    }

    /// Whether one of these, or its pair, is trained.
    pub(crate) fn adapts(&self, targets: &[Target]) -> bool {
        self.whole.is_some() || targets.iter().any(|target| self.pair(0, *target).is_some())
    }
}

/// LoRA's down projections `x A^T: [T, r]` of one layer, by target.
pub(crate) type Downs<B> = [Option<<B as Backend>::Buffer>; 7];

/// The linear layers of one decoder layer, with an adapter's pairs on them.
pub(super) struct Linear<'a, B: Backend> {
    pub model: &'a Llama<B>,
    pub layer: usize,
    pub adapted: &'a Adapted<B>,
}

impl<B: Backend> Clone for Linear<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Linear<'_, B> {}

impl<B: Backend> Linear<'_, B> {
    /// `y_i (+)= x W_i^T (+ LoRA)` for projections of one `x: [rows, in]`; the down projections go to `downs`.
    pub(super) fn forward<const N: usize>(
        &self,
        targets: [Target; N],
        x: &B::Buffer,
        rows: usize,
        ys: [&mut B::Buffer; N],
        write: Write,
        downs: &mut Downs<B>,
    ) -> Result<(), KernelError> {
        for target in targets {
            let down =
                self.pair(target).map(|shape| self.model.backend.alloc_activation([rows, shape.r])).transpose()?;
            downs[target as usize] = down;
        }
        let mut lent: Vec<Option<&mut B::Buffer>> = downs.iter_mut().map(Option::as_mut).collect();
        let mut layers: Vec<Projection<'_, B>> = targets
            .into_iter()
            .zip(ys)
            .map(|(target, y)| Projection {
                weight: self.weight(target),
                pair: self.pair(target).zip(lent[target as usize].take()),
                y,
            })
            .collect();
        self.model.backend.project(x, &self.adapted.params, &mut layers, write)
    }

    /// `y_i = x W_i^T (+ LoRA)` into fresh buffers.
    pub(super) fn fresh<const N: usize>(
        &self,
        targets: [Target; N],
        x: &B::Buffer,
        rows: usize,
        downs: &mut Downs<B>,
    ) -> Result<[B::Buffer; N], KernelError> {
        let ys = targets.map(|target| self.model.backend.alloc_activation([rows, target.shape(&self.model.config)[0]]));
        let mut ys = all(ys)?;
        self.forward(targets, x, rows, ys.each_mut(), Write::Set, downs)?;
        Ok(ys)
    }

    /// The gradients of the pairs, or of the weights, into `grads`, and where `dx` is asked for `dx (+)= sum_i dy_i W_i (+ LoRA)`.
    ///
    /// `x` may be `None` where no target is adapted.
    pub(super) fn backward<const N: usize>(
        &self,
        targets: [Target; N],
        x: Option<&B::Buffer>,
        downs: &Downs<B>,
        dys: [&B::Buffer; N],
        grads: &mut B::Buffer,
        dx: Option<(&mut B::Buffer, Write)>,
    ) -> Result<(), KernelError> {
        let layers = std::array::from_fn::<_, N, _>(|i| ProjectionBack {
            weight: self.weight(targets[i]),
            pair: self.pair(targets[i]).zip(downs[targets[i] as usize].as_ref()),
            dy: dys[i],
        });
        self.model.backend.project_back(x, &self.adapted.params, &layers, grads, dx)?;
        let Some((whole, x)) = self.adapted.whole.as_ref().zip(x) else { return Ok(()) };
        for (target, dy) in targets.into_iter().zip(dys) {
            let (shape, at) = (target.shape(&self.model.config), whole.matrix(self.layer, target));
            self.model.backend.weight_gradient(x, dy, shape, grads, at)?;
        }
        Ok(())
    }

    /// The gradient of one of the layer's norms, of input `x` and output gradient `dy`, into `grads`, where it is trained.
    pub(super) fn norm_backward(
        &self,
        norm: parameters::Norm,
        x: &B::Buffer,
        dy: &B::Buffer,
        grads: &mut B::Buffer,
    ) -> Result<(), KernelError> {
        let Some(whole) = &self.adapted.whole else { return Ok(()) };
        let (model, at) = (self.model, whole.norm(self.layer, norm));
        model.backend.gain_gradient(x, model.config.rms_eps, dy, model.config.hidden, grads, at)
    }

    fn weight(&self, target: Target) -> &B::Weight {
        let merged = self.adapted.merged.get(self.layer).and_then(|weights| weights[target as usize].as_ref());
        merged.unwrap_or_else(|| self.model.layers[self.layer].weight(target))
    }

    fn pair(&self, target: Target) -> Option<LoraShape> {
        self.adapted.pair(self.layer, target)
    }
}

fn all<T, const N: usize>(results: [Result<T, KernelError>; N]) -> Result<[T; N], KernelError> {
    let collected = results.into_iter().collect::<Result<Vec<T>, KernelError>>()?;
    Ok(collected.try_into().unwrap_or_else(|_| unreachable!("as many as there were results")))
}
