use std::collections::BTreeSet;

use berth_crds::conditions::{Reason, Type};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};

use super::*;
use crate::cluster::{Container, Pod, Scheduling};
use crate::kinds::children::Child;
use crate::kinds::status::problems::Problems;

type Pods = Vec<(Pod, Option<Outcome>)>;

/// A Deployment with a gate and RuntimeClass nvidia, and this status.
fn observed(wanted: i32, status: Value) -> Observed {
    let object = json!({
        "metadata": {"name": "m", "namespace": "shop", "uid": "d"},
        "spec": {"replicas": wanted, "template": {"spec": {"runtimeClassName": "nvidia", "schedulingGates": [{"name": names::GATE}]}}},
        "status": status,
    });
    Observed {
        deployment: Some(Child::new(serde_json::from_value(object).unwrap())),
        runtime_classes: Some(BTreeSet::from(["nvidia".to_owned()])),
        ..Observed::default()
    }
}

fn pod(name: &str) -> Pod {
    Pod {
        uid: name.into(),
        name: name.into(),
        gates: vec![names::GATE.into()],
        ..Pod::default()
    }
}

fn bound(name: &str, node: &str) -> (Pod, Option<Outcome>) {
    let pod = Pod {
        node: Some(node.into()),
        gates: vec![],
        ..pod(name)
    };
    (pod, None)
}

fn troubled(reason: &str, message: &str) -> (Pod, Option<Outcome>) {
    let (mut pod, _) = bound("m-1", "n");
    pod.troubled.push(Container {
        name: "serving".into(),
        reason: reason.into(),
        message: message.into(),
    });
    (pod, None)
}

fn no_fit(name: &str) -> (Pod, Option<Outcome>) {
    let outcome = Outcome::Waiting {
        reason: Reason::NoFit,
        message: "no node has class h100".into(),
    };
    (pod(name), Some(outcome))
}

fn told_after(before: &AIDeploymentStatus, acceptance: &Acceptance, observed: &Observed) -> AIDeploymentStatus {
    status(&View {
        name: "m",
        generation: Some(7),
        acceptance,
        observed,
        before,
        now: Timestamp::UNIX_EPOCH,
    })
}

fn told(acceptance: &Acceptance, observed: &Observed) -> AIDeploymentStatus {
    told_after(&AIDeploymentStatus::default(), acceptance, observed)
}

fn valid() -> Acceptance {
    Acceptance::Valid(vec![])
}

fn condition(status: &AIDeploymentStatus, type_: Type) -> Option<&Condition> {
    conditions::find(&status.conditions, type_)
}

fn short(status: &AIDeploymentStatus, type_: Type) -> String {
    condition(status, type_).map_or("-".into(), |c| format!("{} {}", c.status, c.reason))
}

