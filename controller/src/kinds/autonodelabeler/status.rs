//! What an object's status says, from what was decided and done.

use berth_crds::conditions::{self, Desired, Reason, Status, Type};
use berth_crds::premlabs::AutoNodeLabeler;
use berth_crds::premlabs::autonodelabeler::AutoNodeLabelerStatus;
use jiff::Timestamp;

use super::evaluate::Outcome;

/// Where an object stands after a pass.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// Its rule was evaluated, and the writes that it needed came out like this.
    Evaluated(Outcome, Writing),
    /// Its spec cannot be carried out.
    Invalid(Vec<String>),
    /// Its namespace may not have rules.
    NotAllowed,
    /// `berth.dev/paused` is set.
    Paused,
}

/// What came of the writes that one rule needed in this pass.
#[derive(Debug, Clone, PartialEq)]
pub enum Writing {
    /// All were made, or none was needed.
    Done,
    /// Nodes that could not be written, and what the first one met.
    Failed {
        /// How many.
        nodes: usize,
        /// The first error.
        error: String,
    },
    /// Nodes that would have been written.
    Observed {
        /// How many.
        nodes: usize,
    },
}

/// The conditions of an object that stands like this; types that are not among them go.
pub fn conditions(standing: &Standing) -> Vec<Desired> {
    let accepted = |status, reason, message: String| Desired::new(Type::Accepted, status, reason, message);
    match standing {
        Standing::Invalid(errors) => vec![accepted(Status::False, Reason::InvalidSpec, errors.join("; "))],
        Standing::NotAllowed => vec![accepted(
            Status::False,
            Reason::NamespaceNotAllowed,
            "the administrator limits the namespaces that may have AutoNodeLabelers, and this is none of them".into(),
        )],
        Standing::Paused => vec![accepted(
            Status::Unknown,
            Reason::Paused,
            "berth.dev/paused is set: nothing is looked at, labels stay as they are".into(),
        )],
        Standing::Evaluated(outcome, writing) => vec![
            accepted(Status::True, Reason::Valid, String::new()),
            applied(outcome, writing),
        ],
    }
}

fn applied(outcome: &Outcome, writing: &Writing) -> Desired {
    let (status, reason, message) = match writing {
        Writing::Failed { nodes, error } => (
            Status::False,
            Reason::WriteFailed,
            format!("{nodes} node(s) could not be written and are tried again: {error}"),
        ),
        Writing::Observed { nodes } => (
            Status::False,
            Reason::Observed,
            format!(
                "labels would be written on {nodes} of {} matching node(s); this installation only observes (nodes.mode)",
                outcome.matched
            ),
        ),
        Writing::Done => match outcome.conflicts.first() {
            Some(first) => (
                Status::False,
                Reason::Conflict,
                format!(
                    "{} label(s) are held with another value; the first: {} on node {} by {}",
                    outcome.conflict_count, first.key, first.node, first.with
                ),
            ),
            None if outcome.matched == 0 => (Status::False, Reason::NoMatch, "no node matches".into()),
            None => (Status::True, Reason::LabelsApplied, String::new()),
        },
    };
    Desired::new(Type::Applied, status, reason, message)
}

/// The whole status of `object`. While it is paused, what was last observed stays beside the condition that says so.
pub fn status(object: &AutoNodeLabeler, standing: &Standing, now: Timestamp) -> AutoNodeLabelerStatus {
    let before = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation;
    let conditions = conditions::merge(&before.conditions, &conditions(standing), generation, now);
    match standing {
        Standing::Evaluated(outcome, _) => AutoNodeLabelerStatus {
            matched_nodes: Some(count(outcome.matched)),
            nodes: outcome.nodes.clone(),
            conflict_count: Some(count(outcome.conflict_count)),
            conflicts: outcome.conflicts.clone(),
            conditions,
        },
        Standing::Invalid(_) | Standing::NotAllowed => AutoNodeLabelerStatus {
            conditions,
            ..AutoNodeLabelerStatus::default()
        },
        Standing::Paused => AutoNodeLabelerStatus { conditions, ..before },
    }
}

