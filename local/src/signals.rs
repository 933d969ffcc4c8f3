//! What asks this process to end; whoever started a cluster ends it then, instead of leaving its servers behind.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP from when it was made: one that comes before it is asked for is not lost.
#[derive(Debug)]
pub struct Signals([(&'static str, Signal); 3]);

impl Signals {
    /// From now on these signals no longer end the process by themselves. Within a runtime only.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self([
            ("SIGINT", signal(SignalKind::interrupt())?),
            ("SIGTERM", signal(SignalKind::terminate())?),
            ("SIGHUP", signal(SignalKind::hangup())?),
        ]))
    }

    /// Waits for one; its name.
    pub async fn next(&mut self) -> &'static str {
        let [a, b, c] = &mut self.0;
        tokio::select! {
            _ = a.1.recv() => a.0,
            _ = b.1.recv() => b.0,
            _ = c.1.recv() => c.0,
        }
    }
}
