//! A real control plane: etcd, API server, controller manager, scheduler, KWOK.
//!
//! ```text
//! pki ─► etcd ─► kube-apiserver ─► kube-controller-manager, kube-scheduler, kwok
//!                     └─► kubeconfig (group system:masters)
//! ```

mod args;
pub(crate) mod wait;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::error::{Error, Result};
use crate::files;
use crate::pki::{Pair, Pki};
use crate::port::Ports;
use crate::process::{Launch, Process, Processes};
use crate::toolchain::{Tool, Toolchain};
use args::Layout;
pub use args::kubeconfig;

/// The running control plane of one cluster.
pub struct ControlPlane {
    /// A client of group `system:masters`.
    pub client: Client,
    /// Its kubeconfig.
    pub kubeconfig: PathBuf,
    /// `https://127.0.0.1:<port>`.
    pub server: String,
    /// What its certificate is signed by.
    pub ca: PathBuf,
    /// Who asked for what, for ServiceAccounts of the watched namespace; one JSON object a line.
    pub audit_log: PathBuf,
    /// What every server presents.
    pub(crate) server_certificate: Pair,
    /// Certificates for KEDA's servers.
    pub keda_certificates: PathBuf,
    /// In order of start.
    processes: Vec<Process>,
}

impl ControlPlane {
    /// Starts it under `state`; ready means that each server says so itself.
    ///
    /// Requests of ServiceAccounts in `audited_namespace` are logged. With `prompt_autoscaling` autoscalers act within seconds.
    pub async fn start(
        state: &Path,
        toolchain: &Toolchain,
        ports: &Ports,
        processes: &Processes,
        audited_namespace: &str,
        prompt_autoscaling: bool,
    ) -> Result<Self> {
        let logs = state.join("logs");
        files::folder(&logs)?;
        let layout = Layout {
            folder: state.join("controlplane"),
            stages: crate::checkout().join("local/stages"),
            kubeconfig: state.join("kubeconfig"),
            pki: Pki::create(&state.join("pki"))?,
            etcd_client: ports.take()?,
            etcd_peer: ports.take()?,
            apiserver: ports.take()?,
            controller_manager: ports.take()?,
            scheduler: ports.take()?,
            prompt_autoscaling,
        };
        files::folder(&layout.folder)?;
        for (name, content) in layout.files(audited_namespace) {
            files::place(&layout.folder.join(name), &content)?;
        }
        files::write(&layout.kubeconfig, layout.admin_kubeconfig().as_bytes(), 0o600)?;
        let client = client(&layout.kubeconfig).await?;

        let spawn = |tool: Tool, args: Vec<String>| {
            processes.spawn(&Launch {
                name: tool.name().to_owned(),
                program: toolchain.path(tool).to_path_buf(),
                args,
                log: logs.join(format!("{}.log", tool.name())),
                folder: Some(layout.folder.clone()),
                ..Launch::default()
            })
        };
        let etcd = spawn(Tool::Etcd, layout.etcd())?;
        wait::until_listening(&etcd, layout.etcd_client).await?;
        let apiserver = spawn(Tool::KubeApiserver, layout.apiserver())?;
        wait::until_ok(&apiserver, &client, "readyz").await?;
        let manager = spawn(Tool::KubeControllerManager, layout.controller_manager())?;
        let scheduler = spawn(Tool::KubeScheduler, layout.scheduler())?;
        let kwok = spawn(Tool::Kwok, layout.kwok())?;
        wait::until_ok(&manager, &anonymous(layout.controller_manager, &layout.pki)?, "healthz").await?;
        wait::until_ok(&scheduler, &anonymous(layout.scheduler, &layout.pki)?, "readyz").await?;
        Ok(Self {
            client,
            server: layout.server(),
            ca: layout.pki.ca.clone(),
            audit_log: layout.audit_log(),
            server_certificate: layout.pki.server.clone(),
            keda_certificates: layout.pki.keda.clone(),
            processes: vec![etcd, apiserver, manager, scheduler, kwok],
            kubeconfig: layout.kubeconfig,
        })
    }

    /// Waits until a server ends by itself, which none should.
    pub async fn failed(&self) -> Error {
        let ends = self.processes.iter().map(|process| {
            Box::pin(async move {
                let exit = process.ended().await;
                process.ended_error(exit)
            })
        });
        futures::future::select_all(ends).await.0
    }

    /// A server's process, for tests that take it away.
    pub fn process(&self, tool: Tool) -> Option<&Process> {
        self.processes.iter().find(|process| process.name() == tool.name())
    }

    /// Ends all servers, clients before what they depend on.
    pub async fn stop(&self) {
        for process in self.processes.iter().rev() {
            // The state goes with the cluster, so there is nothing for them to finish.
            process.stop(Duration::ZERO).await;
        }
    }
}

/// A client from a kubeconfig file.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let broken = |reason: String| Error::Kubeconfig {
        path: kubeconfig.to_path_buf(),
        reason,
    };
    let parsed = Kubeconfig::read_from(kubeconfig).map_err(|e| broken(e.to_string()))?;
    let config = kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
        .await
        .map_err(|e| broken(e.to_string()))?;
    Client::try_from(config).map_err(|e| broken(e.to_string()))
}

/// Whether the API server of a kubeconfig answers that it is ready; one try of 3 s at most.
pub async fn is_healthy(kubeconfig: &Path) -> bool {
    let Ok(client) = client(kubeconfig).await else {
        return false;
    };
    wait::ask(&client, "readyz").await.is_ok()
}

fn anonymous(port: u16, pki: &Pki) -> Result<Client> {
    let url = format!("https://{}:{port}", Ipv4Addr::LOCALHOST);
    let mut config = kube::Config::new(url.parse().map_err(Error::malformed(url.clone()))?);
    config.root_cert = Some(vec![pki.ca_der.clone()]);
    Client::try_from(config).map_err(Error::kube(format!("make a client of {url}")))
}
