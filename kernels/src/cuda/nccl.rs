//! Values between GPUs by NCCL: a communicator that never blocks for good.
//!
//! NCCL's kernels wait for a peer for ever, and with them the stream. So nothing here waits on the stream: it is asked,
//! again and again, whether it has come so far, and [`Communicator::abort`], from any thread, ends the wait. cudarc's
//! own communicator initialises blocking and says nothing of an error but that there was one.
#![expect(unsafe_code, reason = "NCCL's interface is C")]

use std::{
    ffi::c_char,
    mem::MaybeUninit,
    ptr,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use bytemuck::{cast_slice, cast_slice_mut};
use cudarc::nccl::{result, sys};

use super::{
    Cuda,
    device::{Device, has_library},
    memory::{Block, Pool},
};
use crate::error::KernelError;

/// How often the stream and the library are asked.
const LOOK: Duration = Duration::from_micros(200);
/// All ranks have said that they are there before they join, so joining takes seconds.
const JOINED_WITHIN: Duration = Duration::from_secs(120);
/// All ranks have computed before they trade, so it takes as long as the bytes. Guessed.
const TRADED_WITHIN: Duration = Duration::from_secs(3600);
/// NCCL's sign of a filled configuration.
const MAGIC: u32 = 0xcafe_beef;
/// The version of NCCL whose configuration this is, 2.30.
const VERSION: u32 = 2_30_00;
/// What NCCL takes for "not set".
const UNSET: i32 = i32::MIN;

/// What the ranks of a communicator find each other by.
pub type UniqueId = [u8; 128];

/// Whether NCCL's library is on this machine, under a name that is looked for.
#[must_use]
pub fn is_available() -> bool {
    has_library(sys::is_culib_present)
}

/// A new communicator's id, for the ranks to be told.
///
/// # Errors
/// When NCCL is missing, or finds no network interface.
pub fn unique_id() -> Result<UniqueId, KernelError> {
    if !is_available() {
        let reason = "NCCL's library (libnccl.so) was not found on this machine".into();
        return Err(KernelError::Absent { device: "nccl".into(), reason });
    }
    let id = result::get_uniqueid().map_err(|error| refused("ncclGetUniqueId", error.0))?;
    Ok(id.internal.map(|byte| u8::from_ne_bytes(byte.to_ne_bytes())))
}

/// The library's handle, until it is aborted.
struct Handle(sys::ncclComm_t);

// SAFETY: NCCL's communicators may be used by any thread, one at a time.
unsafe impl Send for Handle {}

/// One rank of a group of GPUs.
pub struct Communicator {
    device: Arc<Device>,
    pool: Arc<Pool>,
    handle: Mutex<Option<Handle>>,
    rank: usize,
    world: usize,
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {} over NCCL on {:?}", self.rank, self.world, self.device)
    }
}

impl Communicator {
    /// Begins to form the group; [`Communicator::await_ready`] finishes it.
    ///
    /// # Errors
    /// When NCCL refuses.
    pub fn begin(gpu: &Cuda, id: &UniqueId, rank: usize, world: usize) -> Result<Self, KernelError> {
        gpu.device.bind()?;
        let id = sys::ncclUniqueId { internal: id.map(|byte| c_char::from_ne_bytes([byte])) };
        let mut config = without_blocking();
        let mut handle = MaybeUninit::new(ptr::null_mut());
        // SAFETY: both are written to and read before the call returns.
        let begun = unsafe {
            result::comm_init_rank_config(handle.as_mut_ptr(), world as i32, id, rank as i32, &raw mut config)
        };
        begun.map_err(|error| refused("ncclCommInitRankConfig", error.0))?;
        // SAFETY: initialised to null, and set by the call.
        let handle = Mutex::new(Some(Handle(unsafe { handle.assume_init() })));
        Ok(Self { device: Arc::clone(&gpu.device), pool: Arc::clone(&gpu.pool), handle, rank, world })
    }

    /// Waits until all ranks are there.
    ///
    /// # Errors
    /// When NCCL fails, or the communicator is aborted meanwhile.
    pub fn await_ready(&self) -> Result<(), KernelError> {
        self.settle("ncclCommInitRankConfig", JOINED_WITHIN)
    }

    /// This rank's number.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks.
    #[must_use]
    pub fn world(&self) -> usize {
        self.world
    }

