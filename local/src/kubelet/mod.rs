//! Plays kubelet for the pods of Berth itself: their containers are real processes of this machine.
//!
//! ```text
//! watch pods (part-of=berth, bound to a node of the fleet)
//!   └─► one task a pod ─► volumes    folders, ConfigMaps, tokens
//!                        ├► mapping   the container's words in this machine's terms
//!                        ├► container start, restart with back-off, stop
//!                        ├► readiness HTTP and TCP probes
//!                        └► status    written back to the pod
//! ```
//!
//! Pods of anybody else are KWOK's, and run nowhere; but their devices are handed out here ([`devices`]).

mod container;
mod devices;
mod fields;
mod mapping;
mod pod;
mod readiness;
mod status;
mod volumes;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1 as core;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, Result};
use crate::fleet::Nodes;
use crate::port::Ports;
use crate::process::{Process, Processes};
use crate::service::{HostPorts, Services};

pub use readiness::container_port;

/// Label of the pods that are run here.
pub const PART_OF: &str = "app.kubernetes.io/part-of";
/// Its value.
pub const PART_OF_BERTH: &str = "berth";

/// How long a process may take to end when the whole cluster ends.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

/// What all pods share.
struct Context {
    client: Client,
    state: PathBuf,
    /// Short name of `state`: a unix socket's path has 107 bytes at most.
    short_state: PathBuf,
    /// Folder of our own programs.
    programs: PathBuf,
    api_server: Mutex<String>,
    api_ca: PathBuf,
    nodes: Nodes,
    ports: Arc<Ports>,
    processes: Processes,
    services: Services,
    host_ports: HostPorts,
    sources: Sources,
    running: Mutex<BTreeMap<ContainerKey, Process>>,
    /// Ends everything.
    shutdown: CancellationToken,
}

/// Namespace, pod, container.
type ContainerKey = (String, String, String);

impl Context {
    /// Where a pod's volumes are. Short: see `short_state`.
    fn pod_folder(&self, pod: &core::Pod) -> PathBuf {
        let uid = fields::uid(pod);
        self.short_state.join("pods").join(uid.get(..13).unwrap_or(&uid))
    }
}

/// Objects that volumes and variables are made of.
#[derive(Debug)]
struct Sources {
    config_maps: Store<core::ConfigMap>,
    secrets: Store<core::Secret>,
    /// Counts changes of either.
    changed: watch::Receiver<u64>,
}

/// What is needed to begin.
pub struct Setup {
    /// Of group `system:masters`.
    pub client: Client,
    /// State folder.
    pub state: PathBuf,
    /// The same folder by a short name.
    pub short_state: PathBuf,
    /// Folder of our own programs.
    pub programs: PathBuf,
    /// URL of the API server.
    pub api_server: String,
    /// What its certificate is signed by.
    pub api_ca: PathBuf,
    /// The fleet.
    pub nodes: Nodes,
    /// Where ports come from.
    pub ports: Arc<Ports>,
    /// Where processes are recorded.
    pub processes: Processes,
}

/// The kubelets of all nodes of the fleet.
pub struct Kubelet {
    context: Arc<Context>,
    tasks: TaskTracker,
}

impl Kubelet {
    /// Watches from now on; returns once the first lists have arrived.
    pub async fn start(setup: Setup) -> Result<Self> {
        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (bump, changed) = watch::channel(0_u64);
        let bump = Arc::new(bump);
        let client = &setup.client;
        let config_maps = keep::<core::ConfigMap>(client, watcher::Config::default(), &tasks, &shutdown, Some(&bump));
        let secrets = keep::<core::Secret>(client, watcher::Config::default(), &tasks, &shutdown, Some(&bump));
        let services = keep::<core::Service>(client, watcher::Config::default(), &tasks, &shutdown, None);
        let pods = keep::<core::Pod>(client, part_of_berth(), &tasks, &shutdown, None);
        for ready in [config_maps.wait_until_ready().await, secrets.wait_until_ready().await] {
            ready.map_err(Error::malformed("watch"))?;
        }
        let host_ports = HostPorts::default();
        let context = Arc::new(Context {
            services: Services::new(services, pods, host_ports.clone(), tasks.clone(), shutdown.clone()),
            sources: Sources {
                config_maps,
                secrets,
                changed,
            },
            client: setup.client,
            state: setup.state,
            short_state: setup.short_state,
            programs: setup.programs,
            api_server: Mutex::new(setup.api_server),
            api_ca: setup.api_ca,
            nodes: setup.nodes,
            ports: setup.ports,
            processes: setup.processes,
            host_ports,
            running: Mutex::default(),
            shutdown,
        });
        tasks.spawn(dispatch(context.clone(), tasks.clone()));
        tasks.spawn(devices::follow(context.clone()));
        Ok(Self { context, tasks })
    }

