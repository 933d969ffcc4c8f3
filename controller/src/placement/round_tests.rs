use kube::core::response::{Status, StatusSummary};

use super::*;

#[test]
fn outcomes_follow_what_the_pod_carries() {
    let outcome = |node: &str| Outcome::Placed {
        node: node.into(),
        because: "why".into(),
    };
    let waiting = |reason| Outcome::Waiting {
        reason,
        message: String::new(),
    };
    for (what, bound, pinned, gated, known, want) in [
        ("after a restart, pinned", None, Some("n"), false, None, Some("n")),
        ("after a restart, bound", Some("n"), None, false, None, Some("n")),
        ("gated", None, Some("n"), true, None, None),
        ("known", None, Some("n"), false, Some(outcome("n")), None),
        (
            "waits no more",
            None,
            Some("n"),
            false,
            Some(waiting(Reason::NoFit)),
            Some("n"),
        ),
        (
            "refused",
            None,
            Some("n"),
            false,
            Some(waiting(Reason::PinRefused)),
            None,
        ),
        (
            "refused, then bound",
            Some("n"),
            Some("n"),
            false,
            Some(waiting(Reason::PinRefused)),
            Some("n"),
        ),
    ] {
        let pod = Pod {
            node: bound.map(str::to_owned),
            pinned_to: pinned.map(str::to_owned),
            gates: gated.then(|| names::GATE.to_owned()).into_iter().collect(),
            annotations: [(names::PLACED_BECAUSE.to_owned(), "why".to_owned())].into(),
            ..Pod::default()
        };
        assert_eq!(placed(&pod, known.as_ref()), want.map(outcome), "{what}");
    }
    assert_eq!(placed(&Pod::default(), None), None, "not ours");
}

#[test]
fn an_outdated_decision_is_told_from_a_refused_one() {
    let status = |code: u16, reason: &str| {
        WriteError::Api(kube::Error::Api(Box::new(Status {
            status: Some(StatusSummary::Failure),
            code,
            reason: reason.into(),
            ..Status::default()
        })))
    };
    for (code, reason, want) in [
        (409, "Conflict", true),
        (422, "", true),
        (422, "Invalid", false),
        (403, "Forbidden", false),
        (500, "InternalError", false),
    ] {
        assert_eq!(outdated(&status(code, reason)), want, "{code} {reason}");
    }
}
