//! Pods that kube-scheduler refuses on the node that Berth chose.
//!
//! The scheduler knows things that placement does not look at (volumes, affinity between pods). A pin that it refuses for
//! [`PIN_REFUSED`] is given up: a pod that a controller makes anew is deleted, and its successors avoid the node for a while.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use berth_core::freshness::PIN_REFUSED;
use berth_crds::names;

use crate::cluster::{Node, Picture, Pod, PodKey};

/// First avoidance of a node; doubled with every further refusal.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// Longest avoidance.
const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);

/// What is to be done about a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it is not ours, bound, or the scheduler does not refuse it.
    Fine,
    /// Refused, but not for long enough.
    LookAgain(Instant),
    /// Delete it: its controller makes it anew.
    Recreate,
    /// Nobody would make it anew: tell people.
    Report,
}

/// Whether kube-scheduler refuses a pod on the node that Berth pinned it to, and Berth may do something about it.
pub fn refused(pod: &Pod) -> bool {
    pod.annotations.contains_key(names::PLACED_BECAUSE)
        && !pod.annotations.contains_key(names::PAUSED)
        && pod.gates.is_empty()
        && pod.pinned_to.is_some()
        && pod.node.is_none()
        && !pod.terminating
        // The scheduler is emptying the node for it.
        && pod.nominated.is_none()
        && pod
            .unscheduled
            .as_ref()
            .is_some_and(|u| u.reason == "Unschedulable" && !holds_on_every_node(&u.message))
}

/// Whether kube-scheduler refused the pod before it looked at any node, as for a claim that is not bound: another node would not help, and
/// a new pod would be refused the same way. It counts nodes where it looked at them: "0/8 nodes are available: 1 Insufficient cpu, …".
fn holds_on_every_node(words: &str) -> bool {
    let reasons = words.split_once(" nodes are available: ");
    reasons.is_some_and(|(_, reasons)| !reasons.starts_with(|c: char| c.is_ascii_digit()))
}

/// What to do about a pod that has been refused since a moment. `since` is when this process saw it first: the condition's own time is
/// that of the gate.
pub fn verdict(pod: &Pod, since: Instant, now: Instant) -> Verdict {
    let due = since + PIN_REFUSED;
    match (refused(pod), now >= due, pod.controller.is_some()) {
        (false, _, _) => Verdict::Fine,
        (true, false, _) => Verdict::LookAgain(due),
        (true, true, true) => Verdict::Recreate,
        (true, true, false) => Verdict::Report,
    }
}

/// Since when each refused pod has been seen refused.
#[derive(Debug, Default)]
pub struct Refused(HashMap<PodKey, Instant>);

impl Refused {
    /// Verdicts on all refused pods; those that are no longer refused are forgotten.
    pub fn look(&mut self, picture: &Picture, now: Instant) -> Vec<(PodKey, Verdict)> {
        self.0.retain(|uid, _| picture.pods.get(uid).is_some_and(refused));
        let refused = picture.pods.values().filter(|p| refused(p));
        refused
            .map(|pod| {
                let since = *self.0.entry(pod.uid.clone()).or_insert(now);
                (pod.uid.clone(), verdict(pod, since, now))
            })
            .collect()
    }
}

/// Nodes that the next pods of an owner avoid.
#[derive(Debug, Default)]
pub struct Avoided(HashMap<(String, String), Avoidance>);

#[derive(Debug)]
struct Avoidance {
    /// kube-scheduler's words.
    words: String,
    until: Instant,
    pause: Duration,
    /// As it was: a node that changed may well take the pod.
    node: Node,
}

