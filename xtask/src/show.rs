//! What `up` shows: the nodes with their labels, an example model, where its replicas went and why, what to try next.

use std::path::Path;
use std::time::Duration;

use berth_crds::names;
use berth_local::fleet::Driver;
use berth_local::toolchain::Tool;
use berth_local::{Cluster, Progress, wait_for};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;

use crate::status::{self, Reach};

/// Steps of [`example`].
pub const STEPS: usize = 2;

/// Columns of the node table.
const COLUMNS: &str = "berth.dev/gpu-class,nvidia.com/gpu.product,nvidia.com/gpu.count,nvidia.com/gpu.memory";
/// Ports of HTTP, as the charts have them.
const CONTROLLER_PORT: u16 = 8080;
const AGENT_PORT: u16 = 9401;
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
        let status = model.map_or(&Value::Null, |m| &m["status"]);
        match status["status"].as_str() {
            Some("Ready") => Ok("Ready".to_owned()),
            word => Err(format!("{} {}", word.unwrap_or("no status yet"), first_false(status))),
        }
    })
    .await
}

/// What the first condition that is not met says.
fn first_false(status: &Value) -> String {
    let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let unmet = conditions.iter().find(|c| c["status"] == "False");
    unmet.map_or_else(String::new, |condition| {
        let text = |name: &str| condition[name].as_str().unwrap_or_default();
        format!("({}: {}: {})", text("type"), text("reason"), text("message"))
    })
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

/// What can be reached of it.
pub async fn reach(cluster: &Cluster) -> anyhow::Result<Reach> {
    let namespace = cluster.namespace();
    let nodes = cluster.nodes();
    let of_driver = |driver| {
        let found = nodes
            .iter()
            .find(|n| n.spec().driver == driver && !n.spec().gpus.is_empty());
        found.map(|n| n.name().to_owned())
    };
    let node = match of_driver(Driver::Present) {
        Some(node) => {
            let agents = cluster.pods_of("agent", Some(&node)).await?;
            let agent = agents.iter().find_map(|pod| pod.metadata.name.as_deref());
            let address = agent.and_then(|pod| cluster.services().pod_address(namespace, pod, AGENT_PORT));
            Some((node, address))
        }
        None => None,
    };
    Ok(Reach {
        kubeconfig: cluster.kubeconfig().to_path_buf(),
        tools: cluster.tool(Tool::Kubectl).parent().map(Path::to_path_buf),
        controller: cluster
            .services()
            .forwarder(namespace, "berth-controller", CONTROLLER_PORT)?,
        node,
        bare: of_driver(Driver::Absent),
    })
}

/// Commands to try next.
pub fn hints(reach: &Reach) -> String {
    let kubeconfig = &reach.kubeconfig;
    let path = reach.tools.as_ref();
    let path = path.map_or_else(String::new, |tools| format!(" PATH={}:$PATH", quoted(tools)));
    let folder = kubeconfig.parent().filter(|folder| *folder != status::default_folder());
    let state = folder.map_or_else(String::new, |folder| format!(" --state {}", quoted(folder)));
    let mut lines = vec![
        "── try next".to_owned(),
        format!("export KUBECONFIG={}{path}", quoted(kubeconfig)),
        format!("kubectl get nodes -L {COLUMNS}"),
    ];
    if let Some((node, _)) = &reach.node {
        lines.push(format!("kubectl get nodes {node} --show-labels"));
    }
    if let Some(bare) = &reach.bare {
        lines.push(format!("cargo xtask driver {bare} present{state}"));
    }
    lines.extend([
        "kubectl get aideployments,autonodelabelers --all-namespaces".to_owned(),
        "kubectl get pods --all-namespaces -o wide".to_owned(),
        "kubectl get events --all-namespaces --sort-by=.lastTimestamp".to_owned(),
        format!(
            "curl http://{}/nodes            # the controller that leads; /explain and /metrics, too",
            reach.controller
        ),
    ]);
    if let Some((node, Some(agent))) = &reach.node {
        lines.push(format!("curl http://{agent}/metrics          # the agent of {node}"));
    }
    lines.extend([
        format!(
            "ls {}          # simulated nodes answer no kubectl logs and port-forward",
            quoted(&kubeconfig.with_file_name("logs"))
        ),
        format!("cargo xtask down{state}"),
    ]);
    lines.join("\n") + "\n"
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
    fn hints_name_what_is_there() {
        let reach = Reach {
            kubeconfig: status::default_folder().join("kubeconfig"),
            tools: None,
            controller: ([127, 0, 0, 1], 1).into(),
            node: Some(("b".into(), Some(([127, 0, 0, 1], 2).into()))),
            bare: Some("n".into()),
        };
        let text = hints(&reach);
        for line in [
            "kubectl get nodes b --show-labels\n",
            "cargo xtask driver n present\n",
            "curl http://127.0.0.1:1/nodes ",
            "curl http://127.0.0.1:2/metrics ",
            "\ncargo xtask down\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        let text = hints(&Reach {
            kubeconfig: "/a b/kubeconfig".into(),
            node: None,
            bare: None,
            ..reach
        });
        assert!(text.contains("cargo xtask down --state '/a b'\n"), "{text}");
        assert!(!text.contains("driver") && !text.contains("--show-labels"), "{text}");
    }

    #[test]
    fn paths_survive_a_shell() {
        assert_eq!(quoted(Path::new("/a/b-c_d.e")), "/a/b-c_d.e");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
