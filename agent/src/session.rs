//! One session's side of the conversation with the controller: what was sent, what is to be sent next. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use berth_proto::v1::agent_message::Body;
use berth_proto::v1::{AgentMessage, GpuEvents, Hello, NodeHealth, Renew, Samples};
use berth_proto::{PROTOCOL_MAX, PROTOCOL_MIN};

use crate::dead_band::DeadBand;
use crate::picture::{Revision, State};
use crate::ring::Sent;

/// Where the session stands.
#[derive(Debug, Default)]
pub struct Session {
    seq: u64,
    /// Revisions that were sent last; `None`: never, or a resync was asked for.
    facts: Option<u64>,
    health: Option<u64>,
    samples: Option<u64>,
    /// Number of the newest event that was sent.
    event: u64,
    /// Messages with events that are not acknowledged.
    unacknowledged: VecDeque<(u64, Sent)>,
    band: DeadBand,
    interval: Duration,
}

impl Session {
    fn message(&mut self, body: Body) -> AgentMessage {
        self.seq += 1;
        AgentMessage {
            seq: self.seq,
            body: Some(body),
        }
    }

    /// The first message.
    pub fn hello(&mut self) -> AgentMessage {
        self.message(Body::Hello(Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            agent_version: env!("CARGO_PKG_VERSION").into(),
        }))
    }

    /// A fresh token.
    pub fn renew(&mut self, token: String) -> AgentMessage {
        self.message(Body::Renew(Renew { token }))
    }

    /// The next message, most urgent first. `None`: the other side has it all.
    pub fn next(&mut self, state: &State, revision: Revision, now: Duration) -> Option<AgentMessage> {
        // What the node is comes before how it is: the other side files health and readings under the GPUs it knows.
        if self.facts.is_none() {
            return Some(self.inventory(state, revision, now));
        }
        if self.health != Some(revision.health) {
            self.health = Some(revision.health);
            let health = NodeHealth {
                memory: state.handover.sealed().to_vec(),
                ..state.tracker.health(now).into()
            };
            return Some(self.message(Body::Health(health)));
        }
        if let Some((events, sent)) = state.ring.after(self.event, now) {
            self.event = sent.last;
            let body = Body::Events(GpuEvents {
                events: events.into_iter().map(Into::into).collect(),
                lost: sent.lost,
            });
            let message = self.message(body);
            self.unacknowledged.push_back((message.seq, sent));
            return Some(message);
        }
        if self.facts != Some(revision.facts) {
            return Some(self.inventory(state, revision, now));
        }
        if self.samples != Some(revision.samples) {
            self.samples = Some(revision.samples);
            let picked = self.band.pick(&state.samples_at(now), now, self.interval);
            if !picked.is_empty() {
                let gpus = picked.into_iter().map(Into::into).collect();
                return Some(self.message(Body::Samples(Samples { gpus })));
            }
        }
        None
    }

    fn inventory(&mut self, state: &State, revision: Revision, now: Duration) -> AgentMessage {
        self.facts = Some(revision.facts);
        self.message(Body::Inventory(state.node_facts(now).into()))
    }

    /// What the other side has now of the events.
    pub fn acknowledged(&mut self, seq: u64) -> Option<Sent> {
        let mut newest = None;
        let mut told = 0;
        while let Some((_, sent)) = self.unacknowledged.pop_front_if(|(sent_as, _)| *sent_as <= seq) {
            // Losses are told again until acknowledged: the largest number is all of them.
            told = sent.lost.max(told);
            newest = Some(sent);
        }
        newest.map(|sent| Sent { lost: told, ..sent })
    }

    /// The other side wants everything again.
    pub fn resync(&mut self) {
        self.facts = None;
        self.health = None;
        self.samples = None;
        self.band = DeadBand::default();
        // What was sent and not acknowledged may be what is missing: the acknowledgement that follows is not about it.
        self.event = 0;
        self.unacknowledged.clear();
    }

    /// Readings come this far apart.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::facts::{GpuEvent, GpuEventKind, GpuSample};

    fn names(session: &mut Session, state: &State, revision: Revision) -> Vec<&'static str> {
        let mut names = Vec::new();
        while let Some(message) = session.next(state, revision, Duration::from_secs(1)) {
            names.push(match message.body.unwrap() {
                Body::Inventory(_) => "inventory",
                Body::Health(_) => "health",
                Body::Samples(_) => "samples",
                Body::Events(_) => "events",
                Body::Hello(_) | Body::Renew(_) => "other",
            });
        }
        names
    }

    fn xid(n: u64) -> GpuEvent {
        GpuEvent {
            kind: GpuEventKind::Xid(n),
            uuid: None,
            pci_address: None,
            age: Duration::ZERO,
            source: "nvml".into(),
            detail: String::new(),
            instance: None,
        }
    }

    fn state() -> State {
        let mut state = State::default();
        let sample = GpuSample {
            uuid: "GPU-1".into(),
            gpu_utilization: Some(3),
            ..GpuSample::default()
        };
        state.samples.insert(sample.uuid.clone(), (sample, Duration::ZERO));
        state
    }

    #[test]
    fn a_session_begins_with_everything_and_then_sends_what_changed() {
        let (mut session, mut state) = (Session::default(), state());
        assert_eq!(session.hello().seq, 1);
        state.ring.push(xid(31), Duration::ZERO);
        let mut revision = Revision::default();
        assert_eq!(
            names(&mut session, &state, revision),
            ["inventory", "health", "events", "samples"]
        );
        assert_eq!(session.seq, 5);
        assert!(names(&mut session, &state, revision).is_empty());

        revision.samples += 1;
        assert!(names(&mut session, &state, revision).is_empty(), "nothing moved");

        // A fatal XID: health first, then why, then whatever facts changed with it.
        state.ring.push(xid(79), Duration::ZERO);
        revision = Revision {
            facts: 1,
            health: 1,
            samples: 2,
            events: 2,
        };
        assert_eq!(names(&mut session, &state, revision), ["health", "events", "inventory"]);

        session.resync();
        assert_eq!(
            names(&mut session, &state, revision),
            ["inventory", "health", "events", "samples"]
        );
    }

    #[test]
    fn events_that_may_be_missing_are_sent_again_and_acknowledged_anew() {
        let (mut session, mut state) = (Session::default(), state());
        state.ring.push(xid(1), Duration::ZERO);
        names(&mut session, &state, Revision::default());
        let sent_as = session.seq;
        session.resync();
        assert_eq!(
            session.acknowledged(sent_as),
            None,
            "the other side has the message after them, not them"
        );
        assert!(names(&mut session, &state, Revision::default()).contains(&"events"));
        let sent = session.acknowledged(session.seq).unwrap();
        state.ring.acknowledged(sent);
        assert_eq!(state.ring.waiting(), 0);
    }

    #[test]
    fn a_new_session_sends_what_the_last_one_did_not_get_through() {
        let (mut session, mut state) = (Session::default(), state());
        state.ring.push(xid(1), Duration::ZERO);
        names(&mut session, &state, Revision::default());
        state.ring.push(xid(2), Duration::ZERO);
        names(&mut session, &state, Revision::default());
        assert_eq!(session.acknowledged(1), None);
        let sent = session.acknowledged(3).unwrap();
        state.ring.acknowledged(sent);
        assert_eq!(state.ring.after(0, Duration::ZERO).unwrap().0, [xid(2)]);
        assert!(names(&mut Session::default(), &state, Revision::default()).contains(&"events"));
    }
}
