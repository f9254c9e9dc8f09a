//! Every register-to-register instruction gives the known answer.

mod support;

use support::evaluate;

fn check(result: &str, instruction: &str, inputs: [u64; 3], expected: u64) {
    let found = evaluate(result, instruction, inputs);
    assert_eq!(found, expected, "{instruction} of {inputs:x?}: {found:#x} instead of {expected:#x}");
}

fn minus(x: u64) -> u64 {
    u64::from((x as u32).wrapping_neg())
}

#[test]
fn integers_of_32_bits() {
    for (instruction, inputs, expected) in [
        ("add.s32 %r9, %r11, %r12;", [7, minus(9), 0], minus(2)),
        ("sub.s32 %r9, %r11, 9;", [7, 0, 0], minus(2)),
        ("mul.lo.s32 %r9, %r11, %r12;", [0x10001, 0x10001, 0], 0x20001),
        ("mul.hi.u32 %r9, %r11, %r12;", [0xffff_ffff, 0xffff_ffff, 0], 0xffff_fffe),
        ("mul.hi.s32 %r9, %r11, %r12;", [minus(1), 5, 0], minus(1)),
        ("mad.lo.s32 %r9, %r11, %r12, %r13;", [3, 4, 5], 17),
        ("mad.hi.u32 %r9, %r11, %r12, %r13;", [0x8000_0000, 4, 5], 7),
        ("div.s32 %r9, %r11, %r12;", [minus(7), 2, 0], minus(3)),
        ("div.u32 %r9, %r11, %r12;", [minus(7), 2, 0], 0x7fff_fffc),
        ("rem.s32 %r9, %r11, %r12;", [minus(7), 2, 0], minus(1)),
        ("rem.u32 %r9, %r11, 10;", [123, 0, 0], 3),
        ("min.s32 %r9, %r11, %r12;", [minus(1), 1, 0], minus(1)),
        ("min.u32 %r9, %r11, %r12;", [minus(1), 1, 0], 1),
        ("max.s32 %r9, %r11, %r12;", [minus(1), 1, 0], 1),
        ("max.u32 %r9, %r11, %r12;", [minus(1), 1, 0], minus(1)),
        ("neg.s32 %r9, %r11;", [5, 0, 0], minus(5)),
        ("abs.s32 %r9, %r11;", [minus(5), 0, 0], 5),
        ("and.b32 %r9, %r11, %r12;", [12, 10, 0], 8),
        ("or.b32 %r9, %r11, %r12;", [12, 10, 0], 14),
        ("xor.b32 %r9, %r11, %r12;", [12, 10, 0], 6),
        ("not.b32 %r9, %r11;", [12, 0, 0], 0xffff_fff3),
        ("shl.b32 %r9, %r11, 4;", [0x1234_5678, 0, 0], 0x2345_6780),
        ("shl.b32 %r9, %r11, %r12;", [1, 32, 0], 0),
        ("shr.u32 %r9, %r11, 4;", [0x8000_0000, 0, 0], 0x0800_0000),
        ("shr.s32 %r9, %r11, %r12;", [0x8000_0000, 40, 0], 0xffff_ffff),
        ("bfe.u32 %r9, %r11, 4, 8;", [0xabcd, 0, 0], 0xbc),
        ("bfe.s32 %r9, %r11, %r12, %r13;", [0x80, 4, 4], 0xffff_fff8),
        ("bfi.b32 %r9, %r11, %r12, 8, 4;", [0xf, 0x1_2000, 0], 0x1_2f00),
        ("popc.b32 %r9, %r11;", [0xf0f, 0, 0], 8),
        ("clz.b32 %r9, %r11;", [0xf0f, 0, 0], 20),
        ("brev.b32 %r9, %r11;", [1, 0, 0], 0x8000_0000),
        ("bfind.u32 %r9, %r11;", [0x100, 0, 0], 8),
        ("bfind.shiftamt.u32 %r9, %r11;", [0x100, 0, 0], 23),
        ("prmt.b32 %r9, %r11, %r12, 0x5410;", [0x3322_1100, 0x7766_5544, 0], 0x5544_1100),
        ("lop3.b32 %r9, %r11, %r12, %r13, 0x80;", [0xff, 0xf0, 0x30], 0x30),
        ("shf.l.wrap.b32 %r9, %r11, %r12, %r13;", [0x8000_0001, 1, 36], 0x18),
        ("shf.r.clamp.b32 %r9, %r11, %r12, %r13;", [0x8000_0001, 7, 36], 7),
        ("selp.b32 %r9, %r11, %r12, %p13;", [4, 5, 1], 4),
        ("selp.b32 %r9, %r11, %r12, %p13;", [4, 5, 0], 5),
        ("mov.b32 %r9, {%rs11, %rs12};", [0x1_1111, 0x2222, 0], 0x2222_1111),
        ("mov.b64 {%r9, %r8}, %rd11;", [0x1_0000_0005, 0, 0], 5),
        ("mov.b64 {%r8, %r9}, %rd11;", [0x7_0000_0005, 0, 0], 7),
        ("popc.b64 %r9, %rd11;", [0xf_0000_000f, 0, 0], 8),
        ("clz.b64 %r9, %rd11;", [1, 0, 0], 63),
        ("mul.wide.u16 %r9, %rs11, %rs12;", [0xffff, 0xffff, 0], 0xfffe_0001),
        ("mul.wide.s16 %r9, %rs11, %rs12;", [0xffff, 2, 0], minus(2)),
    ] {
        check("r", instruction, inputs, expected);
    }
}

