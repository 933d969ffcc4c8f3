//! Which GPU or MIG device a name means: those of device plugins and of the DRA driver.

use super::{ClaimDevice, DRA_DRIVER, PluginDevice};
use crate::facts::{Gpu, MigDevice};

/// The device that a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a> {
    /// `GPU-…` or `MIG-…`.
    pub uuid: &'a str,
    /// The name is of one of several replicas of it.
    pub replica: bool,
}

/// The device of a device plugin's id; `None`: no device that NVML knows, or it cannot be told which.
///
/// - `GPU-…`, `MIG-…`: NVIDIA's plugin; `MIG-GPU-…/<gpu instance>/<compute instance>` before R470
/// - `<any of these>::<n>`: a replica of it
/// - `nvidia<minor>`, with `/gi<gpu instance>` and `/vgpu<replica>`: GKE's plugin
/// - `<index>`: plugins that count
pub fn resolve<'a>(gpus: &'a [Gpu], device: &PluginDevice) -> Option<Found<'a>> {
    let (id, replica) = match device.id.split_once("::") {
        Some((id, _)) => (id, true),
        None => (device.id.as_str(), false),
    };
    if let Some(uuid) = by_uuid(gpus, id) {
        return Some(Found { uuid, replica });
    }
    if let Some(of_gke) = id.strip_prefix("nvidia") {
        return of_gke_plugin(gpus, of_gke);
    }
    let index: u32 = id.parse().ok()?;
    let gpu = gpus.iter().find(|g| g.index == index)?;
    Some(Found {
        uuid: &gpu.uuid,
        replica,
    })
}

/// The device of a ResourceClaim. The driver names a GPU `gpu-<minor>`, and a MIG device by profile and place on its GPU, of which NVML
/// tells this node neither: it is known only where the GPU has no other.
pub fn resolve_claim<'a>(gpus: &'a [Gpu], device: &ClaimDevice) -> Option<&'a str> {
    if device.driver != DRA_DRIVER {
        return None;
    }
    if let Some(uuid) = by_uuid(gpus, &device.device) {
        return Some(uuid);
    }
    let name = device.device.strip_prefix("gpu-")?;
    let (minor, mig) = match name.split_once("-mig-") {
        Some((minor, _)) => (minor, true),
        None => (name, false),
    };
    let gpu = by_minor(gpus, minor)?;
    match (mig, mig_devices(gpu)) {
        (false, _) => Some(&gpu.uuid),
        (true, [only]) => Some(&only.uuid),
        (true, _) => None,
    }
}

fn by_uuid<'a>(gpus: &'a [Gpu], id: &str) -> Option<&'a str> {
    if let Some((gpu, instances)) = id.strip_prefix("MIG-").and_then(|rest| rest.split_once('/')) {
        let (gi, ci) = instances.split_once('/')?;
        let gpu = gpus.iter().find(|g| g.uuid.eq_ignore_ascii_case(gpu))?;
        return mig_device(gpu, gi.parse().ok()?, ci.parse().ok()?);
    }
    let uuids = gpus.iter().flat_map(|g| {
        let mig = mig_devices(g).iter().map(|d| d.uuid.as_str());
        std::iter::once(g.uuid.as_str()).chain(mig)
    });
    // Names of Kubernetes objects are in lower case.
    uuids.into_iter().find(|uuid| uuid.eq_ignore_ascii_case(id))
}

/// `<minor>[/gi<gpu instance>][/vgpu<replica>]`.
fn of_gke_plugin<'a>(gpus: &'a [Gpu], id: &str) -> Option<Found<'a>> {
    let mut parts = id.split('/');
    let gpu = by_minor(gpus, parts.next()?)?;
    let mut found = Found {
        uuid: &gpu.uuid,
        replica: false,
    };
    for part in parts {
        if let Some(instance) = part.strip_prefix("gi") {
            let instance: u32 = instance.parse().ok()?;
            let mut of_instance = mig_devices(gpu).iter().filter(|d| d.gpu_instance_id == instance);
            found.uuid = match (of_instance.next(), of_instance.next()) {
                (Some(only), None) => &only.uuid,
                _ => return None,
            };
        } else if part.starts_with("vgpu") {
            found.replica = true;
        } else {
            return None;
        }
    }
    Some(found)
}

