//! All rules over nodes, in one pass: what each node gets and what each rule came to.
//!
//! A rule sees a node's base labels, which are those that no rule of ours brought, and what older rules add. So the result depends on
//! nothing that an earlier pass wrote: it is the same every time, and rules cannot chase each other.

use std::collections::BTreeMap;

use berth_crds::names::managers;
use berth_crds::premlabs::autonodelabeler::LabelConflict;

use super::validate::Rule;
use crate::cluster::{Node, ObjectKey};
use crate::nodes::{Labels, is_paused, owned};

/// Names and conflicts that a status lists; the counts are of all.
const LISTED: usize = 20;

/// One object as it takes part. The slice given to [`Evaluation::add`] is in order of age: (creation, namespace, name).
#[derive(Debug, Clone, PartialEq)]
pub struct Participant {
    /// Namespace and name.
    pub key: ObjectKey,
    /// What it does.
    pub part: Part,
}

/// What an object does in a pass.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Valid: labels what matches.
    Rule(Rule),
    /// Paused: of these labels, those that it brought before stay where they are.
    Paused(Labels),
}

/// What a pass came to.
#[derive(Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Nodes whose labels from rules have to change.
    pub writes: Vec<Write>,
    /// One entry a participant, in the same order.
    pub outcomes: Vec<Outcome>,
}

/// One node's labels from rules, as they should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// Node name.
    pub node: String,
    /// Its UID.
    pub uid: String,
    /// The whole set; empty: all labels from rules go.
    pub labels: Labels,
    /// Indices of the rules that match the node.
    pub rules: Vec<usize>,
}

/// What one rule came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Nodes that match.
    pub matched: usize,
    /// The first of their names.
    pub nodes: Vec<String>,
    /// Labels that somebody else holds with another value.
    pub conflict_count: usize,
    /// The first of them.
    pub conflicts: Vec<LabelConflict>,
}

impl Evaluation {
    /// For this number of participants.
    pub fn new(participants: usize) -> Self {
        Self {
            writes: Vec::new(),
            outcomes: vec![Outcome::default(); participants],
        }
    }

    /// Evaluates one node. Nodes come in the order of their names, so that what is listed is the same every time.
    pub fn add(&mut self, participants: &[Participant], node: &Node) {
        let ours = owned(node, managers::NODES_RULES);
        let mut view = View {
            node,
            added: BTreeMap::new(),
        };
        let mut matching = Vec::new();
        for (index, participant) in participants.iter().enumerate() {
            match &participant.part {
                Part::Rule(rule) => {
                    if !rule.requirements.iter().all(|r| r.test.holds(view.get(&r.key))) {
                        continue;
                    }
                    matching.push(index);
                    let outcome = &mut self.outcomes[index];
                    outcome.matched += 1;
                    if outcome.nodes.len() < LISTED {
                        outcome.nodes.push(node.name.clone());
                    }
                    for (key, value) in &rule.labels {
                        if let Some(with) = view.put(key, value, index, participants) {
                            outcome.conflict(&node.name, key, with);
                        }
                    }
                }
                Part::Paused(labels) => {
                    for (key, value) in labels {
                        if ours.get(key.as_str()) == Some(&value.as_str()) {
                            view.put(key, value, index, participants);
                        }
                    }
                }
            }
        }
        let same = view.added.len() == ours.len()
            && view
                .added
                .iter()
                .all(|(k, (v, _))| ours.get(k).is_some_and(|now| now == v));
        if !same && !is_paused(node) {
            self.writes.push(Write {
                node: node.name.clone(),
                uid: node.uid.clone(),
                labels: view
                    .added
                    .iter()
                    .map(|(k, (v, _))| ((*k).into(), (*v).into()))
                    .collect(),
                rules: matching,
            });
        }
    }
}

