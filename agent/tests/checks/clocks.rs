//! Clocks that heat or power holds down, and how far the GPU is from that.

use std::time::Duration;

use berth_proto::v1::GpuState::{Healthy, Suspect, Unhealthy, Verifying};
use nvidia_ml::state::State;

use crate::node::watched::{HEALTHY, Is, Watched, differs};
use crate::rows::{SUSPECT, UNHEALTHY, come_and_go, row, sound};

#[tokio::test]
#[rustfmt::skip]
async fn each_temperature() {
    come_and_go(vec![
        row("as hot as may be", |g| g.checks.temperature_margin_c = Some(0), SUSPECT, "Overheated"),
        row("a degree less", |g| g.checks.temperature_margin_c = Some(1), HEALTHY.0, HEALTHY.1),
        row("by the threshold", |g| {
            g.checks.temperature_margin_c = None;
            g.temperature_c = Some(88);
        }, SUSPECT, "Overheated"),
    ])
    .await;
}

/// A sample stands for this much of the time before it, at most.
const STEP: Duration = Duration::from_secs(5);
const IDLE: u64 = 0x1;
/// A power cap, which people set.
const CAPPED: u64 = 0x4;

/// Each reason that counts, for all of the time.
const HELD: [u64; 4] = [0x8, 0x20, 0x40, 0x80];
/// Other GPUs, after those: held down in one step of four; capped; and two of which only the driver's count of the time tells, a fifth of
/// it and four fifths.
const AT_TIMES: usize = 4;
const ALL_CAPPED: usize = 5;
const COUNTED: usize = 6;
const MOSTLY_COUNTED: usize = 7;
const THROTTLED: Is = (SUSPECT, "Throttled");

/// Five seconds with these reasons in their samples, and with so much of them counted.
async fn step(node: &Watched, reasons: impl Fn(usize) -> u64, counted: impl Fn(usize) -> Duration) {
    let before = node.heard(|heard| heard.samples);
    node.node.edit(|state| {
        for (n, gpu) in state.gpus.iter_mut().enumerate() {
            gpu.clocks_event_reasons = Some(reasons(n));
            let count = &mut gpu.checks.thermal_violation_ns;
            *count = count.map(|held| held + u64::try_from(counted(n).as_nanos()).unwrap());
        }
    });
    node.clock.turn(STEP);
    node.eventually(|heard| match heard.samples > before {
        true => Vec::new(),
        false => vec!["no readings".into()],
    })
    .await;
}

#[tokio::test]
async fn throttling_counts_by_its_share_of_ten_minutes() {
    // More than ten minutes of steps.
    const MOST: usize = 400;
    let node = Watched::start(sound(8, |_: &mut State| ()), &[]).await;
    let gpus = node.node.state().gpus;
    node.until(&gpus, |_| HEALTHY).await;
    let want = |n: usize| match n {
        ALL_CAPPED => HEALTHY,
        AT_TIMES | COUNTED => THROTTLED,
        _ => (UNHEALTHY, "Throttled"),
    };
    let mut steps = 0;
    while !node.heard(|heard| differs(heard, &gpus, want).is_empty()) {
        let reasons = |n: usize| match n {
            n if n < HELD.len() => HELD[n],
            AT_TIMES if steps % 4 == 0 => 0x40,
            ALL_CAPPED => CAPPED,
            _ => IDLE,
        };
        let counted = |n: usize| match n {
            COUNTED => STEP / 5,
            MOSTLY_COUNTED => STEP * 4 / 5,
            _ => Duration::ZERO,
        };
        step(&node, reasons, counted).await;
        steps += 1;
        assert!(steps < MOST, "{:#?}", node.heard(|heard| differs(heard, &gpus, want)));
    }
    // Nothing is seen of the next minutes: neither that the clocks are held down nor that they are not.
    node.pass(Duration::from_secs(240)).await;
    while !node.heard(|heard| differs(heard, &gpus, |_| HEALTHY).is_empty()) {
        step(&node, |_| IDLE, |_| Duration::ZERO).await;
        steps += 1;
        assert!(
            steps < 2 * MOST,
            "{:#?}",
            node.heard(|heard| differs(heard, &gpus, |_| HEALTHY))
        );
    }
    for (n, gpu) in gpus.iter().enumerate() {
        let states = match want(n).0 {
            // As its share grows, and as it gets less.
            Unhealthy => vec![Healthy, Suspect, Unhealthy, Verifying, Suspect, Healthy],
            Suspect => vec![Healthy, Suspect, Healthy],
            _ => vec![Healthy],
        };
        node.told(gpu, |told| assert_eq!(told.states, states, "GPU {n}"));
    }
}
