//! What is told about an AIModelMap. Pure.

use berth_crds::conditions::{self, Desired, Reason, Status, Type};
use berth_crds::names;
use berth_crds::premlabs::AIModelMapStatus;
use jiff::Timestamp;

use crate::kinds::problems::Problems;

/// Whether the spec could be carried out.
#[derive(Debug, Clone, PartialEq)]
pub enum Acceptance {
    /// It was; the list names fields without effect.
    Valid(Vec<String>),
    /// It cannot be.
    Invalid(Problems),
    /// `berth.dev/paused` is set.
    Paused,
    /// The ConfigMap's name belongs to somebody else.
    NameTaken(String),
    /// The original operator still writes the ConfigMap.
    AnotherOperator(String),
    /// The API server refused the ConfigMap; its answer.
    ApplyFailed(String),
}

/// All that a status is computed from.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// Generation that was looked at.
    pub generation: Option<i64>,
    /// Whether the spec could be carried out.
    pub acceptance: &'a Acceptance,
    /// The status before.
    pub before: &'a AIModelMapStatus,
    /// Now.
    pub now: Timestamp,
}

/// The status as it should be.
pub fn status(view: &View<'_>) -> AIModelMapStatus {
    let (status, reason, message) = match view.acceptance {
        Acceptance::Valid(ignored) if ignored.is_empty() => (Status::True, Reason::Valid, String::new()),
        Acceptance::Valid(ignored) => {
            let message = format!("without effect: {}", ignored.join(" | "));
            (Status::True, Reason::IgnoredFields, message)
        }
        Acceptance::Invalid(problems) => (Status::False, problems.reason(), problems.to_string()),
        Acceptance::Paused => {
            let message = format!(
                "the annotation {} is set: the ConfigMap is left as it is",
                names::PAUSED
            );
            (Status::Unknown, Reason::Paused, message)
        }
        Acceptance::NameTaken(message) => (Status::False, Reason::NameTaken, message.clone()),
        Acceptance::AnotherOperator(message) => (Status::False, Reason::AnotherOperatorActive, message.clone()),
        Acceptance::ApplyFailed(message) => (Status::False, Reason::ApplyFailed, message.clone()),
    };
    let accepted = Desired::new(Type::Accepted, status, reason, message);
    AIModelMapStatus {
        conditions: conditions::merge(&view.before.conditions, &[accepted], view.generation, view.now),
    }
}
