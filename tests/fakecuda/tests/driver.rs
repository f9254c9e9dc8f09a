//! cudarc's driver calls on the stand-in: memory, streams, events, errors, faults.
#![expect(unsafe_code, reason = "cudarc's raw calls are unsafe")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::mpsc::channel;

use cudarc::driver::result::{free_sync, malloc_sync, memcpy_dtoh_sync, memcpy_htod_sync};
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use support::{name_of, on_fakecuda};

fn device() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    (context, stream)
}

/// Queues a function of the host.
fn call(stream: &Arc<CudaStream>, function: impl FnOnce() + Send + 'static) {
    unsafe extern "C" fn trampoline(argument: *mut c_void) {
        // SAFETY: the argument is the box that was leaked below, and the stream calls once.
        let function = unsafe { Box::from_raw(argument.cast::<Box<dyn FnOnce() + Send>>()) };
        function();
    }
    let boxed: Box<Box<dyn FnOnce() + Send>> = Box::new(Box::new(function));
    let argument = Box::into_raw(boxed).cast();
    unsafe { result::stream::launch_host_function(stream.cu_stream(), trampoline, argument) }.unwrap();
}

/// Work that keeps a stream busy until the returned sender is dropped.
fn hold(stream: &Arc<CudaStream>) -> std::sync::mpsc::Sender<()> {
    let (sender, receiver) = channel::<()>();
    let wait = move || {
        let _let_go = receiver.recv();
    };
    call(stream, wait);
    sender
}

#[test]
fn devices_are_as_the_environment_says() {
    let settings = [
        ("INSULA_FAKECUDA_DEVICES", "2"),
        ("INSULA_FAKECUDA_MEMORY", "5000000"),
        ("INSULA_FAKECUDA_CAPABILITY", "9.0"),
    ];
    on_fakecuda("devices_are_as_the_environment_says", &settings, || {
        assert!(unsafe { sys::is_culib_present() });
        assert_eq!(CudaContext::device_count().unwrap(), 2);
        let context = CudaContext::new(1).unwrap();
        assert_eq!(context.name().unwrap(), "fakecuda");
        assert_eq!(context.compute_capability().unwrap(), (9, 0));
        assert_eq!(context.total_mem().unwrap(), 5_000_000);
        assert_eq!(name_of(CudaContext::new(2)), "CUDA_ERROR_INVALID_DEVICE");
    });
}

#[test]
fn without_devices_the_driver_says_so() {
    on_fakecuda("without_devices_the_driver_says_so", &[("INSULA_FAKECUDA_DEVICES", "0")], || {
        assert_eq!(name_of(CudaContext::new(0)), "CUDA_ERROR_NO_DEVICE");
    });
}

#[test]
fn bytes_travel_and_fresh_memory_is_poison() {
    on_fakecuda("bytes_travel_and_fresh_memory_is_poison", &[], || {
        let (_context, stream) = device();
        let numbers: Vec<f32> = (0..1001).map(|i| i as f32).collect();
        let first = stream.clone_htod(&numbers).unwrap();
        let mut second = unsafe { stream.alloc::<f32>(1001) }.unwrap();
        assert!(stream.clone_dtoh(&second).unwrap().iter().all(|x| x.is_nan()));
        stream.memcpy_dtod(&first.slice(1..), &mut second.slice_mut(..1000)).unwrap();
        stream.memset_zeros(&mut second.slice_mut(3..5)).unwrap();
        let back = stream.clone_dtoh(&second).unwrap();
        assert_eq!(back[..6], [1.0, 2.0, 3.0, 0.0, 0.0, 6.0]);
        assert!(back[999] == 1000.0 && back[1000].is_nan());
        assert_eq!(stream.clone_dtoh(&stream.alloc_zeros::<u8>(7).unwrap()).unwrap(), [0; 7]);
    });
}

#[test]
fn copies_of_pinned_memory_are_asynchronous_and_ordered_by_the_stream() {
    on_fakecuda("copies_of_pinned_memory_are_asynchronous_and_ordered_by_the_stream", &[], || {
        let (context, stream) = device();
        let memory = stream.clone_htod(&[1_u32, 2, 3, 4]).unwrap();
        let mut pinned = unsafe { context.alloc_pinned::<u32>(4) }.unwrap();
        pinned.as_mut_slice().unwrap().fill(9);
        let busy = hold(&stream);
        stream.memcpy_dtoh(&memory, &mut pinned).unwrap();
        let event = stream.record_event(None).unwrap();
        assert!(!event.is_complete(), "the copy did not wait for the stream");
        drop(busy);
        event.synchronize().unwrap();
        assert_eq!(pinned.as_slice().unwrap(), [1, 2, 3, 4]);
        let mut other = stream.alloc_zeros::<u32>(4).unwrap();
        stream.memcpy_htod(&pinned, &mut other).unwrap();
        assert_eq!(stream.clone_dtoh(&other).unwrap(), [1, 2, 3, 4]);
    });
}

