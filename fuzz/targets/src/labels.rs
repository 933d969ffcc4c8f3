//! What must hold of the labels of any facts.

use berth_core::facts::NodeFacts;
use berth_core::labels::{MigStrategy, Replicated, Settings, SharingStrategy, grammar, labels};

/// Every key and value is one that the API server accepts, whatever the device plugin is configured to do, and another look gives the same.
pub fn check(facts: &NodeFacts) {
    for settings in settings() {
        check_with(facts, &settings);
    }
}

/// The same with one configuration.
pub fn check_with(facts: &NodeFacts, settings: &Settings) {
    let found = labels(facts, settings);
    for (key, value) in &found {
        assert!(grammar::is_key(key) && grammar::is_value(value), "{key:?}={value:?}");
    }
    let mut backwards = facts.clone();
    backwards.gpus.reverse();
    backwards.pci.reverse();
    backwards.vgpus.reverse();
    backwards.amd_gpus.reverse();
    backwards.intel_gpus.reverse();
    if names_are_unique(facts) {
        assert_eq!(labels(&backwards, settings), found, "in another order");
    }
}

fn settings() -> [Settings; 3] {
    let shared = |sharing| Settings {
        sharing,
        replicated: ["gpu", "mig-1g.10gb"]
            .map(|name| Replicated {
                resource: format!("nvidia.com/{name}"),
                replicas: 4,
                renamed: false,
            })
            .into(),
        timestamp: Some(1),
        ..Settings::default()
    };
    [
        Settings::default(),
        Settings {
            mig_strategy: MigStrategy::Single,
            ..shared(SharingStrategy::Mps)
        },
        Settings {
            mig_strategy: MigStrategy::Mixed,
            ..shared(SharingStrategy::TimeSlicing)
        },
    ]
}

/// As those of a kernel and a driver are. Of two things of one name, which is meant depends on their order.
fn names_are_unique(facts: &NodeFacts) -> bool {
    fn unique<'a>(names: impl Iterator<Item = &'a str>) -> bool {
        let mut names: Vec<&str> = names.collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        names.len() == all
    }
    let mig = facts
        .gpus
        .iter()
        .filter_map(|g| g.mig.as_ref())
        .flat_map(|m| &m.devices);
    unique(facts.pci.iter().map(|f| f.address.as_str()))
        && unique(
            facts
                .gpus
                .iter()
                .map(|g| g.uuid.as_str())
                .chain(mig.map(|d| d.uuid.as_str())),
        )
        && unique(facts.vgpus.iter().map(|v| v.pci_address.as_str()))
        && unique(facts.amd_gpus.iter().map(|g| g.pci_address.as_str()))
        && unique(facts.intel_gpus.iter().map(|g| g.pci_address.as_str()))
        && {
            let mut cards: Vec<u32> = facts.intel_gpus.iter().map(|g| g.card).collect();
            cards.sort_unstable();
            cards.windows(2).all(|two| two[0] != two[1])
        }
}
