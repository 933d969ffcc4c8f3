//! What one node's hardware is: the input of labels and placement.
//!
//! An `Option` that is `None` means "not read", never zero. Sizes are bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// PCI vendor id of NVIDIA.
pub const VENDOR_NVIDIA: u16 = 0x10de;
/// PCI vendor id of AMD.
pub const VENDOR_AMD: u16 = 0x1002;
/// PCI vendor id of Intel.
pub const VENDOR_INTEL: u16 = 0x8086;

/// Everything about a node's hardware that changes rarely.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// DMI product name, unsanitised. Source: `/sys/class/dmi/id/product_name`.
    pub machine: Option<String>,
    /// Display, accelerator and co-processor functions. Source: `/sys/bus/pci/devices`.
    pub pci: Vec<PciFunction>,
    /// What stands between us and NVML.
    pub nvml: NvmlStatus,
    /// Last known NVIDIA driver; kept while NVML is away.
    pub driver: Option<NvidiaDriver>,
    /// Last known GPUs in NVML order; kept while NVML is away.
    pub gpus: Vec<Gpu>,
    /// Age of `driver` and `gpus`; `None`: NVML was never read on this node.
    pub gpus_age: Option<Duration>,
    /// `/sys/module/nvidia/version`; `None`: the kernel module is not loaded.
    pub kernel_driver_version: Option<String>,
    /// NVIDIA functions that are virtual GPUs of a hypervisor, by address. Reading them takes root, so none may mean "not read".
    pub vgpus: Vec<Vgpu>,
    /// AMD GPUs that the amdgpu driver serves, by address.
    pub amd_gpus: Vec<AmdGpu>,
    /// The amdgpu kernel module; `None`: it serves nothing here.
    pub amd_driver: Option<AmdDriver>,
    /// Intel GPUs that i915 or xe serve, by address.
    pub intel_gpus: Vec<IntelGpu>,
}

impl NodeFacts {
    /// NVIDIA functions that a display driver would bind (class 03), as opposed to audio, USB or bridge functions of the same card.
    pub fn nvidia_display_functions(&self) -> impl Iterator<Item = &PciFunction> {
        self.pci.iter().filter(|f| f.vendor == VENDOR_NVIDIA && f.is_display())
    }

    /// Those of them that NVML lists, or will once its driver has them: neither vfio-pci's nor another driver's.
    pub fn nvidia_cards(&self) -> impl Iterator<Item = &PciFunction> {
        let ours = |driver: Option<&str>| matches!(driver, None | Some("nvidia" | "nouveau"));
        self.nvidia_display_functions()
            .filter(move |f| ours(f.driver.as_deref()))
    }
}

/// One PCI function, from sysfs alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciFunction {
    /// Lower-case `dddd:bb:dd.f`.
    pub address: String,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// 24-bit class code, e.g. `0x030200`.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: Option<u16>,
    /// Subsystem device id.
    pub subsystem_device: Option<u16>,
    /// Name of the bound kernel driver.
    pub driver: Option<String>,
    /// NUMA node; `None` where the kernel says -1.
    pub numa_node: Option<i32>,
    /// `sriov_totalvfs`, where the function has it.
    pub sriov_total_vfs: Option<u32>,
}

/// Classes of PCI functions that are of interest: display (03), processing accelerators (12), co-processors (0b40).
pub fn is_wanted_class(class: u32) -> bool {
    matches!(class >> 16, 0x03 | 0x12) || class >> 8 == 0x0b40
}

impl PciFunction {
    /// Base class 03: VGA (0300), 3D controller (0302), other display.
    pub fn is_display(&self) -> bool {
        self.class >> 16 == 0x03
    }
}

/// NVML's state on a node and one sentence about it (empty when ready).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmlStatus {
    /// The state.
    pub state: NvmlState,
    /// For people; empty when ready.
    pub message: String,
}

