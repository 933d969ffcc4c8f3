//! The cluster itself, without Berth in it: what every other behaviour test stands on.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use berth_local::{Cluster, NodeSpec, Signal, process, toolchain, wait_for};
use berth_tests::{Outcome, Suite};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;

const SOON: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, serve, address, folder] = args.as_slice()
        && serve == "serve"
    {
        return serve_files(address, folder);
    }
    Suite::new("smoke")
        .bare()
        .trial("the default fleet is there", the_default_fleet_is_there)
        .trial("kubectl and helm work", kubectl_and_helm_work)
        .trial("pods of others run on simulated nodes", pods_of_others_run)
        .trial("a driver appears and goes", a_driver_appears_and_goes)
        .trial("our own pods are real processes", our_own_pods_are_processes)
        .trial("a deleted pod's processes end", a_deleted_pod_ends)
        .trial("a Job of ours completes", a_job_completes)
        .run()
}

async fn the_default_fleet_is_there(cluster: Arc<Cluster>) -> Outcome {
    let nodes: Api<Node> = Api::all(cluster.client());
    let list = nodes.list(&ListParams::default()).await?;
    let shown: Vec<String> = list
        .iter()
        .map(|node| {
            let status = node.status.clone().unwrap_or_default();
            let ready = status
                .conditions
                .iter()
                .flatten()
                .any(|c| c.type_ == "Ready" && c.status == "True");
            let gpus = status
                .allocatable
                .iter()
                .flatten()
                .find(|(key, _)| *key == "nvidia.com/gpu");
            let gpus = gpus.map_or("-", |(_, quantity)| quantity.0.as_str()).to_owned();
            format!("{} {ready} {gpus}", node.metadata.name.as_deref().unwrap_or_default())
        })
        .collect();
    let want = [
        "a100-0 true 8",
        "cpu-0 true -",
        "h100-0 true 8",
        "h100-1 true 8",
        "l40s-0 true 4",
        "mixed-0 true 4",
        "nodriver-0 true -",
        "t4-0 true 4",
    ];
    ensure!(shown == want, "{shown:#?}");
    Ok(())
}

async fn kubectl_and_helm_work(cluster: Arc<Cluster>) -> Outcome {
    let version: serde_json::Value = serde_json::from_str(&cluster.kubectl(&["version", "-o", "json"]).await?)?;
    let server = &version["serverVersion"];
    let minor = server["minor"]
        .as_str()
        .and_then(|m| m.trim_end_matches('+').parse().ok());
    ensure!(
        server["major"] == "1" && minor.is_some_and(|m| toolchain::KUBERNETES_MINORS.contains(&m)),
        "{version:#}"
    );
    // One that was built here is the one that is pinned.
    ensure!(
        std::env::var_os("KUBEBUILDER_ASSETS").is_some() || server["gitVersion"] == toolchain::KUBERNETES_VERSION,
        "{version:#}"
    );
    ensure!(
        cluster
            .helm(&["list", "--all-namespaces", "--output", "json"])
            .await?
            .trim()
            == "[]"
    );
    let refused = cluster
        .apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: x}, colour: red}")
        .await;
    ensure!(refused.is_err_and(|e| e.to_string().contains("unknown field \"colour\"")));
    Ok(())
}

async fn pods_of_others_run(cluster: Arc<Cluster>) -> Outcome {
    cluster
        .apply(
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: others, namespace: default}, spec: {replicas: 3,
          selector: {matchLabels: {app: others}}, template: {metadata: {labels: {app: others}}, spec: {
          containers: [{name: c, image: none.invalid/none, resources: {limits: {nvidia.com/gpu: 8}}}]}}}}",
        )
        .await?;
    cluster
        .kubectl(&["rollout", "status", "deployment/others", "--timeout=60s"])
        .await?;
    let pods = pods(&cluster, "default", "app=others").await?;
    let mut nodes: Vec<String> = pods.iter().filter_map(|p| p.spec.as_ref()?.node_name.clone()).collect();
    nodes.sort();
    ensure!(nodes == ["a100-0", "h100-0", "h100-1"], "{nodes:?}");
    cluster
        .kubectl(&[
            "delete",
            "deployment/others",
            "--wait",
            "--cascade=foreground",
            "--timeout=60s",
        ])
        .await?;
    ensure!(self::pods(&cluster, "default", "app=others").await?.is_empty());
    Ok(())
}

