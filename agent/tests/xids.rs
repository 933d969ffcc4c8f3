//! Every row of NVIDIA's XID catalogue through the real probe and the real agent: the fault goes into the fake driver or the kernel log,
//! the verdict comes out, and what ends it ends it.
#![allow(clippy::unwrap_used)]

mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use berth_core::health::Proof;
use berth_proto::v1::agent_message::Body;
use berth_proto::v1::{self, GpuState};
use node::{Controller, Node, Session};
use nvidia_ml::state::{Effect, EventKind, Fault, State, code};

/// Far beyond anything expected.
const PATIENCE: Duration = Duration::from_secs(120);

/// What happens to one GPU.
enum Input {
    /// An XID, as NVML tells it.
    Nvml(u64),
    /// An XID, as the kernel log tells it.
    Log(u64, &'static str),
    /// As both do.
    Both(u64, &'static str),
    /// Another event of NVML, by its bit.
    Event(u64),
}

use Input::{Both, Event, Log, Nvml};

struct Row {
    what: &'static str,
    inputs: Vec<Input>,
    state: GpuState,
    reason: &'static str,
    /// The least that ends it; of a row that stays healthy, of no meaning.
    until: Proof,
}

fn row(what: &'static str, inputs: Vec<Input>, state: GpuState, reason: &'static str, until: Proof) -> Row {
    Row {
        what,
        inputs,
        state,
        reason,
        until,
    }
}

const RESTART_APP: [u64; 48] = [
    8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 71, 72, 75, 76, 77, 80, 82, 83, 84, 85, 86, 88, 89, 94, 96, 97,
    98, 99, 100, 101, 102, 103, 104, 105, 126, 127, 128, 129, 130, 131, 132, 133, 134, 135, 139,
];
const IGNORE: [u64; 21] = [
    14, 37, 38, 43, 44, 63, 66, 67, 92, 93, 106, 107, 108, 121, 137, 141, 152, 153, 157, 160, 161,
];
const RESET_GPU: [u64; 14] = [46, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158];
/// Of those that nothing is said of in the catalogue.
const UNASSIGNED: [u64; 8] = [1, 9, 61, 65, 81, 111, 125, 138];

const SYMPATHETIC: &str =
    "pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 14(0x2, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)";
const HARMLESS: &str =
    "pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 14(0x1, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)";
const CONNECTOR: &str =
    "pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 14(0x100, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)";

#[rustfmt::skip]
fn rows() -> Vec<Row> {
    use GpuState::{Healthy as H, Suspect as S, Unhealthy as U};
    use Proof::{NothingAsked, Rebound, Reset};
    let all = |xids: &[u64]| xids.iter().map(|xid| Nvml(*xid)).collect::<Vec<_>>();
    let mut rows = vec![
        row("RESTART_APP", all(&RESTART_APP), H, "", NothingAsked),
        row("RESTART_APP in the log", RESTART_APP.iter().map(|xid| Log(*xid, "pid=7, name=batch, x")).collect(), H, "", NothingAsked),
        row("13 and 31 of several processes", vec![
            Log(13, "pid=1, name=train, Graphics Exception"), Log(31, "pid=2, name=serve, MMU Fault"), Log(31, "pid=3, name=eval, MMU Fault"),
        ], S, "RepeatedXids", Rebound),
        row("IGNORE", all(&IGNORE), H, "", NothingAsked),
        row("48 with 63: a remapping waits", vec![Both(48, "pid=7, name=x, DBE"), Nvml(63)], U, "DoubleBitError", Reset),
        row("45 after another", vec![Nvml(31), Nvml(45)], H, "", NothingAsked),
        row("54", vec![Nvml(54)], U, "CheckMechanicals", Rebound),
        row("74, nobody's words", vec![Nvml(74)], U, "NvLinkError", Reset),
        row("74, harmless bits", vec![Both(74, HARMLESS)], H, "", NothingAsked),
        row("74, sympathetic bits", vec![Both(74, SYMPATHETIC)], S, "NvLinkError", Reset),
        row("74, broken connector", vec![Log(74, CONNECTOR)], U, "NvLinkError", Reset),
        row("78", vec![Nvml(78)], S, "UpdateSoftware", Rebound),
        row("79", vec![Both(79, "pid='<unknown>', name=<unknown>, GPU has fallen off the bus.")], U, "FallenOffBus", Rebound),
        row("142", vec![Nvml(142)], U, "ContactSupport", Rebound),
        row("144, nobody's words", vec![Nvml(144)], S, "NvLinkError", Reset),
        row("144, reset", vec![Log(144, "SAW_MVB Fatal XC0 i0 Link 02 (0x00000001 0x00000002 0x0 0x0 0x0 0x0)")], U, "NvLinkError", Reset),
        row("145, ignored", vec![Both(145, "RLW_RSPCOL Nonfatal XC0 i0 Link 02 (0x00000005 0x00000001 0x0 0x0 0x0 0x0)")], H, "", NothingAsked),
        row("145, promoted", vec![Log(145, "RLW_RXPIPE Fatal XC0 i0 Link 02 (0x00000086 0x00000001 0x0 0x0 0x0 0x0)")], U, "NvLinkError", Reset),
        row("145, as recommended", vec![Log(145, "RLW_REMAP Nonfatal XC1 i0 Link 02 (0x00000004 0x00000010 0x0 0x0 0x0 0x0)")], H, "", NothingAsked),
        row("146, ignored", vec![Log(146, "TLW_RX_PIPE1 Nonfatal XC0 i0 Link 02 (0x0000000b 0x00000002 0x0 0x0 0x0 0x0)")], H, "", NothingAsked),
        row("147, ignored", vec![Log(147, "TREX Nonfatal XC0 i0 Link 02 (0x0000000e 0x80000000 0x0 0x0 0x0 0x0)")], H, "", NothingAsked),
        row("148, ignored", vec![Log(148, "NVLPW Nonfatal XC0 i0 Link 02 (0x0000000f 0x80000000 0x0 0x0 0x0 0x0)")], H, "", NothingAsked),
        row("149, link down", vec![Both(149, "NETIR_LINK_DOWN Fatal XC0 i0 Link 08 (0x02500011 0x00000000 0x0 0x0 0x0 0x0)")], U, "NvLinkError", Reset),
        row("149, put down on purpose", vec![Log(149, "NETIR_LINK_DOWN Nonfatal XC0 i0 Link 08 (0x02600011 0x00000000 0x0 0x0 0x0 0x0)")], H, "", NothingAsked),
        row("150", vec![Log(150, "MSE_WATCHDOG Fatal XC0 i0 Link -1 (0x00000000 0x00000000 0x0 0x0 0x0 0x0)")], U, "NvLinkError", Reset),
        row("150, in no rule", vec![Log(150, "MSE_NEW Fatal XC0 i0 Link 01 (0x00000010 0x00000000 0x0 0x0 0x0 0x0)")], U, "NvLinkError", Reset),
        row("151", vec![Nvml(151)], U, "RestartVm", Rebound),
        row("154, nobody's words", vec![Nvml(154)], S, "RecoveryAction", NothingAsked),
        row("154, reset", vec![Both(154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)")], U, "RecoveryAction", NothingAsked),
        row("154, IMEX", vec![Log(154, "GPU recovery action changed from 0x0 (None) to 0x5 (Recover IMEX Domain)")], S, "RecoveryAction", NothingAsked),
        row("154, none", vec![Both(154, "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)")], H, "", NothingAsked),
        row("159", vec![Nvml(159)], S, "CheckUvm", Reset),
        row("162-170", (162..=170).map(Nvml).collect(), S, "XidUnlisted", NothingAsked),
        row("171 and 172", vec![Nvml(171), Nvml(172)], S, "XidUnlisted", Reset),
        row("in no catalogue", vec![Both(999, "x")], S, "XidUnlisted", Reset),
        row("event: double bit", vec![Event(0x2)], U, "DoubleBitError", Reset),
        row("event: storm of corrected errors", vec![Event(0x200)], H, "", NothingAsked),
        row("event: retirement", vec![Event(0x400)], H, "", NothingAsked),
        row("event: failed retirement", vec![Event(0x800)], U, "ResetRequired", Reset),
        row("event: contained poison", vec![Event(0x1000)], H, "", NothingAsked),
        row("event: poison", vec![Event(0x2000)], U, "ResetRequired", Reset),
        row("event: unavailable", vec![Event(0x4000)], U, "GpuUnavailable", Reset),
        row("event: recovery action", vec![Event(0x8000)], S, "RecoveryAction", NothingAsked),
        row("event: P-state, of no interest", vec![Event(0x4)], H, "", NothingAsked),
    ];
    rows.extend(RESET_GPU.map(|xid| row("RESET_GPU", vec![Nvml(xid)], U, "ResetRequired", Reset)));
    rows.extend(UNASSIGNED.map(|xid| row("CONTACT_SUPPORT", vec![Nvml(xid)], U, "ContactSupport", Rebound)));
    // Those that both tell of come with few others: they have to be told within two seconds.
    rows.sort_by_key(|row| row.inputs.iter().any(|input| matches!(input, Both(..))));
    // Told last, in either lane: when it is seen, all before it were.
    rows.push(row("the last of NVML", vec![Nvml(95)], U, "ResetRequired", Reset));
    rows.push(row("the last of the log", vec![Log(95, "x")], U, "ResetRequired", Reset));
    rows
}

type Seen = BTreeMap<String, (GpuState, String)>;

fn seen(health: &v1::NodeHealth) -> Seen {
    let entry = |gpu: &v1::GpuHealth| (gpu.uuid.clone(), (gpu.state(), gpu.reason.clone()));
    health.gpus.iter().map(entry).collect()
}

/// Follows one session: the health as last told.
struct Watch {
    session: Session,
    health: v1::NodeHealth,
}

impl Watch {
    async fn start(controller: &mut Controller) -> Self {
        Self {
            session: controller.session().await,
            health: v1::NodeHealth::default(),
        }
    }

    /// Until `wrong` has nothing to say.
    async fn until(&mut self, what: &str, wrong: impl Fn(&v1::NodeHealth) -> String) {
        let all = async {
            while !wrong(&self.health).is_empty() || self.health.gpus.is_empty() {
                if let Some(Body::Health(health)) = self.session.message().await.body {
                    self.health = health;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            panic!("{what}:\n{}", wrong(&self.health));
        }
    }
}

fn append(node: &Node, lines: &str) {
    let mut log = std::fs::OpenOptions::new()
        .append(true)
        .open(node.path("kmsg"))
        .unwrap();
    log.write_all(lines.as_bytes()).unwrap();
}

/// GPUs that have counted something already, under a driver with the newer layout of NVLink 5.
fn gpus(count: u32) -> State {
    let mut state = State::of("H100-80GB-HBM3", count, "node-a").unwrap();
    state.driver.version = "580.95.05".into();
    for gpu in &mut state.gpus {
        // Without links their errors are not read.
        gpu.checks.nvlinks = Some(vec![true; 18]);
        gpu.checks.pcie_replays = Some(5);
        gpu.checks.nvlink_crc_errors = Some(7);
    }
    state
}

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
        append(&node, &lines);
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

#[tokio::test]
async fn a_mig_slice_is_ill_alone_and_goes_with_its_fault() {
    let mut controller = Controller::start().await;
    let node = Node::new();
    node.identity(&controller, "token");
    std::fs::write(node.path("kmsg"), "").unwrap();
    let mut state = gpus(2);
    state.gpus[0].enable_mig(&["1g.10gb", "1g.10gb", "3g.40gb"]).unwrap();
    state.write(&node.path("nvml.json")).unwrap();
    let gpu = state.gpus[0].uuid.clone();
    let slices = state.gpus[0].mig_devices().to_vec();
    let _probe = node.probe();
    let _agent = node.agent(&controller);
    let mut watch = Watch::start(&mut controller).await;
    let wrong = |ill: Vec<&str>, known: usize| {
        let ill: BTreeSet<String> = ill.into_iter().map(str::to_owned).collect();
        move |health: &v1::NodeHealth| {
            let is: BTreeSet<String> = seen(health)
                .into_iter()
                .filter(|(_, (state, _))| *state == GpuState::Unhealthy)
                .map(|(uuid, _)| uuid)
                .collect();
            match is == ill && health.gpus.len() == known {
                true => String::new(),
                false => format!("{is:?} of {} are ill", health.gpus.len()),
            }
        }
    };
    watch.until("well", wrong(vec![], 5)).await;
    assert!(
        watch.health.gpus[1..4]
            .iter()
            .all(|slice| slice.gpu.as_ref() == Some(&gpu))
    );

    // By NVML, and by the kernel log.
    node.edit(|state| state.gpus[0].push_xid_of(109, slices[0].gpu_instance, Some(slices[0].compute_instance)));
    watch.until("one slice", wrong(vec![&slices[0].uuid], 5)).await;
    let address = state.gpus[0].pci_address.trim_end_matches(".0");
    let instance = slices[2].gpu_instance;
    append(
        &node,
        &format!("4,1,1,-;NVRM: Xid (PCI:{address} GPU-I:{instance:02}): 46, pid=7, name=x, y\n"),
    );
    watch
        .until("two slices", wrong(vec![&slices[0].uuid, &slices[2].uuid], 5))
        .await;

    // Slices that are made anew are well.
    node.edit(|state| {
        state.gpus[0].mig.as_mut().unwrap().devices.remove(0);
        state.gpus[0].push_event(EventKind::Type(0x100));
    });
    watch.until("a slice is gone", wrong(vec![&slices[2].uuid], 4)).await;
    // What cannot be one slice's is everybody's.
    node.edit(|state| state.gpus[0].push_xid_of(95, slices[1].gpu_instance, None));
    watch
        .until("the GPU", wrong(vec![&gpu, &slices[1].uuid, &slices[2].uuid], 4))
        .await;
}

/// `nvidia-smi --gpu-reset` as a client sees it: the GPU has to be reset, is not there, and is there again with its counters at zero.
#[tokio::test]
async fn a_gpu_that_is_reset_while_its_driver_stays_is_verified() {
    let mut controller = Controller::start().await;
    let node = Node::new();
    node.identity(&controller, "token");
    std::fs::write(node.path("kmsg"), "").unwrap();
    let state = gpus(2);
    state.write(&node.path("nvml.json")).unwrap();
    let ill = state.gpus[1].uuid.clone();
    let _probe = node.probe();
    let _agent = node.agent(&controller);
    let mut watch = Watch::start(&mut controller).await;
    let is = |state: GpuState, reason: &'static str| {
        let ill = ill.clone();
        move |health: &v1::NodeHealth| match seen(health).get(&ill) {
            Some((s, r)) if *s == state && r == reason => String::new(),
            other => format!("{other:?}"),
        }
    };
    watch.until("well", is(GpuState::Healthy, "")).await;
    node.edit(|state| {
        let gpu = &mut state.gpus[1];
        gpu.recovery_action = Some(1);
        gpu.checks.ecc_uncorrected_volatile = Some(1);
        gpu.push_xid(48);
        // That it is seen says that the counters were read.
        state.gpus[0].checks.persistence_mode = Some(false);
    });
    let canary = state.gpus[0].uuid.clone();
    watch
        .until("double bit, and a round of checks", |health| {
            let read = seen(health)
                .get(&canary)
                .is_some_and(|(_, r)| r == "PersistenceModeOff");
            match read {
                true => is(GpuState::Unhealthy, "DoubleBitError")(health),
                false => "the counters were not read".into(),
            }
        })
        .await;
    // The driver withdraws its advice: that alone proves nothing.
    node.edit(|state| {
        state.faults = vec![Fault::of_gpu(1, Effect::Error(code::GPU_IS_LOST))];
        state.gpus[1].recovery_action = Some(0);
    });
    watch.until("lost", is(GpuState::Unhealthy, "DoubleBitError")).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(is(GpuState::Unhealthy, "DoubleBitError")(&watch.health), "");
    node.edit(|state| {
        state.faults.clear();
        state.gpus[1].checks.ecc_uncorrected_volatile = Some(0);
    });
    watch.until("reset", is(GpuState::Verifying, "Recovering")).await;
    watch.until("quiet", is(GpuState::Healthy, "")).await;
    let cleared_by = watch.health.gpus[1].cleared_by.as_deref();
    assert_eq!(cleared_by, Some("the GPU was reset"));
    assert_eq!(watch.health.gpus[0].cleared_by, None);
}