/// States between "no NVIDIA software here" and "NVML answers". None of them is an error of the agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NvmlState {
    /// Nothing was reported yet.
    #[default]
    Unknown,
    /// NVML answers.
    Ready,
    /// `libnvidia-ml.so.1` is nowhere on the search list.
    NoLibrary,
    /// The library is there, the kernel driver is not loaded.
    NoDriver,
    /// Library and kernel driver are of different versions: an upgrade is under way.
    VersionMismatch,
    /// A call passed its deadline and has not come back.
    Hung,
    /// Handles were closed on request, for a driver upgrade.
    Released,
    /// No probe answers on the agent's socket.
    ProbeUnavailable,
    /// Any other error of NVML's initialisation.
    Error,
    /// Handles are to be closed on request, and a stuck call still holds the driver.
    ReleaseBlocked,
}

impl fmt::Display for NvmlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "Unknown",
            Self::Ready => "Ready",
            Self::NoLibrary => "NoLibrary",
            Self::NoDriver => "NoDriver",
            Self::VersionMismatch => "VersionMismatch",
            Self::Hung => "Hung",
            Self::Released => "Released",
            Self::ProbeUnavailable => "ProbeUnavailable",
            Self::Error => "Error",
            Self::ReleaseBlocked => "ReleaseBlocked",
        })
    }
}

/// The NVIDIA driver as NVML reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvidiaDriver {
    /// e.g. `550.163.01`. Source: `nvmlSystemGetDriverVersion`.
    pub version: String,
    /// 1000 × major + 10 × minor. Source: `nvmlSystemGetCudaDriverVersion_v2`.
    pub cuda_version: Option<u32>,
    /// Source: `nvmlSystemGetNVMLVersion`.
    pub nvml_version: Option<String>,
    /// GPUs that the driver was told to keep from everybody: bound to it and not listed. Source: `nvmlGetExcludedDeviceCount`.
    #[serde(default)]
    pub excluded_gpus: Option<u32>,
}

/// One physical GPU as NVML reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// NVML index of this boot.
    pub index: u32,
    /// `GPU-…`.
    pub uuid: String,
    /// Lower-case `dddd:bb:dd.f`.
    pub pci_address: Option<String>,
    /// NVML name, unsanitised. Source: `nvmlDeviceGetName`.
    pub product: Option<String>,
    /// Total memory. Source: `nvmlDeviceGetMemoryInfo` (v1).
    pub memory_bytes: Option<u64>,
    /// CUDA compute capability (major, minor).
    pub compute_capability: Option<(u32, u32)>,
    /// `None`: the part has no MIG.
    pub mig: Option<Mig>,
    /// NVLink fabric registration; `None`: the part has none.
    pub fabric: Option<Fabric>,
    /// Board serial.
    pub serial: Option<String>,
    /// VBIOS version.
    pub vbios: Option<String>,
    /// N of `/dev/nvidiaN`.
    pub minor_number: Option<u32>,
}

/// MIG mode of a GPU and the instances on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mig {
    /// Mode now.
    pub enabled: bool,
    /// Mode after the next reset.
    pub pending: bool,
    /// Compute instances, in NVML order.
    pub devices: Vec<MigDevice>,
}

/// One MIG device. Counts are those of `nvmlDeviceAttributes_t`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MigDevice {
    pub uuid: String,
    pub gpu_instance_id: u32,
    pub compute_instance_id: u32,
    /// `1g.10gb`, with attributes as NVIDIA prints them: `1g.10gb+me`.
    pub profile: String,
    pub memory_bytes: u64,
    pub multiprocessors: u32,
    pub gpu_instance_slices: u32,
    pub compute_instance_slices: u32,
    pub copy_engines: u32,
    pub decoders: u32,
    pub encoders: u32,
    pub jpeg_engines: u32,
    pub ofa_engines: u32,
}

/// NVLink fabric registration of a GPU. Source: `nvmlDeviceGetGpuFabricInfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fabric {
    /// `NVML_GPU_FABRIC_STATE_*`; 3 = completed.
    pub state: u32,
    /// `nvmlReturn_t` of the registration; 0 = success.
    pub status: u32,
    /// Hyphenated; all zero = none.
    pub cluster_uuid: String,
    /// Clique within the cluster.
    pub clique_id: u32,
}

