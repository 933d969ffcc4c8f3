//! What ends a fault, and by what it is seen.

use serde::{Deserialize, Serialize};

use crate::facts::GpuChecks;

/// What is proven of a GPU, from the least to the most. A fault needs one of them; what proves more ends it as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Proof {
    /// The driver recommends nothing (field 230 reads none). Says nothing of a double-bit error, a lost GPU or an XID that asks for a reset.
    NothingAsked,
    /// The GPU was reset, with or without its driver.
    Reset,
    /// The GPU left NVML's list or its driver and is back, or the driver was loaded anew: whatever could be done to it may have been done.
    Rebound,
}

/// Recovery actions that end with a reset: reset, restart, drain and reset, bus reset, system restart.
const ENDS_WITH_A_RESET: [u32; 5] = [1, 2, 4, 6, 7];

/// Signs of a reset under a driver that stays loaded (`nvidia-smi --gpu-reset`). A person can bring about each of them in another way
/// (ECC and NVLink counters can be cleared), so one alone proves nothing.
const ADVICE_WITHDRAWN: u8 = 1;
const ECC_FELL: u8 = 2;
const REPLAYS_FELL: u8 = 4;
const LINK_ERRORS_FELL: u8 = 8;
/// It was lost and answers again. NVML is held open all the while, which keeps a reset out: a link that comes and goes looks the same.
const CAME_BACK: u8 = 16;

/// What tells of a reset when it is read again. What could not be read last is as it was before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Readings {
    recovery_action: Option<u32>,
    ecc: Option<u64>,
    replays: Option<u64>,
    link_errors: Option<u64>,
}

/// What was read last, and the signs in it.
#[derive(Debug, Clone, Default)]
pub(super) struct Signs {
    last: Readings,
    /// Of this round of readings and of the one before: a reset can come in the middle of a round.
    recent: [u8; 2],
    /// NVML said that the GPU is lost or has to be reset.
    lost: bool,
    /// It could be sampled, and was not lost since.
    sampled: bool,
}

impl Signs {
    /// NVML said that the GPU is lost or has to be reset.
    pub fn on_lost(&mut self) {
        (self.lost, self.sampled) = (true, false);
    }

    /// Its samples could be taken.
    pub fn on_sample(&mut self) {
        self.sampled = true;
    }

    /// What was read last.
    pub fn readings(&self) -> Readings {
        self.last
    }

    /// Whether it was lost, and not reset since.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// What was read before anything that is known here, and whether the GPU was lost then. What is proven is so of that time alone.
    pub fn recall(&mut self, before: Readings, lost: bool) -> Option<(Proof, &'static str)> {
        let mut since = Self {
            last: before,
            recent: [0; 2],
            lost,
            sampled: self.sampled,
        };
        let proven = since.on_readings(self.last);
        self.last = since.last;
        self.lost |= since.lost;
        proven
    }

    /// A whole round of readings. What is missing in it stays as it was.
    pub fn on_checks(&mut self, new: &GpuChecks) -> Option<(Proof, &'static str)> {
        self.on_readings(Readings {
            recovery_action: new.recovery_action,
            ecc: new.ecc_uncorrected_volatile,
            replays: new.pcie_replays,
            link_errors: new.nvlink_crc_errors,
        })
    }

