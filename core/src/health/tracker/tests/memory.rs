//! What one tracker hands to the next.

use super::*;

/// The tracker of the next process: what is remembered comes before NVML's list, and as JSON.
fn next(tracker: &Tracker, listed: &NodeFacts) -> Tracker {
    let text = serde_json::to_string(&tracker.memory()).unwrap();
    let mut next = Tracker::new();
    next.remember(serde_json::from_str(&text).unwrap());
    assert!(next.health(s(0)).gpus.is_empty(), "not before NVML has listed them");
    assert_eq!(next.memory(), tracker.memory(), "what waits is handed on as well");
    next.on_inventory(listed);
    next
}

#[test]
fn what_is_held_is_held_by_the_next_and_ends_by_what_it_needs() {
    use GpuState::{Healthy as H, Suspect as S, Unhealthy as U, Verifying as V};
    let all = facts(NvmlState::Ready, &[0, 1]);
    for (number, state, nothing_asked, reset) in [
        (48, U, U, V),
        (79, U, U, U),
        (95, U, U, V),
        (999, S, S, H),
        (167, S, H, H),
        (31, H, H, H),
    ] {
        let counted = |c: &mut GpuChecks| (c.pcie_replays, c.nvlink_crc_errors) = (Some(4), Some(9));
        let mut before = ready();
        before.on_checks(checks(0, counted), s(1));
        before.on_event(&event(number, 0, ""), s(2));
        let after = || next(&before, &all);
        assert_eq!(is(&after(), "GPU-0", 3), is(&before, "GPU-0", 3), "XID {number}");
        assert_eq!(is(&after(), "GPU-0", 3).0, state, "XID {number}");
        assert_eq!(is(&after(), "GPU-1", 3).0, H, "XID {number}: the other");

        let mut tracker = after();
        tracker.on_checks(checks(0, |c| c.recovery_action = Some(0)), s(4));
        assert_eq!(is(&tracker, "GPU-0", 4).0, nothing_asked, "XID {number}: nothing asked");
        let zero = |c: &mut GpuChecks| (c.pcie_replays, c.nvlink_crc_errors) = (Some(0), Some(0));
        let mut tracker = after();
        tracker.on_checks(checks(0, zero), s(4));
        assert_eq!(
            is(&tracker, "GPU-0", 4).0,
            reset,
            "XID {number}: reset while nobody looked"
        );
        // The same where the word of what was comes after the readings.
        let mut tracker = ready();
        tracker.on_checks(checks(0, zero), s(3));
        tracker.remember(before.memory());
        assert_eq!(is(&tracker, "GPU-0", 4).0, reset, "XID {number}: told late");

        let mut tracker = after();
        tracker.on_inventory(&facts(NvmlState::NoDriver, &[0, 1]));
        tracker.on_inventory(&all);
        tracker.health(s(5));
        assert_eq!(is(&tracker, "GPU-0", 30).0, H, "XID {number}: loaded anew, and quiet");
        assert_eq!(tracker.memory(), Memory::default());
    }
}

#[test]
fn a_gpu_that_was_missing_is_still_and_is_verified_when_it_is_back() {
    let mut before = ready();
    before.on_inventory(&facts(NvmlState::Ready, &[0]));
    let missing = (GpuState::Unhealthy, "GpuMissing".into());
    let mut tracker = next(&before, &facts(NvmlState::Ready, &[0]));
    assert_eq!(is(&tracker, "GPU-1", 1), missing);
    tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
    assert_eq!(is(&tracker, "GPU-1", 1).0, GpuState::Verifying);
    // Back before the next one looks.
    let tracker = next(&before, &facts(NvmlState::Ready, &[0, 1]));
    assert_eq!(is(&tracker, "GPU-1", 1).0, GpuState::Verifying);
}

#[test]
fn a_slices_fault_is_remembered_as_long_as_there_is_the_slice() {
    let mut before = Tracker::new();
    before.on_inventory(&sliced(&SLICES));
    before.on_event(&of_instance(110, 1, Some(0)), s(1));
    let states = |tracker: &Tracker| ["GPU-0", "MIG-b"].map(|uuid| is(tracker, uuid, 2).0);
    let tracker = next(&before, &sliced(&SLICES));
    assert_eq!(is(&tracker, "MIG-a", 2), (GpuState::Unhealthy, "ResetRequired".into()));
    assert_eq!(states(&tracker), [GpuState::Healthy; 2]);
    let tracker = next(&before, &sliced(&SLICES[1..]));
    assert_eq!(states(&tracker), [GpuState::Healthy; 2]);
    assert_eq!(tracker.memory(), Memory::default());
}

#[test]
fn a_finding_is_not_remembered() {
    let mut before = ready();
    before.on_checks(checks(0, |c| c.inforom_valid = Some(false)), s(1));
    assert_eq!(before.memory(), Memory::default());
}

