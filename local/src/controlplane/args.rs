//! Command lines and configuration files of the servers.

use std::path::{Path, PathBuf};

use crate::fleet::{KWOK_ANNOTATION, KWOK_ANNOTATION_VALUE};
use crate::pki::Pki;

/// Where everything of one control plane is.
pub struct Layout {
    /// Working folder of the servers.
    pub folder: PathBuf,
    /// Folder of the KWOK stages.
    pub stages: PathBuf,
    /// Kubeconfig of group `system:masters`.
    pub kubeconfig: PathBuf,
    /// Certificates and keys.
    pub pki: Pki,
    pub etcd_client: u16,
    pub etcd_peer: u16,
    pub apiserver: u16,
    pub controller_manager: u16,
    pub scheduler: u16,
    /// Whether autoscalers act within seconds.
    pub prompt_autoscaling: bool,
}

fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

fn file(name: &str, path: &Path) -> String {
    flag(name, path.display())
}

impl Layout {
    /// Base URL of the API server.
    pub fn server(&self) -> String {
        format!("https://127.0.0.1:{}", self.apiserver)
    }

    /// Where the API server writes its audit log.
    pub fn audit_log(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    fn etcd_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.etcd_client)
    }

    /// Only clients with a certificate of ours: who can write to etcd can make us run any program.
    pub fn etcd(&self) -> Vec<String> {
        let peer = format!("http://127.0.0.1:{}", self.etcd_peer);
        vec![
            flag("name", "local"),
            file("data-dir", &self.folder.join("etcd")),
            flag("listen-client-urls", self.etcd_url()),
            flag("advertise-client-urls", self.etcd_url()),
            flag("listen-peer-urls", &peer),
            flag("initial-advertise-peer-urls", &peer),
            flag("initial-cluster", format!("local={peer}")),
            flag("client-cert-auth", true),
            file("trusted-ca-file", &self.pki.ca),
            file("cert-file", &self.pki.server.cert),
            file("key-file", &self.pki.server.key),
            // The data goes with the cluster: a machine crash may lose it, and flushing is what etcd waits for most.
            flag("unsafe-no-fsync", true),
            flag("log-level", "warn"),
        ]
    }

    pub fn apiserver(&self) -> Vec<String> {
        let pki = &self.pki;
        vec![
            flag("etcd-servers", self.etcd_url()),
            file("etcd-cafile", &pki.ca),
            file("etcd-certfile", &pki.etcd_client.cert),
            file("etcd-keyfile", &pki.etcd_client.key),
            flag("bind-address", "127.0.0.1"),
            flag("advertise-address", "127.0.0.1"),
            flag("secure-port", self.apiserver),
            // The endpoints of the Service `kubernetes` may not be loopback addresses.
            flag("endpoint-reconciler-type", "none"),
            // Wide enough for scale tests: a /24 stops at 252 Services.
            flag("service-cluster-ip-range", "10.96.0.0/16"),
            flag("authorization-mode", "Node,RBAC"),
            flag("enable-admission-plugins", "NodeRestriction"),
            flag("allow-privileged", true),
            file("client-ca-file", &pki.ca),
            file("tls-cert-file", &pki.server.cert),
            file("tls-private-key-file", &pki.server.key),
            flag("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
            file("service-account-key-file", &pki.service_account_public_key),
            file("service-account-signing-key-file", &pki.service_account_key),
            // Without these no aggregated API server can tell who asks.
            file("requestheader-client-ca-file", &pki.front_proxy_ca),
            flag("requestheader-allowed-names", "front-proxy-client"),
            flag("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
            flag("requestheader-group-headers", "X-Remote-Group"),
            flag("requestheader-username-headers", "X-Remote-User"),
            file("proxy-client-cert-file", &pki.front_proxy_client.cert),
            file("proxy-client-key-file", &pki.front_proxy_client.key),
            file("audit-policy-file", &self.folder.join(AUDIT_POLICY)),
            file("audit-log-path", &self.audit_log()),
            flag("profiling", false),
        ]
    }

    pub fn controller_manager(&self) -> Vec<String> {
        let mut args = vec![
            file("kubeconfig", &self.kubeconfig),
            flag("bind-address", "127.0.0.1"),
            flag("secure-port", self.controller_manager),
            file("tls-cert-file", &self.pki.server.cert),
            file("tls-private-key-file", &self.pki.server.key),
            file("service-account-private-key-file", &self.pki.service_account_key),
            file("root-ca-file", &self.pki.ca),
            flag("controllers", "*"),
            flag("leader-elect", false),
            flag("allocate-node-cidrs", false),
            flag("kube-api-qps", 500),
            flag("kube-api-burst", 1000),
            flag("profiling", false),
        ];
        if self.prompt_autoscaling {
            // Else a number goes down 5 minutes after the load.
            args.push(flag("horizontal-pod-autoscaler-downscale-stabilization", "5s"));
            args.push(flag("horizontal-pod-autoscaler-sync-period", "2s"));
        }
        args
    }

    pub fn scheduler(&self) -> Vec<String> {
        vec![
            file("config", &self.folder.join(SCHEDULER_CONFIG)),
            flag("bind-address", "127.0.0.1"),
            flag("secure-port", self.scheduler),
            file("tls-cert-file", &self.pki.server.cert),
            file("tls-private-key-file", &self.pki.server.key),
        ]
    }

    pub fn kwok(&self) -> Vec<String> {
        vec![
            file("kubeconfig", &self.kubeconfig),
            file("config", &self.folder.join(KWOK_CONFIG)),
            file("config", &self.stages.join("node.yaml")),
            file("config", &self.stages.join("pod.yaml")),
            file("config", &self.stages.join("trouble.yaml")),
        ]
    }

    /// Configuration files of the servers: name and content.
    pub fn files(&self, audited_namespace: &str) -> Vec<(&'static str, String)> {
        vec![
            (AUDIT_POLICY, audit_policy(audited_namespace)),
            (SCHEDULER_CONFIG, scheduler_config(&self.kubeconfig)),
            (KWOK_CONFIG, kwok_config()),
        ]
    }

    pub fn admin_kubeconfig(&self) -> String {
        let pki = &self.pki;
        kubeconfig(
            &self.server(),
            &pki.ca,
            "default",
            &serde_json::json!({
                "client-certificate": pki.admin.cert,
                "client-key": pki.admin.key,
            }),
        )
    }
}

/// A kubeconfig with one context. JSON is YAML.
pub fn kubeconfig(server: &str, ca: &Path, namespace: &str, user: &serde_json::Value) -> String {
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "berth",
        "clusters": [{"name": "berth", "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": "berth", "user": user}],
        "contexts": [{"name": "berth", "context": {"cluster": "berth", "user": "berth", "namespace": namespace}}],
    });
    format!("{config:#}\n")
}