/// A virtual GPU in a guest, as its PCI configuration space tells. Source: [`crate::vgpu::read`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vgpu {
    /// Lower-case `dddd:bb:dd.f`.
    pub pci_address: String,
    /// Driver version of the hypervisor's host.
    pub host_driver_version: Option<String>,
    /// Driver branch of the hypervisor's host, e.g. `r550_00`.
    pub host_driver_branch: Option<String>,
}

/// One AMD GPU, from sysfs alone. Partitions of a GPU are not told apart: one PCI function is one GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AmdGpu {
    /// Lower-case `dddd:bb:dd.f`.
    pub pci_address: String,
    /// PCI device id.
    pub device: u16,
    /// Source: `product_name` of the PCI device.
    pub product: Option<String>,
    /// Source: `mem_info_vram_total` of the PCI device.
    pub vram_bytes: Option<u64>,
    /// Source: `simd_count` of its KFD topology node.
    pub simd_count: Option<u32>,
    /// Source: `simd_per_cu` of its KFD topology node.
    pub simd_per_cu: Option<u32>,
    /// 10000 × major + 100 × minor + stepping, e.g. 90402 for gfx942. Source: `gfx_target_version` of its KFD topology node.
    pub gfx_target_version: Option<u32>,
    /// `SPX`, `CPX` … Source: `current_compute_partition` of the PCI device.
    pub compute_partition: Option<String>,
    /// `NPS1`, `NPS4` … Source: `current_memory_partition` of the PCI device.
    pub memory_partition: Option<String>,
    /// Whether the PCI device has `available_compute_partition`.
    pub compute_partitioning: bool,
    /// Whether the PCI device has `available_memory_partition`.
    pub memory_partitioning: bool,
    /// Uncorrectable errors of all blocks since the driver was loaded. Source: `ras/*_err_count` of the PCI device.
    pub uncorrectable_errors: Option<u64>,
    /// As of [`PciChecks::answers`].
    pub answers: Option<bool>,
    /// Firmware versions by the part that runs it, `MEC`, `SDMA0` … Source: `fw_version/*_fw_version` of the PCI device.
    pub firmware: BTreeMap<String, u32>,
}

/// The amdgpu kernel module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AmdDriver {
    /// Source: `/sys/module/amdgpu/version`; the kernel's own driver has none.
    pub version: Option<String>,
    /// Source: `/sys/module/amdgpu/srcversion`.
    pub source_version: Option<String>,
}

/// One Intel GPU, from sysfs alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntelGpu {
    /// Lower-case `dddd:bb:dd.f`.
    pub pci_address: String,
    /// N of `/dev/dri/cardN`.
    pub card: u32,
    /// Tiles: `gt/gt*` of the card (i915) or `tile*` of the PCI device (xe), at least 1.
    pub tiles: u32,
    /// All tiles together. Source: `lmem_total_bytes` of the card (i915); xe does not tell.
    pub memory_bytes: Option<u64>,
}

