//! The parts of a Pod that Berth decides on.

use std::collections::{BTreeMap, BTreeSet};

use berth_core::placement::Resources;
use berth_core::placement::ask::{Ask, Operator, Requirement, Term, Toleration};
use berth_core::placement::resources::is_gpu;
use berth_crds::names;
use berth_crds::{premlabs, sathvik, tmforum, youxam};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube_quantity::ParsedQuantity;

use super::ObjectKey;

/// A pod's UID.
pub type PodKey = String;

/// Kinds whose objects hear of their pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Served {
    /// premlabs.io
    AIDeployment,
    /// model.youxam.com
    AIModel,
    /// mlops.sathvik.dev
    ModelDeployment,
    /// oda.tmforum.org.oda.tmforum.org
    MLModel,
}

impl Served {
    /// All of them.
    const ALL: &'static [Served] = &[Self::AIDeployment, Self::AIModel, Self::ModelDeployment, Self::MLModel];

    /// The name of the object that a pod with these labels says it belongs to.
    fn name_in<'a>(
        self,
        labels: &'a BTreeMap<String, String>,
        controller: Option<&'a OwnerReference>,
    ) -> Option<&'a str> {
        let label = |key: &str| labels.get(key).map(String::as_str);
        let is_of = |kind: &str| controller.is_some_and(|c| c.kind == kind);
        match self {
            Self::AIDeployment => label(premlabs::keys::AI_DEPLOYMENT),
            Self::AIModel => label(youxam::keys::SELECTOR),
            // The labels are everybody's; the names of whoever made the pods are not.
            Self::ModelDeployment if is_of("Job") => {
                let job = controller.filter(|_| label(sathvik::keys::TYPE) == Some(sathvik::keys::VALIDATION))?;
                sathvik::keys::of_job(&job.name)
            }
            Self::ModelDeployment if is_of("ReplicaSet") => label(sathvik::keys::MODEL)
                .filter(|name| controller.is_some_and(|c| c.name.starts_with(&sathvik::keys::server(name)))),
            Self::ModelDeployment => None,
            // The labels are everybody's; the names in them are not.
            Self::MLModel if is_of("Job") => label(tmforum::keys::JOB_NAME).and_then(tmforum::keys::of_job),
            Self::MLModel if is_of("ReplicaSet") => label(tmforum::keys::APP).and_then(tmforum::keys::of_server),
            Self::MLModel => None,
        }
    }
}

/// A Pod, slim.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pod {
    /// UID.
    pub uid: PodKey,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// For patches that test what they decided on.
    pub resource_version: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations with our domain.
    pub annotations: BTreeMap<String, String>,
    /// Creation, whole seconds.
    pub created: Option<Timestamp>,
    /// Deletion was asked for.
    pub terminating: bool,
    /// Succeeded or Failed: holds no resources.
    pub finished: bool,
    /// Node it is bound to.
    pub node: Option<String>,
    /// Node that kube-scheduler frees for it by preemption: it is refused for now, and about to go there.
    pub nominated: Option<String>,
    /// Scheduling gates by name.
    pub gates: Vec<String>,
    /// Node it is pinned to by a `metadata.name` match field that names exactly one, bound or not.
    pub pinned_to: Option<String>,
    /// Effective requests as kube-scheduler computes them, with one of `pods`.
    pub requests: Resources,
    /// Host ports as (protocol, IP, port).
    pub host_ports: BTreeSet<(String, String, u16)>,
    /// What it asks of its node.
    pub ask: Ask,
    /// Raw `spec.affinity.nodeAffinity`, needed to tighten it.
    pub node_affinity: Option<core::NodeAffinity>,
    /// There is a `spec.affinity` of any kind: a JSON patch adds into it, or adds it.
    pub has_affinity: bool,
    /// There are annotations of any domain: a JSON patch adds to them, or adds them.
    pub has_annotations: bool,
    /// The `controller: true` owner.
    pub controller: Option<OwnerReference>,
    /// The `PodScheduled` condition while it is False.
    pub unscheduled: Option<Scheduling>,
    /// The `Ready` condition is True.
    pub ready: bool,
    /// Containers and init containers that wait or were last terminated badly.
    pub troubled: Vec<Container>,
}

/// A `PodScheduled=False` condition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scheduling {
    /// `Unschedulable`, `SchedulingGated`, `SchedulerError`.
    pub reason: String,
    /// kube-scheduler's words.
    pub message: String,
    /// Since when, whole seconds.
    pub since: Option<Timestamp>,
}