#[test]
fn streams_run_at_the_same_time_and_wait_for_events() {
    on_fakecuda("streams_run_at_the_same_time_and_wait_for_events", &[], || {
        let (context, first) = device();
        let second = context.new_stream().unwrap();
        let third = context.new_stream().unwrap();
        let from = first.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
        // Reached before the pause below, however late the stream's thread begins.
        from.synchronize().unwrap();
        let busy = hold(&first);
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let note = |stream: &Arc<CudaStream>, name: &'static str| {
            let order = order.clone();
            call(stream, move || order.lock().unwrap().push(name));
        };
        note(&first, "first");
        second.join(&first).unwrap();
        note(&second, "second");
        note(&third, "third");
        third.synchronize().unwrap();
        assert_eq!(*order.lock().unwrap(), ["third"]);
        std::thread::sleep(std::time::Duration::from_millis(10));
        drop(busy);
        context.synchronize().unwrap();
        assert_eq!(*order.lock().unwrap(), ["third", "first", "second"]);
        let to = second.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
        assert!(from.elapsed_ms(&to).unwrap() >= 10.0);
    });
}

#[test]
fn memory_runs_out_and_comes_back() {
    on_fakecuda("memory_runs_out_and_comes_back", &[("INSULA_FAKECUDA_MEMORY", "1048576")], || {
        let (context, stream) = device();
        let most = stream.alloc_zeros::<u8>(1 << 20).unwrap();
        assert_eq!(context.mem_get_info().unwrap(), (0, 1 << 20));
        assert_eq!(name_of(stream.alloc_zeros::<u8>(1)), "CUDA_ERROR_OUT_OF_MEMORY");
        drop(most);
        stream.synchronize().unwrap();
        assert_eq!(context.mem_get_info().unwrap(), (1 << 20, 1 << 20));
        assert_eq!(name_of(stream.alloc_zeros::<u8>(2 << 20)), "CUDA_ERROR_OUT_OF_MEMORY");
        assert_eq!(stream.alloc_zeros::<u8>(1 << 20).unwrap().len(), 1 << 20, "an error that does not stick");
    });
}

#[test]
fn freed_memory_and_overruns_are_refused_at_the_call() {
    let said = on_fakecuda("freed_memory_and_overruns_are_refused_at_the_call", &[], || {
        let (_context, _stream) = device();
        let address = unsafe { malloc_sync(16) }.unwrap();
        unsafe { memcpy_htod_sync(address, &[1_u32, 2, 3, 4]) }.unwrap();
        assert_eq!(name_of(unsafe { memcpy_htod_sync(address + 4, &[1_u32, 2, 3, 4]) }), "CUDA_ERROR_INVALID_VALUE");
        unsafe { free_sync(address) }.unwrap();
        assert_eq!(name_of(unsafe { free_sync(address) }), "CUDA_ERROR_INVALID_VALUE");
        let mut back = [0_u32];
        assert_eq!(name_of(unsafe { memcpy_dtoh_sync(&mut back, address) }), "CUDA_ERROR_INVALID_VALUE");
        assert_ne!(unsafe { malloc_sync(16) }.unwrap(), address, "a freed address was given out again");
    });
    assert!(said.err.contains("run 4 over the end of the 16 bytes"), "{}", said.err);
    assert!(said.err.contains("which have been freed"), "{}", said.err);
}

