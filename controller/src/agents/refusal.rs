//! Why an agent is turned away: one typed reason each, with the status that the agent sees and the label that the metric carries.

use berth_proto::convert::Malformed;
use tonic::{Code, Status};

/// A refused call or an ended session. `who` fields are what the API server confirmed; `claimed` ones are what the token says of itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No `authorization: Bearer` metadata.
    #[error("no bearer token in the call's authorization metadata")]
    NoToken,
    /// Larger than any token of Kubernetes.
    #[error("token of {bytes} bytes")]
    TokenTooLong {
        /// Its size.
        bytes: usize,
    },
    /// The API server does not know the token.
    #[error("token is not valid: {error} (claims to be {claimed})")]
    NotAuthenticated {
        /// The API server's words.
        error: String,
        /// Unconfirmed.
        claimed: String,
    },
    /// Expired before the call.
    #[error("token has expired (claims to be {claimed})")]
    Expired {
        /// Unconfirmed.
        claimed: String,
    },
    /// Made for somebody else.
    #[error("token is for audience {audiences:?}, not for {wanted:?} (claims to be {claimed})")]
    WrongAudience {
        /// Whom it is for.
        audiences: Vec<String>,
        /// Ours.
        wanted: String,
        /// Unconfirmed.
        claimed: String,
    },
    /// Not the agents' ServiceAccount.
    #[error("token is of {username} (pod {pod}), not of {wanted}")]
    OtherServiceAccount {
        /// Confirmed.
        username: String,
        /// Confirmed, or `(none)`.
        pod: String,
        /// The agents' one.
        wanted: String,
    },
    /// Not bound to a pod.
    #[error("token of {username} is not bound to a pod")]
    NoPodClaim {
        /// Confirmed.
        username: String,
    },
    /// Not bound to a pod on a node.
    #[error("token of {username} (pod {pod}) names no node")]
    NoNodeClaim {
        /// Confirmed.
        username: String,
        /// Confirmed.
        pod: String,
    },
    /// The API server accepts it, but it says no end.
    #[error("token of {username} (pod {pod}) has no expiry")]
    NoExpiry {
        /// Confirmed.
        username: String,
        /// Confirmed.
        pod: String,
    },
    /// The pod is known to run elsewhere.
    #[error("pod {pod} runs on node {runs_on}, its token names {node}")]
    PodElsewhere {
        /// Namespace and name.
        pod: String,
        /// By the token.
        node: String,
        /// By the pod.
        runs_on: String,
    },
    /// The node was made anew under the same name.
    #[error("node {node} is another one now (UID {uid} is gone)")]
    NodeReplaced {
        /// Name.
        node: String,
        /// UID by the token.
        uid: String,
    },
    /// `Renew` with a token of somebody else.
    #[error("renewal by pod {pod} on node {node}, which did not open this session")]
    OtherPod {
        /// Of the new token.
        pod: String,
        /// Of the new token.
        node: String,
    },
    /// The token that the session lives on ran out.
    #[error("token expired")]
    TokenExpired,
    /// The agent's pod does not exist any more.
    #[error("pod is gone")]
    PodGone,
    /// The API server could not be asked.
    #[error("token could not be reviewed: {problem}")]
    ReviewUnavailable {
        /// What went wrong.
        problem: String,
    },
    /// Too many tokens wait for review.
    #[error("too many sessions are being opened; try again")]
    Overloaded,
    /// No common protocol version.
    #[error(
        "agent speaks protocol {agent_min} to {agent_max}, this controller {ours_min} to {ours_max}: upgrade the {older}"
    )]
    Protocol {
        /// Oldest of the agent.
        agent_min: u32,
        /// Newest of the agent.
        agent_max: u32,
        /// Oldest of ours.
        ours_min: u32,
        /// Newest of ours.
        ours_max: u32,
        /// `agent` or `controller`.
        older: &'static str,
    },
    /// Something came before `Hello`, or it did not come.
    #[error("hello is missing")]
    HelloMissing,
    /// A message that no agent can mean.
    #[error("field {field}: {problem}")]
    Malformed {
        /// Path of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl From<Malformed> for Refusal {
    fn from(Malformed { field, problem }: Malformed) -> Self {
        Self::Malformed { field, problem }
    }
}

impl Refusal {
    /// Bounded: label of the metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoToken => "NoToken",
            Self::TokenTooLong { .. } => "TokenTooLong",
            Self::NotAuthenticated { .. } => "NotAuthenticated",
            Self::Expired { .. } => "Expired",
            Self::WrongAudience { .. } => "WrongAudience",
            Self::OtherServiceAccount { .. } => "OtherServiceAccount",
            Self::NoPodClaim { .. } => "NoPodClaim",
            Self::NoNodeClaim { .. } => "NoNodeClaim",
            Self::NoExpiry { .. } => "NoExpiry",
            Self::PodElsewhere { .. } => "PodElsewhere",
            Self::NodeReplaced { .. } => "NodeReplaced",
            Self::OtherPod { .. } => "OtherPod",
            Self::TokenExpired => "TokenExpired",
            Self::PodGone => "PodGone",
            Self::ReviewUnavailable { .. } => "ReviewUnavailable",
            Self::Overloaded => "Overloaded",
            Self::Protocol { .. } => "Protocol",
            Self::HelloMissing => "HelloMissing",
            Self::Malformed { .. } => "Malformed",
        }
    }

    /// What the agent is told.
    pub fn status(&self) -> Status {
        let code = match self {
            Self::NoToken
            | Self::TokenTooLong { .. }
            | Self::NotAuthenticated { .. }
            | Self::Expired { .. }
            | Self::WrongAudience { .. }
            | Self::NoExpiry { .. }
            | Self::TokenExpired => Code::Unauthenticated,
            Self::OtherServiceAccount { .. }
            | Self::NoPodClaim { .. }
            | Self::NoNodeClaim { .. }
            | Self::PodElsewhere { .. }
            | Self::NodeReplaced { .. }
            | Self::OtherPod { .. }
            | Self::PodGone => Code::PermissionDenied,
            Self::ReviewUnavailable { .. } | Self::Overloaded => Code::Unavailable,
            Self::Protocol { .. } => Code::FailedPrecondition,
            Self::HelloMissing | Self::Malformed { .. } => Code::InvalidArgument,
        };
        Status::new(code, self.to_string())
    }
}
