//! What ends what is held against a GPU.

use super::*;

/// Which proof ends the fault of which XID: nothing asked, two signs of a reset, lost and answering, driver loaded anew.
#[test]
fn each_fault_ends_by_what_it_needs() {
    use GpuState::{Healthy as H, Suspect as S, Unhealthy as U, Verifying as V};
    for (number, nothing_asked, reset, comeback, reload) in [
        (95, U, V, V, V),
        (48, U, V, V, V),
        (74, U, V, V, V),
        (79, U, U, U, V),
        (54, U, U, U, V),
        (142, U, U, U, V),
        (151, U, U, U, V),
        (78, S, S, S, H),
        (149, S, H, H, H),
        (159, S, H, H, H),
        (154, H, H, H, H),
        (167, H, H, H, H),
        (172, S, H, H, H),
        (999, S, H, H, H),
    ] {
        let counters = |c: &mut GpuChecks| {
            (c.recovery_action, c.pcie_replays, c.nvlink_crc_errors) = (Some(0), Some(4), Some(9));
        };
        let ill = || {
            let mut tracker = ready();
            tracker.on_checks(checks(0, counters), s(1));
            tracker.on_event(&event(number, 0, ""), s(2));
            tracker
        };
        let sample = GpuSample {
            uuid: "GPU-0".into(),
            ..GpuSample::default()
        };
        let mut tracker = ill();
        tracker.on_checks(checks(0, counters), s(3));
        assert_eq!(
            is(&tracker, "GPU-0", 60).0,
            nothing_asked,
            "XID {number}: nothing asked"
        );

        let mut tracker = ill();
        tracker.on_checks(
            checks(0, |c| (c.pcie_replays, c.nvlink_crc_errors) = (Some(0), Some(0))),
            s(3),
        );
        assert_eq!(is(&tracker, "GPU-0", 3).0, reset, "XID {number}: counters fell");

        let mut tracker = ill();
        tracker.on_lost("GPU-0", "GPU_IS_LOST");
        tracker.on_samples([&sample], s(3));
        assert_eq!(is(&tracker, "GPU-0", 3).0, U, "XID {number}: lost");
        tracker.on_checks(checks(0, counters), s(4));
        assert_eq!(is(&tracker, "GPU-0", 4).0, U, "XID {number}: answers again");
        tracker.on_checks(checks(0, |c| c.pcie_replays = Some(0)), s(5));
        let lost_as_well = if comeback == U { U } else { V };
        assert_eq!(
            is(&tracker, "GPU-0", 5).0,
            lost_as_well,
            "XID {number}: with a counter that fell"
        );

        let mut tracker = ill();
        tracker.on_inventory(&facts(NvmlState::NoDriver, &[0, 1]));
        tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
        assert_eq!(is(&tracker, "GPU-0", 5).0, reload, "XID {number}: loaded anew");
        tracker.on_samples([&sample], s(30));
        assert_eq!(is(&tracker, "GPU-0", 30).0, H, "XID {number}: quiet");
    }
}

#[test]
fn a_reset_while_the_driver_stays_is_verified_and_the_double_bit_error_with_it() {
    let mut tracker = ready();
    let ill = |c: &mut GpuChecks| (c.recovery_action, c.ecc_uncorrected_volatile) = (Some(1), Some(2));
    let well = |c: &mut GpuChecks| (c.recovery_action, c.ecc_uncorrected_volatile) = (Some(0), Some(0));
    tracker.on_event(&event(48, 0, ""), s(1));
    tracker.on_checks(checks(0, ill), s(2));
    assert_eq!(is(&tracker, "GPU-0", 2), (GpuState::Unhealthy, "DoubleBitError".into()));
    tracker.on_checks(checks(0, well), s(20));
    assert_eq!(is(&tracker, "GPU-0", 20).0, GpuState::Verifying);
    assert_eq!(is(&tracker, "GPU-0", 31).0, GpuState::Healthy);
    let cleared_by = tracker.health(s(31)).gpus[0].cleared_by.clone();
    assert_eq!(cleared_by.as_deref(), Some("the GPU was reset"));
}

#[test]
fn something_worth_watching_does_not_cut_a_verification_short() {
    let mut tracker = ready();
    tracker.on_event(&event(95, 0, ""), s(1));
    tracker.on_inventory(&facts(NvmlState::NoDriver, &[0, 1]));
    tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
    assert_eq!(is(&tracker, "GPU-0", 5).0, GpuState::Verifying);
    tracker.on_event(&event(999, 0, ""), s(6));
    assert_eq!(is(&tracker, "GPU-0", 6).0, GpuState::Verifying);
    assert_eq!(is(&tracker, "GPU-0", 16), (GpuState::Suspect, "XidUnlisted".into()));
    tracker.on_event(&event(94, 0, ""), s(17));
    assert_eq!(is(&tracker, "GPU-0", 17), (GpuState::Suspect, "XidUnlisted".into()));
}
