//! Each check fires on a small wrong kernel and is silent on its right twin.

mod support;

use insula_ptxsim::{Arena, Checks, Fault, FaultKind, Launch, MemorySpace, Module, Params, run};
use support::Case;

const POINTERS: &str = "mul.wide.u32 %rd3, %r1, 4;\nadd.s64 %rd9, %rd1, %rd3;\nadd.s64 %rd10, %rd2, %rd3;\n\
                        mov.u32 %r2, dyn;\nmad.lo.u32 %r4, %r1, 4, %r2;\n";

/// Runs the body in `block` threads: 64 words in, 64 words out.
fn outcome(body: &str, block: u32, grid: u32) -> Result<Vec<u32>, Fault> {
    let body = format!("{POINTERS}{body}");
    let input: Vec<u32> = (0..64).collect();
    Case::new(&body).shared().block(block).grid(grid).run(&input, 64).map(|(out, _)| out)
}

#[track_caller]
fn fault(body: &str, block: u32, grid: u32) -> Fault {
    outcome(body, block, grid).expect_err(body)
}

#[track_caller]
fn silent(body: &str, block: u32, grid: u32) {
    if let Err(fault) = outcome(body, block, grid) {
        panic!("{fault} in {body}");
    }
}

#[test]
fn an_access_beyond_an_allocation_names_lane_and_allocation() {
    let fault = fault("ld.global.u32 %r5, [%rd9+200];", 32, 1);
    let FaultKind::OutOfBounds(bounds) = &fault.kind else { panic!("{fault}") };
    let (start, bytes) = bounds.nearest.expect("the input lies below");
    assert_eq!((bounds.address - start, bytes, bounds.bytes), (256, 256, 4));
    assert_eq!((fault.lanes, fault.warp, fault.block), (1 << 14, 0, [0; 3]));
    let message = fault.to_string();
    assert!(message.contains("k: out of bounds: 4 bytes at 0x7000"), "{message}");
    assert!(message.contains("lanes 14, ptx line 24 `ld.global.u32 %r5, [%rd9+200]`"), "{message}");
    silent("ld.global.u32 %r5, [%rd9+128];", 32, 1);
}

#[test]
fn a_store_beyond_an_allocation_or_to_a_freed_one_is_found() {
    let kind = |body: &str| fault(body, 64, 1).kind;
    assert!(matches!(kind("st.global.u32 [%rd10+4], %r1;"), FaultKind::OutOfBounds(_)));
    assert!(matches!(kind("st.global.u32 [%rd10+-4], %r1;"), FaultKind::OutOfBounds(_)));
    silent("st.global.u32 [%rd10], %r1;", 64, 1);

    let module = Module::parse(&support::module("", "st.global.u32 [%rd2], %r1;")).expect("it is right");
    let arena = Arena::new();
    let gone = arena.alloc(64);
    arena.free(gone).expect("it is live");
    let params = Params::new().push(0_u64).push(gone);
    let kernel = module.kernel("k").expect("it is there");
    let checks = Checks::default();
    let launch =
        Launch { kernel, grid: [1, 1, 1], block: [1, 1, 1], dynamic_shared: 0, params: params.bytes(), checks };
    let FaultKind::OutOfBounds(bounds) = run(&launch, &arena).expect_err("it was freed").kind else { panic!() };
    assert!(bounds.freed);
}

#[test]
fn misaligned_accesses_are_found_in_every_space() {
    for (body, space, width) in [
        ("ld.global.u32 %r5, [%rd9+2];", MemorySpace::Global, 4),
        ("ld.global.v2.u32 {%r5, %r6}, [%rd9];", MemorySpace::Global, 8),
        ("st.shared.u32 [%r4+1], %r1;", MemorySpace::Shared, 4),
        ("cp.async.cg.shared.global [%r4], [%rd1], 16;", MemorySpace::Shared, 16),
        ("cp.async.cg.shared.global [dyn], [%rd9], 16;", MemorySpace::Global, 16),
        ("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r5}, [%r4];", MemorySpace::Shared, 16),
        ("atom.global.add.u32 %r5, [%rd10+1], 1;", MemorySpace::Global, 4),
    ] {
        match fault(body, 32, 1).kind {
            FaultKind::Misaligned { space: found, width: by, .. } => assert_eq!((found, by), (space, width), "{body}"),
            other => panic!("{other} in {body}"),
        }
    }
    silent("ld.global.v2.u32 {%r5, %r6}, [%rd1+8];", 32, 1);
}

