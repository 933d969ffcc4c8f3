//! One open NVML: what it says of the driver, the GPUs and their readings.
//!
//! ```text
//! open ─► gpu (facts, once) ─► mig, fabric
//!              └─► sample (every second) and checks (every 15 s), by the handles found
//! ```
//!
//! Everything here runs on a worker thread, and every call into the library goes through the thread's [`CallClock`]; [`told`] says what an
//! answer means.

mod checks;
mod fabric;
mod gpu;
mod mig;
mod profile;
mod sample;
#[cfg(test)]
mod soak;
mod told;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use berth_core::facts::{Gpu, GpuChecks, GpuSample, NvidiaDriver, NvmlState, NvmlStatus};
use nvml_wrapper::Nvml;
use nvml_wrapper_sys::bindings::nvmlDevice_t;

use crate::worker::CallClock;
use gpu::Known;
pub(crate) use told::{Broken, raw};
use told::{Stop, Told, broken, call};

/// A library that is loaded and initialised. Dropping the last clone of `nvml` closes it.
pub struct Session {
    /// The library.
    pub nvml: Arc<Nvml>,
    /// Its path.
    pub library: PathBuf,
    driver: Option<NvidiaDriver>,
    gpus: Vec<Known>,
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
            nvml: Arc::new(nvml),
            library: library.into(),
            driver: None,
            gpus: Vec::new(),
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
                    gpus.extend(before);
                }
            }
        }
        self.gpus = gpus;
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

    /// Reads what the health checks need; `slow`: also what takes long. A GPU that is lost is left out: the samples tell.
    pub fn checks(&self, slow: bool, clock: &CallClock) -> Result<Vec<GpuChecks>, Broken> {
        let mut all = Vec::with_capacity(self.gpus.len());
        for known in &self.gpus {
            match checks::read(&self.nvml, known.handle, slow, clock) {
                Ok(checks) => all.push(GpuChecks {
                    uuid: known.facts.uuid.clone(),
                    ..checks
                }),
                Err(Stop::Lost(message)) => tracing::debug!(uuid = known.facts.uuid, message, "not checked"),
                Err(Stop::Broken(broken)) => return Err(broken),
            }
        }
        Ok(all)
    }

    /// Reads what every GPU is doing.
    pub fn sample(&self, clock: &CallClock) -> Result<Readings, Broken> {
        let mut readings = Readings::default();
        for known in &self.gpus {
            let at = Instant::now();
            match known.sample(&self.nvml, clock) {
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
        | NvmlState::ProbeUnavailable => 0,
    }
}