/// One reading of one GPU. Every field may be missing on its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuSample {
    /// `GPU-…` or `MIG-…`.
    pub uuid: String,
    /// Age when it was handed over.
    pub age: Duration,
    /// Percent of time a kernel ran.
    pub gpu_utilization: Option<u32>,
    /// Percent of time memory was read or written.
    pub memory_utilization: Option<u32>,
    /// Bytes in use, by anybody.
    pub memory_used_bytes: Option<u64>,
    /// Bytes free.
    pub memory_free_bytes: Option<u64>,
    /// Bytes in all.
    pub memory_total_bytes: Option<u64>,
    /// Milliwatts.
    pub power_mw: Option<u32>,
    /// Degrees Celsius.
    pub temperature_c: Option<u32>,
    /// MHz.
    pub sm_clock_mhz: Option<u32>,
    /// MHz.
    pub memory_clock_mhz: Option<u32>,
    /// NVML's clocks-event-reasons mask.
    pub clocks_event_reasons: Option<u64>,
    /// Compute processes on the GPU.
    pub compute_processes: Option<u32>,
    /// Bytes that the driver keeps for itself.
    pub memory_reserved_bytes: Option<u64>,
    /// Degrees Celsius. Source: field 82.
    pub memory_temperature_c: Option<u32>,
    /// Millijoules since the driver was loaded. Source: field 83.
    pub energy_mj: Option<u64>,
    /// Data over all links, both directions, since the sample before. Source: fields 138 and 139.
    pub nvlink_bytes_per_second: Option<u64>,
    /// Graphics or compute engine active, in parts per million of the time since the sample before. Source, as of all below: NVML GPM.
    pub graphics_active_ppm: Option<u32>,
    /// Multiprocessors with work, in parts per million.
    pub sm_active_ppm: Option<u32>,
    /// Resident warps, in parts per million of the most there can be.
    pub sm_occupancy_ppm: Option<u32>,
    /// Tensor cores active, in parts per million.
    pub tensor_active_ppm: Option<u32>,
    /// Memory bandwidth, in parts per million of the most there can be.
    pub dram_active_ppm: Option<u32>,
    /// PCIe, from the GPU.
    pub pcie_tx_bytes_per_second: Option<u64>,
    /// PCIe, to the GPU.
    pub pcie_rx_bytes_per_second: Option<u64>,
    /// Pods that hold the device or run on it, by name, each once. With `pods_state` other than [`PodsState::Known`] these are not all.
    pub pods: Vec<PodUse>,
    /// Whether `pods` is the whole answer.
    pub pods_state: PodsState,
    /// Time since the kubelet answered last; `None`: it never did, or is not asked.
    pub pods_age: Option<Duration>,
    /// Of what the kubelet may hand out of this device (itself, its MIG devices, replicas of either), how many nobody holds. `None`: not
    /// known.
    pub units_left: Option<u32>,
}

/// One pod's use of a GPU or MIG device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodUse {
    /// The pod; `None`: the node knows its UID alone.
    pub pod: Option<PodName>,
    /// UID of the pod; `None`: the kubelet's list does not say it.
    pub uid: Option<String>,
    /// Containers that were given the device, by name; none where only a process is seen.
    pub containers: Vec<String>,
    /// Bytes that the pod's processes have on the device; `None`: not seen.
    pub memory_bytes: Option<u64>,
    /// How the pod came by it.
    pub share: PodShare,
}

/// Namespace and name of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
}

/// How a pod came by a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PodShare {
    /// A process of it runs there; who gave it the device is not known.
    #[default]
    Process,
    /// A device plugin gave it all of the device.
    Whole,
    /// A device plugin gave it one of several replicas: time-slicing, MPS.
    Replica,
    /// A ResourceClaim; whether others share it is not known here.
    Claim,
}

/// What is known of who uses a node's devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PodsState {
    /// The kubelet is not asked.
    #[default]
    Off,
    /// The kubelet answers: these are all.
    Known,
    /// The kubelet does not answer, or its answer cannot be read.
    NotAvailable,
}

