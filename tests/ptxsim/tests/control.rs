//! Branches, loops, exits, and what lanes say to each other.

mod support;

use insula_ptxsim::FaultKind;
use support::Case;

/// Stores %r9 at out[tid].
const STORE: &str = "mul.wide.u32 %rd9, %r1, 4;\nadd.s64 %rd9, %rd2, %rd9;\nst.global.u32 [%rd9], %r9;";

fn per_thread(body: &str, input: &[u32], threads: u32) -> Vec<u32> {
    let body = format!("{body}\n{STORE}");
    Case::new(&body).block(threads).output(input, threads as usize)
}

#[test]
fn an_if_and_its_else_join_again() {
    let body = "
        setp.lt.u32 %p1, %r1, 5;
        @%p1 bra LESS;
        mul.lo.u32 %r9, %r1, 10;
        bra JOINED;
        LESS: add.u32 %r9, %r1, 100;
        JOINED:
        activemask.b32 %r2;
        add.u32 %r9, %r9, %r2;";
    let expected: Vec<u32> =
        (0..32).map(|t: u32| (if t < 5 { t + 100 } else { t * 10 }).wrapping_add(u32::MAX)).collect();
    assert_eq!(per_thread(body, &[], 32), expected);
}

#[test]
fn lanes_leave_a_loop_at_different_laps() {
    // The Collatz steps of tid + 1.
    let body = "
        add.u32 %r2, %r1, 1;
        mov.u32 %r9, 0;
        LAP:
        setp.eq.u32 %p1, %r2, 1;
        @%p1 bra OUT;
        and.b32 %r3, %r2, 1;
        setp.eq.u32 %p2, %r3, 0;
        @%p2 bra EVEN;
        mad.lo.u32 %r2, %r2, 3, 1;
        bra.uni NEXT;
        EVEN: shr.u32 %r2, %r2, 1;
        NEXT: add.u32 %r9, %r9, 1;
        bra LAP;
        OUT:";
    // bra.uni of a group that is not the whole warp is right: the group is uniform.
    let steps = |mut n: u32| {
        let mut count = 0;
        while n != 1 {
            n = if u32::is_multiple_of(n, 2) { n / 2 } else { 3 * n + 1 };
            count += 1;
        }
        count
    };
    let expected: Vec<u32> = (1..=64).map(steps).collect();
    assert_eq!(per_thread(body, &[], 64), expected);
}

#[test]
fn guards_and_early_exits_end_single_lanes() {
    let body = format!("mov.u32 %r9, 7;\nsetp.gt.u32 %p1, %r1, 3;\n@%p1 ret;\n@!%p1 add.u32 %r9, %r9, %r1;\n{STORE}");
    assert_eq!(Case::new(&body).output(&[], 6), [7, 8, 9, 10, 0, 0]);
}

#[test]
fn special_registers_count_threads_and_blocks() {
    let body = "
        mov.u32 %r2, %ctaid.x;
        mov.u32 %r3, %ntid.x;
        mad.lo.u32 %r1, %r2, %r3, %r1;
        mov.u32 %r4, %nctaid.x;
        mov.u32 %r5, %laneid;
        mov.u32 %r6, %lanemask_lt;
        popc.b32 %r6, %r6;
        mad.lo.u32 %r9, %r2, 100000, %r5;
        mad.lo.u32 %r9, %r4, 1000, %r9;
        mad.lo.u32 %r9, %r6, 100, %r9;";
    let body = format!("{body}\n{STORE}");
    let found = Case::new(&body).block(48).grid(3).output(&[], 144);
    let expected: Vec<u32> = (0..144).map(|t| t / 48 * 100_000 + 3000 + t % 48 % 32 * 101).collect();
    assert_eq!(found, expected);
}

