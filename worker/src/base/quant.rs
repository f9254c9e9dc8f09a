//! Number formats of stored tensors, and their meaning as float32.
//!
//! The block formats are ggml's: a run of 32 or 256 elements shares one or two half-precision factors, and each
//! element is a few bits. The arithmetic follows ggml's reference (`dequantize_row_*`) operation by operation, so the
//! float32 values are the same bits.

use half::{bf16, f16};

/// How the elements of a stored tensor are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    F32,
    F16,
    BF16,
    /// 32 elements: f16 d; 4-bit q. `d * (q - 8)`.
    Q4_0,
    /// 32 elements: f16 d, m; 4-bit q. `d * q + m`.
    Q4_1,
    /// 32 elements: f16 d; 5-bit q. `d * (q - 16)`.
    Q5_0,
    /// 32 elements: f16 d, m; 5-bit q. `d * q + m`.
    Q5_1,
    /// 32 elements: f16 d; 8-bit signed q. `d * q`.
    Q8_0,
    /// 256 elements: f16 d, dmin; 8 six-bit scales and minima; 4-bit q. `(d * scale) * q - dmin * min`.
    Q4K,
    /// 256 elements: 6-bit q; 16 signed scales; f16 d. `(d * scale) * (q - 32)`.
    Q6K,
}

impl Encoding {
    /// The encoding of a ggml tensor type number, where it is supported.
    pub(crate) fn from_ggml(number: u32) -> Option<Encoding> {
        Some(match number {
            0 => Encoding::F32,
            1 => Encoding::F16,
            2 => Encoding::Q4_0,
            3 => Encoding::Q4_1,
            6 => Encoding::Q5_0,
            7 => Encoding::Q5_1,
            8 => Encoding::Q8_0,
            12 => Encoding::Q4K,
            14 => Encoding::Q6K,
            30 => Encoding::BF16,
            _ => return None,
        })
    }

