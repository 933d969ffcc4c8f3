//! What readings say, for as long as they say it.

use super::*;

#[test]
fn a_finding_holds_while_it_is_there_and_is_verified_after() {
    use GpuState::*;
    let s = Duration::from_secs;
    let mut tracker = ready();
    tracker.on_checks(checks(1, |c| c.recovery_action = Some(1)), s(1));
    assert_eq!(
        states(&tracker, 1),
        [(Healthy, String::new()), (Unhealthy, "RecoveryAction".into())]
    );
    tracker.on_checks(checks(1, |c| c.recovery_action = Some(0)), s(20));
    assert_eq!(states(&tracker, 20)[1].0, Verifying);
    assert_eq!(states(&tracker, 31)[1].0, Healthy);
    assert_eq!(
        tracker.health(s(31)).gpus[1].cleared_by.as_deref(),
        Some("the check passes again")
    );
    // Something worth watching does not cut the verification short, and shows after it.
    tracker.on_checks(checks(1, |c| c.inforom_valid = Some(false)), s(40));
    assert_eq!(states(&tracker, 40)[1], (Unhealthy, "InforomCorrupted".into()));
    tracker.on_checks(
        checks(1, |c| {
            (c.inforom_valid, c.pcie_width, c.pcie_max_width) = (Some(true), Some(8), Some(16))
        }),
        s(50),
    );
    assert_eq!(states(&tracker, 50)[1].0, Verifying);
    assert_eq!(states(&tracker, 61)[1], (Suspect, "PcieWidth".into()));
}

#[test]
fn no_action_recommended_clears_neither_a_fault_nor_another_finding() {
    for number in [48, 79, 95] {
        let mut tracker = ready();
        tracker.on_event(&xid(number, Some(0)), Duration::ZERO);
        tracker.on_checks(checks(0, |c| c.recovery_action = Some(0)), Duration::from_secs(1));
        assert_eq!(states(&tracker, 60)[0].0, GpuState::Unhealthy, "XID {number}");
    }
    let mut tracker = ready();
    tracker.on_lost("GPU-0", "GPU_IS_LOST");
    tracker.on_checks(checks(0, |c| c.recovery_action = Some(0)), Duration::from_secs(1));
    assert_eq!(states(&tracker, 60)[0].0, GpuState::Unhealthy);
    let mut tracker = ready();
    let double_bit = |c: &mut GpuChecks| (c.recovery_action, c.ecc_uncorrected_volatile) = (Some(0), Some(2));
    tracker.on_checks(checks(0, double_bit), Duration::from_secs(1));
    assert_eq!(states(&tracker, 60)[0], (GpuState::Unhealthy, "DoubleBitError".into()));
    // A driver that was loaded anew starts counting at zero.
    tracker.on_inventory(&facts(NvmlState::NoDriver, &[0, 1]));
    tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
    assert_eq!(states(&tracker, 61)[0].0, GpuState::Verifying);
    tracker.on_checks(checks(0, double_bit), Duration::from_secs(62));
    assert_eq!(states(&tracker, 62)[0].0, GpuState::Unhealthy);
}

#[test]
fn an_xid_154_without_text_is_answered_by_the_reading() {
    for (action, state) in [(0, GpuState::Healthy), (4, GpuState::Unhealthy)] {
        let mut tracker = ready();
        tracker.on_event(&xid(154, Some(0)), Duration::ZERO);
        assert_eq!(states(&tracker, 1)[0], (GpuState::Suspect, "RecoveryAction".into()));
        tracker.on_checks(checks(0, |c| c.recovery_action = Some(action)), Duration::from_secs(1));
        assert_eq!(states(&tracker, 1)[0].0, state, "{action}");
    }
}

#[test]
fn throttling_is_seen_in_samples() {
    let mut tracker = ready();
    for second in 0..400 {
        let sample = GpuSample {
            uuid: "GPU-0".into(),
            clocks_event_reasons: Some(0x40),
            ..GpuSample::default()
        };
        tracker.on_samples([&sample], Duration::from_secs(second));
    }
    assert_eq!(states(&tracker, 400)[0], (GpuState::Unhealthy, "Throttled".into()));
    assert_eq!(states(&tracker, 400)[1].0, GpuState::Healthy);
}

#[test]
fn a_gpu_that_checks_find_lost_is_not_back_because_its_samples_can_be_taken() {
    let mut tracker = ready();
    let sample = GpuSample {
        uuid: "GPU-0".into(),
        ..GpuSample::default()
    };
    let lost = NodeChecks {
        lost: vec![("GPU-0".into(), "GPU_IS_LOST".into())],
        ..NodeChecks::default()
    };
    for at in [1, 20, 40] {
        tracker.on_samples([&sample], s(at));
        tracker.on_round(
            Round {
                gpus: checks(0, |_| ()),
                node: lost.clone(),
            },
            s(at + 1),
        );
        assert_eq!(is(&tracker, "GPU-0", at + 1), (GpuState::Unhealthy, "GpuLost".into()));
        let since = tracker.health(s(at + 1)).gpus[0].since;
        assert_eq!(since, s(at - 1), "without a break");
    }
    tracker.on_samples([&sample], s(60));
    tracker.on_round(
        Round {
            gpus: checks(0, |_| ()),
            node: NodeChecks::default(),
        },
        s(61),
    );
    // That it answers is one sign of a reset, and not a proof.
    assert_eq!(is(&tracker, "GPU-0", 61).0, GpuState::Unhealthy);
}
