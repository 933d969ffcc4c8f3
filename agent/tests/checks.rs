//! Every check, through the real agent and the real probe: a fault in the fake driver or in a folder that stands for /sys goes in, the
//! verdict comes out, and goes when the fault does.
#![allow(clippy::unwrap_used, dead_code)]

mod link;
mod machine;

use std::cell::Cell;

use berth_proto::v1::{GpuState, NvmlState};
use link::{Heard, Node};
use machine::{Machine, fake_nvml};
use nvidia_ml::state::{Clocks, Effect, Fabric, Fault, Gpu, RemappedRows, RowRemapHistogram, State, Utilization, code};
use serde_json::Value;

/// One fault of one GPU.
struct Case {
    what: &'static str,
    /// In the driver.
    ill: fn(&mut Gpu),
    state: GpuState,
    reason: &'static str,
}

const SUSPECT: GpuState = GpuState::Suspect;
const UNHEALTHY: GpuState = GpuState::Unhealthy;

fn remapped(pending: bool, failure: bool) -> RemappedRows {
    RemappedRows {
        pending,
        failure,
        ..RemappedRows::default()
    }
}

fn banks(low: u32, none: u32) -> Option<RowRemapHistogram> {
    Some(RowRemapHistogram {
        max: 639,
        low,
        none,
        ..RowRemapHistogram::default()
    })
}

fn case(what: &'static str, ill: fn(&mut Gpu), state: GpuState, reason: &'static str) -> Case {
    Case {
        what,
        ill,
        state,
        reason,
    }
}

/// Those that a running agent sees within a round or two.
fn cases() -> Vec<Case> {
    vec![
        case(
            "ECC",
            |g| g.checks.ecc_uncorrected_volatile = Some(1),
            UNHEALTHY,
            "DoubleBitError",
        ),
        case(
            "SRAM",
            |g| g.checks.sram_threshold_exceeded = Some(true),
            UNHEALTHY,
            "SramThreshold",
        ),
        case(
            "a remapping pending",
            |g| g.checks.remapped_rows = Some(remapped(true, false)),
            SUSPECT,
            "RowRemapPending",
        ),
        case(
            "a remapping failed",
            |g| g.checks.remapped_rows = Some(remapped(false, true)),
            UNHEALTHY,
            "RowRemapFailure",
        ),
        case(
            "few spare rows",
            |g| g.checks.row_remap_histogram = banks(1, 0),
            SUSPECT,
            "RowRemapHeadroom",
        ),
        case(
            "no spare rows",
            |g| g.checks.row_remap_histogram = banks(0, 1),
            SUSPECT,
            "RowRemapHeadroom",
        ),
        case(
            "16 retired pages",
            |g| g.checks.retired_pages = Some(16),
            SUSPECT,
            "RetiredPages",
        ),
        case(
            "63 retired pages",
            |g| g.checks.retired_pages = Some(63),
            UNHEALTHY,
            "RetiredPages",
        ),
        case(
            "retired pages pending",
            |g| g.checks.retired_pages_pending = Some(true),
            SUSPECT,
            "RetiredPages",
        ),
        case(
            "a repair pending",
            |g| g.checks.repair_pending = Some(true),
            SUSPECT,
            "RepairPending",
        ),
        case(
            "the driver asks for a reset",
            |g| g.recovery_action = Some(1),
            UNHEALTHY,
            "RecoveryAction",
        ),
        case(
            "fabric not registered",
            |g| g.fabric.as_mut().unwrap().state = 2,
            SUSPECT,
            "FabricNotReady",
        ),
        case(
            "fabric degraded",
            |g| g.checks.fabric_health_mask = 0x1a9,
            SUSPECT,
            "FabricDegraded",
        ),
        case(
            "fabric of limited capacity",
            |g| g.checks.fabric_health_summary = 3,
            SUSPECT,
            "FabricDegraded",
        ),
        case(
            "an NVLink down",
            |g| g.checks.nvlinks.as_mut().unwrap()[17] = false,
            SUSPECT,
            "NvLinkDown",
        ),
        case(
            "few PCIe lanes",
            |g| g.checks.pcie_width = Some(8),
            SUSPECT,
            "PcieWidth",
        ),
        case(
            "a slow PCIe link while busy",
            |g| g.clocks = Some(Clocks { sm: 1800, memory: 2619 }),
            SUSPECT,
            "PcieGeneration",
        ),
        case(
            "hot",
            |g| g.checks.temperature_margin_c = Some(0),
            SUSPECT,
            "Overheated",
        ),
        case(
            "hot, by the threshold",
            |g| {
                g.checks.temperature_margin_c = None;
                g.temperature_c = Some(88);
            },
            SUSPECT,
            "Overheated",
        ),
        case(
            "persistence mode off",
            |g| g.checks.persistence_mode = Some(false),
            SUSPECT,
            "PersistenceModeOff",
        ),
    ]
}

