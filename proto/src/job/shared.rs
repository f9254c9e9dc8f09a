//! Parts of a job that are mostly equal from one job to the next: a coordinator that holds 100,000 jobs of some sweeps
//! holds most parts once.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value that equal jobs may hold together. Reads and writes as the value itself; whoever changes it gets their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shared<T>(Arc<T>);

impl<T: PartialEq> Shared<T> {
    /// Holds the other's value from now on, where they are equal.
    pub fn share(&mut self, other: &Self) {
        if !Arc::ptr_eq(&self.0, &other.0) && self.0 == other.0 {
            self.0 = other.0.clone();
        }
    }
}

impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

impl<T: Serialize> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        T::serialize(self, to)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(T::deserialize(from)?.into())
    }
}

#[cfg(test)]
mod tests {
    use crate::job::JobSpec;

    use super::*;

    #[test]
    fn equal_parts_are_held_once_and_a_change_is_ones_own() {
        let first = JobSpec::default();
        let text = serde_json::to_string(&first).unwrap();
        let mut second: JobSpec = serde_json::from_str(&text).unwrap();
        second.base.source = "another".into();
        let alone = second.clone();
        second.share(&first);
        assert_eq!(second, alone, "sharing changes no value");
        let held =
            |a: &JobSpec, b: &JobSpec| (Arc::ptr_eq(&a.adapter.0, &b.adapter.0), Arc::ptr_eq(&a.base.0, &b.base.0));
        assert_eq!(held(&first, &second), (true, false));
        second.adapter.r += 1;
        assert_eq!((held(&first, &second), second.adapter.r), ((false, false), first.adapter.r + 1));
        assert_eq!(serde_json::to_string(&first).unwrap(), text);
    }
}
