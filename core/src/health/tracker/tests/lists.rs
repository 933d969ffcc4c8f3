//! Who is there by NVML and by sysfs, and who is missing.

use super::*;

#[test]
fn lost_and_missing_gpus() {
    let mut tracker = ready();
    tracker.on_lost("GPU-0", "GPU_IS_LOST");
    assert_eq!(states(&tracker, 1)[0], (GpuState::Unhealthy, "GpuLost".into()));
    // Listing it again is no proof.
    tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
    assert_eq!(states(&tracker, 1)[0].0, GpuState::Unhealthy);

    let mut tracker = ready();
    tracker.on_inventory(&facts(NvmlState::Ready, &[0]));
    assert_eq!(states(&tracker, 1)[1], (GpuState::Unhealthy, "GpuMissing".into()));
    assert_eq!(tracker.health(Duration::ZERO).missing_gpus, 1);
    tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
    assert_eq!(states(&tracker, 2)[1].0, GpuState::Verifying);
    assert_eq!(tracker.health(Duration::ZERO).missing_gpus, 0);
}

#[test]
fn a_gpu_that_was_unbound_and_is_back_is_verified() {
    use GpuState::{Unhealthy as U, Verifying as V};
    let all = facts(NvmlState::Ready, &[0, 1]);
    let mut let_go = all.clone();
    let_go.pci[0].driver = None;
    let mut absent = all.clone();
    absent.pci.remove(0);
    for (what, unbound, between, bound, want) in [
        ("the kernel's word alone", true, None, false, U),
        ("bound, never unbound", false, None, true, U),
        ("bound again", true, None, true, V),
        ("seen without a driver", true, Some(&let_go), false, V),
        ("the same, without the kernel's word", false, Some(&let_go), false, V),
        ("seen to be gone", true, Some(&absent), false, V),
    ] {
        let mut tracker = ready();
        tracker.on_event(&xid(95, Some(0)), Duration::ZERO);
        if unbound {
            tracker.on_event(&binding("DriverUnbound", 0), Duration::ZERO);
        }
        if let Some(between) = between {
            // NVML's list is older than that.
            tracker.on_inventory(between);
            assert_eq!(states(&tracker, 1)[0].0, U, "{what}: it is not back");
        }
        if bound {
            tracker.on_event(&binding("DriverBound", 0), Duration::ZERO);
        }
        tracker.on_inventory(&all);
        assert_eq!(states(&tracker, 2)[0].0, want, "{what}");
    }
}

#[test]
fn an_orderly_removal_is_no_missing_gpu() {
    let mut let_go = facts(NvmlState::Ready, &[0, 1]);
    let_go.pci[1].driver = None;
    let mut removed = facts(NvmlState::Ready, &[0]);
    removed.pci.pop();
    let unbound = binding("DriverUnbound", 1);
    for (what, seen_let_go, told, gpus) in [
        ("it vanished", false, None, 2),
        // A card that is torn out is unbound, too.
        ("torn out, unbound before", false, Some(true), 2),
        ("torn out, told of late", false, Some(false), 2),
        ("last seen without a driver", true, None, 1),
    ] {
        let mut tracker = ready();
        if seen_let_go {
            tracker.on_inventory(&let_go);
        }
        if told == Some(true) {
            tracker.on_event(&unbound, Duration::ZERO);
        }
        tracker.on_inventory(&removed);
        if told == Some(false) {
            assert_eq!(states(&tracker, 1)[1].1, "GpuMissing", "{what}: not yet");
            tracker.on_event(&unbound, Duration::ZERO);
        }
        assert_eq!(states(&tracker, 1).len(), gpus, "{what}");
    }
}

