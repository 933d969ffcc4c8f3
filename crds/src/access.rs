//! What the controller does on each API, and which keys it may write on nodes and pods. `cargo xtask gen` writes the chart's RBAC, the
//! constants of its admission policies and `docs/permissions.md` from here; nothing else grants the controller anything.

/// Where a right holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Cluster-scoped objects, or objects of every namespace.
    Cluster,
    /// Objects of the installation's own namespace.
    OwnNamespace,
    /// The one object of this name in the installation's own namespace.
    OwnObject(&'static str),
}

/// One row: these verbs on this resource, for this reason.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// API group; empty: the core group.
    pub group: &'static str,
    /// Plural resource, with its subresource: `nodes`, `aideployments/status`.
    pub resource: &'static str,
    /// Verbs as RBAC spells them.
    pub verbs: &'static [&'static str],
    /// Where.
    pub scope: Scope,
    /// The API, or the admission check that asks for the right, is there on some clusters only: that an audit log does not show a use
    /// proves nothing.
    pub optional: bool,
    /// What for, in one sentence.
    pub why: &'static str,
}

const fn row(
    scope: Scope,
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    why: &'static str,
) -> Access {
    Access {
        group,
        resource,
        verbs,
        scope,
        optional: false,
        why,
    }
}

const PREMLABS: &str = "premlabs.io";
const YOUXAM: &str = "model.youxam.com";
const TMFORUM: &str = "oda.tmforum.org.oda.tmforum.org";
const SATHVIK: &str = "mlops.sathvik.dev";
const RBAC: &str = "rbac.authorization.k8s.io";
const KEDA: &str = "keda.sh";
/// Children go with their owner; only one that is no longer wanted has to be deleted. Applying a new object asks for both of the last.
const CHILD: &[&str] = &["list", "watch", "get", "create", "patch"];
/// Children that one edit makes and another takes away.
const PRUNED_CHILD: &[&str] = &["list", "watch", "get", "create", "patch", "delete"];

