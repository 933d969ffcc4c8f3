//! Writes the inputs that fuzzing starts from: one of each kind that is real, and one of each that is known to be trouble.
//!
//! `cargo run -p berth-fuzz-targets --example seeds`
#![allow(clippy::unwrap_used)]

use berth_fuzz_targets::corpus;
use berth_proto::probe::v1 as probe;
use berth_proto::v1;
use prost::Message;

fn main() {
    agent_message();
    probe_replies();
    sysfs();
    vgpu();
    kernel_log();
    label_grammar();
    device_plugin();
}

fn write(target: &str, name: &str, input: impl AsRef<[u8]>) {
    let folder = corpus::folder(target);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), input).unwrap();
}

fn gpu(index: u32, product: &str) -> v1::Gpu {
    v1::Gpu {
        index,
        uuid: format!("GPU-0000000{index}-1111-2222-3333-444444444444"),
        pci_address: Some(format!("0000:{index:02x}:00.0")),
        product: Some(product.into()),
        memory_bytes: Some(80 << 30),
        compute_major: Some(9),
        compute_minor: Some(0),
        mig: Some(v1::Mig::default()),
        fabric: Some(v1::Fabric {
            state: 3,
            status: 0,
            cluster_uuid: "00000000-0000-0000-0000-000000000001".into(),
            clique_id: 0,
        }),
        serial: Some("1650523004242".into()),
        vbios: Some("96.00.89.00.01".into()),
        minor_number: Some(index),
    }
}

fn sliced(index: u32) -> v1::Gpu {
    v1::Gpu {
        mig: Some(v1::Mig {
            enabled: true,
            pending: true,
            devices: vec![v1::MigDevice {
                uuid: format!("MIG-{index}"),
                profile: "1g.10gb+me".into(),
                memory_bytes: 9984 << 20,
                multiprocessors: 16,
                ..v1::MigDevice::default()
            }],
        }),
        ..gpu(index, "NVIDIA A100-SXM4-40GB")
    }
}

fn driver() -> v1::NvidiaDriver {
    v1::NvidiaDriver {
        version: "550.163.01".into(),
        cuda_version: Some(12040),
        nvml_version: Some("12.550.163.01".into()),
        excluded_gpus: Some(1),
    }
}

fn function(address: &str, vendor: u32, device: u32, class: u32, driver: &str) -> v1::PciFunction {
    v1::PciFunction {
        address: address.into(),
        vendor,
        device,
        class,
        driver: Some(driver.into()),
        numa_node: Some(1),
        sriov_total_vfs: Some(16),
        ..v1::PciFunction::default()
    }
}

fn sample(uuid: &str) -> v1::GpuSample {
    v1::GpuSample {
        uuid: uuid.into(),
        age_ms: 12,
        gpu_utilization: Some(97),
        memory_used_bytes: Some(70 << 30),
        memory_free_bytes: Some(10 << 30),
        memory_total_bytes: Some(80 << 30),
        clocks_event_reasons: Some(0x4c),
        pods: vec![v1::PodUse {
            namespace: Some("shop".into()),
            name: Some("phi-0".into()),
            containers: vec!["engine".into()],
            memory_bytes: Some(u64::MAX),
            share: v1::PodShare::Replica.into(),
            ..v1::PodUse::default()
        }],
        pods_state: v1::PodsState::Known.into(),
        pods_age_ms: Some(u64::MAX),
        tensor_active_ppm: Some(u32::MAX),
        ..v1::GpuSample::default()
    }
}

fn xid(number: u64, detail: &str) -> v1::GpuEvent {
    v1::GpuEvent {
        kind: Some(v1::gpu_event::Kind::Xid(number)),
        pci_address: Some("0000:00:00".into()),
        source: "kmsg".into(),
        detail: detail.into(),
        ..v1::GpuEvent::default()
    }
}

