use berth_crds::names;
use kube::ResourceExt;

use super::*;
use crate::kinds::aimodel::fixtures::{aimodel, defaults, read, sample};

#[test]
fn every_sample_is_accepted_with_its_defaults() {
    let read = |name| read(&sample(name)).unwrap();
    let plain = read("aimodel-sample");
    assert_eq!((plain.replicas, plain.max_process_num, plain.scaling), (3, 128, None));
    assert_eq!(plain.labels.len(), 5);
    let scaled = read("scaled-model");
    assert_eq!((scaled.replicas, scaled.max_process_num), (1, 256));
    let scaling = scaled.scaling.unwrap();
    assert_eq!(
        (scaling.threshold, scaling.admin_url.as_deref()),
        (2, Some("http://pulsar:8080"))
    );
    assert_eq!(read("remote-model").api_key, Text::Plain("xxxxxxx".into()));
    for name in [
        "aimodel-sample",
        "ai-model-plain",
        "ai-model-sample",
        "remote-model",
        "scaled-model",
    ] {
        assert_eq!(read(name).ignored, Vec::<String>::new(), "{name}");
    }
}

type Change = fn(&mut AIModel);

/// A7.13: the original took all of it, and failed later or did nothing.
#[test]
fn what_cannot_work_is_said_with_what_to_do() {
    let cases: &[(Change, &str)] = &[
        (
            |m| m.spec.type_ = "Local".into(),
            "spec.type: \"Local\" is no type; give local or remote",
        ),
        (|m| m.spec.type_.clear(), "spec.type: is not set; give local or remote"),
        (|m| m.spec.model.clear(), "spec.model: is not set"),
        (|m| m.spec.image = " ".into(), "spec.image: is not set"),
        (|m| m.spec.replicas = Some(-1), "spec.replicas: -1 is negative"),
        (
            |m| m.spec.msg_backlog_threshold = Some(0),
            "spec.msgBacklogThreshold: 0 waiting messages",
        ),
        (
            |m| m.metadata.name = Some("a.b".into()),
            "metadata.name: \"a.b\" cannot be the name of a container",
        ),
        (
            |m| m.metadata.name = Some("a".repeat(64)),
            "cannot be the name of a container",
        ),
        (
            |m| {
                m.annotations_mut().insert(names::GPU_MEMORY.into(), "lots".into());
            },
            "metadata.annotations[berth.dev/gpu-memory]: \"lots\" cannot be read",
        ),
    ];
    for (change, words) in cases {
        let problems = read(&aimodel(change)).unwrap_err().to_string();
        assert!(problems.contains(words), "{problems}");
    }
    let all = read(&aimodel(|m| m.spec = Default::default())).unwrap_err();
    assert_eq!(all.iter().count(), 3, "one look shows all: {all}");
}

#[test]
fn a_name_that_only_keda_cannot_bear_is_refused_only_with_scaling() {
    let long = |threshold| {
        move |m: &mut AIModel| {
            m.metadata.name = Some("a".repeat(51));
            m.spec.msg_backlog_threshold = threshold;
        }
    };
    assert!(read(&aimodel(long(None))).is_ok());
    let problems = read(&aimodel(long(Some(2)))).unwrap_err().to_string();
    assert!(problems.contains("at most 50 characters"), "{problems}");
}

#[test]
fn a_secret_stands_for_the_plain_key_and_token() {
    let secret = SecretKey {
        name: "s".into(),
        key: "k".into(),
    };
    let object = aimodel(|m| {
        m.spec.api_key = Some("old".into());
        m.spec.api_key_secret_ref = Some(secret.clone());
        m.spec.pulsar_token_secret_ref = Some(secret.clone());
    });
    let model = read(&object).unwrap();
    assert_eq!(model.api_key, Text::Secret(secret.clone()));
    assert_eq!(model.pulsar_token, Text::Secret(secret));
    assert_eq!(model.ignored, ["spec.apiKey: apiKeySecretRef is given"]);
    let installation = defaults(|pulsar| pulsar.token = "t".into());
    let model = validate(&aimodel(|_| {}), &installation).unwrap();
    assert_eq!(model.pulsar_token, Text::Plain("t".into()));
}