/// Everything that the controller does on the Kubernetes API.
pub const ACCESS: &[Access] = &[
    row(
        Scope::Cluster,
        "",
        "nodes",
        &["list", "watch", "patch"],
        "Follow labels, taints and allocatable; write node labels; put the taint of unhealthy GPUs on nodes and take it away.",
    ),
    row(
        Scope::Cluster,
        "",
        "nodes/status",
        &["patch"],
        "Write the conditions that say whether a node's GPUs are ready.",
    ),
    row(
        Scope::Cluster,
        "",
        "pods",
        &["list", "watch", "get", "patch", "delete"],
        "Follow who uses which node; pin waiting pods and lift their gate; delete a pinned pod that kube-scheduler refuses; put the leader label on the own pod.",
    ),
    row(
        Scope::Cluster,
        "apps",
        "deployments",
        PRUNED_CHILD,
        "Children of AIDeployments, AIModels, MLModels, which start again without them, and ModelDeployments; on uninstall, gates leave the templates and the controller is stopped.",
    ),
    row(
        Scope::OwnObject("berth-controller"),
        "apps",
        "deployments/scale",
        &["patch"],
        "On uninstall, stop the controller before its gates are taken away.",
    ),
    row(
        Scope::Cluster,
        "apps",
        "replicasets",
        &["list", "get", "patch"],
        "On uninstall, take the gate from the current ReplicaSet before the Deployment, so that no pod is made anew.",
    ),
    row(
        Scope::Cluster,
        "",
        "services",
        PRUNED_CHILD,
        "Children of AIDeployments, of ModelDeployments, and of MLModels that are exposed.",
    ),
    row(
        Scope::Cluster,
        "",
        "persistentvolumeclaims",
        PRUNED_CHILD,
        "Children of MLModels: where the model is.",
    ),
    row(
        Scope::Cluster,
        "batch",
        "jobs",
        PRUNED_CHILD,
        "Children of MLModels: what downloads the model; of ModelDeployments: what validates it.",
    ),
    row(
        Scope::Cluster,
        "networking.k8s.io",
        "ingresses",
        &["list", "watch", "get", "create", "patch", "delete"],
        "Children of AIDeployments with endpoints.",
    ),
    Access {
        optional: true,
        ..row(
            Scope::Cluster,
            "gateway.networking.k8s.io",
            "httproutes",
            &["list", "watch", "get", "create", "patch", "delete"],
            "Children of AIDeployments with endpoints and `gateway`, where the Gateway API is installed.",
        )
    },
    row(
        Scope::Cluster,
        "autoscaling",
        "horizontalpodautoscalers",
        PRUNED_CHILD,
        "Leave the replicas of a Deployment to the autoscaler that drives it; children of ModelDeployments with `autoscale`.",
    ),
    row(
        Scope::Cluster,
        "",
        "configmaps",
        &["list", "watch", "get", "create", "patch", "delete"],
        "Engine configuration files of AIDeployments and AIModelMaps; the CA that agents trust, old and new; the device plugin's configuration, where it is named.",
    ),
    row(
        Scope::Cluster,
        "node.k8s.io",
        "runtimeclasses",
        &["list", "watch"],
        "Say that the RuntimeClass of GPU pods is missing instead of failing on it.",
    ),
    row(
        Scope::Cluster,
        PREMLABS,
        "aideployments",
        &["list", "watch"],
        "Serve the kind.",
    ),
    row(
        Scope::Cluster,
        PREMLABS,
        "aideployments/status",
        &["patch"],
        "Report on it.",
    ),
    Access {
        optional: true,
        ..row(
            Scope::Cluster,
            PREMLABS,
            "aideployments/finalizers",
            &["update"],
            "Owner references that block deletion; asked for where OwnerReferencesPermissionEnforcement is on.",
        )
    },
    row(
        Scope::Cluster,
        PREMLABS,
        "aimodelmaps",
        &["list", "watch"],
        "Serve the kind, and resolve the references of AIDeployments.",
    ),
    row(
        Scope::Cluster,
        PREMLABS,
        "aimodelmaps/status",
        &["patch"],
        "Report on it.",
    ),
    Access {
        optional: true,
        ..row(
            Scope::Cluster,
            PREMLABS,
            "aimodelmaps/finalizers",
            &["update"],
            "Owner references that block deletion; asked for where OwnerReferencesPermissionEnforcement is on.",
        )
    },
    row(
        Scope::Cluster,
        PREMLABS,
        "autonodelabelers",
        &["list", "watch"],
        "Serve the kind.",
    ),
    row(
        Scope::Cluster,
        PREMLABS,
        "autonodelabelers/status",
        &["patch"],
        "Report on it.",
    ),
    row(
        Scope::Cluster,
        TMFORUM,
        "mlmodels",
        &["list", "watch", "patch"],
        "Serve the kind; take away the finalizer that the original operator left.",
    ),
    row(Scope::Cluster, TMFORUM, "mlmodels/status", &["patch"], "Report on it."),
    Access {
        optional: true,
        ..row(
            Scope::Cluster,
            TMFORUM,
            "mlmodels/finalizers",
            &["update"],
            "Owner references that block deletion; asked for where OwnerReferencesPermissionEnforcement is on.",
        )
    },
    row(
        Scope::Cluster,
        SATHVIK,
        "modeldeployments",
        &["list", "watch", "patch"],
        "Serve the kind; take away the finalizer that the original operator left.",
    ),
    row(
        Scope::Cluster,
        SATHVIK,
        "modeldeployments/status",
        &["patch"],
        "Report on it.",
    ),
    Access {
        optional: true,
        ..row(
            Scope::Cluster,
            SATHVIK,
            "modeldeployments/finalizers",
            &["update"],
            "Owner references that block deletion; asked for where OwnerReferencesPermissionEnforcement is on.",
        )
    },
    row(
        Scope::Cluster,
        YOUXAM,
        "aimodels",
        &["list", "watch", "get"],
        "Serve the kind; when an error is found that was reported while nobody listened: whether the spec was changed since.",
    ),
    row(Scope::Cluster, YOUXAM, "aimodels/status", &["patch"], "Report on it."),
    Access {
        optional: true,
        ..row(
            Scope::Cluster,
            YOUXAM,
            "aimodels/finalizers",
            &["update"],
            "Owner references that block deletion; asked for where OwnerReferencesPermissionEnforcement is on.",
        )
    },
    row(
        Scope::Cluster,
        "",
        "serviceaccounts",
        CHILD,
        "Children of AIModels: who the workers are.",
    ),
    row(
        Scope::Cluster,
        RBAC,
        "roles",
        CHILD,
        "Children of AIModels: what lets workers report errors as Events. Nothing else can be granted: the right to escalate is not held.",
    ),
    row(
        Scope::Cluster,
        RBAC,
        "rolebindings",
        CHILD,
        "Children of AIModels: that for their ServiceAccount.",
    ),
    // Whoever makes a Role must hold what it grants: that is what create, patch and update are for, and what keeps this from being more.
    Access {
        optional: true,
        ..row(
            Scope::Cluster,
            "",
            "events",
            &["list", "watch", "create", "patch", "update"],
            "Hear the errors that AIModel workers report. The writing verbs are those of the workers' Role, which may be granted by their holder only.",
        )
    },
    Access {
        optional: true,
        ..row(
            Scope::Cluster,
            KEDA,
            "scaledobjects",
            &["list", "watch", "get", "create", "patch", "delete"],
            "Children of AIModels that are scaled by their backlog, where KEDA is installed; and leave the replicas of a Deployment to one of the user's.",
        )
    },
    Access {
        optional: true,
        ..row(
            Scope::Cluster,
            KEDA,
            "triggerauthentications",
            &["list", "watch", "get", "create", "patch", "delete"],
            "How KEDA reads a backlog that needs a token.",
        )
    },
    row(
        Scope::Cluster,
        "events.k8s.io",
        "events",
        &["create", "patch"],
        "Tell of transitions on pods, nodes and objects.",
    ),
    row(
        Scope::Cluster,
        "authentication.k8s.io",
        "tokenreviews",
        &["create"],
        "Check the tokens that agents present.",
    ),
    row(
        Scope::OwnNamespace,
        "coordination.k8s.io",
        "leases",
        &["create"],
        "Elect a leader: make the Lease.",
    ),
    row(
        Scope::OwnObject("berth-controller"),
        "coordination.k8s.io",
        "leases",
        &["list", "watch", "get", "patch"],
        "Elect a leader: hold, renew and follow the Lease.",
    ),
    row(
        Scope::OwnNamespace,
        "",
        "secrets",
        &["create"],
        "Make the Secret with the CA and the certificate of the agent link.",
    ),
    row(
        Scope::OwnObject("berth-trust"),
        "",
        "secrets",
        &["get", "patch"],
        "Read and rotate CA and certificate.",
    ),
];

