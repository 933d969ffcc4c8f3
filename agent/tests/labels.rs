//! `berth-agent labels`, the real process with the real probe, on the fake driver and on fake /sys folders.
//!
//! What it prints is compared with the files in `golden`. `BERTH_WRITE_GOLDEN=1` writes them.
#![allow(clippy::unwrap_used)]

mod machine;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use machine::{Machine, fake_nvml};
use nvidia_ml::models::Model;
use nvidia_ml::state::{Effect, Fault, State};

/// Compares with, or writes, a golden file.
fn golden(name: &str, machine: &Machine, args: &[&str]) -> BTreeMap<String, String> {
    let (yaml, notes) = machine.labels(&[&["-o", "yaml"], args].concat());
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.yaml"));
    if std::env::var_os("BERTH_WRITE_GOLDEN").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &yaml).unwrap();
    }
    let want = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(yaml, want, "{name}; stderr: {notes}");
    machine.json(args)
}

fn node(model: &str, count: u32, driver: (&str, u32)) -> Machine {
    let machine = Machine::new();
    let mut state = State::of(model, count, "node-a").unwrap();
    (state.driver.version, state.driver.cuda_version) = (driver.0.into(), driver.1);
    machine.nvidia(&state);
    machine
}

/// Profiles of GFD's reference outputs: fixture, part, GPUs, driver, CUDA.
const PROFILES: [(&str, &str, u32, (&str, u32)); 7] = [
    ("a100", "A100-SXM4-40GB", 8, ("550.163.01", 12040)),
    ("h100", "H100-80GB-HBM3", 8, ("550.163.01", 12040)),
    ("b200", "B200", 8, ("560.35.03", 12060)),
    ("gb200", "GB200", 8, ("580.65.06", 13000)),
    ("gb300", "GB300-NVL", 8, ("570.124.06", 12080)),
    ("l40s", "L40S", 8, ("550.163.01", 12040)),
    ("t4", "T4", 4, ("550.163.01", 12040)),
];

#[test]
fn the_seven_profiles() {
    for (name, model, count, driver) in PROFILES {
        let machine = node(model, count, driver);
        let labels = golden(name, &machine, &[]);
        let own = ["nvidia.com/gpu.present"];
        let gfd = labels
            .keys()
            .filter(|k| k.starts_with("nvidia.com/") && !own.contains(&k.as_str()));
        let clique = ["h100", "gb200", "gb300"].contains(&name);
        assert_eq!(gfd.count(), if clique { 26 } else { 25 }, "{name}");
    }
}

const SINGLE: &str = "version: v1\nflags: {migStrategy: single}\n";
const MIXED: &str = "version: v1\nflags: {migStrategy: mixed}\n";
const SHARED: &str = "version: v1
sharing:
  timeSlicing:
    resources:
    - {name: nvidia.com/gpu, replicas: 4}
    - {name: nvidia.com/mig-1g.10gb, replicas: 2}
";

fn mig(profiles: &[&[&str]]) -> Machine {
    let machine = Machine::new();
    let mut state = State::of("H100-80GB-HBM3", u32::try_from(profiles.len()).unwrap(), "node-a").unwrap();
    for (gpu, profiles) in state.gpus.iter_mut().zip(profiles) {
        match profiles {
            ["off"] => {}
            profiles => gpu.enable_mig(profiles).unwrap(),
        }
    }
    machine.nvidia(&state);
    machine
}

#[test]
fn mig_devices_that_are_alike() {
    let machine = mig(&[&["1g.10gb"; 7], &["1g.10gb"; 7]]);
    let none = golden("mig-none", &machine, &[]);
    assert_eq!(
        (
            none["nvidia.com/gpu.count"].as_str(),
            none["nvidia.com/gpu.replicas"].as_str()
        ),
        ("2", "0")
    );
    let single = golden("mig-single", &machine, &[&machine.plugin_config(SINGLE)]);
    assert_eq!(single["nvidia.com/gpu.product"], "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb");
    assert_eq!(single["nvidia.com/gpu.count"], "14");
    let config = SINGLE.to_owned() + SHARED.split_once('\n').unwrap().1;
    let shared = golden("mig-single-shared", &machine, &[&machine.plugin_config(&config)]);
    assert_eq!(
        shared["nvidia.com/gpu.product"],
        "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb-SHARED"
    );
    assert_eq!(shared["nvidia.com/gpu.replicas"], "4");
}

#[test]
fn mig_devices_that_differ() {
    let machine = mig(&[&["3g.40gb", "1g.10gb+me", "1g.10gb"], &["1g.10gb"; 7], &["off"]]);
    let config = MIXED.to_owned() + SHARED.split_once('\n').unwrap().1;
    let mixed = golden("mig-mixed-shared", &machine, &[&machine.plugin_config(&config)]);
    assert_eq!(
        mixed["nvidia.com/mig-1g.10gb.me.product"],
        "NVIDIA-H100-80GB-HBM3-MIG-1g.10gbme"
    );
    assert_eq!(mixed["nvidia.com/mig-1g.10gb.count"], "8");
    assert_eq!(
        mixed["nvidia.com/mig-1g.10gb.product"],
        "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb-SHARED"
    );
    assert_eq!(mixed["nvidia.com/gpu.replicas"], "4", "the whole GPU is shared");
    golden("mig-mixed", &machine, &[&machine.plugin_config(MIXED)]);
    let invalid = golden("mig-single-invalid", &machine, &[&machine.plugin_config(SINGLE)]);
    assert_eq!(invalid["nvidia.com/gpu.product"], "NVIDIA-H100-80GB-HBM3-MIG-INVALID");
    assert_eq!(invalid["nvidia.com/gpu.memory"], "0");
}

