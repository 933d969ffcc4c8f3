//! `/metrics` of the real agent, with the real probe on a fake driver, and no controller.
//!
//! What it says of GPUs is compared with the files in `golden`. `BERTH_WRITE_GOLDEN=1` writes them.
#![allow(clippy::unwrap_used)]

mod machine;
mod node;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use machine::Machine;
use node::process::{self, NOBODY};
use node::{Node, Process};
use nvidia_ml::state::{Activity, CALLS_ENV, Effect, Fault, RemappedRows, State, Utilization};

/// Far beyond anything expected; only something broken waits this long.
const PATIENCE: Duration = Duration::from_secs(60);
const CALL_TIMEOUT: Duration = Duration::from_millis(500);

/// A node whose agent is asked for metrics.
struct Scraped {
    node: Node,
    _agent: Process,
    probe: Process,
}

impl Scraped {
    fn start(state: &State) -> Self {
        let node = Node::of(Machine::new());
        node.machine.nvidia(state);
        let mut probe = process::probe(&node.machine);
        probe
            .arg(format!("--call-timeout={}ms", CALL_TIMEOUT.as_millis()))
            .env(CALLS_ENV, node.path("calls"));
        let mut agent = process::agent(&node.machine, NOBODY);
        agent
            .args([node.machine.sysfs(), node.http_address()])
            .env("NODE_NAME", "node-a");
        Self {
            _agent: Process::start(&mut agent),
            probe: Process::start(&mut probe),
            node,
        }
    }

    fn edit(&self, change: impl FnOnce(&mut State)) {
        self.node.edit(change);
    }

    /// Head and body of an answer.
    async fn get(&self) -> (String, String) {
        let text = self.node.get("/metrics").await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.to_lowercase(), body.to_owned())
    }

    /// Scrapes until one is as wanted.
    async fn until(&self, wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let (_, body) = self.get().await;
            if wanted(&body) {
                return body;
            }
            assert!(start.elapsed() < PATIENCE, "{body}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What is said of GPUs, with its comments.
fn of_gpus(text: &str) -> String {
    let about = |line: &&str| {
        let name = line
            .strip_prefix("# HELP ")
            .or(line.strip_prefix("# TYPE "))
            .unwrap_or(line);
        name.starts_with("DCGM_") || name.starts_with("berth_gpu")
    };
    text.lines().filter(about).flat_map(|line| [line, "\n"]).collect()
}

/// Names of the metrics that have a value.
fn names(text: &str) -> BTreeSet<&str> {
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    rows.filter_map(|row| row.split(['{', ' ']).next()).collect()
}

/// Compares what is said of GPUs with a golden file, or writes it: once checks are there, and `active` rows of activity and `linked` of
/// NVLink, which need two samples.
async fn golden(name: &str, node: &Scraped, active: usize, linked: usize) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/metrics-{name}.txt"));
    let complete = |text: &str| {
        let count = |name: &str| {
            text.lines()
                .filter(|line| line.starts_with(&format!("{name}{{")))
                .count()
        };
        count("DCGM_FI_PROF_GR_ENGINE_ACTIVE") == active
            && count("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL") == linked
            && count("DCGM_FI_DEV_PCIE_REPLAY_COUNTER") > 0
    };
    let text = of_gpus(&node.until(complete).await);
    if std::env::var_os("BERTH_WRITE_GOLDEN").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&file).unwrap_or_default(), "{name}");
    well_formed(&text);
    text
}

/// A name has one HELP and one TYPE, before its values, which stand together; and no series is there twice.
fn well_formed(text: &str) {
    let mut known = BTreeSet::new();
    let mut series = BTreeSet::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            current = rest.split(' ').next().unwrap();
            assert!(known.insert(current), "twice: {line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!(
                ["gauge", "counter"]
                    .map(|kind| format!("{current} {kind}"))
                    .contains(&rest.to_owned())
            );
        } else {
            let (labels, value) = line.rsplit_once(' ').unwrap();
            assert_eq!(labels.split('{').next(), Some(current));
            assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
            assert!(series.insert(labels), "twice: {line}");
        }
    }
}

const BUSY: Activity = Activity {
    graphics: 91.5,
    sm: 80.25,
    occupancy: 40.0,
    tensor: 33.125,
    dram: 62.0,
    pcie_tx_mib: 2.0,
    pcie_rx_mib: 0.5,
};

