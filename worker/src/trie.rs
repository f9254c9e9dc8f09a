//! The label trie: every label's tokens, merged by prefix, that evaluation appends to each prompt.
//!
//! A label ends with the end-of-sequence token, so one label may be a prefix of another; two labels of equal tokens
//! could not be told apart and are refused.

use std::collections::BTreeMap;

/// Why labels do not make a trie.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrieError {
    /// There is nothing to choose from.
    #[error("labels: none given, at least one expected")]
    NoLabels,
    /// A label without tokens would be the end of the sequence itself.
    #[error("label {label}: no tokens, at least one expected")]
    Empty {
        /// Index of the label.
        label: usize,
    },
    /// Two labels tokenise alike.
    #[error("labels {first} and {second}: equal tokens {tokens:?}, distinct ones expected")]
    Collision {
        /// Index of the earlier label.
        first: usize,
        /// Index of the later label.
        second: usize,
        /// Their tokens.
        tokens: Vec<u32>,
    },
    /// A label contains the token that ends it.
    #[error("label {label}: contains the end-of-sequence token {eos}, which ends a label")]
    EndInside {
        /// Index of the label.
        label: usize,
        /// The end-of-sequence token.
        eos: u32,
    },
}

/// Labels as paths of tokens from the root (node 0).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelTrie {
    labels: Vec<Vec<u32>>,
    eos: u32,
    children: Vec<BTreeMap<u32, usize>>,
    paths: Vec<Vec<usize>>,
}

impl LabelTrie {
    /// The trie of `labels` (tokens without the end-of-sequence token `eos`), in the order given.
    ///
    /// # Errors
    /// [`TrieError`] when there are no labels, or one is empty, contains `eos` or has another's tokens.
    pub fn new(labels: &[Vec<u32>], eos: u32) -> Result<Self, TrieError> {
        check(labels, eos)?;
        let mut trie = Self { labels: labels.to_vec(), eos, children: vec![BTreeMap::new()], paths: Vec::new() };
        for label in labels {
            let mut path = vec![0];
            for token in label {
                path.push(trie.grow(path[path.len() - 1], *token));
            }
            trie.paths.push(path);
        }
        Ok(trie)
    }

    fn grow(&mut self, node: usize, token: u32) -> usize {
        let fresh = self.children.len();
        let child = *self.children[node].entry(token).or_insert(fresh);
        if child == fresh {
            self.children.push(BTreeMap::new());
        }
        child
    }

    /// Each label's tokens, without the end-of-sequence token.
    #[must_use]
    pub fn labels(&self) -> &[Vec<u32>] {
        &self.labels
    }

    /// The end-of-sequence token.
    #[must_use]
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Number of nodes, the root included.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.children.len()
    }

    /// The node that `token` leads to from `node`, if a label goes that way.
    #[must_use]
    pub fn child(&self, node: usize, token: u32) -> Option<usize> {
        self.children[node].get(&token).copied()
    }

    /// The nodes of a label's path: the root, then one per token.
    #[must_use]
    pub fn path(&self, label: usize) -> &[usize] {
        &self.paths[label]
    }
}

fn check(labels: &[Vec<u32>], eos: u32) -> Result<(), TrieError> {
    if labels.is_empty() {
        return Err(TrieError::NoLabels);
    }
    let mut known: BTreeMap<&[u32], usize> = BTreeMap::new();
    for (label, tokens) in labels.iter().enumerate() {
        if tokens.is_empty() {
            return Err(TrieError::Empty { label });
        }
        if tokens.contains(&eos) {
            return Err(TrieError::EndInside { label, eos });
        }
        if let Some(first) = known.insert(tokens, label) {
            return Err(TrieError::Collision { first, second: label, tokens: tokens.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_share_their_prefixes() {
        let trie = LabelTrie::new(&[vec![5, 6], vec![5], vec![5, 7]], 2).unwrap();
        assert_eq!(trie.nodes(), 4);
        assert_eq!((trie.path(0), trie.path(1), trie.path(2)), (&[0, 1, 2][..], &[0, 1][..], &[0, 1, 3][..]));
        assert_eq!((trie.child(1, 7), trie.child(1, 8)), (Some(3), None));
    }

    #[test]
    fn labels_that_cannot_be_told_apart_are_refused() {
        let collision = TrieError::Collision { first: 0, second: 2, tokens: vec![5] };
        assert_eq!(LabelTrie::new(&[vec![5], vec![6], vec![5]], 2), Err(collision));
        assert_eq!(LabelTrie::new(&[vec![5], vec![]], 2), Err(TrieError::Empty { label: 1 }));
        assert_eq!(LabelTrie::new(&[vec![5, 2]], 2), Err(TrieError::EndInside { label: 0, eos: 2 }));
        assert_eq!(LabelTrie::new(&[], 2), Err(TrieError::NoLabels));
    }
}