#[test]
fn memory_freed_in_stream_order_is_gone_for_later_work_and_the_error_sticks() {
    let name = "memory_freed_in_stream_order_is_gone_for_later_work_and_the_error_sticks";
    let said = on_fakecuda(name, &[], || {
        let (_context, stream) = device();
        let raw = stream.cu_stream();
        let address = unsafe { result::malloc_async(raw, 64) }.unwrap();
        let busy = hold(&stream);
        unsafe { result::free_async(address, raw) }.unwrap();
        unsafe { result::memset_d8_async(address, 0, 64, raw) }.unwrap();
        drop(busy);
        assert_eq!(name_of(stream.synchronize()), "CUDA_ERROR_ILLEGAL_ADDRESS");
        assert_eq!(name_of(unsafe { malloc_sync(1) }), "CUDA_ERROR_ILLEGAL_ADDRESS");
        assert_eq!(name_of(result::mem_get_info()), "CUDA_ERROR_ILLEGAL_ADDRESS");
    });
    assert!(said.err.contains("CUDA_ERROR_ILLEGAL_ADDRESS: fill:"), "{}", said.err);
}

#[test]
fn the_end_of_the_context_ends_its_failure_and_lists_what_leaks() {
    let name = "the_end_of_the_context_ends_its_failure_and_lists_what_leaks";
    let said = on_fakecuda(name, &[("INSULA_FAKECUDA_LEAKS", "1")], || {
        let (context, stream) = device();
        let leaked = unsafe { malloc_sync(12_345) }.unwrap();
        drop((stream, context));
        let (context, _stream) = device();
        assert_eq!(name_of(unsafe { free_sync(leaked) }), "CUDA_ERROR_INVALID_VALUE");
        let (free, total) = context.mem_get_info().unwrap();
        assert_eq!(free, total);
    });
    assert!(said.err.contains("1 allocations outlive their context"), "{}", said.err);
    assert!(said.err.contains("12345 bytes at"), "{}", said.err);
}

#[test]
fn a_destroyed_event_or_stream_is_refused() {
    on_fakecuda("a_destroyed_event_or_stream_is_refused", &[], || {
        let (_context, stream) = device();
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).unwrap();
        unsafe { result::event::destroy(event) }.unwrap();
        assert_eq!(name_of(unsafe { result::event::record(event, stream.cu_stream()) }), "CUDA_ERROR_INVALID_HANDLE");
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
        unsafe { result::stream::destroy(raw) }.unwrap();
        assert_eq!(name_of(unsafe { result::stream::synchronize(raw) }), "CUDA_ERROR_INVALID_HANDLE");
        assert_eq!(name_of(unsafe { result::event::query(raw.cast()) }), "CUDA_ERROR_INVALID_HANDLE");
    });
}

#[test]
fn a_planned_fault_strikes_once() {
    let settings = [("INSULA_FAKECUDA_FAIL", "cuMemAllocAsync:2:2;cuStreamSynchronize:1:719")];
    on_fakecuda("a_planned_fault_strikes_once", &settings, || {
        let (_context, stream) = device();
        let kept = unsafe { stream.alloc::<u8>(8) }.unwrap();
        assert_eq!(name_of(unsafe { stream.alloc::<u8>(8) }), "CUDA_ERROR_OUT_OF_MEMORY");
        assert!(unsafe { stream.alloc::<u8>(8) }.is_ok());
        assert_eq!(name_of(stream.synchronize()), "CUDA_ERROR_LAUNCH_FAILED");
        stream.synchronize().unwrap();
        drop(kept);
    });
}

#[test]
fn a_plan_that_cannot_be_read_ends_the_process() {
    let stage = support::Stage::new("a_plan_that_cannot_be_read_ends_the_process");
    stage.play("only", || drop(CudaContext::new(0)));
    for (plan, why) in
        [("cuMemAlloc_v2:one:2", "is not symbol:nth:code"), ("cuMemAloc:1:2", "no entry point `cuMemAloc`")]
    {
        let said = support::finish(stage.start("only", &[("INSULA_FAKECUDA_FAIL", plan)]));
        assert!(!said.success && said.err.contains(why), "{}", said.err);
    }
}

#[test]
fn the_log_has_a_line_per_call() {
    let stage = support::Stage::new("the_log_has_a_line_per_call");
    stage.play("only", || {
        let (_context, stream) = device();
        let _memory = unsafe { stream.alloc::<u8>(77) }.unwrap();
    });
    let log = stage.path("calls.log");
    let said = support::finish(stage.start("only", &[("INSULA_FAKECUDA_LOG", log.to_str().unwrap())]));
    assert!(said.success, "{}", said.err);
    let text = String::from_utf8(support::read_when_there(&log)).unwrap();
    assert_eq!(text.lines().filter(|line| line.contains(" cuInit 0")).count(), 1, "{text}");
    assert_eq!(text.lines().filter(|line| line.ends_with("cuMemAllocAsync 0 bytes=77")).count(), 1, "{text}");
}
