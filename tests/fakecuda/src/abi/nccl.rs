//! NCCL entry points.
#![expect(unsafe_code, reason = "an exported name is unsafe by its nature; there is no unsafe block here")]

use std::ffi::{c_char, c_int};
use std::sync::Arc;

use super::call::{entry_points, take_hang};
use super::pointers::{In, Out};
use crate::codes::NcclCode;
use crate::context::{current, stream};
use crate::device::{Device, device};
use crate::journal;
use crate::nccl::comm::{Collective, Comm, Item, Kind, Span};
use crate::nccl::reduce::{Op, Type};
use crate::nccl::{group, id, mesh};
use crate::settings::settings;
use crate::table::Table;

static COMMS: Table<Comm> = Table::new();

/// NCCL 2.30, whose interface cudarc is made for.
const VERSION: c_int = 23_000;
/// `NCCL_CONFIG_INITIALIZER` writes this into a configuration.
const CONFIG_MAGIC: u32 = 0xcafe_beef;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId([u8; id::BYTES]);

/// The fields of `ncclConfig_t` that matter here, which every version begins with.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

entry_points! {
fn ncclGetVersion(version: Out<c_int>) -> NcclCode {
    stored(version.put(VERSION))
}
fn ncclGetUniqueId(id: Out<UniqueId>) -> NcclCode {
    stored(id.put(UniqueId(meeting()?)))
}
fn ncclCommInitRank(comm: Out<usize>, ranks: c_int, id: UniqueId, rank: c_int) -> NcclCode {
    init(comm, ranks, id, rank, true)
}
fn ncclCommInitRankConfig(comm: Out<usize>, ranks: c_int, id: UniqueId, rank: c_int, config: In<Config>) -> NcclCode {
    let blocking = match config.get() {
        None => true,
        Some(config) if config.magic != CONFIG_MAGIC || config.size < size_of::<Config>() => {
            return Err(NcclCode::INVALID_ARGUMENT);
        }
        // Any value but 0, the undefined one too, is the default.
        Some(config) => config.blocking != 0,
    };
    init(comm, ranks, id, rank, blocking)
}
fn ncclCommInitAll(comms: Out<usize>, count: c_int, ordinals: In<c_int>) -> NcclCode {
    let count = usize::try_from(count).ok().filter(|count| *count > 0).ok_or(NcclCode::INVALID_ARGUMENT)?;
    let id = UniqueId(meeting()?);
    let device_of = |rank: usize| device(ordinals.nth(rank).unwrap_or(rank as c_int));
    let start = |rank: usize| begin(id, rank, count, device_of(rank)?);
    let started = (0..count).map(start).collect::<Result<Vec<_>, NcclCode>>()?;
    started.iter().try_for_each(|comm| comm.settle())?;
    let stored_all = started.into_iter().enumerate().all(|(rank, comm)| comms.put_nth(rank, COMMS.insert(comm)));
    stored(stored_all)
}
fn ncclCommFinalize(comm: usize) -> NcclCode {
    // What is queued is done by its stream; there is nothing else to finish.
    get(comm)?.async_error()
}
fn ncclCommDestroy(comm: usize) -> NcclCode {
    COMMS.remove(comm).map(drop).ok_or(NcclCode::INVALID_ARGUMENT)
}
fn ncclCommAbort(comm: usize) -> NcclCode {
    COMMS.remove(comm).ok_or(NcclCode::INVALID_ARGUMENT)?.abort();
    Ok(())
}
fn ncclCommCount(comm: usize, count: Out<c_int>) -> NcclCode {
    stored(count.put(get(comm)?.ranks as c_int))
}
fn ncclCommUserRank(comm: usize, rank: Out<c_int>) -> NcclCode {
    stored(rank.put(get(comm)?.rank as c_int))
}
fn ncclCommCuDevice(comm: usize, ordinal: Out<c_int>) -> NcclCode {
    stored(ordinal.put(get(comm)?.device.ordinal as c_int))
}
fn ncclCommGetAsyncError(comm: usize, error: Out<c_int>) -> NcclCode {
    let number = get(comm)?.async_error().map_or_else(|code| code.0, |()| 0);
    stored(error.put(number))
}
fn ncclGroupStart() -> NcclCode {
    group::start();
    Ok(())
}
fn ncclGroupEnd() -> NcclCode {
    group::end()
}
fn ncclAllReduce(send: u64, receive: u64, count: usize, kind: c_int, op: c_int, comm: usize, on: usize) -> NcclCode {
    collective(Kind::AllReduce, (send, receive, count, kind), (op, 0), comm, on)
}
fn ncclReduce(send: u64, receive: u64, count: usize, kind: c_int, op: c_int, root: c_int, comm: usize, on: usize) -> NcclCode {
    collective(Kind::Reduce, (send, receive, count, kind), (op, root), comm, on)
}
fn ncclReduceScatter(send: u64, receive: u64, count: usize, kind: c_int, op: c_int, comm: usize, on: usize) -> NcclCode {
    collective(Kind::ReduceScatter, (send, receive, count, kind), (op, 0), comm, on)
}
fn ncclAllGather(send: u64, receive: u64, count: usize, kind: c_int, comm: usize, on: usize) -> NcclCode {
    collective(Kind::AllGather, (send, receive, count, kind), (0, 0), comm, on)
}
fn ncclBroadcast(send: u64, receive: u64, count: usize, kind: c_int, root: c_int, comm: usize, on: usize) -> NcclCode {
    collective(Kind::Broadcast, (send, receive, count, kind), (0, root), comm, on)
}
fn ncclSend(send: u64, count: usize, kind: c_int, peer: c_int, comm: usize, on: usize) -> NcclCode {
    let (comm, span) = (get(comm)?, span(send, count, kind)?);
    let item = Item::Send(seat(&comm, peer)?, span);
    submit(&comm, on, item)
}
fn ncclRecv(receive: u64, count: usize, kind: c_int, peer: c_int, comm: usize, on: usize) -> NcclCode {
    let (comm, span) = (get(comm)?, span(receive, count, kind)?);
    let item = Item::Receive(seat(&comm, peer)?, span);
    submit(&comm, on, item)
}
}

