//! What a base is called when two machines must mean the same one: `sha256:<hex>`.
//!
//! A GGUF file's digest is that of its bytes. A folder's is that of the listing that `sha256sum` prints for
//! `config.json`, `tokenizer.json` (where there is one) and the weight files, sorted by name, so that it can be checked
//! by hand. Of a sentence encoder's folder its settings count too, and `vocab.txt` where it stands for `tokenizer.json`:
//! see [`counts`].

use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Lowercase hexadecimal SHA-256 of `bytes`.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).as_slice())
}

/// Lowercase hexadecimal of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digest of a base that is one file.
pub(crate) fn of_file(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256_hex(bytes))
}

/// Whether a folder's file, by its path there, changes what its model computes; `names` are all that the folder has.
pub(crate) fn counts(name: &str, names: &[&str]) -> bool {
    let has = |wanted: &str| names.contains(&wanted);
    match name {
        "config.json" | "tokenizer.json" => true,
        "modules.json" | "sentence_bert_config.json" | "1_Pooling/config.json" => true,
        "vocab.txt" | "tokenizer_config.json" => has("vocab.txt") && !has("tokenizer.json"),
        weights => weights.ends_with(".safetensors"),
    }
}

/// The digest of a base that is several files, given by name and hexadecimal SHA-256.
pub(crate) fn of_hashes<'a>(hashes: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut lines: Vec<(&str, &str)> = hashes.into_iter().collect();
    lines.sort_unstable();
    let listing: String = lines.into_iter().map(|(name, hash)| format!("{hash}  {name}\n")).collect();
    format!("sha256:{}", sha256_hex(listing.as_bytes()))
}

/// The digest of a base that is several named files.
pub(crate) fn of_files(files: &[(&str, &[u8])]) -> String {
    let hashes: Vec<(&str, String)> = files.par_iter().map(|(name, bytes)| (*name, sha256_hex(bytes))).collect();
    of_hashes(hashes.iter().map(|(name, hash)| (*name, hash.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folders_digest_is_that_of_sha256sums_listing_in_any_order() {
        // printf 'ab' > a; printf 'c' > b; sha256sum a b | sha256sum
        let listing = "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603  a\n\
                       2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6  b\n";
        let expected = format!("sha256:{}", sha256_hex(listing.as_bytes()));
        assert_eq!(of_files(&[("a", b"ab"), ("b", b"c")]), expected);
        assert_eq!(of_files(&[("b", b"c"), ("a", b"ab")]), expected);
    }

    #[test]
    fn a_vocabulary_counts_only_where_it_stands_for_the_tokenizer() {
        let llama = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"];
        let counted = |names: &[&'static str]| names.iter().copied().filter(|name| counts(name, names)).count();
        assert_eq!(counted(&llama), 3);
        assert_eq!(counted(&["config.json", "model.safetensors", "tokenizer_config.json"]), 2);
        assert_eq!(counted(&["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]), 4);
        assert_eq!(counted(&["config.json", "1_Pooling/config.json", "modules.json", "README.md"]), 3);
    }
}
