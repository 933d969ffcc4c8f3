//! What a call into NVML answered: a value, that there is none, nothing clear, or that the GPU or all of NVML is gone.

use berth_core::facts::{NvmlState, NvmlStatus};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::{
    nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH, nvmlReturn_enum_NVML_ERROR_DEPRECATED,
    nvmlReturn_enum_NVML_ERROR_GPU_NOT_FOUND, nvmlReturn_t,
};

/// Calls a C function that `nvml-wrapper` does not wrap; it may be missing from the loaded library.
macro_rules! raw {
    ($nvml:expr, $clock:expr, $name:ident ( $($arg:expr),* )) => {
        match &$nvml.lib().$name {
            // SAFETY: the symbol has this signature in every driver (NVML never changes one under a name), device handles come from
            // this library, and result pointers are to locals that outlive the call.
            Ok(function) => $clock.run(stringify!($name), || ::nvml_wrapper::error::nvml_try(unsafe { function($($arg),*) })),
            Err(error) => Err(::nvml_wrapper::error::NvmlError::FailedToLoadSymbol(error.to_string())),
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
pub(super) use call;

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

pub(super) fn broken(call: &'static str, error: &NvmlError) -> Broken {
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
pub(super) enum Stop {
    /// The GPU is gone.
    Lost(String),
    /// NVML is gone.
    Broken(Broken),
}

/// What a call on one GPU answered.
pub(super) enum Told<T> {
    Value(T),
    Absent,
    Unclear(Broken),
}

impl<T> Told<T> {
    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Told<U> {
        match self {
            Self::Value(value) => Told::Value(change(value)),
            Self::Absent => Told::Absent,
            Self::Unclear(why) => Told::Unclear(why),
        }
    }

    /// A fact: as told, or as it was known where nothing is told.
    pub(super) fn or_before(self, before: Option<T>) -> Option<T> {
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
pub(super) fn told<T>(call: &'static str, result: Result<T, NvmlError>) -> Result<Told<T>, Stop> {
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
pub(super) fn reading<T>(call: &'static str, result: Result<T, NvmlError>) -> Result<Option<T>, Stop> {
    Ok(told(call, result)?.or_before(None))
}

/// A wrapped call whose result may be absent.
macro_rules! read {
    ($clock:expr, $name:ident, $call:expr) => {
        $crate::session::told::reading(stringify!($name), $crate::session::told::call!($clock, $name, $call))?
    };
}
pub(super) use read;

/// The value told, or else the end of this function with what was told instead.
macro_rules! value {
    ($told:expr) => {
        match $told {
            $crate::session::told::Told::Value(value) => value,
            $crate::session::told::Told::Absent => return Ok($crate::session::told::Told::Absent),
            $crate::session::told::Told::Unclear(why) => return Ok($crate::session::told::Told::Unclear(why)),
        }
    };
}
pub(super) use value;

/// A wrapped call on a GPU's facts.
macro_rules! ask {
    ($clock:expr, $name:ident, $call:expr) => {
        $crate::session::told::told(stringify!($name), $crate::session::told::call!($clock, $name, $call))?
    };
}
pub(super) use ask;
