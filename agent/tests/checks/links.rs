//! NVLink and the fabric behind it.

use std::time::Duration;

use nvidia_ml::state::State;

use crate::node::watched::{HEALTHY, Is, Watched};
use crate::rows::{Counter, SUSPECT, come_and_go, rise_and_rest, row, sound};

#[tokio::test]
#[rustfmt::skip]
async fn each_fault_of_the_fabric_and_its_links() {
    come_and_go(vec![
        row("not registered", |g| g.fabric.as_mut().unwrap().state = 2, SUSPECT, "FabricNotReady"),
        row("registration failed", |g| g.fabric.as_mut().unwrap().status = 999, SUSPECT, "FabricNotReady"),
        row("degraded", |g| g.checks.fabric_health_mask = 0x1a9, SUSPECT, "FabricDegraded"),
        row("of limited capacity", |g| g.checks.fabric_health_summary = 3, SUSPECT, "FabricDegraded"),
        row("all is well, and told", |g| g.checks.fabric_health_mask = 0x1aa, HEALTHY.0, HEALTHY.1),
        row("a link down", |g| g.checks.nvlinks.as_mut().unwrap()[17] = false, SUSPECT, "NvLinkDown"),
    ])
    .await;
}

#[tokio::test]
async fn crc_errors_by_their_number_in_a_minute() {
    rise_and_rest(&[Counter {
        set: |gpu, count| gpu.checks.nvlink_crc_errors = Some(count),
        most: 6000,
        reason: "NvLinkError",
    }])
    .await;
}

#[tokio::test]
async fn a_link_that_recovered_or_did_not_is_remembered_for_ten_minutes() {
    let count = |recovered: u32, failed: u32| {
        move |state: &mut State| {
            state.gpus[1].checks.nvlink_recoveries = Some(recovered);
            // NVLink 5 counts these.
            state.gpus[2].checks.nvlink_failed_recoveries = Some(failed);
        }
    };
    let node = Watched::start(sound(4, count(4, 7)), &[]).await;
    let gpus = node.node.state().gpus.split_off(1);
    // What was counted before says nothing.
    node.round(|_| (), &gpus, |_| HEALTHY).await;
    let want = |n: usize| -> Is {
        match n {
            0 | 1 => (SUSPECT, "NvLinkError"),
            _ => HEALTHY,
        }
    };
    node.round(count(5, 8), &gpus, want).await;
    node.clock.turn(Duration::from_secs(500));
    node.round(|_| (), &gpus, want).await;
    node.clock.turn(Duration::from_secs(101));
    node.round(|_| (), &gpus, |_| HEALTHY).await;
}
