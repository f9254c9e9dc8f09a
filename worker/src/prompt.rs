//! From a dialogue to what the model reads: InstructERC's main task, rendered byte for byte as its authors do.
//!
//! ```text
//! Now you are expert of ... several speakers. ### \t Speaker_0:"Hi."\t Speaker_1:"Oh." ### Please select the
//! emotional label of < Speaker_1:"Oh."> from <neutral, ...>:
//! ```
//! The window is the target and the utterances before it; nothing of what comes after. The target is repeated as the
//! last tab-separated piece, so it keeps its leading space. The authors cut overlong prompts from the right, which
//! loses the statement of the labels; here the oldest utterances are dropped until the prompt fits, and counted.

use insula_proto::corpus::{Dialogue, Label, LabelSet, Utterance};
use rayon::prelude::*;
use thiserror::Error;

use crate::tokenize::{TokenizeError, Tokenizer};

const OPENING: &str = "Now you are expert of sentiment and emotional analysis. The following conversation noted between \
                       '### ###' involves several speakers. ### ";

/// A dialogue of which no example can be made.
#[derive(Debug, Error, PartialEq)]
pub enum PromptError {
    /// Even the target alone is longer than the base can read.
    #[error(
        "dialogue {dialogue}, utterance {utterance}: its prompt alone has {tokens} tokens and {reserve} more are needed \
         for the answer, but the context has {context}; shorten the text or choose a base with a longer context"
    )]
    TooLong {
        /// Id of the dialogue.
        dialogue: String,
        /// Id of the utterance within it.
        utterance: String,
        /// Tokens of the prompt without history.
        tokens: usize,
        /// Tokens kept free for the answer.
        reserve: usize,
        /// The longest sequence in tokens.
        context: usize,
    },
    /// The turn is not in the dialogue.
    #[error("dialogue {dialogue} has {utterances} utterances, turn {turn} is not among them")]
    NoSuchTurn {
        /// Id of the dialogue.
        dialogue: String,
        /// The turn asked for, from 0.
        turn: usize,
        /// Number of utterances.
        utterances: usize,
    },
    /// The tokenizer refused the text or the labels.
    #[error(transparent)]
    Tokenize(#[from] TokenizeError),
}

/// Renders the main task for utterance `target`, showing up to `window` utterances before it.
///
/// # Panics
/// When `target` is not a place in `utterances`.
pub fn main_prompt(utterances: &[Utterance], target: usize, window: usize, labels: &LabelSet) -> String {
    let shown = &utterances[target.saturating_sub(window)..=target];
    let pieces: Vec<String> = shown.iter().map(piece).collect();
    let history: String = pieces.iter().map(|piece| format!("\t{piece}")).collect();
    let last = pieces.last().expect("the target itself is always shown");
    let labels = labels.names().join(", ");
    format!("{OPENING}{history} ### Please select the emotional label of <{last}> from <{labels}>:")
}

fn piece(utterance: &Utterance) -> String {
    format!(" Speaker_{}:\"{}\"", utterance.speaker, utterance.text)
}

/// How many tokens a prompt may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The longest sequence, prompt and answer together, in tokens.
    pub context: usize,
    /// Tokens kept free for the answer.
    pub reserve: usize,
}

impl Room {
    /// Whether a prompt of so many tokens fits.
    pub(crate) fn holds(self, tokens: usize) -> bool {
        tokens.saturating_add(self.reserve) <= self.context
    }
}

/// A prompt that fits its room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FittedPrompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Utterances of the window that had to go, the oldest first.
    pub dropped_utterances: usize,
}

/// Tokenises the main task for one turn, dropping the oldest utterances until it fits `room`.
///
/// Each prompt is tokenised whole, as one string, as the peers do: merges may cross any border inside it.
///
/// # Errors
/// When even the target alone does not fit, the turn is not there, or the tokenizer refuses the text.
pub fn fit(
    tokenizer: &Tokenizer,
    dialogue: &Dialogue,
    turn: usize,
    window: usize,
    labels: &LabelSet,
    room: Room,
) -> Result<FittedPrompt, PromptError> {
    let utterances = &dialogue.utterances;
    if turn >= utterances.len() {
        let (dialogue, utterances) = (dialogue.id.clone(), utterances.len());
        return Err(PromptError::NoSuchTurn { dialogue, turn, utterances });
    }
    let shown = window.min(turn);
    let mut tokens = 0;
    for dropped_utterances in 0..=shown {
        let ids = tokenizer.encode(&main_prompt(utterances, turn, shown - dropped_utterances, labels))?;
        if room.holds(ids.len()) {
            return Ok(FittedPrompt { ids, dropped_utterances });
        }
        tokens = ids.len();
    }
    let (dialogue, utterance) = (dialogue.id.clone(), utterances[turn].id.clone());
    Err(PromptError::TooLong { dialogue, utterance, tokens, reserve: room.reserve, context: room.context })
}

/// One target of one dialogue, as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Place of the target in its dialogue.
    pub turn: usize,
    /// The annotated label.
    pub gold: Label,
    /// Token ids of the prompt; not supervised.
    pub prompt_ids: Vec<u32>,
    /// Token ids of the gold label, tokenised apart, and the end of the sequence; supervised.
    pub target_ids: Vec<u32>,
    /// Utterances of the window that were dropped to fit the context.
    pub dropped_utterances: usize,
}

