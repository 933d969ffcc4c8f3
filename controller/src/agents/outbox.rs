//! What one agent has still to be told. Every entry is state of which only the latest counts, so a slow agent costs no memory.

use std::sync::Arc;

use berth_proto::v1::controller_message::Body;
use berth_proto::v1::{Ack, ControllerMessage, Resync, SetRate, Welcome};
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
    rate: Option<SetRate>,
    resync: Option<Resync>,
    ack: Option<Ack>,
    end: Option<Option<Status>>,
}

impl Outbox {
    /// First answer of a session.
    pub fn welcome(&self, welcome: Welcome) {
        self.put(|w| w.welcome = Some(welcome));
    }

    /// Milliseconds between two samples.
    pub fn set_rate(&self, sample_interval_ms: u64) {
        self.put(|w| w.rate = Some(SetRate { sample_interval_ms }));
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
        let body = waiting
            .welcome
            .take()
            .map(Body::Welcome)
            .or_else(|| waiting.rate.take().map(Body::SetRate))
            .or_else(|| waiting.resync.take().map(Body::Resync))
            .or_else(|| waiting.ack.take().map(Body::Ack));
        match body {
            Some(body) => Some(Some(Ok(ControllerMessage { body: Some(body) }))),
            // The end stays: after its status the stream is over.
            None => waiting.end.as_mut().map(|end| end.take().map(Err)),
        }
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

    #[tokio::test]
    async fn the_latest_counts_and_the_end_comes_last() {
        let outbox = Arc::new(Outbox::default());
        outbox.ack(1);
        outbox.set_rate(500);
        outbox.ack(7);
        outbox.welcome(Welcome::default());
        outbox.end(Some(Status::aborted("over")));
        let got: Vec<_> = stream(outbox).collect().await;
        let kinds: Vec<String> = got
            .into_iter()
            .map(|m| match m.map(|m| m.body.unwrap()) {
                Ok(Body::Welcome(_)) => "welcome".into(),
                Ok(Body::SetRate(r)) => format!("rate {}", r.sample_interval_ms),
                Ok(Body::Ack(a)) => format!("ack {}", a.seq),
                Ok(other) => format!("{other:?}"),
                Err(status) => status.message().to_owned(),
            })
            .collect();
        assert_eq!(kinds, ["welcome", "rate 500", "ack 7", "over"]);
    }
}
