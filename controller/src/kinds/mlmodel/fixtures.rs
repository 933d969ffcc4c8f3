//! MLModels for tests, and children as the API server would show them.

use std::time::Duration;

use berth_crds::tmforum::MLModel;
use serde_json::{Value, json};

use super::build::{Children, build};
use super::fetch::Observed;
use super::stage::Stage;
use super::validate::{Defaults, Validated, validate};
use crate::kinds::children::Child;
use crate::kinds::children::subset::pruned;
use crate::kinds::children::wanted::Wanted;
use crate::kinds::status::problems::Problems;

/// The larger of the original's samples.
pub const SAMPLE: &str = "
    modelURL: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main/tf_model.h5
    storageSize: 5Gi
    framework: tensorflow
    replicas: 1
    expose: true
";

/// A SavedModel, as the original's other sample has it.
pub const SAVED_MODEL: &str = "
    modelURL: https://storage.googleapis.com/tfhub-modules/mobilenet_v2/4.tar.gz
    storageSize: 5Gi
    framework: tensorflow
    replicas: 1
    expose: true
";

/// An MLModel `net` in namespace `shop` with this spec in YAML.
pub fn mlmodel(spec: &str) -> MLModel {
    let spec: Value = serde_saphyr::from_str(spec).unwrap();
    serde_json::from_value(json!({
        "apiVersion": "oda.tmforum.org.oda.tmforum.org/v1beta1", "kind": "MLModel",
        "metadata": {"name": "net", "namespace": "shop", "uid": "uid-of-it", "generation": 3},
        "spec": spec,
    }))
    .unwrap()
}

/// The same with annotations.
pub fn annotated(spec: &str, annotations: &[(&str, &str)]) -> MLModel {
    let mut object = mlmodel(spec);
    let pairs = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    object.metadata.annotations = Some(pairs.collect());
    object
}

/// What an installation sets that sets nothing.
pub fn defaults() -> Defaults {
    Defaults {
        download_image: "curl".into(),
        images: [].into(),
        ensure_storage: false,
        storage_timeout: Duration::from_secs(600),
        start_seconds: None,
        gpu_tolerations: vec![],
    }
}

/// Read with [`defaults`].
pub fn read(object: &MLModel) -> Result<Validated, Problems> {
    validate(object, &defaults())
}

/// A spec that can be carried out.
pub fn model(spec: &str) -> Validated {
    read(&mlmodel(spec)).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The children at this stage, with nothing seen.
pub fn children(model: &Validated, stage: &Stage) -> Children {
    build(model, stage, &Observed::default(), false)
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
    object["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    object["status"] = status;
    Child::new(serde_json::from_value(object).unwrap())
}

/// The claim of a model at this stage.
pub fn claim(model: &Validated, stage: &Stage, phase: &str) -> Child {
    seen(sent(&children(model, stage).claim), json!({"phase": phase}))
}

/// Its Job.
pub fn job(model: &Validated, status: Value) -> Child {
    let prepared = Stage::Prepared { is_busy: false };
    seen(sent(&children(model, &prepared).job), status)
}

/// Its Deployment.
pub fn deployment(model: &Validated, status: Value) -> Child {
    seen(sent(&children(model, &Stage::Downloaded).deployment), status)
}
