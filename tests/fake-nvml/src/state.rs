//! The state file: everything that the fake driver knows.
//!
//! All fields but a GPU's `uuid`, `name` and `pci_address` have defaults, so a test may write as little as it cares about. A reading
//! that is left out is that of an idle GPU; one that is `null` makes its NVML call answer NOT_SUPPORTED.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Environment variable that names the state file.
pub const STATE_ENV: &str = "FAKE_NVML_STATE";

/// Environment variable that names a file to which every call appends its name as a line; unset: none does.
pub const CALLS_ENV: &str = "FAKE_NVML_CALLS";

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The driver.
    #[serde(default)]
    pub driver: Driver,
    /// GPUs in NVML order.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// Driver bindings, each told once to every system event set that was registered before it was written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub system_events: Vec<SystemEvent>,
    /// What goes wrong. All that match a call apply, in order; the first error ends the call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
}

/// The driver as NVML reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Driver {
    /// Whether the kernel module is there; `false`: every call answers DRIVER_NOT_LOADED.
    pub loaded: bool,
    /// Whether library and kernel module are of different versions: initialising answers LIB_RM_VERSION_MISMATCH.
    pub version_mismatch: bool,
    /// e.g. `550.163.01`.
    pub version: String,
    /// 1000 × major + 10 × minor.
    pub cuda_version: u32,
    /// e.g. `12.550.163.01`.
    pub nvml_version: String,
    /// Whether the GPUs take work; absent: confidential computing is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidential_compute_ready: Option<bool>,
    /// GPUs that a module parameter keeps from everybody.
    pub excluded_gpus: u32,
    /// Whether a GPU that comes later is listed only after NVML was shut down and initialised again, as a real one does.
    pub lists_once: bool,
}

impl Default for Driver {
    fn default() -> Self {
        Self {
            loaded: true,
            version_mismatch: false,
            version: "550.163.01".into(),
            cuda_version: 12040,
            nvml_version: "12.550.163.01".into(),
            confidential_compute_ready: None,
            excluded_gpus: 0,
            lists_once: false,
        }
    }
}

/// One GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// `GPU-…`.
    pub uuid: String,
    /// NVML name.
    pub name: String,
    /// `dddd:bb:dd.f`.
    pub pci_address: String,
    /// PCI device id, e.g. `0x2330` (in JSON a plain number).
    #[serde(default)]
    pub pci_device: u16,
    /// Compute capability, first part.
    #[serde(default)]
    pub compute_major: u32,
    /// Compute capability, second part.
    #[serde(default)]
    pub compute_minor: u32,
    /// Bytes in all.
    #[serde(default)]
    pub memory_total_bytes: u64,
    /// Bytes that the driver keeps; counted as used by memory info v1, apart by v2.
    #[serde(default)]
    pub memory_reserved_bytes: u64,
    /// Bytes in use. What is left is free.
    #[serde(default)]
    pub memory_used_bytes: u64,
    /// Board serial.
    #[serde(default)]
    pub serial: Option<String>,
    /// VBIOS version.
    #[serde(default)]
    pub vbios: Option<String>,
    /// MIG; absent: the part has none, and MIG calls answer NOT_SUPPORTED.
    #[serde(default)]
    pub mig: Option<Mig>,
    /// NVLink fabric registration; absent: the part has none.
    #[serde(default)]
    pub fabric: Option<Fabric>,
    /// Shares of time; `null` on a GPU in MIG mode.
    #[serde(default = "idle::utilization")]
    pub utilization: Option<Utilization>,
    /// Milliwatts.
    #[serde(default = "idle::power_mw")]
    pub power_mw: Option<u32>,
    /// Degrees Celsius.
    #[serde(default = "idle::temperature_c")]
    pub temperature_c: Option<u32>,
    /// MHz.
    #[serde(default = "idle::clocks")]
    pub clocks: Option<Clocks>,
    /// NVML's clocks-event-reasons mask.
    #[serde(default = "idle::clocks_event_reasons")]
    pub clocks_event_reasons: Option<u64>,
    /// Degrees Celsius of the memory (field 82); parts without HBM do not tell.
    #[serde(default)]
    pub memory_temperature_c: Option<u32>,
    /// Millijoules so far (field 83).
    #[serde(default)]
    pub energy_mj: Option<u64>,
    /// Percent of time that encoders worked. Not told in MIG mode, whatever it is.
    #[serde(default)]
    pub encoder_utilization: Option<u32>,
    /// The same of decoders.
    #[serde(default)]
    pub decoder_utilization: Option<u32>,
    /// KiB sent and received over all NVLinks so far (fields 138 and 139).
    #[serde(default)]
    pub nvlink_kib: Option<(u64, u64)>,
    /// Whether a virtual GPU has its licence; absent: it needs none.
    #[serde(default)]
    pub vgpu_licensed: Option<bool>,
    /// Activity; absent: the part has no GPM (older than Hopper).
    #[serde(default)]
    pub activity: Option<Activity>,
    /// Compute processes.
    #[serde(default)]
    pub processes: Vec<Process>,
    /// Value of field 230: 0 none, 1 reset, 2 reboot, 3 drain P2P, 4 drain and reset. Absent: not supported (drivers before R565).
    #[serde(default)]
    pub recovery_action: Option<u32>,
    /// What the health checks read.
    #[serde(default)]
    pub checks: Checks,
    /// Events, each delivered once to every event set that was registered before it was written.
    #[serde(default)]
    pub events: Vec<Event>,
    /// Mask of the `nvmlEventType*` that it can be registered for; absent: those of a recent driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_types: Option<u64>,
}

