//! What a framework decides: which server there is, and where and under which name that server reads a model.

use std::collections::BTreeMap;

/// What is known of a framework.
#[derive(Debug)]
pub struct Framework {
    /// Its name in `spec.framework`, lower case.
    pub name: &'static str,
    /// Image of its server; `None`: there is none that everybody uses, so the spec or the installation names one.
    pub image: Option<&'static str>,
    /// Archives are unpacked: the server reads folders.
    pub unpack: bool,
    /// Pattern of the file whose folder in an archive is the model; empty: the archive is.
    pub marker: &'static str,
    /// Name that the server wants of the file; `None`: the one that it has in the URL.
    pub file: Option<&'static str>,
    /// Endings of plain files that the server cannot read, with what to give instead.
    pub unread: &'static [(&'static str, &'static str)],
    /// Port of the server's HTTP API.
    pub port: u16,
    /// How the server is started.
    pub start: fn(&Place<'_>) -> Start,
}

/// Where a model is, as its server sees it.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Name of the model.
    pub name: &'a str,
    /// Its folder, with one folder a version in it.
    pub folder: &'a str,
    /// Name of its file, where it is one.
    pub file: &'a str,
}

/// How a server is started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// Instead of the image's entry point.
    pub command: Vec<&'static str>,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment.
    pub env: BTreeMap<&'static str, String>,
    /// Path that answers when the model is loaded; `None`: that the port is open has to do.
    pub ready: Option<String>,
}

/// Those that have a server.
pub const FRAMEWORKS: &[Framework] = &[
    Framework {
        name: "tensorflow",
        image: Some("tensorflow/serving:latest"),
        unpack: true,
        marker: "saved_model.pb",
        file: None,
        unread: &[
            (
                ".h5",
                "a SavedModel in a tar archive, or framework keras with an image that reads it",
            ),
            (
                ".keras",
                "a SavedModel in a tar archive, or framework keras with an image that reads it",
            ),
        ],
        port: 8501,
        start: tensorflow,
    },
    Framework {
        name: "onnx",
        image: Some("nvcr.io/nvidia/tritonserver:24.12-py3"),
        unpack: true,
        marker: "*.onnx",
        file: Some("model.onnx"),
        unread: &[],
        port: 8000,
        start: triton,
    },
    Framework {
        name: "pytorch",
        image: Some("pytorch/torchserve:0.12.0-cpu"),
        unpack: false,
        marker: "",
        file: None,
        unread: &[
            (".pt", "a model archive (.mar), as torch-model-archiver makes it"),
            (".pth", "a model archive (.mar), as torch-model-archiver makes it"),
        ],
        port: 8080,
        start: torchserve,
    },
    Framework {
        name: "sklearn",
        image: Some("seldonio/mlserver:1.6.1-sklearn"),
        unpack: false,
        marker: "",
        file: None,
        unread: &[],
        port: 8080,
        start: |place| mlserver(place, "mlserver_sklearn.SKLearnModel"),
    },
    Framework {
        name: "xgboost",
        image: Some("seldonio/mlserver:1.6.1-xgboost"),
        unpack: false,
        marker: "",
        file: None,
        unread: &[],
        port: 8080,
        start: |place| mlserver(place, "mlserver_xgboost.XGBoostModel"),
    },
    Framework {
        name: "lightgbm",
        image: Some("seldonio/mlserver:1.6.1-lightgbm"),
        unpack: false,
        marker: "",
        file: None,
        unread: &[],
        port: 8080,
        start: |place| mlserver(place, "mlserver_lightgbm.LightGBMModel"),
    },
    Framework {
        name: "keras",
        image: None,
        unpack: false,
        marker: "",
        file: None,
        unread: &[],
        port: 8501,
        start: told,
    },
];

/// For a framework of the user's own, which brings its image.
pub const OTHER: Framework = Framework {
    name: "",
    image: None,
    unpack: true,
    marker: "",
    file: None,
    unread: &[],
    port: 8501,
    start: told,
};

fn tensorflow(place: &Place<'_>) -> Start {
    Start {
        args: vec![
            format!("--model_name={}", place.name),
            format!("--model_base_path={}", place.folder),
            "--rest_api_port=8501".into(),
        ],
        ready: Some(format!("/v1/models/{}", place.name)),
        ..Start::default()
    }
}

/// One model is loaded by name: whatever else is on the volume is none.
fn triton(place: &Place<'_>) -> Start {
    let repository = place.folder.rsplit_once('/').map_or("/", |(parent, _)| parent);
    Start {
        args: vec![
            "tritonserver".into(),
            format!("--model-repository={repository}"),
            "--model-control-mode=explicit".into(),
            format!("--load-model={}", place.name),
        ],
        ready: Some(format!("/v2/models/{}/ready", place.name)),
        ..Start::default()
    }
}

/// The image's entry point hands its arguments to a shell, so it is left out.
fn torchserve(place: &Place<'_>) -> Start {
    Start {
        command: vec!["torchserve"],
        args: vec![
            "--start".into(),
            "--foreground".into(),
            "--disable-token-auth".into(),
            "--ts-config=/home/model-server/config.properties".into(),
            format!("--model-store={}/1", place.folder),
            format!("--models={}={}", place.name, place.file),
        ],
        ready: Some("/ping".into()),
        ..Start::default()
    }
}

fn mlserver(place: &Place<'_>, implementation: &str) -> Start {
    Start {
        env: BTreeMap::from([
            ("MLSERVER_HTTP_PORT", "8080".to_owned()),
            ("MLSERVER_MODELS_DIR", format!("{}/1", place.folder)),
            ("MLSERVER_MODEL_IMPLEMENTATION", implementation.to_owned()),
            ("MLSERVER_MODEL_NAME", place.name.to_owned()),
            ("MLSERVER_MODEL_URI", format!("{}/1/{}", place.folder, place.file)),
        ]),
        ready: Some(format!("/v2/models/{}/ready", place.name)),
        ..Start::default()
    }
}

/// The image finds out by environment.
fn told(place: &Place<'_>) -> Start {
    Start {
        env: BTreeMap::from([
            ("MODEL_NAME", place.name.to_owned()),
            ("MODEL_PATH", format!("{}/1", place.folder)),
            ("PORT", "8501".to_owned()),
        ]),
        ..Start::default()
    }
}
