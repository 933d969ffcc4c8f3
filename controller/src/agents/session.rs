//! One session's conversation: what each message means and whether it may come now. Pure.

use berth_core::facts::{GpuEvent, GpuSample, NodeFacts};
use berth_core::health::NodeHealth;
use berth_proto::v1::agent_message::Body;
use berth_proto::v1::{AgentMessage, Hello};
use berth_proto::{PROTOCOL_MAX, PROTOCOL_MIN};

use super::refusal::Refusal;

/// Most samples in one message: far above any machine's GPUs and MIG devices.
pub const MOST_SAMPLES: usize = 1024;
/// Most pods that are kept of one device: above the replicas that anybody makes of a GPU.
pub const MOST_PODS: usize = 256;
/// Most bytes that are kept for a node's next agent: some hundreds a GPU, and any machine's GPUs.
const MOST_MEMORY: usize = 256 * 1024;
/// Most events in one message.
const MOST_EVENTS: usize = 4096;

/// Where a conversation stands.
#[derive(Debug, Default)]
pub struct Session {
    greeted: bool,
    last_seq: u64,
}

/// What one message asks for.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// `Hello` with a protocol that both speak.
    Welcome {
        /// The newest common one.
        protocol: u32,
        /// For people.
        agent_version: String,
    },
    /// Whole inventory.
    Facts(Box<NodeFacts>),
    /// Whole health.
    Health {
        /// What it says.
        health: NodeHealth,
        /// What is to be handed to the node's next agent.
        memory: Vec<u8>,
    },
    /// GPUs that moved.
    Samples(Vec<GpuSample>),
    /// Faults as they were reported.
    Events {
        /// In order.
        events: Vec<GpuEvent>,
        /// Dropped by the agent.
        lost: u64,
    },
    /// A newer token.
    Renew(String),
    /// Of a newer protocol: acknowledged, nothing else.
    Nothing,
}

/// A message that was understood.
#[derive(Debug, PartialEq)]
pub struct Taken {
    /// Its number, to be acknowledged once `step` is done.
    pub seq: u64,
    /// What to do.
    pub step: Step,
    /// Messages before this one are missing: everything has to be sent again.
    pub gap: bool,
}

impl Session {
    /// Understands the next message.
    pub fn take(&mut self, message: AgentMessage) -> Result<Taken, Refusal> {
        let seq = message.seq;
        if seq <= self.last_seq {
            return Err(malformed("seq", format!("{seq} after {}", self.last_seq)));
        }
        let step = match (self.greeted, message.body) {
            (false, Some(Body::Hello(hello))) => {
                self.greeted = true;
                welcome(hello)?
            }
            (false, _) => return Err(Refusal::HelloMissing),
            (true, Some(Body::Hello(_))) => return Err(malformed("hello", "came twice".into())),
            (true, Some(Body::Inventory(facts))) => Step::Facts(Box::new(facts.try_into()?)),
            (true, Some(Body::Health(mut health))) => {
                let memory = std::mem::take(&mut health.memory);
                at_most("health.memory", memory.len(), MOST_MEMORY)?;
                Step::Health {
                    health: health.into(),
                    memory,
                }
            }
            (true, Some(Body::Samples(samples))) => {
                at_most("samples.gpus", samples.gpus.len(), MOST_SAMPLES)?;
                if samples.gpus.iter().any(|s| s.uuid.is_empty()) {
                    return Err(malformed("samples.gpus.uuid", "is empty".into()));
                }
                Step::Samples(samples.gpus.into_iter().map(Into::into).collect())
            }
            (true, Some(Body::Events(events))) => {
                at_most("events.events", events.events.len(), MOST_EVENTS)?;
                let lost = events.lost;
                let events = events
                    .events
                    .into_iter()
                    .map(TryInto::try_into)
                    .collect::<Result<_, _>>()?;
                Step::Events { events, lost }
            }
            (true, Some(Body::Renew(renew))) => Step::Renew(renew.token),
            (true, None) => Step::Nothing,
        };
        let gap = self.last_seq != 0 && seq != self.last_seq + 1;
        self.last_seq = seq;
        Ok(Taken { seq, step, gap })
    }

    /// `Hello` has come.
    pub fn is_greeted(&self) -> bool {
        self.greeted
    }
}

fn welcome(hello: Hello) -> Result<Step, Refusal> {
    let (agent_min, agent_max) = (hello.protocol_min, hello.protocol_max);
    if agent_min == 0 || agent_min > agent_max {
        return Err(malformed(
            "hello.protocol_min",
            format!("{agent_min}, with protocol_max {agent_max}"),
        ));
    }
    if agent_min > PROTOCOL_MAX || agent_max < PROTOCOL_MIN {
        let older = if agent_max < PROTOCOL_MIN {
            "agent"
        } else {
            "controller"
        };
        let (ours_min, ours_max) = (PROTOCOL_MIN, PROTOCOL_MAX);
        return Err(Refusal::Protocol {
            agent_min,
            agent_max,
            ours_min,
            ours_max,
            older,
        });
    }
    let agent_version = hello
        .agent_version
        .chars()
        .filter(|c| !c.is_control())
        .take(64)
        .collect();
    Ok(Step::Welcome {
        protocol: agent_max.min(PROTOCOL_MAX),
        agent_version,
    })
}

