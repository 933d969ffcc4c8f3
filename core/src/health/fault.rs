//! One thing that is held against a GPU.

use std::time::Duration;

use super::checks::Row;
use super::clearing::Proof;
use super::xid::{self, Effect, Part, Verdict};
use super::{Reason, nvml_event};
use crate::facts::{GpuEvent, GpuEventKind, SOURCE_KERNEL_LOG_EARLIER};

/// Something held against one GPU: an event until what it needs is proven, a check's finding as long as it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub effect: Effect,
    pub reason: Reason,
    pub message: String,
    /// How long ago it happened when it was told.
    pub age: Duration,
    /// The least that ends it, where it is an event.
    pub until: Proof,
    /// The XID that it is of, where the kernel's words decide about it.
    pub in_words: Option<InWords>,
}

/// An XID of which NVML tells the number and the kernel log the meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InWords {
    pub xid: u64,
    /// On the tracker's clock.
    pub happened: Duration,
    /// The words were not there.
    pub lacking: bool,
}

impl InWords {
    /// NVML and the kernel log tell of one fault within this time.
    const WINDOW: Duration = Duration::from_secs(2);

    /// Whether both tell of the same fault.
    pub fn is_twin_of(self, other: Self) -> bool {
        self.xid == other.xid && self.happened.abs_diff(other.happened) <= Self::WINDOW
    }
}

impl Fault {
    /// Seen just now, and not by an event.
    pub fn seen(effect: Effect, reason: Reason, message: String) -> Self {
        Self {
            effect,
            reason,
            message,
            age: Duration::ZERO,
            until: Proof::Reset,
            in_words: None,
        }
    }

    /// What an event means that comes at `now`; `None`: it is no fault.
    pub fn of(event: &GpuEvent, part: Part, now: Duration) -> Option<Self> {
        let (verdict, message) = match &event.kind {
            GpuEventKind::Xid(xid) => {
                let verdict = xid::judge(*xid, &event.detail, part);
                let message = format!("XID {xid}: {}", verdict.advice);
                (verdict, message)
            }
            GpuEventKind::Other(name) => match nvml_event::judge(name) {
                Some(verdict) => {
                    let message = verdict.advice.clone().into_owned();
                    (verdict, message)
                }
                None if matches!(&**name, "DriverBound" | "DriverUnbound") => return None,
                None => {
                    let of = Verdict::of(Effect::Suspect, Reason::XidWarning, Proof::Reset, "");
                    (of, format!("the driver reported {name}"))
                }
            },
        };
        let happened = now.saturating_sub(event.age);
        let in_words = match event.kind {
            GpuEventKind::Xid(xid) if xid::is_told_in_words(xid) => Some(InWords {
                xid,
                happened,
                lacking: verdict.lacks_words,
            }),
            GpuEventKind::Xid(_) | GpuEventKind::Other(_) => None,
        };
        let mut fault = Self {
            effect: verdict.effect,
            reason: verdict.reason,
            message,
            age: event.age,
            until: verdict.until,
            in_words,
        };
        let lasts = matches!(event.kind, GpuEventKind::Xid(xid) if xid::lasts_for_this_boot(xid));
        if event.source == SOURCE_KERNEL_LOG_EARLIER && fault.is_unhealthy() && !lasts {
            // A GPU that is still ill shows it in other ways, too; one that was reset since must not stay away for an old line.
            fault.effect = Effect::Suspect;
            fault
                .message
                .push_str(" (before the kernel log was followed; it may have been done since)");
        }
        Some(fault)
    }

    /// The worst of the checks, the first of those that are equally bad.
    pub fn worst(rows: &[Row]) -> Option<Self> {
        let mut worst: Option<Self> = None;
        for row in rows {
            let (Some(effect), Some(reason)) = (row.effect(), row.reason) else {
                continue;
            };
            if worst.as_ref().is_none_or(|w| effect > w.effect) {
                worst = Some(Self::seen(effect, reason, row.message.clone()));
            }
        }
        worst
    }

    pub fn is_unhealthy(&self) -> bool {
        self.effect == Effect::Unhealthy
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{SOURCE_KERNEL_LOG, SOURCE_NVML};

    #[test]
    fn an_xid_from_before_the_log_was_followed_counts_in_full_where_a_reset_cannot_have_ended_it() {
        for (xid, source, effect) in [
            (95, SOURCE_NVML, Effect::Unhealthy),
            (95, SOURCE_KERNEL_LOG, Effect::Unhealthy),
            (95, SOURCE_KERNEL_LOG_EARLIER, Effect::Suspect),
            (48, SOURCE_KERNEL_LOG_EARLIER, Effect::Suspect),
            (999, SOURCE_KERNEL_LOG_EARLIER, Effect::Suspect),
            (79, SOURCE_KERNEL_LOG_EARLIER, Effect::Unhealthy),
            (151, SOURCE_KERNEL_LOG_EARLIER, Effect::Unhealthy),
        ] {
            let event = GpuEvent {
                kind: GpuEventKind::Xid(xid),
                uuid: None,
                pci_address: None,
                age: Duration::ZERO,
                source: source.into(),
                detail: String::new(),
                instance: None,
            };
            let fault = Fault::of(&event, Part::default(), Duration::ZERO).unwrap();
            assert_eq!(fault.effect, effect, "XID {xid} of {source}");
        }
    }
}