    /// Elements of one block; 1 for the plain formats.
    pub(crate) fn block_elements(self) -> usize {
        match self {
            Encoding::F32 | Encoding::F16 | Encoding::BF16 => 1,
            Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q5_0 | Encoding::Q5_1 | Encoding::Q8_0 => 32,
            Encoding::Q4K | Encoding::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub(crate) fn block_bytes(self) -> usize {
        match self {
            Encoding::F32 => 4,
            Encoding::F16 | Encoding::BF16 => 2,
            Encoding::Q4_0 => 18,
            Encoding::Q4_1 => 20,
            Encoding::Q5_0 => 22,
            Encoding::Q5_1 => 24,
            Encoding::Q8_0 => 34,
            Encoding::Q4K => 144,
            Encoding::Q6K => 210,
        }
    }

    /// Bytes of `elements` elements; `None` where they are not whole blocks, or too many to count.
    pub(crate) fn bytes_of(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// Decodes whole blocks. `bytes` and `out` must hold the same number of elements.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(self.bytes_of(out.len()), Some(bytes.len()), "{self:?}: bytes and elements disagree");
        match self {
            Encoding::F32 => self.each(bytes, out, |b, y| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Encoding::F16 => self.each(bytes, out, |b, y| y[0] = half_at(b, 0)),
            Encoding::BF16 => self.each(bytes, out, |b, y| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            Encoding::Q4_0 => self.each(bytes, out, q4_0),
            Encoding::Q4_1 => self.each(bytes, out, q4_1),
            Encoding::Q5_0 => self.each(bytes, out, q5_0),
            Encoding::Q5_1 => self.each(bytes, out, q5_1),
            Encoding::Q8_0 => self.each(bytes, out, q8_0),
            Encoding::Q4K => self.each(bytes, out, q4_k),
            Encoding::Q6K => self.each(bytes, out, q6_k),
        }
    }

    /// Calls `decode` on each block; generic, so that each format's loop is compiled apart.
    #[inline(always)]
    fn each(self, bytes: &[u8], out: &mut [f32], decode: impl Fn(&[u8], &mut [f32])) {
        let blocks = bytes.chunks_exact(self.block_bytes());
        blocks.zip(out.chunks_exact_mut(self.block_elements())).for_each(|(b, y)| decode(b, y));
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn q4_0(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    for (j, &q) in block[2..18].iter().enumerate() {
        y[j] = (i32::from(q & 0x0f) - 8) as f32 * d;
        y[j + 16] = (i32::from(q >> 4) - 8) as f32 * d;
    }
}

fn q4_1(block: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (j, &q) in block[4..20].iter().enumerate() {
        y[j] = f32::from(q & 0x0f) * d + m;
        y[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// The 5-bit quants at `j` and `j + 16`: four bits from `qs`, the fifth from the bit set `high`.
fn five_bits(high: u32, qs: u8, j: usize) -> (u8, u8) {
    let (low_high, high_high) = ((high >> j) & 1, (high >> (j + 16)) & 1);
    ((qs & 0x0f) | (low_high as u8) << 4, (qs >> 4) | (high_high as u8) << 4)
}

fn q5_0(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (j, &qs) in block[6..22].iter().enumerate() {
        let (a, b) = five_bits(high, qs, j);
        y[j] = (i32::from(a) - 16) as f32 * d;
        y[j + 16] = (i32::from(b) - 16) as f32 * d;
    }
}

fn q5_1(block: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for (j, &qs) in block[8..24].iter().enumerate() {
        let (a, b) = five_bits(high, qs, j);
        y[j] = f32::from(a) * d + m;
        y[j + 16] = f32::from(b) * d + m;
    }
}

fn q8_0(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    for (y, &q) in y.iter_mut().zip(&block[2..34]) {
        *y = f32::from(q.cast_signed()) * d;
    }
}

/// The six-bit scale and minimum of sub-block `j` of a Q4_K block's 12 packed bytes.
fn q4_k_scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let (low, scale_high, min_high) = (packed[j + 4], packed[j - 4] >> 6, packed[j] >> 6);
        ((low & 0x0f) | scale_high << 4, (low >> 4) | min_high << 4)
    }
}

fn q4_k(block: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, quants) = (&block[4..16], &block[16..144]);
    for (pair, (qs, y)) in quants.chunks_exact(32).zip(y.chunks_exact_mut(64)).enumerate() {
        let (low, high) = y.split_at_mut(32);
        let ((scale_low, min_low), (scale_high, min_high)) =
            (q4_k_scale_min(packed, 2 * pair), q4_k_scale_min(packed, 2 * pair + 1));
        let (d1, m1) = (d * f32::from(scale_low), dmin * f32::from(min_low));
        let (d2, m2) = (d * f32::from(scale_high), dmin * f32::from(min_high));
        for (l, &q) in qs.iter().enumerate() {
            low[l] = d1 * f32::from(q & 0x0f) - m1;
            high[l] = d2 * f32::from(q >> 4) - m2;
        }
    }
}

fn q6_k(block: &[u8], y: &mut [f32]) {
    let (lows, highs, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (half, y) in y.chunks_exact_mut(128).enumerate() {
        let (ql, qh, sc) = (&lows[64 * half..], &highs[32 * half..], &scales[8 * half..]);
        for l in 0..32 {
            let quarters = [
                (ql[l] & 0x0f) | (qh[l] & 3) << 4,
                (ql[l + 32] & 0x0f) | ((qh[l] >> 2) & 3) << 4,
                (ql[l] >> 4) | ((qh[l] >> 4) & 3) << 4,
                (ql[l + 32] >> 4) | ((qh[l] >> 6) & 3) << 4,
            ];
            for (quarter, q) in quarters.into_iter().enumerate() {
                let scale = f32::from(sc[l / 16 + 2 * quarter].cast_signed());
                y[l + 32 * quarter] = d * scale * (i32::from(q) - 32) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(encoding: Encoding, block: &[u8]) -> Vec<f32> {
        let mut out = vec![f32::NAN; encoding.block_elements()];
        encoding.decode(block, &mut out);
        out
    }

    fn f16_bytes(value: f32) -> [u8; 2] {
        f16::from_f32(value).to_le_bytes()
    }

    /// Bytes 0, 1, 2, ... scrambled: every nibble and every bit position occurs.
    fn scrambled(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 151 + 43) as u8).collect()
    }

    #[test]
    fn plain_formats_are_read_as_they_are() {
        assert_eq!(decoded(Encoding::F32, &1.5f32.to_le_bytes()), [1.5]);
        assert_eq!(decoded(Encoding::F16, &f16_bytes(-0.25)), [-0.25]);
        assert_eq!(decoded(Encoding::BF16, &[0x80, 0xbf]), [-1.0]);
    }

    #[test]
    fn four_bit_blocks_hold_the_low_nibbles_first() {
        let quants = scrambled(16);
        let nibbles: Vec<u8> = quants.iter().map(|q| q & 15).chain(quants.iter().map(|q| q >> 4)).collect();
        let q4_0 = [&f16_bytes(0.5)[..], &quants].concat();
        let q4_1 = [&f16_bytes(0.5)[..], &f16_bytes(-3.0), &quants].concat();
        let expect_0: Vec<f32> = nibbles.iter().map(|&q| 0.5 * (f32::from(q) - 8.0)).collect();
        let expect_1: Vec<f32> = nibbles.iter().map(|&q| 0.5 * f32::from(q) - 3.0).collect();
        assert_eq!(decoded(Encoding::Q4_0, &q4_0), expect_0);
        assert_eq!(decoded(Encoding::Q4_1, &q4_1), expect_1);
    }

    #[test]
    fn five_bit_blocks_take_their_fifth_bit_from_the_bit_set() {
        let (quants, high) = (scrambled(16), 0x8001_f00fu32);
        let fifth = |j: usize| ((high >> j) & 1) as u8 * 16;
        let values: Vec<u8> =
            (0..32).map(|j| fifth(j) + if j < 16 { quants[j] & 15 } else { quants[j - 16] >> 4 }).collect();
        let q5_0 = [&f16_bytes(0.25)[..], &high.to_le_bytes(), &quants].concat();
        let q5_1 = [&f16_bytes(0.25)[..], &f16_bytes(1.0), &high.to_le_bytes(), &quants].concat();
        let expect_0: Vec<f32> = values.iter().map(|&q| 0.25 * (f32::from(q) - 16.0)).collect();
        let expect_1: Vec<f32> = values.iter().map(|&q| 0.25 * f32::from(q) + 1.0).collect();
        assert_eq!(decoded(Encoding::Q5_0, &q5_0), expect_0);
        assert_eq!(decoded(Encoding::Q5_1, &q5_1), expect_1);
    }

    #[test]
    fn eight_bit_blocks_are_signed() {
        let quants = scrambled(32);
        let block = [&f16_bytes(2.0)[..], &quants].concat();
        let expect: Vec<f32> = quants.iter().map(|&q| 2.0 * f32::from(q as i8)).collect();
        assert_eq!(decoded(Encoding::Q8_0, &block), expect);
    }

    #[test]
    fn q4_k_scales_and_minima_are_six_bits_in_twelve_bytes() {
        // Packed by hand from the format's definition, the inverse of what the decoder does.
        let (scales, minima) = ([1u8, 17, 33, 63, 5, 21, 42, 60], [2u8, 18, 34, 62, 6, 22, 41, 59]);
        let mut packed = [0u8; 12];
        for j in 0..4 {
            packed[j] = scales[j] | (scales[j + 4] >> 4) << 6;
            packed[j + 4] = minima[j] | (minima[j + 4] >> 4) << 6;
            packed[j + 8] = (scales[j + 4] & 15) | (minima[j + 4] & 15) << 4;
        }
        let quants = scrambled(128);
        let block = [&f16_bytes(0.5)[..], &f16_bytes(0.25), &packed, &quants].concat();
        let expect: Vec<f32> = (0..256)
            .map(|i| {
                let (sub, byte) = (i / 32, quants[32 * (i / 64) + i % 32]);
                let q = if sub % 2 == 0 { byte & 15 } else { byte >> 4 };
                0.5 * f32::from(scales[sub]) * f32::from(q) - 0.25 * f32::from(minima[sub])
            })
            .collect();
        assert_eq!(decoded(Encoding::Q4K, &block), expect);
    }

    #[test]
    fn q6_k_joins_four_low_and_two_high_bits() {
        let quants: Vec<u8> = scrambled(256).iter().map(|q| q & 63).collect();
        let scales = scrambled(16);
        let (mut low, mut high) = ([0u8; 128], [0u8; 64]);
        for (i, &q) in quants.iter().enumerate() {
            let (half, quarter, l) = (i / 128, i / 32 % 4, i % 32);
            low[64 * half + l + 32 * (quarter % 2)] |= (q & 15) << (4 * (quarter / 2));
            high[32 * half + l] |= (q >> 4) << (2 * quarter);
        }
        let block = [&low[..], &high, &scales, &f16_bytes(0.125)].concat();
        let expect: Vec<f32> =
            (0..256).map(|i| 0.125 * f32::from(scales[i / 16] as i8) * (f32::from(quants[i]) - 32.0)).collect();
        assert_eq!(decoded(Encoding::Q6K, &block), expect);
    }

    #[test]
    fn sizes_that_are_not_whole_blocks_or_overflow_have_no_bytes() {
        assert_eq!(Encoding::Q4_1.bytes_of(33), None);
        assert_eq!(Encoding::F32.bytes_of(usize::MAX), None);
        assert_eq!(Encoding::Q6K.bytes_of(512), Some(420));
    }
}
