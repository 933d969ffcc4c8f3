//! Why a GPU is not plainly healthy.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Reasons in [`GpuHealth::reason`](super::GpuHealth::reason), as CamelCase names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// An XID that needs a reset of the GPU.
    ResetRequired,
    /// Uncorrectable memory error.
    DoubleBitError,
    /// XID 54.
    CheckMechanicals,
    /// XID 74 or 144-150.
    NvLinkError,
    /// XID 78.
    UpdateSoftware,
    /// XID 79.
    FallenOffBus,
    /// XID 151.
    RestartVm,
    /// XID 142, and those of the catalogue that nothing else is said of.
    ContactSupport,
    /// XID 154: the driver recommends an action.
    RecoveryAction,
    /// An XID in no table.
    XidUnlisted,
    /// An XID or event that is only counted, or of a kind that is not known.
    XidWarning,
    /// Uncorrectable SRAM errors passed the vendor's threshold.
    SramThreshold,
    /// Corrected memory errors come in numbers.
    CorrectableErrors,
    /// A row of memory waits to be remapped.
    RowRemapPending,
    /// A row of memory could not be remapped.
    RowRemapFailure,
    /// A bank of memory has few spare rows left, or none.
    RowRemapHeadroom,
    /// Many pages of memory are retired, or some wait to be.
    RetiredPages,
    /// A memory channel or a TPC waits to be repaired.
    RepairPending,
    /// The infoROM's checksum does not hold.
    InforomCorrupted,
    /// The driver forgets the GPU when nobody uses it.
    PersistenceModeOff,
    /// Heat or power held the clocks down.
    Throttled,
    /// The GPU is as hot as it may be before its clocks are lowered.
    Overheated,
    /// The PCIe link has fewer lanes than it can have.
    PcieWidth,
    /// The PCIe link of a busy GPU is slower than it can be.
    PcieGeneration,
    /// The PCIe link repeats packets.
    PcieReplays,
    /// The kernel counts errors on the PCIe link.
    PcieErrors,
    /// The GPU is not registered with the NVLink fabric.
    FabricNotReady,
    /// The NVLink fabric is not in order.
    FabricDegraded,
    /// The machine has NVSwitches, and no fabric manager runs.
    FabricManagerDown,
    /// The GPUs of the node are in different cliques of the NVLink fabric.
    CliqueMismatch,
    /// An NVLink that was up, or that the other GPUs have, is down.
    NvLinkDown,
    /// NVML says that the GPU is lost.
    GpuLost,
    /// NVML no longer lists the GPU.
    GpuMissing,
    /// Calls into the driver do not come back.
    GPUDriverHung,
    /// The kernel driver is not loaded.
    DriverNotLoaded,
    /// Library and kernel driver differ, or handles were closed for an upgrade.
    DriverUpgrading,
    /// Handles are to be closed for an upgrade, and a call that is stuck in the driver holds it.
    DriverReleaseBlocked,
    /// NVML does not initialise.
    NvmlError,
    /// The GPUs do not take work in confidential-computing mode yet.
    ConfidentialComputeNotReady,
    /// No probe answers: nothing is known at the moment.
    ProbeUnavailable,
    /// The driver was loaded anew after a fault; it is being watched.
    Recovering,
    /// XID 13 or 31 of several processes on one GPU alone.
    RepeatedXids,
    /// Corrected memory errors and retired memory come often.
    MemoryErrorTrend,
    /// XID 159.
    CheckUvm,
    /// The driver says that it cannot use the GPU.
    GpuUnavailable,
}

impl Reason {
    /// As written in reports, conditions and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ResetRequired => "ResetRequired",
            Self::DoubleBitError => "DoubleBitError",
            Self::CheckMechanicals => "CheckMechanicals",
            Self::NvLinkError => "NvLinkError",
            Self::UpdateSoftware => "UpdateSoftware",
            Self::FallenOffBus => "FallenOffBus",
            Self::RestartVm => "RestartVm",
            Self::ContactSupport => "ContactSupport",
            Self::RecoveryAction => "RecoveryAction",
            Self::XidUnlisted => "XidUnlisted",
            Self::XidWarning => "XidWarning",
            Self::SramThreshold => "SramThreshold",
            Self::CorrectableErrors => "CorrectableErrors",
            Self::RowRemapPending => "RowRemapPending",
            Self::RowRemapFailure => "RowRemapFailure",
            Self::RowRemapHeadroom => "RowRemapHeadroom",
            Self::RetiredPages => "RetiredPages",
            Self::RepairPending => "RepairPending",
            Self::InforomCorrupted => "InforomCorrupted",
            Self::PersistenceModeOff => "PersistenceModeOff",
            Self::Throttled => "Throttled",
            Self::Overheated => "Overheated",
            Self::PcieWidth => "PcieWidth",
            Self::PcieGeneration => "PcieGeneration",
            Self::PcieReplays => "PcieReplays",
            Self::PcieErrors => "PcieErrors",
            Self::FabricNotReady => "FabricNotReady",
            Self::FabricDegraded => "FabricDegraded",
            Self::FabricManagerDown => "FabricManagerDown",
            Self::CliqueMismatch => "CliqueMismatch",
            Self::NvLinkDown => "NvLinkDown",
            Self::GpuLost => "GpuLost",
            Self::GpuMissing => "GpuMissing",
            Self::GPUDriverHung => "GPUDriverHung",
            Self::DriverNotLoaded => "DriverNotLoaded",
            Self::DriverUpgrading => "DriverUpgrading",
            Self::DriverReleaseBlocked => "DriverReleaseBlocked",
            Self::NvmlError => "NvmlError",
            Self::ConfidentialComputeNotReady => "ConfidentialComputeNotReady",
            Self::ProbeUnavailable => "ProbeUnavailable",
            Self::Recovering => "Recovering",
            Self::RepeatedXids => "RepeatedXids",
            Self::MemoryErrorTrend => "MemoryErrorTrend",
            Self::CheckUvm => "CheckUvm",
            Self::GpuUnavailable => "GpuUnavailable",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
