//! Takes over, in place, what an original operator left behind. Shared by all kinds; pure but for the requests in `apply`.
//!
//! ```text
//! child with the owner's UID that Berth never applied ──► plan: managed fields of the original become ours, pod template stays
//!      │ the original writes it again: contests, nobody fights                    │ one JSON patch, then our apply
//!      └─ owner's generation moves, another input changes, or berth.dev/reapply ──► template fields become ours too, then our apply
//! ```
//!
//! What the original set and Berth does not would stay for ever, since nobody applies it: so its fields become ours, and our next apply
//! takes away what it does not hold. The pod template goes to a name under which nothing is ever applied, until it is released.

pub mod contests;
mod fields;
pub mod finalizers;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, ObjectMeta, OwnerReference};
use kube::core::DynamicObject;
use serde_json::{Value, json};

use berth_crds::names::{self, managers};

use self::contests::Contests;
use crate::kinds::children::apply::Intent;
use crate::kinds::children::{Child, Kind};
use crate::placement::patch::escaped;

/// An operator whose objects Berth takes over.
#[derive(Debug, PartialEq, Eq)]
pub struct Original {
    /// As people call it.
    pub name: &'static str,
    /// API group of its kinds.
    group: &'static str,
    /// Its field managers. A Go program that names none is known by the file name of its binary.
    managers: &'static [&'static str],
}

/// All of them.
const ORIGINALS: &[Original] = &[
    Original {
        name: "prem-operator",
        group: "premlabs.io",
        managers: &["manager"],
    },
    Original {
        name: "uplion-aimodel-operator",
        group: "model.youxam.com",
        managers: &["manager"],
    },
    Original {
        name: "demo-mlmodel-operator",
        group: "oda.tmforum.org.oda.tmforum.org",
        managers: &["manager"],
    },
    Original {
        name: "model-operator",
        group: "mlops.sathvik.dev",
        managers: &["manager"],
    },
];

impl Original {
    /// Who made children for this owner before.
    pub fn of(owner: &OwnerReference) -> Option<&'static Self> {
        let group = owner.api_version.split('/').next();
        ORIGINALS.iter().find(|o| Some(o.group) == group)
    }
}

/// What the owner says about its adopted children.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// The owner's generation.
    pub generation: i64,
    /// Whether `berth.dev/reapply` is on it.
    pub reapply: bool,
    /// Hash of what the pod template follows from besides the owner's spec and Berth itself; empty where there is nothing. A new version of
    /// Berth builds other templates, and must not restart what was adopted.
    pub inputs: &'a str,
    /// Whether the owner's spec says how many pods there are. Where it does not, the number at adoption stays.
    pub replicas_given: bool,
    /// Children that the original still writes.
    pub contests: &'a Contests,
    /// Now.
    pub now: Timestamp,
}

impl<'a> Terms<'a> {
    /// As the owner's metadata say; nothing but the spec decides on its children.
    pub fn of(owner: &ObjectMeta, contests: &'a Contests, now: Timestamp) -> Self {
        let annotations = owner.annotations.as_ref();
        Self {
            generation: owner.generation.unwrap_or_default(),
            reapply: annotations.is_some_and(|a| a.contains_key(names::REAPPLY)),
            inputs: "",
            replicas_given: true,
            contests,
            now,
        }
    }

    /// What of an intent is applied to a child as watched.
    pub fn part_of(&self, intent: &Intent, seen: &Child) -> Option<Intent> {
        self.less(
            intent,
            self.holds(seen),
            entry_names(seen).any(|m| m == managers::ADOPTED_REPLICAS),
        )
    }

    /// An intent without what is left as it was; `None`: all of it.
    pub fn less(&self, intent: &Intent, template: bool, replicas: bool) -> Option<Intent> {
        let mut fields = Vec::new();
        fields.extend(template.then_some("template"));
        fields.extend((replicas && !self.replicas_given).then_some("replicas"));
        (!fields.is_empty()).then(|| intent.without(&fields))
    }

