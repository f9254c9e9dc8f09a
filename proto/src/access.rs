//! The access token: the secret that workers and commands show a coordinator with every call.
//!
//! It travels as `authorization: Bearer ...`, only over TLS or within one machine.

use std::{fmt, net::IpAddr, ops::RangeInclusive, str::FromStr};

use crate::ids::Digest;

/// The metadata key that carries the token.
pub const HEADER: &str = "authorization";
/// How many characters a token may have: below, it could be guessed; above, it is some other file.
pub const LENGTHS: RangeInclusive<usize> = 16..=512;

/// A secret of 16 to 512 visible ASCII characters. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(String);

/// Text that was expected to be an access token. It does not repeat the text, which may be a secret mistyped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}: expected 16 to 512 visible ASCII characters on the first line")]
pub struct NotAToken(String);

/// Why a call is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No token came with it.
    #[error(
        "this coordinator answers only who shows its access token: expected --token-file FILE, or INSULA_TOKEN_FILE"
    )]
    Missing,
    /// A token came, and it is another one.
    #[error("the access token shown is not this coordinator's: expected the one in its token_file")]
    Wrong,
}

impl AccessToken {
    /// The token in a token file: its first line, without the spaces around it.
    ///
    /// # Errors
    /// When that line is no token.
    pub fn of_file(text: &str) -> Result<Self, NotAToken> {
        text.lines().next().unwrap_or_default().trim().parse()
    }

    /// What [`HEADER`] carries.
    pub fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether a call with this value of [`HEADER`] may come in.
    ///
    /// # Errors
    /// When it may not.
    pub fn admits(&self, header: Option<&[u8]>) -> Result<(), Denied> {
        let shown = header.and_then(|value| value.split_at_checked("Bearer ".len())).ok_or(Denied::Missing)?;
        if !shown.0.eq_ignore_ascii_case(b"Bearer ") {
            return Err(Denied::Missing);
        }
        // Digests are compared, so that the time it takes tells nothing about the token that is right.
        if Digest::of(shown.1) == Digest::of(self.0.as_bytes()) { Ok(()) } else { Err(Denied::Wrong) }
    }
}

impl FromStr for AccessToken {
    type Err = NotAToken;
    fn from_str(text: &str) -> Result<Self, NotAToken> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(NotAToken(
                "the access token has a space or another character that is not visible ASCII".into(),
            ));
        }
        if !LENGTHS.contains(&text.len()) {
            return Err(NotAToken(format!("the access token has {} characters", text.len())));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(..)")
    }
}

/// Whether a host (a name or an address, IPv6 in brackets or not) is this machine itself, as far as its text tells.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_first_line_and_is_not_shown() {
        let token = AccessToken::of_file(" 0123456789abcdef \nsecond line\n").unwrap();
        assert_eq!(token.bearer(), "Bearer 0123456789abcdef");
        assert_eq!(format!("{token:?}"), "AccessToken(..)");
        for (text, problem) in [
            ("", "has 0 characters"),
            ("0123456789abcde", "has 15 characters"),
            (&"x".repeat(513), "has 513 characters"),
            ("0123456789 abcdef", "has a space"),
            ("0123456789abcdéf", "not visible ASCII"),
        ] {
            let said = AccessToken::of_file(text).unwrap_err().to_string();
            assert!(said.contains(problem) && said.contains("expected 16 to 512"), "{said}");
        }
    }

    #[test]
    fn only_the_right_token_is_admitted() {
        let token: AccessToken = "0123456789abcdef".parse().unwrap();
        assert_eq!(token.admits(Some(token.bearer().as_bytes())), Ok(()));
        assert_eq!(token.admits(Some(b"bearer 0123456789abcdef")), Ok(()));
        assert_eq!(token.admits(None), Err(Denied::Missing));
        assert_eq!(token.admits(Some(b"Basic 0123456789abcdef")), Err(Denied::Missing));
        assert_eq!(token.admits(Some(b"")), Err(Denied::Missing));
        for wrong in ["Bearer ", "Bearer 0123456789abcdeF", "Bearer 0123456789abcdef ", "Bearer 0123456789abcde"] {
            assert_eq!(token.admits(Some(wrong.as_bytes())), Err(Denied::Wrong), "{wrong}");
        }
    }

    #[test]
    fn loopback_is_told_by_name_and_by_address() {
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["0.0.0.0", "10.0.0.1", "[fe80::1]", "lab1", "localhost.example.org", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
