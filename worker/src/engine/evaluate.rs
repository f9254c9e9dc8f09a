//! Evaluation: one forward pass over every prompt with the label trie behind it, then decoding only where the greedy
//! path leaves the trie.

use std::collections::{BTreeMap, BTreeSet};

use insula_kernels::{Backend, Readout, Wanted};

use super::EngineError;
use crate::forest::Forest;
use crate::model::{Adapted, Chain, Keep, Llama, Passed, Scene};
use crate::trie::LabelTrie;

/// Which answer is sought; the two are different metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvalMode {
    /// The continuation of greatest logits, over the full vocabulary.
    Greedy,
    /// The label of greatest summed log-probability; nothing is decoded.
    Score,
}

/// What the model said about one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Per label: the summed log-probability of its tokens and the end-of-sequence token.
    pub label_logprob: Vec<f32>,
    /// Greedy mode: token ids of the continuation, with the end-of-sequence token where it was reached. Empty in score
    /// mode.
    pub greedy: Vec<u32>,
    /// Greedy mode: the smallest gap between the greatest and the second greatest logit along the continuation. Score
    /// mode: the gap between the two best labels. Infinite where there was no choice.
    pub margin: f32,
}

/// Everything a forest of prompts needs to be read: rows, and which entry of the read-out is whose.
struct Reading {
    forest: Forest,
    /// Rows read, ascending.
    rows: Vec<u32>,
    /// Per prompt and trie node: index into `rows`.
    nodes: Vec<Vec<usize>>,
    offsets: Vec<u32>,
    ids: Vec<u32>,
    /// Per prompt and label: entries of the read-out to sum.
    entries: Vec<Vec<Vec<usize>>>,
}

/// A greedy continuation as far as it is known.
struct Path {
    /// Index into the read rows where it stands.
    row: usize,
    tokens: Vec<u32>,
    margin: f32,
    /// Whether it left the trie and has not ended.
    open: bool,
}

pub(super) fn evaluate<B: Backend>(
    model: &Llama<B>,
    adapted: &Adapted<B>,
    prompts: &[Vec<u32>],
    trie: &LabelTrie,
    mode: EvalMode,
    max_new_tokens: usize,
) -> Result<Vec<Scored>, EngineError> {
    let reading = Reading::new(prompts, trie);
    let scene = Scene::upload(&model.backend, &model.config, &reading.forest, &reading.rows)?;
    let keep = match mode {
        EvalMode::Greedy => Keep::KeysValues,
        EvalMode::Score => Keep::Nothing,
    };
    let passed = model.forward(&scene, adapted, keep)?;
    let wanted = Wanted { offsets: &reading.offsets, ids: &reading.ids };
    let readout = model.read_chosen(&passed, reading.rows.len(), &wanted)?;
    let labels: Vec<Vec<f32>> = reading.entries.iter().map(|labels| sum_labels(labels, &readout)).collect();
    if mode == EvalMode::Score {
        return Ok(labels.into_iter().map(by_score).collect());
    }
    let mut paths: Vec<Path> =
        reading.nodes.iter().map(|nodes| follow(trie, nodes, &readout, max_new_tokens)).collect();
    if paths.iter().any(|path| path.open) {
        let mut decoder = Decoder { model, adapted, trie, reading: &reading, max_new_tokens };
        decoder.finish(passed, &mut paths)?;
    }
    let scored = labels.into_iter().zip(paths);
    Ok(scored.map(|(label_logprob, p)| Scored { label_logprob, greedy: p.tokens, margin: p.margin }).collect())
}

impl Reading {
    fn new(prompts: &[Vec<u32>], trie: &LabelTrie) -> Self {
        let labels = trie.labels();
        let sequences: Vec<Vec<u32>> =
            prompts.iter().flat_map(|prompt| labels.iter().map(|label| [&prompt[..], label].concat())).collect();
        let forest = Forest::build(&sequences);
        let node_rows: Vec<Vec<u32>> = prompts
            .iter()
            .zip(forest.paths.chunks(labels.len()))
            .map(|(prompt, paths)| rows_of_nodes(trie, paths, prompt.len()))
            .collect();
        let wanted = wanted(trie, &node_rows);
        let rows: Vec<u32> = wanted.keys().copied().collect();
        let (mut offsets, mut ids, mut entry) = (vec![0], Vec::new(), BTreeMap::new());
        for (row, tokens) in &wanted {
            for token in tokens {
                entry.insert((*row, *token), ids.len());
                ids.push(*token);
            }
            offsets.push(ids.len() as u32);
        }
        let entries = node_rows.iter().map(|nodes| label_entries(trie, nodes, &entry)).collect();
        let index = |row: &u32| rows.partition_point(|r| r < row);
        let nodes = node_rows.iter().map(|nodes| nodes.iter().map(index).collect()).collect();
        Self { forest, rows, nodes, offsets, ids, entries }
    }
}

