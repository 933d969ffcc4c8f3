//! What the probe answers (`berth.probe.v1`), and what the agent makes of it: facts, health, labels.

use std::time::Duration;

use berth_core::facts::{GpuChecks, GpuEvent, GpuSample, NodeFacts};
use berth_core::health::Tracker;
use berth_proto::convert::{self, MOST_GPUS, nvml_status};
use berth_proto::probe::v1 as wire;
use prost::Message as _;

use crate::labels;

/// `data` is a conversation: one byte that says which reply comes, then the reply with its length before it.
pub fn run(mut data: &[u8]) {
    let mut node = Node::default();
    while let [kind, rest @ ..] = data {
        data = rest;
        node.now += Duration::from_secs(1);
        let heard = match kind % 4 {
            0 => wire::InventoryReply::decode_length_delimited(&mut data).map(|reply| node.inventory(reply)),
            1 => wire::SampleReply::decode_length_delimited(&mut data).map(|reply| node.samples(reply)),
            2 => wire::ChecksReply::decode_length_delimited(&mut data).map(|reply| node.checks(reply)),
            _ => wire::EventsReply::decode_length_delimited(&mut data).map(|reply| node.event(reply)),
        };
        if heard.is_err() {
            break;
        }
    }
    let health = node.tracker.health(node.now);
    assert!(health.gpus.is_sorted_by(|a, b| a.uuid != b.uuid), "each GPU once");
    labels::check(&node.facts);
}

#[derive(Default)]
struct Node {
    facts: NodeFacts,
    tracker: Tracker,
    now: Duration,
}

impl Node {
    fn inventory(&mut self, reply: wire::InventoryReply) {
        let Ok(gpus) = convert::gpus(reply.gpus) else { return };
        assert!(gpus.len() <= MOST_GPUS);
        self.facts.nvml = nvml_status(reply.state, reply.message);
        self.facts.driver = reply.driver.map(Into::into);
        self.facts.gpus = gpus;
        self.facts.gpus_age = Some(Duration::ZERO);
        self.facts.vgpus = reply.vgpus.into_iter().map(Into::into).collect();
        self.tracker.on_inventory(&self.facts);
        let _ = self.tracker.rows();
    }

    fn samples(&mut self, reply: wire::SampleReply) {
        for lost in &reply.lost {
            self.tracker.on_lost(&lost.uuid, &lost.error);
        }
        let samples: Vec<GpuSample> = reply.gpus.into_iter().map(Into::into).collect();
        self.tracker.on_samples(&samples, self.now);
    }

    fn checks(&mut self, reply: wire::ChecksReply) {
        let checks: Vec<GpuChecks> = reply.gpus.into_iter().map(Into::into).collect();
        self.tracker.on_checks(checks, self.now);
        if let Some(node) = reply.node {
            self.tracker.on_node_checks(&node.into(), self.now);
        }
    }

    fn event(&mut self, reply: wire::EventsReply) {
        match reply.body {
            Some(wire::events_reply::Body::Event(event)) => {
                if let Ok(event) = GpuEvent::try_from(event) {
                    self.tracker.on_event(&event, self.now);
                }
            }
            Some(wire::events_reply::Body::State(change)) => {
                self.facts.nvml = nvml_status(change.state, change.message);
                self.tracker.on_inventory(&self.facts);
            }
            None => {}
        }
    }
}