const AUDIT_POLICY: &str = "audit-policy.yaml";
const SCHEDULER_CONFIG: &str = "scheduler.yaml";
const KWOK_CONFIG: &str = "kwok.yaml";

/// Who asked for what, for the ServiceAccounts of one namespace: what our controller does, and that agents do nothing.
fn audit_policy(namespace: &str) -> String {
    format!(
        "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  userGroups: [\"system:serviceaccounts:{namespace}\"]
- level: None
"
    )
}

/// Retries come quickly: what a test waits for should not be a back-off.
fn scheduler_config(kubeconfig: &Path) -> String {
    format!(
        "apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
clientConnection: {{kubeconfig: {:?}, qps: 500, burst: 1000}}
leaderElection: {{leaderElect: false}}
podInitialBackoffSeconds: 1
podMaxBackoffSeconds: 2
",
        kubeconfig.display().to_string()
    )
}

fn kwok_config() -> String {
    format!(
        "apiVersion: config.kwok.x-k8s.io/v1alpha1
kind: KwokConfiguration
metadata: {{name: kwok}}
options:
  manageAllNodes: false
  manageNodesWithAnnotationSelector: {KWOK_ANNOTATION}={KWOK_ANNOTATION_VALUE}
  nodeLeaseDurationSeconds: 40
  nodeLeaseParallelism: 4
  nodePlayStageParallelism: 4
  podPlayStageParallelism: 4
  podsOnNodeSyncParallelism: 4
  cidr: 10.244.0.0/16
  nodeIP: 127.0.0.1
"
    )
}