async fn a_driver_appears_and_goes(cluster: Arc<Cluster>) -> Outcome {
    let node = cluster
        .add_node(NodeSpec::new("late-0", "t4", 2).without_driver())
        .await?;
    let nodes: Api<Node> = Api::all(cluster.client());
    let library = node.root().join(format!(
        "usr/lib/{}-linux-gnu/libnvidia-ml.so.1",
        std::env::consts::ARCH
    ));
    for present in [true, false] {
        node.set_driver(present).await?;
        let status = nodes.get("late-0").await?.status.unwrap_or_default();
        let allocatable = status.allocatable.unwrap_or_default();
        ensure!(
            allocatable.get("nvidia.com/gpu").map(|q| q.0.as_str()) == present.then_some("2"),
            "{allocatable:?}"
        );
        ensure!(library.exists() == present);
        ensure!(node.sys().join("module/nvidia/version").exists() == present);
        let ready = status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        ensure!(ready, "the driver's writes leave the conditions alone");
    }
    cluster.remove_node("late-0").await?;
    Ok(())
}

/// A pod with everything that the agent's and the controller's pods use, and a shell in their place.
const OWN: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: own}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: own}
spec:
  selector: {app: own, lead: "true"}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: words, namespace: own}
data: {word: first}
---
apiVersion: v1
kind: Pod
metadata: {name: own, namespace: own, labels: {app: own, app.kubernetes.io/part-of: berth}}
spec:
  nodeName: h100-0
  terminationGracePeriodSeconds: 5
  containers:
  - name: shell
    image: none.invalid/none
    command: [/bin/sh, -c]
    args:
    - |
      echo "$NODE $NAMED" > /shared/env
      cat /words/word > /shared/word
      test ! -e /missing/x && ls /host/usr/lib > /shared/lib
      cat /sys-host/class/dmi/id/product_name > /shared/machine
      echo http://web.own.svc:80/ > /shared/service
      trap 'echo ended > /host/ended; exit 0' TERM
      while :; do sleep 0.1; done
    env:
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: NAMED, value: "$(NODE)/x"}
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: words, mountPath: /words}
    - {name: missing, mountPath: /missing}
    - {name: root, mountPath: /host}
    - {name: sys, mountPath: /sys-host}
    - {name: token, mountPath: /var/run/secrets/berth}
  - name: web
    image: none.invalid/none
    command: [THIS_PROGRAM]
    args: [serve, --address=0.0.0.0:8080, --folder=/shared]
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1, failureThreshold: 1}
    volumeMounts: [{name: shared, mountPath: /shared}]
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: words, configMap: {name: words}}
  - {name: missing, configMap: {name: missing, optional: true}}
  - {name: root, hostPath: {path: /}}
  - {name: sys, hostPath: {path: /sys}}
  - name: token
    projected:
      sources: [{serviceAccountToken: {audience: somebody, expirationSeconds: 3600, path: token}}]
"#;

/// Makes the pod, unless it is there, and waits until its shell has written what it sees.
async fn own_pod(cluster: &Arc<Cluster>) -> anyhow::Result<std::path::PathBuf> {
    let program = std::env::current_exe()?.display().to_string();
    cluster.apply(&OWN.replace("THIS_PROGRAM", &program)).await?;
    let shared = wait_for("the pod's shared folder", SOON, || async {
        find(cluster, "shared/service").ok_or_else(|| "nothing".to_owned())
    });
    Ok(shared.await?)
}