/// Why a container does not run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Container {
    /// Container name.
    pub name: String,
    /// `ImagePullBackOff`, `CrashLoopBackOff`, `OOMKilled` …
    pub reason: String,
    /// The runtime's words.
    pub message: String,
}

impl Pod {
    /// The node whose GPUs it has, or is promised.
    pub fn holds_gpus_on(&self) -> Option<&str> {
        let node = self.node.as_deref().or(self.pinned_to.as_deref())?;
        self.requests.0.keys().any(|name| is_gpu(name)).then_some(node)
    }

    /// Slims an API object down.
    pub fn from_api(pod: &core::Pod) -> Self {
        let meta = &pod.metadata;
        let default_spec = core::PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&default_spec);
        let status = pod.status.clone().unwrap_or_default();
        let annotations: BTreeMap<String, String> = meta
            .annotations
            .iter()
            .flatten()
            .filter(|(k, _)| k.starts_with(names::DOMAIN))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let node_affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.clone());
        let requests = requests(spec);
        let host_ports = host_ports(spec);
        let ask = ask(
            meta,
            spec,
            node_affinity.as_ref(),
            &annotations,
            requests.clone(),
            host_ports.clone(),
        );
        let conditions = status.conditions.unwrap_or_default();
        let condition = |type_: &str| conditions.iter().find(|c| c.type_ == type_);
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            created: meta.creation_timestamp.as_ref().map(|t| t.0),
            terminating: meta.deletion_timestamp.is_some(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            node: spec.node_name.clone().filter(|n| !n.is_empty()),
            nominated: status.nominated_node_name.filter(|n| !n.is_empty()),
            gates: spec.scheduling_gates.iter().flatten().map(|g| g.name.clone()).collect(),
            pinned_to: ask.affinity.as_deref().and_then(pinned_to),
            requests,
            host_ports,
            ask,
            node_affinity,
            has_affinity: spec.affinity.is_some(),
            has_annotations: meta.annotations.is_some(),
            controller: meta
                .owner_references
                .iter()
                .flatten()
                .find(|o| o.controller == Some(true))
                .cloned(),
            unscheduled: condition("PodScheduled")
                .filter(|c| c.status == "False")
                .map(|c| Scheduling {
                    reason: c.reason.clone().unwrap_or_default(),
                    message: c.message.clone().unwrap_or_default(),
                    since: c.last_transition_time.as_ref().map(|t| t.0),
                }),
            ready: condition("Ready").is_some_and(|c| c.status == "True"),
            troubled: status
                .init_container_statuses
                .iter()
                .chain(&status.container_statuses)
                .flatten()
                .filter_map(trouble)
                .collect(),
            annotations,
        }
    }

    /// The object that the pod's label names.
    pub fn served(&self) -> Option<(Served, ObjectKey)> {
        Served::ALL.iter().find_map(|kind| {
            let name = kind.name_in(&self.labels, self.controller.as_ref())?;
            Some((*kind, (self.namespace.clone(), name.to_owned())))
        })
    }

    /// Waits for Berth and for nobody else.
    pub fn waits_for_us(&self) -> bool {
        self.node.is_none() && !self.terminating && self.gates == [names::GATE]
    }

    /// Whether no decision of placement can differ between the two.
    pub fn same_for_placement(&self, other: &Self) -> bool {
        self.node == other.node
            && self.gates == other.gates
            && self.pinned_to == other.pinned_to
            && self.terminating == other.terminating
            && self.unscheduled == other.unscheduled
            && self.nominated == other.nominated
            && self.ready == other.ready
            && self.annotations == other.annotations
            && self.ask == other.ask
    }
}

fn trouble(status: &core::ContainerStatus) -> Option<Container> {
    let waiting = status.state.as_ref().and_then(|s| s.waiting.as_ref());
    let terminated = |s: &Option<core::ContainerState>| {
        s.as_ref()
            .and_then(|s| s.terminated.clone())
            .filter(|t| t.exit_code != 0)
    };
    let ended = terminated(&status.state).or_else(|| terminated(&status.last_state));
    let (reason, message) = match (waiting, ended) {
        // The container restarts again and again: how it ended says more than that it waits.
        (Some(w), Some(t)) if w.reason.as_deref() == Some("CrashLoopBackOff") => match t.reason.as_deref() {
            Some("OOMKilled") => (t.reason, t.message),
            _ => (w.reason.clone(), t.message),
        },
        (Some(w), _) => (w.reason.clone(), w.message.clone()),
        (None, Some(t)) => (t.reason, t.message),
        (None, None) => return None,
    };
    let reason = reason?;
    if matches!(reason.as_str(), "ContainerCreating" | "PodInitializing") {
        return None;
    }
    Some(Container {
        name: status.name.clone(),
        reason,
        message: message.unwrap_or_default(),
    })
}

