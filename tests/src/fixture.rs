//! What trials do again and again on a running cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use berth_crds::premlabs::AIDeployment;
use berth_local::{Cluster, Signal};
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The installation's namespace.
pub const NAMESPACE: &str = "berth-system";

/// Patience for what a user would call "at once".
const SOON: Duration = Duration::from_secs(30);

/// A running cluster with the installation in it.
#[derive(Clone)]
pub struct Fixture {
    /// The cluster itself.
    pub cluster: Arc<Cluster>,
}

/// Asks every 100 ms until there is an answer; the error says what was seen last.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut check: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        match check().await {
            Ok(answer) => return Ok(answer),
            Err(last) if started.elapsed() >= within => {
                return Err(last.context(format!("not within {} s: {what}", within.as_secs())));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// `(status, reason, message)` of a condition that is about `generation`.
pub fn condition(
    conditions: &[Condition],
    type_: &str,
    generation: Option<i64>,
) -> anyhow::Result<(String, String, String)> {
    let found = conditions.iter().find(|c| c.type_ == type_);
    let c = found.with_context(|| format!("no condition {type_} in {conditions:?}"))?;
    ensure!(
        c.observed_generation == generation,
        "{type_} is about generation {:?}, not {generation:?}",
        c.observed_generation
    );
    Ok((c.status.clone(), c.reason.clone(), c.message.clone()))
}

/// An Event, slim.
#[derive(Debug, Clone)]
pub struct Said {
    /// Reason.
    pub reason: String,
    /// Note.
    pub message: String,
}

/// One API request of a ServiceAccount, from the API server's audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Verb as RBAC knows it.
    pub verb: String,
    /// API group; empty: core.
    pub group: String,
    /// Resource with its subresource (`pods/status`); `None`: not a resource.
    pub resource: Option<String>,
    /// Path and query.
    pub uri: String,
    /// RBAC (or another authorizer) refused it; admission is another matter.
    pub forbidden: bool,
}

/// An AIDeployment of engine vllm.
pub fn vllm(name: &str, deployment: Value) -> Value {
    json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIDeployment", "metadata": {"name": name}, "spec": {
        "engine": {"name": "vllm"}, "models": [{"uri": "mistralai/Mistral-7B-v0.1"}], "deployment": deployment}})
}

