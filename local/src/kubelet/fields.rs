//! What a pod knows about itself: the paths of `fieldRef`.

use k8s_openapi::api::core::v1::Pod;

use crate::error::{Error, Result};

/// Name of a pod.
pub fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

/// Namespace of a pod.
pub fn namespace(pod: &Pod) -> String {
    pod.metadata.namespace.clone().unwrap_or_default()
}

/// UID of a pod.
pub fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// Node that a pod is bound to.
pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// ServiceAccount of a pod.
pub fn service_account(pod: &Pod) -> String {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    account.unwrap_or_else(|| "default".to_owned())
}

/// The value of a `fieldPath`.
pub fn value(pod: &Pod, path: &str) -> Result<String> {
    let meta = &pod.metadata;
    let entry = |path: &str, prefix: &str| -> Option<String> {
        Some(
            path.strip_prefix(prefix)?
                .strip_prefix("['")?
                .strip_suffix("']")?
                .to_owned(),
        )
    };
    if let Some(key) = entry(path, "metadata.labels") {
        return Ok(meta
            .labels
            .as_ref()
            .and_then(|l| l.get(&key))
            .cloned()
            .unwrap_or_default());
    }
    if let Some(key) = entry(path, "metadata.annotations") {
        return Ok(meta
            .annotations
            .as_ref()
            .and_then(|l| l.get(&key))
            .cloned()
            .unwrap_or_default());
    }
    match path {
        "metadata.name" => Ok(name(pod)),
        "metadata.namespace" => Ok(namespace(pod)),
        "metadata.uid" => Ok(uid(pod)),
        "spec.nodeName" => Ok(node(pod).unwrap_or_default().to_owned()),
        "spec.serviceAccountName" => Ok(service_account(pod)),
        "status.podIP" | "status.podIPs" | "status.hostIP" | "status.hostIPs" => Ok("127.0.0.1".to_owned()),
        _ => Err(Error::Malformed {
            what: format!("fieldPath {path:?}"),
            reason: "it is not known".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_paths() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n", "namespace": "ns", "uid": "u", "labels": {"a/b": "c"}},
            "spec": {"nodeName": "h100-0", "containers": []},
        }))
        .unwrap();
        let cases = [
            ("metadata.name", "n"),
            ("metadata.namespace", "ns"),
            ("metadata.uid", "u"),
            ("spec.nodeName", "h100-0"),
            ("spec.serviceAccountName", "default"),
            ("metadata.labels['a/b']", "c"),
            ("metadata.annotations['a/b']", ""),
            ("status.podIP", "127.0.0.1"),
        ];
        for (path, want) in cases {
            assert_eq!(value(&pod, path).unwrap(), want, "{path}");
        }
        assert!(value(&pod, "spec.colour").is_err());
    }
}
