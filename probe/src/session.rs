//! One open NVML: what it says of the driver, the GPUs and their readings.
//!
//! Everything here runs on a worker thread, and every call into the library goes through the thread's [`CallClock`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_core::facts::{Fabric, Gpu, GpuChecks, GpuSample, Mig, MigDevice, NvidiaDriver, NvmlState, NvmlStatus};
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlGpuFabricInfo_t, nvmlMemory_t, nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    nvmlReturn_enum_NVML_ERROR_DEPRECATED, nvmlReturn_enum_NVML_ERROR_GPU_NOT_FOUND, nvmlReturn_t,
};

use crate::checks;
use crate::mig;
use crate::worker::CallClock;

/// Calls a C function that `nvml-wrapper` does not wrap; it may be missing from the loaded library.
macro_rules! raw {
    ($nvml:expr, $clock:expr, $name:ident ( $($arg:expr),* )) => {
        match &$nvml.lib().$name {
            // SAFETY: the symbol has this signature in every driver (NVML never changes one under a name), device handles come from
            // this library, and result pointers are to locals that outlive the call.
            Ok(function) => $clock.run(stringify!($name), || nvml_try(unsafe { function($($arg),*) })),
            Err(error) => Err(NvmlError::FailedToLoadSymbol(error.to_string())),
        }
    };
}
pub(crate) use raw;

/// Calls a wrapped function by the name of the C function behind it.
macro_rules! call {
    ($clock:expr, $name:ident, $call:expr) => {
        $clock.run(stringify!($name), || $call)
    };
}

/// A library that is loaded and initialised. Dropping the last clone of `nvml` closes it.
pub struct Session {
    /// The library.
    pub nvml: Arc<Nvml>,
    /// Its path.
    pub library: PathBuf,
    driver: Option<NvidiaDriver>,
    gpus: Vec<Known>,
}

/// A GPU that was seen in this session. One that falls off the bus, or that NVML cannot tell about just now, stays with the facts last read.
struct Known {
    handle: nvmlDevice_t,
    facts: Gpu,
    mig_devices: Vec<(nvmlDevice_t, String)>,
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

/// NVML as a whole does not work (any more).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {message}")]
pub struct Broken {
    /// C name of the call.
    pub call: &'static str,
    /// The state that this means.
    pub state: NvmlState,
    /// NVML's words.
    pub message: String,
}

impl From<Broken> for NvmlStatus {
    fn from(broken: Broken) -> Self {
        Self {
            state: broken.state,
            message: broken.to_string(),
        }
    }
}

/// What an error of a call on one GPU means.
enum Meaning {
    /// What was asked for is not there: an answer, and the next one will be the same.
    Absent,
    /// No answer: the next call may give one. What was known before is still the best there is.
    Unclear,
    /// The GPU is gone.
    Lost(String),
    /// NVML is gone.
    Broken(NvmlState),
}

/// The driver does not know this version of the call, or knows it no longer.
const NO_SUCH_CALL: [nvmlReturn_t; 2] = [
    nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    nvmlReturn_enum_NVML_ERROR_DEPRECATED,
];

fn meaning(error: &NvmlError) -> Meaning {
    match error {
        NvmlError::GpuLost | NvmlError::ResetRequired => Meaning::Lost(error.to_string()),
        NvmlError::UnexpectedVariant(code) if *code == nvmlReturn_enum_NVML_ERROR_GPU_NOT_FOUND => {
            Meaning::Lost("the GPU was not found".into())
        }
        NvmlError::Uninitialized => Meaning::Broken(NvmlState::Error),
        NvmlError::DriverNotLoaded => Meaning::Broken(NvmlState::NoDriver),
        NvmlError::LibRmVersionMismatch => Meaning::Broken(NvmlState::VersionMismatch),
        NvmlError::NotSupported
        | NvmlError::NotFound
        | NvmlError::InvalidArg
        | NvmlError::NoData
        | NvmlError::FunctionNotFound
        | NvmlError::FailedToLoadSymbol(_) => Meaning::Absent,
        NvmlError::UnexpectedVariant(code) if NO_SUCH_CALL.contains(code) => Meaning::Absent,
        _ => Meaning::Unclear,
    }
}

fn broken(call: &'static str, error: &NvmlError) -> Broken {
    let state = match meaning(error) {
        Meaning::Broken(state) => state,
        Meaning::Absent | Meaning::Unclear | Meaning::Lost(_) => NvmlState::Error,
    };
    Broken {
        call,
        state,
        message: error.to_string(),
    }
}

/// Why reading one GPU ended early.
pub(crate) enum Stop {
    /// The GPU is gone.
    Lost(String),
    /// NVML is gone.
    Broken(Broken),
}

/// What a call on one GPU answered.
enum Told<T> {
    Value(T),
    Absent,
    Unclear(Broken),
}

impl<T> Told<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Told<U> {
        match self {
            Self::Value(value) => Told::Value(change(value)),
            Self::Absent => Told::Absent,
            Self::Unclear(why) => Told::Unclear(why),
        }
    }

