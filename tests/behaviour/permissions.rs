//! What the agent and the controller may do: no more than they need, and the admission policies hold them to it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use berth_local::process;
use berth_local::toolchain::Tool;
use berth_tests::{Fixture, Suite, eventually};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::rbac::v1::{ClusterRole, Role};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

fn main() -> ExitCode {
    Suite::new("permissions")
        .trial(
            "the agent's ServiceAccount has no more rights than an unbound one",
            |c| agent_has_no_rights(Fixture::new(c)),
        )
        .trial("agents make no API call at all", |c| {
            agents_make_no_calls(Fixture::new(c))
        })
        .trial("the node policy lets labels pass and denies the rest", |c| {
            node_policy(Fixture::new(c))
        })
        .trial(
            "the pod policy lets gates shrink and pins tighten, and denies the rest",
            |c| pod_policy(Fixture::new(c)),
        )
        .trial(
            "the controller's role has what it uses and nothing that it was refused",
            |c| role_is_what_is_used(Fixture::new(c)),
        )
        // Last: it acts as the controller, with rights that the controller has not, which the trial before would count.
        .trial("the admission policies hold without RBAC's help", |c| {
            admission_check(Fixture::new(c))
        })
        .run()
}

const NAMESPACE: &str = "berth-system";

fn controller_user() -> String {
    format!("system:serviceaccount:{NAMESPACE}:berth-controller")
}

async fn agent_has_no_rights(f: Fixture) -> anyhow::Result<()> {
    let list = async |account: &str| {
        let user = format!("--as=system:serviceaccount:{NAMESPACE}:{account}");
        let groups = ["--as-group=system:serviceaccounts", "--as-group=system:authenticated"];
        let own = format!("--as-group=system:serviceaccounts:{NAMESPACE}");
        f.kubectl(&[
            "auth",
            "can-i",
            "--list",
            "--no-headers",
            &user,
            groups[0],
            groups[1],
            &own,
            "-n",
            NAMESPACE,
        ])
        .await
    };
    let (agent, nobody) = (list("berth-agent").await?, list("nobody-in-particular").await?);
    let lines = |s: &str| s.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    ensure!(lines(&agent) == lines(&nobody), "agent:\n{agent}\nunbound:\n{nobody}");
    Ok(())
}

async fn agents_make_no_calls(f: Fixture) -> anyhow::Result<()> {
    f.all_agents_connected().await?;
    let calls = f
        .audit(&format!("system:serviceaccount:{NAMESPACE}:berth-agent"))
        .await?;
    ensure!(calls.is_empty(), "{calls:?}");
    Ok(())
}

/// One write as the controller: what must come of it.
struct Write {
    what: &'static str,
    patch: Value,
    allowed: bool,
}

fn write(what: &'static str, allowed: bool, patch: Value) -> Write {
    Write { what, patch, allowed }
}

async fn as_controller<K>(
    f: &Fixture,
    api: impl Fn(kube::Client) -> Api<K>,
    name: &str,
    writes: Vec<Write>,
    subresource: bool,
) -> anyhow::Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let api = api(f.client_as(&controller_user()).await?);
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    for w in writes {
        let patch = match w.patch {
            Value::Array(_) => Patch::Json::<Value>(serde_json::from_value(w.patch)?),
            merge => Patch::Merge(merge),
        };
        let answer = if subresource {
            api.patch_status(name, &params, &patch).await
        } else {
            api.patch(name, &params, &patch).await
        };
        match (answer, w.allowed) {
            (Ok(_), true) => {}
            (Ok(_), false) => bail!("{}: was let through", w.what),
            (Err(error), true) => bail!("{}: was denied: {error}", w.what),
            (Err(error), false) => {
                let text = error.to_string();
                ensure!(
                    text.contains("ValidatingAdmissionPolicy"),
                    "{}: denied, but not by the policy: {text}",
                    w.what
                );
            }
        }
    }
    Ok(())
}

