//! What holds for all GPUs of a node at once.

use std::collections::BTreeSet;
use std::time::Duration;

use super::reading::Last;
use super::row::{Outcome, Row};
use crate::facts::{NodeChecks, NodeFacts, NvmlState};
use crate::health::{Reason, missing_gpus};

/// Two sources that are read apart may differ for a moment.
const DIFFER_FOR: Duration = Duration::from_secs(10);
/// NVML_GPU_FABRIC_STATE_COMPLETED
const FABRIC_COMPLETED: u32 = 3;

/// What was read of a node.
#[derive(Debug, Clone, Default)]
pub struct Node {
    now: Duration,
    nvswitches: u32,
    confidential_compute: Last<bool>,
    fabric_manager: Last<bool>,
    differ_since: Option<Duration>,
    differ: bool,
}

impl Node {
    /// A round of checks at `at`.
    pub fn on_checks(&mut self, new: &NodeChecks, facts: &NodeFacts, at: Duration) {
        self.now = at;
        let unclear = |call: &str| new.unclear.iter().any(|u| u == call);
        self.confidential_compute.on(
            new.confidential_compute_ready,
            unclear("nvmlSystemGetConfComputeGpusReadyState"),
            at,
        );
        self.fabric_manager.on(new.fabric_manager_running, false, at);
        if versions_differ(facts).is_some() {
            let since = *self.differ_since.get_or_insert(at);
            self.differ |= at.saturating_sub(since) >= DIFFER_FOR;
        } else {
            (self.differ_since, self.differ) = (None, false);
        }
    }

    /// NVSwitches of the machine, as PCI has them.
    pub fn on_nvswitches(&mut self, count: u32) {
        self.nvswitches = count;
    }

    /// Checks whose findings count for every GPU of the node.
    pub fn rows(&self, facts: &NodeFacts) -> Vec<Row> {
        vec![
            self.versions(facts),
            self.confidential_compute(),
            self.fabric_manager(facts),
            cliques(facts),
        ]
    }

    fn versions(&self, facts: &NodeFacts) -> Row {
        const CHECK: &str = "driver and library";
        match (versions_differ(facts), library_version(facts)) {
            (Some((driver, library)), _) if self.differ => Row::unhealthy(
                CHECK,
                Reason::DriverUpgrading,
                format!(
                    "the kernel's driver is {driver}, the library {library}: end the upgrade, or restart the machine"
                ),
            ),
            (_, Some(library)) if facts.kernel_driver_version.is_some() => Row::passed(CHECK, library),
            _ => Row::new(CHECK, Outcome::NotSupported),
        }
    }

    fn confidential_compute(&self) -> Row {
        const CHECK: &str = "confidential compute";
        self.confidential_compute.row(CHECK, self.now, |ready| match ready {
            true => Row::passed(CHECK, "ready"),
            false => Row::unhealthy(
                CHECK,
                Reason::ConfidentialComputeNotReady,
                "the GPUs do not take work yet: attest them and set them ready",
            ),
        })
    }

    fn fabric_manager(&self, facts: &NodeFacts) -> Row {
        const CHECK: &str = "fabric manager";
        if self.nvswitches == 0 {
            return Row::new(CHECK, Outcome::NotSupported);
        }
        let mut registered = facts.gpus.iter().filter_map(|g| g.fabric.as_ref());
        match self.fabric_manager.value() {
            Some(true) => Row::passed(CHECK, "runs"),
            Some(false) => Row::suspect(
                CHECK,
                Reason::FabricManagerDown,
                format!(
                    "{} NVSwitches, and no fabric manager runs: start nvidia-fabricmanager",
                    self.nvswitches
                ),
            ),
            // Nobody but it registers GPUs.
            None if registered.any(|f| f.state == FABRIC_COMPLETED) => Row::passed(CHECK, "has registered GPUs"),
            None => Row::unknown(CHECK, "its process cannot be seen from here"),
        }
    }
}

/// The library's own version: NVML puts CUDA's major version before it.
fn library_version(facts: &NodeFacts) -> Option<&str> {
    let version = facts.driver.as_ref()?.nvml_version.as_deref()?;
    version.split_once('.').map(|(_, library)| library)
}

/// Driver and library, where both are known and not the same.
fn versions_differ(facts: &NodeFacts) -> Option<(&str, &str)> {
    let driver = facts.kernel_driver_version.as_deref()?;
    let library = library_version(facts)?;
    (facts.nvml.state == NvmlState::Ready && driver != library).then_some((driver, library))
}

/// Whether all registered GPUs are in one clique; where they are not, the node has no label `gpu.clique` either.
fn cliques(facts: &NodeFacts) -> Row {
    const CHECK: &str = "clique";
    let registered = facts.gpus.iter().filter_map(|g| g.fabric.as_ref());
    let cliques: BTreeSet<_> = registered
        .filter(|f| f.state == FABRIC_COMPLETED && f.status == 0)
        .map(|f| (f.cluster_uuid.as_str(), f.clique_id))
        .collect();
    match Vec::from_iter(cliques).as_slice() {
        [] => Row::new(CHECK, Outcome::NotSupported),
        [(cluster, clique)] => Row::passed(CHECK, format!("{cluster}.{clique}")),
        several => Row::suspect(
            CHECK,
            Reason::CliqueMismatch,
            format!(
                "the node's GPUs are in {} cliques: check the fabric manager or IMEX",
                several.len()
            ),
        ),
    }
}

