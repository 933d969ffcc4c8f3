//! Events until the controller has them: bounded, the oldest goes first, and what was dropped is counted.

use std::collections::VecDeque;
use std::time::Duration;

use berth_core::facts::GpuEvent;

/// Events kept. A GPU that falls off a bus makes some dozens.
pub const CAPACITY: usize = 256;

/// Unacknowledged events in order.
#[derive(Debug, Default)]
pub struct Ring {
    /// The event with its number and the time it happened.
    events: VecDeque<(u64, GpuEvent, Duration)>,
    last: u64,
    lost: u64,
}

/// What one message carries, and what its acknowledgement will be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Number of the newest event in it.
    pub last: u64,
    /// Losses it told of.
    pub lost: u64,
}

impl Ring {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Adds an event that is as old as it says at `now`.
    pub fn push(&mut self, event: GpuEvent, now: Duration) {
        if self.events.len() == CAPACITY {
            self.events.pop_front();
            self.lost += 1;
        }
        self.last += 1;
        let at = now.saturating_sub(event.age);
        self.events.push_back((self.last, event, at));
    }

    /// Events after number `after`, with their age at `now`, and what to say when they are acknowledged. `None`: there are none.
    pub fn after(&self, after: u64, now: Duration) -> Option<(Vec<GpuEvent>, Sent)> {
        let events: Vec<_> = self
            .events
            .iter()
            .filter(|(number, ..)| *number > after)
            .map(|(_, event, at)| GpuEvent {
                age: now.saturating_sub(*at),
                ..event.clone()
            })
            .collect();
        let sent = Sent {
            last: self.last,
            lost: self.lost,
        };
        (!events.is_empty()).then_some((events, sent))
    }

    /// Forgets what the other side has.
    pub fn acknowledged(&mut self, sent: Sent) {
        self.events.retain(|(number, ..)| *number > sent.last);
        self.lost = self.lost.saturating_sub(sent.lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::facts::GpuEventKind;

    fn xid(n: u64, age_s: u64) -> GpuEvent {
        GpuEvent {
            kind: GpuEventKind::Xid(n),
            uuid: None,
            pci_address: None,
            age: Duration::from_secs(age_s),
            source: "nvml".into(),
            detail: String::new(),
        }
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_event_is_kept_until_acknowledged_and_grows_older() {
        let mut ring = Ring::default();
        assert_eq!(ring.after(0, s(0)), None);
        ring.push(xid(79, 1), s(10));
        let (events, sent) = ring.after(0, s(14)).unwrap();
        assert_eq!(events[0].age, s(5));
        ring.push(xid(48, 0), s(15));
        assert_eq!(ring.after(sent.last, s(15)).unwrap().0, [xid(48, 0)]);
        ring.acknowledged(sent);
        // A new session knows nothing and gets what is left.
        assert_eq!(ring.after(0, s(15)).unwrap().0, [xid(48, 0)]);
    }

    #[test]
    fn the_oldest_go_first_and_are_counted_until_the_other_side_knows() {
        let mut ring = Ring::default();
        for n in 0..CAPACITY as u64 + 3 {
            ring.push(xid(n, 0), s(0));
        }
        let (events, sent) = ring.after(0, s(0)).unwrap();
        assert_eq!((events.len(), &events[0], sent.lost), (CAPACITY, &xid(3, 0), 3));
        ring.push(xid(1000, 0), s(0));
        ring.acknowledged(sent);
        let (events, sent) = ring.after(0, s(0)).unwrap();
        assert_eq!((events.len(), sent.lost), (1, 1));
    }
}
