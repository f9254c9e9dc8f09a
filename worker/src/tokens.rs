//! A shard's prompts as token ids, in the form the fleet shares: the token cache's key and bytes.
//!
//! ```text
//! "insula tokens 1\n"  dialogues  ( turns  ( 1 + dropped  shared  fresh  fresh x id | 0 ) ... ) ...
//! ```
//! All numbers are LEB128. A prompt mostly begins as the one before it did, so it is written as how much of that it
//! shares and what is fresh; `0` stands for a turn whose prompt fits no context, which is told when it is asked for.
//! The labels' tokens are not here: they are the task's. What is read was written by another process, so it is believed
//! only where it fits the shard's dialogues, the vocabulary and the context.

use insula_proto::{
    VERSION,
    corpus::{Dialogue, Label, Utterance},
    ids::{Digest, Hasher},
};

use crate::prompt::{FittedPrompt, Prompter};

const MAGIC: &[u8] = b"insula tokens 1\n";

/// A shard's prompts, by dialogue and turn; `None`: even the target alone does not fit.
pub type Prompts = Vec<Vec<Option<FittedPrompt>>>;

/// Why bytes are not the tokens of a shard.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the cached tokens do not decode: {0}")]
pub struct TokensError(&'static str);

/// The digest of everything a shard's tokens depend on: equal keys, equal tokens.
///
/// The template stands in it by a prompt it renders, so that a changed template is another key though nobody thought of
/// it, and so that speakers numbered from elsewhere are; insula's version stands in it for what a library may change.
pub fn key(task: &Prompter<'_>, shard: &str, first_speaker: u32) -> Digest {
    let utterance = |text: &str| Utterance {
        id: "0".into(),
        speaker: first_speaker,
        speaker_name: "A".into(),
        text: text.into(),
        gold: Label(0),
    };
    let rendered = task.form.render(&[utterance("one"), utterance("two")], 1, 1);
    let (window, room) = (task.window, task.room);
    let sizes = format!("{window} {} {}", room.context, room.reserve);
    let mut hasher = Hasher::default();
    for part in [&MAGIC.escape_ascii().to_string(), VERSION, &rendered, shard, task.tokenizer.digest(), &sizes] {
        hasher.update(format!("{}:{part}\n", part.len()).as_bytes());
    }
    for label in task.form.answers() {
        hasher.update(format!("label {}:{label}\n", label.len()).as_bytes());
    }
    hasher.finish()
}

/// The bytes of some prompts.
pub fn encode(prompts: &Prompts) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let mut before: &[u32] = &[];
    put(&mut bytes, prompts.len());
    for dialogue in prompts {
        put(&mut bytes, dialogue.len());
        for prompt in dialogue {
            let Some(FittedPrompt { ids, dropped_utterances }) = prompt else {
                put(&mut bytes, 0);
                continue;
            };
            let shared = ids.iter().zip(before).take_while(|(a, b)| a == b).count();
            put(&mut bytes, dropped_utterances + 1);
            put(&mut bytes, shared);
            put(&mut bytes, ids.len() - shared);
            ids[shared..].iter().for_each(|&id| put(&mut bytes, id as usize));
            before = ids;
        }
    }
    bytes
}

/// The prompts in some bytes, which must be those of this task over these dialogues.
///
/// # Errors
/// When they are not what [`encode`] writes, or cannot be this task's.
pub fn decode(bytes: &[u8], task: &Prompter<'_>, dialogues: &[Dialogue]) -> Result<Prompts, TokensError> {
    let mut rest = bytes.strip_prefix(MAGIC).ok_or(TokensError("they do not begin as tokens do"))?;
    let mut before: Vec<u32> = Vec::new();
    if take(&mut rest)? != dialogues.len() {
        return Err(TokensError("they are of another number of dialogues"));
    }
    let mut prompts = Vec::with_capacity(dialogues.len());
    for dialogue in dialogues {
        if take(&mut rest)? != dialogue.utterances.len() {
            return Err(TokensError("a dialogue has another number of turns"));
        }
        let mut of_dialogue = Vec::with_capacity(dialogue.utterances.len());
        for turn in 0..dialogue.utterances.len() {
            let prompt = take_prompt(&mut rest, &before, task, turn)?;
            if let Some(prompt) = &prompt {
                before.clone_from(&prompt.ids);
            }
            of_dialogue.push(prompt);
        }
        prompts.push(of_dialogue);
    }
    if rest.is_empty() { Ok(prompts) } else { Err(TokensError("something follows their end")) }
}

fn take_prompt(
    rest: &mut &[u8],
    before: &[u32],
    task: &Prompter<'_>,
    turn: usize,
) -> Result<Option<FittedPrompt>, TokensError> {
    let Some(dropped_utterances) = take(rest)?.checked_sub(1) else { return Ok(None) };
    if dropped_utterances > turn.min(task.window) {
        return Err(TokensError("a prompt drops more than it had"));
    }
    let (shared, fresh) = (take(rest)?, take(rest)?);
    let shared = before.get(..shared).ok_or(TokensError("a prompt shares more than there was"))?;
    let length = shared.len().checked_add(fresh).filter(|&length| length > 0 && task.room.holds(length));
    let mut ids = Vec::with_capacity(length.ok_or(TokensError("a prompt is empty or does not fit the context"))?);
    ids.extend_from_slice(shared);
    for _ in 0..fresh {
        let id = take(rest)?;
        let known = u32::try_from(id).ok().filter(|_| id < task.tokenizer.vocab());
        ids.push(known.ok_or(TokensError("a token is not in the vocabulary"))?);
    }
    Ok(Some(FittedPrompt { ids, dropped_utterances }))
}

