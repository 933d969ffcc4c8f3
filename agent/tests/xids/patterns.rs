//! What several events of one GPU say, and one of them does not. Times go by on a clock that the test turns.

use std::fmt::Write as _;
use std::time::Duration;

use berth_proto::v1::GpuState::{Suspect, Unhealthy};
use nvidia_ml::state::{EventKind, Gpu};

use crate::gpus;
use crate::machine::Machine;
use crate::node::watched::{HEALTHY, Watched};

/// Two sources tell of one event within two seconds.
const APART: Duration = Duration::from_secs(3);
const DAY: Duration = Duration::from_secs(24 * 3600);

async fn start(count: u32) -> (Watched, Vec<Gpu>) {
    let machine = Machine::new();
    machine.nvidia(&gpus(count));
    machine.put("kmsg", "");
    let log = format!("--kernel-log={}", machine.path("kmsg").display());
    let node = Watched::start(machine, &[&log]).await;
    let gpus = node.node.state().gpus.split_off(1);
    node.round(|_| (), &gpus, |_| HEALTHY).await;
    (node, gpus)
}

/// Waits until the agent has told of an XID of this GPU so many times.
async fn told(node: &Watched, gpu: &str, xid: u64, times: u64) {
    node.eventually(|heard| {
        let is = heard.xids.get(&(gpu.to_owned(), xid)).copied().unwrap_or(0);
        match is >= times {
            true => Vec::new(),
            false => vec![format!("XID {xid} was told {is} times, not {times}")],
        }
    })
    .await;
}

#[tokio::test]
async fn memory_that_goes_bad_within_a_day() {
    let (node, gpus) = start(4).await;
    for n in 1..=3 {
        let want = |gpu: usize| match gpu {
            0 if n == 3 => (Suspect, "MemoryErrorTrend"),
            // As NVML's own events, which have no number.
            1 if n == 3 => (Suspect, "MemoryErrorTrend"),
            _ => HEALTHY,
        };
        node.edit(|state| {
            state.gpus[1].push_xid(if n == 2 { 92 } else { 63 });
            state.gpus[2].push_event(EventKind::Type(if n == 2 { 0x400 } else { 0x200 }));
            // Twice at once is once.
            state.gpus[3].push_xid(63);
            state.gpus[3].push_xid(92);
            // The last of this lane.
            state.gpus[3].push_xid(14);
        });
        told(&node, &gpus[2].uuid, 14, n).await;
        if n < 3 {
            node.round(|_| (), &gpus, want).await;
            node.clock.turn(APART);
        } else {
            node.round(|_| (), &gpus[..2], want).await;
        }
    }
    node.clock.turn(DAY);
    node.round(|_| (), &gpus, |_| HEALTHY).await;
}

#[tokio::test]
async fn a_cleanup_that_nothing_led_to() {
    let (node, gpus) = start(3).await;
    node.edit(|state| {
        state.gpus[1].push_xid(45);
        state.gpus[2].push_xid(31);
        state.gpus[2].push_xid(45);
    });
    for gpu in &gpus {
        told(&node, &gpu.uuid, 45, 1).await;
    }
    // What led to it may be told later.
    node.round(|_| (), &gpus, |_| HEALTHY).await;
    node.clock.turn(Duration::from_secs(6));
    let want = |gpu: usize| match gpu {
        0 => (Suspect, "XidWarning"),
        _ => HEALTHY,
    };
    node.round(|_| (), &gpus, want).await;
    node.clock.turn(Duration::from_secs(500));
    node.round(|_| (), &gpus, want).await;
    node.clock.turn(Duration::from_secs(101));
    node.round(|_| (), &gpus, |_| HEALTHY).await;
}

/// Lines of the kernel log: XID, and what follows it.
fn say(node: &Watched, gpu: &Gpu, lines: &[(u64, String)]) {
    let address = gpu.pci_address.trim_end_matches(".0");
    let mut text = String::new();
    for (xid, words) in lines {
        let _ = writeln!(text, "4,1,1,-;NVRM: Xid (PCI:{address}): {xid}, {words}");
    }
    node.node.log(&text);
}

#[tokio::test]
async fn processes_that_fail_on_one_gpu_alone() {
    let (node, gpus) = start(5).await;
    let fail = |pid: u64, name: &str| (31, format!("pid={pid}, name={name}, MMU Fault"));
    let [several, one_name, one_process, elsewhere] = [0, 1, 2, 3];
    say(
        &node,
        &gpus[several],
        &[fail(1, "train"), fail(2, "serve"), fail(3, "eval")],
    );
    say(
        &node,
        &gpus[one_name],
        &[11, 12, 13, 14, 15, 16].map(|pid| fail(pid, "python3")),
    );
    say(
        &node,
        &gpus[one_process],
        &[fail(21, "batch"), fail(21, "batch"), fail(21, "batch")],
    );
    say(
        &node,
        &gpus[elsewhere],
        &[fail(31, "etl"), fail(32, "fit"), fail(33, "fit")],
    );
    let want = |gpu: usize| match gpu {
        n if n == several || n == one_name => (Suspect, "RepeatedXids"),
        _ => HEALTHY,
    };
    node.until(&gpus, |gpu| match gpu {
        n if n == elsewhere => (Suspect, "RepeatedXids"),
        n => want(n),
    })
    .await;
    // A name that fails on another GPU as well has a bug of its own.
    let spared = node.node.state().gpus.remove(0);
    say(&node, &spared, &[fail(41, "fit")]);
    node.until(&gpus, want).await;
    node.clock.turn(DAY + APART);
    node.round(|_| (), &gpus, |_| HEALTHY).await;
}

#[tokio::test]
async fn a_link_that_errs_again_and_again() {
    let (node, gpus) = start(3).await;
    let on = |link: u32| {
        (
            74,
            format!(
                "pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link {link}(0x2, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"
            ),
        )
    };
    // Three errors of three links; and two of one link.
    say(&node, &gpus[0], &[on(1), on(2), on(3)]);
    say(&node, &gpus[1], &[on(14), on(14)]);
    node.until(&gpus, |_| (Suspect, "NvLinkError")).await;
    say(&node, &gpus[1], &[on(14)]);
    node.until(&gpus, |gpu| match gpu {
        1 => (Unhealthy, "NvLinkError"),
        _ => (Suspect, "NvLinkError"),
    })
    .await;
}
