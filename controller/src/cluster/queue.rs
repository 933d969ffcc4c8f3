//! A set of things that one consumer still has to look at, now or at a later moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Pushing what is already in changes nothing, so its size is bounded by the number of things. A thing has one later moment at most: a
/// failure that repeats moves it, and never adds a second timer.
#[derive(Debug)]
pub struct Queue<K> {
    waiting: Mutex<Waiting<K>>,
    notify: Notify,
}

#[derive(Debug)]
struct Waiting<K> {
    now: BTreeSet<K>,
    later: BTreeMap<K, Instant>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        let waiting = Waiting {
            now: BTreeSet::new(),
            later: BTreeMap::new(),
        };
        Self {
            waiting: Mutex::new(waiting),
            notify: Notify::new(),
        }
    }
}

impl<K: Ord + Clone> Queue<K> {
    /// Adds one thing to look at.
    pub fn push(&self, key: K) {
        self.waiting.lock().now.insert(key);
        self.notify.notify_one();
    }

    /// Adds one thing to look at again at `at`; replaces its earlier moment.
    pub fn push_at(&self, key: K, at: Instant) {
        self.waiting.lock().later.insert(key, at);
        self.notify.notify_one();
    }

    /// Waits until there is something, then `gather` longer so that a burst comes as one batch, and takes all of it. What is taken loses
    /// its later moment: whoever looks at it now decides anew. Meant for one consumer.
    pub async fn next_batch(&self, gather: Duration) -> BTreeSet<K> {
        loop {
            let wake = self.waiting.lock().wake(Instant::now());
            match wake {
                Some(None) => {
                    if !gather.is_zero() {
                        tokio::time::sleep(gather).await;
                    }
                    return self.waiting.lock().take();
                }
                Some(Some(at)) => {
                    tokio::select! {
                        () = self.notify.notified() => {}
                        () = tokio::time::sleep_until(at.into()) => {}
                    }
                }
                None => self.notify.notified().await,
            }
        }
    }
}

impl<K: Ord + Clone> Waiting<K> {
    /// `Some(None)`: there is something now; `Some(Some(at))`: at that moment; `None`: nothing is in.
    fn wake(&mut self, now: Instant) -> Option<Option<Instant>> {
        let due: Vec<K> = self
            .later
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(k, _)| k.clone())
            .collect();
        for key in due {
            self.later.remove(&key);
            self.now.insert(key);
        }
        if !self.now.is_empty() {
            return Some(None);
        }
        self.later.values().min().copied().map(Some)
    }

    fn take(&mut self) -> BTreeSet<K> {
        let taken = std::mem::take(&mut self.now);
        self.later.retain(|key, _| !taken.contains(key));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_burst_is_one_batch() {
        let queue = Queue::default();
        ["b", "a", "b"].into_iter().for_each(|k| queue.push(k));
        assert_eq!(queue.next_batch(Duration::ZERO).await, ["a", "b"].into());
    }

    #[tokio::test]
    async fn a_thing_that_fails_again_and_again_has_one_later_moment() {
        let queue = Queue::default();
        let start = Instant::now();
        for n in 1..=100 {
            queue.push_at("x", start + Duration::from_millis(n));
        }
        assert_eq!(queue.next_batch(Duration::ZERO).await, ["x"].into());
        assert!(
            start.elapsed() >= Duration::from_millis(100),
            "the last of its moments holds"
        );
        assert_eq!(queue.waiting.lock().wake(Instant::now()), None, "and none is left");
    }

    #[tokio::test]
    async fn what_is_looked_at_now_is_not_due_later_as_well() {
        let queue = Queue::default();
        queue.push_at("x", Instant::now() + Duration::from_secs(60));
        queue.push("x");
        assert_eq!(queue.next_batch(Duration::ZERO).await, ["x"].into());
        assert_eq!(queue.waiting.lock().wake(Instant::now()), None);
    }
}
