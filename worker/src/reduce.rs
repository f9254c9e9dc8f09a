//! The sum of an update's slot gradients, in one fixed binary-tree order.
//!
//! The tree's shape depends on the number of slots alone: slot i is leaf i, complete subtrees are added first. Float
//! addition is not associative, so this order is part of the recipe: whoever computes a slot, the sum has the same bits.
//!
//! A run of neighbouring slots adds up to its complete subtrees and no further. Whoever has the subtrees of all runs, in
//! the slots' order, finishes the sum as one who had all slots would have.

use std::ops::Range;

/// The sum of a complete subtree's slots.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its first slot, a multiple of `size`.
    pub start: u64,
    /// How many slots it is of: a power of two.
    pub size: u64,
    /// Their gradients' sum.
    pub values: Vec<f32>,
}

/// Adds gradients as they come, keeping one partial sum per complete subtree: `O(log slots)` vectors.
#[derive(Debug, Default)]
pub struct TreeSum {
    /// Complete subtrees that stand side by side.
    partial: Vec<Node>,
    /// The slot that comes next.
    next: u64,
}

impl TreeSum {
    /// A sum of the slots from `slot` on.
    #[must_use]
    pub fn starting_at(slot: u64) -> Self {
        Self { partial: Vec::new(), next: slot }
    }

    /// Adds the next slot's gradient.
    pub fn push(&mut self, gradient: Vec<f32>) {
        self.push_node(Node { start: self.next, size: 1, values: gradient });
    }

    /// Adds the slots of a subtree.
    ///
    /// # Panics
    /// When it does not begin with the slot that comes next.
    pub fn push_node(&mut self, mut node: Node) {
        assert_eq!(node.start, self.next, "slots are added in order");
        self.next += node.size;
        let siblings = |left: &mut Node, right: &Node| left.size == right.size && is_left(left);
        while let Some(left) = self.partial.pop_if(|left| siblings(left, &node)) {
            node = Node { start: left.start, size: 2 * left.size, values: added(left.values, &node.values) };
        }
        self.partial.push(node);
    }

    /// The subtrees that are complete, in order.
    #[must_use]
    pub fn into_nodes(self) -> Vec<Node> {
        self.partial
    }

    /// The sum of all slots; `None` where there was none.
    #[must_use]
    pub fn finish(mut self) -> Option<Vec<f32>> {
        let mut sum = self.partial.pop()?.values;
        while let Some(left) = self.partial.pop() {
            sum = added(left.values, &sum);
        }
        Some(sum)
    }
}

/// Start and size of every subtree that a run of slots adds up to, in order: what [`TreeSum::into_nodes`] has of it.
#[must_use]
pub fn subtrees(run: Range<u64>) -> Vec<(u64, u64)> {
    let (mut start, mut subtrees) = (run.start, Vec::new());
    while start < run.end {
        let aligned = if start == 0 { u64::MAX } else { 1 << start.trailing_zeros() };
        let fits = 1 << (run.end - start).ilog2();
        let size = aligned.min(fits);
        subtrees.push((start, size));
        start += size;
    }
    subtrees
}

/// Whether a subtree is its parent's left half.
fn is_left(node: &Node) -> bool {
    node.start.is_multiple_of(2 * node.size)
}

fn added(mut left: Vec<f32>, right: &[f32]) -> Vec<f32> {
    assert_eq!(left.len(), right.len(), "slot gradients of one adapter have one length");
    left.iter_mut().zip(right).for_each(|(l, r)| *l += r);
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn five_slots_add_as_the_tree_says() {
        let x = [1e8f32, 1.0, -1e8, 3.0, 0.5];
        let mut sum = TreeSum::default();
        x.iter().for_each(|&v| sum.push(vec![v]));
        assert_eq!(sum.finish(), Some(vec![((x[0] + x[1]) + (x[2] + x[3])) + x[4]]));
        assert_eq!(TreeSum::default().finish(), None);
    }

    #[test]
    fn a_run_adds_up_to_its_complete_subtrees() {
        assert_eq!(subtrees(1..8), [(1, 1), (2, 2), (4, 4)]);
        assert_eq!(subtrees(0..7), [(0, 4), (4, 2), (6, 1)]);
        assert_eq!(subtrees(5..5), []);
    }

    proptest! {
        #[test]
        fn any_partition_in_runs_gives_the_serial_sums_bits(
            slots in prop::collection::vec(prop::array::uniform3(-1e6f32..1e6), 1..70),
            cuts in prop::collection::vec(0usize..70, 0..6),
        ) {
            let mut serial = TreeSum::default();
            slots.iter().for_each(|slot| serial.push(slot.to_vec()));
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(slots.len())).collect();
            cuts.extend([0, slots.len()]);
            cuts.sort_unstable();
            let mut whole = TreeSum::default();
            for run in cuts.windows(2) {
                let mut part = TreeSum::starting_at(run[0] as u64);
                slots[run[0]..run[1]].iter().for_each(|slot| part.push(slot.to_vec()));
                let nodes = part.into_nodes();
                let shapes: Vec<_> = nodes.iter().map(|node| (node.start, node.size)).collect();
                prop_assert_eq!(shapes, subtrees(run[0] as u64..run[1] as u64));
                nodes.into_iter().for_each(|node| whole.push_node(node));
            }
            let bits = |sum: TreeSum| sum.finish().map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>());
            prop_assert_eq!(bits(whole), bits(serial));
        }
    }
}