/// Beginnings of node label keys that hardware facts may write although their domains are protected.
pub const HARDWARE_KEY_PREFIXES: &[&str] = &[
    "nvidia.com/",
    "amd.com/gpu",
    "amd.com/compute-",
    "amd.com/memory-partitioning-supported",
    "beta.amd.com/gpu",
    "gpu.intel.com/",
    "feature.node.kubernetes.io/pci-",
    "berth.dev/gpu",
];

/// The one taint that is ours to set and to take away.
pub const UNHEALTHY_TAINT: &str = "berth.dev/gpu-unhealthy";
/// Its only effect: what runs goes on.
pub const TAINT_EFFECT: &str = "NoSchedule";

/// Types of the node conditions that are ours.
pub const NODE_CONDITIONS: &[&str] = &["nvidia.com/GPUReady", "amd.com/GPUReady"];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_row_is_explicit_and_stands_once() {
        let mut seen = BTreeSet::new();
        for a in ACCESS {
            let at = format!("{}/{} {:?}", a.group, a.resource, a.scope);
            assert!(seen.insert((a.group, a.resource, a.scope)), "{at} stands twice");
            assert!(!a.verbs.is_empty() && a.why.ends_with('.'), "{at}");
            for verb in a.verbs {
                assert!(
                    ["get", "list", "watch", "create", "update", "patch", "delete"].contains(verb),
                    "{at}: {verb}"
                );
            }
            assert!(!a.resource.contains('*') && !a.group.contains('*'), "{at}");
        }
    }

    #[test]
    fn create_is_not_limited_by_name() {
        // RBAC cannot: the name is not known when the request is authorised.
        for a in ACCESS {
            assert!(
                !(matches!(a.scope, Scope::OwnObject(_)) && a.verbs.contains(&"create")),
                "{}",
                a.resource
            );
        }
    }

    #[test]
    fn hardware_prefixes_open_only_protected_domains() {
        for prefix in HARDWARE_KEY_PREFIXES {
            assert!(crate::names::is_protected(&format!("{prefix}x")), "{prefix}");
        }
        assert!(HARDWARE_KEY_PREFIXES.iter().any(|p| UNHEALTHY_TAINT.starts_with(p)));
    }
}
