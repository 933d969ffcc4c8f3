//! NVLink and the fabric behind it.

use std::time::Duration;

use super::reading::{Growth, Last, Rate};
use super::row::{Outcome, Row};
use crate::facts::{FabricHealth, Gpu};
use crate::health::Reason;

/// NVLink CRC errors a minute (100 a second).
const CRC_ERRORS_A_MINUTE: u64 = 6000;
/// NVML_GPU_FABRIC_STATE_COMPLETED
const FABRIC_COMPLETED: u32 = 3;

/// What was read of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Links {
    pub up: Last<u32>,
    /// NVLinks that were up at the same time, at most.
    pub most_up: u32,
    pub crc: Last<u64>,
    pub crc_rate: Rate,
    pub recoveries: Growth,
    pub failed_recoveries: Growth,
    pub fabric: Last<FabricHealth>,
}

impl Links {
    pub fn rows(&self, gpu: &Gpu, peer_links: u32, now: Duration) -> Vec<Row> {
        vec![
            self.fabric(gpu, now),
            self.nvlinks(gpu, peer_links, now),
            self.errors(now),
        ]
    }

    fn nvlinks(&self, gpu: &Gpu, peer_links: u32, now: Duration) -> Row {
        const CHECK: &str = "NVLink";
        // Parts on a fabric are wired alike; where bridges are plugged, some parts have none.
        let peers = if gpu.fabric.is_some() { peer_links } else { 0 };
        let expected = self.most_up.max(peers);
        self.up.row(CHECK, now, |up| match *up {
            up if up >= expected => Row::passed(CHECK, format!("{up} up")),
            // Models on one GPU do not need it: no reason to take the GPU away from all.
            up => Row::suspect(
                CHECK,
                Reason::NvLinkDown,
                format!("{up} of {expected} NVLinks are up: unfit for jobs on several GPUs; reset the GPUs"),
            ),
        })
    }

    fn errors(&self, now: Duration) -> Row {
        const CHECK: &str = "NVLink errors";
        let ill = |message: &str| Row::suspect(CHECK, Reason::NvLinkError, message);
        if self.failed_recoveries.is_recent(now) {
            return ill("an NVLink failed and did not recover: check the NVLinks, reset the GPUs");
        }
        if self.recoveries.is_recent(now) {
            return ill("an NVLink failed and recovered: check the NVLinks");
        }
        let row = self.crc.row(CHECK, now, |_| {
            self.crc_rate.row(CHECK, CRC_ERRORS_A_MINUTE, || {
                ill("more than 100 NVLink CRC errors a second: check the NVLinks")
            })
        });
        match row.outcome {
            // NVLink 5 counts no CRC errors.
            Outcome::NotSupported if self.failed_recoveries.was_seen() || self.recoveries.was_seen() => {
                Row::passed(CHECK, "no failed recoveries")
            }
            _ => row,
        }
    }

    /// By the fresher of the reading and the inventory.
    fn fabric(&self, gpu: &Gpu, now: Duration) -> Row {
        const CHECK: &str = "fabric";
        let known = gpu.fabric.as_ref().map(|f| FabricHealth {
            state: f.state,
            status: f.status,
            ..FabricHealth::default()
        });
        match (known, self.fabric.value()) {
            (Some(known), None) => judge_fabric(&known),
            (Some(known), Some(_)) if !self.fabric.is_fresh(now) => judge_fabric(&known),
            _ => self.fabric.row(CHECK, now, judge_fabric),
        }
    }
}

fn judge_fabric(fabric: &FabricHealth) -> Row {
    const CHECK: &str = "fabric";
    let not_ready = |message: String| Row::suspect(CHECK, Reason::FabricNotReady, message);
    if fabric.state != FABRIC_COMPLETED {
        return not_ready("registration with the NVLink fabric is not complete: check the fabric manager".into());
    }
    if fabric.status != 0 {
        return not_ready(format!(
            "registration with the NVLink fabric failed (NVML error {}): check the fabric manager",
            fabric.status
        ));
    }
    match (ills(fabric.health_mask.unwrap_or(0)).as_slice(), fabric.health_summary) {
        ([], Some(UNHEALTHY)) => Row::suspect(CHECK, Reason::FabricDegraded, "the NVLink fabric is unhealthy"),
        ([], Some(LIMITED_CAPACITY)) => {
            Row::suspect(CHECK, Reason::FabricDegraded, "the NVLink fabric has limited capacity")
        }
        ([], _) => Row::passed(CHECK, "registered"),
        (ills, _) => Row::suspect(
            CHECK,
            Reason::FabricDegraded,
            format!("the NVLink fabric: {}", ills.join(", ")),
        ),
    }
}

/// NVML_GPU_FABRIC_HEALTH_SUMMARY_UNHEALTHY
const UNHEALTHY: u32 = 2;
/// NVML_GPU_FABRIC_HEALTH_SUMMARY_LIMITED_CAPACITY
const LIMITED_CAPACITY: u32 = 3;

/// The ills that `NVML_GPU_FABRIC_HEALTH_MASK_*` tells, in two bits each (0 not supported, 1 true, 2 false) and four for the last.
fn ills(mask: u32) -> Vec<&'static str> {
    let truths = [
        (0, "degraded bandwidth"),
        (2, "a route is being recovered"),
        (4, "a route is unhealthy"),
        (6, "access times out and is being recovered"),
    ];
    let mut ills: Vec<_> = truths
        .into_iter()
        .filter(|(shift, _)| (mask >> shift) & 0b11 == 1)
        .map(|(_, ill)| ill)
        .collect();
    match (mask >> 8) & 0b1111 {
        // Not supported, and none.
        0 | 1 => {}
        2 => ills.push("wrong system GUID"),
        3 => ills.push("wrong chassis serial number"),
        4 => ills.push("no partition"),
        5 => ills.push("too few NVLinks"),
        _ => ills.push("wrong configuration"),
    }
    ills
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registration_and_health_of_the_fabric() {
        use Outcome::{Passed, Suspect};
        for (state, status, mask, summary, outcome, says) in [
            (1, 0, None, None, Suspect, "not complete"),
            (2, 0, None, None, Suspect, "not complete"),
            (3, 0, None, None, Passed, ""),
            (3, 999, None, None, Suspect, "NVML error 999"),
            (3, 0, Some(0), Some(0), Passed, ""),
            // False of each, and no wrong configuration.
            (3, 0, Some(0x1aa), Some(1), Passed, ""),
            (3, 0, Some(0x1a9), None, Suspect, "degraded bandwidth"),
            (3, 0, Some(0x1a6), None, Suspect, "being recovered"),
            (3, 0, Some(0x19a), None, Suspect, "unhealthy"),
            (3, 0, Some(0x16a), None, Suspect, "times out"),
            (3, 0, Some(0x5aa), None, Suspect, "too few NVLinks"),
            (3, 0, Some(0x9aa), None, Suspect, "wrong configuration"),
            (3, 0, Some(0x1aa), Some(2), Suspect, "unhealthy"),
            (3, 0, None, Some(3), Suspect, "limited capacity"),
        ] {
            let row = judge_fabric(&FabricHealth {
                state,
                status,
                health_mask: mask,
                health_summary: summary,
            });
            assert_eq!(row.outcome, outcome, "{state} {status} {mask:x?} {summary:?}");
            assert!(row.message.contains(says), "{}", row.message);
            let degraded = (state, status) == (3, 0) && outcome == Suspect;
            assert_eq!(row.reason == Some(Reason::FabricDegraded), degraded);
        }
    }
}