/// Quantities in thousandths; one that does not parse counts as absent (the API server has already validated it).
pub fn resources(amounts: &BTreeMap<String, Quantity>) -> Resources {
    Resources(
        amounts
            .iter()
            .filter_map(|(name, q)| Some((name.clone(), milli(q)?)))
            .collect(),
    )
}

/// A quantity in thousandths, rounded up, saturating.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    let bytes = ParsedQuantity::try_from(quantity).ok()?;
    let value = bytes.to_bytes_f64()? * 1000.0;
    // 700m is no whole number of thousandths in binary: what is within the error of the calculation is not rounded up.
    let whole = value.round();
    let is_whole = (value - whole).abs() <= whole.abs() * 8.0 * f64::EPSILON;
    let value = if is_whole { whole } else { value };
    // Saturates beyond the range of i64, as `as` does.
    #[allow(clippy::cast_possible_truncation)]
    Some(value.ceil() as i64)
}

/// Effective requests of a pod as kube-scheduler computes them: regular containers and restartable init containers summed, raised to the
/// largest init container at its turn; in place of that what the pod asks as a whole; plus overhead, plus one of `pods`.
fn requests(spec: &core::PodSpec) -> Resources {
    let of = |c: &core::Container| {
        let r = c.resources.clone().unwrap_or_default();
        let mut amounts = resources(&r.limits.unwrap_or_default());
        // A limit without a request is the request (API defaulting has done it already for what was admitted).
        for (name, amount) in resources(&r.requests.unwrap_or_default()).0 {
            amounts.0.insert(name, amount);
        }
        amounts
    };
    let mut total = Resources::default();
    spec.containers.iter().for_each(|c| total.add(&of(c)));
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for init in spec.init_containers.iter().flatten() {
        let amount = of(init);
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&amount);
            peak.max(&sidecars);
        } else {
            let mut turn = sidecars.clone();
            turn.add(&amount);
            peak.max(&turn);
        }
    }
    total.add(&sidecars);
    total.max(&peak);
    let of_pod = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    let of_pod = of_pod.map(resources).unwrap_or_default().0;
    total
        .0
        .extend(of_pod.into_iter().filter(|(name, _)| is_of_whole_pods(name)));
    total.add(&resources(spec.overhead.as_ref().unwrap_or(&BTreeMap::new())));
    total.0.insert("pods".into(), 1000);
    total
}

/// What a pod can ask as a whole (`spec.resources`); of anything else there kube-scheduler takes no note.
fn is_of_whole_pods(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory") || resource.starts_with("hugepages-")
}

fn host_ports(spec: &core::PodSpec) -> BTreeSet<(String, String, u16)> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = u16::try_from(p.host_port?).ok().filter(|p| *p != 0)?;
            let ip = p
                .host_ip
                .clone()
                .filter(|ip| !ip.is_empty())
                .unwrap_or_else(|| "0.0.0.0".into());
            Some((p.protocol.clone().unwrap_or_else(|| "TCP".into()), ip, port))
        })
        .collect()
}

fn ask(
    meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    spec: &core::PodSpec,
    affinity: Option<&core::NodeAffinity>,
    annotations: &BTreeMap<String, String>,
    requests: Resources,
    host_ports: BTreeSet<(String, String, u16)>,
) -> Ask {
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let mut invalid = Vec::new();
    let gpu_memory = read(
        annotations,
        names::GPU_MEMORY,
        "a quantity of bytes such as 24Gi",
        whole_bytes,
        &mut invalid,
    );
    let compute_capability = read(
        annotations,
        names::COMPUTE_CAPABILITY,
        "a CUDA compute capability such as 8 or 8.6",
        compute_capability,
        &mut invalid,
    );
    Ask {
        pod: format!(
            "{}/{}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default()
        ),
        requests,
        node_selector: spec.node_selector.clone().unwrap_or_default(),
        affinity: required.map(|r| r.node_selector_terms.iter().map(term).collect()),
        preferred: preferred
            .into_iter()
            .flatten()
            .map(|p| (p.weight, term(&p.preference)))
            .collect(),
        tolerations: spec.tolerations.iter().flatten().map(toleration).collect(),
        host_ports,
        classes: annotations
            .get(names::GPU_CLASS)
            .map(|c| class_list(c))
            .unwrap_or_default(),
        gpu_memory,
        compute_capability,
        invalid: (!invalid.is_empty()).then(|| invalid.join("; ")),
        refused: BTreeMap::new(),
    }
}

