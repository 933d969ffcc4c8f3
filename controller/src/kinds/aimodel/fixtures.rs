//! AIModels for tests.

use berth_crds::youxam::AIModel;
use serde_json::{Value, json};

use super::fetch::Observed;
use super::validate::{Defaults, Validated, validate};
use crate::args::Pulsar;
use crate::kinds::children::Child;
use crate::kinds::status::problems::Problems;

/// What the tests' installation says, with this of Pulsar changed.
pub fn defaults(change: impl FnOnce(&mut Pulsar)) -> Defaults {
    let mut pulsar = Pulsar {
        admin_url: "http://pulsar:8080".into(),
        url: "pulsar://pulsar:6650".into(),
        token: String::new(),
        res_topic_name: "res-topic".into(),
    };
    change(&mut pulsar);
    Defaults {
        pulsar,
        ..Defaults::default()
    }
}

/// A sample of the original.
pub fn sample(name: &str) -> AIModel {
    let text = include_str!("../../../../tests/behaviour/aimodel-samples.yaml");
    let samples = serde_saphyr::from_multiple::<Value>(text).unwrap();
    let mut sample = samples.into_iter().find(|s| s["metadata"]["name"] == name).unwrap();
    sample["metadata"]["namespace"] = "shop".into();
    sample["metadata"]["uid"] = "uid-of-it".into();
    sample["metadata"]["generation"] = 7.into();
    serde_json::from_value(sample).unwrap()
}

/// A plain AIModel with something changed.
pub fn aimodel(change: impl FnOnce(&mut AIModel)) -> AIModel {
    let mut object = sample("ai-model-plain");
    change(&mut object);
    object
}

/// Read in the tests' installation.
pub fn read(object: &AIModel) -> Result<Validated, Problems> {
    validate(object, &defaults(|_| {}))
}

/// A child with this in it.
pub fn child(object: Value) -> Child {
    Child::new(serde_json::from_value(object).unwrap())
}

/// The ServiceAccount is there, and KEDA.
pub fn observed() -> Observed {
    Observed {
        service_account: Some(child(
            json!({"metadata": {"creationTimestamp": "2026-01-02T03:04:05Z"}}),
        )),
        keda: true,
        ..Observed::default()
    }
}
