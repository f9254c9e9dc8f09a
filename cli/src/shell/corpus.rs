//! `insula corpus`: what is in a corpus, and what the model would see of it.

use std::{collections::BTreeMap, io::Write as _};

use insula_coordinator::{
    corpus::{
        Corpus,
        describe::{self, Description, Prompts, Spread},
        preflight::{Finding, preflight},
    },
    shell::corpora::read_splits,
};
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
    args::{CorpusArgs, CorpusCommand, DescribeArgs, RenderArgs},
    described,
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
    let spec = CorpusSpec { layout: args.layout.clone(), path, ..CorpusSpec::default() };
    let splits = match &args.split {
        Some(split) => vec![split.parse::<Split>().map_err(|e| Failure::Input(e.to_string()))?],
        None => Split::ALL.to_vec(),
    };
    read_splits(&spec, &splits).map_err(|e| Failure::Input(e.to_string()))
}

fn describe(args: &DescribeArgs) -> Result<(), Failure> {
    let corpus = read(&args.corpus)?;
    let base = args.base.as_deref().map(open_tokenizer).transpose()?;
    let mut description = describe::describe(&corpus);
    if let Some(base) = &base {
        for (split, dialogues) in &corpus.splits {
            let prompts = prompts(&corpus, dialogues, args.corpus.window, base)?;
            description.splits.entry(*split).and_modify(|described| described.prompts = Some(prompts));
        }
    }
    let findings = preflight(&description, true);
    if args.corpus.json {
        let json = json(args, &description, &findings);
        say!("{}", json.map_err(|e| Failure::operation("print the description", e))?);
    } else {
        out::print(format_args!("{}", described::text(&description, args.corpus.window, &findings)));
    }
    Ok(())
}

/// All of the description, or the one split that was asked for.
fn json(args: &DescribeArgs, description: &Description, findings: &[Finding]) -> serde_json::Result<serde_json::Value> {
    if let (Some(_), Some((_, one))) = (&args.corpus.split, description.splits.first_key_value()) {
        return serde_json::to_value(one);
    }
    let mut json = serde_json::to_value(description)?;
    json["window"] = args.corpus.window.into();
    json["findings"] = serde_json::to_value(findings)?;
    Ok(json)
}

/// A base's tokenizer and dimensions.
pub fn open_tokenizer(source: &str) -> Result<(Tokenizer, ModelConfig), Failure> {
    let resolved = resolve(source, None)?;
    let base = Base::open(&resolved.path).map_err(|e| Failure::Input(e.to_string()))?;
    let tokenizer = base.tokenizer().map_err(|e| Failure::Input(e.to_string()))?;
    Ok((tokenizer, base.config.clone()))
}

/// What a base sees of a split's dialogues.
fn prompts(
    corpus: &Corpus,
    dialogues: &[Dialogue],
    window: u32,
    (tokenizer, config): &(Tokenizer, ModelConfig),
) -> Result<Prompts, Failure> {
    let new_tokens = JobSpec::default().evaluate.max_new_tokens as usize;
    let task = Prompter::main(tokenizer, &corpus.labels, window as usize, config.context, new_tokens);
    let examples = task.and_then(|task| task.all_examples(dialogues)).map_err(|e| Failure::Input(e.to_string()))?;
    let (mut tokens, mut tree_tokens, mut truncated_prompts, mut dropped_utterances) = (0, 0, 0, 0);
    let mut lengths = BTreeMap::new();
    for dialogue in &examples {
        let sequences: Vec<Vec<u32>> =
            dialogue.iter().map(|e| [e.prompt_ids.as_slice(), &e.target_ids].concat()).collect();
        tokens += sequences.iter().map(Vec::len).sum::<usize>() as u64;
        tree_tokens += count_tree_tokens(&sequences);
        for example in dialogue {
            *lengths.entry(example.prompt_ids.len() as u64).or_default() += 1;
            truncated_prompts += u64::from(example.dropped_utterances > 0);
            dropped_utterances += example.dropped_utterances as u64;
        }
    }
    let prompt_tokens = Spread::of(&lengths);
    let longest_prompt = prompt_tokens.max;
    Ok(Prompts { tokens, tree_tokens, longest_prompt, prompt_tokens, truncated_prompts, dropped_utterances })
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
