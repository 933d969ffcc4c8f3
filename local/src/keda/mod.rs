//! Real KEDA in a cluster: its CRDs, its operator and its metrics server as plain processes.
//!
//! ```text
//! HPA controller ─► API server ─► APIService ─► Service (ExternalName localhost) ─► adapter ─► operator ─► the scaler's source
//!                                                                                    gRPC, both sides with certificates
//! ```

mod build;

use std::path::Path;
use std::time::Duration;

use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::Api;
use serde_json::json;

pub use build::{Built, VERSION};

use crate::cluster::{Cluster, wait_for};
use crate::controlplane::wait;
use crate::error::{Error, Result};
use crate::port::Ports;
use crate::process::{Launch, Process, Processes};
use crate::progress::Progress;

/// Steps that a cluster with KEDA shows beside the others: its build, its start.
pub const STEPS: usize = 2;
/// Where KEDA's own objects are; also in the names of its certificate.
const NAMESPACE: &str = "keda";
/// The group of metrics that only one server of a cluster can serve.
const METRICS: &str = "v1beta1.external.metrics.k8s.io";
const PATIENCE: Duration = Duration::from_secs(60);

/// The running servers of KEDA.
pub struct Keda {
    /// In order of start.
    processes: Vec<Process>,
}

impl Keda {
    /// Starts it in a cluster; ready means that the API server gets metrics from it.
    pub async fn start(
        cluster: &Cluster,
        built: &Built,
        ports: &Ports,
        processes: &Processes,
        progress: &Progress,
    ) -> Result<Self> {
        let step = progress.begin("keda servers", "");
        let crds = built.crds.display().to_string();
        // The CRD of ScaledJobs is too large for the annotation of a client-side apply.
        cluster.kubectl(&["apply", "--server-side", "-f", &crds]).await?;
        let servers = Servers {
            kubeconfig: cluster.kubeconfig().display().to_string(),
            certificates: cluster.control_plane().keda_certificates.clone(),
            health: ports.take()?,
            grpc: ports.take()?,
            adapter: ports.take()?,
            metrics: ports.take()?,
        };
        cluster.apply(&servers.objects()?).await?;
        let spawn = |name: &str, program: &Path, args: Vec<String>| {
            processes.spawn(&Launch {
                name: name.to_owned(),
                program: program.to_path_buf(),
                args,
                env: servers.env(),
                log: cluster.state().join("logs").join(format!("{name}.log")),
                ..Launch::default()
            })
        };
        let operator = spawn("keda-operator", &built.operator, servers.operator())?;
        wait::until_listening(&operator, servers.grpc).await?;
        let adapter = spawn("keda-adapter", &built.adapter, servers.adapter())?;
        wait::until_listening(&adapter, servers.adapter).await?;
        let keda = Self {
            processes: vec![operator, adapter],
        };
        tokio::select! {
            result = step.watch(until_available(cluster)) => result?,
            error = keda.failed() => return Err(error),
        }
        step.done("ready");
        Ok(keda)
    }

    /// Waits until one ends by itself, which none should.
    pub async fn failed(&self) -> Error {
        let ends = self.processes.iter().map(|process| {
            Box::pin(async move {
                let exit = process.ended().await;
                process.ended_error(exit)
            })
        });
        futures::future::select_all(ends).await.0
    }

    /// Ends both.
    pub async fn stop(&self) {
        for process in self.processes.iter().rev() {
            process.stop(Duration::ZERO).await;
        }
    }
}

async fn until_available(cluster: &Cluster) -> Result<()> {
    let api: Api<APIService> = Api::all(cluster.client());
    wait_for(&format!("APIService {METRICS} to be Available"), PATIENCE, || async {
        let object = api.get(METRICS).await.map_err(|e| e.to_string())?;
        let conditions = object.status.and_then(|s| s.conditions).unwrap_or_default();
        let condition = conditions.iter().find(|c| c.type_ == "Available");
        match condition {
            Some(c) if c.status == "True" => Ok(()),
            Some(c) => Err(c.message.clone().unwrap_or_default()),
            None => Err("no condition".to_owned()),
        }
    })
    .await
}

struct Servers {
    kubeconfig: String,
    certificates: std::path::PathBuf,
    health: u16,
    grpc: u16,
    adapter: u16,
    metrics: u16,
}

impl Servers {
    fn env(&self) -> std::collections::BTreeMap<String, String> {
        [
            ("KUBECONFIG", self.kubeconfig.as_str()),
            // All namespaces; the variable has to be there.
            ("WATCH_NAMESPACE", ""),
            ("POD_NAMESPACE", NAMESPACE),
            // In a pod it is read from the ServiceAccount's files.
            ("KEDA_CLUSTER_OBJECT_NAMESPACE", NAMESPACE),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    fn operator(&self) -> Vec<String> {
        vec![
            "--leader-elect=false".to_owned(),
            "--enable-cert-rotation=false".to_owned(),
            format!("--cert-dir={}", self.certificates.display()),
            format!("--metrics-service-bind-address=127.0.0.1:{}", self.grpc),
            format!("--health-probe-bind-address=127.0.0.1:{}", self.health),
            "--metrics-bind-address=0".to_owned(),
        ]
    }

    fn adapter(&self) -> Vec<String> {
        let certificate = |name: &str| self.certificates.join(name).display().to_string();
        vec![
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.adapter),
            format!("--metrics-service-address=127.0.0.1:{}", self.grpc),
            // Always on all addresses, and cannot be turned off.
            format!("--port={}", self.metrics),
            format!("--cert-dir={}", self.certificates.display()),
            format!("--client-ca-file={}", certificate("ca.crt")),
            format!("--tls-cert-file={}", certificate("tls.crt")),
            format!("--tls-private-key-file={}", certificate("tls.key")),
            format!("--lister-kubeconfig={}", self.kubeconfig),
            format!("--authentication-kubeconfig={}", self.kubeconfig),
            format!("--authorization-kubeconfig={}", self.kubeconfig),
        ]
    }

    /// How the API server finds the adapter: Services of type ExternalName are the only ones without a pod network behind them.
    fn objects(&self) -> Result<String> {
        const SERVICE: &str = "keda-metrics-apiserver";
        let ca = self.certificates.join("ca.crt");
        let ca = std::fs::read(&ca).map_err(Error::file("read", &ca))?;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": SERVICE, "namespace": NAMESPACE},
                "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": self.adapter}]}},
            {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": METRICS}, "spec": {
                "group": "external.metrics.k8s.io", "version": "v1beta1",
                "groupPriorityMinimum": 100, "versionPriority": 100,
                "caBundle": k8s_openapi::ByteString(ca),
                "service": {"name": SERVICE, "namespace": NAMESPACE, "port": self.adapter}}},
        ]});
        Ok(list.to_string())
    }
}
