use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const MINUTE: u64 = 60;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn sick(cause: &str) -> NodeState {
    NodeState::Sick { cause: cause.into() }
}

fn gone() -> NodeState {
    NodeState::Gone {
        cause: "GpuLost".into(),
    }
}

fn limits(share_percent: u32, new: u32, same_cause: u32) -> Limits {
    Limits {
        share_percent,
        new,
        same_cause,
    }
}

/// `n0` … of one driver, all well.
fn fleet(size: usize, limits: Limits) -> Breaker {
    let mut breaker = Breaker::new(limits);
    for n in 0..size {
        breaker.observe(&format!("n{n}"), Some("550"), NodeState::Ready, at(0));
    }
    breaker
}

/// One word a node: `out`, `share`, `rate`, `same-cause`, `-`.
fn words(breaker: &Breaker) -> Vec<&'static str> {
    let word = |name: &String| match breaker.decision(name) {
        Decision::Ready | Decision::Unknown => "-",
        Decision::Excluded { .. } => "out",
        Decision::Held { limit, .. } => limit.as_str(),
    };
    breaker.nodes.keys().map(word).collect()
}

#[test]
fn each_limit_holds_the_next_one_back() {
    for (what, size, limits, ill, want) in [
        (
            "below all limits",
            4,
            limits(100, 10, 10),
            vec![sick("A"), sick("A")],
            vec!["out", "out", "-", "-"],
        ),
        (
            "half of four",
            4,
            limits(50, 10, 10),
            vec![sick("A"), sick("B"), sick("C")],
            vec!["out", "out", "share", "-"],
        ),
        (
            "a quarter of three is none, and one may always go",
            3,
            limits(25, 10, 10),
            vec![sick("A"), sick("A")],
            vec!["out", "share", "-"],
        ),
        (
            "rate",
            4,
            limits(100, 2, 10),
            vec![sick("A"), sick("B"), sick("C")],
            vec!["out", "out", "rate", "-"],
        ),
        (
            "the same cause",
            5,
            limits(100, 10, 2),
            vec![sick("A"), sick("A"), sick("A"), sick("B")],
            vec!["out", "out", "same-cause", "out", "-"],
        ),
        (
            "what is gone is out, and counts",
            4,
            limits(50, 10, 10),
            vec![gone(), gone(), gone(), sick("A")],
            vec!["out", "out", "out", "share"],
        ),
        (
            "unknown is nothing",
            2,
            limits(50, 10, 10),
            vec![NodeState::Unknown],
            vec!["-", "-"],
        ),
    ] {
        let mut breaker = fleet(size, limits);
        for (n, state) in ill.into_iter().enumerate() {
            breaker.observe(&format!("n{n}"), Some("550"), state, at(1));
        }
        assert_eq!(words(&breaker), want, "{what}");
    }
}

#[test]
fn the_same_cause_on_another_driver_is_another_one() {
    let mut breaker = fleet(4, limits(100, 10, 1));
    breaker.observe("n0", Some("550"), sick("A"), at(1));
    breaker.observe("n1", Some("570"), sick("A"), at(1));
    breaker.observe("n2", Some("570"), sick("A"), at(1));
    assert_eq!(words(&breaker), ["out", "out", "same-cause", "-"]);
}

#[test]
fn it_closes_when_a_node_recovers_and_the_longest_held_is_next() {
    let mut breaker = fleet(4, limits(25, 10, 10));
    let mut set = |name: &str, state: NodeState, when: u64| {
        let change = breaker.observe(name, None, state, at(when));
        (change.turned, words(&breaker))
    };
    set("n3", sick("A"), 1);
    assert_eq!(set("n2", sick("A"), 2).1, ["-", "-", "share", "out"]);
    assert_eq!(set("n0", sick("A"), 3).1, ["share", "-", "share", "out"]);
    let (turned, words) = set("n3", NodeState::Ready, 4);
    assert_eq!((turned, words), (vec!["n2".into()], vec!["share", "-", "out", "-"]));
    let (turned, words) = set("n0", NodeState::Ready, 5);
    assert_eq!((turned, words), (vec!["n0".into()], vec!["-", "-", "out", "-"]));
}

