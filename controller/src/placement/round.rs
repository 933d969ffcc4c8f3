//! One look at all waiting and refused pods, and the patches that come of it.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_core::freshness::LEADER_WARM_UP;
use berth_core::placement::{Ask, Decision, Fleet, Miss, NoFitReason, NodeView, Rejected, decide};
use berth_crds::conditions::Reason;
use berth_crds::names::{self, managers};
use berth_crds::premlabs::aideployment::OnNoFit;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::explain::Explanation;
use super::recover::{Avoided, Refused, Verdict};
use super::view::{self, Promises};
use super::{Outcome, patch};
use crate::cluster::{Picture, Pod, PodKey};
use crate::context::Context;

/// Writes to the API server at a time.
const WRITES: usize = 32;
/// Longest time that one write may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// First wait after a write that failed; doubled with each further failure.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest wait after a write that failed.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// What placement remembers from one look to the next.
pub struct Rounds {
    context: Context,
    /// The nodes of the last look, for what has not changed since.
    nodes: Vec<NodeView>,
    /// Pods that a write is on its way for, until the watch shows it.
    in_flight: HashMap<PodKey, Step>,
    /// Pods whose last write failed.
    failed: HashMap<PodKey, Failure>,
    /// What waiting pods were last told.
    told: HashMap<PodKey, Told>,
    refused: Refused,
    avoided: Avoided,
    writes: JoinSet<Finished>,
    permits: Arc<Semaphore>,
}

/// What is written for a pod.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Pin { node: String, because: String },
    Release { message: String },
    Recreate { words: String },
}

struct Failure {
    /// Tried on this version of the pod.
    version: String,
    attempts: u32,
    again: Instant,
}

/// What a pod was told, without what changes by itself.
#[derive(Debug, PartialEq)]
struct Told {
    reason: Reason,
    words: String,
}

struct Finished {
    pod: Pod,
    step: Step,
    result: Result<(), WriteError>,
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("no answer within {} s", WRITE_TIMEOUT.as_secs())]
    Timeout(#[from] tokio::time::error::Elapsed),
}

/// What a pod that fits nowhere is told, kept to answer the next one that asks the same.
struct NoFit {
    ask: Ask,
    reason: Reason,
    message: String,
    /// The message without readings.
    words: String,
    explanation: Arc<Explanation>,
}

/// What one look takes from the picture, so that deciding does not hold its lock.
struct Look {
    waiting: Vec<Pod>,
    refused: Vec<(Pod, Verdict)>,
    outcomes: Vec<(PodKey, Outcome)>,
    /// Until when pods that ask for GPUs wait for the agents; `None`: not any more.
    warming_up: Option<Instant>,
}

impl Rounds {
    /// Remembers nothing yet.
    pub fn new(context: Context) -> Self {
        Self {
            context,
            nodes: Vec::new(),
            in_flight: HashMap::new(),
            failed: HashMap::new(),
            told: HashMap::new(),
            refused: Refused::default(),
            avoided: Avoided::default(),
            writes: JoinSet::new(),
            permits: Arc::new(Semaphore::new(WRITES)),
        }
    }

    /// Looks at all pods once. The answer is when to look again though nothing has changed.
    pub fn round(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let look = self.look(now)?;
        for (pod, outcome) in &look.outcomes {
            self.context.cluster.set_outcome(pod, outcome.clone());
        }
        let mut deadlines: Vec<Instant> = Vec::new();
        for (pod, verdict) in look.refused {
            match verdict {
                Verdict::Fine => {}
                Verdict::LookAgain(at) => deadlines.push(at),
                Verdict::Recreate => self.recreate(pod, now),
                Verdict::Report => self.report(&pod),
            }
        }
        let asks_gpu = look.waiting.iter().any(|p| p.ask.asks_gpu());
        deadlines.extend(look.warming_up.filter(|_| asks_gpu));
        if !look.waiting.is_empty() {
            self.place(look.waiting, look.warming_up.is_some(), now);
            deadlines.extend(self.avoided.next_end(now));
        }
        deadlines.extend(self.failed.values().map(|f| f.again).filter(|at| *at > now));
        deadlines.into_iter().min()
    }

    /// Waits for a write to end, and does what follows from it. The answer is when to try again.
    pub async fn finished(&mut self) -> Option<Instant> {
        match self.writes.join_next().await {
            None => pending().await,
            Some(Ok(finished)) => self.follow_up(finished),
            Some(Err(error)) => {
                tracing::error!(%error, "a write of placement ended badly");
                None
            }
        }
    }

