//! The backward pass: from the gradient at the chosen rows to the adapter's gradients, or to those of all weights.
//!
//! Each step asks whether anything below it still wants a gradient; in the lowest layer the answer ends it early.

use insula_kernels::{Backend, Direction, KernelError, Write};

use super::adapted::{Adapted, Linear};
use super::forward::{Kept, LayerState, Passed};
use super::{Llama, Scene};
use crate::adapter::Target::{self, Down, Gate, K, O, Q, Up, V};
use crate::parameters::Norm;

/// Gradients of one layer's queries, keys and values, before rotation is undone.
struct Attended<B: Backend> {
    dq: B::Buffer,
    dk: B::Buffer,
    dv: B::Buffer,
}

impl<B: Backend> Llama<B> {
    /// Adds the gradients of what is trained below the head into `grads`, given the gradient `dy: [R, hidden]` at the last
    /// residual.
    pub(crate) fn backward(
        &self,
        scene: &Scene<B>,
        adapted: &Adapted<B>,
        mut passed: Passed<B>,
        mut dy: B::Buffer,
        grads: &mut B::Buffer,
    ) -> Result<(), KernelError> {
        while let Some(kept) = passed.kept.pop() {
            let layer = passed.kept.len();
            let linear = Linear { model: self, layer, adapted };
            let last = layer + 1 == self.layers.len();
            let state = match kept {
                Kept::State(state) => state,
                Kept::Input(x) => self.layer_forward(linear, scene, x, last)?.0,
            };
            let step = Step { linear, scene, state: &state, adapted, last };
            match step.run(dy, grads)? {
                Some(dx) => dy = dx,
                None => return Ok(()),
            }
        }
        if adapted.whole.is_some() {
            // The embedding's gradient is the first segment: token id by token id, in the order of the forest's rows.
            self.backend.scatter_add_rows(&dy, &scene.ids, self.config.hidden, grads)?;
        }
        Ok(())
    }
}

/// One layer on the way down.
struct Step<'a, B: Backend> {
    linear: Linear<'a, B>,
    scene: &'a Scene<B>,
    state: &'a LayerState<B>,
    adapted: &'a Adapted<B>,
    last: bool,
}