async fn node_policy(f: Fixture) -> anyhow::Result<()> {
    let label = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    let writes = vec![
        write("a free label", true, label("example.com/x")),
        write("a GFD label", true, label("nvidia.com/gpu.product")),
        write("our class", true, label("berth.dev/gpu-class")),
        write(
            "an NFD PCI label",
            true,
            label("feature.node.kubernetes.io/pci-10de.present"),
        ),
        write("a role", false, label("node-role.kubernetes.io/control-plane")),
        write("the architecture", false, label("kubernetes.io/arch")),
        write("a cloud's label", false, label("cloud.google.com/gke-accelerator")),
        write("a node restriction", false, label("node-restriction.kubernetes.io/x")),
        write(
            "an annotation",
            false,
            json!({"metadata": {"annotations": {"example.com/x": "1"}}}),
        ),
        write("cordon", false, json!({"spec": {"unschedulable": true}})),
        write(
            "a foreign taint",
            false,
            json!({"spec": {"taints": [{"key": "example.com/x", "effect": "NoExecute"}]}}),
        ),
        write(
            "our taint",
            true,
            json!({"spec": {"taints": [{"key": "berth.dev/gpu-unhealthy", "effect": "NoSchedule"}]}}),
        ),
        write(
            "our taint with an effect that evicts",
            false,
            json!({"spec": {"taints": [{"key": "berth.dev/gpu-unhealthy", "effect": "NoExecute"}]}}),
        ),
        write(
            "a foreign taint beside ours",
            false,
            json!({"spec": {"taints": [{"key": "berth.dev/gpu-unhealthy", "effect": "NoSchedule"}, {"key": "berth.dev/gpu", "effect": "NoSchedule"}]}}),
        ),
    ];
    as_controller(&f, Api::<Node>::all, "cpu-0", writes, false).await?;
    // Others are not its business.
    let admin = Api::<Node>::all(f.client());
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    admin
        .patch(
            "cpu-0",
            &params,
            &Patch::Merge(&label("node-role.kubernetes.io/control-plane")),
        )
        .await?;
    Ok(())
}

