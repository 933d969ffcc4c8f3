//! `/explain`: what placement last concluded, for people.

use serde::Serialize;

use crate::cluster::{Picture, Pod};
use crate::placement::Outcome;

/// One pod's explanation.
#[derive(Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    namespace: String,
    pod: String,
    /// `Placed`, `Waiting`, `Released`, or `NotConsidered`.
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    message: String,
}

/// All pods that placement concluded something about, by namespace and name.
pub fn all(picture: &Picture) -> Vec<Explanation> {
    let pods = picture
        .outcomes
        .iter()
        .filter_map(|(uid, o)| Some(explanation(picture.pods.get(uid)?, Some(o))));
    let mut all: Vec<_> = pods.collect();
    all.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
    all
}

/// One pod; `None`: it is not known.
pub fn one(picture: &Picture, namespace: &str, name: &str) -> Option<Explanation> {
    let pod = picture
        .pods
        .values()
        .find(|p| p.namespace == namespace && p.name == name)?;
    Some(explanation(pod, picture.outcomes.get(&pod.uid)))
}

fn explanation(pod: &Pod, outcome: Option<&Outcome>) -> Explanation {
    let (outcome, node, reason, message) = match outcome {
        Some(Outcome::Placed { node, because }) => ("Placed", Some(node.clone()), None, because.clone()),
        Some(Outcome::Waiting { reason, message }) => ("Waiting", None, Some(reason.as_str()), message.clone()),
        Some(Outcome::Released { message }) => ("Released", None, None, message.clone()),
        None => (
            "NotConsidered",
            pod.node.clone(),
            None,
            "placement has concluded nothing about this pod".into(),
        ),
    };
    Explanation {
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        outcome,
        node,
        reason,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_crds::conditions::Reason;

    #[test]
    fn explanations_are_sorted_and_complete() {
        let mut picture = Picture::default();
        for (uid, name) in [("1", "b"), ("2", "a"), ("3", "c")] {
            let pod = Pod {
                uid: uid.into(),
                namespace: "ns".into(),
                name: name.into(),
                ..Pod::default()
            };
            picture.pods.insert(uid.into(), pod);
        }
        let placed = Outcome::Placed {
            node: "n".into(),
            because: "most room".into(),
        };
        picture.outcomes.insert("1".into(), placed);
        let waiting = Outcome::Waiting {
            reason: Reason::NoFit,
            message: "1 GPU short".into(),
        };
        picture.outcomes.insert("2".into(), waiting);
        let got = serde_json::to_value(all(&picture)).unwrap();
        let want = serde_json::json!([
            {"namespace": "ns", "pod": "a", "outcome": "Waiting", "reason": "NoFit", "message": "1 GPU short"},
            {"namespace": "ns", "pod": "b", "outcome": "Placed", "node": "n", "message": "most room"},
        ]);
        assert_eq!(got, want);
        assert_eq!(one(&picture, "ns", "c").unwrap().outcome, "NotConsidered");
        assert_eq!(one(&picture, "ns", "d"), None);
    }
}