/// What the slow checks read of one GPU. Every reading may be missing on its own: the driver or the part does not have it, or it was not
/// asked for this time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuChecks {
    /// `GPU-…`.
    pub uuid: String,
    /// What the driver says should be done. Source: field 230.
    pub recovery_action: Option<u32>,
    /// Uncorrectable ECC errors since the driver was loaded or the GPU was reset. Source: `nvmlDeviceGetTotalEccErrors`.
    pub ecc_uncorrected_volatile: Option<u64>,
    /// Uncorrectable SRAM errors passed the vendor's threshold. Source: `nvmlDeviceGetSramEccErrorStatus`.
    pub sram_threshold_exceeded: Option<bool>,
    /// Source: `nvmlDeviceGetRemappedRows`; not to be had while MIG instances are active.
    pub remapped_rows: Option<RemappedRows>,
    /// Pages retired for either cause (up to Volta and Turing). Source: `nvmlDeviceGetRetiredPages`.
    pub retired_pages: Option<u32>,
    /// Pages wait for a reboot to be retired. Source: `nvmlDeviceGetRetiredPagesPendingStatus`.
    pub retired_pages_pending: Option<bool>,
    /// Links that are up. Source: `nvmlDeviceGetNvLinkState`; `None`: the part has no NVLink.
    pub nvlinks_up: Option<u32>,
    /// CRC errors of all links so far. Source: field 38.
    pub nvlink_crc_errors: Option<u64>,
    /// Lanes now. Source: `nvmlDeviceGetCurrPcieLinkWidth`.
    pub pcie_width: Option<u32>,
    /// Lanes that GPU and slot can have. Source: `nvmlDeviceGetMaxPcieLinkWidth`.
    pub pcie_max_width: Option<u32>,
    /// Replays so far. Source: `nvmlDeviceGetPcieReplayCounter`.
    pub pcie_replays: Option<u64>,
    /// The infoROM's checksum holds. Source: `nvmlDeviceValidateInforom`; slow, so asked for rarely.
    pub inforom_valid: Option<bool>,
    /// Corrected ECC errors since the driver was loaded or the GPU was reset. Source: `nvmlDeviceGetTotalEccErrors`.
    pub ecc_corrected_volatile: Option<u64>,
    /// Source: `nvmlDeviceGetRowRemapperHistogram`; not to be had while MIG instances are active.
    pub row_remap_histogram: Option<RowRemapHistogram>,
    /// A memory channel or a TPC waits for a reset to be repaired. Source: `nvmlDeviceGetRepairStatus`.
    pub repair_pending: Option<bool>,
    /// Recoveries of all links so far. Source: field 59.
    pub nvlink_recoveries: Option<u64>,
    /// Recoveries of all links that failed so far. Source: field 214 (NVLink 5 and up).
    pub nvlink_failed_recoveries: Option<u64>,
    /// Fresher than the inventory's. Source: `nvmlDeviceGetGpuFabricInfoV`.
    pub fabric: Option<FabricHealth>,
    /// PCIe generation now. Source: `nvmlDeviceGetCurrPcieLinkGeneration`.
    pub pcie_generation: Option<u32>,
    /// Generation that GPU and slot can have. Source: `nvmlDeviceGetMaxPcieLinkGeneration`.
    pub pcie_max_generation: Option<u32>,
    /// MHz, when the generation was read. Source: `nvmlDeviceGetClockInfo`.
    pub sm_clock_mhz: Option<u32>,
    /// MHz. Source: `nvmlDeviceGetMaxClockInfo`.
    pub sm_clock_max_mhz: Option<u32>,
    /// Degrees Celsius below the one at which clocks are lowered. Source: `nvmlDeviceGetMarginTemperature`, or threshold and temperature.
    pub temperature_margin_c: Option<i32>,
    /// Nanoseconds that heat held the clocks down so far. Source: `nvmlDeviceGetViolationStatus`.
    pub thermal_violation_ns: Option<u64>,
    /// The driver stays initialised when nobody uses the GPU. Source: `nvmlDeviceGetPersistenceMode`.
    pub persistence_mode: Option<bool>,
    /// Percent of time that encoders worked. Source: `nvmlDeviceGetEncoderUtilization`; not to be had of a GPU in MIG mode.
    pub encoder_utilization: Option<u32>,
    /// Percent of time that decoders worked. Source: `nvmlDeviceGetDecoderUtilization`; as above.
    pub decoder_utilization: Option<u32>,
    /// A virtual GPU has its licence; `None`: none is needed. Source: `nvmlDeviceGetGridLicensableFeatures_v4`.
    pub vgpu_licensed: Option<bool>,
    /// C names of calls that gave no answer this time, and may the next.
    pub unclear: Vec<String>,
}

/// Banks of a GPU's memory by how many of their spare rows are left. Source: `nvmlDeviceGetRowRemapperHistogram`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RowRemapHistogram {
    pub max: u32,
    pub high: u32,
    pub partial: u32,
    pub low: u32,
    pub none: u32,
}

/// How a GPU's registration with the NVLink fabric stands, and the fabric's health. Source: `nvmlDeviceGetGpuFabricInfoV`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricHealth {
    /// `NVML_GPU_FABRIC_STATE_*`; 3 = completed.
    pub state: u32,
    /// `nvmlReturn_t` of the registration; 0 = success.
    pub status: u32,
    /// `NVML_GPU_FABRIC_HEALTH_MASK_*`; `None`: the driver tells none.
    pub health_mask: Option<u32>,
    /// `NVML_GPU_FABRIC_HEALTH_SUMMARY_*`; `None`: the driver tells none.
    pub health_summary: Option<u32>,
}

