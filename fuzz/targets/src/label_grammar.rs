//! Names of hardware into label values and keys.

use berth_core::facts::{
    AmdDriver, AmdGpu, Fabric, Gpu, Mig, MigDevice, NodeFacts, NvidiaDriver, PciFunction, VENDOR_NVIDIA, Vgpu,
};
use berth_core::labels::class_of;
use berth_core::labels::grammar::{is_key, is_value, sanitise, value};

use crate::labels;

/// `data` is a name; or several, a line each, of all that has one.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let gfd = sanitise(&text);
    let ours = value(&text);
    assert!(ours.as_deref().is_none_or(|v| !v.is_empty() && is_value(v)), "{ours:?}");
    if is_value(&gfd) {
        assert_eq!(ours.as_deref().unwrap_or_default(), gfd, "as GFD has it");
    }
    if let Some(ours) = &ours {
        assert_eq!(value(ours).as_ref(), Some(ours), "a value stays as it is");
    }
    let usable = text.chars().any(|c| c.is_ascii_alphanumeric());
    assert_eq!(ours.is_some(), usable, "any letter or digit is enough");

    let class = class_of(&text);
    assert!(is_value(&class), "{class:?}");
    assert!(
        class.is_empty() || is_key(&format!("berth.dev/gpu.{class}.memory")),
        "{class:?}"
    );
    if is_key(&text) {
        let (prefix, name) = text.split_once('/').unwrap_or(("", &text));
        assert!(!name.is_empty() && is_value(name) && prefix.len() <= 253);
    }
    labels::check(&facts(&text));
}

/// A node on which everything that has a name is called something of this.
fn facts(text: &str) -> NodeFacts {
    let mut lines = text.lines().cycle();
    let mut name = || lines.next().unwrap_or_default().to_owned();
    let gpu = |index: u32, product: String, profile: String, cluster_uuid: String| Gpu {
        index,
        uuid: format!("GPU-{index}"),
        pci_address: Some(format!("0000:{index:02x}:00.0")),
        product: Some(product),
        memory_bytes: Some(80 << 30),
        mig: Some(Mig {
            enabled: true,
            pending: true,
            devices: vec![MigDevice {
                uuid: format!("MIG-{index}"),
                profile,
                ..MigDevice::default()
            }],
        }),
        fabric: Some(Fabric {
            state: 3,
            status: 0,
            cluster_uuid,
            clique_id: 7,
        }),
        ..Gpu::default()
    };
    let amd = |index: u16, product: String, partition: String| AmdGpu {
        pci_address: format!("0000:8{index}:00.0"),
        device: index,
        product: Some(product),
        compute_partition: Some(partition.clone()),
        memory_partition: Some(partition.clone()),
        firmware: [(partition, 1)].into(),
        ..AmdGpu::default()
    };
    NodeFacts {
        machine: Some(name()),
        driver: Some(NvidiaDriver {
            version: name(),
            cuda_version: Some(12040),
            nvml_version: None,
            excluded_gpus: None,
        }),
        gpus: vec![gpu(0, name(), name(), name()), gpu(1, name(), name(), name())],
        vgpus: vec![Vgpu {
            pci_address: "0000:00:00.0".into(),
            host_driver_version: Some(name()),
            host_driver_branch: Some(name()),
        }],
        amd_gpus: vec![amd(1, name(), name()), amd(2, name(), name())],
        amd_driver: Some(AmdDriver {
            version: Some(name()),
            source_version: Some(name()),
        }),
        pci: vec![PciFunction {
            address: "0000:00:00.0".into(),
            vendor: VENDOR_NVIDIA,
            device: 0x2330,
            class: 0x03_0200,
            subsystem_vendor: None,
            subsystem_device: None,
            driver: Some(name()),
            numa_node: None,
            sriov_total_vfs: Some(1),
        }],
        ..NodeFacts::default()
    }
}
