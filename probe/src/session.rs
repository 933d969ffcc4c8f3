//! One open NVML: what it says of the driver, the GPUs and their readings.
//!
//! Everything here runs on a worker thread, and every call into the library goes through the thread's [`CallClock`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_core::facts::{Fabric, Gpu, GpuSample, Mig, MigDevice, NvidiaDriver, NvmlState, NvmlStatus};
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlGpuFabricInfo_t, nvmlMemory_t, nvmlReturn_enum_NVML_ERROR_GPU_NOT_FOUND, nvmlReturn_t,
};

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
    gpus: Vec<Known>,
}

/// A GPU that was seen in this session. One that falls off the bus stays, with the facts last read.
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
    /// GPUs, and MIG devices after theirs.
    pub samples: Vec<GpuSample>,
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
    /// This reading is not to be had.
    Absent,
    /// The GPU is gone.
    Lost(String),
    /// NVML is gone.
    Broken(NvmlState),
}

fn meaning(error: &NvmlError) -> Meaning {
    match error {
        NvmlError::GpuLost | NvmlError::ResetRequired => Meaning::Lost(error.to_string()),
        NvmlError::UnexpectedVariant(code) if *code == nvmlReturn_enum_NVML_ERROR_GPU_NOT_FOUND => {
            Meaning::Lost("the GPU was not found".into())
        }
        NvmlError::Uninitialized => Meaning::Broken(NvmlState::Error),
        NvmlError::DriverNotLoaded => Meaning::Broken(NvmlState::NoDriver),
        NvmlError::LibRmVersionMismatch => Meaning::Broken(NvmlState::VersionMismatch),
        _ => Meaning::Absent,
    }
}

fn broken(call: &'static str, error: &NvmlError) -> Broken {
    let state = match meaning(error) {
        Meaning::Broken(state) => state,
        Meaning::Absent | Meaning::Lost(_) => NvmlState::Error,
    };
    Broken {
        call,
        state,
        message: error.to_string(),
    }
}

/// Why reading one GPU ended early.
enum Stop {
    Lost(String),
    Broken(Broken),
}

/// The reading, or its absence; an error that is about more than the reading ends the GPU's turn.
fn reading<T>(call: &'static str, result: Result<T, NvmlError>) -> Result<Option<T>, Stop> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match meaning(&error) {
            Meaning::Absent => Ok(None),
            Meaning::Lost(message) => Err(Stop::Lost(message)),
            Meaning::Broken(_) => Err(Stop::Broken(broken(call, &error))),
        },
    }
}

