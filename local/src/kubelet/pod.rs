//! The life of one pod: volumes, init containers, containers, status, end.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::container::{self, End, Restart};
use super::status::{self, Container, State};
use super::volumes::Volumes;
use super::{Context, SHUTDOWN_GRACE, fields};
use crate::files;

/// Pause between two tries to make a pod's volumes or to reach the API server.
const RETRY: Duration = Duration::from_millis(500);

/// What is known of a pod's containers; changes are counted.
#[derive(Debug)]
pub struct Board {
    containers: Mutex<Vec<Container>>,
    changes: watch::Sender<u64>,
}

impl Board {
    fn new(containers: Option<&[core::Container]>, changes: watch::Sender<u64>) -> Arc<Self> {
        let list = containers.unwrap_or_default().iter();
        let list = list
            .map(|c| Container::new(&c.name, c.image.as_deref().unwrap_or_default()))
            .collect();
        Arc::new(Self {
            containers: Mutex::new(list),
            changes,
        })
    }

    /// Changes what is known of one container.
    pub fn update(&self, index: usize, change: impl FnOnce(&mut Container)) {
        let mut list = self.containers.lock();
        let Some(container) = list.get_mut(index) else { return };
        let before = container.clone();
        change(container);
        if *container != before {
            self.changes.send_modify(|n| *n += 1);
        }
    }

    fn snapshot(&self) -> Vec<Container> {
        self.containers.lock().clone()
    }
}

/// Runs a pod until it is gone or the cluster ends.
pub async fn run(context: Arc<Context>, mut pods: watch::Receiver<Arc<core::Pod>>, gone: CancellationToken) {
    let pod = pods.borrow_and_update().clone();
    let spec = pod.spec.clone().unwrap_or_default();
    let (changes, mut changed) = watch::channel(0);
    let init = Board::new(spec.init_containers.as_deref(), changes.clone());
    let main = Board::new(Some(&spec.containers), changes);
    let mut reporter = Reporter::new(&context, &pod);
    // Cancelled: the containers are to end, within the grace that `end` says by then.
    let stop = CancellationToken::new();
    let (grace, end) = watch::channel(SHUTDOWN_GRACE);

    let work = {
        let (context, pod, init, main, stop) = (context.clone(), pod.clone(), init.clone(), main.clone(), stop.clone());
        tokio::spawn(async move { play(&context, &pod, &init, &main, End { stop, grace: end }).await })
    };
    let why = loop {
        let caught_up = reporter.report(&init.snapshot(), &main.snapshot()).await;
        tokio::select! {
            _ = changed.changed() => {}
            _ = pods.changed() => {}
            () = tokio::time::sleep(RETRY), if !caught_up => {}
            () = gone.cancelled() => break Why::Gone,
            () = context.shutdown.cancelled() => break Why::Shutdown,
        }
        let latest = pods.borrow_and_update().clone();
        if latest.metadata.deletion_timestamp.is_some() {
            let seconds = latest.metadata.deletion_grace_period_seconds.unwrap_or(30).max(1);
            break Why::Deleted(Duration::from_secs(seconds.unsigned_abs()));
        }
    };
    let _ = grace.send(match why {
        Why::Deleted(grace) => grace,
        Why::Gone => Duration::ZERO,
        Why::Shutdown => SHUTDOWN_GRACE,
    });
    stop.cancel();
    let cut = context.shutdown.clone();
    let mut work = work;
    tokio::select! {
        _ = &mut work => {}
        // A pod with a long grace period does not hold up the end of the cluster.
        () = async { cut.cancelled().await; tokio::time::sleep(SHUTDOWN_GRACE).await } => {
            let _ = grace.send(Duration::ZERO);
            work.abort();
            let _ = work.await;
        }
    }
    if let Why::Deleted(_) = why {
        let ended = async {
            while !reporter.report(&init.snapshot(), &main.snapshot()).await {
                tokio::time::sleep(RETRY).await;
            }
            reporter.delete().await;
        };
        tokio::select! {
            () = ended => {}
            () = gone.cancelled() => {}
            () = context.shutdown.cancelled() => {}
        }
    }
    context.host_ports.forget(&fields::uid(&pod));
    let _ = files::remove(&context.pod_folder(&pod));
}

enum Why {
    Deleted(Duration),
    Gone,
    Shutdown,
}

