//! NCCL through cudarc on the stand-in: ranks in processes and in threads, faults, aborts.
#![expect(unsafe_code, reason = "cudarc's raw calls are unsafe")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DevicePtrMut};
use cudarc::nccl::result::{self, NcclStatus};
use cudarc::nccl::sys::{self, ncclDataType_t, ncclRedOp_t, ncclResult_t};
use cudarc::nccl::{Comm, Id, ReduceOp, group_end, group_start};
use half::bf16;
use support::{Said, Stage, finish, on_fakecuda, read_when_there, until, write_whole};

fn stream() -> Arc<CudaStream> {
    CudaContext::new(0).unwrap().new_stream().unwrap()
}

/// The id that rank 0 makes and the others read from the test's folder.
fn meet(stage: &Stage, rank: usize) -> Id {
    let path = stage.path("id");
    if rank == 0 {
        let id = Id::new().unwrap();
        write_whole(&path, &id.internal().map(|c| c as u8));
        return id;
    }
    let bytes = read_when_there(&path);
    Id::uninit(std::array::from_fn(|i| bytes[i] as _))
}

/// Runs `body(rank, comm)` in as many processes as there are ranks and returns what they printed.
fn in_processes(test: &'static str, ranks: usize, settings: &[(&str, &str)], body: fn(usize, Comm)) -> Vec<Said> {
    let stage = Stage::new(test);
    for rank in 0..ranks {
        stage.play(&format!("{ranks}.{rank}"), || {
            let comm = Comm::from_rank(stream(), rank, ranks, meet(&stage, rank))
                .unwrap_or_else(|error| panic!("{:?}", error.0));
            body(rank, comm);
        });
    }
    let children: Vec<_> = (0..ranks).map(|rank| stage.start(&format!("{ranks}.{rank}"), settings)).collect();
    children.into_iter().map(finish).collect()
}

fn all_succeed(said: &[Said]) {
    said.iter().for_each(|said| assert!(said.success, "{}\n{}", said.out, said.err));
}

fn every_collective(rank: usize, comm: Comm) {
    let (stream, ranks) = (comm.stream(), comm.world_size());
    let sum: usize = (1..=ranks).sum();
    let own = (rank + 1) as f32;
    // Long enough not to fit into the sockets' buffers.
    let long = 1 << 20;
    let mut x = stream.clone_htod(&vec![own; long]).unwrap();
    comm.all_reduce_in_place(&mut x, &ReduceOp::Sum).unwrap();
    assert!(stream.clone_dtoh(&x).unwrap().iter().all(|y| *y == sum as f32));
    let mut half = stream.clone_htod(&[bf16::from_f32(own); 33]).unwrap();
    comm.all_reduce_in_place(&mut half, &ReduceOp::Avg).unwrap();
    assert_eq!(stream.clone_dtoh(&half).unwrap(), [bf16::from_f32(sum as f32 / ranks as f32); 33]);
    let few = stream.clone_htod(&[own, -own]).unwrap();
    let mut all = stream.alloc_zeros::<f32>(2 * ranks).unwrap();
    comm.all_gather(&few, &mut all).unwrap();
    let gathered: Vec<f32> = (1..=ranks).flat_map(|r| [r as f32, -(r as f32)]).collect();
    assert_eq!(stream.clone_dtoh(&all).unwrap(), gathered);
    let mut got = stream.alloc_zeros::<f32>(2).unwrap();
    let root = ranks - 1;
    comm.broadcast(Some(&few), &mut got, root as i32).unwrap();
    assert_eq!(stream.clone_dtoh(&got).unwrap(), [ranks as f32, -(ranks as f32)]);
    let mut reduced = stream.alloc_zeros::<f32>(2).unwrap();
    comm.reduce(&few, Some(&mut reduced), &ReduceOp::Max, root as i32).unwrap();
    let expected = if rank == root { [ranks as f32, -1.0] } else { [0.0; 2] };
    assert_eq!(stream.clone_dtoh(&reduced).unwrap(), expected);
    let shares = stream.clone_htod(&(0..ranks).map(|r| own * (r + 1) as f32).collect::<Vec<_>>()).unwrap();
    let mut share = stream.alloc_zeros::<f32>(1).unwrap();
    comm.reduce_scatter(&shares, &mut share, &ReduceOp::Sum).unwrap();
    assert_eq!(stream.clone_dtoh(&share).unwrap(), [(sum * (rank + 1)) as f32]);
    around_the_ring(rank, &comm);
}

