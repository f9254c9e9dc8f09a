//! What the model is asked, as text: InstructERC's prompts, byte for byte as its authors write them.
//!
//! ```text
//! main     Now you are expert of ... several speakers. ### \t Speaker_0:"Hi."\t Speaker_1:"Oh." ### Please select the
//!          emotional label of < Speaker_1:"Oh."> from <neutral, ...>:
//! impact   Now you are expert of ... several speakers. ### \t Speaker_0:"Hi."###Based on the above historical
//!          utterances, next utterance is spoken by <1>, please predict the emotion states of <1> from <neutral, ...>:
//! speaker  Now you are expert of ... analysis. Please select the Speaker label of the utterance <Speaker: Oh.> from
//!          <Speaker_0, Speaker_1>:
//! plain    Please select the emotional label of <Oh.> from <neutral, ...>:
//! ```
//! The window is the target and the utterances before it; nothing of what comes after. In `main` the target is repeated
//! as the last tab-separated piece, so it keeps its leading space; `impact` shows the history without the target, and
//! where there is none asks as `main` does.

use std::ops::Range;

use insula_proto::{
    corpus::{LabelSet, Utterance},
    job::{Objective, Template},
};

const EXPERT: &str = "Now you are expert of sentiment and emotional analysis. ";
const CONVERSATION: &str = "The following conversation noted between '### ###' involves several speakers. ### ";

/// How a prompt is written, and what it may be answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// The emotion of the last utterance shown.
    Main(LabelSet),
    /// The emotion of an utterance without its dialogue.
    Plain(LabelSet),
    /// The emotion of the utterance to come.
    Impact(LabelSet),
    /// Who speaks, among the speakers of these numbers.
    Speaker(Range<u32>),
}

impl Form {
    /// The form of an objective under a template, for a corpus whose speakers have these numbers.
    pub fn of(objective: Objective, template: Template, labels: &LabelSet, speakers: Range<u32>) -> Self {
        match (objective, template) {
            (Objective::Main, Template::InstructErc) => Form::Main(labels.clone()),
            (Objective::Main, Template::Plain) => Form::Plain(labels.clone()),
            (Objective::Impact, _) => Form::Impact(labels.clone()),
            (Objective::Speaker, _) => Form::Speaker(speakers),
        }
    }

    /// Every answer, in the order the prompt offers them.
    pub fn answers(&self) -> Vec<String> {
        match self {
            Form::Main(labels) | Form::Plain(labels) | Form::Impact(labels) => labels.names().to_vec(),
            Form::Speaker(numbers) => numbers.clone().map(speaker_name).collect(),
        }
    }

    /// The place of the right answer among [`Form::answers`]; `None` for a speaker who is not on offer.
    pub fn answer(&self, utterance: &Utterance) -> Option<usize> {
        match self {
            Form::Main(_) | Form::Plain(_) | Form::Impact(_) => Some(utterance.gold.index()),
            Form::Speaker(numbers) => {
                numbers.contains(&utterance.speaker).then(|| (utterance.speaker - numbers.start) as usize)
            }
        }
    }

    /// Whether utterances before the target are shown, so that a prompt can be made shorter by leaving them out.
    pub fn shows_history(&self) -> bool {
        matches!(self, Form::Main(_) | Form::Impact(_))
    }

    /// Asks about utterance `target`, showing up to `window` utterances before it.
    ///
    /// # Panics
    /// When `target` is not a place in `utterances`.
    pub fn render(&self, utterances: &[Utterance], target: usize, window: usize) -> String {
        let Utterance { text, speaker, .. } = &utterances[target];
        match self {
            Form::Main(labels) => main_prompt(utterances, target, window, labels),
            Form::Impact(labels) if target == 0 => main_prompt(utterances, target, window, labels),
            Form::Impact(labels) => {
                let history = history(&utterances[target.saturating_sub(window)..target]);
                let labels = labels.names().join(", ");
                format!(
                    "{EXPERT}{CONVERSATION}{history}###Based on the above historical utterances, next utterance is \
                     spoken by <{speaker}>, please predict the emotion states of <{speaker}> from <{labels}>:"
                )
            }
            Form::Plain(labels) => {
                format!("Please select the emotional label of <{text}> from <{}>:", labels.names().join(", "))
            }
            Form::Speaker(_) => {
                let speakers = self.answers().join(", ");
                format!("{EXPERT}Please select the Speaker label of the utterance <Speaker: {text}> from <{speakers}>:")
            }
        }
    }
}

fn main_prompt(utterances: &[Utterance], target: usize, window: usize, labels: &LabelSet) -> String {
    let history = history(&utterances[target.saturating_sub(window)..=target]);
    let (last, labels) = (piece(&utterances[target]), labels.names().join(", "));
    format!("{EXPERT}{CONVERSATION}{history} ### Please select the emotional label of <{last}> from <{labels}>:")
}

fn history(utterances: &[Utterance]) -> String {
    utterances.iter().map(|utterance| format!("\t{}", piece(utterance))).collect()
}

fn piece(utterance: &Utterance) -> String {
    format!(" {}:\"{}\"", speaker_name(utterance.speaker), utterance.text)
}

fn speaker_name(number: u32) -> String {
    format!("Speaker_{number}")
}

