//! A machine that is a folder: a /sys, a fake driver, and `berth-agent` run on them.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nvidia_ml::library;
use nvidia_ml::state::{STATE_ENV, State};

/// The fake library; the probe is built beside the agent.
pub fn fake_nvml() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(["build", "--quiet", "--package", "berth-probe"])
            .status()
            .unwrap();
        assert!(status.success(), "cargo build -p berth-probe failed");
        library::build().unwrap()
    })
}

pub struct Machine(tempfile::TempDir);

impl Machine {
    pub fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        machine.put("sys/class/dmi/id/product_name", "ProLiant XL675d Gen10 Plus");
        machine
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        let file = self.path(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }

    fn function(&self, address: &str, class: u32, vendor: u16, device: u16, driver: &str) {
        let folder = format!("sys/bus/pci/devices/{address}");
        self.put(&format!("{folder}/class"), format!("{class:#08x}\n"));
        self.put(&format!("{folder}/vendor"), format!("{vendor:#06x}\n"));
        self.put(&format!("{folder}/device"), format!("{device:#06x}\n"));
        std::fs::create_dir_all(self.path(&format!("sys/bus/pci/drivers/{driver}"))).unwrap();
        let link = self.path(&format!("{folder}/driver"));
        let _ = std::fs::remove_file(&link);
        symlink(format!("../../drivers/{driver}"), link).unwrap();
    }

    /// The vendor id that a function's configuration space begins with; all ones: nobody answers.
    pub fn pci_config(&self, address: &str, vendor: [u8; 2]) {
        self.pci_file(address, "config", [vendor[0], vendor[1], 0x30, 0x23]);
    }

    /// A file of a function.
    pub fn pci_file(&self, address: &str, file: &str, content: impl AsRef<[u8]>) {
        self.put(&format!("sys/bus/pci/devices/{address}/{file}"), content);
    }

    /// GPUs by NVML and by PCI.
    pub fn nvidia(&self, state: &State) {
        state.write(&self.path("nvml.json")).unwrap();
        for gpu in &state.gpus {
            self.function(&gpu.pci_address, 0x03_0200, 0x10de, gpu.pci_device, "nvidia");
        }
    }

    /// Makes a function that of a virtual GPU, as its configuration space tells a guest.
    pub fn virtual_gpu(&self, address: &str) {
        let mut config = [0_u8; 256];
        config[0x06] = 0x10;
        config[0x34] = 0xd0;
        let capability = b"\x09\x00\x1bVF\x00\x16550.90.05\0r550_00\0\0\0";
        config[0xd0..0xd0 + capability.len()].copy_from_slice(capability);
        self.put(&format!("sys/bus/pci/devices/{address}/config"), config);
    }

    pub fn amd_mi300x(&self, count: u32) {
        self.put("sys/module/amdgpu/version", "6.10.5\n");
        self.put("sys/module/amdgpu/srcversion", "1F2A6E0B6C2E3A7D9F4B1C0\n");
        let nodes = "sys/class/kfd/kfd/topology/nodes";
        self.put(
            &format!("{nodes}/0/properties"),
            "cpu_cores_count 96\nsimd_count 0\ndrm_render_minor 0\n",
        );
        for n in 0..count {
            let address = format!("0000:{:02x}:00.0", 0x05 + n);
            self.function(&address, 0x12_0000, 0x1002, 0x74a1, "amdgpu");
            let folder = format!("sys/bus/pci/devices/{address}");
            for (file, content) in [
                ("product_name", "AMD Instinct MI300X OAM"),
                ("mem_info_vram_total", "206141652992"),
                ("current_compute_partition", "SPX"),
                ("available_compute_partition", "SPX, DPX, QPX, CPX"),
                ("current_memory_partition", "NPS1"),
                ("available_memory_partition", "NPS1, NPS4"),
                ("numa_node", if n < count / 2 { "0" } else { "1" }),
                ("fw_version/mec_fw_version", "0x000000a3"),
                ("fw_version/sdma_fw_version", "0x00000012"),
                ("fw_version/vce_fw_version", "0x00000000"),
                ("fw_version/sos_fw_version", "0x0036024a"),
            ] {
                self.put(&format!("{folder}/{file}"), format!("{content}\n"));
            }
            let minor = 128 + n;
            std::fs::create_dir_all(self.path(&format!("{folder}/drm/renderD{minor}"))).unwrap();
            let properties = format!(
                "cpu_cores_count 0\nsimd_count 1216\nsimd_per_cu 4\ngfx_target_version 90402\ndrm_render_minor {minor}\n"
            );
            self.put(&format!("{nodes}/{}/properties", n + 1), properties);
        }
    }

    pub fn intel(&self, driver: &str, device: u16, tiles: u32, tile_bytes: Option<u64>, count: u32) {
        for n in 0..count {
            let address = format!("0000:{:02x}:00.0", 0x3a + n);
            self.function(&address, 0x03_8000, 0x8086, device, driver);
            let folder = format!("sys/bus/pci/devices/{address}");
            self.put(&format!("{folder}/numa_node"), format!("{}\n", n / 2));
            let card = format!("{folder}/drm/card{n}");
            std::fs::create_dir_all(self.path(&card)).unwrap();
            for tile in 0..tiles {
                let tile = match driver {
                    "xe" => format!("{folder}/tile{tile}"),
                    _ => format!("{card}/gt/gt{tile}"),
                };
                std::fs::create_dir_all(self.path(&tile)).unwrap();
            }
            if let Some(bytes) = tile_bytes {
                self.put(&format!("{card}/lmem_total_bytes"), format!("{bytes}\n"));
            }
        }
    }

    /// The argument that names this configuration of the device plugin.
    pub fn plugin_config(&self, text: &str) -> String {
        self.put("device-plugin.yaml", text);
        format!("--device-plugin-config={}", self.path("device-plugin.yaml").display())
    }

    pub fn sysfs(&self) -> String {
        format!("--sysfs-root={}", self.path("sys").display())
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth-agent"));
        command
            .args(args)
            .env(STATE_ENV, self.path("nvml.json"))
            .env("TMPDIR", self.0.path());
        command
    }

    /// Stdout and stderr of a run that must succeed, and leave nothing behind.
    pub fn run(&self, args: &[&str]) -> (String, String) {
        fake_nvml();
        let output = self.command(args).output().unwrap();
        let [out, notes] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(output.status.success(), "{args:?}: {notes}");
        let left = std::fs::read_dir(self.0.path()).unwrap().flatten();
        let left: Vec<_> = left
            .filter(|e| e.file_name().to_string_lossy().starts_with("berth-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        (out, notes)
    }

    pub fn labels(&self, args: &[&str]) -> (String, String) {
        let library = format!("--nvml-lib={}", fake_nvml().display());
        self.run(&[&["labels", &library, &self.sysfs()], args].concat())
    }

    pub fn json(&self, args: &[&str]) -> BTreeMap<String, String> {
        serde_json::from_str(&self.labels(args).0).unwrap()
    }
}
