//! What one event does to which GPU.

use super::*;

#[test]
fn a_fatal_xid_takes_its_gpu_alone_until_the_driver_was_loaded_anew() {
    use GpuState::*;
    let mut tracker = ready();
    tracker.health(Duration::from_secs(1));
    tracker.on_event(&xid(79, Some(1)), Duration::ZERO);
    let health = tracker.health(Duration::from_secs(100));
    assert_eq!((health.gpus[0].state, health.gpus[1].state), (Healthy, Unhealthy));
    assert_eq!(health.gpus[1].reason, "FallenOffBus");
    assert_eq!(
        health.gpus[1].since,
        Duration::from_secs(1),
        "the event was a second old"
    );
    assert_eq!(
        tracker.health(Duration::from_secs(105)).gpus[1].since,
        Duration::from_secs(6)
    );

    // A probe that restarts, or a hang that ends, is no reset.
    for away in [NvmlState::ProbeUnavailable, NvmlState::Hung] {
        tracker.on_inventory(&facts(away, &[0, 1]));
        tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
        assert_eq!(states(&tracker, 110)[1].0, Unhealthy, "{away}");
    }
    tracker.on_inventory(&facts(NvmlState::NoDriver, &[0, 1]));
    assert_eq!(states(&tracker, 120)[0], (Unhealthy, "DriverNotLoaded".into()));
    tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
    assert_eq!(states(&tracker, 121)[1].0, Verifying);
    assert_eq!(states(&tracker, 121)[0].0, Healthy, "had no fault to recover from");
    let recovered = tracker.health(Duration::from_secs(132));
    assert_eq!(recovered.gpus[1].state, Healthy);
    assert_eq!(
        recovered.gpus[1].cleared_by.as_deref(),
        Some("the driver was loaded anew")
    );
    // A fault while it is verified starts over.
    tracker.on_event(&xid(48, Some(1)), Duration::ZERO);
    assert_eq!(states(&tracker, 133)[1], (Unhealthy, "DoubleBitError".into()));
}

#[test]
fn lighter_faults_neither_hide_nor_follow_a_heavy_one() {
    let mut tracker = ready();
    tracker.on_event(&xid(13, Some(0)), Duration::ZERO);
    assert_eq!(states(&tracker, 1)[0], (GpuState::Healthy, String::new()));
    tracker.on_event(&xid(170, Some(0)), Duration::ZERO);
    assert_eq!(states(&tracker, 1)[0], (GpuState::Suspect, "XidUnlisted".into()));
    tracker.on_event(&xid(95, Some(0)), Duration::ZERO);
    tracker.on_event(&xid(171, Some(0)), Duration::ZERO);
    assert_eq!(states(&tracker, 1)[0], (GpuState::Unhealthy, "ResetRequired".into()));
}

#[test]
fn an_event_finds_its_gpu_by_address_and_waits_for_the_first_inventory() {
    let mut tracker = Tracker::new();
    let mut event = xid(79, None);
    event.pci_address = Some("0000:01:00".into());
    tracker.on_event(&event, Duration::ZERO);
    assert!(tracker.health(Duration::ZERO).gpus.is_empty());
    tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
    assert_eq!(states(&tracker, 1)[0].0, GpuState::Healthy);
    assert_eq!(states(&tracker, 1)[1].0, GpuState::Unhealthy);
}

#[test]
fn what_waits_for_an_inventory_is_no_older_than_the_driver_and_the_newest_stays() {
    let all = facts(NvmlState::Ready, &[0, 1]);
    let second = || {
        let mut tracker = Tracker::new();
        tracker.on_inventory(&facts(NvmlState::Ready, &[0]));
        tracker
    };
    // The GPU was repaired meanwhile.
    let mut tracker = second();
    tracker.on_event(&event(79, 1, ""), s(1));
    tracker.on_inventory(&facts(NvmlState::NoDriver, &[0]));
    tracker.on_inventory(&all);
    assert_eq!(is(&tracker, "GPU-1", 2).0, GpuState::Healthy, "of the driver before");

    let mut tracker = second();
    for _ in 0..MAX_UNPLACED {
        tracker.on_event(&event(13, 7, ""), s(1));
    }
    tracker.on_event(&event(79, 1, ""), s(1));
    tracker.on_inventory(&all);
    assert_eq!(is(&tracker, "GPU-1", 2).0, GpuState::Unhealthy, "the newest");

    // Not one that says nothing of a GPU that is there.
    let mut tracker = second();
    for name in ["DriverUnbound", "DriverBound"] {
        tracker.on_event(&binding(name, 1), s(1));
    }
    tracker.on_event(&event(95, 1, ""), s(1));
    for _ in 0..2 {
        tracker.on_inventory(&all);
        assert_eq!(is(&tracker, "GPU-1", 2).0, GpuState::Unhealthy);
    }
}

#[test]
fn an_event_without_a_gpu_makes_all_suspect() {
    let mut tracker = ready();
    tracker.on_event(&xid(79, None), Duration::ZERO);
    assert!(states(&tracker, 1).iter().all(|(s, _)| *s == GpuState::Suspect));
}

