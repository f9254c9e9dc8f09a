//! Demonstrations: for an utterance, the most alike utterances of the training split, with their labels.
//!
//! The paper describes this and its authors published no code, so what follows is our reading of it:
//! - what may be shown are utterances of the training split (the shell gives those that the job's share keeps), known by
//!   their text alone: the speaker's identity and the history are not embedded and not shown;
//! - labels are balanced: of each label as many utterances are kept as the rarest label that occurs has, drawn by the
//!   seed ([`Balance::Rarest`]), or all are kept ([`Balance::Off`]);
//! - alike means the greatest cosine, found exactly, by looking at all of them;
//! - in training only utterances of the target's own label are looked at ([`Rule::SameLabel`]), else all
//!   ([`Rule::Any`]). The paper does the former, which tells the model the answer: its users saw models that copy it;
//! - an utterance is never its own demonstration ([`Itself::place`]); whether its text, said elsewhere, may be one is
//!   up to the caller ([`Itself::text`]): "Yeah." stands in a corpus many times.
//!
//! Results depend on no number of threads: each cosine is one fixed chain of operations, equal ones are taken in the
//! order of their places.

use insula_kernels::cpu::slices::dot;
use insula_proto::corpus::Label;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use thiserror::Error;

use crate::seed::{Purpose, generator};

/// Queries that look at a candidate together, while it is in the nearest cache.
const QUERIES_PER_TASK: usize = 16;

/// Where an utterance of the training data stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Which corpus, where several are mixed.
    pub corpus: u32,
    /// Place of the dialogue in that corpus's training split.
    pub dialogue: u32,
    /// Place of the utterance in the dialogue.
    pub turn: u32,
}

/// An utterance that may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Where it stands.
    pub place: Place,
    /// Its gold label; all candidates' labels are of one set.
    pub label: Label,
    /// What was said.
    pub text: String,
}

/// Whether every label has the same number of candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// All utterances are candidates.
    Off,
    /// Of each label as many as the rarest label that occurs has.
    Rarest {
        /// What says which.
        seed: u64,
    },
}

/// Which candidates a query looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Those of one label: in training, the target's own.
    SameLabel(Label),
    /// All.
    Any,
}

/// What a query is itself, and so does not find.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Itself<'a> {
    /// Its place, where it is an utterance of the training data.
    pub place: Option<Place>,
    /// Its text, where the same text from elsewhere is not to be found either.
    pub text: Option<&'a str>,
}

/// One search.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// `[width]`; its length does not matter.
    pub embedding: &'a [f32],
    /// What it looks at.
    pub rule: Rule,
    /// What it does not find.
    pub itself: Itself<'a>,
}

/// A candidate that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Which candidate: see [`Demonstrations::candidate`].
    pub index: usize,
    /// Where it stands.
    pub place: Place,
    /// The cosine; 0 where an embedding has no direction.
    pub similarity: f32,
}

/// Why there is nothing to retrieve from.
#[derive(Debug, Error, PartialEq)]
pub enum RetrieveError {
    /// The embeddings are not one row for each candidate.
    #[error("{values} numbers are no embeddings of {candidates} utterances, expected {width} for each")]
    Shape {
        /// Numbers given.
        values: usize,
        /// Utterances given.
        candidates: usize,
        /// Numbers in an embedding.
        width: usize,
    },
    /// Two candidates stand in one place.
    #[error("two utterances are turn {} of dialogue {} of corpus {}", .0.turn, .0.dialogue, .0.corpus)]
    Twice(Place),
    /// An embedding is not made of numbers.
    #[error("the embedding of turn {} of dialogue {} of corpus {} is not finite", .0.turn, .0.dialogue, .0.corpus)]
    NotFinite(Place),
}

/// The utterances that may be shown, with their embeddings' directions.
#[derive(Debug, Clone, PartialEq)]
pub struct Demonstrations {
    /// Ascending by place.
    candidates: Vec<Candidate>,
    /// `[candidates, width]`, each of length 1 or, without a direction, zeros.
    directions: Vec<f32>,
    width: usize,
}

