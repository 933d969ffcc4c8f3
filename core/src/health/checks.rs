//! Checks on readings, as opposed to events: each holds as long as its reading says so.
//!
//! ```text
//! slow readings, samples, facts ─► Observed ─► one Row a check ─► the worst counts for the GPU
//! ```

use std::time::Duration;

use super::Reason;
use super::throttle::{Duty, Held};
use super::xid::Effect;
use crate::facts::{Gpu, GpuChecks};

/// What a check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is wrong.
    Passed,
    /// The part or the driver does not have the reading.
    NotSupported,
    /// The reading exists, and cannot be had at the moment: neither well nor ill.
    Unknown,
    /// Worth watching.
    Suspect,
    /// Not to be handed out.
    Unhealthy,
}

/// One check of one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its name, as the documentation has it.
    pub check: &'static str,
    /// What it says.
    pub outcome: Outcome,
    /// Why, where it is not passed.
    pub reason: Option<Reason>,
    /// What was seen and what to do. Free of anything that changes by itself.
    pub message: String,
}

impl Row {
    fn new(check: &'static str, outcome: Outcome) -> Self {
        Self {
            check,
            outcome,
            reason: None,
            message: String::new(),
        }
    }

    fn found(check: &'static str, outcome: Outcome, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            check,
            outcome,
            reason: Some(reason),
            message: message.into(),
        }
    }

    /// Effect on the GPU, where there is one.
    pub fn effect(&self) -> Option<Effect> {
        match self.outcome {
            Outcome::Passed | Outcome::NotSupported | Outcome::Unknown => None,
            Outcome::Suspect => Some(Effect::Suspect),
            Outcome::Unhealthy => Some(Effect::Unhealthy),
        }
    }
}

/// Retired pages that are worth watching, and those after which the vendor takes the part back.
const RETIRED_SOFT: u32 = 15;
const RETIRED_MOST: u32 = 63;
/// PCIe replays a minute that a sound link does not have.
const REPLAYS_A_MINUTE: u64 = 8;
/// NVLink CRC errors a minute (100 a second).
const CRC_ERRORS_A_MINUTE: u64 = 6000;
/// NVML_GPU_FABRIC_STATE_COMPLETED
const FABRIC_COMPLETED: u32 = 3;

/// A counter's growth in the last whole minute that was seen.
#[derive(Debug, Clone, Default)]
struct Rate {
    from: Option<(Duration, u64)>,
    a_minute: Option<u64>,
}

impl Rate {
    const OVER: Duration = Duration::from_secs(60);

    fn on(&mut self, count: u64, at: Duration) {
        match self.from {
            // It went back: the GPU was reset.
            Some((_, before)) if count < before => *self = Self::default(),
            Some((since, before)) if at.saturating_sub(since) >= Self::OVER => {
                let seconds = at.saturating_sub(since).as_secs().max(1);
                self.a_minute = Some((count - before) * 60 / seconds);
            }
            Some(_) => return,
            None => {}
        }
        self.from = Some((at, count));
    }

    /// `None`: not seen for a minute yet.
    fn exceeds(&self, most: u64) -> Option<bool> {
        self.a_minute.map(|n| n > most)
    }
}

/// What was read of one GPU since its driver was loaded.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    last: GpuChecks,
    /// NVLinks that were up at the same time, at most.
    links: u32,
    crc_errors: Rate,
    replays: Rate,
    duty: Duty,
}