#[test]
fn a_module_that_sysfs_does_not_show_is_gone_only_if_nvml_does_not_answer() {
    use GpuState::{Unhealthy as U, Verifying as V};
    let without = |state| NodeFacts {
        kernel_driver_version: None,
        ..facts(state, &[0, 1])
    };
    let another = NodeFacts {
        kernel_driver_version: Some("570.1".into()),
        ..facts(NvmlState::Ready, &[0, 1])
    };
    for (what, between, after, want) in [
        ("NVML answers", without(NvmlState::Ready), None, U),
        (
            "NVML answers, then another",
            without(NvmlState::Ready),
            Some(&another),
            V,
        ),
        ("NVML was let go of", without(NvmlState::Released), None, V),
        ("no probe", without(NvmlState::ProbeUnavailable), None, V),
    ] {
        let mut tracker = ready();
        tracker.on_event(&xid(95, Some(0)), Duration::ZERO);
        tracker.on_inventory(&between);
        tracker.on_inventory(after.unwrap_or(&facts(NvmlState::Ready, &[0, 1])));
        assert_eq!(states(&tracker, 1)[0].0, want, "{what}");
    }
}

#[test]
fn a_gpu_given_to_another_driver_is_no_longer_judged() {
    let mut tracker = ready();
    let mut passed = facts(NvmlState::Ready, &[0]);
    passed.pci[1].driver = Some("vfio-pci".into());
    tracker.on_inventory(&passed);
    assert_eq!(states(&tracker, 1).len(), 1);
    assert_eq!(tracker.health(Duration::ZERO).missing_gpus, 0);
}

#[test]
fn missing_gpus_are_not_counted_while_nvml_is_away() {
    let mut tracker = Tracker::new();
    tracker.on_inventory(&facts(NvmlState::NoLibrary, &[]));
    assert_eq!(tracker.health(Duration::ZERO).missing_gpus, 0);
}

#[test]
fn an_excluded_gpu_is_not_missed() {
    let mut held_back = facts(NvmlState::Ready, &[0]);
    for (excluded, missing) in [(None, 1), (Some(0), 1), (Some(1), 0), (Some(2), 0)] {
        held_back.driver = Some(NvidiaDriver {
            version: "550.163.01".into(),
            cuda_version: None,
            nvml_version: None,
            excluded_gpus: excluded,
        });
        let mut tracker = Tracker::new();
        tracker.on_inventory(&held_back);
        assert_eq!(tracker.health(Duration::ZERO).missing_gpus, missing, "{excluded:?}");
    }
}

#[test]
fn a_gpu_that_a_new_driver_excludes_is_not_missed_and_one_that_vanishes_under_an_old_one_is() {
    let excluding = |gpus: &[u32], excluded| NodeFacts {
        driver: Some(NvidiaDriver {
            version: "550.163.01".into(),
            cuda_version: None,
            nvml_version: None,
            excluded_gpus: Some(excluded),
        }),
        ..facts(NvmlState::Ready, gpus)
    };
    for (what, is_new, excluded, gpus) in [
        ("excluded by a new driver", true, 1, 1),
        ("not listed by a new driver", true, 0, 2),
        ("an old driver cannot exclude", false, 1, 2),
    ] {
        let mut before = ready();
        if is_new {
            before.on_inventory(&facts(NvmlState::NoDriver, &[0, 1]));
        }
        before.on_inventory(&excluding(&[0], excluded));
        assert_eq!(states(&before, 1).len(), gpus, "{what}");
        let mut after = Tracker::new();
        after.remember(before.memory());
        after.on_inventory(&excluding(&[0], excluded));
        if is_new {
            assert_eq!(states(&after, 1), states(&before, 1), "{what}: by another agent");
        }
    }
    // A function that is another driver's shows later: until then one is missing.
    let mut tracker = ready();
    tracker.on_inventory(&facts(NvmlState::NoDriver, &[0, 1]));
    let mut three = excluding(&[0], 1);
    three.pci.push(PciFunction {
        address: "0000:02:00.0".into(),
        ..three.pci[0].clone()
    });
    tracker.on_inventory(&three);
    assert_eq!(states(&tracker, 1)[1], (GpuState::Unhealthy, "GpuMissing".into()));
    three.pci[2].driver = Some("vfio-pci".into());
    tracker.on_inventory(&three);
    assert_eq!(states(&tracker, 1).len(), 1);
}