#[test]
fn integers_of_64_and_16_bits() {
    let m = |x: u64| x.wrapping_neg();
    for (instruction, inputs, expected) in [
        ("add.s64 %rd9, %rd11, %rd12;", [1 << 40, m(1), 0], (1 << 40) - 1),
        ("sub.s64 %rd9, %rd11, %rd12;", [0, 1, 0], m(1)),
        ("mul.lo.s64 %rd9, %rd11, %rd12;", [1 << 33, 3, 0], 3 << 33),
        ("mul.hi.u64 %rd9, %rd11, %rd12;", [1 << 63, 6, 0], 3),
        ("mul.wide.s32 %rd9, %r11, %r12;", [minus(3), 4, 0], m(12)),
        ("mul.wide.u32 %rd9, %r11, 4;", [minus(3), 0, 0], 0x3_ffff_fff4),
        ("mad.wide.u32 %rd9, %r11, %r12, %rd13;", [1 << 31, 4, 5], (1 << 33) + 5),
        ("mad.lo.s64 %rd9, %rd11, %rd12, %rd13;", [1 << 33, 4, 5], (1 << 35) + 5),
        ("div.s64 %rd9, %rd11, %rd12;", [m(9), 2, 0], m(4)),
        ("rem.u64 %rd9, %rd11, %rd12;", [9, 4, 0], 1),
        ("min.s64 %rd9, %rd11, %rd12;", [m(9), 2, 0], m(9)),
        ("max.u64 %rd9, %rd11, %rd12;", [m(9), 2, 0], m(9)),
        ("shl.b64 %rd9, %rd11, 33;", [1, 0, 0], 1 << 33),
        ("shr.s64 %rd9, %rd11, %r12;", [m(4), 1, 0], m(2)),
        ("shr.u64 %rd9, %rd11, 60;", [m(1), 0, 0], 15),
        ("and.b64 %rd9, %rd11, -8;", [15, 0, 0], 8),
        ("or.b64 %rd9, %rd11, %rd12;", [1, 2, 0], 3),
        ("xor.b64 %rd9, %rd11, %rd12;", [3, 2, 0], 1),
        ("not.b64 %rd9, %rd11;", [0, 0, 0], m(1)),
        ("neg.s64 %rd9, %rd11;", [1, 0, 0], m(1)),
        ("abs.s64 %rd9, %rd11;", [m(1), 0, 0], 1),
        ("bfi.b64 %rd9, %rd11, %rd12, 32, 32;", [7, 5, 0], 7 << 32 | 5),
        ("bfe.u64 %rd9, %rd11, 40, 8;", [0xab << 40, 0, 0], 0xab),
        ("mov.b64 %rd9, {%r11, %r12};", [1, 2, 0], 2 << 32 | 1),
        ("selp.b64 %rd9, %rd11, %rd12, %p13;", [1 << 50, 5, 1], 1 << 50),
        ("mov.u64 %rd9, 0x7fffffffffffffff;", [0, 0, 0], i64::MAX as u64),
    ] {
        check("rd", instruction, inputs, expected);
    }
    for (instruction, inputs, expected) in [
        ("add.s16 %rs9, %rs11, %rs12;", [0xffff, 2, 0], 1),
        ("mul.lo.s16 %rs9, %rs11, %rs12;", [0x101, 0x101, 0], 0x201),
        ("shr.u16 %rs9, %rs11, 4;", [0x80f0, 0, 0], 0x80f),
        ("shr.s16 %rs9, %rs11, 4;", [0x80f0, 0, 0], 0xf80f),
        ("and.b16 %rs9, %rs11, 15;", [0x80f7, 0, 0], 7),
        ("max.s16 %rs9, %rs11, %rs12;", [0xffff, 3, 0], 3),
        ("selp.b16 %rs9, %rs11, %rs12, %p13;", [4, 3, 0], 3),
        ("cvt.s16.s8 %rs9, %rs11;", [0x80, 0, 0], 0xff80),
        ("mov.b32 {%rs9, %rs8}, %r11;", [0x2222_1111, 0, 0], 0x1111),
    ] {
        check("rs", instruction, inputs, expected);
    }
}