#[cfg(test)]
mod tests {
    use insula_proto::corpus::Label;

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
            gold: Label(u16::from(place == 1)),
        };
        turns.iter().enumerate().map(utterance).collect()
    }

    const OPENING: &str = "Now you are expert of sentiment and emotional analysis. The following conversation noted \
                           between '### ###' involves several speakers. ### ";

    /// Every case of the specification, written out: prompt and answer.
    #[test]
    fn every_prompt_is_the_authors_byte_for_byte() {
        let turns = [(0, "Hi."), (1, "Say \"cheese\"!"), (0, "Oh…"), (2, "it's <me>, ok?")];
        let turns = said(&turns);
        let form = |objective| Form::of(objective, Template::InstructErc, &labels(), 0..9);
        let plain = Form::of(Objective::Main, Template::Plain, &labels(), 0..9);
        let nine = "Speaker_0, Speaker_1, Speaker_2, Speaker_3, Speaker_4, Speaker_5, Speaker_6, Speaker_7, Speaker_8";
        let expert = "Now you are expert of sentiment and emotional analysis. Please select the Speaker label of the";
        let cases = [
            // Turn 0: the target is all there is.
            (
                form(Objective::Main),
                0,
                12,
                format!(
                    "{OPENING}\t Speaker_0:\"Hi.\" ### Please select the emotional label of < Speaker_0:\"Hi.\"> from \
                 <neutral, joyful>:"
                ),
                "neutral",
            ),
            // Quotes inside an utterance stay as they are.
            (
                form(Objective::Main),
                1,
                12,
                format!(
                    "{OPENING}\t Speaker_0:\"Hi.\"\t Speaker_1:\"Say \"cheese\"!\" ### Please select the emotional label of < \
                 Speaker_1:\"Say \"cheese\"!\"> from <neutral, joyful>:"
                ),
                "joyful",
            ),
            // The window's edge: two previous utterances of three, and the current one.
            (
                form(Objective::Main),
                3,
                2,
                format!(
                    "{OPENING}\t Speaker_1:\"Say \"cheese\"!\"\t Speaker_0:\"Oh…\"\t Speaker_2:\"it's <me>, ok?\" ### Please \
                 select the emotional label of < Speaker_2:\"it's <me>, ok?\"> from <neutral, joyful>:"
                ),
                "neutral",
            ),
            (
                form(Objective::Main),
                2,
                0,
                format!(
                    "{OPENING}\t Speaker_0:\"Oh…\" ### Please select the emotional label of < Speaker_0:\"Oh…\"> from \
                 <neutral, joyful>:"
                ),
                "neutral",
            ),
            // Impact at turn 0 repeats the main prompt; later it shows the history without the target.
            (
                form(Objective::Impact),
                0,
                12,
                format!(
                    "{OPENING}\t Speaker_0:\"Hi.\" ### Please select the emotional label of < Speaker_0:\"Hi.\"> from \
                 <neutral, joyful>:"
                ),
                "neutral",
            ),
            (
                form(Objective::Impact),
                1,
                12,
                format!(
                    "{OPENING}\t Speaker_0:\"Hi.\"###Based on the above historical utterances, next utterance is spoken by \
                 <1>, please predict the emotion states of <1> from <neutral, joyful>:"
                ),
                "joyful",
            ),
            (
                form(Objective::Impact),
                3,
                1,
                format!(
                    "{OPENING}\t Speaker_0:\"Oh…\"###Based on the above historical utterances, next utterance is spoken by \
                 <2>, please predict the emotion states of <2> from <neutral, joyful>:"
                ),
                "neutral",
            ),
            (
                form(Objective::Speaker),
                1,
                12,
                format!("{expert} utterance <Speaker: Say \"cheese\"!> from <{nine}>:"),
                "Speaker_1",
            ),
            (
                plain,
                3,
                12,
                "Please select the emotional label of <it's <me>, ok?> from <neutral, joyful>:".into(),
                "neutral",
            ),
        ];
        for (form, turn, window, expected, answer) in cases {
            assert_eq!(form.render(&turns, turn, window), expected);
            let place = form.answer(&turns[turn]).unwrap();
            assert_eq!(form.answers()[place], answer, "{expected}");
        }
    }

    #[test]
    fn nine_speakers_are_offered_and_a_mix_offers_those_of_its_own_corpus() {
        let all = Form::of(Objective::Speaker, Template::InstructErc, &labels(), 0..9);
        assert_eq!((all.answers().len(), all.answers()[8].as_str()), (9, "Speaker_8"));
        assert_eq!(all.answer(&said(&[(9, "who?")])[0]), None);
        let second = Form::of(Objective::Speaker, Template::InstructErc, &labels(), 2..11);
        assert_eq!(second.answers()[0], "Speaker_2");
        assert_eq!(second.answer(&said(&[(10, "me")])[0]), Some(8));
    }

    #[test]
    fn the_window_counts_previous_utterances_and_shows_nothing_of_the_future() {
        let turns = said(&[(0, "one"), (1, "two"), (0, "three"), (1, "four")]);
        let shown = |target, window| {
            let prompt = Form::Main(labels()).render(&turns, target, window);
            ["one", "two", "three", "four"].map(|word| prompt.matches(word).count())
        };
        assert_eq!(shown(2, 0), [0, 0, 2, 0]);
        assert_eq!(shown(2, 1), [0, 1, 2, 0]);
        assert_eq!(shown(2, usize::MAX), [1, 1, 2, 0]);
    }
}