#[test]
fn accesses_beyond_shared_local_and_param_memory_are_found() {
    for (body, expected) in [
        ("st.shared.u32 [%r4+4092], %r1;", (MemorySpace::Shared, 4096, 4096)),
        ("ld.shared.u32 %r5, [%r4+-4];", (MemorySpace::Shared, 0xffff_fffc, 4096)),
        ("cp.async.ca.shared.global [%r4+4096], [%rd9], 4;", (MemorySpace::Shared, 4096, 4096)),
        (".local .align 4 .b8 box[8];\nst.local.u32 [box+8], %r1;", (MemorySpace::Local, 8, 8)),
        ("ld.param.u32 %r5, [k_out+8];", (MemorySpace::Param, 16, 16)),
    ] {
        match fault(body, 32, 1).kind {
            FaultKind::BeyondSpace { space, address, size, .. } => {
                assert_eq!((space, address, size), expected, "{body}")
            }
            other => panic!("{other} in {body}"),
        }
    }
    silent("st.shared.u32 [%r4+3968], %r1;", 32, 1);
}

#[test]
fn reads_of_unwritten_shared_and_local_memory_are_found() {
    let kind = |body: &str| fault(body, 32, 1).kind;
    let shared = kind("st.shared.u32 [%r4], %r1;\nbar.sync 0;\nld.shared.u32 %r5, [%r4+4];");
    assert_eq!(shared, FaultKind::Uninitialised { space: MemorySpace::Shared, address: 128 });
    let local = kind(".local .align 4 .b8 box[8];\nst.local.u32 [box], %r1;\nld.local.u32 %r5, [box+4];");
    assert_eq!(local, FaultKind::Uninitialised { space: MemorySpace::Local, address: 4 });
    let matrix =
        kind("st.shared.u32 [%r4], %r1;\nbar.sync 0;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r5}, [dyn+128];");
    assert_eq!(matrix, FaultKind::Uninitialised { space: MemorySpace::Shared, address: 128 });
    let atomic = kind("atom.shared.add.u32 %r5, [dyn], 1;");
    assert_eq!(atomic, FaultKind::Uninitialised { space: MemorySpace::Shared, address: 0 });
    silent("st.shared.u32 [%r4], %r1;\nbar.sync 0;\nld.shared.u32 %r5, [%r4];", 32, 1);
    // What one block wrote is gone for the next.
    let body =
        "mov.u32 %r6, %ctaid.x;\nsetp.eq.u32 %p1, %r6, 0;\n@%p1 st.shared.u32 [%r4], %r1;\nld.shared.u32 %r5, [%r4];";
    let second = fault(body, 32, 2);
    assert_eq!(second.block, [1, 0, 0]);
    assert!(matches!(second.kind, FaultKind::Uninitialised { .. }), "{second}");
}

/// Each thread writes its word, then reads the other warp's.
const EXCHANGE: &str = "st.shared.u32 [%r4], %r1;\nBARRIER\nxor.b32 %r6, %r4, 128;\nld.shared.u32 %r5, [%r6];\n\
                        st.global.u32 [%rd10], %r5;";

fn race(fault: &Fault) -> (MemorySpace, &str, &str, &str, &str) {
    match &fault.kind {
        FaultKind::Race { space, what, other, .. } => (*space, what, other.what, &other.who, &other.text),
        _ => panic!("{fault}"),
    }
}

#[test]
fn a_read_after_another_warps_write_needs_a_barrier() {
    let right = EXCHANGE.replace("BARRIER", "bar.sync 0;");
    silent(&right, 64, 1);
    let wrong = format!("st.shared.u32 [%r4], %r1;\nbar.sync 0;\n{}", EXCHANGE.replace("BARRIER", ""));
    let fault = fault(&wrong, 64, 1);
    // Warp 0 runs first and reads what warp 1 wrote before the barrier; warp 1's second write meets that read.
    assert_eq!(race(&fault), (MemorySpace::Shared, "write", "read", "warp 0", "ld.shared.u32 %r5, [%r6]"));
    assert_eq!((fault.warp, fault.text.as_str()), (1, "st.shared.u32 [%r4], %r1"));
    // Within one warp lanes are in step: no race between warps.
    silent(&EXCHANGE.replace("BARRIER", "bar.warp.sync -1;").replace("128", "4"), 32, 1);
}