fn by_minor<'a>(gpus: &'a [Gpu], minor: &str) -> Option<&'a Gpu> {
    let minor: u32 = minor.parse().ok()?;
    gpus.iter().find(|g| g.minor_number == Some(minor))
}

/// The MIG device of a GPU instance and compute instance.
pub(super) fn mig_device(gpu: &Gpu, gpu_instance: u32, compute_instance: u32) -> Option<&str> {
    let same = |d: &&MigDevice| d.gpu_instance_id == gpu_instance && d.compute_instance_id == compute_instance;
    mig_devices(gpu).iter().find(same).map(|d| d.uuid.as_str())
}

pub(super) fn mig_devices(gpu: &Gpu) -> &[MigDevice] {
    gpu.mig.as_ref().map_or(&[], |m| &m.devices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::{gpu, mig_gpu};

    #[test]
    fn ids_of_device_plugins() {
        // Minor numbers and indices differ, as on machines where a card was added.
        let gpus = [
            gpu(0, "GPU-a", 1),
            mig_gpu(1, "GPU-b", 0, &[("MIG-1", 1, 0), ("MIG-2", 2, 0)]),
        ];
        for (id, want) in [
            ("GPU-a", Some(("GPU-a", false))),
            ("GPU-a::0", Some(("GPU-a", true))),
            ("GPU-a::15", Some(("GPU-a", true))),
            ("MIG-2", Some(("MIG-2", false))),
            ("MIG-2::1", Some(("MIG-2", true))),
            ("MIG-GPU-b/2/0", Some(("MIG-2", false))),
            ("MIG-GPU-b/3/0", None),
            ("nvidia0", Some(("GPU-b", false))),
            ("nvidia1", Some(("GPU-a", false))),
            ("nvidia0/gi1", Some(("MIG-1", false))),
            ("nvidia0/gi7", None),
            ("nvidia1/vgpu3", Some(("GPU-a", true))),
            ("nvidia0/gi2/vgpu0", Some(("MIG-2", true))),
            ("nvidia1/other", None),
            ("nvidia7", None),
            ("0", Some(("GPU-a", false))),
            ("1", Some(("GPU-b", false))),
            ("2", None),
            ("GPU-of-another-boot", None),
            ("", None),
        ] {
            let device = PluginDevice {
                resource: "nvidia.com/gpu".into(),
                id: id.into(),
            };
            let found = resolve(&gpus, &device).map(|f| (f.uuid, f.replica));
            assert_eq!(found, want, "{id}");
        }
    }

    #[test]
    fn devices_of_claims() {
        let gpus = [
            gpu(0, "GPU-a", 1),
            mig_gpu(1, "GPU-b", 0, &[("MIG-1", 1, 0), ("MIG-2", 2, 0)]),
            mig_gpu(2, "GPU-c", 2, &[("MIG-3", 1, 0)]),
        ];
        for (driver, device, want) in [
            (DRA_DRIVER, "gpu-1", Some("GPU-a")),
            (DRA_DRIVER, "gpu-a", Some("GPU-a")),
            (DRA_DRIVER, "gpu-9", None),
            (DRA_DRIVER, "gpu-0-mig-19-4-1", None),
            (DRA_DRIVER, "gpu-2-mig-19-4-1", Some("MIG-3")),
            (DRA_DRIVER, "mig-2", Some("MIG-2")),
            (DRA_DRIVER, "channel-0", None),
            ("compute-domain.nvidia.com", "gpu-1", None),
        ] {
            let claim = ClaimDevice {
                driver: driver.into(),
                pool: "node".into(),
                device: device.into(),
            };
            assert_eq!(resolve_claim(&gpus, &claim), want, "{device}");
        }
    }
}
