//! One cluster behind one handle: start it, look at it, disturb it, end it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1 as core;
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::controlplane::ControlPlane;
use crate::error::{Error, Result};
use crate::fleet::{Fleet, Node, NodeSpec, Nodes};
use crate::keda::{self, Keda};
use crate::kubelet::{Kubelet, Setup};
use crate::port::Ports;
use crate::process::{self, Process, Processes};
use crate::progress::Progress;
use crate::service::Services;
use crate::state::StateFolder;
use crate::toolchain::{Programs, Tool, Toolchain};

/// Steps that [`Cluster::start`] shows: one a tool, then programs, control plane, nodes, charts. [`keda::STEPS`] more with KEDA.
pub const STEPS: usize = Tool::ALL.len() + 4;
/// Namespace of the installation.
pub const NAMESPACE: &str = "berth-system";

/// Nodes are up in a second; this is for a machine that is busy with something else.
const NODES_READY: Duration = Duration::from_secs(60);

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its machines.
    pub fleet: Fleet,
    /// Namespace of the installation.
    pub namespace: String,
    /// What runs in it.
    pub install: Install,
    /// Whether KEDA is installed before the charts, and autoscalers act within seconds.
    pub keda: bool,
    /// Whether our programs are built with optimisation.
    pub release: bool,
    /// Where progress is shown.
    pub progress: Progress,
}

/// What runs in a new cluster.
#[derive(Debug, Clone)]
pub enum Install {
    /// Our charts, with these values.
    Charts(Value),
    /// Nothing.
    Nothing,
}

impl Install {
    /// Our charts with these values, over what every cluster here needs: no GPU operator makes the RuntimeClass of GPU pods.
    pub fn charts(values: Value) -> Self {
        let mut all = serde_json::json!({"runtimeClass": {"create": true}});
        merge(&mut all, values);
        Self::Charts(all)
    }
}

/// As Helm merges values: objects key by key, anything else is replaced; null (from an empty file) changes nothing.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (_, Value::Null) => {}
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

impl Options {
    /// The charts on a fleet, with their default values but for the RuntimeClass: nothing here installs NVIDIA's container toolkit,
    /// which brings it on real clusters, and without it no GPU pod is admitted.
    pub fn new(fleet: Fleet) -> Self {
        Self {
            fleet,
            namespace: NAMESPACE.to_owned(),
            install: Install::charts(Value::Null),
            keda: false,
            release: false,
            progress: Progress::silent(),
        }
    }
}

/// A running cluster. End it with [`Cluster::stop`]; dropped, its processes end with the runtime.
pub struct Cluster {
    namespace: String,
    toolchain: Toolchain,
    processes: Processes,
    control_plane: ControlPlane,
    keda: Option<Keda>,
    nodes: Nodes,
    kubelet: Kubelet,
    state: StateFolder,
}

impl Cluster {
    /// Starts a cluster; what an earlier run left in the state folder is ended and removed first.
    ///
    /// A call that is dropped before it returns leaves processes behind; [`process::sweep`] ends them.
    pub async fn start(state: StateFolder, options: Options) -> Result<Self> {
        let path = state.path().to_path_buf();
        process::sweep(&path).await?;
        state.clear()?;
        let started = match Self::start_in(state, options).await {
            Ok((cluster, install, progress)) => match cluster.fill(install, &progress).await {
                Ok(()) => return Ok(cluster),
                Err(error) => {
                    let _ = cluster.stop().await;
                    Err(error)
                }
            },
            Err(error) => Err(error),
        };
        process::sweep(&path).await?;
        started
    }

