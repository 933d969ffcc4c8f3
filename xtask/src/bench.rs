//! `cargo xtask bench agent`: what an agent and its probe cost a node, measured on a running cluster with 8 GPUs a node at 1 Hz.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use berth_local::{Cluster, Fleet, Install, NodeSpec, Options, Progress, Signals, StateFolder, process, wait_for};
use serde::Serialize;

/// Arguments of `bench agent`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds to measure, after as long a warm-up as ten samples take.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Folder for the cluster that is measured.
    #[arg(long, default_value = "target/bench")]
    state: std::path::PathBuf,
    /// Write the table into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
}

/// GPUs of the measured node.
const GPUS: u32 = 8;
/// Samples start to flow, allocators settle.
const WARM_UP: Duration = Duration::from_secs(10);

/// One process, over the measured time.
#[derive(Debug, Serialize)]
struct Cost {
    /// Proportional set size: shared pages counted by share.
    pss_kib: u64,
    /// Resident set size, shared pages counted whole.
    rss_kib: u64,
    /// Share of one core.
    cpu_percent: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    seconds: f64,
    gpus: u32,
    probe: Cost,
    agent: Cost,
    /// Requests of the agents' ServiceAccount to the API server, all nodes together.
    agent_api_calls_per_minute: f64,
    /// Node writes of the controller in the same time.
    node_writes: usize,
    machine: String,
}

/// Starts a cluster of release builds, measures one node of it, prints JSON and a table.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(measured(args))?;
    say!("{}", serde_json::to_string_pretty(&report)?);
    let table = table(&report);
    say!("\n{table}");
    if args.write {
        let path = berth_local::checkout().join("docs/benchmarks.md");
        let page = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        std::fs::write(&path, replaced(&page, &table)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

async fn measured(args: &Args) -> anyhow::Result<Report> {
    let fleet = Fleet {
        nodes: vec![
            NodeSpec::new("bench-0", "h100", GPUS),
            NodeSpec::new("bench-1", "h100", GPUS),
        ],
    };
    let progress = Progress::stdout(berth_local::cluster::STEPS);
    let mut signals = Signals::new()?;
    let folder = StateFolder::lock(&args.state)?;
    let path = folder.path().to_path_buf();
    let options = Options {
        release: true,
        progress,
        // Without pods the nodes would be read less often.
        install: Install::charts(serde_json::json!({"agent": {"idleSampleIntervalMs": 1000}})),
        ..Options::new(fleet)
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
        outcome = measure(&cluster, Duration::from_secs(args.seconds)) => outcome,
        name = signals.next() => {
            say!("\n{name}: ending the cluster");
            Err(anyhow!("interrupted"))
        }
    };
    cluster.stop().await?;
    outcome
}

async fn measure(cluster: &Cluster, time: Duration) -> anyhow::Result<Report> {
    let pods = cluster.pods_of("agent", Some("bench-0")).await?;
    let pod = pods
        .first()
        .and_then(|p| p.metadata.name.clone())
        .context("no agent on bench-0")?;
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
            .and_then(|n| if n.contains("bench-0") { Ok(()) } else { Err(n) })
    })
    .await?;
    tokio::time::sleep(WARM_UP).await;
    let calls = |user: &str, resource: Option<&str>| -> anyhow::Result<usize> {
        let writes = ["create", "update", "patch", "delete"];
        let events = cluster.audit()?;
        let of_user = events
            .iter()
            .filter(|e| e["user"]["username"].as_str().is_some_and(|u| u.ends_with(user)));
        Ok(of_user
            .filter(|e| {
                resource.is_none_or(|r| e["objectRef"]["resource"] == r && writes.iter().any(|w| e["verb"] == *w))
            })
            .count())
    };
    let before = (calls(":berth-agent", None)?, calls(":berth-controller", Some("nodes"))?);
    let (started, cpu) = (Instant::now(), [cpu_ticks(probe)?, cpu_ticks(agent)?]);
    tokio::time::sleep(time).await;
    let seconds = started.elapsed().as_secs_f64();
    let after = (calls(":berth-agent", None)?, calls(":berth-controller", Some("nodes"))?);
    let cost = |pid: u32, before: u64| -> anyhow::Result<Cost> {
        let (pss_kib, rss_kib) = memory(pid)?;
        let ticks = cpu_ticks(pid)?.saturating_sub(before);
        Ok(Cost {
            pss_kib,
            rss_kib,
            cpu_percent: ticks as f64 / rustix::param::clock_ticks_per_second() as f64 / seconds * 100.0,
        })
    };
    ensure!(seconds > 1.0, "the time measured is too short to say anything");
    Ok(Report {
        seconds,
        gpus: GPUS,
        probe: cost(probe, cpu[0])?,
        agent: cost(agent, cpu[1])?,
        agent_api_calls_per_minute: (after.0 - before.0) as f64 / seconds * 60.0,
        node_writes: after.1 - before.1,
        machine: machine(),
    })
}

