//! The parts that exist: what NVML and PCI say of each.

use crate::state::{Activity, Checks, Clocks, Fabric, Gpu, Mig, MigDevice, State, Utilization};

const MIB: u64 = 1 << 20;

/// PCI class of every part here: 3D controller.
pub const PCI_CLASS: u32 = 0x03_02_00;
/// PCI vendor of every part here.
pub const PCI_VENDOR: u16 = 0x10de;

/// One part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    /// The name [`State::of`] takes.
    pub key: &'static str,
    /// NVML name.
    pub name: &'static str,
    /// PCI device id.
    pub pci_device: u16,
    /// MiB in all.
    pub memory_mib: u64,
    /// Compute capability.
    pub compute_capability: (u32, u32),
    /// Watts when idle.
    pub idle_watts: u32,
    /// Whether the part has MIG.
    pub mig: bool,
    /// Whether the part registers with an NVLink fabric.
    pub fabric: bool,
    /// VBIOS version.
    pub vbios: &'static str,
}

/// All parts.
pub const MODELS: [Model; 7] = [
    Model {
        key: "H100-80GB-HBM3",
        name: "NVIDIA H100 80GB HBM3",
        pci_device: 0x2330,
        memory_mib: 81920,
        compute_capability: (9, 0),
        idle_watts: 70,
        mig: true,
        fabric: true,
        vbios: "96.00.74.00.01",
    },
    Model {
        key: "A100-SXM4-40GB",
        name: "NVIDIA A100-SXM4-40GB",
        pci_device: 0x20b0,
        memory_mib: 40960,
        compute_capability: (8, 0),
        idle_watts: 52,
        mig: true,
        fabric: false,
        vbios: "92.00.19.00.01",
    },
    Model {
        key: "B200",
        name: "NVIDIA B200",
        pci_device: 0x2901,
        memory_mib: 196_608,
        compute_capability: (10, 0),
        idle_watts: 140,
        mig: true,
        fabric: false,
        vbios: "97.00.82.00.01",
    },
    Model {
        key: "GB200",
        name: "NVIDIA GB200",
        pci_device: 0x2941,
        memory_mib: 196_608,
        compute_capability: (10, 0),
        idle_watts: 150,
        mig: true,
        fabric: true,
        vbios: "97.00.79.00.01",
    },
    Model {
        key: "GB300-NVL",
        name: "NVIDIA GB300 NVL",
        pci_device: 0x31c2,
        memory_mib: 294_912,
        compute_capability: (10, 0),
        idle_watts: 160,
        mig: true,
        fabric: true,
        vbios: "97.10.34.00.01",
    },
    Model {
        key: "L40S",
        name: "NVIDIA L40S",
        pci_device: 0x26b9,
        memory_mib: 49152,
        compute_capability: (8, 9),
        idle_watts: 33,
        mig: false,
        fabric: false,
        vbios: "95.02.66.00.02",
    },
    Model {
        key: "T4",
        name: "NVIDIA T4",
        pci_device: 0x1eb8,
        memory_mib: 16384,
        compute_capability: (7, 5),
        idle_watts: 10,
        mig: false,
        fabric: false,
        vbios: "90.04.96.00.02",
    },
];

/// From this compute capability on there is GPM.
const HOPPER: (u32, u32) = (9, 0);

impl Model {
    /// Whether its memory has a sensor: the parts that also have MIG.
    fn has_hbm(&self) -> bool {
        self.mig
    }