impl Gpu {
    /// Bytes free.
    pub fn memory_free_bytes(&self) -> u64 {
        self.memory_total_bytes
            .saturating_sub(self.memory_reserved_bytes)
            .saturating_sub(self.memory_used_bytes)
    }

    /// MIG devices, none where MIG is off.
    pub fn mig_devices(&self) -> &[MigDevice] {
        self.mig.as_ref().filter(|m| m.enabled).map_or(&[], |m| &m.devices)
    }

    /// Appends an XID event with the next id.
    pub fn push_xid(&mut self, xid: u64) {
        self.push_event(EventKind::Xid(xid));
    }

    /// Appends an event with the next id.
    pub fn push_event(&mut self, kind: EventKind) {
        self.push(kind, None);
    }

    /// Appends an XID event of a MIG device with the next id.
    pub fn push_xid_of(&mut self, xid: u64, gpu_instance: u32, compute_instance: Option<u32>) {
        self.push(EventKind::Xid(xid), Some((gpu_instance, compute_instance)));
    }

    /// Appends the event that its MIG devices are other ones now.
    pub fn push_mig_change(&mut self) {
        self.push_event(EventKind::Type(EVENT_MIG_CONFIG));
    }

    fn push(&mut self, kind: EventKind, instance: Option<(u32, Option<u32>)>) {
        self.events.push(Event {
            id: self.events.iter().map(|e| e.id).max().unwrap_or(0) + 1,
            gpu_instance: instance.map(|(gpu, _)| gpu),
            compute_instance: instance.and_then(|(_, compute)| compute),
            kind,
        });
    }
}

/// What GPM answers. Its values are those of the later of the two samples that are asked about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Activity {
    /// Percent of time that the graphics or compute engine was active.
    pub graphics: f64,
    /// Percent of multiprocessors with work.
    pub sm: f64,
    /// Percent of the warps that there can be.
    pub occupancy: f64,
    /// Percent of time that tensor cores worked.
    pub tensor: f64,
    /// Percent of memory bandwidth.
    pub dram: f64,
    /// MiB/s from the GPU.
    pub pcie_tx_mib: f64,
    /// MiB/s to the GPU.
    pub pcie_rx_mib: f64,
}