fn bits(x: f32) -> u64 {
    u64::from(x.to_bits())
}

#[test]
fn float32_is_rounded_as_ieee_says() {
    let (x, y, z) = (1.1_f32, 2.7, -0.3);
    for (instruction, expected) in [
        ("add.f32 %f9, %f11, %f12;", x + y),
        ("add.rn.f32 %f9, %f11, 0f3F800000;", x + 1.0),
        ("sub.f32 %f9, %f11, %f12;", x - y),
        ("mul.f32 %f9, %f11, %f12;", x * y),
        ("fma.rn.f32 %f9, %f11, %f12, %f13;", x.mul_add(y, z)),
        ("div.rn.f32 %f9, %f11, %f12;", x / y),
        ("div.approx.f32 %f9, %f11, %f12;", x / y),
        ("div.full.f32 %f9, %f11, %f12;", x / y),
        ("rcp.rn.f32 %f9, %f12;", 1.0 / y),
        ("rcp.approx.ftz.f32 %f9, %f12;", 1.0 / y),
        ("sqrt.rn.f32 %f9, %f12;", y.sqrt()),
        ("sqrt.approx.f32 %f9, %f12;", y.sqrt()),
        ("rsqrt.approx.f32 %f9, %f12;", (1.0 / f64::from(y).sqrt()) as f32),
        ("ex2.approx.f32 %f9, %f12;", f64::from(y).exp2() as f32),
        ("ex2.approx.ftz.f32 %f9, %f13;", f64::from(z).exp2() as f32),
        ("lg2.approx.f32 %f9, %f12;", f64::from(y).log2() as f32),
        ("tanh.approx.f32 %f9, %f13;", f64::from(z).tanh() as f32),
        ("sin.approx.f32 %f9, %f12;", f64::from(y).sin() as f32),
        ("cos.approx.f32 %f9, %f12;", f64::from(y).cos() as f32),
        ("min.f32 %f9, %f11, %f13;", z),
        ("max.f32 %f9, %f11, %f13;", x),
        ("neg.f32 %f9, %f11;", -x),
        ("abs.f32 %f9, %f13;", 0.3),
        ("copysign.f32 %f9, %f13, %f11;", -x),
        ("selp.f32 %f9, %f11, %f12, %p13;", x),
        ("cvt.sat.f32.f32 %f9, %f12;", 1.0),
        ("cvt.sat.f32.f32 %f9, %f13;", 0.0),
        ("add.sat.f32 %f9, %f11, %f12;", 1.0),
        ("cvt.rni.f32.f32 %f9, %f12;", 3.0),
        ("cvt.rmi.f32.f32 %f9, %f13;", -1.0),
        ("cvt.rzi.f32.f32 %f9, %f12;", 2.0),
        ("cvt.rpi.f32.f32 %f9, %f11;", 2.0),
    ] {
        check("f", instruction, [bits(x), bits(y), bits(z)], bits(expected));
    }
    // 1/3 towards minus and plus infinity are neighbours around the nearest.
    let third = 1.0_f32 / 3.0;
    let product = |round: &str| {
        let instruction = format!("fma.{round}.f32 %f9, %f11, %f12, %f13;");
        f32::from_bits(evaluate("f", &instruction, [bits(third), bits(third), bits(1.0)]) as u32)
    };
    assert_eq!(product("rm").next_up(), product("rp"));
    assert!(product("rn") == product("rm") || product("rn") == product("rp"));
    assert_eq!(product("rz"), product("rm"));
    let tiny = bits(f32::from_bits(3));
    check("f", "add.ftz.f32 %f9, %f11, %f12;", [tiny, tiny, 0], 0);
    check("f", "add.f32 %f9, %f11, %f12;", [tiny, tiny, 0], 6);
}