#[test]
fn the_kernel_logs_words_take_the_place_of_a_bare_number_whichever_comes_first() {
    use GpuState::*;
    let harmless = "NVLink: fatal error detected on link 14(0x1, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)";
    let sympathetic = "NVLink: fatal error detected on link 14(0x2, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)";
    let connector = "NVLink: fatal error detected on link 14(0x100, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)";
    let reset = "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)";
    let nothing = "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)";
    let packet_loss = "RLW_REMAP Nonfatal XC0 i0 Link 10 (0x00000082 0x00000100 0x0)";
    for (number, bare, words, in_words) in [
        (74, Unhealthy, harmless, Healthy),
        (74, Unhealthy, sympathetic, Suspect),
        (74, Unhealthy, connector, Unhealthy),
        (154, Suspect, reset, Unhealthy),
        (154, Suspect, nothing, Healthy),
        (145, Suspect, packet_loss, Healthy),
    ] {
        let hopper = || {
            let mut facts = facts(NvmlState::Ready, &[0, 1]);
            facts.gpus[0].compute_capability = Some((9, 0));
            let mut tracker = Tracker::new();
            tracker.on_inventory(&facts);
            tracker
        };
        let mut tracker = hopper();
        tracker.on_event(&event(number, 0, ""), s(10));
        assert_eq!(is(&tracker, "GPU-0", 10).0, bare, "{number}");
        tracker.on_event(&event(number, 0, words), s(11));
        assert_eq!(is(&tracker, "GPU-0", 11).0, in_words, "{number}: {words}");
        let mut tracker = hopper();
        tracker.on_event(&event(number, 0, words), s(10));
        tracker.on_event(&event(number, 0, ""), s(12));
        assert_eq!(is(&tracker, "GPU-0", 12).0, in_words, "{number}: words first");
        tracker.on_event(&event(number, 0, ""), s(20));
        assert_eq!(is(&tracker, "GPU-0", 20).0, bare.max(in_words), "{number}: another one");
    }
}

#[test]
fn a_link_that_errs_for_the_third_time_is_no_longer_handed_out() {
    let mut facts = facts(NvmlState::Ready, &[0, 1]);
    facts.gpus[0].compute_capability = Some((9, 0));
    let mut tracker = Tracker::new();
    tracker.on_inventory(&facts);
    let parity = "NVLink: fatal error detected on link 3(0x10, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)";
    for (hour, state) in [(1, GpuState::Suspect), (2, GpuState::Suspect), (3, GpuState::Unhealthy)] {
        tracker.on_event(&event(74, 0, parity), s(hour * 3600));
        assert_eq!(is(&tracker, "GPU-0", hour * 3600), (state, "NvLinkError".into()));
    }
}

#[test]
fn patterns_of_events_are_findings_while_they_hold() {
    let mut tracker = ready();
    for (at, process) in [
        (1, "pid=1, name=train, x"),
        (2, "pid=2, name=serve, x"),
        (3, "pid=3, name=eval, x"),
    ] {
        assert_eq!(is(&tracker, "GPU-0", at).0, GpuState::Healthy);
        tracker.on_event(&event(31, 0, process), s(at));
    }
    assert_eq!(is(&tracker, "GPU-0", 3), (GpuState::Suspect, "RepeatedXids".into()));
    // A program that fails on another GPU as well has a bug.
    tracker.on_event(&event(31, 1, "pid=4, name=eval, x"), s(4));
    assert_eq!(is(&tracker, "GPU-0", 4).0, GpuState::Healthy);
    for hour in [1, 2, 3] {
        tracker.on_event(&event(63, 1, ""), s(hour * 3600));
    }
    assert_eq!(
        is(&tracker, "GPU-1", 3 * 3600),
        (GpuState::Suspect, "MemoryErrorTrend".into())
    );
    tracker.on_checks(checks(1, |_| ()), s(26 * 3600));
    assert_eq!(is(&tracker, "GPU-1", 26 * 3600).0, GpuState::Healthy);
}

#[test]
fn nvmls_other_events() {
    use GpuState::*;
    for (name, state, reason) in [
        ("EccDoubleBit", Unhealthy, "DoubleBitError"),
        ("DramRetirementFailure", Unhealthy, "ResetRequired"),
        ("FatalPoison", Unhealthy, "ResetRequired"),
        ("GpuUnavailable", Unhealthy, "GpuUnavailable"),
        ("RecoveryActionChanged", Suspect, "RecoveryAction"),
        ("NonFatalPoison", Healthy, ""),
        ("EccSingleBitStorm", Healthy, ""),
        ("DramRetirement", Healthy, ""),
        ("NvmlEvent0x40000", Suspect, "XidWarning"),
        ("DriverBound", Healthy, ""),
    ] {
        let mut tracker = ready();
        let mut event = event(0, 0, "");
        event.kind = GpuEventKind::Other(name.into());
        tracker.on_event(&event, s(1));
        assert_eq!(is(&tracker, "GPU-0", 1), (state, reason.into()), "{name}");
    }
}