    /// A fact: as told, or as it was known where nothing is told.
    fn or_before(self, before: Option<T>) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent => None,
            Self::Unclear(why) => {
                tracing::debug!(%why, "the fact stays as it was known");
                before
            }
        }
    }
}

/// An error that is about more than the call ends the GPU's turn.
fn told<T>(call: &'static str, result: Result<T, NvmlError>) -> Result<Told<T>, Stop> {
    match result {
        Ok(value) => Ok(Told::Value(value)),
        Err(error) => match meaning(&error) {
            Meaning::Absent => Ok(Told::Absent),
            Meaning::Unclear => Ok(Told::Unclear(broken(call, &error))),
            Meaning::Lost(message) => Err(Stop::Lost(message)),
            Meaning::Broken(_) => Err(Stop::Broken(broken(call, &error))),
        },
    }
}

/// The reading of this moment. Where there is none, an earlier one is no substitute.
pub(crate) fn reading<T>(call: &'static str, result: Result<T, NvmlError>) -> Result<Option<T>, Stop> {
    Ok(told(call, result)?.or_before(None))
}

/// A wrapped call whose result may be absent.
macro_rules! read {
    ($clock:expr, $name:ident, $call:expr) => {
        reading(stringify!($name), call!($clock, $name, $call))?
    };
}

/// The value told, or else the end of this function with what was told instead.
macro_rules! value {
    ($told:expr) => {
        match $told {
            Told::Value(value) => value,
            Told::Absent => return Ok(Told::Absent),
            Told::Unclear(why) => return Ok(Told::Unclear(why)),
        }
    };
}

