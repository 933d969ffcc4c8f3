//! What a runtime decides: image, command, ports, and what says that the model is loaded.

/// What is known of a runtime.
#[derive(Debug)]
pub struct Runtime {
    /// Its name in `spec.runtime`.
    pub name: &'static str,
    /// Its image, where neither the spec nor the installation names one.
    pub image: &'static str,
    /// Instead of the image's entry point; empty: that.
    pub command: &'static [&'static str],
    /// Arguments, given the name of the model and where it is.
    pub args: fn(&str, &str) -> Vec<String>,
    /// Port of its HTTP API.
    pub port: u16,
    /// Its other ports by name. Those with `true` are on the Services too.
    pub more: &'static [(&'static str, u16, bool)],
    /// Path that answers when the model is loaded; `None`: that the port is open has to do.
    pub ready: Option<&'static str>,
    /// What cannot work of an address, and what to give instead.
    pub unread: fn(&str) -> Option<&'static str>,
}

/// All of them.
pub const RUNTIMES: &[Runtime] = &[
    Runtime {
        name: "triton",
        image: "nvcr.io/nvidia/tritonserver:22.08-py3",
        command: &["tritonserver"],
        args: |_, uri| vec![format!("--model-repository={uri}")],
        port: 8000,
        more: &[("grpc", 8001, true), ("metrics", 8002, false)],
        ready: Some("/v2/health/ready"),
        unread: |uri| {
            is_web(uri)
                .then_some("tritonserver reads a model repository: give its path, or an s3://, gs:// or as:// address")
        },
    },
    Runtime {
        name: "torchserve",
        image: "pytorch/torchserve:latest",
        // The image's entry point hands its arguments to a shell, and serves no model.
        command: &["torchserve"],
        args: |name, uri| {
            vec![
                "--start".into(),
                "--foreground".into(),
                "--disable-token-auth".into(),
                "--ts-config=/home/model-server/config.properties".into(),
                "--model-store=/home/model-server/model-store".into(),
                format!("--models={name}={uri}"),
            ]
        },
        port: 8080,
        more: &[("management", 8081, false), ("metrics", 8082, false)],
        ready: Some("/ping"),
        unread: |uri| {
            let file = uri.split(['?', '#']).next().unwrap_or_default().to_ascii_lowercase();
            [".pt", ".pth"]
                .iter()
                .any(|ending| file.ends_with(ending))
                .then_some("torchserve reads a model archive (.mar), as torch-model-archiver makes it")
        },
    },
    Runtime {
        name: "fastapi-pytorch",
        image: "fastapi-pytorch:dev",
        command: &[],
        args: |_, _| vec![],
        port: 8000,
        more: &[],
        ready: None,
        unread: |_| None,
    },
];

fn is_web(uri: &str) -> bool {
    let scheme = uri.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    matches!(scheme.as_deref(), Some("http" | "https"))
}