    async fn start_in(state: StateFolder, options: Options) -> Result<(Self, Install, Progress)> {
        let progress = options.progress;
        let toolchain = Toolchain::ensure(&progress).await?;
        let keda = match options.keda {
            true => Some(keda::Built::ensure(&progress).await?),
            false => None,
        };
        let programs = Programs::ensure(options.release, &progress).await?;
        let processes = Processes::new(state.path());
        let ports = Arc::new(Ports::default());

        let step = progress.begin("control plane", "starting");
        let starting = ControlPlane::start(
            state.path(),
            &toolchain,
            &ports,
            &processes,
            &options.namespace,
            options.keda,
        );
        let control_plane = step.watch(starting).await?;
        step.done(&format!("ready at {}", control_plane.server));

        let client = control_plane.client.clone();
        let nodes = Nodes::new(&state.short().join("nodes"), &programs.fake_nvml(), client.clone());
        let setup = Setup {
            client: client.clone(),
            state: state.path().to_path_buf(),
            short_state: state.short().to_path_buf(),
            programs: programs.folder.clone(),
            api_server: control_plane.server.clone(),
            api_ca: control_plane.ca.clone(),
            nodes: nodes.clone(),
            ports: ports.clone(),
            processes: processes.clone(),
        };
        let kubelet = Kubelet::start(setup).await?;
        let step = progress.begin("nodes", "");
        for spec in options.fleet.nodes {
            nodes.add(spec).await?;
        }
        let namespace = options.namespace;
        let mut cluster = Self {
            namespace,
            toolchain,
            processes,
            control_plane,
            keda: None,
            nodes,
            kubelet,
            state,
        };
        cluster.unless_failed(cluster.wait_nodes_ready()).await?;
        step.done(&format!("{} ready", cluster.nodes.all().len()));
        if let Some(built) = keda {
            let starting = Keda::start(&cluster, &built, &ports, &cluster.processes, &progress);
            cluster.keda = Some(cluster.unless_failed(starting).await?);
        }
        Ok((cluster, options.install, progress))
    }

    async fn fill(&self, install: Install, progress: &Progress) -> Result<()> {
        match install {
            Install::Nothing => progress.skip("charts", "not wanted"),
            Install::Charts(values) => {
                let step = progress.begin("charts", "helm install, until every pod is ready");
                step.watch(self.unless_failed(self.install(&values))).await?;
                step.done("installed");
            }
        }
        Ok(())
    }

