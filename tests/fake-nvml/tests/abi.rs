//! The library seen through its C interface: by a C program with declarations of its own, and by `nvml-wrapper`.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nvidia_ml::library;
use nvidia_ml::models::MODELS;
use nvidia_ml::state::{Effect, Fault, Process, STATE_ENV, State, Utilization, code};
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::NvmlError;

fn reader(folder: &Path) -> PathBuf {
    let exe = folder.join("gfd_reader");
    let status = Command::new("cc")
        .args(["-Wall", "-Werror", "-o"])
        .arg(&exe)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gfd_reader.c"))
        .arg("-ldl")
        .status()
        .expect("this test needs a C compiler: no `cc` on PATH");
    assert!(status.success(), "cc failed");
    exe
}

fn read_by_c(exe: &Path, library: &Path, state: &Path) -> String {
    let output = Command::new(exe).arg(library).env(STATE_ENV, state).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_c_program_sees_what_the_state_says() {
    let folder = tempfile::tempdir().unwrap();
    let exe = reader(folder.path());
    let library = library::build().unwrap();
    let file = folder.path().join("nvml.json");

    let golden = [
        (
            "H100-80GB-HBM3",
            "NVIDIA H100 80GB HBM3",
            81920,
            "9.0",
            "233010de",
            true,
        ),
        (
            "A100-SXM4-40GB",
            "NVIDIA A100-SXM4-40GB",
            40960,
            "8.0",
            "20b010de",
            false,
        ),
        ("B200", "NVIDIA B200", 196_608, "10.0", "290110de", false),
        ("GB200", "NVIDIA GB200", 196_608, "10.0", "294110de", true),
        ("GB300-NVL", "NVIDIA GB300 NVL", 294_912, "10.0", "31c210de", true),
        ("L40S", "NVIDIA L40S", 49152, "8.9", "26b910de", false),
        ("T4", "NVIDIA T4", 16384, "7.5", "1eb810de", false),
    ];
    assert_eq!(golden.len(), MODELS.len());
    for (model, name, mib, cc, pci, fabric) in golden {
        let state = State::of(model, 2, "node-a").unwrap();
        state.write(&file).unwrap();
        let mut expected = "driver 550.163.01|cuda 12040 12040|2 GPUs\n".to_string();
        for (n, gpu) in state.gpus.iter().enumerate() {
            let bus = 0x10 + n;
            expected += &format!(
                "gpu {n}|{name}|{}|{mib} MiB|cc {cc}|pci 0000:{bus:02X}:00.0 00000000:{bus:02X}:00.0 {pci}\n",
                gpu.uuid
            );
            if fabric {
                expected += "fabric 00000000000000000000000000000001.0|state 3|status 0\n";
            }
            expected += match gpu.mig.is_some() {
                true => "mig mode 0/0|at most 7\n",
                false => "mig mode: The requested operation is not available on target device\n",
            };
        }
        assert_eq!(read_by_c(&exe, &library, &file), expected, "{model}");
    }

    let mut state = State::of("H100-80GB-HBM3", 1, "node-a").unwrap();
    state.gpus[0].enable_mig(&["3g.40gb", "1g.10gb+me", "1g.20gb"]).unwrap();
    state.write(&file).unwrap();
    let seen = read_by_c(&exe, &library, &file);
    let uuids: Vec<_> = state.gpus[0].mig_devices().iter().map(|m| m.uuid.as_str()).collect();
    for line in [
        "mig mode 1/1|at most 7\n".to_string(),
        format!(
            "mig {}|NVIDIA H100 80GB HBM3 MIG 3g.40gb|gi 7 ci 0|same parent 1|slices 3/3|40448 MiB|sm 60 copy 3 dec 3 enc 0 jpeg 3 ofa 0\n",
            uuids[0]
        ),
        format!(
            "mig {}|NVIDIA H100 80GB HBM3 MIG 1g.10gb+me|gi 8 ci 0|same parent 1|slices 1/1|9984 MiB|sm 16 copy 1 dec 1 enc 0 jpeg 1 ofa 1\n",
            uuids[1]
        ),
        format!(
            "mig {}|NVIDIA H100 80GB HBM3 MIG 1g.20gb|gi 9 ci 0|same parent 1|slices 1/1|20096 MiB|sm 26 copy 1 dec 1 enc 0 jpeg 1 ofa 0\n",
            uuids[2]
        ),
    ] {
        assert!(seen.contains(&line), "{line} is not in\n{seen}");
    }

    State::edit(&file, |s| s.driver.loaded = false).unwrap();
    assert_eq!(
        read_by_c(&exe, &library, &file),
        "init: 9 NVIDIA driver is not loaded\n"
    );
    State::edit(&file, |s| {
        s.driver.loaded = true;
        s.driver.version_mismatch = true;
    })
    .unwrap();
    assert_eq!(
        read_by_c(&exe, &library, &file),
        "init: 18 RM detects a driver/library version mismatch.\n"
    );
}

/// One test, because the state file is named by this process's environment.
#[test]
fn nvml_wrapper_sees_what_the_state_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nvml.json");
    let library = library::build().unwrap();
    // SAFETY: the other test of this file reads the environment only through `Command`, which the standard library guards.
    unsafe { std::env::set_var(STATE_ENV, &file) };
    let open = || Nvml::builder().lib_path(library.as_os_str()).init();

    assert!(
        matches!(open(), Err(NvmlError::DriverNotLoaded)),
        "no file is no driver"
    );

    let mut state = State::of("A100-SXM4-40GB", 2, "node-a").unwrap();
    state.gpus[0].processes = vec![
        Process {
            pid: 41,
            memory_bytes: 1 << 30,
        },
        Process {
            pid: 42,
            memory_bytes: 1 << 20,
        },
    ];
    state.gpus[0].memory_reserved_bytes = 600 << 20;
    state.gpus[0].memory_used_bytes = 3 << 30;
    state.gpus[0].utilization = Some(Utilization { gpu: 73, memory: 12 });
    state.write(&file).unwrap();

    let nvml = open().unwrap();
    assert_eq!(nvml.sys_driver_version().unwrap(), "550.163.01");
    assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 12040);
    assert_eq!(nvml.sys_nvml_version().unwrap(), "12.550.163.01");
    assert_eq!(nvml.device_count().unwrap(), 2);
    let gpu = nvml.device_by_index(0).unwrap();
    assert_eq!(gpu.name().unwrap(), "NVIDIA A100-SXM4-40GB");
    assert_eq!(gpu.uuid().unwrap(), state.gpus[0].uuid);
    assert_eq!(Some(gpu.serial().unwrap()), state.gpus[0].serial);
    assert_eq!(gpu.minor_number().unwrap(), 0);
    assert_eq!(gpu.pci_info().unwrap().bus_id, "00000000:10:00.0");
    assert_eq!(gpu.cuda_compute_capability().unwrap().major, 8);
    let memory = gpu.memory_info().unwrap();
    assert_eq!(
        (memory.total, memory.reserved, memory.used),
        (40960 << 20, 600 << 20, 3 << 30)
    );
    assert_eq!(memory.free, memory.total - memory.reserved - memory.used);
    let rates = gpu.utilization_rates().unwrap();
    assert_eq!((rates.gpu, rates.memory), (73, 12));
    assert_eq!(gpu.power_usage().unwrap(), 52_000);
    assert_eq!(gpu.temperature(TemperatureSensor::Gpu).unwrap(), 31);
    assert_eq!(gpu.clock_info(Clock::SM).unwrap(), 345);
    assert!(matches!(gpu.clock_info(Clock::Video), Err(NvmlError::NotSupported)));
    assert_eq!(gpu.running_compute_processes_count().unwrap(), 2);
    let pids: Vec<_> = gpu.running_compute_processes().unwrap().iter().map(|p| p.pid).collect();
    assert_eq!(pids, [41, 42]);
    assert_eq!(
        nvml.device_by_uuid(state.gpus[1].uuid.as_str())
            .unwrap()
            .index()
            .unwrap(),
        1
    );
    assert_eq!(nvml.device_by_pci_bus_id("0000:11:00.0").unwrap().index().unwrap(), 1);

    // The file changes under an open library.
    State::edit(&file, |s| s.gpus[0].utilization = None).unwrap();
    assert!(matches!(gpu.utilization_rates(), Err(NvmlError::NotSupported)));

    // Faults: by function, by GPU, after some calls, by delay, and until taken back.
    let with = |faults: Vec<Fault>| State::edit(&file, |s| s.faults = faults).unwrap();
    with(vec![Fault::of_gpu(1, Effect::Error(code::GPU_IS_LOST))]);
    assert!(matches!(nvml.device_by_index(1), Err(NvmlError::GpuLost)));
    assert!(gpu.name().is_ok());
    with(vec![Fault {
        after: Some(2),
        ..Fault::of("nvmlDeviceGetName", Effect::Error(code::UNKNOWN))
    }]);
    assert!(gpu.name().is_ok() && gpu.name().is_ok());
    assert!(matches!(gpu.name(), Err(NvmlError::Unknown)));
    with(vec![Fault::of("nvmlDeviceGetUUID", Effect::DelayMs(60))]);
    let start = Instant::now();
    gpu.uuid().unwrap();
    assert!(start.elapsed() >= Duration::from_millis(60));
    with(vec![Fault::of("*", Effect::Stall(true))]);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| gpu.uuid());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!call.is_finished());
        with(Vec::new());
        assert!(call.join().unwrap().is_ok());
    });

    // Events: only those written after the GPU was registered, each once, in order.
    State::edit(&file, |s| s.gpus[1].push_xid(13)).unwrap();
    let set = nvml.create_event_set().unwrap();
    let set = nvml
        .device_by_index(1)
        .unwrap()
        .register_events(EventTypes::CRITICAL_XID_ERROR, set)
        .unwrap();
    assert!(matches!(set.wait(20), Err(NvmlError::Timeout)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            State::edit(&file, |s| {
                s.gpus[0].push_xid(31);
                s.gpus[1].push_xid(79);
            })
            .unwrap();
        });
        let event = set.wait(10_000).unwrap();
        let (uuid, data) = (event.device.uuid().unwrap(), event.event_data);
        assert_eq!(uuid, state.gpus[1].uuid);
        assert_eq!(data, Some(nvml_wrapper::enums::event::XidError::Value(79)));
    });
    assert!(matches!(set.wait(20), Err(NvmlError::Timeout)));
}