#[test]
fn a_read_of_what_another_warp_wrote_since_the_barrier_is_a_race() {
    let body = "setp.lt.u32 %p1, %r1, 32;\n@%p1 st.shared.u32 [%r4], %r1;\nBARRIER\nsub.u32 %r6, %r4, 128;\n\
                @!%p1 ld.shared.u32 %r5, [%r6];";
    let fault = fault(&body.replace("BARRIER", ""), 64, 1);
    assert_eq!(race(&fault), (MemorySpace::Shared, "read", "write", "warp 0", "@%p1 st.shared.u32 [%r4], %r1"));
    assert_eq!((fault.warp, fault.lanes), (1, 1));
    silent(&body.replace("BARRIER", "bar.sync 0;"), 64, 1);
}

#[test]
fn two_warps_must_not_write_the_same_shared_bytes() {
    let fault = fault("st.shared.u32 [dyn], %r1;", 64, 1);
    assert_eq!(race(&fault), (MemorySpace::Shared, "write", "write", "warp 0", "st.shared.u32 [dyn], %r1"));
    silent("st.shared.u32 [dyn], %r1;", 32, 1);
    // Neighbouring halves of one word are different bytes.
    silent("shl.b32 %r6, %r1, 1;\nadd.u32 %r6, %r6, %r2;\ncvt.u16.u32 %rs1, %r1;\nst.shared.u16 [%r6], %rs1;", 64, 1);
    silent(
        "shr.u32 %r6, %r1, 5;\nadd.u32 %r6, %r6, %r2;\nsetp.eq.u32 %p1, %r1, 0;\nsetp.eq.u32 %p2, %r1, 32;\n\
            or.pred %p1, %p1, %p2;\ncvt.u16.u32 %rs1, %r1;\n@%p1 st.shared.u8 [%r6], %rs1;",
        64,
        1,
    );
    // Readers of one word do not disturb each other, but a later writer does.
    let readers = "setp.eq.u32 %p1, %r1, 0;\n@%p1 st.shared.u32 [dyn], 1;\nbar.sync 0;\nld.shared.u32 %r5, [dyn];";
    silent(readers, 64, 1);
    let body = format!("{readers}\nBARRIER\nsetp.eq.u32 %p1, %r1, 63;\n@%p1 st.shared.u32 [dyn], 2;");
    assert_eq!(race(&self::fault(&body.replace("BARRIER", ""), 64, 1)).3, "several warps");
    silent(&body.replace("BARRIER", "bar.sync 0;"), 64, 1);
}

#[test]
fn lanes_of_a_warp_must_meet_before_they_read_each_others_words() {
    // Reads after writes: any warp-wide instruction but bar.warp.sync orders no memory.
    for between in ["", "shfl.sync.bfly.b32 %r7, %r1, 1, 31, -1;"] {
        let body = EXCHANGE.replace("BARRIER", between).replace("128", "4");
        let fault = fault(&body, 32, 1);
        let (space, what, other, who, text) = race(&fault);
        assert_eq!((space, what, other), (MemorySpace::Shared, "read", "write"));
        assert_eq!((who, text, fault.lanes), ("lane 1 of the same warp", "st.shared.u32 [%r4], %r1", 1));
    }
    for between in ["bar.warp.sync -1;", "bar.sync 0;"] {
        silent(&EXCHANGE.replace("BARRIER", between).replace("128", "4"), 32, 1);
    }
    // Writes after reads.
    let body = "st.shared.u32 [%r4], %r1;\nbar.warp.sync -1;\nxor.b32 %r6, %r4, 4;\nld.shared.u32 %r5, [%r6];\nMEET\n\
                st.shared.u32 [%r4], %r5;";
    assert_eq!(race(&self::fault(&body.replace("MEET", ""), 32, 1)).2, "read");
    silent(&body.replace("MEET", "bar.warp.sync -1;"), 32, 1);
    // A matrix load reads all rows for all lanes.
    let body = "shl.b32 %r6, %r1, 4;\nadd.u32 %r6, %r6, %r2;\nst.shared.v4.u32 [%r6], {%r1, %r1, %r1, %r1};\nMEET\n\
                ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r7, %r8, %r9, %r10}, [%r6];";
    assert_eq!(race(&self::fault(&body.replace("MEET", ""), 32, 1)).1, "read");
    silent(&body.replace("MEET", "bar.warp.sync -1;"), 32, 1);
    // A lane may read its own word, and all lanes may store one value.
    silent("st.shared.u32 [%r4], %r1;\nld.shared.u32 %r5, [%r4];\nst.shared.u32 [dyn+128], 1;", 32, 1);
    // The waiting lane alone sees its copy.
    let body = "cp.async.ca.shared.global [%r4], [%rd9], 4;\ncp.async.wait_all;\nMEET\nxor.b32 %r6, %r4, 4;\nld.shared.u32 %r5, [%r6];";
    let fault = fault(&body.replace("MEET", ""), 32, 1);
    assert_eq!(race(&fault).4, "cp.async.ca.shared.global [%r4], [%rd9], 4");
    silent(&body.replace("MEET", "bar.warp.sync -1;"), 32, 1);
}