/// Appends a number: seven bits a byte, the lowest first, the top bit where more follow.
fn put(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(rest: &mut &[u8]) -> Result<usize, TokensError> {
    let mut number: u64 = 0;
    for place in 0..5 {
        let (&byte, after) = rest.split_first().ok_or(TokensError("they end too early"))?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return usize::try_from(number).map_err(|_| TokensError("a number is too large"));
        }
    }
    Err(TokensError("a number is too large"))
}

#[cfg(test)]
mod tests {
    use insula_proto::corpus::LabelSet;
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;
    use crate::tokenize::{GgufVocabulary, TokenKind, Tokenizer};

    /// A token a byte, and the end.
    fn tokenizer() -> Tokenizer {
        let mut tokens: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
        tokens.sort();
        let (mut kinds, eos) = (vec![TokenKind::Normal; tokens.len()], tokens.len() as u32);
        tokens.push("<end>".into());
        kinds.push(TokenKind::Control);
        Tokenizer::from_gguf(GgufVocabulary { tokens, kinds, merges: vec![], pre: "gpt-2".into(), eos }).unwrap()
    }

    fn labels() -> LabelSet {
        LabelSet::new(vec!["sad".into(), "joyful".into()]).unwrap()
    }

    fn dialogues(texts: &[Vec<String>]) -> Vec<Dialogue> {
        let utterance = |(place, text): (usize, &String)| Utterance {
            id: place.to_string(),
            speaker: 0,
            speaker_name: "A".into(),
            text: text.clone(),
            gold: Label(0),
        };
        let dialogue = |(n, texts): (usize, &Vec<String>)| Dialogue {
            id: n.to_string(),
            utterances: texts.iter().enumerate().map(utterance).collect(),
        };
        texts.iter().enumerate().map(dialogue).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_encoded_decodes_to_itself(
            texts in prop::collection::vec(prop::collection::vec(".{0,60}", 1..6), 1..4)
        ) {
            // Room for the instruction and a short text: some prompts drop utterances, some do not fit at all.
            let (tokenizer, labels, dialogues) = (tokenizer(), labels(), dialogues(&texts));
            let task = Prompter::main(&tokenizer, &labels, 2, 320, 8).unwrap();
            let prompts = task.prompts(&dialogues).unwrap();
            prop_assert_eq!(decode(&encode(&prompts), &task, &dialogues), Ok(prompts));
        }

        #[test]
        fn bytes_that_were_tampered_with_are_refused_or_are_prompts_of_the_task(
            place in 0usize..4000, byte in any::<u8>(), cut in 0usize..4000
        ) {
            let texts = vec![vec!["Hi.".to_owned(), "Oh no!".into(), "What?".into()], vec!["x".repeat(500)]];
            let (tokenizer, labels, dialogues) = (tokenizer(), labels(), dialogues(&texts));
            let task = Prompter::main(&tokenizer, &labels, 2, 420, 8).unwrap();
            let mut bytes = encode(&task.prompts(&dialogues).unwrap());
            let (place, cut) = (place % bytes.len(), cut % bytes.len());
            prop_assert!(decode(&bytes[..cut], &task, &dialogues).is_err());
            bytes[place] = byte;
            let vocabulary = tokenizer.vocab() as u32;
            for prompt in decode(&bytes, &task, &dialogues).unwrap_or_default().into_iter().flatten().flatten() {
                prop_assert!(!prompt.ids.is_empty() && prompt.ids.len() + 8 <= 420);
                prop_assert!(prompt.ids.iter().all(|&id| id < vocabulary));
            }
        }
    }

    #[test]
    fn a_prompt_that_fits_no_context_is_cached_as_such_and_explained_when_asked_for() {
        let (tokenizer, labels) = (tokenizer(), labels());
        let dialogues = dialogues(&[vec!["short".into(), "x".repeat(500)]]);
        let task = Prompter::main(&tokenizer, &labels, 2, 420, 8).unwrap();
        let mut prompts = decode(&encode(&task.prompts(&dialogues).unwrap()), &task, &dialogues).unwrap();
        let mut completed = |turn: usize| task.completed(&dialogues[0], turn, prompts[0][turn].take());
        assert_eq!(completed(0), task.example(&dialogues[0], 0));
        assert!(completed(1).unwrap_err().to_string().contains("its prompt alone has"));
    }

    #[test]
    fn whatever_the_tokens_depend_on_makes_another_key() {
        let (tokenizer, few) = (tokenizer(), labels());
        let more = LabelSet::new(vec!["sad".into(), "joyful".into(), "mad".into()]).unwrap();
        let of = |labels, window, context, new_tokens, shard| {
            key(&Prompter::main(&tokenizer, labels, window, context, new_tokens).unwrap(), shard, 0)
        };
        let one = of(&few, 12, 512, 8, "shard 1");
        assert_eq!(one, of(&few, 12, 512, 8, "shard 1"));
        let others = [
            of(&more, 12, 512, 8, "shard 1"),
            of(&few, 11, 512, 8, "shard 1"),
            of(&few, 12, 511, 8, "shard 1"),
            of(&few, 12, 512, 9, "shard 1"),
            of(&few, 12, 512, 8, "shard 2"),
        ];
        assert!(others.iter().all(|other| *other != one));
    }
}
