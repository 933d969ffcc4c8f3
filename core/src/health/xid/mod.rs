//! What each NVIDIA XID means for the GPU that reported it: NVIDIA's catalogue of immediate actions, as tables.
//!
//! ```text
//! number ─► bucket ─┬─► verdict
//! kernel's words ───┘   (74: nvlink, 144-150: nvlink5, 154: the new recovery action)
//! ```

mod nvlink;
mod nvlink5;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use self::nvlink::Bits;
use self::nvlink5::Action;
use super::clearing::Proof;
use super::{Reason, words};

/// NVIDIA's bucket of an XID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bucket {
    /// The application's fault, or contained within it.
    RestartApp,
    /// Of no consequence alone.
    Ignore,
    /// The GPU needs a reset.
    ResetGpu,
    /// Uncorrectable memory error (48).
    DoubleBit,
    /// Channels were cleaned up, mostly after another fault (45).
    Cleanup,
    /// Power connector or board (54).
    CheckMechanicals,
    /// NVLink up to generation 4 (74).
    NvLink,
    /// Software or firmware is out of date (78).
    UpdateSoftware,
    /// Fallen off the bus (79): the machine needs a restart.
    RestartMachine,
    /// The virtual machine needs a restart (151).
    RestartVm,
    /// A person has to look: 142, and every number of the catalogue that nothing else is said of.
    ContactSupport,
    /// NVLink 5 (144-150).
    NvLink5,
    /// The driver changed its recommended recovery action (154).
    RecoveryAction,
    /// Of consequence where unified memory or vGPU is in use (159).
    CheckUvm,
    /// In the catalogue without a bucket yet: as the driver recommends (162-170).
    AsRecommended,
    /// Tells what kind of memory an uncorrectable error was in (171, 172).
    MemoryError,
    /// Not in the catalogue.
    Unlisted,
}

/// What an event does to a GPU's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Effect {
    /// Counted, nothing more.
    Counted,
    /// Worth watching; may be handed out.
    Suspect,
    /// Not handed out until what it asks for was done.
    Unhealthy,
}

/// What else is known of the GPU when an XID is judged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Part {
    /// First number of the driver's version.
    pub driver_major: Option<u32>,
    /// CUDA compute capability.
    pub compute_capability: Option<(u32, u32)>,
}

impl Part {
    fn is_hopper(self) -> bool {
        self.compute_capability.is_some_and(|(major, _)| major == 9)
    }
}

/// What one event means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// For the GPU's state.
    pub effect: Effect,
    /// Why.
    pub reason: Reason,
    /// What to do; empty where it is only counted.
    pub advice: Cow<'static, str>,
    /// The least that ends it.
    pub until: Proof,
    /// The kernel's words decide, and they were not there.
    pub lacks_words: bool,
}

impl Verdict {
    pub(super) fn counted() -> Self {
        Self::of(Effect::Counted, Reason::XidWarning, Proof::NothingAsked, "")
    }

    pub(super) fn of(effect: Effect, reason: Reason, until: Proof, advice: impl Into<Cow<'static, str>>) -> Self {
        Self {
            effect,
            reason,
            advice: advice.into(),
            until,
            lacks_words: false,
        }
    }

    fn lacking_words(self) -> Self {
        Self {
            lacks_words: true,
            ..self
        }
    }
}

