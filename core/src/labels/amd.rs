//! The keys of AMD's node labeller, from sysfs alone.
//!
//! A property has one value only where all GPUs agree; where they do not, there is a count for each value. The keys under
//! `beta.amd.com` always have the counts too.

use std::collections::BTreeMap;

use super::grammar;
use crate::facts::{AmdGpu, NodeFacts};

/// Longest property value: it is the end of a key's name part.
const LONGEST: usize = grammar::MAX_VALUE - "gpu.product-name.".len();
/// Bytes in a GiB.
const GIB: u64 = 1 << 30;

/// Names of parts by PCI device id, for boards that do not tell theirs.
const PARTS: &[(u16, &str)] = &[
    (0x738c, "AMD Instinct MI100"),
    (0x7408, "AMD Instinct MI250X"),
    (0x740f, "AMD Instinct MI210"),
    (0x74a0, "AMD Instinct MI300A"),
    (0x74a1, "AMD Instinct MI300X"),
    (0x74a2, "AMD Instinct MI308X"),
    (0x74a5, "AMD Instinct MI325X"),
    (0x75a0, "AMD Instinct MI350X"),
    (0x75a3, "AMD Instinct MI355X"),
];

/// Parts with firmware that the labeller tells of.
const FIRMWARE: [&str; 10] = ["VCE", "UVD", "MC", "ME", "PFP", "CE", "RLC", "MEC", "SMC", "SDMA0"];

type Labels = BTreeMap<String, String>;
/// A property's name, and what a GPU has of it.
type Property = (&'static str, fn(&AmdGpu) -> Option<String>);

const PROPERTIES: &[Property] = &[
    ("device-id", |gpu| Some(format!("{:04x}", gpu.device))),
    ("product-name", |gpu| product(gpu).and_then(value)),
    ("vram", |gpu| {
        gpu.vram_bytes
            .map(|bytes| format!("{}G", bytes.saturating_add(GIB / 2) / GIB))
    }),
    ("simd-count", |gpu| gpu.simd_count.map(|n| n.to_string())),
    ("cu-count", |gpu| {
        let cus = gpu.simd_count?.checked_div(gpu.simd_per_cu?)?;
        Some(cus.to_string())
    }),
    ("family", |gpu| family(gpu.gfx_target_version?).map(str::to_owned)),
];

pub(super) fn add(labels: &mut Labels, facts: &NodeFacts) {
    if facts.amd_gpus.is_empty() {
        return;
    }
    for (name, of) in PROPERTIES {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for value in facts.amd_gpus.iter().filter_map(of) {
            *counts.entry(value).or_default() += 1;
        }
        add_property(labels, name, &counts);
    }
    add_firmware(labels, &facts.amd_gpus);
    let driver = facts.amd_driver.as_ref();
    for (name, version) in [
        ("driver-version", driver.and_then(|d| d.version.as_deref())),
        ("driver-src-version", driver.and_then(|d| d.source_version.as_deref())),
    ] {
        if let Some(version) = version.and_then(value) {
            labels.insert(format!("amd.com/gpu.{name}"), version);
        }
    }
    add_partitions(labels, &facts.amd_gpus);
}

fn add_property(labels: &mut Labels, name: &str, counts: &BTreeMap<String, u32>) {
    let several = counts.len() > 1;
    for (value, count) in counts {
        labels.insert(format!("beta.amd.com/gpu.{name}.{value}"), count.to_string());
        if several {
            labels.insert(format!("amd.com/gpu.{name}.{value}"), count.to_string());
        } else {
            for domain in ["amd.com", "beta.amd.com"] {
                labels.insert(format!("{domain}/gpu.{name}"), value.clone());
            }
        }
    }
}

/// Counts of GPUs for each version, never a single value, and under the beta domain alone: as the labeller has it. A part that a GPU does
/// not have is of version 0 for its driver.
fn add_firmware(labels: &mut Labels, gpus: &[AmdGpu]) {
    for part in FIRMWARE {
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        for version in gpus.iter().filter_map(|gpu| gpu.firmware.get(part)) {
            *counts.entry(*version).or_default() += 1;
        }
        for (version, count) in counts {
            labels.insert(
                format!("beta.amd.com/gpu.firmware.{part}.fw.{version}"),
                count.to_string(),
            );
        }
    }
}

/// Versions of the labeller differ in whether `gpu.` is part of these keys.
fn add_partitions(labels: &mut Labels, gpus: &[AmdGpu]) {
    let mut set = |name: &str, value: String| {
        labels.insert(format!("amd.com/{name}"), value.clone());
        labels.insert(format!("amd.com/gpu.{name}"), value);
    };
    set(
        "compute-partitioning-supported",
        gpus.iter().any(|g| g.compute_partitioning).to_string(),
    );
    set(
        "memory-partitioning-supported",
        gpus.iter().any(|g| g.memory_partitioning).to_string(),
    );
    let of = |gpu: &AmdGpu| {
        let (compute, memory) = (gpu.compute_partition.as_deref()?, gpu.memory_partition.as_deref()?);
        value(&format!("{compute}_{memory}").to_ascii_lowercase())
    };
    let first = gpus.first().and_then(of);
    if let Some(partition) = first.filter(|first| gpus.iter().all(|g| of(g).as_ref() == Some(first))) {
        set("compute-memory-partition", partition);
    }
}

/// The product's name, unsanitised.
pub(super) fn product(gpu: &AmdGpu) -> Option<&str> {
    let known = || PARTS.iter().find(|(id, _)| *id == gpu.device).map(|(_, name)| *name);
    gpu.product.as_deref().filter(|p| value(p).is_some()).or_else(known)
}

/// The labeller's transform: parentheses go, what no label may have becomes `_`.
fn value(name: &str) -> Option<String> {
    let name: String = name
        .trim()
        .chars()
        .filter(|c| !matches!(c, '(' | ')'))
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' => c,
            _ => '_',
        })
        .collect();
    grammar::shortened(&name, LONGEST)
}