/// GPUs on a fabric, with NVLinks, and a PCI function that answers.
fn machine(count: u32, change: impl FnOnce(&mut State)) -> Machine {
    let machine = Machine::new();
    let mut state = State::of("H100-80GB-HBM3", count, "node-a").unwrap();
    for gpu in &mut state.gpus {
        gpu.checks.nvlinks = Some(vec![true; 18]);
        gpu.checks.retired_pages = Some(0);
        gpu.checks.retired_pages_pending = Some(false);
        gpu.checks.repair_pending = Some(false);
        gpu.recovery_action = Some(0);
    }
    change(&mut state);
    machine.nvidia(&state);
    for gpu in &state.gpus {
        config(&machine, gpu, [0xde, 0x10]);
    }
    machine.put("kmsg", "");
    machine
}

fn pci_file(machine: &Machine, gpu: &Gpu, file: &str, content: impl AsRef<[u8]>) {
    machine.put(&format!("sys/bus/pci/devices/{}/{file}", gpu.pci_address), content);
}

fn config(machine: &Machine, gpu: &Gpu, vendor: [u8; 2]) {
    pci_file(machine, gpu, "config", [vendor[0], vendor[1], 0x30, 0x23]);
}

fn state_of(node: &Node) -> State {
    State::read(&node.machine.path("nvml.json")).unwrap()
}

