//! The sum of an update's slot gradients, in one fixed binary-tree order.
//!
//! The tree's shape depends on the number of slots alone: slot i is leaf i, complete subtrees are added first. Float
//! addition is not associative, so this order is part of the recipe: whoever computes a slot, the sum has the same bits.

/// Adds gradients as they come, keeping one partial sum per complete subtree: `O(log slots)` vectors.
#[derive(Debug, Default)]
pub struct TreeSum {
    /// Partial sums with the number of slots in each, sizes falling: powers of two.
    partial: Vec<(u64, Vec<f32>)>,
}

impl TreeSum {
    /// Adds the next slot's gradient.
    pub fn push(&mut self, gradient: Vec<f32>) {
        let mut node = (1, gradient);
        while let Some((size, left)) = self.partial.pop_if(|(size, _)| *size == node.0) {
            node = (size + node.0, added(left, &node.1));
        }
        self.partial.push(node);
    }

    /// The sum of all slots; `None` where there was none.
    pub fn finish(mut self) -> Option<Vec<f32>> {
        let (_, mut sum) = self.partial.pop()?;
        while let Some((_, left)) = self.partial.pop() {
            sum = added(left, &sum);
        }
        Some(sum)
    }
}

fn added(mut left: Vec<f32>, right: &[f32]) -> Vec<f32> {
    assert_eq!(left.len(), right.len(), "slot gradients of one adapter have one length");
    left.iter_mut().zip(right).for_each(|(l, r)| *l += r);
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_slots_add_as_the_tree_says() {
        let x = [1e8f32, 1.0, -1e8, 3.0, 0.5];
        let mut sum = TreeSum::default();
        x.iter().for_each(|&v| sum.push(vec![v]));
        assert_eq!(sum.finish(), Some(vec![((x[0] + x[1]) + (x[2] + x[3])) + x[4]]));
        assert_eq!(TreeSum::default().finish(), None);
    }
}