/// Whether NVML lists every GPU that PCI has. Counted for the node as a whole, and not held against those that are there.
pub fn gpu_count(facts: &NodeFacts) -> Row {
    const CHECK: &str = "GPU count";
    match (facts.nvml.state, missing_gpus(facts)) {
        (NvmlState::Ready, 0) => Row::passed(CHECK, facts.gpus.len().to_string()),
        (NvmlState::Ready, n) => Row::unhealthy(
            CHECK,
            Reason::GpuMissing,
            format!("{n} GPU(s) that PCI has are not listed by NVML: restart the machine"),
        ),
        (_, _) => Row::unknown(CHECK, "NVML does not answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Fabric, Gpu, NvidiaDriver, NvmlStatus};

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn facts(kernel: Option<&str>, nvml: Option<&str>) -> NodeFacts {
        NodeFacts {
            nvml: NvmlStatus {
                state: NvmlState::Ready,
                message: String::new(),
            },
            kernel_driver_version: kernel.map(Into::into),
            driver: Some(NvidiaDriver {
                version: "550.163.01".into(),
                cuda_version: None,
                nvml_version: nvml.map(Into::into),
                excluded_gpus: None,
            }),
            ..NodeFacts::default()
        }
    }

    fn row(node: &Node, facts: &NodeFacts, check: &str) -> Outcome {
        let rows = node.rows(facts);
        rows.into_iter().find(|r| r.check == check).expect(check).outcome
    }

    #[test]
    fn driver_and_library_may_differ_for_a_moment_only() {
        use Outcome::{NotSupported, Passed, Unhealthy};
        let library = Some("12.550.163.01");
        for (kernel, nvml, at_first, later) in [
            (Some("550.163.01"), library, Passed, Passed),
            (Some("570.00"), library, Passed, Unhealthy),
            (None, library, NotSupported, NotSupported),
            (Some("570.00"), None, NotSupported, NotSupported),
        ] {
            let facts = facts(kernel, nvml);
            let mut node = Node::default();
            for (at, want) in [(0, at_first), (1, at_first), (15, later)] {
                node.on_checks(&NodeChecks::default(), &facts, S(at));
                assert_eq!(
                    row(&node, &facts, "driver and library"),
                    want,
                    "{kernel:?} {nvml:?} at {at}"
                );
            }
        }
    }

    #[test]
    fn confidential_computing_and_the_fabric_manager() {
        use Outcome::{NotSupported, Passed, Suspect, Unhealthy, Unknown};
        for (ready, want) in [(None, NotSupported), (Some(true), Passed), (Some(false), Unhealthy)] {
            let mut node = Node::default();
            let checks = NodeChecks {
                confidential_compute_ready: ready,
                ..NodeChecks::default()
            };
            node.on_checks(&checks, &NodeFacts::default(), S(0));
            assert_eq!(
                row(&node, &NodeFacts::default(), "confidential compute"),
                want,
                "{ready:?}"
            );
        }
        for (switches, running, state, want) in [
            (0, Some(false), 0, NotSupported),
            (4, Some(true), 2, Passed),
            (4, Some(false), 3, Suspect),
            (4, None, 3, Passed),
            (4, None, 2, Unknown),
        ] {
            let mut facts = NodeFacts::default();
            facts.gpus.push(registered(state, 0));
            let mut node = Node::default();
            node.on_nvswitches(switches);
            let checks = NodeChecks {
                fabric_manager_running: running,
                ..NodeChecks::default()
            };
            node.on_checks(&checks, &facts, S(0));
            assert_eq!(
                row(&node, &facts, "fabric manager"),
                want,
                "{switches} {running:?} {state}"
            );
        }
    }

    fn registered(state: u32, clique_id: u32) -> Gpu {
        Gpu {
            fabric: Some(Fabric {
                state,
                status: 0,
                cluster_uuid: "c".into(),
                clique_id,
            }),
            ..Gpu::default()
        }
    }

    #[test]
    fn gpus_of_one_node_are_in_one_clique() {
        use Outcome::{NotSupported, Passed, Suspect};
        for (gpus, want) in [
            (vec![], NotSupported),
            (vec![Gpu::default(), registered(2, 0)], NotSupported),
            (vec![registered(3, 0), registered(3, 0)], Passed),
            (vec![registered(3, 0), registered(2, 7)], Passed),
            (vec![registered(3, 0), registered(3, 7)], Suspect),
        ] {
            let facts = NodeFacts {
                gpus,
                ..NodeFacts::default()
            };
            assert_eq!(cliques(&facts).outcome, want, "{facts:?}");
        }
    }
}
