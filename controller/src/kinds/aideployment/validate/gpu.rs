//! How many GPUs a pod gets, and who picks its node by what.

use std::collections::BTreeMap;

use berth_core::placement::resources::{is_gpu, is_mig, mig_memory, mig_resource};
use berth_crds::names;
use berth_crds::premlabs::aideployment::{Accelerator, DeploymentOptions, OnNoFit, PlacementPolicy};
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::kinds::status::problems::Findings;
use crate::kinds::workload::gpus::{Gpus, amount, is_class};

/// Most GPUs that one pod can ask for: far above any machine, far below overflow.
const MOST: f64 = 1024.0;
/// Where the accelerator stands.
const ACCELERATOR: &str = "spec.deployment.accelerator";
/// Domain of NVIDIA's resources.
const NVIDIA: &str = "nvidia.com/";

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

/// Who places, and what is preferred whoever does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Who.
    pub by: Placing,
    /// Compute capability from which on a node is rather taken.
    pub rather: Option<(i32, i32)>,
}

/// What the accelerator's interface stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interface {
    Cuda,
    Rocm,
}

impl Interface {
    fn resource(self) -> &'static str {
        match self {
            Self::Cuda => names::NVIDIA_GPU,
            Self::Rocm => names::AMD_GPU,
        }
    }

    fn vendor(self) -> &'static str {
        match self {
            Self::Cuda => NVIDIA,
            Self::Rocm => "amd.com/",
        }
    }
}

/// Whether the pod needs NVIDIA's container runtime.
pub fn needs_nvidia_runtime(gpus: &Gpus) -> bool {
    gpus.keys().any(|name| name.starts_with(NVIDIA))
}

/// GPUs of one pod. The resources' request says, else their limit, else `accelerator.count`, else it is one. Resources of GPUs or of MIG
/// slices say that GPUs are used also where no accelerator is given, except for one case that is an error in the original.
pub fn count(options: &DeploymentOptions, merged: &ResourceRequirements, findings: &mut Findings) -> Gpus {
    let accelerator = options.accelerator.as_ref();
    let interface = accelerator.map(|a| interface(a, findings));
    if let Some(n) = accelerator
        .and_then(|a| a.count)
        .filter(|n| *n < 1 || f64::from(*n) > MOST)
    {
        findings.invalid(
            format!("{ACCELERATOR}.count"),
            format_args!("{n} is no number of GPUs"),
            "give 1 or more, or leave the accelerator out",
        );
    }
    let asks = |name| options.resources.as_ref()?.requests.as_ref()?.get(name);
    if accelerator.is_none() && asks(names::NVIDIA_GPU).is_some() {
        findings.invalid(
            format!("spec.deployment.resources.requests[{}]", names::NVIDIA_GPU),
            "asks for GPUs, and no accelerator is given",
            "add spec.deployment.accelerator: {interface: CUDA}",
        );
        return Gpus::new();
    }
    let mut asked = asked(merged, findings);
    if let (Some(a), Some(interface)) = (accelerator, interface.flatten()) {
        let wanted = wanted_resource(a, interface, &asked, findings);
        let count = a.count.unwrap_or(1);
        match (wanted, u32::try_from(count)) {
            (Some(name), Ok(count)) if !asked.contains_key(&name) => drop(asked.insert(name, count)),
            _ => {}
        }
    }
    asked.retain(|_, count| *count > 0);
    asked
}

fn interface(accelerator: &Accelerator, findings: &mut Findings) -> Option<Interface> {
    let (found, fix) = match accelerator.interface.as_str() {
        "CUDA" => (Some(Interface::Cuda), ""),
        "ROCm" => (Some(Interface::Rocm), ""),
        "OpenCL" => (None, "no device plugin offers GPUs as such: use CUDA or ROCm"),
        _ => (None, "use CUDA or ROCm"),
    };
    if found.is_none() {
        let wrong = format!("{:?} is not supported", accelerator.interface);
        findings.invalid(format!("{ACCELERATOR}.interface"), wrong, fix);
    }
    found
}

/// The resource that the accelerator asks for, unless others of its vendor are asked already.
fn wanted_resource(
    accelerator: &Accelerator,
    interface: Interface,
    asked: &Gpus,
    findings: &mut Findings,
) -> Option<String> {
    let path = format!("{ACCELERATOR}.migProfile");
    let Some(profile) = &accelerator.mig_profile else {
        let others = asked
            .iter()
            .any(|(name, n)| *n > 0 && name != interface.resource() && name.starts_with(interface.vendor()));
        return (!others).then(|| interface.resource().to_owned());
    };
    if interface != Interface::Cuda {
        findings.invalid(
            path,
            "is given, and only CUDA devices have MIG",
            "use interface CUDA, or remove it",
        );
        return None;
    }
    let Some(resource) = mig_resource(profile) else {
        findings.invalid(
            path,
            format_args!("{profile:?} is no MIG profile"),
            "write it as nvidia-smi does, e.g. 1g.10gb or 1g.10gb+me",
        );
        return None;
    };
    for name in asked.iter().filter(|(_, n)| **n > 0).map(|(name, _)| name) {
        if *name != resource {
            findings.invalid(
                path.clone(),
                format_args!("{profile} contradicts the resource {name}"),
                format_args!("remove one of the two; the profile asks for {resource}"),
            );
        }
    }
    Some(resource)
}