#[test]
fn warps_of_a_block_race_in_global_memory_too() {
    let body = "st.global.u32 [%rd10], %r1;\nBARRIER\nxor.b32 %r6, %r1, 32;\nmul.wide.u32 %rd5, %r6, 4;\n\
                add.s64 %rd5, %rd2, %rd5;\nld.global.u32 %r5, [%rd5];";
    let fault = fault(&body.replace("BARRIER", ""), 64, 1);
    assert_eq!(race(&fault), (MemorySpace::Global, "write", "read", "warp 0", "ld.global.u32 %r5, [%rd5]"));
    silent(&body.replace("BARRIER", "bar.sync 0;"), 64, 1);
}

#[test]
fn blocks_race_whatever_barriers_there_are() {
    let fault = fault("bar.sync 0;\nst.global.u32 [%rd10], %r1;\nbar.sync 0;", 32, 2);
    assert_eq!(
        race(&fault),
        (MemorySpace::Global, "write", "write", "block (0,0,0) warp 0", "st.global.u32 [%rd10], %r1")
    );
    assert_eq!(fault.block, [1, 0, 0]);
    // Reading what another block writes.
    let reading = "mov.u32 %r6, %ctaid.x;\nsetp.eq.u32 %p1, %r6, 0;\n@%p1 st.global.u32 [%rd10], 1;\n\
                   @!%p1 ld.global.u32 %r5, [%rd10];";
    assert_eq!(race(&self::fault(reading, 32, 2)).1, "read");
    // Writing what other blocks have read.
    let writing =
        "mov.u32 %r6, %ctaid.x;\nld.global.u32 %r5, [%rd9];\nsetp.eq.u32 %p1, %r6, 2;\n@%p1 st.global.u32 [%rd9], 1;";
    assert_eq!(race(&self::fault(writing, 32, 3)).3, "several blocks");
    silent("ld.global.u32 %r5, [%rd9];\nred.global.add.u32 [%rd10], 1;", 32, 3);
    // An atomic and a plain store do race.
    let mixed = "mov.u32 %r6, %ctaid.x;\nsetp.eq.u32 %p1, %r6, 0;\n@%p1 st.global.u32 [%rd10], 1;\n@!%p1 red.global.add.u32 [%rd10], 1;";
    assert_eq!(race(&self::fault(mixed, 32, 2)).1, "write");
    // Blocks that write different words.
    let apart =
        "mov.u32 %r6, %ctaid.x;\nmul.wide.u32 %rd5, %r6, 128;\nadd.s64 %rd10, %rd10, %rd5;\nst.global.u32 [%rd10], 1;";
    silent(apart, 32, 2);
}

#[test]
fn a_read_only_load_of_what_the_launch_writes_is_found() {
    let body = "st.global.u32 [%rd10], %r1;\nbar.sync 0;\nld.globalNC.u32 %r5, [%rd10];";
    let fault = fault(&body.replace("NC", ".nc"), 32, 1);
    assert_eq!(race(&fault).1, "read-only load");
    silent(&body.replace("NC", ""), 32, 1);
}

#[test]
fn a_uniform_branch_that_diverges_is_found() {
    let body = "setp.lt.u32 %p1, %r1, SPLIT;\n@%p1 bra.uni OUT;\nmov.u32 %r5, 1;\nOUT:";
    let fault = fault(&body.replace("SPLIT", "5"), 32, 1);
    assert_eq!(fault.kind, FaultKind::NotConverged { active: 31, needed: u32::MAX });
    silent(&body.replace("SPLIT", "32"), 32, 1);
}

#[test]
fn switched_off_checks_find_nothing() {
    let body = format!("{POINTERS}st.shared.u32 [dyn], %r1;\nld.shared.u32 %r5, [dyn+64];\nst.global.u32 [%rd2], %r1;");
    let case = Case::new(&body).shared().block(64).grid(2);
    assert!(matches!(case.fault(&[], 1).kind, FaultKind::Uninitialised { .. }));
    assert_eq!(Case::new(&body).shared().block(64).grid(2).unchecked().output(&[], 1), [63]);
}
