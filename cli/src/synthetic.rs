//! A corpus in MELD's layout that nobody wrote: rows from a seed, for measuring. Its shape is MELD's (dialogues of 1 to
//! 24 turns, about eight words a turn, commas and quotes here and there); its words and labels mean nothing.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// MELD's header.
pub const HEADER: &str =
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\r\n";

const EMOTIONS: [&str; 7] = ["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"];

const SPEAKERS: [&str; 9] = ["Ada", "Bo", "Carmen", "Dmitri", "Esra", "Femi", "Grete", "Hal", "Ada and Bo"];

const SYLLABLES: [&str; 24] = [
    "ba", "den", "cor", "li", "mar", "to", "sil", "ve", "pra", "nun", "ter", "ka", "mo", "ris", "el", "an", "du",
    "ish", "wen", "fa", "gro", "yu", "o", "chi",
];

/// Words a corpus draws from; a dialogue corpus of MELD's size uses a few thousand.
const WORDS: usize = 4000;

/// A source of dialogues.
pub struct Synthetic {
    random: ChaCha8Rng,
    words: Vec<String>,
    dialogues: u64,
    rows: u64,
}

impl Synthetic {
    /// The dialogues of a seed: always the same.
    pub fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let word = |_| {
            let syllables = random.random_range(1..=3);
            (0..syllables).map(|_| SYLLABLES[random.random_range(0..SYLLABLES.len())]).collect()
        };
        let words = (0..WORDS).map(word).collect();
        Self { random, words, dialogues: 0, rows: 0 }
    }

    /// Appends the rows of the next dialogue, of at most `most` turns; returns how many it has.
    pub fn dialogue(&mut self, most: u64, csv: &mut String) -> u64 {
        let turns = self.random.random_range(1..=24).min(most);
        let people = self.random.random_range(1..=5).min(SPEAKERS.len());
        let first = self.random.random_range(0..SPEAKERS.len());
        for turn in 0..turns {
            let speaker = SPEAKERS[(first + self.random.random_range(0..people)) % SPEAKERS.len()];
            let emotion = EMOTIONS[self.skewed(EMOTIONS.len())];
            self.rows += 1;
            *csv += &format!("{},", self.rows);
            self.utterance(csv);
            let (dialogue, season) = (self.dialogues, self.dialogues % 10 + 1);
            let start = format!("00:{:02}:{:02}", self.rows / 20 % 60, self.rows * 3 % 60);
            *csv += &format!(
                ",{speaker},{emotion},neutral,{dialogue},{turn},{season},{},\"{start},059\",\"{start},934\"\r\n",
                self.dialogues % 24 + 1
            );
        }
        self.dialogues += 1;
        turns
    }

    /// One to fifteen words; where they hold a comma or a quote, quoted.
    fn utterance(&mut self, csv: &mut String) {
        let words = self.random.random_range(1..=15);
        let (comma, quoted) = (self.random.random_range(0..20), self.random.random_range(0..60));
        let needs_quotes = comma + 1 < words || quoted < words;
        csv.push_str(if needs_quotes { "\"" } else { "" });
        for place in 0..words {
            let word = self.skewed(WORDS);
            let word = &self.words[word];
            csv.push_str(if place > 0 { " " } else { "" });
            match quoted == place {
                true => *csv += &format!("\"\"{word}\"\""),
                false => csv.push_str(word),
            }
            csv.push_str(if comma == place && place + 1 < words { "," } else { "" });
        }
        csv.push_str(if needs_quotes { ".\"" } else { "." });
    }

    /// A place below `places`, the first ones more often.
    fn skewed(&mut self, places: usize) -> usize {
        let uniform: f64 = self.random.random();
        (uniform * uniform * uniform * places as f64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_dialogues_and_no_more_turns_than_asked_for() {
        let text = |seed| {
            let (mut source, mut csv) = (Synthetic::new(seed), String::from(HEADER));
            let turns: Vec<u64> = (0..50).map(|_| source.dialogue(20, &mut csv)).collect();
            assert!(turns.iter().all(|turns| (1..=20).contains(turns)));
            assert_eq!(csv.lines().count() as u64, 1 + turns.iter().sum::<u64>());
            csv
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }
}
