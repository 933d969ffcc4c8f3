//! XIDs in the kernel log: one record in, one event out. The log outlives a hung NVML, and tells more than NVML's events.

use std::time::Duration;

use crate::facts::{GpuEvent, GpuEventKind, MigInstance};

/// What a record of `/dev/kmsg` says that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line<'a> {
    /// `NVRM: Xid (PCI:0000:3b:00): 79, pid=…, GPU has fallen off the bus.`
    Xid {
        /// Lower-case `dddd:bb:dd`, as the driver writes it, without a function.
        pci_address: Option<String>,
        /// The MIG instance (`PCI:0000:3b:00 GPU-I:05 GPU-CI:00`).
        instance: Option<MigInstance>,
        /// The number.
        xid: u64,
        /// What follows the number.
        detail: &'a str,
    },
    /// The NVIDIA driver was loaded: what was before is over.
    DriverLoaded,
}

/// A record: when it was written, on the kernel's clock, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// Since the kernel started.
    pub at: Duration,
    /// What it says.
    pub line: Line<'a>,
}

/// Longest detail that is kept, in bytes.
const LONGEST_DETAIL: usize = 512;

/// Reads one record, `priority,sequence,microseconds,flags;text`, as `/dev/kmsg` hands them out. `None`: it is of no interest, or no record.
/// Only the kernel's own messages count (facility 0): any process that may write to the log could make up others.
pub fn parse(record: &str) -> Option<Record<'_>> {
    let (prefix, text) = record.split_once(';')?;
    let mut fields = prefix.split(',');
    let priority: u64 = fields.next()?.parse().ok()?;
    let _sequence = fields.next()?;
    let at = Duration::from_micros(fields.next()?.parse().ok()?);
    if priority >> 3 != 0 {
        return None;
    }
    // What follows on further lines are the device's properties.
    let text = text.split('\n').next()?;
    let nvrm = text.strip_prefix("NVRM: ")?;
    if nvrm.starts_with("loading NVIDIA ") {
        return Some(Record {
            at,
            line: Line::DriverLoaded,
        });
    }
    let (place, rest) = nvrm.strip_prefix("Xid (")?.split_once("): ")?;
    let (number, detail) = match rest.find(|c: char| !c.is_ascii_digit()) {
        Some(end) => rest.split_at(end),
        None => (rest, ""),
    };
    let xid = number.parse().ok()?;
    let (place, instance) = match place.split_once(' ') {
        Some((place, of_it)) => (place, instance(of_it)),
        None => (place, None),
    };
    Some(Record {
        at,
        line: Line::Xid {
            pci_address: place.strip_prefix("PCI:").and_then(address),
            instance,
            xid,
            detail: shortened(detail.trim_start_matches([',', ' ']).trim_end()),
        },
    })
}

/// `0000:3b:00`, with or without a function.
fn address(text: &str) -> Option<String> {
    let slot = text.split('.').next()?;
    let parts: Vec<&str> = slot.split(':').collect();
    let hex = |part: &&str| !part.is_empty() && part.len() <= 8 && part.bytes().all(|b| b.is_ascii_hexdigit());
    (parts.len() == 3 && parts.iter().all(hex)).then(|| slot.to_ascii_lowercase())
}

/// `GPU-I:05`, or `GPU-I:05 GPU-CI:00`.
fn instance(text: &str) -> Option<MigInstance> {
    let id = |key: &str| text.split(' ').find_map(|part| part.strip_prefix(key)?.parse().ok());
    Some(MigInstance {
        gpu: id("GPU-I:")?,
        compute: id("GPU-CI:"),
    })
}

fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST_DETAIL)]
}

