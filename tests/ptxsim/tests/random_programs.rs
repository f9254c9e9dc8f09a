//! Random straight-line programs of integers and floats agree with the same operations in Rust, in every lane, under
//! random guards.

mod support;

use proptest::prelude::*;
use support::Case;

const LANES: usize = 64;

/// One instruction over registers 0..8 of its file: operation, destination, sources, guard (0 for none).
#[derive(Debug, Clone)]
struct Step {
    operation: usize,
    to: usize,
    from: [usize; 3],
    guard: u32,
}

type Integer = (&'static str, usize, fn([u32; 3]) -> u32);
type Real = (&'static str, usize, fn([f32; 3]) -> f32);

const INTEGERS: [Integer; 16] = [
    ("add.s32", 2, |[x, y, _]| x.wrapping_add(y)),
    ("sub.s32", 2, |[x, y, _]| x.wrapping_sub(y)),
    ("mul.lo.s32", 2, |[x, y, _]| x.wrapping_mul(y)),
    ("mul.hi.u32", 2, |[x, y, _]| (u64::from(x).wrapping_mul(u64::from(y)) >> 32) as u32),
    ("mad.lo.s32", 3, |[x, y, z]| x.wrapping_mul(y).wrapping_add(z)),
    ("and.b32", 2, |[x, y, _]| x & y),
    ("xor.b32", 2, |[x, y, _]| x ^ y),
    ("min.s32", 2, |[x, y, _]| (x as i32).min(y as i32) as u32),
    ("max.u32", 2, |[x, y, _]| x.max(y)),
    ("shl.b32", 2, |[x, y, _]| if y < 32 { x << y } else { 0 }),
    ("shr.s32", 2, |[x, y, _]| ((x as i32) >> y.min(31)) as u32),
    ("popc.b32", 1, |[x, _, _]| x.count_ones()),
    ("clz.b32", 1, |[x, _, _]| x.leading_zeros()),
    ("not.b32", 1, |[x, _, _]| !x),
    ("shf.l.wrap.b32", 3, |[x, y, z]| match z % 32 {
        0 => y,
        by => y << by | x >> (32 - by),
    }),
    ("abs.s32", 1, |[x, _, _]| (x as i32).unsigned_abs()),
];

const REALS: [Real; 9] = [
    ("add.f32", 2, |[x, y, _]| x + y),
    ("sub.f32", 2, |[x, y, _]| x - y),
    ("mul.f32", 2, |[x, y, _]| x * y),
    ("fma.rn.f32", 3, |[x, y, z]| x.mul_add(y, z)),
    ("div.rn.f32", 2, |[x, y, _]| x / y),
    ("sqrt.rn.f32", 1, |[x, _, _]| x.sqrt()),
    ("neg.f32", 1, |[x, _, _]| -x),
    ("abs.f32", 1, |[x, _, _]| x.abs()),
    ("rcp.rn.f32", 1, |[x, _, _]| 1.0 / x),
];

fn steps(operations: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = (0..operations, 0..8_usize, [0..8_usize, 0..8_usize, 0..8_usize], 0..4_u32)
        .prop_map(|(operation, to, from, guard)| Step { operation, to, from, guard });
    prop::collection::vec(step, 1..40)
}

/// The PTX of the steps over `%{file}20` and on, loaded from and stored to eight words a thread.
fn program(file: &str, t: &str, steps: &[Step], name: impl Fn(usize) -> (&'static str, usize)) -> String {
    let mut body = "mul.wide.u32 %rd3, %r1, 32;\nadd.s64 %rd4, %rd1, %rd3;\nadd.s64 %rd5, %rd2, %rd3;\n".to_owned();
    // Guard g runs the lanes whose number has bit g - 1 set.
    for guard in 1..4 {
        body += &format!("and.b32 %r2, %r1, {};\nsetp.ne.u32 %p{guard}, %r2, 0;\n", 1 << (guard - 1));
    }
    for at in 0..8 {
        body += &format!("ld.global.{t} %{file}{}, [%rd4+{}];\n", 20 + at, at * 4);
    }
    for step in steps {
        let (operation, sources) = name(step.operation);
        if step.guard > 0 {
            body += &format!("@%p{} ", step.guard);
        }
        body += &format!("{operation} %{file}{}", 20 + step.to);
        for from in &step.from[..sources] {
            body += &format!(", %{file}{}", 20 + from);
        }
        body += ";\n";
    }
    for at in 0..8 {
        body += &format!("st.global.{t} [%rd5+{}], %{file}{};\n", at * 4, 20 + at);
    }
    body
}

/// The same in Rust.
fn evaluated<T: Copy>(steps: &[Step], input: &[T], f: impl Fn(usize, [T; 3]) -> T) -> Vec<T> {
    let mut registers = input.to_vec();
    for (lane, registers) in registers.chunks_mut(8).enumerate() {
        for step in steps {
            if step.guard == 0 || lane >> (step.guard - 1) & 1 == 1 {
                registers[step.to] = f(step.operation, step.from.map(|at| registers[at]));
            }
        }
    }
    registers
}

proptest! {
    #[test]
    fn integers_agree(steps in steps(INTEGERS.len()), input in prop::collection::vec(any::<u32>(), 8 * LANES)) {
        let body = program("r", "u32", &steps, |at| (INTEGERS[at].0, INTEGERS[at].1));
        let found = Case::new(&body).block(LANES as u32).output(&input, 8 * LANES);
        prop_assert_eq!(found, evaluated(&steps, &input, |at, x| INTEGERS[at].2(x)));
    }

    #[test]
    fn floats_agree(steps in steps(REALS.len()), input in prop::collection::vec(-100.0_f32..100.0, 8 * LANES)) {
        let body = program("f", "f32", &steps, |at| (REALS[at].0, REALS[at].1));
        let bits: Vec<u32> = input.iter().map(|x| x.to_bits()).collect();
        let found = Case::new(&body).block(LANES as u32).output(&bits, 8 * LANES);
        // A NaN's payload is nobody's promise.
        let plain = |bits: u32| if f32::from_bits(bits).is_nan() { f32::NAN.to_bits() } else { bits };
        let found: Vec<u32> = found.into_iter().map(plain).collect();
        let expected = evaluated(&steps, &input, |at, x| REALS[at].2(x));
        prop_assert_eq!(found, expected.iter().map(|x| plain(x.to_bits())).collect::<Vec<u32>>());
    }
}