#[test]
fn shuffles_move_values_and_say_whether_they_came_from_inside() {
    let shuffled = |instruction: &str| per_thread(&format!("add.u32 %r2, %r1, 1000;\n{instruction}"), &[], 32);
    let of = |f: fn(u32) -> u32| (0..32).map(f).collect::<Vec<u32>>();
    assert_eq!(shuffled("shfl.sync.bfly.b32 %r9, %r2, 16, 31, -1;"), of(|t| 1000 + (t ^ 16)));
    assert_eq!(shuffled("shfl.sync.down.b32 %r9, %r2, 4, 31, -1;"), of(|t| 1000 + if t < 28 { t + 4 } else { t }));
    assert_eq!(shuffled("shfl.sync.up.b32 %r9, %r2, 4, 0, -1;"), of(|t| 1000 + if t >= 4 { t - 4 } else { t }));
    assert_eq!(shuffled("shfl.sync.idx.b32 %r9, %r2, 3, 31, -1;"), of(|_| 1003));
    // Segments of 8 lanes: c = ((32 - 8) << 8) | 31.
    assert_eq!(shuffled("shfl.sync.idx.b32 %r9, %r2, 1, 6175, -1;"), of(|t| 1000 + t / 8 * 8 + 1));
    assert_eq!(
        shuffled("shfl.sync.down.b32 %r9|%p1, %r2, 1, 6175, -1;\nselp.u32 %r9, 1, 0, %p1;"),
        of(|t| u32::from(t % 8 != 7))
    );
}

#[test]
fn votes_and_reductions_see_all_members() {
    let voted = |instruction: &str| per_thread(&format!("setp.gt.u32 %p1, %r1, 20;\n{instruction}"), &[], 32);
    assert_eq!(voted("vote.sync.ballot.b32 %r9, %p1, -1;"), [0xffe0_0000; 32]);
    assert_eq!(voted("vote.sync.any.pred %p2, %p1, -1;\nselp.u32 %r9, 1, 0, %p2;"), [1; 32]);
    assert_eq!(voted("vote.sync.all.pred %p2, %p1, -1;\nselp.u32 %r9, 1, 0, %p2;"), [0; 32]);
    assert_eq!(voted("vote.sync.uni.pred %p2, %p1, -1;\nselp.u32 %r9, 1, 0, %p2;"), [0; 32]);
    assert_eq!(voted("redux.sync.add.s32 %r9, %r1, -1;"), [496; 32]);
    assert_eq!(voted("redux.sync.max.u32 %r9, %r1, -1;"), [31; 32]);
    assert_eq!(voted("sub.s32 %r2, %r1, 5;\nredux.sync.min.s32 %r9, %r2, -1;"), [(-5_i32) as u32; 32]);
}

#[test]
fn a_barrier_can_reduce_over_the_block() {
    let reduced = |instruction: &str| per_thread(&format!("setp.gt.u32 %p1, %r1, 20;\n{instruction}"), &[], 96);
    assert_eq!(reduced("bar.red.popc.u32 %r9, 0, %p1;"), [75; 96]);
    assert_eq!(reduced("bar.red.or.pred %p2, 0, %p1;\nselp.u32 %r9, 1, 0, %p2;"), [1; 96]);
    assert_eq!(reduced("bar.red.and.pred %p2, 0, %p1;\nselp.u32 %r9, 1, 0, %p2;"), [0; 96]);
}

#[test]
fn a_shuffle_within_a_branch_needs_its_own_mask() {
    let body = |mask: &str| {
        format!(
            "mov.u32 %r9, 0;\nsetp.ge.u32 %p1, %r1, 16;\n@%p1 bra OUT;\n\
             shfl.sync.bfly.b32 %r9, %r1, 1, 31, {mask};\nOUT:\n{STORE}"
        )
    };
    let wrong = Case::new(&body("-1")).fault(&[], 32);
    assert_eq!(wrong.kind, FaultKind::NotConverged { active: 0xffff, needed: u32::MAX });
    assert_eq!((wrong.text.as_str(), wrong.lanes, wrong.warp), ("shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1", 0xffff, 0));
    let right = Case::new(&body("0xffff")).output(&[], 32);
    assert_eq!(right[..16], (0..16).map(|t| t ^ 1).collect::<Vec<u32>>());
    // Reading from a lane that takes no part.
    let outside = Case::new(&body("0xffff").replace("%r1, 1, 31", "%r1, 16, 31")).fault(&[], 32);
    assert_eq!(outside.kind, FaultKind::ShuffleSource { source: 16 });
}

