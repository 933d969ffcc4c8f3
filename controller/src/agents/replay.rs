//! Streams of agents as fuzzing keeps them, and changes of them, through the conversation and into the picture of a node.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use berth_fuzz_targets::agent_message::messages;
use berth_fuzz_targets::corpus::{self, Random, mutated};
use berth_proto::convert::{MOST_FUNCTIONS, MOST_GPUS};

use super::merge;
use super::session::{MOST_SAMPLES, Session, Step};
use crate::cluster::{Agent, AgentChange};

const ROUNDS: usize = 300;

/// What the controller has of a node after such a stream. The session ends with the first message that is refused.
fn hear(stream: &[u8]) -> Agent {
    let now = Instant::now();
    let mut agent = Agent {
        node_uid: "u".into(),
        connected: false,
        heard: now,
        facts: None,
        facts_at: None,
        health: None,
        memory: Vec::new(),
        samples: HashMap::new(),
        version: String::new(),
    };
    let mut session = Session::default();
    let (mut last, mut at) = (0, now);
    for message in messages(stream) {
        let Ok(taken) = session.take(message) else { break };
        assert!(taken.seq > last, "numbers grow");
        last = taken.seq;
        at += Duration::from_secs(1);
        match taken.step {
            Step::Welcome { agent_version, .. } => {
                assert!(agent_version.chars().count() <= 64);
                merge::connected(&mut agent, agent_version);
            }
            Step::Facts(facts) => {
                merge::facts(&mut agent, (*facts).clone(), at);
                assert_eq!(merge::facts(&mut agent, *facts, at), AgentChange::Nothing, "no news");
            }
            Step::Health { health, .. } => {
                merge::health(&mut agent, health.clone());
                assert_eq!(merge::health(&mut agent, health), AgentChange::Nothing, "no news");
            }
            Step::Samples(samples) => drop(merge::samples(&mut agent, samples, at)),
            Step::Events { .. } | Step::Renew(_) | Step::Nothing => {}
        }
        assert!(session.is_greeted(), "nothing counts before hello");
    }
    agent
}

#[test]
fn no_stream_breaks_the_picture_or_fills_it_without_end() {
    let streams = corpus::inputs("agent_message").unwrap();
    let mut random = Random::new(1);
    for (name, stream) in &streams {
        for round in 0..ROUNDS {
            let (_, other) = &streams[random.below(streams.len())];
            let changed = if round == 0 {
                stream.clone()
            } else {
                mutated(stream, other, &mut random)
            };
            let agent = hear(&changed);
            assert!(agent.samples.len() <= MOST_SAMPLES, "{name}, round {round}");
            let facts = agent.facts.unwrap_or_default();
            assert!(facts.gpus.len() <= MOST_GPUS && facts.pci.len() <= MOST_FUNCTIONS);
        }
    }
    let (_, session) = streams.iter().find(|(name, _)| name == "session").unwrap();
    let agent = hear(session);
    assert_eq!(
        agent.facts.map(|f| f.gpus.len()),
        Some(2),
        "one that is real comes through"
    );
    assert_eq!((agent.samples.len(), agent.connected), (1, true));
}
