//! An update's exchange where every member computes on a GPU of its own: what is long goes by NCCL, the rest by the
//! connections there are.
//!
//! ```text
//! able? ->  <- able?       once, when the gang is level; rank 0's id for NCCL follows, and all join
//! here, losses ->  <-      by the connections, which also say who is lost
//! subtrees' pieces <=> finished pieces     by NCCL, which would wait for ever: whoever watches the connections aborts it
//! all there? ->  <- all there
//! ```
//!
//! The same subtrees are added in the same order as over TCP, so the sum has the same bits; unless a job asks for the fast
//! sum, which is NCCL's own.

use std::ops::Range;

use insula_kernels::{
    Cuda, KernelError,
    cuda::nccl::{self, Communicator, UniqueId},
};

use super::{
    Mesh, Seats,
    mesh::{FACTS_BYTES, HERE_BYTES, decode_fact, decode_here, encode_facts, encode_here},
    peer::Connection,
};
use crate::{
    reduce::{Node, TreeSum, subtrees},
    sync::{Announcement, Gang, Part, SlotFacts, SyncError, Whole, frame::Kind, piece},
};

/// Bytes of a GPU's own number, all zero where there is none or NCCL is missing.
const UUID_BYTES: usize = 16;

impl Mesh {
    /// Joins the members' GPUs, where each has one of its own and NCCL; says whether they are joined.
    ///
    /// # Errors
    /// When a member is lost meanwhile, or NCCL fails.
    pub fn join_gpus(&mut self, gpu: Option<&Cuda>) -> Result<bool, SyncError> {
        let able = gpu.filter(|_| nccl::is_available());
        let own = able.map_or(Ok([0; UUID_BYTES]), Cuda::uuid).map_err(failed)?;
        let id =
            self.guarded("joining the GPUs", Seats::still_forming, |gang, connections| agreed(gang, connections, own))?;
        if let Some((id, gpu)) = id.zip(able) {
            let communicator = Communicator::begin(gpu, &id, self.gang.rank, self.gang.world()).map_err(failed)?;
            self.gpus = Some(communicator);
            self.guarded_gpus("joining the GPUs", Seats::still_forming, |_, _, gpus| {
                gpus.await_ready().map_err(failed)
            })?;
        }
        Ok(self.gpus.is_some())
    }
}

fn failed(problem: KernelError) -> SyncError {
    SyncError::Gpu { problem }
}

/// The id to join by, where all members can.
fn agreed(
    gang: &Gang,
    connections: &mut [Option<Connection>],
    own: [u8; UUID_BYTES],
) -> Result<Option<UniqueId>, SyncError> {
    for connection in connections.iter_mut().flatten() {
        connection.outgoing.send(Kind::Gpu, 0, &own)?;
    }
    let mut gpus = vec![own];
    for connection in connections.iter_mut().flatten() {
        let told = connection.incoming.receive(Kind::Gpu, 0, UUID_BYTES)?;
        gpus.push(told.try_into().unwrap_or_default());
    }
    let all = gpus.len();
    gpus.sort_unstable();
    gpus.dedup();
    // NCCL takes each GPU once.
    if gpus.len() < all || gpus.contains(&[0; UUID_BYTES]) {
        return Ok(None);
    }
    if gang.rank == 0 {
        let id = nccl::unique_id().map_err(failed)?;
        connections.iter_mut().flatten().try_for_each(|c| c.outgoing.send(Kind::GpuGroup, 0, &id))?;
        return Ok(Some(id));
    }
    let first = connections[0].as_mut().expect("a connection with every other rank");
    let told = first.incoming.receive(Kind::GpuGroup, 0, size_of::<UniqueId>())?;
    let found = told.len().to_string();
    let id: Result<UniqueId, _> = told.try_into();
    id.map(Some).map_err(|_| SyncError::Disagrees {
        peer: gang.peer(0),
        what: "its id for NCCL, in bytes,",
        got: found,
        expected: size_of::<UniqueId>().to_string(),
    })
}

