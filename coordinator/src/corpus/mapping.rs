//! A mapping of a corpus's labels onto a set that several corpora share: the unified labels of the data-scaling
//! experiments, or anybody's own.

use std::collections::{BTreeMap, BTreeSet};

use insula_proto::{corpus::LabelSet, job::LabelsSpec};

use super::{CorpusError, Surveyed, listed};

impl Surveyed {
    /// The same corpus with its labels mapped, by the mapping that has its name (`called`) or else its layout's; as it is,
    /// where `labels` maps onto nothing.
    ///
    /// # Errors
    /// When the mapping says nothing of this layout, leaves out one of its labels, or merges nothing at all.
    pub fn mapped(self, labels: &LabelsSpec, called: Option<&str>) -> Result<Self, CorpusError> {
        if labels.names.is_empty() {
            return Ok(self);
        }
        let key = called.filter(|name| labels.map.contains_key(*name)).unwrap_or(self.layout.as_str());
        let rename = mapped(key, &self.labels, &self.rename, labels)?;
        Ok(Self { labels: LabelSet::new(labels.names.clone())?, rename, closed: true, ..self })
    }
}

/// What a file may write -> label of the shared set. `rename` leads from what a file may write to `own`.
fn mapped(
    layout: &str,
    own: &LabelSet,
    rename: &BTreeMap<String, String>,
    labels: &LabelsSpec,
) -> Result<BTreeMap<String, String>, CorpusError> {
    let of_layout = labels.map.get(layout).ok_or_else(|| CorpusError::NoMap {
        layout: layout.into(),
        known: listed(labels.map.keys().map(String::as_str)),
    })?;
    if !merges(labels) {
        return Err(CorpusError::MergesNothing { layouts: listed(labels.map.keys().map(String::as_str)) });
    }
    let to = |label: &String| {
        of_layout.get(label).cloned().ok_or_else(|| CorpusError::Unmapped {
            layout: layout.into(),
            label: label.clone(),
            known: listed(of_layout.keys().map(String::as_str)),
        })
    };
    let mut names = BTreeMap::new();
    for label in own.names().iter().filter(|label| !rename.contains_key(*label)) {
        names.insert(label.clone(), to(label)?);
    }
    for (written, label) in rename.iter().filter(|(_, label)| own.find(label).is_some()) {
        names.insert(written.clone(), to(label)?);
    }
    Ok(names)
}

/// Whether any two labels, of one corpus or of two, become one.
fn merges(labels: &LabelsSpec) -> bool {
    let mut seen = BTreeSet::new();
    labels.map.values().flat_map(BTreeMap::values).any(|to| !seen.insert(to))
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
    fn what_a_file_writes_leads_through_the_layouts_renaming_to_the_shared_label() {
        let rename = BTreeMap::from([("joy".into(), "joyful".into()), ("anger".into(), "angry".into())]);
        let names = mapped("meld", &own(), &rename, &spec(&[MELD, EMORYNLP])).unwrap();
        let expected =
            [("anger", "mad"), ("angry", "mad"), ("joy", "joyful"), ("joyful", "joyful"), ("neutral", "neutral")];
        assert_eq!(names, expected.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect());
    }

    #[test]
    fn a_mapping_with_holes_or_without_effect_is_refused() {
        let refused = |map: &[_]| mapped("meld", &own(), &BTreeMap::new(), &spec(map)).unwrap_err().to_string();
        let hole = refused(&[("meld", &[("neutral", "neutral"), ("joyful", "joyful")]), EMORYNLP]);
        assert!(hole.contains("'angry' of meld") && hole.contains("neutral"), "{hole}");
        let missing = refused(&[EMORYNLP]);
        assert!(missing.contains("no mapping for meld") && missing.contains("emorynlp"), "{missing}");
        let nothing = refused(&[MELD]);
        assert!(nothing.contains("merges nothing"), "{nothing}");
    }
}
