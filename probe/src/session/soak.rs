//! A million readings leave nothing behind.

use std::process::Command;

use nvidia_ml::library;
use nvidia_ml::state::{STATE_ENV, State};

use super::*;
use crate::service;

const GPUS: u32 = 8;
/// Until every buffer has the size that it keeps.
const WARM_UP: u32 = 2_000;
const ROUNDS: u32 = 125_000;
/// Less than a byte a round.
const SLACK: i64 = 64 * 1024;

/// The library reads its environment, which this process must not change while other tests run: so it runs itself for this test alone.
#[test]
fn a_million_readings_leave_nothing_behind() {
    if std::env::var_os(STATE_ENV).is_some() {
        return soak();
    }
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("nvml.json");
    State::of("H100-80GB-HBM3", GPUS, "node-a")
        .unwrap()
        .write(&state)
        .unwrap();
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "session::soak::a_million_readings_leave_nothing_behind"])
        .env(STATE_ENV, &state)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}

fn soak() {
    let clock = CallClock::default();
    let mut session = Session::open(&[library::build().unwrap()], &clock).unwrap();
    let mut round = || {
        let readings = session.sample(&clock).unwrap();
        assert_eq!(readings.samples.len(), GPUS as usize);
        assert_eq!(service::gpus(readings.samples).len(), GPUS as usize);
    };
    (0..WARM_UP).for_each(|_| round());
    let before = ["task", "fd"].map(entries);
    let grown = allocation_counter::measure(|| (0..ROUNDS).for_each(|_| round()));
    assert!(grown.count_total > u64::from(ROUNDS), "nothing was counted");
    assert!(grown.bytes_current < SLACK, "{grown:?}");
    assert_eq!(["task", "fd"].map(entries), before, "threads, descriptors");
}

fn entries(of: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{of}")).unwrap().count()
}
