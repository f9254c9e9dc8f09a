//! PTX kernels and graphs through cudarc on the stand-in.
#![expect(unsafe_code, reason = "launches are unsafe")]
#![expect(clippy::disallowed_methods, reason = "the shipped kernels are files")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;

use cudarc::driver::sys::{CUfunction_attribute, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use support::{name_of, on_fakecuda};

/// `scale(f32 *x, f32 factor, u32 n)`: x[i] *= factor for i < n; launch bounds 128.
/// `shift(f32 *x)`: every thread takes its right neighbour's element through dynamic shared memory, without a barrier.
const PTX: &str = "
.version 7.0
.target sm_80
.address_size 64

.extern .shared .align 16 .b8 room[];

.visible .entry scale(
	.param .u64 scale_param_0,
	.param .f32 scale_param_1,
	.param .u32 scale_param_2
)
.maxntid 128, 1, 1
{
	.reg .pred 	%p<2>;
	.reg .f32 	%f<4>;
	.reg .b32 	%r<6>;
	.reg .b64 	%rd<5>;

	ld.param.u64 	%rd1, [scale_param_0];
	ld.param.f32 	%f1, [scale_param_1];
	ld.param.u32 	%r2, [scale_param_2];
	mov.u32 	%r3, %ctaid.x;
	mov.u32 	%r4, %ntid.x;
	mov.u32 	%r5, %tid.x;
	mad.lo.s32 	%r1, %r3, %r4, %r5;
	setp.ge.u32 	%p1, %r1, %r2;
	@%p1 bra 	$L__BB0_2;
	cvta.to.global.u64 	%rd2, %rd1;
	mul.wide.u32 	%rd3, %r1, 4;
	add.s64 	%rd4, %rd2, %rd3;
	ld.global.f32 	%f2, [%rd4];
	mul.f32 	%f3, %f2, %f1;
	st.global.f32 	[%rd4], %f3;
$L__BB0_2:
	ret;
}

.visible .entry shift(
	.param .u64 shift_param_0
)
{
	.reg .f32 	%f<3>;
	.reg .b32 	%r<7>;
	.reg .b64 	%rd<5>;

	ld.param.u64 	%rd1, [shift_param_0];
	cvta.to.global.u64 	%rd2, %rd1;
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd3, %r1, 4;
	add.s64 	%rd4, %rd2, %rd3;
	ld.global.f32 	%f1, [%rd4];
	shl.b32 	%r2, %r1, 2;
	mov.u32 	%r3, room;
	add.s32 	%r4, %r3, %r2;
	st.shared.f32 	[%r4], %f1;
	xor.b32 	%r5, %r2, 128;
	add.s32 	%r6, %r3, %r5;
	ld.shared.f32 	%f2, [%r6];
	st.global.f32 	[%rd4], %f2;
	ret;
}
";

struct Bench {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    scale: CudaFunction,
    shift: CudaFunction,
}

impl Bench {
    fn new() -> Bench {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let module = context.load_module(Ptx::from_src(PTX)).unwrap();
        let [scale, shift] = ["scale", "shift"].map(|name| module.load_function(name).unwrap());
        assert_eq!(name_of(module.load_function("absent")), "CUDA_ERROR_NOT_FOUND");
        Bench { context, stream, scale, shift }
    }

    fn scale(&self, x: &mut CudaSlice<f32>, n: u32, threads: u32) -> Result<(), cudarc::driver::DriverError> {
        let shape =
            LaunchConfig { grid_dim: (n.div_ceil(threads), 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        let factor = 3_f32;
        unsafe { self.stream.launch_builder(&self.scale).arg(x).arg(&factor).arg(&n).launch(shape) }.map(drop)
    }
}

#[test]
fn a_kernel_computes() {
    on_fakecuda("a_kernel_computes", &[], || {
        let bench = Bench::new();
        let mut x = bench.stream.clone_htod(&(0..1000).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
        bench.scale(&mut x, 999, 128).unwrap();
        let back = bench.stream.clone_dtoh(&x).unwrap();
        assert!(back.iter().enumerate().all(|(i, y)| *y == i as f32 * if i < 999 { 3.0 } else { 1.0 }));
    });
}

#[test]
fn a_text_that_is_no_ptx_is_refused() {
    let said = on_fakecuda("a_text_that_is_no_ptx_is_refused", &[], || {
        let context = CudaContext::new(0).unwrap();
        let broken = PTX.replace("mul.f32", "mul.oops");
        assert_eq!(name_of(context.load_module(Ptx::from_src(broken))), "CUDA_ERROR_INVALID_PTX");
    });
    assert!(said.err.contains("fakecuda: PTX:"), "{}", said.err);
}

#[test]
fn a_launch_beyond_the_bounds_is_refused_and_does_not_stick() {
    on_fakecuda("a_launch_beyond_the_bounds_is_refused_and_does_not_stick", &[], || {
        let bench = Bench::new();
        let mut x = bench.stream.alloc_zeros::<f32>(8).unwrap();
        assert_eq!(name_of(bench.scale(&mut x, 8, 256)), "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES");
        assert_eq!(name_of(bench.scale(&mut x, 8, 2048)), "CUDA_ERROR_INVALID_VALUE");
        bench.scale(&mut x, 8, 128).unwrap();
        bench.stream.synchronize().unwrap();
    });
}

#[test]
fn dynamic_shared_memory_must_be_asked_for() {
    on_fakecuda("dynamic_shared_memory_must_be_asked_for", &[], || {
        let bench = Bench::new();
        let mut x = bench.stream.clone_htod(&[5_f32; 32]).unwrap();
        let mut launch = |bytes| {
            let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: bytes };
            unsafe { bench.stream.launch_builder(&bench.shift).arg(&mut x).launch(shape) }.map(drop)
        };
        assert_eq!(name_of(launch(100 << 10)), "CUDA_ERROR_INVALID_VALUE");
        let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        assert_eq!(name_of(bench.shift.set_attribute(most, 200 << 10)), "CUDA_ERROR_INVALID_VALUE");
        bench.shift.set_attribute(most, 100 << 10).unwrap();
        launch(100 << 10).unwrap();
    });
}

#[test]
fn an_access_out_of_bounds_is_told_and_sticks() {
    let said = on_fakecuda("an_access_out_of_bounds_is_told_and_sticks", &[], || {
        let bench = Bench::new();
        let mut x = bench.stream.alloc_zeros::<f32>(100).unwrap();
        bench.scale(&mut x, 101, 128).unwrap();
        assert_eq!(name_of(bench.stream.synchronize()), "CUDA_ERROR_ILLEGAL_ADDRESS");
        assert_eq!(name_of(bench.stream.alloc_zeros::<f32>(1)), "CUDA_ERROR_ILLEGAL_ADDRESS");
        assert_eq!(name_of(bench.context.synchronize()), "CUDA_ERROR_ILLEGAL_ADDRESS");
    });
    assert!(said.err.contains("scale") && said.err.contains("ld.global.f32"), "{}", said.err);
}

#[test]
fn a_missing_barrier_is_a_failed_launch() {
    let said = on_fakecuda("a_missing_barrier_is_a_failed_launch", &[], || {
        let bench = Bench::new();
        let mut x = bench.stream.clone_htod(&[5_f32; 64]).unwrap();
        let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 256 };
        unsafe { bench.stream.launch_builder(&bench.shift).arg(&mut x).launch(shape) }.unwrap();
        assert_eq!(name_of(bench.stream.synchronize()), "CUDA_ERROR_LAUNCH_FAILED");
    });
    assert!(said.err.contains("shift") && said.err.contains("shared"), "{}", said.err);
}

#[test]
fn a_graph_replays_what_was_captured() {
    on_fakecuda("a_graph_replays_what_was_captured", &[], || {
        let bench = Bench::new();
        unsafe { bench.context.disable_event_tracking() };
        let mut x = bench.stream.clone_htod(&[1_f32; 4]).unwrap();
        bench.stream.synchronize().unwrap();
        bench.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        bench.scale(&mut x, 4, 128).unwrap();
        bench.scale(&mut x, 2, 128).unwrap();
        let graph = bench.stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        assert_eq!(bench.stream.clone_dtoh(&x).unwrap(), [1.0; 4], "captured work was done");
        graph.upload().unwrap();
        graph.launch().unwrap();
        assert_eq!(bench.stream.clone_dtoh(&x).unwrap(), [9.0, 9.0, 3.0, 3.0]);
        graph.launch().unwrap();
        assert_eq!(bench.stream.clone_dtoh(&x).unwrap(), [81.0, 81.0, 9.0, 9.0]);
    });
}

#[test]
fn a_graph_may_span_streams_that_wait_for_each_other() {
    on_fakecuda("a_graph_may_span_streams_that_wait_for_each_other", &[], || {
        let bench = Bench::new();
        unsafe { bench.context.disable_event_tracking() };
        let side = bench.context.new_stream().unwrap();
        let mut x = bench.stream.clone_htod(&[1_f32; 4]).unwrap();
        bench.stream.synchronize().unwrap();
        for rejoin in [false, true] {
            bench.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
            side.join(&bench.stream).unwrap();
            side.memset_zeros(&mut x.slice_mut(..2)).unwrap();
            if rejoin {
                bench.stream.join(&side).unwrap();
            }
            bench.scale(&mut x, 4, 128).unwrap();
            let ended = bench.stream.end_capture(CUgraphInstantiate_flags(0));
            if rejoin {
                ended.unwrap().unwrap().launch().unwrap();
            } else {
                assert_eq!(name_of(ended), "CUDA_ERROR_STREAM_CAPTURE_UNJOINED");
            }
        }
        assert_eq!(bench.stream.clone_dtoh(&x).unwrap(), [0.0, 0.0, 3.0, 3.0]);
    });
}

#[test]
fn a_capture_refuses_to_wait_and_to_depend_on_what_came_before() {
    on_fakecuda("a_capture_refuses_to_wait_and_to_depend_on_what_came_before", &[], || {
        let bench = Bench::new();
        unsafe { bench.context.disable_event_tracking() };
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let before = bench.stream.record_event(None).unwrap();
        bench.stream.begin_capture(mode).unwrap();
        assert_eq!(name_of(bench.stream.synchronize()), "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED");
        let spoilt = bench.stream.end_capture(CUgraphInstantiate_flags(0));
        assert_eq!(name_of(spoilt), "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED");
        bench.stream.begin_capture(mode).unwrap();
        assert_eq!(name_of(bench.stream.wait(&before)), "CUDA_ERROR_STREAM_CAPTURE_ISOLATION");
        assert!(bench.stream.end_capture(CUgraphInstantiate_flags(0)).is_err());
        bench.stream.begin_capture(mode).unwrap();
        assert_eq!(name_of(unsafe { cudarc::driver::result::malloc_sync(4) }), "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED");
        assert!(bench.stream.end_capture(CUgraphInstantiate_flags(0)).is_err());
        bench.stream.synchronize().unwrap();
    });
}

#[test]
fn the_log_names_launches_and_counts_what_kernels_did() {
    let stage = support::Stage::new("the_log_names_launches_and_counts_what_kernels_did");
    stage.play("only", || {
        let bench = Bench::new();
        let mut x = bench.stream.alloc_zeros::<f32>(200).unwrap();
        bench.scale(&mut x, 200, 128).unwrap();
        bench.stream.synchronize().unwrap();
    });
    let log = stage.path("calls.log");
    let said = support::finish(stage.start("only", &[("INSULA_FAKECUDA_LOG", log.to_str().unwrap())]));
    assert!(said.success, "{}", said.err);
    let text = String::from_utf8(support::read_when_there(&log)).unwrap();
    let lines = |what: &str| text.lines().filter(|line| line.contains(what)).count();
    assert_eq!(lines("cuLaunchKernel 0 scale grid=[2, 1, 1] block=[128, 1, 1] shared=0"), 1, "{text}");
    assert_eq!(lines(" kernel scale Counts {"), 1, "{text}");
}

/// The kernels that insula ships.
fn shipped() -> Vec<(String, String)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/ptx");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let ptx = files.filter(|path| path.extension().is_some_and(|extension| extension == "ptx"));
    ptx.map(|path| (path.display().to_string(), std::fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn every_kernel_that_is_shipped_loads() {
    on_fakecuda("every_kernel_that_is_shipped_loads", &[], || {
        let context = CudaContext::new(0).unwrap();
        let mut count = 0;
        for (path, text) in shipped() {
            let names: Vec<_> =
                text.split(".entry ").skip(1).filter_map(|rest| rest.split(['(', '\n']).next()).collect();
            let module = context.load_module(Ptx::from_src(text.clone())).unwrap_or_else(|e| panic!("{path}: {e}"));
            names.iter().for_each(|name| drop(module.load_function(name.trim()).unwrap()));
            count += names.len();
        }
        assert!(count >= 20, "only {count} kernels in kernels/ptx");
    });
}

#[test]
fn a_shipped_kernel_computes() {
    on_fakecuda("a_shipped_kernel_computes", &[], || {
        let bench = Bench::new();
        let (_, text) = shipped().into_iter().find(|(path, _)| path.ends_with("sum_squares.ptx")).unwrap();
        let kernel = bench.context.load_module(Ptx::from_src(text)).unwrap().load_function("sum_squares").unwrap();
        let x = bench.stream.clone_htod(&(0..70_000).map(|i| (i % 7) as f32).collect::<Vec<_>>()).unwrap();
        let mut partial = bench.stream.alloc_zeros::<f64>(2).unwrap();
        let threads = kernel.max_threads_per_block().unwrap() as u32;
        let shape = LaunchConfig { grid_dim: (2, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        let n = 70_000_u64;
        unsafe { bench.stream.launch_builder(&kernel).arg(&x).arg(&n).arg(&mut partial).launch(shape) }.unwrap();
        let chunk = |from: usize, to: usize| (from..to).map(|i| ((i % 7) * (i % 7)) as f64).sum::<f64>();
        assert_eq!(bench.stream.clone_dtoh(&partial).unwrap(), [chunk(0, 65_536), chunk(65_536, 70_000)]);
    });
}