/// What the health checks read; by default that of a sound GPU with ECC and without NVLink. `null`: NOT_SUPPORTED.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checks {
    /// Uncorrectable errors since the driver was loaded.
    pub ecc_uncorrected_volatile: Option<u64>,
    /// Uncorrectable SRAM errors passed the threshold.
    pub sram_threshold_exceeded: Option<bool>,
    /// Remapped rows. Not told while MIG instances are active, whatever it is.
    pub remapped_rows: Option<RemappedRows>,
    /// Retired pages; parts with row remapping have none.
    pub retired_pages: Option<u32>,
    /// Pages that wait to be retired.
    pub retired_pages_pending: Option<bool>,
    /// Whether each NVLink is up.
    pub nvlinks: Option<Vec<bool>>,
    /// CRC errors of all NVLinks.
    pub nvlink_crc_errors: Option<u32>,
    /// PCIe lanes.
    pub pcie_width: Option<u32>,
    /// PCIe lanes that there can be.
    pub pcie_max_width: Option<u32>,
    /// PCIe replays.
    pub pcie_replays: Option<u32>,
    /// `false`: validating the infoROM answers CORRUPTED_INFOROM.
    pub inforom_valid: Option<bool>,
    /// Corrected errors since the driver was loaded.
    pub ecc_corrected_volatile: Option<u64>,
    /// Banks by spare rows left. Not told while MIG instances are active, whatever it is.
    pub row_remap_histogram: Option<RowRemapHistogram>,
    /// A memory channel waits to be repaired; parts before Blackwell have no such call.
    pub repair_pending: Option<bool>,
    /// Recoveries of all NVLinks.
    pub nvlink_recoveries: Option<u32>,
    /// Failed recoveries of all NVLinks; parts before NVLink 5 have no such count.
    pub nvlink_failed_recoveries: Option<u32>,
    /// `NVML_GPU_FABRIC_HEALTH_MASK_*`; 0: nothing is told.
    pub fabric_health_mask: u32,
    /// `NVML_GPU_FABRIC_HEALTH_SUMMARY_*`; 0: nothing is told.
    pub fabric_health_summary: u8,
    /// PCIe generation now: low while the GPU idles.
    pub pcie_generation: Option<u32>,
    /// PCIe generation that there can be.
    pub pcie_max_generation: Option<u32>,
    /// MHz that the SMs can have.
    pub sm_clock_max_mhz: Option<u32>,
    /// Degrees Celsius below slowdown; absent: parts before Hopper, which have a threshold.
    pub temperature_margin_c: Option<i32>,
    /// Degrees Celsius at which clocks are lowered.
    pub slowdown_c: Option<u32>,
    /// Nanoseconds that heat held the clocks down.
    pub thermal_violation_ns: Option<u64>,
    /// Persistence mode.
    pub persistence_mode: Option<bool>,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            ecc_uncorrected_volatile: Some(0),
            sram_threshold_exceeded: Some(false),
            remapped_rows: Some(RemappedRows::default()),
            retired_pages: None,
            retired_pages_pending: None,
            nvlinks: None,
            nvlink_crc_errors: None,
            pcie_width: Some(16),
            pcie_max_width: Some(16),
            pcie_replays: Some(0),
            inforom_valid: Some(true),
            ecc_corrected_volatile: Some(0),
            row_remap_histogram: Some(RowRemapHistogram {
                max: 640,
                ..RowRemapHistogram::default()
            }),
            repair_pending: None,
            nvlink_recoveries: None,
            nvlink_failed_recoveries: None,
            fabric_health_mask: 0,
            fabric_health_summary: 0,
            pcie_generation: Some(1),
            pcie_max_generation: Some(5),
            sm_clock_max_mhz: Some(1980),
            temperature_margin_c: Some(56),
            slowdown_c: Some(87),
            thermal_violation_ns: Some(0),
            persistence_mode: Some(true),
        }
    }
}

/// Banks of memory by how many of their spare rows are left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct RowRemapHistogram {
    pub max: u32,
    pub high: u32,
    pub partial: u32,
    pub low: u32,
    pub none: u32,
}