fn agent_message() {
    use v1::agent_message::Body;
    let stream = |bodies: Vec<Body>| {
        let mut bytes = Vec::new();
        for (seq, body) in (1..).zip(bodies) {
            let message = v1::AgentMessage { seq, body: Some(body) };
            message.encode_length_delimited(&mut bytes).unwrap();
        }
        bytes
    };
    let hello = || {
        Body::Hello(v1::Hello {
            protocol_min: 1,
            protocol_max: 1,
            agent_version: "0.1.0".into(),
        })
    };
    let facts = |gpus: Vec<v1::Gpu>| v1::NodeFacts {
        machine: Some("PowerEdge XE9680".into()),
        pci: vec![
            function("0000:00:00.0", 0x10de, 0x2330, 0x03_0200, "nvidia"),
            function("0000:01:00.0", 0x10de, 0x2330, 0x03_0200, "nvidia"),
        ],
        nvml_state: v1::NvmlState::Ready.into(),
        driver: Some(driver()),
        gpus,
        gpus_age_ms: Some(40),
        kernel_driver_version: Some("550.163.01".into()),
        ..v1::NodeFacts::default()
    };
    let others = v1::NodeFacts {
        pci: vec![
            function("0000:05:00.0", 0x1002, 0x74a1, 0x12_0000, "amdgpu"),
            function("0000:3a:00.0", 0x8086, 0x0bd5, 0x03_8000, "i915"),
        ],
        amd_gpus: vec![v1::AmdGpu {
            pci_address: "0000:05:00.0".into(),
            device: 0x74a1,
            product: Some("AMD Instinct MI300X OAM".into()),
            vram_bytes: Some(u64::MAX),
            simd_count: Some(1216),
            simd_per_cu: Some(4),
            firmware: [("MEC".to_owned(), 163)].into(),
            ..v1::AmdGpu::default()
        }],
        intel_gpus: vec![v1::IntelGpu {
            pci_address: "0000:3a:00.0".into(),
            card: 1,
            tiles: 2,
            memory_bytes: Some(u64::MAX),
        }],
        ..v1::NodeFacts::default()
    };
    let uuid = gpu(0, "").uuid;
    let health = v1::NodeHealth {
        gpus: vec![v1::GpuHealth {
            uuid: uuid.clone(),
            state: v1::GpuState::Suspect.into(),
            reason: "Throttled".into(),
            message: "hot".into(),
            since_ms: 5,
            cleared_by: None,
            gpu: None,
        }],
        ..v1::NodeHealth::default()
    };
    let events = v1::GpuEvents {
        events: vec![xid(79, "GPU has fallen off the bus."), xid(31, "")],
        lost: 1,
    };
    let samples = v1::Samples {
        gpus: vec![sample(&uuid)],
    };
    let two = vec![gpu(0, "NVIDIA H100 80GB HBM3"), sliced(1)];
    write(
        "agent_message",
        "session",
        stream(vec![
            hello(),
            Body::Inventory(facts(two)),
            Body::Health(health),
            Body::Events(events),
            Body::Samples(samples),
            Body::Renew(v1::Renew { token: "ey.J.x".into() }),
        ]),
    );
    write(
        "agent_message",
        "other-vendors",
        stream(vec![hello(), Body::Inventory(others)]),
    );
    let hostile = v1::Samples {
        gpus: vec![
            v1::GpuSample {
                age_ms: u64::MAX,
                ..sample("GPU-x")
            },
            sample(""),
        ],
    };
    let absurd = v1::Gpu {
        compute_major: Some(u32::MAX),
        memory_bytes: Some(u64::MAX),
        ..gpu(u32::MAX, "-\u{fc}-")
    };
    write(
        "agent_message",
        "absurd-numbers",
        stream(vec![
            hello(),
            Body::Samples(hostile),
            Body::Inventory(v1::NodeFacts {
                gpus_age_ms: Some(u64::MAX),
                ..facts(vec![absurd])
            }),
        ]),
    );
    write(
        "agent_message",
        "out-of-order",
        stream(vec![Body::Samples(v1::Samples::default()), hello(), hello()]),
    );
}

