//! One inventory of eight GPUs: how long it takes through the probe's socket, and how many NVML calls it is.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use berth_proto::probe::v1::InventoryRequest;
use berth_proto::probe::v1::probe_client::ProbeClient;
use berth_proto::v1::NvmlState;
use hyper_util::rt::TokioIo;
use nvidia_ml::state::{CALLS_ENV, STATE_ENV, State};
use serde::Serialize;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::distribution::Distribution;

/// Inventories that are timed.
const TIMED: usize = 200;
/// Inventories whose calls are counted: each is as many as any other.
const COUNTED: usize = 10;
/// A probe opens NVML within milliseconds; this is for a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// One inventory.
#[derive(Debug, Serialize)]
pub struct Inventory {
    /// NVML calls.
    pub nvml_calls: usize,
    /// Time from the request on the socket to the answer.
    pub wall: Distribution,
}

/// A probe of its own.
struct Probe(Child);

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures with programs from `programs`, in `folder`.
pub async fn measure(programs: &Path, folder: &Path, gpus: u32) -> anyhow::Result<Inventory> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    State::of("H100-80GB-HBM3", gpus, "bench")?.write(&folder.join("nvml.json"))?;
    let times = {
        let (_probe, mut client) = start(programs, folder, None, gpus).await?;
        let mut times = Vec::with_capacity(TIMED);
        for _ in 0..TIMED {
            let asked = Instant::now();
            client.inventory(InventoryRequest {}).await?;
            times.push(asked.elapsed());
        }
        times
    };
    // Apart from the times, because counting costs time.
    let file = folder.join("calls");
    let _ = std::fs::remove_file(&file);
    let (_probe, mut client) = start(programs, folder, Some(&file), gpus).await?;
    let calls = || -> anyhow::Result<usize> {
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        // The threads that wait for events call on their own account.
        Ok(text.lines().filter(|call| !call.contains("EventSetWait")).count())
    };
    let before = calls()?;
    for _ in 0..COUNTED {
        client.inventory(InventoryRequest {}).await?;
    }
    Ok(Inventory {
        nvml_calls: (calls()? - before) / COUNTED,
        wall: Distribution::of(times).context("nothing was timed")?,
    })
}

async fn start(
    programs: &Path,
    folder: &Path,
    calls: Option<&Path>,
    gpus: u32,
) -> anyhow::Result<(Probe, ProbeClient<Channel>)> {
    let socket = folder.join("probe.sock");
    let mut command = Command::new(programs.join("berth-probe"));
    command
        .args(["serve", "--log-level=warn"])
        .arg(format!("--socket={}", socket.display()))
        .arg(format!("--nvml-lib={}", programs.join("libnvidia_ml.so").display()))
        .env(STATE_ENV, folder.join("nvml.json"))
        .stderr(Stdio::null());
    if let Some(calls) = calls {
        command.env(CALLS_ENV, calls);
    }
    let probe = Probe(command.spawn().context("cannot start berth-probe")?);
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let mut client = ProbeClient::new(Endpoint::from_static("http://probe").connect_with_connector_lazy(connect));
    let begun = Instant::now();
    loop {
        match client.inventory(InventoryRequest {}).await {
            Ok(reply) if reply.get_ref().state() == NvmlState::Ready && reply.get_ref().gpus.len() == gpus as usize => {
                return Ok((probe, client));
            }
            other => ensure!(begun.elapsed() < PATIENCE, "the probe is not ready: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