#[test]
fn placed_follows_the_pods() {
    let other_gate = {
        let mut pod = pod("m-1");
        pod.gates.push("example.com/quota".into());
        (pod, None)
    };
    let left_alone = (
        Pod {
            gates: vec![],
            ..pod("m-1")
        },
        None,
    );
    let pinned = (
        Pod {
            pinned_to: Some("n".into()),
            gates: vec![],
            ..pod("m-1")
        },
        None,
    );
    let released = (
        pod("m-1"),
        Some(Outcome::Released {
            message: "nothing fits".into(),
        }),
    );
    let cases: Vec<(&str, i32, Pods, &str, &str)> = vec![
        ("no pods yet", 1, vec![], "False Pending", "no pods"),
        (
            "not looked at yet",
            1,
            vec![(pod("m-1"), None)],
            "False Pending",
            "m-1 waits for a decision",
        ),
        (
            "fits nowhere",
            1,
            vec![no_fit("m-1")],
            "False NoFit",
            "pod m-1: no node has class h100",
        ),
        (
            "some",
            2,
            vec![bound("m-1", "n"), no_fit("m-2")],
            "False PartiallyPlaced",
            "1 of 2 pods have a node; pod m-2: no node",
        ),
        (
            "some, no other pods",
            2,
            vec![bound("m-1", "n")],
            "False PartiallyPlaced",
            "1 of 2 replicas",
        ),
        (
            "all",
            2,
            vec![bound("m-1", "n"), bound("m-2", "n")],
            "True AllPlaced",
            "2 of 2",
        ),
        ("pinned counts", 1, vec![pinned], "True AllPlaced", "1 of 1"),
        ("none wanted", 0, vec![], "True AllPlaced", "0 of 0"),
        (
            "a rollout's new pod waits",
            1,
            vec![bound("m-1", "n"), no_fit("m-2")],
            "False PartiallyPlaced",
            "m-2",
        ),
        (
            "other gates",
            1,
            vec![other_gate],
            "False OtherGates",
            "example.com/quota",
        ),
        ("released", 1, vec![released], "False Released", "nothing fits"),
        (
            "without a gate",
            1,
            vec![left_alone],
            "False Released",
            "left to kube-scheduler",
        ),
        (
            "the telling pod first",
            2,
            vec![(pod("m-1"), None), no_fit("m-2")],
            "False NoFit",
            "m-2",
        ),
    ];
    for (name, wanted, pods, want, words) in cases {
        let observed = Observed {
            pods,
            ..observed(wanted, json!({}))
        };
        let status = told(&valid(), &observed);
        assert_eq!(short(&status, Type::Placed), want, "{name}");
        let placed = condition(&status, Type::Placed).unwrap();
        assert!(placed.message.contains(words), "{name}: {}", placed.message);
        assert_eq!(placed.observed_generation, Some(7), "{name}");
    }
}

#[test]
fn a_restart_keeps_what_placement_had_concluded() {
    let waiting = Observed {
        pods: vec![no_fit("m-1")],
        ..observed(1, json!({}))
    };
    let before = told(&valid(), &waiting);
    let not_yet = Observed {
        pods: vec![(pod("m-1"), None)],
        ..observed(1, json!({}))
    };
    assert_eq!(told_after(&before, &valid(), &not_yet), before);
}

