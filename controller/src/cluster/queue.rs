//! A set of things that one consumer still has to look at.

use std::collections::BTreeSet;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Pushing what is already in changes nothing, so its size is bounded by the number of things.
#[derive(Debug)]
pub struct Queue<K> {
    set: Mutex<BTreeSet<K>>,
    notify: Notify,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            set: Mutex::new(BTreeSet::new()),
            notify: Notify::new(),
        }
    }
}

impl<K: Ord> Queue<K> {
    /// Adds one thing to look at.
    pub fn push(&self, key: K) {
        self.set.lock().insert(key);
        self.notify.notify_one();
    }

    /// Waits until there is something, then `gather` longer so that a burst comes as one batch, and takes all of it.
    /// Meant for one consumer.
    pub async fn next_batch(&self, gather: Duration) -> BTreeSet<K> {
        loop {
            if !self.set.lock().is_empty() {
                if !gather.is_zero() {
                    tokio::time::sleep(gather).await;
                }
                return std::mem::take(&mut *self.set.lock());
            }
            self.notify.notified().await;
        }
    }
}
