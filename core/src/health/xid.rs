//! What each NVIDIA XID means for the GPU that reported it: NVIDIA's catalogue of immediate actions, as one table.

use super::Reason;

/// NVIDIA's bucket of an XID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The application's fault, or contained within it.
    RestartApp,
    /// Of no consequence alone.
    Ignore,
    /// The GPU needs a reset.
    ResetGpu,
    /// Uncorrectable memory error (48).
    DoubleBit,
    /// Channels were cleaned up after another fault (45).
    Cleanup,
    /// Power connector or board (54).
    CheckMechanicals,
    /// NVLink up to generation 4 (74).
    NvLink,
    /// Software or firmware is out of date (78, 159).
    UpdateSoftware,
    /// Fallen off the bus (79): the machine needs a restart.
    RestartMachine,
    /// The virtual machine needs a restart (151).
    RestartVm,
    /// A person has to look (142).
    ContactSupport,
    /// NVLink 5 (144-150).
    NvLink5,
    /// The driver changed its recommended recovery action (154).
    RecoveryAction,
    /// In no table.
    Unlisted,
}

/// What a verdict does to a GPU's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Counted, nothing more.
    Counted,
    /// Worth watching; may be handed out.
    Suspect,
    /// Not handed out until the GPU was reset.
    Unhealthy,
}

/// First and last XID of a range, and its bucket. Ranges do not overlap and are in ascending order.
const TABLE: &[(u64, u64, Verdict)] = {
    use Verdict::*;
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
        (142, 142, ContactSupport),
        (143, 143, ResetGpu),
        (144, 150, NvLink5),
        (151, 151, RestartVm),
        (152, 153, Ignore),
        (154, 154, RecoveryAction),
        (155, 156, ResetGpu),
        (157, 157, Ignore),
        (158, 158, ResetGpu),
        (159, 159, UpdateSoftware),
        (160, 161, Ignore),
    ]
};

/// The bucket of an XID.
pub fn verdict(xid: u64) -> Verdict {
    TABLE
        .iter()
        .find(|(first, last, _)| (*first..=*last).contains(&xid))
        .map_or(Verdict::Unlisted, |(_, _, verdict)| *verdict)
}

impl Verdict {
    /// Effect, reason and advice. `detail` is the text that came with the XID.
    pub fn effect(self, detail: &str) -> (Effect, Reason, &'static str) {
        match self {
            Self::RestartApp | Self::Ignore | Self::Cleanup => (Effect::Counted, Reason::XidWarning, ""),
            Self::ResetGpu => (Effect::Unhealthy, Reason::ResetRequired, "reset the GPU"),
            Self::DoubleBit => (
                Effect::Unhealthy,
                Reason::DoubleBitError,
                "drain the node and reset the GPU",
            ),
            Self::CheckMechanicals => (
                Effect::Unhealthy,
                Reason::CheckMechanicals,
                "check the power connectors and the board",
            ),
            // Whether it was fatal is in registers that are not decoded here; a link that may be broken is not handed out.
            Self::NvLink => (
                Effect::Unhealthy,
                Reason::NvLinkError,
                "check the NVLinks and reset the GPU",
            ),
            Self::NvLink5 => (Effect::Suspect, Reason::NvLinkError, "check the NVLinks"),
            Self::UpdateSoftware => (Effect::Suspect, Reason::UpdateSoftware, "update driver and firmware"),
            Self::RestartMachine => (Effect::Unhealthy, Reason::FallenOffBus, "restart the machine"),
            Self::RestartVm => (Effect::Unhealthy, Reason::RestartVm, "restart the virtual machine"),
            Self::ContactSupport => (Effect::Unhealthy, Reason::ContactSupport, "contact the vendor"),
            Self::RecoveryAction => match recovery_action(detail) {
                Some(0) => (Effect::Counted, Reason::RecoveryAction, ""),
                Some(_) => (
                    Effect::Unhealthy,
                    Reason::RecoveryAction,
                    "do what the driver recommends, then reset the GPU",
                ),
                None => (
                    Effect::Suspect,
                    Reason::RecoveryAction,
                    "read the GPU's recovery action",
                ),
            },
            Self::Unlisted => (
                Effect::Suspect,
                Reason::XidUnlisted,
                "look the XID up in the vendor's catalogue",
            ),
        }
    }
}