/// Remapped rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RemappedRows {
    /// For correctable errors.
    pub correctable: u32,
    /// For uncorrectable errors.
    pub uncorrectable: u32,
    /// One waits for a reset.
    pub pending: bool,
    /// One failed.
    pub failure: bool,
}

/// Readings of a GPU that does nothing.
mod idle {
    use super::{Clocks, Utilization};

    pub(super) fn utilization() -> Option<Utilization> {
        Some(Utilization::default())
    }
    pub(super) fn power_mw() -> Option<u32> {
        Some(50_000)
    }
    pub(super) fn temperature_c() -> Option<u32> {
        Some(31)
    }
    pub(super) fn clocks() -> Option<Clocks> {
        Some(Clocks { sm: 345, memory: 1593 })
    }
    /// GPU_IDLE
    pub(super) fn clocks_event_reasons() -> Option<u64> {
        Some(0x1)
    }
}

/// Shares of time in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Utilization {
    /// A kernel ran.
    pub gpu: u32,
    /// Memory was read or written.
    pub memory: u32,
}

/// Clocks in MHz.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clocks {
    /// Streaming multiprocessors and graphics.
    pub sm: u32,
    /// Memory.
    pub memory: u32,
}

/// A process that holds a compute context.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Process id on the host.
    pub pid: u32,
    /// Bytes it uses.
    pub memory_bytes: u64,
}

/// MIG mode and instances.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mig {
    /// Mode now.
    pub enabled: bool,
    /// Mode after the next reset; absent: as now.
    pub pending: Option<bool>,
    /// Short for `devices`: a GPU instance with one compute instance for each of these profiles.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
    /// Compute instances.
    pub devices: Vec<MigDevice>,
}

/// One MIG device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigDevice {
    /// `MIG-…`.
    pub uuid: String,
    /// GPU instance.
    pub gpu_instance: u32,
    /// Compute instance within it.
    pub compute_instance: u32,
    /// `1g.10gb`, `1g.10gb+me`.
    pub profile: String,
    /// MiB, as the device attributes say it.
    pub memory_mib: u64,
    /// Bytes in use.
    #[serde(default)]
    pub memory_used_bytes: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Slices of the GPU instance.
    pub gpu_slices: u32,
    /// Slices of the compute instance.
    pub compute_slices: u32,
    /// Copy engines.
    #[serde(default)]
    pub copy_engines: u32,
    /// Decoders.
    #[serde(default)]
    pub decoders: u32,
    /// Encoders.
    #[serde(default)]
    pub encoders: u32,
    /// JPEG engines.
    #[serde(default)]
    pub jpeg_engines: u32,
    /// Optical-flow engines.
    #[serde(default)]
    pub ofa_engines: u32,
    /// Activity of its GPU instance, where the part has GPM.
    #[serde(default)]
    pub activity: Activity,
}

/// NVLink fabric registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fabric {
    /// 0 not supported, 1 not started, 2 in progress, 3 completed.
    pub state: u32,
    /// `nvmlReturn_t` of the registration.
    #[serde(default)]
    pub status: u32,
    /// Hyphenated.
    pub cluster_uuid: String,
    /// Clique within the cluster.
    pub clique_id: u32,
}

/// An event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Grows within a GPU.
    pub id: u64,
    /// The MIG instance that it is about; absent: the GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<u32>,
    /// Within the GPU instance; absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_instance: Option<u32>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Kinds of events; in JSON `{"id": 1, "xid": 79}` or `{"id": 2, "type": 2}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A critical XID.
    Xid(u64),
    /// Any other bit of `nvmlEventType*`, without data.
    Type(u64),
}

/// The driver took a GPU or is about to let go of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemEvent {
    /// Grows.
    pub id: u64,
    /// Which of the two.
    pub kind: Binding,
    /// The driver's id of the GPU: PCI domain, bus and device in 16, 8 and 8 bits.
    pub gpu_id: u32,
}

