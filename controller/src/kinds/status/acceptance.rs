//! Whether a spec could be carried out, and the condition `Accepted` that says so.

use berth_crds::conditions::{Desired, Reason, Status, Type};
use berth_crds::names;

use super::problems::Problems;
use crate::kinds::error::{Class, Error, TRANSIENT_TRIES};

/// Whether the spec could be carried out.
#[derive(Debug, Clone, PartialEq)]
pub enum Acceptance {
    /// It was; the list names fields without effect.
    Valid(Vec<String>),
    /// It cannot be.
    Invalid(Problems),
    /// `berth.dev/paused` is set.
    Paused,
    /// A child's name belongs to somebody else.
    NameTaken(String),
    /// The original operator still writes a child.
    AnotherOperator(String),
    /// Somebody keeps changing a child.
    KeepsChanging(String),
    /// The API server refused a child; its answer.
    ApplyFailed(String),
    /// Everything was done but what needs an API that this cluster does not have.
    ApiNotInstalled(String),
}

impl Acceptance {
    /// What a failure to bring the children about says, after as many failures in a row before it. `None`: it may pass by itself, and is no
    /// news yet.
    pub fn of_failure(error: &Error, attempts: u32) -> Option<Self> {
        let message = error.to_string();
        match error {
            Error::NameTaken { .. } => Some(Self::NameTaken(message)),
            Error::AnotherOperator { .. } => Some(Self::AnotherOperator(message)),
            Error::KeepsChanging { .. } => Some(Self::KeepsChanging(message)),
            error if error.class() == Class::Transient && attempts < TRANSIENT_TRIES => None,
            Error::Timeout { .. } | Error::Api { .. } | Error::NotYetDeleted { .. } => Some(Self::ApplyFailed(message)),
        }
    }

    /// Whether the spec as it stands may differ from what runs.
    pub fn may_run_earlier(&self) -> bool {
        match self {
            Self::Invalid(_) | Self::NameTaken(_) | Self::ApplyFailed(_) | Self::KeepsChanging(_) => true,
            Self::Valid(_) | Self::Paused | Self::AnotherOperator(_) | Self::ApiNotInstalled(_) => false,
        }
    }
}

/// The condition.
pub fn accepted(acceptance: &Acceptance) -> Desired {
    let (status, reason, message) = match acceptance {
        Acceptance::Valid(ignored) if ignored.is_empty() => (Status::True, Reason::Valid, String::new()),
        Acceptance::Valid(ignored) => {
            let message = format!("without effect: {}", ignored.join(" | "));
            (Status::True, Reason::IgnoredFields, message)
        }
        Acceptance::Invalid(problems) => (Status::False, problems.reason(), problems.to_string()),
        Acceptance::Paused => {
            let message = format!("the annotation {} is set: children are left as they are", names::PAUSED);
            (Status::Unknown, Reason::Paused, message)
        }
        Acceptance::NameTaken(message) => (Status::False, Reason::NameTaken, message.clone()),
        Acceptance::AnotherOperator(message) => (Status::False, Reason::AnotherOperatorActive, message.clone()),
        Acceptance::KeepsChanging(message) => (Status::False, Reason::ChildKeepsChanging, message.clone()),
        Acceptance::ApplyFailed(message) => (Status::False, Reason::ApplyFailed, message.clone()),
        Acceptance::ApiNotInstalled(message) => (Status::False, Reason::ApiNotInstalled, message.clone()),
    };
    Desired::new(Type::Accepted, status, reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_changed_back_may_run_as_others_want_it() {
        let said = String::new;
        assert!(Acceptance::KeepsChanging(said()).may_run_earlier());
        assert!(Acceptance::ApplyFailed(said()).may_run_earlier());
        assert!(!Acceptance::AnotherOperator(said()).may_run_earlier());
        assert!(!Acceptance::Valid(Vec::new()).may_run_earlier());
    }
}