/// The new recovery action in the kernel's text of XID 154 (`… changed from 0x0 (None) to 0x1 (GPU Reset Required)`).
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
        let size = |bucket| (0..256).filter(|x| verdict(*x) == bucket).count();
        assert_eq!(
            (
                size(Verdict::RestartApp),
                size(Verdict::Ignore),
                size(Verdict::ResetGpu)
            ),
            (48, 21, 14)
        );
        assert_eq!(size(Verdict::NvLink5), 7);
    }

    /// Every row of NVIDIA's catalogue, written out number by number.
    #[test]
    fn every_xid_of_the_catalogue() {
        use Effect::*;
        use Reason as R;
        #[rustfmt::skip]
        let rows: &[(&[u64], Verdict, Effect, Reason)] = &[
            (&[8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 71, 72, 75, 76, 77, 80, 82, 83, 84, 85, 86, 88, 89, 94, 96, 97, 98, 99,
               100, 101, 102, 103, 104, 105, 126, 127, 128, 129, 130, 131, 132, 133, 134, 135, 139],
             Verdict::RestartApp, Counted, R::XidWarning),
            (&[14, 37, 38, 43, 44, 63, 66, 67, 92, 93, 106, 107, 108, 121, 137, 141, 152, 153, 157, 160, 161],
             Verdict::Ignore, Counted, R::XidWarning),
            (&[46, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158], Verdict::ResetGpu, Unhealthy, R::ResetRequired),
            (&[48], Verdict::DoubleBit, Unhealthy, R::DoubleBitError),
            (&[45], Verdict::Cleanup, Counted, R::XidWarning),
            (&[54], Verdict::CheckMechanicals, Unhealthy, R::CheckMechanicals),
            (&[74], Verdict::NvLink, Unhealthy, R::NvLinkError),
            (&[78, 159], Verdict::UpdateSoftware, Suspect, R::UpdateSoftware),
            (&[79], Verdict::RestartMachine, Unhealthy, R::FallenOffBus),
            (&[142], Verdict::ContactSupport, Unhealthy, R::ContactSupport),
            (&[144, 145, 146, 147, 148, 149, 150], Verdict::NvLink5, Suspect, R::NvLinkError),
            (&[151], Verdict::RestartVm, Unhealthy, R::RestartVm),
            (&[154], Verdict::RecoveryAction, Suspect, R::RecoveryAction),
            // No bucket yet: what the driver recommends decides.
            (&[162, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172], Verdict::Unlisted, Suspect, R::XidUnlisted),
        ];
        let mut listed = std::collections::BTreeSet::new();
        for (xids, bucket, effect, reason) in rows {
            for xid in *xids {
                assert!(listed.insert(*xid), "XID {xid} stands twice");
                assert_eq!(verdict(*xid), *bucket, "XID {xid}");
                let (is, why, advice) = verdict(*xid).effect("");
                assert_eq!((is, why), (*effect, *reason), "XID {xid}");
                assert_eq!(advice.is_empty(), *effect == Counted, "XID {xid}: {advice}");
            }
        }
        for xid in (0..1000).filter(|xid| !listed.contains(xid)) {
            assert_eq!(verdict(xid), Verdict::Unlisted, "XID {xid}");
        }
    }

    #[test]
    fn effects_of_known_xids() {
        for (xid, detail, effect) in [
            (13, "", Effect::Counted),
            (31, "", Effect::Counted),
            (63, "", Effect::Counted),
            (94, "", Effect::Counted),
            (48, "", Effect::Unhealthy),
            (79, "", Effect::Unhealthy),
            (109, "", Effect::Unhealthy),
            (145, "", Effect::Suspect),
            (167, "", Effect::Suspect),
            (999, "", Effect::Suspect),
            (154, "", Effect::Suspect),
            (
                154,
                "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
                Effect::Unhealthy,
            ),
            (
                154,
                "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)",
                Effect::Counted,
            ),
        ] {
            assert_eq!(verdict(xid).effect(detail).0, effect, "XID {xid} {detail:?}");
        }
    }
}