impl<B: Backend> Step<'_, B> {
    fn model(&self) -> &Llama<B> {
        self.linear.model
    }

    /// Whether a gradient is wanted by one of these, or by a layer below.
    fn wanted(&self, targets: &[Target]) -> bool {
        self.linear.layer > 0 || self.adapted.adapts(targets)
    }

    fn rows(&self) -> usize {
        if self.last { self.scene.chosen.count } else { self.scene.tokens }
    }

    /// For a gradient that is added to the residual's.
    fn alloc(&self, rows: usize, width: usize) -> Result<B::Buffer, KernelError> {
        self.model().backend.alloc([rows, width])
    }

    /// For a gradient that only products and attention read.
    fn alloc_activation(&self, rows: usize, width: usize) -> Result<B::Buffer, KernelError> {
        self.model().backend.alloc_activation([rows, width])
    }

    fn run(&self, mut dy: B::Buffer, grads: &mut B::Buffer) -> Result<Option<B::Buffer>, KernelError> {
        if !self.mlp(&mut dy, grads)? {
            return Ok(None);
        }
        let Some(attended) = self.attention(&dy, grads)? else {
            return Ok(None);
        };
        let Some(dnormed) = self.projections(attended, grads)? else {
            return Ok(None);
        };
        self.linear.norm_backward(Norm::Input, &self.state.x, &dnormed, grads)?;
        self.input(dy, &dnormed).map(Some)
    }

    /// Through down, SwiGLU, gate and up; `dy` becomes the gradient at the middle residual. False: nothing below wants
    /// one.
    fn mlp(&self, dy: &mut B::Buffer, grads: &mut B::Buffer) -> Result<bool, KernelError> {
        let (model, rest, rows) = (self.model(), &self.state.rest, self.rows());
        let ModelDims { hidden, intermediate } = ModelDims::of(model);
        let act = match self.adapted.adapts(&[Down]) {
            true => Some(model.activated(&rest.gate, &rest.up, rows)?),
            false => None,
        };
        if !self.wanted(&[Q, K, V, O, Gate, Up]) {
            self.linear.backward([Down], act.as_ref(), &self.state.downs, [dy], grads, None)?;
            return Ok(false);
        }
        let mut dgate = self.alloc_activation(rows, intermediate)?;
        self.linear.backward([Down], act.as_ref(), &self.state.downs, [dy], grads, Some((&mut dgate, Write::Set)))?;
        drop(act);
        let mut dup = self.alloc_activation(rows, intermediate)?;
        model.backend.swiglu_back(&rest.gate, &rest.up, &mut dgate, &mut dup)?;

        let normed = match self.adapted.adapts(&[Gate, Up]) {
            true => Some(model.mlp_normed(self.linear.layer, &rest.mid, rows)?),
            false => None,
        };
        let dys = [&dgate, &dup];
        if !self.wanted(&[Q, K, V, O]) {
            self.linear.backward([Gate, Up], normed.as_ref(), &self.state.downs, dys, grads, None)?;
            return Ok(false);
        }
        let mut dnormed = self.alloc(rows, hidden)?;
        let into = Some((&mut dnormed, Write::Set));
        self.linear.backward([Gate, Up], normed.as_ref(), &self.state.downs, dys, grads, into)?;
        self.linear.norm_backward(Norm::Middle, &rest.mid, &dnormed, grads)?;
        let gain = &model.layers[self.linear.layer].mlp_norm;
        model.backend.rms_norm_back(&rest.mid, gain, model.config.rms_eps, &dnormed, dy)?;
        Ok(true)
    }

    /// Through o and attention. `None`: nothing below wants a gradient.
    fn attention(&self, dmid: &B::Buffer, grads: &mut B::Buffer) -> Result<Option<Attended<B>>, KernelError> {
        let (model, rest, downs) = (self.model(), &self.state.rest, &self.state.downs);
        if !self.wanted(&[Q, K, V]) {
            self.linear.backward([O], Some(&rest.attention), downs, [dmid], grads, None)?;
            return Ok(None);
        }
        let mut dout = self.alloc_activation(self.rows(), model.q_width())?;
        let into = Some((&mut dout, Write::Set));
        self.linear.backward([O], Some(&rest.attention), downs, [dmid], grads, into)?;
        let mut attended = Attended {
            dq: self.alloc_activation(self.rows(), model.q_width())?,
            dk: self.alloc_activation(self.scene.tokens, model.kv_width())?,
            dv: self.alloc_activation(self.scene.tokens, model.kv_width())?,
        };
        model.backend.attention_back(
            model.attention_shape(),
            &self.scene.sight(self.last),
            &rest.q,
            &self.state.k,
            &self.state.v,
            &rest.attention,
            &rest.lse,
            &dout,
            &mut attended.dq,
            &mut attended.dk,
            &mut attended.dv,
        )?;
        let angles = if self.last { &self.scene.chosen.angles } else { &self.scene.angles };
        model.backend.rotary(&mut attended.dq, angles, model.config.head_dim, Direction::Backward)?;
        model.backend.rotary(&mut attended.dk, &self.scene.angles, model.config.head_dim, Direction::Backward)?;
        Ok(Some(attended))
    }

    /// Through q, k and v to the gradient at the normed input, `[T, hidden]`. `None`: nothing below wants one.
    fn projections(&self, attended: Attended<B>, grads: &mut B::Buffer) -> Result<Option<B::Buffer>, KernelError> {
        let (model, downs) = (self.model(), &self.state.downs);
        let Attended { dq, dk, dv } = attended;
        let normed = match self.adapted.adapts(&[Q, K, V]) {
            true => Some(model.attention_normed(self.linear.layer, &self.state.x, self.scene.tokens)?),
            false => None,
        };
        let into_input = self.linear.layer > 0 || self.adapted.whole.is_some();
        let mut dnormed = match into_input {
            true => Some(self.alloc(self.scene.tokens, model.config.hidden)?),
            false => None,
        };
        let into = dnormed.as_mut().map(|dnormed| (dnormed, Write::Set));
        if self.last {
            self.linear.backward([K, V], normed.as_ref(), downs, [&dk, &dv], grads, into)?;
            self.chosen_queries(normed.as_ref(), &dq, grads, dnormed.as_mut())?;
        } else {
            self.linear.backward([Q, K, V], normed.as_ref(), downs, [&dq, &dk, &dv], grads, into)?;
        }
        Ok(dnormed)
    }

    /// The last layer's query projection, which saw the chosen rows only.
    fn chosen_queries(
        &self,
        normed: Option<&B::Buffer>,
        dq: &B::Buffer,
        grads: &mut B::Buffer,
        dnormed: Option<&mut B::Buffer>,
    ) -> Result<(), KernelError> {
        let (model, downs) = (self.model(), &self.state.downs);
        let normed = normed.map(|normed| model.gather_activation(normed, self.scene)).transpose()?;
        let Some(dnormed) = dnormed else {
            return self.linear.backward([Q], normed.as_ref(), downs, [dq], grads, None);
        };
        let mut dchosen = self.alloc(self.rows(), model.config.hidden)?;
        self.linear.backward([Q], normed.as_ref(), downs, [dq], grads, Some((&mut dchosen, Write::Set)))?;
        model.backend.scatter_add_rows(&dchosen, &self.scene.chosen.rows, model.config.hidden, dnormed)
    }

    /// The gradient at the layer's input: the residual's plus the norm's.
    fn input(&self, dmid: B::Buffer, dnormed: &B::Buffer) -> Result<B::Buffer, KernelError> {
        let (model, hidden) = (self.model(), self.model().config.hidden);
        let mut dx = if self.last {
            let mut dx = self.alloc(self.scene.tokens, hidden)?;
            model.backend.zero(&mut dx)?;
            model.backend.scatter_add_rows(&dmid, &self.scene.chosen.rows, hidden, &mut dx)?;
            dx
        } else {
            dmid
        };
        let gain = &model.layers[self.linear.layer].attention_norm;
        model.backend.rms_norm_back(&self.state.x, gain, model.config.rms_eps, dnormed, &mut dx)?;
        Ok(dx)
    }
}

struct ModelDims {
    hidden: usize,
    intermediate: usize,
}

impl ModelDims {
    fn of<B: Backend>(model: &Llama<B>) -> Self {
        Self { hidden: model.config.hidden, intermediate: model.config.intermediate }
    }
}