    fn look(&mut self, now: Instant) -> Option<Look> {
        let cluster = self.context.cluster.clone();
        let picture = cluster.read();
        let leader_since = picture.leader_since?;
        if !picture.nodes_synced || !picture.pods_synced {
            return None;
        }
        self.settle(&picture, now);
        let refused = self.refused.look(&picture, now);
        let alone = refused.iter().filter(|(_, verdict)| *verdict == Verdict::Report);
        let given_up = alone.map(|(uid, _)| uid.clone()).collect();
        let refused: Vec<(Pod, Verdict)> = refused
            .into_iter()
            .filter(|(uid, _)| self.may_act(uid, &picture, now))
            .filter_map(|(uid, verdict)| Some((picture.pods.get(&uid)?.clone(), verdict)))
            .collect();
        let mut waiting: Vec<Pod> = picture
            .pods
            .values()
            .filter(|p| p.waits_for_us() && !p.annotations.contains_key(names::PAUSED))
            .filter(|p| self.may_act(&p.uid, &picture, now))
            .cloned()
            .collect();
        let warm = leader_since + LEADER_WARM_UP;
        let warming_up = (now < warm && !view::agents_reported(&picture)).then_some(warm);
        waiting.sort_by(|a, b| (&a.created, &a.namespace, &a.name).cmp(&(&b.created, &b.namespace, &b.name)));
        if !waiting.is_empty() {
            let promises = Promises {
                in_flight: self.in_flight(),
                given_up,
            };
            self.nodes = view::nodes(std::mem::take(&mut self.nodes), &picture, &promises, now);
            if warming_up.is_some() {
                view::await_agents(&mut self.nodes, &picture);
            }
        }
        Some(Look {
            waiting,
            refused,
            outcomes: picture
                .pods
                .values()
                .filter_map(|p| Some((p.uid.clone(), placed(p, picture.outcomes.get(&p.uid))?)))
                .collect(),
            warming_up,
        })
    }

    /// Forgets what the picture shows to be done or gone.
    fn settle(&mut self, picture: &Picture, now: Instant) {
        let pods = &picture.pods;
        self.in_flight.retain(|uid, step| {
            pods.get(uid).is_some_and(|p| match step {
                Step::Pin { .. } | Step::Release { .. } => p.waits_for_us(),
                Step::Recreate { .. } => !p.terminating && p.node.is_none(),
            })
        });
        self.failed.retain(|uid, _| pods.contains_key(uid));
        self.told.retain(|uid, _| pods.contains_key(uid));
        self.avoided.settle(&picture.nodes, now);
    }

    /// Nothing is on its way for the pod, and what failed on this version of it has had its rest.
    fn may_act(&self, uid: &PodKey, picture: &Picture, now: Instant) -> bool {
        let rested = |f: &Failure| {
            let version = picture.pods.get(uid).map(|p| p.resource_version.as_str());
            now >= f.again || version != Some(&f.version)
        };
        !self.in_flight.contains_key(uid) && self.failed.get(uid).is_none_or(rested)
    }

    fn in_flight(&self) -> HashMap<PodKey, String> {
        let pins = self.in_flight.iter().filter_map(|(uid, step)| match step {
            Step::Pin { node, .. } => Some((uid.clone(), node.clone())),
            Step::Release { .. } | Step::Recreate { .. } => None,
        });
        pins.collect()
    }

    fn place(&mut self, waiting: Vec<Pod>, warming_up: bool, now: Instant) {
        let mut fleet = Fleet::new(std::mem::take(&mut self.nodes));
        // Within one look nodes only fill up: who asks what did not fit before does not fit now.
        let mut no_fits: Vec<NoFit> = Vec::new();
        for mut pod in waiting {
            if let Some(invalid) = pod.ask.invalid.clone() {
                self.waits(&pod, Reason::InvalidSpec, &invalid, invalid.clone());
                continue;
            }
            if let Some(owner) = &pod.controller {
                pod.ask.refused = self.avoided.of(&owner.uid, now);
            }
            let named = std::mem::take(&mut pod.ask.pod);
            let known = no_fits.iter().position(|n| n.ask == pod.ask);
            let no_fit = match known {
                Some(known) => &no_fits[known],
                None => {
                    let decision = decide(&pod.ask, &fleet);
                    let explanation = Arc::new(Explanation::of(&decision));
                    match decision {
                        Decision::Place { node, because, .. } => {
                            self.keep(&pod, explanation);
                            let node = node.to_owned();
                            let place = fleet.nodes().iter().position(|n| n.name == node);
                            if let Some(place) = place {
                                fleet.change(place, |view| view::hold(view, &pod));
                            }
                            pod.ask.pod = named;
                            let patch = patch::pin(&pod, &node, &because);
                            self.write(pod, Step::Pin { node, because }, patch);
                            continue;
                        }
                        Decision::NoFit { rejected, .. } if warming_up && agents_may_help(&pod.ask, &rejected) => {
                            let message = "the GPUs are not known yet: the agents are connecting".to_owned();
                            no_fits.push(NoFit {
                                ask: pod.ask.clone(),
                                reason: Reason::WaitingForAgents,
                                words: message.clone(),
                                message,
                                explanation,
                            });
                            no_fits.last().expect("pushed above")
                        }
                        Decision::NoFit {
                            reason,
                            nearest,
                            message,
                            ..
                        } => {
                            let reading = nearest.filter(|n| n.miss.is_reading());
                            no_fits.push(NoFit {
                                ask: pod.ask.clone(),
                                reason: match reason {
                                    NoFitReason::NoFit => Reason::NoFit,
                                    NoFitReason::NoDevicePlugin => Reason::NoDevicePlugin,
                                },
                                words: reading
                                    .map_or_else(|| message.clone(), |n| format!("{} {}", n.node, n.miss.in_common())),
                                message,
                                explanation,
                            });
                            no_fits.last().expect("pushed above")
                        }
                    }
                }
            };
            pod.ask.pod = named;
            self.keep(&pod, no_fit.explanation.clone());
            let on_no_fit = match no_fit.reason {
                // Whether it fits is not known yet.
                Reason::WaitingForAgents => OnNoFit::Wait,
                _ => self.on_no_fit(&pod),
            };
            match on_no_fit {
                OnNoFit::Wait => self.waits(&pod, no_fit.reason, &no_fit.message, no_fit.words.clone()),
                OnNoFit::Release => {
                    let patch = patch::release(&pod);
                    let message = no_fit.message.clone();
                    self.write(pod, Step::Release { message }, patch);
                }
            }
        }
        self.nodes = fleet.into_nodes();
    }

