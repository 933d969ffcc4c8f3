//! Models with everything that their AIModelMaps add. Pure.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use berth_crds::conditions::Reason;
use berth_crds::names;
use berth_crds::premlabs::AIModelMap;
use berth_crds::premlabs::aideployment::{AIDeploymentSpec, Model, ModelMapRef};
use berth_crds::premlabs::aimodelmap::ModelVariant;
use kube::ResourceExt;

use super::build::engines::{Engine, ModelField};
use crate::cluster::ObjectKey;
use crate::kinds::status::problems::Findings;
use crate::kinds::watch::Guarded;

/// AIModelMaps that the spec names, as far as they exist.
pub type Maps = HashMap<ObjectKey, Arc<Guarded<AIModelMap>>>;

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
    /// The map that it refers to, and which fields are not the map's.
    pub from_map: Option<FromMap>,
}

/// Where a model comes from that is not all inline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromMap {
    /// Namespace and name of the AIModelMap.
    pub map: ObjectKey,
    /// Fields that the AIDeployment itself sets.
    pub overridden: Vec<ModelField>,
}

impl ResolvedModel {
    /// Where it stands in the object.
    pub fn path(&self) -> String {
        format!("spec.models[{}]", self.index)
    }

    /// Where a field's value comes from, for problems: the field in the object, and the map where the value is the map's.
    pub fn field(&self, field: ModelField) -> String {
        let path = format!("{}.{}", self.path(), field.as_str());
        match &self.from_map {
            Some(from) if !from.overridden.contains(&field) => {
                let ((namespace, name), variant) = (&from.map, &self.variant);
                format!("{path} (from AIModelMap {namespace}/{name} variant {variant})")
            }
            _ => path,
        }
    }
}

/// The maps that a spec in this namespace names.
pub fn referred(namespace: &str, spec: &AIDeploymentSpec) -> BTreeSet<ObjectKey> {
    let references = spec.models.iter().filter_map(|m| m.model_map_ref.as_ref());
    references.map(|r| map_key(namespace, r)).collect()
}

fn map_key(namespace: &str, reference: &ModelMapRef) -> ObjectKey {
    let given = reference.namespace.as_deref().filter(|n| !n.is_empty());
    (given.unwrap_or(namespace).to_owned(), reference.name.clone())
}

/// The spec's models in their order; those that cannot be resolved are missing, and each is a problem.
pub fn resolve(
    own: &ObjectKey,
    spec: &AIDeploymentSpec,
    engine: &Engine,
    maps: &Maps,
    findings: &mut Findings,
) -> Vec<ResolvedModel> {
    let models = spec.models.iter().enumerate();
    let resolved = models.filter_map(|(index, model)| match &model.model_map_ref {
        None => {
            let (name, hostname) = (own.1.clone(), host_name(&format!("{}-model", own.1)));
            let place = (index, name, INLINE.to_owned(), hostname);
            Some(merged(place, model, &ModelVariant::default(), None))
        }
        Some(reference) => {
            let map = map_key(&own.0, reference);
            let path = format!("spec.models[{index}].modelMapRef");
            let variant = look_up(&own.0, reference, &map, engine, maps, &path, findings)?;
            let hostname = host_name(&format!("{}-{}", map.1, variant.variant));
            let place = (index, map.1.clone(), variant.variant.clone(), hostname);
            Some(merged(place, model, variant, Some(map)))
        }
    });
    resolved.collect()
}

