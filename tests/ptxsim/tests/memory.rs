//! Loads, stores, atomics and copies put bytes where they belong.

mod support;

use insula_ptxsim::{Arena, Checks, Counts, FaultKind, Launch, Memory, MemorySpace, Module, Params, run};
use support::Case;

/// %rd9 = in + 4 tid, %rd10 = out + 4 tid.
const POINTERS: &str = "mul.wide.u32 %rd3, %r1, 4;\nadd.s64 %rd9, %rd1, %rd3;\nadd.s64 %rd10, %rd2, %rd3;\n";

fn case(body: &str) -> String {
    format!("{POINTERS}{body}")
}

#[test]
fn vectors_and_narrow_types_keep_their_bytes() {
    let body = "
        ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd1];
        st.global.v2.u32 [%rd2], {%r5, %r4};
        ld.global.s8 %rs1, [%rd1+1];
        st.global.u16 [%rd2+8], %rs1;
        ld.global.u8 %r6, [%rd1+1];
        st.global.u8 [%rd2+10], %r6;
        ld.global.s16 %r7, [%rd1];
        st.global.u32 [%rd2+12], %r7;
        ld.global.nc.v2.f32 {%f1, %f2}, [%rd1+8];
        st.global.v2.f32 [%rd2+16], {%f2, 0f3F800000};
        ld.global.s32 %rd5, [%rd1];
        st.global.u64 [%rd2+24], %rd5;
        ld.global.L1::no_allocate.v2.u64 {%rd6, %rd7}, [%rd1];
        st.global.cs.u64 [%rd2+32], %rd7;";
    let found = Case::new(body).block(1).output(&[0xffff_8580, 2, 3, 4], 10);
    assert_eq!(found, [4, 3, 0x0085_ff85, 0xffff_8580, 4, 0x3f80_0000, 0xffff_8580, 0xffff_ffff, 3, 4], "{found:x?}");
}

#[test]
fn shared_memory_carries_values_between_warps() {
    let body = case(
        "ld.global.u32 %r2, [%rd9];
        mov.u32 %r3, dyn;
        mad.lo.u32 %r4, %r1, 4, %r3;
        st.shared.u32 [%r4], %r2;
        bar.sync 0;
        mov.u64 %rd5, dyn;
        sub.u64 %rd6, %rd5, %rd3;
        ld.shared.u32 %r5, [%rd6+252];
        st.global.u32 [%rd10], %r5;",
    );
    let input: Vec<u32> = (0..64).map(|t| t * t).collect();
    let reversed: Vec<u32> = input.iter().rev().copied().collect();
    assert_eq!(Case::new(&body).shared().block(64).output(&input, 64), reversed);
}

#[test]
fn the_dynamic_part_begins_after_the_static_one() {
    let body = ".shared .align 4 .b8 fixed[20];
        mov.u32 %r2, fixed;
        mov.u32 %r3, dyn;
        st.global.v2.u32 [%rd2], {%r2, %r3};
        st.shared.u32 [fixed+16], 5;
        st.shared.u32 [dyn+4], 6;
        ld.shared.u32 %r4, [fixed+16];
        ld.shared.u32 %r5, [dyn+4];
        st.global.v2.u32 [%rd2+8], {%r4, %r5};";
    assert_eq!(Case::new(body).shared().block(1).output(&[], 4), [0, 32, 5, 6]);
}

#[test]
fn local_and_constant_memory_and_generic_addresses() {
    let body = case(
        ".local .align 8 .b8 stack[16];
        .shared .align 4 .b8 box[256];
        mov.u64 %rd4, stack;
        st.local.u32 [%rd4+8], %r1;
        cvta.local.u64 %rd5, %rd4;
        ld.u32 %r2, [%rd5+8];
        cvta.shared.u64 %rd6, box;
        add.s64 %rd6, %rd6, %rd3;
        st.u32 [%rd6], %r2;
        cvta.to.shared.u64 %rd7, %rd6;
        ld.shared.u32 %r3, [%rd7];
        ld.const.u32 %r4, [table+4];
        mad.lo.u32 %r5, %r3, %r4, 1;
        cvta.to.global.u64 %rd8, %rd10;
        st.u32 [%rd8], %r5;",
    );
    let found = Case::new(&body).outer(".const .align 4 .u32 table[3] = {5, 7};").block(64).output(&[], 64);
    assert_eq!(found, (0..64).map(|t| t * 7 + 1).collect::<Vec<u32>>());
}

