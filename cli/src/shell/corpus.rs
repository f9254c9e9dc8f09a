//! `insula corpus`: what is in a corpus, and what the model would see of it.

use std::{collections::BTreeMap, io::Write as _};

use insula_coordinator::{corpus::Corpus, shell::corpora::read_splits};
use insula_proto::{
    corpus::{Dialogue, Split},
    job::{CorpusSpec, JobSpec},
};
use insula_worker::{
    base::{Base, ModelConfig},
    forest::count_tree_tokens,
    prompt::{Form, Prompter},
    tokenize::Tokenizer,
};
use serde::Serialize;

use super::{
    model::resolve,
    out::{self, say},
};
use crate::{
    args::{CorpusArgs, CorpusCommand, DescribeArgs, RenderArgs, Task},
    failure::Failure,
};

/// Prompts shown to a reader who did not say how many.
const SHOWN: usize = 3;

/// `insula corpus`
pub fn run(command: CorpusCommand) -> Result<(), Failure> {
    match command {
        CorpusCommand::Describe(args) => describe(&args),
        CorpusCommand::Render(args) => render(&args),
    }
}

/// Reads the splits that were asked for, or all three.
fn read(args: &CorpusArgs) -> Result<Corpus, Failure> {
    let path = args.path.display().to_string();
    let spec = CorpusSpec { layout: args.layout.clone(), path, ..JobSpec::default().corpus };
    let splits = match &args.split {
        Some(split) => vec![split.parse::<Split>().map_err(|e| Failure::Input(e.to_string()))?],
        None => Split::ALL.to_vec(),
    };
    read_splits(&spec, &splits).map_err(|e| Failure::Input(e.to_string()))
}

/// What one split holds.
#[derive(Debug, Serialize)]
struct Description {
    dialogues: usize,
    samples: usize,
    /// Of the separate sequences: prompt, label and end, summed.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<usize>,
    /// Distinct tokens when each dialogue is one tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    tree_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    longest_prompt: Option<usize>,
    /// Utterances that had to be left out of prompts longer than the base's context.
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped_utterances: Option<usize>,
    labels: serde_json::Map<String, serde_json::Value>,
}

fn describe(args: &DescribeArgs) -> Result<(), Failure> {
    let corpus = read(&args.corpus)?;
    let base = args.base.as_deref().map(open_tokenizer).transpose()?;
    let mut described = BTreeMap::new();
    for (split, dialogues) in &corpus.splits {
        described.insert(*split, description(&corpus, dialogues, args.corpus.window, base.as_ref())?);
    }
    if !args.corpus.json {
        out::print(format_args!("{}", described_text(&corpus.name, args.corpus.window, &described)));
        return Ok(());
    }
    let json = match (&args.corpus.split, described.first_key_value()) {
        (Some(_), Some((_, one))) => serde_json::to_value(one),
        _ => serde_json::to_value(&described),
    };
    say!("{}", json.map_err(|e| Failure::operation("print the description", e))?);
    Ok(())
}

/// A base's tokenizer and dimensions.
pub fn open_tokenizer(source: &str) -> Result<(Tokenizer, ModelConfig), Failure> {
    let resolved = resolve(source, None)?;
    let base = Base::open(&resolved.path).map_err(|e| Failure::Input(e.to_string()))?;
    let tokenizer = base.tokenizer().map_err(|e| Failure::Input(e.to_string()))?;
    Ok((tokenizer, base.config.clone()))
}

