//! All that `check` has to say, as one object.

use std::time::Duration;

use berth_core::facts::{Gpu, NodeFacts, NvmlState, PciFunction, PciReadings};
use berth_core::health::checks::{Outcome, Row, gpu_count, rows_of_function};
use berth_core::health::{GpuHealth, GpuState, Tracker};
use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Verdict {
    /// There is nothing to check. Exit code 0.
    #[serde(rename = "NoGPU")]
    NoGpu,
    /// Exit code 0.
    Healthy,
    /// Exit code 1.
    Suspect,
    /// Exit code 3: nobody could tell.
    Unknown,
    /// Exit code 2.
    Unhealthy,
}

impl Verdict {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::NoGpu | Self::Healthy => 0,
            Self::Suspect => 1,
            Self::Unhealthy => 2,
            Self::Unknown => 3,
        }
    }

    fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Passed | Outcome::NotSupported | Outcome::Unknown => Self::Healthy,
            Outcome::Suspect => Self::Suspect,
            Outcome::Unhealthy => Self::Unhealthy,
        }
    }
}

/// All that is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The worst of all below.
    pub verdict: Verdict,
    /// State of NVML.
    pub nvml: String,
    /// NVML's words; empty when ready.
    pub message: String,
    /// NVIDIA's driver, as last known.
    pub driver: Option<String>,
    /// CUDA's version, as the driver has it.
    pub cuda: Option<String>,
    /// Functions bound to the vendor's driver that NVML does not list.
    pub missing_gpus: u32,
    /// Checks of the node as a whole.
    pub node: Vec<OfCheck>,
    /// GPUs that NVML knows.
    pub gpus: Vec<OfGpu>,
    /// GPUs that PCI alone knows: of other vendors, and of NVIDIA's where NVML does not answer.
    pub pci: Vec<OfFunction>,
}

/// One GPU that NVML knows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OfGpu {
    /// `GPU-…`.
    pub uuid: String,
    /// NVML's number of it.
    pub index: Option<u32>,
    /// NVML's name.
    pub product: Option<String>,
    /// `dddd:bb:dd.f`.
    pub pci_address: Option<String>,
    /// The verdict.
    pub state: GpuState,
    /// Name of the worst check; empty when healthy.
    pub reason: String,
    /// What was seen and what to do.
    pub message: String,
    /// Every check.
    pub checks: Vec<OfCheck>,
    /// MIG devices on it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mig: Vec<OfSlice>,
}

/// A MIG device: it is never better than its GPU.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OfSlice {
    /// `MIG-…`.
    pub uuid: String,
    /// `1g.10gb`; empty: the GPU is known no more.
    pub profile: String,
    /// The verdict.
    pub state: GpuState,
    /// Why; empty when healthy.
    pub reason: String,
    /// What was seen and what to do.
    pub message: String,
}

impl OfSlice {
    fn of(health: &GpuHealth, known: Option<&Gpu>) -> Self {
        let mut devices = known.and_then(|k| k.mig.as_ref()).into_iter().flat_map(|m| &m.devices);
        let device = devices.find(|device| device.uuid == health.uuid);
        Self {
            uuid: health.uuid.clone(),
            profile: device.map(|d| d.profile.clone()).unwrap_or_default(),
            state: health.state,
            reason: health.reason.clone(),
            message: health.message.clone(),
        }
    }
}

/// One GPU by PCI.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OfFunction {
    /// `dddd:bb:dd.f`.
    pub pci_address: String,
    /// `vvvv:dddd`.
    pub id: String,
    /// The kernel's driver.
    pub driver: Option<String>,
    /// What PCI alone says.
    pub checks: Vec<OfCheck>,
}

/// One check.
#[derive(Debug, Serialize)]
pub struct OfCheck {
    /// Its name.
    pub check: &'static str,
    /// What it says.
    pub outcome: &'static str,
    /// Why, where it is suspect or unhealthy.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What was seen and what to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The reading.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reading: String,
}

/// An outcome, in words.
pub const NOT_SUPPORTED: &str = "not supported";

impl From<Row> for OfCheck {
    fn from(row: Row) -> Self {
        Self {
            check: row.check,
            outcome: match row.outcome {
                Outcome::Passed => "passed",
                Outcome::NotSupported => NOT_SUPPORTED,
                Outcome::Unknown => "unknown",
                Outcome::Suspect => "suspect",
                Outcome::Unhealthy => "unhealthy",
            },
            reason: row.reason.map(|r| r.to_string()).unwrap_or_default(),
            message: row.message,
            reading: row.reading,
        }
    }
}