    /// What is waited for may never come once a server has ended.
    async fn unless_failed<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            result = work => result,
            error = self.failed() => Err(error),
        }
    }

    async fn wait_nodes_ready(&self) -> Result<()> {
        let api: Api<core::Node> = Api::all(self.client());
        let want: Vec<String> = self.nodes.all().iter().map(|node| node.name().to_owned()).collect();
        wait_for("every node to be Ready", NODES_READY, || async {
            let list = api.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
            let ready: Vec<String> = list
                .items
                .iter()
                .filter(|n| is_ready(n))
                .filter_map(|n| n.metadata.name.clone())
                .collect();
            let missing: Vec<&String> = want.iter().filter(|name| !ready.contains(name)).collect();
            if missing.is_empty() {
                Ok(())
            } else {
                Err(format!("not Ready: {missing:?}"))
            }
        })
        .await
    }

    /// A client of group `system:masters`.
    pub fn client(&self) -> Client {
        self.control_plane.client.clone()
    }

    /// Kubeconfig of group `system:masters`.
    pub fn kubeconfig(&self) -> &Path {
        &self.control_plane.kubeconfig
    }

    /// Namespace of the installation.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// State folder: logs, kubeconfig, nodes.
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// The control plane's servers.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// Log of a container.
    pub fn log(&self, pod: &str, container: &str) -> PathBuf {
        self.state().join("logs").join(format!("{pod}-{container}.log"))
    }

    /// Requests of ServiceAccounts of the installation's namespace, in order, as audit events.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let path = &self.control_plane.audit_log;
        let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
        // The last line may be half written.
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }

    /// A machine of the fleet.
    pub fn node(&self, name: &str) -> Result<Node> {
        self.nodes.get(name)
    }

    /// All machines, by name.
    pub fn nodes(&self) -> Vec<Node> {
        self.nodes.all()
    }

    /// Adds a machine to the running cluster.
    pub async fn add_node(&self, spec: NodeSpec) -> Result<Node> {
        let node = self.nodes.add(spec).await?;
        self.wait_nodes_ready().await?;
        Ok(node)
    }

    /// Takes a machine out of the running cluster, with everything that runs on it.
    pub async fn remove_node(&self, name: &str) -> Result<()> {
        self.nodes.remove(name).await?;
        // The machine is gone, and nobody is left to end its pods in good order.
        let bound = format!("spec.nodeName={name}");
        let args = [
            "delete",
            "pods",
            "--all-namespaces",
            "--field-selector",
            &bound,
            "--force",
            "--wait=false",
        ];
        self.kubectl(&args).await.map(drop)
    }

    /// The process of a running container in the installation's namespace; signal it, or wait for its end.
    pub fn process(&self, pod: &str, container: &str) -> Result<Process> {
        self.kubelet.process(&self.namespace, pod, container)
    }

    /// The process of a running container in any namespace.
    pub fn process_in(&self, namespace: &str, pod: &str, container: &str) -> Result<Process> {
        self.kubelet.process(namespace, pod, container)
    }

    /// Containers that start from now on know the API server by this URL: something in between, with [`Self::server_certificate`].
    pub fn set_api_server_of_pods(&self, url: &str) {
        self.kubelet.set_api_server(url);
    }

    /// Certificate and key that clients of this cluster trust on any loopback port.
    pub fn server_certificate(&self) -> (&Path, &Path) {
        let pair = &self.control_plane.server_certificate;
        (&pair.cert, &pair.key)
    }

    /// Forwarders of Services, and host ports of pods.
    pub fn services(&self) -> &Services {
        self.kubelet.services()
    }

    /// The pod of a component on a node: `("agent", Some("h100-0"))`, `("controller", None)`.
    pub async fn pods_of(&self, component: &str, node: Option<&str>) -> Result<Vec<core::Pod>> {
        let api: Api<core::Pod> = Api::namespaced(self.client(), &self.namespace);
        let mut params = ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
        if let Some(node) = node {
            params = params.fields(&format!("spec.nodeName={node}"));
        }
        Ok(api
            .list(&params)
            .await
            .map_err(Error::kube(format!("list pods of {component}")))?
            .items)
    }

    /// Where a program of the control plane is.
    pub fn tool(&self, tool: Tool) -> &Path {
        self.toolchain.path(tool)
    }

    /// Runs kubectl; its stdout.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.run(Tool::Kubectl, args, None).await
    }

    /// Runs kubectl with something to read; its stdout.
    pub async fn kubectl_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        self.run(Tool::Kubectl, args, Some(input)).await
    }

    /// Applies YAML or JSON; unknown fields are errors.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        self.kubectl_with_input(&["apply", "--validate=strict", "-f", "-"], manifest)
            .await
    }

    /// Runs helm; its stdout.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        self.run(Tool::Helm, args, None).await
    }

    async fn run(&self, tool: Tool, args: &[&str], input: Option<&str>) -> Result<String> {
        let helm = self.state().join("helm");
        let path = self.toolchain.path(tool);
        let mut child = tokio::process::Command::new(path)
            .args(args)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HELM_CACHE_HOME", helm.join("cache"))
            .env("HELM_CONFIG_HOME", helm.join("config"))
            .env("HELM_DATA_HOME", helm.join("data"))
            .env(process::MARKER, self.state())
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(Error::file("start", path))?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin
                .write_all(input.as_bytes())
                .await
                .map_err(Error::file("write to", path))?;
        }
        let output = child.wait_with_output().await.map_err(Error::file("run", path))?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(stdout);
        }
        Err(Error::Command {
            command: format!("{} {}", tool.name(), args.join(" ")),
            status: output.status.to_string(),
            output: format!("{stdout}{}", String::from_utf8_lossy(&output.stderr))
                .trim_end()
                .to_owned(),
        })
    }

    /// Waits until a server of the control plane or of KEDA ends by itself, which none should.
    pub async fn failed(&self) -> Error {
        let Some(keda) = &self.keda else {
            return self.control_plane.failed().await;
        };
        tokio::select! {
            error = self.control_plane.failed() => error,
            error = keda.failed() => error,
        }
    }

    /// Ends everything; an error if something could not be ended.
    pub async fn stop(self) -> Result<()> {
        self.kubelet.stop().await;
        if let Some(keda) = &self.keda {
            keda.stop().await;
        }
        self.control_plane.stop().await;
        drop(self.processes);
        let left = process::sweep(self.state.path()).await?;
        for record in left {
            tracing::warn!(process = record.name, pid = record.identity.pid, "was ended late");
        }
        Ok(())
    }
}

fn is_ready(node: &core::Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Asks every 100 ms until there is an answer; `Err` says what was seen instead.
pub async fn wait_for<T, F>(what: &str, within: Duration, mut check: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, String>>,
{
    let started = Instant::now();
    loop {
        let last = match check().await {
            Ok(answer) => return Ok(answer),
            Err(last) => last,
        };
        if started.elapsed() >= within {
            return Err(Error::Timeout {
                what: what.to_owned(),
                seconds: within.as_secs(),
                last,
            });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
