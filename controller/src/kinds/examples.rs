//! Every manifest in `examples/` is what its types say, and can be carried out.

use std::path::Path;

use berth_crds::premlabs::{AIDeployment, AIModelMap, AutoNodeLabeler};
use berth_crds::sathvik::ModelDeployment;
use berth_crds::tmforum::MLModel;
use berth_crds::youxam::AIModel;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::aideployment::fixtures::{defaults, maps, read_with};
use super::{aimodel, aimodelmap, mlmodel, modeldeployment};
use crate::kinds::children::subset::differences;

fn manifests() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("# "), "{name}: say in a comment what it shows");
            for value in serde_saphyr::from_multiple::<Value>(&text).unwrap() {
                found.push((name.clone(), value));
            }
        }
    }
    found
}

/// A misspelt optional key is read without complaint and lost: only the way back shows it.
fn there_and_back<K: Serialize + DeserializeOwned>(file: &str, manifest: &Value) -> K {
    let object: K = serde_json::from_value(manifest.clone()).unwrap_or_else(|e| panic!("{file}: {e}"));
    let back = serde_json::to_value(&object).unwrap();
    let lost = differences(manifest, &back);
    assert!(lost.is_empty(), "{file}: lost on the way: {lost:?}");
    object
}

#[test]
fn no_key_is_lost_and_every_spec_is_accepted() {
    let manifests = manifests();
    assert!(manifests.len() >= 5);
    // A user's namespace is that of whatever is applied with it.
    let here = |mut map: AIModelMap| {
        map.metadata.namespace.get_or_insert_with(String::new);
        map
    };
    let of_kind = |kind: &str| {
        manifests
            .iter()
            .filter(move |(_, m)| m["kind"] == kind)
            .cloned()
            .collect::<Vec<_>>()
    };
    let of_file = |file: &str| {
        let all = of_kind("AIModelMap").into_iter().filter(|(f, _)| f == file);
        maps(all.map(|(f, m)| here(there_and_back(&f, &m))))
    };
    for (file, manifest) in manifests.iter().cloned() {
        match manifest["kind"].as_str().unwrap_or_default() {
            "AIDeployment" => {
                let object: AIDeployment = there_and_back(&file, &manifest);
                let model = read_with(&object, &defaults(), &of_file(&file));
                let mut model = model.unwrap_or_else(|problems| panic!("{file}: {problems}"));
                // Manifests of the original have it, for documentation.
                model
                    .ignored
                    .retain(|i| !i.starts_with("spec.deployment.accelerator.minVersion"));
                assert_eq!(model.ignored, Vec::<String>::new(), "{file}");
            }
            "AIModelMap" => {
                let object: AIModelMap = there_and_back(&file, &manifest);
                let map =
                    aimodelmap::validate::validate(&object).unwrap_or_else(|problems| panic!("{file}: {problems}"));
                assert_eq!(map.ignored, Vec::<String>::new(), "{file}");
            }
            "MLModel" => {
                let object: MLModel = there_and_back(&file, &manifest);
                let model = mlmodel::fixtures::read(&object).unwrap_or_else(|problems| panic!("{file}: {problems}"));
                assert_eq!(model.ignored, Vec::<String>::new(), "{file}");
            }
            "ModelDeployment" => {
                let object: ModelDeployment = there_and_back(&file, &manifest);
                let model =
                    modeldeployment::fixtures::read(&object).unwrap_or_else(|problems| panic!("{file}: {problems}"));
                assert_eq!(model.ignored, Vec::<String>::new(), "{file}");
            }
            "AIModel" => {
                let object: AIModel = there_and_back(&file, &manifest);
                let model = aimodel::fixtures::read(&object).unwrap_or_else(|problems| panic!("{file}: {problems}"));
                assert_eq!(model.ignored, Vec::<String>::new(), "{file}");
            }
            "AutoNodeLabeler" => {
                there_and_back::<AutoNodeLabeler>(&file, &manifest);
            }
            "PersistentVolumeClaim" => {
                there_and_back::<PersistentVolumeClaim>(&file, &manifest);
            }
            other => panic!("{file}: this test does not know the kind {other:?}"),
        }
    }
}

#[test]
#[should_panic(expected = "spec.deployment.acelerator")]
fn a_misspelt_key_is_seen() {
    let manifest: Value = serde_saphyr::from_str(
        "{apiVersion: premlabs.io/v1alpha1, kind: AIDeployment, metadata: {name: m}, spec: {deployment: {acelerator: {interface: CUDA}}}}",
    )
    .unwrap();
    there_and_back::<AIDeployment>("test", &manifest);
}
