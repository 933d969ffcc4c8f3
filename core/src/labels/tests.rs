use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::{MigStrategy, Replicated, Settings, SharingStrategy, grammar, labels, waits_for_nvml};
use crate::facts::{
    AmdGpu, Fabric, Gpu, Mig, MigDevice, NodeFacts, NvidiaDriver, NvmlState, NvmlStatus, PciFunction, Vgpu,
};

const FABRIC: &str = "00000000-0000-0000-0000-000000000001";

/// One profile of GFD's reference outputs.
struct Profile {
    name: &'static str,
    product: &'static str,
    label: &'static str,
    mib: u64,
    family: &'static str,
    compute: (u32, u32),
    driver: &'static str,
    cuda: u32,
    count: u32,
    fabric: bool,
    mig: bool,
    class: &'static str,
}

#[rustfmt::skip]
const PROFILES: &[Profile] = &[
    Profile { name: "a100", product: "NVIDIA A100-SXM4-40GB", label: "NVIDIA-A100-SXM4-40GB", mib: 40960, family: "ampere", compute: (8, 0), driver: "550.163.01", cuda: 12040, count: 8, fabric: false, mig: true, class: "a100" },
    Profile { name: "h100", product: "NVIDIA H100 80GB HBM3", label: "NVIDIA-H100-80GB-HBM3", mib: 81920, family: "hopper", compute: (9, 0), driver: "550.163.01", cuda: 12040, count: 8, fabric: true, mig: true, class: "h100" },
    Profile { name: "b200", product: "NVIDIA B200", label: "NVIDIA-B200", mib: 196_608, family: "blackwell", compute: (10, 0), driver: "560.35.03", cuda: 12060, count: 8, fabric: false, mig: true, class: "b200" },
    Profile { name: "gb200", product: "NVIDIA GB200", label: "NVIDIA-GB200", mib: 196_608, family: "blackwell", compute: (10, 0), driver: "580.65.06", cuda: 13000, count: 8, fabric: true, mig: true, class: "gb200" },
    Profile { name: "gb300", product: "NVIDIA GB300 NVL", label: "NVIDIA-GB300-NVL", mib: 294_912, family: "blackwell", compute: (10, 0), driver: "570.124.06", cuda: 12080, count: 8, fabric: true, mig: true, class: "gb300" },
    Profile { name: "l40s", product: "NVIDIA L40S", label: "NVIDIA-L40S", mib: 49152, family: "ada-lovelace", compute: (8, 9), driver: "550.163.01", cuda: 12040, count: 8, fabric: false, mig: false, class: "l40s" },
    Profile { name: "t4", product: "NVIDIA T4", label: "NVIDIA-T4", mib: 16384, family: "turing", compute: (7, 5), driver: "550.163.01", cuda: 12040, count: 4, fabric: false, mig: false, class: "t4" },
];

fn gpu(profile: &Profile, index: u32) -> Gpu {
    Gpu {
        index,
        uuid: format!("GPU-{}-{index}", profile.name),
        pci_address: Some(format!("0000:{index:02x}:00.0")),
        product: Some(profile.product.into()),
        memory_bytes: Some(profile.mib << 20),
        compute_capability: Some(profile.compute),
        mig: profile.mig.then(Mig::default),
        fabric: profile.fabric.then(|| Fabric {
            state: 3,
            status: 0,
            cluster_uuid: FABRIC.into(),
            clique_id: 0,
        }),
        ..Gpu::default()
    }
}

fn function(index: u32, vendor: u16, class: u32) -> PciFunction {
    PciFunction {
        address: format!("0000:{index:02x}:00.0"),
        vendor,
        device: 0x2330,
        class,
        subsystem_vendor: None,
        subsystem_device: None,
        driver: None,
        numa_node: None,
        sriov_total_vfs: None,
    }
}