/// `ncclGetErrorString` of the C interface.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(number: c_int) -> *const c_char {
    NcclCode::text(number).as_ptr()
}

/// `ncclGetLastError` of the C interface: the story is told on stderr.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_comm: usize) -> *const c_char {
    c"fakecuda tells what went wrong on the process's stderr".as_ptr()
}

fn stored(stored: bool) -> Result<(), NcclCode> {
    if stored { Ok(()) } else { Err(NcclCode::INVALID_ARGUMENT) }
}

fn get(comm: usize) -> Result<Arc<Comm>, NcclCode> {
    COMMS.get(comm).ok_or(NcclCode::INVALID_ARGUMENT)
}

fn meeting() -> Result<[u8; id::BYTES], NcclCode> {
    mesh::open_meeting(&settings().nccl_host).map_err(|_| NcclCode::SYSTEM_ERROR)
}

fn begin(id: UniqueId, rank: usize, ranks: usize, device: &'static Arc<Device>) -> Result<Arc<Comm>, NcclCode> {
    let meeting = id::decode(&id.0).ok_or(NcclCode::INVALID_ARGUMENT)?;
    let host = settings().nccl_host.clone();
    Comm::start(meeting, rank, ranks, device, host).map_err(|_| NcclCode::SYSTEM_ERROR)
}

fn init(handle: Out<usize>, ranks: c_int, id: UniqueId, rank: c_int, blocking: bool) -> Result<(), NcclCode> {
    let device = current()?;
    let (Ok(rank), Ok(ranks)) = (usize::try_from(rank), usize::try_from(ranks)) else {
        return Err(NcclCode::INVALID_ARGUMENT);
    };
    if rank >= ranks {
        return Err(NcclCode::INVALID_ARGUMENT);
    }
    journal::detail(|| format!("rank={rank} ranks={ranks} blocking={blocking}"));
    let comm = begin(id, rank, ranks, device)?;
    if !blocking {
        stored(handle.put(COMMS.insert(comm)))?;
        return Err(NcclCode::IN_PROGRESS);
    }
    group::settle(&comm)?;
    stored(handle.put(COMMS.insert(comm)))
}

fn seat(comm: &Comm, peer: c_int) -> Result<usize, NcclCode> {
    usize::try_from(peer).ok().filter(|peer| *peer < comm.ranks).ok_or(NcclCode::INVALID_ARGUMENT)
}

fn span(address: u64, count: usize, kind: c_int) -> Result<Span, NcclCode> {
    Ok(Span { address, count, kind: Type::from_number(kind).ok_or(NcclCode::INVALID_ARGUMENT)? })
}

fn collective(
    kind: Kind,
    (send, receive, count, element): (u64, u64, usize, c_int),
    (op, root): (c_int, c_int),
    comm: usize,
    on: usize,
) -> Result<(), NcclCode> {
    let comm = get(comm)?;
    let element = Type::from_number(element).ok_or(NcclCode::INVALID_ARGUMENT)?;
    let op = Op::from_number(op).ok_or(NcclCode::INVALID_ARGUMENT)?;
    let root = seat(&comm, root)?;
    journal::detail(|| format!("count={count} {element:?} {op:?}"));
    submit(&comm, on, Item::Collective(Collective { kind, count, element, op, root, send, receive }))
}

fn submit(comm: &Arc<Comm>, on: usize, item: Item) -> Result<(), NcclCode> {
    let item = if take_hang() { Item::Hang } else { item };
    group::submit(comm, &stream(on)?.value, item)
}
