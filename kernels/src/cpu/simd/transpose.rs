//! Sixteen rows into one panel: the transposing half of packing.

use super::{Vectors, gemm::PANEL, vectors};

/// `panel[k * 16 + j] = rows[j * stride + k]` for `k < depth`; rows from `height` on become zeros.
pub(crate) fn rows_to_panel(rows: &[f32], stride: usize, height: usize, depth: usize, panel: &mut [f32]) {
    assert!((1..=PANEL).contains(&height) && (height - 1) * stride + depth <= rows.len(), "rows are too short");
    assert!(panel.len() >= depth * PANEL, "panel is too short");
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if height == PANEL && vectors() == Vectors::Avx512 {
        done = depth / 16 * 16;
        // SAFETY: AVX-512 was detected, and the asserts cover 16 rows of `done <= depth` columns and their panel.
        unsafe { blocks_of_16(rows, stride, done, panel) };
    }
    #[cfg(target_arch = "x86_64")]
    if height == PANEL && vectors() >= Vectors::Avx2 {
        let (from, whole) = (done, (depth - done) / 8 * 8);
        done += whole;
        // SAFETY: AVX2 was detected, and the asserts cover 16 rows of these columns and their part of the panel.
        unsafe { blocks_of_8(&rows[from.min(rows.len())..], stride, whole, &mut panel[from * PANEL..]) };
    }
    plain(rows, stride, height, done..depth, panel);
}

fn plain(rows: &[f32], stride: usize, height: usize, depth: std::ops::Range<usize>, panel: &mut [f32]) {
    for k in depth {
        let out = &mut panel[k * PANEL..][..PANEL];
        for (j, value) in out.iter_mut().enumerate() {
            *value = if j < height { rows[j * stride + k] } else { 0.0 };
        }
    }
}

/// # Safety
/// AVX-512; `rows` holds 16 rows of `depth` (a multiple of 16) columns, `panel` `16 * depth` values.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn blocks_of_16(rows: &[f32], stride: usize, depth: usize, panel: &mut [f32]) {
    use std::arch::x86_64::{
        _mm512_loadu_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_shuffle_ps, _mm512_storeu_ps,
        _mm512_unpackhi_ps, _mm512_unpacklo_ps,
    };
    let (from, to) = (rows.as_ptr(), panel.as_mut_ptr());
    // SAFETY: the caller's lengths cover every 16 x 16 block read and written.
    unsafe {
        for k in (0..depth).step_by(16) {
            let mut r = [_mm512_setzero_ps(); 16];
            for (j, row) in r.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(from.add(j * stride + k));
            }
            let mut t = r;
            for j in (0..16).step_by(2) {
                t[j] = _mm512_unpacklo_ps(r[j], r[j + 1]);
                t[j + 1] = _mm512_unpackhi_ps(r[j], r[j + 1]);
            }
            // Then r[j + c] holds, in quarter q, column 4 q + c of rows j..j + 4.
            for j in (0..16).step_by(4) {
                r[j] = _mm512_shuffle_ps::<0x44>(t[j], t[j + 2]);
                r[j + 1] = _mm512_shuffle_ps::<0xEE>(t[j], t[j + 2]);
                r[j + 2] = _mm512_shuffle_ps::<0x44>(t[j + 1], t[j + 3]);
                r[j + 3] = _mm512_shuffle_ps::<0xEE>(t[j + 1], t[j + 3]);
            }
            for c in 0..4 {
                let low =
                    [_mm512_shuffle_f32x4::<0x44>(r[c], r[c + 4]), _mm512_shuffle_f32x4::<0x44>(r[c + 8], r[c + 12])];
                let high =
                    [_mm512_shuffle_f32x4::<0xEE>(r[c], r[c + 4]), _mm512_shuffle_f32x4::<0xEE>(r[c + 8], r[c + 12])];
                let out = to.add((k + c) * PANEL);
                _mm512_storeu_ps(out, _mm512_shuffle_f32x4::<0x88>(low[0], low[1]));
                _mm512_storeu_ps(out.add(4 * PANEL), _mm512_shuffle_f32x4::<0xDD>(low[0], low[1]));
                _mm512_storeu_ps(out.add(8 * PANEL), _mm512_shuffle_f32x4::<0x88>(high[0], high[1]));
                _mm512_storeu_ps(out.add(12 * PANEL), _mm512_shuffle_f32x4::<0xDD>(high[0], high[1]));
            }
        }
    }
}

/// # Safety
/// AVX2; `rows` holds 16 rows of `depth` (a multiple of 8) columns, `panel` `16 * depth` values.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn blocks_of_8(rows: &[f32], stride: usize, depth: usize, panel: &mut [f32]) {
    use std::arch::x86_64::{
        _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };
    let (from, to) = (rows.as_ptr(), panel.as_mut_ptr());
    // SAFETY: the caller's lengths cover every 8 x 8 block read and written.
    unsafe {
        for k in (0..depth).step_by(8) {
            for half in [0, 8] {
                let mut r = [_mm256_setzero_ps(); 8];
                for (j, row) in r.iter_mut().enumerate() {
                    *row = _mm256_loadu_ps(from.add((half + j) * stride + k));
                }
                let mut t = r;
                for j in (0..8).step_by(2) {
                    t[j] = _mm256_unpacklo_ps(r[j], r[j + 1]);
                    t[j + 1] = _mm256_unpackhi_ps(r[j], r[j + 1]);
                }
                for j in [0, 4] {
                    r[j] = _mm256_shuffle_ps::<0x44>(t[j], t[j + 2]);
                    r[j + 1] = _mm256_shuffle_ps::<0xEE>(t[j], t[j + 2]);
                    r[j + 2] = _mm256_shuffle_ps::<0x44>(t[j + 1], t[j + 3]);
                    r[j + 3] = _mm256_shuffle_ps::<0xEE>(t[j + 1], t[j + 3]);
                }
                for j in 0..4 {
                    let (low, high) = (r[j], r[j + 4]);
                    _mm256_storeu_ps(to.add((k + j) * PANEL + half), _mm256_permute2f128_ps::<0x20>(low, high));
                    _mm256_storeu_ps(to.add((k + j + 4) * PANEL + half), _mm256_permute2f128_ps::<0x31>(low, high));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panel_is_its_rows_transposed() {
        for (height, depth) in [(16, 45), (16, 19), (16, 8), (16, 3), (5, 11), (1, 1)] {
            let stride = depth + 2;
            let rows: Vec<f32> = (0..PANEL * stride).map(|i| i as f32).collect();
            let mut panel = vec![f32::NAN; depth * PANEL];
            rows_to_panel(&rows, stride, height, depth, &mut panel);
            for k in 0..depth {
                for j in 0..PANEL {
                    let expected = if j < height { rows[j * stride + k] } else { 0.0 };
                    assert_eq!(panel[k * PANEL + j], expected, "{height}x{depth} at {j},{k}");
                }
            }
        }
    }
}
