//! What a waiting pod asks for.

use std::collections::{BTreeMap, BTreeSet};

use super::Resources;
use super::resources::{is_gpu, is_mig};

/// What a pod asks of its node. Everything in it was stated by the pod; nothing is defaulted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ask {
    /// `namespace/name`, for messages.
    pub pod: String,
    /// Effective requests as kube-scheduler computes them: containers summed, init containers' maximum, overhead, and one of `pods`.
    pub requests: Resources,
    /// `spec.nodeSelector`.
    pub node_selector: BTreeMap<String, String>,
    /// `requiredDuringSchedulingIgnoredDuringExecution` node-selector terms (one must hold). `None`: no such affinity; an empty list
    /// matches no node, as in Kubernetes.
    pub affinity: Option<Vec<Term>>,
    /// `preferredDuringSchedulingIgnoredDuringExecution`: weight 1–100 and term.
    pub preferred: Vec<(i32, Term)>,
    /// Tolerations.
    pub tolerations: Vec<Toleration>,
    /// Host ports as (protocol, host IP or "0.0.0.0", port).
    pub host_ports: BTreeSet<(String, String, u16)>,
    /// Wanted GPU classes in order of preference; empty: any.
    pub classes: Vec<String>,
    /// Free VRAM in bytes that each GPU must have now. The one thing asked that only live facts can answer.
    pub gpu_memory: Option<u64>,
    /// Least CUDA compute capability (major, minor).
    pub compute_capability: Option<(u32, u32)>,
    /// What the pod asks in a form that cannot be read, in words for its author. Such a pod is placed nowhere: what it asks would not hold.
    pub invalid: Option<String>,
    /// Nodes that lately refused a pod of the same owner after Berth had pinned it there, with kube-scheduler's words.
    pub refused: BTreeMap<String, String>,
}

impl Ask {
    /// GPU resources asked for, with amounts in thousandths.
    pub fn gpus(&self) -> impl Iterator<Item = (&str, i64)> {
        let asked = self
            .requests
            .0
            .iter()
            .filter(|(name, milli)| **milli > 0 && is_gpu(name));
        asked.map(|(name, milli)| (name.as_str(), *milli))
    }

    /// Whether anything in it is about GPUs. What is not, is placed without a look at any hardware.
    pub fn asks_gpu(&self) -> bool {
        !self.classes.is_empty()
            || self.gpu_memory.is_some()
            || self.compute_capability.is_some()
            || self.gpus().next().is_some()
    }

    /// Whether it asks something that only fresh samples can answer.
    pub fn asks_live_facts(&self) -> bool {
        self.gpu_memory.is_some() && !self.asks_slices_alone()
    }

    /// Whether all GPUs that it asks are MIG slices. The memory of a slice is its own: how full its GPU is says nothing about it.
    pub fn asks_slices_alone(&self) -> bool {
        let mut asked = self.gpus().peekable();
        asked.peek().is_some() && asked.all(|(name, _)| is_mig(name))
    }
}

/// A node-selector term: all requirements hold. An empty term matches nothing, as in Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Term {
    /// On labels.
    pub expressions: Vec<Requirement>,
    /// On fields; Kubernetes knows `metadata.name`.
    pub fields: Vec<Requirement>,
}

/// One requirement of a [`Term`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// Label or field.
    pub key: String,
    /// Operator.
    pub operator: Operator,
    /// Values; one integer for Gt and Lt.
    pub values: Vec<String>,
}

/// Operators of Kubernetes node-selector requirements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
}

/// A pod's toleration. `None` key with Exists tolerates everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Toleration {
    /// Taint key; `None`: all.
    pub key: Option<String>,
    /// `None`: the operator is Exists, any value; `Some`: Equal.
    pub value: Option<String>,
    /// `None`: all effects.
    pub effect: Option<String>,
}
