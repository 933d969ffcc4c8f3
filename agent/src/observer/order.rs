//! Sysfs and NVML are read apart: whichever tells first that a GPU is gone, it is judged when both were read.

use berth_core::facts::{Gpu, GpuEventKind, NvidiaDriver, PciFunction, VENDOR_NVIDIA};
use berth_core::health::GpuState;

use super::*;

fn observer() -> Observer {
    Observer {
        probe: Probe::new("/nowhere".into()),
        picture: Picture::new(),
        metrics: Arc::new(Metrics::new("node".into())),
        look: Arc::default(),
        recheck: Arc::default(),
        repods: Arc::default(),
        rescan: Ask::new(),
    }
}

fn address(gpu: u32) -> String {
    format!("0000:1{gpu}:00.0")
}

fn sysfs(drivers: &[Option<&str>]) -> Sysfs {
    let function = |(gpu, driver): (u32, &Option<&str>)| PciFunction {
        address: address(gpu),
        vendor: VENDOR_NVIDIA,
        device: 0x2330,
        class: 0x03_0200,
        subsystem_vendor: None,
        subsystem_device: None,
        driver: driver.map(Into::into),
        numa_node: None,
        sriov_total_vfs: None,
    };
    Sysfs {
        pci: (0..).zip(drivers).map(function).collect(),
        kernel_driver_version: Some("550.163.01".into()),
        ..Sysfs::default()
    }
}

impl Observer {
    fn list(&self, gpus: u32) {
        let inventory = Inventory {
            driver: Some(NvidiaDriver {
                version: "550.163.01".into(),
                cuda_version: None,
                nvml_version: None,
                excluded_gpus: None,
            }),
            gpus: (0..gpus)
                .map(|index| Gpu {
                    index,
                    uuid: format!("GPU-{index}"),
                    pci_address: Some(address(index)),
                    ..Gpu::default()
                })
                .collect(),
        };
        self.on_inventory(Answer {
            status: NvmlStatus {
                state: NvmlState::Ready,
                message: String::new(),
            },
            found: (inventory, Vec::new()),
            stuck_calls: 0,
        });
    }

    /// A scan that begins at `began`; what PCI alone says is said by functions that are there.
    fn scanned(&self, drivers: &[Option<&str>], began: Duration) {
        let found = sysfs(drivers);
        let functions = found.pci.iter().map(|f| berth_core::facts::PciChecks {
            address: f.address.clone(),
            answers: Some(true),
            ..Default::default()
        });
        let pci = PciReadings {
            functions: functions.collect(),
            nvswitches: 0,
        };
        self.on_scan(found, &pci, Cause::Uevent, began);
    }

    /// State and reason of each GPU that is judged.
    fn verdicts(&self) -> Vec<(GpuState, String)> {
        let now = self.picture.now();
        let health = self.picture.read(|state| state.tracker.health(now));
        health.gpus.into_iter().map(|g| (g.state, g.reason)).collect()
    }
}

const NVIDIA: Option<&str> = Some("nvidia");

#[tokio::test]
async fn a_gpu_that_is_given_away_is_no_fault_whoever_tells_first() {
    let healthy = || (GpuState::Healthy, String::new());
    for nvml_first in [false, true] {
        let observer = observer();
        observer.scanned(&[NVIDIA, NVIDIA], observer.picture.now());
        observer.list(2);
        observer.scanned(&[NVIDIA, NVIDIA], observer.picture.now());
        assert_eq!(observer.verdicts(), [healthy(), healthy()]);

        let before = observer.picture.now();
        if nvml_first {
            observer.list(1);
            assert_eq!(
                observer.verdicts(),
                [healthy(), healthy()],
                "not before sysfs was scanned"
            );
            // One that had begun before shows the machine as it was.
            observer.scanned(&[NVIDIA, NVIDIA], before);
            assert_eq!(observer.verdicts(), [healthy(), healthy()], "not by an older scan");
        }
        observer.scanned(&[NVIDIA, Some("vfio-pci")], observer.picture.now());
        if !nvml_first {
            assert_eq!(observer.verdicts(), [healthy(), healthy()], "not before NVML was asked");
            observer.list(1);
            observer.scanned(&[NVIDIA, Some("vfio-pci")], observer.picture.now());
        }
        assert_eq!(observer.verdicts(), [healthy()], "NVML first: {nvml_first}");
        observer.scanned(&[NVIDIA, NVIDIA], observer.picture.now());
        observer.list(2);
        assert_eq!(observer.verdicts(), [healthy(), healthy()], "given back");
    }
}

