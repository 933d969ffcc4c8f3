//! One simulated machine: its Node object, its folder, and what may change on it while it runs.
//!
//! ```text
//! <state>/nodes/<name>/root/      hostPath / of its pods; holds libnvidia-ml.so.1 where there is a driver, and the kubelet's socket
//!                      sys/       hostPath /sys
//!                      proc/      /proc of its pods with hostPID
//!                      nvml.json  what the fake NVML says
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::hardware::NvmlState;
use super::{Devices, Driver, NodeSpec, Processes, sysfs};
use crate::error::{Error, Result};
use crate::files;

/// Annotation of the nodes that KWOK keeps alive.
pub const KWOK_ANNOTATION: &str = "kwok.x-k8s.io/node";
/// Its value.
pub const KWOK_ANNOTATION_VALUE: &str = "fake";

/// What [`Node::open`] needs.
#[derive(Serialize, Deserialize)]
struct Saved {
    spec: NodeSpec,
    library: PathBuf,
}

/// File of [`Saved`] in a machine's folder.
const SAVED: &str = "machine.json";

/// The machines of a running cluster.
#[derive(Clone)]
pub struct Nodes {
    folder: PathBuf,
    library: PathBuf,
    client: Client,
    nodes: Arc<Mutex<BTreeMap<String, Node>>>,
}

impl Nodes {
    /// None yet; each gets a folder below `folder`, and `library` as its `libnvidia-ml.so.1`.
    pub fn new(folder: &Path, library: &Path, client: Client) -> Self {
        Self {
            folder: folder.to_path_buf(),
            library: library.to_path_buf(),
            client,
            nodes: Arc::default(),
        }
    }

    /// Adds a machine to the cluster; its GPUs are advertised when this returns.
    pub async fn add(&self, spec: NodeSpec) -> Result<Node> {
        let folder = self.folder.join(&spec.name);
        files::remove(&folder)?;
        files::folder(&folder.join("root"))?;
        let saved = Saved {
            spec,
            library: self.library.clone(),
        };
        let json = serde_json::to_vec_pretty(&saved).map_err(Error::malformed(SAVED))?;
        files::write(&folder.join(SAVED), &json, 0o600)?;
        let spec = saved.spec;
        let present = spec.driver == Driver::Present;
        sysfs::create(&folder.join("sys"), &spec, present)?;
        let nvml = NvmlState::create(&folder.join("nvml.json"), &spec, present)?;
        let devices = Devices::new(&folder.join("root"), &spec)?;
        let processes = Processes::new(&folder, &folder.join("root"));
        processes.boot()?;
        let node = Node {
            spec: Arc::new(spec),
            folder,
            nvml,
            devices,
            processes,
            library: self.library.clone(),
            api: Api::all(self.client.clone()),
        };
        if present {
            node.place_library(true)?;
        }
        node.devices.serve()?;
        self.nodes.lock().insert(node.spec.name.clone(), node.clone());
        node.create_object().await?;
        node.advertise(node.spec.devices().filter(|_| present)).await?;
        Ok(node)
    }

    /// Takes a machine out of the cluster.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let node = self.get(name)?;
        node.api
            .delete(name, &DeleteParams::default())
            .await
            .map_err(Error::kube(format!("delete node {name}")))?;
        self.nodes.lock().remove(name);
        node.devices.kill();
        Ok(())
    }

    /// A machine by name.
    pub fn get(&self, name: &str) -> Result<Node> {
        self.nodes
            .lock()
            .get(name)
            .cloned()
            .ok_or_else(|| Error::NoNode(name.to_owned()))
    }

    /// All, by name.
    pub fn all(&self) -> Vec<Node> {
        self.nodes.lock().values().cloned().collect()
    }
}

/// One machine of a running cluster. Clones are the same machine.
#[derive(Debug, Clone)]
pub struct Node {
    spec: Arc<NodeSpec>,
    folder: PathBuf,
    nvml: NvmlState,
    devices: Devices,
    processes: Processes,
    library: PathBuf,
    api: Api<core::Node>,
}

impl Node {
    /// A machine of a cluster that another process runs, by the cluster's state folder.
    pub fn open(state: &Path, name: &str, client: Client) -> Result<Self> {
        let folder = state.join("nodes").join(name);
        let json = std::fs::read(folder.join(SAVED)).map_err(|_| Error::NoNode(name.to_owned()))?;
        let saved: Saved = serde_json::from_slice(&json).map_err(Error::malformed(SAVED))?;
        Ok(Self {
            // Which pod has which is known where the cluster runs.
            devices: Devices::new(&folder.join("root"), &saved.spec)?,
            processes: Processes::new(&folder, &folder.join("root")),
            spec: Arc::new(saved.spec),
            nvml: NvmlState::open(&folder.join("nvml.json")),
            folder,
            library: saved.library,
            api: Api::all(client),
        })
    }

