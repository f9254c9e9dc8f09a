//! A part of something countable, written as people write it: `1/16`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A part of the training samples, written `1/16` or `1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ShareText", into = "String")]
pub struct Share {
    numerator: u32,
    denominator: u32,
}

/// Text that was expected to be a share.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not a share: expected a fraction over 0 and up to 1, such as 1/16 or 1")]
pub struct NotAShare(String);

impl Default for Share {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl Share {
    /// All of it.
    pub const WHOLE: Share = Share { numerator: 1, denominator: 1 };

    /// `floor(n * share)`.
    pub fn of(self, n: u64) -> u64 {
        let product = u128::from(n) * u128::from(self.numerator) / u128::from(self.denominator);
        u64::try_from(product).expect("a share is at most 1")
    }
}

impl FromStr for Share {
    type Err = NotAShare;
    fn from_str(text: &str) -> Result<Self, NotAShare> {
        let wrong = || NotAShare(text.to_owned());
        let (numerator, denominator) = text.split_once('/').unwrap_or((text, "1"));
        let parse = |part: &str| part.trim().parse::<u32>().map_err(|_| wrong());
        let share = Share { numerator: parse(numerator)?, denominator: parse(denominator)? };
        if share.numerator == 0 || share.numerator > share.denominator { Err(wrong()) } else { Ok(share) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.denominator {
            1 => write!(f, "{}", self.numerator),
            d => write!(f, "{}/{d}", self.numerator),
        }
    }
}

impl From<Share> for String {
    fn from(share: Share) -> Self {
        share.to_string()
    }
}

/// A share in a file: text, or the number 1.
#[derive(Deserialize)]
#[serde(untagged)]
enum ShareText {
    Text(String),
    Number(f64),
}

impl TryFrom<ShareText> for Share {
    type Error = NotAShare;
    fn try_from(text: ShareText) -> Result<Self, NotAShare> {
        match text {
            ShareText::Text(text) => text.parse(),
            ShareText::Number(number) => number.to_string().parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_floors_and_refuses_what_is_no_part() {
        let share = |text: &str| text.parse::<Share>();
        assert_eq!(share("1/16").unwrap().of(9989), 624);
        assert_eq!(share("1").unwrap().of(9989), 9989);
        assert_eq!(share("3/4").unwrap().to_string(), "3/4");
        for wrong in ["0", "2", "5/4", "1/0", "a", "", "-1/2", "0.5"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