/// What is not as `want` has it, by GPU.
fn differs(heard: &Heard, gpus: &[Gpu], want: impl Fn(usize) -> (GpuState, &'static str)) -> Vec<String> {
    let wrong = |(n, gpu): (usize, &Gpu)| {
        let (state, reason) = want(n);
        match heard.gpus.get(&gpu.uuid) {
            Some((is, why)) if (*is, why.as_str()) == (state, reason) => None,
            other => Some(format!("GPU {n}: {other:?}, not {state:?} {reason}")),
        }
    };
    gpus.iter().enumerate().filter_map(wrong).collect()
}

const HEALTHY: (GpuState, &str) = (GpuState::Healthy, "");

#[tokio::test]
async fn each_fault_is_seen_on_its_gpu_and_goes_with_the_fault() {
    let cases = cases();
    let count = u32::try_from(cases.len()).unwrap() + 3;
    let node = Node::start(machine(count, |_| ()), &[]).await;
    let healthy = state_of(&node);
    node.eventually(|heard| differs(heard, &healthy.gpus, |_| HEALTHY))
        .await;

    let [by_config, by_aer, untouched] = [cases.len(), cases.len() + 1, cases.len() + 2];
    // What was counted before the first look says nothing: it goes on counting.
    let fatal = Cell::new(7);
    let another = || {
        fatal.set(fatal.get() + 1);
        let count = format!("TOTAL_ERR_FATAL {}\n", fatal.get());
        pci_file(&node.machine, &healthy.gpus[by_aer], "aer_dev_fatal", count);
    };
    node.edit(|state| {
        for (gpu, case) in state.gpus.iter_mut().zip(&cases) {
            (case.ill)(gpu);
        }
    });
    config(&node.machine, &healthy.gpus[by_config], [0xff, 0xff]);
    node.eventually(|heard| {
        another();
        differs(heard, &healthy.gpus, |n| match cases.get(n) {
            Some(case) => (case.state, case.reason),
            None if n == by_config => (UNHEALTHY, "GpuLost"),
            None if n == by_aer => (SUSPECT, "PcieErrors"),
            None => HEALTHY,
        })
    })
    .await;
    assert_eq!(untouched + 1, healthy.gpus.len());

    node.edit(|state| {
        for (gpu, well) in state.gpus.iter_mut().zip(&healthy.gpus) {
            let events = std::mem::take(&mut gpu.events);
            *gpu = well.clone();
            gpu.events = events;
        }
        // A busy GPU's link that is as fast as it can be.
        let busy = cases.iter().position(|c| c.reason == "PcieGeneration").unwrap();
        state.gpus[busy].checks.pcie_generation = Some(5);
    });
    config(&node.machine, &healthy.gpus[by_config], [0xde, 0x10]);
    node.eventually(|heard| {
        // Remembered for ten minutes.
        differs(heard, &healthy.gpus, |n| match n == by_aer {
            true => (SUSPECT, "PcieErrors"),
            false => HEALTHY,
        })
    })
    .await;
}

#[tokio::test]
async fn what_holds_for_the_node_counts_for_all_its_gpus() {
    let machine = machine(2, |state| state.driver.confidential_compute_ready = Some(true));
    machine.put("sys/module/nvidia/version", "550.163.01\n");
    let node = Node::start(machine, &[]).await;
    let gpus = state_of(&node).gpus;
    node.eventually(|heard| differs(heard, &gpus, |_| HEALTHY)).await;

    node.edit(|state| state.driver.confidential_compute_ready = Some(false));
    node.eventually(|heard| differs(heard, &gpus, |_| (UNHEALTHY, "ConfidentialComputeNotReady")))
        .await;
    node.edit(|state| state.driver.confidential_compute_ready = Some(true));
    node.eventually(|heard| differs(heard, &gpus, |_| HEALTHY)).await;

    // Another kernel module than the library's, and not for a moment only.
    node.machine.put("sys/module/nvidia/version", "570.00\n");
    node.eventually(|heard| differs(heard, &gpus, |_| (UNHEALTHY, "DriverUpgrading")))
        .await;
    node.machine.put("sys/module/nvidia/version", "550.163.01\n");
    node.eventually(|heard| differs(heard, &gpus, |_| HEALTHY)).await;
}

#[tokio::test]
async fn no_answer_neither_clears_nor_convicts_and_any_call_may_tell_of_a_lost_gpu() {
    let node = Node::start(
        machine(4, |state| state.gpus[1].checks.ecc_uncorrected_volatile = Some(2)),
        &[],
    )
    .await;
    let gpus = state_of(&node).gpus;
    let ecc = |n: usize| match n {
        1 => (UNHEALTHY, "DoubleBitError"),
        _ => HEALTHY,
    };
    node.eventually(|heard| differs(heard, &gpus, ecc)).await;

    let fault = |gpu, error| Fault {
        gpu: Some(gpu),
        ..Fault::of("nvmlDeviceGetTotalEccErrors", Effect::Error(error))
    };
    node.edit(|state| {
        state.gpus[1].checks.ecc_uncorrected_volatile = Some(0);
        state.faults = vec![
            fault(1, code::UNKNOWN),
            fault(2, code::UNKNOWN),
            fault(3, code::GPU_IS_LOST),
        ];
        // That it is seen says that the round is over.
        state.gpus[0].checks.persistence_mode = Some(false);
    });
    node.eventually(|heard| {
        differs(heard, &gpus, |n| match n {
            0 => (SUSPECT, "PersistenceModeOff"),
            3 => (UNHEALTHY, "GpuLost"),
            n => ecc(n),
        })
    })
    .await;

    node.edit(|state| state.faults.clear());
    node.eventually(|heard| {
        differs(heard, &gpus, |n| match n {
            0 => (SUSPECT, "PersistenceModeOff"),
            // One that was lost and answers every call again was reset.
            _ => HEALTHY,
        })
    })
    .await;
}

#[tokio::test]
async fn a_slow_validation_of_the_inforom_is_no_hang_and_readings_go_on() {
    let machine = machine(2, |state| {
        state.gpus[1].checks.inforom_valid = Some(false);
        state.faults = vec![Fault::of("nvmlDeviceValidateInforom", Effect::DelayMs(6000))];
    });
    // A validation takes three times what any other call may.
    let node = Node::start(machine, &["--call-timeout=2s"]).await;
    let gpus = state_of(&node).gpus;
    node.eventually(|heard| differs(heard, &gpus, |_| HEALTHY)).await;
    let before = node.heard(|heard| heard.samples);
    node.edit(|state| state.gpus[0].utilization = Some(Utilization { gpu: 87, memory: 40 }));
    node.eventually(|heard| match heard.samples > before {
        true => Vec::new(),
        false => vec!["no readings".into()],
    })
    .await;
    node.eventually(|heard| {
        differs(heard, &gpus, |n| match n {
            1 => (UNHEALTHY, "InforomCorrupted"),
            _ => HEALTHY,
        })
    })
    .await;
    node.heard(|heard| {
        let ready = heard.nvml.iter().position(|s| *s == NvmlState::Ready).unwrap();
        assert_eq!(heard.nvml[ready..], [NvmlState::Ready]);
        assert!(
            heard.samples > before,
            "{} readings, and {before} before",
            heard.samples
        );
    });
}

#[tokio::test]
async fn a_validation_that_never_ends_is_no_hang_either() {
    let machine = machine(1, |state| {
        state.faults = vec![Fault::of("nvmlDeviceValidateInforom", Effect::Hang(true))];
    });
    let node = Node::start(machine, &["--slow-call-timeout=1s"]).await;
    let gpus = state_of(&node).gpus;
    node.eventually(|heard| differs(heard, &gpus, |_| HEALTHY)).await;
    // Long past the deadline the checks still find what there is.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    node.edit(|state| state.gpus[0].checks.persistence_mode = Some(false));
    node.eventually(|heard| differs(heard, &gpus, |_| (SUSPECT, "PersistenceModeOff")))
        .await;
    node.heard(|heard| {
        let ready = heard.nvml.iter().position(|s| *s == NvmlState::Ready).unwrap();
        assert_eq!(heard.nvml[ready..], [NvmlState::Ready]);
    });
}

#[tokio::test]
async fn calls_that_the_driver_makes_wait_for_a_slow_one_are_no_hang() {
    let machine = machine(1, |state| {
        state.faults = vec![Fault::of("nvmlDeviceValidateInforom", Effect::Hang(true))];
    });
    let node = Node::start(machine, &["--call-timeout=1s", "--slow-call-timeout=600s"]).await;
    let gpus = state_of(&node).gpus;
    node.eventually(|heard| differs(heard, &gpus, |_| HEALTHY)).await;
    // The validation is under way once a round of checks was read.
    node.edit(|state| state.gpus[0].checks.persistence_mode = Some(false));
    node.eventually(|heard| differs(heard, &gpus, |_| (SUSPECT, "PersistenceModeOff")))
        .await;
    let before = node.heard(|heard| heard.samples);
    node.edit(|state| {
        state
            .faults
            .push(Fault::of("nvmlDeviceGetPowerUsage", Effect::DelayMs(3000)));
        state.gpus[0].utilization = Some(Utilization { gpu: 87, memory: 40 });
    });
    node.eventually(|heard| match heard.samples > before {
        true => Vec::new(),
        false => vec!["no readings".into()],
    })
    .await;
    node.heard(|heard| {
        let ready = heard.nvml.iter().position(|s| *s == NvmlState::Ready).unwrap();
        assert_eq!(heard.nvml[ready..], [NvmlState::Ready]);
    });
}

/// Exit code and report of `berth-agent check`.
fn check(machine: &Machine) -> (i32, Value) {
    let (code, text) = check_as(machine, "json");
    (code, serde_json::from_str(&text).unwrap())
}

fn check_as(machine: &Machine, format: &str) -> (i32, String) {
    let output = machine
        .command(&[
            "check",
            "-o",
            format,
            &format!("--nvml-lib={}", fake_nvml().display()),
            &format!("--driver-root={}", machine.path("").display()),
            &format!("--kernel-log={}", machine.path("kmsg").display()),
            "--deadline=60",
            &machine.sysfs(),
        ])
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

fn outcome<'r>(rows: &'r Value, name: &str) -> &'r str {
    let rows = rows.as_array().unwrap();
    let row = rows.iter().find(|row| row["check"] == name).expect(name);
    row["outcome"].as_str().unwrap()
}

