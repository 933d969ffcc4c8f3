//! One open NVML: what it says of the driver, the GPUs and their readings.
//!
//! ```text
//! open ─► gpu (facts, once) ─► mig, fabric
//!              └─► sample (every second, gpm and history with it) and checks (every 15 s), by the handles found
//! ```
//!
//! Everything here runs on a worker thread, and every call into the library goes through the thread's [`CallClock`]; [`told`] says what an
//! answer means.

mod checks;
mod fabric;
mod fields;
mod gpm;
mod gpu;
mod history;
mod mig;
mod processes;
mod profile;
mod sample;
#[cfg(test)]
mod soak;
mod told;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use berth_core::facts::{Gpu, GpuChecks, GpuSample, NodeChecks, NvidiaDriver, NvmlState, NvmlStatus, Round};
use nvml_wrapper::Nvml;
use nvml_wrapper_sys::bindings::nvmlDevice_t;

use crate::processes::OnGpu;
use crate::worker::CallClock;
use checks::{ConfidentialCompute, Limits};
use gpu::Known;
use history::History;
pub(crate) use told::{Broken, raw};
use told::{Stop, Told, broken, call};

/// A library that is loaded and initialised. Dropping the last clone of `nvml` closes it.
pub struct Session {
    /// By UUID. First, so that it is dropped before the library is: it holds buffers of it.
    histories: BTreeMap<String, History>,
    /// The library.
    pub nvml: Arc<Nvml>,
    /// Its path.
    pub library: PathBuf,
    driver: Option<NvidiaDriver>,
    gpus: Vec<Known>,
    /// By UUID.
    limits: HashMap<String, Limits>,
    confidential_compute: ConfidentialCompute,
    /// GPUs that the last inventory found to be gone: UUID and what NVML says.
    lost: Vec<(String, String)>,
}

/// What the inventory call found.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// The driver.
    pub driver: NvidiaDriver,
    /// GPUs in NVML order.
    pub gpus: Vec<Gpu>,
    /// The library.
    pub library: PathBuf,
}

/// What one round of readings found.
#[derive(Debug, Clone, Default)]
pub struct Readings {
    /// GPUs, and MIG devices after theirs, with the time from which on they were read. Others may have taken long after that.
    pub samples: Vec<(GpuSample, Instant)>,
    /// GPUs that are gone: UUID and what NVML says.
    pub lost: Vec<(String, String)>,
}

impl Session {
    /// Opens the first library that works. Of several that do not, the most telling state counts.
    pub fn open(candidates: &[PathBuf], clock: &CallClock) -> Result<Self, NvmlStatus> {
        let mut worst: Option<NvmlStatus> = None;
        for library in candidates {
            match Self::open_one(library, clock) {
                Ok(session) => return Ok(session),
                Err(status) => {
                    if worst.as_ref().is_none_or(|w| telling(status.state) > telling(w.state)) {
                        worst = Some(status);
                    }
                }
            }
        }
        Err(worst.unwrap_or_else(|| NvmlStatus {
            state: NvmlState::NoLibrary,
            message: "libnvidia-ml.so.1 is in none of the places searched".into(),
        }))
    }

    fn open_one(library: &Path, clock: &CallClock) -> Result<Self, NvmlStatus> {
        let opened = call!(clock, nvmlInit_v2, Nvml::builder().lib_path(library.as_os_str()).init());
        let nvml = opened.map_err(|error| {
            let status = NvmlStatus::from(broken("nvmlInit_v2", &error));
            NvmlStatus {
                message: format!("{}: {}", library.display(), status.message),
                ..status
            }
        })?;
        let mut session = Self {
            histories: BTreeMap::new(),
            nvml: Arc::new(nvml),
            library: library.into(),
            driver: None,
            gpus: Vec::new(),
            limits: HashMap::new(),
            confidential_compute: ConfidentialCompute::default(),
            lost: Vec::new(),
        };
        session.inventory(clock)?;
        Ok(session)
    }

    /// Handle, UUID and PCI address of every GPU.
    pub fn handles(&self) -> impl Iterator<Item = (nvmlDevice_t, &Gpu)> {
        self.gpus.iter().map(|known| (known.handle, &known.facts))
    }

    /// Reads each fact once per GPU.
    pub fn inventory(&mut self, clock: &CallClock) -> Result<Inventory, Broken> {
        let nvml = Arc::clone(&self.nvml);
        let driver = self.read_driver(clock)?;
        let count = call!(clock, nvmlDeviceGetCount_v2, nvml.device_count())
            .map_err(|error| broken("nvmlDeviceGetCount_v2", &error))?;

        let mut gpus = Vec::with_capacity(count as usize);
        let mut unclear = Vec::new();
        self.lost.clear();
        for index in 0..count {
            let at = self.gpus.iter().position(|k| k.facts.index == index);
            let before = at.map(|at| self.gpus.swap_remove(at));
            match Known::read(&nvml, index, before.as_ref(), clock) {
                Ok(Told::Value(known)) => gpus.push(known),
                Ok(Told::Absent) => tracing::warn!(index, "a GPU without handle or UUID is left out"),
                Ok(Told::Unclear(why)) => {
                    tracing::warn!(index, %why, known = before.is_some(), "NVML cannot tell about a GPU");
                    unclear.push(why);
                    gpus.extend(before);
                }
                Err(Stop::Broken(broken)) => return Err(broken),
                Err(Stop::Lost(message)) => {
                    tracing::warn!(index, message, "GPU lost");
                    self.lost
                        .extend(before.as_ref().map(|known| (known.facts.uuid.clone(), message)));
                    gpus.extend(before);
                }
            }
        }
        self.gpus = gpus;
        let listed = |uuid: &String| self.gpus.iter().any(|known| known.facts.uuid == *uuid);
        if !self.histories.keys().all(listed) {
            clock.run("nvmlGpmSampleFree", || self.histories.retain(|uuid, _| listed(uuid)));
        }
        match unclear.pop() {
            // Not one GPU's trouble: a fresh session may get an answer.
            Some(why) if unclear.len() + 1 == count as usize => return Err(why),
            Some(_) | None => {}
        }
        Ok(Inventory {
            driver,
            gpus: self.gpus.iter().map(|k| k.facts.clone()).collect(),
            library: self.library.clone(),
        })
    }