/// Everybody sends to the right and receives from the left at once, which only a group can do.
fn around_the_ring(rank: usize, comm: &Comm) {
    let (stream, ranks) = (comm.stream(), comm.world_size());
    let give = stream.clone_htod(&vec![rank as u32; 1 << 20]).unwrap();
    let mut get = stream.alloc_zeros::<u32>(1 << 20).unwrap();
    let left = (rank + ranks - 1) % ranks;
    group_start().unwrap();
    comm.send(&give, ((rank + 1) % ranks) as i32).unwrap();
    comm.recv(&mut get, left as i32).unwrap();
    group_end().unwrap();
    assert!(stream.clone_dtoh(&get).unwrap().iter().all(|x| *x == left as u32));
}

#[test]
fn two_processes_do_every_collective() {
    all_succeed(&in_processes("two_processes_do_every_collective", 2, &[], every_collective));
}

#[test]
fn three_processes_do_every_collective_whatever_the_delays() {
    let settings = [("INSULA_FAKECUDA_JITTER_US", "2000")];
    let name = "three_processes_do_every_collective_whatever_the_delays";
    all_succeed(&in_processes(name, 3, &settings, every_collective));
}

#[test]
fn threads_of_one_process_are_ranks_too() {
    on_fakecuda("threads_of_one_process_are_ranks_too", &[("INSULA_FAKECUDA_DEVICES", "3")], || {
        let id = Id::new().unwrap();
        std::thread::scope(|scope| {
            for rank in 0..3 {
                scope.spawn(move || {
                    let stream = CudaContext::new(rank).unwrap().new_stream().unwrap();
                    every_collective(rank, Comm::from_rank(stream, rank, 3, id).unwrap());
                });
            }
        });
        let streams = (0..3).map(|device| CudaContext::new(device).unwrap().new_stream().unwrap()).collect();
        let comms = Comm::from_devices(streams).unwrap();
        let mut given: Vec<_> =
            comms.iter().map(|comm| comm.stream().clone_htod(&[comm.rank() as i32]).unwrap()).collect();
        group_start().unwrap();
        for (comm, x) in comms.iter().zip(&mut given) {
            comm.all_reduce_in_place(x, &ReduceOp::Sum).unwrap();
        }
        group_end().unwrap();
        for (comm, x) in comms.iter().zip(&given) {
            assert_eq!(comm.stream().clone_dtoh(x).unwrap(), [3]);
        }
    });
}

/// A collective by cudarc's raw calls: cudarc's `Comm` aborts when it is dropped, and hides the communicator.
struct Raw {
    comm: sys::ncclComm_t,
    stream: Arc<CudaStream>,
}

impl Raw {
    fn config() -> sys::ncclConfig_t {
        // `NCCL_CONFIG_INITIALIZER`: every number that is not set is the least integer.
        let mut config = MaybeUninit::<sys::ncclConfig_t>::zeroed();
        let numbers: *mut i32 = config.as_mut_ptr().cast();
        // SAFETY: the structure consists of integers and pointers; pointers are set to null below.
        let mut config = unsafe {
            (0..size_of::<sys::ncclConfig_t>() / 4).for_each(|i| numbers.add(i).write(i32::MIN));
            config.assume_init()
        };
        (config.size, config.magic, config.version) = (size_of_val(&config), 0xcafe_beef, 23_000);
        (config.netName, config.commName) = (std::ptr::null(), std::ptr::null());
        config
    }

    fn begin(rank: usize, ranks: usize, id: &Id) -> Raw {
        let stream = stream();
        let mut config = sys::ncclConfig_t { blocking: 0, ..Raw::config() };
        let mut comm = std::ptr::null_mut();
        let id = sys::ncclUniqueId { internal: *id.internal() };
        let status = unsafe { result::comm_init_rank_config(&mut comm, ranks as i32, id, rank as i32, &mut config) };
        assert!(matches!(status, Ok(NcclStatus::InProgress)));
        Raw { comm, stream }
    }

    fn error(&self) -> ncclResult_t {
        let mut error = ncclResult_t::ncclSuccess;
        let status = unsafe { sys::ncclCommGetAsyncError(self.comm, &mut error) };
        assert_eq!(status, ncclResult_t::ncclSuccess);
        error
    }

    fn add(&self, x: &mut cudarc::driver::CudaSlice<f32>) -> ncclResult_t {
        let count = x.len();
        let (address, _record) = x.device_ptr_mut(&self.stream);
        let (kind, op) = (ncclDataType_t::ncclFloat32, ncclRedOp_t::ncclSum);
        let raw = self.stream.cu_stream().cast();
        unsafe { sys::ncclAllReduce(address as _, address as _, count, kind, op, self.comm, raw) }
    }

