//! Condition types, the closed list of reasons, and the one way in which a list of conditions changes.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Types of the conditions on Berth's kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Type {
    /// The spec can be carried out as it stands.
    Accepted,
    /// Every desired replica has its node. Absent where Berth does not place.
    Placed,
    /// At least one replica serves.
    Available,
    /// AutoNodeLabeler: the labels are on every matching node.
    Applied,
    /// The replicas use the GPUs that they were given.
    OnGpu,
    /// Replicas follow a metric.
    ScalingActive,
    /// AIModel: no worker has reported an error since the spec was changed last.
    WorkersHealthy,
    /// MLModel: the model is on its volume.
    Downloaded,
    /// ModelDeployment: the version that the spec asks for may be served.
    Validated,
}

impl Type {
    /// As written in the object.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Placed => "Placed",
            Self::Available => "Available",
            Self::Applied => "Applied",
            Self::OnGpu => "OnGPU",
            Self::ScalingActive => "ScalingActive",
            Self::WorkersHealthy => "WorkersHealthy",
            Self::Downloaded => "Downloaded",
            Self::Validated => "Validated",
        }
    }
}

/// `status` of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Holds.
    True,
    /// Does not hold.
    False,
    /// Cannot be told.
    Unknown,
}

impl Status {
    /// As written in the object.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Reasons of conditions and Events: closed, so that alerts and scripts can rely on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $name,)* }
        impl Reason {
            /// As written in the object.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
            /// All of them, for documentation and tests.
            pub const ALL: &'static [Reason] = &[$(Self::$name,)*];
        }
    };
}

reasons! {
    // Accepted
    /// Nothing is wrong with the spec.
    Valid,
    /// One or more fields cannot work; the message names each with what to do.
    InvalidSpec,
    /// Accepted, but fields without effect are set; the message lists them.
    IgnoredFields,
    /// `engine.name` is none that this version serves.
    UnsupportedEngine,
    /// An object that the spec names does not exist.
    ReferenceNotFound,
    /// An object of another namespace is named that does not allow it.
    ReferenceNotPermitted,
    /// A child's name is taken by an object of another owner.
    NameTaken,
    /// The original operator still writes a child.
    AnotherOperatorActive,
    /// Something keeps changing a child's fields that the object sets.
    ChildKeepsChanging,
    /// An API that the spec needs is not installed in this cluster; the message says which.
    ApiNotInstalled,
    /// `berth.dev/paused` is set.
    Paused,
    /// The API server refused a child; the message is its answer.
    ApplyFailed,
    // Placed
    /// Every desired replica has a node.
    AllPlaced,
    /// Some replicas have a node.
    PartiallyPlaced,
    /// No node fits now; the message names the nearest miss.
    NoFit,
    /// No node advertises the GPU resource: a device plugin is required.
    NoDevicePlugin,
    /// Live facts are not there yet (agents are connecting).
    WaitingForAgents,
    /// The scheduler refused a pod on the node that Berth chose.
    PinRefused,
    /// Fits nowhere; the gate was removed and the scheduler decides.
    Released,
    /// Waiting for pods or for a decision.
    Pending,
    /// Another gate than ours still holds the pod.
    OtherGates,
    // Available
    /// Enough replicas are available.
    MinimumReplicasAvailable,
    /// Scaled to zero.
    ScaledToZero,
    /// No replica is available; the message says why where it is known.
    NoReplicaAvailable,
    /// The pod's container cannot get its image.
    ImagePullBackOff,
    /// The pod's container crashes.
    CrashLoopBackOff,
    /// The pod's container ran out of memory.
    OOMKilled,
    /// The API server refuses the pods (quota, pod security, admission); the message is its answer.
    PodsForbidden,
    /// The RuntimeClass that GPU pods name does not exist.
    RuntimeClassMissing,
    /// Running, but its readiness or startup probe has not passed.
    NotReady,
    // ScalingActive
    /// Whoever scales says that it can.
    ScalerReady,
    /// Whoever scales says that it cannot; the message is its answer.
    ScalerNotReady,
    /// The installation lacks a setting that scaling needs; the message says which.
    NotConfigured,
    // WorkersHealthy (AIModel)
    /// No worker has reported an error since the spec was changed last.
    NoErrorReported,
    /// A worker reported an error; the message is its own.
    ErrorReported,
    /// Running for longer than a start may take, and not ready.
    NotReadyInTime,
    // Downloaded (MLModel)
    /// The model is on its volume.
    DownloadComplete,
    /// The download is under way.
    Downloading,
    /// The download failed; the message says how. It is tried again when the spec or the annotation `berth.dev/retry` changes.
    DownloadFailed,
    /// Objects of an earlier spec are being deleted.
    Restarting,
    /// The volume is not there yet; the message says why where it is known.
    VolumePending,
    /// The volume was not provided in time.
    VolumeNotBound,
    /// What the claim was bound to is gone.
    VolumeLost,
    // Validated (ModelDeployment)
    /// The validation of this version ended well.
    ValidationSucceeded,
    /// There is no script to validate it with.
    ValidationNotAsked,
    /// The validation is under way.
    Validating,
    /// The validation failed; the message says how. What served before goes on.
    ValidationFailed,
    /// The validation has waited for a node for too long; the message says why it gets none.
    ValidationNotPlaced,
    // Applied (AutoNodeLabeler)
    /// The labels are on every matching node.
    LabelsApplied,
    /// No node matches.
    NoMatch,
    /// An older rule, or another owner of the label, has a different value.
    Conflict,
    /// Labels could not be written on some nodes.
    WriteFailed,
    /// The installation only observes: nothing is written on nodes; the message says what would be.
    Observed,
    /// Rules of this object's namespace are not allowed by the administrator.
    NamespaceNotAllowed,
    // Events on pods and nodes
    /// A pod got its node.
    Placed,
    /// Node labels follow the hardware again or another manager owns some of them.
    LabelsOwnedByOthers,
    /// Another manager owns a condition of a node.
    ConditionOwnedByOthers,
    /// Every GPU of a node is ready again.
    GPUsReady,
    /// A GPU of a node is not ready.
    GPUsNotReady,
    /// A node's GPUs may be handed out, and something was seen of one that is worth watching.
    GPUsSuspect,
    /// Nobody can tell whether a node's GPUs are ready.
    GPUsUnknown,
    /// A node was tainted for the health of its GPUs.
    GPUTaintAdded,
    /// The taint was taken away.
    GPUTaintRemoved,
    /// More nodes are ill than may be taken out: those beyond still count.
    FleetBreakerOpen,
    /// No node is held back any more.
    FleetBreakerClosed,
    /// The ConfigMap of the device plugin is not there or cannot be used; the message says why.
    DevicePluginConfigUnusable,
    /// It can be used again.
    DevicePluginConfigUsable,
}

