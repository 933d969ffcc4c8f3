//! One container as a process: how it is started, started again, and ended.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::mapping::{self, Address, Mount};
use super::pod::Board;
use super::status::{Ended, State};
use super::volumes::{self, Volumes};
use super::{Context, fields, readiness};
use crate::controlplane::kubeconfig;
use crate::error::{Error, Result};
use crate::files;
use crate::process::{Exit, Launch, Process};

/// Where a ServiceAccount's token is mounted by default.
const TOKEN_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A process that ran this long is not crashing.
const STEADY: Duration = Duration::from_secs(60);
/// First pause before a crashed process is started again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause. A kubelet's is 5 min; nobody wants to wait for that here.
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// Variables of this process that containers see.
const PASSED_ON: [&str; 3] = ["PATH", "RUST_LOG", "RUST_BACKTRACE"];

/// When a process that has ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Always.
    Always,
    /// Unless its exit code was 0.
    OnFailure,
    /// Never.
    Never,
}

/// When and how a container is to end.
#[derive(Debug, Clone)]
pub struct End {
    /// Cancelled: end.
    pub stop: CancellationToken,
    /// Time between SIGTERM and SIGKILL.
    pub grace: watch::Receiver<Duration>,
}

/// Where a container's mount paths are on this machine.
pub fn mounts(container: &core::Container, volumes: &Volumes) -> Vec<Mount> {
    let proc = volumes.proc().map(|host| Mount {
        container: "/proc".to_owned(),
        host: host.to_path_buf(),
    });
    let list = container.volume_mounts.iter().flatten();
    let volumes = list.filter_map(|mount| {
        let folder = volumes.folder(&mount.name)?;
        Some(Mount {
            container: mount.mount_path.trim_end_matches('/').to_owned(),
            host: match mount.sub_path.as_deref().filter(|path| !path.is_empty()) {
                Some(path) => folder.join(path),
                None => folder.to_path_buf(),
            },
        })
    });
    proc.into_iter().chain(volumes).collect()
}

/// Runs a container until it has ended for good, or is to end.
#[allow(clippy::too_many_arguments)]
pub async fn run(
    context: &Arc<Context>,
    pod: &core::Pod,
    container: &core::Container,
    mounts: &[Mount],
    board: &Board,
    index: usize,
    restart: Restart,
    end: &End,
) {
    let key = (fields::namespace(pod), fields::name(pod), container.name.clone());
    let mut pause = Duration::ZERO;
    loop {
        let started = (Instant::now(), Timestamp::now());
        let process = match launch(context, pod, container, mounts) {
            Ok(launch) => context.processes.spawn(&launch),
            Err(error) => Err(error),
        };
        let exit = match process {
            Ok(process) => {
                context.running.lock().insert(key.clone(), process.clone());
                board.update(index, |c| {
                    c.state = State::Running { since: started.1 };
                    c.ready = container.readiness_probe.is_none();
                });
                let exit = attend(context, pod, container, &process, board, index, end).await;
                context.running.lock().remove(&key);
                Some(exit)
            }
            Err(error) => {
                let message = error.to_string();
                board.update(index, |c| {
                    c.state = State::Waiting {
                        reason: "CreateContainerError",
                        message,
                    }
                });
                None
            }
        };
        let ended = exit.map(|exit| Ended {
            code: exit.code(),
            started: started.1,
            finished: Timestamp::now(),
        });
        let again = match (restart, &ended) {
            (_, None) | (Restart::Always, _) => true,
            (Restart::OnFailure, Some(ended)) => ended.code != 0,
            (Restart::Never, Some(_)) => false,
        };
        if !again || end.stop.is_cancelled() {
            if let Some(ended) = ended {
                board.update(index, |c| {
                    c.ready = false;
                    c.state = State::Terminated(ended);
                });
            }
            return;
        }
        if started.0.elapsed() > STEADY {
            pause = Duration::ZERO;
        }
        if let Some(ended) = ended {
            board.update(index, |c| {
                c.ready = false;
                c.last = Some(ended);
                c.restarts += 1;
                c.state = State::Waiting {
                    reason: "CrashLoopBackOff",
                    message: String::new(),
                };
            });
        }
        // The first restart comes at once, as a kubelet's does.
        if end.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
    }
}

