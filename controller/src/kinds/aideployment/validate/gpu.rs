//! How many GPUs a pod gets, and who picks its node by what.

use std::collections::BTreeMap;

use berth_crds::names;
use berth_crds::premlabs::aideployment::{Accelerator, DeploymentOptions, OnNoFit, PlacementPolicy};
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::resources::amount;
use crate::kinds::problems::Findings;

/// Most GPUs that one pod can ask for: far above any machine, far below overflow.
const MOST: f64 = 1024.0;

/// Who picks the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placing {
    /// Nobody but kube-scheduler, by what the pod says: no GPU, or nothing of ours is asked.
    Unmanaged,
    /// Berth, by these pod annotations (empty: any GPU node will do).
    Managed(BTreeMap<String, String>),
    /// kube-scheduler, by the node labels that Berth writes.
    Scheduler {
        /// GPU classes in order of preference.
        classes: Vec<String>,
        /// Least compute capability.
        capability: Option<(i32, i32)>,
    },
}

/// GPUs of one pod; `None`: it needs none. The resources' request says, else their limit, else `accelerator.count`, else it is one.
pub fn count(options: &DeploymentOptions, merged: &ResourceRequirements, findings: &mut Findings) -> Option<u32> {
    let of = |amounts: &Option<BTreeMap<String, Quantity>>| amounts.as_ref()?.get(names::NVIDIA_GPU).cloned();
    let accelerator = options.accelerator.as_ref();
    if let Some(a) = accelerator {
        if a.interface != "CUDA" {
            findings.invalid(
                "spec.deployment.accelerator.interface",
                format_args!("{:?} is not supported", a.interface),
                "use CUDA",
            );
        }
        if let Some(n) = a.count.filter(|n| *n < 1 || f64::from(*n) > MOST) {
            findings.invalid(
                "spec.deployment.accelerator.count",
                format_args!("{n} is no number of GPUs"),
                "give 1 or more, or leave the accelerator out",
            );
        }
    } else if options.resources.as_ref().is_some_and(|r| of(&r.requests).is_some()) {
        findings.invalid(
            format!("spec.deployment.resources.requests[{}]", names::NVIDIA_GPU),
            "asks for GPUs, and no accelerator is given",
            "add spec.deployment.accelerator: {interface: CUDA}",
        );
        return None;
    }
    let asked = of(&merged.requests).or_else(|| of(&merged.limits));
    let Some(asked) = asked else {
        let count = accelerator?.count.unwrap_or(1);
        return u32::try_from(count).ok().filter(|n| *n > 0);
    };
    match amount(&asked) {
        Some(n) if n.fract() == 0.0 && (0.0..=MOST).contains(&n) => {
            // In range and whole, as just checked.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let n = n as u32;
            (n > 0).then_some(n)
        }
        // Negative ones and what is no quantity are reported with the other resources, unless they stand in the template.
        _ => {
            findings.invalid(
                format!(
                    "spec.deployment.resources[{}], or that of the template's container",
                    names::NVIDIA_GPU
                ),
                format_args!("{:?} is no whole number of GPUs", asked.0),
                "give a whole number",
            );
            None
        }
    }
}