impl Avoided {
    /// A pod of this owner was refused on this node.
    pub fn refused(&mut self, owner: &str, node: &Node, words: &str, now: Instant) {
        let key = (owner.to_owned(), node.name.clone());
        let pause = match self.0.get(&key) {
            Some(before) => (before.pause * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        let avoidance = Avoidance {
            words: words.to_owned(),
            until: now + pause,
            pause,
            node: node.clone(),
        };
        self.0.insert(key, avoidance);
    }

    /// Forgets nodes that are gone or have changed, and refusals that are long past.
    pub fn settle(&mut self, nodes: &BTreeMap<String, Node>, now: Instant) {
        self.0.retain(|(_, name), avoidance| {
            let same = nodes.get(name).is_some_and(|n| n.same_for_placement(&avoidance.node));
            same && now < avoidance.until + LONGEST_PAUSE
        });
    }

    /// Nodes that a pod of this owner avoids now, with kube-scheduler's words.
    pub fn of(&self, owner: &str, now: Instant) -> BTreeMap<String, String> {
        let active = self.0.iter().filter(|((o, _), a)| o == owner && now < a.until);
        active.map(|((_, node), a)| (node.clone(), a.words.clone())).collect()
    }

    /// When the next avoidance ends.
    pub fn next_end(&self, now: Instant) -> Option<Instant> {
        self.0.values().map(|a| a.until).filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;
    use crate::cluster::Scheduling;

    fn pod() -> Pod {
        Pod {
            uid: "u".into(),
            annotations: [(names::PLACED_BECAUSE.to_owned(), "n: why".to_owned())].into(),
            pinned_to: Some("n".into()),
            controller: Some(OwnerReference::default()),
            unscheduled: Some(Scheduling {
                reason: "Unschedulable".into(),
                ..Scheduling::default()
            }),
            ..Pod::default()
        }
    }

    #[test]
    fn a_refused_pin_is_given_up_after_a_while() {
        let since = Instant::now();
        let due = since + PIN_REFUSED;
        for (what, change, now, want) in [
            ("at first", (|_| {}) as fn(&mut Pod), since, Verdict::LookAgain(due)),
            ("owned", |_| {}, due, Verdict::Recreate),
            ("alone", |p| p.controller = None, due, Verdict::Report),
            ("bound", |p| p.node = Some("n".into()), due, Verdict::Fine),
            ("going", |p| p.terminating = true, due, Verdict::Fine),
            ("not our pin", |p| p.annotations.clear(), due, Verdict::Fine),
            (
                "paused",
                |p| drop(p.annotations.insert(names::PAUSED.into(), String::new())),
                due,
                Verdict::Fine,
            ),
            ("not pinned", |p| p.pinned_to = None, due, Verdict::Fine),
            ("gated", |p| p.gates.push("x".into()), due, Verdict::Fine),
            ("preempting", |p| p.nominated = Some("n".into()), due, Verdict::Fine),
            ("not looked at yet", |p| p.unscheduled = None, due, Verdict::Fine),
            (
                "short of something there",
                |p| p.unscheduled.as_mut().unwrap().message = "0/8 nodes are available: 1 Insufficient cpu.".into(),
                due,
                Verdict::Recreate,
            ),
            (
                "its claim is not there, wherever it goes",
                |p| {
                    p.unscheduled.as_mut().unwrap().message =
                        "0/8 nodes are available: persistentvolumeclaim \"m\" not found. not found".into();
                },
                due,
                Verdict::Fine,
            ),
            (
                "the scheduler itself fails",
                |p| p.unscheduled.as_mut().unwrap().reason = "SchedulerError".into(),
                due,
                Verdict::Fine,
            ),
        ] {
            let mut pod = pod();
            change(&mut pod);
            assert_eq!(verdict(&pod, since, now), want, "{what}");
        }
    }

    #[test]
    fn the_clock_starts_anew_when_the_refusal_ends() {
        let t0 = Instant::now();
        let mut picture = Picture::default();
        let mut seen = Refused::default();
        picture.pods.insert("u".into(), pod());
        assert_eq!(seen.look(&picture, t0)[0].1, Verdict::LookAgain(t0 + PIN_REFUSED));
        assert_eq!(seen.look(&picture, t0 + PIN_REFUSED)[0].1, Verdict::Recreate);
        picture.pods.get_mut("u").unwrap().unscheduled = None;
        assert!(seen.look(&picture, t0 + PIN_REFUSED).is_empty());
        picture.pods.insert("u".into(), pod());
        let t1 = t0 + 2 * PIN_REFUSED;
        assert_eq!(seen.look(&picture, t1)[0].1, Verdict::LookAgain(t1 + PIN_REFUSED));
    }

    #[test]
    fn avoidance_doubles_up_to_a_limit_and_ends_with_the_node_that_was() {
        let node = Node {
            name: "n".into(),
            uid: "1".into(),
            ..Node::default()
        };
        let mut nodes = BTreeMap::from([("n".to_owned(), node.clone())]);
        let mut avoided = Avoided::default();
        let mut now = Instant::now();
        for want in [60, 120, 240, 480, 900, 900] {
            avoided.refused("o", &node, "words", now);
            let end = now + Duration::from_secs(want);
            assert_eq!(avoided.next_end(now), Some(end));
            assert_eq!(avoided.of("o", now), [("n".to_owned(), "words".to_owned())].into());
            assert!(avoided.of("other", now).is_empty());
            assert!(avoided.of("o", end).is_empty());
            now = end;
            avoided.settle(&nodes, now);
        }
        nodes.get_mut("n").unwrap().unschedulable = true;
        avoided.refused("o", &node, "words", now);
        avoided.settle(&nodes, now);
        assert!(avoided.of("o", now).is_empty(), "another node now");
        avoided.refused("o", &nodes["n"], "words", now);
        assert_eq!(
            avoided.next_end(now),
            Some(now + FIRST_PAUSE),
            "and counting starts anew"
        );
    }
}
