//! ldmatrix and mma put every element where the PTX manual's fragment tables say, and multiply.

mod support;

use proptest::prelude::*;
use support::Case;

/// One warp: stores 16 KiB of nothing, loads the matrix with `x` matrices whose rows lie every 16 bytes.
fn loaded(count: usize, transposed: bool) -> Vec<[u32; 32]> {
    let registers: Vec<String> = (0..count).map(|at| format!("%r{}", 10 + at)).collect();
    let stores: String = (0..count)
        .map(|at| {
            format!(
                "mul.wide.u32 %rd3, %r1, 4;\nadd.s64 %rd4, %rd2, %rd3;\nst.global.u32 [%rd4+{}], %r{};\n",
                at * 128,
                10 + at
            )
        })
        .collect();
    let body = format!(
        "mul.wide.u32 %rd3, %r1, 16;
        add.s64 %rd4, %rd1, %rd3;
        ld.global.v4.u32 {{%r2, %r3, %r4, %r5}}, [%rd4];
        mov.u32 %r6, dyn;
        mad.lo.u32 %r6, %r1, 16, %r6;
        st.shared.v4.u32 [%r6], {{%r2, %r3, %r4, %r5}};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x{count}{}.shared.b16 {{{}}}, [%r6];
        {stores}",
        if transposed { ".trans" } else { "" },
        registers.join(", ")
    );
    // Element (matrix, row, column) of 16 bits is 64 matrix + 8 row + column.
    let input: Vec<u32> = (0..128).map(|word| (word * 2) | ((word * 2 + 1) << 16)).collect();
    let found = Case::new(&body).shared().output(&input, 128);
    (0..count).map(|at| std::array::from_fn(|lane| found[at * 32 + lane])).collect()
}

#[test]
fn matrices_are_loaded_row_by_row_or_transposed() {
    for count in [1, 2, 4] {
        for transposed in [false, true] {
            for (matrix, found) in loaded(count, transposed).into_iter().enumerate() {
                for (lane, pair) in found.into_iter().enumerate() {
                    let element = |at: usize| {
                        let (row, column) = (lane / 4, lane % 4 * 2 + at);
                        (matrix * 64 + if transposed { column * 8 + row } else { row * 8 + column }) as u32
                    };
                    assert_eq!(pair, element(0) | element(1) << 16, "x{count} {transposed} {matrix} lane {lane}");
                }
            }
        }
    }
}

fn bf16(value: f32) -> u32 {
    u32::from(half::bf16::from_f32(value).to_bits())
}

/// A [16, 16], B [16, 8], C [16, 8] by one warp; the fragments are laid out here after the manual's tables.
fn multiplied(a: &[f32], b: &[f32], c: &[f32]) -> Vec<f32> {
    let mut input = Vec::new();
    for lane in 0..32_usize {
        let (group, pair) = (lane / 4, lane % 4 * 2);
        let a_at = |row: usize, k: usize| bf16(a[row * 16 + k]) | bf16(a[row * 16 + k + 1]) << 16;
        let b_at = |k: usize| bf16(b[k * 8 + group]) | bf16(b[(k + 1) * 8 + group]) << 16;
        input.extend([a_at(group, pair), a_at(group + 8, pair), a_at(group, pair + 8), a_at(group + 8, pair + 8)]);
        input.extend([b_at(pair), b_at(pair + 8)]);
        for (row, column) in [(group, pair), (group, pair + 1), (group + 8, pair), (group + 8, pair + 1)] {
            input.push(c[row * 8 + column].to_bits());
        }
    }
    let body = "
        mul.wide.u32 %rd3, %r1, 40;
        add.s64 %rd4, %rd1, %rd3;
        ld.global.v2.u32 {%r10, %r11}, [%rd4];
        ld.global.v2.u32 {%r12, %r13}, [%rd4+8];
        ld.global.v2.u32 {%r14, %r15}, [%rd4+16];
        ld.global.v2.f32 {%f1, %f2}, [%rd4+24];
        ld.global.v2.f32 {%f3, %f4}, [%rd4+32];
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f5, %f6, %f7, %f8}, {%r10, %r11, %r12, %r13}, {%r14, %r15}, {%f1, %f2, %f3, %f4};
        shr.u32 %r2, %r1, 2;
        and.b32 %r3, %r1, 3;
        mul.lo.u32 %r2, %r2, 32;
        mad.lo.u32 %r2, %r3, 8, %r2;
        cvt.u64.u32 %rd5, %r2;
        add.s64 %rd6, %rd2, %rd5;
        st.global.v2.f32 [%rd6], {%f5, %f6};
        st.global.v2.f32 [%rd6+256], {%f7, %f8};";
    Case::new(body).output(&input, 128).into_iter().map(f32::from_bits).collect()
}

proptest! {
    #[test]
    fn mma_adds_products_in_the_order_of_k(values in prop::collection::vec(-4.0_f32..4.0, 256 + 128 + 128)) {
        let round = |x: &f32| half::bf16::from_f32(*x).to_f32();
        let a: Vec<f32> = values[..256].iter().map(round).collect();
        let b: Vec<f32> = values[256..384].iter().map(round).collect();
        let c = &values[384..];
        let mut expected = c.to_vec();
        for row in 0..16 {
            for column in 0..8 {
                for k in 0..16 {
                    expected[row * 8 + column] += a[row * 16 + k] * b[k * 8 + column];
                }
            }
        }
        prop_assert_eq!(multiplied(&a, &b, c), expected);
    }
}