#[tokio::test]
async fn eight_gpus_have_all_default_rows_of_dcgm_exporter() {
    let mut state = State::of("H100-80GB-HBM3", 8, "node-a").unwrap();
    let busy = &mut state.gpus[3];
    busy.utilization = Some(Utilization { gpu: 97, memory: 41 });
    busy.power_mw = Some(612_345);
    busy.memory_used_bytes = 70 << 30;
    busy.memory_reserved_bytes = 600 << 20;
    busy.memory_temperature_c = Some(71);
    busy.decoder_utilization = Some(12);
    busy.activity = Some(BUSY);
    busy.checks.pcie_replays = Some(4);
    busy.checks.remapped_rows = Some(RemappedRows {
        correctable: 2,
        uncorrectable: 1,
        ..RemappedRows::default()
    });
    // A virtual GPU needs a licence, and a reading that is not there is no 0.
    state.gpus[0].vgpu_licensed = Some(true);
    state.gpus[0].power_mw = None;
    let node = Scraped::start(&state);
    let text = golden("h100", &node, 8, 8).await;

    // The 26 default rows: one is the label of the driver's version.
    let defaults = "SM_CLOCK MEM_CLOCK MEMORY_TEMP GPU_TEMP POWER_USAGE TOTAL_ENERGY_CONSUMPTION PCIE_REPLAY_COUNTER GPU_UTIL \
        MEM_COPY_UTIL ENC_UTIL DEC_UTIL XID_ERRORS FB_FREE FB_USED FB_RESERVED NVLINK_BANDWIDTH_TOTAL VGPU_LICENSE_STATUS \
        UNCORRECTABLE_REMAPPED_ROWS CORRECTABLE_REMAPPED_ROWS ROW_REMAP_FAILURE";
    let profiling = "GR_ENGINE_ACTIVE PIPE_TENSOR_ACTIVE DRAM_ACTIVE PCIE_TX_BYTES PCIE_RX_BYTES";
    let expected = defaults.split_whitespace().map(|name| format!("DCGM_FI_DEV_{name}"));
    let expected = expected.chain(profiling.split(' ').map(|name| format!("DCGM_FI_PROF_{name}")));
    let names = names(&text);
    let mut count = 1;
    for name in expected {
        assert!(names.contains(name.as_str()), "{name} is missing");
        count += 1;
    }
    assert_eq!(count, 26);
    assert!(text.contains("DCGM_FI_DRIVER_VERSION=\"550.163.01\""));
    let power = text
        .lines()
        .filter(|l| l.starts_with("DCGM_FI_DEV_POWER_USAGE{"))
        .count();
    assert_eq!(power, 7, "one GPU does not tell");

    let (head, _) = node.get().await;
    assert!(
        head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
        "{head}"
    );
}

#[tokio::test]
async fn instances_have_rows_of_their_own() {
    let mut state = State::of("H100-80GB-HBM3", 1, "node-a").unwrap();
    state.gpus[0]
        .enable_mig(&["3g.40gb", "1g.10gb", "1g.10gb+me", "1g.10gb"])
        .unwrap();
    let devices = &mut state.gpus[0].mig.as_mut().unwrap().devices;
    devices[0].memory_used_bytes = 30 << 30;
    devices[0].activity = BUSY;
    // Two compute instances of one GPU instance: one series, not two that are the same.
    devices[3].gpu_instance = devices[1].gpu_instance;
    devices[3].compute_instance = 1;
    golden("mig", &Scraped::start(&state), 3, 1).await;
}

#[tokio::test]
async fn a_node_may_have_both_and_parts_that_tell_less() {
    let mut state = State::of("H100-80GB-HBM3", 2, "node-a").unwrap();
    state.gpus[1].enable_mig(&["3g.40gb"]).unwrap();
    let mut old = State::of("T4", 3, "node-b").unwrap().gpus.remove(2);
    old.name = "Tesla \"T4\"".into();
    state.gpus.push(old);
    golden("mixed", &Scraped::start(&state), 2, 2).await;
}

