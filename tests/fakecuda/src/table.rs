//! Handles: what C callers hold instead of pointers. A handle is a number that is never given out twice, so one that
//! has been destroyed, or was never made, is refused instead of followed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The next number; one count for all tables, so that a handle of the wrong kind is refused too. Small numbers mean
/// something else to the driver (null and the two default streams).
static NEXT: AtomicUsize = AtomicUsize::new(0x1000);

/// The live objects of one kind.
pub struct Table<T> {
    entries: Mutex<BTreeMap<usize, Arc<T>>>,
}

impl<T> Table<T> {
    /// An empty table.
    pub const fn new() -> Table<T> {
        Table { entries: Mutex::new(BTreeMap::new()) }
    }

    /// Takes in an object and returns its handle.
    pub fn insert(&self, value: Arc<T>) -> usize {
        let handle = NEXT.fetch_add(16, Relaxed);
        self.entries().insert(handle, value);
        handle
    }

    /// The object of a live handle.
    pub fn get(&self, handle: usize) -> Option<Arc<T>> {
        self.entries().get(&handle).cloned()
    }

    /// Ends a handle.
    pub fn remove(&self, handle: usize) -> Option<Arc<T>> {
        self.entries().remove(&handle)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<T>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destroyed_handle_is_refused_and_not_given_out_again() {
        let table = Table::new();
        let first = table.insert(Arc::new(1));
        assert_eq!(table.remove(first).as_deref(), Some(&1));
        assert_eq!(table.get(first), None);
        assert_eq!(table.remove(first), None);
        assert_ne!(table.insert(Arc::new(2)), first);
    }
}