/// The variant that a reference names, if it may be used.
fn look_up<'a>(
    own_namespace: &str,
    reference: &ModelMapRef,
    map: &ObjectKey,
    engine: &Engine,
    maps: &'a Maps,
    path: &str,
    findings: &mut Findings,
) -> Option<&'a ModelVariant> {
    for (field, value) in [("name", &reference.name), ("variant", &reference.variant)] {
        if value.is_empty() {
            let fix = format_args!("name an AIModelMap's {field}");
            findings.invalid(format!("{path}.{field}"), "is empty", fix);
        }
    }
    if reference.name.is_empty() || reference.variant.is_empty() {
        return None;
    }
    let (namespace, name) = map;
    let missing = |findings: &mut Findings, field: &str, wrong: fmt::Arguments<'_>, fix: fmt::Arguments<'_>| {
        findings
            .problems
            .push(Reason::ReferenceNotFound, format!("{path}.{field}"), wrong, fix);
    };
    let found = maps.get(map);
    // Whether a map of another namespace may be read comes before anything that is in it, and before whether it exists: the answer is one.
    let is_permitted = found.is_some_and(|found| may_refer(own_namespace, namespace, found.as_ref()));
    if !is_permitted && own_namespace != namespace {
        findings.problems.push(
            Reason::ReferenceNotPermitted,
            format!("{path}.namespace"),
            format_args!(
                "the namespace {namespace:?} has no AIModelMap {name:?} that allows AIDeployments of the namespace {own_namespace}"
            ),
            format_args!(
                "annotate it there with {}={own_namespace} (more namespaces: comma-separated; all: *), or copy it here; where that is \
                 done, check name and namespace",
                names::ALLOW_FROM
            ),
        );
        return None;
    }
    let Some(found) = found else {
        missing(
            findings,
            "name",
            format_args!("there is no AIModelMap {name:?} in the namespace {namespace:?}"),
            format_args!("create it, or name another"),
        );
        return None;
    };
    let found = match &found.0 {
        Ok(found) => found,
        Err(error) => {
            missing(
                findings,
                "name",
                format_args!("the AIModelMap {namespace}/{name} cannot be read: {error}"),
                format_args!("correct it"),
            );
            return None;
        }
    };
    let Some(list) = engine.variants else {
        findings.invalid(
            path,
            format_args!("AIModelMaps have no variants for the engine {}", engine.name),
            "write the model here",
        );
        return None;
    };
    let variants = found.spec.list(list);
    let variant = variants.iter().find(|v| v.variant == reference.variant);
    if variant.is_none() {
        let has: Vec<&str> = variants.iter().map(|v| v.variant.as_str()).collect();
        let has = match has.is_empty() {
            true => format!("spec.{} is empty there", list.field()),
            false => format!("spec.{} has {}", list.field(), has.join(", ")),
        };
        missing(
            findings,
            "variant",
            format_args!(
                "the AIModelMap {namespace}/{name} has no variant {:?} for the engine {}: {has}",
                reference.variant, engine.name
            ),
            format_args!("name one of those, or add it there"),
        );
    }
    variant
}

/// Whether AIDeployments of `from` may use this map of the namespace `of`.
fn may_refer(from: &str, of: &str, map: &Guarded<AIModelMap>) -> bool {
    let grants = map.annotations().get(names::ALLOW_FROM).map_or("", String::as_str);
    from == of || grants.split(',').map(str::trim).any(|n| n == "*" || n == from)
}

/// What the AIDeployment sets wins, field by field.
fn merged(
    (index, name, variant, hostname): (usize, String, String, String),
    model: &Model,
    of_map: &ModelVariant,
    map: Option<ObjectKey>,
) -> ResolvedModel {
    use ModelField as F;
    let mut overridden = Vec::new();
    let mut value = |field, own: &Option<String>, of_map: &Option<String>| {
        let given = |text: &Option<String>| {
            let text = text.as_deref().filter(|t| !t.trim().is_empty())?;
            // A file is taken as it is, white space and all.
            Some(
                if field == F::EngineConfigFile {
                    text
                } else {
                    text.trim()
                }
                .to_owned(),
            )
        };
        let own = given(own);
        if own.is_some() {
            overridden.push(field);
        }
        own.or_else(|| given(of_map))
    };
    let uri = value(F::Uri, &model.uri, &of_map.uri);
    let quantization = value(F::Quantization, &model.quantization, &of_map.quantization);
    let data_type = value(F::DataType, &model.data_type, &of_map.data_type);
    let engine_config_file = value(
        F::EngineConfigFile,
        &model.engine_config_file,
        &of_map.engine_config_file,
    );
    ResolvedModel {
        index,
        name,
        variant,
        hostname,
        uri,
        quantization,
        data_type,
        engine_config_file,
        from_map: map.map(|map| FromMap { map, overridden }),
    }
}

/// As the original makes file names.
fn host_name(text: &str) -> String {
    text.replace(['_', '.'], "-").to_lowercase()
}

#[cfg(test)]
mod tests;
