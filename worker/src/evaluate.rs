//! Evaluating whole dialogues: prompts through the engine, answers read, tallies counted, predictions written down.

use insula_proto::{
    corpus::{Dialogue, Label, LabelSet, Split},
    job::{Arm, EvaluateMode},
    tally::Tally,
};
use serde::Serialize;

use crate::{
    adapter::Adapter,
    answer,
    engine::{Compute, EngineError, EvalMode, Scored},
    forest::count_tree_tokens,
    prompt::Example,
    tokenize::Tokenizer,
    trie::LabelTrie,
};

/// Answers decided by less than this, in nat, are counted: another device's rounding may turn them.
const CLOSE: f32 = 0.05;

/// What an evaluation counts; parts add.
#[derive(Debug, Clone, PartialEq)]
pub struct Counts {
    /// An unreadable answer is wrong, and counted.
    pub strict: Tally,
    /// An unreadable answer is repaired as the paper does.
    pub paper: Tally,
    /// Answers decided by less than 0.05 nat.
    pub close_margins: u64,
    /// Utterances that prompts had to leave out.
    pub dropped_utterances: u64,
    /// Tokens of the prompts' forests.
    pub tree_tokens: u64,
    /// Answers that are the label of the prompt's first demonstration.
    pub copied: u64,
    /// Samples answered.
    pub samples: u64,
}

impl Counts {
    /// Nothing counted yet.
    pub fn new(labels: usize) -> Self {
        let (strict, paper) = (Tally::new(labels), Tally::new(labels));
        Self { strict, paper, close_margins: 0, dropped_utterances: 0, tree_tokens: 0, copied: 0, samples: 0 }
    }
}

/// One line of predictions.jsonl.
#[derive(Debug, Serialize)]
struct Prediction<'a> {
    arm: Arm,
    corpus: &'a str,
    split: Split,
    id: String,
    gold: &'a str,
    /// The text of the answer.
    answer: &'a str,
    /// The label it reads as; `null` where it is unreadable.
    label: Option<&'a str>,
    /// The label the paper's repair reads.
    paper_label: &'a str,
    /// Least distance, in nat, between what was chosen and the runner-up; `null` where there was none or nobody said.
    margin: Option<f32>,
    /// Summed log-probability of each label and the end, nat, in the label set's order; empty where nobody said.
    logprob: Vec<f32>,
}

/// What every prediction of one evaluation shares.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// The report's row.
    pub arm: Arm,
    /// The corpus's name.
    pub corpus: &'a str,
    /// The split.
    pub split: Split,
    /// The corpus's labels.
    pub labels: &'a LabelSet,
    /// How an answer is taken.
    pub mode: EvaluateMode,
    /// Tokens decoded at most.
    pub max_new_tokens: usize,
}

/// The dialogues of one forest: as many neighbours as fit the token budget, at least one.
pub fn next_forest(examples: &[Vec<Example>], budget: usize) -> usize {
    let mut tokens = 0;
    let fits = |dialogue: &&Vec<Example>| {
        let prompts: Vec<&[u32]> = dialogue.iter().map(|e| e.prompt_ids.as_slice()).collect();
        tokens += count_tree_tokens(&prompts);
        tokens <= budget as u64
    };
    examples.iter().take_while(fits).count().max(1).min(examples.len())
}

/// Answers all prompts of some dialogues in one forest, adds to `counts`, and appends a line each to `lines`. Gives what
/// each answer reads as, in order; `None` where it is unreadable.
///
/// # Errors
/// When the engine fails.
#[expect(clippy::too_many_arguments, reason = "the operands of one evaluation; a struct would only rename them")]
pub fn forest(
    engine: &mut dyn Compute,
    tokenizer: &Tokenizer,
    adapter: Option<&Adapter>,
    trie: &LabelTrie,
    setting: &Setting<'_>,
    dialogues: &[(&Dialogue, &[Example])],
    counts: &mut Counts,
    lines: &mut Vec<u8>,
) -> Result<Vec<Option<Label>>, EngineError> {
    let all = || dialogues.iter().flat_map(|(dialogue, examples)| examples.iter().map(move |e| (*dialogue, e)));
    let prompts: Vec<Vec<u32>> = all().map(|(_, example)| example.prompt_ids.clone()).collect();
    let mode = match setting.mode {
        EvaluateMode::Greedy => EvalMode::Greedy,
        EvaluateMode::Score => EvalMode::Score,
    };
    let scored = engine.evaluate(adapter, &prompts, trie, mode, setting.max_new_tokens)?;
    counts.tree_tokens += count_tree_tokens(&prompts);
    let mut read = Vec::with_capacity(scored.len());
    for ((dialogue, example), scored) in all().zip(&scored) {
        let text = answer_text(tokenizer, setting, scored);
        read.push(count(setting, dialogue, example, scored, &text, counts, lines));
    }
    Ok(read)
}

/// The answer as text.
fn answer_text(tokenizer: &Tokenizer, setting: &Setting<'_>, scored: &Scored) -> String {
    match setting.mode {
        EvaluateMode::Greedy => tokenizer.decode(&scored.greedy),
        EvaluateMode::Score => setting.labels.name(likeliest(&scored.label_logprob)).to_owned(),
    }
}

/// The label of greatest summed log-probability; the first among equals.
pub(crate) fn likeliest(logprob: &[f32]) -> Label {
    let best = (0..logprob.len()).fold(0, |best, i| if logprob[i] > logprob[best] { i } else { best });
    Label(u16::try_from(best).expect("a label set has at most 1000 labels"))
}

fn count(
    setting: &Setting<'_>,
    dialogue: &Dialogue,
    example: &Example,
    scored: &Scored,
    text: &str,
    counts: &mut Counts,
    lines: &mut Vec<u8>,
) -> Option<Label> {
    counts.close_margins += u64::from(scored.margin < CLOSE);
    counts.dropped_utterances += example.dropped_utterances as u64;
    write_down(setting, dialogue, example.turn, text, Some(scored), counts, lines)
}

/// Takes in the answer to a dialogue's turn: counts it, and appends its line. `scored`: what is known beyond the text,
/// which of a model that is asked elsewhere is nothing. Gives what the text reads as.
pub fn write_down(
    setting: &Setting<'_>,
    dialogue: &Dialogue,
    turn: usize,
    text: &str,
    scored: Option<&Scored>,
    counts: &mut Counts,
    lines: &mut Vec<u8>,
) -> Option<Label> {
    let utterance = &dialogue.utterances[turn];
    let (strict, paper) = (answer::strict(text, setting.labels).label(), answer::paper(text, setting.labels));
    counts.strict.count(utterance.gold, strict);
    counts.paper.count(utterance.gold, Some(paper));
    counts.samples += 1;
    let prediction = Prediction {
        arm: setting.arm,
        corpus: setting.corpus,
        split: setting.split,
        id: format!("{}/{}", dialogue.id, utterance.id),
        gold: setting.labels.name(utterance.gold),
        answer: text,
        label: strict.map(|label| setting.labels.name(label)),
        paper_label: setting.labels.name(paper),
        margin: scored.map(|scored| scored.margin),
        logprob: scored.map(|scored| scored.label_logprob.clone()).unwrap_or_default(),
    };
    serde_json::to_writer(&mut *lines, &prediction).expect("a prediction is plain data, written to memory");
    lines.push(b'\n');
    strict
}
