//! What an agent and its probe cost a node, and how soon what happens on it is known, measured on a running cluster.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use berth_local::fleet::Driver;
use berth_local::toolchain::Programs;
use berth_local::{Cluster, Fleet, Install, NodeSpec, Options, Progress, Signals, StateFolder, process, wait_for};
use serde::Serialize;

use super::cost::{Cost, cpu_ticks, machine};
use super::inventory::{self, Inventory};
use super::latency::{self, Latencies};
use super::page;

/// Arguments of `bench agent`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds to measure, after as long a warm-up as ten samples take.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Folder for the cluster that is measured.
    #[arg(long, default_value = "target/bench")]
    state: PathBuf,
    /// Write the table into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
    /// A sentence on the circumstances, to stand under the table.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

/// The measured node, and its GPUs.
const NODE: &str = "bench-0";
const GPUS: u32 = 8;
/// Samples start to flow, allocators settle.
const WARM_UP: Duration = Duration::from_secs(10);

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Time over which costs were measured.
    pub seconds: f64,
    /// GPUs of the measured node.
    pub gpus: u32,
    /// Its probe.
    pub probe: Cost,
    /// Its agent.
    pub agent: Cost,
    /// Requests of the agents' ServiceAccount to the API server, all nodes together.
    pub agent_api_calls_per_minute: f64,
    /// Node writes of the controller in the same time.
    pub node_writes: usize,
    /// One inventory.
    pub inventory: Inventory,
    /// Cause to effect.
    pub latency: Latencies,
    /// Folder of the programs: that of their build profile.
    pub build: String,
    /// What it was measured on.
    pub machine: String,
    /// In what circumstances.
    pub note: Option<String>,
}

/// Starts a cluster of release builds, measures, prints JSON and a table.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(measured(args))?;
    say!("{}", serde_json::to_string_pretty(&report)?);
    let table = page::table(&report);
    say!("\n{table}");
    if args.write {
        page::write(&table)?;
    }
    Ok(())
}

fn fleet() -> Fleet {
    let mut nodes = vec![NodeSpec::new(NODE, "h100", GPUS)];
    nodes.extend(latency::NODES.map(|name| NodeSpec::new(name, "t4", 1)));
    nodes.push(NodeSpec {
        driver: Driver::Absent,
        ..NodeSpec::new(latency::BARE, "t4", 1)
    });
    Fleet { nodes }
}

async fn measured(args: &Args) -> anyhow::Result<Report> {
    let progress = Progress::stdout(berth_local::cluster::STEPS);
    let mut signals = Signals::new()?;
    let folder = StateFolder::lock(&args.state)?;
    let path = folder.path().to_path_buf();
    let options = Options {
        release: true,
        progress,
        // Without pods the nodes would be read less often.
        install: Install::charts(serde_json::json!({"agent": {"idleSampleIntervalMs": 1000}})),
        ..Options::new(fleet())
    };
    let cluster = tokio::select! {
        cluster = Cluster::start(folder, options) => cluster?,
        name = signals.next() => {
            say!("\n{name}: ending what was started");
            process::sweep(&path).await?;
            bail!("interrupted");
        }
    };
    let outcome = tokio::select! {
        outcome = measure(&cluster, args) => outcome,
        name = signals.next() => {
            say!("\n{name}: ending the cluster");
            Err(anyhow!("interrupted"))
        }
    };
    cluster.stop().await?;
    outcome
}

async fn measure(cluster: &Cluster, args: &Args) -> anyhow::Result<Report> {
    let pods = cluster.pods_of("agent", Some(NODE)).await?;
    let pod = pods
        .first()
        .and_then(|p| p.metadata.name.clone())
        .with_context(|| format!("no agent on {NODE}"))?;
    let (agent, probe) = (
        cluster.process(&pod, "agent")?.pid(),
        cluster.process(&pod, "probe")?.pid(),
    );
    wait_for("the labels of the measured node", Duration::from_secs(60), || async {
        let nodes = cluster
            .kubectl(&["get", "nodes", "-l", "berth.dev/gpu-class=h100", "-o", "name"])
            .await;
        nodes
            .map_err(|e| e.to_string())
            .and_then(|n| if n.contains(NODE) { Ok(()) } else { Err(n) })
    })
    .await?;
    tokio::time::sleep(WARM_UP).await;
    let before = (
        calls(cluster, ":berth-agent", None)?,
        calls(cluster, ":berth-controller", Some("nodes"))?,
    );
    let (started, cpu) = (Instant::now(), [cpu_ticks(probe)?, cpu_ticks(agent)?]);
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let seconds = started.elapsed().as_secs_f64();
    let after = (
        calls(cluster, ":berth-agent", None)?,
        calls(cluster, ":berth-controller", Some("nodes"))?,
    );
    ensure!(seconds > 1.0, "the time measured is too short to say anything");
    let (probe, agent) = (
        Cost::since(probe, cpu[0], seconds)?,
        Cost::since(agent, cpu[1], seconds)?,
    );
    let programs = Programs::ensure(true, &Progress::new(1, |_| {})).await?.folder;
    Ok(Report {
        seconds,
        gpus: GPUS,
        probe,
        agent,
        agent_api_calls_per_minute: (after.0 - before.0) as f64 / seconds * 60.0,
        node_writes: after.1 - before.1,
        inventory: inventory::measure(&programs, &cluster.state().join("inventory"), GPUS).await?,
        latency: latency::measure(cluster, cluster.namespace()).await?,
        build: programs.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        machine: machine(),
        note: args.note.clone(),
    })
}

/// Requests of a ServiceAccount so far; of a resource: its writes.
fn calls(cluster: &Cluster, user: &str, resource: Option<&str>) -> anyhow::Result<usize> {
    let writes = ["create", "update", "patch", "delete"];
    let events = cluster.audit()?;
    let of_user = events
        .iter()
        .filter(|e| e["user"]["username"].as_str().is_some_and(|u| u.ends_with(user)));
    let of_resource = of_user
        .filter(|e| resource.is_none_or(|r| e["objectRef"]["resource"] == r && writes.iter().any(|w| e["verb"] == *w)));
    Ok(of_resource.count())
}
