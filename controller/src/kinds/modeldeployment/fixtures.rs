//! ModelDeployments for tests, and children as the API server would show them.

use std::time::Duration;

use berth_crds::sathvik::ModelDeployment;
use serde_json::{Value, json};

use super::build::{Children, build};
use super::fetch::Observed;
use super::stage::Stage;
use super::validate::{Defaults, Validated, validate};
use crate::kinds::children::Child;
use crate::kinds::children::subset::pruned;
use crate::kinds::children::wanted::Wanted;
use crate::kinds::status::problems::Problems;

/// The first of the original's samples.
pub const SAMPLE: &str = "
    modelURI: https://dummy.com/dummy_model.pt
    runtime: fastapi-pytorch
    runtimeImage: localhost/fastapi-pytorch:dev
    resources: {limits: {cpu: 500m, memory: 512Mi}, requests: {cpu: 250m, memory: 256Mi}}
    validateScript: validate.py
    autoscale: false
    version: v1
";

/// A ModelDeployment `net` in namespace `shop` with this spec in YAML.
pub fn modeldeployment(spec: &str) -> ModelDeployment {
    let spec: Value = serde_saphyr::from_str(spec).unwrap();
    serde_json::from_value(json!({
        "apiVersion": "mlops.sathvik.dev/v1", "kind": "ModelDeployment",
        "metadata": {"name": "net", "namespace": "shop", "uid": "uid-of-it", "generation": 3},
        "spec": spec,
    }))
    .unwrap()
}

/// The sample with these fields of its spec changed; null takes one away.
pub fn sample(changes: Value) -> ModelDeployment {
    let mut spec: Value = serde_saphyr::from_str(SAMPLE).unwrap();
    for (field, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => spec.as_object_mut().unwrap().remove(field),
            _ => spec.as_object_mut().unwrap().insert(field.clone(), value.clone()),
        };
    }
    modeldeployment(&spec.to_string())
}

/// The same with annotations.
pub fn annotated(mut object: ModelDeployment, annotations: &[(&str, &str)]) -> ModelDeployment {
    let pairs = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    object.metadata.annotations = Some(pairs.collect());
    object
}

/// What an installation sets that sets nothing.
pub fn defaults() -> Defaults {
    Defaults {
        validator_image: "validator:dev".into(),
        images: [].into(),
        max_replicas: 5,
        place_timeout: Duration::from_secs(600),
        gpu_tolerations: vec![],
    }
}

/// Read with [`defaults`].
pub fn read(object: &ModelDeployment) -> Result<Validated, Problems> {
    validate(object, &defaults())
}

/// One that can be carried out.
pub fn model(object: &ModelDeployment) -> Validated {
    read(object).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The children at this stage, with this seen.
pub fn children(model: &Validated, stage: &Stage, observed: &Observed) -> Children {
    build(model, stage, observed, &defaults())
}

/// As sent to the API server.
pub fn sent<T: serde::Serialize>(wanted: &Wanted<T>) -> Value {
    match wanted {
        Wanted::Like(object) => pruned(serde_json::to_value(object).unwrap()),
        Wanted::Left => "left".into(),
        Wanted::Gone => "gone".into(),
    }
}

/// A child as seen: what was sent, with a status.
pub fn seen(sent: Value, status: Value) -> Child {
    let mut object = sent;
    object["metadata"]["uid"] = "child".into();
    object["metadata"]["generation"] = 1.into();
    object["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    object["status"] = status;
    Child::new(serde_json::from_value(object).unwrap())
}

/// The Job that validates a model.
pub fn job(model: &Validated, status: Value) -> Child {
    seen(sent(&children(model, &Stage::Begin, &Observed::default()).job), status)
}

/// The Deployment that serves a model.
pub fn deployment(model: &Validated, status: Value) -> Child {
    let children = children(model, &Stage::Passed, &Observed::default());
    seen(sent(&children.deployment), status)
}

/// The Service of a model that is served.
pub fn service(model: &Validated) -> Child {
    let children = children(model, &Stage::Passed, &Observed::default());
    seen(sent(&children.service), json!({}))
}

/// A model that serves with one pod.
pub fn serving(model: &Validated) -> Observed {
    Observed {
        deployment: Some(deployment(
            model,
            json!({"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}),
        )),
        service: Some(service(model)),
        ..Observed::default()
    }
}
