use berth_crds::conditions::Reason;
use berth_crds::names;
use serde_json::json;

use super::*;
use crate::kinds::aideployment::fixtures::{aideployment, read};
use crate::kinds::children::Child;
use crate::placement::Outcome;

const GPU: &str = "{engine: {name: vllm}, models: [{uri: m}], deployment: {accelerator: {interface: CUDA}}}";

fn pod(name: &str, version: &str, node: Option<&str>) -> Pod {
    Pod {
        uid: name.into(),
        name: name.into(),
        labels: [(VERSION.to_owned(), version.to_owned())].into(),
        node: node.map(str::to_owned),
        gates: if node.is_none() {
            vec![names::GATE.into()]
        } else {
            vec![]
        },
        ..Pod::default()
    }
}

fn no_fit() -> Option<Outcome> {
    let message = "no".into();
    Some(Outcome::Waiting {
        reason: Reason::NoFit,
        message,
    })
}

/// A Deployment of `replicas`, of whose `seen` pods `updated` are of the latest version.
fn observed(replicas: i32, (updated, seen): (i32, i32), pods: Vec<(Pod, Option<Outcome>)>) -> Observed {
    let object = json!({
        "metadata": {"name": "m", "namespace": "shop", "uid": "d", "generation": 3},
        "spec": {"replicas": replicas, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}}},
        "status": {"observedGeneration": 3, "updatedReplicas": updated, "replicas": seen},
    });
    Observed {
        deployment: Some(Child::new(serde_json::from_value(object).unwrap())),
        pods,
        ..Observed::default()
    }
}

