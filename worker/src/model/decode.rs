//! Decoding on from rows of a forest whose keys and values were kept, all chains one token at a time.
//!
//! The forest's rule is kept by giving every forest row a block of numbers, `STRIDE = chain length + 1` of them: row j is
//! visible from `j * STRIDE` to `end[j] * STRIDE`; the n-th token decoded after row p has the number `p * STRIDE + 1 + n`
//! and is visible from there to `(p + 1) * STRIDE`. So it sees p's path and its own chain, and none of p's children.

use insula_kernels::{Backend, KernelError, Readout, Sight, Wanted};

use super::Llama;
use super::adapted::{Adapted, Downs, Linear};
use super::forward::{Looking, Passed};
use super::scene::angles;
use crate::adapter::Target;
use crate::forest::Forest;

/// A chain's next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    /// The forest row decoding started from; no two chains may share it.
    pub row: u32,
    /// How many tokens were decoded before this one.
    pub depth: u32,
    /// The token to put in.
    pub token: u32,
}

/// Keys and values of a forest and of what was decoded since.
pub(crate) struct KeyValueCache<B: Backend> {
    layers: Vec<(B::Buffer, B::Buffer)>,
    start: Vec<u32>,
    end: Vec<u32>,
    positions: Vec<u32>,
    stride: u32,
}

impl<B: Backend> Llama<B> {
    /// A cache of `passed`'s forest with room for `chains` chains of `tokens` each.
    pub(crate) fn cache(
        &self,
        passed: Passed<B>,
        forest: &Forest,
        chains: usize,
        tokens: usize,
    ) -> Result<KeyValueCache<B>, KernelError> {
        let stride = tokens as u32 + 1;
        let room = [forest.len() + chains * tokens, self.kv_width()];
        let grown = |from: B::Buffer| -> Result<B::Buffer, KernelError> {
            let mut to = self.backend.alloc_activation(room)?;
            self.backend.zero(&mut to)?;
            self.backend.copy(&from, &mut to, 0)?;
            Ok(to)
        };
        let layers = passed.keys_values.into_iter().map(|(k, v)| Ok((grown(k)?, grown(v)?)));
        Ok(KeyValueCache {
            layers: layers.collect::<Result<_, KernelError>>()?,
            start: (0..forest.len() as u32).map(|row| row * stride).collect(),
            end: forest.end.iter().map(|end| end * stride).collect(),
            positions: forest.positions.clone(),
            stride,
        })
    }

    /// Puts in one token per chain and reads the next one's logits.
    pub(crate) fn decode(
        &self,
        cache: &mut KeyValueCache<B>,
        chains: &[Chain],
        adapted: &Adapted<B>,
    ) -> Result<Readout, KernelError> {
        let (backend, rows) = (&self.backend, chains.len());
        let at = cache.start.len() * self.kv_width();
        let query = cache.append(chains);
        let positions: Vec<u32> =
            chains.iter().map(|chain| cache.positions[chain.row as usize] + 1 + chain.depth).collect();
        let angles = backend.upload(&angles(&self.config, &positions))?;
        let (query, start, end) =
            (backend.indices(&query)?, backend.indices(&cache.start)?, backend.indices(&cache.end)?);
        let sight = Sight { query: &query, start: &start, end: &end };
        let tokens: Vec<u32> = chains.iter().map(|chain| chain.token).collect();
        let mut x = self.embed(&backend.indices(&tokens)?, rows)?;
        for (layer, (keys, values)) in cache.layers.iter_mut().enumerate() {
            let (linear, mut downs) = (Linear { model: self, layer, adapted }, Downs::<B>::default());
            let normed = self.attention_normed(layer, &x, rows)?;
            let [q, k, v] = linear.fresh([Target::Q, Target::K, Target::V], &normed, rows, &mut downs)?;
            backend.copy(&self.rotated(k, &angles)?, keys, at)?;
            backend.copy(&v, values, at)?;
            let looking = Looking { x: &x, q: self.rotated(q, &angles)?, rows };
            let (_, y) = self.rest_forward(linear, looking, &sight, keys, values, &mut downs)?;
            x = y;
        }
        self.read_out(&x, rows, &Wanted { offsets: &vec![0; rows + 1], ids: &[] })
    }
}

impl<B: Backend> KeyValueCache<B> {
    /// Makes the chains' tokens visible to themselves and what follows them; returns their query numbers.
    fn append(&mut self, chains: &[Chain]) -> Vec<u32> {
        let numbers: Vec<u32> = chains.iter().map(|chain| chain.row * self.stride + 1 + chain.depth).collect();
        self.start.extend(&numbers);
        self.end.extend(chains.iter().map(|chain| (chain.row + 1) * self.stride));
        numbers
    }
}
