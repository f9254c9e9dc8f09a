//! What workers last said of their memory and time: not journalled, and gone with a restart.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use insula_proto::{ids::WorkerId, v1::WorkerMetrics};

/// Workers that are remembered; of more, those that registered first are forgotten.
const REMEMBERED: usize = 10_000;

/// The latest metrics by worker; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Gauges(Arc<Mutex<BTreeMap<WorkerId, WorkerMetrics>>>);

impl Gauges {
    /// Takes in what a worker says.
    pub fn set(&self, worker: WorkerId, metrics: WorkerMetrics) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(worker, metrics);
        if known.len() > REMEMBERED {
            known.pop_first();
        }
    }

    /// What a worker said last.
    pub fn of(&self, worker: WorkerId) -> Option<WorkerMetrics> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&worker).copied()
    }
}
