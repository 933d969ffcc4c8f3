//! The keys of Intel's device plugins: those of its rules for node feature discovery from PCI alone, those of its labeller where a driver
//! serves the GPUs. `pci-groups` is left out, since the labeller writes it only where its owner configures a grouping.

use std::collections::{BTreeMap, BTreeSet};

use super::grammar;
use crate::facts::{IntelGpu, NodeFacts, PciFunction, VENDOR_INTEL};

/// PCI device id, product, family.
const PARTS: &[(u16, &str, &str)] = &[
    (0x56c0, "Flex_170", FLEX),
    (0x56c1, "Flex_140", FLEX),
    (0x0bd5, "Max_1550", MAX),
    (0x0bd6, "Max_1550", MAX),
    (0x0bd9, "Max_1100", MAX),
    (0x0bda, "Max_1100", MAX),
    (0x0bdb, "Max_1100", MAX),
];
const MAX: &str = "Max_Series";
const FLEX: &str = "Flex_Series";
/// What each GPU counts for in `millicores`.
const MILLICORES: usize = 1000;
/// First character of a value that goes on from another key's.
const CONTINUED: &str = "Z";

type Labels = BTreeMap<String, String>;

pub(super) fn add(labels: &mut Labels, facts: &NodeFacts) {
    add_devices(labels, facts);
    let mut gpus: Vec<&IntelGpu> = facts.intel_gpus.iter().collect();
    gpus.sort_by_key(|g| g.card);
    if !gpus.is_empty() {
        add_cards(labels, &gpus, &facts.pci);
    }
}

fn set(labels: &mut Labels, key: &str, value: impl ToString) {
    labels.insert(format!("gpu.intel.com/{key}"), value.to_string());
}

/// By PCI: a count for each device id; product and family where there is one.
fn add_devices(labels: &mut Labels, facts: &NodeFacts) {
    let mut devices: BTreeMap<(u32, u16), usize> = BTreeMap::new();
    for function in facts.pci.iter().filter(|f| f.vendor == VENDOR_INTEL && f.is_display()) {
        *devices.entry((function.class >> 8, function.device)).or_default() += 1;
    }
    for ((class, device), count) in &devices {
        set(labels, &format!("device-id.{class:04x}-{device:04x}.count"), count);
        set(labels, &format!("device-id.{class:04x}-{device:04x}.present"), true);
    }
    let known = || facts.pci.iter().filter_map(part);
    let products: BTreeSet<_> = known().map(|(product, _)| product).collect();
    let families: BTreeSet<_> = known().map(|(_, family)| family).collect();
    if let [product] = Vec::from_iter(products).as_slice() {
        set(labels, "product", product);
        set(labels, "device.count", known().count());
    }
    if let [family] = Vec::from_iter(families).as_slice() {
        set(labels, "family", family);
    }
}

/// Product and family of a data centre part.
fn part(function: &PciFunction) -> Option<(&'static str, &'static str)> {
    if function.vendor != VENDOR_INTEL || !function.is_display() {
        return None;
    }
    let (_, product, family) = PARTS.iter().find(|(id, ..)| *id == function.device)?;
    Some((product, family))
}

/// The product's name for its class.
pub(super) fn product(function: &PciFunction) -> Option<String> {
    let (product, _) = part(function)?;
    Some(format!("Intel Data Center GPU {}", product.replace('_', " ")))
}

fn add_cards(labels: &mut Labels, gpus: &[&IntelGpu], pci: &[PciFunction]) {
    let joined = |of: &mut dyn Iterator<Item = String>| of.collect::<Vec<_>>().join(".");
    set(labels, "millicores", MILLICORES * gpus.len());
    set(labels, "tiles", gpus.iter().map(|g| u64::from(g.tiles)).sum::<u64>());
    let memory = gpus.iter().try_fold(0_u64, |sum, g| sum.checked_add(g.memory_bytes?));
    if let Some(bytes) = memory {
        set(labels, "memory.max", bytes);
    }
    let cards = pieces(&joined(&mut gpus.iter().map(|g| format!("card{}", g.card))));
    set(labels, "cards", &cards[0]);
    add_long(
        labels,
        "gpu-numbers",
        &joined(&mut gpus.iter().map(|g| g.card.to_string())),
    );

    let numa_nodes: BTreeMap<&str, Option<i32>> = pci.iter().map(|f| (f.address.as_str(), f.numa_node)).collect();
    let mut by_numa: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    for gpu in gpus {
        let numa = numa_nodes.get(gpu.pci_address.as_str()).copied().flatten();
        if let Some(numa) = numa.filter(|n| *n >= 0) {
            by_numa.entry(numa).or_default().push(gpu.card.to_string());
        }
    }
    if !by_numa.is_empty() {
        let map: Vec<String> = by_numa
            .iter()
            .map(|(numa, gpus)| format!("{numa}-{}", gpus.join(".")))
            .collect();
        add_long(labels, "numa-gpu-map", &map.join("_"));
    }
}

