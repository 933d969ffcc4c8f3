//! Every row of the catalogue on a GPU of its own, and then, one after the other, what ends some of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use berth_core::health::Proof;
use berth_proto::v1::{self, GpuState};
use nvidia_ml::state::EventKind;

use crate::node::{Controller, Node};
use crate::rows::{Both, Event, Log, Nvml, Row, UNASSIGNED, rows};
use crate::{Watch, gpus, seen};

#[tokio::test]
async fn every_row_of_the_catalogue() {
    let rows = rows();
    let listed: BTreeSet<u64> = rows
        .iter()
        .flat_map(|row| &row.inputs)
        .filter_map(|input| match input {
            Nvml(xid) | Log(xid, _) | Both(xid, _) => Some(*xid),
            Event(_) => None,
        })
        .collect();
    let assigned = (1..=172).filter(|xid| listed.contains(xid)).count();
    assert_eq!(
        assigned,
        172 - 61 + UNASSIGNED.len(),
        "a row of the catalogue is missing"
    );

    let mut controller = Controller::start().await;
    let node = Node::new();
    node.identity(&controller, "token");
    std::fs::write(node.path("kmsg"), "").unwrap();
    let count = u32::try_from(rows.len()).unwrap();
    let state = gpus(count);
    state.write(&node.path("nvml.json")).unwrap();
    let _probe = node.probe();
    let _agent = node.agent(&controller);
    // Health may be told before the inventory that it is of: nothing is passed over.
    let mut watch = Watch::start(&mut controller).await;
    let of = |place: usize| state.gpus[place].uuid.clone();
    let compare = |told: usize, want: &dyn Fn(&Row) -> Vec<(GpuState, &'static str)>, health: &v1::NodeHealth| {
        let seen = seen(health);
        let mut wrong = String::new();
        for (place, row) in rows.iter().enumerate().take(told) {
            let is = seen.get(&of(place)).map(|(state, reason)| (*state, &**reason));
            let want = want(row);
            if !is.is_some_and(|is| want.contains(&is)) {
                let _ = writeln!(wrong, "{}: {want:?} is {is:?}", row.what);
            }
        }
        wrong
    };
    let well = vec![(GpuState::Healthy, "")];
    watch
        .until("well", |health| compare(rows.len(), &|_| well.clone(), health))
        .await;
    // Counters are read before anything happens: each GPU's checks come with an event.
    node.edit(|state| state.gpus[0].push_xid(14));

    // In chunks, as a GPU never tells so much at once.
    for (chunk, some) in rows.chunks(16).enumerate() {
        let mut lines = String::new();
        node.edit(|state| {
            for (place, row) in some.iter().enumerate() {
                let gpu = &mut state.gpus[16 * chunk + place];
                let mut log = |xid: u64, text: &str| {
                    let address = gpu.pci_address.trim_end_matches(".0");
                    let _ = writeln!(lines, "4,1,1,-;NVRM: Xid (PCI:{address}): {xid}, {text}");
                };
                for input in &row.inputs {
                    match input {
                        Log(xid, text) | Both(xid, text) => log(*xid, text),
                        Nvml(_) | Event(_) => {}
                    }
                }
                for input in &row.inputs {
                    match input {
                        Nvml(xid) | Both(xid, _) => gpu.push_xid(*xid),
                        Event(bit) => gpu.push_event(EventKind::Type(*bit)),
                        Log(..) => {}
                    }
                }
            }
        });
        node.log(&lines);
        let told = 16 * (chunk + 1);
        watch
            .until("verdicts of some", |health| {
                compare(told, &|row| vec![(row.state, row.reason)], health)
            })
            .await;
    }
    watch
        .until("verdicts", |health| {
            compare(rows.len(), &|row| vec![(row.state, row.reason)], health)
        })
        .await;
    // From here on each may end, and is verified where it was not handed out.
    let after = |proof: Proof| {
        move |row: &Row| match row.state {
            GpuState::Unhealthy | GpuState::Suspect if row.until > proof => vec![(row.state, row.reason)],
            _ => vec![(GpuState::Healthy, "")],
        }
    };
    node.edit(|state| {
        state.gpus.iter_mut().for_each(|gpu| gpu.recovery_action = Some(0));
        state.gpus[0].push_xid(14);
    });
    let until = after(Proof::NothingAsked);
    watch
        .until("the driver asks for nothing", |health| {
            compare(rows.len(), &until, health)
        })
        .await;
    node.edit(|state| {
        for gpu in &mut state.gpus {
            (gpu.checks.pcie_replays, gpu.checks.nvlink_crc_errors) = (Some(0), Some(0));
        }
        state.gpus[0].push_xid(14);
    });
    let until = after(Proof::Reset);
    watch
        .until("a reset", |health| compare(rows.len(), &until, health))
        .await;
    node.edit(|state| state.driver.loaded = false);
    let ill = |health: &v1::NodeHealth| match health.gpus.iter().all(|gpu| gpu.state() == GpuState::Unhealthy) {
        true => String::new(),
        false => "not all are away".into(),
    };
    watch.until("no driver", ill).await;
    node.edit(|state| state.driver.loaded = true);
    let until = after(Proof::Rebound);
    // What was seen of a GPU in a day is seen still.
    let until = |row: &Row| match row.reason {
        "RepeatedXids" => vec![(row.state, row.reason)],
        _ => until(row),
    };
    watch
        .until("a driver loaded anew", |health| compare(rows.len(), &until, health))
        .await;
}
