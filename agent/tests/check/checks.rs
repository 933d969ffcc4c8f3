//! The checks in the report, of the node and of each GPU: what one look can tell, and what it says where it cannot.

use nvidia_ml::state::{Effect, Fabric, Fault, Gpu, State, code};
use serde_json::Value;

use super::check;
use crate::machine::Machine;

/// GPUs on a fabric, with NVLinks, and PCI functions that answer.
fn sound(count: u32, change: impl FnOnce(&mut State)) -> Machine {
    let machine = Machine::new();
    let mut state = State::of("H100-80GB-HBM3", count, "node-a").unwrap();
    for gpu in &mut state.gpus {
        gpu.checks.nvlinks = Some(vec![true; 18]);
    }
    change(&mut state);
    machine.nvidia(&state);
    for gpu in &state.gpus {
        machine.pci_config(&gpu.pci_address, [0xde, 0x10]);
    }
    machine.put("kmsg", "");
    machine
}

/// Exit code and report.
fn reported(machine: &Machine) -> (i32, Value) {
    let root = format!("--driver-root={}", machine.path("").display());
    let (code, text) = check(machine, &["-o", "json", "--deadline=60", &root]);
    (code, serde_json::from_str(&text).unwrap())
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
        ("sound", sound(2, all), "clique", "passed", 0),
        ("two cliques", sound(2, other_clique), "clique", "suspect", 1),
        ("no NVSwitch", sound(2, all), "fabric manager", "not supported", 0),
        (
            "no fabric manager",
            {
                let machine = sound(2, all);
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
                let machine = sound(2, all);
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
            sound(2, all),
            "confidential compute",
            "not supported",
            0,
        ),
        (
            "not ready",
            sound(2, |s| s.driver.confidential_compute_ready = Some(false)),
            "confidential compute",
            "unhealthy",
            2,
        ),
        (
            "versions differ",
            {
                let machine = sound(2, all);
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
                let machine = sound(2, all);
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
        let (code, report) = reported(&machine);
        assert_eq!(
            (outcome(&report["node"], name), code),
            (want, exit),
            "{what}: {report:#}"
        );
    }
}

#[test]
fn check_tells_of_readings_that_need_time_and_of_those_that_are_not_there() {
    let (code, report) = reported(&sound(1, |state| {
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
        machine.pci_file(&gpu.pci_address, "current_link_width", "8\n");
        machine.pci_file(&gpu.pci_address, "max_link_width", "16\n");
    };
    let without_width = sound(1, |state| state.gpus[0].checks.pcie_width = None);
    let gpus = State::read(&without_width.path("nvml.json")).unwrap().gpus;
    narrow(&without_width, &gpus[0]);
    let (code, report) = reported(&without_width);
    assert_eq!(
        (code, report["gpus"][0]["reason"].as_str()),
        (1, Some("PcieWidth")),
        "{report:#}"
    );

    // No driver at all.
    let machine = sound(2, |state| state.driver.loaded = false);
    narrow(&machine, &gpus[0]);
    let (code, report) = reported(&machine);
    assert_eq!(code, 3, "{report:#}");
    assert_eq!(outcome(&report["pci"][0]["checks"], "PCIe width"), "suspect");
    machine.pci_config(&gpus[0].pci_address, [0xff, 0xff]);
    let (code, report) = reported(&machine);
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
    assert_eq!(check(&machine, &[]), (0, "No GPU here.\n".into()));
    assert_eq!(reported(&machine).1["verdict"], "NoGPU");
}

#[test]
fn slices_are_as_healthy_as_their_gpu() {
    let machine = sound(1, |state| {
        state.gpus[0].enable_mig(&["1g.10gb", "2g.20gb"]).unwrap();
        state.gpus[0].checks.ecc_uncorrected_volatile = Some(1);
    });
    let (code, report) = reported(&machine);
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