fn probe_replies() {
    fn say(bytes: &mut Vec<u8>, kind: u8, reply: &impl Message) {
        bytes.push(kind);
        reply.encode_length_delimited(bytes).unwrap();
    }
    let inventory = |gpus: Vec<v1::Gpu>, state: v1::NvmlState| probe::InventoryReply {
        state: state.into(),
        driver: Some(driver()),
        gpus,
        library: Some("/usr/lib64/libnvidia-ml.so.1".into()),
        vgpus: vec![v1::Vgpu {
            pci_address: "0000:00:00.0".into(),
            host_driver_version: Some("550.90.05".into()),
            host_driver_branch: Some("r550_00".into()),
        }],
        ..probe::InventoryReply::default()
    };
    let ready = v1::NvmlState::Ready;
    let gpus = || vec![gpu(0, "NVIDIA H100 80GB HBM3"), sliced(1)];
    let uuid = gpu(0, "").uuid;
    let samples = probe::SampleReply {
        state: ready.into(),
        gpus: vec![sample(&uuid), sample("GPU-unknown")],
        lost: vec![probe::LostGpu {
            uuid: uuid.clone(),
            error: "NVML_ERROR_GPU_IS_LOST".into(),
        }],
        ..probe::SampleReply::default()
    };
    let checks = |n: u64| probe::ChecksReply {
        state: ready.into(),
        gpus: vec![probe::GpuChecks {
            uuid: uuid.clone(),
            recovery_action: Some(u32::try_from(n & 7).unwrap()),
            ecc_uncorrected_volatile: Some(n),
            sram_threshold_exceeded: Some(false),
            remapped_rows: Some(probe::RemappedRows::default()),
            retired_pages: Some(3),
            nvlinks_up: Some(18),
            nvlink_crc_errors: Some(n),
            pcie_width: Some(16),
            pcie_max_width: Some(16),
            pcie_replays: Some(n),
            inforom_valid: Some(true),
            ..probe::GpuChecks::default()
        }],
        ..probe::ChecksReply::default()
    };
    let event = |event: v1::GpuEvent| probe::EventsReply {
        body: Some(probe::events_reply::Body::Event(event)),
    };
    let state = |state: v1::NvmlState| probe::EventsReply {
        body: Some(probe::events_reply::Body::State(probe::StateChange {
            state: state.into(),
            message: "nvmlDeviceGetName has not come back".into(),
        })),
    };

    let mut quiet = Vec::new();
    say(&mut quiet, 0, &inventory(gpus(), ready));
    say(&mut quiet, 2, &checks(0));
    say(&mut quiet, 1, &samples);
    write("probe_replies", "quiet", &quiet);

    let mut faults = Vec::new();
    say(&mut faults, 3, &event(xid(79, "before any inventory")));
    say(&mut faults, 0, &inventory(gpus(), ready));
    say(
        &mut faults,
        3,
        &event(xid(
            154,
            "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
        )),
    );
    say(&mut faults, 2, &checks(u64::MAX));
    say(&mut faults, 3, &state(v1::NvmlState::Hung));
    say(&mut faults, 0, &inventory(vec![sliced(1)], ready));
    say(&mut faults, 3, &state(v1::NvmlState::NoDriver));
    say(&mut faults, 0, &inventory(gpus(), ready));
    write("probe_replies", "faults", &faults);

    let mut odd = Vec::new();
    say(
        &mut odd,
        0,
        &inventory(vec![gpu(0, "a"), gpu(0, "b")], v1::NvmlState::Unspecified),
    );
    say(&mut odd, 3, &probe::EventsReply::default());
    say(
        &mut odd,
        3,
        &event(v1::GpuEvent {
            age_ms: u64::MAX,
            ..xid(u64::MAX, "")
        }),
    );
    write("probe_replies", "odd", &odd);
}

