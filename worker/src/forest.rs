//! The token forest: token sequences merged by their common prefixes, computed once.
//!
//! ```text
//!   sequences          forest                 layout (depth-first)      row  token  position  end
//!   a b c d            a ─ b ─┬─ c ─ d                                   0     a       0       5
//!   a b e              (node) └─ e                                       1     b       1       5
//!   f                  f                                                 2     c       2       4
//!                                                                        3     d       3       4
//!                                                                        4     e       2       5
//!                                                                        5     f       0       6
//! ```
//! Row i sees row j iff `j <= i < end[j]`: the rows a row sees are its own path from the root, so under causal attention
//! its states equal those of every separate sequence through it.
//!
//! Of a row's children the one with the largest subtree comes first: a dialogue whose turns extend one another is then one
//! unbroken run of rows with its questions behind it, and attention finds the keys of a query in few whole tiles.
//!
//! Invariants: the layout depends on the set of sequences, not on their order; a row's position is its depth;
//! `end[j] > j`; subtrees nest.

/// Merged token sequences in depth-first order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forest {
    /// Token id of each row.
    pub tokens: Vec<u32>,
    /// Depth of each row, from 0.
    pub positions: Vec<u32>,
    /// One past the last row of each row's subtree.
    pub end: Vec<u32>,
    /// For each sequence, in the order given, the row of each of its tokens.
    pub paths: Vec<Vec<u32>>,
}

impl Forest {
    /// Merges the sequences; equal ones share all their rows.
    #[must_use]
    pub fn build<S: AsRef<[u32]>>(sequences: &[S]) -> Self {
        let mut forest = Self { paths: vec![Vec::new(); sequences.len()], ..Self::default() };
        let mut path: Vec<u32> = Vec::new();
        let mut previous: &[u32] = &[];
        for index in sorted(sequences) {
            let sequence = sequences[index].as_ref();
            let shared = common_prefix(previous, sequence);
            forest.close(&mut path, shared);
            forest.extend(&mut path, &sequence[shared..]);
            forest.paths[index].clone_from(&path);
            previous = sequence;
        }
        forest.close(&mut path, 0);
        forest.reordered()
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The same forest with each row's children by falling size of their subtrees; the stable sort leaves equals by token.
    fn reordered(&self) -> Self {
        let mut order: Vec<u32> = Vec::with_capacity(self.len());
        let mut pending: Vec<_> = std::iter::once(0..self.len() as u32).collect();
        while let Some(siblings) = pending.pop() {
            if siblings.is_empty() {
                continue;
            }
            let mut trees: Vec<u32> = self.roots(siblings).collect();
            trees.sort_by_key(|tree| std::cmp::Reverse(self.end[*tree as usize] - tree));
            // The first tree's root is laid out now, its children next, and the other trees after them.
            let rest = trees.split_off(1);
            pending.extend(rest.iter().rev().map(|tree| *tree..self.end[*tree as usize]));
            order.push(trees[0]);
            pending.push(trees[0] + 1..self.end[trees[0] as usize]);
        }
        self.permuted(&order)
    }

    /// The roots of the trees that make up a range of rows.
    fn roots(&self, rows: std::ops::Range<u32>) -> impl Iterator<Item = u32> + '_ {
        let next = move |row: &u32| Some(self.end[*row as usize]).filter(|next| *next < rows.end);
        std::iter::successors(Some(rows.start), next)
    }

    /// Rows in another depth-first order: row i of the result is row `order[i]` of this.
    fn permuted(&self, order: &[u32]) -> Self {
        let mut new_of = vec![0; order.len()];
        for (new, old) in order.iter().enumerate() {
            new_of[*old as usize] = new as u32;
        }
        let size = |old: &u32| self.end[*old as usize] - old;
        Self {
            tokens: order.iter().map(|old| self.tokens[*old as usize]).collect(),
            positions: order.iter().map(|old| self.positions[*old as usize]).collect(),
            end: order.iter().enumerate().map(|(new, old)| new as u32 + size(old)).collect(),
            paths: self.paths.iter().map(|path| path.iter().map(|old| new_of[*old as usize]).collect()).collect(),
        }
    }

    /// Ends the subtrees of the path's rows from depth `depth` on.
    fn close(&mut self, path: &mut Vec<u32>, depth: usize) {
        let end = self.tokens.len() as u32;
        for row in path.drain(depth..) {
            self.end[row as usize] = end;
        }
    }

    fn extend(&mut self, path: &mut Vec<u32>, tokens: &[u32]) {
        for token in tokens {
            self.positions.push(path.len() as u32);
            path.push(self.tokens.len() as u32);
            self.tokens.push(*token);
            self.end.push(0);
        }
    }
}

/// Number of distinct tree tokens: the rows [`Forest::build`] would lay out, without building it.
#[must_use]
pub fn count_tree_tokens<S: AsRef<[u32]>>(sequences: &[S]) -> u64 {
    let mut previous: &[u32] = &[];
    let mut count = 0;
    for index in sorted(sequences) {
        let sequence = sequences[index].as_ref();
        count += (sequence.len() - common_prefix(previous, sequence)) as u64;
        previous = sequence;
    }
    count
}

