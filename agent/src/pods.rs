//! Who uses the GPUs, as last told by the probe, put onto the readings.

use std::collections::BTreeSet;
use std::time::Duration;

use berth_core::facts::{Gpu, GpuSample, PodsState};
use berth_core::freshness::PODS_STALE;
use berth_core::pods::{Joined, Kubelet, Process, join};

/// Word of one of the two ways to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lane<T> {
    /// It was not asked for.
    Off,
    /// What it says.
    Says(T),
    /// Why it says nothing.
    Silent(String),
}

/// One answer of the probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What the kubelet handed out.
    pub kubelet: Lane<Kubelet>,
    /// Which pods' processes run.
    pub processes: Lane<Vec<Process>>,
}

/// What is known. A kubelet that restarts says nothing for some seconds, in which it hands nothing out either: what it said counts on, with
/// its age, until that is too old.
#[derive(Debug, Clone, Default)]
pub struct Pods {
    /// The kubelet is asked.
    asked: bool,
    /// With the kubelet's word, and when that came.
    known: Option<(Joined, Duration)>,
    /// By processes alone, and when they were seen.
    seen: Option<(Joined, Duration)>,
    /// Why a way says nothing: the kubelet's, the processes'.
    silence: [Option<String>; 2],
}

impl Pods {
    /// The probe answered.
    pub fn on_answer(&mut self, answer: Answer, gpus: &[Gpu], now: Duration) {
        let silence = [silence(&answer.kubelet), silence(&answer.processes)];
        for ((way, before), after) in ["kubelet", "processes"].iter().zip(&self.silence).zip(&silence) {
            match (before, after) {
                (before, Some(why)) if before.as_ref() != Some(why) => tracing::warn!(way, why, "pods are not told"),
                (Some(_), None) => tracing::info!(way, "pods are told again"),
                _ => {}
            }
        }
        self.silence = silence;
        let processes = match answer.processes {
            Lane::Says(processes) => Some(processes),
            Lane::Off | Lane::Silent(_) => None,
        };
        self.seen = processes.as_ref().map(|processes| (join(gpus, None, processes), now));
        self.asked = answer.kubelet != Lane::Off;
        match answer.kubelet {
            Lane::Says(kubelet) => {
                let joined = join(gpus, Some(&kubelet), &processes.unwrap_or_default());
                let before = self.known.as_ref().map(|(before, _)| &before.unresolved);
                if !joined.unresolved.is_empty() && before != Some(&joined.unresolved) {
                    tracing::warn!(devices = ?joined.unresolved, "devices in use that are no GPU known here");
                }
                self.known = Some((joined, now));
            }
            Lane::Off => self.known = None,
            Lane::Silent(_) => {}
        }
    }

    /// Puts what is known at `now` onto a reading, in place of what was there.
    pub fn attach(&self, sample: &mut GpuSample, now: Duration) {
        sample.pods.clear();
        sample.units_left = None;
        sample.pods_age = self.known.as_ref().map(|(_, at)| now.saturating_sub(*at));
        let known = fresh(self.known.as_ref(), now);
        sample.pods_state = match (self.asked, known) {
            (_, Some(_)) => PodsState::Known,
            (true, None) => PodsState::NotAvailable,
            (false, None) => PodsState::Off,
        };
        let joined = known.or_else(|| fresh(self.seen.as_ref(), now));
        if let Some(device) = joined.and_then(|joined| joined.devices.get(&sample.uuid)) {
            sample.pods.clone_from(&device.pods);
            sample.units_left = device.units_left;
        }
    }

    /// Whether anything is asked for at all.
    pub fn is_off(&self) -> bool {
        !self.asked && self.seen.is_none() && self.silence.iter().all(Option::is_none)
    }

    /// Whether the kubelet's word is known and fresh; `None`: it is not asked.
    pub fn kubelet_answers(&self, now: Duration) -> Option<bool> {
        self.asked.then(|| fresh(self.known.as_ref(), now).is_some())
    }

    /// Names of devices in use that cannot be told to a GPU.
    pub fn unresolved(&self) -> Option<&BTreeSet<String>> {
        self.known.as_ref().map(|(joined, _)| &joined.unresolved)
    }
}

fn silence<T>(lane: &Lane<T>) -> Option<String> {
    match lane {
        Lane::Silent(why) => Some(why.clone()),
        Lane::Off | Lane::Says(_) => None,
    }
}

