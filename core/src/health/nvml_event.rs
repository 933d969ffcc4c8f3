//! NVML's events other than XIDs: bit of the event type, name, verdict.

use super::Reason;
use super::clearing::Proof;
use super::xid::{Effect, Verdict};

/// `nvmlEventTypeXidCriticalError`: its number comes with it.
pub const XID: u64 = 0x8;
/// `nvmlEventMigConfigChange`: a change of facts.
pub const MIG_CONFIG: u64 = 0x100;

/// Many corrected errors at once.
pub(super) const STORM: &str = "EccSingleBitStorm";
/// A row or page of memory was retired.
pub(super) const RETIREMENT: &str = "DramRetirement";

/// A kind of event.
struct Kind {
    bit: u64,
    name: &'static str,
    verdict: fn() -> Verdict,
}

/// Not among them: corrected errors one by one (0x1), changes of P-state (0x4), clocks (0x10) and power source (0x80), which are readings.
const KINDS: &[Kind] = &[
    Kind {
        bit: 0x2,
        name: "EccDoubleBit",
        verdict: || {
            Verdict::of(
                Effect::Unhealthy,
                Reason::DoubleBitError,
                Proof::Reset,
                "uncorrectable memory error: drain the node and reset the GPU",
            )
        },
    },
    // Like XID 92: counted, and watched for a trend.
    Kind {
        bit: 0x200,
        name: STORM,
        verdict: Verdict::counted,
    },
    // Like XID 63.
    Kind {
        bit: 0x400,
        name: RETIREMENT,
        verdict: Verdict::counted,
    },
    // Like XID 64.
    Kind {
        bit: 0x800,
        name: "DramRetirementFailure",
        verdict: || {
            Verdict::of(
                Effect::Unhealthy,
                Reason::ResetRequired,
                Proof::Reset,
                "a row or page of memory could not be retired: reset the GPU",
            )
        },
    },
    // Like XID 94: contained in the application.
    Kind {
        bit: 0x1000,
        name: "NonFatalPoison",
        verdict: Verdict::counted,
    },
    // Like XID 95.
    Kind {
        bit: 0x2000,
        name: "FatalPoison",
        verdict: || {
            Verdict::of(
                Effect::Unhealthy,
                Reason::ResetRequired,
                Proof::Reset,
                "an uncorrectable error was not contained: reset the GPU",
            )
        },
    },
    Kind {
        bit: 0x4000,
        name: "GpuUnavailable",
        verdict: || {
            Verdict::of(
                Effect::Unhealthy,
                Reason::GpuUnavailable,
                Proof::Reset,
                "the driver cannot use the GPU: reset it, or restart the machine",
            )
        },
    },
    // Like XID 154 without the kernel's words.
    Kind {
        bit: 0x8000,
        name: "RecoveryActionChanged",
        verdict: || {
            Verdict::of(
                Effect::Suspect,
                Reason::RecoveryAction,
                Proof::NothingAsked,
                "read the GPU's recovery action",
            )
        },
    },
];

/// Every type of event that something follows from.
pub fn wanted() -> u64 {
    KINDS.iter().fold(XID | MIG_CONFIG, |all, kind| all | kind.bit)
}

/// Name of the event with one bit of `nvmlEventType*`.
pub fn name(bit: u64) -> Option<&'static str> {
    KINDS.iter().find(|kind| kind.bit == bit).map(|kind| kind.name)
}

/// What an event of this name means. `None`: the name is of none here.
pub fn judge(name: &str) -> Option<Verdict> {
    KINDS.iter().find(|kind| kind.name == name).map(|kind| (kind.verdict)())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_has_a_bit_a_name_and_a_verdict() {
        use Effect::*;
        for (bit, wanted_name, effect, until) in [
            (0x2, "EccDoubleBit", Unhealthy, Proof::Reset),
            (0x200, "EccSingleBitStorm", Counted, Proof::NothingAsked),
            (0x400, "DramRetirement", Counted, Proof::NothingAsked),
            (0x800, "DramRetirementFailure", Unhealthy, Proof::Reset),
            (0x1000, "NonFatalPoison", Counted, Proof::NothingAsked),
            (0x2000, "FatalPoison", Unhealthy, Proof::Reset),
            (0x4000, "GpuUnavailable", Unhealthy, Proof::Reset),
            (0x8000, "RecoveryActionChanged", Suspect, Proof::NothingAsked),
        ] {
            assert_eq!(name(bit), Some(wanted_name));
            let is = judge(wanted_name).unwrap();
            assert_eq!((is.effect, is.until), (effect, until), "{wanted_name}");
            assert_eq!(is.advice.is_empty(), effect == Counted, "{wanted_name}");
        }
        assert_eq!(wanted(), 0xff0a);
        for bit in [0x1, 0x4, 0x8, 0x10, 0x80, 0x100, 0x1_0000] {
            assert_eq!(name(bit), None, "{bit:#x}");
        }
        assert_eq!(judge("DriverBound"), None);
    }
}