fn description(
    corpus: &Corpus,
    dialogues: &[Dialogue],
    window: u32,
    base: Option<&(Tokenizer, ModelConfig)>,
) -> Result<Description, Failure> {
    let mut counts = vec![0u64; corpus.labels.len()];
    for utterance in dialogues.iter().flat_map(|d| &d.utterances) {
        counts[utterance.gold.index()] += 1;
    }
    let labels = corpus.labels.names().iter().cloned().zip(counts.into_iter().map(Into::into)).collect();
    let samples = dialogues.iter().map(|d| d.utterances.len()).sum();
    let mut description = Description {
        dialogues: dialogues.len(),
        samples,
        tokens: None,
        tree_tokens: None,
        longest_prompt: None,
        dropped_utterances: None,
        labels,
    };
    if let Some((tokenizer, config)) = base {
        let new_tokens = JobSpec::default().evaluate.max_new_tokens as usize;
        let task = Prompter::main(tokenizer, &corpus.labels, window as usize, config.context, new_tokens);
        let examples = task.and_then(|task| task.all_examples(dialogues)).map_err(|e| Failure::Input(e.to_string()))?;
        let (mut tokens, mut tree_tokens, mut longest, mut dropped) = (0, 0, 0, 0);
        for dialogue in &examples {
            let sequences: Vec<Vec<u32>> =
                dialogue.iter().map(|e| [e.prompt_ids.as_slice(), &e.target_ids].concat()).collect();
            tokens += sequences.iter().map(Vec::len).sum::<usize>();
            tree_tokens += count_tree_tokens(&sequences);
            longest = dialogue.iter().map(|e| e.prompt_ids.len()).fold(longest, usize::max);
            dropped += dialogue.iter().map(|e| e.dropped_utterances).sum::<usize>();
        }
        description.tokens = Some(tokens);
        description.tree_tokens = Some(tree_tokens);
        description.longest_prompt = Some(longest);
        description.dropped_utterances = Some(dropped);
    }
    Ok(description)
}

fn described_text(name: &str, window: u32, described: &BTreeMap<Split, Description>) -> String {
    let mut text = format!("{name}, window {window}\n");
    for (split, d) in described {
        text += &format!("\n{split}: {} dialogues, {} samples\n", d.dialogues, d.samples);
        if let (Some(tokens), Some(tree), Some(longest)) = (d.tokens, d.tree_tokens, d.longest_prompt) {
            let saved = tokens as f64 / tree.max(1) as f64;
            text +=
                &format!("  {tokens} tokens, {tree} as token trees ({saved:.2}x fewer), longest prompt {longest}\n");
        }
        if let Some(dropped) = d.dropped_utterances.filter(|&n| n > 0) {
            text += &format!("  {dropped} utterances left out of prompts longer than the base's context\n");
        }
        for (label, count) in &d.labels {
            let share = 100.0 * count.as_f64().unwrap_or(0.0) / d.samples.max(1) as f64;
            text += &format!("  {label:<12} {count:>6}  {share:5.1} %\n");
        }
    }
    text
}

/// One rendered prompt.
#[derive(Debug, Serialize)]
struct Rendered {
    id: String,
    prompt: String,
    target: String,
}

fn render(args: &RenderArgs) -> Result<(), Failure> {
    let corpus = read(&args.corpus)?;
    let all = corpus.splits.values().flatten().flat_map(|d| &d.utterances);
    let speakers = all.map(|u| u.speaker + 1).max().unwrap_or(0);
    let (objective, template) = args.task.asked();
    let form = Form::of(objective, template, &corpus.labels, 0..speakers);
    let answers = form.answers();
    let most = args.n.unwrap_or(if args.corpus.json { usize::MAX } else { SHOWN });
    let dialogues = corpus.splits.values().flatten();
    let turns = dialogues.flat_map(|d| (0..d.utterances.len()).map(move |turn| (d, turn)));
    for (dialogue, turn) in turns.take(most) {
        let utterance = &dialogue.utterances[turn];
        let rendered = Rendered {
            id: format!("{}/{}", dialogue.id, utterance.id),
            prompt: form.render(&dialogue.utterances, turn, args.corpus.window as usize),
            target: form.answer(utterance).map(|place| answers[place].clone()).unwrap_or_default(),
        };
        if show(&rendered, args.corpus.json).is_err() {
            break; // the reader of the pipe has gone
        }
    }
    Ok(())
}

fn show(rendered: &Rendered, json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, rendered)?;
        return writeln!(out);
    }
    writeln!(out, "{}\n{}\n-> {}\n", rendered.id, rendered.prompt, rendered.target)
}
