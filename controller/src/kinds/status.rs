//! Telling what became of an object: its status, written only where it changed, and one Event a transition.

use berth_crds::conditions::{Reason, Type};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::events::Events;

/// A transition that people should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Something is wrong.
    pub is_warning: bool,
    /// Reason.
    pub reason: Reason,
    /// What happened.
    pub note: String,
}

/// Reasons that only say that something is on its way.
const QUIET: &[Reason] = &[
    Reason::Pending,
    Reason::NotReady,
    Reason::NoReplicaAvailable,
    Reason::PartiallyPlaced,
    Reason::IgnoredFields,
];

/// The transitions between two lists of conditions. A failed `Accepted` is told again when its message changes: that is another edit.
pub fn notices(old: &[Condition], new: &[Condition]) -> Vec<Notice> {
    new.iter()
        .filter_map(|now| {
            let before = old.iter().find(|c| c.type_ == now.type_);
            let is_false = now.status == "False";
            let reworded = now.type_ == Type::Accepted.as_str() && is_false;
            let same = before.is_some_and(|b| {
                b.status == now.status && b.reason == now.reason && !(reworded && b.message != now.message)
            });
            let reason = Reason::ALL.iter().find(|r| r.as_str() == now.reason)?;
            // What is well from the start, or well in the same way as before under another reason, is no news.
            let was_fine = before.is_none_or(|b| b.status == "True");
            let is_news = match now.type_.as_str() {
                accepted if accepted == Type::Accepted.as_str() && !is_false => !was_fine,
                _ => !same,
            };
            (is_news && !QUIET.contains(reason)).then(|| Notice {
                is_warning: is_false && *reason != Reason::ScaledToZero,
                reason: *reason,
                note: match now.message.as_str() {
                    "" => format!("{} is {}", now.type_, now.status),
                    message => message.to_owned(),
                },
            })
        })
        .collect()
}

/// Writes the transitions as Events on the object.
pub fn tell(events: &Events, object: &ObjectReference, notices: Vec<Notice>) {
    for notice in notices {
        let tell = if notice.is_warning {
            Events::warning
        } else {
            Events::normal
        };
        tell(events, object.clone(), notice.reason, "Reconcile", &notice.note);
    }
}

#[cfg(test)]
mod tests {
    use berth_crds::conditions::{Desired, Status, merge};
    use jiff::Timestamp;

    use super::*;

    fn conditions(type_: Type, status: Status, reason: Reason, message: &str) -> Vec<Condition> {
        merge(
            &[],
            &[Desired::new(type_, status, reason, message)],
            Some(1),
            Timestamp::UNIX_EPOCH,
        )
    }

    #[test]
    fn only_transitions_are_told() {
        use {Reason as R, Status as S, Type as T};
        let valid = || conditions(T::Accepted, S::True, R::Valid, "");
        let bad = |m| conditions(T::Accepted, S::False, R::InvalidSpec, m);
        let placed = |s, r| conditions(T::Placed, s, r, "x");
        type Case = (&'static str, Vec<Condition>, Vec<Condition>, Option<(bool, R)>);
        let cases: Vec<Case> = vec![
            ("first and well", vec![], valid(), None),
            ("first and bad", vec![], bad("a"), Some((true, R::InvalidSpec))),
            ("the same", bad("a"), bad("a"), None),
            ("another edit", bad("a"), bad("b"), Some((true, R::InvalidSpec))),
            ("corrected", bad("a"), valid(), Some((false, R::Valid))),
            (
                "no fit",
                placed(S::False, R::Pending),
                placed(S::False, R::NoFit),
                Some((true, R::NoFit)),
            ),
            (
                "placed",
                placed(S::False, R::NoFit),
                placed(S::True, R::AllPlaced),
                Some((false, R::AllPlaced)),
            ),
            ("on its way", vec![], placed(S::False, R::Pending), None),
        ];
        for (name, old, new, want) in cases {
            let told = notices(&old, &new);
            let told = told.first().map(|n| (n.is_warning, n.reason));
            assert_eq!(told, want, "{name}");
        }
    }
}
