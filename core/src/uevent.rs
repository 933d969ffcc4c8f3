//! The kernel's word that a device or module came or went, as it arrives on a `NETLINK_KOBJECT_UEVENT` socket.

use crate::facts::{VENDOR_NVIDIA, is_wanted_class};

/// Kernel modules of GPUs.
const MODULES: [&str; 4] = ["nvidia", "amdgpu", "i915", "xe"];

/// One message: `add@/devices/…`, then `KEY=VALUE` texts, each ended by a nul.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uevent<'a> {
    action: &'a str,
    path: &'a str,
    subsystem: &'a str,
    /// Class of a PCI function.
    class: Option<u32>,
    /// Vendor of a PCI function.
    vendor: Option<u16>,
}

impl<'a> Uevent<'a> {
    /// Reads one; `None`: it is none of the kernel's.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let mut texts = message.split(|b| *b == 0).map(std::str::from_utf8);
        let (action, path) = texts.next()?.ok()?.split_once('@')?;
        let mut event = Self {
            action,
            path,
            subsystem: "",
            class: None,
            vendor: None,
        };
        for text in texts.flatten() {
            match text.split_once('=') {
                Some(("SUBSYSTEM", value)) => event.subsystem = value,
                Some(("PCI_CLASS", value)) => event.class = u32::from_str_radix(value, 16).ok(),
                Some(("PCI_ID", value)) => {
                    event.vendor = value.split(':').next().and_then(|v| u16::from_str_radix(v, 16).ok());
                }
                Some(_) | None => {}
            }
        }
        Some(event)
    }

    /// Whether what a scan of sysfs finds may be another now. Most functions of a machine are no GPUs, and a network card makes its virtual
    /// functions by the hundred.
    pub fn concerns_gpus(&self) -> bool {
        match self.subsystem {
            "pci" => self.class.is_none_or(is_wanted_class),
            // A monitor that was plugged in is a change of the card's, and no other card.
            "drm" => self.action != "change",
            "module" => self.module().is_some_and(|name| MODULES.contains(&name)),
            _ => false,
        }
    }

    /// Whether NVML may have become possible or impossible, or lists other GPUs now.
    pub fn concerns_nvidia(&self) -> bool {
        match self.subsystem {
            "pci" => self.concerns_gpus() && self.vendor.is_none_or(|v| v == VENDOR_NVIDIA),
            "module" => self.module() == Some("nvidia"),
            _ => false,
        }
    }

    fn module(&self) -> Option<&'a str> {
        self.path.strip_prefix("/module/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_gpus_and_what_does_not() {
        let gpu = "SUBSYSTEM=pci\0PCI_CLASS=30200\0PCI_ID=10DE:2330";
        for (message, gpus, nvidia) in [
            (
                format!("add@/devices/pci0000:00/0000:10:00.0\0ACTION=add\0{gpu}\0SEQNUM=7\0"),
                true,
                true,
            ),
            (
                format!("bind@/devices/pci0000:00/0000:10:00.0\0{gpu}\0DRIVER=nvidia\0"),
                true,
                true,
            ),
            (format!("remove@/devices/pci0000:00/0000:10:00.0\0{gpu}\0"), true, true),
            (
                "add@/devices/x\0SUBSYSTEM=pci\0PCI_CLASS=120000\0PCI_ID=1002:74A1\0".into(),
                true,
                false,
            ),
            (
                "add@/devices/x\0SUBSYSTEM=pci\0PCI_CLASS=20000\0PCI_ID=15B3:1021\0".into(),
                false,
                false,
            ),
            // Without a class it may be anything.
            ("add@/devices/x\0SUBSYSTEM=pci\0".into(), true, true),
            ("add@/module/nvidia\0SUBSYSTEM=module\0".into(), true, true),
            ("add@/module/nvidia_uvm\0SUBSYSTEM=module\0".into(), false, false),
            ("remove@/module/amdgpu\0SUBSYSTEM=module\0".into(), true, false),
            ("add@/devices/x/drm/renderD128\0SUBSYSTEM=drm\0".into(), true, false),
            (
                "change@/devices/x/drm/card0\0SUBSYSTEM=drm\0HOTPLUG=1\0".into(),
                false,
                false,
            ),
            ("add@/devices/virtual/mem/null\0SUBSYSTEM=mem\0".into(), false, false),
        ] {
            let event = Uevent::parse(message.as_bytes()).unwrap();
            assert_eq!(
                (event.concerns_gpus(), event.concerns_nvidia()),
                (gpus, nvidia),
                "{message:?}"
            );
        }
    }

    #[test]
    fn what_udev_adds_to_the_stream_is_not_the_kernels() {
        assert_eq!(Uevent::parse(b"libudev\0\xfe\xed\xca\xfe"), None);
        assert_eq!(Uevent::parse(b""), None);
        assert_eq!(Uevent::parse(b"\xff\xff@/x\0"), None);
    }
}
