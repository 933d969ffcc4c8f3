//! What was said about nodes already, so that it is said once.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Labels;

/// Per node, what was reported since this process started.
#[derive(Debug, Default)]
pub(super) struct Reports(HashMap<String, Report>);

#[derive(Debug, Default)]
struct Report {
    uid: String,
    managers: HashSet<String>,
    observed: Option<Labels>,
}

impl Reports {
    /// The managers of `left` that were not reported for this node yet, with their keys; they count as reported now.
    pub fn newly_left(
        &mut self,
        node: &str,
        uid: &str,
        left: &BTreeMap<String, Vec<String>>,
    ) -> Vec<(String, Vec<String>)> {
        let report = self.0.entry(node.to_owned()).or_default();
        if report.uid != uid {
            *report = Report {
                uid: uid.to_owned(),
                ..Report::default()
            };
        }
        left.iter()
            .filter(|(manager, _)| report.managers.insert((*manager).clone()))
            .map(|(manager, keys)| (manager.clone(), keys.clone()))
            .collect()
    }

    /// Whether `labels` differ from what was last reported as what would be written.
    pub fn newly_observed(&mut self, node: &str, labels: &Labels) -> bool {
        let report = self.0.entry(node.to_owned()).or_default();
        let new = report.observed.as_ref() != Some(labels);
        report.observed = Some(labels.clone());
        new
    }

    /// The node is gone.
    pub fn forget(&mut self, node: &str) {
        self.0.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_reported_once_a_node() {
        let mut reports = Reports::default();
        let left = BTreeMap::from([("nfd".to_owned(), vec!["k".to_owned()])]);
        assert_eq!(reports.newly_left("n", "u1", &left).len(), 1);
        assert!(reports.newly_left("n", "u1", &left).is_empty());
        assert_eq!(reports.newly_left("m", "u2", &left).len(), 1, "another node");
        assert_eq!(
            reports.newly_left("n", "u3", &left).len(),
            1,
            "another node of that name"
        );
        reports.forget("n");
        assert_eq!(reports.newly_left("n", "u3", &left).len(), 1);
    }

    #[test]
    fn what_would_be_written_is_reported_on_change() {
        let mut reports = Reports::default();
        let labels = Labels::from([("k".into(), "v".into())]);
        assert!(reports.newly_observed("n", &labels));
        assert!(!reports.newly_observed("n", &labels));
        assert!(reports.newly_observed("n", &Labels::new()));
    }
}
