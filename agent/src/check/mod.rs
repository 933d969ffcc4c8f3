//! `check`: the verdict on each GPU of this machine, without any cluster.
//!
//! ```text
//! sysfs, a berth-probe of its own (NVML, kernel log) ─► core::health::Tracker ─► report ─► table or JSON, and the exit code
//! ```

mod report;
mod table;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use berth_core::facts::{NvmlState, NvmlStatus};
use berth_core::health::Tracker;
use tokio::time::{sleep, timeout};

use crate::args::{Check, CheckOutput};
use crate::facts::Facts;
use crate::own_probe::OwnProbe;
use crate::probe::{Probe, Told};
use crate::sysfs;
use report::Report;

/// What the kernel log holds was read long before NVML was open; no more of it is waited for.
const EVENTS: Duration = Duration::from_millis(200);
/// Pause before another look whether what takes long is there.
const LOOK: Duration = Duration::from_millis(100);

/// Longer than sources that are read apart may differ.
const MOMENT: Duration = Duration::from_secs(60);

/// Checks and prints. An error is one of the command, not of a GPU.
pub async fn run(args: Check) -> anyhow::Result<ExitCode> {
    let report = look(&args).await?;
    let text = match args.output {
        CheckOutput::Table => table::of(&report),
        CheckOutput::Json => serde_json::to_string_pretty(&report).context("writing JSON")? + "\n",
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to stdout")?;
    Ok(ExitCode::from(report.verdict.code()))
}

async fn look(args: &Check) -> anyhow::Result<Report> {
    let started = Instant::now();
    let root = &args.machine.sysfs_root;
    let mut facts = Facts::default();
    let scanned = sysfs::scan(root).context("reading sysfs")?;
    let pci = sysfs::pci::readings(root, &scanned.pci, sysfs::pci::nvswitches(root));
    facts.on_sysfs(scanned);
    let mut tracker = Tracker::new();
    if let Err(error) = ask_probe(args, &mut facts, &mut tracker, started).await {
        facts.on_nvml(NvmlStatus {
            state: NvmlState::ProbeUnavailable,
            message: format!("{error:#}"),
        });
    }
    let now = started.elapsed();
    let facts = facts.at(now);
    tracker.on_inventory(&facts);
    tracker.on_pci(&pci, now);
    Ok(Report::of(&facts, &pci, &tracker, now))
}

async fn ask_probe(args: &Check, facts: &mut Facts, tracker: &mut Tracker, started: Instant) -> anyhow::Result<()> {
    let mut own = OwnProbe::start(&args.machine, Some(&args.kernel_log))?;
    let probe = Probe::new(own.socket());
    let ask = async {
        own.is_listening().await?;
        let answer = probe.inventory().await?;
        let ready = answer.status.state == NvmlState::Ready;
        if ready {
            facts.on_inventory(answer.found.0, started.elapsed());
        } else {
            facts.on_nvml(answer.status);
        }
        tracker.on_inventory(&facts.at(started.elapsed()));
        let mut events = probe.events().await?;
        while let Ok(told) = timeout(EVENTS, events.next()).await {
            if let Told::Event(event) = told? {
                tracker.on_event(&event, started.elapsed());
            }
        }
        if !ready {
            return Ok(());
        }
        let samples = probe.sample().await?;
        for (uuid, error) in &samples.found.lost {
            tracker.on_lost(uuid, error);
        }
        tracker.on_samples(&samples.found.samples, started.elapsed());
        let mut status = samples.status;
        let mut asked = probe.checks(true).await?;
        // What takes long is worth half of the time; without it the rest still is an answer.
        while let Some(checks) = asked {
            if checks.status.state == NvmlState::Ready
                && checks.found.node.slow_pending
                && started.elapsed() < args.machine.deadline / 2
            {
                sleep(LOOK).await;
                asked = probe.checks(false).await?;
                continue;
            }
            let now = started.elapsed();
            let node = checks.found.node.clone();
            tracker.on_round(checks.found, now);
            // Sources that differ for a moment are let pass; these were read together, and there is no second look.
            tracker.on_node_checks(&node, now + MOMENT);
            status = checks.status;
            break;
        }
        if status.state != NvmlState::Ready {
            facts.on_nvml(status);
        }
        anyhow::Ok(())
    };
    let asked = timeout(args.machine.deadline, ask).await;
    asked.with_context(|| format!("the probe did not answer within {} s", args.machine.deadline.as_secs()))?
}