impl Demonstrations {
    /// The demonstrations among `candidates`, given in any order with their embeddings `[candidates, width]`. What is
    /// kept depends on the candidates and the seed, not on their order.
    ///
    /// # Errors
    /// When the embeddings are not as many, or not finite, or two candidates stand in one place.
    pub fn new(
        candidates: Vec<Candidate>,
        embeddings: &[f32],
        width: usize,
        balance: Balance,
    ) -> Result<Demonstrations, RetrieveError> {
        let count = candidates.len();
        if width == 0 || count.checked_mul(width) != Some(embeddings.len()) {
            return Err(RetrieveError::Shape { values: embeddings.len(), candidates: count, width });
        }
        let rows = embeddings.chunks_exact(width);
        let mut all: Vec<(Candidate, &[f32])> = candidates.into_iter().zip(rows).collect();
        all.sort_by_key(|(candidate, _)| candidate.place);
        if let Some(pair) = all.windows(2).find(|pair| pair[0].0.place == pair[1].0.place) {
            return Err(RetrieveError::Twice(pair[0].0.place));
        }
        if let Some((candidate, _)) = all.iter().find(|(_, row)| row.iter().any(|x| !x.is_finite())) {
            return Err(RetrieveError::NotFinite(candidate.place));
        }
        let labels: Vec<Label> = all.iter().map(|(candidate, _)| candidate.label).collect();
        let mut kept = kept(&labels, balance).into_iter();
        all.retain(|_| kept.next().unwrap_or(false));
        let directions = all.iter().flat_map(|(_, row)| direction(row)).collect();
        Ok(Demonstrations { candidates: all.into_iter().map(|(candidate, _)| candidate).collect(), directions, width })
    }

    /// The candidate a [`Hit`] names.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn candidate(&self, index: usize) -> &Candidate {
        &self.candidates[index]
    }

    /// All candidates, ascending by place.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// The `k` most alike candidates, the most alike first and the earlier place among equals; fewer where there are
    /// no more.
    ///
    /// # Panics
    /// When the query's embedding has another width.
    pub fn nearest(&self, query: &Query<'_>, k: usize) -> Vec<Hit> {
        self.nearest_of_some(std::slice::from_ref(query), k).pop().unwrap_or_default()
    }

    /// [`Demonstrations::nearest`] of many queries, in their order, on all threads of the current rayon pool.
    ///
    /// # Panics
    /// When a query's embedding has another width.
    pub fn nearest_of_all(&self, queries: &[Query<'_>], k: usize) -> Vec<Vec<Hit>> {
        queries.par_chunks(QUERIES_PER_TASK).flat_map_iter(|queries| self.nearest_of_some(queries, k)).collect()
    }

    fn nearest_of_some(&self, queries: &[Query<'_>], k: usize) -> Vec<Vec<Hit>> {
        let directed = queries.iter().map(|query| {
            assert_eq!(query.embedding.len(), self.width, "a query is as wide as the embeddings it is compared with");
            direction(query.embedding)
        });
        let directions: Vec<Vec<f32>> = directed.collect();
        let mut found: Vec<Vec<Hit>> = vec![Vec::new(); queries.len()];
        for (index, candidate) in self.candidates.iter().enumerate() {
            let row = &self.directions[index * self.width..][..self.width];
            for ((query, direction), found) in queries.iter().zip(&directions).zip(&mut found) {
                if query.sees(candidate) {
                    insert(found, Hit { index, place: candidate.place, similarity: dot(direction, row) }, k);
                }
            }
        }
        found
    }
}

impl Query<'_> {
    fn sees(&self, candidate: &Candidate) -> bool {
        let rule = match self.rule {
            Rule::SameLabel(label) => candidate.label == label,
            Rule::Any => true,
        };
        rule && self.itself.place != Some(candidate.place) && self.itself.text != Some(candidate.text.as_str())
    }
}

/// Puts a hit into its place among the best `k`; it comes after those that were found before it and are as alike.
fn insert(found: &mut Vec<Hit>, hit: Hit, k: usize) {
    let at = found.partition_point(|other| other.similarity >= hit.similarity);
    if at < k {
        found.truncate(k - 1);
        found.insert(at, hit);
    }
}

/// The vector scaled to length 1; zeros where it has no direction: it is all zeros, or holds what is no number.
fn direction(row: &[f32]) -> Vec<f32> {
    let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let scaled = |&x: &f32| if length.is_finite() && length > 0.0 { (f64::from(x) / length) as f32 } else { 0.0 };
    row.iter().map(scaled).collect()
}