    /// Whether a child's pod template is to stay as the original made it.
    pub fn holds(&self, seen: &Child) -> bool {
        seen.annotation(names::ADOPTED)
            .is_some_and(|mark| self.holds_mark(mark))
    }

    /// A mark that cannot be read holds nothing: it is not ours.
    fn holds_mark(&self, mark: &str) -> bool {
        let (generation, inputs) = mark.split_once('/').unwrap_or((mark, ""));
        let same_spec = generation.parse::<i64>().is_ok_and(|g| g >= self.generation);
        same_spec && inputs == self.inputs && !self.reapply
    }

    fn mark(&self) -> String {
        match self.inputs {
            "" => self.generation.to_string(),
            inputs => format!("{}/{inputs}", self.generation),
        }
    }
}

/// The original wrote a child after Berth did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The field manager, where it left a trace.
    pub manager: Option<String>,
    /// When it last changed a field; `None`: it only took some away, which leaves no time.
    pub last: Option<Timestamp>,
    /// Label and annotation of ours are both gone, as after a PUT of a whole object.
    pub marks_gone: bool,
}

/// Evidence in a child as watched, which carries our label.
pub fn evidence(seen: &Child, owner: &OwnerReference) -> Option<Evidence> {
    let entries: Vec<ManagedFieldsEntry> =
        serde_json::from_value(seen.object["metadata"]["managedFields"].clone()).unwrap_or_default();
    let written: Vec<_> = entries.iter().filter(|e| is_original(e, owner)).collect();
    (!written.is_empty()).then(|| evidence_of(&written, false))
}

fn entry_names(seen: &Child) -> impl Iterator<Item = &str> {
    let entries = seen.object["metadata"]["managedFields"].as_array();
    entries.into_iter().flatten().filter_map(|e| e["manager"].as_str())
}

fn evidence_of(written: &[&ManagedFieldsEntry], marks_gone: bool) -> Evidence {
    let newest = written.iter().max_by_key(|e| e.time.as_ref().map(|t| t.0));
    Evidence {
        manager: newest.and_then(|e| e.manager.clone()),
        last: newest.and_then(|e| e.time.as_ref().map(|t| t.0)),
        marks_gone,
    }
}

/// Whether managed fields have to be moved before a child as watched can be applied.
pub fn must_move(seen: &Child, owner: &OwnerReference, terms: &Terms<'_>) -> bool {
    let held_aside = entry_names(seen).any(|m| m == managers::ADOPTED);
    let is_marked = seen.annotation(names::ADOPTED).is_some();
    evidence(seen, owner).is_some() || ((held_aside || is_marked) && !terms.holds(seen))
}

/// Leaves of an object's managed fields what adoption goes by, which is nothing for most: who, and when, but not which fields.
pub fn slim(meta: &mut ObjectMeta) {
    let controller = meta
        .owner_references
        .iter()
        .flatten()
        .find(|o| o.controller == Some(true));
    let controller = controller.cloned();
    let is_told = |entry: &ManagedFieldsEntry| {
        is_update_of(entry, managers::ADOPTED)
            || is_update_of(entry, managers::ADOPTED_REPLICAS)
            || controller.as_ref().is_some_and(|owner| is_original(entry, owner))
    };
    let mut entries = meta.managed_fields.take().unwrap_or_default();
    entries.retain(is_told);
    entries.iter_mut().for_each(|e| e.fields_v1 = None);
    meta.managed_fields = (!entries.is_empty()).then_some(entries);
}

/// What it takes to make a child ours.
#[derive(Debug, PartialEq)]
pub struct Plan {
    /// The original wrote it after Berth did: wait until it is quiet.
    pub evidence: Option<Evidence>,
    /// What of the intent is applied now; `None`: all of it.
    pub part: Option<Intent>,
    /// Operations of the JSON patch that must come before our apply; none: nothing has to move.
    pub patch: Vec<Value>,
}