impl Record<'_> {
    /// The event it tells of, `now` being the time on the kernel's clock. `None`: none.
    pub fn event(&self, now: Duration, source: &str) -> Option<GpuEvent> {
        match &self.line {
            Line::DriverLoaded => None,
            Line::Xid {
                pci_address,
                instance,
                xid,
                detail,
            } => Some(GpuEvent {
                kind: GpuEventKind::Xid(*xid),
                uuid: None,
                pci_address: pci_address.clone(),
                age: now.saturating_sub(self.at),
                source: source.to_owned(),
                detail: (*detail).to_owned(),
                instance: *instance,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xid(record: &str) -> Option<(Option<String>, u64, String)> {
        match parse(record)?.line {
            Line::Xid {
                pci_address,
                xid,
                detail,
                instance: _,
            } => Some((pci_address, xid, detail.to_owned())),
            Line::DriverLoaded => None,
        }
    }

    #[test]
    fn records() {
        for (record, want) in [
            (
                "4,1234,98765432,-;NVRM: Xid (PCI:0000:3B:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n SUBSYSTEM=pci\n",
                Some((
                    Some("0000:3b:00"),
                    79,
                    "pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
                )),
            ),
            (
                "4,1,1,-;NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
                Some((
                    Some("0000:3b:00"),
                    154,
                    "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
                )),
            ),
            (
                "4,1,1,c;NVRM: Xid (PCI:0000:3b:00.0): 13",
                Some((Some("0000:3b:00"), 13, "")),
            ),
            ("4,1,1,-;NVRM: Xid (0000:3b): 31, x", Some((None, 31, "x"))),
            ("4,1,1,-;NVRM: Xid (PCI:nonsense): 31, x", Some((None, 31, "x"))),
            // Not the kernel's own.
            ("12,1,1,-;NVRM: Xid (PCI:0000:3b:00): 79, forged", None),
            ("4,1,1,-;my NVRM: Xid (PCI:0000:3b:00): 79, quoted", None),
            ("4,1,1,-;NVRM: Xid (PCI:0000:3b:00): many", None),
            ("4,1,1,-;NVRM: Xid (PCI:0000:3b:00): 99999999999999999999999", None),
            ("4,1,1,-;usb 1-1: new device", None),
            ("4,1;NVRM: Xid (PCI:0000:3b:00): 79", None),
            (" SUBSYSTEM=pci", None),
            ("", None),
        ] {
            let want = want.map(|(address, xid, detail): (Option<&str>, u64, &str)| {
                (address.map(str::to_owned), xid, detail.to_owned())
            });
            assert_eq!(xid(record), want, "{record:?}");
        }
        let loaded = parse("5,9,2000000,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.163.01").unwrap();
        assert_eq!((loaded.at, loaded.line), (Duration::from_secs(2), Line::DriverLoaded));
    }

    #[test]
    fn a_line_may_name_a_mig_instance() {
        let of = |gpu, compute| Some(MigInstance { gpu, compute });
        for (place, want) in [
            ("PCI:0000:3b:00", None),
            ("PCI:0000:3b:00 GPU-I:05", of(5, None)),
            ("PCI:0000:3b:00 GPU-I:13 GPU-CI:01", of(13, Some(1))),
            ("PCI:0000:3b:00 GPU-I:x", None),
            ("PCI:0000:3b:00 GPU-CI:01", None),
        ] {
            let record = format!("4,1,1,-;NVRM: Xid ({place}): 31, pid=7, name=x, y");
            let event = parse(&record).unwrap().event(Duration::ZERO, "kmsg").unwrap();
            assert_eq!(event.instance, want, "{place}");
            assert_eq!(event.pci_address.as_deref(), Some("0000:3b:00"), "{place}");
        }
    }

    #[test]
    fn an_event_has_the_records_age_and_a_bounded_detail() {
        let long = format!("4,1,1000000,-;NVRM: Xid (PCI:0000:3b:00): 94, {}", "é".repeat(4096));
        let record = parse(&long).unwrap();
        let event = record.event(Duration::from_secs(61), "kmsg").unwrap();
        assert_eq!(event.age, Duration::from_secs(60));
        assert!(event.detail.len() <= LONGEST_DETAIL && event.detail.ends_with('é'));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in "\\PC{0,200}", head in "[0-9]{1,3},[0-9]{1,9},[0-9]{1,12},-;NVRM: Xid \\(PCI:") {
            let _ = parse(&text);
            let _ = parse(&format!("{head}{text}"));
        }
    }
}