impl Observed {
    /// Readings of this moment, on the caller's monotonic clock. What is missing in them stays as it was read before.
    pub fn on_checks(&mut self, new: GpuChecks, at: Duration) {
        let GpuChecks {
            uuid,
            recovery_action,
            ecc_uncorrected_volatile,
            sram_threshold_exceeded,
            remapped_rows,
            retired_pages,
            retired_pages_pending,
            nvlinks_up,
            nvlink_crc_errors,
            pcie_width,
            pcie_max_width,
            pcie_replays,
            inforom_valid,
            encoder_utilization,
            decoder_utilization,
            vgpu_licensed,
        } = new;
        if let Some(up) = nvlinks_up {
            self.links = self.links.max(up);
        }
        if let Some(count) = nvlink_crc_errors {
            self.crc_errors.on(count, at);
        }
        if let Some(count) = pcie_replays {
            self.replays.on(count, at);
        }
        let last = &mut self.last;
        *last = GpuChecks {
            uuid,
            recovery_action: recovery_action.or(last.recovery_action),
            ecc_uncorrected_volatile: ecc_uncorrected_volatile.or(last.ecc_uncorrected_volatile),
            sram_threshold_exceeded: sram_threshold_exceeded.or(last.sram_threshold_exceeded),
            remapped_rows: remapped_rows.or(last.remapped_rows),
            retired_pages: retired_pages.or(last.retired_pages),
            retired_pages_pending: retired_pages_pending.or(last.retired_pages_pending),
            nvlinks_up: nvlinks_up.or(last.nvlinks_up),
            nvlink_crc_errors: nvlink_crc_errors.or(last.nvlink_crc_errors),
            pcie_width: pcie_width.or(last.pcie_width),
            pcie_max_width: pcie_max_width.or(last.pcie_max_width),
            pcie_replays: pcie_replays.or(last.pcie_replays),
            inforom_valid: inforom_valid.or(last.inforom_valid),
            // No check looks at these.
            encoder_utilization,
            decoder_utilization,
            vgpu_licensed,
        };
    }

    /// The clocks-event-reasons mask of a sample. True where the verdict on throttling is another one now.
    pub fn on_clocks(&mut self, reasons: u64, at: Duration) -> bool {
        self.duty.on(reasons, at)
    }

    /// Links that were up at the same time, at most.
    pub fn links(&self) -> u32 {
        self.links
    }

    /// The driver's own verdict, as last read.
    pub fn recovery_action(&self) -> Option<u32> {
        self.last.recovery_action
    }

    /// Every check, in the order of what counts first where two are equally bad. `peer_links`: NVLinks of the node's other GPUs on the
    /// same fabric, at most.
    pub fn rows(&self, gpu: &Gpu, peer_links: u32) -> Vec<Row> {
        let last = &self.last;
        vec![
            ecc(last),
            sram(last),
            row_remap(last, gpu),
            retired_pages(last),
            inforom(last),
            recovery_action(last),
            self.throttle(),
            pcie_width(last),
            self.pcie_replays(),
            fabric(gpu),
            self.nvlinks(gpu, peer_links),
            self.nvlink_errors(),
        ]
    }

    fn throttle(&self) -> Row {
        const CHECK: &str = "throttling";
        match self.duty.held() {
            None if !self.duty.was_seen() => Row::new(CHECK, Outcome::NotSupported),
            None => Row::new(CHECK, Outcome::Passed),
            Some(Held::Now) => Row::found(
                CHECK,
                Outcome::Suspect,
                Reason::Throttled,
                "heat or power held the clocks down for a tenth of the last 10 minutes: check cooling and power",
            ),
            Some(Held::Mostly) => Row::found(
                CHECK,
                Outcome::Unhealthy,
                Reason::Throttled,
                "heat or power held the clocks down for most of the last 10 minutes: check cooling and power",
            ),
        }
    }

    fn pcie_replays(&self) -> Row {
        const CHECK: &str = "PCIe replays";
        match (self.last.pcie_replays, self.replays.exceeds(REPLAYS_A_MINUTE)) {
            (None, _) => Row::new(CHECK, Outcome::NotSupported),
            (Some(_), None | Some(false)) => Row::new(CHECK, Outcome::Passed),
            (Some(_), Some(true)) => Row::found(
                CHECK,
                Outcome::Suspect,
                Reason::PcieReplays,
                format!("the PCIe link repeats more than {REPLAYS_A_MINUTE} packets a minute: reseat the card"),
            ),
        }
    }

    fn nvlinks(&self, gpu: &Gpu, peer_links: u32) -> Row {
        const CHECK: &str = "NVLink";
        let Some(up) = self.last.nvlinks_up else {
            return Row::new(CHECK, Outcome::NotSupported);
        };
        // Parts on a fabric are wired alike; where bridges are plugged, some parts have none.
        let peers = if gpu.fabric.is_some() { peer_links } else { 0 };
        let expected = self.links.max(peers);
        if up >= expected {
            return Row::new(CHECK, Outcome::Passed);
        }
        // Models on one GPU do not need it: no reason to take the GPU away from all.
        Row::found(
            CHECK,
            Outcome::Suspect,
            Reason::NvLinkDown,
            format!("{up} of {expected} NVLinks are up: unfit for jobs on several GPUs; reset the GPUs"),
        )
    }