    /// The part of this key.
    pub fn find(key: &str) -> Option<&'static Self> {
        MODELS.iter().find(|m| m.key == key)
    }

    /// The `index`-th GPU of this part on a node: idle, healthy, and the same on every call.
    pub fn gpu(&self, index: u32, node_name: &str) -> Gpu {
        let bits = stable_bits(node_name, u64::from(index));
        Gpu {
            uuid: format!("GPU-{}", uuid(bits)),
            name: self.name.into(),
            pci_address: format!("0000:{:02x}:00.0", 0x10 + index),
            pci_device: self.pci_device,
            compute_major: self.compute_capability.0,
            compute_minor: self.compute_capability.1,
            memory_total_bytes: self.memory_mib * MIB,
            memory_reserved_bytes: 0,
            memory_used_bytes: 0,
            serial: Some(format!("1{:012}", bits % 1_000_000_000_000)),
            vbios: Some(self.vbios.into()),
            mig: self.mig.then(Mig::default),
            fabric: self.fabric.then(|| Fabric {
                state: 3,
                status: 0,
                cluster_uuid: "00000000-0000-0000-0000-000000000001".into(),
                clique_id: 0,
            }),
            utilization: Some(Utilization { gpu: 0, memory: 0 }),
            power_mw: Some(self.idle_watts * 1000),
            temperature_c: Some(31),
            clocks: Some(Clocks { sm: 345, memory: 1593 }),
            clocks_event_reasons: Some(0x1),
            memory_temperature_c: self.has_hbm().then_some(38),
            energy_mj: Some(1_000_000),
            encoder_utilization: Some(0),
            decoder_utilization: Some(0),
            nvlink_kib: self.fabric.then_some((0, 0)),
            vgpu_licensed: None,
            activity: (self.compute_capability >= HOPPER).then(Activity::default),
            processes: Vec::new(),
            recovery_action: None,
            checks: Checks::default(),
            events: Vec::new(),
            event_types: None,
        }
    }
}

/// There is no such part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownModel(pub String);

impl std::fmt::Display for UnknownModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known: Vec<_> = MODELS.iter().map(|m| m.key).collect();
        write!(f, "no GPU model {:?}; known: {}", self.0, known.join(", "))
    }
}

impl std::error::Error for UnknownModel {}

impl State {
    /// A node with `count` idle GPUs of one model and a loaded driver.
    pub fn of(model: &str, count: u32, node_name: &str) -> Result<Self, UnknownModel> {
        let model = Model::find(model).ok_or_else(|| UnknownModel(model.into()))?;
        Ok(Self {
            gpus: (0..count).map(|index| model.gpu(index, node_name)).collect(),
            ..Self::default()
        })
    }
}

/// What a MIG profile gets of a part: (profile, MiB, SMs, copy engines, decoders, JPEG engines, OFA engines).
type ProfileRow = (&'static str, u64, u32, u32, u32, u32, u32);

const A100_40GB: [ProfileRow; 6] = [
    ("1g.5gb", 4864, 14, 1, 0, 0, 0),
    ("1g.5gb+me", 4864, 14, 1, 1, 1, 1),
    ("2g.10gb", 9856, 28, 2, 1, 0, 0),
    ("3g.20gb", 19968, 42, 3, 2, 0, 0),
    ("4g.20gb", 19968, 56, 4, 2, 0, 0),
    ("7g.40gb", 40192, 98, 7, 5, 1, 1),
];
const H100_80GB: [ProfileRow; 7] = [
    ("1g.10gb", 9984, 16, 1, 1, 1, 0),
    ("1g.10gb+me", 9984, 16, 1, 1, 1, 1),
    ("1g.20gb", 20096, 26, 1, 1, 1, 0),
    ("2g.20gb", 20096, 32, 2, 2, 2, 0),
    ("3g.40gb", 40448, 60, 3, 3, 3, 0),
    ("4g.40gb", 40448, 64, 4, 4, 4, 0),
    ("7g.80gb", 81152, 132, 8, 7, 7, 1),
];

/// The GPU has no such MIG profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownProfile(pub String);

impl std::fmt::Display for UnknownProfile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "this GPU has no MIG profile {:?}", self.0)
    }
}

impl std::error::Error for UnknownProfile {}