/// Kinds of [`SystemEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// `nvmlSystemEventTypeGpuDriverUnbind`.
    Unbind,
    /// `nvmlSystemEventTypeGpuDriverBind`.
    Bind,
}

/// Bit of a double-bit ECC error in [`EventKind::Type`].
pub const EVENT_DOUBLE_BIT_ECC: u64 = 0x2;
/// Bit of a change of the MIG configuration in [`EventKind::Type`].
pub const EVENT_MIG_CONFIG: u64 = 0x100;

/// One thing that goes wrong; in JSON e.g. `{"function": "nvmlDeviceGetUtilizationRates", "gpu": 3, "error": 15}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// C name, version suffix included, or `*`.
    pub function: String,
    /// Only calls on this GPU (or a MIG device of it); absent: all calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<u32>,
    /// Only after this many matching calls of one process went through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// What happens.
    #[serde(flatten)]
    pub effect: Effect,
}

/// What a fault does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The call answers this `nvmlReturn_t`.
    Error(u32),
    /// The call takes this much longer.
    DelayMs(u64),
    /// `true`: the call never comes back.
    Hang(bool),
    /// `true`: the call comes back when this fault has left the file.
    Stall(bool),
}

impl Fault {
    /// A fault of every call of one function.
    pub fn of(function: &str, effect: Effect) -> Self {
        Self {
            function: function.into(),
            gpu: None,
            after: None,
            effect,
        }
    }

    /// A fault of every call on one GPU.
    pub fn of_gpu(gpu: u32, effect: Effect) -> Self {
        Self {
            function: "*".into(),
            gpu: Some(gpu),
            after: None,
            effect,
        }
    }
}

/// Well-known values of [`Effect::Error`].
pub mod code {
    /// NVML_ERROR_NOT_SUPPORTED.
    pub const NOT_SUPPORTED: u32 = 3;
    /// NVML_ERROR_GPU_IS_LOST.
    pub const GPU_IS_LOST: u32 = 15;
    /// NVML_ERROR_RESET_REQUIRED.
    pub const RESET_REQUIRED: u32 = 16;
    /// NVML_ERROR_GPU_NOT_FOUND.
    pub const GPU_NOT_FOUND: u32 = 28;
    /// NVML_ERROR_UNKNOWN.
    pub const UNKNOWN: u32 = 999;
}

impl State {
    /// Appends a driver binding of the GPU at `pci_address` with the next id.
    pub fn push_binding(&mut self, kind: Binding, pci_address: &str) {
        let id = self.system_events.iter().map(|e| e.id).max().unwrap_or(0) + 1;
        let parts = pci_address
            .split([':', '.'])
            .map(|part| u32::from_str_radix(part, 16).unwrap_or(0));
        let gpu_id = parts.zip([16, 8, 0]).fold(0, |id, (part, shift)| id | part << shift);
        self.system_events.push(SystemEvent { id, kind, gpu_id });
    }

    /// Reads a state file.
    pub fn read(path: &Path) -> io::Result<Self> {
        Self::parse(&std::fs::read(path)?)
    }

    /// Reads the text of a state file.
    pub fn parse(text: &[u8]) -> io::Result<Self> {
        let mut state: Self = serde_json::from_slice(text).map_err(io::Error::other)?;
        for gpu in &mut state.gpus {
            let profiles = gpu
                .mig
                .as_mut()
                .map(|m| std::mem::take(&mut m.profiles))
                .unwrap_or_default();
            if !profiles.is_empty() {
                gpu.enable_mig(&profiles).map_err(io::Error::other)?;
            }
        }
        Ok(state)
    }

    /// Writes a state file by rename, so that a reader sees the old one or the new one.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        std::fs::write(&partial, serde_json::to_vec_pretty(self).map_err(io::Error::other)?)?;
        std::fs::rename(&partial, path)
    }

    /// Reads, changes and writes a state file.
    pub fn edit(path: &Path, change: impl FnOnce(&mut Self)) -> io::Result<()> {
        let mut state = Self::read(path)?;
        change(&mut state);
        state.write(path)
    }
}
