//! How a virtual GPU tells a guest that it is one: NVIDIA's vendor-specific capability in the PCI configuration space.

/// Length of a conventional configuration space. The kernel shows less of it to those without privilege.
pub const CONFIG_BYTES: usize = 256;

/// Offset of the low byte of the status register, and its bit "has a capability list".
const STATUS: usize = 0x06;
const HAS_CAPABILITIES: u8 = 0x10;
/// Offset of the first capability's offset.
const CAPABILITIES: usize = 0x34;
/// Id of a vendor-specific capability.
const VENDOR_SPECIFIC: u8 = 0x09;
/// What a virtual GPU's capability has after id, next and length.
const SIGNATURE: &[u8] = b"VF";
/// Offset of the first record in it: id, length, data.
const RECORDS: usize = 5;
/// Id of the record with version and branch of the host's driver, each in so many bytes, filled up with zeros.
const HOST_DRIVER: u8 = 0;
const TEXT: usize = 10;

/// What the host's driver says of itself to the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostDriver {
    /// e.g. `550.90.05`.
    pub version: Option<String>,
    /// e.g. `r550_00`.
    pub branch: Option<String>,
}

/// Reads the configuration space of an NVIDIA function. `None`: not a virtual GPU, or too little of it could be read to tell.
pub fn read(config: &[u8]) -> Option<HostDriver> {
    let config = config.get(..CONFIG_BYTES)?;
    if config[STATUS] & HAS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = usize::from(config[CAPABILITIES] & !3);
    // Four bytes each: a list that is longer runs in circles.
    for _ in 0..CONFIG_BYTES / 4 {
        let [id, next, length] = *config.get(at..at + 3)? else {
            return None;
        };
        if at == 0 {
            return None;
        }
        if id == VENDOR_SPECIFIC {
            let end = (at + usize::from(length)).min(CONFIG_BYTES);
            let capability = &config[at..end];
            if capability.get(3..RECORDS) == Some(SIGNATURE) {
                return Some(host_driver(capability));
            }
        }
        at = usize::from(next & !3);
    }
    None
}

fn host_driver(capability: &[u8]) -> HostDriver {
    let mut at = RECORDS;
    while let Some([id, length]) = capability.get(at..at + 2) {
        if *id == HOST_DRIVER {
            let text = |from: usize| {
                let bytes = capability.get(from..from + TEXT)?;
                let text = String::from_utf8_lossy(bytes);
                let text = text.trim_matches(['\0', ' ']);
                (!text.is_empty()).then(|| text.to_owned())
            };
            return HostDriver {
                version: text(at + 2),
                branch: text(at + 2 + TEXT),
            };
        }
        if *length < 2 {
            break;
        }
        at += usize::from(*length);
    }
    HostDriver::default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A configuration space with a power-management capability at 0x40, then a vendor-specific one with these bytes after its length.
    fn config(vendor_specific: &[u8]) -> Vec<u8> {
        let mut config = vec![0; CONFIG_BYTES];
        config[STATUS] = HAS_CAPABILITIES;
        config[CAPABILITIES] = 0x40;
        config[0x40..0x43].copy_from_slice(&[0x01, 0x60, 0]);
        let length = u8::try_from(3 + vendor_specific.len()).unwrap();
        config[0x60..0x63].copy_from_slice(&[VENDOR_SPECIFIC, 0, length]);
        config[0x63..0x63 + vendor_specific.len()].copy_from_slice(vendor_specific);
        config
    }

    fn guest() -> Vec<u8> {
        // Another record first.
        config(b"VF\x01\x04ab\x00\x16550.90.05\0r550_00\0\0\0")
    }

    #[test]
    fn a_guest_knows_its_host() {
        let host = read(&guest()).unwrap();
        assert_eq!(
            (host.version.as_deref(), host.branch.as_deref()),
            (Some("550.90.05"), Some("r550_00"))
        );
    }

    #[test]
    fn others_are_no_guests() {
        assert_eq!(read(&config(b"xx\x00\x16550.90.05\0r550_00\0\0\0")), None, "signature");
        assert_eq!(read(&guest()[..64]), None, "what the unprivileged see");
        let mut without = guest();
        without[STATUS] = 0;
        assert_eq!(read(&without), None, "no capabilities");
        assert_eq!(read(&[0xff; CONFIG_BYTES]), None, "fallen off the bus");
    }

    #[test]
    fn a_guest_whose_host_is_silent_is_still_a_guest() {
        assert_eq!(read(&config(b"VF\x01\x04ab")), Some(HostDriver::default()));
        assert_eq!(
            read(&config(b"VF\x01\x00ab")),
            Some(HostDriver::default()),
            "no progress"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }
    }
}
