//! XIDs 144-150, NVLink 5: the unit and the fault in IntrInfo and ErrorStatus, the first two registers of the kernel's text, as in the
//! "XID 144-150 Decode" of NVIDIA's catalogue.
//!
//! ```text
//! IntrInfo   31-26      25-20   10         9-5    4-0
//!  < R575    for people  cause   promoted   unit   XID - 143
//! IntrInfo   31-26      25-20   7          6-0
//! >= R575    for people  cause   promoted   unit
//! ```

use super::super::words;

/// NVIDIA's immediate action for one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Action {
    /// None.
    Ignore,
    /// What the driver recommends (XID 154, field 230); nothing where it recommends nothing.
    AsRecommended,
    /// No rule speaks of it.
    Unknown,
    /// Reset the GPU.
    Reset,
}

use Action::{AsRecommended, Ignore, Reset};

/// One unit that reports, and its rules.
struct Unit {
    xid: u64,
    name: &'static str,
    /// IntrInfo bits 9-0 up to R570.
    before_r575: u32,
    /// IntrInfo bits 6-0 since R575.
    since_r575: u32,
    rules: Rules,
}

enum Rules {
    /// By bit of ErrorStatus.
    Bits(&'static [(u32, Action)]),
    /// The same; the bits in the first list ask for a reset where the driver has promoted them to fatal.
    Promotable(&'static [u32], &'static [(u32, Action)]),
    /// By value of ErrorStatus.
    Values(&'static [(u32, Action)]),
    /// By cause, whatever ErrorStatus is.
    Causes(&'static [(u32, Action)]),
}

const TOP_BIT: u32 = 0x8000_0000;
const TLW: Rules = Rules::Bits(&[(1, Ignore), (2, Ignore), (4, Reset), (TOP_BIT, Ignore)]);

const fn unit(xid: u64, name: &'static str, before_r575: u32, since_r575: u32, rules: Rules) -> Unit {
    Unit {
        xid,
        name,
        before_r575,
        since_r575,
        rules,
    }
}

#[rustfmt::skip]
const UNITS: &[Unit] = &[
    unit(144, "SAW_MVB", 0x021, 0x01, Rules::Bits(&[
        (0x1, Ignore), (0x2, Reset), (0x4, Ignore), (0x8, Ignore), (0x10, Reset), (0x20, Ignore)])),
    unit(145, "RLW_CTRL", 0x062, 0x03, Rules::Bits(&[(TOP_BIT, Ignore)])),
    unit(145, "RLW_REMAP", 0x082, 0x04, Rules::Bits(&[
        (0x1, AsRecommended), (0x2, AsRecommended), (0x4, AsRecommended), (0x8, AsRecommended), (0x10, AsRecommended),
        (0x20, AsRecommended), (0x40, Reset), (0x80, Reset), (0x100, Ignore), (0x200, Ignore), (TOP_BIT, Ignore)])),
    unit(145, "RLW_RSPCOL", 0x0a2, 0x05, Rules::Bits(&[(0x1, Ignore), (0x2, Reset), (TOP_BIT, Ignore)])),
    unit(145, "RLW_RXPIPE", 0x0c2, 0x06, Rules::Promotable(&[0x1, 0x2, 0x4], &[
        (0x1, Ignore), (0x2, Ignore), (0x4, Ignore), (0x8, Ignore), (TOP_BIT, Ignore)])),
    unit(145, "RLW_SRC_TRACK", 0x0e2, 0x07, Rules::Bits(&[
        (0x1, Reset), (0x2, Ignore), (0x4, AsRecommended), (0x8, AsRecommended), (0x10, Reset), (0x20, Reset), (TOP_BIT, Ignore)])),
    unit(145, "RLW_TAGSTATE", 0x102, 0x08, Rules::Bits(&[
        (0x1, Ignore), (0x2, Reset), (0x1_0000, Ignore), (0x2_0000, Reset), (0x10_0000, Reset), (TOP_BIT, Ignore)])),
    unit(146, "TLW_CTRL", 0x123, 0x09, TLW),
    unit(146, "TLW_RX_PIPE0", 0x143, 0x0a, TLW),
    unit(146, "TLW_RX_PIPE1", 0x143, 0x0b, TLW),
    unit(146, "TLW_TX_PIPE0", 0x163, 0x0c, TLW),
    unit(146, "TLW_TX_PIPE1", 0x163, 0x0d, TLW),
    unit(147, "TREX", 0x184, 0x0e, Rules::Bits(&[(0x1, Ignore), (TOP_BIT, Ignore)])),
    unit(148, "NVLPW", 0x005, 0x0f, Rules::Bits(&[(TOP_BIT, Ignore)])),
    unit(149, "NETIR_INT", 0x006, 0x18, Rules::Causes(&[(0, Reset)])),
    unit(149, "NETIR_LINK_DOWN", 0x1c6, 0x11, Rules::Causes(&[
        (0, Reset), (1, Reset), (2, Reset), (4, Reset), (10, Reset), (15, Reset), (16, Reset), (17, Reset), (18, Reset), (21, Reset),
        (22, Reset), (32, Reset), (33, Reset), (34, Reset), (35, Reset), (36, Reset), (37, Reset), (38, Ignore), (40, Ignore),
        (42, Reset), (43, Reset)])),
    unit(149, "NETIR_BER_EVENT", 0x226, 0x13, Rules::Values(&[(0, Ignore), (1, Ignore), (2, Ignore), (3, Ignore)])),
    unit(149, "NETIR_MFDE_EVENT", 0x246, 0x14, Rules::Values(&[(1, Reset), (3, Ignore), (4, Reset), (5, Reset), (7, Reset)])),
    unit(150, "MSE", 0x000, 0x00, Rules::Values(&[(0, Reset), (u32::MAX, Reset)])),
];

/// The major version of the first driver with the newer layout.
const NEWER_LAYOUT: u32 = 575;

/// What a text means, with the name of the unit where there is a rule. `None`: it has no registers. Where the driver's version is not
/// known, both layouts are read, and the worse counts.
pub(super) fn decode(xid: u64, detail: &str, driver_major: Option<u32>) -> Option<(Action, Option<&'static str>)> {
    let registers = words::registers(detail);
    let [intr_info, status] = *registers.get(..2)? else {
        return None;
    };
    let layouts: &[bool] = match driver_major {
        Some(major) => &[major >= NEWER_LAYOUT],
        None => &[false, true],
    };
    let found = layouts.iter().filter_map(|newer| {
        let unit = UNITS
            .iter()
            .find(|unit| unit.xid == xid && unit.is_meant(intr_info, *newer))?;
        Some((unit.action(intr_info, status, *newer), Some(unit.name)))
    });
    Some(
        found
            .max_by_key(|(action, _)| *action)
            .unwrap_or((Action::Unknown, None)),
    )
}

fn cause(intr_info: u32) -> u32 {
    intr_info >> 20 & 0x3f
}

impl Unit {
    fn is_meant(&self, intr_info: u32, newer: bool) -> bool {
        match newer {
            false => intr_info & 0x3ff == self.before_r575,
            true => intr_info & 0x7f == self.since_r575,
        }
    }

    fn action(&self, intr_info: u32, status: u32, newer: bool) -> Action {
        let of = |rules: &[(u32, Action)], key: u32| {
            let rule = rules.iter().find(|(k, _)| *k == key);
            rule.map_or(Action::Unknown, |(_, action)| *action)
        };
        let worst_bit = |rules: &[(u32, Action)]| {
            let bits = (0..u32::BITS).map(|bit| 1 << bit).filter(|bit| status & bit != 0);
            bits.map(|bit| of(rules, bit)).max().unwrap_or(Action::Unknown)
        };
        match self.rules {
            Rules::Causes(rules) => of(rules, cause(intr_info)),
            // The others' rules hold for cause 0.
            _ if cause(intr_info) != 0 => Action::Unknown,
            Rules::Values(rules) => of(rules, status),
            Rules::Bits(rules) => worst_bit(rules),
            Rules::Promotable(promotable, rules) => {
                let promoted = intr_info >> if newer { 7 } else { 10 } & 1 == 1;
                match promoted && promotable.iter().any(|bit| status & bit != 0) {
                    true => Reset,
                    false => worst_bit(rules),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(unit: &str, intr_info: u32, status: u32) -> String {
        format!(
            "{unit} Nonfatal XC0 i0 Link 08 ({intr_info:#010x} {status:#010x} 0x00000000 0x00000000 0x00000000 0x00000000)"
        )
    }

    #[test]
    fn the_catalogue_has_ninety_five_rules() {
        let rules = UNITS.iter().map(|unit| match unit.rules {
            Rules::Bits(rules) | Rules::Promotable(_, rules) | Rules::Values(rules) | Rules::Causes(rules) => {
                rules.len()
            }
        });
        assert_eq!(rules.sum::<usize>(), 95);
    }

    #[test]
    fn every_rule_in_both_layouts() {
        for unit in UNITS {
            for newer in [false, true] {
                let intr_info = if newer { unit.since_r575 } else { unit.before_r575 };
                let driver = Some(if newer { 580 } else { 570 });
                // The upper bits are for people.
                let with_junk = |intr_info: u32| intr_info | 0xa800_0000 & !(0x3f << 20);
                let (rules, is_cause) = match unit.rules {
                    Rules::Bits(rules) | Rules::Promotable(_, rules) | Rules::Values(rules) => (rules, false),
                    Rules::Causes(rules) => (rules, true),
                };
                for (key, action) in rules {
                    let (intr_info, status) = match is_cause {
                        true => (intr_info | key << 20, 0x5a),
                        false => (intr_info, *key),
                    };
                    let is = decode(unit.xid, &text(unit.name, with_junk(intr_info), status), driver);
                    assert_eq!(
                        is.map(|(a, _)| a),
                        Some(*action),
                        "{} {key:#x} newer: {newer}",
                        unit.name
                    );
                }
                if let Rules::Promotable(promotable, _) = unit.rules {
                    for bit in promotable {
                        let promoted = intr_info | if newer { 1 << 7 } else { 1 << 10 };
                        let is = decode(unit.xid, &text(unit.name, promoted, *bit), driver);
                        assert_eq!(is, Some((Reset, Some(unit.name))));
                    }
                }
            }
        }
    }

    /// One line of each unit, in either layout, as the driver writes it.
    #[test]
    fn lines_of_the_driver() {
        for (xid, driver, intr_info, status, want) in [
            (144, 570, 0x0000_0021, 0x02, Reset),
            (144, 580, 0x0000_0001, 0x10, Reset),
            (144, 580, 0x0000_0001, 0x20, Ignore),
            (145, 580, 0x0000_0003, 0x8000_0000, Ignore),
            (145, 570, 0x0000_0082, 0x40, Reset),
            (145, 580, 0x0000_0004, 0x01, AsRecommended),
            (145, 580, 0x0000_0005, 0x02, Reset),
            (145, 570, 0x0000_04c2, 0x01, Reset),
            (145, 570, 0x0000_00c2, 0x01, Ignore),
            (145, 580, 0x0000_0086, 0x04, Reset),
            (145, 580, 0x0000_0006, 0x04, Ignore),
            (145, 570, 0x0000_00e2, 0x08, AsRecommended),
            (145, 580, 0x0000_0008, 0x10_0000, Reset),
            (146, 570, 0x0000_0143, 0x04, Reset),
            (146, 580, 0x0000_000d, 0x02, Ignore),
            (147, 580, 0x0000_000e, 0x01, Ignore),
            (148, 570, 0x0000_0005, 0x8000_0000, Ignore),
            (149, 570, 0x0000_0006, 0x77, Reset),
            (149, 580, 0x0240_0011, 0x00, Reset),
            (149, 580, 0x0280_0011, 0x00, Ignore),
            (149, 570, 0x0000_0226, 0x03, Ignore),
            (149, 580, 0x0000_0014, 0x04, Reset),
            (149, 580, 0x0000_0014, 0x03, Ignore),
            (150, 580, 0x0000_0000, 0xffff_ffff, Reset),
        ] {
            let is = decode(xid, &text("UNIT", intr_info, status), Some(driver)).map(|(action, _)| action);
            assert_eq!(is, Some(want), "{xid} R{driver} {intr_info:#x} {status:#x}");
        }
    }

    #[test]
    fn what_no_rule_speaks_of() {
        let known = |xid, text: &str, driver| decode(xid, text, driver).map(|(action, _)| action);
        assert_eq!(
            known(145, "RLW_REMAP Fatal XC1 i0 Link 10", Some(570)),
            None,
            "no registers"
        );
        assert_eq!(known(145, &text("RLW_REMAP", 0x82, 0x40), Some(570)), Some(Reset));
        assert_eq!(
            known(145, &text("RLW_REMAP", 0x82, 0x40), Some(580)),
            Some(Action::Unknown),
            "of the other layout"
        );
        assert_eq!(
            known(145, &text("RLW_REMAP", 0x82, 0x40), None),
            Some(Reset),
            "the worse where the layout is not known"
        );
        assert_eq!(
            known(145, &text("RLW_REMAP", 0x04, 0x400), Some(580)),
            Some(Action::Unknown)
        );
        assert_eq!(
            known(145, &text("RLW_REMAP", 0x04, 0x140), Some(580)),
            Some(Reset),
            "two bits"
        );
        assert_eq!(
            known(145, &text("RLW_REMAP", 0x04, 0), Some(580)),
            Some(Action::Unknown)
        );
        assert_eq!(
            known(145, &text("RLW_REMAP", 0x0010_0004, 0x100), Some(580)),
            Some(Action::Unknown)
        );
        assert_eq!(
            known(144, &text("RLW_REMAP", 0x04, 0x40), Some(580)),
            Some(Action::Unknown),
            "other XID"
        );
        assert_eq!(
            known(149, &text("NETIR_LINK_EVT", 0x0260_01c6, 0), Some(570)),
            Some(Ignore)
        );
        assert_eq!(
            known(149, &text("NETIR_LINK_EVT", 0x0030_01c6, 0), Some(570)),
            Some(Action::Unknown)
        );
    }
}
