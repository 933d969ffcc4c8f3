//! Which engine is asked for, what of the spec it does not read, and what it makes of the rest.

use berth_core::placement::resources::is_mig;
use berth_crds::conditions::Reason;
use berth_crds::premlabs::aideployment::AIDeploymentSpec;
use berth_crds::premlabs::keys;

use super::{Surroundings, gpu, resources};
use crate::cluster::ObjectKey;
use crate::kinds::aideployment::build::engines::{Asked, ENGINES, ModelField, Serving, template_containers};
use crate::kinds::aideployment::models;
use crate::kinds::status::problems::Findings;

/// What the engine makes of the spec; nothing without an engine, and where it found a problem.
pub fn read(
    own: &ObjectKey,
    spec: &AIDeploymentSpec,
    around: Surroundings<'_>,
    findings: &mut Findings,
) -> Option<Serving> {
    let served = || ENGINES.iter().map(|e| e.name).collect::<Vec<_>>().join(", ");
    let name = spec.engine.as_ref().map_or("", |e| e.name.as_str());
    let Some(engine) = ENGINES.iter().find(|e| e.name == name) else {
        let wrong = match name {
            "" => "is empty".to_owned(),
            _ => format!("{name:?} is no engine"),
        };
        findings.problems.push(
            Reason::UnsupportedEngine,
            "spec.engine.name",
            wrong,
            format_args!("this version serves {}", served()),
        );
        return None;
    };
    let options = spec.engine.iter().flat_map(|e| e.options.keys());
    for key in options.filter(|k| !engine.options.contains(&k.as_str())) {
        findings.ignored(
            format_args!("spec.engine.options.{key}"),
            format_args!("the engine {name} does not read it"),
        );
    }
    let reads_models = engine.model_fields.contains(&ModelField::Uri);
    for (i, model) in spec.models.iter().enumerate().filter(|_| reads_models) {
        let is_set = |v: &Option<String>| v.as_deref().is_some_and(|v| !v.is_empty());
        let fields = [
            (ModelField::Quantization, "quantization", is_set(&model.quantization)),
            (ModelField::DataType, "dataType", is_set(&model.data_type)),
            (
                ModelField::EngineConfigFile,
                "engineConfigFile",
                is_set(&model.engine_config_file),
            ),
        ];
        for (field, text, set) in fields {
            if set && !engine.model_fields.contains(&field) {
                findings.ignored(
                    format_args!("spec.models[{i}].{text}"),
                    format_args!("the engine {name} does not read it"),
                );
            }
        }
        if !model.options.is_empty() {
            findings.ignored(format_args!("spec.models[{i}].options"), "no engine reads them");
        }
    }
    let models = match reads_models {
        true => models::resolve(own, spec, engine, around.maps, findings),
        false => Vec::new(),
    };
    let asked = Asked {
        name: &own.1,
        spec,
        models: &models,
        gpus: whole_gpus(spec),
        defaults: around.defaults,
    };
    (engine.read)(&asked, findings)
}

/// Whole GPUs of a pod of an engine that takes the template's container `serving`. What is wrong with them is told later.
fn whole_gpus(spec: &AIDeploymentSpec) -> u32 {
    let Some(options) = &spec.deployment else { return 0 };
    if options.accelerator.as_ref().is_some_and(|a| a.mig_profile.is_some()) {
        return 0;
    }
    let mut containers = template_containers(spec).iter();
    let own = containers.find(|c| c.name == keys::SERVING_CONTAINER);
    let told_later = &mut Findings::default();
    let resources = own.and_then(|c| c.resources.clone());
    let merged = resources::merged(resources, options.resources.as_ref(), told_later);
    let counted = gpu::count(options, &merged, told_later);
    let whole = counted.iter().filter(|(name, _)| !is_mig(name));
    whole.map(|(_, count)| *count).sum()
}