/// Plans for a child of the owner, given whole.
pub fn plan(found: &DynamicObject, intent: &Intent, ours: &str, owner: &OwnerReference, terms: &Terms<'_>) -> Plan {
    let meta = &found.metadata;
    let annotation = |key: &str| meta.annotations.as_ref().and_then(|a| a.get(key));
    let label = meta.labels.as_ref().and_then(|l| l.get(names::MANAGED_BY));
    let api_version = found.types.as_ref().map(|t| t.api_version.as_str());
    let entries = meta.managed_fields.clone().unwrap_or_default();
    let (moving, staying): (Vec<_>, Vec<_>) = entries.into_iter().partition(|e| {
        // Fields of another version of the API are other fields.
        let same_version = e.api_version.is_none() || api_version.is_none() || e.api_version.as_deref() == api_version;
        same_version
            && (is_apply_of(e, ours)
                || is_original(e, owner)
                || is_update_of(e, managers::ADOPTED)
                || is_update_of(e, managers::ADOPTED_REPLICAS))
    });
    let was_ours = moving.iter().any(|e| is_apply_of(e, ours));
    let written: Vec<_> = moving.iter().filter(|e| is_original(e, owner)).collect();
    let marks_gone = label.is_none() && annotation(names::APPLIED).is_none();
    let is_contested = was_ours && (marks_gone || !written.is_empty());

    let is_new = !was_ours || is_contested;
    let has_pods = intent.kind == Kind::Deployment;

    let mark = match annotation(names::ADOPTED) {
        _ if !has_pods => None,
        Some(mark) => terms.holds_mark(mark).then(|| mark.clone()),
        None if is_new => Some(terms.mark()).filter(|mark| terms.holds_mark(mark)),
        None => None,
    };
    let mut parts = Parts::of(&moving, ours, owner, mark.is_some(), terms.replicas_given);
    if is_new && has_pods && !terms.replicas_given {
        // Whoever scaled it: ours to keep, so that our apply neither sets nor loses it.
        parts.replicas = Some(json!({"f:spec": {"f:replicas": {}}}));
    }
    let part = terms.less(intent, mark.is_some(), parts.replicas.is_some());
    let mut patch = Vec::new();
    if parts.differs_from(&moving, ours) {
        let mut all = staying;
        let time = moving.iter().filter_map(|e| e.time.clone()).max_by_key(|t| t.0);
        all.extend(parts.entries(ours, api_version, time.as_ref()));
        patch.push(json!({"op": "replace", "path": "/metadata/managedFields", "value": all}));
    }
    patch.extend(mark_operation(meta, mark.as_deref()));
    if !patch.is_empty() {
        // Refused with a conflict where the object has changed since.
        patch.push(json!({"op": "replace", "path": "/metadata/resourceVersion", "value": meta.resource_version}));
    }
    Plan {
        evidence: is_contested.then(|| evidence_of(&written, marks_gone)),
        part,
        patch,
    }
}

fn mark_operation(meta: &ObjectMeta, mark: Option<&str>) -> Option<Value> {
    let path = format!("/metadata/annotations/{}", escaped(names::ADOPTED));
    let annotations = meta.annotations.as_ref();
    match (annotations.and_then(|a| a.get(names::ADOPTED)), mark) {
        (Some(before), Some(mark)) if before == mark => None,
        (None, None) => None,
        (Some(_), None) => Some(json!({"op": "remove", "path": path})),
        (_, Some(mark)) if annotations.is_some() => Some(json!({"op": "add", "path": path, "value": mark})),
        (_, Some(mark)) => Some(json!({"op": "add", "path": "/metadata/annotations", "value": {names::ADOPTED: mark}})),
    }
}

/// The fields of the original and ours, by whose they become.
struct Parts {
    ours: Value,
    template: Option<Value>,
    replicas: Option<Value>,
}

