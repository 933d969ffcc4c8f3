//! What the kernel's text of an XID tells besides the number: the process, the link, the registers.

/// A process as the driver names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub pid: u32,
    pub name: String,
}

/// `pid=2519562, name=python3, …`. `None`: the driver does not know whose work it was.
pub(super) fn process(text: &str) -> Option<Process> {
    let value = |key: &str| {
        let (_, after) = text.split_once(key)?;
        let value = after.split(", ").next()?.trim_matches('\'');
        (!value.is_empty() && !value.starts_with('<')).then_some(value)
    };
    Some(Process {
        pid: value("pid=")?.parse().ok()?,
        name: value("name=").unwrap_or_default().to_owned(),
    })
}

/// Number of the NVLink: `… on link 14(0x0, …` up to generation 4, `… Link 08 (0x…` in generation 5.
pub(super) fn link(text: &str) -> Option<u32> {
    let at = text.to_ascii_lowercase().rfind("link ")? + "link ".len();
    let digits = text[at..].split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// The registers in the last parentheses, however they are set apart. Empty: there are none, or one is no number.
pub(super) fn registers(text: &str) -> Vec<u32> {
    let Some((inside, _)) = text.rsplit_once('(').and_then(|(_, after)| after.split_once(')')) else {
        return Vec::new();
    };
    let words = inside.split([' ', ',']).filter(|word| !word.is_empty());
    let number = |word: &str| u32::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    words.map(number).collect::<Option<_>>().unwrap_or_default()
}

/// Whether a word stands in the text by itself: `Nonfatal` is not `Fatal`.
pub(super) fn says(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric()).any(|w| w == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_driver() {
        let nvlink = "pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 14(0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0)";
        assert_eq!(registers(nvlink), [0, 0, 0x10000, 0, 0, 0, 0]);
        assert_eq!((link(nvlink), process(nvlink)), (Some(14), None));
        let nvlink5 = "RLW_REMAP Nonfatal XC0 i0 Link 08 (0x00000004 0x80000000 0x00000000)";
        assert_eq!(registers(nvlink5), [4, 0x8000_0000, 0]);
        assert_eq!((link(nvlink5), says(nvlink5, "Fatal")), (Some(8), false));
        let page_fault =
            "pid=2519562, name=python3, Ch 00000008, intr 10000000. MMU Fault: ENGINE GRAPHICS (FAULT_PDE)";
        let python = Process {
            pid: 2_519_562,
            name: "python3".into(),
        };
        assert_eq!(process(page_fault), Some(python));
        assert!(registers(page_fault).is_empty() && link(page_fault).is_none());
        for nothing in ["", "(", ")(", "pid=, name=", "pid=x", "link ", "(0x1 0x123456789)"] {
            assert!(process(nothing).is_none() && link(nothing).is_none() && registers(nothing).is_empty());
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in "\\PC{0,120}", tail in "(link|pid=|\\(0x)\\PC{0,20}\\)?") {
            let text = text + &tail;
            let _ = (process(&text), link(&text), registers(&text));
        }
    }
}