/// As on the machine of the reference outputs: NVML alone, neither PCI nor DMI.
fn facts(profile: &Profile) -> NodeFacts {
    NodeFacts {
        nvml: NvmlStatus {
            state: NvmlState::Ready,
            message: String::new(),
        },
        driver: Some(NvidiaDriver {
            version: profile.driver.into(),
            cuda_version: Some(profile.cuda),
            nvml_version: None,
            excluded_gpus: None,
        }),
        gpus: (0..profile.count).map(|i| gpu(profile, i)).collect(),
        gpus_age: Some(Duration::ZERO),
        ..NodeFacts::default()
    }
}

fn profile(name: &str) -> &'static Profile {
    PROFILES
        .iter()
        .find(|p| p.name == name)
        .expect("a profile of the table")
}

fn of(facts: &NodeFacts) -> BTreeMap<String, String> {
    with(facts, &Settings::default())
}

fn with(facts: &NodeFacts, settings: &Settings) -> BTreeMap<String, String> {
    let labels = labels(facts, settings);
    for (key, value) in &labels {
        assert!(grammar::is_key(key) && grammar::is_value(value), "{key}={value}");
    }
    labels
}

fn map<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

/// What GFD writes, without its timestamp.
fn gfd(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    labels
        .iter()
        .filter(|(k, _)| k.starts_with("nvidia.com/") && *k != "nvidia.com/gpu.present")
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

#[test]
fn whole_key_set_of_gfds_reference_outputs() {
    for p in PROFILES {
        let driver: Vec<&str> = p.driver.split('.').collect();
        let (cuda_major, cuda_minor) = (p.cuda / 1000, p.cuda % 1000 / 10);
        let mut want = map([
            ("nvidia.com/cuda.driver.major", driver[0].into()),
            ("nvidia.com/cuda.driver.minor", driver[1].into()),
            ("nvidia.com/cuda.driver.rev", driver[2].into()),
            ("nvidia.com/cuda.driver-version.major", driver[0].into()),
            ("nvidia.com/cuda.driver-version.minor", driver[1].into()),
            ("nvidia.com/cuda.driver-version.revision", driver[2].into()),
            ("nvidia.com/cuda.driver-version.full", p.driver.into()),
            ("nvidia.com/cuda.runtime.major", cuda_major.to_string()),
            ("nvidia.com/cuda.runtime.minor", cuda_minor.to_string()),
            ("nvidia.com/cuda.runtime-version.major", cuda_major.to_string()),
            ("nvidia.com/cuda.runtime-version.minor", cuda_minor.to_string()),
            (
                "nvidia.com/cuda.runtime-version.full",
                format!("{cuda_major}.{cuda_minor}"),
            ),
            ("nvidia.com/gpu.machine", "unknown".into()),
            ("nvidia.com/gpu.count", p.count.to_string()),
            ("nvidia.com/gpu.replicas", "1".into()),
            ("nvidia.com/gpu.sharing-strategy", "none".into()),
            ("nvidia.com/gpu.product", p.label.into()),
            ("nvidia.com/gpu.memory", p.mib.to_string()),
            ("nvidia.com/gpu.family", p.family.into()),
            ("nvidia.com/gpu.compute.major", p.compute.0.to_string()),
            ("nvidia.com/gpu.compute.minor", p.compute.1.to_string()),
            ("nvidia.com/gpu.mode", "unknown".into()),
            ("nvidia.com/mig.capable", p.mig.to_string()),
            ("nvidia.com/mps.capable", "false".into()),
            ("nvidia.com/vgpu.present", "false".into()),
        ]);
        if p.fabric {
            want.insert("nvidia.com/gpu.clique".into(), format!("{FABRIC}.0"));
        }
        let got = of(&facts(p));
        assert_eq!(gfd(&got), want, "{}", p.name);
        assert_eq!(want.len(), if p.fabric { 26 } else { 25 });

        let ours: BTreeMap<_, _> = got.into_iter().filter(|(k, _)| k.starts_with("berth.dev/")).collect();
        let (count, memory) = (
            format!("berth.dev/gpu.{}.count", p.class),
            format!("berth.dev/gpu.{}.memory", p.class),
        );
        let want = map([
            ("berth.dev/gpu-class", p.class.into()),
            (count.as_str(), p.count.to_string()),
            (memory.as_str(), p.mib.to_string()),
        ]);
        assert_eq!(ours, want, "{}", p.name);
    }
}

#[test]
fn mode_and_machine_where_they_can_be_read() {
    for (class, mode) in [(0x03_0200, "compute"), (0x03_0000, "graphics"), (0x03_8000, "unknown")] {
        let mut facts = facts(profile("t4"));
        facts.machine = Some("PowerEdge R760 (tm)\n".into());
        facts.pci = (0..4).map(|i| function(i, 0x10de, class)).collect();
        let got = of(&facts);
        assert_eq!(got["nvidia.com/gpu.mode"], mode);
        assert_eq!(got["nvidia.com/gpu.machine"], "PowerEdge-R760-tm");
    }
    let mut facts = facts(profile("t4"));
    facts.pci = (0..4)
        .map(|i| function(i, 0x10de, if i == 2 { 0x03_0000 } else { 0x03_0200 }))
        .collect();
    assert_eq!(of(&facts)["nvidia.com/gpu.mode"], "unknown", "functions differ");
}

#[test]
fn a_node_without_driver_is_known_by_pci_alone() {
    for (class, form) in [(0x03_0200, "0302"), (0x03_0000, "0300")] {
        let facts = NodeFacts {
            machine: Some("m".into()),
            pci: vec![function(1, 0x10de, class), function(2, 0x10de, class)],
            ..NodeFacts::default()
        };
        let class_form = format!("feature.node.kubernetes.io/pci-{form}_10de.present");
        let want = map([
            ("feature.node.kubernetes.io/pci-10de.present", "true".into()),
            (class_form.as_str(), "true".into()),
            ("nvidia.com/gpu.present", "true".into()),
            ("nvidia.com/vgpu.present", "false".into()),
        ]);
        assert_eq!(of(&facts), want);
    }
}

#[test]
fn a_node_without_gpus_gets_nothing() {
    let mut bmc = function(1, 0x1a03, 0x03_0000);
    bmc.driver = Some("ast".into());
    let quick_assist = function(2, 0x8086, 0x0b_4000);
    let facts = NodeFacts {
        machine: Some("m".into()),
        pci: vec![bmc, quick_assist],
        nvml: NvmlStatus {
            state: NvmlState::NoLibrary,
            message: "m".into(),
        },
        ..NodeFacts::default()
    };
    assert_eq!(of(&facts), BTreeMap::new());
    assert_eq!(of(&NodeFacts::default()), BTreeMap::new());
}

#[test]
fn other_vendors_get_nfds_forms_and_nothing_of_nvidias() {
    let mut amd = function(1, 0x1002, 0x12_0000);
    amd.sriov_total_vfs = Some(8);
    let facts = NodeFacts {
        pci: vec![amd, function(2, 0x8086, 0x03_8000)],
        ..NodeFacts::default()
    };
    let keys = of(&facts).into_keys();
    let keys: Vec<String> = keys.filter(|k| !k.starts_with("gpu.intel.com/")).collect();
    let want = [
        "1002.present",
        "1002.sriov.capable",
        "1200_1002.present",
        "1200_1002.sriov.capable",
        "0380_8086.present",
        "8086.present",
    ];
    let mut want: Vec<String> = want
        .iter()
        .map(|k| format!("feature.node.kubernetes.io/pci-{k}"))
        .collect();
    want.sort();
    assert_eq!(keys, want);
}

fn mixed(a100s: u32, t4s: u32) -> NodeFacts {
    let mut facts = facts(profile("a100"));
    facts.gpus = (0..a100s)
        .map(|i| gpu(profile("a100"), i))
        .chain((0..t4s).map(|i| gpu(profile("t4"), a100s + i)))
        .collect();
    facts.pci = (0..a100s + t4s).map(|i| function(i, 0x10de, 0x03_0200)).collect();
    facts
}

#[test]
fn a_mixed_node_has_one_answer_in_any_order() {
    let mut facts = mixed(2, 2);
    let want = of(&facts);
    assert_eq!(want["nvidia.com/gpu.product"], "NVIDIA-A100-SXM4-40GB", "more memory");
    assert_eq!(want["nvidia.com/gpu.count"], "2");
    assert_eq!(want["nvidia.com/mig.capable"], "true");
    assert!(!want.contains_key("berth.dev/gpu-class"));
    assert_eq!(
        (
            want["berth.dev/gpu.a100.count"].as_str(),
            want["berth.dev/gpu.t4.count"].as_str()
        ),
        ("2", "2")
    );
    assert_eq!(want["berth.dev/gpu.t4.memory"], "16384");

    let mut random = 1_u64;
    for round in 0..1_000 {
        for i in (1..facts.gpus.len()).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            facts.gpus.swap(i, (random >> 33) as usize % (i + 1));
            facts.pci.swap(i, (random >> 13) as usize % (i + 1));
        }
        assert_eq!(of(&facts), want, "round {round}");
    }
}

