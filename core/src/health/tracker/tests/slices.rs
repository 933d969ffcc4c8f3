//! MIG slices that are ill alone, and with their GPU.

use super::*;

#[test]
fn a_contained_fault_is_that_of_its_slices_and_a_gpus_fault_that_of_all() {
    use GpuState::{Healthy as H, Suspect as S, Unhealthy as U};
    for (what, event, want) in [
        (
            "context switch of an instance",
            of_instance(109, 2, None),
            [H, H, U, U, H],
        ),
        ("of a compute instance", of_instance(109, 2, Some(1)), [H, H, H, U, H]),
        ("unlisted", of_instance(999, 1, Some(0)), [H, S, H, H, H]),
        (
            "contained and the application's",
            of_instance(94, 1, Some(0)),
            [H, H, H, H, H],
        ),
        (
            "uncontained, whoever had it",
            of_instance(95, 1, Some(0)),
            [U, U, U, U, H],
        ),
        ("double bit, whoever had it", of_instance(48, 1, None), [U, U, U, U, H]),
        ("fallen off the bus", of_instance(79, 1, None), [U, U, U, U, H]),
        (
            "an instance that nobody knows",
            of_instance(109, 7, None),
            [U, U, U, U, H],
        ),
        ("the GPU's", event(109, 0, ""), [U, U, U, U, H]),
    ] {
        let mut tracker = Tracker::new();
        tracker.on_inventory(&sliced(&SLICES));
        tracker.on_event(&event, s(1));
        let health = tracker.health(s(1));
        let states: Vec<_> = health.gpus.iter().map(|g| g.state).collect();
        assert_eq!(states, want, "{what}");
        let names: Vec<_> = health.gpus.iter().map(|g| (&*g.uuid, g.gpu.as_deref())).collect();
        let of = Some("GPU-0");
        assert_eq!(
            names,
            [
                ("GPU-0", None),
                ("MIG-a", of),
                ("MIG-b", of),
                ("MIG-c", of),
                ("GPU-1", None)
            ]
        );
    }
}

#[test]
fn a_slices_fault_ends_with_the_slice_or_with_a_reset_of_its_gpu() {
    let ill = || {
        let mut tracker = Tracker::new();
        tracker.on_inventory(&sliced(&SLICES));
        tracker.on_event(&of_instance(110, 1, Some(0)), s(1));
        assert_eq!(is(&tracker, "MIG-a", 1), (GpuState::Unhealthy, "ResetRequired".into()));
        let troubles: Vec<_> = tracker.health(s(1)).troubles().map(|g| g.uuid.clone()).collect();
        assert_eq!(troubles, ["GPU-0", "MIG-a", "GPU-1"]);
        tracker
    };
    let mut tracker = ill();
    tracker.on_inventory(&sliced(&SLICES[1..]));
    assert!(
        tracker.health(s(2)).gpus.iter().all(|g| g.uuid != "MIG-a"),
        "it is gone"
    );
    tracker.on_inventory(&sliced(&SLICES));
    assert_eq!(is(&tracker, "MIG-a", 3).0, GpuState::Healthy, "it was set up anew");

    let mut tracker = ill();
    tracker.on_inventory(&sliced(&[("MIG-a", 5, 0)]));
    assert_eq!(is(&tracker, "MIG-a", 3).0, GpuState::Healthy, "another part of the GPU");

    let mut tracker = ill();
    tracker.on_inventory(&sliced(&SLICES));
    assert_eq!(is(&tracker, "MIG-a", 3).0, GpuState::Unhealthy, "nothing happened");
    tracker.on_inventory(&facts(NvmlState::NoDriver, &[0, 1]));
    assert_eq!(
        is(&tracker, "MIG-b", 4),
        (GpuState::Unhealthy, "DriverNotLoaded".into())
    );
    tracker.on_inventory(&sliced(&SLICES));
    assert_eq!(is(&tracker, "MIG-a", 5), (GpuState::Verifying, "Recovering".into()));
    assert_eq!(is(&tracker, "MIG-a", 16), (GpuState::Healthy, String::new()));
}
