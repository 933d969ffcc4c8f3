//! Which pod a process belongs to, by its cgroup.

/// UID of the pod in the text of `/proc/<pid>/cgroup`; `None`: the process is in no pod.
///
/// The kubelet names a pod's cgroup by its UID, whatever runs the containers: `…/pod<uid>/<container>` with the driver cgroupfs,
/// `…/kubepods-burstable-pod<uid>.slice/cri-containerd-<container>.scope` with systemd, which has `_` for `-`. From within a cgroup
/// namespace the path begins with `/../..`. Of nested clusters the outermost pod is this kubelet's.
pub fn pod_uid(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        // hierarchy:controllers:path, and a path may hold colons.
        let path = line.splitn(3, ':').nth(2)?;
        path.split('/').find_map(uid_in)
    })
}

/// `pod<uid>`, `kubepods-burstable-pod<uid>.slice`, and with a container: `kubepods-pod<uid>.slice:cri-containerd:<container>`.
fn uid_in(component: &str) -> Option<String> {
    let slice = component.split(':').next()?;
    let slice = slice.strip_suffix(".slice").unwrap_or(slice);
    let (before, uid) = slice.rsplit_once("pod")?;
    if !(before.is_empty() || before.ends_with('-')) {
        return None;
    }
    let uid = uid.replace('_', "-");
    is_uid(&uid).then_some(uid)
}

/// A UUID, or the hash that a static pod has in place of one.
fn is_uid(text: &str) -> bool {
    let hex = |part: &str, len: usize| part.len() == len && part.bytes().all(|b| b.is_ascii_hexdigit());
    let parts: Vec<&str> = text.split('-').collect();
    match parts.as_slice() {
        [hash] => hex(hash, 32),
        [a, b, c, d, e] => hex(a, 8) && hex(b, 4) && hex(c, 4) && hex(d, 4) && hex(e, 12),
        _ => false,
    }
}

/// Namespace, name and UID of a pod by the folder of its logs, `<namespace>_<name>_<uid>`: none of the three can hold a `_`.
pub fn log_folder(name: &str) -> Option<(crate::facts::PodName, &str)> {
    let (rest, uid) = name.rsplit_once('_')?;
    let (namespace, name) = rest.split_once('_')?;
    let valid = !namespace.is_empty() && !name.is_empty() && !name.contains('_') && is_uid(uid);
    valid.then(|| {
        let pod = crate::facts::PodName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        (pod, uid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "3f6b1c1e-7a4d-4c55-9f0e-2b8a4d1c9e77";
    const ID: &str = "5b0c1a3f7e9d2b4c6a8e0f1d3b5c7a9e1f3d5b7c9a1e3f5d7b9c1a3e5f7d9b1c";

    #[test]
    fn the_pod_of_a_cgroup() {
        let under = UID.replace('-', "_");
        let table = [
            (
                "v2 systemd containerd",
                format!(
                    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-{ID}.scope\n"
                ),
            ),
            (
                "v2 systemd guaranteed cri-o",
                format!("0::/kubepods.slice/kubepods-pod{under}.slice/crio-{ID}.scope/container\n"),
            ),
            ("v2 cgroupfs", format!("0::/kubepods/besteffort/pod{UID}/{ID}\n")),
            (
                "v2 systemd docker",
                format!(
                    "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/docker-{ID}.scope\n"
                ),
            ),
            (
                "v1 cgroupfs docker",
                format!(
                    "12:pids:/kubepods/burstable/pod{UID}/{ID}\n4:memory:/kubepods/burstable/pod{UID}/{ID}\n1:name=systemd:/kubepods/burstable/pod{UID}/{ID}\n"
                ),
            ),
            (
                "v1, some hierarchies at the root",
                format!(
                    "13:misc:/\n3:devices:/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-{ID}.scope\n0::/\n"
                ),
            ),
            (
                "v1 containerd below a systemd slice",
                format!(
                    "5:devices:/system.slice/containerd.service/kubepods-burstable-pod{under}.slice:cri-containerd:{ID}\n"
                ),
            ),
            (
                "of a cgroup namespace",
                format!("0::/../../kubepods-burstable-pod{under}.slice/cri-containerd-{ID}.scope\n"),
            ),
            ("of a cgroup namespace, cgroupfs", format!("0::/../../pod{UID}/{ID}\n")),
            (
                "kind",
                format!(
                    "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{under}.slice/cri-containerd-{ID}.scope\n"
                ),
            ),
            (
                "a cluster within a pod",
                format!("0::/kubepods/burstable/pod{UID}/{ID}/kubepods/pod00000000-0000-0000-0000-000000000000/x\n"),
            ),
        ];
        for (what, text) in table {
            assert_eq!(pod_uid(&text).as_deref(), Some(UID), "{what}");
        }
        let hash = "0123456789abcdef0123456789abcdef";
        assert_eq!(pod_uid(&format!("0::/kubepods/pod{hash}/{ID}")).as_deref(), Some(hash));
    }

    #[test]
    fn what_is_in_no_pod() {
        for text in [
            String::new(),
            "0::/\n".into(),
            "0::/system.slice/kubelet.service\n".into(),
            format!("0::/system.slice/docker-{ID}.scope\n"),
            format!("0::/machine.slice/libpod-{ID}.scope/container\n"),
            format!("0::/machine.slice/machine-libpod_pod_{ID}.slice/x\n"),
            "0::/kubepods.slice/kubepods-burstable.slice\n".into(),
            "0::/kubepods/burstable/podcast/x\n".into(),
            format!("0::/user.slice/tripod{UID}\n"),
            "garbage".into(),
        ] {
            assert_eq!(pod_uid(&text), None, "{text}");
        }
    }

    #[test]
    fn a_folder_of_logs_names_the_pod() {
        let folder = format!("ml_llama-0_{UID}");
        let (pod, uid) = log_folder(&folder).unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str(), uid), ("ml", "llama-0", UID));
        for name in [
            "",
            "ml",
            "ml_llama",
            "ml_llama_7",
            &format!("a_b_c_{UID}"),
            &format!("_x_{UID}"),
        ] {
            assert_eq!(log_folder(name), None, "{name}");
        }
    }
}