/// One condition as a computation result, before times and generation are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Type.
    pub type_: Type,
    /// Status.
    pub status: Status,
    /// Reason.
    pub reason: Reason,
    /// One or two sentences for people; free of anything that changes by itself.
    pub message: String,
}

impl Desired {
    /// A condition with a message; an endless one, as of a spec with an endless value, is cut to [`LONGEST_MESSAGE`].
    pub fn new(type_: Type, status: Status, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            type_,
            status,
            reason,
            message: shortened(message.into(), LONGEST_MESSAGE),
        }
    }
}

/// Longest message of a condition, in bytes: far below what the API allows, and a status has several.
pub const LONGEST_MESSAGE: usize = 8 * 1024;

/// The text, cut to so many bytes, with an ellipsis where it was cut.
pub fn shortened(mut text: String, longest: usize) -> String {
    const CUT: &str = " …";
    if text.len() > longest {
        text.truncate(text.floor_char_boundary(longest.saturating_sub(CUT.len())));
        text.push_str(CUT);
    }
    text
}

/// The condition list after `desired` replaced whatever it has a type for in `old`, in the order of `desired`; types that are not in
/// `desired` go. `lastTransitionTime` moves only with the status.
pub fn merge(old: &[Condition], desired: &[Desired], generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    desired
        .iter()
        .map(|d| {
            let before = old.iter().find(|c| c.type_ == d.type_.as_str());
            let last_transition_time = match before {
                Some(c) if c.status == d.status.as_str() => c.last_transition_time.clone(),
                _ => Time(now),
            };
            Condition {
                type_: d.type_.as_str().into(),
                status: d.status.as_str().into(),
                reason: d.reason.as_str().into(),
                message: d.message.clone(),
                observed_generation: generation,
                last_transition_time,
            }
        })
        .collect()
}

/// The condition of a type, if present.
pub fn find(conditions: &[Condition], type_: Type) -> Option<&Condition> {
    conditions.iter().find(|c| c.type_ == type_.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let t0 = Timestamp::from_second(100).unwrap();
        let t1 = Timestamp::from_second(200).unwrap();
        let first = merge(
            &[],
            &[Desired::new(Type::Placed, Status::False, Reason::Pending, "a")],
            Some(1),
            t0,
        );
        let same = merge(
            &first,
            &[Desired::new(Type::Placed, Status::False, Reason::NoFit, "b")],
            Some(2),
            t1,
        );
        assert_eq!(same[0].last_transition_time.0, t0);
        assert_eq!(
            (same[0].reason.as_str(), same[0].observed_generation),
            ("NoFit", Some(2))
        );
        let flipped = merge(
            &same,
            &[Desired::new(Type::Placed, Status::True, Reason::AllPlaced, "")],
            Some(2),
            t1,
        );
        assert_eq!(flipped[0].last_transition_time.0, t1);
    }

    #[test]
    fn endless_messages_are_cut_between_characters() {
        for (text, longest, want) in [
            ("short", 5, "short"),
            ("longer", 5, "l …"),
            ("é€é€", 7, "é …"),
            ("abc", 0, " …"),
        ] {
            assert_eq!(shortened(text.into(), longest), want);
        }
        let endless = Desired::new(Type::Accepted, Status::False, Reason::InvalidSpec, "é".repeat(1 << 20));
        assert!(endless.message.len() <= LONGEST_MESSAGE);
    }

    #[test]
    fn a_type_that_is_no_longer_computed_goes() {
        let t = Timestamp::from_second(1).unwrap();
        let with = merge(
            &[],
            &[Desired::new(Type::Placed, Status::True, Reason::AllPlaced, "")],
            None,
            t,
        );
        assert!(merge(&with, &[], None, t).is_empty());
    }
}
