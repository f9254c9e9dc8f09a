//! A mapping of a corpus's labels onto a set that several corpora share: the unified labels of the data-scaling
//! experiments, or anybody's own.

use std::collections::BTreeSet;

use insula_proto::{
    corpus::{Dialogue, Label, LabelSet},
    job::LabelsSpec,
};

use super::{CorpusError, Surveyed, listed};

/// What a corpus's labels become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    /// The shared label set.
    pub(super) labels: LabelSet,
    /// By the corpus's own label, in its own order: the shared one.
    to: Vec<Label>,
}

impl Mapping {
    /// A dialogue with its labels mapped.
    pub(super) fn applied(&self, mut dialogue: Dialogue) -> Dialogue {
        dialogue.utterances.iter_mut().for_each(|utterance| utterance.gold = self.to[utterance.gold.index()]);
        dialogue
    }
}

impl Surveyed {
    /// The same corpus with its labels mapped, by the mapping that has its name (`called`) or else its layout's; as it is,
    /// where `labels` maps onto nothing.
    ///
    /// # Errors
    /// When the mapping says nothing of this corpus, leaves out one of its labels, or merges nothing at all.
    pub fn mapped(self, labels: &LabelsSpec, called: Option<&str>) -> Result<Self, CorpusError> {
        if labels.names.is_empty() {
            return Ok(self);
        }
        let corpus = called.filter(|name| labels.map.contains_key(*name)).unwrap_or(self.layout.corpus());
        let mapping = mapping(corpus, self.labels(), labels)?;
        Ok(Self { mapping: Some(mapping), ..self })
    }
}

fn mapping(corpus: &str, own: &LabelSet, labels: &LabelsSpec) -> Result<Mapping, CorpusError> {
    let known = || listed(labels.map.keys().map(String::as_str));
    let of_corpus =
        labels.map.get(corpus).ok_or_else(|| CorpusError::NoMap { corpus: corpus.into(), known: known() })?;
    if !merges(labels) {
        return Err(CorpusError::MergesNothing { corpora: known() });
    }
    let shared = LabelSet::new(labels.names.clone())?;
    let to = |label: &String| {
        of_corpus.get(label).and_then(|to| shared.find(to)).ok_or_else(|| CorpusError::Unmapped {
            corpus: corpus.into(),
            label: label.clone(),
            known: listed(of_corpus.keys().map(String::as_str)),
        })
    };
    let to = own.names().iter().map(to).collect::<Result<_, _>>()?;
    Ok(Mapping { labels: shared, to })
}

/// Whether any two labels, of one corpus or of two, become one.
fn merges(labels: &LabelsSpec) -> bool {
    let mut seen = BTreeSet::new();
    labels.map.values().flat_map(|map| map.values()).any(|to| !seen.insert(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> LabelSet {
        LabelSet::new(["neutral", "joyful", "angry"].map(String::from).to_vec()).unwrap()
    }

    fn spec(map: &[(&str, &[(&str, &str)])]) -> LabelsSpec {
        let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        let map = map.iter().map(|(layout, of)| (layout.to_string(), pairs(of))).collect();
        LabelsSpec { file: String::new(), names: ["joyful", "neutral", "mad"].map(String::from).to_vec(), map }
    }

    const MELD: (&str, &[(&str, &str)]) = ("meld", &[("neutral", "neutral"), ("joyful", "joyful"), ("angry", "mad")]);
    const EMORYNLP: (&str, &[(&str, &str)]) = ("emorynlp", &[("Joyful", "joyful"), ("Mad", "mad")]);

    #[test]
    fn a_corpuss_labels_lead_to_the_shared_ones() {
        let mapping = mapping("meld", &own(), &spec(&[MELD, EMORYNLP])).unwrap();
        assert_eq!(mapping.to, [Label(1), Label(0), Label(2)]);
        assert_eq!(mapping.labels.names(), ["joyful", "neutral", "mad"]);
    }

    #[test]
    fn a_mapping_with_holes_or_without_effect_is_refused() {
        let refused = |map: &[_]| mapping("meld", &own(), &spec(map)).unwrap_err().to_string();
        let hole = refused(&[("meld", &[("neutral", "neutral"), ("joyful", "joyful")]), EMORYNLP]);
        assert!(hole.contains("'angry' of meld") && hole.contains("neutral"), "{hole}");
        let missing = refused(&[EMORYNLP]);
        assert!(missing.contains("no mapping for meld") && missing.contains("emorynlp"), "{missing}");
        let nothing = refused(&[MELD]);
        assert!(nothing.contains("merges nothing"), "{nothing}");
    }
}
