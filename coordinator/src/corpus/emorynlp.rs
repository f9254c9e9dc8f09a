//! EmoryNLP: scenes of Friends with seven emotions of the Feeling Wheel. A speaker is a Python list literal, kept as the
//! name, so that people who speak together are one speaker.

/// The papers' order in prompts.
pub(super) const LABELS: [&str; 7] = ["Joyful", "Mad", "Peaceful", "Neutral", "Sad", "Powerful", "Scared"];

/// What makes a dialogue another.
pub(super) const KEY: [&str; 3] = ["Season", "Episode", "Scene_ID"];