async fn our_own_pods_are_processes(cluster: Arc<Cluster>) -> Outcome {
    let shared = own_pod(&cluster).await?;
    let folder = shared.parent().context("shared")?.to_path_buf();
    let read = |name: &str| {
        std::fs::read_to_string(folder.join(name))
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    ensure!(read("env") == "h100-0 h100-0/x", "{}", read("env"));
    ensure!(read("word") == "first");
    ensure!(
        read("lib") == format!("{}-linux-gnu", std::env::consts::ARCH),
        "{}",
        read("lib")
    );
    ensure!(read("machine") == "DGXH100");
    let service = read("service");
    let forwarder = service.trim_start_matches("http://").trim_end_matches('/').to_owned();
    ensure!(forwarder.starts_with("127.0.0.1:"), "{service}");

    // Ready follows the probe, and the Service follows labels and readiness.
    let ready = |want: &'static str| {
        let cluster = cluster.clone();
        async move {
            wait_for(&format!("Ready={want}"), SOON, || async {
                let json = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
                let got = cluster.kubectl(&["get", "pod", "own", "-n", "own", "-o", json]).await;
                let got = got.map_err(|e| e.to_string())?;
                if got == want { Ok(()) } else { Err(got) }
            })
            .await
        }
    };
    ready("False").await?;
    std::fs::write(folder.join("ready"), "")?;
    ready("True").await?;
    ensure!(!answers(&forwarder).await, "no pod has the label yet");
    cluster
        .kubectl(&["label", "pod", "own", "-n", "own", "lead=true"])
        .await?;
    wait_for("the Service to answer", SOON, || async {
        if answers(&forwarder).await {
            Ok(())
        } else {
            Err("no answer".to_owned())
        }
    })
    .await?;
    cluster.kubectl(&["label", "pod", "own", "-n", "own", "lead-"]).await?;
    wait_for("the Service to be without endpoints", SOON, || async {
        if answers(&forwarder).await {
            Err("it answers".to_owned())
        } else {
            Ok(())
        }
    })
    .await?;

    // Content follows the ConfigMaps.
    let base = folder.parent().context("pod folder")?.to_path_buf();
    cluster
        .kubectl(&[
            "patch",
            "configmap",
            "words",
            "-n",
            "own",
            "-p",
            r#"{"data":{"word":"second"}}"#,
        ])
        .await?;
    cluster
        .kubectl(&["create", "configmap", "missing", "-n", "own", "--from-literal=x=y"])
        .await?;
    wait_for("new content", SOON, || async {
        let seen =
            [base.join("words/word"), base.join("missing/x")].map(|p| std::fs::read_to_string(p).unwrap_or_default());
        if seen == ["second", "y"] {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await?;

    // The token is a real one, bound to the pod and its node, for its own audience alone.
    let token = std::fs::read_to_string(base.join("token/token"))?;
    let review = serde_json::json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": ["somebody"]},
    });
    let review = cluster
        .kubectl_with_input(&["create", "-o", "json", "-f", "-"], &review.to_string())
        .await?;
    let review: serde_json::Value = serde_json::from_str(&review)?;
    let user = &review["status"]["user"];
    ensure!(user["username"] == "system:serviceaccount:own:default", "{review:#}");
    ensure!(
        user["extra"]["authentication.kubernetes.io/node-name"][0] == "h100-0",
        "{review:#}"
    );

    // A process that dies is started again.
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "own");
    let shell = cluster.process_in("own", "own", "shell")?;
    shell.signal(Signal::KILL);
    wait_for("a restart", SOON, || async {
        let status = pods
            .get("own")
            .await
            .map_err(|e| e.to_string())?
            .status
            .unwrap_or_default();
        let list = status.container_statuses.unwrap_or_default();
        let shell = list.iter().find(|c| c.name == "shell").ok_or("no status")?;
        let code = shell
            .last_state
            .as_ref()
            .and_then(|s| s.terminated.as_ref())
            .map(|t| t.exit_code);
        let running = shell.state.as_ref().is_some_and(|s| s.running.is_some());
        if shell.restart_count == 1 && code == Some(137) && running {
            Ok(())
        } else {
            Err(format!("{shell:?}"))
        }
    })
    .await?;
    Ok(())
}