async fn pod_policy(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("policy").await?;
    let pods = Api::<Pod>::namespaced(f.client(), &ns);
    let terms = |extra: Value| json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": extra}}}}});
    let arch = json!({"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]});
    let pin = json!([{"key": "metadata.name", "operator": "In", "values": ["cpu-0"]}]);
    let mut pod = json!({"metadata": {"name": "gated"}, "spec": {
        "schedulingGates": [{"name": "berth.dev/placement"}, {"name": "example.com/theirs"}], "containers": [{"name": "c", "image": "x"}]}});
    pod["spec"]["affinity"] = terms(json!([{"matchExpressions": [arch]}]))["spec"]["affinity"].clone();
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    let writes = vec![
        write(
            "our annotation",
            true,
            json!({"metadata": {"annotations": {"berth.dev/placed-because": "x"}}}),
        ),
        write(
            "a foreign annotation",
            false,
            json!({"metadata": {"annotations": {"example.com/x": "1"}}}),
        ),
        write("a foreign label", false, json!({"metadata": {"labels": {"app": "x"}}})),
        write(
            "our gate goes",
            true,
            json!({"spec": {"schedulingGates": [{"name": "example.com/theirs"}]}}),
        ),
        write(
            "their gate goes",
            false,
            json!({"spec": {"schedulingGates": [{"name": "berth.dev/placement"}]}}),
        ),
        write(
            "a pin",
            true,
            terms(json!([{"matchExpressions": [arch], "matchFields": pin}])),
        ),
        write("a node selector", false, json!({"spec": {"nodeSelector": {"a": "b"}}})),
        write(
            "an image",
            false,
            json!([{"op": "replace", "path": "/spec/containers/0/image", "value": "y"}]),
        ),
        write(
            "a toleration",
            false,
            json!([{"op": "add", "path": "/spec/tolerations/-", "value": {"operator": "Exists"}}]),
        ),
    ];
    let namespace = ns.clone();
    as_controller(
        &f,
        move |client| Api::<Pod>::namespaced(client, &namespace),
        "gated",
        writes,
        false,
    )
    .await?;
    pods.delete("gated", &DeleteParams::default().grace_period(0)).await?;
    f.delete_namespace(&ns).await
}

/// `apiGroup/resource` → verbs of the controller's roles.
async fn granted(f: &Fixture) -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let cluster = Api::<ClusterRole>::all(f.client())
        .get("berth-controller")
        .await?
        .rules
        .unwrap_or_default();
    let own = Api::<Role>::namespaced(f.client(), NAMESPACE)
        .get("berth-controller")
        .await?
        .rules
        .unwrap_or_default();
    for rule in cluster.into_iter().chain(own) {
        for group in rule.api_groups.unwrap_or_default() {
            for resource in rule.resources.iter().flatten() {
                let verbs = rule.verbs.iter().cloned();
                all.entry(format!("{group}/{resource}")).or_default().extend(verbs);
            }
        }
    }
    Ok(all)
}

async fn role_is_what_is_used(f: Fixture) -> anyhow::Result<()> {
    // A round of everything: a model that comes and goes, a rule, a pod that waits, a leader that changes.
    let ns = f.namespace("used").await?;
    f.kubectl(&["apply", "-n", &ns, "-f", &f.repo("examples/vllm-h100.yaml")])
        .await?;
    for example in ["node-pool-labeler", "model-map", "aimodel"] {
        f.kubectl(&["apply", "-n", &ns, "-f", &f.repo(&format!("examples/{example}.yaml"))])
            .await?;
    }
    for (object, condition) in [
        ("aimodelmap/mistral-7b", "--for=condition=Accepted"),
        ("aimodel/tinyllama", "--for=condition=Available"),
    ] {
        f.kubectl(&["wait", "-n", &ns, condition, object, "--timeout=30s"])
            .await?;
    }
    eventually("a running model", Duration::from_secs(60), async || {
        f.kubectl(&[
            "wait",
            "-n",
            &ns,
            "--for=condition=Available",
            "aid/vllm-h100",
            "--timeout=1s",
        ])
        .await?;
        Ok(())
    })
    .await?;
    let pods = Api::<Pod>::namespaced(f.client(), &ns);
    for pod in pods.list(&Default::default()).await? {
        ensure!(pod.metadata.uid.is_some(), "{}", pod.name_any());
    }
    f.restart_controller().await?;
    f.all_agents_connected().await?;
    f.delete_namespace(&ns).await?;

    let granted = granted(&f).await?;
    let mut used: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut refused = Vec::new();
    for call in f.audit(&controller_user()).await? {
        let Some(resource) = call.resource.clone() else {
            continue;
        };
        if call.forbidden {
            refused.push(format!("{} {}/{}", call.verb, call.group, resource));
        }
        used.entry(format!("{}/{}", call.group, resource))
            .or_default()
            .insert(call.verb.clone());
    }
    ensure!(refused.is_empty(), "refused by RBAC: {refused:?}");
    for resource in used.keys() {
        ensure!(
            granted.contains_key(resource) || resource.contains("selfsubject"),
            "{resource} was used and is not granted"
        );
    }
    let pairs = |all: &BTreeMap<String, BTreeSet<String>>| -> BTreeSet<String> {
        all.iter()
            .flat_map(|(r, verbs)| verbs.iter().map(move |v| format!("{v} {r}")))
            .collect()
    };
    let idle: Vec<String> = pairs(&granted).difference(&pairs(&used)).cloned().collect();
    let idle: Vec<&String> = idle
        .iter()
        .filter(|right| !ONLY_SOMETIMES.contains(&right.as_str()))
        .collect();
    ensure!(idle.is_empty(), "granted and never used: {idle:?}");
    Ok(())
}

/// Every check of the script that is also run against other API servers; it gives the controller's ServiceAccount all rights for a while.
async fn admission_check(f: Fixture) -> anyhow::Result<()> {
    let kubectl = f.cluster.tool(Tool::Kubectl);
    let mut path = kubectl
        .parent()
        .context("kubectl has no folder")?
        .as_os_str()
        .to_owned();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    let script = tokio::process::Command::new(f.repo("deploy/charts/check-admission.sh"))
        .env("PATH", path)
        .env("KUBECONFIG", f.cluster.kubeconfig())
        .env("NAMESPACE", NAMESPACE)
        .env_remove("ALLOWED_KEY")
        .env(process::MARKER, f.cluster.state())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(300), script)
        .await
        .context("check-admission.sh does not end")??;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{}", said.lines().last().unwrap_or_default());
    // Nothing of it stays, least of all the rights.
    for kind in ["clusterrolebindings", "clusterroles", "nodes"] {
        let left = f.kubectl(&["get", kind, "-o", "name"]).await?;
        ensure!(!left.contains("berth-admission-check"), "{kind}: {left}");
    }
    Ok(())
}