#[test]
fn rate_and_cause_are_of_the_last_ten_minutes() {
    for (limits, limit) in [(limits(100, 1, 10), "rate"), (limits(100, 10, 1), "same-cause")] {
        let mut breaker = fleet(2, limits);
        breaker.observe("n0", None, sick("A"), at(1));
        assert_eq!(breaker.again_at(), None, "nobody waits");
        breaker.observe("n1", None, sick("A"), at(2));
        assert_eq!(words(&breaker), ["out", limit]);
        // That n0 has recovered does not undo that it was taken out.
        breaker.observe("n0", None, NodeState::Ready, at(3));
        assert_eq!(words(&breaker), ["-", limit]);
        assert_eq!(breaker.again_at(), Some(at(1 + 10 * MINUTE)));
        assert_eq!(breaker.pass(at(10 * MINUTE)), Change::default());
        assert_eq!(breaker.pass(at(1 + 10 * MINUTE)).turned, ["n1"]);
        assert_eq!(words(&breaker), ["-", "out"]);
    }
}

#[test]
fn a_node_that_comes_and_goes_is_one_node() {
    let mut breaker = fleet(3, limits(100, 2, 1));
    for second in 0..20 {
        let state = if second % 2 == 0 { sick("A") } else { NodeState::Ready };
        breaker.observe("n0", None, state, at(second));
    }
    breaker.observe("n0", None, sick("B"), at(20));
    assert_eq!(words(&breaker), ["out", "-", "-"]);
    // What it was taken out for before still counts.
    breaker.observe("n1", None, sick("A"), at(21));
    assert_eq!(words(&breaker), ["out", "same-cause", "-"]);
    breaker.observe("n1", None, sick("C"), at(22));
    assert_eq!(words(&breaker), ["out", "out", "-"]);
}

#[test]
fn what_is_out_stays_out_until_it_is_ready() {
    let mut breaker = fleet(4, limits(25, 1, 1));
    for (state, word) in [
        (gone(), "out"),
        // Reset, and not proven yet.
        (sick("Recovering"), "out"),
        (NodeState::Unknown, "-"),
        (sick("A"), "out"),
        (NodeState::Ready, "-"),
    ] {
        breaker.observe("n0", None, state.clone(), at(1));
        assert_eq!(words(&breaker)[0], word, "{state:?}");
        let kept = !matches!(state, NodeState::Ready);
        assert_eq!(
            breaker.excluded(),
            usize::from(kept),
            "{state:?}: unknown frees no room"
        );
    }
}

#[test]
fn what_is_gone_is_never_held_back() {
    let mut breaker = fleet(3, limits(1, 1, 1));
    breaker.observe("n0", None, sick("A"), at(1));
    breaker.observe("n1", None, sick("A"), at(1));
    assert_eq!(words(&breaker), ["out", "share", "-"]);
    // Its verdict gets worse: now there is nothing to hold.
    assert_eq!(breaker.observe("n1", None, gone(), at(2)).turned, ["n1"]);
    breaker.observe("n2", None, gone(), at(2));
    assert_eq!(words(&breaker), ["out", "out", "out"]);
}

#[test]
fn a_restart_takes_over_what_is_on_the_nodes() {
    let mut breaker = Breaker::new(limits(50, 2, 1));
    breaker.recall("n0", Some(("A", at(500))), at(1000));
    breaker.recall("n1", None, at(1000));
    breaker.recall("n2", Some(("B", at(1))), at(1000));
    breaker.recall("n3", None, at(1000));
    assert_eq!(breaker.excluded(), 2);
    // Both are still out when their agents report, though the share is used up.
    breaker.observe("n0", Some("550"), sick("A"), at(1001));
    breaker.observe("n2", Some("550"), sick("B"), at(1001));
    breaker.observe("n1", Some("550"), sick("A"), at(1001));
    assert_eq!(words(&breaker), ["out", "share", "out", "-"]);
    // n2 was taken out long ago and leaves room; n0 was not, and is of the same cause and driver.
    breaker.observe("n2", Some("550"), NodeState::Ready, at(1002));
    assert_eq!(words(&breaker), ["out", "same-cause", "-", "-"]);
    breaker.pass(at(1100));
    assert_eq!(words(&breaker), ["out", "out", "-", "-"]);
    // What is known already is not recalled.
    assert_eq!(breaker.recall("n3", Some(("A", at(1))), at(1101)), Change::default());
    assert_eq!(words(&breaker)[3], "-");
}