impl Parts {
    fn of(
        moving: &[ManagedFieldsEntry],
        ours: &str,
        owner: &OwnerReference,
        holds: bool,
        replicas_given: bool,
    ) -> Self {
        let sum = |wanted: &dyn Fn(&ManagedFieldsEntry) -> bool| {
            let sets = moving.iter().filter(|e| wanted(e)).filter_map(|e| e.fields_v1.as_ref());
            sets.fold(json!({}), |all, set| fields::union(&all, &set.0))
        };
        let mut of_original = sum(&|e| is_original(e, owner) || is_update_of(e, managers::ADOPTED_REPLICAS));
        // Our own apply holding them before means that the spec did: then they go as any field that is no longer wanted.
        let replicas = fields::take(&mut of_original, &["f:spec", "f:replicas"]);
        if let Some(replicas) = replicas.as_ref().filter(|_| replicas_given) {
            of_original = fields::union(&of_original, replicas);
        }
        let replicas = replicas.filter(|_| !replicas_given);
        let before = sum(&|e| is_apply_of(e, ours) || is_update_of(e, managers::ADOPTED));
        let mut all = fields::union(&before, &of_original);
        let template = if holds {
            fields::take(&mut all, &["f:spec", "f:template"])
        } else {
            None
        };
        Self {
            ours: all,
            template,
            replicas,
        }
    }

    fn differs_from(&self, moving: &[ManagedFieldsEntry], ours: &str) -> bool {
        let now = |is: &dyn Fn(&ManagedFieldsEntry) -> bool| {
            let entry = moving.iter().find(|e| is(e));
            entry.and_then(|e| e.fields_v1.as_ref()).map(|f| f.0.clone())
        };
        let known = |e: &ManagedFieldsEntry| {
            is_apply_of(e, ours) || is_update_of(e, managers::ADOPTED) || is_update_of(e, managers::ADOPTED_REPLICAS)
        };
        !moving.iter().all(known)
            || now(&|e| is_apply_of(e, ours)).unwrap_or(json!({})) != self.ours
            || now(&|e| is_update_of(e, managers::ADOPTED)) != self.template
            || now(&|e| is_update_of(e, managers::ADOPTED_REPLICAS)) != self.replicas
    }

    fn entries(
        self,
        ours: &str,
        api_version: Option<&str>,
        time: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
    ) -> Vec<ManagedFieldsEntry> {
        let entry = |manager: &str, operation: &str, set: Value| ManagedFieldsEntry {
            manager: Some(manager.into()),
            operation: Some(operation.into()),
            api_version: api_version.map(str::to_owned),
            fields_type: Some("FieldsV1".into()),
            fields_v1: Some(FieldsV1(set)),
            time: time.cloned(),
            subresource: None,
        };
        let ours = (!fields::is_empty(&self.ours)).then(|| entry(ours, APPLY, self.ours));
        let template = self.template.map(|set| entry(managers::ADOPTED, UPDATE, set));
        let replicas = self.replicas.map(|set| entry(managers::ADOPTED_REPLICAS, UPDATE, set));
        [ours, template, replicas].into_iter().flatten().collect()
    }
}

const APPLY: &str = "Apply";
const UPDATE: &str = "Update";

/// Writes to a subresource (`status`, `scale`) are another matter.
fn is_whole_object(entry: &ManagedFieldsEntry) -> bool {
    entry.subresource.as_deref().is_none_or(str::is_empty)
}

fn is_apply_of(entry: &ManagedFieldsEntry, manager: &str) -> bool {
    is_whole_object(entry) && entry.operation.as_deref() == Some(APPLY) && entry.manager.as_deref() == Some(manager)
}

fn is_update_of(entry: &ManagedFieldsEntry, manager: &str) -> bool {
    is_whole_object(entry) && entry.operation.as_deref() == Some(UPDATE) && entry.manager.as_deref() == Some(manager)
}

/// Many programs go by the name that a framework gives to those that choose none. One that only annotates and labels is not the original,
/// which writes whole objects. Where the fields are not told, they were looked at before.
fn is_original(entry: &ManagedFieldsEntry, owner: &OwnerReference) -> bool {
    let managers = Original::of(owner).map_or(&[][..], |o| o.managers);
    managers.iter().any(|m| is_update_of(entry, m))
        && entry.fields_v1.as_ref().is_none_or(|set| !fields::are_notes(&set.0))
}

#[cfg(test)]
mod tests;