fn sorted<S: AsRef<[u32]>>(sequences: &[S]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by(|a, b| sequences[*a].as_ref().cmp(sequences[*b].as_ref()));
    order
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Which rows predict which tokens, and how much each counts; what the loss is computed over.
///
/// Compressed by row: `rows[r]` predicts `ids[e]` with `weights[e]` for `e` in `offsets[r]..offsets[r + 1]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Supervision {
    /// Rows with at least one target, ascending.
    pub rows: Vec<u32>,
    /// `[rows + 1]`, from 0.
    pub offsets: Vec<u32>,
    /// Target token of each entry, ascending within a row.
    pub ids: Vec<u32>,
    /// Weight of each entry, summed over the tokens merged into it.
    pub weights: Vec<f32>,
    /// Number of supervised tokens, with multiplicity.
    pub tokens: u64,
    /// Their weights, summed.
    pub weight_sum: f64,
}

impl Supervision {
    /// Gathers `(row, target token, weight)`, any order, repeated as often as they count; no weight is below 0.
    ///
    /// Equal pairs become one entry. Their weights are added in float64 from the least on, so that the order of the
    /// examples does not matter; whole numbers add exactly.
    #[must_use]
    pub fn gather(mut pairs: Vec<(u32, u32, f32)>) -> Self {
        // The bits of numbers that are not negative lie in the numbers' order.
        pairs.sort_unstable_by_key(|(row, id, weight)| (*row, *id, weight.abs().to_bits()));
        let mut supervision = Self { tokens: pairs.len() as u64, ..Self::default() };
        for equal in pairs.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let (row, id, _) = equal[0];
            if supervision.rows.last() != Some(&row) {
                supervision.rows.push(row);
                supervision.offsets.push(supervision.ids.len() as u32);
            }
            let weight: f64 = equal.iter().map(|(.., weight)| f64::from(*weight)).sum();
            supervision.ids.push(id);
            supervision.weights.push(weight as f32);
            supervision.weight_sum += weight;
        }
        supervision.offsets.push(supervision.ids.len() as u32);
        supervision
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_drawing_above_holds() {
        let forest = Forest::build(&[vec![1, 2, 3, 4], vec![1, 2, 5], vec![6]]);
        assert_eq!(forest.tokens, [1, 2, 3, 4, 5, 6]);
        assert_eq!(forest.positions, [0, 1, 2, 3, 2, 0]);
        assert_eq!(forest.end, [5, 5, 4, 4, 5, 6]);
        assert_eq!(forest.paths, [vec![0, 1, 2, 3], vec![0, 1, 4], vec![5]]);
    }

    #[test]
    fn the_largest_subtree_comes_first() {
        let forest = Forest::build(&[vec![1, 2], vec![1, 3, 4, 5], vec![1, 3, 6], vec![0]]);
        assert_eq!(forest.tokens, [1, 3, 4, 5, 6, 2, 0]);
        assert_eq!(forest.end, [6, 5, 4, 4, 5, 6, 7]);
    }

    #[test]
    fn supervision_adds_the_weights_of_repeated_pairs() {
        let supervision = Supervision::gather(vec![(4, 9, 1.0), (2, 7, 0.5), (4, 8, 0.0), (4, 9, 1.0)]);
        assert_eq!(supervision.rows, [2, 4]);
        assert_eq!(supervision.offsets, [0, 1, 3]);
        assert_eq!((supervision.tokens, supervision.weight_sum), (4, 2.5));
        assert_eq!((supervision.ids, supervision.weights), (vec![7, 8, 9], vec![0.5, 0.0, 2.0]));
        assert_eq!(Supervision::gather(Vec::new()).offsets, [0]);
    }

    /// Sequences over three tokens, so that prefixes and whole sequences coincide.
    fn sequences() -> impl Strategy<Value = Vec<Vec<u32>>> {
        prop::collection::vec(prop::collection::vec(0u32..3, 0..8), 0..12)
    }

    proptest! {
        #[test]
        fn each_sequence_sees_exactly_itself(sequences in sequences()) {
            let forest = Forest::build(&sequences);
            for (sequence, path) in sequences.iter().zip(&forest.paths) {
                prop_assert_eq!(sequence.len(), path.len());
                for (depth, row) in path.iter().enumerate() {
                    let seen: Vec<u32> =
                        (0..=*row).filter(|j| *row < forest.end[*j as usize]).collect();
                    let tokens: Vec<u32> = seen.iter().map(|j| forest.tokens[*j as usize]).collect();
                    let positions: Vec<u32> = seen.iter().map(|j| forest.positions[*j as usize]).collect();
                    prop_assert_eq!(tokens, &sequence[..=depth]);
                    prop_assert_eq!(positions, (0..=depth as u32).collect::<Vec<_>>());
                }
            }
        }

        #[test]
        fn rows_are_the_distinct_prefixes(sequences in sequences()) {
            let prefixes: BTreeSet<&[u32]> =
                sequences.iter().flat_map(|s| (1..=s.len()).map(move |n| &s[..n])).collect();
            prop_assert_eq!(Forest::build(&sequences).len(), prefixes.len());
            prop_assert_eq!(count_tree_tokens(&sequences), prefixes.len() as u64);
        }

        #[test]
        fn the_order_of_sequences_does_not_matter(sequences in sequences()) {
            let mut reversed = sequences.clone();
            reversed.reverse();
            let (a, b) = (Forest::build(&sequences), Forest::build(&reversed));
            prop_assert_eq!((a.tokens, a.positions, a.end), (b.tokens, b.positions, b.end));
        }
    }
}