/// First and last XID of a range, and its bucket. Ranges do not overlap and are in ascending order.
const TABLE: &[(u64, u64, Bucket)] = {
    use Bucket::*;
    &[
        (8, 8, RestartApp),
        (11, 11, RestartApp),
        (13, 13, RestartApp),
        (14, 14, Ignore),
        (25, 25, RestartApp),
        (31, 32, RestartApp),
        (37, 38, Ignore),
        (39, 41, RestartApp),
        (43, 44, Ignore),
        (45, 45, Cleanup),
        (46, 46, ResetGpu),
        (48, 48, DoubleBit),
        (54, 54, CheckMechanicals),
        (60, 60, RestartApp),
        (62, 62, ResetGpu),
        (63, 63, Ignore),
        (64, 64, ResetGpu),
        (66, 67, Ignore),
        (68, 72, RestartApp),
        (74, 74, NvLink),
        (75, 77, RestartApp),
        (78, 78, UpdateSoftware),
        (79, 79, RestartMachine),
        (80, 80, RestartApp),
        (82, 86, RestartApp),
        (88, 89, RestartApp),
        (92, 93, Ignore),
        (94, 94, RestartApp),
        (95, 95, ResetGpu),
        (96, 105, RestartApp),
        (106, 108, Ignore),
        (109, 110, ResetGpu),
        (119, 120, ResetGpu),
        (121, 121, Ignore),
        (126, 135, RestartApp),
        (136, 136, ResetGpu),
        (137, 137, Ignore),
        (139, 139, RestartApp),
        (140, 140, ResetGpu),
        (141, 141, Ignore),
        (143, 143, ResetGpu),
        (144, 150, NvLink5),
        (151, 151, RestartVm),
        (152, 153, Ignore),
        (154, 154, RecoveryAction),
        (155, 156, ResetGpu),
        (157, 157, Ignore),
        (158, 158, ResetGpu),
        (159, 159, CheckUvm),
        (160, 161, Ignore),
        (162, 170, AsRecommended),
        (171, 172, MemoryError),
    ]
};

/// The last number in the catalogue. What nothing is said of up to here is CONTACT_SUPPORT.
const LAST_LISTED: u64 = 172;

impl Bucket {
    /// The bucket of an XID.
    pub fn of(xid: u64) -> Self {
        let listed = TABLE.iter().find(|(first, last, _)| (*first..=*last).contains(&xid));
        match listed {
            Some((_, _, bucket)) => *bucket,
            None if (1..=LAST_LISTED).contains(&xid) => Self::ContactSupport,
            None => Self::Unlisted,
        }
    }
}

/// Whether the kernel's words say more than the number.
pub(super) fn is_told_in_words(xid: u64) -> bool {
    matches!(
        Bucket::of(xid),
        Bucket::NvLink | Bucket::NvLink5 | Bucket::RecoveryAction
    )
}

/// XIDs that ask for a reset and may be the trouble of one MIG instance alone: engine stopped, context switch timeout, security fault.
const OF_AN_INSTANCE: [u64; 3] = [46, 109, 110];

/// Whether an XID that names a MIG instance leaves the GPU's other instances alone. Memory, links, bus, firmware and board are everybody's.
pub fn may_be_contained(xid: u64) -> bool {
    match Bucket::of(xid) {
        Bucket::ResetGpu => OF_AN_INSTANCE.contains(&xid),
        Bucket::RestartApp | Bucket::Ignore | Bucket::Cleanup | Bucket::AsRecommended | Bucket::Unlisted => true,
        Bucket::DoubleBit
        | Bucket::CheckMechanicals
        | Bucket::NvLink
        | Bucket::UpdateSoftware
        | Bucket::RestartMachine
        | Bucket::RestartVm
        | Bucket::ContactSupport
        | Bucket::NvLink5
        | Bucket::RecoveryAction
        | Bucket::CheckUvm
        | Bucket::MemoryError => false,
    }
}

/// Whether a GPU that had this XID can be well again without a restart of the machine. One that cannot is as ill now as it was when a line
/// in the log of this boot was written.
pub(super) fn lasts_for_this_boot(xid: u64) -> bool {
    matches!(Bucket::of(xid), Bucket::RestartMachine | Bucket::RestartVm)
}

