//! GPU classes: short names that people and manifests use for products.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::product::products;
use super::{GPU_CLASS, GPU_PER_CLASS, amd, grammar, intel};
use crate::facts::NodeFacts;

/// Longest class: `gpu.<class>.memory` is the name part of a label key.
const MAX_CLASS: usize = grammar::MAX_VALUE - "gpu..memory".len();

/// Names of products, as lower-case words after vendor and brand, with their class. Append only: users select by these. What may follow
/// the words is in [`VARIANTS`].
const TABLE: &[(&str, &str)] = &[
    ("gb300", "gb300"),
    ("gb200", "gb200"),
    ("gh200", "gh200"),
    ("gb10", "gb10"),
    ("b300", "b300"),
    ("b200", "b200"),
    ("b100", "b100"),
    ("h200", "h200"),
    ("h100", "h100"),
    ("h800", "h800"),
    ("h20", "h20"),
    ("a100", "a100"),
    ("a800", "a800"),
    ("a40", "a40"),
    ("a30", "a30"),
    ("a16", "a16"),
    ("a10g", "a10g"),
    ("a10", "a10"),
    ("a2", "a2"),
    ("l40s", "l40s"),
    ("l40", "l40"),
    ("l20", "l20"),
    ("l4", "l4"),
    ("l2", "l2"),
    ("t4g", "t4g"),
    ("t4", "t4"),
    ("v100s", "v100"),
    ("v100", "v100"),
    ("p100", "p100"),
    ("p40", "p40"),
    ("p4", "p4"),
    ("k80", "k80"),
    ("m60", "m60"),
    ("rtx pro 6000", "rtx-pro-6000"),
    ("rtx pro 5000", "rtx-pro-5000"),
    ("rtx pro 4500", "rtx-pro-4500"),
    ("rtx pro 4000", "rtx-pro-4000"),
    ("rtx 6000 ada", "rtx-6000-ada"),
    ("rtx 5000 ada", "rtx-5000-ada"),
    ("rtx 4500 ada", "rtx-4500-ada"),
    ("rtx 4000 ada", "rtx-4000-ada"),
    ("rtx a6000", "rtx-a6000"),
    ("rtx a5000", "rtx-a5000"),
    ("rtx a4500", "rtx-a4500"),
    ("rtx a4000", "rtx-a4000"),
    ("rtx 8000", "rtx-8000"),
    ("rtx 6000", "rtx-6000"),
    ("rtx 5090", "rtx-5090"),
    ("rtx 5080", "rtx-5080"),
    ("rtx 4090", "rtx-4090"),
    ("rtx 4080", "rtx-4080"),
    ("rtx 3090 ti", "rtx-3090-ti"),
    ("rtx 3090", "rtx-3090"),
    ("rtx 3080", "rtx-3080"),
    ("rtx 2080 ti", "rtx-2080-ti"),
    ("rtx 2080", "rtx-2080"),
    ("mi355x", "mi355x"),
    ("mi350x", "mi350x"),
    ("mi325x", "mi325x"),
    ("mi308x", "mi308x"),
    ("mi300x", "mi300x"),
    ("mi300a", "mi300a"),
    ("mi250x", "mi250x"),
    ("mi250", "mi250"),
    ("mi210", "mi210"),
    ("mi100", "mi100"),
    ("data center gpu max 1550", "max-1550"),
    ("data center gpu max 1100", "max-1100"),
    ("data center gpu flex 170", "flex-170"),
    ("data center gpu flex 140", "flex-140"),
];

/// Words of form factor, memory and edition, which do not make another class (besides sizes such as `80gb`).
const VARIANTS: &[&str] = &[
    "sxm",
    "sxm2",
    "sxm3",
    "sxm4",
    "sxm5",
    "sxm6",
    "pcie",
    "nvl",
    "nvl72",
    "nvl36",
    "hbm2",
    "hbm2e",
    "hbm3",
    "hbm3e",
    "oam",
    "ac",
    "dgxs",
    "fhhl",
    "ls",
    "generation",
    "blackwell",
    "server",
    "workstation",
    "edition",
    "max",
    "q",
];

/// Vendors: never part of a class.
const VENDORS: &[&str] = &["nvidia", "amd", "intel"];
/// Brands: no part of a class of [`TABLE`].
const BRANDS: &[&str] = &["tesla", "instinct", "geforce", "quadro", "grid"];

/// The class of a product as its vendor names it. Form factors and memory sizes of a class share it; a product that is not in the table
/// has its sanitised name without the vendor, lower-case. Empty only for a name without a letter or digit.
pub fn class_of(product: &str) -> String {
    let lower = product.to_ascii_lowercase();
    let words: Vec<&str> = lower
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|w| !w.is_empty())
        .collect();
    let plain = without(&without(&words, VENDORS), BRANDS);
    let known = TABLE.iter().find(|(name, _)| {
        let name: Vec<&str> = name.split(' ').collect();
        plain.starts_with(&name) && plain[name.len()..].iter().all(|w| is_variant(w))
    });
    if let Some((_, class)) = known {
        return (*class).to_owned();
    }
    let name = grammar::sanitise(&lower);
    let name = VENDORS
        .iter()
        .find_map(|vendor| name.strip_prefix(vendor)?.strip_prefix('-'))
        .unwrap_or(&name);
    grammar::shortened(name, MAX_CLASS).unwrap_or_default()
}

fn without<'a>(words: &[&'a str], first: &[&str]) -> Vec<&'a str> {
    match words {
        [head, tail @ ..] if first.contains(head) => tail.to_vec(),
        _ => words.to_vec(),
    }
}

fn is_variant(word: &str) -> bool {
    let size = word.strip_suffix("gb").or_else(|| word.strip_suffix('g'));
    VARIANTS.contains(&word) || size.is_some_and(|s| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()))
}