    fn nvlink_errors(&self) -> Row {
        const CHECK: &str = "NVLink errors";
        match (
            self.last.nvlink_crc_errors,
            self.crc_errors.exceeds(CRC_ERRORS_A_MINUTE),
        ) {
            (None, _) => Row::new(CHECK, Outcome::NotSupported),
            (Some(_), None | Some(false)) => Row::new(CHECK, Outcome::Passed),
            (Some(_), Some(true)) => Row::found(
                CHECK,
                Outcome::Suspect,
                Reason::NvLinkError,
                "more than 100 NVLink CRC errors a second: check the NVLinks",
            ),
        }
    }
}

fn ecc(last: &GpuChecks) -> Row {
    const CHECK: &str = "ECC";
    match last.ecc_uncorrected_volatile {
        None => Row::new(CHECK, Outcome::NotSupported),
        Some(0) => Row::new(CHECK, Outcome::Passed),
        Some(count) => Row::found(
            CHECK,
            Outcome::Unhealthy,
            Reason::DoubleBitError,
            format!("{count} uncorrectable memory error(s): drain the node and reset the GPU"),
        ),
    }
}

fn sram(last: &GpuChecks) -> Row {
    const CHECK: &str = "SRAM";
    match last.sram_threshold_exceeded {
        None => Row::new(CHECK, Outcome::NotSupported),
        Some(false) => Row::new(CHECK, Outcome::Passed),
        Some(true) => Row::found(
            CHECK,
            Outcome::Unhealthy,
            Reason::SramThreshold,
            "uncorrectable SRAM errors passed the vendor's threshold: replace the GPU",
        ),
    }
}

fn row_remap(last: &GpuChecks, gpu: &Gpu) -> Row {
    const CHECK: &str = "row remapping";
    // The driver tells nothing while MIG instances are active. A failure seen before is one still.
    let hidden = gpu.mig.as_ref().is_some_and(|m| m.enabled && !m.devices.is_empty());
    match last.remapped_rows {
        Some(rows) if rows.failure => Row::found(
            CHECK,
            Outcome::Unhealthy,
            Reason::RowRemapFailure,
            "a row of memory could not be remapped: replace the GPU",
        ),
        _ if hidden => Row {
            message: "the driver does not tell while MIG instances are active".into(),
            ..Row::new(CHECK, Outcome::Unknown)
        },
        None => Row::new(CHECK, Outcome::NotSupported),
        Some(rows) if rows.pending => Row::found(
            CHECK,
            Outcome::Suspect,
            Reason::RowRemapPending,
            "a row of memory waits to be remapped: reset the GPU when it is idle",
        ),
        Some(_) => Row::new(CHECK, Outcome::Passed),
    }
}

fn retired_pages(last: &GpuChecks) -> Row {
    const CHECK: &str = "retired pages";
    let found = |outcome, message: &str| Row::found(CHECK, outcome, Reason::RetiredPages, message);
    match (last.retired_pages, last.retired_pages_pending) {
        (None, None) => Row::new(CHECK, Outcome::NotSupported),
        (Some(RETIRED_MOST..), _) => found(
            Outcome::Unhealthy,
            "as many pages of memory are retired as can be: replace the GPU",
        ),
        (_, Some(true)) => found(
            Outcome::Suspect,
            "pages of memory wait to be retired: restart the machine",
        ),
        (Some(count), _) if count > RETIRED_SOFT => found(
            Outcome::Suspect,
            "more than 15 pages of memory are retired: plan a replacement",
        ),
        _ => Row::new(CHECK, Outcome::Passed),
    }
}

fn inforom(last: &GpuChecks) -> Row {
    const CHECK: &str = "infoROM";
    match last.inforom_valid {
        None => Row::new(CHECK, Outcome::NotSupported),
        Some(true) => Row::new(CHECK, Outcome::Passed),
        Some(false) => Row::found(
            CHECK,
            Outcome::Unhealthy,
            Reason::InforomCorrupted,
            "the infoROM is corrupted: contact the vendor",
        ),
    }
}