    fn abort(self) {
        unsafe { result::comm_abort(self.comm) }.unwrap();
    }
}

#[test]
fn a_communicator_may_be_made_without_waiting_and_polled() {
    on_fakecuda("a_communicator_may_be_made_without_waiting_and_polled", &[], || {
        let id = Id::new().unwrap();
        let first = Raw::begin(0, 2, &id);
        let mut x = first.stream.clone_htod(&[1_f32]).unwrap();
        assert_eq!(first.error(), ncclResult_t::ncclInProgress);
        assert_eq!(first.add(&mut x), ncclResult_t::ncclInvalidArgument, "it is not ready yet");
        let second = Raw::begin(1, 2, &id);
        until("both are ready", || [&first, &second].iter().all(|raw| raw.error() == ncclResult_t::ncclSuccess));
        let mut y = second.stream.clone_htod(&[2_f32]).unwrap();
        assert_eq!((first.add(&mut x), second.add(&mut y)), (ncclResult_t::ncclSuccess, ncclResult_t::ncclSuccess));
        assert_eq!(
            (first.stream.clone_dtoh(&x).unwrap(), second.stream.clone_dtoh(&y).unwrap()),
            (vec![3.0], vec![3.0])
        );
    });
}

#[test]
fn a_communicator_knows_its_seat_and_ends_once() {
    on_fakecuda("a_communicator_knows_its_seat_and_ends_once", &[], || {
        assert_eq!(result::get_nccl_version().unwrap(), 23_000);
        let raw = Raw::begin(0, 1, &Id::new().unwrap());
        until("ready", || raw.error() == ncclResult_t::ncclSuccess);
        let seat = unsafe {
            (result::comm_count(raw.comm), result::comm_user_rank(raw.comm), result::comm_cu_device(raw.comm))
        };
        assert_eq!((seat.0.unwrap(), seat.1.unwrap(), seat.2.unwrap()), (1, 0, 0));
        let mut x = raw.stream.clone_htod(&[5_f32]).unwrap();
        assert_eq!(raw.add(&mut x), ncclResult_t::ncclSuccess);
        assert_eq!(raw.stream.clone_dtoh(&x).unwrap(), [5.0], "alone, the sum is what was given");
        unsafe {
            assert!(matches!(result::comm_finalize(raw.comm), Ok(NcclStatus::Success)));
            assert!(matches!(result::comm_destroy(raw.comm), Ok(NcclStatus::Success)));
            assert_eq!(sys::ncclCommDestroy(raw.comm), ncclResult_t::ncclInvalidArgument);
        }
        assert_eq!(raw.add(&mut x), ncclResult_t::ncclInvalidArgument);
        let text = unsafe { CStr::from_ptr(sys::ncclGetErrorString(ncclResult_t::ncclRemoteError)) };
        assert_eq!(text, c"remote process exited or there was a network error");
    });
}

#[test]
fn an_abort_ends_the_wait_for_ranks_that_never_come() {
    on_fakecuda("an_abort_ends_the_wait_for_ranks_that_never_come", &[], || {
        let alone = Raw::begin(1, 2, &Id::new().unwrap());
        assert_eq!(alone.error(), ncclResult_t::ncclInProgress);
        alone.abort();
        assert!(Comm::from_rank(stream(), 0, 2, Id::uninit([3; 128])).is_err(), "an id that is none");
    });
}

