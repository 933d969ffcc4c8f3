//! What is remembered of each object between two looks. Losing it costs requests, never correctness.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use parking_lot::Mutex;

use crate::cluster::ObjectKey;
use crate::kinds::children::Kind;
use crate::kinds::children::repairs::Repairs;
use crate::kinds::error::{Class, Error, wait};

/// Of one object.
#[derive(Debug, Clone)]
pub struct Memory<S> {
    /// Failures in a row.
    pub attempts: u32,
    /// The status that was last written and the version that the write made: the watch may still show the one before.
    pub status: Option<(String, S)>,
    /// The original operator's last write of a child that the status told of.
    pub contest_told: Option<Timestamp>,
    /// When the original's finalizer was last taken away.
    pub finalizer_removed: Option<Timestamp>,
    /// Of each child, what an admission rule changed in the answer to our last apply.
    pub settled: HashMap<(Kind, String), BTreeSet<String>>,
    /// Of each child, how often it was set back to what it had been made.
    pub repairs: HashMap<(Kind, String), Repairs>,
}

impl<S> Default for Memory<S> {
    fn default() -> Self {
        Self {
            attempts: 0,
            status: None,
            contest_told: None,
            finalizer_removed: None,
            settled: HashMap::new(),
            repairs: HashMap::new(),
        }
    }
}

/// When the original wrote a child last, if that is why a look ended early.
pub fn contest<T>(outcome: &Result<T, Error>) -> Option<Timestamp> {
    match outcome {
        Err(Error::AnotherOperator { since, .. }) => Some(*since),
        _ => None,
    }
}

/// Of all objects of one kind.
#[derive(Debug)]
pub struct Memories<S>(Mutex<HashMap<ObjectKey, Memory<S>>>);

impl<S> Default for Memories<S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<S: Clone> Memories<S> {
    /// What is remembered of an object.
    pub fn get(&self, key: &ObjectKey) -> Memory<S> {
        self.0.lock().get(key).cloned().unwrap_or_default()
    }

    /// Remembers.
    pub fn change(&self, key: &ObjectKey, change: impl FnOnce(&mut Memory<S>)) {
        change(self.0.lock().entry(key.clone()).or_default());
    }

    /// Whether a status has told of the original's last write already. The original wipes conditions whenever it writes its status, and
    /// writes it whenever it sees ours change: told once is enough.
    pub fn is_told(&self, key: &ObjectKey, contest: Option<Timestamp>, conditions: Option<&[Condition]>) -> bool {
        let is_wiped = conditions.is_none_or(<[Condition]>::is_empty);
        contest.is_some() && is_wiped && self.get(key).contest_told == contest
    }

    /// A list is complete: it shows what we wrote, and after the API server's data were restored from an earlier day, older versions count.
    pub fn relisted(&self) {
        self.0.lock().values_mut().for_each(|memory| memory.status = None);
    }

    /// A look went well. An object that is gone meanwhile is not remembered again for it.
    pub fn succeeded(&self, key: &ObjectKey) {
        if let Some(memory) = self.0.lock().get_mut(key) {
            memory.attempts = 0;
        }
    }

    /// The object is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }

    /// A try failed: how long to wait before the next.
    pub fn failed(&self, key: &ObjectKey, class: Class, jitter: f64) -> Duration {
        let mut memories = self.0.lock();
        let memory = memories.entry(key.clone()).or_default();
        memory.attempts = memory.attempts.saturating_add(1);
        wait(class, memory.attempts, jitter)
    }

    /// Keeps only objects that exist.
    pub fn retain(&self, exists: impl Fn(&ObjectKey) -> bool)
    where
        ObjectKey: Hash,
    {
        self.0.lock().retain(|key, _| exists(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_until_a_success() {
        let memories = Memories::<()>::default();
        let key = ("ns".to_owned(), "m".to_owned());
        let first = memories.failed(&key, Class::Transient, 1.0);
        assert!(memories.failed(&key, Class::Transient, 1.0) > first);
        memories.succeeded(&key);
        assert_eq!(memories.failed(&key, Class::Transient, 1.0), first);
        memories.forget(&key);
        memories.succeeded(&key);
        assert!(
            memories.0.lock().is_empty(),
            "a look that ends later does not bring it back"
        );
        assert_eq!(memories.get(&key).attempts, 0);
    }
}
