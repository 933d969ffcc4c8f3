use super::*;
use crate::facts::{Mig, MigDevice, MigInstance, NvidiaDriver, NvmlStatus, PciFunction};
use crate::health::GpuState;

fn facts(state: NvmlState, gpus: &[u32]) -> NodeFacts {
    NodeFacts {
        nvml: NvmlStatus {
            state,
            message: String::new(),
        },
        gpus: gpus
            .iter()
            .map(|i| Gpu {
                index: *i,
                uuid: format!("GPU-{i}"),
                pci_address: Some(format!("0000:0{i}:00.0")),
                ..Gpu::default()
            })
            .collect(),
        pci: [0, 1]
            .map(|i| PciFunction {
                address: format!("0000:0{i}:00.0"),
                vendor: 0x10de,
                device: 0x2330,
                class: 0x03_0200,
                subsystem_vendor: None,
                subsystem_device: None,
                driver: Some("nvidia".into()),
                numa_node: None,
                sriov_total_vfs: None,
            })
            .into(),
        kernel_driver_version: (state != NvmlState::NoDriver).then(|| "550.1".into()),
        ..NodeFacts::default()
    }
}

fn xid(number: u64, gpu: Option<u32>) -> GpuEvent {
    GpuEvent {
        kind: GpuEventKind::Xid(number),
        uuid: gpu.map(|i| format!("GPU-{i}")),
        pci_address: None,
        age: Duration::from_secs(1),
        source: "nvml".into(),
        detail: String::new(),
        instance: None,
    }
}

fn states(tracker: &Tracker, now: u64) -> Vec<(GpuState, String)> {
    let health = tracker.health(Duration::from_secs(now));
    health.gpus.into_iter().map(|g| (g.state, g.reason)).collect()
}

fn ready() -> Tracker {
    let mut tracker = Tracker::new();
    tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
    tracker
}

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

fn checks(gpu: u32, change: impl FnOnce(&mut GpuChecks)) -> Vec<GpuChecks> {
    let mut checks = GpuChecks {
        uuid: format!("GPU-{gpu}"),
        ..GpuChecks::default()
    };
    change(&mut checks);
    vec![checks]
}

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
fn an_event_without_a_gpu_makes_all_suspect() {
    let mut tracker = ready();
    tracker.on_event(&xid(79, None), Duration::ZERO);
    assert!(states(&tracker, 1).iter().all(|(s, _)| *s == GpuState::Suspect));
}

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

/// What the kernel tells of the driver of a GPU.
fn binding(name: &str, gpu: u32) -> GpuEvent {
    GpuEvent {
        kind: GpuEventKind::Other(name.into()),
        uuid: None,
        pci_address: Some(format!("0000:0{gpu}:00.0")),
        ..xid(0, None)
    }
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

/// XID, with the words of the kernel log where there are any; the source is as that says.
fn event(number: u64, gpu: u32, words: &str) -> GpuEvent {
    GpuEvent {
        source: if words.is_empty() { "nvml" } else { "kmsg" }.into(),
        detail: words.into(),
        age: Duration::ZERO,
        ..xid(number, Some(gpu))
    }
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn is(tracker: &Tracker, uuid: &str, now: u64) -> (GpuState, String) {
    let health = tracker.health(s(now));
    let found = health.gpus.into_iter().find(|g| g.uuid == uuid).expect("it is known");
    (found.state, found.reason)
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

/// GPU 0 in MIG mode with slices of the GPU instances 1 and 2 (two compute instances).
fn sliced(names: &[(&str, u32, u32)]) -> NodeFacts {
    let mut facts = facts(NvmlState::Ready, &[0, 1]);
    let device = |(uuid, gpu_instance_id, compute_instance_id): &(&str, u32, u32)| MigDevice {
        uuid: (*uuid).into(),
        gpu_instance_id: *gpu_instance_id,
        compute_instance_id: *compute_instance_id,
        ..MigDevice::default()
    };
    facts.gpus[0].mig = Some(Mig {
        enabled: true,
        pending: true,
        devices: names.iter().map(device).collect(),
    });
    facts
}

const SLICES: [(&str, u32, u32); 3] = [("MIG-a", 1, 0), ("MIG-b", 2, 0), ("MIG-c", 2, 1)];

fn of_instance(number: u64, gpu: u32, compute: Option<u32>) -> GpuEvent {
    GpuEvent {
        instance: Some(MigInstance { gpu, compute }),
        ..event(number, 0, "")
    }
}

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
