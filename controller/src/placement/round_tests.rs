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
fn a_pod_waits_for_agents_that_may_bring_it_a_node() {
    let rejected = |miss| vec![Rejected { node: "n", miss }];
    let any = Ask::default();
    let live = Ask {
        gpu_memory: Some(1),
        ..Ask::default()
    };
    for (what, ask, miss, want) in [
        ("its node is awaited", &any, Miss::AgentAwaited, true),
        ("no agent changes that", &any, Miss::Cordoned, false),
        ("samples come last", &live, Miss::NoAgent, true),
    ] {
        assert_eq!(agents_may_help(ask, &rejected(miss)), want, "{what}");
    }
}
