//! Readings that have no call of their own, many in one call.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlFieldValue_t, nvmlReturn_enum_NVML_SUCCESS,
    nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT as SIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT as UNSIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG as UNSIGNED_LONG,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG as UNSIGNED_LONG_LONG,
};

use super::told::{Stop, raw, reading};
use crate::worker::CallClock;

/// A field id and its scope.
pub(super) type Field = (u32, u32);

/// The scope of a field that has none.
pub(super) const NO_SCOPE: u32 = 0;
/// The scope of an NVLink field that means all links together.
pub(super) const ALL_LINKS: u32 = u32::MAX;

/// The fields' values, each absent where driver or part do not have it. Where nothing is to be had, all are.
pub(super) fn read<const N: usize>(
    nvml: &Nvml,
    device: nvmlDevice_t,
    wanted: [Field; N],
    clock: &CallClock,
) -> Result<[Option<u64>; N], Stop> {
    let values = reading("nvmlDeviceGetFieldValues", ask(nvml, device, &wanted, clock))?;
    Ok(values.and_then(|values| values.try_into().ok()).unwrap_or([None; N]))
}

/// The fields' values in their order, or why the call gave none.
pub(super) fn ask(
    nvml: &Nvml,
    device: nvmlDevice_t,
    wanted: &[Field],
    clock: &CallClock,
) -> Result<Vec<Option<u64>>, NvmlError> {
    let mut values: Vec<nvmlFieldValue_t> = wanted
        .iter()
        .map(|(id, scope)| {
            // SAFETY: plain numbers and a union of numbers: all zero is a value of each.
            let mut value = unsafe { std::mem::zeroed::<nvmlFieldValue_t>() };
            value.fieldId = *id;
            value.scopeId = *scope;
            // Not every driver writes an answer for an id that it does not know.
            value.nvmlReturn = !nvmlReturn_enum_NVML_SUCCESS;
            value
        })
        .collect();
    let count = i32::try_from(values.len()).unwrap_or(0);
    raw!(
        nvml,
        clock,
        nvmlDeviceGetFieldValues(device, count, values.as_mut_ptr())
    )?;
    Ok(values.iter().map(number).collect())
}

fn number(value: &nvmlFieldValue_t) -> Option<u64> {
    if value.nvmlReturn != nvmlReturn_enum_NVML_SUCCESS {
        return None;
    }
    // SAFETY: the type says which member the driver wrote.
    unsafe {
        match value.valueType {
            UNSIGNED_INT => Some(value.value.uiVal.into()),
            UNSIGNED_LONG => Some(value.value.ulVal),
            UNSIGNED_LONG_LONG => Some(value.value.ullVal),
            SIGNED_INT => u64::try_from(value.value.siVal).ok(),
            _ => None,
        }
    }
}