impl Report {
    /// What is known at `now`.
    pub fn of(facts: &NodeFacts, pci: &PciReadings, tracker: &Tracker, now: Duration) -> Self {
        let health = tracker.health(now);
        let mut rows = tracker.rows();
        let (slices, gpus): (Vec<GpuHealth>, Vec<GpuHealth>) = health.gpus.into_iter().partition(|g| g.gpu.is_some());
        let gpus: Vec<OfGpu> = gpus
            .into_iter()
            .map(|gpu| {
                let at = rows.iter().position(|(listed, _)| listed.uuid == gpu.uuid);
                let (known, checks) = at.map(|at| rows.swap_remove(at)).unzip();
                let slices = slices.iter().filter(|s| s.gpu.as_ref() == Some(&gpu.uuid));
                let slices = slices.map(|slice| OfSlice::of(slice, known)).collect();
                OfGpu::of(gpu, known, checks.unwrap_or_default(), slices)
            })
            .collect();
        let mut node = vec![gpu_count(facts)];
        node.extend(tracker.node_rows());
        let others = by_pci_alone(facts, &gpus);
        let by_pci: Vec<(&PciFunction, Vec<Row>)> = others
            .map(|function| {
                let read = pci.functions.iter().find(|f| f.address == function.address);
                (function, read.map(rows_of_function).unwrap_or_default())
            })
            .collect();
        let states = gpus
            .iter()
            .flat_map(|gpu| std::iter::once(gpu.state).chain(gpu.mig.iter().map(|slice| slice.state)));
        let of_gpus = states.map(|state| match state {
            GpuState::Healthy => Verdict::Healthy,
            GpuState::Suspect => Verdict::Suspect,
            GpuState::Verifying | GpuState::Unhealthy => Verdict::Unhealthy,
        });
        let of_pci = by_pci
            .iter()
            .flat_map(|(_, rows)| rows)
            .map(|row| Verdict::of(row.outcome));
        let found = of_gpus.chain(of_pci).max().unwrap_or(Verdict::NoGpu);
        let cards = facts.nvidia_display_functions().next().is_some() || !gpus.is_empty();
        Self {
            verdict: verdict(facts.nvml.state, found, cards, health.missing_gpus > 0),
            nvml: facts.nvml.state.to_string(),
            message: facts.nvml.message.clone(),
            driver: facts
                .driver
                .as_ref()
                .map(|d| d.version.clone())
                .or(facts.kernel_driver_version.clone()),
            cuda: facts
                .driver
                .as_ref()
                .and_then(|d| d.cuda_version)
                .map(|v| format!("{}.{}", v / 1000, v % 1000 / 10)),
            missing_gpus: health.missing_gpus,
            node: if cards {
                node.into_iter().map(Into::into).collect()
            } else {
                Vec::new()
            },
            gpus,
            pci: by_pci
                .into_iter()
                .map(|(function, rows)| OfFunction {
                    pci_address: function.address.clone(),
                    id: format!("{:04x}:{:04x}", function.vendor, function.device),
                    driver: function.driver.clone(),
                    checks: rows.into_iter().map(Into::into).collect(),
                })
                .collect(),
        }
    }
}

impl OfGpu {
    fn of(health: GpuHealth, known: Option<&Gpu>, checks: Vec<Row>, mig: Vec<OfSlice>) -> Self {
        Self {
            index: known.map(|k| k.index),
            product: known.and_then(|k| k.product.clone()),
            pci_address: known.and_then(|k| k.pci_address.clone()),
            state: health.state,
            checks: checks.into_iter().map(Into::into).collect(),
            mig,
            uuid: health.uuid,
            reason: health.reason,
            message: health.message,
        }
    }
}

/// GPUs that none of `known` is. Of other vendors only those that their driver serves: a machine's console is a display function, too.
fn by_pci_alone<'f>(facts: &'f NodeFacts, known: &[OfGpu]) -> impl Iterator<Item = &'f PciFunction> {
    let known: Vec<&str> = known.iter().filter_map(|gpu| gpu.pci_address.as_deref()).collect();
    let amd = facts.amd_gpus.iter().map(|g| g.pci_address.as_str());
    let intel = facts.intel_gpus.iter().map(|g| g.pci_address.as_str());
    let nvidia = facts.nvidia_display_functions().map(|f| f.address.as_str());
    let wanted: Vec<&str> = nvidia.chain(amd).chain(intel).filter(|a| !known.contains(a)).collect();
    facts.pci.iter().filter(move |f| wanted.contains(&f.address.as_str()))
}

/// `found`: the worst of all GPUs; `cards`: whether any is NVIDIA's.
fn verdict(nvml: NvmlState, found: Verdict, cards: bool, missing: bool) -> Verdict {
    match nvml {
        _ if !cards && nvml != NvmlState::Hung => found,
        NvmlState::Ready if missing => Verdict::Unhealthy,
        NvmlState::Ready => found,
        NvmlState::Hung | NvmlState::VersionMismatch => Verdict::Unhealthy,
        NvmlState::NoLibrary
        | NvmlState::NoDriver
        | NvmlState::Error
        | NvmlState::Unknown
        | NvmlState::Released
        | NvmlState::ReleaseBlocked
        | NvmlState::ProbeUnavailable => match found {
            // What PCI says needs no NVML.
            Verdict::Unhealthy => Verdict::Unhealthy,
            _ => Verdict::Unknown,
        },
    }
}