/// Waits for the end of a process, wanted or not, and meanwhile for its readiness.
async fn attend(
    context: &Arc<Context>,
    pod: &core::Pod,
    container: &core::Container,
    process: &Process,
    board: &Board,
    index: usize,
    end: &End,
) -> Exit {
    let probe = async {
        match &container.readiness_probe {
            Some(probe) => {
                readiness::watch(context, pod, container, probe, |ready| {
                    board.update(index, |c| c.ready = ready);
                })
                .await
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        exit = process.ended() => exit,
        never = probe => match never {},
        () = end.stop.cancelled() => {
            let grace = *end.grace.borrow();
            process.stop(grace).await
        }
    }
}

/// The process that a container is.
fn launch(context: &Context, pod: &core::Pod, container: &core::Container, mounts: &[Mount]) -> Result<Launch> {
    let mut words = container.command.clone().unwrap_or_default();
    if words.is_empty() {
        return Err(Error::Malformed {
            what: format!("container {}", container.name),
            reason: "it has no command, and there is no image here to take one from".to_owned(),
        });
    }
    words.extend(container.args.clone().unwrap_or_default());
    let variables = variables(context, pod, container, mounts)?;
    let mut args = vec![];
    for word in &words {
        args.push(localise(context, pod, &mapping::expand(word, &variables), mounts)?);
    }
    let command = args.remove(0);
    let program = program(context, &command);
    let mut env: BTreeMap<String, String> = PASSED_ON
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
        .collect();
    for (name, value) in variables {
        env.insert(name, localise(context, pod, &value, mounts)?);
    }
    if program.file_name().is_some_and(|name| name == "berth-probe") {
        let node = context.nodes.get(fields::node(pod).unwrap_or_default())?;
        env.insert("FAKE_NVML_STATE".to_owned(), node.nvml().path().display().to_string());
    }
    if let Some(account) = mounts.iter().find(|mount| mount.container == TOKEN_MOUNT) {
        env.insert("KUBECONFIG".to_owned(), own_kubeconfig(context, pod, account)?);
    }
    let name = format!("{}-{}", fields::name(pod), container.name);
    Ok(Launch {
        log: context.state.join("logs").join(format!("{name}.log")),
        name,
        program,
        args,
        env,
        clear_env: true,
        folder: container
            .working_dir
            .as_deref()
            .map(|path| mapping::rewrite_paths(path, mounts).into()),
    })
}

/// Our own programs by name; anything else as the container says, from PATH.
fn program(context: &Context, command: &str) -> PathBuf {
    let name = command.rsplit('/').next().unwrap_or(command);
    let own = context.programs.join(name);
    if name.starts_with("berth-") && own.is_file() {
        own
    } else {
        command.into()
    }
}

fn variables(
    context: &Context,
    pod: &core::Pod,
    container: &core::Container,
    mounts: &[Mount],
) -> Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(mapping::expand(
                variable.value.as_deref().unwrap_or_default(),
                &variables,
            )),
            Some(source) => match &source.field_ref {
                Some(field) => Some(fields::value(pod, &field.field_path)?),
                None => volumes::key(context, pod, source)?,
            },
        };
        if let Some(value) = value {
            variables.insert(variable.name.clone(), mapping::rewrite_paths(&value, mounts));
        }
    }
    Ok(variables)
}

/// Paths and addresses in this machine's terms.
fn localise(context: &Context, pod: &core::Pod, text: &str, mounts: &[Mount]) -> Result<String> {
    let text = mapping::rewrite_paths(text, mounts);
    mapping::rewrite_addresses(&text, |address| match address {
        Address::Listen(port) => {
            let host = context
                .host_ports
                .get_or_take(&fields::uid(pod), port, &context.ports)?;
            Ok(Some(format!("127.0.0.1:{host}")))
        }
        Address::Service { name, namespace, port } => {
            Ok(Some(context.services.forwarder(&namespace, &name, port)?.to_string()))
        }
    })
}

/// What in-cluster configuration is in a container: the API server, and the token file that is renewed under it.
fn own_kubeconfig(context: &Context, pod: &core::Pod, account: &Mount) -> Result<String> {
    let path = context.pod_folder(pod).join("kubeconfig");
    let token = account.host.join("token");
    let content = kubeconfig(
        &context.api_server.lock(),
        &context.api_ca,
        &fields::namespace(pod),
        &json!({"tokenFile": token}),
    );
    files::write(&path, content.as_bytes(), 0o600)?;
    Ok(path.display().to_string())
}