fn fresh(of: Option<&(Joined, Duration)>, now: Duration) -> Option<&Joined> {
    of.filter(|(_, at)| now.saturating_sub(*at) <= PODS_STALE)
        .map(|(joined, _)| joined)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::facts::{PodName, PodShare};
    use berth_core::pods::{Held, HeldDevice, PluginDevice};

    const S: Duration = Duration::from_secs(1);

    fn gpus() -> Vec<Gpu> {
        vec![Gpu {
            uuid: "GPU-1".into(),
            ..Gpu::default()
        }]
    }

    fn unit() -> PluginDevice {
        PluginDevice {
            resource: "nvidia.com/gpu".into(),
            id: "GPU-1".into(),
        }
    }

    fn kubelet(pods: &[&str]) -> Lane<Kubelet> {
        let held = |name: &&str| Held {
            pod: PodName {
                namespace: "ml".into(),
                name: (*name).into(),
            },
            container: "c".into(),
            device: HeldDevice::Plugin(unit()),
        };
        Lane::Says(Kubelet {
            held: pods.iter().map(held).collect(),
            allocatable: Some([unit()].into()),
        })
    }

    fn process() -> Lane<Vec<Process>> {
        Lane::Says(vec![Process {
            gpu: "GPU-1".into(),
            instance: None,
            pod_uid: "u".into(),
            pod: None,
            memory_bytes: Some(1),
        }])
    }

    fn shown(pods: &Pods, now: Duration) -> (PodsState, Option<Duration>, Vec<String>, Option<u32>) {
        let mut sample = GpuSample {
            uuid: "GPU-1".into(),
            ..GpuSample::default()
        };
        pods.attach(&mut sample, now);
        let name = |pod: Option<PodName>| pod.map_or("?".to_owned(), |p| p.name);
        let names = sample.pods.into_iter().map(|u| name(u.pod)).collect();
        (sample.pods_state, sample.pods_age, names, sample.units_left)
    }

    #[test]
    fn a_pod_shows_while_the_kubelet_says_so() {
        let mut pods = Pods::default();
        assert_eq!(shown(&pods, S), (PodsState::Off, None, vec![], None));
        assert!(pods.is_off());
        let says = |kubelet| Answer {
            kubelet,
            processes: Lane::Off,
        };
        pods.on_answer(says(kubelet(&["a"])), &gpus(), S);
        let a = || vec!["a".to_owned()];
        assert_eq!(shown(&pods, S * 2), (PodsState::Known, Some(S), a(), Some(0)));
        pods.on_answer(says(kubelet(&[])), &gpus(), S * 3);
        assert_eq!(
            shown(&pods, S * 3),
            (PodsState::Known, Some(Duration::ZERO), vec![], Some(1))
        );
        pods.on_answer(says(Lane::Off), &gpus(), S * 4);
        assert_eq!(shown(&pods, S * 4), (PodsState::Off, None, vec![], None));
    }

    #[test]
    fn a_kubelet_that_falls_silent_is_believed_for_a_while_and_then_nothing_is_known() {
        let mut pods = Pods::default();
        let silent = || Answer {
            kubelet: Lane::Silent("hangs".into()),
            processes: Lane::Off,
        };
        pods.on_answer(silent(), &gpus(), S);
        assert_eq!(shown(&pods, S), (PodsState::NotAvailable, None, vec![], None));
        let says = Answer {
            kubelet: kubelet(&["a"]),
            processes: Lane::Off,
        };
        pods.on_answer(says.clone(), &gpus(), S * 2);
        pods.on_answer(silent(), &gpus(), S * 7);
        let a = || vec!["a".to_owned()];
        assert_eq!(shown(&pods, S * 7), (PodsState::Known, Some(S * 5), a(), Some(0)));
        let late = S * 3 + PODS_STALE;
        assert_eq!(
            shown(&pods, late),
            (PodsState::NotAvailable, Some(S + PODS_STALE), vec![], None),
            "also where the probe itself says nothing"
        );
        assert_eq!(pods.kubelet_answers(late), Some(false));
        pods.on_answer(says, &gpus(), late);
        assert_eq!(
            shown(&pods, late),
            (PodsState::Known, Some(Duration::ZERO), a(), Some(0))
        );
    }

    #[test]
    fn processes_alone_tell_what_runs() {
        let mut pods = Pods::default();
        let alone = Answer {
            kubelet: Lane::Off,
            processes: process(),
        };
        pods.on_answer(alone, &gpus(), S);
        assert_eq!(shown(&pods, S), (PodsState::Off, None, vec!["?".into()], None));
        assert!(!pods.is_off());
        let half = Answer {
            kubelet: Lane::Silent("hangs".into()),
            processes: process(),
        };
        pods.on_answer(half, &gpus(), S);
        assert_eq!(shown(&pods, S), (PodsState::NotAvailable, None, vec!["?".into()], None));
        let mut sample = GpuSample {
            uuid: "GPU-1".into(),
            ..GpuSample::default()
        };
        pods.attach(&mut sample, S);
        assert_eq!(sample.pods[0].share, PodShare::Process);
        pods.attach(&mut sample, S * 100);
        assert!(sample.pods.is_empty(), "what ran long ago is not said");
    }
}