#[test]
fn check_tells_of_the_node() {
    let nvswitch = |machine: &Machine| {
        machine.put("sys/bus/pci/devices/0000:07:00.0/class", "0x068000\n");
        machine.put("sys/bus/pci/devices/0000:07:00.0/vendor", "0x10de\n");
        machine.put("proc/2/comm", "kthreadd\n");
    };
    let other_clique = |state: &mut State| {
        state.gpus[1].fabric = Some(Fabric {
            clique_id: 7,
            ..state.gpus[1].fabric.clone().unwrap()
        });
    };
    let all = |_: &mut State| ();
    for (what, machine, name, want, exit) in [
        ("sound", machine(2, all), "clique", "passed", 0),
        ("two cliques", machine(2, other_clique), "clique", "suspect", 1),
        ("no NVSwitch", machine(2, all), "fabric manager", "not supported", 0),
        (
            "no fabric manager",
            {
                let machine = machine(2, all);
                nvswitch(&machine);
                machine
            },
            "fabric manager",
            "suspect",
            1,
        ),
        (
            "a fabric manager",
            {
                let machine = machine(2, all);
                nvswitch(&machine);
                machine.put("proc/77/comm", "nv-fabricmanage\n");
                machine
            },
            "fabric manager",
            "passed",
            0,
        ),
        (
            "not in confidential computing",
            machine(2, all),
            "confidential compute",
            "not supported",
            0,
        ),
        (
            "not ready",
            machine(2, |s| s.driver.confidential_compute_ready = Some(false)),
            "confidential compute",
            "unhealthy",
            2,
        ),
        (
            "versions differ",
            {
                let machine = machine(2, all);
                machine.put("sys/module/nvidia/version", "570.00\n");
                machine
            },
            "driver and library",
            "unhealthy",
            2,
        ),
        (
            "one is missing",
            {
                let machine = machine(2, all);
                let mut state = State::read(&machine.path("nvml.json")).unwrap();
                state.gpus.pop();
                state.write(&machine.path("nvml.json")).unwrap();
                machine
            },
            "GPU count",
            "unhealthy",
            2,
        ),
    ] {
        let (code, report) = check(&machine);
        assert_eq!(
            (outcome(&report["node"], name), code),
            (want, exit),
            "{what}: {report:#}"
        );
    }
}

