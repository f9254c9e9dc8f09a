//! Sixteen rows into one panel: the transposing half of packing.

use super::gemm::PANEL;

/// `panel[k * 16 + j] = rows[j * stride + k]` for `k < depth`; rows from `height` on become zeros.
pub(crate) fn rows_to_panel(rows: &[f32], stride: usize, height: usize, depth: usize, panel: &mut [f32]) {
    assert!((1..=PANEL).contains(&height) && (height - 1) * stride + depth <= rows.len(), "rows are too short");
    assert!(panel.len() >= depth * PANEL, "panel is too short");
    #[cfg(target_arch = "x86_64")]
    if height == PANEL && super::has_avx2() {
        let whole = depth / 8 * 8;
        // SAFETY: AVX2 was detected, and the asserts cover 16 rows of `whole <= depth` columns and their panel.
        unsafe { whole_blocks(rows, stride, whole, panel) };
        return plain(rows, stride, height, whole..depth, panel);
    }
    plain(rows, stride, height, 0..depth, panel);
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
/// AVX2; `rows` holds 16 rows of `depth` (a multiple of 8) columns, `panel` `16 * depth` values.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn whole_blocks(rows: &[f32], stride: usize, depth: usize, panel: &mut [f32]) {
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
        for (height, depth) in [(16, 19), (16, 8), (5, 11), (1, 1)] {
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