/// (PSS, RSS) in KiB, from the kernel's own sums.
fn memory(pid: u32) -> anyhow::Result<(u64, u64)> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = |name: &str| {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .with_context(|| format!("{path} has no {name}"))?;
        let number = line
            .split_whitespace()
            .next()
            .with_context(|| format!("{path}: {name} has no value"))?;
        number
            .parse::<u64>()
            .with_context(|| format!("{path}: {name} {number}"))
    };
    Ok((line("Pss:")?, line("Rss:")?))
}

/// User and system time so far, in clock ticks.
fn cpu_ticks(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The command, in parentheses, may hold blanks; utime and stime are the 14th and 15th field.
    let rest = text
        .rsplit_once(')')
        .with_context(|| format!("{path} has no command"))?
        .1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |n: usize| {
        fields
            .get(n - 3)
            .and_then(|f| f.parse::<u64>().ok())
            .with_context(|| format!("{path}: field {n}"))
    };
    Ok(field(14)? + field(15)?)
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map(|l| l.trim_start_matches([' ', '\t', ':']).to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores, {}", model.unwrap_or_else(|| "processor unknown".into()))
}

fn table(r: &Report) -> String {
    let mb = |kib: u64| kib as f64 * 1024.0 / 1e6;
    let (pss, rss) = (
        mb(r.probe.pss_kib + r.agent.pss_kib),
        mb(r.probe.rss_kib + r.agent.rss_kib),
    );
    let cpu = r.probe.cpu_percent + r.agent.cpu_percent;
    let rows = [
        "| what | probe | agent | sum | budget |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
        format!(
            "| PSS, MB | {:.1} | {:.1} | **{pss:.1}** | 15 |",
            mb(r.probe.pss_kib),
            mb(r.agent.pss_kib)
        ),
        format!(
            "| RSS, MB | {:.1} | {:.1} | {rss:.1} | – |",
            mb(r.probe.rss_kib),
            mb(r.agent.rss_kib)
        ),
        format!(
            "| CPU, % of a core | {:.3} | {:.3} | **{cpu:.3}** | 0.1 |",
            r.probe.cpu_percent, r.agent.cpu_percent
        ),
        format!(
            "| API calls a minute, all agents | | | **{:.1}** | 0 |",
            r.agent_api_calls_per_minute
        ),
        format!("| node writes of the controller | | | {} | 0 |", r.node_writes),
    ];
    format!(
        "{}\n\n{} GPUs a node, 1 Hz, {:.0} s, release build, {}.\n",
        rows.join("\n"),
        r.gpus,
        r.seconds,
        r.machine
    )
}

const BEGIN: &str = "<!-- bench agent -->\n";
const END: &str = "<!-- end -->";

/// The page with the part between the marks replaced.
fn replaced(page: &str, table: &str) -> anyhow::Result<String> {
    let (head, rest) = page
        .split_once(BEGIN)
        .context("docs/benchmarks.md has no <!-- bench agent --> mark")?;
    let (_, tail) = rest
        .split_once(END)
        .context("docs/benchmarks.md has no <!-- end --> mark")?;
    Ok(format!("{head}{BEGIN}{table}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_measured() {
        let (pss, rss) = memory(std::process::id()).unwrap();
        assert!(pss > 0 && rss >= pss);
        cpu_ticks(std::process::id()).unwrap();
        assert!(memory(0).is_err());
    }

    #[test]
    fn only_the_marked_part_of_the_page_is_replaced() {
        let page = format!("# a\n{BEGIN}old\n{END}\nb\n");
        assert_eq!(
            replaced(&page, "new\n").unwrap(),
            format!("# a\n{BEGIN}new\n{END}\nb\n")
        );
        assert!(replaced("# a\n", "new").is_err());
    }
}
