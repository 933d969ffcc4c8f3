//! Why a GPU is not plainly healthy.

use std::fmt;

/// Reasons in [`GpuHealth::reason`](super::GpuHealth::reason), as CamelCase names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// An XID that needs a reset of the GPU.
    ResetRequired,
    /// Uncorrectable memory error.
    DoubleBitError,
    /// XID 54.
    CheckMechanicals,
    /// XID 74 or 144-150.
    NvLinkError,
    /// XID 78 or 159.
    UpdateSoftware,
    /// XID 79.
    FallenOffBus,
    /// XID 151.
    RestartVm,
    /// XID 142.
    ContactSupport,
    /// XID 154: the driver recommends an action.
    RecoveryAction,
    /// An XID in no table.
    XidUnlisted,
    /// An XID or event that is only counted, or of a kind that is not known.
    XidWarning,
    /// Uncorrectable SRAM errors passed the vendor's threshold.
    SramThreshold,
    /// A row of memory waits to be remapped.
    RowRemapPending,
    /// A row of memory could not be remapped.
    RowRemapFailure,
    /// Many pages of memory are retired, or some wait to be.
    RetiredPages,
    /// The infoROM's checksum does not hold.
    InforomCorrupted,
    /// Heat or power held the clocks down.
    Throttled,
    /// The PCIe link has fewer lanes than it can have.
    PcieWidth,
    /// The PCIe link repeats packets.
    PcieReplays,
    /// The GPU is not registered with the NVLink fabric.
    FabricNotReady,
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
    /// No probe answers: nothing is known at the moment.
    ProbeUnavailable,
    /// The driver was loaded anew after a fault; it is being watched.
    Recovering,
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
            Self::RowRemapPending => "RowRemapPending",
            Self::RowRemapFailure => "RowRemapFailure",
            Self::RetiredPages => "RetiredPages",
            Self::InforomCorrupted => "InforomCorrupted",
            Self::Throttled => "Throttled",
            Self::PcieWidth => "PcieWidth",
            Self::PcieReplays => "PcieReplays",
            Self::FabricNotReady => "FabricNotReady",
            Self::NvLinkDown => "NvLinkDown",
            Self::GpuLost => "GpuLost",
            Self::GpuMissing => "GpuMissing",
            Self::GPUDriverHung => "GPUDriverHung",
            Self::DriverNotLoaded => "DriverNotLoaded",
            Self::DriverUpgrading => "DriverUpgrading",
            Self::DriverReleaseBlocked => "DriverReleaseBlocked",
            Self::NvmlError => "NvmlError",
            Self::ProbeUnavailable => "ProbeUnavailable",
            Self::Recovering => "Recovering",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