/// GPU resources of the container: the request counts before the limit.
fn asked(merged: &ResourceRequirements, findings: &mut Findings) -> Gpus {
    let mut asked = Gpus::new();
    for (name, quantity) in [&merged.requests, &merged.limits].into_iter().flatten().flatten() {
        if !is_gpu(name) || asked.contains_key(name) {
            continue;
        }
        match amount(quantity) {
            Some(n) if n.fract() == 0.0 && (0.0..=MOST).contains(&n) => {
                // In range and whole, as just checked.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                asked.insert(name.clone(), n as u32);
            }
            // Negative ones and what is no quantity are reported with the other resources, unless they stand in the template.
            _ => findings.invalid(
                format!("spec.deployment.resources[{name}], or that of the template's container"),
                format_args!("{:?} is no whole number of GPUs", quantity.0),
                "give a whole number",
            ),
        }
    }
    asked
}

/// Who places, and by what.
pub fn placing(
    options: &DeploymentOptions,
    gpus: &Gpus,
    default: PlacementPolicy,
    node_selector: &BTreeMap<String, String>,
    findings: &mut Findings,
) -> Placed {
    let placement = options.placement.as_ref();
    let accelerator = options.accelerator.clone().unwrap_or_default();
    let mut wish = wish(&accelerator, findings);
    let policy = placement.and_then(|p| p.policy).unwrap_or(default);
    if gpus.is_empty() {
        if options.accelerator.is_some() && wish.is_any() {
            findings.ignored(ACCELERATOR, "the pods ask for 0 GPUs");
        }
        return Placed {
            by: Placing::Unmanaged,
            rather: None,
        };
    }
    slice_memory(&mut wish, gpus, findings);
    // `minVersion` is documentation in the original. A requirement it is only where `placement` shows that the manifest was written for
    // Berth, a preference where any other field of Berth's shows it: pods of unchanged manifests stay as they are.
    let mut rather = None;
    if placement.is_none()
        && let Some(version) = wish.capability.take()
    {
        let is_ours = !wish.classes.is_empty()
            || wish.memory.is_some()
            || accelerator.count.is_some()
            || accelerator.mig_profile.is_some();
        match is_ours {
            true => rather = Some(version),
            false => findings.ignored(
                format_args!("{ACCELERATOR}.minVersion"),
                "it is a requirement only where spec.deployment.placement is given (placement: {} will do)",
            ),
        }
    }
    Placed {
        by: by(policy, wish, options, node_selector, findings),
        rather,
    }
}

fn by(
    policy: PlacementPolicy,
    wish: Wish,
    options: &DeploymentOptions,
    node_selector: &BTreeMap<String, String>,
    findings: &mut Findings,
) -> Placing {
    let on_no_fit = options.placement.as_ref().and_then(|p| p.on_no_fit);
    match policy {
        PlacementPolicy::Managed => {
            let on_no_fit = on_no_fit.map(|o| match o {
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
                    format_args!("{ACCELERATOR}.memory"),
                    "kube-scheduler does not see free GPU memory; it needs placement.policy Managed",
                );
            }
            if on_no_fit.is_some() {
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

/// A slice has the memory that its profile names, and has it to itself: more cannot be had, and less needs no measuring.
fn slice_memory(wish: &mut Wish, gpus: &Gpus, findings: &mut Findings) {
    let Some(wanted) = wish.memory.as_ref().and_then(|m| amount(&Quantity(m.clone()))) else {
        return;
    };
    if !gpus.keys().all(|name| is_mig(name)) {
        return;
    }
    for name in gpus.keys() {
        // Slices have at most a few hundred GiB: far from where a float loses bytes.
        #[allow(clippy::cast_precision_loss)]
        let has = mig_memory(name).map(|has| has as f64);
        if has.is_some_and(|has| has < wanted) {
            findings.invalid(
                format!("{ACCELERATOR}.memory"),
                format_args!(
                    "{} is more than a slice {name} has",
                    wish.memory.as_deref().unwrap_or_default()
                ),
                "ask for a larger profile, or for less memory",
            );
        }
    }
    wish.memory = None;
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

fn wish(accelerator: &Accelerator, findings: &mut Findings) -> Wish {
    const PATH: &str = ACCELERATOR;
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
    if version.is_some() && accelerator.interface == "ROCm" {
        findings.ignored(format_args!("{PATH}.minVersion"), "it is a CUDA compute capability");
    }
    Wish {
        classes,
        memory,
        capability: version.filter(|_| accelerator.interface != "ROCm"),
    }
}