/// A value of any length, under the key, the key with 2 at its end, with 3 …
fn add_long(labels: &mut Labels, key: &str, value: &str) {
    for (n, piece) in pieces(value).into_iter().enumerate() {
        let key = if n == 0 {
            key.to_owned()
        } else {
            format!("{key}{}", n + 1)
        };
        set(labels, &key, piece);
    }
}

/// `value` in label values: each ends in a letter or digit, and those after the first begin with [`CONTINUED`]. Never empty.
fn pieces(value: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let (mut before, mut rest) = ("", value);
    while before.len() + rest.len() > grammar::MAX_VALUE {
        let head = &rest[..grammar::MAX_VALUE - before.len()];
        // Two separators never meet: there is always a letter or digit to end with.
        let cut = head.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).len().max(1);
        pieces.push(format!("{before}{}", &rest[..cut]));
        (before, rest) = (CONTINUED, &rest[cut..]);
    }
    pieces.push(format!("{before}{rest}"));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(cards: u32, devices: &[u16]) -> NodeFacts {
        let address = |n: usize| format!("0000:{n:02x}:00.0");
        NodeFacts {
            pci: devices
                .iter()
                .enumerate()
                .map(|(n, device)| PciFunction {
                    address: address(n),
                    vendor: VENDOR_INTEL,
                    device: *device,
                    class: 0x03_8000,
                    subsystem_vendor: None,
                    subsystem_device: None,
                    driver: None,
                    numa_node: Some(i32::from(n >= devices.len() / 2)),
                    sriov_total_vfs: None,
                })
                .collect(),
            intel_gpus: (0..cards)
                .map(|card| IntelGpu {
                    pci_address: address(card as usize),
                    card,
                    tiles: 2,
                    memory_bytes: Some(128 << 30),
                })
                .collect(),
            ..NodeFacts::default()
        }
    }

    fn of(facts: &NodeFacts) -> Labels {
        let mut labels = Labels::new();
        add(&mut labels, facts);
        for (key, value) in &labels {
            assert!(grammar::is_key(key) && grammar::is_value(value), "{key}={value}");
        }
        labels
    }

    #[test]
    fn two_products_have_no_product() {
        let got = of(&node(0, &[0x0bd5, 0x0bd5, 0x56c0]));
        assert_eq!(got["gpu.intel.com/device-id.0380-0bd5.count"], "2");
        assert_eq!(got["gpu.intel.com/device-id.0380-56c0.count"], "1");
        for key in ["product", "family", "device.count", "cards", "millicores"] {
            assert!(!got.contains_key(&format!("gpu.intel.com/{key}")), "{key}");
        }
    }

    #[test]
    fn memory_of_which_a_part_is_unknown_is_absent() {
        let mut facts = node(2, &[0x56c0, 0x56c0]);
        assert_eq!(of(&facts)["gpu.intel.com/memory.max"], (256_u64 << 30).to_string());
        facts.intel_gpus[1].memory_bytes = None;
        assert!(!of(&facts).contains_key("gpu.intel.com/memory.max"));
    }

    #[test]
    fn long_lists_go_on_under_further_keys() {
        let got = of(&node(40, &[0x56c1; 40]));
        let values: Vec<&str> = ["gpu-numbers", "gpu-numbers2"]
            .iter()
            .map(|key| got[&format!("gpu.intel.com/{key}")].as_str())
            .collect();
        let all: Vec<String> = (0..40).map(|n| n.to_string()).collect();
        assert_eq!(values.concat().replacen(CONTINUED, "", 1), all.join("."));
        assert!(got["gpu.intel.com/cards"].starts_with("card0.card1."));
        assert!(got["gpu.intel.com/numa-gpu-map"].starts_with("0-0.1."));
    }
}
