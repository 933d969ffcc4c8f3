//! Events on their way to whoever listens.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use berth_core::facts::{GpuEvent, NvmlStatus};
use tokio::sync::broadcast;

/// Events that a listener may fall behind, or that are kept while nobody listens (an agent that restarts): some dozens of each of eight
/// GPUs that fall off the bus together.
const CAPACITY: usize = 256;

/// One thing to tell.
#[derive(Debug, Clone)]
pub enum Item {
    /// A fault and when it came.
    Event(GpuEvent, Instant),
    /// NVML's state changed, or the GPUs did: read the inventory again.
    State(NvmlStatus),
}

/// Where events come in from any thread, and go out to all listeners.
#[derive(Debug, Clone)]
pub struct Feed {
    live: broadcast::Sender<Item>,
    /// Events that nobody heard. A state is not kept: a listener asks for the inventory first.
    unheard: Arc<Mutex<VecDeque<Item>>>,
}

impl Feed {
    /// A feed without listeners.
    pub fn new() -> Self {
        Self {
            live: broadcast::Sender::new(CAPACITY),
            unheard: Arc::default(),
        }
    }

    /// Tells all listeners; an event that finds none waits for the next.
    pub fn tell(&self, item: Item) {
        let mut unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(broadcast::error::SendError(item @ Item::Event(..))) = self.live.send(item) {
            if unheard.len() == CAPACITY {
                unheard.pop_front();
            }
            unheard.push_back(item);
        }
    }

    /// What nobody heard so far, and all that comes from now on.
    pub fn listen(&self) -> (VecDeque<Item>, broadcast::Receiver<Item>) {
        let mut unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner);
        (std::mem::take(&mut *unheard), self.live.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::facts::GpuEventKind;

    fn xid(n: u64) -> Item {
        let event = GpuEvent {
            kind: GpuEventKind::Xid(n),
            uuid: None,
            pci_address: None,
            age: std::time::Duration::ZERO,
            source: "nvml".into(),
            detail: String::new(),
            instance: None,
        };
        Item::Event(event, Instant::now())
    }

    fn number(item: &Item) -> u64 {
        match item {
            Item::Event(
                GpuEvent {
                    kind: GpuEventKind::Xid(n),
                    ..
                },
                _,
            ) => *n,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_event_that_nobody_heard_waits_and_is_told_once() {
        let feed = Feed::new();
        for n in 0..CAPACITY as u64 + 2 {
            feed.tell(xid(n));
        }
        let (unheard, mut live) = feed.listen();
        assert_eq!(unheard.len(), CAPACITY);
        assert_eq!(number(&unheard[0]), 2);
        feed.tell(xid(1000));
        assert_eq!(number(&live.try_recv().unwrap()), 1000);
        assert!(feed.listen().0.is_empty());
    }
}