    fn on_no_fit(&self, pod: &Pod) -> OnNoFit {
        match pod.annotations.get(names::ON_NO_FIT).map(String::as_str) {
            Some("Wait") => OnNoFit::Wait,
            Some("Release") => OnNoFit::Release,
            // Anything else is no answer.
            _ => self.context.settings.on_no_fit_default,
        }
    }

    /// Tells a pod why it waits: the outcome when the words change, an Event only when the reason does.
    fn waits(&mut self, pod: &Pod, reason: Reason, message: &str, words: String) {
        let told = Told { reason, words };
        let before = self.told.insert(pod.uid.clone(), told);
        let now = &self.told[&pod.uid];
        if before.as_ref() == Some(now) {
            return;
        }
        let outcome = Outcome::Waiting {
            reason,
            message: message.to_owned(),
        };
        self.context.cluster.set_outcome(&pod.uid, outcome);
        // To wait for the agents is the ordinary course of a start.
        if before.is_none_or(|b| b.reason != reason) && reason != Reason::WaitingForAgents {
            tracing::info!(pod = pod.ask.pod, reason = reason.as_str(), message, "pod waits");
            self.context.events.warning(reference(pod), reason, "Place", message);
        }
    }

    fn report(&mut self, pod: &Pod) {
        let words = scheduler_words(pod);
        let node = pod.pinned_to.as_deref().unwrap_or_default();
        let message =
            format!("kube-scheduler refuses the pod on {node}, and no controller would make it anew: {words}");
        self.waits(pod, Reason::PinRefused, &message, message.clone());
    }