impl Outcome {
    fn conflict(&mut self, node: &str, key: &str, with: String) {
        self.conflict_count += 1;
        if self.conflicts.len() < LISTED {
            self.conflicts.push(LabelConflict {
                node: node.to_owned(),
                key: key.to_owned(),
                with,
            });
        }
    }
}

/// A node's labels as the next rule sees them.
struct View<'a> {
    node: &'a Node,
    /// Key → value, and the rule that brought it.
    added: BTreeMap<&'a str, (&'a str, usize)>,
}

impl<'a> View<'a> {
    fn get(&self, key: &str) -> Option<&str> {
        match self.added.get(key) {
            Some((value, _)) => Some(value),
            None => self.base(key),
        }
    }

    /// The value of a label that no rule of ours brought alone.
    fn base(&self, key: &str) -> Option<&'a str> {
        let value = self.node.labels.get(key)?;
        let ours_alone = self
            .node
            .label_managers
            .get(key)
            .is_some_and(|m| m.len() == 1 && m.contains(managers::NODES_RULES));
        (!ours_alone).then_some(value)
    }

    /// Adds a label; who holds it with another value, if somebody does.
    fn put(&mut self, key: &'a str, value: &'a str, index: usize, participants: &[Participant]) -> Option<String> {
        if let Some(base) = self.base(key) {
            // Theirs, and left to them even where it is what the rule wants.
            return (base != value).then(|| self.owner(key));
        }
        match self.added.get(key) {
            Some((earlier, _)) if *earlier == value => None,
            Some((_, winner)) => {
                let (namespace, name) = &participants[*winner].key;
                Some(format!("{namespace}/{name}"))
            }
            None => {
                self.added.insert(key, (value, index));
                None
            }
        }
    }

    fn owner(&self, key: &str) -> String {
        let managers = self.node.label_managers.get(key);
        let other = managers.and_then(|m| m.iter().find(|m| *m != managers::NODES_RULES));
        other.cloned().unwrap_or_else(|| "unknown".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::kinds::autonodelabeler::validate::validate;

    const OURS: &str = managers::NODES_RULES;

    fn rule(name: &str, spec: &str) -> Participant {
        let spec = serde_saphyr::from_str(spec).unwrap();
        Participant {
            key: ("ns".into(), name.into()),
            part: Part::Rule(validate(&spec, &[]).unwrap()),
        }
    }

    /// Key, value, managers.
    fn node(name: &str, labels: &[(&str, &str, &[&str])]) -> Node {
        Node {
            name: name.into(),
            uid: format!("uid-{name}"),
            labels: labels.iter().map(|(k, v, _)| ((*k).into(), (*v).into())).collect(),
            label_managers: labels
                .iter()
                .filter(|(_, _, m)| !m.is_empty())
                .map(|(k, _, m)| ((*k).into(), m.iter().map(|m| (*m).into()).collect()))
                .collect(),
            ..Node::default()
        }
    }

    fn evaluate(rules: &[Participant], nodes: &[Node]) -> Evaluation {
        let mut evaluation = Evaluation::new(rules.len());
        nodes.iter().for_each(|n| evaluation.add(rules, n));
        evaluation
    }

    /// The nodes after the writes, as the API server would have them.
    fn written(nodes: &[Node], evaluation: &Evaluation) -> Vec<Node> {
        let mut nodes = nodes.to_vec();
        for write in &evaluation.writes {
            let node = nodes.iter_mut().find(|n| n.name == write.node).unwrap();
            let before: Vec<String> = owned(node, OURS).into_keys().map(str::to_owned).collect();
            for key in before {
                let managers = node.label_managers.get_mut(&key).unwrap();
                managers.remove(OURS);
                if managers.is_empty() {
                    node.label_managers.remove(&key);
                    node.labels.remove(&key);
                }
            }
            for (key, value) in &write.labels {
                node.labels.insert(key.clone(), value.clone());
                node.label_managers.entry(key.clone()).or_default().insert(OURS.into());
            }
        }
        nodes
    }

    const GPU_POOL: &str =
        "{labels: {team.io/pool: gpu}, matchExpression: {key: nvidia.com/gpu.present, operator: Exists}}";

    #[test]
    fn matching_nodes_get_the_labels_and_the_others_lose_them() {
        let rules = [rule("a", GPU_POOL)];
        let nodes = [
            node("n1", &[("nvidia.com/gpu.present", "true", &["x"])]),
            node("n2", &[("team.io/pool", "gpu", &[OURS])]),
            node(
                "n3",
                &[
                    ("nvidia.com/gpu.present", "true", &["x"]),
                    ("team.io/pool", "gpu", &[OURS]),
                ],
            ),
            node("n4", &[]),
        ];
        let evaluation = evaluate(&rules, &nodes);
        let writes: Vec<_> = evaluation
            .writes
            .iter()
            .map(|w| (w.node.as_str(), w.labels.len()))
            .collect();
        assert_eq!(writes, [("n1", 1), ("n2", 0)], "n3 and n4 are as they should be");
        assert_eq!(evaluation.writes[0].uid, "uid-n1");
        assert_eq!(
            (evaluation.outcomes[0].matched, &evaluation.outcomes[0].nodes[..]),
            (2, &["n1".to_owned(), "n3".into()][..])
        );

        // The rule is deleted.
        let evaluation = self::evaluate(&[], &written(&nodes, &evaluation));
        let emptied: Vec<_> = evaluation
            .writes
            .iter()
            .map(|w| (w.node.as_str(), w.labels.len()))
            .collect();
        assert_eq!(emptied, [("n1", 0), ("n3", 0)]);
    }

    #[test]
    fn the_oldest_rule_wins_and_the_loser_knows() {
        let rules = [
            rule(
                "old",
                "{labels: {pool: a, same: x}, matchExpression: {key: k, operator: Exists}}",
            ),
            rule(
                "new",
                "{labels: {pool: b, same: x, own: y}, matchExpression: {key: k, operator: Exists}}",
            ),
        ];
        let evaluation = evaluate(&rules, &[node("n", &[("k", "", &["x"])])]);
        let labels = &evaluation.writes[0].labels;
        assert_eq!(
            (labels["pool"].as_str(), labels["same"].as_str(), labels["own"].as_str()),
            ("a", "x", "y")
        );
        assert_eq!(evaluation.outcomes[0].conflict_count, 0);
        let conflicts = &evaluation.outcomes[1].conflicts;
        assert_eq!(
            (conflicts[0].key.as_str(), conflicts[0].with.as_str()),
            ("pool", "ns/old")
        );
        assert_eq!(evaluation.outcomes[1].conflict_count, 1);
    }

    #[test]
    fn labels_of_other_owners_are_left_to_them() {
        let rules = [rule(
            "a",
            "{labels: {same: x, other: mine, free: f}, matchExpression: {key: same, operator: Exists}}",
        )];
        let theirs = node("n", &[("same", "x", &["kubectl"]), ("other", "theirs", &["kubelet"])]);
        let evaluation = evaluate(&rules, std::slice::from_ref(&theirs));
        assert_eq!(evaluation.writes[0].labels, Labels::from([("free".into(), "f".into())]));
        let conflicts = &evaluation.outcomes[0].conflicts;
        assert_eq!((conflicts.len(), conflicts[0].with.as_str()), (1, "kubelet"));
        // Nobody is said to own it: still not ours.
        let orphan = node("n", &[("same", "x", &[]), ("other", "theirs", &[])]);
        assert_eq!(evaluate(&rules, &[orphan]).outcomes[0].conflicts[0].with, "unknown");
        // Somebody else wants the same as we: it becomes theirs alone, and stays.
        let shared = node("n", &[("same", "x", &["kubectl"]), ("free", "f", &[OURS, "kubectl"])]);
        let evaluation = evaluate(&rules, std::slice::from_ref(&shared));
        let after = written(&[shared], &evaluation);
        assert_eq!(after[0].labels["free"], "f");
        assert_eq!(after[0].label_managers["free"], BTreeSet::from(["kubectl".into()]));
        assert!(self::evaluate(&rules, &after).writes.is_empty());
    }

    #[test]
    fn a_rule_sees_what_older_rules_add_and_never_what_it_wrote_itself() {
        let chain = [
            rule("1", "{labels: {b: x}, matchExpression: {key: a, operator: Exists}}"),
            rule("2", "{labels: {c: x}, matchExpression: {key: b, operator: Exists}}"),
        ];
        let nodes = [node("n", &[("a", "", &["x"])])];
        let evaluation = evaluate(&chain, &nodes);
        assert_eq!(evaluation.writes[0].labels.len(), 2);
        // In the other order the second is not seen, now or in any later pass.
        let chain = [chain[1].clone(), chain[0].clone()];
        let evaluation = evaluate(&chain, &nodes);
        assert_eq!(evaluation.writes[0].labels, Labels::from([("b".into(), "x".into())]));
        assert!(self::evaluate(&chain, &written(&nodes, &evaluation)).writes.is_empty());
        // A rule that wants its own label absent would flip for ever, if it saw it.
        let contrary = [rule(
            "c",
            "{labels: {mark: x}, matchExpression: {key: mark, operator: DoesNotExist}}",
        )];
        let evaluation = evaluate(&contrary, &nodes);
        assert_eq!(evaluation.outcomes[0].matched, 1);
        let again = self::evaluate(&contrary, &written(&nodes, &evaluation));
        assert_eq!((again.outcomes[0].matched, again.writes.len()), (1, 0));
    }

    #[test]
    fn a_second_pass_over_the_result_changes_nothing() {
        // Rules that feed, contradict and exclude each other, over nodes with every kind of owner.
        let keys = ["a", "b", "c", "d"];
        let values = ["1", "2"];
        let operators = [
            "operator: Exists",
            "operator: DoesNotExist",
            "operator: In, values: ['1']",
            "operator: NotIn, values: ['1']",
            "operator: Gt, values: ['1']",
        ];
        let owners: [&[&str]; 4] = [&[OURS], &["x"], &[OURS, "x"], &[]];
        let mut random = 7_usize;
        let mut pick = move |n: usize| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        for round in 0..300 {
            let rules: Vec<Participant> = (0..4)
                .map(|i| {
                    let (label, value, key) = (keys[pick(4)], values[pick(2)], keys[pick(4)]);
                    let operator = operators[pick(5)];
                    rule(
                        &i.to_string(),
                        &format!("{{labels: {{{label}: '{value}'}}, matchExpression: {{key: {key}, {operator}}}}}"),
                    )
                })
                .collect();
            let nodes: Vec<Node> = (0..3)
                .map(|n| {
                    let mut labels: Vec<(&str, &str, &[&str])> = Vec::new();
                    for key in keys {
                        if pick(2) == 0 {
                            labels.push((key, values[pick(2)], owners[pick(4)]));
                        }
                    }
                    node(&n.to_string(), &labels)
                })
                .collect();
            let first = evaluate(&rules, &nodes);
            let second = evaluate(&rules, &written(&nodes, &first));
            assert!(
                second.writes.is_empty(),
                "round {round}: {rules:?} {nodes:?} {second:?}"
            );
            assert_eq!(second.outcomes, first.outcomes, "round {round}");
        }
    }

    #[test]
    fn a_paused_rule_keeps_what_it_brought_and_brings_nothing() {
        let paused = Participant {
            key: ("ns".into(), "p".into()),
            part: Part::Paused(Labels::from([("mark".into(), "x".into())])),
        };
        let nodes = [
            node("n1", &[("mark", "x", &[OURS])]),
            node("n2", &[]),
            node("n3", &[("mark", "y", &[OURS])]),
        ];
        let evaluation = evaluate(&[paused], &nodes);
        let writes: Vec<_> = evaluation.writes.iter().map(|w| w.node.as_str()).collect();
        assert_eq!(writes, ["n3"], "what is not its own goes");
        assert_eq!(evaluation.outcomes[0], Outcome::default());
    }

    #[test]
    fn a_paused_node_is_not_written() {
        let mut paused = node("n", &[("nvidia.com/gpu.present", "true", &["x"])]);
        paused
            .annotations
            .insert(berth_crds::names::PAUSED.into(), String::new());
        let evaluation = evaluate(&[rule("a", GPU_POOL)], &[paused]);
        assert_eq!((evaluation.writes.len(), evaluation.outcomes[0].matched), (0, 1));
    }

    #[test]
    fn lists_are_short_and_counts_whole() {
        let rules = [
            rule(
                "a",
                "{labels: {pool: a}, matchExpression: {key: pool, operator: DoesNotExist}}",
            ),
            rule(
                "b",
                "{labels: {pool: b}, matchExpression: {key: x, operator: DoesNotExist}}",
            ),
        ];
        let nodes: Vec<Node> = (0..50).map(|i| node(&format!("n{i:02}"), &[])).collect();
        let outcomes = evaluate(&rules, &nodes).outcomes;
        assert_eq!((outcomes[0].matched, outcomes[0].nodes.len()), (50, 20));
        assert_eq!((outcomes[1].conflict_count, outcomes[1].conflicts.len()), (50, 20));
        assert_eq!(outcomes[1].nodes[19], "n19");
    }

    /// 100 rules, each for 10 of 100 racks, over 5,000 nodes.
    fn at_scale() -> (Vec<Participant>, Vec<Node>) {
        let rules = (0..100).map(|r| {
            let racks: Vec<String> = (0..10).map(|i| format!("r{}", (r + i) % 100)).collect();
            rule(
                &format!("rule-{r:03}"),
                &format!(
                    "{{labels: {{team.io/rule-{r}: v1}}, matchExpression: {{key: rack, operator: In, values: {racks:?}}}}}"
                ),
            )
        });
        let nodes = (0..5000).map(|n| node(&format!("n{n:04}"), &[("rack", &format!("r{}", n % 100), &["x"])]));
        (rules.collect(), nodes.collect())
    }

    #[test]
    fn an_edit_of_one_rule_of_many_changes_its_nodes_alone() {
        let (mut rules, nodes) = at_scale();
        let started = std::time::Instant::now();
        let evaluation = evaluate(&rules, &nodes);
        println!("100 rules over 5,000 nodes: {:?}", started.elapsed());
        assert_eq!(
            evaluation.writes.len(),
            5000,
            "one write a node, whatever the number of its rules"
        );
        assert!(evaluation.writes.iter().all(|w| w.labels.len() == 10));
        let nodes = written(&nodes, &evaluation);
        assert!(evaluate(&rules, &nodes).writes.is_empty());

        let matched: Vec<String> = (0..5000)
            .filter(|n| (7..17).contains(&(n % 100)))
            .map(|n| format!("n{n:04}"))
            .collect();
        rules[7] = rule(
            "rule-007",
            "{labels: {team.io/rule-7: v2}, matchExpression: {key: rack, operator: In, values: [r7, r8, r9, r10, r11, r12, r13, r14, r15, r16]}}",
        );
        let evaluation = evaluate(&rules, &nodes);
        let changed: Vec<String> = evaluation.writes.iter().map(|w| w.node.clone()).collect();
        assert_eq!(changed, matched);
        let nodes = written(&nodes, &evaluation);

        // The same set, said otherwise.
        rules[7] = rule(
            "rule-007",
            "{labels: {team.io/rule-7: v2}, matchExpression: {key: rack, operator: In, values: [none, r16, r15, r14, r13, r12, r11, r10, r9, r8, r7]}}",
        );
        assert!(evaluate(&rules, &nodes).writes.is_empty());
    }
}
