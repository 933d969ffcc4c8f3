//! The output of `nvidia-smi -q -x`, as far as it is compared. What it calls `N/A` is absent.

use anyhow::Context;
use roxmltree::{Document, Node, ParsingOptions};

/// The driver and its GPUs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Smi {
    pub driver_version: Option<String>,
    pub cuda_version: Option<String>,
    pub gpus: Vec<Gpu>,
}

/// One GPU.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Gpu {
    pub uuid: String,
    /// As in sysfs: `0000:1b:00.0`.
    pub pci_address: Option<String>,
    pub product: Option<String>,
    pub memory_mib: Option<u64>,
    /// `Enabled` or `Disabled`.
    pub mig: Option<String>,
    /// `Completed` where the part has a fabric.
    pub fabric: Option<String>,
    /// Lanes.
    pub pcie_width: Option<u64>,
    pub pcie_max_width: Option<u64>,
    /// Uncorrectable, volatile, of all memories together.
    pub ecc_uncorrected: Option<u64>,
    pub remap_pending: Option<String>,
    pub remap_failure: Option<String>,
    /// `None`, `Reset` …
    pub recovery_action: Option<String>,
}

/// Reads the XML.
pub fn parse(xml: &str) -> anyhow::Result<Smi> {
    // It names a document type, which is nowhere to be had.
    let options = ParsingOptions {
        allow_dtd: true,
        ..ParsingOptions::default()
    };
    let document = Document::parse_with_options(xml, options).context("nvidia-smi printed no XML")?;
    let log = document.root_element();
    Ok(Smi {
        driver_version: text(log, &["driver_version"]),
        cuda_version: text(log, &["cuda_version"]),
        gpus: log.children().filter(|n| n.has_tag_name("gpu")).map(gpu).collect(),
    })
}

fn gpu(node: Node<'_, '_>) -> Gpu {
    let of = |path: &[&str]| text(node, path);
    let number = |path: &[&str]| text(node, path).and_then(|t| leading(&t));
    let links = ["pci", "pci_gpu_link_info", "link_widths"];
    let width = |name| number(&[&links[..], &[name]].concat());
    // Kinds of memory differ from part to part; what is there counts.
    let ecc: Vec<u64> = [
        "dram_uncorrectable",
        "sram_uncorrectable",
        "sram_uncorrectable_parity",
        "sram_uncorrectable_secded",
    ]
    .iter()
    .filter_map(|name| number(&["ecc_errors", "volatile", name]))
    .collect();
    Gpu {
        uuid: of(&["uuid"]).unwrap_or_default(),
        pci_address: node.attribute("id").map(address),
        product: of(&["product_name"]),
        memory_mib: number(&["fb_memory_usage", "total"]),
        mig: of(&["mig_mode", "current_mig"]),
        fabric: of(&["fabric", "state"]),
        pcie_width: width("current_link_width"),
        pcie_max_width: width("max_link_width"),
        ecc_uncorrected: (!ecc.is_empty()).then(|| ecc.iter().sum()),
        remap_pending: of(&["remapped_rows", "remapped_row_pending"]),
        remap_failure: of(&["remapped_rows", "remapped_row_failure"]),
        recovery_action: of(&["gpu_recovery_action"]),
    }
}

/// Text of the element that is reached by these names.
fn text(mut node: Node<'_, '_>, path: &[&str]) -> Option<String> {
    for name in path {
        node = node.children().find(|n| n.has_tag_name(*name))?;
    }
    let text = node.text()?.trim();
    (!text.is_empty() && text != "N/A").then(|| text.to_owned())
}

/// `81559 MiB`, `16x`.
fn leading(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// nvidia-smi has a domain of eight digits, sysfs one of four.
fn address(id: &str) -> String {
    let id = id.to_ascii_lowercase();
    match id.split_once(':') {
        Some((domain, rest)) if domain.len() == 8 => format!("{}:{rest}", &domain[4..]),
        _ => id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_machine() {
        let smi = parse(include_str!("h100.xml")).unwrap();
        assert_eq!(smi.driver_version.as_deref(), Some("550.163.01"));
        assert_eq!(smi.gpus.len(), 2);
        let gpu = &smi.gpus[1];
        assert_eq!(gpu.product.as_deref(), Some("NVIDIA H100 80GB HBM3"));
        assert_eq!(
            (gpu.memory_mib, gpu.pcie_width, gpu.pcie_max_width),
            (Some(81920), Some(16), Some(16))
        );
        assert_eq!(
            (gpu.ecc_uncorrected, gpu.remap_pending.as_deref()),
            (Some(0), Some("No"))
        );
        assert_eq!(gpu.recovery_action, None, "N/A is absent");
    }

    #[test]
    fn what_is_not_there_is_absent() {
        let smi =
            parse("<nvidia_smi_log><gpu id=\"00000000:3B:00.0\"><uuid>GPU-1</uuid></gpu></nvidia_smi_log>").unwrap();
        let want = Gpu {
            uuid: "GPU-1".into(),
            pci_address: Some("0000:3b:00.0".into()),
            ..Gpu::default()
        };
        assert_eq!(smi.gpus, [want]);
        assert!(parse("NVIDIA-SMI has failed").is_err());
    }
}
