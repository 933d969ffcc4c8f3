//! Kinds of children, and where the API serves them.

use kube::core::ApiResource;

/// Kinds of children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// apps/v1
    Deployment,
    /// v1
    Service,
    /// networking.k8s.io/v1
    Ingress,
    /// v1
    ConfigMap,
    /// v1
    PersistentVolumeClaim,
    /// batch/v1
    Job,
    /// autoscaling/v2
    HorizontalPodAutoscaler,
    /// v1
    ServiceAccount,
    /// rbac.authorization.k8s.io/v1
    Role,
    /// rbac.authorization.k8s.io/v1
    RoleBinding,
    /// gateway.networking.k8s.io/v1; not installed in every cluster.
    HttpRoute,
    /// keda.sh/v1alpha1; not installed in every cluster.
    ScaledObject,
    /// keda.sh/v1alpha1; not installed in every cluster.
    TriggerAuthentication,
}

impl Kind {
    /// Those that every cluster has.
    pub const ALWAYS: &'static [Kind] = &[
        Self::Deployment,
        Self::Service,
        Self::Ingress,
        Self::ConfigMap,
        Self::PersistentVolumeClaim,
        Self::Job,
        Self::HorizontalPodAutoscaler,
        Self::ServiceAccount,
        Self::Role,
        Self::RoleBinding,
    ];
    /// Those whose API may be installed later, or never.
    pub const OPTIONAL: &'static [Kind] = &[Self::HttpRoute, Self::ScaledObject, Self::TriggerAuthentication];

    /// As in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::Service => "Service",
            Self::Ingress => "Ingress",
            Self::ConfigMap => "ConfigMap",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
            Self::Job => "Job",
            Self::HorizontalPodAutoscaler => "HorizontalPodAutoscaler",
            Self::HttpRoute => "HTTPRoute",
            Self::ServiceAccount => "ServiceAccount",
            Self::Role => "Role",
            Self::RoleBinding => "RoleBinding",
            Self::ScaledObject => "ScaledObject",
            Self::TriggerAuthentication => "TriggerAuthentication",
        }
    }

    /// Where the API serves it.
    pub fn resource(self) -> ApiResource {
        let (group, version, plural) = match self {
            Self::Deployment => ("apps", "v1", "deployments"),
            Self::Service => ("", "v1", "services"),
            Self::Ingress => ("networking.k8s.io", "v1", "ingresses"),
            Self::ConfigMap => ("", "v1", "configmaps"),
            Self::PersistentVolumeClaim => ("", "v1", "persistentvolumeclaims"),
            Self::Job => ("batch", "v1", "jobs"),
            Self::HorizontalPodAutoscaler => ("autoscaling", "v2", "horizontalpodautoscalers"),
            Self::ServiceAccount => ("", "v1", "serviceaccounts"),
            Self::Role => ("rbac.authorization.k8s.io", "v1", "roles"),
            Self::RoleBinding => ("rbac.authorization.k8s.io", "v1", "rolebindings"),
            Self::HttpRoute => ("gateway.networking.k8s.io", "v1", "httproutes"),
            Self::ScaledObject => ("keda.sh", "v1alpha1", "scaledobjects"),
            Self::TriggerAuthentication => ("keda.sh", "v1alpha1", "triggerauthentications"),
        };
        ApiResource {
            group: group.into(),
            version: version.into(),
            api_version: if group.is_empty() {
                version.into()
            } else {
                format!("{group}/{version}")
            },
            kind: self.as_str().into(),
            plural: plural.into(),
        }
    }
}