#[test]
fn the_product_with_more_gpus_is_described() {
    let got = of(&mixed(1, 3));
    assert_eq!(got["nvidia.com/gpu.product"], "NVIDIA-T4");
    assert_eq!(
        (
            got["nvidia.com/gpu.count"].as_str(),
            got["nvidia.com/gpu.memory"].as_str()
        ),
        ("3", "16384")
    );
}

#[test]
fn two_products_of_one_class_are_counted_together_without_a_class_label() {
    let mut facts = facts(profile("a100"));
    facts.gpus[0].product = Some("NVIDIA A100-SXM4-80GB".into());
    facts.gpus[0].memory_bytes = Some(81920 << 20);
    let got = of(&facts);
    assert!(!got.contains_key("berth.dev/gpu-class"));
    assert_eq!(got["berth.dev/gpu.a100.count"], "8");
    assert_eq!(got["berth.dev/gpu.a100.memory"], "40960", "what each of them has");
}

#[test]
fn labels_stay_while_nvml_is_away() {
    let ready = facts(profile("h100"));
    for state in [NvmlState::Hung, NvmlState::NoDriver, NvmlState::ProbeUnavailable] {
        let mut away = ready.clone();
        away.nvml.state = state;
        assert_eq!(of(&away), of(&ready), "{state}");
    }
}

