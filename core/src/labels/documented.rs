//! `docs/labels.md` against the code: each key that can be written is in a table of the page, and each key of the tables can be written.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::any_facts::{any_facts, any_settings};
use super::{MigStrategy, Settings, grammar, labels};
use crate::facts::{
    AmdDriver, AmdGpu, Fabric, Gpu, IntelGpu, Mig, MigDevice, NodeFacts, NvidiaDriver, PciFunction, VENDOR_AMD,
    VENDOR_INTEL, VENDOR_NVIDIA, Vgpu,
};

const PAGE: &str = include_str!("../../../docs/labels.md");

/// Keys of the tables in the page's sections `On nodes: …`, with `<words>` for what differs from node to node. A table of keys has whole
/// keys, below the prefix that its section names; one of properties or attributes has a part of several keys.
fn documented() -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for section in PAGE.split("\n## ").filter(|s| s.starts_with("On nodes: ")) {
        let prefix = section
            .split_once("Prefix `")
            .and_then(|(_, rest)| rest.split_once('`'))
            .map_or("", |(prefix, _)| prefix);
        let mut table = "";
        for line in section.lines().filter(|l| !l.starts_with("|-")) {
            let Some(cells) = line.strip_prefix("| ") else {
                table = "";
                continue;
            };
            let first = cells.split(" | ").next().unwrap_or_default();
            if table.is_empty() {
                table = first;
                continue;
            }
            let mut last = String::new();
            for name in first.split('`').skip(1).step_by(2) {
                // `.minor` after `cuda.driver.major`.
                last = match (name.starts_with('.'), last.rsplit_once('.')) {
                    (true, Some((head, _))) => format!("{head}{name}"),
                    _ => name.to_owned(),
                };
                match table {
                    "key" => drop(keys.insert(format!("{prefix}{last}"))),
                    "property" => {
                        for domain in ["amd.com", "beta.amd.com"] {
                            keys.insert(format!("{domain}/gpu.{last}"));
                            keys.insert(format!("{domain}/gpu.{last}.<value>"));
                        }
                    }
                    "attribute of MIG devices" => {
                        keys.insert(format!("{prefix}gpu.{last}"));
                        keys.insert(format!("{prefix}mig-<profile>.{last}"));
                    }
                    _ => {}
                }
            }
        }
    }
    keys
}

/// Whether `key` is `pattern` with something for each `<word>`.
fn is(key: &str, pattern: &str) -> bool {
    let Some((before, rest)) = pattern.split_once('<') else {
        return key == pattern;
    };
    let after = rest.split_once('>').map_or("", |(_, after)| after);
    let Some(tail) = key.strip_prefix(before) else {
        return false;
    };
    (1..=tail.len()).any(|at| tail.is_char_boundary(at) && is(&tail[at..], after))
}

fn function(n: usize, vendor: u16, device: u16, class: u32) -> PciFunction {
    PciFunction {
        address: format!("0000:{n:02x}:00.0"),
        vendor,
        device,
        class,
        subsystem_vendor: None,
        subsystem_device: None,
        driver: None,
        numa_node: Some(i32::try_from(n % 2).unwrap_or(0)),
        sriov_total_vfs: Some(8),
    }
}

fn gpu(index: u32, profile: Option<&str>) -> Gpu {
    Gpu {
        index,
        uuid: format!("GPU-{index}"),
        pci_address: Some(format!("0000:{index:02x}:00.0")),
        product: Some("NVIDIA H100 80GB HBM3".into()),
        memory_bytes: Some(80 << 30),
        compute_capability: Some((9, 0)),
        mig: Some(Mig {
            enabled: profile.is_some(),
            pending: false,
            devices: profile
                .map(|profile| MigDevice {
                    uuid: format!("MIG-{index}"),
                    profile: profile.into(),
                    memory_bytes: 10 << 30,
                    ..MigDevice::default()
                })
                .into_iter()
                .collect(),
        }),
        fabric: Some(Fabric {
            state: 3,
            status: 0,
            cluster_uuid: "00000000-0000-0000-0000-000000000001".into(),
            clique_id: 0,
        }),
        ..Gpu::default()
    }
}

fn amd(n: usize, product: &str) -> AmdGpu {
    AmdGpu {
        pci_address: format!("0000:8{n}:00.0"),
        device: 0x7400 + u16::try_from(n).unwrap_or(0),
        product: Some(product.into()),
        vram_bytes: Some((n as u64 + 1) << 30),
        simd_count: Some(1216 * (n as u32 + 1)),
        simd_per_cu: Some(4),
        gfx_target_version: Some(if n == 0 { 90402 } else { 60000 }),
        compute_partition: Some("SPX".into()),
        memory_partition: Some("NPS1".into()),
        firmware: [("MEC".to_owned(), 163)].into(),
        ..AmdGpu::default()
    }
}