fn counts(replays: u64, link_errors: u64) -> Vec<GpuChecks> {
    checks(0, |c| {
        (c.pcie_replays, c.nvlink_crc_errors) = (Some(replays), Some(link_errors));
    })
}

#[test]
fn what_was_held_before_is_the_first_of_the_worst() {
    let mut before = ready();
    before.on_event(&event(79, 0, ""), s(1));
    let mut tracker = ready();
    tracker.on_checks(counts(4, 9), s(2));
    tracker.on_lost("GPU-0", "GPU_IS_LOST");
    assert_eq!(is(&tracker, "GPU-0", 2).1, "GpuLost");
    tracker.remember(before.memory());
    assert_eq!(is(&tracker, "GPU-0", 3).1, "FallenOffBus");
    tracker.on_checks(counts(0, 0), s(4));
    assert_eq!(
        is(&tracker, "GPU-0", 4),
        (GpuState::Unhealthy, "FallenOffBus".into()),
        "a reset is not enough for it"
    );

    // What is worse now is held all the same.
    let mut before = ready();
    before.on_event(&event(999, 0, ""), s(1));
    let mut tracker = ready();
    tracker.on_event(&event(48, 0, ""), s(2));
    tracker.remember(before.memory());
    assert_eq!(is(&tracker, "GPU-0", 3), (GpuState::Unhealthy, "DoubleBitError".into()));
}

#[test]
fn what_ended_in_between_ends_nothing_that_came_up_since() {
    let double_bit = (GpuState::Unhealthy, "DoubleBitError".into());
    // Reset, as its counters tell, and ill again before the word of what was.
    let mut before = ready();
    before.on_checks(counts(4, 9), s(1));
    before.on_event(&event(95, 0, ""), s(2));
    let mut tracker = ready();
    tracker.on_checks(counts(0, 0), s(3));
    tracker.on_event(&event(48, 0, ""), s(4));
    tracker.remember(before.memory());
    assert_eq!(is(&tracker, "GPU-0", 5), double_bit);
    tracker.on_checks(counts(0, 0), s(6));
    assert_eq!(is(&tracker, "GPU-0", 6), double_bit);

    // A finding is of now.
    let mut tracker = ready();
    tracker.on_checks(counts(0, 0), s(3));
    let ill = |c: &mut GpuChecks| c.inforom_valid = Some(false);
    tracker.on_checks(checks(0, ill), s(4));
    let found = is(&tracker, "GPU-0", 4);
    assert_ne!(found.0, GpuState::Healthy);
    tracker.remember(before.memory());
    assert!(
        tracker.gpus["GPU-0"].checked.is_some(),
        "what was found since is still there"
    );

    // Missing then, listed now.
    let mut before = ready();
    before.on_inventory(&facts(NvmlState::Ready, &[1]));
    let mut tracker = ready();
    tracker.on_event(&event(48, 0, ""), s(4));
    tracker.remember(before.memory());
    assert_eq!(is(&tracker, "GPU-0", 5), double_bit);

    // The same of a slice.
    let mut before = Tracker::new();
    before.on_inventory(&sliced(&SLICES));
    before.on_checks(counts(4, 9), s(1));
    before.on_event(&of_instance(110, 1, Some(0)), s(2));
    let mut tracker = Tracker::new();
    tracker.on_inventory(&sliced(&SLICES));
    tracker.on_checks(counts(0, 0), s(3));
    tracker.on_event(&of_instance(110, 2, Some(0)), s(4));
    tracker.remember(before.memory());
    let states = ["MIG-a", "MIG-b"].map(|uuid| is(&tracker, uuid, 5).0);
    assert_eq!(states, [GpuState::Verifying, GpuState::Unhealthy]);
}

#[test]
fn a_gpu_that_was_lost_before_and_answers_now_is_one_sign_of_two() {
    let sample = GpuSample {
        uuid: "GPU-0".into(),
        ..GpuSample::default()
    };
    let mut before = ready();
    before.on_checks(counts(4, 9), s(1));
    before.on_lost("GPU-0", "GPU_IS_LOST");
    for (what, after, state) in [
        (
            "back, with a counter that began anew",
            counts(0, 9),
            GpuState::Verifying,
        ),
        ("back, and nothing else", counts(4, 9), GpuState::Unhealthy),
    ] {
        let mut tracker = next(&before, &facts(NvmlState::Ready, &[0, 1]));
        assert_eq!(tracker.memory(), before.memory(), "{what}: handed on");
        tracker.on_samples([&sample], s(2));
        tracker.on_checks(after.clone(), s(3));
        assert_eq!(is(&tracker, "GPU-0", 3).0, state, "{what}");
        let mut tracker = ready();
        tracker.on_samples([&sample], s(2));
        tracker.on_checks(after, s(3));
        tracker.remember(before.memory());
        assert_eq!(is(&tracker, "GPU-0", 3).0, state, "{what}: told late");
    }
}