#[test]
fn a_killed_peer_hangs_the_stream_until_the_abort() {
    let stage = Stage::new("a_killed_peer_hangs_the_stream_until_the_abort");
    for rank in 0..2 {
        stage.play(&format!("rank {rank}"), || {
            let raw = Raw::begin(rank, 2, &meet(&stage, rank));
            until("ready", || raw.error() == ncclResult_t::ncclSuccess);
            let mut x = raw.stream.clone_htod(&[1_f32; 1000]).unwrap();
            assert_eq!(raw.add(&mut x), ncclResult_t::ncclSuccess);
            raw.stream.synchronize().unwrap();
            write_whole(&stage.path(&format!("ready{rank}")), b"");
            if rank == 1 {
                std::thread::sleep(std::time::Duration::from_secs(600));
            }
            read_when_there(&stage.path("killed"));
            assert_eq!(raw.add(&mut x), ncclResult_t::ncclSuccess);
            let event = raw.stream.record_event(None).unwrap();
            until("the loss is noticed", || raw.error() == ncclResult_t::ncclRemoteError);
            assert_eq!(raw.add(&mut x), ncclResult_t::ncclRemoteError);
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert!(!event.is_complete(), "the stream went on without the peer");
            let stream = raw.stream.clone();
            raw.abort();
            stream.synchronize().unwrap();
            assert_eq!(stream.clone_dtoh(&stream.clone_htod(&[7]).unwrap()).unwrap(), [7], "the context is sound");
        });
    }
    let survivor = stage.start("rank 0", &[]);
    let mut victim = stage.start("rank 1", &[]);
    for name in ["ready0", "ready1"] {
        read_when_there(&stage.path(name));
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
    write_whole(&stage.path("killed"), b"");
    all_succeed(&[finish(survivor)]);
}

#[test]
fn a_silent_peer_hangs_the_stream_until_the_abort() {
    on_fakecuda("a_silent_peer_hangs_the_stream_until_the_abort", &[], || {
        let id = Id::new().unwrap();
        let (first, second) = (Raw::begin(0, 2, &id), Raw::begin(1, 2, &id));
        until("both are ready", || [&first, &second].iter().all(|raw| raw.error() == ncclResult_t::ncclSuccess));
        let mut x = first.stream.clone_htod(&[1_f32]).unwrap();
        assert_eq!(first.add(&mut x), ncclResult_t::ncclSuccess);
        let event = first.stream.record_event(None).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(!event.is_complete() && first.error() == ncclResult_t::ncclSuccess);
        let stream = first.stream.clone();
        first.abort();
        stream.synchronize().unwrap();
        // The other one finds that nobody is there any more.
        let mut y = second.stream.clone_htod(&[1_f32]).unwrap();
        assert_eq!(second.add(&mut y), ncclResult_t::ncclSuccess);
        until("the loss is noticed", || second.error() == ncclResult_t::ncclRemoteError);
        second.abort();
    });
}

#[test]
fn a_planned_hang_strikes_one_collective() {
    let settings = [("INSULA_FAKECUDA_FAIL", "ncclAllReduce:3:hang;ncclAllReduce:4:1")];
    on_fakecuda("a_planned_hang_strikes_one_collective", &settings, || {
        let id = Id::new().unwrap();
        let (first, second) = (Raw::begin(0, 2, &id), Raw::begin(1, 2, &id));
        until("both are ready", || [&first, &second].iter().all(|raw| raw.error() == ncclResult_t::ncclSuccess));
        let mut x = first.stream.clone_htod(&[1_f32]).unwrap();
        let mut y = second.stream.clone_htod(&[1_f32]).unwrap();
        assert_eq!((first.add(&mut x), second.add(&mut y)), (ncclResult_t::ncclSuccess, ncclResult_t::ncclSuccess));
        second.stream.synchronize().unwrap();
        assert_eq!(first.add(&mut x), ncclResult_t::ncclSuccess);
        assert_eq!(second.add(&mut y), ncclResult_t::ncclUnhandledCudaError);
        let event = first.stream.record_event(None).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!event.is_complete());
        first.abort();
        event.synchronize().unwrap();
    });
}

#[test]
fn different_collectives_are_told_on_every_rank() {
    let stage = Stage::new("different_collectives_are_told_on_every_rank");
    for rank in 0..2 {
        stage.play(&format!("rank {rank}"), || {
            let raw = Raw::begin(rank, 2, &meet(&stage, rank));
            until("ready", || raw.error() == ncclResult_t::ncclSuccess);
            let mut x = raw.stream.clone_htod(&vec![1_f32; 10 + rank]).unwrap();
            assert_eq!(raw.add(&mut x), ncclResult_t::ncclSuccess);
            let event = raw.stream.record_event(None).unwrap();
            until("the difference is noticed", || raw.error() == ncclResult_t::ncclInvalidUsage);
            assert!(!event.is_complete());
            raw.abort();
            event.synchronize().unwrap();
        });
    }
    let children = [0, 1].map(|rank| stage.start(&format!("rank {rank}"), &[]));
    let said = children.map(finish);
    all_succeed(&said);
    let story = "rank 0 calls AllReduce of 10 Float32 by Sum at root 0 as number 1, rank 1 calls AllReduce of 11";
    assert!(said[0].err.contains(story), "{}", said[0].err);
    assert!(said[1].err.contains("the ranks call different collectives"), "{}", said[1].err);
}