/// One exchange.
pub(super) fn together(
    gang: &Gang,
    connections: &mut [Option<Connection>],
    gpus: &Communicator,
    part: &Part,
) -> Result<Whole, SyncError> {
    let (rank, world) = (gang.rank, gang.world());
    let announced = here(gang, connections, part)?;
    let facts = losses(rank, connections, part)?;
    if part.fast {
        let gradient = gpus.sum(&local(part)).map_err(failed)?;
        all_have_all(connections, part)?;
        return Ok(Whole { gradient, facts, announced });
    }
    let own = piece(part.len, rank, world);
    let to = |other: usize| match other == rank {
        true => Vec::new(),
        false => cut_out(&part.nodes, &piece(part.len, other, world)),
    };
    let subtrees_of = |other: usize| subtrees(part.runs[other].start as u64..part.runs[other].end as u64);
    let from = |other: usize| if other == rank { 0 } else { subtrees_of(other).len() * own.len() };
    let outgoing: Vec<Vec<f32>> = (0..world).map(to).collect();
    let lengths: Vec<usize> = (0..world).map(from).collect();
    let mut received = gpus.trade(&outgoing, &lengths).map_err(failed)?;
    drop(outgoing);
    received[rank] = cut_out(&part.nodes, &own);

    let mut sum = TreeSum::default();
    for (other, values) in received.iter().enumerate() {
        for (place, (start, size)) in subtrees_of(other).into_iter().enumerate() {
            let values = values[place * own.len()..][..own.len()].to_vec();
            sum.push_node(Node { start, size, values });
        }
    }
    let finished = sum.finish().expect("an update has at least one slot");
    let outgoing: Vec<Vec<f32>> =
        (0..world).map(|other| if other == rank { Vec::new() } else { finished.clone() }).collect();
    let lengths: Vec<usize> =
        (0..world).map(|other| if other == rank { 0 } else { piece(part.len, other, world).len() }).collect();
    let mut pieces = gpus.trade(&outgoing, &lengths).map_err(failed)?;
    pieces[rank] = finished;
    all_have_all(connections, part)?;
    Ok(Whole { gradient: pieces.concat(), facts, announced })
}

/// The sum of this member's own slots.
fn local(part: &Part) -> Vec<f32> {
    let mut sum = TreeSum::starting_at(part.nodes.first().map_or(0, |node| node.start));
    part.nodes.iter().for_each(|node| sum.push_node(node.clone()));
    sum.finish().unwrap_or_else(|| vec![0.0; part.len])
}

/// Waits until every member has everything: NCCL may still be sending when its stream has come past, and whoever leaves
/// aborts it.
fn all_have_all(connections: &mut [Option<Connection>], part: &Part) -> Result<(), SyncError> {
    for connection in connections.iter_mut().flatten() {
        connection.outgoing.send(Kind::Finished, part.update, &[])?;
    }
    connections.iter_mut().flatten().try_for_each(|c| c.incoming.receive(Kind::Finished, part.update, 0).map(drop))
}

/// A piece of every node, one after the other.
fn cut_out(nodes: &[Node], piece: &Range<usize>) -> Vec<f32> {
    nodes.iter().flat_map(|node| &node.values[piece.clone()]).copied().collect()
}

/// What each rank announces.
fn here(gang: &Gang, connections: &mut [Option<Connection>], part: &Part) -> Result<Vec<Announcement>, SyncError> {
    let said = encode_here(&part.announced, &part.runs[gang.rank], part.len);
    for connection in connections.iter_mut().flatten() {
        connection.outgoing.send(Kind::Here, part.update, &said)?;
    }
    let mut announced = Vec::with_capacity(connections.len());
    for (rank, connection) in connections.iter_mut().enumerate() {
        let Some(Connection { incoming, .. }) = connection else {
            announced.push(part.announced);
            continue;
        };
        let peer = incoming.peer().clone();
        let bytes = incoming.receive(Kind::Here, part.update, HERE_BYTES)?;
        announced.push(decode_here(peer, bytes, &part.runs[rank], part.len)?);
    }
    Ok(announced)
}

/// What all slots say beside their gradients, in order.
fn losses(rank: usize, connections: &mut [Option<Connection>], part: &Part) -> Result<Vec<SlotFacts>, SyncError> {
    let said = encode_facts(&part.facts);
    for connection in connections.iter_mut().flatten() {
        connection.outgoing.send_bytes(Kind::Part, part.update, &said)?;
    }
    let mut facts = Vec::new();
    for (other, connection) in connections.iter_mut().enumerate() {
        let Some(Connection { incoming, .. }) = connection else {
            debug_assert_eq!(other, rank, "a connection with every other rank");
            facts.extend(part.facts.iter().copied());
            continue;
        };
        let mut bytes = vec![0; part.runs[other].len() * FACTS_BYTES];
        incoming.receive_bytes(Kind::Part, part.update, &mut bytes)?;
        facts.extend(bytes.as_chunks::<FACTS_BYTES>().0.iter().map(decode_fact));
    }
    Ok(facts)
}
