//! What one agent has still to be told. Every entry is state of which only the latest counts, so a slow agent costs no memory.
//! Orders are told when they change, and whole to each session: whatever an agent was told before, or its probe, ends with it.

use std::sync::Arc;

use berth_proto::v1::controller_message::Body;
use berth_proto::v1::{Ack, ControllerMessage, ReleaseDriver, ResumeDriver, Resync, SetRate, Welcome};
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::Status;

/// Written by the session, read by its response stream.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    welcome: Option<Welcome>,
    /// Orders wait for the welcome.
    welcomed: bool,
    sample_interval_ms: Told<u64>,
    let_go: Told<bool>,
    resync: Option<Resync>,
    ack: Option<Ack>,
    end: Option<Option<Status>>,
}

/// An order: the latest, and what was sent last.
#[derive(Debug)]
struct Told<T> {
    wanted: Option<T>,
    sent: Option<T>,
}

impl<T> Default for Told<T> {
    fn default() -> Self {
        Self {
            wanted: None,
            sent: None,
        }
    }
}

impl<T: Copy + PartialEq> Told<T> {
    /// What is to be sent now, if anything; it counts as sent.
    fn take(&mut self) -> Option<T> {
        let due = self.wanted.filter(|wanted| self.sent != Some(*wanted));
        self.sent = due.or(self.sent);
        due
    }
}

impl Outbox {
    /// First answer of a session.
    pub fn welcome(&self, welcome: Welcome) {
        self.put(|w| {
            w.sample_interval_ms.sent = Some(welcome.sample_interval_ms);
            w.welcome = Some(welcome);
        });
    }

    /// Time between two samples.
    pub fn sample_interval(&self, ms: u64) {
        self.put(|w| w.sample_interval_ms.wanted = Some(ms));
    }

    /// Whether the driver has to be let go of. Says whether that is news.
    pub fn let_go(&self, let_go: bool) -> bool {
        let mut before = None;
        self.put(|w| before = w.let_go.wanted.replace(let_go));
        before != Some(let_go)
    }

    /// Everything has to be sent again.
    pub fn resync(&self, reason: &str) {
        self.put(|w| {
            w.resync = Some(Resync {
                reason: reason.to_owned(),
            })
        });
    }

    /// Everything up to `seq` is in the picture.
    pub fn ack(&self, seq: u64) {
        self.put(|w| w.ack = Some(Ack { seq }));
    }

    /// No more after what waits; `None`: without an error.
    pub fn end(&self, status: Option<Status>) {
        self.put(|w| w.end = Some(status));
    }

    fn put(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.waiting.lock());
        self.changed.notify_one();
    }

    /// `Some(None)`: the stream is over.
    fn take(&self) -> Option<Option<Result<ControllerMessage, Status>>> {
        let mut waiting = self.waiting.lock();
        let body = waiting.next();
        match body {
            Some(body) => Some(Some(Ok(ControllerMessage { body: Some(body) }))),
            // The end stays: after its status the stream is over.
            None => waiting.end.as_mut().map(|end| end.take().map(Err)),
        }
    }
}

impl Waiting {
    fn next(&mut self) -> Option<Body> {
        if let Some(welcome) = self.welcome.take() {
            self.welcomed = true;
            return Some(Body::Welcome(welcome));
        }
        if self.welcomed {
            if let Some(let_go) = self.let_go.take() {
                return Some(match let_go {
                    true => Body::ReleaseDriver(ReleaseDriver {}),
                    false => Body::ResumeDriver(ResumeDriver {}),
                });
            }
            if let Some(sample_interval_ms) = self.sample_interval_ms.take() {
                return Some(Body::SetRate(SetRate { sample_interval_ms }));
            }
        }
        // Before the acknowledgement of what came after the gap.
        let resync = self.resync.take().map(Body::Resync);
        resync.or_else(|| self.ack.take().map(Body::Ack))
    }
}

/// The response stream of a session.
pub fn stream(outbox: Arc<Outbox>) -> impl Stream<Item = Result<ControllerMessage, Status>> + Send {
    futures::stream::unfold(outbox, |outbox| async move {
        loop {
            match outbox.take() {
                Some(Some(message)) => return Some((message, outbox)),
                Some(None) => return None,
                None => outbox.changed.notified().await,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    /// All that waits, in order.
    fn said(outbox: &Outbox) -> Vec<String> {
        std::iter::from_fn(|| outbox.take().flatten())
            .map(|message| match message.map(|m| m.body.unwrap()) {
                Ok(Body::Welcome(w)) => format!("welcome {}", w.sample_interval_ms),
                Ok(Body::SetRate(r)) => format!("rate {}", r.sample_interval_ms),
                Ok(Body::ReleaseDriver(_)) => "release".into(),
                Ok(Body::ResumeDriver(_)) => "resume".into(),
                Ok(Body::Ack(a)) => format!("ack {}", a.seq),
                Ok(Body::Resync(_)) => "resync".into(),
                Err(status) => status.message().to_owned(),
            })
            .collect()
    }

    #[test]
    fn orders_wait_for_the_welcome_and_are_told_when_they_change() {
        let outbox = Outbox::default();
        outbox.let_go(true);
        outbox.sample_interval(1000);
        assert!(said(&outbox).is_empty());
        outbox.welcome(Welcome {
            sample_interval_ms: 3000,
            ..Welcome::default()
        });
        outbox.ack(1);
        assert_eq!(said(&outbox), ["welcome 3000", "release", "rate 1000", "ack 1"]);
        outbox.let_go(true);
        outbox.sample_interval(1000);
        assert!(said(&outbox).is_empty(), "nothing changed");
        // There and back before the agent read anything.
        outbox.sample_interval(3000);
        outbox.sample_interval(1000);
        outbox.let_go(false);
        assert_eq!(said(&outbox), ["resume"]);
        outbox.resync("gap");
        outbox.ack(9);
        assert_eq!(said(&outbox), ["resync", "ack 9"]);
    }

    #[tokio::test]
    async fn the_latest_counts_and_the_end_comes_last() {
        let outbox = Arc::new(Outbox::default());
        outbox.ack(1);
        outbox.ack(7);
        outbox.welcome(Welcome::default());
        outbox.end(Some(Status::aborted("over")));
        let got: Vec<_> = stream(outbox).collect().await;
        let kinds: Vec<String> = got
            .into_iter()
            .map(|m| match m.map(|m| m.body.unwrap()) {
                Ok(Body::Welcome(_)) => "welcome".into(),
                Ok(Body::Ack(a)) => format!("ack {}", a.seq),
                Ok(other) => format!("{other:?}"),
                Err(status) => status.message().to_owned(),
            })
            .collect();
        assert_eq!(kinds, ["welcome", "ack 7", "over"]);
    }
}
