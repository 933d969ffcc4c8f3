//! `docs/metrics.md` against the code: what is served is on the page, and what the page says to alert on can be told.

use std::collections::BTreeSet;

use berth_core::facts::Gpu;

use super::Metrics;
use crate::facts::Inventory;
use crate::picture::Picture;

const PAGE: &str = include_str!("../../../docs/metrics.md");
/// The names are taken from the source, so that a new one cannot be forgotten here as well.
const SOURCES: [&str; 3] = [
    include_str!("own.rs"),
    include_str!("dcgm/mod.rs"),
    include_str!("dcgm/rows.rs"),
];

fn is_metric(word: &str) -> bool {
    (word.starts_with("berth_") || word.starts_with("DCGM_")) && !word.ends_with('_')
}

/// Metrics that a text names.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| is_metric(word)).collect()
}

/// The page without what it says of the controller, whose metrics are its own.
fn of_agents() -> String {
    let (before, rest) = PAGE.split_once("\n## The controller\n").unwrap();
    let (_, after) = rest.split_once("\n## ").unwrap();
    [before, after].join("\n")
}

#[test]
fn every_metric_is_on_the_page_and_no_other() {
    let quoted = SOURCES.iter().flat_map(|source| source.split('"'));
    let served: BTreeSet<&str> = quoted.filter(|text| named(text).contains(text)).collect();
    assert!(served.len() > 40, "the sources were not understood: {served:?}");
    assert_eq!(served, named(&of_agents()));
}

/// What the agent serves of a node with one GPU.
fn served() -> String {
    let picture = Picture::new();
    picture.update(|state, _, now| {
        let inventory = Inventory {
            driver: None,
            gpus: vec![Gpu {
                uuid: "GPU-1".into(),
                ..Gpu::default()
            }],
        };
        state.facts.on_inventory(inventory, now);
        state.tracker.on_inventory(&state.facts.at(now));
        state.sampled = Some(now);
    });
    Metrics::default().text(&picture)
}

/// Whether a series of this name has these labels, as `name="value"`, or `name="` for any.
fn has(text: &str, name: &str, labels: &[String]) -> bool {
    let of_it = |line: &&str| line.split(['{', ' ']).next() == Some(name);
    let mut series = text.lines().filter(of_it);
    series.any(|line| labels.iter().all(|label| line.contains(label.as_str())))
}

#[test]
fn every_alert_is_about_series_that_are_served() {
    let (_, after) = PAGE.split_once("Worth an alert:\n\n```\n").unwrap();
    let (alerts, _) = after.split_once("```").unwrap();
    let text = served();
    assert!(alerts.lines().count() > 3);
    for alert in alerts.lines() {
        let (expression, _) = alert.split_once('#').unwrap();
        let names = named(expression);
        assert_eq!(names.len(), 1, "{expression}");
        for name in names {
            let (_, rest) = expression.split_once(name).unwrap();
            let chosen = rest.strip_prefix('{').map(|rest| rest.split_once('}').unwrap().0);
            let chosen = chosen.into_iter().flat_map(|list| list.split(',')).map(str::to_owned);
            let by = expression
                .split_once("by (")
                .map(|(_, rest)| rest.split_once(')').unwrap().0);
            // Prometheus puts that one on.
            let by = by
                .into_iter()
                .flat_map(|list| list.split(", "))
                .filter(|label| *label != "instance");
            let labels: Vec<String> = chosen.chain(by.map(|label| format!("{label}=\""))).collect();
            assert!(has(&text, name, &labels), "{name} {labels:?} is not in:\n{text}");
        }
    }
}