/// Granted for what this round does not bring about.
const ONLY_SOMETIMES: &[&str] = &[
    // Of MLModels, which have a test of their own.
    "create /persistentvolumeclaims",
    "get /persistentvolumeclaims",
    "patch /persistentvolumeclaims",
    "delete /persistentvolumeclaims",
    "create batch/jobs",
    "get batch/jobs",
    "patch batch/jobs",
    "delete batch/jobs",
    "delete apps/deployments",
    "delete /services",
    "patch oda.tmforum.org.oda.tmforum.org/mlmodels",
    "patch oda.tmforum.org.oda.tmforum.org/mlmodels/status",
    "update oda.tmforum.org.oda.tmforum.org/mlmodels/finalizers",
    // Of ModelDeployments, which have one too.
    "create autoscaling/horizontalpodautoscalers",
    "get autoscaling/horizontalpodautoscalers",
    "patch autoscaling/horizontalpodautoscalers",
    "delete autoscaling/horizontalpodautoscalers",
    "patch mlops.sathvik.dev/modeldeployments",
    "patch mlops.sathvik.dev/modeldeployments/status",
    "update mlops.sathvik.dev/modeldeployments/finalizers",
    // Applying an object that is not there yet asks for both rights; the audit log names the first.
    "create apps/deployments",
    "create /services",
    "create networking.k8s.io/ingresses",
    // A child's name is taken: who has it?
    "get apps/deployments",
    "get /services",
    "get networking.k8s.io/ingresses",
    // Of KEDA's kinds, which this cluster does not have, and where a child's name is taken. Events are written by the
    // workers whose Role holds these rights: who grants them has to have them.
    "create /serviceaccounts",
    "get /serviceaccounts",
    "create rbac.authorization.k8s.io/roles",
    "get rbac.authorization.k8s.io/roles",
    "create rbac.authorization.k8s.io/rolebindings",
    "get rbac.authorization.k8s.io/rolebindings",
    "create /events",
    "patch /events",
    "update /events",
    "list keda.sh/scaledobjects",
    "watch keda.sh/scaledobjects",
    "get keda.sh/scaledobjects",
    "create keda.sh/scaledobjects",
    "patch keda.sh/scaledobjects",
    "delete keda.sh/scaledobjects",
    "list keda.sh/triggerauthentications",
    "watch keda.sh/triggerauthentications",
    "get keda.sh/triggerauthentications",
    "create keda.sh/triggerauthentications",
    "patch keda.sh/triggerauthentications",
    "delete keda.sh/triggerauthentications",
    // An error that was reported while no controller ran.
    "get model.youxam.com/aimodels",
    "update model.youxam.com/aimodels/finalizers",
    // An Ingress without endpoints; a pinned pod that the scheduler refuses.
    "delete networking.k8s.io/ingresses",
    "delete /pods",
    // Where the Gateway API is installed.
    "list gateway.networking.k8s.io/httproutes",
    "watch gateway.networking.k8s.io/httproutes",
    "get gateway.networking.k8s.io/httproutes",
    "create gateway.networking.k8s.io/httproutes",
    "patch gateway.networking.k8s.io/httproutes",
    "delete gateway.networking.k8s.io/httproutes",
    // An Event that repeats.
    "patch events.k8s.io/events",
    // Certificates that are renewed.
    "patch /secrets",
    "patch /configmaps",
    // The uninstall hook.
    "get /pods",
    "patch apps/deployments/scale",
    "list apps/replicasets",
    "get apps/replicasets",
    "patch apps/replicasets",
    // The ConfigMap of a map is taken, or no longer wanted.
    "get /configmaps",
    "delete /configmaps",
    // Asked for by an admission plugin of some clusters, not by a request.
    "update premlabs.io/aideployments/finalizers",
    "update premlabs.io/aimodelmaps/finalizers",
];