/// Values of NVML's `nvmlDeviceGpuRecoveryAction_t`; 5 and up are in newer headers or the documentation alone.
fn recovery_action(last: &GpuChecks) -> Row {
    const CHECK: &str = "recovery action";
    let found = |outcome, message: &str| Row::found(CHECK, outcome, Reason::RecoveryAction, message);
    match last.recovery_action {
        None => Row::new(CHECK, Outcome::NotSupported),
        Some(0) => Row::new(CHECK, Outcome::Passed),
        Some(1) => found(Outcome::Unhealthy, "the driver asks for a reset of the GPU"),
        Some(2) => found(Outcome::Unhealthy, "the driver asks for a restart of the machine"),
        Some(3) => found(
            Outcome::Unhealthy,
            "the driver asks to drain peer-to-peer traffic and reset the GPU",
        ),
        Some(4) => found(Outcome::Unhealthy, "the driver asks to drain the GPU and reset it"),
        Some(5) => found(Outcome::Suspect, "the driver asks to recover the IMEX domain"),
        Some(6) => found(Outcome::Unhealthy, "the driver asks for a reset of the bus"),
        Some(7) => found(Outcome::Unhealthy, "the driver asks for a restart of the system"),
        Some(other) => found(
            Outcome::Unhealthy,
            &format!("the driver asks for recovery action {other}, which is not known here"),
        ),
    }
}

fn pcie_width(last: &GpuChecks) -> Row {
    const CHECK: &str = "PCIe width";
    match (last.pcie_width, last.pcie_max_width) {
        (Some(width), Some(most)) if width < most => Row::found(
            CHECK,
            Outcome::Suspect,
            Reason::PcieWidth,
            format!("the PCIe link has {width} of {most} lanes: reseat the card"),
        ),
        (Some(_), Some(_)) => Row::new(CHECK, Outcome::Passed),
        (None, _) | (_, None) => Row::new(CHECK, Outcome::NotSupported),
    }
}

