//! MELD: scenes of Friends with seven emotions. Its `Utterance_ID`s have gaps and train's dialogue 60 is missing.

/// The papers' order in prompts.
pub(super) const LABELS: [&str; 7] = ["neutral", "surprise", "fear", "sad", "joyful", "disgust", "angry"];

/// The file's nouns become the papers' adjectives.
pub(super) const RENAME: [(&str, &str); 3] = [("joy", "joyful"), ("sadness", "sad"), ("anger", "angry")];

/// What makes a dialogue another.
pub(super) const KEY: [&str; 1] = ["Dialogue_ID"];