/// The main task over one corpus with one tokenizer: everything that is the same for all its examples.
#[derive(Debug, Clone)]
pub struct MainTask<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) labels: &'a LabelSet,
    targets: Vec<Vec<u32>>,
    pub(crate) window: usize,
    pub(crate) room: Room,
}

impl<'a> MainTask<'a> {
    /// Prepares the task. A prompt leaves room in `context` for the longest label and the end of the sequence, and for
    /// `max_new_tokens`, the longest answer that evaluation will decode.
    ///
    /// # Errors
    /// When the label set can't be answered from: see [`Tokenizer::label_tokens`].
    pub fn new(
        tokenizer: &'a Tokenizer,
        labels: &'a LabelSet,
        window: usize,
        context: usize,
        max_new_tokens: usize,
    ) -> Result<MainTask<'a>, PromptError> {
        let targets = tokenizer.label_tokens(labels.names())?;
        let longest = targets.iter().map(Vec::len).max().unwrap_or(0);
        let room = Room { context, reserve: longest.max(max_new_tokens) };
        Ok(MainTask { tokenizer, labels, targets, window, room })
    }

    /// Token ids of every label and the end of the sequence, in the label set's order.
    pub fn targets(&self) -> &[Vec<u32>] {
        &self.targets
    }

    /// The example of one turn.
    ///
    /// # Errors
    /// See [`fit`].
    pub fn example(&self, dialogue: &Dialogue, turn: usize) -> Result<Example, PromptError> {
        let prompt = fit(self.tokenizer, dialogue, turn, self.window, self.labels, self.room)?;
        Ok(self.example_of(dialogue, turn, prompt))
    }

    /// The example of one turn whose prompt is at hand; `None` for one that did not fit.
    ///
    /// # Errors
    /// See [`fit`]: why it does not fit.
    pub fn completed(
        &self,
        dialogue: &Dialogue,
        turn: usize,
        prompt: Option<FittedPrompt>,
    ) -> Result<Example, PromptError> {
        match prompt {
            Some(prompt) => Ok(self.example_of(dialogue, turn, prompt)),
            None => self.example(dialogue, turn),
        }
    }

    fn example_of(&self, dialogue: &Dialogue, turn: usize, prompt: FittedPrompt) -> Example {
        let FittedPrompt { ids: prompt_ids, dropped_utterances } = prompt;
        let gold = dialogue.utterances[turn].gold;
        Example { turn, gold, prompt_ids, target_ids: self.targets[gold.index()].clone(), dropped_utterances }
    }

    /// The prompts of every turn of many dialogues, in order, tokenised in parallel; `None`: it does not fit.
    ///
    /// # Errors
    /// When the tokenizer refuses a text.
    pub fn prompts(&self, dialogues: &[Dialogue]) -> Result<Vec<Vec<Option<FittedPrompt>>>, PromptError> {
        let fitted = |dialogue: &Dialogue, turn| match fit(
            self.tokenizer,
            dialogue,
            turn,
            self.window,
            self.labels,
            self.room,
        ) {
            Ok(prompt) => Ok(Some(prompt)),
            Err(PromptError::TooLong { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        let whole = |dialogue: &Dialogue| {
            (0..dialogue.utterances.len()).into_par_iter().map(|turn| fitted(dialogue, turn)).collect()
        };
        dialogues.par_iter().map(whole).collect()
    }

    /// The examples of every turn of many dialogues, in order, tokenised in parallel.
    ///
    /// # Errors
    /// See [`fit`].
    pub fn all_examples(&self, dialogues: &[Dialogue]) -> Result<Vec<Vec<Example>>, PromptError> {
        let whole = |dialogue: &Dialogue| {
            (0..dialogue.utterances.len()).into_par_iter().map(|turn| self.example(dialogue, turn)).collect()
        };
        dialogues.par_iter().map(whole).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> LabelSet {
        LabelSet::new(vec!["neutral".into(), "joyful".into()]).unwrap()
    }

    fn said(turns: &[(u32, &str)]) -> Vec<Utterance> {
        let utterance = |(place, (speaker, text)): (usize, &(u32, &str))| Utterance {
            id: place.to_string(),
            speaker: *speaker,
            speaker_name: format!("name {speaker}"),
            text: (*text).into(),
            gold: Label(0),
        };
        turns.iter().enumerate().map(utterance).collect()
    }

    #[test]
    fn the_main_prompt_is_the_authors_byte_for_byte() {
        let turns = said(&[(0, "Hi."), (1, "Say \"cheese\"!"), (0, "Oh…")]);
        let expected = "Now you are expert of sentiment and emotional analysis. The following conversation noted between \
            '### ###' involves several speakers. ### \t Speaker_0:\"Hi.\"\t Speaker_1:\"Say \"cheese\"!\" ### Please \
            select the emotional label of < Speaker_1:\"Say \"cheese\"!\"> from <neutral, joyful>:";
        assert_eq!(main_prompt(&turns, 1, 12, &labels()), expected);
    }

    #[test]
    fn the_window_counts_previous_utterances_and_shows_nothing_of_the_future() {
        let turns = said(&[(0, "one"), (1, "two"), (0, "three"), (1, "four")]);
        let shown = |target, window| {
            let prompt = main_prompt(&turns, target, window, &labels());
            ["one", "two", "three", "four"].map(|word| prompt.matches(word).count())
        };
        assert_eq!(shown(2, 0), [0, 0, 2, 0]);
        assert_eq!(shown(2, 1), [0, 1, 2, 0]);
        assert_eq!(shown(2, usize::MAX), [1, 1, 2, 0]);
    }
}