/// What the slow checks read once a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeChecks {
    /// The GPUs take work in confidential-computing mode; `None`: not in that mode. Source: `nvmlSystemGetConfComputeGpusReadyState`.
    pub confidential_compute_ready: Option<bool>,
    /// Source: the process table; `None`: it is not ours to see.
    pub fabric_manager_running: Option<bool>,
    /// What takes long is being read; a later round has it.
    pub slow_pending: bool,
    /// C names of calls that gave no answer this time.
    pub unclear: Vec<String>,
    /// GPUs of which a call said that they are gone: UUID and error.
    pub lost: Vec<(String, String)>,
}

/// One round of the slow checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Round {
    /// GPUs in NVML order.
    pub gpus: Vec<GpuChecks>,
    /// The node.
    pub node: NodeChecks,
}

/// What the kernel alone says of PCI: no library, no driver is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PciReadings {
    /// Display and accelerator functions of GPU vendors, by address.
    pub functions: Vec<PciChecks>,
    /// NVSwitches of the machine.
    pub nvswitches: u32,
}

/// What the kernel says of one PCI function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PciChecks {
    /// Lower-case `dddd:bb:dd.f`.
    pub address: String,
    /// `false`: its configuration space reads all ones. `None`: it sleeps, or cannot be read. Source: `config`.
    pub answers: Option<bool>,
    /// Lanes now. Source: `current_link_width`.
    pub width: Option<u32>,
    /// Lanes that function and slot can have. Source: `max_link_width` of both.
    pub max_width: Option<u32>,
    /// e.g. `32.0 GT/s PCIe`. Source: `current_link_speed`.
    pub speed: Option<String>,
    /// Correctable errors since the machine started. Source: `aer_dev_correctable`.
    pub aer_correctable: Option<u64>,
    /// Source: `aer_dev_nonfatal`.
    pub aer_nonfatal: Option<u64>,
    /// Source: `aer_dev_fatal`.
    pub aer_fatal: Option<u64>,
}

/// Rows of a GPU's memory that were remapped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemappedRows {
    /// For correctable errors.
    pub correctable: u32,
    /// For uncorrectable errors.
    pub uncorrectable: u32,
    /// A remapping waits for a reset.
    pub pending: bool,
    /// A remapping failed.
    pub failure: bool,
}

/// A fault as the hardware or the kernel reported it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuEvent {
    /// What happened.
    pub kind: GpuEventKind,
    /// The GPU, where it is known.
    pub uuid: Option<String>,
    /// Its PCI address, where that is what is known.
    pub pci_address: Option<String>,
    /// Time since it happened.
    pub age: Duration,
    /// [`SOURCE_NVML`], [`SOURCE_KERNEL_LOG`] or [`SOURCE_KERNEL_LOG_EARLIER`].
    pub source: String,
    /// Text of the source, where it has any.
    pub detail: String,
    /// The MIG instance that it is about; `None`: the whole GPU, or not known.
    pub instance: Option<MigInstance>,
}

/// A MIG instance as events name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigInstance {
    /// GPU instance.
    pub gpu: u32,
    /// Compute instance within it; `None`: all of them.
    pub compute: Option<u32>,
}

/// An event of NVML.
pub const SOURCE_NVML: &str = "nvml";
/// A line of the kernel log, as it was written.
pub const SOURCE_KERNEL_LOG: &str = "kmsg";
/// A line that was in the kernel log before anybody followed it: the GPU may have been reset since.
pub const SOURCE_KERNEL_LOG_EARLIER: &str = "kmsg-earlier";

/// Kinds of [`GpuEvent`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GpuEventKind {
    /// An NVIDIA XID with its number.
    Xid(u64),
    /// Named: `EccDoubleBit` and the others of [`crate::health::nvml_event`], `DriverBound`, `DriverUnbound`.
    Other(String),
}
