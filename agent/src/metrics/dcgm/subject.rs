//! What a series is of: a GPU or one of its instances, and who uses it.

use berth_core::facts::{Gpu, GpuChecks, GpuSample, MigDevice, PodsState};

use super::rows::{Source, Value};
use crate::metrics::text::Labels;

/// What is known of a GPU, or of one of its instances, and fresh.
#[derive(Clone, Copy, Default)]
pub struct Reading<'s> {
    pub sample: Option<&'s GpuSample>,
    pub checks: Option<&'s GpuChecks>,
}

impl Reading<'_> {
    /// A row's value.
    pub fn value(self, source: &Source) -> Option<Value> {
        match source {
            Source::Sample(of) => self.sample.and_then(of),
            Source::Checks(of) => self.checks.and_then(of),
        }
    }
}

/// A container that uses a GPU; `None`: a pod of which only a process is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct User<'s> {
    pub namespace: &'s str,
    pub pod: &'s str,
    pub container: Option<&'s str>,
}

/// Namespace, name and containers of each pod that uses what a sample is of. Of those who do not answer any more nothing is known.
fn pods(sample: &GpuSample) -> Vec<(&str, &str, &[String])> {
    if sample.pods_state == PodsState::NotAvailable {
        return Vec::new();
    }
    let named = sample.pods.iter().filter_map(|used| Some((used.pod.as_ref()?, used)));
    named
        .map(|(pod, used)| (&*pod.namespace, &*pod.name, &*used.containers))
        .collect()
}

/// One for each container, each once.
fn containers<'s>(pods: Vec<(&'s str, &'s str, &'s [String])>) -> Vec<User<'s>> {
    let mut users = Vec::new();
    for (namespace, pod, containers) in pods {
        let user = |container| User {
            namespace,
            pod,
            container,
        };
        if containers.is_empty() {
            users.push(user(None));
        }
        users.extend(containers.iter().map(|name| user(Some(name.as_str()))));
    }
    users.sort_unstable();
    users.dedup();
    users
}

/// Who uses what the samples are of.
pub fn users<'s>(samples: impl IntoIterator<Item = &'s GpuSample>) -> Vec<User<'s>> {
    containers(samples.into_iter().flat_map(pods).collect())
}

/// A GPU or one of its instances: one series of each row that it has a value for, or one for each container that uses it.
pub struct Subject<'s> {
    pub labels: Labels,
    pub reading: Reading<'s>,
    pub users: Vec<User<'s>>,
}

impl Subject<'_> {
    /// Labels of its series, with `more` before those of the users.
    pub fn series(&self, more: impl FnOnce(Labels) -> Labels) -> Vec<Labels> {
        let common = more(self.labels.clone());
        if self.users.is_empty() {
            return vec![common];
        }
        let of_user = |user: &User<'_>| {
            let labels = common.clone();
            let labels = match user.container {
                Some(container) => labels.with("container", container),
                None => labels,
            };
            labels.with("namespace", user.namespace).with("pod", user.pod)
        };
        self.users.iter().map(of_user).collect()
    }
}

/// `00000000:10:00.0`, as NVML writes an address that is kept as `0000:10:00.0`.
fn bus_id(address: &str) -> String {
    match address.split_once(':') {
        Some((domain, rest)) => format!("{domain:0>8}:{rest}").to_uppercase(),
        None => address.to_uppercase(),
    }
}

/// Labels of a GPU up to where those of an instance stand.
pub fn of_gpu(gpu: &Gpu) -> Labels {
    let bus_id = gpu.pci_address.as_deref().map(bus_id);
    Labels::default()
        .with("gpu", gpu.index)
        .with("UUID", &gpu.uuid)
        .with("pci_bus_id", bus_id.unwrap_or_default())
        .with("device", format_args!("nvidia{}", gpu.index))
        .with("modelName", gpu.product.as_deref().unwrap_or_default())
}

/// Labels of one of its instances, up to where those of the node stand.
pub fn of_instance(gpu: &Gpu, id: u32, profile: &str) -> Labels {
    of_gpu(gpu)
        .with("GPU_I_PROFILE", instance_profile(profile))
        .with("GPU_I_ID", id)
}

/// The GPU instance's part of a profile: `3g.40gb` of `1c.3g.40gb`.
fn instance_profile(profile: &str) -> &str {
    match profile.split_once('.') {
        Some((first, rest)) if first.ends_with('c') => rest,
        _ => profile,
    }
}

/// Compute instances by GPU instance: readings are those of a GPU instance, and so a series is.
pub fn by_instance(gpu: &Gpu) -> Vec<(u32, Vec<&MigDevice>)> {
    let mut instances: Vec<(u32, Vec<&MigDevice>)> = Vec::new();
    for device in gpu.mig.iter().filter(|mig| mig.enabled).flat_map(|mig| &mig.devices) {
        match instances.iter_mut().find(|(id, _)| *id == device.gpu_instance_id) {
            Some((_, devices)) => devices.push(device),
            None => instances.push((device.gpu_instance_id, vec![device])),
        }
    }
    instances
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_a_series_and_nobody_is_one_too() {
        let gpu = || Labels::default().with("gpu", 0);
        let mut subject = Subject {
            labels: gpu(),
            reading: Reading::default(),
            users: Vec::new(),
        };
        assert_eq!(subject.series(|l| l), vec![gpu()]);
        let two = ["side".to_owned(), "main".to_owned()];
        // The first pod is told of twice, as by two compute instances of one GPU instance.
        subject.users = containers(vec![("ns", "a", &two), ("ns", "b", &[]), ("ns", "a", &two)]);
        let a = |container| gpu().with("xid", 79).with("container", container);
        let of = |labels: Labels, pod| labels.with("namespace", "ns").with("pod", pod);
        assert_eq!(
            subject.series(|l| l.with("xid", 79)),
            vec![of(a("main"), "a"), of(a("side"), "a"), of(gpu().with("xid", 79), "b")]
        );
    }

    #[test]
    fn names_are_written_as_there() {
        for (address, id) in [
            ("0000:10:00.0", "00000000:10:00.0"),
            ("0001:b1:00.0", "00000001:B1:00.0"),
            ("10000:e1:00.0", "00010000:E1:00.0"),
        ] {
            assert_eq!(bus_id(address), id);
        }
        for (profile, instance) in [
            ("1g.10gb", "1g.10gb"),
            ("1g.10gb+me", "1g.10gb+me"),
            ("1c.3g.40gb", "3g.40gb"),
        ] {
            assert_eq!(instance_profile(profile), instance);
        }
    }
}