#[test]
fn an_earlier_reading_is_waited_for_only_where_there_is_a_gpu_and_none_was_read() {
    let by_pci = NodeFacts {
        pci: vec![function(0, 0x10de, 0x03_0200)],
        ..NodeFacts::default()
    };
    assert!(waits_for_nvml(&by_pci));
    assert!(!waits_for_nvml(&NodeFacts::default()), "no GPU");
    assert!(!waits_for_nvml(&facts(profile("t4"))), "read");
    let empty = NodeFacts {
        gpus_age: Some(Duration::ZERO),
        ..by_pci
    };
    assert!(!waits_for_nvml(&empty), "read, and there is none");
}

#[test]
fn gpus_in_mig_mode_are_not_handed_out_whole() {
    let mut facts = facts(profile("a100"));
    let mig = |enabled| {
        Some(Mig {
            enabled,
            pending: enabled,
            devices: Vec::new(),
        })
    };
    facts.gpus.iter_mut().for_each(|g| g.mig = mig(true));
    let got = of(&facts);
    assert_eq!(
        (
            got["nvidia.com/gpu.replicas"].as_str(),
            got["nvidia.com/gpu.count"].as_str()
        ),
        ("0", "8")
    );
    facts.gpus[3].mig = mig(false);
    assert_eq!(of(&facts)["nvidia.com/gpu.replicas"], "1");
}