/// What an XID means. `detail` is the text that came with it, empty where it is NVML's.
pub fn judge(xid: u64, detail: &str, part: Part) -> Verdict {
    use Effect::{Suspect, Unhealthy};
    let verdict = match Bucket::of(xid) {
        Bucket::RestartApp | Bucket::Ignore | Bucket::Cleanup => Verdict::counted(),
        Bucket::ResetGpu => Verdict::of(Unhealthy, Reason::ResetRequired, Proof::Reset, "reset the GPU"),
        Bucket::DoubleBit => Verdict::of(
            Unhealthy,
            Reason::DoubleBitError,
            Proof::Reset,
            "drain the node and reset the GPU",
        ),
        Bucket::CheckMechanicals => Verdict::of(
            Unhealthy,
            Reason::CheckMechanicals,
            Proof::Rebound,
            "check the power connectors and the board",
        ),
        Bucket::NvLink => nvlink(detail, part),
        Bucket::NvLink5 => nvlink5(xid, detail, part),
        Bucket::UpdateSoftware => Verdict::of(
            Suspect,
            Reason::UpdateSoftware,
            Proof::Rebound,
            "update driver and firmware",
        ),
        Bucket::CheckUvm => Verdict::of(
            Suspect,
            Reason::CheckUvm,
            Proof::Reset,
            "reset the GPU if unified memory or vGPU is in use",
        ),
        Bucket::RestartMachine => Verdict::of(Unhealthy, Reason::FallenOffBus, Proof::Rebound, "restart the machine"),
        Bucket::RestartVm => Verdict::of(
            Unhealthy,
            Reason::RestartVm,
            Proof::Rebound,
            "restart the virtual machine",
        ),
        Bucket::ContactSupport => Verdict::of(Unhealthy, Reason::ContactSupport, Proof::Rebound, "contact the vendor"),
        Bucket::RecoveryAction => recommended(detail),
        Bucket::AsRecommended => Verdict::of(
            Suspect,
            Reason::XidUnlisted,
            Proof::NothingAsked,
            "do what the driver recommends, if anything",
        ),
        Bucket::MemoryError => Verdict::of(
            Suspect,
            Reason::XidUnlisted,
            Proof::Reset,
            "part of an uncorrectable memory error: reset the GPU",
        ),
        Bucket::Unlisted => Verdict::of(
            Suspect,
            Reason::XidUnlisted,
            Proof::Reset,
            "look the XID up in the vendor's catalogue",
        ),
    };
    match is_told_in_words(xid) && detail.is_empty() {
        true => verdict.lacking_words(),
        false => verdict,
    }
}

/// The text's link, as a beginning of a sentence.
fn of_link(detail: &str) -> String {
    words::link(detail)
        .map(|link| format!("link {link}: "))
        .unwrap_or_default()
}

fn nvlink(detail: &str, part: Part) -> Verdict {
    let of = |effect, advice: &str| {
        let advice = format!("{}{advice}", of_link(detail));
        Verdict::of(effect, Reason::NvLinkError, Proof::Reset, advice)
    };
    // The bits are described for Hopper; of other parts, and without words, a link that may be broken is not handed out.
    let bits = nvlink::worst_bits(detail).filter(|_| part.is_hopper());
    match bits {
        Some(Bits::Harmless) => Verdict::counted(),
        Some(Bits::Watch) => of(Effect::Suspect, "watch the NVLinks"),
        Some(Bits::Fatal) | None => of(Effect::Unhealthy, "check the NVLinks and reset the GPU"),
    }
}

fn nvlink5(xid: u64, detail: &str, part: Part) -> Verdict {
    let decoded = nvlink5::decode(xid, detail, part.driver_major);
    let of = |effect, advice: &str| {
        let unit = decoded.and_then(|(_, unit)| unit);
        let unit = unit.map(|name| format!("{name}, ")).unwrap_or_default();
        let advice = format!("{unit}{}{advice}", of_link(detail));
        Verdict::of(effect, Reason::NvLinkError, Proof::Reset, advice)
    };
    match decoded {
        Some((Action::Reset, _)) => of(Effect::Unhealthy, "reset the GPU"),
        // What the driver recommends counts by itself, and nothing is to be done where it recommends nothing.
        Some((Action::Ignore | Action::AsRecommended, _)) => Verdict::counted(),
        Some((Action::Unknown, _)) | None if words::says(detail, "Fatal") => {
            of(Effect::Unhealthy, "check the NVLinks and reset the GPU")
        }
        Some((Action::Unknown, _)) | None => of(Effect::Suspect, "check the NVLinks"),
    }
}

/// XID 154: by the new action in the kernel's text (`… changed from 0x0 (None) to 0x1 (GPU Reset Required)`).
fn recommended(detail: &str) -> Verdict {
    let of = |effect, advice| Verdict::of(effect, Reason::RecoveryAction, Proof::NothingAsked, advice);
    match recovery_action(detail) {
        Some(0) => Verdict::counted(),
        Some(RECOVER_IMEX_DOMAIN) => of(Effect::Suspect, "recover the IMEX domain"),
        Some(_) => of(Effect::Unhealthy, "do what the driver recommends, then reset the GPU"),
        None => of(Effect::Suspect, "read the GPU's recovery action"),
    }
}