impl Fixture {
    /// Around a cluster.
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster }
    }

    /// A client that may do everything.
    pub fn client(&self) -> Client {
        self.cluster.client()
    }

    /// A client that acts as a user of its own name.
    pub async fn client_as(&self, user: &str) -> anyhow::Result<Client> {
        let kubeconfig = kube::config::Kubeconfig::read_from(self.cluster.kubeconfig())?;
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        config.auth_info.impersonate = Some(user.to_owned());
        config.auth_info.impersonate_groups =
            Some(vec!["system:serviceaccounts".into(), "system:authenticated".into()]);
        Ok(Client::try_from(config)?)
    }

    /// kubectl's stdout.
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        Ok(self.cluster.kubectl(args).await?)
    }

    /// helm's stdout.
    pub async fn helm(&self, args: &[&str]) -> anyhow::Result<String> {
        Ok(self.cluster.helm(args).await?)
    }

    /// A file of the checkout.
    pub fn repo(&self, path: &str) -> String {
        checkout().join(path).display().to_string()
    }

    /// A new namespace in which pods can be made.
    pub async fn namespace(&self, prefix: &str) -> anyhow::Result<String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let object = json!({"metadata": {"name": name}});
        Api::<Namespace>::all(self.client())
            .create(&PostParams::default(), &serde_json::from_value(object)?)
            .await?;
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), &name);
        eventually("the default ServiceAccount", SOON, async || {
            Ok(accounts.get("default").await?)
        })
        .await?;
        Ok(name)
    }

    /// Deletes a namespace and waits until what held GPUs in it is gone.
    pub async fn delete_namespace(&self, name: &str) -> anyhow::Result<()> {
        Api::<Namespace>::all(self.client())
            .delete(name, &DeleteParams::default())
            .await?;
        eventually(
            &format!("namespace {name} is gone"),
            Duration::from_secs(90),
            async || {
                ensure!(Api::<Namespace>::all(self.client()).get_opt(name).await?.is_none());
                Ok(())
            },
        )
        .await
    }

    /// Events on a cluster-scoped object.
    pub async fn events(&self, kind: &str, name: &str) -> anyhow::Result<Vec<Said>> {
        self.events_in("default", kind, name).await
    }

    /// Events on an object of a namespace.
    pub async fn events_in(&self, namespace: &str, kind: &str, name: &str) -> anyhow::Result<Vec<Said>> {
        let selector = format!("involvedObject.kind={kind},involvedObject.name={name}");
        let list = Api::<Event>::namespaced(self.client(), namespace)
            .list(&ListParams::default().fields(&selector))
            .await?;
        let said = |e: Event| Said {
            reason: e.reason.unwrap_or_default(),
            message: e.message.unwrap_or_default(),
        };
        Ok(list.items.into_iter().map(said).collect())
    }

    /// Every finished request of a user, in order.
    pub async fn audit(&self, user: &str) -> anyhow::Result<Vec<Call>> {
        let text = |e: &Value, path: &str| e.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let events = self.cluster.audit()?;
        let of_user = events
            .iter()
            .filter(|e| text(e, "/user/username") == user && text(e, "/stage") != "RequestReceived");
        Ok(of_user
            .map(|e| {
                let sub = text(e, "/objectRef/subresource");
                let resource = e.pointer("/objectRef/resource").and_then(Value::as_str);
                Call {
                    verb: text(e, "/verb"),
                    group: text(e, "/objectRef/apiGroup"),
                    resource: resource.map(|r| {
                        if sub.is_empty() {
                            r.to_owned()
                        } else {
                            format!("{r}/{sub}")
                        }
                    }),
                    uri: text(e, "/requestURI"),
                    forbidden: e["annotations"]["authorization.k8s.io/decision"] == "forbid",
                }
            })
            .collect())
    }

    /// The controller's writes to a resource (empty: any), Leases and Events aside, as `verb uri`.
    pub async fn controller_writes(&self, resource: &str) -> anyhow::Result<Vec<String>> {
        let calls = self
            .audit(&format!("system:serviceaccount:{NAMESPACE}:berth-controller"))
            .await?;
        let written = calls
            .into_iter()
            .filter(|c| ["create", "update", "patch", "delete"].contains(&c.verb.as_str()));
        let of = |c: &Call| c.resource.clone().unwrap_or_default();
        let counted = written.filter(|c| !["leases", "events", "tokenreviews"].contains(&of(c).as_str()));
        let wanted =
            counted.filter(|c| resource.is_empty() || of(c) == resource || of(c).starts_with(&format!("{resource}/")));
        Ok(wanted.map(|c| format!("{} {}", c.verb, c.uri)).collect())
    }

    async fn pod_of(&self, component: &str, node: Option<&str>) -> anyhow::Result<Pod> {
        let pods = self.cluster.pods_of(component, node).await?;
        let alive = pods.into_iter().find(|p| p.metadata.deletion_timestamp.is_none());
        alive.with_context(|| format!("no {component} pod on {node:?}"))
    }

    /// Kills a container's process and waits until another runs in its place.
    async fn restart_container(&self, pod: &str, container: &str) -> anyhow::Result<()> {
        let process = self.cluster.process(pod, container)?;
        process.signal(Signal::KILL);
        process.ended().await;
        let pid = process.pid();
        eventually(
            &format!("{pod}/{container} runs again"),
            Duration::from_secs(60),
            async || {
                let again = self.cluster.process(pod, container)?;
                ensure!(again.pid() != pid && again.exit().is_none());
                Ok(())
            },
        )
        .await
    }

    /// Kills a node's agent; the kubelet starts another, which connects.
    pub async fn restart_agent(&self, node: &str) -> anyhow::Result<()> {
        let pod = self.pod_of("agent", Some(node)).await?.name_any();
        self.restart_container(&pod, "agent").await?;
        self.connected(&[node.to_owned()]).await
    }

    /// Kills a node's probe; the kubelet starts another.
    pub async fn kill_probe(&self, node: &str) -> anyhow::Result<()> {
        let pod = self.pod_of("agent", Some(node)).await?.name_any();
        let process = self.cluster.process(&pod, "probe")?;
        process.signal(Signal::KILL);
        process.ended().await;
        Ok(())
    }

    /// Kills every controller process; the kubelet starts others, and one of them leads.
    pub async fn restart_controller(&self) -> anyhow::Result<()> {
        for pod in self.cluster.pods_of("controller", None).await? {
            self.restart_container(&pod.name_any(), "controller").await?;
        }
        eventually("a leader", Duration::from_secs(60), async || {
            self.controller_json("/nodes").await.map(drop)
        })
        .await
    }

    /// Waits until the agent of every node of the fleet has a session.
    pub async fn all_agents_connected(&self) -> anyhow::Result<()> {
        let names: Vec<String> = self.cluster.nodes().iter().map(|n| n.name().to_owned()).collect();
        self.connected(&names).await
    }

    async fn connected(&self, names: &[String]) -> anyhow::Result<()> {
        eventually("agents are connected", Duration::from_secs(60), async || {
            let nodes = self.controller_json("/nodes").await?;
            let silent: Vec<&String> = names
                .iter()
                .filter(|n| nodes[n.as_str()]["agent"]["connected"] != json!(true))
                .collect();
            ensure!(silent.is_empty(), "not connected: {silent:?}");
            Ok(())
        })
        .await
    }

    /// Where the agent link of the leader is reached.
    pub async fn link_address(&self) -> anyhow::Result<String> {
        Ok(self
            .cluster
            .services()
            .forwarder(NAMESPACE, "berth-controller", 8443)?
            .to_string())
    }

    async fn controller_get(&self, path: &str) -> anyhow::Result<String> {
        let address = self.cluster.services().forwarder(NAMESPACE, "berth-controller", 8080)?;
        let exchange = async {
            let mut stream = TcpStream::connect(address).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: berth-controller\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = tokio::time::timeout(Duration::from_secs(5), exchange)
            .await
            .context("no answer")??;
        let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.contains(" 200 "), "{path}: {status}: {body}");
        ensure!(
            !head.to_ascii_lowercase().contains("transfer-encoding: chunked"),
            "{path} is chunked"
        );
        Ok(body.to_owned())
    }

    /// A JSON page of the leading controller; `/nodes` comes as an object by node name.
    pub async fn controller_json(&self, path: &str) -> anyhow::Result<Value> {
        let value: Value = serde_json::from_str(&self.controller_get(path).await?)?;
        Ok(match value {
            Value::Array(all) if path == "/nodes" => {
                let named = all
                    .into_iter()
                    .filter_map(|n| Some((n.get("node")?.as_str()?.to_owned(), n)));
                Value::Object(named.collect())
            }
            other => other,
        })
    }

    /// Sum of a metric's series on the leading controller.
    pub async fn metric_sum(&self, name: &str) -> anyhow::Result<f64> {
        let text = self.controller_get("/metrics").await?;
        let series = text.lines().filter(|l| l.starts_with(name));
        Ok(series.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Logs of all controllers.
    pub async fn controller_logs(&self) -> anyhow::Result<String> {
        let mut all = String::new();
        for pod in self.cluster.pods_of("controller", None).await? {
            all += &std::fs::read_to_string(self.cluster.log(&pod.name_any(), "controller"))?;
        }
        Ok(all)
    }

    /// A Node that nothing runs on, with an agent's pod bound to it for which tokens can be had.
    pub async fn bare_node_with_agent_pod(&self, node: &str) -> anyhow::Result<(String, Pod)> {
        // Tainted, so that the DaemonSet's own pod is the only thing that could come, and without the label that it asks for.
        let object = json!({"metadata": {"name": node}, "spec": {"taints": [{"key": "test", "effect": "NoSchedule"}]}});
        Api::<Node>::all(self.client())
            .create(&PostParams::default(), &serde_json::from_value(object)?)
            .await?;
        let pod = json!({"metadata": {"name": format!("agent-of-{node}")}, "spec": {
            "nodeName": node, "serviceAccountName": "berth-agent", "containers": [{"name": "c", "image": "x"}]}});
        let pods = Api::<Pod>::namespaced(self.client(), NAMESPACE);
        let pod = pods
            .create(&PostParams::default(), &serde_json::from_value(pod)?)
            .await?;
        Ok((node.to_owned(), pod))
    }

    /// A Ready Node without an agent, run by KWOK.
    pub async fn add_node(&self, name: &str, labels: Value, gpus: Value) -> anyhow::Result<()> {
        let mut amounts = json!({"cpu": "64", "memory": "512Gi", "pods": "110", "ephemeral-storage": "1Ti"});
        for (key, value) in gpus.as_object().into_iter().flatten() {
            amounts[key] = value.clone();
        }
        let object = json!({
            "metadata": {"name": name, "labels": labels, "annotations": {
                berth_local::KWOK_ANNOTATION: berth_local::KWOK_ANNOTATION_VALUE}},
            "status": {"allocatable": amounts, "capacity": amounts},
        });
        let nodes = Api::<Node>::all(self.client());
        nodes
            .create(&PostParams::default(), &serde_json::from_value(object)?)
            .await?;
        nodes
            .patch_status(
                name,
                &PatchParams::default(),
                &Patch::Merge(&json!({"status": {"allocatable": amounts, "capacity": amounts}})),
            )
            .await?;
        Ok(())
    }

    /// Applies an AIDeployment as a user would; unknown fields are errors.
    pub async fn apply(&self, namespace: &str, object: Value) -> anyhow::Result<()> {
        let name = object["metadata"]["name"].as_str().context("a name")?.to_owned();
        let params = PatchParams::apply("user").force().validation_strict();
        let api = Api::<AIDeployment>::namespaced(self.client(), namespace);
        api.patch(&name, &params, &Patch::Apply(&object))
            .await
            .with_context(|| format!("apply {name}"))?;
        Ok(())
    }

    /// Applies an AIDeployment of engine vllm.
    pub async fn apply_vllm(&self, namespace: &str, name: &str, deployment: Value) -> anyhow::Result<()> {
        self.apply(namespace, vllm(name, deployment)).await
    }

    /// Waits for a condition of an AIDeployment; its message.
    pub async fn expect_condition(
        &self,
        namespace: &str,
        name: &str,
        type_: &str,
        wanted: (&str, &str),
    ) -> anyhow::Result<String> {
        let api = Api::<AIDeployment>::namespaced(self.client(), namespace);
        eventually(&format!("{type_} of {name} is {wanted:?}"), SOON, async || {
            let object = api.get(name).await?;
            let conditions = object.status.clone().unwrap_or_default().conditions;
            let (status, reason, message) = condition(&conditions, type_, object.metadata.generation)?;
            ensure!(
                (status.as_str(), reason.as_str()) == wanted,
                "is {status} {reason}: {message}"
            );
            Ok(message)
        })
        .await
    }

    /// Nodes that the pods of an AIDeployment are bound to, sorted.
    pub async fn nodes_of(&self, namespace: &str, name: &str) -> anyhow::Result<Vec<String>> {
        let selector = format!("mlcontroller.premlabs.io/ai-deployment={name}");
        let list = Api::<Pod>::namespaced(self.client(), namespace)
            .list(&ListParams::default().labels(&selector))
            .await?;
        let mut nodes: Vec<String> = list.iter().filter_map(|p| p.spec.as_ref()?.node_name.clone()).collect();
        nodes.sort();
        Ok(nodes)
    }

    /// Faults of a node's fake NVML, in that library's format; none: it is well.
    pub fn set_faults(&self, node: &str, faults: Vec<Value>) -> anyhow::Result<()> {
        Ok(self.cluster.node(node)?.set_faults(faults)?)
    }

    /// Bytes in use on every GPU of a node.
    pub fn fill_memory(&self, node: &str, bytes: u64) -> anyhow::Result<()> {
        let node = self.cluster.node(node)?;
        let gpus: u32 = node.spec().gpus.iter().map(|g| g.count).sum();
        for gpu in 0..gpus as usize {
            node.set_memory_used(gpu, bytes)?;
        }
        Ok(())
    }
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default()
}