#[test]
fn shared_gpus() {
    let machine = node("T4", 1, ("550.163.01", 12040));
    let shared = golden("time-slicing", &machine, &[&machine.plugin_config(SHARED)]);
    assert_eq!(shared["nvidia.com/gpu.product"], "NVIDIA-T4-SHARED");
    let mps = "version: v1\nsharing: {mps: {renameByDefault: true, resources: [{name: gpu, replicas: 10}]}}\n";
    let mps = golden("mps", &machine, &[&machine.plugin_config(mps)]);
    assert_eq!(mps["nvidia.com/mps.capable"], "true");
    assert_eq!(
        mps["nvidia.com/gpu.product"], "NVIDIA-T4",
        "the resource has another name"
    );
}

#[test]
fn two_products_on_one_node() {
    let machine = Machine::new();
    let mut state = State::of("A100-SXM4-40GB", 1, "node-a").unwrap();
    state.gpus.push(Model::find("T4").unwrap().gpu(1, "node-a"));
    machine.nvidia(&state);
    let labels = golden("mixed-node", &machine, &[]);
    for _ in 0..5 {
        assert_eq!(machine.json(&[]), labels);
    }
    state.gpus.swap(0, 1);
    machine.nvidia(&state);
    assert_eq!(machine.json(&[]), labels, "in any order");
}

#[test]
fn a_guest_with_a_virtual_gpu() {
    let machine = Machine::new();
    let mut state = State::of("T4", 1, "node-a").unwrap();
    state.gpus[0].name = "GRID T4-16Q".into();
    machine.nvidia(&state);
    machine.virtual_gpu(&state.gpus[0].pci_address);
    let labels = golden("vgpu", &machine, &[]);
    assert_eq!(labels["nvidia.com/vgpu.host-driver-version"], "550.90.05");
    // By PCI alone.
    std::fs::remove_file(machine.path("nvml.json")).unwrap();
    let (_, notes) = machine.labels(&[]);
    assert!(notes.contains("NVML is"), "{notes}");
    let labels = golden("vgpu-without-driver", &machine, &[]);
    assert_eq!(labels["nvidia.com/vgpu.present"], "true");
}

#[test]
fn amd() {
    let machine = Machine::new();
    machine.amd_mi300x(8);
    let labels = golden("mi300x", &machine, &[]);
    assert_eq!(labels["amd.com/gpu.vram"], "192G");
    assert_eq!(labels["berth.dev/gpu-class"], "mi300x");
}

#[test]
fn intel() {
    let machine = Machine::new();
    machine.intel("i915", 0x0bd5, 2, Some(64 << 30), 4);
    golden("max-1550", &machine, &[]);
    let machine = Machine::new();
    machine.intel("xe", 0x56c0, 1, None, 2);
    golden("flex-170-xe", &machine, &[]);
}

#[test]
fn without_a_driver_the_labels_are_those_of_pci() {
    let machine = node("H100-80GB-HBM3", 2, ("550.163.01", 12040));
    let (json, notes) = machine.run(&["labels", "--nvml-lib=/nowhere/libnvidia-ml.so.1", &machine.sysfs()]);
    assert!(notes.contains("NoLibrary"), "{notes}");
    let labels: BTreeMap<String, String> = serde_json::from_str(&json).unwrap();
    assert_eq!(labels["nvidia.com/gpu.present"], "true");
    assert_eq!(labels["feature.node.kubernetes.io/pci-0302_10de.present"], "true");
    assert!(!labels.contains_key("nvidia.com/gpu.product"));
    // Nor a probe.
    let (json, notes) = machine.run(&["labels", "--probe=/nowhere/berth-probe", &machine.sysfs()]);
    assert!(notes.contains("/nowhere/berth-probe"), "{notes}");
    assert_eq!(serde_json::from_str::<BTreeMap<String, String>>(&json).unwrap(), labels);
    // Nor anything at all.
    let (json, _) = machine.run(&["labels", "--probe=/nowhere/berth-probe", "--sysfs-root=/nowhere"]);
    assert_eq!(json, "{}\n");
}

#[test]
fn a_driver_that_hangs_costs_the_deadline() {
    let machine = node("T4", 1, ("550.163.01", 12040));
    State::edit(&machine.path("nvml.json"), |s| {
        s.faults.push(Fault::of("*", Effect::Hang(true)));
    })
    .unwrap();
    fake_nvml();
    let started = Instant::now();
    let (json, notes) = machine.labels(&["--deadline=2"]);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(notes.contains("did not answer within 2 s"), "{notes}");
    assert!(json.contains("nvidia.com/gpu.present"), "{json}");
}

#[test]
fn the_file_of_node_feature_discovery() {
    let machine = node("T4", 1, ("550.163.01", 12040));
    let file = machine.path("features.d/berth");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let to = format!("--output-file={}", file.display());
    let (out, _) = machine.labels(&["-o", "features.d", "--timestamp", &to]);
    assert_eq!(out, "");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.lines().any(|l| l == "nvidia.com/gpu.product=NVIDIA-T4"), "{text}");
    let stamp = text.lines().find_map(|l| l.strip_prefix("nvidia.com/gfd.timestamp="));
    assert!(stamp.unwrap().parse::<u64>().unwrap() > 1_700_000_000);
    assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_configuration_that_cannot_be_used_is_an_error() {
    let machine = Machine::new();
    let config = machine.plugin_config("version: v1\nflags: {migStrategy: both}\n");
    let output = machine
        .command(&["labels", &config, &machine.sysfs()])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("migStrategy \"both\""));
}
