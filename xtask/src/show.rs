//! What `up` shows: the nodes with their labels, an example model, where its replicas went and why, what to try next.

use std::path::Path;
use std::time::Duration;

use berth_crds::names;
use berth_local::fleet::Driver;
use berth_local::{Cluster, Progress, wait_for};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;

/// Steps of [`example`].
pub const STEPS: usize = 2;

/// Columns of the node table.
const COLUMNS: &str = "berth.dev/gpu-class,nvidia.com/gpu.product,nvidia.com/gpu.count,nvidia.com/gpu.memory";
const EXAMPLE: &str = "examples/vllm-h100.yaml";
/// Labels come within a second of an agent's start; this is for a machine that is busy.
const LABELS: Duration = Duration::from_secs(60);
/// Placed within a second, then KWOK lets it run.
const MODEL: Duration = Duration::from_secs(90);

/// Applies the example and shows what came of it. Something that does not come in time is said, and is no error.
pub async fn example(cluster: &Cluster, progress: &Progress) -> anyhow::Result<()> {
    let step = progress.begin("labels", "");
    match step.watch(labelled(cluster)).await {
        Ok(count) => step.done(&format!("{count} GPU nodes labelled")),
        Err(error) => step.done(&error.to_string()),
    }
    let file = berth_local::checkout().join(EXAMPLE);
    let step = progress.begin("example", &format!("kubectl apply -f {EXAMPLE}"));
    if !file.is_file() {
        step.done("not in this checkout");
    } else {
        let file = file.display().to_string();
        cluster.kubectl(&["apply", "--validate=strict", "-f", &file]).await?;
        match step.watch(model_ready(cluster, &file)).await {
            Ok(status) => step.done(&status),
            Err(error) => step.done(&error.to_string()),
        }
        section(cluster, "nodes", &["get", "nodes", "-L", COLUMNS]).await;
        section(cluster, "model", &["get", "-f", &file]).await;
        section(cluster, "pods", &["get", "pods", "-o", "wide"]).await;
        placements(cluster).await?;
        return Ok(());
    }
    section(cluster, "nodes", &["get", "nodes", "-L", COLUMNS]).await;
    Ok(())
}

async fn section(cluster: &Cluster, title: &str, args: &[&str]) {
    say!("\n── {title}: kubectl {}", args.join(" "));
    match cluster.kubectl(args).await {
        Ok(text) => say!("{}", text.trim_end()),
        Err(error) => say!("{error}"),
    }
}

/// Waits until the nodes have the labels that their hardware asks for.
async fn labelled(cluster: &Cluster) -> berth_local::Result<usize> {
    let nodes = cluster.nodes();
    let one_product = |gpus: &[berth_local::fleet::GpuGroup]| gpus.iter().all(|g| g.model == gpus[0].model);
    let want: Vec<&str> = nodes
        .iter()
        .filter(|n| n.spec().driver == Driver::Present && !n.spec().gpus.is_empty() && one_product(&n.spec().gpus))
        .map(|n| n.name())
        .collect();
    let api: Api<Node> = Api::all(cluster.client());
    wait_for("the labels of the GPU nodes", LABELS, || async {
        let list = api.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
        let has = |name: &str| {
            let node = list.items.iter().find(|n| n.metadata.name.as_deref() == Some(name));
            node.and_then(|n| n.metadata.labels.as_ref())
                .is_some_and(|l| l.contains_key(names::GPU_CLASS))
        };
        let missing: Vec<&&str> = want.iter().filter(|name| !has(name)).collect();
        if missing.is_empty() {
            Ok(want.len())
        } else {
            Err(format!("none on {missing:?}"))
        }
    })
    .await
}

/// Waits until the example's model says Ready.
async fn model_ready(cluster: &Cluster, file: &str) -> berth_local::Result<String> {
    wait_for("the model to be Ready", MODEL, || async {
        let text = cluster
            .kubectl(&["get", "-f", file, "-o", "json"])
            .await
            .map_err(|e| e.to_string())?;
        let object: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let items = object["items"].as_array().cloned().unwrap_or_else(|| vec![object]);
        let model = items.iter().find(|item| item["kind"] == "AIDeployment");
        let status = model
            .and_then(|m| m["status"]["status"].as_str())
            .unwrap_or("no status yet")
            .to_owned();
        if status == "Ready" { Ok(status) } else { Err(status) }
    })
    .await
}

/// Which node each managed replica got, and why.
async fn placements(cluster: &Cluster) -> anyhow::Result<()> {
    say!("\n── placement");
    let api: Api<Pod> = Api::all(cluster.client());
    let mut none = true;
    for pod in api.list(&ListParams::default()).await? {
        let meta = &pod.metadata;
        let Some(why) = meta.annotations.as_ref().and_then(|a| a.get(names::PLACED_BECAUSE)) else {
            continue;
        };
        none = false;
        let node = pod
            .spec
            .as_ref()
            .and_then(|s| s.node_name.as_deref())
            .unwrap_or("(not bound yet)");
        say!("{} → {node}\n    {why}", meta.name.as_deref().unwrap_or_default());
    }
    if none {
        say!("no pod was placed");
    }
    Ok(())
}

/// Commands to try next; `tools` is the folder of kubectl and helm.
pub fn hints(kubeconfig: &Path, tools: Option<&Path>) -> String {
    let path = tools.map_or_else(String::new, |tools| format!(" PATH={}:$PATH", quoted(tools)));
    let logs = kubeconfig.with_file_name("logs");
    format!(
        "── try next
export KUBECONFIG={}{path}
kubectl get nodes -L {COLUMNS}
kubectl get nodes h100-0 --show-labels
cargo xtask driver nodriver-0 present
kubectl get aideployments,autonodelabelers --all-namespaces
kubectl get pods --all-namespaces -o wide
kubectl get events --all-namespaces --sort-by=.lastTimestamp
ls {}
",
        quoted(kubeconfig),
        quoted(&logs)
    )
}

/// A path as a word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_a_shell() {
        assert_eq!(quoted(Path::new("/a/b-c_d.e")), "/a/b-c_d.e");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