#[test]
fn lanes_that_come_early_stand_until_the_others_come() {
    // The compiler lays the loop of one branch out after the shuffle that follows the branch.
    let body = format!(
        "mov.u32 %r9, 0;\nmov.u32 %r2, 3;\nsetp.ge.u32 %p1, %r1, 16;\n@%p1 bra LOOP;\n\
         JOINED: shfl.sync.bfly.b32 %r9, %r2, 16, 31, -1;\nbar.sync 0;\nbra STORE;\n\
         LOOP: add.u32 %r2, %r2, %r1;\nsetp.lt.u32 %p2, %r2, 100;\n@%p2 bra LOOP;\nbra JOINED;\nSTORE:\n{STORE}"
    );
    let looped = |t: u32| (1..).map(|laps| 3 + laps * t).find(|&x| x >= 100).expect("some lap");
    let expected: Vec<u32> = (0..32).map(|t| if t < 16 { looped(t + 16) } else { 3 }).collect();
    let (found, counts) = Case::new(&body).run(&[], 32).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(found, expected);
    assert_eq!(counts.instructions.get("shfl.sync.bfly.b32"), Some(&1), "what did not run is not counted");
    // Two groups that wait for each other at different instructions will wait for ever.
    let body = "setp.lt.u32 %p1, %r1, 16;\n@%p1 bra LOW;\nbar.warp.sync -1;\nbra OUT;\nLOW: bar.warp.sync -1;\nOUT:";
    assert!(matches!(Case::new(body).fault(&[], 1).kind, FaultKind::NotConverged { .. }));
}

#[test]
fn matrix_instructions_need_the_whole_warp() {
    let mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, {%r2,%r3,%r4,%r5}, {%r6,%r7}, {%f1,%f2,%f3,%f4};";
    let fault = Case::new(&format!("setp.eq.u32 %p1, %r1, 0;\n@!%p1 {mma}")).fault(&[], 1);
    assert_eq!(fault.kind, FaultKind::NotConverged { active: !1, needed: u32::MAX });
    Case::new(mma).output(&[], 1);
    let fault = Case::new(mma).block(16).fault(&[], 1);
    assert_eq!(fault.kind, FaultKind::NotConverged { active: 0xffff, needed: u32::MAX });
}

#[test]
fn barriers_that_not_all_threads_meet_are_faults() {
    let divergence = |body: &str| match Case::new(body).block(64).fault(&[], 1).kind {
        FaultKind::BarrierDivergence(how) => how,
        other => panic!("{other}"),
    };
    // Half of a warp.
    let how = divergence("setp.lt.u32 %p1, %r1, 16;\n@!%p1 bra OUT;\nbar.sync 0;\nOUT:");
    assert!(how.contains("lanes 0000ffff come"), "{how}");
    // A whole warp has exited.
    let how = divergence("setp.ge.u32 %p1, %r1, 32;\n@%p1 ret;\nbar.sync 0;");
    assert_eq!(how, "warp 1 has exited");
    // Two barriers.
    let how = divergence("setp.ge.u32 %p1, %r1, 32;\n@%p1 bra HIGH;\nbar.sync 0;\nbra OUT;\nHIGH: bar.sync 1;\nOUT:");
    assert!(how.starts_with("warp 1 waits at line ") && how.ends_with("`bar.sync 1`"), "{how}");
    // Some lanes have exited.
    let how = divergence("setp.eq.u32 %p1, %r1, 3;\n@%p1 ret;\nbar.sync 0;");
    assert!(how.contains("lanes 00000008 have exited"), "{how}");
    Case::new("bar.sync 0;\nbarrier.sync.aligned 0;\nbar.warp.sync -1;").block(50).output(&[], 1);
}