#[test]
fn float64_and_conversions() {
    let (x, y, z) = (1.1_f64, -2.7, 0.3);
    let b = f64::to_bits;
    for (instruction, expected) in [
        ("add.f64 %fd9, %fd11, %fd12;", x + y),
        ("sub.f64 %fd9, %fd11, %fd12;", x - y),
        ("mul.f64 %fd9, %fd11, %fd12;", x * y),
        ("fma.rn.f64 %fd9, %fd11, %fd12, %fd13;", x.mul_add(y, z)),
        ("div.rn.f64 %fd9, %fd11, %fd12;", x / y),
        ("sqrt.rn.f64 %fd9, %fd11;", x.sqrt()),
        ("rcp.rn.f64 %fd9, %fd11;", 1.0 / x),
        ("min.f64 %fd9, %fd11, %fd12;", y),
        ("max.f64 %fd9, %fd11, %fd12;", x),
        ("neg.f64 %fd9, %fd11;", -x),
        ("abs.f64 %fd9, %fd12;", -y),
        ("add.f64 %fd9, %fd11, 0d3FF0000000000000;", x + 1.0),
    ] {
        check("fd", instruction, [b(x), b(y), b(z)], b(expected));
    }
    check("f", "cvt.rn.f32.f64 %f9, %fd11;", [b(x), 0, 0], bits(1.1));
    check("fd", "cvt.f64.f32 %fd9, %f11;", [bits(1.1), 0, 0], b(f64::from(1.1_f32)));
    check("fd", "cvt.rn.f64.s32 %fd9, %r11;", [minus(7), 0, 0], b(-7.0));
    check("fd", "cvt.rn.f64.u64 %fd9, %rd11;", [1 << 40, 0, 0], b((1_u64 << 40) as f64));
    check("f", "cvt.rn.f32.s32 %f9, %r11;", [minus(7), 0, 0], bits(-7.0));
    check("f", "cvt.rn.f32.u32 %f9, %r11;", [0xffff_ffff, 0, 0], bits(4_294_967_295.0));
    check("f", "cvt.rn.f32.u64 %f9, %rd11;", [u64::MAX, 0, 0], bits(u64::MAX as f32));
    check("f", "cvt.rn.f32.s8 %f9, %rs11;", [0xf0, 0, 0], bits(-16.0));
    check("f", "cvt.rn.f32.s16 %f9, %rs11;", [0xfff0, 0, 0], bits(-16.0));
    check("f", "cvt.rn.f32.u16 %f9, %rs11;", [0xfff0, 0, 0], bits(65520.0));
    check("f", "cvt.f32.f16 %f9, %rs11;", [0xc000, 0, 0], bits(-2.0));
    check("f", "cvt.f32.bf16 %f9, %rs11;", [0xc000, 0, 0], bits(-2.0));
    check("rs", "cvt.rn.f16.f32 %rs9, %f11;", [bits(1.000_976_6), 0, 0], 0x3c01);
    check("rs", "cvt.rn.bf16.f32 %rs9, %f11;", [0x3f80_8001, 0, 0], 0x3f81);
    check("r", "cvt.rn.bf16x2.f32 %r9, %f11, %f12;", [bits(1.0), bits(-2.0), 0], 0x3f80_c000);
    check("r", "cvt.rn.f16x2.f32 %r9, %f11, %f12;", [bits(1.0), bits(-2.0), 0], 0x3c00_c000);
    check("r", "cvt.rzi.s32.f32 %r9, %f11;", [bits(-2.7), 0, 0], minus(2));
    check("r", "cvt.rni.s32.f32 %r9, %f11;", [bits(2.5), 0, 0], 2);
    check("r", "cvt.rzi.u32.f32 %r9, %f11;", [bits(-2.7), 0, 0], 0);
    check("r", "cvt.rzi.s32.f32 %r9, %f11;", [bits(1e20), 0, 0], 0x7fff_ffff);
    check("r", "cvt.rzi.s32.f32 %r9, %f11;", [bits(f32::NAN), 0, 0], 0);
    check("r", "cvt.rni.s32.f64 %r9, %fd11;", [b(-3.5), 0, 0], minus(4));
    check("rd", "cvt.rzi.u64.f32 %rd9, %f11;", [bits(1e10), 0, 0], 10_000_000_000);
    check("rd", "cvt.s64.s32 %rd9, %r11;", [minus(1), 0, 0], u64::MAX);
    check("rd", "cvt.u64.u32 %rd9, %r11;", [minus(1), 0, 0], 0xffff_ffff);
    check("rd", "cvt.s64.s16 %rd9, %rs11;", [0xffff, 0, 0], u64::MAX);
    check("r", "cvt.u32.u16 %r9, %rs11;", [0xffff, 0, 0], 0xffff);
    check("r", "cvt.s32.s16 %r9, %rs11;", [0xffff, 0, 0], 0xffff_ffff);
    check("r", "cvt.s32.s8 %r9, %r11;", [0x1ff, 0, 0], 0xffff_ffff);
    check("rs", "cvt.u16.u32 %rs9, %r11;", [0x12345, 0, 0], 0x2345);
}

