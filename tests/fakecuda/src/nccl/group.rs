//! Groups: calls between `ncclGroupStart` and `ncclGroupEnd` of one thread go to their streams together at the end, so
//! that sends and receives can meet. A call outside of a group is a group of its own.

use std::cell::RefCell;
use std::sync::Arc;

use super::comm::{Comm, Item};
use crate::codes::NcclCode;
use crate::stream::{Stream, Work};

/// Items of one communicator for one stream, in the order of the calls.
struct Batch {
    comm: Arc<Comm>,
    stream: Arc<Stream>,
    items: Vec<Item>,
}

#[derive(Default)]
struct Group {
    depth: usize,
    batches: Vec<Batch>,
    joining: Vec<Arc<Comm>>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

/// Opens a group, or one more level of it.
pub fn start() {
    GROUP.with_borrow_mut(|group| group.depth += 1);
}

/// Closes a level; the outermost one waits for the communicators made inside and hands the items over.
pub fn end() -> Result<(), NcclCode> {
    let ended = GROUP.with_borrow_mut(|group| -> Result<Group, NcclCode> {
        group.depth = group.depth.checked_sub(1).ok_or(NcclCode::INVALID_USAGE)?;
        Ok(if group.depth == 0 { std::mem::take(group) } else { Group::default() })
    })?;
    ended.joining.iter().try_for_each(|comm| comm.settle())?;
    ended.batches.into_iter().try_for_each(Batch::submit)
}

/// Hands an item over, now or at the end of the group.
pub fn submit(comm: &Arc<Comm>, stream: &Arc<Stream>, item: Item) -> Result<(), NcclCode> {
    comm.check()?;
    let alone = GROUP.with_borrow_mut(|group| {
        if group.depth == 0 {
            return true;
        }
        let same = |batch: &&mut Batch| Arc::ptr_eq(&batch.comm, comm) && Arc::ptr_eq(&batch.stream, stream);
        match group.batches.iter_mut().find(same) {
            Some(batch) => batch.items.push(item),
            None => group.batches.push(Batch { comm: comm.clone(), stream: stream.clone(), items: vec![item] }),
        }
        false
    });
    if alone { Batch { comm: comm.clone(), stream: stream.clone(), items: vec![item] }.submit() } else { Ok(()) }
}

/// Waits until a communicator is ready, now or at the end of the group.
pub fn settle(comm: &Arc<Comm>) -> Result<(), NcclCode> {
    let alone = GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.joining.push(comm.clone());
        }
        group.depth == 0
    });
    if alone { comm.settle() } else { Ok(()) }
}

impl Batch {
    fn submit(self) -> Result<(), NcclCode> {
        let Batch { comm, stream, items } = self;
        stream.submit(Work::new(move || comm.run(&items))).map_err(NcclCode::from)
    }
}
