use super::*;
use crate::facts::{Gpu, Mig, MigDevice, PodShare, PodUse};

pub fn gpu(index: u32, uuid: &str, minor: u32) -> Gpu {
    Gpu {
        index,
        uuid: uuid.into(),
        minor_number: Some(minor),
        ..Gpu::default()
    }
}

pub fn mig_gpu(index: u32, uuid: &str, minor: u32, devices: &[(&str, u32, u32)]) -> Gpu {
    let device = |(uuid, gi, ci): &(&str, u32, u32)| MigDevice {
        uuid: (*uuid).into(),
        gpu_instance_id: *gi,
        compute_instance_id: *ci,
        ..MigDevice::default()
    };
    Gpu {
        mig: Some(Mig {
            enabled: true,
            pending: true,
            devices: devices.iter().map(device).collect(),
        }),
        ..gpu(index, uuid, minor)
    }
}

const GPU: &str = "nvidia.com/gpu";

fn pod(name: &str) -> PodName {
    PodName {
        namespace: "ml".into(),
        name: name.into(),
    }
}

fn unit(resource: &str, id: &str) -> PluginDevice {
    PluginDevice {
        resource: resource.into(),
        id: id.into(),
    }
}

fn held(name: &str, container: &str, resource: &str, id: &str) -> Held {
    Held {
        pod: pod(name),
        container: container.into(),
        device: HeldDevice::Plugin(unit(resource, id)),
    }
}

fn offers(units: &[(&str, &str)]) -> Option<BTreeSet<PluginDevice>> {
    Some(units.iter().map(|(resource, id)| unit(resource, id)).collect())
}

fn process(gpu: &str, uid: &str, name: Option<&str>, memory: Option<u64>) -> Process {
    Process {
        gpu: gpu.into(),
        instance: None,
        pod_uid: uid.into(),
        pod: name.map(pod),
        memory_bytes: memory,
    }
}

/// `name[uid] share containers memory`, of each pod.
fn shown(device: &Device) -> Vec<String> {
    let show = |u: &PodUse| {
        let name = u.pod.as_ref().map_or("?", |p| &p.name);
        let uid = u.uid.as_deref().unwrap_or("?");
        format!("{name}[{uid}] {:?} {:?} {:?}", u.share, u.containers, u.memory_bytes)
    };
    device.pods.iter().map(show).collect()
}

