//! DNS names, of which Kubernetes makes those of objects and containers.

/// Longest DNS label, in characters.
pub const LABEL: usize = 63;

/// Whether a text is a DNS label (RFC 1123).
pub fn is_dns_label(label: &str) -> bool {
    let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !label.is_empty()
        && label.len() <= LABEL
        && label.starts_with(is_end)
        && label.ends_with(is_end)
        && label.chars().all(|c| is_end(c) || c == '-')
}