fn sysfs() {
    let nvidia = "bus/pci/devices/0000:1b:00.0";
    write(
        "sysfs",
        "nvidia",
        format!(
            "class/dmi/id/product_name DGX H100\n{nvidia}/class 0x030200\n{nvidia}/vendor 0x10de\n{nvidia}/device 0x2330\n\
             {nvidia}/subsystem_vendor 0x10de\n{nvidia}/subsystem_device 0x16c1\n{nvidia}/numa_node 1\n{nvidia}/sriov_totalvfs 16\n\
             {nvidia}/driver -> ../../../bus/pci/drivers/nvidia\nmodule/nvidia/version 550.163.01\n"
        ),
    );
    let amd = "bus/pci/devices/0000:05:00.0";
    let node = "class/kfd/kfd/topology/nodes/1";
    write(
        "sysfs",
        "amd",
        format!(
            "{amd}/class 0x120000\n{amd}/vendor 0x1002\n{amd}/device 0x74a1\n{amd}/driver -> drivers/amdgpu\n\
             {amd}/product_name AMD Instinct MI300X OAM\n{amd}/mem_info_vram_total 206141652992\n{amd}/drm/renderD128/dev 226:128\n\
             {amd}/current_compute_partition SPX\n{amd}/available_compute_partition SPX, CPX\n{amd}/current_memory_partition NPS1\n\
             {amd}/fw_version/mec_fw_version 0x000000a3\n{amd}/fw_version/sdma_fw_version 0x00000012\n\
             {node}/properties cpu_cores_count 0\\nsimd_count 1216\\nsimd_per_cu 4\\ngfx_target_version 90402\\ndrm_render_minor 128\n\
             {node}/mem_banks/0/properties heap_type 1\\nsize_in_bytes 205520896000\nmodule/amdgpu/version 6.10.5\n\
             module/amdgpu/srcversion 1F2A6E0B6C2E3A7D9F4B1C0\n"
        ),
    );
    let i915 = "bus/pci/devices/0000:3a:00.0";
    let xe = "bus/pci/devices/0000:3b:00.0";
    write(
        "sysfs",
        "intel",
        format!(
            "{i915}/class 0x038000\n{i915}/vendor 0x8086\n{i915}/device 0x0bd5\n{i915}/driver -> drivers/i915\n\
             {i915}/drm/card0/gt/gt0/id 0\n{i915}/drm/card0/gt/gt1/id 1\n{i915}/drm/card0/lmem_total_bytes 68719476736\n{i915}/numa_node 0\n\
             {xe}/class 0x038000\n{xe}/vendor 0x8086\n{xe}/device 0x56c0\n{xe}/driver -> drivers/xe\n{xe}/drm/card1/dev 226:1\n{xe}/tile0/id 0\n"
        ),
    );
    write(
        "sysfs",
        "odd",
        format!(
            "{amd}/class 0x120000\n{amd}/vendor 0x1002\n{amd}/device 0x74a1\n{amd}/driver -> amdgpu\n{amd}/mem_info_vram_total 18446744073709551615\n\
             {i915}/class 0xffffffff\n{xe}/class 0x038000\n{xe}/vendor 0x8086\n{xe}/device 0x0bd5\n{xe}/driver -> xe\n{xe}/drm/card4294967295/lmem_total_bytes 18446744073709551615\n\
             bus/pci/devices/0000:3c:00.0/class 0x030000\nbus/pci/devices/0000:3c:00.0/vendor 0x100010de\n"
        ),
    );
}

