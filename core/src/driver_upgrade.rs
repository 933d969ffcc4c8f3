//! When a node's NVIDIA driver has to be let go of, so that its kernel modules can be unloaded in place.
//!
//! Source: the node labels of NVIDIA's gpu-operator (the states of its upgrade controller, k8s-operator-libs) and of its
//! k8s-driver-manager, which takes the driver's users off a node before it unloads the modules, upgrade controller or not.

use std::collections::BTreeMap;

/// Label with the state of the node's driver upgrade. Absent: nobody upgrades drivers in place here.
pub const UPGRADE_STATE: &str = "nvidia.com/gpu-driver-upgrade-state";
/// Labels by which users of the driver are kept on a node, and taken off it.
const DEPLOY: &str = "nvidia.com/gpu.deploy.";
/// Within their value, while the driver manager takes the users off and unloads the modules.
const PAUSED: &str = "paused-for-driver-upgrade";

/// Whether NVML may be open on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverUse {
    /// It may.
    Hold,
    /// It may not, because of this label.
    LetGo {
        /// `key=value`.
        because: String,
    },
}

impl DriverUse {
    /// By a node's labels.
    pub fn of(labels: &BTreeMap<String, String>) -> Self {
        let because = |key: &str, value: &str| Self::LetGo {
            because: format!("{key}={value}"),
        };
        if let Some(state) = labels.get(UPGRADE_STATE).filter(|state| is_unloading(state)) {
            return because(UPGRADE_STATE, state);
        }
        let mut deploy = labels.iter().filter(|(key, _)| key.starts_with(DEPLOY));
        match deploy.find(|(_, value)| value.contains(PAUSED)) {
            Some((key, value)) => because(key, value),
            None => Self::Hold,
        }
    }

    /// Whether it may not.
    pub fn is_let_go(&self) -> bool {
        matches!(self, Self::LetGo { .. })
    }
}

/// From the state before the driver's pod is deleted, which unloads the modules at once, to the new driver's validation.
fn is_unloading(state: &str) -> bool {
    match state {
        // Nothing is done yet, maybe for weeks; or models still run and are waited for, maybe for hours. Their health counts.
        "upgrade-required" | "cordon-required" | "wait-for-jobs-required" | "node-maintenance-required" => false,
        // The node is cordoned, and whatever uses a GPU is being taken off. The driver's pod goes next.
        "pod-deletion-required" | "drain-required" | "post-maintenance-required" => true,
        // The driver's pod goes and comes, and its start unloads what is still loaded. If that or the validation fails it is tried
        // again, which works only if nobody holds the driver by then.
        "pod-restart-required" | "validation-required" | "upgrade-failed" => true,
        // The new driver works. Its GPUs are known again before models come back.
        "uncordon-required" | "upgrade-done" | "" => false,
        // Of an operator that this build does not know: as with no label, health goes on.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_state_of_the_upgrade_controller() {
        for (state, let_go) in [
            ("", false),
            ("upgrade-required", false),
            ("cordon-required", false),
            ("wait-for-jobs-required", false),
            ("node-maintenance-required", false),
            ("pod-deletion-required", true),
            ("drain-required", true),
            ("post-maintenance-required", true),
            ("pod-restart-required", true),
            ("validation-required", true),
            ("upgrade-failed", true),
            ("uncordon-required", false),
            ("upgrade-done", false),
            ("of-a-later-operator", false),
        ] {
            let of = DriverUse::of(&labels(&[(UPGRADE_STATE, state)]));
            assert_eq!(of.is_let_go(), let_go, "{state}");
            if let DriverUse::LetGo { because } = of {
                assert_eq!(because, format!("{UPGRADE_STATE}={state}"));
            }
        }
        assert_eq!(DriverUse::of(&BTreeMap::new()), DriverUse::Hold, "nobody upgrades");
    }

    #[test]
    fn the_driver_manager_alone_is_enough() {
        for (key, value, let_go) in [
            ("nvidia.com/gpu.deploy.device-plugin", "paused-for-driver-upgrade", true),
            ("nvidia.com/gpu.deploy.client", "true_paused-for-driver-upgrade", true),
            ("nvidia.com/gpu.deploy.client", "paused-for-mig-change", false),
            ("nvidia.com/gpu.deploy.driver", "true", false),
            ("example.com/gpu.deploy.driver", "paused-for-driver-upgrade", false),
        ] {
            let of = DriverUse::of(&labels(&[(UPGRADE_STATE, "upgrade-done"), (key, value)]));
            assert_eq!(of.is_let_go(), let_go, "{key}={value}");
        }
    }
}
