//! The `/sys` of a machine: as much of it as an agent reads, in the kernel's own shape (links and all).

use std::path::{Path, PathBuf};

use super::NodeSpec;
use super::hardware;
use crate::error::Result;
use crate::files;

const VENDOR_NVIDIA: u16 = 0x10de;
/// 3D controller: data-centre GPUs have no display outputs.
const CLASS_3D: u32 = 0x03_02_00;

struct Function {
    address: String,
    vendor: u16,
    device: u16,
    class: u32,
    subsystem: (u16, u16),
    numa_node: i32,
    driver: Option<&'static str>,
}

/// Writes the tree for a machine, with or without its GPU driver.
pub fn create(sys: &Path, spec: &NodeSpec, driver: bool) -> Result<()> {
    files::place(&sys.join("class/dmi/id/product_name"), &format!("{}\n", spec.machine))?;
    files::folder(&sys.join("bus/pci/devices"))?;
    function(
        sys,
        &Function {
            address: "0000:01:00.0".to_owned(),
            vendor: 0x15b3,
            device: 0x1021,
            class: 0x02_00_00,
            subsystem: (0x15b3, 0x0041),
            numa_node: 0,
            driver: Some("mlx5_core"),
        },
    )?;
    let gpus = hardware::gpus(spec)?;
    for (index, gpu) in gpus.iter().enumerate() {
        function(
            sys,
            &Function {
                address: gpu.pci_address.clone(),
                vendor: VENDOR_NVIDIA,
                device: gpu.pci_device,
                class: CLASS_3D,
                subsystem: (VENDOR_NVIDIA, hardware::SUBSYSTEM),
                numa_node: i32::from(index >= gpus.len() / 2),
                driver: None,
            },
        )?;
    }
    set_driver(sys, spec, driver)
}

/// Loads or unloads the kernel module, and binds or unbinds every GPU.
pub fn set_driver(sys: &Path, spec: &NodeSpec, present: bool) -> Result<()> {
    let module = sys.join("module/nvidia");
    let has_gpus = !spec.gpus.is_empty();
    if present && has_gpus {
        files::place(&module.join("version"), &format!("{}\n", hardware::driver_version()))?;
        files::place(&module.join("initstate"), "live\n")?;
    }
    for gpu in hardware::gpus(spec)? {
        let address = gpu.pci_address;
        let link = device(sys, &address).join("driver");
        if present {
            bind(sys, &address, "nvidia")?;
        } else {
            files::remove(&link)?;
        }
    }
    if !present {
        files::remove(&module)?;
        files::remove(&sys.join("bus/pci/drivers/nvidia"))?;
    }
    Ok(())
}

fn device(sys: &Path, address: &str) -> PathBuf {
    sys.join("devices/pci0000:00").join(address)
}

fn bind(sys: &Path, address: &str, driver: &str) -> Result<()> {
    files::folder(&sys.join("bus/pci/drivers").join(driver))?;
    files::link(
        format!("../../../bus/pci/drivers/{driver}"),
        &device(sys, address).join("driver"),
    )
}

fn function(sys: &Path, function: &Function) -> Result<()> {
    let folder = device(sys, &function.address);
    let attributes = [
        ("vendor", format!("0x{:04x}", function.vendor)),
        ("device", format!("0x{:04x}", function.device)),
        ("class", format!("0x{:06x}", function.class)),
        ("subsystem_vendor", format!("0x{:04x}", function.subsystem.0)),
        ("subsystem_device", format!("0x{:04x}", function.subsystem.1)),
        ("numa_node", function.numa_node.to_string()),
    ];
    for (name, value) in attributes {
        files::place(&folder.join(name), &format!("{value}\n"))?;
    }
    if let Some(driver) = function.driver {
        bind(sys, &function.address, driver)?;
    }
    files::link(
        format!("../../../devices/pci0000:00/{}", function.address),
        &sys.join("bus/pci/devices").join(&function.address),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_comes_and_goes() {
        let sys = std::env::temp_dir().join(format!("berth-sysfs-{}", std::process::id()));
        let spec = NodeSpec::new("n", "h100", 2);
        create(&sys, &spec, false).unwrap();
        let read = |path: &str| std::fs::read_to_string(sys.join(path)).ok();
        let driver = |address: &str| {
            let link = std::fs::canonicalize(sys.join(format!("bus/pci/devices/{address}/driver"))).ok()?;
            Some(link.file_name()?.to_string_lossy().into_owned())
        };
        assert_eq!(read("bus/pci/devices/0000:10:00.0/vendor").as_deref(), Some("0x10de\n"));
        assert_eq!(read("bus/pci/devices/0000:11:00.0/numa_node").as_deref(), Some("1\n"));
        for present in [true, false, true, true] {
            set_driver(&sys, &spec, present).unwrap();
            assert_eq!(driver("0000:10:00.0").as_deref(), present.then_some("nvidia"));
            assert_eq!(driver("0000:01:00.0").as_deref(), Some("mlx5_core"));
            assert_eq!(
                read("module/nvidia/version").as_deref(),
                present.then_some("550.163.01\n")
            );
        }
        std::fs::remove_dir_all(&sys).unwrap();
    }
}
