//! Counters that have no call of their own, many in one call.

use nvml_wrapper_sys::bindings::{
    nvmlFieldValue_t, nvmlReturn_enum_NVML_SUCCESS, nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT as SIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT as UNSIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG as UNSIGNED_LONG,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG as UNSIGNED_LONG_LONG,
};

use super::{Asked, Stop, raw};

/// The values of fields, each with its scope (0: the GPU; or a link), in their order.
pub(super) fn read(asked: &mut Asked<'_>, wanted: &[(u32, u32)]) -> Result<Vec<Option<u64>>, Stop> {
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
    let result = raw!(
        asked.nvml,
        asked.clock,
        nvmlDeviceGetFieldValues(asked.device, count, values.as_mut_ptr())
    );
    Ok(match asked.value("nvmlDeviceGetFieldValues", result)? {
        Some(()) => values.iter().map(number).collect(),
        None => vec![None; wanted.len()],
    })
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