    /// Ends whatever waits for other ranks; nothing can be done with the communicator any more. From any thread.
    pub fn abort(&self) {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Handle(comm)) = handle {
            // Whatever the device says: what is not aborted holds up the stream for ever.
            let _ = self.device.bind();
            // SAFETY: taken out of its place, so nobody uses it after this.
            let _ = unsafe { result::comm_abort(comm) };
        }
    }

    /// Sends `outgoing[r]` to rank r and receives `lengths[r]` values from it, all at once; of oneself both are empty.
    ///
    /// # Errors
    /// When a rank is lost and the communicator aborted, NCCL fails, or the device has no room.
    ///
    /// # Panics
    /// When there are not as many as ranks.
    pub fn trade(&self, outgoing: &[Vec<f32>], lengths: &[usize]) -> Result<Vec<Vec<f32>>, KernelError> {
        assert_eq!((outgoing.len(), lengths.len()), (self.world, self.world), "something for every rank");
        let sent: Vec<Block> = outgoing.iter().map(|values| self.staged(values)).collect::<Result<_, _>>()?;
        let room = |len: &usize| self.pool.scratch(len * size_of::<f32>());
        let received: Vec<Block> = lengths.iter().map(room).collect::<Result<_, _>>()?;
        self.grouped(|comm, stream| {
            for peer in (0..self.world).filter(|peer| *peer != self.rank) {
                let (values, len) = (&outgoing[peer], lengths[peer]);
                let kind = sys::ncclDataType_t::ncclFloat32;
                // SAFETY: the blocks hold as many values and live until the stream has come past this.
                unsafe {
                    if !values.is_empty() {
                        result::send(pointer(&sent[peer]), values.len(), kind, peer as i32, comm, stream)?;
                    }
                    if len > 0 {
                        result::recv(pointer(&received[peer]), len, kind, peer as i32, comm, stream)?;
                    }
                }
            }
            Ok(())
        })?;
        self.passed()?;
        received.iter().zip(lengths).map(|(block, len)| self.fetched(block, *len)).collect()
    }

    /// The sum of everybody's values, in the order that NCCL takes: the same on every rank, but not the same bits for
    /// other numbers of ranks.
    ///
    /// # Errors
    /// As [`Communicator::trade`].
    pub fn sum(&self, values: &[f32]) -> Result<Vec<f32>, KernelError> {
        let block = self.staged(values)?;
        self.grouped(|comm, stream| {
            let (at, kind, sum) = (pointer(&block), sys::ncclDataType_t::ncclFloat32, sys::ncclRedOp_t::ncclSum);
            // SAFETY: the block holds as many values and lives until the stream has come past this.
            unsafe { result::all_reduce(at, at, values.len(), kind, sum, comm, stream) }.map(drop)
        })?;
        self.passed()?;
        self.fetched(&block, values.len())
    }

    fn staged(&self, values: &[f32]) -> Result<Block, KernelError> {
        let block = self.pool.scratch(size_of_val(values))?;
        self.device.write(block.address(), cast_slice(values))?;
        Ok(block)
    }

    fn fetched(&self, block: &Block, len: usize) -> Result<Vec<f32>, KernelError> {
        let mut values = vec![0.0; len];
        self.device.read(block.address(), cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Issues operations as one group, and waits until NCCL has taken them.
    fn grouped(
        &self,
        operations: impl FnOnce(sys::ncclComm_t, sys::cudaStream_t) -> Result<(), result::NcclError>,
    ) -> Result<(), KernelError> {
        self.device.bind()?;
        {
            let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(Handle(comm)) = *handle else { return Err(aborted()) };
            let started = result::group_start().map_err(|error| refused("ncclGroupStart", error.0));
            started?;
            let issued = operations(comm, self.device.stream().cu_stream().cast());
            let ended = result::group_end();
            issued.map_err(|error| refused("ncclSend, ncclRecv or ncclAllReduce", error.0))?;
            ended.map_err(|error| refused("ncclGroupEnd", error.0))?;
        }
        self.settle("ncclGroupEnd", TRADED_WITHIN)
    }

    /// Waits until NCCL has done what it was asked without waiting.
    fn settle(&self, operation: &'static str, within: Duration) -> Result<(), KernelError> {
        looking(operation, within, || self.is_settled(operation))
    }

    fn is_settled(&self, operation: &'static str) -> Result<bool, KernelError> {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Handle(comm)) = *handle else { return Err(aborted()) };
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is not aborted while its place is locked.
        let asked = unsafe { sys::ncclCommGetAsyncError(comm, &raw mut state) };
        match (asked, state) {
            (sys::ncclResult_t::ncclSuccess, sys::ncclResult_t::ncclSuccess) => Ok(true),
            (sys::ncclResult_t::ncclSuccess, sys::ncclResult_t::ncclInProgress) => Ok(false),
            (sys::ncclResult_t::ncclSuccess, error) | (error, _) => Err(refused(operation, error)),
        }
    }

    /// Waits until the stream has come past everything issued.
    fn passed(&self) -> Result<(), KernelError> {
        let device = &self.device;
        let event = device.stream().record_event(None).map_err(|error| device.refused("cuEventRecord", error))?;
        looking("a collective", TRADED_WITHIN, || {
            let passed = event.try_is_complete().map_err(|error| device.refused("cuEventQuery", error))?;
            if !passed {
                self.is_settled("a collective")?;
            }
            Ok(passed)
        })
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // Without a word to the others: a gang that has ended has told them already.
        self.abort();
    }
}

/// Looks until something is so; the time is counted in looks, each of which takes a little longer than its pause.
fn looking(
    operation: &'static str,
    within: Duration,
    mut look: impl FnMut() -> Result<bool, KernelError>,
) -> Result<(), KernelError> {
    for _ in 0..within.as_micros() / LOOK.as_micros() {
        if look()? {
            return Ok(());
        }
        thread::sleep(LOOK);
    }
    Err(KernelError::Device { operation, reason: format!("no end within {} s", within.as_secs()) })
}

fn pointer(block: &Block) -> *mut std::ffi::c_void {
    block.address() as *mut _
}

fn without_blocking() -> sys::ncclConfig_t {
    sys::ncclConfig_t {
        size: size_of::<sys::ncclConfig_t>(),
        magic: MAGIC,
        version: VERSION,
        blocking: 0,
        cgaClusterSize: UNSET,
        minCTAs: UNSET,
        maxCTAs: UNSET,
        netName: ptr::null(),
        splitShare: UNSET,
        trafficClass: UNSET,
        commName: ptr::null(),
        collnetEnable: UNSET,
        CTAPolicy: UNSET,
        shrinkShare: UNSET,
        nvlsCTAs: UNSET,
        nChannelsPerNetPeer: UNSET,
        nvlinkCentricSched: UNSET,
        graphUsageMode: UNSET,
        numRmaCtx: UNSET,
        maxP2pPeers: UNSET,
    }
}

fn aborted() -> KernelError {
    KernelError::Device { operation: "nccl", reason: "the communicator was aborted".into() }
}

fn refused(operation: &'static str, error: sys::ncclResult_t) -> KernelError {
    KernelError::Device { operation, reason: format!("{error:?}") }
}
