//! One fault, told by NVML and by the kernel log, counts once.

use std::collections::VecDeque;
use std::time::Duration;

use crate::facts::{GpuEvent, GpuEventKind, MigInstance};

/// Two sources tell of one fault within this time.
const WINDOW: Duration = Duration::from_secs(2);
/// More than the GPUs of a node report in that time.
const MOST: usize = 256;

/// Events of the last moments.
#[derive(Debug, Clone, Default)]
pub struct Recent(VecDeque<Seen>);

#[derive(Debug, Clone)]
struct Seen {
    xid: u64,
    slot: Option<String>,
    instance: Option<MigInstance>,
    from_nvml: bool,
    happened: Duration,
}

impl Recent {
    /// Whether the event is no other source's report of one that came before. `now` is on any monotonic clock. The same source never
    /// reports twice, so what it repeats happened again.
    pub fn is_new(&mut self, event: &GpuEvent, now: Duration) -> bool {
        let GpuEventKind::Xid(xid) = event.kind else {
            return true;
        };
        let slot = event.pci_address.as_deref().map(|a| {
            let slot = a.split('.').next().unwrap_or(a);
            slot.to_ascii_lowercase()
        });
        let seen = Seen {
            xid,
            slot,
            instance: event.instance,
            from_nvml: event.source == crate::facts::SOURCE_NVML,
            happened: now.saturating_sub(event.age),
        };
        let twin = self.0.iter().position(|s| {
            s.xid == seen.xid
                && s.slot == seen.slot
                // Where only one names an instance it may be the same all the same.
                && s.instance.zip(seen.instance).is_none_or(|(a, b)| a.gpu == b.gpu)
                && s.from_nvml != seen.from_nvml
                && s.happened.abs_diff(seen.happened) <= WINDOW
        });
        if let Some(at) = twin {
            // A second pair is a second fault.
            self.0.remove(at);
            return false;
        }
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(seen);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(xid: u64, source: &str, address: &str, age_ms: u64) -> GpuEvent {
        GpuEvent {
            kind: GpuEventKind::Xid(xid),
            uuid: None,
            pci_address: Some(address.into()),
            age: Duration::from_millis(age_ms),
            source: source.into(),
            detail: String::new(),
            instance: None,
        }
    }

    #[test]
    fn the_other_sources_report_within_two_seconds_is_the_same_fault() {
        let mut recent = Recent::default();
        let s = Duration::from_secs;
        for (what, event, at, new) in [
            ("first", event(79, "nvml", "0000:3b:00.0", 0), 10, true),
            ("the log's line of it", event(79, "kmsg", "0000:3B:00", 100), 10, false),
            ("again", event(79, "nvml", "0000:3b:00.0", 0), 11, true),
            (
                "and again, by the same source",
                event(79, "nvml", "0000:3b:00.0", 0),
                11,
                true,
            ),
            ("another GPU", event(79, "kmsg", "0000:3c:00", 0), 11, true),
            ("another XID", event(48, "kmsg", "0000:3b:00", 0), 11, true),
            ("much later", event(79, "kmsg", "0000:3b:00", 0), 60, true),
            (
                "late, but of then",
                event(48, "nvml", "0000:3b:00.0", 49_500),
                60,
                false,
            ),
        ] {
            assert_eq!(recent.is_new(&event, s(at)), new, "{what}");
        }
    }

    #[test]
    fn faults_of_two_mig_instances_are_two() {
        let of = |source: &str, gpu: Option<u32>| GpuEvent {
            instance: gpu.map(|gpu| MigInstance { gpu, compute: None }),
            ..event(31, source, "0000:3b:00", 0)
        };
        for (first, second, new) in [
            (Some(1), Some(1), false),
            (Some(1), Some(2), true),
            (Some(1), None, false),
            (None, Some(1), false),
        ] {
            let mut recent = Recent::default();
            assert!(recent.is_new(&of("nvml", first), Duration::ZERO));
            assert_eq!(
                recent.is_new(&of("kmsg", second), Duration::ZERO),
                new,
                "{first:?} {second:?}"
            );
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut recent = Recent::default();
        for n in 0..10_000 {
            assert!(recent.is_new(&event(n, "nvml", "0000:3b:00.0", 0), Duration::ZERO));
        }
        assert_eq!(recent.0.len(), MOST);
    }
}