/// Which of the candidates with these labels are kept.
fn kept(labels: &[Label], balance: Balance) -> Vec<bool> {
    let Balance::Rarest { seed } = balance else { return vec![true; labels.len()] };
    let mut of_label = std::collections::BTreeMap::<Label, Vec<usize>>::new();
    for (index, label) in labels.iter().enumerate() {
        of_label.entry(*label).or_default().push(index);
    }
    let rarest = of_label.values().map(Vec::len).min().unwrap_or(0);
    let mut kept = vec![false; labels.len()];
    for (label, mut indices) in of_label {
        indices.shuffle(&mut generator(seed, Purpose::Demonstrations { label: label.0 }));
        indices.iter().take(rarest).for_each(|&index| kept[index] = true);
    }
    kept
}

/// A demonstration as the paper prints it, to stand at the end of a prompt.
///
/// `Speaker_1` is literal: the demonstration's own speaker is not shown, so the number names nobody. What stands
/// between the prompt and this (the paper shows nothing but the order) is the caller's.
pub fn render_demonstration(text: &str, label: &str) -> String {
    format!("Demonstration: <Speaker_1: \"{text}\" >: {label}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WIDTH: usize = 3;

    /// Candidates in a handful of directions, so that equal cosines are common.
    fn made(parts: &[(u8, u8, u8)]) -> (Vec<Candidate>, Vec<f32>) {
        let candidate = |(index, (label, text, _)): (usize, &(u8, u8, u8))| Candidate {
            place: Place { corpus: index as u32 % 2, dialogue: index as u32 / 5, turn: index as u32 % 5 },
            label: Label(u16::from(*label)),
            text: format!("text {text}"),
        };
        let candidates = parts.iter().enumerate().map(candidate).collect();
        (candidates, parts.iter().flat_map(|(_, _, angle)| vector(*angle)).collect())
    }

    fn vector(angle: u8) -> [f32; WIDTH] {
        let angle = f32::from(angle % 6);
        [angle - 2.0, angle * angle - 4.0, f32::from(angle > 3.0)]
    }

    /// The obvious: every eligible candidate, sorted.
    fn naive(candidates: &[Candidate], embeddings: &[f32], query: &Query<'_>, k: usize) -> Vec<(Place, f64)> {
        let cosine = |a: &[f32], b: &[f32]| {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let lengths = (dot(a, a) * dot(b, b)).sqrt();
            if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
        };
        let rows = candidates.iter().zip(embeddings.chunks_exact(WIDTH));
        let eligible = rows.filter(|(candidate, _)| match query.rule {
            Rule::SameLabel(label) => candidate.label == label,
            Rule::Any => true,
        });
        let eligible = eligible.filter(|(candidate, _)| Some(candidate.place) != query.itself.place);
        let eligible = eligible.filter(|(candidate, _)| Some(candidate.text.as_str()) != query.itself.text);
        // Rounded, so that equal directions of other lengths are equal here as they are in float32.
        let scored =
            eligible.map(|(candidate, row)| (candidate.place, (cosine(query.embedding, row) * 1e6).round() / 1e6));
        let mut hits: Vec<(Place, f64)> = scored.collect();
        hits.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        hits.truncate(k);
        hits
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn the_nearest_are_those_of_the_obvious_search(
            parts in prop::collection::vec((0u8..3, 0u8..4, any::<u8>()), 0..60),
            k in 0usize..70, label in prop::option::of(0u8..4), itself in any::<(bool, bool)>(), seed in any::<u64>()
        ) {
            let (mut candidates, mut embeddings) = made(&parts);
            let queries: Vec<_> = candidates.iter().cloned().zip(parts.iter().map(|part| vector(part.2))).collect();
            // Another order of candidates is the same set.
            candidates.reverse();
            embeddings = embeddings.chunks(WIDTH).rev().flatten().copied().collect();
            let all = Demonstrations::new(candidates.clone(), &embeddings, WIDTH, Balance::Off).unwrap();
            let query = |(candidate, vector): &'_ (Candidate, [f32; WIDTH])| Query {
                embedding: Box::leak(Box::new(*vector)),
                rule: label.map_or(Rule::Any, |label| Rule::SameLabel(Label(u16::from(label)))),
                itself: Itself {
                    place: itself.0.then_some(candidate.place),
                    text: itself.1.then(|| &*candidate.text.clone().leak()),
                },
            };
            let queries: Vec<Query<'_>> = queries.iter().map(query).collect();
            let together = all.nearest_of_all(&queries, k);
            let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            prop_assert_eq!(&one.install(|| all.nearest_of_all(&queries, k)), &together);
            for (query, hits) in queries.iter().zip(&together) {
                prop_assert_eq!(&all.nearest(query, k), hits);
                let expected = naive(&candidates, &embeddings, query, k);
                prop_assert_eq!(hits.len(), expected.len());
                for (hit, (place, similarity)) in hits.iter().zip(expected) {
                    prop_assert_eq!(hit.place, place);
                    prop_assert!((f64::from(hit.similarity) - similarity).abs() < 2e-6);
                    prop_assert_eq!(all.candidate(hit.index).place, place);
                }
            }
            let seeded = Balance::Rarest { seed };
            let balanced = Demonstrations::new(candidates.clone(), &embeddings, WIDTH, seeded).unwrap();
            let counts = |of: &[Candidate]| {
                let count = |label| of.iter().filter(|candidate| candidate.label == Label(label)).count();
                (0..3).map(count).filter(|&count| count > 0).collect::<Vec<_>>()
            };
            let rarest = counts(&candidates).into_iter().min().unwrap_or(0);
            prop_assert_eq!(counts(balanced.candidates()), vec![rarest; counts(&candidates).len()]);
            prop_assert!(balanced.candidates().iter().all(|candidate| candidates.contains(candidate)));
            candidates.reverse();
            let embeddings: Vec<f32> = embeddings.chunks(WIDTH).rev().flatten().copied().collect();
            prop_assert_eq!(Demonstrations::new(candidates, &embeddings, WIDTH, seeded).unwrap(), balanced);
        }
    }

    #[test]
    fn another_seed_keeps_other_utterances() {
        let parts: Vec<(u8, u8, u8)> = (0..60).map(|i| (u8::from(i < 50), i, i)).collect();
        let (candidates, embeddings) = made(&parts);
        let of = |seed| {
            Demonstrations::new(candidates.clone(), &embeddings, WIDTH, Balance::Rarest { seed }).unwrap().candidates
        };
        assert_eq!((of(1).len(), of(1) == of(1), of(1) == of(2)), (20, true, false));
    }

    #[test]
    fn what_has_no_direction_is_like_nothing() {
        let (candidates, _) = made(&[(0, 0, 0), (0, 1, 0)]);
        let all = Demonstrations::new(candidates, &[0.0, 0.0, 0.0, -1.0, 0.0, 0.0], WIDTH, Balance::Off).unwrap();
        for (embedding, expected) in [([1.0, 0.0, 0.0], [0.0, -1.0]), ([f32::NAN, 0.0, 0.0], [0.0, 0.0])] {
            let query = Query { embedding: &embedding, rule: Rule::Any, itself: Itself::default() };
            assert_eq!(all.nearest(&query, 9).iter().map(|hit| hit.similarity).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let (mut candidates, embeddings) = made(&[(0, 0, 1), (1, 1, 2)]);
        let new = |candidates: &[Candidate], embeddings: &[f32], width| {
            Demonstrations::new(candidates.to_vec(), embeddings, width, Balance::Off).unwrap_err().to_string()
        };
        assert!(new(&candidates, &embeddings, 4).contains("expected 4 for each"));
        assert!(new(&candidates, &[], 0).contains("2 utterances"));
        assert!(new(&candidates, &[0.0, 0.0, 0.0, 0.0, 0.0, f32::INFINITY], 3).contains("turn 1"));
        candidates[1].place = candidates[0].place;
        assert!(new(&candidates, &embeddings, 3).contains("two utterances are turn 0"));
    }

    #[test]
    fn a_demonstration_is_printed_as_in_the_paper() {
        assert_eq!(
            render_demonstration("Oh, good!", "Excited"),
            r#"Demonstration: <Speaker_1: "Oh, good!" >: Excited"#
        );
    }
}
