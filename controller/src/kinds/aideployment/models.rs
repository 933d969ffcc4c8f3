//! Models with everything that their AIModelMaps add. Pure.

use std::collections::HashMap;

use berth_crds::conditions::Reason;
use berth_crds::premlabs::AIModelMap;
use berth_crds::premlabs::aideployment::AIDeploymentSpec;

use crate::cluster::ObjectKey;
use crate::kinds::problems::Findings;

/// AIModelMaps that the spec names, as far as they exist.
pub type Maps = HashMap<ObjectKey, AIModelMap>;

/// Variant of a model that is written in the AIDeployment itself.
pub const INLINE: &str = "inline";

/// One of the spec's models. What is empty in the manifests is absent here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedModel {
    /// Place in `spec.models`.
    pub index: usize,
    /// The map's name; the AIDeployment's where the model is inline.
    pub name: String,
    /// The map's variant; `inline` where the model is.
    pub variant: String,
    /// Name of its configuration file, without ending.
    pub hostname: String,
    /// Where the engine finds the model.
    pub uri: Option<String>,
    /// Quantisation.
    pub quantization: Option<String>,
    /// Data type.
    pub data_type: Option<String>,
    /// Engine configuration file.
    pub engine_config_file: Option<String>,
}

impl ResolvedModel {
    /// Where it stands in the object.
    pub fn path(&self) -> String {
        format!("spec.models[{}]", self.index)
    }
}

/// The spec's models in their order; those that cannot be resolved are missing, and each is a problem.
pub fn resolve(own: &ObjectKey, spec: &AIDeploymentSpec, _maps: &Maps, findings: &mut Findings) -> Vec<ResolvedModel> {
    let mut resolved = Vec::new();
    for (index, model) in spec.models.iter().enumerate() {
        if let Some(reference) = &model.model_map_ref {
            findings.problems.push(
                Reason::ReferenceNotFound,
                format!("spec.models[{index}].modelMapRef"),
                format_args!(
                    "names AIModelMap {:?}, and this version of Berth does not serve AIModelMaps",
                    reference.name
                ),
                "write the model's uri here",
            );
            continue;
        }
        let given = |field: &Option<String>| {
            field
                .as_deref()
                .map(str::trim)
                .filter(|v| !v.is_empty())
                .map(str::to_owned)
        };
        resolved.push(ResolvedModel {
            index,
            name: own.1.clone(),
            variant: INLINE.into(),
            hostname: host_name(&format!("{}-model", own.1)),
            uri: given(&model.uri),
            quantization: given(&model.quantization),
            data_type: given(&model.data_type),
            // A file is taken as it is, white space and all.
            engine_config_file: model.engine_config_file.clone().filter(|text| !text.trim().is_empty()),
        });
    }
    resolved
}

/// As the original makes file names.
fn host_name(text: &str) -> String {
    text.replace(['_', '.'], "-").to_lowercase()
}