    /// What the fleet says of it.
    pub fn spec(&self) -> &NodeSpec {
        &self.spec
    }

    /// Name of the Node object.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// What its pods see as `/`.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// What its pods see as `/sys`.
    pub fn sys(&self) -> PathBuf {
        self.folder.join("sys")
    }

    /// The state of its fake NVML, to read or change at will.
    pub fn nvml(&self) -> &NvmlState {
        &self.nvml
    }

    /// Which pod has which of its devices, and the kubelet that tells.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Whose processes run on it.
    pub fn processes(&self) -> &Processes {
        &self.processes
    }

    /// Where a hostPath of its pods is on this machine.
    pub fn host_path(&self, path: &str) -> PathBuf {
        let relative = Path::new(path).strip_prefix("/").unwrap_or(Path::new(path));
        let (base, below) = match relative.strip_prefix("sys") {
            Ok(below) => (self.sys(), below),
            Err(_) => (self.root(), relative),
        };
        // Joining nothing would leave a slash at the end.
        if below.as_os_str().is_empty() {
            base
        } else {
            base.join(below)
        }
    }

    /// Installs or removes the driver, in the order in which a real installation shows.
    pub async fn set_driver(&self, present: bool) -> Result<()> {
        if present {
            sysfs::set_driver(&self.sys(), &self.spec, true)?;
            self.nvml.set_loaded(true)?;
            self.place_library(true)?;
        } else {
            self.advertise(None).await?;
            self.place_library(false)?;
            self.nvml.set_loaded(false)?;
            sysfs::set_driver(&self.sys(), &self.spec, false)?;
            return Ok(());
        }
        self.advertise(self.spec.devices()).await
    }

    /// Replaces the faults of its fake NVML, in that library's format; none: it is well.
    pub fn set_faults(&self, faults: Vec<Value>) -> Result<()> {
        self.nvml.set_faults(faults)
    }

    /// Bytes in use on one of its GPUs.
    pub fn set_memory_used(&self, gpu: usize, bytes: u64) -> Result<()> {
        self.nvml.set_memory_used(gpu, bytes)
    }

    fn place_library(&self, present: bool) -> Result<()> {
        if self.spec.gpus.is_empty() {
            return Ok(());
        }
        let folder = self
            .root()
            .join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        let library = folder.join("libnvidia-ml.so.1");
        if !present {
            return files::remove(&library);
        }
        if !self.library.is_file() {
            let hint = "cargo build -p berth-fake-nvml makes it";
            return Err(Error::MissingFile {
                path: self.library.clone(),
                hint,
            });
        }
        files::copy(&self.library, &library)
    }

    async fn create_object(&self) -> Result<()> {
        let name = self.name();
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let mut labels = self.spec.labels.clone();
        labels.insert("kubernetes.io/hostname".to_owned(), name.to_owned());
        labels.insert("kubernetes.io/os".to_owned(), "linux".to_owned());
        labels.insert("kubernetes.io/arch".to_owned(), arch.to_owned());
        let resources = json!({
            "cpu": self.spec.cpu, "memory": self.spec.memory, "ephemeral-storage": "1Ti", "pods": "250",
        });
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels, "annotations": {KWOK_ANNOTATION: KWOK_ANNOTATION_VALUE}},
        });
        let object: core::Node = serde_json::from_value(object).map_err(Error::malformed(format!("node {name}")))?;
        let created = self.api.create(&PostParams::default(), &object).await;
        created.map_err(Error::kube(format!("create node {name}")))?;
        self.patch_status(&json!({"status": {
            "capacity": resources,
            "allocatable": resources,
            "nodeInfo": {
                "architecture": arch, "operatingSystem": "linux", "kubeletVersion": crate::toolchain::KUBERNETES_VERSION,
                "containerRuntimeVersion": "berth-local", "kernelVersion": "6.12.0", "osImage": "simulated",
                "kubeProxyVersion": "", "bootID": "", "machineID": "", "systemUUID": "",
            },
        }}))
        .await
    }

    /// Plays the device plugin: so many devices are allocatable; `None`: nobody advertises any.
    async fn advertise(&self, devices: Option<u32>) -> Result<()> {
        self.devices.offer(devices.is_some());
        let count = devices.map(|n| n.to_string());
        let key = berth_crds::names::NVIDIA_GPU;
        self.patch_status(&json!({"status": {"capacity": {key: count}, "allocatable": {key: count}}}))
            .await
    }

    async fn patch_status(&self, patch: &Value) -> Result<()> {
        let patched = self
            .api
            .patch_status(self.name(), &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        patched
            .map(drop)
            .map_err(Error::kube(format!("write the status of node {}", self.name())))
    }
}
