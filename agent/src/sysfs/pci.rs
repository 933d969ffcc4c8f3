//! What the kernel says of the GPUs' PCI functions, with no library at all: whether they answer, their links, the errors it counted.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use berth_core::facts::{PciChecks, PciFunction, PciReadings, VENDOR_AMD, VENDOR_INTEL, VENDOR_NVIDIA};

use super::{hex, text};

/// PCI class of an NVSwitch: another bridge.
const BRIDGE: u32 = 0x06_8000;

/// Drivers whose functions are the node's own; others are given to guests, which do with them what they like.
const DRIVERS: [&str; 4] = ["nvidia", "amdgpu", "i915", "xe"];

/// NVSwitches of the machine, less those given to guests. They neither come nor go, so one look is enough.
pub fn nvswitches(root: &Path) -> u32 {
    let devices = fs::read_dir(root.join("bus/pci/devices"))
        .into_iter()
        .flatten()
        .flatten();
    let count = devices
        .map(|device| device.path())
        .filter(|d| hex(&d.join("class")) == Some(BRIDGE) && hex(&d.join("vendor")) == Some(VENDOR_NVIDIA.into()))
        .filter(|d| !fs::read_link(d.join("driver")).is_ok_and(|driver| driver.ends_with("vfio-pci")))
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Reads every GPU among `functions`.
pub fn readings(root: &Path, functions: &[PciFunction], nvswitches: u32) -> PciReadings {
    let vendors = [VENDOR_NVIDIA, VENDOR_AMD, VENDOR_INTEL];
    let gpus = functions.iter().filter(|f| vendors.contains(&f.vendor));
    PciReadings {
        functions: gpus
            .map(|f| read(&root.join("bus/pci/devices").join(&f.address), f))
            .collect(),
        nvswitches,
    }
}

fn read(folder: &Path, function: &PciFunction) -> PciChecks {
    let there = PciChecks {
        address: function.address.clone(),
        ..PciChecks::default()
    };
    let ours = function.driver.as_deref().is_some_and(|d| DRIVERS.contains(&d));
    if !ours || sleeps(folder) {
        return there;
    }
    let answers = answers(folder);
    if answers == Some(false) {
        // What else it says is all ones, too.
        return PciChecks { answers, ..there };
    }
    PciChecks {
        answers,
        width: lanes(&folder.join("current_link_width")),
        max_width: max_width(folder),
        speed: text(&folder.join("current_link_speed")).filter(|s| s.starts_with(|c: char| c.is_ascii_digit())),
        aer_correctable: total(&folder.join("aer_dev_correctable"), "TOTAL_ERR_COR"),
        aer_nonfatal: total(&folder.join("aer_dev_nonfatal"), "TOTAL_ERR_NONFATAL"),
        aer_fatal: total(&folder.join("aer_dev_fatal"), "TOTAL_ERR_FATAL"),
        ..there
    }
}

/// Whether the function's vendor id is one: a bus from which nobody answers reads as all ones. `None`: it sleeps, or cannot be read.
pub(super) fn answers(folder: &Path) -> Option<bool> {
    if sleeps(folder) {
        return None;
    }
    let mut id = [0; 2];
    File::open(folder.join("config")).ok()?.read_exact(&mut id).ok()?;
    Some(id != [0xff, 0xff])
}

/// A function whose registers would have to be woken to be read.
fn sleeps(folder: &Path) -> bool {
    text(&folder.join("power/runtime_status")).is_some_and(|status| status == "suspended")
}

/// Lanes; 0 and 255 are what the kernel says where there is no link.
fn lanes(file: &Path) -> Option<u32> {
    text(file)?.parse().ok().filter(|lanes| (1..255).contains(lanes))
}

/// What both ends of the link can do: a card of 16 lanes may sit in a slot of 8.
fn max_width(folder: &Path) -> Option<u32> {
    let own = lanes(&folder.join("max_link_width"))?;
    let upstream = fs::canonicalize(folder).ok();
    let slot = upstream
        .as_deref()
        .and_then(Path::parent)
        .and_then(|port| lanes(&port.join("max_link_width")));
    Some(slot.map_or(own, |slot| slot.min(own)))
}

/// The count in the line of this name.
fn total(file: &Path, name: &str) -> Option<u64> {
    let lines = fs::read_to_string(file).ok()?;
    let count = lines.lines().find_map(|line| line.strip_prefix(name))?;
    count.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn put(root: &Path, file: &str, content: &[u8]) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn function(driver: &str) -> PciFunction {
        PciFunction {
            address: "0000:1b:00.0".into(),
            vendor: VENDOR_NVIDIA,
            device: 0x2330,
            class: 0x03_0200,
            subsystem_vendor: None,
            subsystem_device: None,
            driver: Some(driver.into()),
            numa_node: None,
            sriov_total_vfs: None,
        }
    }

    #[test]
    fn a_card_below_a_narrow_slot() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let port = "devices/pci0000:1a/0000:1a:01.0";
        let card = format!("{port}/0000:1b:00.0");
        put(root, &format!("{port}/max_link_width"), b"8\n");
        for (file, content) in [
            ("config", &b"\xde\x10\x30\x23"[..]),
            ("max_link_width", b"16\n"),
            ("current_link_width", b"8\n"),
            ("current_link_speed", b"32.0 GT/s PCIe\n"),
            ("aer_dev_correctable", b"RxErr 3\nBadTLP 4\nTOTAL_ERR_COR 7\n"),
            ("aer_dev_nonfatal", b"Undefined 0\nTOTAL_ERR_NONFATAL 1\n"),
            ("aer_dev_fatal", b"TOTAL_ERR_FATAL 2\n"),
        ] {
            put(root, &format!("{card}/{file}"), content);
        }
        fs::create_dir_all(root.join("bus/pci/devices")).unwrap();
        symlink(format!("../../../{card}"), root.join("bus/pci/devices/0000:1b:00.0")).unwrap();

        let there = PciChecks {
            address: "0000:1b:00.0".into(),
            ..PciChecks::default()
        };
        let look = |driver| readings(root, &[function(driver)], 0).functions;
        let all = PciChecks {
            answers: Some(true),
            width: Some(8),
            max_width: Some(8),
            speed: Some("32.0 GT/s PCIe".into()),
            aer_correctable: Some(7),
            aer_nonfatal: Some(1),
            aer_fatal: Some(2),
            ..there.clone()
        };
        assert_eq!(look("nvidia"), [all]);
        assert_eq!(look("vfio-pci"), std::slice::from_ref(&there), "a guest's");
        put(root, &format!("{card}/config"), b"\xff\xff\xff\xff");
        let lost = PciChecks {
            answers: Some(false),
            ..there.clone()
        };
        assert_eq!(look("nvidia"), [lost]);
        put(root, &format!("{card}/power/runtime_status"), b"suspended\n");
        assert_eq!(look("nvidia"), [there], "it sleeps");
    }

    #[test]
    fn nvswitches_are_nvidias_bridges() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for (address, class, vendor) in [
            ("0000:07:00.0", "0x068000", "0x10de"),
            ("0000:08:00.0", "0x068000", "0x10de"),
            ("0000:09:00.0", "0x068000", "0x8086"),
            ("0000:0a:00.0", "0x030200", "0x10de"),
        ] {
            put(root, &format!("bus/pci/devices/{address}/class"), class.as_bytes());
            put(root, &format!("bus/pci/devices/{address}/vendor"), vendor.as_bytes());
        }
        assert_eq!(nvswitches(root), 2);
        symlink(
            "../../drivers/vfio-pci",
            root.join("bus/pci/devices/0000:07:00.0/driver"),
        )
        .unwrap();
        assert_eq!(nvswitches(root), 1, "a guest's");
    }
}