/// The forest row of each trie node behind a prompt of `prompt` tokens.
fn rows_of_nodes(trie: &LabelTrie, paths: &[Vec<u32>], prompt: usize) -> Vec<u32> {
    let mut rows = vec![0; trie.nodes()];
    for (label, path) in paths.iter().enumerate() {
        for (node, row) in trie.path(label).iter().zip(&path[prompt - 1..]) {
            rows[*node] = *row;
        }
    }
    rows
}

/// Steps of a label: the trie node it is read at and the token that follows.
fn steps(trie: &LabelTrie, label: usize) -> impl Iterator<Item = (usize, u32)> + '_ {
    let tokens = trie.labels()[label].iter().copied().chain([trie.eos()]);
    trie.path(label).iter().copied().zip(tokens)
}

fn wanted(trie: &LabelTrie, node_rows: &[Vec<u32>]) -> BTreeMap<u32, BTreeSet<u32>> {
    let mut wanted: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for rows in node_rows {
        for label in 0..trie.labels().len() {
            for (node, token) in steps(trie, label) {
                wanted.entry(rows[node]).or_default().insert(token);
            }
        }
    }
    wanted
}

fn label_entries(trie: &LabelTrie, rows: &[u32], entry: &BTreeMap<(u32, u32), usize>) -> Vec<Vec<usize>> {
    let of_label = |label| steps(trie, label).map(|(node, token)| entry[&(rows[node], token)]).collect();
    (0..trie.labels().len()).map(of_label).collect()
}

fn sum_labels(labels: &[Vec<usize>], readout: &Readout) -> Vec<f32> {
    let sum = |entries: &Vec<usize>| entries.iter().map(|e| f64::from(readout.log_probs[*e])).sum::<f64>() as f32;
    labels.iter().map(sum).collect()
}

fn by_score(label_logprob: Vec<f32>) -> Scored {
    let mut sorted = label_logprob.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let margin = sorted.get(1).map_or(f32::INFINITY, |second| sorted[0] - second);
    Scored { label_logprob, greedy: Vec::new(), margin }
}

/// Follows the greatest logits from the root while they stay inside the trie.
fn follow(trie: &LabelTrie, nodes: &[usize], readout: &Readout, max_new_tokens: usize) -> Path {
    let mut path = Path { row: nodes[0], tokens: Vec::new(), margin: f32::INFINITY, open: false };
    let mut node = 0;
    while path.tokens.len() < max_new_tokens {
        path.row = nodes[node];
        let token = readout.best[path.row];
        path.tokens.push(token);
        path.margin = path.margin.min(readout.margin[path.row]);
        if token == trie.eos() {
            break;
        }
        match trie.child(node, token) {
            Some(child) => node = child,
            None => {
                path.open = path.tokens.len() < max_new_tokens;
                break;
            }
        }
    }
    path
}

/// Decodes the paths that left the trie, all at once, equal ones once.
struct Decoder<'a, B: Backend> {
    model: &'a Llama<B>,
    adapted: &'a Adapted<B>,
    trie: &'a LabelTrie,
    reading: &'a Reading,
    max_new_tokens: usize,
}

impl<B: Backend> Decoder<'_, B> {
    fn finish(&mut self, passed: Passed<B>, paths: &mut [Path]) -> Result<(), EngineError> {
        // Equal prompts stand on equal rows and continue alike.
        let mut leaders: BTreeMap<usize, usize> = BTreeMap::new();
        for (i, path) in paths.iter().enumerate().filter(|(_, path)| path.open) {
            leaders.entry(path.row).or_insert(i);
        }
        let mut cache = self.model.cache(passed, &self.reading.forest, leaders.len(), self.max_new_tokens)?;
        for depth in 0..self.max_new_tokens as u32 {
            let open: Vec<usize> = leaders.values().copied().filter(|i| paths[*i].open).collect();
            if open.is_empty() {
                break;
            }
            let chains: Vec<Chain> = open.iter().map(|i| self.chain(&paths[*i], depth)).collect();
            let readout = self.model.decode(&mut cache, &chains, self.adapted)?;
            for (i, (token, margin)) in open.iter().zip(readout.best.iter().zip(&readout.margin)) {
                self.extend(&mut paths[*i], *token, *margin);
            }
        }
        for i in 0..paths.len() {
            if let Some(leader) = leaders.get(&paths[i].row).copied().filter(|leader| paths[i].open && *leader != i) {
                (paths[i].tokens, paths[i].margin) = (paths[leader].tokens.clone(), paths[leader].margin);
            }
        }
        Ok(())
    }

    fn chain(&self, path: &Path, depth: u32) -> Chain {
        let token = path.tokens.last().copied().unwrap_or(self.trie.eos());
        Chain { row: self.reading.rows[path.row], depth, token }
    }

    fn extend(&self, path: &mut Path, token: u32, margin: f32) {
        path.tokens.push(token);
        path.margin = path.margin.min(margin);
        path.open = token != self.trie.eos() && path.tokens.len() < self.max_new_tokens;
    }
}
