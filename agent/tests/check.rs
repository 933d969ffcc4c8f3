//! `berth-agent check`, the real process with the real probe, on the fake driver: one fault in, verdict and exit code out.
#![allow(clippy::unwrap_used)]

#[path = "check/checks.rs"]
mod checks;
mod machine;

use machine::{Machine, fake_nvml};
use nvidia_ml::state::{Effect, Fault, Gpu, RemappedRows, State};
use serde_json::Value;

const RECORD: &str = "4,1,1,-;NVRM: Xid (PCI:0000:11:00):";

/// Exit code and what was printed.
fn check(machine: &Machine, args: &[&str]) -> (i32, String) {
    let library = format!("--nvml-lib={}", fake_nvml().display());
    let log = format!("--kernel-log={}", machine.path("kmsg").display());
    let output = machine
        .command(&[&["check", &library, &log, &machine.sysfs()], args].concat())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

fn two_gpus(change: impl FnOnce(&mut State)) -> Machine {
    let machine = Machine::new();
    let mut state = State::of("H100-80GB-HBM3", 2, "node-a").unwrap();
    change(&mut state);
    machine.nvidia(&state);
    std::fs::write(machine.path("kmsg"), "").unwrap();
    machine
}

fn second(change: impl FnOnce(&mut Gpu)) -> Machine {
    two_gpus(|state| change(&mut state.gpus[1]))
}

#[test]
fn a_fault_of_each_kind() {
    for (what, machine, code, reason) in [
        ("nothing", second(|_| ()), 0, ""),
        (
            "recovery action",
            second(|g| g.recovery_action = Some(1)),
            2,
            "RecoveryAction",
        ),
        ("none recommended", second(|g| g.recovery_action = Some(0)), 0, ""),
        (
            "ECC",
            second(|g| g.checks.ecc_uncorrected_volatile = Some(1)),
            2,
            "DoubleBitError",
        ),
        (
            "SRAM",
            second(|g| g.checks.sram_threshold_exceeded = Some(true)),
            2,
            "SramThreshold",
        ),
        (
            "row remapping",
            second(|g| {
                g.checks.remapped_rows = Some(RemappedRows {
                    pending: true,
                    ..RemappedRows::default()
                });
            }),
            1,
            "RowRemapPending",
        ),
        (
            "retired pages",
            second(|g| g.checks.retired_pages = Some(63)),
            2,
            "RetiredPages",
        ),
        ("PCIe width", second(|g| g.checks.pcie_width = Some(4)), 1, "PcieWidth"),
        (
            "infoROM",
            second(|g| g.checks.inforom_valid = Some(false)),
            2,
            "InforomCorrupted",
        ),
        (
            "fabric",
            second(|g| g.fabric.as_mut().unwrap().state = 2),
            1,
            "FabricNotReady",
        ),
        (
            "NVLink",
            two_gpus(|s| {
                s.gpus[0].checks.nvlinks = Some(vec![true; 18]);
                s.gpus[1].checks.nvlinks = Some([&[true; 17][..], &[false]].concat());
            }),
            1,
            "NvLinkDown",
        ),
        (
            "lost",
            two_gpus(|s| {
                let fault = Fault {
                    function: "nvmlDeviceGetUtilizationRates".into(),
                    ..Fault::of_gpu(1, Effect::Error(nvidia_ml::state::code::GPU_IS_LOST))
                };
                s.faults.push(Fault {
                    after: Some(1),
                    ..fault
                });
            }),
            2,
            "GpuLost",
        ),
    ] {
        let (is, text) = check(&machine, &["-o", "json"]);
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["gpus"][1]["reason"], reason, "{what}: {text}");
        assert_eq!(is, code, "{what}: {text}");
        assert_eq!(report["gpus"][0]["state"], "Healthy", "{what}: {text}");
    }
}

