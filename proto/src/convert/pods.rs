//! Who uses a GPU, to the wire and back.

use berth_core::facts::{PodName, PodShare, PodUse, PodsState};
use berth_core::pods::{ClaimDevice, Held, HeldDevice, PluginDevice, Process};

use super::Malformed;
use crate::probe::v1 as probe;
use crate::v1;

impl From<PodUse> for v1::PodUse {
    fn from(u: PodUse) -> Self {
        let (namespace, name) = u.pod.map(|p| (p.namespace, p.name)).unzip();
        let share = match u.share {
            PodShare::Process => v1::PodShare::Process,
            PodShare::Whole => v1::PodShare::Whole,
            PodShare::Replica => v1::PodShare::Replica,
            PodShare::Claim => v1::PodShare::Claim,
        };
        Self {
            namespace,
            name,
            uid: u.uid,
            containers: u.containers,
            memory_bytes: u.memory_bytes,
            share: share.into(),
        }
    }
}

impl From<v1::PodUse> for PodUse {
    fn from(u: v1::PodUse) -> Self {
        let share = match u.share() {
            v1::PodShare::Whole => PodShare::Whole,
            v1::PodShare::Replica => PodShare::Replica,
            v1::PodShare::Claim => PodShare::Claim,
            // A way that a newer peer knows: it is there, that is what is sure.
            v1::PodShare::Process | v1::PodShare::Unspecified => PodShare::Process,
        };
        Self {
            pod: u
                .namespace
                .zip(u.name)
                .map(|(namespace, name)| PodName { namespace, name }),
            uid: u.uid,
            containers: u.containers,
            memory_bytes: u.memory_bytes,
            share,
        }
    }
}

pub(super) fn state(state: PodsState) -> v1::PodsState {
    match state {
        PodsState::Off => v1::PodsState::Unspecified,
        PodsState::Known => v1::PodsState::Known,
        PodsState::NotAvailable => v1::PodsState::NotAvailable,
    }
}

pub(super) fn read_state(state: v1::PodsState) -> PodsState {
    match state {
        v1::PodsState::Unspecified => PodsState::Off,
        v1::PodsState::Known => PodsState::Known,
        v1::PodsState::NotAvailable => PodsState::NotAvailable,
    }
}

impl From<PluginDevice> for probe::PluginDevice {
    fn from(d: PluginDevice) -> Self {
        Self {
            resource: d.resource,
            id: d.id,
        }
    }
}

impl From<probe::PluginDevice> for PluginDevice {
    fn from(d: probe::PluginDevice) -> Self {
        Self {
            resource: d.resource,
            id: d.id,
        }
    }
}

impl From<Held> for probe::HeldDevice {
    fn from(h: Held) -> Self {
        use probe::held_device::Device;
        Self {
            namespace: h.pod.namespace,
            pod: h.pod.name,
            container: h.container,
            device: Some(match h.device {
                HeldDevice::Plugin(plugin) => Device::Plugin(plugin.into()),
                HeldDevice::Claim(claim) => Device::Claim(probe::ClaimDevice {
                    driver: claim.driver,
                    pool: claim.pool,
                    device: claim.device,
                }),
            }),
        }
    }
}

impl TryFrom<probe::HeldDevice> for Held {
    type Error = Malformed;
    fn try_from(h: probe::HeldDevice) -> Result<Self, Malformed> {
        use probe::held_device::Device;
        let device = match h.device {
            Some(Device::Plugin(plugin)) => HeldDevice::Plugin(plugin.into()),
            Some(Device::Claim(claim)) => HeldDevice::Claim(ClaimDevice {
                driver: claim.driver,
                pool: claim.pool,
                device: claim.device,
            }),
            None => {
                return Err(Malformed {
                    field: "held.device",
                    problem: "is missing".into(),
                });
            }
        };
        Ok(Self {
            pod: PodName {
                namespace: h.namespace,
                name: h.pod,
            },
            container: h.container,
            device,
        })
    }
}

impl From<Process> for probe::GpuProcess {
    fn from(p: Process) -> Self {
        let (namespace, pod) = p.pod.map(|p| (p.namespace, p.name)).unzip();
        Self {
            gpu: p.gpu,
            gpu_instance: p.instance.map(|i| i.0),
            compute_instance: p.instance.map(|i| i.1),
            pod_uid: p.pod_uid,
            namespace,
            pod,
            memory_bytes: p.memory_bytes,
        }
    }
}

impl From<probe::GpuProcess> for Process {
    fn from(p: probe::GpuProcess) -> Self {
        Self {
            gpu: p.gpu,
            instance: p.gpu_instance.zip(p.compute_instance),
            pod_uid: p.pod_uid,
            pod: p
                .namespace
                .zip(p.pod)
                .map(|(namespace, name)| PodName { namespace, name }),
            memory_bytes: p.memory_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::facts::GpuSample;
    use std::time::Duration;

    #[test]
    fn pods_arrive_as_they_were_sent() {
        let shares = [PodShare::Process, PodShare::Whole, PodShare::Replica, PodShare::Claim];
        let named = |share| PodUse {
            pod: Some(PodName {
                namespace: "ml".into(),
                name: "llama".into(),
            }),
            containers: vec!["server".into()],
            memory_bytes: Some(1 << 30),
            share,
            ..PodUse::default()
        };
        let by_uid = PodUse {
            uid: Some("0a1b".into()),
            ..PodUse::default()
        };
        for state in [PodsState::Off, PodsState::Known, PodsState::NotAvailable] {
            let sample = GpuSample {
                uuid: "GPU-1".into(),
                pods: shares.map(named).into_iter().chain([by_uid.clone()]).collect(),
                pods_state: state,
                pods_age: Some(Duration::from_millis(7)),
                units_left: Some(0),
                ..GpuSample::default()
            };
            assert_eq!(GpuSample::from(v1::GpuSample::from(sample.clone())), sample);
        }
    }

    #[test]
    fn an_agent_that_does_not_look_says_nothing_of_pods() {
        let of_older = GpuSample::from(v1::GpuSample::default());
        assert_eq!(of_older.pods_state, PodsState::Off);
        assert_eq!((of_older.pods_age, of_older.units_left), (None, None));
    }
}
