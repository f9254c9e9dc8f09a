//! Sectors of global memory and wavefronts of shared memory that one warp instruction costs.

use super::lanes;

/// Distinct 32-byte sectors; every access lies within one, being at most 16 bytes and aligned.
pub(super) fn sectors(addresses: &[u64; 32], mask: u32) -> u64 {
    let mut found = [0_u64; 32];
    let mut count = 0;
    for lane in lanes(mask) {
        let sector = addresses[lane] / 32;
        if count == 0 || found[count - 1] != sector {
            found[count] = sector;
            count += 1;
        }
    }
    let found = &mut found[..count];
    if found.is_sorted() {
        return 1.max(count as u64);
    }
    found.sort_unstable();
    found.chunk_by(|a, b| a == b).count() as u64
}

/// Wavefronts beyond one for each group of lanes that shared memory serves at a time: 32 lanes of up to 4 bytes, 16 of
/// 8, 8 of 16. Within a group each of the 32 banks gives one 4-byte word a wavefront, to all lanes that want it.
pub(super) fn conflicts(addresses: &[u64; 32], mask: u32, bytes: usize) -> u64 {
    let group = match bytes {
        ..=4 => 32,
        5..=8 => 16,
        _ => 8,
    };
    (0..32 / group).map(|at| group_conflicts(addresses, mask & (u32::MAX >> (32 - group)) << (at * group), bytes)).sum()
}

fn group_conflicts(addresses: &[u64; 32], mask: u32, bytes: usize) -> u64 {
    let mut words = [0_u64; 32];
    let mut count = 0;
    for lane in lanes(mask) {
        for word in 0..bytes.div_ceil(4) as u64 {
            words[count] = addresses[lane] / 4 + word;
            count += 1;
        }
    }
    let words = &mut words[..count];
    // Neighbouring words, the usual case, meet no bank twice.
    if words.windows(2).all(|pair| pair[1] == pair[0] + 1 || pair[1] == pair[0]) {
        return 0;
    }
    words.sort_unstable();
    let mut banks = [0_u64; 32];
    for word in words.chunk_by(|a, b| a == b) {
        banks[(word[0] % 32) as usize] += 1;
    }
    banks.into_iter().max().unwrap_or(1).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_are_counted_once() {
        let of = |f: fn(u64) -> u64| sectors(&std::array::from_fn(|lane| f(lane as u64)), u32::MAX);
        assert_eq!(of(|lane| 4 * lane), 4);
        assert_eq!(of(|lane| 4 * (31 - lane)), 4);
        assert_eq!(of(|lane| 128 * lane), 32);
        assert_eq!(of(|lane| 64 * (lane % 2)), 2);
        assert_eq!(of(|_| 100), 1);
    }

    #[test]
    fn banks_conflict_on_different_words_only() {
        let of = |f: fn(u64) -> u64, bytes| conflicts(&std::array::from_fn(|lane| f(lane as u64)), u32::MAX, bytes);
        assert_eq!(of(|lane| 4 * lane, 4), 0);
        assert_eq!(of(|_| 64, 4), 0);
        assert_eq!(of(|lane| 8 * lane, 4), 1, "two words a bank");
        assert_eq!(of(|lane| 128 * lane, 4), 31, "a column of a 32-wide array");
        assert_eq!(of(|lane| 132 * lane, 4), 0, "the padded column");
        assert_eq!(of(|lane| 16 * lane, 16), 0);
        assert_eq!(of(|lane| 128 * lane, 16), 28, "four groups of eight rows in the same banks");
    }
}