/// Adds `berth.dev/gpu.<class>.count` and `.memory` (MiB that each GPU of the class has), and on a node with one product
/// `berth.dev/gpu-class`.
pub(super) fn add(labels: &mut BTreeMap<String, String>, facts: &NodeFacts) {
    let kinds = kinds(facts);
    let names: BTreeSet<Option<&str>> = kinds.iter().map(|k| k.name.as_deref()).collect();
    if let [Some(one)] = Vec::from_iter(names).as_slice() {
        let class = class_of(one);
        if !class.is_empty() {
            labels.insert(GPU_CLASS.into(), class);
        }
    }
    let mut classes: BTreeMap<String, (usize, Option<u64>)> = BTreeMap::new();
    for kind in &kinds {
        let Some(class) = kind.name.as_deref().map(class_of).filter(|c| !c.is_empty()) else {
            continue;
        };
        let entry = classes.entry(class).or_insert((0, None));
        entry.0 += kind.count;
        entry.1 = entry.1.into_iter().chain(kind.memory_mib).min();
    }
    for (class, (count, memory)) in classes {
        labels.insert(format!("{GPU_PER_CLASS}{class}.count"), count.to_string());
        if let Some(mib) = memory {
            labels.insert(format!("{GPU_PER_CLASS}{class}.memory"), mib.to_string());
        }
    }
}

/// GPUs that are alike.
struct Kind<'a> {
    /// The product as its vendor names it; `None`: not known.
    name: Option<Cow<'a, str>>,
    count: usize,
    memory_mib: Option<u64>,
}

/// Of all vendors. Intel's graphics in processors are none: nobody asks for them by class.
fn kinds(facts: &NodeFacts) -> Vec<Kind<'_>> {
    let nvidia = products(&facts.gpus).into_iter().map(|product| Kind {
        name: product.name.map(Cow::Borrowed),
        count: product.gpus.len(),
        memory_mib: product.memory_mib(),
    });
    let amd = facts.amd_gpus.iter().map(|gpu| Kind {
        name: amd::product(gpu).map(Cow::Borrowed),
        count: 1,
        memory_mib: gpu.vram_bytes.map(|b| b >> 20),
    });
    let served = facts.intel_gpus.iter();
    let memory: BTreeMap<&str, Option<u64>> = served.map(|g| (g.pci_address.as_str(), g.memory_bytes)).collect();
    let intel = facts.pci.iter().filter_map(move |function| {
        let bytes = memory.get(function.address.as_str()).copied().flatten();
        Some(Kind {
            name: Some(Cow::Owned(intel::product(function)?)),
            count: 1,
            memory_mib: bytes.map(|b| b >> 20),
        })
    });
    nvidia.chain(amd).chain(intel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn classes_of_products() {
        for (product, class) in [
            ("NVIDIA H100 80GB HBM3", "h100"),
            ("NVIDIA H100 PCIe", "h100"),
            ("NVIDIA H100 NVL", "h100"),
            ("NVIDIA H200", "h200"),
            ("NVIDIA H200 NVL", "h200"),
            ("NVIDIA GH200 480GB", "gh200"),
            ("NVIDIA GH200 144G HBM3e", "gh200"),
            ("NVIDIA B200", "b200"),
            ("NVIDIA GB200", "gb200"),
            ("NVIDIA GB300 NVL", "gb300"),
            ("NVIDIA A100-SXM4-40GB", "a100"),
            ("A100-SXM4-40GB", "a100"),
            ("NVIDIA A100 80GB PCIe", "a100"),
            ("NVIDIA A10", "a10"),
            ("NVIDIA A10G", "a10g"),
            ("NVIDIA A30", "a30"),
            ("NVIDIA L40S", "l40s"),
            ("NVIDIA L40", "l40"),
            ("NVIDIA L4", "l4"),
            ("NVIDIA T4", "t4"),
            ("Tesla T4", "t4"),
            ("Tesla V100-SXM2-32GB", "v100"),
            ("Tesla P100-PCIE-16GB", "p100"),
            ("Tesla P4", "p4"),
            ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
            ("Quadro RTX 6000", "rtx-6000"),
            ("NVIDIA RTX A6000", "rtx-a6000"),
            ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
            ("NVIDIA GeForce RTX 3090 Ti", "rtx-3090-ti"),
            ("NVIDIA GeForce RTX 4090", "rtx-4090"),
            ("AMD Instinct MI300X OAM", "mi300x"),
            ("AMD_Instinct_MI300X_OAM", "mi300x"),
            ("Intel Data Center GPU Max 1550", "max-1550"),
            // Not in the table, or something else under a known name.
            ("NVIDIA GeForce RTX 4090 Laptop GPU", "geforce-rtx-4090-laptop-gpu"),
            ("NVIDIA H100 Ultra", "h100-ultra"),
            ("NVIDIA A100-10C", "a100-10c"),
            ("NVIDIA Foo (tm) 9000", "foo-tm-9000"),
            ("Mystery", "mystery"),
            ("()", ""),
        ] {
            assert_eq!(class_of(product), class, "{product}");
        }
    }

    #[test]
    fn the_table_names_each_product_once() {
        for (i, (name, _)) in TABLE.iter().enumerate() {
            assert!(TABLE[..i].iter().all(|(earlier, _)| earlier != name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_class_fits_into_keys_and_values(product in "[-_. A-Za-z0-9()/ü]{0,90}") {
            let class = class_of(&product);
            prop_assert!(grammar::is_value(&class), "{class:?}");
            if !class.is_empty() {
                let key = format!("{GPU_PER_CLASS}{class}.memory");
                prop_assert!(grammar::is_key(&key), "{key:?}");
            }
        }
    }
}
