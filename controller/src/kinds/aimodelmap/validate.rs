//! Spec → one model in which nothing is left to check.

use std::collections::{BTreeMap, HashMap};

use berth_crds::premlabs::AIModelMap;
use berth_crds::premlabs::aimodelmap::{ModelVariant, VariantList};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;

use crate::kinds::config_map;
use crate::kinds::status::problems::{Findings, Problems};

/// Longest value of a label, in characters.
const LABEL: usize = 63;

/// An AIModelMap that can be carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Validated {
    /// Name, and so that of the ConfigMap.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// The object as its ConfigMap's controller.
    pub owner: OwnerReference,
    /// Configuration files by their key in the ConfigMap.
    pub files: BTreeMap<String, String>,
    /// What is accepted and has no effect.
    pub ignored: Vec<String>,
}

/// Reads an AIModelMap.
pub fn validate(object: &AIModelMap) -> Result<Validated, Problems> {
    let mut findings = Findings::default();
    let mut files = BTreeMap::new();
    let mut bytes = 0;
    for list in VariantList::ALL {
        let mut first_of: HashMap<&str, usize> = HashMap::new();
        for (i, variant) in object.spec.list(*list).iter().enumerate() {
            let path = format!("spec.{}[{i}]", list.field());
            let first = *first_of.entry(&variant.variant).or_insert(i);
            if first != i {
                findings.invalid(
                    format!("{path}.variant"),
                    format_args!(
                        "{:?} is the name of spec.{}[{first}] too, and AIDeployments get that one",
                        variant.variant,
                        list.field()
                    ),
                    "give each variant of a list a name of its own",
                );
            }
            ignored(*list, variant, &path, &mut findings);
            let text = variant.engine_config_file.as_deref().filter(|t| !t.trim().is_empty());
            let Some(text) = text.filter(|_| first == i) else {
                continue;
            };
            let key = list.config_key(&variant.variant);
            if !config_map::is_key(&key) {
                findings.invalid(
                    format!("{path}.variant"),
                    format_args!(
                        "{key:?} cannot be a key of a ConfigMap, as the variant's configuration file is kept under it"
                    ),
                    "use a shorter name of a-z, 0-9 and '-'",
                );
            }
            let fitted = bytes <= config_map::MAX_BYTES;
            bytes += text.len();
            if fitted && bytes > config_map::MAX_BYTES {
                findings.invalid(
                    format!("{path}.engineConfigFile"),
                    format_args!(
                        "with this one the configuration files have {bytes} bytes, and a ConfigMap holds {}",
                        config_map::MAX_BYTES
                    ),
                    "shorten them, or move variants to another AIModelMap",
                );
            }
            files.insert(key, text.to_owned());
        }
    }
    let name = object.metadata.name.clone().unwrap_or_default();
    if !files.is_empty() && name.len() > LABEL {
        findings.invalid(
            "metadata.name",
            format_args!("{name:?} is longer than {LABEL} characters, and the ConfigMap carries it as a label"),
            "create the AIModelMap under a shorter name",
        );
    }
    let Findings { problems, ignored } = findings;
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Validated {
        name,
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        owner: OwnerReference {
            block_owner_deletion: Some(true),
            ..object.controller_owner_ref(&()).unwrap_or_default()
        },
        files,
        ignored,
    })
}

/// What the list's engine does not read. Configuration files are published for every engine.
fn ignored(list: VariantList, variant: &ModelVariant, path: &str, findings: &mut Findings) {
    let fields = [
        ("quantization", &variant.quantization),
        ("dataType", &variant.data_type),
    ];
    for (field, value) in fields {
        let is_set = value.as_deref().is_some_and(|v| !v.trim().is_empty());
        if is_set && list != VariantList::Vllm {
            let why = format_args!("the engine {} does not read it", list.engine());
            findings.ignored(format_args!("{path}.{field}"), why);
        }
    }
}
