//! What the engines ask of their pods is taken by a real API server as it is meant, and stays as it is.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_tests::{Fixture, Suite, eventually};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

fn main() -> ExitCode {
    Suite::new("engines")
        .trial("pods of every engine run, and nothing is written once they do", |c| {
            every_engine(Fixture::new(c))
        })
        .trial("an edited configuration file makes new pods, once", |c| {
            edited_file(Fixture::new(c))
        })
        .run()
}

const SOON: Duration = Duration::from_secs(30);

fn object(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIDeployment", "metadata": {"name": name}, "spec": spec})
}

async fn deployment(f: &Fixture, ns: &str, name: &str) -> anyhow::Result<Deployment> {
    Ok(Api::namespaced(f.client(), ns).get(name).await?)
}

async fn every_engine(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("engines").await?;
    // Two downloads of one name, a name of the gallery and a file: everything that gives a part of the pod.
    let models = json!([{"uri": "https://models.example.com/a.gguf"}, {"uri": "http://models.example.com/b.yaml?raw=1"},
        {"uri": "phi-2"}, {"engineConfigFile": "name: bert\n"}]);
    let gpus = json!({"accelerator": {"interface": "CUDA", "count": 2}});
    let objects = [
        object(
            "localai",
            json!({"engine": {"name": "localai"}, "env": [{"name": "DEBUG", "value": "true"}], "models": models}),
        ),
        object(
            "triton",
            json!({"engine": {"name": "triton"}, "models": [{"uri": "https://models.example.com/a.onnx"}, {"uri": "https://models.example.com/b.tar.gz"}]}),
        ),
        object(
            "mii",
            json!({"engine": {"name": "deepspeed-mii"}, "models": [{"uri": "microsoft/phi-2"}], "deployment": gpus}),
        ),
        object(
            "vllm",
            json!({"engine": {"name": "vllm"}, "models": [{"uri": "m"}], "deployment": gpus}),
        ),
    ];
    for object in &objects {
        f.apply(&ns, object.clone()).await?;
    }
    let names: Vec<&str> = objects.iter().filter_map(|o| o["metadata"]["name"].as_str()).collect();
    for name in &names {
        f.expect_condition(&ns, name, "Available", ("True", "MinimumReplicasAvailable"))
            .await?;
    }
    let localai = deployment(&f, &ns, "localai").await?;
    let pod = localai.spec.and_then(|s| s.template.spec).context("pod spec")?;
    let init: Vec<_> = pod.init_containers.iter().flatten().map(|c| c.name.as_str()).collect();
    ensure!(
        init == ["init-models-localai", "init-models-localai-2", "init-configs-localai"],
        "{init:?}"
    );
    let volumes: Vec<_> = pod.volumes.iter().flatten().map(|v| v.name.as_str()).collect();
    ensure!(volumes == ["models", "cache", "configs"], "{volumes:?}");

    let writes = async || -> anyhow::Result<Vec<String>> {
        let all = f.controller_writes("").await?;
        Ok(all
            .into_iter()
            .filter(|w| w.contains(&format!("/namespaces/{ns}/")))
            .collect())
    };
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = writes().await?;
    f.restart_controller().await?;
    f.all_agents_connected().await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = writes().await?;
    ensure!(after == before, "written after a restart: {:?}", &after[before.len()..]);
    for name in names {
        let generation = deployment(&f, &ns, name).await?.metadata.generation;
        ensure!(generation == Some(1), "{name}: {generation:?}");
    }
    f.delete_namespace(&ns).await
}

async fn edited_file(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("config").await?;
    let with = |text: &str| {
        object(
            "bert",
            json!({"engine": {"name": "localai"}, "models": [{"engineConfigFile": text}]}),
        )
    };
    f.apply(&ns, with("name: bert")).await?;
    f.expect_condition(&ns, "bert", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    f.apply(&ns, with("name: bert\nthreads: 4")).await?;
    eventually("the new file and new pods", SOON, async || {
        let map = Api::<ConfigMap>::namespaced(f.client(), &ns)
            .get("bert-engine-config")
            .await?;
        let data = map.data.unwrap_or_default();
        ensure!(
            data["localai-inline-engineConfigFile"] == "name: bert\nthreads: 4",
            "{data:?}"
        );
        let deployment = deployment(&f, &ns, "bert").await?;
        ensure!(
            deployment.metadata.generation == Some(2),
            "{:?}",
            deployment.metadata.generation
        );
        Ok(())
    })
    .await?;
    // Without files the ConfigMap goes, and with it the volume.
    f.apply(
        &ns,
        object(
            "bert",
            json!({"engine": {"name": "localai"}, "models": [{"engineConfigFile": null, "uri": "phi-2"}]}),
        ),
    )
    .await?;
    eventually("no file any more", SOON, async || {
        let map = Api::<ConfigMap>::namespaced(f.client(), &ns)
            .get_opt("bert-engine-config")
            .await?;
        ensure!(map.is_none(), "{:?}", map.map(|m| m.name_any()));
        let generation = deployment(&f, &ns, "bert").await?.metadata.generation;
        ensure!(generation == Some(3), "{generation:?}");
        Ok(())
    })
    .await?;
    f.delete_namespace(&ns).await
}