impl Gpu {
    /// Turns MIG on with one GPU instance, of one compute instance, per profile. Utilisation is gone then, as on the real part.
    pub fn enable_mig(&mut self, profiles: &[impl AsRef<str>]) -> Result<(), UnknownProfile> {
        let rows: &[ProfileRow] = match MODELS.iter().find(|m| m.name == self.name).map(|m| m.key) {
            Some("H100-80GB-HBM3") => &H100_80GB,
            Some("A100-SXM4-40GB") => &A100_40GB,
            _ => &[],
        };
        let mut devices = Vec::new();
        for (n, profile) in (0u32..).zip(profiles.iter().map(AsRef::as_ref)) {
            let row = rows
                .iter()
                .find(|r| r.0 == profile)
                .ok_or_else(|| UnknownProfile(profile.into()))?;
            let slices = profile.split('g').next().and_then(|n| n.parse().ok()).unwrap_or(1);
            devices.push(MigDevice {
                uuid: format!("MIG-{}", uuid(stable_bits(&self.uuid, u64::from(n)))),
                gpu_instance: 7 + n,
                compute_instance: 0,
                profile: profile.into(),
                memory_mib: row.1,
                memory_used_bytes: 0,
                multiprocessors: row.2,
                gpu_slices: slices,
                compute_slices: slices,
                copy_engines: row.3,
                decoders: row.4,
                encoders: 0,
                jpeg_engines: row.5,
                ofa_engines: row.6,
                activity: Activity::default(),
            });
        }
        self.mig = Some(Mig {
            enabled: true,
            devices,
            ..Mig::default()
        });
        self.utilization = None;
        Ok(())
    }
}

/// 64 bits that depend on nothing but the arguments (FNV-1a, then one round of mixing so that neighbours differ everywhere).
fn stable_bits(name: &str, salt: u64) -> u64 {
    let fnv = name
        .bytes()
        .chain(salt.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
    mix(fnv)
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A version-4-shaped UUID out of 64 bits.
fn uuid(bits: u64) -> String {
    let low = mix(bits ^ 0x9e37_79b9_7f4a_7c15);
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        bits >> 32,
        (bits >> 16) & 0xffff,
        bits & 0xfff,
        0x8000 | ((low >> 48) & 0x3fff),
        low & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_same_node_gets_the_same_gpus_and_no_two_are_alike() {
        let a = State::of("H100-80GB-HBM3", 8, "node-a").unwrap();
        assert_eq!(a, State::of("H100-80GB-HBM3", 8, "node-a").unwrap());
        let mut seen = BTreeSet::new();
        for node in ["node-a", "node-b", "node-c"] {
            for gpu in State::of("T4", 8, node).unwrap().gpus {
                assert_eq!(gpu.uuid.len(), "GPU-".len() + 36);
                assert!(seen.insert(gpu.uuid));
                assert!(seen.insert(gpu.serial.unwrap()));
            }
        }
    }

    #[test]
    fn a_model_or_profile_that_does_not_exist_is_named() {
        assert!(State::of("H200", 1, "n").unwrap_err().to_string().contains("\"H200\""));
        let mut gpu = Model::find("T4").unwrap().gpu(0, "n");
        assert_eq!(gpu.enable_mig(&["1g.5gb"]), Err(UnknownProfile("1g.5gb".into())));
    }

    #[test]
    fn a_short_file_is_an_idle_gpu_and_null_is_not_supported() {
        let text = br#"{"gpus": [{"uuid": "GPU-1", "name": "NVIDIA H100 80GB HBM3", "pci_address": "0000:10:00.0",
            "power_mw": null, "mig": {"profiles": ["1g.10gb", "3g.40gb"]}}],
            "faults": [{"function": "*", "gpu": 0, "after": 3, "hang": true}]}"#;
        let state = State::parse(text).unwrap();
        assert!(state.driver.loaded);
        let gpu = &state.gpus[0];
        assert_eq!((gpu.power_mw, gpu.temperature_c), (None, Some(31)));
        assert_eq!(
            gpu.mig_devices().iter().map(|m| m.multiprocessors).collect::<Vec<_>>(),
            [16, 60]
        );
        assert!(State::parse(br#"{"gpus": [{"uuid": "GPU-1", "name": "", "pci_address": "", "wats": 1}]}"#).is_err());
    }

    #[test]
    fn a_state_survives_its_file() {
        let mut state = State::of("A100-SXM4-40GB", 2, "n").unwrap();
        state.gpus[0].enable_mig(&["3g.20gb", "1g.5gb+me"]).unwrap();
        state.gpus[1].push_xid(79);
        let json = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&json).unwrap(), state);
    }
}