/// Value of an annotation; one that cannot be read is told with what to write instead.
fn read<T>(
    annotations: &BTreeMap<String, String>,
    name: &str,
    expected: &str,
    parse: impl FnOnce(&str) -> Option<T>,
    invalid: &mut Vec<String>,
) -> Option<T> {
    let text = annotations.get(name)?;
    let value = parse(text);
    if value.is_none() {
        invalid.push(format!("annotation {name} is {text:?}: write {expected}"));
    }
    value
}

fn whole_bytes(value: &str) -> Option<u64> {
    u64::try_from(milli(&Quantity(value.to_owned()))? / 1000).ok()
}

/// `h100, a100` → in order, without blanks.
pub fn class_list(value: &str) -> Vec<String> {
    value
        .split(',')
        .map(str::trim)
        .filter(|c| !c.is_empty())
        .map(str::to_owned)
        .collect()
}

/// `8` or `8.6`.
pub fn compute_capability(value: &str) -> Option<(u32, u32)> {
    let (major, minor) = value.split_once('.').unwrap_or((value, "0"));
    Some((major.trim().parse().ok()?, minor.trim().parse().ok()?))
}

fn term(term: &core::NodeSelectorTerm) -> Term {
    let requirements = |list: &Option<Vec<core::NodeSelectorRequirement>>| {
        list.iter()
            .flatten()
            .filter_map(|r| {
                let operator = match r.operator.as_str() {
                    "In" => Operator::In,
                    "NotIn" => Operator::NotIn,
                    "Exists" => Operator::Exists,
                    "DoesNotExist" => Operator::DoesNotExist,
                    "Gt" => Operator::Gt,
                    "Lt" => Operator::Lt,
                    // The API server knows no other.
                    _ => return None,
                };
                Some(Requirement {
                    key: r.key.clone(),
                    operator,
                    values: r.values.clone().unwrap_or_default(),
                })
            })
            .collect()
    };
    Term {
        expressions: requirements(&term.match_expressions),
        fields: requirements(&term.match_fields),
    }
}

fn toleration(t: &core::Toleration) -> Toleration {
    let exists = t.operator.as_deref() == Some("Exists");
    Toleration {
        key: t.key.clone().filter(|k| !k.is_empty()),
        value: if exists {
            None
        } else {
            Some(t.value.clone().unwrap_or_default())
        },
        effect: t.effect.clone().filter(|e| !e.is_empty()),
    }
}