/// The labeller's name for the driver's family of a graphics core.
fn family(gfx_target_version: u32) -> Option<&'static str> {
    let (major, rest) = (gfx_target_version / 10_000, gfx_target_version % 10_000);
    match (major, rest) {
        (6, _) => Some("SI"),
        (8, _) => Some("VI"),
        // gfx902, gfx909, gfx90c: processors with graphics.
        (9, 2 | 9 | 12) => Some("RV"),
        (9, _) => Some("AI"),
        (10, 303) => Some("VGH"),
        (10, 305) => Some("YC"),
        (10, _) => Some("NV"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mi300x(address: u8) -> AmdGpu {
        AmdGpu {
            pci_address: format!("0000:{address:02x}:00.0"),
            device: 0x74a1,
            product: Some("AMD Instinct MI300X OAM".into()),
            vram_bytes: Some(205_520_896_000),
            simd_count: Some(1216),
            simd_per_cu: Some(4),
            gfx_target_version: Some(90402),
            compute_partition: Some("SPX".into()),
            memory_partition: Some("NPS1".into()),
            compute_partitioning: true,
            memory_partitioning: true,
            firmware: [("MEC".to_owned(), 0xa3), ("SDMA0".to_owned(), 0x12)].into(),
            ..AmdGpu::default()
        }
    }

    fn of(gpus: Vec<AmdGpu>) -> Labels {
        let mut labels = Labels::new();
        add(
            &mut labels,
            &NodeFacts {
                amd_gpus: gpus,
                ..NodeFacts::default()
            },
        );
        for (key, value) in &labels {
            assert!(grammar::is_key(key) && grammar::is_value(value), "{key}={value}");
        }
        labels
    }

    #[test]
    fn a_mixed_node_has_counts_and_no_single_value() {
        let mut other = mi300x(9);
        (other.device, other.product, other.vram_bytes) = (0x740f, None, Some(64 << 30));
        other.compute_partition = None;
        let got = of(vec![mi300x(1), mi300x(2), other]);
        assert_eq!(got["amd.com/gpu.product-name.AMD_Instinct_MI300X_OAM"], "2");
        assert_eq!(got["amd.com/gpu.product-name.AMD_Instinct_MI210"], "1", "by its id");
        assert_eq!(got["beta.amd.com/gpu.vram.191G"], "2");
        assert_eq!(got["beta.amd.com/gpu.vram.64G"], "1");
        assert!(!got.contains_key("amd.com/gpu.product-name") && !got.contains_key("beta.amd.com/gpu.vram"));
        assert_eq!(got["amd.com/gpu.family"], "AI", "they agree on that");
        assert!(!got.contains_key("amd.com/compute-memory-partition"));
    }

    #[test]
    fn firmware_is_counted_by_version() {
        let mut other = mi300x(9);
        other.firmware = [("MEC".to_owned(), 0xa4), ("FPGA".to_owned(), 1)].into();
        let got = of(vec![mi300x(1), mi300x(2), other]);
        let firmware: Vec<(&str, &str)> = got
            .iter()
            .filter_map(|(key, count)| Some((key.split_once("gpu.firmware.")?.1, count.as_str())))
            .collect();
        assert_eq!(
            firmware,
            [("MEC.fw.163", "2"), ("MEC.fw.164", "1"), ("SDMA0.fw.18", "2")]
        );
        assert!(!got.keys().any(|k| k.starts_with("amd.com/gpu.firmware")), "{got:?}");
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let bare = AmdGpu {
            device: 0x1681,
            simd_count: Some(0),
            simd_per_cu: Some(0),
            ..AmdGpu::default()
        };
        let got = of(vec![bare]);
        assert_eq!(got["amd.com/gpu.device-id"], "1681");
        for key in ["product-name", "vram", "cu-count", "family", "driver-version"] {
            assert!(!got.contains_key(&format!("amd.com/gpu.{key}")), "{key}");
        }
        assert_eq!(got["amd.com/gpu.compute-partitioning-supported"], "false");
        assert!(of(Vec::new()).is_empty());
    }

    proptest! {
        #[test]
        fn any_name_fits(product in any::<String>(), partition in any::<String>()) {
            let gpu = AmdGpu {
                product: Some(product),
                compute_partition: Some(partition.clone()),
                memory_partition: Some(partition),
                ..mi300x(1)
            };
            of(vec![gpu.clone()]);
            of(vec![gpu, mi300x(2)]);
        }
    }
}
