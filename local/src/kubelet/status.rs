//! What is reported of a pod: pure, from what its containers are doing.

use jiff::Timestamp;
use serde_json::{Value, json};

/// What one container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not started, or about to start again.
    Waiting {
        /// CamelCase.
        reason: &'static str,
        /// For people.
        message: String,
    },
    /// It runs.
    Running {
        /// Since when.
        since: Timestamp,
    },
    /// It has ended, and stays so.
    Terminated(Ended),
}

/// How a container's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// 0 to 255.
    pub code: i32,
    /// When it had started.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
}

/// One container and its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its image, as the pod says.
    pub image: String,
    /// Now.
    pub state: State,
    /// How the process before this one ended.
    pub last: Option<Ended>,
    /// Times it was started again.
    pub restarts: i32,
    /// Whether its readiness probe passes (or it has none and runs).
    pub ready: bool,
}

impl Container {
    /// Before its first start.
    pub fn new(name: &str, image: &str) -> Self {
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            state: State::Waiting {
                reason: "ContainerCreating",
                message: String::new(),
            },
            last: None,
            restarts: 0,
            ready: false,
        }
    }

    fn ended(&self) -> Option<&Ended> {
        match &self.state {
            State::Terminated(ended) => Some(ended),
            State::Waiting { .. } | State::Running { .. } => None,
        }
    }

    /// Whether it has started at least once.
    fn has_started(&self) -> bool {
        self.last.is_some() || !matches!(self.state, State::Waiting { .. })
    }
}

/// Phase of a pod.
pub fn phase(init: &[Container], containers: &[Container]) -> &'static str {
    if init.iter().any(|c| c.ended().is_some_and(|e| e.code != 0)) {
        return "Failed";
    }
    if containers.iter().all(|c| c.ended().is_some()) {
        let failed = containers.iter().any(|c| c.ended().is_some_and(|e| e.code != 0));
        return if failed { "Failed" } else { "Succeeded" };
    }
    if containers.iter().all(Container::has_started) {
        "Running"
    } else {
        "Pending"
    }
}

/// An address for the record: nothing routes it, Services reach the process through its host port. The API server refuses loopback
/// addresses in endpoints, and complains in Events about each.
fn pod_ip(uid: &str) -> String {
    let number = uid
        .bytes()
        .fold(0_u16, |n, b| n.wrapping_mul(31).wrapping_add(b.into()));
    let [high, low] = number.to_be_bytes();
    // Beside KWOK's 10.244.0.0/16; neither .0 nor .255.
    format!("10.245.{high}.{}", low.clamp(1, 254))
}

/// The part of a pod's status that a kubelet writes; conditions without their times.
pub fn status(uid: &str, init: &[Container], containers: &[Container], started: Timestamp) -> Value {
    let ip = pod_ip(uid);
    let initialized = init.iter().all(|c| c.ended().is_some_and(|e| e.code == 0));
    let ready = initialized && containers.iter().all(|c| c.ready);
    let phase = phase(init, containers);
    let unready = match phase {
        "Succeeded" => "PodCompleted",
        "Failed" => "PodFailed",
        _ => "ContainersNotReady",
    };
    let condition = |kind: &str, value: bool, reason: &str| {
        let reason = (!value).then_some(reason);
        json!({"type": kind, "status": if value { "True" } else { "False" }, "reason": reason})
    };
    json!({
        "phase": phase,
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "startTime": started.to_string(),
        "conditions": [
            condition("Initialized", initialized, "ContainersNotInitialized"),
            condition("ContainersReady", ready, unready),
            condition("Ready", ready, unready),
        ],
        "initContainerStatuses": init.iter().map(container).collect::<Vec<_>>(),
        "containerStatuses": containers.iter().map(container).collect::<Vec<_>>(),
    })
}

fn container(container: &Container) -> Value {
    // Merged by container name: the two states that do not hold must be said to be absent.
    let (waiting, running, terminated) = match &container.state {
        State::Waiting { reason, message } => (json!({"reason": reason, "message": message}), Value::Null, Value::Null),
        State::Running { since } => (Value::Null, json!({"startedAt": since.to_string()}), Value::Null),
        State::Terminated(ended) => (Value::Null, Value::Null, terminated_state(ended)),
    };
    json!({
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "ready": container.ready,
        "started": matches!(container.state, State::Running { .. }),
        "restartCount": container.restarts,
        "state": {"waiting": waiting, "running": running, "terminated": terminated},
        "lastState": {"terminated": container.last.as_ref().map(terminated_state)},
    })
}

fn terminated_state(ended: &Ended) -> Value {
    json!({
        "exitCode": ended.code,
        "reason": if ended.code == 0 { "Completed" } else { "Error" },
        "startedAt": ended.started.to_string(),
        "finishedAt": ended.finished.to_string(),
    })
}

/// Gives each condition the time of its last change: that of `before`, where its status is the same.
pub fn with_times(mut status: Value, before: &[(String, String, String)], now: Timestamp) -> Value {
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        let same = before
            .iter()
            .find(|(kind, value, _)| condition["type"] == **kind && condition["status"] == **value);
        let at = same.map_or_else(|| now.to_string(), |(_, _, at)| at.clone());
        condition["lastTransitionTime"] = at.into();
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32) -> State {
        State::Terminated(Ended {
            code,
            started: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
        })
    }

    fn container(state: State) -> Container {
        Container {
            state,
            ..Container::new("c", "i")
        }
    }

    fn running() -> Container {
        Container {
            ready: true,
            ..container(State::Running {
                since: Timestamp::UNIX_EPOCH,
            })
        }
    }

    #[test]
    fn phases() {
        let waiting = || {
            container(State::Waiting {
                reason: "ContainerCreating",
                message: String::new(),
            })
        };
        let crashed = || Container {
            last: Some(Ended {
                code: 1,
                started: Timestamp::UNIX_EPOCH,
                finished: Timestamp::UNIX_EPOCH,
            }),
            ..waiting()
        };
        let cases = [
            (vec![], vec![waiting(), running()], "Pending"),
            (vec![], vec![crashed(), running()], "Running"),
            (vec![], vec![running(), running()], "Running"),
            (vec![], vec![container(ended(0)), running()], "Running"),
            (vec![], vec![container(ended(0)), container(ended(0))], "Succeeded"),
            (vec![], vec![container(ended(0)), container(ended(3))], "Failed"),
            (vec![container(ended(1))], vec![waiting()], "Failed"),
            (vec![container(ended(0))], vec![waiting()], "Pending"),
        ];
        for (init, containers, want) in cases {
            assert_eq!(phase(&init, &containers), want, "{containers:?}");
        }
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let now = Timestamp::UNIX_EPOCH;
        let before = [
            ("Ready".to_owned(), "True".to_owned(), "then".to_owned()),
            ("ContainersReady".to_owned(), "False".to_owned(), "then".to_owned()),
        ];
        let status = with_times(status("u", &[], &[running()], now), &before, now);
        let at = |kind: &str| {
            let list = status["conditions"].as_array().unwrap();
            list.iter().find(|c| c["type"] == kind).unwrap()["lastTransitionTime"].clone()
        };
        assert_eq!(at("Ready"), "then");
        assert_eq!(at("ContainersReady"), now.to_string());
    }
}