fn vgpu() {
    let mut guest = vec![0; 256];
    guest[..4].copy_from_slice(&[0xde, 0x10, 0x30, 0x23]);
    (guest[0x06], guest[0x34]) = (0x10, 0x40);
    guest[0x40..0x43].copy_from_slice(&[0x01, 0xd0, 0]);
    let capability = b"\x09\x00\x1bVF\x00\x16550.90.05\0r550_00\0\0\0";
    guest[0xd0..0xd0 + capability.len()].copy_from_slice(capability);
    write("vgpu", "guest", &guest);
    write("vgpu", "unprivileged", &guest[..64]);
    write("vgpu", "fallen-off-the-bus", [0xff; 256]);
    let mut circle = guest.clone();
    circle[0x41] = 0x40;
    write("vgpu", "circle", &circle);
    let mut at_the_end = guest.clone();
    at_the_end[0x41] = 0xfc;
    at_the_end[0xfc..].copy_from_slice(&[0x09, 0, 0xff, b'V']);
    write("vgpu", "at-the-end", &at_the_end);
}

fn kernel_log() {
    write(
        "kernel_log",
        "xids",
        "5,1,1,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8 12:41:17 UTC 2025\n\
         4,1234,98765432,-;NVRM: Xid (PCI:0000:3B:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n SUBSYSTEM=pci\n DEVICE=+pci:0000:3b:00.0\n\
         4,1235,98765433,-;NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)\n\
         4,1236,98765434,c;NVRM: Xid (PCI:0000:3b:00.0): 13\n12,1,1,-;NVRM: Xid (PCI:0000:3b:00): 79, forged\n",
    );
    write(
        "kernel_log",
        "others",
        "6,339,5140900,-;usb 1-1: new device\n30,340,5690716,-;systemd[1]: Started.\n4,1;NVRM: Xid (\n4,1,1,-;NVRM: Xid (PCI:x): 99999999999999999999\n",
    );
    write("kernel_log", "no-text", b"\x80\n4,1,1,-;NVRM: Xid (PCI:0000:3b:00): 94, \xff\xfe\xc3\n4,18446744073709551615,18446744073709551615,-;NVRM: Xid (PCI:00000000:00000000:00000000): 1\n");
    let mut long = b"4,1,1,-;NVRM: Xid (PCI:0000:3b:00): 94, ".to_vec();
    long.extend("é".repeat(5000).bytes());
    long.push(b'\n');
    write("kernel_log", "long", long);
}

fn label_grammar() {
    for (name, text) in [
        ("gfd", "NVIDIA H100 80GB HBM3"),
        ("odd", " -odd  name (tm). "),
        (
            "long",
            "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition with a very long name that does not fit-",
        ),
        ("separators", "..--__"),
        ("not-ascii", "日本 GPU \u{fc}\u{2003}x"),
        ("key", "nvidia.com/gpu.product"),
        (
            "node",
            "PowerEdge (tm)\n550.163.01\nNVIDIA A100-SXM4-40GB\n1g.10gb+me\n00000000-0000-0000-0000-000000000001\nTesla T4\n1c.3g.20gb\n0\n550.90.05\nr550_00\nAMD Instinct\u{ae} MI300X\nSPX\n",
        ),
    ] {
        write("label_grammar", name, text);
    }
}

fn device_plugin() {
    for (name, text) in [
        (
            "time-slicing",
            "version: v1\nflags:\n  migStrategy: mixed\n  failOnInitError: true\nsharing:\n  timeSlicing:\n    renameByDefault: false\n    resources:\n    - name: nvidia.com/gpu\n      replicas: 10\n    - name: mig-1g.10gb\n      replicas: 2\n      rename: nvidia.com/mig-shared\n",
        ),
        (
            "mps",
            r#"{"version":"v1","flags":{"migStrategy":"single"},"sharing":{"mps":{"renameByDefault":true,"resources":[{"name":"gpu","replicas":4294967295}]}}}"#,
        ),
        (
            "aliases",
            "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nversion: v1\n",
        ),
        ("circle", "version: v1\nsharing: &s\n  mps: *s\n"),
        ("wrong", "version: v2\nflags: [migStrategy]\nsharing: !!binary abc\n"),
    ] {
        write("device_plugin", name, text);
    }
    write("device_plugin", "deep", "[".repeat(3000));
}
