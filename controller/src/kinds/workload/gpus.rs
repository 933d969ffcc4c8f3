//! What it takes for pods to get GPUs, and how an object asks for them by annotations where its kind has no fields for it.

use std::collections::BTreeMap;

use berth_crds::names;
use k8s_openapi::api::core::v1::{PodSchedulingGate, PodSpec, PodTemplateSpec, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube_quantity::ParsedQuantity;

use crate::cluster::{class_list, compute_capability};
use crate::kinds::status::problems::Findings;

/// Most GPUs that one pod can ask for: far above any machine.
const MOST: u32 = 1024;

/// GPUs of one pod by resource name; none: it needs none.
pub type Gpus = BTreeMap<String, u32>;

/// GPUs that an object asks for by annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// GPUs of each pod.
    pub count: u32,
    /// What is asked of them, as the pods' annotations.
    pub asked: BTreeMap<String, String>,
}

/// Reads the annotations of an object. `None`: it asks for no GPU.
pub fn wish(annotations: &BTreeMap<String, String>, findings: &mut Findings) -> Option<Wish> {
    let mut asked = BTreeMap::new();
    for (key, value) in annotations {
        let value = value.trim();
        let fix = match key.as_str() {
            names::GPU_CLASS => not_classes(value),
            names::GPU_MEMORY => amount(&Quantity(value.to_owned()))
                .is_none_or(|n| n <= 0.0)
                .then(|| "write an amount of memory like 24Gi".to_owned()),
            names::COMPUTE_CAPABILITY => compute_capability(value)
                .is_none()
                .then(|| "write a CUDA compute capability like 8 or 8.6".to_owned()),
            names::ON_NO_FIT => (!["Wait", "Release"].contains(&value)).then(|| "write Wait or Release".to_owned()),
            _ => continue,
        };
        match fix {
            Some(fix) => findings.invalid(path(key), format_args!("{value:?} cannot be read"), fix),
            None => {
                asked.insert(key.clone(), value.to_owned());
            }
        }
    }
    let count = match annotations.get(names::GPU_COUNT).map(|text| text.trim().parse::<u32>()) {
        Some(Ok(count)) if count <= MOST => Some(count),
        Some(_) => {
            let text = &annotations[names::GPU_COUNT];
            findings.invalid(
                path(names::GPU_COUNT),
                format_args!("{text:?} is no number of GPUs"),
                format_args!("give 1 to {MOST}, or remove the annotation"),
            );
            None
        }
        None => asked.keys().any(|key| key != names::ON_NO_FIT).then_some(1),
    };
    let count = count.unwrap_or(0);
    if count > 0 {
        return Some(Wish { count, asked });
    }
    for key in asked.keys() {
        findings.ignored(path(key), "no GPU is asked for");
    }
    None
}

fn path(annotation: &str) -> String {
    format!("metadata.annotations[{annotation}]")
}

/// What to write instead, where a list of classes cannot be one.
fn not_classes(value: &str) -> Option<String> {
    let classes = class_list(value);
    if classes.is_empty() {
        return Some("name one or more GPU classes, e.g. h100, or remove the annotation".into());
    }
    let wrong = classes.iter().find(|class| !is_class(class))?;
    let lower = wrong.to_ascii_lowercase();
    Some(match is_class(&lower) {
        true => format!("write {lower:?}, as in the node label {}", names::GPU_CLASS),
        false => format!("write {wrong:?} as in the node label {}, e.g. h100", names::GPU_CLASS),
    })
}

impl Wish {
    /// Gives the GPUs to a container of the template, whose pods then wait for Berth to pick their node.
    pub fn put_on(&self, template: &mut PodTemplateSpec, container: &str, tolerations: &[Toleration]) {
        if !self.asked.is_empty() {
            let annotations = template
                .metadata
                .get_or_insert_default()
                .annotations
                .get_or_insert_default();
            annotations.extend(self.asked.clone());
        }
        let spec = template.spec.get_or_insert_default();
        if let Some(container) = spec.containers.iter_mut().find(|c| c.name == container) {
            let gpus = Gpus::from([(names::NVIDIA_GPU.to_owned(), self.count)]);
            set_gpus(container.resources.get_or_insert_default(), &gpus);
        }
        spec.runtime_class_name
            .get_or_insert_with(|| names::NVIDIA_RUNTIME_CLASS.into());
        tolerate(spec, tolerations);
        gate(spec);
    }
}