#[test]
fn atomics_add_up_over_warps_and_blocks() {
    let body = "
        atom.global.add.u32 %r2, [%rd2], 1;
        red.global.max.s32 [%rd2+4], %r1;
        mov.f32 %f1, 0f3F000000;
        red.relaxed.gpu.global.add.f32 [%rd2+8], %f1;
        atom.global.cas.b32 %r3, [%rd2+12], 0, %r1;
        atom.global.or.b32 %r4, [%rd2+16], %r1;
        atom.global.exch.b32 %r5, [%rd2+20], 9;
        cvt.u64.u32 %rd5, %r1;
        atom.global.add.u64 %rd6, [%rd2+24], %rd5;";
    let (found, counts) = Case::new(body).block(64).grid(2).run(&[], 8).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(found, [128, 63, 64.0_f32.to_bits(), 1, 63, 9, 63 * 64, 0]);
    assert_eq!(counts.global.stored_bytes, 128 * (6 * 4 + 8));
    let body = case(
        "setp.ne.u32 %p1, %r1, 0;\n@!%p1 st.shared.u32 [dyn], 0;\nbar.sync 0;\natom.shared.add.u32 %r2, [dyn], 2;\n\
         bar.sync 0;\nld.shared.u32 %r3, [dyn];\nst.global.u32 [%rd10], %r3;",
    );
    assert_eq!(Case::new(&body).shared().block(96).output(&[], 96), [192; 96]);
}

/// Each thread copies 16 bytes (the last `short` of them zero) and, after the wait and a barrier, reads its neighbour's.
fn copy(wait: &str, barrier: &str, short: &str) -> String {
    format!(
        "mul.wide.u32 %rd3, %r1, 16;
        add.s64 %rd4, %rd1, %rd3;
        shl.b32 %r2, %r1, 4;
        mov.u32 %r3, dyn;
        add.u32 %r4, %r2, %r3;
        cp.async.cg.shared.global [%r4], [%rd4], 16{short};
        cp.async.commit_group;
        {wait}
        {barrier}
        xor.b32 %r5, %r4, 512;
        ld.shared.v4.u32 {{%r6, %r7, %r8, %r9}}, [%r5];
        add.s64 %rd5, %rd2, %rd3;
        st.global.v4.u32 [%rd5], {{%r6, %r7, %r8, %r9}};"
    )
}

#[test]
fn asynchronous_copies_land_eagerly_or_lazily() {
    let input: Vec<u32> = (0..256).collect();
    let expected: Vec<u32> = input.iter().map(|at| at ^ 128).collect();
    let right = copy("cp.async.wait_group 0;", "bar.sync 0;", "");
    assert_eq!(Case::new(&right).shared().block(64).output(&input, 256), expected);
    assert_eq!(Case::new(&right).shared().block(64).eager().output(&input, 256), expected);
    let all = copy("cp.async.wait_all;", "bar.sync 0;", "");
    assert_eq!(Case::new(&all).shared().block(64).output(&input, 256), expected);
    let zeros = copy("cp.async.wait_all;", "bar.sync 0;", ", 6");
    let found = Case::new(&zeros).shared().block(64).output(&input, 256);
    assert_eq!(found[4..8], [132, 133 & 0xffff, 0, 0]);
    // The source of a copy of nothing is not read.
    let none = copy("cp.async.wait_all;", "bar.sync 0;", ", 0");
    assert_eq!(Case::new(&none).shared().block(64).output(&[], 256), [0; 256]);
}

#[test]
fn a_missing_wait_or_barrier_is_found() {
    let input: Vec<u32> = (0..256).collect();
    for (wait, barrier) in
        [("", "bar.sync 0;"), ("cp.async.wait_group 1;", "bar.sync 0;"), ("cp.async.wait_group 0;", "")]
    {
        let body = copy(wait, barrier, "");
        for case in [Case::new(&body).shared().block(64), Case::new(&body).shared().block(64).eager()] {
            let fault = case.fault(&input, 256);
            let found = match &fault.kind {
                FaultKind::Race { space: MemorySpace::Shared, other, .. } => {
                    other.text.starts_with("cp.async.cg.shared.global")
                }
                // Without the barrier the first warp comes before the second has copied.
                FaultKind::Uninitialised { space: MemorySpace::Shared, .. } => barrier.is_empty(),
                _ => false,
            };
            assert!(found && fault.text.starts_with("ld.shared.v4.u32"), "{fault}");
        }
    }
    // Without checks only the laziness shows: shared memory still holds its poison.
    let body = copy("", "bar.sync 0;", "");
    assert_eq!(Case::new(&body).shared().block(64).unchecked().output(&input, 256), [u32::MAX; 256]);
    let eager = Case::new(&body).shared().block(64).unchecked().eager().output(&input, 256);
    assert_eq!(eager[..4], [128, 129, 130, 131]);
}

#[test]
fn groups_land_in_their_order() {
    let body = "
        shl.b32 %r2, %r1, 2;
        mov.u32 %r3, dyn;
        add.u32 %r4, %r2, %r3;
        mul.wide.u32 %rd3, %r1, 4;
        add.s64 %rd4, %rd1, %rd3;
        cp.async.ca.shared.global [%r4], [%rd4], 4;
        cp.async.commit_group;
        cp.async.ca.shared.global [%r4+128], [%rd4+128], 4;
        cp.async.commit_group;
        cp.async.wait_group 1;
        ld.shared.u32 %r5, [%r4];
        add.s64 %rd5, %rd2, %rd3;
        st.global.u32 [%rd5], %r5;
        cp.async.wait_group 0;
        ld.shared.u32 %r5, [%r4+128];
        st.global.u32 [%rd5+128], %r5;";
    let input: Vec<u32> = (0..64).collect();
    assert_eq!(Case::new(body).shared().output(&input, 64), input);
}

