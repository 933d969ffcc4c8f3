//! The two wires of Berth: `berth.v1.AgentLink` (agent to controller, TLS) and `berth.probe.v1.Probe` (agent to probe, unix socket); and
//! the kubelet's that it speaks.
//!
//! The messages are generated from `proto/*.proto`; [`convert`] turns them into the types of `berth-core` and back, so that nothing
//! past the wire handles an unset field or an unknown enum value.

pub mod convert;

/// `berth.v1`: facts, health, samples and the agent link.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("berth.v1");
}

/// `berth.probe.v1`: the probe's unix socket.
pub mod probe {
    /// Version 1.
    #[allow(missing_docs, clippy::all, clippy::unwrap_used)]
    pub mod v1 {
        tonic::include_proto!("berth.probe.v1");
    }
}

/// `v1.PodResourcesLister`: the kubelet's socket.
pub mod podresources {
    /// Version 1.
    #[allow(missing_docs, clippy::all, clippy::unwrap_used)]
    pub mod v1 {
        // The package's name on the wire has no more to it.
        tonic::include_proto!("v1");
    }
}

/// Newest protocol of the agent link that this build speaks.
pub const PROTOCOL_MAX: u32 = 1;
/// Oldest protocol of the agent link that this build speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// Audience of the agent's projected token, and what TokenReview must confirm.
pub const TOKEN_AUDIENCE: &str = "berth-controller";
