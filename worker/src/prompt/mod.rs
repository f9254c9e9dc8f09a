//! From a dialogue to what the model reads: a [`Form`] says how a prompt is written, a [`Prompter`] makes token ids of it.
//!
//! The authors cut overlong prompts from the right, which loses the statement of the labels; here the oldest utterances
//! are dropped until the prompt fits, and counted.

mod form;

use insula_proto::corpus::{Dialogue, Label, LabelSet};
use rayon::prelude::*;
use thiserror::Error;

pub use form::Form;

use crate::tokenize::{TokenizeError, Tokenizer};

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
    /// A speaker whose number the corpus does not have.
    #[error("dialogue {dialogue}, utterance {utterance}: speaker {speaker} is not among {answers}")]
    NoSuchSpeaker {
        /// Id of the dialogue.
        dialogue: String,
        /// Id of the utterance within it.
        utterance: String,
        /// The speaker's number.
        speaker: u32,
        /// Those on offer.
        answers: String,
    },
    /// The tokenizer refused the text or the labels.
    #[error(transparent)]
    Tokenize(#[from] TokenizeError),
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

/// One target of one dialogue, as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Place of the target in its dialogue.
    pub turn: usize,
    /// The annotated label of the target, whatever is asked.
    pub gold: Label,
    /// Token ids of the prompt; not supervised.
    pub prompt_ids: Vec<u32>,
    /// Token ids of the right answer, tokenised apart, and the end of the sequence; supervised.
    pub target_ids: Vec<u32>,
    /// Utterances of the window that were dropped to fit the context.
    pub dropped_utterances: usize,
}

/// Makes the prompts of one form with one tokenizer: everything that is the same for all its examples.
#[derive(Debug, Clone)]
pub struct Prompter<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) form: Form,
    targets: Vec<Vec<u32>>,
    pub(crate) window: usize,
    pub(crate) room: Room,
}

impl<'a> Prompter<'a> {
    /// Prepares a form. A prompt leaves room in `context` for the longest answer and the end of the sequence, and for
    /// `max_new_tokens`, the longest answer that evaluation will decode.
    ///
    /// # Errors
    /// When the answers cannot be told apart by their tokens: see [`Tokenizer::label_tokens`].
    pub fn new(
        tokenizer: &'a Tokenizer,
        form: Form,
        window: usize,
        context: usize,
        max_new_tokens: usize,
    ) -> Result<Prompter<'a>, PromptError> {
        let targets = tokenizer.label_tokens(&form.answers())?;
        let longest = targets.iter().map(Vec::len).max().unwrap_or(0);
        let room = Room { context, reserve: longest.max(max_new_tokens) };
        Ok(Prompter { tokenizer, form, targets, window, room })
    }

    /// Prepares InstructERC's main prompt.
    ///
    /// # Errors
    /// As [`Prompter::new`].
    pub fn main(
        tokenizer: &'a Tokenizer,
        labels: &LabelSet,
        window: usize,
        context: usize,
        max_new_tokens: usize,
    ) -> Result<Prompter<'a>, PromptError> {
        Self::new(tokenizer, Form::Main(labels.clone()), window, context, max_new_tokens)
    }

    /// Token ids of every answer and the end of the sequence, in the form's order.
    pub fn targets(&self) -> &[Vec<u32>] {
        &self.targets
    }

    /// Tokenises the prompt of one turn, `behind` put behind it, dropping the oldest utterances until it fits.
    ///
    /// Each prompt is tokenised whole, as one string, as the peers do: merges may cross any border inside it.
    ///
    /// # Errors
    /// When even the target alone does not fit, the turn is not there, or the tokenizer refuses the text.
    pub fn fit(&self, dialogue: &Dialogue, turn: usize, behind: &str) -> Result<FittedPrompt, PromptError> {
        let utterances = &dialogue.utterances;
        if turn >= utterances.len() {
            let (dialogue, utterances) = (dialogue.id.clone(), utterances.len());
            return Err(PromptError::NoSuchTurn { dialogue, turn, utterances });
        }
        let shown = if self.form.shows_history() { self.window.min(turn) } else { 0 };
        let mut tokens = 0;
        for dropped_utterances in 0..=shown {
            let text = self.form.render(utterances, turn, shown - dropped_utterances) + behind;
            let ids = self.tokenizer.encode(&text)?;
            if self.room.holds(ids.len()) {
                return Ok(FittedPrompt { ids, dropped_utterances });
            }
            tokens = ids.len();
        }
        let (dialogue, utterance) = (dialogue.id.clone(), utterances[turn].id.clone());
        let Room { context, reserve } = self.room;
        Err(PromptError::TooLong { dialogue, utterance, tokens, reserve, context })
    }

    /// The example of one turn.
    ///
    /// # Errors
    /// See [`Prompter::fit`]; and when its speaker is not on offer.
    pub fn example(&self, dialogue: &Dialogue, turn: usize) -> Result<Example, PromptError> {
        self.example_behind(dialogue, turn, "")
    }

    /// The example of one turn with `behind`, such as a demonstration, put behind its prompt.
    ///
    /// # Errors
    /// As [`Prompter::example`].
    pub fn example_behind(&self, dialogue: &Dialogue, turn: usize, behind: &str) -> Result<Example, PromptError> {
        let prompt = self.fit(dialogue, turn, behind)?;
        self.example_of(dialogue, turn, prompt)
    }

    /// The example of one turn whose prompt is at hand; `None` for one that did not fit.
    ///
    /// # Errors
    /// As [`Prompter::example`]: why it does not fit.
    pub fn completed(
        &self,
        dialogue: &Dialogue,
        turn: usize,
        prompt: Option<FittedPrompt>,
    ) -> Result<Example, PromptError> {
        match prompt {
            Some(prompt) => self.example_of(dialogue, turn, prompt),
            None => self.example(dialogue, turn),
        }
    }

    fn example_of(&self, dialogue: &Dialogue, turn: usize, prompt: FittedPrompt) -> Result<Example, PromptError> {
        let FittedPrompt { ids: prompt_ids, dropped_utterances } = prompt;
        let utterance = &dialogue.utterances[turn];
        let answer = self.form.answer(utterance).ok_or_else(|| PromptError::NoSuchSpeaker {
            dialogue: dialogue.id.clone(),
            utterance: utterance.id.clone(),
            speaker: utterance.speaker,
            answers: self.form.answers().join(", "),
        })?;
        let target_ids = self.targets[answer].clone();
        Ok(Example { turn, gold: utterance.gold, prompt_ids, target_ids, dropped_utterances })
    }

    /// The prompts of every turn of many dialogues, in order, tokenised in parallel; `None`: it does not fit.
    ///
    /// # Errors
    /// When the tokenizer refuses a text.
    pub fn prompts(&self, dialogues: &[Dialogue]) -> Result<Vec<Vec<Option<FittedPrompt>>>, PromptError> {
        let fitted = |dialogue: &Dialogue, turn| match self.fit(dialogue, turn, "") {
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
    /// As [`Prompter::example`].
    pub fn all_examples(&self, dialogues: &[Dialogue]) -> Result<Vec<Vec<Example>>, PromptError> {
        let whole = |dialogue: &Dialogue| {
            (0..dialogue.utterances.len()).into_par_iter().map(|turn| self.example(dialogue, turn)).collect()
        };
        dialogues.par_iter().map(whole).collect()
    }
}
