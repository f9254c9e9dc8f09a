//! What whoever runs the coordinator has decided: how long a lease lasts, and how much of the fleet a user may hold.

use std::collections::BTreeMap;

/// Settings of the schedule. Not journalled: a restart takes them from the settings again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How long a lease lasts without a heartbeat, ms.
    pub lease_ms: u64,
    /// Workers that a user may hold at once, where `quotas` does not say; 0: all.
    pub quota: u32,
    /// By user.
    pub quotas: BTreeMap<String, u32>,
}

impl Policy {
    /// No quotas.
    pub fn new(lease_ms: u64) -> Self {
        Self { lease_ms, quota: 0, quotas: BTreeMap::new() }
    }

    /// How many workers a user may hold at once.
    pub fn quota_of(&self, user: &str) -> u32 {
        match self.quotas.get(user).copied().unwrap_or(self.quota) {
            0 => u32::MAX,
            quota => quota,
        }
    }
}