#[test]
fn row_remapping_is_unknown_under_mig() {
    let (code, text) = check(&second(|g| g.enable_mig(&["1g.10gb"]).unwrap()), &[]);
    assert_eq!(code, 0, "{text}");
    let rows: Vec<_> = text.lines().filter(|l| l.contains("row remapping")).collect();
    assert!(rows[0].contains("passed") && rows[1].contains("unknown"), "{text}");
}

#[test]
fn a_slice_is_ill_alone_and_counts_as_no_gpu() {
    let machine = second(|g| g.enable_mig(&["1g.10gb", "1g.10gb", "3g.40gb"]).unwrap());
    let (code, text) = check(&machine, &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("Healthy: 2 GPU(s).\n"), "{text}");
    assert_eq!(text.matches(", as its GPU\n").count(), 3, "{text}");

    let gpu = State::read(&machine.path("nvml.json")).unwrap().gpus.remove(1);
    let slice = &gpu.mig_devices()[2];
    let (address, instance) = (gpu.pci_address.trim_end_matches(".0"), slice.gpu_instance);
    let line = format!("4,1,1,-;NVRM: Xid (PCI:{address} GPU-I:{instance:02}): 46, pid=7, name=x, y\n");
    std::fs::write(machine.path("kmsg"), line).unwrap();
    let (code, text) = check(&machine, &["-o", "json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    let gpus = report["gpus"].as_array().unwrap();
    let states: Vec<_> = gpus.iter().map(|g| g["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["Healthy", "Healthy"], "{text}");
    let of_slice = |s: &Value| ["state", "reason", "profile"].map(|key| s[key].as_str().unwrap().to_owned());
    let slices: Vec<_> = gpus[1]["mig"].as_array().unwrap().iter().map(of_slice).collect();
    // The log is older than the look at it.
    let want = [
        ["Healthy", "", "1g.10gb"],
        ["Healthy", "", "1g.10gb"],
        ["Suspect", "ResetRequired", "3g.40gb"],
    ];
    assert_eq!(slices, want, "{text}");
    assert_eq!((code, report["verdict"].as_str()), (1, Some("Suspect")), "{text}");
    let (_, text) = check(&machine, &[]);
    assert!(
        text.starts_with("Suspect: 0 of 2 GPU(s) and 1 MIG slice(s) to be watched.\n"),
        "{text}"
    );
    assert!(
        text.contains(&format!("  GPU 1 MIG 3g.40gb {}: ResetRequired: XID 46", slice.uuid)),
        "{text}"
    );
}

#[test]
fn the_kernel_log_tells_of_xids_since_the_driver_was_loaded() {
    for (log, code, reason) in [
        (format!("{RECORD} 95, x\n"), 1, "ResetRequired"),
        (format!("{RECORD} 13, x\n"), 0, ""),
        (
            format!("{RECORD} 95, x\n5,2,2,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module\n"),
            0,
            "",
        ),
    ] {
        let machine = second(|_| ());
        std::fs::write(machine.path("kmsg"), &log).unwrap();
        let (is, text) = check(&machine, &["-o", "json"]);
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (is, report["gpus"][1]["reason"].as_str()),
            (code, Some(reason)),
            "{log}: {text}"
        );
    }
}

#[test]
fn a_machine_that_cannot_be_judged() {
    for (what, machine, code, says) in [
        ("no GPUs", Machine::new(), 0, "No GPU here"),
        ("no driver", two_gpus(|s| s.driver.loaded = false), 3, "NoDriver"),
        (
            "an upgrade",
            two_gpus(|s| s.driver.version_mismatch = true),
            2,
            "VersionMismatch",
        ),
        (
            "a hang",
            two_gpus(|s| {
                s.faults
                    .push(Fault::of("nvmlDeviceGetRemappedRows", Effect::Hang(true)))
            }),
            2,
            "Hung",
        ),
    ] {
        let (is, text) = check(&machine, &[]);
        assert_eq!(is, code, "{what}: {text}");
        assert!(text.contains(says), "{what}: {text}");
    }
    let usage = Machine::new().command(&["check", "--nonsense"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(64));
}
