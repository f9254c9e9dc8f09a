//! Text of files that were passed around: Windows' bytes where UTF-8 belongs.

use std::borrow::Cow;

/// What Windows' code page 1252 has at 0x80 to 0x9f; where it has nothing, the control character stays.
const CP1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘', '’',
    '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// Bytes as text: UTF-8, or code page 1252 where they are not.
pub(super) fn decoded(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => mended(text).into_owned(),
        Err(_) => bytes.iter().map(|&byte| windows(char::from(byte))).collect(),
    }
}

/// Text whose control characters 0x80 to 0x9f are again what somebody typed. Nobody types those characters: they come
/// from reading Windows' bytes as Latin-1, or from reading UTF-8 as Latin-1 where that makes sense of the whole.
pub(super) fn mended(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_control) {
        return Cow::Borrowed(text);
    }
    let latin1: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    match latin1.and_then(|bytes| String::from_utf8(bytes).ok()).filter(|text| !text.chars().any(is_control)) {
        Some(utf8) => Cow::Owned(utf8),
        None => Cow::Owned(text.chars().map(windows).collect()),
    }
}

fn is_control(character: char) -> bool {
    ('\u{80}'..='\u{9f}').contains(&character)
}

fn windows(character: char) -> char {
    match u32::from(character) {
        code @ 0x80..=0x9f => CP1252[code as usize - 0x80],
        _ => character,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_bytes_become_what_was_typed() {
        assert_eq!(decoded(b"It\x92s \x93fine\x94\x85"), "It’s “fine”…");
        assert_eq!(decoded("It’s né".as_bytes()), "It’s né");
        assert_eq!(mended("It\u{92}s"), "It’s");
        assert_eq!(mended("Itâ\u{80}\u{99}s"), "It’s", "UTF-8 that was read as Latin-1");
        assert_eq!(mended("né\u{92}"), "né’");
        assert!(matches!(mended("né"), Cow::Borrowed("né")));
    }
}