#[test]
fn a_clique_needs_agreement_of_those_that_registered() {
    let clique = |change: &dyn Fn(&mut Vec<Gpu>)| {
        let mut facts = facts(profile("h100"));
        change(&mut facts.gpus);
        of(&facts).remove("nvidia.com/gpu.clique")
    };
    let set = |gpu: &mut Gpu, state, status, cluster: &str, clique_id| {
        gpu.fabric = Some(Fabric {
            state,
            status,
            cluster_uuid: cluster.into(),
            clique_id,
        });
    };
    let want = Some(format!("{FABRIC}.0"));
    assert_eq!(clique(&|_| {}), want);
    assert_eq!(clique(&|g| g[0].fabric = None), want, "no fabric on one");
    assert_eq!(clique(&|g| set(&mut g[0], 2, 0, "other", 7)), want, "not completed");
    assert_eq!(clique(&|g| set(&mut g[0], 3, 1, "other", 7)), want, "failed");
    let zero = "00000000-0000-0000-0000-000000000000";
    assert_eq!(clique(&|g| set(&mut g[0], 3, 0, zero, 7)), want, "no cluster");
    assert_eq!(clique(&|g| set(&mut g[0], 3, 0, FABRIC, 7)), None, "another clique");
}

#[test]
fn what_was_not_read_is_absent() {
    let mut facts = facts(profile("t4"));
    facts.driver = None;
    for gpu in &mut facts.gpus {
        (gpu.product, gpu.memory_bytes, gpu.compute_capability) = (None, None, None);
    }
    let keys: Vec<String> = of(&facts).into_keys().collect();
    assert!(
        keys.iter()
            .all(|k| !k.contains("cuda") && !k.contains("product") && !k.contains("memory")),
        "{keys:?}"
    );
    assert!(
        keys.iter().all(|k| !k.contains("family") && !k.contains("class")),
        "{keys:?}"
    );
}

#[test]
fn a_driver_version_without_revision_has_an_empty_one_and_an_odd_one_none() {
    let mut facts = facts(profile("t4"));
    let driver = facts.driver.as_mut().expect("set above");
    driver.version = "575.57".into();
    assert_eq!(of(&facts)["nvidia.com/cuda.driver.rev"], "");
    let driver = facts.driver.as_mut().expect("set above");
    driver.version = "1.2.3.4".into();
    assert!(!of(&facts).contains_key("nvidia.com/cuda.driver.rev"));
    let driver = facts.driver.as_mut().expect("set above");
    driver.version = "550.-1.2".into();
    assert!(!of(&facts).contains_key("nvidia.com/cuda.driver.rev"));
}

#[test]
fn vgpu_guests_are_told_by_their_type() {
    for (product, vgpu) in [
        ("GRID T4-16Q", "true"),
        ("NVIDIA A100-1-5C", "true"),
        ("NVIDIA A100-SXM4-40GB", "false"),
        ("Tesla T4", "false"),
    ] {
        let mut facts = facts(profile("t4"));
        facts.gpus.iter_mut().for_each(|g| g.product = Some(product.into()));
        assert_eq!(of(&facts)["nvidia.com/vgpu.present"], vgpu, "{product}");
    }
}

fn mig_device(profile: &str, n: u32) -> MigDevice {
    MigDevice {
        uuid: format!("MIG-{profile}-{n}"),
        profile: profile.into(),
        memory_bytes: 4864 << 20,
        multiprocessors: 14,
        gpu_instance_slices: 1,
        compute_instance_slices: 1,
        copy_engines: 1,
        ..MigDevice::default()
    }
}

/// GPUs with these profiles; none: MIG is off.
fn sliced(gpus: &[Option<&[&str]>]) -> NodeFacts {
    let mut facts = facts(profile("a100"));
    facts.gpus.truncate(gpus.len());
    for (gpu, profiles) in facts.gpus.iter_mut().zip(gpus) {
        gpu.mig = profiles.map(|profiles| Mig {
            enabled: true,
            pending: true,
            devices: (0..).zip(profiles).map(|(n, p)| mig_device(p, n)).collect(),
        });
    }
    facts
}

fn strategy(mig_strategy: MigStrategy) -> Settings {
    Settings {
        mig_strategy,
        ..Settings::default()
    }
}

/// Product, count, replicas, memory of a resource.
fn resource<'a>(labels: &'a BTreeMap<String, String>, name: &str) -> [&'a str; 4] {
    ["product", "count", "replicas", "memory"].map(|key| {
        labels
            .get(&format!("nvidia.com/{name}.{key}"))
            .map_or("", String::as_str)
    })
}