/// A wrapped call on a GPU's facts.
macro_rules! told {
    ($clock:expr, $name:ident, $call:expr) => {
        told(stringify!($name), call!($clock, $name, $call))?
    };
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
        // Neither changes while the driver is loaded: an error takes nothing away.
        let before = self.driver.take();
        let driver = NvidiaDriver {
            version,
            cuda_version: cuda_version
                .ok()
                .and_then(|v| u32::try_from(v).ok())
                .or(before.as_ref().and_then(|d| d.cuda_version)),
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

impl Known {
    /// Absent or unclear: handle or UUID. A fact that is unclear is as it was `before`.
    fn read(nvml: &Nvml, index: u32, before: Option<&Self>, clock: &CallClock) -> Result<Told<Self>, Stop> {
        let device = value!(told!(clock, nvmlDeviceGetHandleByIndex_v2, nvml.device_by_index(index)));
        let uuid = value!(told!(clock, nvmlDeviceGetUUID, device.uuid()));
        // What was known of another GPU in this place says nothing of this one.
        let before = before.filter(|known| known.facts.uuid == uuid);
        let was = before.map(|known| known.facts.clone()).unwrap_or_default();
        // SAFETY: the handle is kept beside the library that gave it, and used with that library alone.
        let handle = unsafe { device.handle() };
        let pci = told!(clock, nvmlDeviceGetPciInfo_v3, device.pci_info());
        let capability = told!(
            clock,
            nvmlDeviceGetCudaComputeCapability,
            device.cuda_compute_capability()
        );
        let memory_bytes = memory_v1(nvml, handle, clock)?
            .map(|m| m.total)
            .or_before(was.memory_bytes);
        let (mig, mig_devices) = read_mig(&device, memory_bytes.unwrap_or(0), nvml, clock, before)?.unzip();
        let facts = Gpu {
            index,
            uuid,
            pci_address: pci
                .map(|p| format!("{:04x}:{:02x}:{:02x}.0", p.domain, p.bus, p.device))
                .or_before(was.pci_address),
            product: told!(clock, nvmlDeviceGetName, device.name()).or_before(was.product),
            memory_bytes,
            compute_capability: capability
                .map(|c| Some((u32::try_from(c.major).ok()?, u32::try_from(c.minor).ok()?)))
                .or_before(Some(was.compute_capability))
                .flatten(),
            mig,
            fabric: fabric(nvml, handle, clock)?.or_before(Some(was.fabric)).flatten(),
            serial: told!(clock, nvmlDeviceGetSerial, device.serial()).or_before(was.serial),
            vbios: told!(clock, nvmlDeviceGetVbiosVersion, device.vbios_version()).or_before(was.vbios),
            minor_number: told!(clock, nvmlDeviceGetMinorNumber, device.minor_number()).or_before(was.minor_number),
        };
        Ok(Told::Value(Self {
            handle,
            facts,
            mig_devices: mig_devices.unwrap_or_default(),
        }))
    }

    fn sample(&self, nvml: &Nvml, clock: &CallClock) -> Result<Vec<GpuSample>, Stop> {
        // SAFETY: the handle is from this library, and a handle never goes stale before the library is closed.
        let device = unsafe { Device::new(self.handle, nvml) };
        let utilization = read!(clock, nvmlDeviceGetUtilizationRates, device.utilization_rates());
        let memory = Memory::read(&device, nvml, self.handle, clock)?;
        let mut samples = Vec::with_capacity(1 + self.mig_devices.len());
        samples.push(GpuSample {
            uuid: self.facts.uuid.clone(),
            age: Duration::ZERO,
            gpu_utilization: utilization.as_ref().map(|u| u.gpu),
            memory_utilization: utilization.as_ref().map(|u| u.memory),
            memory_used_bytes: memory.map(|m| m.used),
            memory_free_bytes: memory.map(|m| m.free),
            memory_total_bytes: memory.map(|m| m.total),
            power_mw: read!(clock, nvmlDeviceGetPowerUsage, device.power_usage()),
            temperature_c: read!(
                clock,
                nvmlDeviceGetTemperature,
                device.temperature(TemperatureSensor::Gpu)
            ),
            sm_clock_mhz: read!(clock, nvmlDeviceGetClockInfo, device.clock_info(Clock::SM)),
            memory_clock_mhz: read!(clock, nvmlDeviceGetClockInfo, device.clock_info(Clock::Memory)),
            clocks_event_reasons: clocks_event_reasons(nvml, self.handle, clock)?,
            compute_processes: read!(
                clock,
                nvmlDeviceGetComputeRunningProcesses_v3,
                device.running_compute_processes_count()
            ),
        });
        for (handle, uuid) in &self.mig_devices {
            // SAFETY: as above; a MIG device that has been destroyed since answers with an error.
            let device = unsafe { Device::new(*handle, nvml) };
            let memory = Memory::read(&device, nvml, *handle, clock)?;
            samples.push(GpuSample {
                uuid: uuid.clone(),
                memory_used_bytes: memory.map(|m| m.used),
                memory_free_bytes: memory.map(|m| m.free),
                memory_total_bytes: memory.map(|m| m.total),
                ..GpuSample::default()
            });
        }
        Ok(samples)
    }
}

/// Memory of a GPU or MIG device, in bytes.
#[derive(Clone, Copy)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

impl Memory {
    /// By version 2 of the call, which keeps the driver's own share apart; by version 1 where the driver has no other.
    fn read(device: &Device<'_>, nvml: &Nvml, handle: nvmlDevice_t, clock: &CallClock) -> Result<Option<Self>, Stop> {
        match read!(clock, nvmlDeviceGetMemoryInfo_v2, device.memory_info()) {
            Some(m) => Ok(Some(Self {
                total: m.total,
                free: m.free,
                used: m.used,
            })),
            None => Ok(memory_v1(nvml, handle, clock)?.or_before(None)),
        }
    }
}

fn memory_v1(nvml: &Nvml, handle: nvmlDevice_t, clock: &CallClock) -> Result<Told<Memory>, Stop> {
    let mut memory = nvmlMemory_t {
        total: 0,
        free: 0,
        used: 0,
    };
    let result = raw!(nvml, clock, nvmlDeviceGetMemoryInfo(handle, &raw mut memory));
    Ok(told("nvmlDeviceGetMemoryInfo", result)?.map(|()| Memory {
        total: memory.total,
        free: memory.free,
        used: memory.used,
    }))
}

/// `nvmlDeviceGetCurrentClocksEventReasons`, by its older name where the driver has no other.
fn clocks_event_reasons(nvml: &Nvml, handle: nvmlDevice_t, clock: &CallClock) -> Result<Option<u64>, Stop> {
    let mut reasons = 0;
    let result = raw!(
        nvml,
        clock,
        nvmlDeviceGetCurrentClocksEventReasons(handle, &raw mut reasons)
    );
    if let Some(()) = reading("nvmlDeviceGetCurrentClocksEventReasons", result)? {
        return Ok(Some(reasons));
    }
    let result = raw!(
        nvml,
        clock,
        nvmlDeviceGetCurrentClocksThrottleReasons(handle, &raw mut reasons)
    );
    Ok(reading("nvmlDeviceGetCurrentClocksThrottleReasons", result)?.map(|()| reasons))
}

/// NVML_GPU_FABRIC_STATE_NOT_SUPPORTED
const NO_FABRIC: u8 = 0;

fn fabric(nvml: &Nvml, handle: nvmlDevice_t, clock: &CallClock) -> Result<Told<Option<Fabric>>, Stop> {
    let mut info = nvmlGpuFabricInfo_t {
        clusterUuid: [0; 16],
        status: 0 as nvmlReturn_t,
        cliqueId: 0,
        state: NO_FABRIC,
    };
    let result = raw!(nvml, clock, nvmlDeviceGetGpuFabricInfo(handle, &raw mut info));
    Ok(told("nvmlDeviceGetGpuFabricInfo", result)?.map(|()| {
        (info.state != NO_FABRIC).then(|| Fabric {
            state: info.state.into(),
            status: info.status,
            cluster_uuid: hyphenated(info.clusterUuid),
            clique_id: info.cliqueId,
        })
    }))
}

fn hyphenated(bytes: [u8; 16]) -> String {
    let n = u128::from_be_bytes(bytes);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        n >> 96,
        (n >> 80) & 0xffff,
        (n >> 64) & 0xffff,
        (n >> 48) & 0xffff,
        n & 0xffff_ffff_ffff
    )
}

type MigHandles = Vec<(nvmlDevice_t, String)>;

/// `None`: the part has no MIG. Where one MIG device is unclear, all are as they were `before`.
fn read_mig(
    device: &Device<'_>,
    total_bytes: u64,
    nvml: &Nvml,
    clock: &CallClock,
    before: Option<&Known>,
) -> Result<Option<(Mig, MigHandles)>, Stop> {
    let before = before.and_then(|known| Some((known.facts.mig.clone()?, known.mig_devices.clone())));
    let mode = match told!(clock, nvmlDeviceGetMigMode, device.mig_mode()) {
        Told::Value(mode) => mode,
        Told::Absent => return Ok(None),
        Told::Unclear(_) => return Ok(before),
    };
    let mut mig = Mig {
        enabled: mode.current == 1,
        pending: mode.pending == 1,
        devices: Vec::new(),
    };
    let mut handles = Vec::new();
    if mig.enabled {
        let mut unclear = false;
        let most = match told!(clock, nvmlDeviceGetMaxMigDeviceCount, device.mig_device_count()) {
            Told::Value(most) => most,
            Told::Absent => 0,
            Told::Unclear(_) => {
                unclear = true;
                0
            }
        };
        for index in 0..most {
            let mig_device = match told!(
                clock,
                nvmlDeviceGetMigDeviceHandleByIndex,
                device.mig_device_by_index(index)
            ) {
                Told::Value(mig_device) => mig_device,
                // Indices may have gaps: NOT_FOUND is no end.
                Told::Absent => continue,
                Told::Unclear(_) => {
                    unclear = true;
                    continue;
                }
            };
            match read_mig_device(&mig_device, total_bytes, nvml, clock)? {
                Told::Value((handle, facts)) => {
                    handles.push((handle, facts.uuid.clone()));
                    mig.devices.push(facts);
                }
                Told::Absent => {}
                Told::Unclear(_) => unclear = true,
            }
        }
        if unclear && let Some((before, before_handles)) = before.filter(|(before, _)| before.enabled) {
            mig.devices = before.devices;
            handles = before_handles;
        }
    }
    Ok(Some((mig, handles)))
}

fn read_mig_device(
    device: &Device<'_>,
    total_bytes: u64,
    nvml: &Nvml,
    clock: &CallClock,
) -> Result<Told<(nvmlDevice_t, MigDevice)>, Stop> {
    // SAFETY: the handle is kept beside the library that gave it, and used with that library alone.
    let handle = unsafe { device.handle() };
    let (mut gpu_instance_id, mut compute_instance_id) = (0, 0);
    let uuid = value!(told!(clock, nvmlDeviceGetUUID, device.uuid()));
    let a = value!(told!(clock, nvmlDeviceGetAttributes_v2, device.attributes()));
    let gpu_instance = raw!(
        nvml,
        clock,
        nvmlDeviceGetGpuInstanceId(handle, &raw mut gpu_instance_id)
    );
    let compute_instance = raw!(
        nvml,
        clock,
        nvmlDeviceGetComputeInstanceId(handle, &raw mut compute_instance_id)
    );
    value!(told("nvmlDeviceGetGpuInstanceId", gpu_instance)?);
    value!(told("nvmlDeviceGetComputeInstanceId", compute_instance)?);
    // The name tells some profiles from others: a guess without it would be another profile.
    let name = match told!(clock, nvmlDeviceGetName, device.name()) {
        Told::Value(name) => name,
        Told::Absent => String::new(),
        Told::Unclear(why) => return Ok(Told::Unclear(why)),
    };
    let shape = mig::Shape {
        gpu_slices: a.gpu_instance_slice_count,
        compute_slices: a.compute_instance_slice_count,
        memory_mib: a.memory_size_mb,
        total_bytes,
    };
    let facts = MigDevice {
        uuid,
        gpu_instance_id,
        compute_instance_id,
        profile: mig::profile(&name, shape),
        memory_bytes: a.memory_size_mb << 20,
        multiprocessors: a.multiprocessor_count,
        gpu_instance_slices: a.gpu_instance_slice_count,
        compute_instance_slices: a.compute_instance_slice_count,
        copy_engines: a.shared_copy_engine_count,
        decoders: a.shared_decoder_count,
        encoders: a.shared_encoder_count,
        jpeg_engines: a.shared_jpeg_count,
        ofa_engines: a.shared_ofa_count,
    };
    Ok(Told::Value((handle, facts)))
}