fn at_most(field: &'static str, count: usize, most: usize) -> Result<(), Refusal> {
    if count > most {
        return Err(malformed(
            field,
            format!("has {count} entries, at most {most} can be meant"),
        ));
    }
    Ok(())
}

fn malformed(field: &'static str, problem: String) -> Refusal {
    Refusal::Malformed { field, problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::v1;

    fn message(seq: u64, body: impl Into<Option<Body>>) -> AgentMessage {
        AgentMessage { seq, body: body.into() }
    }

    fn hello(min: u32, max: u32) -> Body {
        Body::Hello(Hello {
            protocol_min: min,
            protocol_max: max,
            agent_version: "1.2".into(),
        })
    }

    fn greeted() -> Session {
        let mut session = Session::default();
        session.take(message(1, hello(1, 1))).unwrap();
        session
    }

    #[test]
    fn protocol_ranges() {
        for (min, max, want) in [
            (1, 1, Ok(1)),
            (1, 9, Ok(PROTOCOL_MAX)),
            (PROTOCOL_MAX + 1, PROTOCOL_MAX + 1, Err("Protocol")),
            (0, 0, Err("Malformed")),
            (2, 1, Err("Malformed")),
        ] {
            let got = Session::default().take(message(1, hello(min, max)));
            let got = match got {
                Ok(Taken {
                    step: Step::Welcome { protocol, .. },
                    ..
                }) => Ok(protocol),
                Ok(other) => panic!("{other:?}"),
                Err(refusal) => Err(refusal.reason()),
            };
            assert_eq!(got, want, "{min}..{max}");
        }
    }

    #[test]
    fn nothing_comes_before_hello_and_hello_comes_once() {
        let health = || Body::Health(v1::NodeHealth::default());
        assert_eq!(
            Session::default().take(message(1, health())),
            Err(Refusal::HelloMissing)
        );
        assert_eq!(Session::default().take(message(1, None)), Err(Refusal::HelloMissing));
        assert!(greeted().take(message(2, health())).is_ok());
        assert_eq!(
            greeted().take(message(2, hello(1, 1))).unwrap_err().reason(),
            "Malformed"
        );
    }

    #[test]
    fn numbers_grow_and_gaps_are_seen() {
        let mut session = greeted();
        let mut gap = |seq| {
            session
                .take(message(seq, None))
                .map(|t| t.gap)
                .map_err(|r| r.to_string())
        };
        assert_eq!(gap(2), Ok(false));
        assert_eq!(gap(4), Ok(true));
        assert_eq!(gap(5), Ok(false));
        assert_eq!(gap(5), Err("field seq: 5 after 5".into()));
    }

    #[test]
    fn an_unknown_message_is_taken_and_ignored() {
        assert_eq!(
            greeted().take(message(2, None)),
            Ok(Taken {
                seq: 2,
                step: Step::Nothing,
                gap: false
            })
        );
    }

    #[test]
    fn malformed_messages_name_the_field() {
        let sample = |uuid: &str| v1::GpuSample {
            uuid: uuid.into(),
            ..v1::GpuSample::default()
        };
        let samples = |gpus| Body::Samples(v1::Samples { gpus });
        let inventory = |gpus, pci| {
            Body::Inventory(v1::NodeFacts {
                gpus,
                pci,
                ..v1::NodeFacts::default()
            })
        };
        let events = |events| Body::Events(v1::GpuEvents { events, lost: 0 });
        let remembering = v1::NodeHealth {
            memory: vec![0; MOST_MEMORY + 1],
            ..v1::NodeHealth::default()
        };
        let far = v1::PciFunction {
            vendor: 0x1_0000,
            ..v1::PciFunction::default()
        };
        for (body, field) in [
            (samples(vec![sample("GPU-1"), sample("")]), "samples.gpus.uuid"),
            (samples(vec![sample("GPU-1"); MOST_SAMPLES + 1]), "samples.gpus"),
            (inventory(vec![v1::Gpu::default()], vec![]), "gpu.uuid"),
            (inventory(vec![], vec![far]), "pci.vendor"),
            (events(vec![v1::GpuEvent::default()]), "event.kind"),
            (events(vec![v1::GpuEvent::default(); MOST_EVENTS + 1]), "events.events"),
            (Body::Health(remembering), "health.memory"),
        ] {
            let refusal = greeted().take(message(2, body)).unwrap_err();
            assert!(refusal.to_string().starts_with(&format!("field {field}:")), "{refusal}");
            assert_eq!(refusal.status().code(), tonic::Code::InvalidArgument);
        }
    }
}