fn fabric(gpu: &Gpu) -> Row {
    const CHECK: &str = "fabric";
    match &gpu.fabric {
        None => Row::new(CHECK, Outcome::NotSupported),
        Some(fabric) if fabric.state == FABRIC_COMPLETED && fabric.status == 0 => Row::new(CHECK, Outcome::Passed),
        Some(fabric) if fabric.state == FABRIC_COMPLETED => Row::found(
            CHECK,
            Outcome::Suspect,
            Reason::FabricNotReady,
            format!(
                "registration with the NVLink fabric failed (NVML error {}): check the fabric manager",
                fabric.status
            ),
        ),
        Some(_) => Row::found(
            CHECK,
            Outcome::Suspect,
            Reason::FabricNotReady,
            "registration with the NVLink fabric is not complete: check the fabric manager",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Fabric, Mig, MigDevice, RemappedRows};

    fn row(checks: GpuChecks, gpu: &Gpu, name: &str) -> Row {
        let mut observed = Observed::default();
        observed.on_checks(checks, Duration::ZERO);
        let rows = observed.rows(gpu, 0);
        rows.into_iter().find(|r| r.check == name).expect(name)
    }

    fn remapped(pending: bool, failure: bool) -> GpuChecks {
        GpuChecks {
            remapped_rows: Some(RemappedRows {
                pending,
                failure,
                ..RemappedRows::default()
            }),
            ..GpuChecks::default()
        }
    }

    #[test]
    fn every_reading_and_its_verdict() {
        use Outcome::*;
        let none = GpuChecks::default;
        let recovery = |n| GpuChecks {
            recovery_action: Some(n),
            ..none()
        };
        let ecc = |n| GpuChecks {
            ecc_uncorrected_volatile: Some(n),
            ..none()
        };
        let sram = |b| GpuChecks {
            sram_threshold_exceeded: Some(b),
            ..none()
        };
        let retired = |n, pending| GpuChecks {
            retired_pages: Some(n),
            retired_pages_pending: Some(pending),
            ..none()
        };
        let inforom = |b| GpuChecks {
            inforom_valid: Some(b),
            ..none()
        };
        let width = |now, most| GpuChecks {
            pcie_width: Some(now),
            pcie_max_width: Some(most),
            ..none()
        };
        for (name, checks, outcome, reason) in [
            ("ECC", none(), NotSupported, None),
            ("ECC", ecc(0), Passed, None),
            ("ECC", ecc(1), Unhealthy, Some(Reason::DoubleBitError)),
            ("SRAM", none(), NotSupported, None),
            ("SRAM", sram(false), Passed, None),
            ("SRAM", sram(true), Unhealthy, Some(Reason::SramThreshold)),
            ("row remapping", none(), NotSupported, None),
            ("row remapping", remapped(false, false), Passed, None),
            (
                "row remapping",
                remapped(true, false),
                Suspect,
                Some(Reason::RowRemapPending),
            ),
            (
                "row remapping",
                remapped(true, true),
                Unhealthy,
                Some(Reason::RowRemapFailure),
            ),
            ("retired pages", none(), NotSupported, None),
            ("retired pages", retired(15, false), Passed, None),
            ("retired pages", retired(16, false), Suspect, Some(Reason::RetiredPages)),
            ("retired pages", retired(0, true), Suspect, Some(Reason::RetiredPages)),
            (
                "retired pages",
                retired(63, false),
                Unhealthy,
                Some(Reason::RetiredPages),
            ),
            ("infoROM", none(), NotSupported, None),
            ("infoROM", inforom(true), Passed, None),
            ("infoROM", inforom(false), Unhealthy, Some(Reason::InforomCorrupted)),
            ("recovery action", none(), NotSupported, None),
            ("recovery action", recovery(0), Passed, None),
            ("recovery action", recovery(1), Unhealthy, Some(Reason::RecoveryAction)),
            ("recovery action", recovery(2), Unhealthy, Some(Reason::RecoveryAction)),
            ("recovery action", recovery(3), Unhealthy, Some(Reason::RecoveryAction)),
            ("recovery action", recovery(4), Unhealthy, Some(Reason::RecoveryAction)),
            ("recovery action", recovery(5), Suspect, Some(Reason::RecoveryAction)),
            ("recovery action", recovery(6), Unhealthy, Some(Reason::RecoveryAction)),
            ("recovery action", recovery(7), Unhealthy, Some(Reason::RecoveryAction)),
            ("recovery action", recovery(99), Unhealthy, Some(Reason::RecoveryAction)),
            ("PCIe width", none(), NotSupported, None),
            ("PCIe width", width(16, 16), Passed, None),
            ("PCIe width", width(8, 16), Suspect, Some(Reason::PcieWidth)),
            ("PCIe replays", none(), NotSupported, None),
            ("NVLink", none(), NotSupported, None),
            ("NVLink errors", none(), NotSupported, None),
            ("fabric", none(), NotSupported, None),
            ("throttling", none(), NotSupported, None),
        ] {
            let row = row(checks.clone(), &Gpu::default(), name);
            assert_eq!((row.outcome, row.reason), (outcome, reason), "{name} {checks:?}");
            assert_eq!(row.message.is_empty(), reason.is_none(), "{name}: {}", row.message);
        }
    }

    #[test]
    fn row_remapping_is_unknown_under_mig_and_a_failure_stays_known() {
        let mut sliced = Gpu {
            mig: Some(Mig {
                enabled: true,
                devices: vec![MigDevice::default()],
                ..Mig::default()
            }),
            ..Gpu::default()
        };
        let none = GpuChecks::default();
        for (checks, outcome) in [
            (none.clone(), Outcome::Unknown),
            (remapped(false, false), Outcome::Unknown),
            (remapped(false, true), Outcome::Unhealthy),
        ] {
            assert_eq!(row(checks, &sliced, "row remapping").outcome, outcome);
        }
        sliced.mig = Some(Mig::default());
        assert_eq!(row(none, &sliced, "row remapping").outcome, Outcome::NotSupported);
    }

    #[test]
    fn fabric_registration() {
        for (state, status, outcome) in [
            (1, 0, Outcome::Suspect),
            (2, 0, Outcome::Suspect),
            (3, 0, Outcome::Passed),
            (3, 999, Outcome::Suspect),
        ] {
            let gpu = Gpu {
                fabric: Some(Fabric {
                    state,
                    status,
                    ..Fabric::default()
                }),
                ..Gpu::default()
            };
            assert_eq!(
                row(GpuChecks::default(), &gpu, "fabric").outcome,
                outcome,
                "{state} {status}"
            );
        }
    }

    fn outcome(observed: &Observed, gpu: &Gpu, peers: u32, name: &str) -> Outcome {
        let rows = observed.rows(gpu, peers);
        rows.into_iter().find(|r| r.check == name).expect(name).outcome
    }

    #[test]
    fn a_link_that_was_up_and_is_not_is_down() {
        let up = |n| GpuChecks {
            nvlinks_up: Some(n),
            ..GpuChecks::default()
        };
        let bridged = Gpu::default();
        let mut observed = Observed::default();
        for (n, want) in [
            (0, Outcome::Passed),
            (4, Outcome::Passed),
            (3, Outcome::Suspect),
            (4, Outcome::Passed),
        ] {
            observed.on_checks(up(n), Duration::ZERO);
            assert_eq!(outcome(&observed, &bridged, 12, "NVLink"), want, "{n}");
        }
        let on_fabric = Gpu {
            fabric: Some(Fabric::default()),
            ..Gpu::default()
        };
        assert_eq!(outcome(&observed, &on_fabric, 4, "NVLink"), Outcome::Passed);
        assert_eq!(outcome(&observed, &on_fabric, 18, "NVLink"), Outcome::Suspect);
    }

    #[test]
    fn counters_count_by_their_growth_in_a_minute() {
        let s = Duration::from_secs;
        let counts = |replays, crc| GpuChecks {
            pcie_replays: Some(replays),
            nvlink_crc_errors: Some(crc),
            ..GpuChecks::default()
        };
        let gpu = Gpu::default();
        let mut observed = Observed::default();
        for (at, replays, crc, replays_want, crc_want) in [
            // What happened before anybody looked says nothing of now.
            (0, 1_000, 1 << 40, Outcome::Passed, Outcome::Passed),
            (15, 1_100, (1 << 40) + 90_000, Outcome::Passed, Outcome::Passed),
            (60, 1_100, (1 << 40) + 90_000, Outcome::Suspect, Outcome::Suspect),
            (120, 1_108, (1 << 40) + 96_000, Outcome::Passed, Outcome::Passed),
            (180, 1_117, (1 << 40) + 102_001, Outcome::Suspect, Outcome::Suspect),
            // It was reset.
            (200, 0, 0, Outcome::Passed, Outcome::Passed),
        ] {
            observed.on_checks(counts(replays, crc), s(at));
            assert_eq!(outcome(&observed, &gpu, 0, "PCIe replays"), replays_want, "at {at} s");
            assert_eq!(outcome(&observed, &gpu, 0, "NVLink errors"), crc_want, "at {at} s");
        }
    }

    #[test]
    fn a_reading_that_is_missing_once_stays_known() {
        let mut observed = Observed::default();
        let invalid = GpuChecks {
            inforom_valid: Some(false),
            ..GpuChecks::default()
        };
        observed.on_checks(invalid, Duration::ZERO);
        observed.on_checks(GpuChecks::default(), Duration::from_secs(15));
        assert_eq!(outcome(&observed, &Gpu::default(), 0, "infoROM"), Outcome::Unhealthy);
    }

    #[test]
    fn throttling_counts_by_its_share_of_time() {
        let mut observed = Observed::default();
        let gpu = Gpu::default();
        for second in 0..600 {
            // Half a minute of each: power brake, then idle.
            observed.on_clocks(if second % 60 < 45 { 0x80 } else { 0x1 }, Duration::from_secs(second));
        }
        assert_eq!(outcome(&observed, &gpu, 0, "throttling"), Outcome::Unhealthy);
        for second in 600..1200 {
            observed.on_clocks(0x1, Duration::from_secs(second));
        }
        assert_eq!(outcome(&observed, &gpu, 0, "throttling"), Outcome::Passed);
    }
}
