use super::*;
use crate::facts::{Fabric, FabricHealth, Mig, MigDevice, RemappedRows, RowRemapHistogram};
use crate::health::Reason;

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
    let spare = |low, none| GpuChecks {
        row_remap_histogram: Some(RowRemapHistogram {
            max: 639,
            low,
            none,
            ..RowRemapHistogram::default()
        }),
        ..GpuChecks::default()
    };
    let flags = |change: fn(&mut GpuChecks)| {
        let mut checks = none();
        change(&mut checks);
        checks
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
        ("PCI", none(), NotSupported, None),
        ("ECC corrected", none(), NotSupported, None),
        ("spare rows", none(), NotSupported, None),
        ("spare rows", spare(0, 0), Passed, None),
        ("spare rows", spare(1, 0), Suspect, Some(Reason::RowRemapHeadroom)),
        ("spare rows", spare(0, 1), Suspect, Some(Reason::RowRemapHeadroom)),
        ("repair", none(), NotSupported, None),
        ("repair", flags(|c| c.repair_pending = Some(false)), Passed, None),
        (
            "repair",
            flags(|c| c.repair_pending = Some(true)),
            Suspect,
            Some(Reason::RepairPending),
        ),
        ("temperature", none(), NotSupported, None),
        ("temperature", flags(|c| c.temperature_margin_c = Some(1)), Passed, None),
        (
            "temperature",
            flags(|c| c.temperature_margin_c = Some(0)),
            Suspect,
            Some(Reason::Overheated),
        ),
        ("persistence mode", none(), NotSupported, None),
        (
            "persistence mode",
            flags(|c| c.persistence_mode = Some(true)),
            Passed,
            None,
        ),
        (
            "persistence mode",
            flags(|c| c.persistence_mode = Some(false)),
            Suspect,
            Some(Reason::PersistenceModeOff),
        ),
        ("PCIe generation", none(), NotSupported, None),
        ("PCIe errors", none(), NotSupported, None),
        (
            "fabric",
            flags(|c| {
                c.fabric = Some(FabricHealth {
                    state: 3,
                    health_mask: Some(1),
                    ..FabricHealth::default()
                });
            }),
            Suspect,
            Some(Reason::FabricDegraded),
        ),
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
        assert_eq!(row(none.clone(), &sliced, "spare rows").outcome, Outcome::Unknown);
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
    let counts = |replays, crc, corrected| GpuChecks {
        pcie_replays: Some(replays),
        nvlink_crc_errors: Some(crc),
        ecc_corrected_volatile: Some(corrected),
        ..GpuChecks::default()
    };
    let gpu = Gpu::default();
    let mut observed = Observed::default();
    use Outcome::{Passed, Suspect, Unknown};
    for (at, replays, crc, corrected, replays_want, crc_want, corrected_want) in [
        // What happened before anybody looked says nothing of now.
        (0, 1_000, 1 << 40, 5_000, Unknown, Unknown, Unknown),
        (15, 1_100, (1 << 40) + 90_000, 5_020, Unknown, Unknown, Unknown),
        (60, 1_100, (1 << 40) + 90_000, 5_020, Suspect, Suspect, Suspect),
        (120, 1_108, (1 << 40) + 96_000, 5_030, Passed, Passed, Passed),
        (180, 1_117, (1 << 40) + 102_001, 5_041, Suspect, Suspect, Suspect),
        // It was reset.
        (200, 0, 0, 0, Unknown, Unknown, Unknown),
        (260, 0, 0, 0, Passed, Passed, Passed),
    ] {
        observed.on_checks(counts(replays, crc, corrected), s(at));
        assert_eq!(outcome(&observed, &gpu, 0, "PCIe replays"), replays_want, "at {at} s");
        assert_eq!(outcome(&observed, &gpu, 0, "NVLink errors"), crc_want, "at {at} s");
        assert_eq!(
            outcome(&observed, &gpu, 0, "ECC corrected"),
            corrected_want,
            "at {at} s"
        );
    }
}

#[test]
fn an_nvlink_that_recovers_or_does_not_is_remembered_for_ten_minutes() {
    let s = Duration::from_secs;
    let counts = |recovered, failed| GpuChecks {
        nvlink_recoveries: recovered,
        nvlink_failed_recoveries: failed,
        ..GpuChecks::default()
    };
    for (at_first, then) in [
        (counts(Some(4), None), counts(Some(5), None)),
        (counts(None, Some(0)), counts(None, Some(1))),
    ] {
        let mut observed = Observed::default();
        observed.on_checks(at_first, s(0));
        assert_eq!(outcome(&observed, &Gpu::default(), 0, "NVLink errors"), Outcome::Passed);
        for (at, want) in [(15, Outcome::Suspect), (600, Outcome::Suspect), (615, Outcome::Passed)] {
            observed.on_checks(then.clone(), s(at));
            assert_eq!(
                outcome(&observed, &Gpu::default(), 0, "NVLink errors"),
                want,
                "at {at} s"
            );
        }
    }
}

#[test]
fn a_call_without_an_answer_is_unknown_and_no_verdict_changes_for_it() {
    let s = Duration::from_secs;
    let unclear = || GpuChecks {
        unclear: vec!["nvmlDeviceGetTotalEccErrors".into()],
        ..GpuChecks::default()
    };
    let mut observed = Observed::default();
    observed.on_checks(unclear(), s(0));
    assert_eq!(outcome(&observed, &Gpu::default(), 0, "ECC"), Outcome::Unknown);
    assert_eq!(outcome(&observed, &Gpu::default(), 0, "SRAM"), Outcome::NotSupported);
    for (count, at_first, later) in [
        (0, Outcome::Passed, Outcome::Unknown),
        (1, Outcome::Unhealthy, Outcome::Unhealthy),
    ] {
        let told = GpuChecks {
            ecc_uncorrected_volatile: Some(count),
            ..GpuChecks::default()
        };
        observed.on_checks(told, s(15));
        for (at, want) in [(30, at_first), (315, later)] {
            observed.on_checks(unclear(), s(at));
            assert_eq!(outcome(&observed, &Gpu::default(), 0, "ECC"), want, "{count} at {at} s");
        }
    }
}

#[test]
fn a_gpu_whose_function_is_gone_or_reads_all_ones_is_lost_until_it_answers() {
    let s = Duration::from_secs;
    let read = |answers| PciChecks {
        answers: Some(answers),
        ..PciChecks::default()
    };
    let mut observed = Observed::default();
    let of = |observed: &Observed| outcome(observed, &Gpu::default(), 0, "PCI");
    observed.on_pci(None, s(0));
    assert_eq!(of(&observed), Outcome::NotSupported, "its PCI cannot be seen");
    for (seen, want) in [
        (Some(read(true)), Outcome::Passed),
        (Some(read(false)), Outcome::Unhealthy),
        (Some(read(true)), Outcome::Passed),
        (None, Outcome::Unhealthy),
        (Some(read(true)), Outcome::Passed),
    ] {
        observed.on_pci(seen.as_ref(), s(5));
        assert_eq!(of(&observed), want, "{seen:?}");
    }
}

#[test]
fn every_check_has_its_place_in_the_order() {
    let rows = Observed::default().rows(&Gpu::default(), 0);
    let names: Vec<_> = rows.iter().map(|r| r.check).collect();
    assert_eq!(names, ORDER);
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
