//! Label keys and values as the API server accepts them, and how names of hardware are turned into values.

use sha2::{Digest, Sha256};

/// Longest label value, and longest name part of a key.
pub const MAX_VALUE: usize = 63;
/// Longest prefix of a key.
const MAX_PREFIX: usize = 253;
/// Hex digits of the hash at the end of a shortened name.
const HASH_DIGITS: usize = 8;

/// GFD's transform, byte for byte: characters outside `[A-Za-z0-9-_. ]` go, runs of blanks become one `-`, blanks at the ends go.
/// The result may still be no label value.
pub fn sanitise(name: &str) -> String {
    let kept: String = name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' '))
        .collect();
    kept.split_ascii_whitespace().collect::<Vec<_>>().join("-")
}

/// A label value for a name: GFD's where that is valid, else trimmed and shortened with a hash. `None`: nothing usable in it.
pub fn value(name: &str) -> Option<String> {
    shortened(&sanitise(name), MAX_VALUE)
}

/// `s` without separators at its ends, at most `max` bytes long: a longer one keeps its beginning and gets a hash of the whole.
/// `s` is ASCII, `max` has room for the hash.
pub(super) fn shortened(s: &str, max: usize) -> Option<String> {
    let trimmed = trim(s);
    if trimmed.is_empty() {
        return None;
    }
    if trimmed.len() <= max {
        return Some(trimmed.to_owned());
    }
    let hash: String = Sha256::digest(trimmed.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let head = trim(&trimmed[..max - HASH_DIGITS - 1]);
    Some(format!("{head}-{}", &hash[..HASH_DIGITS]))
}

fn trim(s: &str) -> &str {
    s.trim_matches(|c: char| !c.is_ascii_alphanumeric())
}

/// Whether the API server accepts `value` as a label value. The empty value is one.
pub fn is_value(value: &str) -> bool {
    value.is_empty() || is_name(value)
}

/// Whether the API server accepts `key` as a label key.
pub fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        None => is_name(key),
        Some((prefix, name)) => is_subdomain(prefix) && is_name(name),
    }
}

fn is_name(s: &str) -> bool {
    let bytes = s.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    bytes.len() <= MAX_VALUE
        && first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_subdomain(s: &str) -> bool {
    s.len() <= MAX_PREFIX
        && s.split('.').all(|part| {
            let bytes = part.as_bytes();
            let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            bytes.first().is_some_and(alphanumeric)
                && bytes.last().is_some_and(alphanumeric)
                && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_become_gfds_values() {
        for (name, want) in [
            ("NVIDIA A100-SXM4-40GB", "NVIDIA-A100-SXM4-40GB"),
            ("NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3"),
            ("Tesla T4", "Tesla-T4"),
            ("  ProLiant DL380  Gen10 (tm) ", "ProLiant-DL380-Gen10-tm"),
            ("a/b\tc", "abc"),
        ] {
            assert_eq!(sanitise(name), want, "{name:?}");
            assert_eq!(value(name).as_deref(), Some(want), "{name:?}");
        }
    }

    #[test]
    fn values_that_gfd_would_get_wrong_are_mended() {
        assert_eq!(sanitise("-odd name."), "-odd-name.");
        assert_eq!(value("-odd name.").as_deref(), Some("odd-name"));
        assert_eq!(value("..--"), None);
        assert_eq!(value("日本"), None);
        let long = value(&"x".repeat(70)).unwrap();
        assert_eq!(long.len(), MAX_VALUE);
        assert_ne!(long, value(&"x".repeat(71)).unwrap(), "names that differ stay apart");
    }

    #[test]
    fn keys_and_values_of_the_api_server() {
        for key in ["a", "nvidia.com/gpu.count", "foo/bar.com", "a-b.c/D_e.F"] {
            assert!(is_key(key), "{key}");
        }
        for key in [
            "", "/a", "a/", "a/b/c", "A.com/x", "-a.com/x", "a..b/x", "a/-x", "a b", "ü",
        ] {
            assert!(!is_key(key), "{key}");
        }
        assert!(is_value("") && is_value("a.b_c-D") && !is_value("a-") && !is_value("a b"));
        assert!(!is_value(&"a".repeat(64)) && !is_key(&format!("{}/x", "a".repeat(254))));
    }

    proptest! {
        #[test]
        fn any_string_becomes_a_label_value(name in any::<String>()) {
            let gfd = sanitise(&name);
            let ours = value(&name);
            prop_assert!(is_value(ours.as_deref().unwrap_or_default()), "{ours:?}");
            if is_value(&gfd) {
                prop_assert_eq!(ours.unwrap_or_default(), gfd);
            }
        }

        #[test]
        fn names_like_those_of_hardware_become_label_values(name in "[-_. A-Za-z0-9()/]{0,90}") {
            let gfd = sanitise(&name);
            let ours = value(&name);
            prop_assert!(is_value(ours.as_deref().unwrap_or_default()), "{ours:?}");
            if is_value(&gfd) {
                prop_assert_eq!(ours.unwrap_or_default(), gfd);
            }
        }
    }
}