fn allowing(mut observed: Observed, n: i32) -> Observed {
    let deployment = observed.deployment.as_mut().unwrap();
    deployment.object["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] = n.into();
    observed
}

fn stuck(mut observed: Observed) -> Observed {
    observed.fits_without_others = true;
    observed
}

fn may_be_missing(spec: &str, observed: &Observed) -> Option<i32> {
    let strategy = strategy(&read(&aideployment("m", spec)).unwrap(), observed)?;
    match strategy.rolling_update?.max_unavailable? {
        IntOrString::Int(n) => Some(n),
        IntOrString::String(text) => panic!("{text}"),
    }
}

#[test]
fn a_rollout_is_let_go_on_only_where_it_is_stuck() {
    let old = || (pod("old", "a", Some("n")), None);
    let new = |outcome| (pod("new", "b", None), outcome);
    let cases: Vec<(&str, Observed, Option<i32>)> = vec![
        ("nothing is there yet", Observed::default(), None),
        ("nothing is rolled out", observed(1, (1, 1), vec![old()]), None),
        (
            "the new pod is not looked at yet",
            observed(1, (1, 2), vec![old(), new(None)]),
            None,
        ),
        (
            "it waits, and others' pods are in the way",
            observed(1, (1, 2), vec![old(), new(no_fit())]),
            None,
        ),
        (
            "it waits for the old one",
            stuck(observed(1, (1, 2), vec![old(), new(no_fit())])),
            Some(1),
        ),
        (
            "the old one is on its way out",
            Observed {
                leaving: 1,
                ..allowing(observed(1, (1, 1), vec![new(no_fit())]), 1)
            },
            // One version is left: the rollout is over but for the new pod's start.
            None,
        ),
        (
            "one of two is on its way out",
            stuck(Observed {
                leaving: 1,
                ..allowing(observed(2, (1, 2), vec![old(), new(no_fit())]), 1)
            }),
            Some(1),
        ),
        (
            "one of two is gone, and placement has yet to look",
            allowing(observed(2, (1, 2), vec![old(), new(None)]), 1),
            Some(1),
        ),
        (
            "one of two is gone, and it takes both",
            stuck(allowing(observed(2, (1, 2), vec![old(), new(no_fit())]), 1)),
            Some(2),
        ),
        (
            "the new one found its node, another is to come",
            allowing(observed(2, (1, 2), vec![old(), (pod("new", "b", Some("n")), None)]), 1),
            Some(1),
        ),
        (
            "a new edit that the controller has not seen",
            {
                let mut o = allowing(observed(1, (1, 1), vec![old()]), 1);
                o.deployment.as_mut().unwrap().object["metadata"]["generation"] = 4.into();
                o
            },
            Some(1),
        ),
        (
            "the rollout is over",
            allowing(observed(2, (2, 2), vec![old(), old()]), 2),
            None,
        ),
        (
            "scaled to zero",
            stuck(allowing(observed(0, (0, 1), vec![old(), new(no_fit())]), 1)),
            None,
        ),
    ];
    for (name, observed, want) in cases {
        assert_eq!(may_be_missing(GPU, &observed), want, "{name}");
    }
}

#[test]
fn an_explicit_strategy_wins_and_unmanaged_pods_have_the_apis() {
    let stuck = stuck(observed(
        1,
        (1, 2),
        vec![(pod("old", "a", Some("n")), None), (pod("new", "b", None), no_fit())],
    ));
    let explicit = GPU.replace("deployment: {", "deployment: {strategy: {type: Recreate}, ");
    let strategy_of = |spec: &str| strategy(&read(&aideployment("m", spec)).unwrap(), &stuck);
    assert_eq!(strategy_of(&explicit).unwrap().type_.as_deref(), Some("Recreate"));
    assert_eq!(strategy_of("{engine: {name: vllm}, models: [{uri: m}]}"), None);
    let scheduler = GPU.replace("deployment: {", "deployment: {placement: {policy: Scheduler}, ");
    assert_eq!(strategy_of(&scheduler), None);
}

/// A cluster of `gpus`, with the arithmetic of the real Deployment controller (rolling update) and of placement.
struct World {
    replicas: i32,
    gpus: usize,
    /// GPUs that a pod of the new version takes; one of the old takes 1.
    size: usize,
    old: Vec<bool>,
    new: Vec<bool>,
    ready: usize,
    allowed: Option<i32>,
}

impl World {
    fn free(&self) -> usize {
        let held = |pods: &[bool]| pods.iter().filter(|has_node| **has_node).count();
        self.gpus - held(&self.old) - held(&self.new) * self.size
    }

    fn available(&self) -> i32 {
        i32::try_from(self.old.iter().filter(|n| **n).count() + self.ready).unwrap()
    }

    fn place(&mut self) {
        for at in 0..self.new.len() {
            self.new[at] |= self.free() >= self.size;
        }
    }

    fn observe(&self) -> Observed {
        let pods = |version: &str, pods: &[bool]| -> Vec<(Pod, Option<Outcome>)> {
            let one = |(i, has_node): (usize, &bool)| {
                let pod = pod(&format!("{version}{i}"), version, has_node.then_some("n"));
                (pod, (!has_node).then(no_fit).flatten())
            };
            pods.iter().enumerate().map(one).collect()
        };
        let (old, new) = (pods("a", &self.old), pods("b", &self.new));
        let [updated, seen] = [new.len(), new.len() + old.len()].map(|n| i32::try_from(n).unwrap());
        let waits = self.new.contains(&false);
        let held_by_old = self.old.iter().filter(|n| **n).count();
        let mut observed = observed(self.replicas, (updated, seen), old.into_iter().chain(new).collect());
        observed.fits_without_others = waits && held_by_old > 0 && self.free() + held_by_old >= self.size;
        match self.allowed {
            Some(n) => allowing(observed, n),
            None => observed,
        }
    }

    /// One turn of everybody; false: nothing happened.
    fn turn(&mut self) -> bool {
        let before = (self.old.clone(), self.new.clone(), self.ready, self.allowed);
        self.allowed = may_be_missing(GPU, &self.observe());
        let surge = (self.replicas + 3) / 4;
        let missing = self.allowed.unwrap_or(self.replicas / 4);
        let count = |pods: &[bool]| i32::try_from(pods.len()).unwrap();
        let all = count(&self.old) + count(&self.new);
        let more = (self.replicas + surge - all).min(self.replicas - count(&self.new));
        if more > 0 {
            self.new.extend(vec![false; usize::try_from(more).unwrap()]);
        } else {
            let least = self.replicas - missing;
            let new_unavailable = count(&self.new) - i32::try_from(self.ready).unwrap();
            let mut down = count(&self.old) + count(&self.new) - least - new_unavailable;
            while let (true, Some(at)) = (down > 0, self.old.iter().position(|has_node| !has_node)) {
                self.old.remove(at);
                down -= 1;
            }
            let mut available = self.available() - least;
            while available > 0 && down > 0 && !self.old.is_empty() {
                self.old.pop();
                available -= 1;
                down -= 1;
            }
        }
        self.place();
        // What has a node becomes ready before the next turn.
        self.ready = self.new.iter().filter(|n| **n).count();
        before != (self.old.clone(), self.new.clone(), self.ready, self.allowed)
    }
}

#[test]
fn no_rollout_blocks_itself_whatever_the_room_and_none_takes_more_away_than_it_needs() {
    for replicas in 1..=6_i32 {
        for gpus in 1..=8 {
            for size in 1..=2 {
                let running = usize::try_from(replicas).unwrap();
                let old: Vec<bool> = (0..running).map(|i| i < gpus).collect();
                let mut world = World {
                    replicas,
                    gpus,
                    size,
                    old,
                    new: vec![],
                    ready: 0,
                    allowed: None,
                };
                let at_first = world.available();
                let mut least = at_first;
                let name = format!("{replicas} replicas, {gpus} GPUs, {size} each");
                for turn in 0.. {
                    if !world.turn() {
                        break;
                    }
                    least = least.min(world.available());
                    assert!(turn < 200, "{name}: never comes to rest");
                }
                let fit = (gpus / size).min(running);
                if fit == 0 {
                    assert_eq!(
                        world.available(),
                        at_first,
                        "{name}: what can never fit takes nothing away"
                    );
                    continue;
                }
                assert_eq!(world.ready, fit, "{name}: as many new ones as fit");
                let has_old = world.old.contains(&true);
                assert!(!has_old || fit == 0, "{name}: an old one is left");
                if gpus >= running * (1 + size) {
                    assert!(
                        least >= at_first - replicas / 4,
                        "{name}: {least} of {at_first} with room for all"
                    );
                } else if size == 1 {
                    assert!(
                        least >= (at_first - 1 - replicas / 4).max(0),
                        "{name}: only {least} of {at_first} were left"
                    );
                }
                if fit == running {
                    assert_eq!(world.allowed, None, "{name}: the API's default is back");
                }
            }
        }
    }
}