    fn recreate(&mut self, pod: Pod, now: Instant) {
        let words = scheduler_words(&pod);
        {
            let cluster = self.context.cluster.clone();
            let picture = cluster.read();
            let node = pod.pinned_to.as_ref().and_then(|node| picture.nodes.get(node));
            // Before the deletion: the pod that comes instead may be seen before the answer to it.
            if let (Some(owner), Some(node)) = (&pod.controller, node) {
                self.avoided.refused(&owner.uid, node, &words, now);
            }
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(pod.uid.clone()),
                // A pod that was bound meanwhile stays.
                resource_version: Some(pod.resource_version.clone()),
            }),
            ..DeleteParams::default()
        };
        let api = self.api(&pod);
        let name = pod.name.clone();
        self.spawn(pod, Step::Recreate { words }, async move {
            api.delete(&name, &params).await.map(|_| ())
        });
    }

    fn write(&mut self, pod: Pod, step: Step, patch: Patch<()>) {
        let api = self.api(&pod);
        let name = pod.name.clone();
        let params = PatchParams {
            field_manager: Some(managers::PLACEMENT.into()),
            ..PatchParams::default()
        };
        self.spawn(
            pod,
            step,
            async move { api.patch(&name, &params, &patch).await.map(|_| ()) },
        );
    }

    fn spawn(&mut self, pod: Pod, step: Step, call: impl Future<Output = kube::Result<()>> + Send + 'static) {
        self.in_flight.insert(pod.uid.clone(), step.clone());
        let permits = self.permits.clone();
        self.writes.spawn(async move {
            let _permit = permits.acquire_owned().await;
            let result = tokio::time::timeout(WRITE_TIMEOUT, call).await;
            let result = result
                .map_err(WriteError::from)
                .and_then(|r| r.map_err(WriteError::from));
            Finished { pod, step, result }
        });
    }

    fn follow_up(&mut self, finished: Finished) -> Option<Instant> {
        let Finished { pod, step, result } = finished;
        let Err(error) = result else {
            self.failed.remove(&pod.uid);
            self.done(&pod, step);
            return None;
        };
        // The promise ends here; whether to make it again is the next look's business.
        self.in_flight.remove(&pod.uid);
        if matches!(&error, WriteError::Api(kube::Error::Api(s)) if s.is_not_found()) {
            return None;
        }
        let attempts = self.failed.get(&pod.uid).map_or(0, |f| f.attempts);
        let again = Instant::now() + FIRST_RETRY.saturating_mul(1 << attempts.min(16)).min(LONGEST_RETRY);
        if matches!(&error, WriteError::Api(kube::Error::Api(s)) if patch::is_outdated(s)) {
            tracing::debug!(pod = pod.ask.pod, %error, "the pod has changed since it was decided on");
        } else {
            tracing::warn!(pod = pod.ask.pod, ?step, %error, attempts, "write failed");
            if let WriteError::Api(kube::Error::Api(_)) = &error {
                let message = format!("the API server refuses the placement: {error}");
                self.waits(&pod, Reason::ApplyFailed, &message, message.clone());
            }
        }
        let failure = Failure {
            version: pod.resource_version,
            attempts: attempts + 1,
            again,
        };
        self.failed.insert(pod.uid, failure);
        // The change that made it fail may have been seen already.
        self.context.cluster.placement.push(());
        Some(again)
    }

    fn done(&mut self, pod: &Pod, step: Step) {
        let Context { cluster, events, .. } = &self.context;
        match step {
            Step::Pin { node, because } => {
                tracing::info!(pod = pod.ask.pod, node, because, "placed");
                events.normal(reference(pod), Reason::Placed, "Place", &because);
                cluster.set_outcome(&pod.uid, Outcome::Placed { node, because });
            }
            Step::Release { message } => {
                tracing::info!(pod = pod.ask.pod, message, "released to kube-scheduler");
                events.normal(reference(pod), Reason::Released, "Release", &message);
                cluster.set_outcome(&pod.uid, Outcome::Released { message });
            }
            Step::Recreate { words } => {
                let node = pod.pinned_to.as_deref().unwrap_or_default();
                tracing::info!(
                    pod = pod.ask.pod,
                    node,
                    words,
                    "refused where it was pinned; deleted to be made anew"
                );
                let note = format!("kube-scheduler refused the pod on {node}; it is deleted to be made anew: {words}");
                events.warning(reference(pod), Reason::PinRefused, "Recreate", &note);
            }
        }
        self.told.remove(&pod.uid);
    }

    fn keep(&self, pod: &Pod, explanation: Arc<Explanation>) {
        let explanations = &self.context.explanations;
        explanations.keep(&pod.namespace, &pod.name, Timestamp::now(), explanation);
    }

    fn api(&self, pod: &Pod) -> Api<core::Pod> {
        Api::namespaced(self.context.client.clone(), &pod.namespace)
    }
}

/// The outcome of a pod that carries a placement, where the picture does not have it: after a restart, or when a refused pod was bound
/// after all.
fn placed(pod: &Pod, known: Option<&Outcome>) -> Option<Outcome> {
    let because = pod
        .annotations
        .get(names::PLACED_BECAUSE)
        .filter(|_| pod.gates.is_empty())?;
    let node = pod.node.as_ref().or(pod.pinned_to.as_ref())?;
    match known {
        Some(Outcome::Placed { node: known, .. }) if known == node => None,
        Some(Outcome::Waiting {
            reason: Reason::PinRefused,
            ..
        }) if pod.node.is_none() => None,
        None | Some(Outcome::Placed { .. } | Outcome::Waiting { .. } | Outcome::Released { .. }) => {
            Some(Outcome::Placed {
                node: node.clone(),
                because: because.clone(),
            })
        }
    }
}

/// Whether a pod that fits nowhere may fit once the agents that are about to report have done so.
fn agents_may_help(ask: &Ask, rejected: &[Rejected<'_>]) -> bool {
    ask.asks_live_facts() || rejected.iter().any(|r| matches!(r.miss, Miss::AgentAwaited))
}

fn scheduler_words(pod: &Pod) -> String {
    pod.unscheduled.as_ref().map(|u| u.message.clone()).unwrap_or_default()
}

fn reference(pod: &Pod) -> core::ObjectReference {
    core::ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..core::ObjectReference::default()
    }
}

#[cfg(test)]
#[path = "round_tests.rs"]
mod tests;