#[test]
fn the_single_strategy_needs_all_gpus_alike() {
    let small: &[&str] = &["1g.5gb", "1g.5gb"];
    let valid = ["NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "4", "1", "4864"];
    let invalid = ["NVIDIA-A100-SXM4-40GB-MIG-INVALID", "0", "0", "0"];
    let whole = ["NVIDIA-A100-SXM4-40GB", "2", "1", "40960"];
    for (what, gpus, want) in [
        ("alike", &[Some(small), Some(small)][..], valid),
        ("one is whole", &[Some(small), None], invalid),
        ("one is empty", &[Some(small), Some(&[])], invalid),
        ("two profiles", &[Some(small), Some(&["2g.10gb"])], invalid),
        ("MIG is off", &[None, None], whole),
    ] {
        let got = with(&sliced(gpus), &strategy(MigStrategy::Single));
        assert_eq!(resource(&got, "gpu"), want, "{what}");
        assert_eq!(got["nvidia.com/mig.strategy"], "single", "{what}");
        assert_eq!(got.contains_key("nvidia.com/gpu.slices.gi"), want == valid, "{what}");
        assert_eq!(got["nvidia.com/gpu.family"], "ampere", "{what}: of the whole GPUs");
    }
}

#[test]
fn the_mixed_strategy_has_a_resource_for_each_profile() {
    let mut facts = sliced(&[Some(&["1g.5gb", "1g.5gb+me", "1c.2g.10gb"]), Some(&[]), None]);
    let got = with(&facts, &strategy(MigStrategy::Mixed));
    assert_eq!(resource(&got, "gpu"), ["NVIDIA-A100-SXM4-40GB", "3", "1", "40960"]);
    for (name, product) in [
        ("mig-1g.5gb", "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"),
        ("mig-1g.5gb.me", "NVIDIA-A100-SXM4-40GB-MIG-1g.5gbme"),
        ("mig-1c.2g.10gb", "NVIDIA-A100-SXM4-40GB-MIG-1c.2g.10gb"),
    ] {
        assert_eq!(resource(&got, name), [product, "1", "1", "4864"], "{name}");
    }
    // Two products with a profile of the same name: the one with more GPUs' devices speaks, in any order.
    facts = sliced(&[Some(&["1g.5gb"]), Some(&["1g.5gb", "1g.5gb"])]);
    facts.gpus[0].product = Some("NVIDIA A30".into());
    let got = with(&facts, &strategy(MigStrategy::Mixed));
    assert_eq!(
        resource(&got, "mig-1g.5gb")[..2],
        ["NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "3"]
    );
    facts.gpus.reverse();
    assert_eq!(with(&facts, &strategy(MigStrategy::Mixed)), got);
}

#[test]
fn sharing_is_said_of_what_is_shared() {
    let shared = |sharing, resource: &str, replicas, renamed| Settings {
        sharing,
        replicated: vec![Replicated {
            resource: resource.into(),
            replicas,
            renamed,
        }],
        ..Settings::default()
    };
    let t4 = facts(profile("t4"));
    let keys = |settings: &Settings, facts: &NodeFacts| {
        let got = with(facts, settings);
        ["gpu.product", "gpu.replicas", "gpu.sharing-strategy", "mps.capable"]
            .map(|k| got[&format!("nvidia.com/{k}")].clone())
    };
    let slices = SharingStrategy::TimeSlicing;
    for (settings, want) in [
        (
            shared(slices, "nvidia.com/gpu", 4, false),
            ["NVIDIA-T4-SHARED", "4", "time-slicing", "false"],
        ),
        (
            shared(slices, "nvidia.com/gpu", 4, true),
            ["NVIDIA-T4", "4", "time-slicing", "false"],
        ),
        (
            shared(slices, "nvidia.com/gpu", 1, false),
            ["NVIDIA-T4", "1", "none", "false"],
        ),
        (
            shared(slices, "nvidia.com/mig-1g.5gb", 4, false),
            ["NVIDIA-T4", "1", "none", "false"],
        ),
        (
            shared(SharingStrategy::Mps, "nvidia.com/gpu", 2, false),
            ["NVIDIA-T4-SHARED", "2", "mps", "true"],
        ),
    ] {
        assert_eq!(keys(&settings, &t4), want, "{settings:?}");
    }
    // GPUs in MIG mode are not handed out whole, so they are not shared either, and MPS cannot be.
    let mig = sliced(&[Some(&["1g.5gb"])]);
    let got = keys(&shared(SharingStrategy::Mps, "nvidia.com/gpu", 2, false), &mig);
    assert_eq!(got, ["NVIDIA-A100-SXM4-40GB", "0", "none", "false"]);
}

#[test]
fn a_timestamp_only_where_it_is_wanted() {
    let stamped = Settings {
        timestamp: Some(1_700_000_000),
        ..Settings::default()
    };
    let t4 = facts(profile("t4"));
    let mut got = with(&t4, &stamped);
    assert_eq!(got.remove("nvidia.com/gfd.timestamp").as_deref(), Some("1700000000"));
    assert_eq!(got, of(&t4));
    assert_eq!(with(&NodeFacts::default(), &stamped), BTreeMap::new());
}

fn settings() -> impl Strategy<Value = Settings> {
    (
        0..3_usize,
        0..3_usize,
        0..3_u32,
        any::<bool>(),
        "nvidia.com/(gpu|mig-1g.5gb)",
    )
        .prop_map(|(mig, sharing, replicas, renamed, resource)| Settings {
            mig_strategy: [MigStrategy::None, MigStrategy::Single, MigStrategy::Mixed][mig],
            sharing: [
                SharingStrategy::None,
                SharingStrategy::TimeSlicing,
                SharingStrategy::Mps,
            ][sharing],
            replicated: vec![Replicated {
                resource,
                replicas,
                renamed,
            }],
            timestamp: Some(1),
        })
}

proptest! {
    /// Whatever the hardware calls itself, every key and value is one that the API server accepts; `with` checks.
    #[test]
    fn any_names_become_valid_labels(
        names in prop::collection::vec(any::<String>(), 7),
        odd in "[-_. +A-Za-z0-9()]{0,90}",
        profiles in prop::collection::vec("([0-9]c\\.)?[0-9]g\\.[0-9]{1,3}gb(\\+[a-z.]{1,60})?|.{0,8}", 0..3),
        settings in settings(),
    ) {
        let profiles: Vec<&str> = profiles.iter().map(String::as_str).collect();
        let mut facts = sliced(&[Some(&profiles), Some(&profiles)]);
        facts.machine = Some(names[0].clone());
        facts.driver = Some(NvidiaDriver { version: names[1].clone(), cuda_version: Some(12040), nvml_version: None, excluded_gpus: None });
        facts.gpus[0].product = Some(names[2].clone());
        facts.gpus[1].product = Some(odd.clone());
        facts.gpus[0].fabric = Some(Fabric { state: 3, status: 0, cluster_uuid: names[3].clone(), clique_id: 1 });
        facts.vgpus = vec![Vgpu {
            pci_address: names[4].clone(),
            host_driver_version: Some(names[5].clone()),
            host_driver_branch: Some(odd.clone()),
        }];
        facts.amd_gpus = vec![AmdGpu { product: Some(odd), ..AmdGpu::default() }, AmdGpu { product: Some(names[6].clone()), ..AmdGpu::default() }];
        with(&facts, &settings);
    }

    /// Where GFD's product is valid, ours is the same.
    #[test]
    fn the_product_is_gfds_where_that_is_valid(name in "[-_. +A-Za-z0-9()]{1,70}", profile in "[1-7]g\\.[0-9]{1,2}gb(\\+me)?") {
        let mut facts = sliced(&[Some(&[&profile])]);
        facts.gpus[0].product = Some(name.clone());
        let gfd = format!("{}-MIG-{}", grammar::sanitise(&name), grammar::sanitise(&profile));
        let got = with(&facts, &strategy(MigStrategy::Single));
        if grammar::is_value(&gfd) {
            prop_assert_eq!(&got["nvidia.com/gpu.product"], &gfd);
        }
    }
}