/// The conditions whose status or reason is not what the object has: each is worth an Event.
pub fn transitions(object: &AutoNodeLabeler, standing: &Standing) -> Vec<Desired> {
    let before = object.status.as_ref().map_or(&[][..], |s| &s.conditions);
    conditions(standing)
        .into_iter()
        .filter(|d| {
            conditions::find(before, d.type_)
                .is_none_or(|c| c.status != d.status.as_str() || c.reason != d.reason.as_str())
        })
        .collect()
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use berth_crds::premlabs::autonodelabeler::{AutoNodeLabelerSpec, LabelConflict};

    use super::*;

    fn outcome(matched: usize, conflicts: usize) -> Outcome {
        Outcome {
            matched,
            nodes: (0..matched).map(|i| format!("n{i}")).collect(),
            conflict_count: conflicts,
            conflicts: (0..conflicts)
                .map(|i| LabelConflict {
                    node: format!("n{i}"),
                    key: "k".into(),
                    with: "ns/old".into(),
                })
                .collect(),
        }
    }

    fn object() -> AutoNodeLabeler {
        let mut object = AutoNodeLabeler::new("a", AutoNodeLabelerSpec::default());
        object.metadata.generation = Some(3);
        object
    }

    #[test]
    fn conditions_of_every_standing() {
        let failed = Writing::Failed {
            nodes: 2,
            error: "no".into(),
        };
        for (standing, want) in [
            (
                Standing::Evaluated(outcome(2, 0), Writing::Done),
                &["Accepted=True/Valid", "Applied=True/LabelsApplied"][..],
            ),
            (
                Standing::Evaluated(outcome(0, 0), Writing::Done),
                &["Accepted=True/Valid", "Applied=False/NoMatch"],
            ),
            (
                Standing::Evaluated(outcome(2, 1), Writing::Done),
                &["Accepted=True/Valid", "Applied=False/Conflict"],
            ),
            (
                Standing::Evaluated(outcome(2, 1), failed),
                &["Accepted=True/Valid", "Applied=False/WriteFailed"],
            ),
            (
                Standing::Evaluated(outcome(2, 0), Writing::Observed { nodes: 2 }),
                &["Accepted=True/Valid", "Applied=False/Observed"],
            ),
            (Standing::Invalid(vec!["x".into()]), &["Accepted=False/InvalidSpec"]),
            (Standing::NotAllowed, &["Accepted=False/NamespaceNotAllowed"]),
            (Standing::Paused, &["Accepted=Unknown/Paused"]),
        ] {
            let got: Vec<String> = conditions(&standing)
                .iter()
                .map(|d| format!("{}={}/{}", d.type_.as_str(), d.status.as_str(), d.reason.as_str()))
                .collect();
            assert_eq!(got, want, "{standing:?}");
        }
    }

    #[test]
    fn status_settles_and_events_come_once() {
        let standing = Standing::Evaluated(outcome(2, 1), Writing::Done);
        let mut object = object();
        assert_eq!(transitions(&object, &standing).len(), 2);
        let first = status(&object, &standing, Timestamp::from_second(1).unwrap());
        assert_eq!((first.matched_nodes, first.conflict_count), (Some(2), Some(1)));
        assert!(first.conditions.iter().all(|c| c.observed_generation == Some(3)));
        object.status = Some(first.clone());
        assert_eq!(status(&object, &standing, Timestamp::from_second(9).unwrap()), first);
        assert!(transitions(&object, &standing).is_empty());
        // The conflict is gone: one transition.
        let settled = Standing::Evaluated(outcome(2, 0), Writing::Done);
        let changed: Vec<Reason> = transitions(&object, &settled).iter().map(|d| d.reason).collect();
        assert_eq!(changed, [Reason::LabelsApplied]);
    }

    #[test]
    fn what_was_observed_stays_while_paused_and_goes_with_a_bad_spec() {
        let mut object = object();
        let now = Timestamp::from_second(1).unwrap();
        object.status = Some(status(&object, &Standing::Evaluated(outcome(2, 0), Writing::Done), now));
        assert_eq!(status(&object, &Standing::Paused, now).matched_nodes, Some(2));
        assert_eq!(
            status(&object, &Standing::Invalid(vec!["x".into()]), now).matched_nodes,
            None
        );
    }
}
