//! What an agent sends over its stream (`berth.v1`), decoded and turned into what the controller keeps.
//!
//! Which message may come when, and how it changes the controller's picture, is replayed on the same corpus by the controller's own tests.

use berth_core::facts::{GpuEvent, GpuSample, NodeFacts};
use berth_core::health::NodeHealth;
use berth_proto::convert::{MOST_FUNCTIONS, MOST_GPUS};
use berth_proto::v1::agent_message::Body;
use berth_proto::v1::{self, AgentMessage};
use prost::Message as _;

use crate::labels;

/// The messages of a stream: each with its length before it. What follows one that cannot be read is not read.
pub fn messages(mut data: &[u8]) -> impl Iterator<Item = AgentMessage> {
    std::iter::from_fn(move || {
        if data.is_empty() {
            return None;
        }
        AgentMessage::decode_length_delimited(&mut data).ok()
    })
}

/// `data` is a stream.
pub fn run(data: &[u8]) {
    for message in messages(data) {
        let again = AgentMessage::decode(message.encode_to_vec().as_slice());
        assert_eq!(again.as_ref(), Ok(&message), "as it was sent");
        match message.body {
            Some(Body::Inventory(sent)) => {
                let Ok(facts) = NodeFacts::try_from(sent) else { continue };
                assert!(facts.gpus.len() <= MOST_GPUS && facts.pci.len() <= MOST_FUNCTIONS);
                let back = NodeFacts::try_from(v1::NodeFacts::from(facts.clone()));
                assert_eq!(back.as_ref(), Ok(&facts), "there and back");
                labels::check(&facts);
            }
            Some(Body::Health(sent)) => {
                let health = NodeHealth::from(sent);
                assert_eq!(NodeHealth::from(v1::NodeHealth::from(health.clone())), health);
            }
            Some(Body::Samples(sent)) => {
                for sample in sent.gpus.into_iter().map(GpuSample::from) {
                    assert_eq!(GpuSample::from(v1::GpuSample::from(sample.clone())), sample);
                }
            }
            Some(Body::Events(sent)) => {
                for event in sent.events.into_iter().flat_map(GpuEvent::try_from) {
                    assert_eq!(GpuEvent::try_from(v1::GpuEvent::from(event.clone())), Ok(event));
                }
            }
            Some(Body::Hello(_) | Body::Renew(_)) | None => {}
        }
    }
}
