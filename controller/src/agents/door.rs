//! Connections that have no session: how many there may be, and for how long. Whoever reaches the port may open one, with no token at all.
//!
//! ```text
//! accept ─► place ─► TLS ─► call ─► token ─► session: the place is free again
//!             └─ patience is over: the connection is closed ─┘
//! ```

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use crate::metrics::Metrics;

/// What connections without a session may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many there may be. Further ones wait to be accepted, in the kernel's queue.
    pub strangers: usize,
    /// How long one may last: once for the handshake, and once more until a session is open. The review of a token is not counted, it has
    /// deadlines of its own.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Some 40 MB of TLS and HTTP/2 state; a fleet that comes back at once is through in seconds.
            strangers: 1024,
            patience: Duration::from_secs(10),
        }
    }
}

/// Where connections come in.
pub struct Door {
    places: Arc<Semaphore>,
    limits: Limits,
    metrics: Arc<Metrics>,
}

impl Door {
    /// Nobody is in.
    pub fn new(limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.strangers)),
            limits,
            metrics,
        }
    }

    /// How long a handshake may last.
    pub fn patience(&self) -> Duration {
        self.limits.patience
    }

    /// Waits until one more may come in.
    pub async fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().acquire_owned().await.ok()
    }

    /// Somebody came in.
    pub fn place(&self, room: Option<OwnedSemaphorePermit>) -> Place {
        Place::new(room, &self.metrics)
    }

    /// A connection whose handshake is done.
    pub fn connection<S>(self: &Arc<Self>, io: S, peer: SocketAddr, place: Place) -> Connection<S> {
        let shared = Shared {
            door: self.clone(),
            peer,
            state: Mutex::new(State {
                place: Some(place),
                calls: 0,
                sessions: 0,
            }),
            changed: AtomicWaker::new(),
        };
        Connection {
            io,
            pass: Pass(Arc::new(shared)),
            patience: None,
        }
    }
}

/// One of the places; free when dropped.
pub struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    metrics: Arc<Metrics>,
}

impl Place {
    fn new(permit: Option<OwnedSemaphorePermit>, metrics: &Arc<Metrics>) -> Self {
        metrics.stranger_came();
        Self {
            _permit: permit,
            metrics: metrics.clone(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.stranger_went();
    }
}

struct State {
    /// `None`: it has a session, or had one and found no place.
    place: Option<Place>,
    calls: usize,
    sessions: usize,
}

struct Shared {
    door: Arc<Door>,
    peer: SocketAddr,
    state: Mutex<State>,
    changed: AtomicWaker,
}

/// What a call knows of its connection.
#[derive(Clone)]
pub struct Pass(Arc<Shared>);

impl Pass {
    /// Who calls.
    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// A call came, and its token is looked at.
    pub fn call(&self) -> Caller {
        self.0.state.lock().calls += 1;
        Caller(self.clone())
    }

    /// Whether the connection has to prove itself, and whether that may wait for a review.
    fn standing(&self) -> Standing {
        let state = self.0.state.lock();
        match (state.sessions, &state.place) {
            (1.., _) => Standing::Known,
            (0, None) => Standing::NoPlace,
            (0, Some(_)) if state.calls > 0 => Standing::Reviewed,
            (0, Some(_)) => Standing::Stranger,
        }
    }
}

enum Standing {
    Known,
    Reviewed,
    Stranger,
    NoPlace,
}

/// A call whose token is looked at. Dropped: it was refused.
pub struct Caller(Pass);

impl Caller {
    /// The call became a session.
    pub fn admitted(self) -> Admitted {
        let pass = self.0.clone();
        {
            let mut state = pass.0.state.lock();
            state.sessions += 1;
            state.place = None;
        }
        Admitted(pass)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let shared = &self.0.0;
        shared.state.lock().calls -= 1;
        shared.changed.wake();
    }
}

/// An open session. Dropped: it is over, and its connection is a stranger's again.
pub struct Admitted(Pass);

impl Drop for Admitted {
    fn drop(&mut self) {
        let shared = &self.0.0;
        let mut state = shared.state.lock();
        state.sessions -= 1;
        if state.sessions == 0 {
            let permit = shared.door.places.clone().try_acquire_owned().ok();
            state.place = permit.map(|permit| Place::new(Some(permit), &shared.door.metrics));
        }
        drop(state);
        shared.changed.wake();
    }
}

/// A connection that ends when it has had no session for too long.
pub struct Connection<S> {
    io: S,
    pass: Pass,
    patience: Option<Pin<Box<Sleep>>>,
}

impl<S> Connection<S> {
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        // Before looking: what changes after the look wakes.
        self.pass.0.changed.register(cx.waker());
        let patience = self.pass.0.door.limits.patience;
        let waits_for_review = match self.pass.standing() {
            Standing::Known => {
                self.patience = None;
                return false;
            }
            Standing::NoPlace => return true,
            Standing::Reviewed => true,
            Standing::Stranger => false,
        };
        // A call that was refused gives no more time: it could be made again for ever.
        let sleep = self
            .patience
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        let has_passed = sleep.is_elapsed() || sleep.as_mut().poll(cx).is_ready();
        has_passed && !waits_for_review
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Pass;

    fn connect_info(&self) -> Pass {
        self.pass.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_over(cx) {
            let shared = &self.pass.0;
            shared.door.metrics.agent_refused("NoSession");
            tracing::debug!(peer = %shared.peer, "a connection without a session is closed");
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
