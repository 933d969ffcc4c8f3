use berth_crds::names;

use super::*;
use crate::kinds::mlmodel::fixtures::{SAMPLE, SAVED_MODEL, annotated, defaults, mlmodel, model, read};

fn told(object: &MLModel) -> String {
    read(object).expect_err("cannot be carried out").to_string()
}

fn edited(spec: &str, from: &str, to: &str) -> MLModel {
    assert!(spec.contains(from), "{from}");
    mlmodel(&spec.replace(from, to))
}

/// B7.7: a size that is none was a panic, and a missing address a Job that fails.
#[test]
fn what_cannot_work_is_said_all_at_once() {
    let problems = told(&mlmodel(
        "{storageSize: 5 gigs, framework: jax, replicas: -1, expose: true, sha256: abc}",
    ));
    for words in [
        "spec.storageSize: \"5 gigs\" is no size",
        "spec.modelURL: is not set",
        "spec.framework: \"jax\" has no server here",
        "spec.replicas: -1 is negative",
        "spec.sha256: \"abc\" is no SHA-256",
    ] {
        assert!(problems.contains(words), "{words}: {problems}");
    }
    for size in ["''", "'0'", "-1Gi", "5GB"] {
        assert!(
            told(&edited(SAMPLE, "5Gi", size)).starts_with("spec.storageSize"),
            "{size}"
        );
    }
    for url in ["s3://bucket/key", "file:///etc/passwd", "' '"] {
        let object = edited(
            SAMPLE,
            "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main/tf_model.h5",
            url,
        );
        assert!(told(&object).starts_with("spec.modelURL"), "{url}");
    }
}

#[test]
fn an_empty_spec_is_a_condition() {
    assert!(told(&mlmodel("{}")).contains("spec.modelURL"));
}

#[test]
fn an_address_is_not_repeated_in_a_message() {
    let problems = told(&mlmodel(
        "{modelURL: 's3://user:hush@bucket/key', storageSize: 1Gi, framework: onnx}",
    ));
    assert!(!problems.contains("hush"), "{problems}");
}

#[test]
fn names_of_children_have_room() {
    let named = |name: &str| {
        let mut object = mlmodel(SAMPLE);
        object.metadata.name = Some(name.into());
        object
    };
    assert!(read(&named(&"a".repeat(44))).is_ok());
    for name in [&"a".repeat(45), "a.b", "1a"] {
        assert!(told(&named(name)).starts_with("metadata.name"), "{name}");
    }
    let mut hidden = named("1a");
    hidden.spec.expose = Some(false);
    assert!(
        read(&hidden).is_ok(),
        "only a Service's name has to start with a letter"
    );
}

/// B7.9, B7.12: the framework was never read, and the image was in the source.
#[test]
fn the_framework_picks_image_file_and_port() {
    for (framework, url, image, port, file) in [
        (
            "tensorflow",
            "https://h/4.tar.gz",
            "tensorflow/serving:latest",
            8501,
            "4.tar.gz",
        ),
        (
            "TensorFlow",
            "https://h/tf_model.h5",
            "tensorflow/serving:latest",
            8501,
            "tf_model.h5",
        ),
        (
            "onnx",
            "https://h/resnet50.onnx",
            "nvcr.io/nvidia/tritonserver:24.12-py3",
            8000,
            "model.onnx",
        ),
        (
            "pytorch",
            "https://h/my%20net.mar",
            "pytorch/torchserve:0.12.0-cpu",
            8080,
            "my net.mar",
        ),
        (
            "sklearn",
            "https://h/m.joblib",
            "seldonio/mlserver:1.6.1-sklearn",
            8080,
            "m.joblib",
        ),
        (
            "xgboost",
            "https://h/",
            "seldonio/mlserver:1.6.1-xgboost",
            8080,
            "model",
        ),
    ] {
        let read = model(&format!(
            "{{modelURL: '{url}', storageSize: 1Gi, framework: {framework}}}"
        ));
        assert_eq!(
            (read.image.as_str(), read.port, read.download.file.as_str()),
            (image, port, file),
            "{framework}"
        );
    }
}

#[test]
fn an_image_of_the_spec_or_the_installation_wins() {
    let object = mlmodel("{modelURL: 'https://h/m.h5', storageSize: 1Gi, framework: Keras, image: ' own/server:1 '}");
    assert_eq!(read(&object).unwrap().image, "own/server:1");
    let unknown = mlmodel("{modelURL: 'https://h/m.x', storageSize: 1Gi, framework: mine, image: own}");
    let read_one = read(&unknown).unwrap();
    assert_eq!((read_one.image.as_str(), read_one.port), ("own", 8501));
    let by_value = Defaults {
        images: [
            ("keras".to_owned(), "site/keras:2".to_owned()),
            ("tensorflow".to_owned(), "arm/serving".to_owned()),
        ]
        .into(),
        ..defaults()
    };
    let keras = mlmodel("{modelURL: 'https://h/m.h5', storageSize: 1Gi, framework: keras}");
    assert!(told(&keras).contains("spec.framework"));
    assert_eq!(validate(&keras, &by_value).unwrap().image, "site/keras:2");
    assert_eq!(validate(&mlmodel(SAMPLE), &by_value).unwrap().image, "arm/serving");
}

#[test]
fn a_file_that_the_server_cannot_read_is_told_of_and_not_refused() {
    let read = model(SAMPLE);
    assert!(
        read.ignored[0].contains(".h5") && read.ignored[0].contains("SavedModel"),
        "{:?}",
        read.ignored
    );
    assert_eq!(model(SAVED_MODEL).ignored, Vec::<String>::new());
}

#[test]
fn a_change_of_what_is_downloaded_is_another_source_and_nothing_else_is() {
    let source = |object: &MLModel| read(object).unwrap().download.source;
    let first = source(&mlmodel(SAVED_MODEL));
    for (from, to) in [
        ("4.tar.gz", "5.tar.gz"),
        ("5Gi", "6Gi"),
        ("tensorflow\n", "onnx\n"),
        (
            "replicas: 1",
            "sha256: '0000000000000000000000000000000000000000000000000000000000000000'",
        ),
        ("replicas: 1", "storageClassName: fast"),
        ("replicas: 1", "accessMode: ReadWriteMany"),
    ] {
        assert_ne!(source(&edited(SAVED_MODEL, from, to)), first, "{to}");
    }
    for (from, to) in [
        ("replicas: 1", "replicas: 3"),
        ("expose: true", "expose: false"),
        ("replicas: 1", "image: other"),
        ("5Gi", "5120Mi"),
        ("tensorflow\n", "TensorFlow\n"),
    ] {
        assert_eq!(source(&edited(SAVED_MODEL, from, to)), first, "{to}");
    }
    let mut named = mlmodel(SAVED_MODEL);
    named.metadata.annotations = Some([(names::RETRY.to_owned(), "1".to_owned())].into());
    assert_eq!(source(&named), first);
}

/// B7.10: replicas that cannot mount the volume.
#[test]
fn servers_with_gpus_need_a_volume_that_many_nodes_can_mount() {
    let gpus = |spec: &str| annotated(spec, &[(names::GPU_CLASS, "h100")]);
    let two = SAVED_MODEL.replace("replicas: 1", "replicas: 2");
    assert!(told(&gpus(&two)).contains("ReadWriteMany"));
    assert!(read(&gpus(&format!("{two}\n    accessMode: ReadWriteMany"))).is_ok());
    assert!(read(&gpus(SAVED_MODEL)).is_ok());
    assert!(read(&mlmodel(&two)).is_ok(), "without GPUs they are bound to one node");
}
