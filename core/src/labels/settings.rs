//! What the labels of a node depend on besides its hardware: how NVIDIA's device plugin hands its GPUs out.

/// How MIG devices become resources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MigStrategy {
    /// They do not.
    #[default]
    None,
    /// All are alike and stand in for GPUs: `nvidia.com/gpu`.
    Single,
    /// A resource for each profile: `nvidia.com/mig-1g.10gb`.
    Mixed,
}

/// How several containers share one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SharingStrategy {
    /// They do not.
    #[default]
    None,
    /// In turns.
    TimeSlicing,
    /// At once, by CUDA's multi-process service.
    Mps,
}

impl SharingStrategy {
    /// GFD's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::TimeSlicing => "time-slicing",
            Self::Mps => "mps",
        }
    }
}

/// A resource whose devices are advertised more than once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replicated {
    /// `nvidia.com/gpu`, `nvidia.com/mig-1g.10gb`.
    pub resource: String,
    /// How often each device is advertised.
    pub replicas: u32,
    /// Whether the replicas go by another resource name, so that the product needs no mark.
    pub renamed: bool,
}

/// What the owner of a cluster chooses about labels beyond the hardware.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// MIG strategy of the device plugin.
    pub mig_strategy: MigStrategy,
    /// Sharing strategy of the device plugin.
    pub sharing: SharingStrategy,
    /// Shared resources.
    pub replicated: Vec<Replicated>,
    /// Value of `nvidia.com/gfd.timestamp` in seconds since 1970; `None`: the key is not wanted.
    pub timestamp: Option<u64>,
}

impl Settings {
    /// How a resource is shared, where it is.
    pub(super) fn replicated(&self, resource: &str) -> Option<&Replicated> {
        self.replicated.iter().find(|r| r.resource == resource)
    }
}