/// The one node that every term names by `metadata.name`; an empty term matches nothing and counts for nothing.
fn pinned_to(terms: &[Term]) -> Option<String> {
    let name = |t: &Term| {
        t.fields
            .iter()
            .find(|r| r.key == "metadata.name" && r.operator == Operator::In && r.values.len() == 1)
            .map(|r| r.values[0].clone())
    };
    let mut terms = terms.iter().filter(|t| **t != Term::default());
    let first = name(terms.next()?)?;
    terms.all(|t| name(t).as_ref() == Some(&first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        let object = serde_json::json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec});
        Pod::from_api(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn requests_are_those_of_the_scheduler() {
        let container = |cpu: &str| serde_json::json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = container("100m");
        sidecar["restartPolicy"] = "Always".into();
        let p = pod(serde_json::json!({
            "initContainers": [sidecar, container("2")],
            "containers": [container("500m"), {"name": "d", "resources": {"limits": {"nvidia.com/gpu": 2, "memory": "1Gi"}}}],
        }));
        assert_eq!(
            p.requests.milli("cpu"),
            2100,
            "the init container beside the sidecar is the peak"
        );
        assert_eq!(p.requests.whole("nvidia.com/gpu"), 2);
        assert_eq!(p.requests.whole("memory"), 1 << 30);
        assert_eq!(p.requests.whole("pods"), 1);
    }

    #[test]
    fn what_a_pod_asks_as_a_whole_counts_instead_of_what_its_containers_ask() {
        let containers = serde_json::json!([
            {"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": 1}}},
            {"name": "b", "resources": {"requests": {"cpu": "500m"}}},
        ]);
        // cpu in thousandths, memory in Gi, GPUs.
        for (what, of_pod, want) in [
            ("nothing", serde_json::json!({}), (1000, 1, 1)),
            ("more", serde_json::json!({"requests": {"cpu": "3"}}), (3000, 1, 1)),
            (
                "less",
                serde_json::json!({"requests": {"cpu": "700m", "memory": "512Mi"}}),
                (700, 0, 1),
            ),
            (
                "what only containers can ask",
                serde_json::json!({"requests": {"nvidia.com/gpu": "4"}}),
                (1000, 1, 1),
            ),
            (
                "a limit: the API server has made a request of it where none was asked",
                serde_json::json!({"limits": {"cpu": "8"}, "requests": {"memory": "2Gi"}}),
                (1000, 2, 1),
            ),
        ] {
            let p = pod(serde_json::json!({"containers": containers, "resources": of_pod}));
            let got = (
                p.requests.milli("cpu"),
                p.requests.whole("memory") >> 30,
                p.requests.whole("nvidia.com/gpu"),
            );
            assert_eq!(got, want, "{what}");
        }
        let p = pod(serde_json::json!({
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "9"}}}],
            "containers": [{"name": "a"}],
            "resources": {"requests": {"cpu": "2", "hugepages-2Mi": "4Mi"}},
            "overhead": {"cpu": "250m"},
        }));
        assert_eq!(
            p.requests.milli("cpu"),
            2250,
            "init containers are in it; the overhead is not"
        );
        assert_eq!(p.requests.whole("hugepages-2Mi"), 4 << 20);
        assert_eq!(p.ask.requests, p.requests);
    }

    #[test]
    fn an_annotation_that_cannot_be_read_is_no_absent_one() {
        for (name, value, want) in [
            (names::GPU_MEMORY, "24Gi", None),
            (
                names::GPU_MEMORY,
                "24GB",
                Some("annotation berth.dev/gpu-memory is \"24GB\": write a quantity of bytes such as 24Gi"),
            ),
            (
                names::GPU_MEMORY,
                "-1Gi",
                Some("annotation berth.dev/gpu-memory is \"-1Gi\": write a quantity of bytes such as 24Gi"),
            ),
            (names::COMPUTE_CAPABILITY, "8.6", None),
            (
                names::COMPUTE_CAPABILITY,
                "sm_86",
                Some(
                    "annotation berth.dev/compute-capability is \"sm_86\": write a CUDA compute capability such as 8 or 8.6",
                ),
            ),
        ] {
            let object = serde_json::json!({"metadata": {"name": "p", "annotations": {name: value}}, "spec": {"containers": []}});
            let pod = Pod::from_api(&serde_json::from_value(object).unwrap());
            assert_eq!(pod.ask.invalid.as_deref(), want, "{name}: {value}");
        }
    }

    #[test]
    fn a_pod_that_asks_something_else_is_looked_at_again() {
        let before = pod(serde_json::json!({"containers": []}));
        assert!(before.same_for_placement(&before.clone()));
        for spec in [
            serde_json::json!({"containers": [], "nodeSelector": {"zone": "a"}}),
            serde_json::json!({"containers": [], "tolerations": [{"key": "gpu", "operator": "Exists"}]}),
            serde_json::json!({"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}]}}}}),
        ] {
            assert!(!before.same_for_placement(&pod(spec.clone())), "{spec}");
        }
    }

    #[test]
    fn quantities_of_every_form() {
        for (text, want) in [
            ("1", 1000),
            ("500m", 500),
            ("1Ki", 1_024_000),
            ("1.5", 1500),
            ("2e3", 2_000_000),
            ("1M", 1_000_000_000),
        ] {
            assert_eq!(milli(&Quantity(text.into())), Some(want), "{text}");
        }
        assert_eq!(milli(&Quantity("lots".into())), None);
        for n in 0..20_000 {
            assert_eq!(milli(&Quantity(format!("{n}m"))), Some(n));
        }
        assert_eq!(milli(&Quantity("700100u".into())), Some(701), "rounded up");
    }

    #[test]
    fn a_pin_is_seen_only_when_every_term_has_it() {
        let term = |name: &str| serde_json::json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        let with = |terms: serde_json::Value| {
            pod(serde_json::json!({"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}))
        };
        assert_eq!(
            with(serde_json::json!([term("a"), term("a")])).pinned_to.as_deref(),
            Some("a")
        );
        assert_eq!(with(serde_json::json!([term("a"), term("b")])).pinned_to, None);
        assert_eq!(with(serde_json::json!([])).pinned_to, None);
        assert_eq!(with(serde_json::json!([{}, term("a")])).pinned_to.as_deref(), Some("a"));
        assert_eq!(with(serde_json::json!([{}])).pinned_to, None);
    }
}