/// Lets the pods wait for Berth.
pub fn gate(spec: &mut PodSpec) {
    let gates = spec.scheduling_gates.get_or_insert_default();
    if !gates.iter().any(|g| g.name == names::GATE) {
        gates.push(PodSchedulingGate {
            name: names::GATE.into(),
        });
    }
}

/// The installation's tolerations, where the template does not have them already.
pub fn tolerate(spec: &mut PodSpec, tolerations: &[Toleration]) {
    for toleration in tolerations {
        let own = spec.tolerations.get_or_insert_default();
        if !own.contains(toleration) {
            own.push(toleration.clone());
        }
    }
}

/// Requests and limits of GPUs are one number in Kubernetes.
pub fn set_gpus(resources: &mut ResourceRequirements, gpus: &Gpus) {
    for amounts in [&mut resources.requests, &mut resources.limits] {
        for (name, count) in gpus {
            amounts
                .get_or_insert_default()
                .insert(name.clone(), Quantity(count.to_string()));
        }
    }
}

/// A quantity in its unit; `None`: it is none.
pub fn amount(quantity: &Quantity) -> Option<f64> {
    // Longer ones are no honest quantity.
    let text = quantity.0.trim();
    if text.is_empty() || text.len() > 64 || !is_quantity(text) {
        return None;
    }
    let value = ParsedQuantity::try_from(text).ok()?.to_bytes_f64()?;
    value.is_finite().then_some(value)
}

/// Whether a text is a quantity to the API server: a decimal number, then one of its suffixes or a decimal exponent.
/// Spaces around it do not count.
pub fn is_quantity(text: &str) -> bool {
    let text = text.trim();
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let is_number = number.contains(|c: char| c.is_ascii_digit()) && number.matches('.').count() <= 1;
    let is_suffix = match suffix {
        "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" | "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei" => true,
        other => other
            .strip_prefix(['e', 'E'])
            .is_some_and(|exponent| exponent.parse::<i32>().is_ok()),
    };
    is_number && is_suffix
}

/// What the label's value can be: the slugs that Berth makes are lower-case label values.
pub fn is_class(class: &str) -> bool {
    let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    class.len() <= 63
        && class.starts_with(is_end)
        && class.ends_with(is_end)
        && class.chars().all(|c| is_end(c) || matches!(c, '-' | '.' | '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(annotations: &[(&str, &str)]) -> (Option<Wish>, Findings) {
        let annotations = annotations
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let mut findings = Findings::default();
        (wish(&annotations, &mut findings), findings)
    }

    #[test]
    fn any_of_the_annotations_asks_for_a_gpu() {
        for (annotations, want) in [
            (&[][..], None),
            (&[("team", "a")], None),
            (&[(names::GPU_COUNT, "0")], None),
            (&[(names::GPU_COUNT, "2")], Some(2)),
            (&[(names::GPU_CLASS, "h100, a100")], Some(1)),
            (&[(names::GPU_MEMORY, "24Gi")], Some(1)),
            (&[(names::COMPUTE_CAPABILITY, "8.6")], Some(1)),
        ] {
            let (wish, findings) = read(annotations);
            assert_eq!(wish.map(|w| w.count), want, "{annotations:?}");
            assert_eq!(findings, Findings::default(), "{annotations:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_said_with_what_to_write() {
        for (key, value, words) in [
            (names::GPU_COUNT, "many", "no number of GPUs"),
            (names::GPU_COUNT, "-1", "no number of GPUs"),
            (names::GPU_COUNT, "4096", "1 to 1024"),
            (names::GPU_CLASS, "H100", "write \"h100\""),
            (names::GPU_CLASS, "h 100", "e.g. h100"),
            (names::GPU_CLASS, ",", "name one"),
            (names::GPU_MEMORY, "24GB", "24Gi"),
            (names::COMPUTE_CAPABILITY, "sm_86", "8.6"),
            (names::ON_NO_FIT, "wait", "Wait or Release"),
        ] {
            let (_, findings) = read(&[(key, value)]);
            let told = findings.problems.to_string();
            assert!(told.starts_with(&format!("metadata.annotations[{key}]: ")), "{told}");
            assert!(told.contains(words), "{told}");
        }
    }

    #[test]
    fn what_asks_nothing_of_a_gpu_is_told_to_be_without_effect() {
        for annotations in [
            &[(names::ON_NO_FIT, "Release")][..],
            &[(names::GPU_COUNT, "0"), (names::GPU_CLASS, "h100")],
        ] {
            let (wish, findings) = read(annotations);
            assert_eq!((wish, findings.ignored.len()), (None, 1), "{annotations:?}");
        }
    }
}