#[test]
fn counts_are_those_of_the_kernel() {
    let body = case(
        "ld.global.f32 %f1, [%rd9];
        fma.rn.f32 %f2, %f1, %f1, %f1;
        add.f32 %f2, %f2, %f1;
        max.f32 %f2, %f2, %f1;
        mad.lo.u32 %r4, %r1, 128, 0;
        and.b32 %r4, %r4, 4095;
        st.shared.f32 [%r4], %f2;
        bar.sync 0;
        setp.lt.u32 %p1, %r1, 8;
        @%p1 st.global.f32 [%rd10], %f2;",
    );
    let input = vec![0_u32; 40];
    let (_, counts) = Case::new(&body).shared().block(32).run(&input, 32).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(counts.float_operations, 32 * 3);
    assert_eq!((counts.global.loaded_bytes, counts.global.loaded_sectors), (128, 4));
    assert_eq!((counts.global.stored_bytes, counts.global.stored_sectors), (32, 1));
    assert_eq!((counts.shared.stored_bytes, counts.shared_bank_conflicts), (128, 31));
    assert_eq!((counts.barriers, counts.blocks), (1, 1));
    assert_eq!(counts.instructions.get("fma.rn.f32"), Some(&1));
    assert_eq!(counts.instructions.values().sum::<u64>(), counts.warp_instructions);
    assert_eq!(counts.lane_instructions, counts.warp_instructions * 32 - 24);
    let twice: Counts = counts.clone() + counts.clone();
    assert_eq!(twice.float_operations, 2 * counts.float_operations);
    assert_eq!(twice.instructions.get("fma.rn.f32"), Some(&2));
}

#[test]
fn a_launch_that_does_not_fit_is_refused() {
    let text = ".version 7.0\n.visible .entry k(\n.param .u64 a\n)\n.maxntid 64, 1, 1\n{\nret;\n}";
    let module = Module::parse(text).expect("it is right");
    let kernel = module.kernel("k").expect("it is there");
    let good = Params::new().push(0_u64);
    let arena = Arena::new();
    let launch = |block: u32, grid: u32, dynamic_shared: u32, params: &[u8]| {
        let checks = Checks::default();
        let launch = Launch { kernel, grid: [grid, 1, 1], block: [block, 1, 1], dynamic_shared, params, checks };
        run(&launch, &arena).map(|counts| counts.blocks).map_err(|fault| fault.to_string())
    };
    assert_eq!(launch(64, 2, 0, good.bytes()), Ok(2));
    let refused = |result: Result<u64, String>, part: &str| {
        let error = result.expect_err(part);
        assert!(error.starts_with("k: bad launch") && error.contains(part), "{error}");
    };
    refused(launch(65, 1, 0, good.bytes()), "compiled for 64");
    refused(launch(2000, 1, 0, good.bytes()), "more than 1024 threads");
    refused(launch(0, 1, 0, good.bytes()), "empty");
    refused(launch(32, 0, 0, good.bytes()), "empty");
    refused(launch(32, 1, 1 << 20, good.bytes()), "shared memory");
    refused(launch(32, 1, 0, &[0; 4]), "4 parameter bytes, the kernel takes 8");
}

/// Memory whose reads are counted: neighbouring lanes have to be served together.
struct Counting(Arena, std::cell::Cell<u32>);

impl Memory for Counting {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), insula_ptxsim::OutOfBounds> {
        self.1.set(self.1.get() + 1);
        self.0.read(address, into)
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), insula_ptxsim::OutOfBounds> {
        self.0.write(address, from)
    }
}

#[test]
fn neighbouring_lanes_cost_one_call() {
    let text = support::module("", &case("ld.global.u32 %r2, [%rd9];\nst.global.u32 [%rd10], %r2;"));
    let module = Module::parse(&text).expect("it is right");
    let memory = Counting(Arena::new(), 0.into());
    let input: Vec<u32> = (0..64).collect();
    let (from, to) = (memory.0.upload(&input), memory.0.alloc(256));
    let params = Params::new().push(from).push(to);
    let kernel = module.kernel("k").expect("it is there");
    let checks = Checks::default();
    let launch =
        Launch { kernel, grid: [1, 1, 1], block: [64, 1, 1], dynamic_shared: 0, params: params.bytes(), checks };
    run(&launch, &memory).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(memory.1.get(), 2, "one read a warp");
    assert_eq!(memory.0.download::<u32>(to, 64), Ok(input));
}
