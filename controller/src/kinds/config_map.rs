//! What the API server asks of a ConfigMap.

/// Most bytes that all values of a ConfigMap may have together.
pub const MAX_BYTES: usize = 1 << 20;

/// Longest key, in characters.
const MAX_KEY: usize = 253;

/// Whether a ConfigMap may have this key.
pub fn is_key(key: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !key.is_empty() && key.len() <= MAX_KEY && key.chars().all(fits) && key != "." && !key.starts_with("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_that_the_api_server_takes() {
        for (key, fits) in [
            ("localai-q4-engineConfigFile", true),
            ("a_b.c", true),
            ("", false),
            (".", false),
            ("..", false),
            ("..a", false),
            ("a b", false),
            ("a/b", false),
            ("é", false),
            (&"a".repeat(253), true),
            (&"a".repeat(254), false),
        ] {
            assert_eq!(is_key(key), fits, "{key:?}");
        }
    }
}