#[test]
fn check_tells_of_readings_that_need_time_and_of_those_that_are_not_there() {
    let (code, report) = check(&machine(1, |state| {
        let checks = &mut state.gpus[0].checks;
        (checks.nvlink_crc_errors, checks.pcie_replays) = (Some(5), Some(9));
        checks.sram_threshold_exceeded = None;
        state.faults = vec![Fault::of("nvmlDeviceGetTotalEccErrors", Effect::Error(code::UNKNOWN))];
    }));
    let rows = &report["gpus"][0]["checks"];
    for (name, want) in [
        ("NVLink errors", "unknown"),
        ("PCIe replays", "unknown"),
        ("ECC corrected", "unknown"),
        ("ECC", "unknown"),
        ("throttling", "unknown"),
        ("SRAM", "not supported"),
        ("infoROM", "passed"),
        ("PCI", "passed"),
    ] {
        assert_eq!(outcome(rows, name), want, "{name}: {report:#}");
    }
    assert_eq!(code, 0);
}

#[test]
fn the_kernel_tells_of_the_link_and_of_a_lost_gpu_without_nvml() {
    let narrow = |machine: &Machine, gpu: &Gpu| {
        pci_file(machine, gpu, "current_link_width", "8\n");
        pci_file(machine, gpu, "max_link_width", "16\n");
    };
    let without_width = machine(1, |state| state.gpus[0].checks.pcie_width = None);
    let gpus = State::read(&without_width.path("nvml.json")).unwrap().gpus;
    narrow(&without_width, &gpus[0]);
    let (code, report) = check(&without_width);
    assert_eq!(
        (code, report["gpus"][0]["reason"].as_str()),
        (1, Some("PcieWidth")),
        "{report:#}"
    );

    // No driver at all.
    let machine = machine(2, |state| state.driver.loaded = false);
    narrow(&machine, &gpus[0]);
    let (code, report) = check(&machine);
    assert_eq!(code, 3, "{report:#}");
    assert_eq!(outcome(&report["pci"][0]["checks"], "PCIe width"), "suspect");
    config(&machine, &gpus[0], [0xff, 0xff]);
    let (code, report) = check(&machine);
    assert_eq!(
        (code, outcome(&report["pci"][0]["checks"], "PCI")),
        (2, "unhealthy"),
        "{report:#}"
    );
}

#[test]
fn a_machine_without_gpus_says_so() {
    let machine = Machine::new();
    machine.put("kmsg", "");
    assert_eq!(check_as(&machine, "table"), (0, "No GPU here.\n".into()));
    assert_eq!(check(&machine).1["verdict"], "NoGPU");
}

#[test]
fn slices_are_as_healthy_as_their_gpu() {
    let machine = machine(1, |state| {
        state.gpus[0].enable_mig(&["1g.10gb", "2g.20gb"]).unwrap();
        state.gpus[0].checks.ecc_uncorrected_volatile = Some(1);
    });
    let (code, report) = check(&machine);
    let slices = report["gpus"][0]["mig"].as_array().unwrap();
    let told: Vec<_> = slices
        .iter()
        .map(|s| (s["profile"].as_str().unwrap(), s["state"].as_str().unwrap()))
        .collect();
    assert_eq!(
        (code, told),
        (2, vec![("1g.10gb", "Unhealthy"), ("2g.20gb", "Unhealthy")])
    );
    for name in ["row remapping", "spare rows"] {
        assert_eq!(outcome(&report["gpus"][0]["checks"], name), "unknown");
    }
}
