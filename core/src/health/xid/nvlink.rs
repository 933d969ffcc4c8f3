//! XID 74, an NVLink up to generation 4: what the bits of its seven registers mean. The registers are described for Hopper alone.

use super::super::words;

/// How much a set bit says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Bits {
    /// Nothing to do.
    Harmless,
    /// Follows another error; alone, or once, worth watching.
    Watch,
    /// The link, its connector or the fabric is broken, or nobody knows what the bit means.
    Fatal,
}

/// Register (from 0), bits and what they say, as in NVIDIA's WORKFLOW_NVLINK_ERR.
const TABLE: &[(usize, &[u32], Bits)] = &[
    (0, &[0, 23, 30], Bits::Harmless),
    // Sympathetic; ECC or parity; repeated.
    (0, &[1, 20, 4, 5, 27, 29], Bits::Watch),
    // Connector, signal integrity.
    (0, &[8, 9, 12, 16, 17, 21, 22, 24, 28], Bits::Fatal),
    (2, &[0, 1, 2, 6, 16, 17, 18, 19], Bits::Watch),
    (2, &[13], Bits::Fatal),
    (3, &[16, 17], Bits::Watch),
    // The fabric has to be reset.
    (3, &[18], Bits::Fatal),
    (4, &[18, 19, 21, 22, 24, 25, 27, 28], Bits::Watch),
    // A threshold of corrected errors: operation goes on.
    (4, &[20, 23, 26, 29], Bits::Harmless),
];

/// Registers that an XID 74 has.
const REGISTERS: usize = 7;

/// The worst of the bits that are set. `None`: the text has no registers, or none is set.
pub(super) fn worst_bits(detail: &str) -> Option<Bits> {
    let registers = words::registers(detail);
    if registers.len() != REGISTERS {
        return None;
    }
    let set = registers.iter().enumerate().flat_map(|(n, word)| {
        (0..u32::BITS)
            .filter(move |bit| word >> bit & 1 == 1)
            .map(move |bit| (n, bit))
    });
    set.map(|(register, bit)| {
        let listed = TABLE.iter().find(|(r, bits, _)| *r == register && bits.contains(&bit));
        listed.map_or(Bits::Fatal, |(_, _, says)| *says)
    })
    .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_of_each_register() {
        let words = |register: usize, bits: &[u32]| {
            let mut words = [0_u32; REGISTERS];
            words[register] = bits.iter().map(|bit| 1 << bit).sum();
            let hex = words.map(|word| format!("{word:#x}")).join(", ");
            format!("NVLink: fatal error detected on link 14({hex})")
        };
        // Register, its harmless bits, those to watch; all others are fatal.
        let rows: [(usize, &[u32], &[u32]); REGISTERS] = [
            (0, &[0, 23, 30], &[1, 4, 5, 20, 27, 29]),
            (1, &[], &[]),
            (2, &[], &[0, 1, 2, 6, 16, 17, 18, 19]),
            (3, &[], &[16, 17]),
            (4, &[20, 23, 26, 29], &[18, 19, 21, 22, 24, 25, 27, 28]),
            (5, &[], &[]),
            (6, &[], &[]),
        ];
        for (register, harmless, watch) in rows {
            for bit in 0..u32::BITS {
                let says = match (harmless.contains(&bit), watch.contains(&bit)) {
                    (true, _) => Bits::Harmless,
                    (_, true) => Bits::Watch,
                    (false, false) => Bits::Fatal,
                };
                assert_eq!(worst_bits(&words(register, &[bit])), Some(says), "{register} {bit}");
            }
        }
        for (what, detail, want) in [
            ("one harmless, one not", words(0, &[23, 28]), Some(Bits::Fatal)),
            ("one harmless, one sympathetic", words(0, &[0, 1]), Some(Bits::Watch)),
            ("unlisted bit", words(0, &[2]), Some(Bits::Fatal)),
            ("unlisted register", words(5, &[0]), Some(Bits::Fatal)),
            ("nothing set", words(0, &[]), None),
            ("no registers", "NVLink: fatal error detected on link 14".into(), None),
            ("too few", "link 14(0x1, 0x0)".into(), None),
        ] {
            assert_eq!(worst_bits(&detail), want, "{what}");
        }
    }
}
