//! Why the last pods went where they went, or nowhere.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use berth_core::placement::{Decision, NoFitReason, Terms};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;

/// Pods whose explanation is kept.
const KEPT: usize = 1000;
/// Candidates and rejected nodes that one explanation lists, the best and nearest: with [`KEPT`] some 20 MB where nodes are many.
const LISTED: usize = 64;

/// The last explanations, shared by all who hold a clone.
#[derive(Debug, Clone, Default)]
pub struct Explanations(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    by_pod: HashMap<(String, String), (Timestamp, Arc<Explanation>)>,
    /// In the order in which pods were first decided on.
    order: VecDeque<(String, String)>,
}

/// One decision. The same one may hold for many pods that ask the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `Place`, `NoFit` or `NoDevicePlugin`.
    pub decision: &'static str,
    /// The chosen node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// One or two sentences.
    pub message: String,
    /// Nodes that fit, best first.
    pub candidates: Vec<Candidate>,
    /// How many fit.
    pub candidates_in_all: usize,
    /// Nodes that do not, nearest first.
    pub rejected: Vec<Rejected>,
    /// How many do not, by the step of the filter that took them out.
    pub rejected_by_stage: BTreeMap<&'static str, usize>,
}

/// A node that fits and its score.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Candidate {
    pub node: String,
    pub terms: Terms,
}

/// A node that does not fit and the first reason.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Rejected {
    pub node: String,
    pub stage: &'static str,
    pub miss: String,
}

impl Explanation {
    /// Of a decision.
    pub fn of(decision: &Decision<'_>) -> Self {
        let (name, node, message, mut candidates, mut rejected) = match decision {
            Decision::Place {
                node,
                because,
                candidates,
                rejected,
            } => (
                "Place",
                Some((*node).to_owned()),
                because,
                candidates.iter().collect(),
                rejected.iter().collect::<Vec<_>>(),
            ),
            Decision::NoFit {
                reason,
                message,
                rejected,
                ..
            } => {
                let name = match reason {
                    NoFitReason::NoFit => "NoFit",
                    NoFitReason::NoDevicePlugin => "NoDevicePlugin",
                };
                (name, None, message, Vec::new(), rejected.iter().collect())
            }
        };
        let mut rejected_by_stage = BTreeMap::new();
        for r in &rejected {
            *rejected_by_stage.entry(r.miss.stage().as_str()).or_default() += 1;
        }
        let candidates_in_all = candidates.len();
        best(&mut candidates, |a, b| a.compare(b));
        best(&mut rejected, |a, b| a.compare(b));
        Self {
            decision: name,
            node,
            message: message.clone(),
            candidates: candidates
                .iter()
                .map(|c| Candidate {
                    node: c.node.to_owned(),
                    terms: c.terms,
                })
                .collect(),
            candidates_in_all,
            rejected: rejected
                .iter()
                .map(|r| Rejected {
                    node: r.node.to_owned(),
                    stage: r.miss.stage().as_str(),
                    miss: r.miss.to_string(),
                })
                .collect(),
            rejected_by_stage,
        }
    }
}

/// Keeps the first [`LISTED`] in order, without sorting the thousand that nobody lists.
fn best<T>(list: &mut Vec<T>, compare: impl Fn(&T, &T) -> std::cmp::Ordering) {
    if list.len() > LISTED {
        list.select_nth_unstable_by(LISTED, &compare);
        list.truncate(LISTED);
    }
    list.sort_unstable_by(compare);
}

impl Explanations {
    /// Keeps the explanation of a pod's last decision.
    pub fn keep(&self, namespace: &str, name: &str, at: Timestamp, explanation: Arc<Explanation>) {
        let pod = (namespace.to_owned(), name.to_owned());
        let mut kept = self.0.lock();
        if kept.by_pod.insert(pod.clone(), (at, explanation)).is_none() {
            kept.order.push_back(pod);
        }
        if kept.order.len() > KEPT
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.by_pod.remove(&oldest);
        }
    }

    /// The last decision on a pod, by namespace and name.
    pub fn explain(&self, namespace: &str, name: &str) -> Option<serde_json::Value> {
        let (at, explanation) = self
            .0
            .lock()
            .by_pod
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()?;
        let mut value = serde_json::to_value(&*explanation).ok()?;
        value["pod"] = format!("{namespace}/{name}").into();
        value["decidedAt"] = at.to_string().into();
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use berth_core::placement::{Ask, Fleet, NodeView, Resources, decide};

    use super::*;

    #[test]
    fn the_best_and_the_nearest_are_listed_and_the_oldest_pods_go() {
        let node = |n: usize| NodeView {
            name: format!("n-{n:03}"),
            allocatable: Resources([("cpu".to_owned(), n as i64 * 1000)].into()),
            ..NodeView::default()
        };
        let fleet = Fleet::new((0..300).map(node).collect());
        let ask = Ask {
            requests: Resources([("cpu".to_owned(), 100_000)].into()),
            ..Ask::default()
        };
        let explanation = Explanation::of(&decide(&ask, &fleet));
        assert_eq!(explanation.candidates_in_all, 200);
        assert_eq!(explanation.rejected_by_stage, [("resources", 100)].into());
        assert_eq!(
            (explanation.candidates.len(), explanation.rejected.len()),
            (LISTED, LISTED)
        );
        assert_eq!(Some(&explanation.candidates[0].node), explanation.node.as_ref());
        assert_eq!(explanation.rejected[0].node, "n-099");

        let kept = Explanations::default();
        let explanation = Arc::new(explanation);
        for n in 0..=KEPT {
            kept.keep("ns", &format!("p{n}"), Timestamp::UNIX_EPOCH, explanation.clone());
        }
        assert!(kept.explain("ns", "p0").is_none());
        assert_eq!(kept.explain("ns", "p1").unwrap()["pod"], "ns/p1");
    }
}