/// From volumes to the last container's end.
async fn play(context: &Arc<Context>, pod: &core::Pod, init: &Board, main: &Arc<Board>, end: End) {
    let spec = pod.spec.clone().unwrap_or_default();
    let Some(volumes) = end.stop.run_until_cancelled(volumes(context, pod, main)).await else {
        return;
    };
    let mounts: Vec<_> = spec.containers.iter().map(|c| container::mounts(c, &volumes)).collect();
    let init_list = spec.init_containers.unwrap_or_default();
    let init_mounts: Vec<_> = init_list.iter().map(|c| container::mounts(c, &volumes)).collect();
    let mut tasks = JoinSet::new();
    {
        let (context, pod) = (context.clone(), pod.clone());
        let stop = end.stop.clone();
        tasks.spawn(async move {
            let _ = stop.run_until_cancelled(volumes.keep(&context, &pod)).await;
        });
    }
    let policy = spec.restart_policy.unwrap_or_else(|| "Always".to_owned());
    let init_restart = if policy == "Never" {
        Restart::Never
    } else {
        Restart::OnFailure
    };
    for (index, (container, mounts)) in init_list.iter().zip(init_mounts).enumerate() {
        container::run(context, pod, container, &mounts, init, index, init_restart, &end).await;
        let done = init.snapshot();
        if end.stop.is_cancelled() || status::phase(&done, &main.snapshot()) == "Failed" {
            return;
        }
    }
    let restart = match policy.as_str() {
        "Never" => Restart::Never,
        "OnFailure" => Restart::OnFailure,
        _ => Restart::Always,
    };
    let mut containers = JoinSet::new();
    for (index, (spec, mounts)) in spec.containers.into_iter().zip(mounts).enumerate() {
        let (context, pod, main, end) = (context.clone(), pod.clone(), main.clone(), end.clone());
        containers.spawn(async move {
            container::run(&context, &pod, &spec, &mounts, &main, index, restart, &end).await;
        });
    }
    while containers.join_next().await.is_some() {}
}

/// Tries until the pod's volumes can be made; meanwhile its containers say why they wait.
async fn volumes(context: &Context, pod: &core::Pod, board: &Board) -> Volumes {
    let mut changed = context.sources.changed.clone();
    loop {
        changed.mark_unchanged();
        match Volumes::prepare(context, pod).await {
            Ok(volumes) => return volumes,
            Err(error) => {
                let message = error.to_string();
                for index in 0..pod.spec.as_ref().map_or(0, |spec| spec.containers.len()) {
                    board.update(index, |c| {
                        c.state = State::Waiting {
                            reason: "CreateContainerConfigError",
                            message: message.clone(),
                        };
                    });
                }
            }
        }
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep(2 * RETRY) => {}
        }
    }
}

/// Writes a pod's status when it differs from what was written last.
struct Reporter {
    api: Api<core::Pod>,
    name: String,
    uid: Option<String>,
    started: Timestamp,
    times: Vec<(String, String, String)>,
    written: Option<Value>,
}

impl Reporter {
    fn new(context: &Context, pod: &core::Pod) -> Self {
        Self {
            api: Api::namespaced(context.client.clone(), &fields::namespace(pod)),
            name: fields::name(pod),
            uid: pod.metadata.uid.clone(),
            started: Timestamp::now(),
            times: vec![],
            written: None,
        }
    }

    /// Whether the API server knows this state now.
    async fn report(&mut self, init: &[Container], main: &[Container]) -> bool {
        let status = status::status(self.uid.as_deref().unwrap_or_default(), init, main, self.started);
        if self.written.as_ref() == Some(&status) {
            return true;
        }
        let timed = status::with_times(status.clone(), &self.times, Timestamp::now());
        // The uid makes the patch fail on another pod of the same name.
        let patch = json!({"metadata": {"uid": self.uid}, "status": timed});
        match self
            .api
            .patch_status(&self.name, &PatchParams::default(), &Patch::Strategic(&patch))
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(error)) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => {
                tracing::debug!(pod = self.name, %error, "cannot write the status of a pod");
                return false;
            }
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let conditions = timed["conditions"].as_array().into_iter().flatten();
        self.times = conditions
            .map(|c| (text(&c["type"]), text(&c["status"]), text(&c["lastTransitionTime"])))
            .collect();
        self.written = Some(status);
        true
    }

    /// The last thing a kubelet does: the object may go.
    async fn delete(&self) {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: self.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        loop {
            match self.api.delete(&self.name, &params).await {
                Ok(_) => return,
                Err(kube::Error::Api(error)) if error.is_not_found() || error.is_conflict() => return,
                Err(error) => tracing::debug!(pod = self.name, %error, "cannot delete a pod"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}