async fn a_deleted_pod_ends(cluster: Arc<Cluster>) -> Outcome {
    own_pod(&cluster).await?;
    let shell = cluster.process_in("own", "own", "shell")?;
    cluster
        .kubectl(&["delete", "pod", "own", "-n", "own", "--timeout=30s"])
        .await?;
    ensure!(shell.exit().is_some());
    let said = std::fs::read_to_string(cluster.node("h100-0")?.root().join("ended"))?;
    ensure!(said == "ended\n", "SIGTERM came before SIGKILL");
    let left = process::leftovers(cluster.state());
    ensure!(!left.iter().any(|r| r.name.starts_with("own-")), "{left:?}");
    ensure!(find(&cluster, "shared/service").is_none());
    Ok(())
}

async fn a_job_completes(cluster: Arc<Cluster>) -> Outcome {
    cluster
        .apply("{apiVersion: v1, kind: Namespace, metadata: {name: own}}")
        .await?;
    cluster
        .apply(
            r#"{apiVersion: batch/v1, kind: Job, metadata: {name: work, namespace: own}, spec: {backoffLimit: 0,
          template: {metadata: {labels: {app.kubernetes.io/part-of: berth}}, spec: {restartPolicy: OnFailure,
          initContainers: [{name: before, image: none.invalid/none, command: [/bin/sh, -c, "echo 1 > /shared/x"],
            volumeMounts: [{name: shared, mountPath: /shared}]}],
          containers: [{name: c, image: none.invalid/none, command: [/bin/sh, -c],
            args: ["test $(cat /shared/x) = 2 && exit 0; echo 2 > /shared/x; exit 1"],
            volumeMounts: [{name: shared, mountPath: /shared}]}],
          volumes: [{name: shared, emptyDir: {}}]}}}}"#,
        )
        .await?;
    cluster
        .kubectl(&[
            "wait",
            "job/work",
            "-n",
            "own",
            "--for=condition=Complete",
            "--timeout=60s",
        ])
        .await?;
    cluster
        .kubectl(&[
            "delete",
            "job/work",
            "-n",
            "own",
            "--cascade=foreground",
            "--timeout=60s",
        ])
        .await?;
    Ok(())
}

async fn pods(cluster: &Cluster, namespace: &str, labels: &str) -> anyhow::Result<Vec<Pod>> {
    let api: Api<Pod> = Api::namespaced(cluster.client(), namespace);
    Ok(api.list(&ListParams::default().labels(labels)).await?.items)
}

/// A file below any pod's folder.
fn find(cluster: &Cluster, path: &str) -> Option<std::path::PathBuf> {
    let pods = std::fs::read_dir(cluster.state().join("pods")).ok()?;
    pods.flatten()
        .map(|entry| entry.path().join(path))
        .find(|path| path.exists())
}

/// Whether something speaks HTTP behind an address.
async fn answers(address: &str) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else {
        return false;
    };
    let _ = stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n").await;
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer.starts_with("HTTP/1.0 200")
}

/// What a container of the test's pod runs: 200 for a file that is in the folder, 503 for any other.
fn serve_files(address: &str, folder: &str) -> ExitCode {
    use std::io::{BufRead, BufReader, Write};
    let value = |argument: &str| {
        argument
            .split_once('=')
            .map(|(_, value)| value.to_owned())
            .unwrap_or_default()
    };
    let (address, folder) = (value(address), std::path::PathBuf::from(value(folder)));
    let Ok(listener) = std::net::TcpListener::bind(&address) else {
        return ExitCode::FAILURE;
    };
    for mut stream in listener.incoming().flatten() {
        let mut line = String::new();
        let _ = BufReader::new(&stream).read_line(&mut line);
        let name = line
            .split(' ')
            .nth(1)
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned();
        let status = if folder.join(name).exists() {
            "200 OK"
        } else {
            "503 Unavailable"
        };
        let _ = write!(stream, "HTTP/1.0 {status}\r\nContent-Length: 0\r\n\r\n");
    }
    ExitCode::SUCCESS
}