    fn on_readings(&mut self, new: Readings) -> Option<(Proof, &'static str)> {
        let last = &mut self.last;
        let was_asked = last.recovery_action;
        last.recovery_action = new.recovery_action.or(was_asked);
        let asks_nothing = last.recovery_action.is_none_or(|action| action == 0);
        let mut signs = 0;
        let withdrawn = was_asked.is_some_and(|was| ENDS_WITH_A_RESET.contains(&was)) && new.recovery_action == Some(0);
        if withdrawn {
            signs |= ADVICE_WITHDRAWN;
        }
        for (sign, was, is) in [
            (ECC_FELL, &mut last.ecc, new.ecc),
            (REPLAYS_FELL, &mut last.replays, new.replays),
            (LINK_ERRORS_FELL, &mut last.link_errors, new.link_errors),
        ] {
            if was.zip(is).is_some_and(|(was, is)| is < was) {
                signs |= sign;
            }
            *was = is.or(*was);
        }
        self.recent = [signs, self.recent[0]];
        let mut seen = self.recent[0] | self.recent[1];
        if self.lost && self.sampled {
            seen |= CAME_BACK;
        }
        if asks_nothing && seen.count_ones() >= 2 {
            self.recent = [0; 2];
            self.lost = false;
            return Some((Proof::Reset, "the GPU was reset"));
        }
        (new.recovery_action == Some(0)).then_some((Proof::NothingAsked, "the driver asks for nothing any more"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proves_a_reset() {
        let read = |action: Option<u32>, ecc: u64, replays: u64, link_errors: u64| GpuChecks {
            recovery_action: action,
            ecc_uncorrected_volatile: Some(ecc),
            pcie_replays: Some(replays),
            nvlink_crc_errors: Some(link_errors),
            ..GpuChecks::default()
        };
        let before = read(Some(1), 2, 5, 7);
        let nothing = Some(Proof::NothingAsked);
        let reset = Some(Proof::Reset);
        for (what, before, after, want) in [
            ("nothing changed", &before, vec![read(Some(1), 2, 5, 7)], vec![None]),
            ("the advice alone", &before, vec![read(Some(0), 2, 5, 7)], vec![nothing]),
            ("ECC alone", &before, vec![read(Some(1), 0, 5, 7)], vec![None]),
            ("advice and ECC", &before, vec![read(Some(0), 0, 5, 7)], vec![reset]),
            ("advice and replays", &before, vec![read(Some(0), 2, 0, 7)], vec![reset]),
            (
                "ECC and link errors",
                &read(Some(0), 2, 5, 7),
                vec![read(Some(0), 0, 5, 0)],
                vec![reset],
            ),
            (
                "counters while a reset is asked for",
                &before,
                vec![read(Some(1), 0, 0, 0)],
                vec![None],
            ),
            (
                "in the middle of a round",
                &before,
                vec![read(Some(1), 2, 0, 0), read(Some(0), 0, 0, 0)],
                vec![None, reset],
            ),
            (
                "long apart",
                &before,
                vec![read(Some(1), 0, 5, 7), read(Some(1), 0, 5, 7), read(Some(0), 0, 5, 7)],
                vec![None, None, nothing],
            ),
            (
                "of an older driver",
                &read(None, 2, 5, 7),
                vec![read(None, 0, 0, 0)],
                vec![reset],
            ),
            (
                "drain P2P is no reset",
                &read(Some(3), 2, 5, 7),
                vec![read(Some(0), 0, 5, 7)],
                vec![nothing],
            ),
            (
                "nothing can be read",
                &before,
                vec![GpuChecks::default(), read(Some(0), 0, 5, 7)],
                vec![None, reset],
            ),
        ] {
            let mut signs = Signs::default();
            signs.on_checks(before);
            let is: Vec<_> = after
                .iter()
                .map(|new| signs.on_checks(new).map(|(proof, _)| proof))
                .collect();
            assert_eq!(is, want, "{what}");
        }
    }

    #[test]
    fn a_lost_gpu_that_answers_again_is_one_sign_of_two() {
        let replays = |count, action| GpuChecks {
            recovery_action: action,
            pcie_replays: Some(count),
            ..GpuChecks::default()
        };
        for (what, lost, sampled, after, want) in [
            (
                "back, with counters that began anew",
                true,
                true,
                replays(0, None),
                Some(Proof::Reset),
            ),
            ("back, and nothing else", true, true, replays(5, None), None),
            ("back, and still to be reset", true, true, replays(0, Some(1)), None),
            ("never lost", false, true, replays(0, None), None),
            ("still lost", true, false, replays(0, None), None),
        ] {
            let mut signs = Signs::default();
            signs.on_checks(&replays(5, None));
            if lost {
                signs.on_lost();
            }
            if sampled {
                signs.on_sample();
            }
            assert_eq!(signs.on_checks(&after).map(|(proof, _)| proof), want, "{what}");
        }
    }
}
