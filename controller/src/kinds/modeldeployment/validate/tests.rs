use serde_json::{Value, json};

use super::*;
use crate::kinds::modeldeployment::fixtures::{annotated, defaults, model, modeldeployment, read, sample};

fn problems(changes: Value) -> String {
    read(&sample(changes)).map_or_else(|problems| problems.to_string(), |_| String::new())
}

#[test]
fn the_sample_is_read() {
    let model = model(&sample(json!({})));
    assert_eq!(model.script.as_deref(), Some("validate.py"));
    assert_eq!(model.server.image, "localhost/fastapi-pytorch:dev");
    assert_eq!((model.version(), model.replicas, model.autoscale), ("v1", 1, None));
    assert_eq!(model.validator_resources, model.server.resources);
    assert!(model.has_alias && model.ignored.is_empty(), "{:?}", model.ignored);
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let told = read(&modeldeployment("{}")).unwrap_err().to_string();
    for path in ["spec.modelURI: ", "spec.runtime: ", "spec.version: "] {
        assert!(told.contains(path), "{told}");
    }
    for (changes, words) in [
        (json!({"runtime": "onnx"}), "spec.runtime: \"onnx\" is unknown"),
        (json!({"replicas": -1}), "spec.replicas: -1"),
        (
            json!({"autoscale": true, "minReplicas": 9, "maxReplicas": 2}),
            "spec.maxReplicas: 2 is less",
        ),
        (
            json!({"autoscale": true, "minReplicas": 0}),
            "spec.minReplicas: 0 is too small",
        ),
        (
            json!({"resources": {"limits": {"cpu": "lots"}}}),
            "spec.resources.limits.cpu: \"lots\"",
        ),
        (
            json!({"validateResources": {"requests": {"cpu": "-1"}}}),
            "spec.validateResources.requests.cpu",
        ),
    ] {
        let told = problems(changes.clone());
        assert!(told.contains(words), "{changes}: {told}");
    }
}

#[test]
fn names_are_such_that_every_child_can_have_its_own() {
    let named = |name: &str| {
        let mut object = sample(json!({}));
        object.metadata.name = Some(name.into());
        read(&object)
    };
    assert!(named(&"n".repeat(53)).is_ok());
    for name in ["n".repeat(54), "a.b".into()] {
        assert!(
            named(&name).unwrap_err().to_string().starts_with("metadata.name: "),
            "{name}"
        );
    }
    let digit = named("1net").unwrap();
    assert!(
        !digit.has_alias && digit.ignored[0].contains("1net-service"),
        "{:?}",
        digit.ignored
    );
}

#[test]
fn autoscale_has_bounds_of_the_spec_or_the_installation() {
    let scale = |changes| model(&sample(changes)).autoscale.map(|a| (a.min, a.max, a.target));
    assert_eq!(scale(json!({})), None);
    assert_eq!(scale(json!({"autoscale": true})), Some((1, 5, 80)));
    assert_eq!(scale(json!({"autoscale": true, "minReplicas": 7})), Some((7, 7, 80)));
    let given = json!({"autoscale": true, "minReplicas": 2, "maxReplicas": 3, "targetCPUUtilizationPercentage": 50});
    assert_eq!(scale(given), Some((2, 3, 50)));
}

#[test]
fn what_has_no_effect_or_may_not_work_is_said() {
    for (changes, path) in [
        (json!({"maxReplicas": 3}), "spec.maxReplicas: "),
        (json!({"autoscale": true, "replicas": 3}), "spec.replicas: "),
        (json!({"autoscale": true, "resources": {}}), "spec.autoscale: "),
        (
            json!({"validateScript": null, "validateResources": {}}),
            "spec.validateResources: ",
        ),
        (json!({"runtime": "triton"}), "spec.modelURI: "),
        (json!({"runtime": "torchserve"}), "spec.modelURI: "),
    ] {
        let ignored = model(&sample(changes.clone())).ignored;
        assert!(
            ignored.len() == 1 && ignored[0].starts_with(path),
            "{changes}: {ignored:?}"
        );
    }
    let served = [
        ("triton", "s3://models/net"),
        ("torchserve", "https://x.org/net.mar?a=.pt"),
    ];
    for (runtime, uri) in served {
        let model = model(&sample(json!({"runtime": runtime, "modelURI": uri})));
        assert!(model.ignored.is_empty(), "{:?}", model.ignored);
    }
}

/// C7.3: the original looks at no change.
#[test]
fn a_change_of_what_is_validated_is_another_revision_and_of_its_number_is_not() {
    let revision = |changes| model(&sample(changes)).revision;
    let before = revision(json!({}));
    for changes in [
        json!({"modelURI": "https://dummy.com/other.pt"}),
        json!({"runtime": "triton"}),
        json!({"runtimeImage": "other"}),
        json!({"runtimeImage": null}),
        json!({"version": "v2"}),
        json!({"validateScript": "other.py"}),
        json!({"resources": {"limits": {"cpu": "1"}}}),
        json!({"validateResources": {"limits": {"cpu": "1"}}}),
    ] {
        assert_ne!(revision(changes.clone()), before, "{changes}");
    }
    for changes in [
        json!({"replicas": 3}),
        json!({"autoscale": true}),
        json!({"autoscale": true, "maxReplicas": 9}),
    ] {
        assert_eq!(revision(changes.clone()), before, "{changes}");
    }
    let gpu = annotated(sample(json!({})), &[(names::GPU_CLASS, "h100")]);
    assert_ne!(model(&gpu).revision, before);
}

#[test]
fn another_image_of_the_installation_validates_nothing_again() {
    let object = sample(json!({"runtimeImage": ""}));
    let ours = model(&object);
    assert_eq!(ours.server.image, "fastapi-pytorch:dev");
    let images = [("fastapi-pytorch".to_owned(), "registry.example/f:1".to_owned())].into();
    let other = validate(&object, &Defaults { images, ..defaults() }).unwrap();
    assert_eq!(
        (other.server.image.as_str(), other.revision),
        ("registry.example/f:1", ours.revision)
    );
}

#[test]
fn the_number_of_gpus_is_the_spec_s_where_only_their_kind_is_annotated() {
    let gpus = |resources: Value, annotations: &[(&str, &str)]| {
        let object = annotated(sample(json!({"resources": resources})), annotations);
        model(&object).server.gpus.map(|w| w.count)
    };
    let two = || json!({"limits": {"nvidia.com/gpu": 2}});
    assert_eq!(gpus(two(), &[]), None, "nothing says that Berth places it");
    assert_eq!(gpus(two(), &[(names::GPU_CLASS, "h100")]), Some(2));
    assert_eq!(gpus(two(), &[(names::GPU_COUNT, "4")]), Some(4));
    assert_eq!(gpus(json!({}), &[(names::GPU_CLASS, "h100")]), Some(1));
}

/// What is served is read back out of its record as it was.
#[test]
fn a_record_gives_the_same_server_again() {
    let object = annotated(sample(json!({})), &[(names::GPU_CLASS, "h100"), ("team", "a")]);
    let server = model(&object).server;
    let record = Served::read(&server.record).unwrap();
    assert_eq!(record.version(), "v1");
    assert_eq!(record.server(&defaults()), Some(server.clone()));
    assert!(
        !server.record.contains("team") && !server.record.contains("validate.py"),
        "{}",
        server.record
    );
    assert_eq!(Served::read("by hand"), None);
}