/// Of the values of field 230, the one that is no trouble of the GPU.
const RECOVER_IMEX_DOMAIN: u64 = 5;

fn recovery_action(detail: &str) -> Option<u64> {
    let (_, after) = detail.rsplit_once(" to 0x")?;
    let digits = after.split(|c: char| !c.is_ascii_hexdigit()).next()?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_in_order_and_apart() {
        for pair in TABLE.windows(2) {
            assert!(pair[0].1 < pair[1].0, "{pair:?}");
        }
        assert!(TABLE.iter().all(|(first, last, _)| first <= last));
    }

    #[test]
    fn buckets_have_the_catalogues_sizes() {
        let size = |bucket| (0..256).filter(|x| Bucket::of(*x) == bucket).count();
        let sizes = [
            Bucket::RestartApp,
            Bucket::Ignore,
            Bucket::ResetGpu,
            Bucket::ContactSupport,
        ]
        .map(size);
        assert_eq!(sizes, [48, 21, 14, 62]);
        assert_eq!(size(Bucket::NvLink5), 7);
    }

    /// Every row of NVIDIA's catalogue, written out number by number, and what each means without the kernel's words.
    #[test]
    fn every_xid_of_the_catalogue() {
        use Bucket as B;
        use Effect::*;
        use Proof::*;
        use Reason as R;
        type Row = (&'static [u64], Bucket, Effect, Reason, Proof);
        #[rustfmt::skip]
        let rows: &[Row] = &[
            (&[8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 71, 72, 75, 76, 77, 80, 82, 83, 84, 85, 86, 88, 89, 94, 96, 97, 98, 99,
               100, 101, 102, 103, 104, 105, 126, 127, 128, 129, 130, 131, 132, 133, 134, 135, 139],
             B::RestartApp, Counted, R::XidWarning, NothingAsked),
            (&[14, 37, 38, 43, 44, 63, 66, 67, 92, 93, 106, 107, 108, 121, 137, 141, 152, 153, 157, 160, 161],
             B::Ignore, Counted, R::XidWarning, NothingAsked),
            (&[46, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158], B::ResetGpu, Unhealthy, R::ResetRequired, Reset),
            (&[48], B::DoubleBit, Unhealthy, R::DoubleBitError, Reset),
            (&[45], B::Cleanup, Counted, R::XidWarning, NothingAsked),
            (&[54], B::CheckMechanicals, Unhealthy, R::CheckMechanicals, Rebound),
            (&[74], B::NvLink, Unhealthy, R::NvLinkError, Reset),
            (&[78], B::UpdateSoftware, Suspect, R::UpdateSoftware, Rebound),
            (&[79], B::RestartMachine, Unhealthy, R::FallenOffBus, Rebound),
            (&[144, 145, 146, 147, 148, 149, 150], B::NvLink5, Suspect, R::NvLinkError, Reset),
            (&[151], B::RestartVm, Unhealthy, R::RestartVm, Rebound),
            (&[154], B::RecoveryAction, Suspect, R::RecoveryAction, NothingAsked),
            (&[159], B::CheckUvm, Suspect, R::CheckUvm, Reset),
            (&[162, 163, 164, 165, 166, 167, 168, 169, 170], B::AsRecommended, Suspect, R::XidUnlisted, NothingAsked),
            (&[171, 172], B::MemoryError, Suspect, R::XidUnlisted, Reset),
            // What else is in the catalogue.
            (&[142], B::ContactSupport, Unhealthy, R::ContactSupport, Rebound),
            (&[1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 26, 27, 28, 29, 30, 33, 34, 35, 36, 42, 47, 49, 50, 51,
               52, 53, 55, 56, 57, 58, 59, 61, 65, 73, 81, 87, 90, 91, 111, 112, 113, 114, 115, 116, 117, 118, 122, 123, 124, 125, 138],
             B::ContactSupport, Unhealthy, R::ContactSupport, Rebound),
        ];
        let mut listed = std::collections::BTreeSet::new();
        for (xids, bucket, effect, reason, until) in rows {
            for xid in *xids {
                assert!(listed.insert(*xid), "XID {xid} stands twice");
                assert_eq!(Bucket::of(*xid), *bucket, "XID {xid}");
                let is = judge(*xid, "", Part::default());
                assert_eq!(
                    (is.effect, is.reason, is.until),
                    (*effect, *reason, *until),
                    "XID {xid}"
                );
                assert_eq!(is.advice.is_empty(), *effect == Counted, "XID {xid}: {}", is.advice);
                assert_eq!(is.lacks_words, matches!(xid, 74 | 144..=150 | 154), "XID {xid}");
            }
        }
        assert!(listed.into_iter().eq(1..=172));
        for xid in std::iter::once(0).chain(173..1000) {
            assert_eq!(Bucket::of(xid), Bucket::Unlisted, "XID {xid}");
            assert_eq!(judge(xid, "", Part::default()).effect, Suspect);
        }
    }

    #[test]
    fn words_decide_where_there_are_any() {
        use Effect::*;
        let hopper = Part {
            driver_major: Some(570),
            compute_capability: Some((9, 0)),
        };
        let blackwell = Part {
            driver_major: Some(580),
            compute_capability: Some((10, 0)),
        };
        let ampere = Part {
            compute_capability: Some((8, 0)),
            ..hopper
        };
        let link = |registers: &str| {
            format!("pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 14({registers})")
        };
        let harmless = link("0x1, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0");
        let sympathetic = link("0x2, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0");
        let connector = link("0x100, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0");
        let recovery = |to: &str| format!("GPU recovery action changed from 0x0 (None) to {to}");
        for (xid, detail, part, effect, advice) in [
            (74, &*harmless, hopper, Counted, ""),
            (74, &sympathetic, hopper, Suspect, "link 14: watch the NVLinks"),
            (
                74,
                &connector,
                hopper,
                Unhealthy,
                "link 14: check the NVLinks and reset the GPU",
            ),
            (
                74,
                &harmless,
                ampere,
                Unhealthy,
                "link 14: check the NVLinks and reset the GPU",
            ),
            (
                74,
                &harmless,
                Part::default(),
                Unhealthy,
                "link 14: check the NVLinks and reset the GPU",
            ),
            (
                74,
                "no registers",
                hopper,
                Unhealthy,
                "check the NVLinks and reset the GPU",
            ),
            (
                145,
                "RLW_REMAP Nonfatal XC0 i0 Link 10 (0x00000004 0x00000100 0x0)",
                blackwell,
                Counted,
                "",
            ),
            (
                145,
                "RLW_REMAP Fatal XC0 i0 Link 10 (0x00000004 0x00000040 0x0)",
                blackwell,
                Unhealthy,
                "RLW_REMAP, link 10: reset the GPU",
            ),
            (
                145,
                "RLW_REMAP Nonfatal XC0 i0 Link 10 (0x00000004 0x00000001 0x0)",
                blackwell,
                Counted,
                "",
            ),
            (
                145,
                "RLW_NEW Nonfatal XC0 i0 Link 10 (0x7f 0x1)",
                blackwell,
                Suspect,
                "link 10: check the NVLinks",
            ),
            (
                145,
                "RLW_NEW Fatal XC0 i0 Link 10 (0x7f 0x1)",
                blackwell,
                Unhealthy,
                "link 10: check the NVLinks and reset the GPU",
            ),
            (154, &recovery("0x0 (None)"), hopper, Counted, ""),
            (154, &recovery("0x5 (IMEX)"), hopper, Suspect, "recover the IMEX domain"),
            (
                154,
                &recovery("0x1 (GPU Reset Required)"),
                hopper,
                Unhealthy,
                "do what the driver recommends, then reset the GPU",
            ),
            (154, "something else", hopper, Suspect, "read the GPU's recovery action"),
        ] {
            let is = judge(xid, detail, part);
            assert_eq!(
                (is.effect, &*is.advice, is.lacks_words),
                (effect, advice, false),
                "XID {xid} {detail:?}"
            );
        }
    }

    #[test]
    fn an_instance_can_be_ill_alone_of_few() {
        for (xid, alone) in [
            (13, true),
            (31, true),
            (45, true),
            (46, true),
            (94, true),
            (109, true),
            (110, true),
            (167, true),
            (999, true),
            (48, false),
            (62, false),
            (64, false),
            (74, false),
            (79, false),
            (95, false),
            (119, false),
            (142, false),
            (145, false),
            (154, false),
            (171, false),
        ] {
            assert_eq!(may_be_contained(xid), alone, "XID {xid}");
        }
    }
}