/// Who places, and by what.
pub fn placing(
    options: &DeploymentOptions,
    gpus: Option<u32>,
    default: PlacementPolicy,
    node_selector: &BTreeMap<String, String>,
    findings: &mut Findings,
) -> Placing {
    let placement = options.placement.as_ref();
    let accelerator = options.accelerator.clone().unwrap_or_default();
    let wish = wish(&accelerator, placement.is_some(), findings);
    let policy = placement.and_then(|p| p.policy).unwrap_or(default);
    if gpus.is_none() {
        if options.accelerator.is_some() && wish.is_any() {
            findings.ignored("spec.deployment.accelerator", "the pods ask for 0 GPUs");
        }
        return Placing::Unmanaged;
    }
    match policy {
        PlacementPolicy::Managed => {
            let on_no_fit = placement.and_then(|p| p.on_no_fit).map(|o| match o {
                OnNoFit::Wait => "Wait",
                OnNoFit::Release => "Release",
            });
            let classes = Some(wish.classes.join(",")).filter(|c| !c.is_empty());
            let capability = wish.capability.map(|(major, minor)| format!("{major}.{minor}"));
            let annotations = [
                (names::GPU_CLASS, classes),
                (names::GPU_MEMORY, wish.memory),
                (names::COMPUTE_CAPABILITY, capability),
                (names::ON_NO_FIT, on_no_fit.map(str::to_owned)),
            ];
            Placing::Managed(
                annotations
                    .into_iter()
                    .filter_map(|(key, value)| Some((key.to_owned(), value?)))
                    .collect(),
            )
        }
        PlacementPolicy::Scheduler => {
            if wish.memory.is_some() {
                findings.ignored(
                    "spec.deployment.accelerator.memory",
                    "kube-scheduler does not see free GPU memory; it needs placement.policy Managed",
                );
            }
            if placement.is_some_and(|p| p.on_no_fit.is_some()) {
                findings.ignored("spec.deployment.placement.onNoFit", "it needs placement.policy Managed");
            }
            if let (Some(selected), [class]) = (node_selector.get(names::GPU_CLASS), wish.classes.as_slice())
                && selected != class
            {
                findings.invalid(
                    format!("spec.deployment.nodeSelector[{}]", names::GPU_CLASS),
                    format_args!("{selected:?} contradicts accelerator.class {class:?}"),
                    "remove one of the two",
                );
            }
            if wish.classes.is_empty() && wish.capability.is_none() {
                return Placing::Unmanaged;
            }
            Placing::Scheduler {
                classes: wish.classes,
                capability: wish.capability,
            }
        }
    }
}

/// What is asked of the GPUs themselves.
struct Wish {
    classes: Vec<String>,
    memory: Option<String>,
    capability: Option<(i32, i32)>,
}

impl Wish {
    fn is_any(&self) -> bool {
        !self.classes.is_empty() || self.memory.is_some() || self.capability.is_some()
    }
}

/// `minVersion` is documentation in the original, so it counts only where `placement` shows that the manifest was written for Berth.
fn wish(accelerator: &Accelerator, has_placement: bool, findings: &mut Findings) -> Wish {
    const PATH: &str = "spec.deployment.accelerator";
    if accelerator.class.is_some() && !accelerator.classes.is_empty() {
        findings.invalid(
            format!("{PATH}.classes"),
            "is given together with class",
            "use one of the two; classes is a list in order of preference",
        );
    }
    let mut classes: Vec<String> = Vec::new();
    let one = accelerator.class.iter().map(|c| (format!("{PATH}.class"), c));
    let many = accelerator.classes.iter().enumerate();
    for (path, class) in one.chain(many.map(|(i, c)| (format!("{PATH}.classes[{i}]"), c))) {
        if !is_class(class) {
            let hint = class.to_ascii_lowercase();
            let fix = match is_class(&hint) {
                true => format!("write {hint:?}, as in the node label {}", names::GPU_CLASS),
                false => format!("write it as in the node label {}, e.g. h100", names::GPU_CLASS),
            };
            findings.invalid(path, format_args!("{class:?} is no GPU class"), fix);
        } else if !classes.contains(class) {
            classes.push(class.clone());
        }
    }
    let memory = accelerator.memory.as_ref().map(|m| m.0.trim().to_owned());
    if let Some(text) = &memory
        && amount(&Quantity(text.clone())).is_none_or(|n| n <= 0.0)
    {
        findings.invalid(
            format!("{PATH}.memory"),
            format_args!("{text:?} is no amount of memory"),
            "write it like 24Gi",
        );
    }
    let version = accelerator.min_version.map(|v| (v.major, v.minor.unwrap_or(0)));
    if let Some((major, minor)) = version.filter(|(major, minor)| *major < 0 || *minor < 0) {
        findings.invalid(
            format!("{PATH}.minVersion"),
            format_args!("{major}.{minor} is no compute capability"),
            "write it like {major: 8, minor: 6}",
        );
    }
    Wish {
        classes,
        memory,
        capability: version.filter(|_| has_placement),
    }
}

/// What the label's value can be: the slugs that Berth makes are lower-case label values.
fn is_class(class: &str) -> bool {
    let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    class.len() <= 63
        && class.starts_with(is_end)
        && class.ends_with(is_end)
        && class.chars().all(|c| is_end(c) || matches!(c, '-' | '.' | '_'))
}
