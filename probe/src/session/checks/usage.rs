//! Encoders, decoders and the licence of a virtual GPU: no check looks at them, metrics show them.

use berth_core::facts::GpuChecks;
use nvml_wrapper_sys::bindings::nvmlGridLicensableFeatures_t;

use super::{Asked, Stop, raw};

/// Asks how busy one kind of engine was: percent, and over which time.
macro_rules! utilization {
    ($asked:expr, $name:ident) => {{
        let (mut percent, mut period_us) = (0, 0);
        let result = raw!(
            $asked.nvml,
            $asked.clock,
            $name($asked.device, &raw mut percent, &raw mut period_us)
        );
        $asked.value(stringify!($name), result)?.map(|()| percent)
    }};
}

pub(super) fn read(asked: &mut Asked<'_>, checks: &mut GpuChecks) -> Result<(), Stop> {
    checks.encoder_utilization = utilization!(asked, nvmlDeviceGetEncoderUtilization);
    checks.decoder_utilization = utilization!(asked, nvmlDeviceGetDecoderUtilization);
    checks.vgpu_licensed = vgpu_licensed(asked)?;
    Ok(())
}

/// Nothing where no licence is needed, which is wherever the GPU is not a virtual one.
fn vgpu_licensed(asked: &mut Asked<'_>) -> Result<Option<bool>, Stop> {
    // SAFETY: plain numbers and characters: all zero is a value.
    let mut features = unsafe { std::mem::zeroed::<nvmlGridLicensableFeatures_t>() };
    let result = raw!(
        asked.nvml,
        asked.clock,
        nvmlDeviceGetGridLicensableFeatures_v4(asked.device, &raw mut features)
    );
    let told = asked.value("nvmlDeviceGetGridLicensableFeatures_v4", result)?;
    if told.is_none() || features.isGridLicenseSupported == 0 {
        return Ok(None);
    }
    let count = usize::try_from(features.licensableFeaturesCount).unwrap_or(0);
    let listed = features.gridLicensableFeatures.iter().take(count);
    Ok(Some(listed.into_iter().any(|feature| feature.featureState != 0)))
}