/// A wrapped call whose result may be absent.
macro_rules! read {
    ($clock:expr, $name:ident, $call:expr) => {
        reading(stringify!($name), call!($clock, $name, $call))?
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
        let system = |call, error: NvmlError| broken(call, &error);
        let version = call!(clock, nvmlSystemGetDriverVersion, nvml.sys_driver_version())
            .map_err(|e| system("nvmlSystemGetDriverVersion", e))?;
        let cuda_version = call!(clock, nvmlSystemGetCudaDriverVersion_v2, nvml.sys_cuda_driver_version());
        let nvml_version = call!(clock, nvmlSystemGetNVMLVersion, nvml.sys_nvml_version());
        let count =
            call!(clock, nvmlDeviceGetCount_v2, nvml.device_count()).map_err(|e| system("nvmlDeviceGetCount_v2", e))?;

        let mut gpus = Vec::with_capacity(count as usize);
        for index in 0..count {
            match Known::read(&nvml, index, clock) {
                Ok(Some(known)) => gpus.push(known),
                Ok(None) => tracing::warn!(index, "a GPU without handle or UUID is left out"),
                Err(Stop::Broken(broken)) => return Err(broken),
                Err(Stop::Lost(message)) => {
                    tracing::warn!(index, message, "GPU lost");
                    if let Some(at) = self.gpus.iter().position(|k| k.facts.index == index) {
                        gpus.push(self.gpus.swap_remove(at));
                    }
                }
            }
        }
        self.gpus = gpus;
        Ok(Inventory {
            driver: NvidiaDriver {
                version,
                cuda_version: cuda_version.ok().and_then(|v| u32::try_from(v).ok()),
                nvml_version: nvml_version.ok(),
            },
            gpus: self.gpus.iter().map(|k| k.facts.clone()).collect(),
            library: self.library.clone(),
        })
    }

    /// Reads what every GPU is doing.
    pub fn sample(&self, clock: &CallClock) -> Result<Readings, Broken> {
        let mut readings = Readings::default();
        for known in &self.gpus {
            match known.sample(&self.nvml, clock) {
                Ok(samples) => readings.samples.extend(samples),
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
    fn read(nvml: &Nvml, index: u32, clock: &CallClock) -> Result<Option<Self>, Stop> {
        let Some(device) = read!(clock, nvmlDeviceGetHandleByIndex_v2, nvml.device_by_index(index)) else {
            return Ok(None);
        };
        let Some(uuid) = read!(clock, nvmlDeviceGetUUID, device.uuid()) else {
            return Ok(None);
        };
        // SAFETY: the handle is kept beside the library that gave it, and used with that library alone.
        let handle = unsafe { device.handle() };
        let pci = read!(clock, nvmlDeviceGetPciInfo_v3, device.pci_info());
        let capability = read!(
            clock,
            nvmlDeviceGetCudaComputeCapability,
            device.cuda_compute_capability()
        );
        let memory = memory_v1(nvml, handle, clock)?;
        let (mig, mig_devices) = read_mig(&device, memory.map_or(0, |m| m.total), nvml, clock)?.unzip();
        let facts = Gpu {
            index,
            uuid,
            pci_address: pci.map(|p| format!("{:04x}:{:02x}:{:02x}.0", p.domain, p.bus, p.device)),
            product: read!(clock, nvmlDeviceGetName, device.name()),
            memory_bytes: memory.map(|m| m.total),
            compute_capability: capability
                .and_then(|c| Some((u32::try_from(c.major).ok()?, u32::try_from(c.minor).ok()?))),
            mig,
            fabric: fabric(nvml, handle, clock)?,
            serial: read!(clock, nvmlDeviceGetSerial, device.serial()),
            vbios: read!(clock, nvmlDeviceGetVbiosVersion, device.vbios_version()),
            minor_number: read!(clock, nvmlDeviceGetMinorNumber, device.minor_number()),
        };
        Ok(Some(Self {
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
            None => memory_v1(nvml, handle, clock),
        }
    }
}

fn memory_v1(nvml: &Nvml, handle: nvmlDevice_t, clock: &CallClock) -> Result<Option<Memory>, Stop> {
    let mut memory = nvmlMemory_t {
        total: 0,
        free: 0,
        used: 0,
    };
    let result = raw!(nvml, clock, nvmlDeviceGetMemoryInfo(handle, &raw mut memory));
    Ok(reading("nvmlDeviceGetMemoryInfo", result)?.map(|()| Memory {
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

fn fabric(nvml: &Nvml, handle: nvmlDevice_t, clock: &CallClock) -> Result<Option<Fabric>, Stop> {
    let mut info = nvmlGpuFabricInfo_t {
        clusterUuid: [0; 16],
        status: 0 as nvmlReturn_t,
        cliqueId: 0,
        state: NO_FABRIC,
    };
    let result = raw!(nvml, clock, nvmlDeviceGetGpuFabricInfo(handle, &raw mut info));
    Ok(reading("nvmlDeviceGetGpuFabricInfo", result)?
        .filter(|()| info.state != NO_FABRIC)
        .map(|()| Fabric {
            state: info.state.into(),
            status: info.status,
            cluster_uuid: hyphenated(info.clusterUuid),
            clique_id: info.cliqueId,
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

/// `None`: the part has no MIG.
fn read_mig(
    device: &Device<'_>,
    total_bytes: u64,
    nvml: &Nvml,
    clock: &CallClock,
) -> Result<Option<(Mig, MigHandles)>, Stop> {
    let Some(mode) = read!(clock, nvmlDeviceGetMigMode, device.mig_mode()) else {
        return Ok(None);
    };
    let mut mig = Mig {
        enabled: mode.current == 1,
        pending: mode.pending == 1,
        devices: Vec::new(),
    };
    let mut handles = Vec::new();
    if mig.enabled {
        let most = read!(clock, nvmlDeviceGetMaxMigDeviceCount, device.mig_device_count()).unwrap_or(0);
        for index in 0..most {
            // Indices may have gaps: NOT_FOUND is no end.
            let Some(mig_device) = read!(
                clock,
                nvmlDeviceGetMigDeviceHandleByIndex,
                device.mig_device_by_index(index)
            ) else {
                continue;
            };
            if let Some((handle, facts)) = read_mig_device(&mig_device, total_bytes, nvml, clock)? {
                handles.push((handle, facts.uuid.clone()));
                mig.devices.push(facts);
            }
        }
    }
    Ok(Some((mig, handles)))
}

fn read_mig_device(
    device: &Device<'_>,
    total_bytes: u64,
    nvml: &Nvml,
    clock: &CallClock,
) -> Result<Option<(nvmlDevice_t, MigDevice)>, Stop> {
    // SAFETY: the handle is kept beside the library that gave it, and used with that library alone.
    let handle = unsafe { device.handle() };
    let (mut gpu_instance_id, mut compute_instance_id) = (0, 0);
    let uuid = read!(clock, nvmlDeviceGetUUID, device.uuid());
    let attributes = read!(clock, nvmlDeviceGetAttributes_v2, device.attributes());
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
    let (Some(uuid), Some(a), Some(()), Some(())) = (
        uuid,
        attributes,
        reading("nvmlDeviceGetGpuInstanceId", gpu_instance)?,
        reading("nvmlDeviceGetComputeInstanceId", compute_instance)?,
    ) else {
        return Ok(None);
    };
    let name = read!(clock, nvmlDeviceGetName, device.name()).unwrap_or_default();
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
    Ok(Some((handle, facts)))
}
