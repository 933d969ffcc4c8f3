//! Which sessions are open: one a node, the newest.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::identity::Identity;
use super::outbox::Outbox;
use super::refusal::Refusal;

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The agent hung up or its connection broke.
    HungUp,
    /// A newer session of the same node.
    Superseded,
    /// This process stops.
    ShuttingDown,
    /// Turned away.
    Refused(Refusal),
}

impl End {
    /// What the agent is told; `None`: there is nobody to tell.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::HungUp => None,
            Self::Superseded => Some(Status::aborted("a newer session of this node is open")),
            Self::ShuttingDown => Some(Status::unavailable("the controller is shutting down")),
            Self::Refused(refusal) => Some(refusal.status()),
        }
    }
}

/// One open session, as everybody else sees it.
#[derive(Debug)]
pub struct Gate {
    node: String,
    node_uid: String,
    pod_uid: String,
    /// What the agent is told.
    pub outbox: Arc<Outbox>,
    opened: Instant,
    ended: Mutex<Option<End>>,
    closed: CancellationToken,
}

impl Gate {
    /// Ends the session; the first reason counts. When this returns, nothing of the session is being applied, and nothing will be.
    pub fn end(&self, end: End) {
        self.ended.lock().get_or_insert(end);
        self.closed.cancel();
    }

    /// Applies something of the session unless it has ended.
    pub fn apply<R>(&self, change: impl FnOnce() -> R) -> Result<R, End> {
        let ended = self.ended.lock();
        match &*ended {
            Some(end) => Err(end.clone()),
            None => Ok(change()),
        }
    }

    /// Returns when the session was ended from outside.
    pub async fn ended(&self) -> End {
        self.closed.cancelled().await;
        self.ended.lock().clone().unwrap_or(End::HungUp)
    }
}

/// All open sessions by node name. A node's name and UID change together only when the node was made anew, so the newest is right for both.
#[derive(Debug, Default)]
pub struct Sessions {
    open: Mutex<HashMap<String, Arc<Gate>>>,
}

impl Sessions {
    /// Opens a session; an older one of the node ends.
    pub fn open(&self, identity: &Identity, now: Instant) -> Arc<Gate> {
        let gate = Arc::new(Gate {
            node: identity.node.clone(),
            node_uid: identity.node_uid.clone(),
            pod_uid: identity.pod_uid.clone(),
            outbox: Arc::default(),
            opened: now,
            ended: Mutex::new(None),
            closed: CancellationToken::new(),
        });
        if let Some(older) = self.open.lock().insert(identity.node.clone(), gate.clone()) {
            older.end(End::Superseded);
        }
        gate
    }

    /// The open session of a node's agent.
    pub fn of(&self, node: &str, node_uid: &str) -> Option<Arc<Gate>> {
        let open = self.open.lock();
        open.get(node).filter(|gate| gate.node_uid == node_uid).cloned()
    }

    /// Takes a session off the list; `last` runs only if no newer one of the node is open, and before one can be.
    pub fn close(&self, gate: &Arc<Gate>, last: impl FnOnce()) {
        let mut open = self.open.lock();
        if open.get(&gate.node).is_some_and(|g| Arc::ptr_eq(g, gate)) {
            open.remove(&gate.node);
            last();
        }
    }

    /// Ends the sessions of these pods.
    pub fn end_pods(&self, gone: &BTreeSet<String>) {
        for gate in self.select(|g| gone.contains(&g.pod_uid)) {
            gate.end(End::Refused(Refusal::PodGone));
        }
    }

    /// Ends sessions older than `age` whose pod is not among those that exist: what was deleted before the first list was never "gone".
    pub fn end_unknown(&self, age: Duration, now: Instant, exists: impl Fn(&str) -> bool) {
        for gate in self.select(|g| now.saturating_duration_since(g.opened) > age && !exists(&g.pod_uid)) {
            gate.end(End::Refused(Refusal::PodGone));
        }
    }

    /// Ends all.
    pub fn end_all(&self, end: &End) {
        for gate in self.select(|_| true) {
            gate.end(end.clone());
        }
    }

    /// How many are open.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.open.lock().len()
    }

    fn select(&self, which: impl Fn(&Gate) -> bool) -> Vec<Arc<Gate>> {
        self.open.lock().values().filter(|g| which(g)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn identity(node: &str, pod_uid: &str) -> Identity {
        Identity {
            node: node.into(),
            node_uid: format!("{node}-uid"),
            pod: "p".into(),
            pod_uid: pod_uid.into(),
            expires: Timestamp::MAX,
        }
    }

    #[test]
    fn the_newer_session_of_a_node_wins() {
        let sessions = Sessions::default();
        let now = Instant::now();
        let old = sessions.open(&identity("n", "a"), now);
        let other = sessions.open(&identity("m", "b"), now);
        let new = sessions.open(&identity("n", "c"), now);
        assert_eq!(old.apply(|| ()), Err(End::Superseded));
        assert_eq!((new.apply(|| 1), other.apply(|| 2)), (Ok(1), Ok(2)));
        let mut told = false;
        sessions.close(&old, || told = true);
        assert!(!told, "the older one must not report the node as disconnected");
        sessions.close(&new, || told = true);
        assert!(told);
        assert_eq!(sessions.count(), 1);
    }

    #[test]
    fn sessions_end_with_their_pods() {
        let sessions = Sessions::default();
        let now = Instant::now();
        let (a, b) = (
            sessions.open(&identity("n", "a"), now),
            sessions.open(&identity("m", "b"), now),
        );
        sessions.end_pods(&BTreeSet::from(["a".to_owned(), "x".to_owned()]));
        assert_eq!(a.apply(|| ()), Err(End::Refused(Refusal::PodGone)));
        assert_eq!(b.apply(|| ()), Ok(()));
        let minute = Duration::from_secs(60);
        sessions.end_unknown(minute, now + minute, |_| false);
        assert_eq!(b.apply(|| ()), Ok(()), "its pod may not have been listed yet");
        sessions.end_unknown(minute, now + minute * 2, |pod| pod == "b");
        assert_eq!(b.apply(|| ()), Ok(()));
        sessions.end_unknown(minute, now + minute * 2, |_| false);
        assert_eq!(b.apply(|| ()), Err(End::Refused(Refusal::PodGone)));
    }

    #[test]
    fn the_first_reason_counts() {
        let sessions = Sessions::default();
        let gate = sessions.open(&identity("n", "a"), Instant::now());
        gate.end(End::Refused(Refusal::TokenExpired));
        sessions.end_all(&End::ShuttingDown);
        assert_eq!(gate.apply(|| ()), Err(End::Refused(Refusal::TokenExpired)));
    }
}
