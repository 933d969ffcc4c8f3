//! `docs/health.md` against the code: whoever meets a reason in a condition finds it on the page.

const PAGE: &str = include_str!("../../../docs/health.md");
/// The names are taken from the source, so that a new one cannot be forgotten here as well.
const REASONS: &str = include_str!("reason.rs");

#[test]
fn every_reason_is_on_the_page() {
    let names: Vec<&str> = REASONS
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("Self::")?
                .split_once(" => \"")?
                .1
                .strip_suffix("\",")
        })
        .collect();
    assert!(names.len() > 25, "the source was not understood: {names:?}");
    for name in names {
        assert!(PAGE.contains(&format!("`{name}`")), "{name} is not in docs/health.md");
    }
}
