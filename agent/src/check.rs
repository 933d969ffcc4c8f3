//! `check`: the verdict on each GPU of this machine, without any cluster.
//!
//! ```text
//! sysfs, a berth-probe of its own (NVML, kernel log) ─► core::health::Tracker ─► table or JSON, and the exit code
//! ```

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use berth_core::facts::{NodeFacts, NvmlState, NvmlStatus};
use berth_core::health::checks::{Outcome, Row};
use berth_core::health::{GpuState, Tracker};
use serde::Serialize;
use tokio::time::timeout;

use crate::args::{Check, CheckOutput};
use crate::facts::Facts;
use crate::own_probe::OwnProbe;
use crate::probe::{Probe, Told};
use crate::sysfs;

/// What the kernel log holds was read long before NVML was open; no more of it is waited for.
const EVENTS: Duration = Duration::from_millis(200);

/// How bad it is, in the order of exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Verdict {
    /// Exit code 0.
    Healthy,
    /// Exit code 1.
    Suspect,
    /// Exit code 2.
    Unhealthy,
    /// Exit code 3: nobody could tell.
    Unknown,
}

impl Verdict {
    fn code(self) -> u8 {
        match self {
            Self::Healthy => 0,
            Self::Suspect => 1,
            Self::Unhealthy => 2,
            Self::Unknown => 3,
        }
    }
}

/// All that is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    verdict: Verdict,
    nvml: String,
    message: String,
    missing_gpus: u32,
    gpus: Vec<OfGpu>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OfGpu {
    uuid: String,
    product: Option<String>,
    pci_address: Option<String>,
    state: GpuState,
    reason: String,
    message: String,
    checks: Vec<OfCheck>,
}

#[derive(Debug, Serialize)]
struct OfCheck {
    check: &'static str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

impl From<Row> for OfCheck {
    fn from(row: Row) -> Self {
        Self {
            check: row.check,
            outcome: match row.outcome {
                Outcome::Passed => "passed",
                Outcome::NotSupported => "not supported",
                Outcome::Unknown => "unknown",
                Outcome::Suspect => "suspect",
                Outcome::Unhealthy => "unhealthy",
            },
            message: row.message,
        }
    }
}

/// Checks and prints. An error is one of the command, not of a GPU.
pub async fn run(args: Check) -> anyhow::Result<ExitCode> {
    let report = look(&args).await;
    let text = match args.output {
        CheckOutput::Table => table(&report),
        CheckOutput::Json => serde_json::to_string_pretty(&report).context("writing JSON")? + "\n",
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to stdout")?;
    Ok(ExitCode::from(report.verdict.code()))
}

async fn look(args: &Check) -> Report {
    let started = Instant::now();
    let mut facts = Facts::default();
    facts.on_sysfs(sysfs::scan(&args.machine.sysfs_root));
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
    report(&facts, &tracker, now)
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
                tracker.on_event(&event);
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
        if let Some(checks) = probe.checks(true).await? {
            tracker.on_checks(checks.found, started.elapsed());
            status = checks.status;
        }
        if status.state != NvmlState::Ready {
            facts.on_nvml(status);
        }
        anyhow::Ok(())
    };
    let asked = timeout(args.machine.deadline, ask).await;
    asked.with_context(|| format!("the probe did not answer within {} s", args.machine.deadline.as_secs()))?
}

fn report(facts: &NodeFacts, tracker: &Tracker, now: Duration) -> Report {
    let health = tracker.health(now);
    let mut rows = tracker.rows();
    let gpus: Vec<OfGpu> = health
        .gpus
        .into_iter()
        .map(|gpu| {
            let at = rows.iter().position(|(listed, _)| listed.uuid == gpu.uuid);
            let (known, checks) = at.map(|at| rows.swap_remove(at)).unzip();
            OfGpu {
                product: known.and_then(|k| k.product.clone()),
                pci_address: known.and_then(|k| k.pci_address.clone()),
                state: gpu.state,
                reason: gpu.reason,
                message: gpu.message,
                checks: checks.into_iter().flatten().map(Into::into).collect(),
                uuid: gpu.uuid,
            }
        })
        .collect();
    let worst = gpus.iter().map(|gpu| match gpu.state {
        GpuState::Healthy => Verdict::Healthy,
        GpuState::Suspect => Verdict::Suspect,
        GpuState::Verifying | GpuState::Unhealthy => Verdict::Unhealthy,
    });
    let worst = worst.max().unwrap_or(Verdict::Healthy);
    let cards = facts.nvidia_display_functions().next().is_some();
    let verdict = match facts.nvml.state {
        NvmlState::Ready if health.missing_gpus > 0 => Verdict::Unhealthy,
        NvmlState::Ready => worst,
        NvmlState::Hung | NvmlState::VersionMismatch => Verdict::Unhealthy,
        NvmlState::NoLibrary | NvmlState::NoDriver if !cards => Verdict::Healthy,
        NvmlState::NoLibrary
        | NvmlState::NoDriver
        | NvmlState::Error
        | NvmlState::Unknown
        | NvmlState::Released
        | NvmlState::ReleaseBlocked
        | NvmlState::ProbeUnavailable => Verdict::Unknown,
    };
    Report {
        verdict,
        nvml: facts.nvml.state.to_string(),
        message: facts.nvml.message.clone(),
        missing_gpus: health.missing_gpus,
        gpus,
    }
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    let _ = write!(text, "{:?}: NVML is {}", report.verdict, report.nvml);
    if !report.message.is_empty() {
        let _ = write!(text, " ({})", report.message);
    }
    let _ = writeln!(text, "; {} GPU(s), {} missing", report.gpus.len(), report.missing_gpus);
    for gpu in &report.gpus {
        let product = gpu.product.as_deref().unwrap_or("?");
        let address = gpu.pci_address.as_deref().unwrap_or("?");
        let _ = writeln!(text, "\n{} {product} {address}: {:?}", gpu.uuid, gpu.state);
        if !gpu.reason.is_empty() {
            let _ = writeln!(text, "  {}: {}", gpu.reason, gpu.message);
        }
        for check in &gpu.checks {
            let line = format!("  {:<16} {:<14} {}", check.check, check.outcome, check.message);
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    text
}