#[test]
fn comparisons_know_signs_and_nans() {
    let nan = bits(f32::NAN);
    for (instruction, inputs, expected) in [
        ("setp.eq.s32 %p9, %r11, %r12;", [3, 3, 0], 1),
        ("setp.lt.s32 %p9, %r11, %r12;", [minus(1), 0, 0], 1),
        ("setp.lt.u32 %p9, %r11, %r12;", [minus(1), 0, 0], 0),
        ("setp.hi.u32 %p9, %r11, %r12;", [minus(1), 0, 0], 1),
        ("setp.ge.s64 %p9, %rd11, %rd12;", [u64::MAX, 0, 0], 0),
        ("setp.gt.u64 %p9, %rd11, %rd12;", [u64::MAX, 0, 0], 1),
        ("setp.lt.s16 %p9, %rs11, 0;", [0xffff, 0, 0], 1),
        ("setp.ne.b32 %p9, %r11, %r12;", [3, 4, 0], 1),
        ("setp.ne.f32 %p9, %f11, %f12;", [nan, bits(1.0), 0], 0),
        ("setp.neu.f32 %p9, %f11, %f12;", [nan, bits(1.0), 0], 1),
        ("setp.lt.f32 %p9, %f11, %f12;", [nan, bits(1.0), 0], 0),
        ("setp.ltu.f32 %p9, %f11, %f12;", [nan, bits(1.0), 0], 1),
        ("setp.le.f32 %p9, %f11, %f12;", [bits(1.0), bits(1.0), 0], 1),
        ("setp.nan.f32 %p9, %f11, %f12;", [nan, bits(1.0), 0], 1),
        ("setp.num.f32 %p9, %f11, %f12;", [nan, bits(1.0), 0], 0),
        ("setp.gt.f64 %p9, %fd11, %fd12;", [2.0_f64.to_bits(), 1.0_f64.to_bits(), 0], 1),
        ("setp.lt.and.s32 %p9, %r11, %r12, %p13;", [1, 2, 0], 0),
        ("setp.lt.or.s32 %p9, %r11, %r12, !%p13;", [3, 2, 0], 1),
        ("setp.lt.s32 %p8|%p9, %r11, %r12;", [3, 2, 0], 1),
        ("and.pred %p9, %p11, %p12;", [1, 0, 0], 0),
        ("or.pred %p9, %p11, %p12;", [1, 0, 0], 1),
        ("xor.pred %p9, %p11, !%p12;", [1, 0, 0], 0),
        ("not.pred %p9, %p12;", [1, 0, 0], 1),
        ("mov.pred %p9, %p11;", [1, 0, 0], 1),
    ] {
        check("p", instruction, inputs, expected);
    }
}