#[test]
fn available_names_the_reason() {
    let refused = json!({"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]});
    let starting = bound("m-1", "n");
    let unschedulable = {
        let (mut pod, outcome) = bound("m-1", "n");
        pod.node = None;
        pod.pinned_to = Some("n".into());
        pod.unscheduled = Some(Scheduling {
            message: "0/3 nodes".into(),
            ..Scheduling::default()
        });
        (pod, outcome)
    };
    let cases: Vec<(&str, i32, Value, Pods, &str, &str)> = vec![
        (
            "serving",
            2,
            json!({"availableReplicas": 1}),
            vec![],
            "True MinimumReplicasAvailable",
            "1 of 2",
        ),
        ("none wanted", 0, json!({}), vec![], "False ScaledToZero", "0 replicas"),
        ("refused", 1, refused, vec![], "False PodsForbidden", "exceeded quota"),
        (
            "image",
            1,
            json!({}),
            vec![troubled(
                "ImagePullBackOff",
                "Back-off pulling image \"x\": ErrImagePull: not found",
            )],
            "False ImagePullBackOff",
            "cannot get its image: not found",
        ),
        (
            "image, at first",
            1,
            json!({}),
            vec![troubled("ErrImagePull", "not found")],
            "False ImagePullBackOff",
            "cannot get its image: not found",
        ),
        (
            "crash",
            1,
            json!({}),
            vec![troubled("CrashLoopBackOff", "back-off 40s")],
            "False CrashLoopBackOff",
            "container serving",
        ),
        (
            "memory",
            1,
            json!({}),
            vec![troubled("OOMKilled", "")],
            "False OOMKilled",
            "memory limit",
        ),
        (
            "secret",
            1,
            json!({}),
            vec![troubled("CreateContainerConfigError", "secret \"s\" not found")],
            "False NoReplicaAvailable",
            "secret \"s\" not found",
        ),
        (
            "waits for a node",
            1,
            json!({}),
            vec![no_fit("m-1")],
            "False NoReplicaAvailable",
            "condition Placed",
        ),
        (
            "scheduler",
            1,
            json!({}),
            vec![unschedulable],
            "False NoReplicaAvailable",
            "0/3 nodes",
        ),
        ("starting", 1, json!({}), vec![starting], "False NotReady", "probes"),
    ];
    for (name, wanted, deployment, pods, want, words) in cases {
        let observed = Observed {
            pods,
            ..observed(wanted, deployment)
        };
        let status = told(&valid(), &observed);
        assert_eq!(short(&status, Type::Available), want, "{name}");
        let available = condition(&status, Type::Available).unwrap();
        assert!(available.message.contains(words), "{name}: {}", available.message);
        let ready = if want.starts_with("True") { "Ready" } else { "NotReady" };
        assert_eq!(status.status.as_deref(), Some(ready), "{name}");
    }
}

#[test]
fn a_missing_runtime_class_is_named_when_it_is_known_to_be_missing() {
    let mut observed = observed(1, json!({}));
    observed.runtime_classes = Some(BTreeSet::new());
    assert_eq!(
        short(&told(&valid(), &observed), Type::Available),
        "False RuntimeClassMissing"
    );
    observed.runtime_classes = None;
    assert_eq!(
        short(&told(&valid(), &observed), Type::Available),
        "False NoReplicaAvailable"
    );
}

#[test]
fn a_bad_edit_fails_while_the_old_pods_serve() {
    let mut problems = Problems::default();
    problems.invalid("spec.a", "is bad", "mend it");
    let serving = observed(1, json!({"availableReplicas": 1, "replicas": 1, "readyReplicas": 1}));
    let failed = told(&Acceptance::Invalid(problems), &serving);
    assert_eq!(failed.status.as_deref(), Some("Failed"));
    assert_eq!(failed.err_msg.as_deref(), Some("spec.a: is bad; mend it"));
    assert_eq!(short(&failed, Type::Accepted), "False InvalidSpec");
    assert_eq!(short(&failed, Type::Available), "True MinimumReplicasAvailable");
    assert!(
        condition(&failed, Type::Available)
            .unwrap()
            .message
            .contains("earlier spec")
    );

    let mended = told_after(&failed, &valid(), &serving);
    assert_eq!((mended.status.as_deref(), mended.err_msg), (Some("Ready"), None));
}

#[test]
fn what_else_stands_in_the_way() {
    let none = Observed::default();
    for (acceptance, want, word) in [
        (Acceptance::NameTaken("x".into()), "False NameTaken", "Failed"),
        (Acceptance::ApplyFailed("x".into()), "False ApplyFailed", "Failed"),
        (
            Acceptance::AnotherOperator("x".into()),
            "False AnotherOperatorActive",
            "NotReady",
        ),
        (Acceptance::Paused, "Unknown Paused", "NotReady"),
        (Acceptance::Valid(vec!["a: b".into()]), "True IgnoredFields", "NotReady"),
    ] {
        let status = told(&acceptance, &none);
        assert_eq!(short(&status, Type::Accepted), want);
        assert_eq!(status.status.as_deref(), Some(word));
        assert_eq!(
            short(&status, Type::Placed),
            "-",
            "nothing is placed where there is no Deployment"
        );
    }
}

#[test]
fn numbers_selector_and_placements() {
    let mut pods: Vec<_> = (10..40).map(|i| bound(&format!("m-{i}"), "n")).collect();
    pods[0]
        .0
        .annotations
        .insert(names::PLACED_BECAUSE.into(), "2 of 8 free".into());
    let observed = Observed {
        pods,
        ..observed(30, json!({"replicas": 30, "readyReplicas": 3}))
    };
    let status = told(&valid(), &observed);
    assert_eq!((status.replicas, status.ready_replicas), (Some(30), Some(3)));
    assert_eq!(
        status.selector.as_deref(),
        Some("mlcontroller.premlabs.io/ai-deployment=m")
    );
    assert_eq!(status.placements.len(), 20);
    assert_eq!(status.placements[0].because, "2 of 8 free");
}