#[tokio::test]
async fn a_gpu_that_vanished_is_missing_once_sysfs_was_scanned() {
    let observer = observer();
    observer.scanned(&[NVIDIA, NVIDIA], observer.picture.now());
    observer.list(2);
    observer.list(1);
    observer.scanned(&[NVIDIA, NVIDIA], observer.picture.now());
    let second = observer.verdicts().swap_remove(1);
    assert_eq!(second, (GpuState::Unhealthy, "GpuMissing".into()));
}

#[tokio::test]
async fn a_card_that_was_torn_out_is_missing_once_nvml_was_asked() {
    let healthy = || (GpuState::Healthy, String::new());
    let observer = observer();
    observer.scanned(&[NVIDIA, NVIDIA], observer.picture.now());
    observer.list(2);
    observer.scanned(&[NVIDIA, NVIDIA], observer.picture.now());
    observer.on_event(GpuEvent {
        kind: GpuEventKind::Other("DriverUnbound".into()),
        uuid: None,
        pci_address: Some(address(1)),
        age: Duration::ZERO,
        source: "uevent".into(),
        detail: String::new(),
        instance: None,
    });
    observer.scanned(&[NVIDIA], observer.picture.now());
    assert_eq!(observer.verdicts(), [healthy(), healthy()], "not before NVML was asked");
    observer.list(1);
    observer.scanned(&[NVIDIA], observer.picture.now());
    assert_eq!(
        observer.verdicts(),
        [healthy(), (GpuState::Unhealthy, "GpuMissing".into())]
    );
}

#[tokio::test]
async fn what_was_held_before_does_not_wait_for_a_gpu_that_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let function = dir.path().join("bus/pci/devices").join(address(0));
    std::fs::create_dir_all(&function).unwrap();
    for (file, content) in [("vendor", "0x10de"), ("device", "0x2330"), ("class", "0x030200")] {
        std::fs::write(function.join(file), content).unwrap();
    }
    std::os::unix::fs::symlink("../../drivers/nvidia", function.join("driver")).unwrap();
    let before = observer();
    before.scan(dir.path(), 0, Cause::Start).unwrap();
    before.list(1);
    before.on_event(GpuEvent {
        kind: GpuEventKind::Xid(48),
        uuid: Some("GPU-0".into()),
        pci_address: None,
        age: Duration::ZERO,
        source: "nvml".into(),
        detail: String::new(),
        instance: None,
    });
    let sealed = before.picture.read(|state| state.handover.sealed().to_vec());

    // A file that is opened and not answered.
    let silent = function.join("aer_dev_correctable");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &silent,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let after = observer();
    let scanner = after.clone();
    let root = dir.path().to_owned();
    let scan = std::thread::spawn(move || scanner.scan(&root, 0, Cause::Start));
    after.picture.update(|state, _, _| state.handover.on_welcome(sealed));
    after.list(1);
    let held = [(GpuState::Unhealthy, "DoubleBitError".to_owned())];
    let start = std::time::Instant::now();
    while after.verdicts() != held {
        assert!(start.elapsed() < SCAN, "{:?}", after.verdicts());
        sleep(Duration::from_millis(10)).await;
    }
    assert!(!scan.is_finished(), "it still waits");
    std::fs::write(&silent, "").unwrap();
    scan.join().unwrap().unwrap();
}