#[tokio::test]
async fn a_driver_that_hangs_takes_its_rows_away_and_not_the_scrape() {
    let node = Scraped::start(&State::of("H100-80GB-HBM3", 2, "node-a").unwrap());
    let text = node.until(|text| text.contains("DCGM_FI_DEV_ENC_UTIL{")).await;
    assert!(text.contains("berth_agent_probe_up 1\n"), "{text}");
    assert!(text.contains("berth_gpu_health{gpu=\"0\",UUID=\"GPU-"), "{text}");

    let stall = |function: &str| vec![Fault::of(function, Effect::Stall(true))];
    node.edit(|s| s.faults = stall("nvmlDeviceGetPowerUsage"));
    let text = node.until(|text| text.contains("{state=\"Hung\"} 1\n")).await;
    let left: Vec<_> = names(&text).into_iter().filter(|n| n.starts_with("DCGM_")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(text.contains("berth_agent_stuck_nvml_calls 1\n"), "{text}");
    assert!(text.contains("berth_agent_sample_age_seconds "), "{text}");
    assert!(text.contains("reason=\"GPUDriverHung\"} 1\n"), "{text}");
    let ill = text.lines().filter(|l| l.ends_with(",state=\"Unhealthy\"} 1"));
    assert_eq!(ill.count(), 2, "{text}");
    // However long the driver hangs, each scrape is answered, and none of them calls it.
    let calls = || {
        std::fs::read_to_string(node.node.path("calls"))
            .unwrap()
            .lines()
            .count()
    };
    let before = calls();
    let start = Instant::now();
    let mut scrapes = 0;
    while start.elapsed() < CALL_TIMEOUT / 2 || scrapes < 20 {
        node.get().await;
        scrapes += 1;
    }
    assert!(
        calls() - before < scrapes,
        "{} calls in {scrapes} scrapes",
        calls() - before
    );

    node.edit(|s| s.faults.clear());
    node.until(|text| text.contains("DCGM_FI_DEV_POWER_USAGE{") && text.contains("DCGM_FI_DEV_ENC_UTIL{"))
        .await;
}

#[tokio::test]
async fn readings_of_a_probe_that_stands_still_are_gone_when_they_are_old() {
    let node = Scraped::start(&State::of("L40S", 1, "node-a").unwrap());
    node.until(|text| text.contains("DCGM_FI_DEV_POWER_USAGE{")).await;
    // It neither answers nor hangs up: nothing tells the agent that anything is wrong.
    node.probe.signal("-STOP");
    let text = node.until(|text| !text.contains("DCGM_FI_DEV_POWER_USAGE{")).await;
    assert!(text.contains("{state=\"Ready\"} 1\n"), "no word of it yet: {text}");
    node.probe.signal("-CONT");
    node.until(|text| text.contains("DCGM_FI_DEV_POWER_USAGE{")).await;
}

#[tokio::test]
async fn an_xid_is_told_and_stays_told_while_the_driver_is_away() {
    let state = State::of("H100-80GB-HBM3", 2, "node-a").unwrap();
    let node = Scraped::start(&state);
    let none = "err_code=\"0\",err_msg=\"No Error\"} 0\n";
    node.until(|text| text.matches(none).count() == 2).await;
    node.edit(|s| s.gpus[1].push_xid(79));
    let seen = "err_code=\"79\",err_msg=\"restart the machine\"} 79\n";
    let text = node.until(|text| text.contains(seen)).await;
    let of_second = |name: &str, rest: &str| {
        let line = text
            .lines()
            .find(|l| l.starts_with(name) && l.contains(&state.gpus[1].uuid));
        assert!(line.is_some_and(|l| l.ends_with(rest)), "{name}: {line:?}");
    };
    of_second(
        "DCGM_EXP_XID_ERRORS_COUNT{",
        ",window_size_in_ms=\"300000\",xid=\"79\"} 1",
    );
    of_second("DCGM_EXP_XID_ERRORS_TOTAL{", ",xid=\"79\"} 1");
    of_second("berth_gpu_health_reason{", ",reason=\"FallenOffBus\"} 1");
    assert_eq!(text.matches(none).count(), 1, "{text}");

    node.edit(|s| s.driver.loaded = false);
    let text = node.until(|text| !text.contains("DCGM_FI_DEV_GPU_TEMP{")).await;
    assert!(text.contains(seen) && !text.contains(none), "{text}");
}