    fn read_driver(&mut self, clock: &CallClock) -> Result<NvidiaDriver, Broken> {
        let nvml = &self.nvml;
        let version = call!(clock, nvmlSystemGetDriverVersion, nvml.sys_driver_version())
            .map_err(|error| broken("nvmlSystemGetDriverVersion", &error))?;
        let cuda_version = call!(clock, nvmlSystemGetCudaDriverVersion_v2, nvml.sys_cuda_driver_version());
        let nvml_version = call!(clock, nvmlSystemGetNVMLVersion, nvml.sys_nvml_version());
        let mut excluded = 0;
        let told = raw!(nvml, clock, nvmlGetExcludedDeviceCount(&raw mut excluded));
        // None of these changes while the driver is loaded: an error takes nothing away.
        let before = self.driver.take();
        let driver = NvidiaDriver {
            version,
            cuda_version: cuda_version
                .ok()
                .and_then(|v| u32::try_from(v).ok())
                .or(before.as_ref().and_then(|d| d.cuda_version)),
            excluded_gpus: told
                .ok()
                .map(|()| excluded)
                .or(before.as_ref().and_then(|d| d.excluded_gpus)),
            nvml_version: nvml_version.ok().or(before.and_then(|d| d.nvml_version)),
        };
        self.driver = Some(driver.clone());
        Ok(driver)
    }

    /// Reads what the health checks need. A GPU that is lost, by any of these calls or in the last inventory, is named as such.
    pub fn checks(&mut self, clock: &CallClock) -> Result<Round, Broken> {
        let mut round = Round {
            gpus: Vec::with_capacity(self.gpus.len()),
            node: NodeChecks {
                lost: self.lost.clone(),
                ..NodeChecks::default()
            },
        };
        for known in &self.gpus {
            match Self::check(&self.nvml, known, &mut self.limits, clock) {
                Ok(checks) => round.gpus.push(checks),
                Err(Stop::Lost(message)) => round.node.lost.push((known.facts.uuid.clone(), message)),
                Err(Stop::Broken(broken)) => return Err(broken),
            }
        }
        match self.confidential_compute.is_ready(&self.nvml, clock) {
            Ok((ready, unclear)) => {
                round.node.confidential_compute_ready = ready;
                round.node.unclear.extend(unclear.into_iter().map(Into::into));
            }
            // Of which GPU is not said, and those that are gone say so themselves.
            Err(Stop::Lost(_)) => {}
            Err(Stop::Broken(broken)) => return Err(broken),
        }
        Ok(round)
    }

    fn check(
        nvml: &Nvml,
        known: &Known,
        limits: &mut HashMap<String, Limits>,
        clock: &CallClock,
    ) -> Result<GpuChecks, Stop> {
        let uuid = &known.facts.uuid;
        if !limits.get(uuid).is_some_and(|l| l.complete) {
            limits.insert(uuid.clone(), Limits::read(nvml, known.handle, clock)?);
        }
        let limits = limits.get(uuid).cloned().unwrap_or_default();
        let checks = checks::read(nvml, known.handle, &limits, known.facts.fabric.is_some(), clock)?;
        Ok(GpuChecks {
            uuid: uuid.clone(),
            ..checks
        })
    }

    /// Reads which processes are on the GPUs. A GPU that is lost has none to tell.
    pub fn processes(&self, clock: &CallClock) -> Result<Vec<OnGpu>, Broken> {
        let mut all = Vec::new();
        for known in &self.gpus {
            match known.processes(&self.nvml, clock) {
                Ok(processes) => all.extend(processes.into_iter().flatten()),
                Err(Stop::Lost(message)) => tracing::debug!(uuid = known.facts.uuid, message, "no processes told"),
                Err(Stop::Broken(broken)) => return Err(broken),
            }
        }
        Ok(all)
    }

    /// Reads what every GPU is doing.
    pub fn sample(&mut self, clock: &CallClock) -> Result<Readings, Broken> {
        let mut readings = Readings::default();
        for known in &self.gpus {
            let at = Instant::now();
            let history = self.histories.entry(known.facts.uuid.clone()).or_default();
            match known.sample(&self.nvml, history, clock) {
                Ok(samples) => readings.samples.extend(samples.into_iter().map(|sample| (sample, at))),
                Err(Stop::Lost(error)) => readings.lost.push((known.facts.uuid.clone(), error)),
                Err(Stop::Broken(broken)) => return Err(broken),
            }
        }
        Ok(readings)
    }
}

/// Of several libraries that do not work, the state of the one that came closest.
fn telling(state: NvmlState) -> u8 {
    match state {
        NvmlState::VersionMismatch => 3,
        NvmlState::NoDriver => 2,
        NvmlState::Error => 1,
        NvmlState::Unknown
        | NvmlState::Ready
        | NvmlState::NoLibrary
        | NvmlState::Hung
        | NvmlState::Released
        | NvmlState::ReleaseBlocked
        | NvmlState::ProbeUnavailable => 0,
    }
}
