//! The one place where a layout's labels are settled: the label set, and what a file's label becomes of it.

use std::collections::BTreeMap;

use insula_proto::{
    corpus::{Label, LabelSet},
    job::CorpusSpec,
};

use super::{CorpusError, Layout, listed};

/// A corpus's labels, and how the labels written in its files lead to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settled {
    /// The closed label set, in prompt order.
    pub(super) labels: LabelSet,
    /// Label in the file -> label of the set.
    rename: BTreeMap<String, String>,
    /// Labels a file may write though they are no targets.
    ignored: &'static [&'static str],
}

/// What a label in a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// A label of the set.
    Target(Label),
    /// One the layout knows, but that is not learnt.
    Ignored,
    /// A mistake.
    Unknown,
}

/// Settles the labels of a corpus: what `spec` says, on top of the layout's own. `listed` are the labels that lie beside
/// the corpus, for layouts without labels of their own.
///
/// # Errors
/// When they are no label set, or there are none.
pub(super) fn settle(layout: Layout, spec: &CorpusSpec, listed: Option<Vec<String>>) -> Result<Settled, CorpusError> {
    let labels = match (spec.labels.is_empty(), listed, layout.labels()) {
        (false, ..) => spec.labels.clone(),
        (true, Some(listed), _) => listed,
        (true, None, []) => return Err(CorpusError::NoLabels { folder: spec.path.clone() }),
        (true, None, own) => own.iter().map(|l| (*l).to_owned()).collect(),
    };
    let own = layout.rename().iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned()));
    let rename = own.chain(spec.rename.clone()).collect();
    Ok(Settled { labels: LabelSet::new(labels)?, rename, ignored: layout.ignored() })
}

impl Settled {
    /// What a label in a file is.
    pub(super) fn read(&self, written: &str) -> Written {
        let name = self.rename.get(written).map_or(written, String::as_str);
        match self.labels.find(name) {
            Some(label) => Written::Target(label),
            None if self.ignored.contains(&written) => Written::Ignored,
            None => Written::Unknown,
        }
    }

    /// Whether a label in a file has another name in the set.
    pub(super) fn renames(&self, written: &str) -> bool {
        self.rename.contains_key(written)
    }

    /// What a file may write, for a message: the labels, and the names that are renamed to one of them.
    pub(super) fn writable(&self) -> String {
        let renamed = self.rename.iter().filter(|(_, to)| self.labels.find(to).is_some()).map(|(from, _)| from);
        listed(self.labels.names().iter().chain(renamed).map(String::as_str))
    }
}
