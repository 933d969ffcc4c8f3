//! The catalogue as rows: what happens, what it means, and the least that ends it.

use berth_core::health::Proof;
use berth_proto::v1::GpuState;

/// What happens to one GPU.
pub enum Input {
    /// An XID, as NVML tells it.
    Nvml(u64),
    /// An XID, as the kernel log tells it.
    Log(u64, &'static str),
    /// As both do.
    Both(u64, &'static str),
    /// Another event of NVML, by its bit.
    Event(u64),
}

pub use Input::{Both, Event, Log, Nvml};

pub struct Row {
    pub what: &'static str,
    pub inputs: Vec<Input>,
    pub state: GpuState,
    pub reason: &'static str,
    /// The least that ends it; of a row that stays healthy, of no meaning.
    pub until: Proof,
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
pub const UNASSIGNED: [u64; 8] = [1, 9, 61, 65, 81, 111, 125, 138];

const SYMPATHETIC: &str =
    "pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 14(0x2, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)";
const HARMLESS: &str =
    "pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 14(0x1, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)";
const CONNECTOR: &str =
    "pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 14(0x100, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)";

#[rustfmt::skip]
pub fn rows() -> Vec<Row> {
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