    /// Containers that start from now on know the API server by this URL.
    pub fn set_api_server(&self, url: &str) {
        url.clone_into(&mut self.context.api_server.lock());
    }

    /// The process of a running container.
    pub fn process(&self, namespace: &str, pod: &str, container: &str) -> Result<Process> {
        let key = (namespace.to_owned(), pod.to_owned(), container.to_owned());
        let process = self.context.running.lock().get(&key).cloned();
        process
            .filter(|process| process.exit().is_none())
            .ok_or(Error::NoContainer {
                namespace: key.0,
                pod: key.1,
                container: key.2,
            })
    }

    /// Forwarders of Services, and host ports of containers.
    pub fn services(&self) -> &Services {
        &self.context.services
    }

    /// Ends every process and every task.
    pub async fn stop(&self) {
        self.context.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        // Whose pod's task was cut short because its grace period was long.
        let rest: Vec<Process> = self.context.running.lock().values().cloned().collect();
        for process in rest {
            process.stop(Duration::ZERO).await;
        }
    }
}

fn part_of_berth() -> watcher::Config {
    watcher::Config::default().labels(&format!("{PART_OF}={PART_OF_BERTH}"))
}

/// A store that follows the API server until shutdown; errors are retried.
fn keep<K>(
    client: &Client,
    config: watcher::Config,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
    bump: Option<&Arc<watch::Sender<u64>>>,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let stream = watcher(Api::<K>::all(client.clone()), config)
        .default_backoff()
        .reflect(writer);
    let (shutdown, bump) = (shutdown.clone(), bump.cloned());
    tasks.spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(Some(event)) = shutdown.run_until_cancelled(stream.next()).await {
            match event {
                Ok(_) => {
                    if let Some(bump) = &bump {
                        bump.send_modify(|n| *n += 1);
                    }
                }
                Err(error) => tracing::debug!(%error, "watch of {} interrupted", K::kind(&())),
            }
        }
    });
    store
}

/// A pod that is being run.
struct Entry {
    latest: watch::Sender<Arc<core::Pod>>,
    /// The object is gone from the API server.
    gone: CancellationToken,
}

async fn dispatch(context: Arc<Context>, tasks: TaskTracker) {
    let pods: Api<core::Pod> = Api::all(context.client.clone());
    let mut stream = std::pin::pin!(watcher(pods, part_of_berth()).default_backoff());
    let mut entries: HashMap<String, Entry> = HashMap::new();
    let mut listed: HashSet<String> = HashSet::new();
    while let Some(Some(event)) = context.shutdown.run_until_cancelled(stream.next()).await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(pod)) => {
                listed.insert(fields::uid(&pod));
                observe(&context, &tasks, &mut entries, pod);
            }
            Ok(watcher::Event::InitDone) => entries.retain(|uid, entry| {
                let keep = listed.contains(uid);
                if !keep {
                    entry.gone.cancel();
                }
                keep
            }),
            Ok(watcher::Event::Apply(pod)) => observe(&context, &tasks, &mut entries, pod),
            Ok(watcher::Event::Delete(pod)) => {
                if let Some(entry) = entries.remove(&fields::uid(&pod)) {
                    entry.gone.cancel();
                }
            }
            Err(error) => tracing::debug!(%error, "watch of pods interrupted"),
        }
    }
}

fn observe(context: &Arc<Context>, tasks: &TaskTracker, entries: &mut HashMap<String, Entry>, pod: core::Pod) {
    let bound_here = fields::node(&pod).is_some_and(|node| context.nodes.get(node).is_ok());
    if !bound_here {
        return;
    }
    let uid = fields::uid(&pod);
    let pod = Arc::new(pod);
    match entries.get(&uid) {
        Some(entry) => drop(entry.latest.send(pod)),
        None => {
            let (latest, pods) = watch::channel(pod);
            let gone = CancellationToken::new();
            tasks.spawn(pod::run(context.clone(), pods, gone.clone()));
            entries.insert(uid, Entry { latest, gone });
        }
    }
}