#[test]
fn a_whole_gpu_has_one_pod_once() {
    let gpus = [gpu(0, "GPU-a", 0), gpu(1, "GPU-b", 1)];
    let kubelet = Kubelet {
        // Once for each NUMA node.
        held: vec![held("x", "c", GPU, "GPU-a"), held("x", "c", GPU, "GPU-a")],
        allocatable: offers(&[(GPU, "GPU-a"), (GPU, "GPU-b")]),
    };
    let joined = join(&gpus, Some(&kubelet), &[]);
    assert_eq!(shown(&joined.devices["GPU-a"]), [r#"x[?] Whole ["c"] None"#]);
    assert_eq!(joined.devices["GPU-a"].units_left, Some(0));
    assert_eq!(shown(&joined.devices["GPU-b"]), [""; 0]);
    assert_eq!(joined.devices["GPU-b"].units_left, Some(1));
}

#[test]
fn pods_on_a_shared_gpu_have_memory_each_by_their_processes() {
    let gpus = [gpu(0, "GPU-a", 0)];
    let kubelet = Kubelet {
        held: vec![
            held("x", "c", GPU, "GPU-a::0"),
            held("y", "d", GPU, "GPU-a::1"),
            held("y", "c", GPU, "GPU-a::2"),
        ],
        allocatable: offers(&[
            (GPU, "GPU-a::0"),
            (GPU, "GPU-a::1"),
            (GPU, "GPU-a::2"),
            (GPU, "GPU-a::3"),
        ]),
    };
    let processes = [
        process("GPU-a", "u-x", Some("x"), Some(1)),
        process("GPU-a", "u-x", Some("x"), Some(2)),
        process("GPU-a", "u-y", Some("y"), Some(4)),
        process("GPU-a", "u-y", Some("y"), None),
        // Sees all GPUs and was given none.
        process("GPU-a", "u-z", Some("z"), Some(8)),
        process("GPU-a", "u-?", None, Some(16)),
        process("GPU-gone", "u-x", Some("x"), Some(32)),
    ];
    let joined = join(&gpus, Some(&kubelet), &processes);
    let mut got = shown(&joined.devices["GPU-a"]);
    got.sort();
    assert_eq!(
        got,
        [
            r#"?[u-?] Process [] Some(16)"#,
            r#"x[u-x] Replica ["c"] Some(3)"#,
            r#"y[u-y] Replica ["c", "d"] None"#,
            r#"z[u-z] Process [] Some(8)"#,
        ]
    );
    assert_eq!(joined.devices["GPU-a"].units_left, Some(1));
    // Without the kubelet only what runs is seen, and nobody knows what is left.
    let alone = join(&gpus, None, &processes[..1]);
    assert_eq!(shown(&alone.devices["GPU-a"]), [r#"x[u-x] Process [] Some(1)"#]);
    assert_eq!(alone.devices["GPU-a"].units_left, None);
}

#[test]
fn slices_are_their_own_devices_and_count_for_their_gpu() {
    let gpus = [mig_gpu(0, "GPU-a", 0, &[("MIG-1", 1, 0), ("MIG-2", 2, 0)])];
    let mig = "nvidia.com/mig-1g.10gb";
    let kubelet = Kubelet {
        held: vec![held("x", "c", mig, "MIG-1")],
        allocatable: offers(&[(mig, "MIG-1"), (mig, "MIG-2")]),
    };
    let mut running = process("GPU-a", "u-x", Some("x"), Some(5));
    running.instance = Some((1, 0));
    let joined = join(&gpus, Some(&kubelet), &[running]);
    assert_eq!(shown(&joined.devices["MIG-1"]), [r#"x[u-x] Whole ["c"] Some(5)"#]);
    assert_eq!(shown(&joined.devices["GPU-a"]), [""; 0], "not said twice");
    let left = |uuid: &str| joined.devices[uuid].units_left;
    assert_eq!(
        (left("GPU-a"), left("MIG-1"), left("MIG-2")),
        (Some(1), Some(0), Some(1))
    );
}

#[test]
fn what_cannot_be_told_is_said_and_nothing_is_claimed_to_be_left() {
    let gpus = [gpu(0, "GPU-a", 0)];
    let claim = |device: &str| Held {
        pod: pod("d"),
        container: "c".into(),
        device: HeldDevice::Claim(ClaimDevice {
            driver: DRA_DRIVER.into(),
            pool: "n1".into(),
            device: device.into(),
        }),
    };
    let all = offers(&[(GPU, "GPU-a")]);
    let of = |held: Vec<Held>, allocatable| {
        let joined = join(&gpus, Some(&Kubelet { held, allocatable }), &[]);
        let unresolved: Vec<String> = joined.unresolved.iter().cloned().collect();
        (unresolved.join(";"), joined.devices["GPU-a"].units_left)
    };
    assert_eq!(of(vec![], all.clone()), (String::new(), Some(1)));
    assert_eq!(of(vec![], None), (String::new(), None), "a kubelet that does not tell");
    assert_eq!(of(vec![], offers(&[])), (String::new(), None), "a plugin that starts");
    let gone = || vec![held("x", "c", GPU, "GPU-gone")];
    assert_eq!(of(gone(), all.clone()), ("nvidia.com/gpu GPU-gone".into(), None));
    let nic = vec![held("x", "c", "nvidia.com/hostdev", "0000:3b:00.0")];
    assert_eq!(of(nic, all.clone()), (String::new(), Some(1)), "not a GPU");
    let slice = vec![claim("gpu-0-mig-19-4-1")];
    assert_eq!(of(slice, all.clone()).0, "gpu.nvidia.com n1/gpu-0-mig-19-4-1");
    let joined = join(
        &gpus,
        Some(&Kubelet {
            held: vec![claim("gpu-0")],
            allocatable: all,
        }),
        &[],
    );
    assert_eq!(joined.devices["GPU-a"].pods[0].share, PodShare::Claim);
}