#[test]
fn a_driver_version_that_is_not_known_yet_tells_nobody_apart() {
    let mut breaker = Breaker::new(limits(100, 10, 1));
    breaker.recall("n0", Some(("A", at(500))), at(600));
    breaker.recall("n3", None, at(600));
    // No agent of what was recalled has reported.
    breaker.observe("n1", Some("550"), sick("A"), at(601));
    assert_eq!(words(&breaker), ["-", "same-cause", "-"]);
    // It has, and the driver of the next one is not known.
    breaker.observe("n0", Some("570"), sick("A"), at(602));
    assert_eq!(words(&breaker), ["out", "out", "-"]);
    breaker.observe("n3", None, sick("A"), at(603));
    assert_eq!(words(&breaker), ["out", "out", "same-cause"]);
    let change = breaker.observe("n3", Some("560"), sick("A"), at(604));
    assert_eq!((words(&breaker)[2], change.turned), ("out", vec!["n3".to_owned()]));
}

#[test]
fn one_change_and_another() {
    let turned = |names: &[&str]| Change {
        turned: names.iter().map(|n| (*n).to_owned()).collect(),
    };
    assert_eq!(turned(&["a", "b"]).and(turned(&["b", "c"])), turned(&["a", "b", "c"]));
}

#[test]
fn a_fleet_that_grows_makes_room_and_one_that_shrinks_takes_nothing_back() {
    let mut breaker = fleet(4, limits(25, 10, 10));
    breaker.observe("n0", None, sick("A"), at(1));
    breaker.observe("n1", None, sick("A"), at(1));
    assert_eq!(words(&breaker), ["out", "share", "-", "-"]);
    for n in 4..8 {
        breaker.recall(&format!("n{n}"), None, at(2));
    }
    assert_eq!(words(&breaker)[..2], ["out", "out"]);
    for n in 2..8 {
        breaker.forget(&format!("n{n}"), at(3));
    }
    assert_eq!(words(&breaker), ["out", "out"]);
}

fn any_state() -> impl Strategy<Value = NodeState> {
    prop_oneof![
        3 => Just(NodeState::Ready),
        1 => Just(NodeState::Unknown),
        1 => Just(gone()),
        4 => (0..3_u8).prop_map(|n| sick(&n.to_string())),
    ]
}

proptest! {
    /// Whatever happens in whatever order: nobody is taken out by a verdict beyond the share, the rate or the number of one cause.
    #[test]
    fn verdicts_never_take_more_than_the_limits(
        size in 1..12_usize,
        (share, new, same) in (1..=100_u32, 1..6_u32, 1..4_u32),
        news in proptest::collection::vec((0..12_usize, any_state(), 0..200_u64), 1..80),
    ) {
        let mut breaker = fleet(size, limits(share, new, same));
        let mut now = 0;
        let mut taken: Vec<(u64, String, String)> = Vec::new();
        for (n, state, later) in news {
            now += later;
            let name = format!("n{}", n % size);
            let out = |b: &Breaker| -> BTreeSet<String> {
                b.nodes.iter().filter(|(_, k)| k.excluded).map(|(n, _)| n.clone()).collect()
            };
            let before = out(&breaker);
            breaker.observe(&name, None, state, at(now));
            let after = out(&breaker);
            let by_verdict: Vec<&String> = after
                .difference(&before)
                .filter(|n| matches!(breaker.nodes[*n].state, NodeState::Sick { .. }))
                .collect();
            if !by_verdict.is_empty() {
                prop_assert!(after.len() <= (size * share as usize / 100).max(1), "{} of {size} are out", after.len());
            }
            for name in by_verdict {
                let cause = breaker.nodes[name].cause().unwrap().to_owned();
                taken.retain(|(_, n, c)| n != name || *c != cause);
                taken.push((now, name.clone(), cause));
            }
            // Of those taken out by a verdict, those that are still of one window. (What is gone counts too, and only makes it fewer.)
            let recent: Vec<_> = taken.iter().filter(|(when, ..)| now < when + 600).collect();
            let nodes: BTreeSet<&String> = recent.iter().map(|(_, n, _)| n).collect();
            prop_assert!(nodes.len() <= new as usize, "{recent:?}");
            for (_, _, cause) in &recent {
                let alike = recent.iter().filter(|(_, _, c)| c == cause).count();
                prop_assert!(alike <= same as usize, "{recent:?}");
            }
            for (name, known) in &breaker.nodes {
                let is_gone = matches!(known.state, NodeState::Gone { .. });
                prop_assert!(!is_gone || (known.excluded && known.held.is_none()), "{name} is held back");
                let is_sick = matches!(known.state, NodeState::Sick { .. });
                prop_assert!(!is_sick || known.excluded != known.held.is_some(), "{name} is neither");
            }
        }
    }
}
