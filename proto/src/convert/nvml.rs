//! NVML's state.

use berth_core::facts;

use crate::v1;

impl From<facts::NvmlState> for v1::NvmlState {
    fn from(s: facts::NvmlState) -> Self {
        match s {
            facts::NvmlState::Unknown => Self::Unspecified,
            facts::NvmlState::Ready => Self::Ready,
            facts::NvmlState::NoLibrary => Self::NoLibrary,
            facts::NvmlState::NoDriver => Self::NoDriver,
            facts::NvmlState::VersionMismatch => Self::VersionMismatch,
            facts::NvmlState::Hung => Self::Hung,
            facts::NvmlState::Released => Self::Released,
            facts::NvmlState::ProbeUnavailable => Self::ProbeUnavailable,
            facts::NvmlState::Error => Self::Error,
            facts::NvmlState::ReleaseBlocked => Self::ReleaseBlocked,
        }
    }
}

impl From<v1::NvmlState> for facts::NvmlState {
    fn from(s: v1::NvmlState) -> Self {
        match s {
            v1::NvmlState::Unspecified => Self::Unknown,
            v1::NvmlState::Ready => Self::Ready,
            v1::NvmlState::NoLibrary => Self::NoLibrary,
            v1::NvmlState::NoDriver => Self::NoDriver,
            v1::NvmlState::VersionMismatch => Self::VersionMismatch,
            v1::NvmlState::Hung => Self::Hung,
            v1::NvmlState::Released => Self::Released,
            v1::NvmlState::ProbeUnavailable => Self::ProbeUnavailable,
            v1::NvmlState::Error => Self::Error,
            v1::NvmlState::ReleaseBlocked => Self::ReleaseBlocked,
        }
    }
}

/// State and message of a wire message as one status; a state this build does not know reads as [`facts::NvmlState::Error`].
pub fn nvml_status(state: i32, message: String) -> facts::NvmlStatus {
    let state = v1::NvmlState::try_from(state).map_or(facts::NvmlState::Error, Into::into);
    facts::NvmlStatus { state, message }
}