/// Nodes that together have everything a key is made of.
fn nodes() -> Vec<(NodeFacts, Settings)> {
    let nvidia = |profile: Option<&str>| NodeFacts {
        pci: vec![function(0, VENDOR_NVIDIA, 0x2330, 0x03_0200)],
        driver: Some(NvidiaDriver {
            version: "550.163.01".into(),
            cuda_version: Some(12040),
            nvml_version: None,
            excluded_gpus: None,
        }),
        gpus: vec![gpu(0, profile), gpu(1, profile)],
        vgpus: vec![Vgpu {
            pci_address: "0000:00:00.0".into(),
            host_driver_version: Some("550.90.05".into()),
            host_driver_branch: Some("r550_00".into()),
        }],
        ..NodeFacts::default()
    };
    let of_amd = |products: &[&str]| NodeFacts {
        pci: vec![function(1, VENDOR_AMD, 0x74a1, 0x12_0000)],
        amd_gpus: products
            .iter()
            .enumerate()
            .map(|(n, product)| amd(n, product))
            .collect(),
        amd_driver: Some(AmdDriver {
            version: Some("6.10.5".into()),
            source_version: Some("1F2A".into()),
        }),
        ..NodeFacts::default()
    };
    let intel = NodeFacts {
        pci: (0..40).map(|n| function(n, VENDOR_INTEL, 0x0bd5, 0x03_8000)).collect(),
        intel_gpus: (0..40_u32)
            .map(|card| IntelGpu {
                pci_address: format!("0000:{card:02x}:00.0"),
                card,
                tiles: 2,
                memory_bytes: Some(64 << 30),
            })
            .collect(),
        ..NodeFacts::default()
    };
    let plugin = |mig_strategy| Settings {
        mig_strategy,
        timestamp: Some(1),
        ..Settings::default()
    };
    vec![
        (nvidia(None), plugin(MigStrategy::None)),
        (nvidia(Some("1g.10gb")), plugin(MigStrategy::Single)),
        (nvidia(Some("1g.10gb")), plugin(MigStrategy::Mixed)),
        (of_amd(&["MI300X"]), Settings::default()),
        (of_amd(&["MI300X", "MI100"]), Settings::default()),
        (intel, Settings::default()),
    ]
}

#[test]
fn every_key_of_the_page_can_be_written() {
    let written: BTreeSet<String> = nodes()
        .iter()
        .flat_map(|(facts, settings)| labels(facts, settings).into_keys())
        .collect();
    let pages = documented();
    assert!(pages.len() > 80, "the page was not understood: {pages:?}");
    for pattern in &pages {
        assert!(
            written.iter().any(|key| is(key, pattern)),
            "{pattern} is in docs/labels.md, and nothing writes it"
        );
    }
}

fn check(found: &BTreeMap<String, String>, pages: &BTreeSet<String>) {
    for (key, value) in found {
        assert!(grammar::is_key(key) && grammar::is_value(value), "{key:?}={value:?}");
        assert!(
            pages.iter().any(|pattern| is(key, pattern)),
            "{key} is written, and not in docs/labels.md"
        );
    }
}

#[test]
fn every_key_that_is_written_is_on_the_page() {
    let pages = documented();
    for (facts, settings) in nodes() {
        check(&labels(&facts, &settings), &pages);
    }
}

proptest! {
    /// Any facts under any settings: valid keys and values, all of them on the page, and the same in any order of the lists.
    #[test]
    fn any_facts_make_valid_labels_in_any_order(facts in any_facts(), settings in any_settings(), turns in 1..5_usize) {
        let found = labels(&facts, &settings);
        check(&found, &documented());
        let mut other = facts;
        macro_rules! turn {
            ($($list:ident),*) => { $({
                other.$list.reverse();
                let by = turns.min(other.$list.len());
                other.$list.rotate_left(by);
            })* };
        }
        turn!(pci, gpus, vgpus, amd_gpus, intel_gpus);
        prop_assert_eq!(labels(&other, &settings), found);
    }
}

#[test]
fn a_key_is_told_from_others_of_its_kind() {
    for (key, pattern, same) in [
        ("nvidia.com/gpu.count", "nvidia.com/gpu.count", true),
        ("nvidia.com/gpu.counts", "nvidia.com/gpu.count", false),
        (
            "nvidia.com/mig-1g.10gb.me.count",
            "nvidia.com/mig-<profile>.count",
            true,
        ),
        ("nvidia.com/mig-.count", "nvidia.com/mig-<profile>.count", false),
        (
            "a/device-id.0380-0bd5.count",
            "a/device-id.<class>-<device>.count",
            true,
        ),
        (
            "a/device-id.0380-0bd5.counted",
            "a/device-id.<class>-<device>.count",
            false,
        ),
    ] {
        assert_eq!(is(key, pattern), same, "{key} {pattern}");
    }
}
