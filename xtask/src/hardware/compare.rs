//! One row a field: what Berth says, what nvidia-smi says.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::smi::{Gpu, Smi};

/// One field. `None`: that side does not tell.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    what: String,
    ours: Option<String>,
    theirs: Option<String>,
}

impl Row {
    /// Both tell, and not the same; or NVML has it by nvidia-smi's word, and Berth did not get it.
    pub fn differs(&self) -> bool {
        self.theirs.is_some() && self.ours != self.theirs
    }
}

/// All fields, the machine's first. `labels` and `check` are what the agent's commands print as JSON.
pub fn rows(labels: &BTreeMap<String, String>, check: &Value, theirs: &Smi) -> Vec<Row> {
    let label = |key: &str| labels.get(&format!("nvidia.com/{key}")).cloned();
    let all = check["gpus"].as_array().map_or(&[][..], Vec::as_slice);
    let least = theirs.gpus.iter().filter_map(|g| g.memory_mib).min();
    let one_product = theirs.gpus.windows(2).all(|two| two[0].product == two[1].product);
    let mut rows = Vec::new();
    let mut row = |what: &str, ours: Option<String>, theirs: Option<String>| {
        rows.push(Row {
            what: what.to_owned(),
            ours,
            theirs,
        });
    };
    row(
        "driver",
        label("cuda.driver-version.full"),
        theirs.driver_version.clone(),
    );
    row("CUDA", label("cuda.runtime-version.full"), theirs.cuda_version.clone());
    row("GPUs", Some(all.len().to_string()), Some(theirs.gpus.len().to_string()));
    if one_product {
        // In MIG mode the labels may speak of MIG devices; without a device plugin's configuration they speak of GPUs.
        row("gpu.count", label("gpu.count"), Some(theirs.gpus.len().to_string()));
        row("gpu.memory, MiB", label("gpu.memory"), least.map(|mib| mib.to_string()));
    }
    for smi in &theirs.gpus {
        let ours = all.iter().find(|gpu| gpu["uuid"] == smi.uuid.as_str());
        for (what, ours, theirs) in of_gpu(ours, smi) {
            row(&format!("{} {what}", smi.uuid), ours, theirs);
        }
    }
    rows
}

type Field = (&'static str, Option<String>, Option<String>);

fn of_gpu(ours: Option<&Value>, smi: &Gpu) -> Vec<Field> {
    let text = |name: &str| ours.and_then(|gpu| gpu[name].as_str()).map(str::to_owned);
    // Whether a check found something, in the words below; a check that could not tell is absent.
    let found = |check: &str| {
        let checks = ours?["checks"].as_array()?;
        let row = checks.iter().find(|row| row["check"] == check)?;
        match row["outcome"].as_str()? {
            "passed" => Some("well".to_owned()),
            "suspect" | "unhealthy" => Some("ill".to_owned()),
            _ => None,
        }
    };
    let told = |ill: Option<bool>| ill.map(|ill| if ill { "ill" } else { "well" }.to_owned());
    let remap = [&smi.remap_pending, &smi.remap_failure];
    let remap = remap
        .iter()
        .any(|r| r.is_some())
        .then(|| remap.iter().any(|r| r.as_deref() == Some("Yes")));
    let width = smi.pcie_width.zip(smi.pcie_max_width);
    let fabric = smi.fabric.as_deref();
    vec![
        ("PCI address", text("pciAddress"), smi.pci_address.clone()),
        ("product", text("product"), smi.product.clone()),
        ("ECC", found("ECC"), told(smi.ecc_uncorrected.map(|n| n > 0))),
        ("row remapping", found("row remapping"), told(remap)),
        (
            "PCIe width",
            found("PCIe width"),
            told(width.map(|(now, most)| now < most)),
        ),
        (
            "fabric",
            found("fabric"),
            told(fabric.map(|state| state != "Completed")),
        ),
        (
            "recovery action",
            found("recovery action"),
            told(smi.recovery_action.as_deref().map(|action| action != "None")),
        ),
    ]
}

/// As Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut out = "| field | Berth | nvidia-smi | |\n|---|---|---|---|\n".to_owned();
    for row in rows {
        let said = |side: &Option<String>| side.clone().unwrap_or_else(|| "–".into());
        let mark = if row.differs() { "**differs**" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {} | {} | {} | {mark} |",
            row.what,
            said(&row.ours),
            said(&row.theirs)
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::smi;
    use super::*;

    fn labels() -> BTreeMap<String, String> {
        [
            ("nvidia.com/cuda.driver-version.full", "550.163.01"),
            ("nvidia.com/cuda.runtime-version.full", "12.4"),
            ("nvidia.com/gpu.count", "2"),
            ("nvidia.com/gpu.memory", "81920"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into()
    }

    fn check(theirs: &Smi) -> Value {
        let row = |check: &str, outcome: &str| serde_json::json!({"check": check, "outcome": outcome});
        let gpus: Vec<Value> = theirs
            .gpus
            .iter()
            .map(|gpu| {
                serde_json::json!({
                    "uuid": gpu.uuid, "product": gpu.product, "pciAddress": gpu.pci_address, "state": "Healthy",
                    "checks": [row("ECC", "passed"), row("row remapping", "passed"), row("PCIe width", "passed"),
                        row("fabric", "passed"), row("recovery action", "passed")],
                })
            })
            .collect();
        serde_json::json!({ "gpus": gpus })
    }

    fn different(rows: &[Row]) -> Vec<&str> {
        rows.iter().filter(|r| r.differs()).map(|r| r.what.as_str()).collect()
    }

    #[test]
    fn a_machine_that_is_read_right_differs_in_nothing() {
        let theirs = smi::parse(include_str!("h100.xml")).unwrap();
        let rows = rows(&labels(), &check(&theirs), &theirs);
        assert_eq!(different(&rows), Vec::<&str>::new());
        assert_eq!(rows.len(), 5 + 2 * 7);
        let table = table(&rows);
        assert!(table.contains("| driver | 550.163.01 | 550.163.01 |  |"), "{table}");
        assert!(!table.contains("differs"), "{table}");
    }

    #[test]
    fn each_field_that_differs_is_named() {
        let mut theirs = smi::parse(include_str!("h100.xml")).unwrap();
        let check = check(&theirs);
        theirs.driver_version = Some("580.65.06".into());
        theirs.gpus[0].memory_mib = Some(81559);
        theirs.gpus[0].remap_pending = Some("Yes".into());
        theirs.gpus[0].pcie_width = Some(8);
        theirs.gpus[0].fabric = None;
        theirs.gpus[1].uuid = "GPU-x".into();
        let rows = rows(&labels(), &check, &theirs);
        let first = theirs.gpus[0].uuid.clone();
        let want: Vec<String> = [
            "driver".into(),
            "gpu.memory, MiB".into(),
            format!("{first} row remapping"),
            format!("{first} PCIe width"),
        ]
        .into_iter()
        .chain(["PCI address", "product", "ECC", "row remapping", "PCIe width", "fabric"].map(|f| format!("GPU-x {f}")))
        .collect();
        assert_eq!(different(&rows), want);
        assert!(table(&rows).contains("**differs**"));
    }
}
