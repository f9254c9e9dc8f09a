//! What the parser does not know it refuses, with line and text.

mod support;

use insula_ptxsim::Module;
use support::module;

fn refusal(body: &str) -> String {
    match Module::parse(&module("", body)) {
        Ok(_) => panic!("accepted: {body}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn unknown_opcodes_modifiers_and_operands_are_refused() {
    for (body, part) in [
        ("wgmma.fence.sync.aligned;", "unsupported opcode wgmma"),
        ("add.cc.s32 %r2, %r1, %r1;", "unsupported modifier .cc"),
        ("add.rz.f32 %f1, %f2, %f3;", "only fma.f32"),
        ("add.s32 %r2, %r1;", "2 operands instead of 3"),
        ("add.s32 %r99, %r1, %r1;", "%r99 is no declared register"),
        ("add.s32 %rd1, %r1, %r1;", "%rd1 has 64 bits, the instruction 32"),
        ("add.s32 %r2, %r1, nothing;", "operand nothing"),
        ("mul.s32 %r2, %r1, %r1;", "one of .lo, .hi, .wide"),
        ("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r1}, {%f1};", ".m16n8k16 is missing"),
        ("bar.sync 0, 64;", "a barrier of part of the block"),
        ("bra nowhere;", "no label nowhere"),
        ("call.uni (retval0), foo, (param0);", "unsupported opcode call"),
        ("cp.async.cg.shared.global [%r1], [%rd1], 4;", "a copy of 4 bytes"),
        ("ld.global.v2.u32 {%r1, %r2, %r3}, [%rd1];", "3 registers instead of 2"),
        ("cvt.rz.f32.f64 %f1, %fd1;", "conversions round to nearest"),
        ("add.rn.bf16x2 %r1, %r1, %r1;", "unsupported"),
        ("mov.u32 %r1, %clock;", "operand %clock"),
        (".local_thing 4;", "unsupported directive"),
        ("fma.rn.f32.f16 %f1, %f2, %f3, %f4;", "unsupported: fma of this type"),
    ] {
        let message = refusal(body);
        assert!(message.contains(part), "{message} does not say: {part}");
        // The body begins on line 19 of the text.
        assert!(message.starts_with("ptx line 19: ") && message.contains(body.trim_end_matches(';')), "{message}");
    }
}

#[test]
fn device_functions_and_global_variables_are_refused() {
    let error =
        Module::parse(".version 7.0\n.func (.param .b32 r) foo(\n.param .b32 a)\n{\nret;\n}").expect_err("refused");
    assert_eq!((error.line, error.reason.as_str()), (2, "device functions (.func) and calls are not supported"));
    let text = module(".global .align 4 .u32 unused = 64;", "mov.u64 %rd3, unused;");
    let error = Module::parse(&text).expect_err("refused").to_string();
    assert!(error.contains("module-level .global variables"), "{error}");
    Module::parse(&module(".global .align 4 .u32 unused = 64;", "")).expect("the compiler leaves unused ones behind");
}

#[test]
fn a_text_that_ends_early_is_refused() {
    assert!(Module::parse(".visible .entry k()\n{\nret;").is_err());
    assert!(Module::parse("garbage").is_err());
    assert!(Module::parse("").expect("nothing is nothing wrong").kernels().next().is_none());
}

#[test]
fn the_kernel_says_what_a_launch_needs() {
    let text = ".version 7.0\n.visible .entry k(\n.param .u64 a,\n.param .u32 b,\n.param .u64 c,\n.param .align 8 .b8 d[24],\n.param .f32 e\n)\n.maxntid 32, 4, 1\n{\n.shared .align 4 .b8 s[10];\n.shared .align 16 .f32 t[4];\nret;\n}";
    let module = Module::parse(text).expect("it is right");
    let kernel = module.kernel("k").expect("it is there");
    let params: Vec<(usize, usize)> = kernel.params().iter().map(|param| (param.offset, param.size)).collect();
    assert_eq!(params, [(0, 8), (8, 4), (16, 8), (24, 24), (48, 4)]);
    assert_eq!((kernel.name(), kernel.param_bytes(), kernel.shared_bytes()), ("k", 52, 32));
    assert_eq!(kernel.max_threads(), Some(128));
    assert!(module.kernel("other").is_none());
}
