//! Berth installed over what prem-operator left behind: objects are adopted, no pod is restarted, nothing is lost.
//!
//! The original is played by its requests: whole objects by PUT, under the field manager that a Go binary called `manager` has.

use std::collections::BTreeSet;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use berth_crds::names;
use berth_crds::premlabs::{AIDeployment, AIModelMap};
use berth_local::process;
use berth_local::toolchain::Tool;
use berth_tests::{Fixture, Suite, condition, eventually, vllm};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

fn main() -> ExitCode {
    Suite::new("migration")
        .bare()
        .trial("CRDs of kubectl apply are taken over and kept", |c| {
            kubectl_crds(Fixture::new(c))
        })
        .trial("an old release is replaced: no object is lost, no pod restarted", |c| {
            guide(Fixture::new(c))
        })
        .trial("an edit takes the new template, once, and stale keys go", |c| {
            edit(Fixture::new(c))
        })
        .trial("berth.dev/reapply takes the new template at once", |c| {
            reapply(Fixture::new(c))
        })
        .trial("an edited map takes the new template", |c| map_edit(Fixture::new(c)))
        .trial(
            "the number that an autoscaler gave stays, whatever the manifest says",
            |c| driven(Fixture::new(c)),
        )
        .trial("Berth does not fight the original, and goes on when it is quiet", |c| {
            contest(Fixture::new(c))
        })
        .trial("going back restarts nothing that was only adopted", |c| {
            back(Fixture::new(c))
        })
        .run()
}

const SOON: Duration = Duration::from_secs(30);
const GUIDE: &str = "docs/migrate/prem-operator.md";
const OLD_NAMESPACE: &str = "prem-operator-system";
const AI_DEPLOYMENT: &str = "mlcontroller.premlabs.io/ai-deployment";
const SPREAD: &str = "mlcontroller.premlabs.io/spread-topology";

/// The original operator.
#[derive(Clone)]
struct Original {
    f: Fixture,
    ns: String,
}

impl Original {
    fn api(&self, group: &str, kind: &str) -> Api<DynamicObject> {
        let version = if group == "premlabs.io" { "v1alpha1" } else { "v1" };
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Api::namespaced_with(self.f.client(), &self.ns, &resource)
    }

    fn params() -> PostParams {
        PostParams {
            field_manager: Some("manager".into()),
            ..PostParams::default()
        }
    }

    /// Creates or replaces, as its reconcile does.
    async fn put(&self, group: &str, kind: &str, mut object: Value) -> anyhow::Result<()> {
        let api = self.api(group, kind);
        let name = object["metadata"]["name"].as_str().context("a name")?.to_owned();
        for _ in 0..20 {
            let answer = match api.get_opt(&name).await? {
                None => {
                    api.create(&Self::params(), &serde_json::from_value(object.clone())?)
                        .await
                }
                Some(found) => {
                    object["metadata"]["resourceVersion"] = json!(found.metadata.resource_version);
                    api.replace(&name, &Self::params(), &serde_json::from_value(object.clone())?)
                        .await
                }
            };
            match answer {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.is_conflict() => {}
                Err(other) => return Err(other).with_context(|| format!("{kind} {name}")),
            }
        }
        bail!("{kind} {name}: conflicts without end")
    }

    async fn owner(&self, kind: &str, name: &str) -> anyhow::Result<Value> {
        let owner = self.api("premlabs.io", kind).get(name).await?;
        Ok(
            json!([{"apiVersion": "premlabs.io/v1alpha1", "kind": kind, "name": name, "uid": owner.uid(),
            "controller": true, "blockOwnerDeletion": true}]),
        )
    }

    /// One pass over an AIDeployment: Deployment, status, Service, Ingress.
    async fn pass(&self, name: &str) -> anyhow::Result<()> {
        let found = self.api("premlabs.io", "AIDeployment").get(name).await?;
        let spec = &found.data["spec"];
        let owner = self.owner("AIDeployment", name).await?;
        let labels = json!({AI_DEPLOYMENT: name, SPREAD: "ai-model"});
        let port = match spec["engine"]["name"].as_str() {
            Some("vllm") => json!(8000),
            _ => spec["endpoint"][0]["port"].clone(),
        };
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": self.ns, "creationTimestamp": null, "ownerReferences": owner},
            "spec": {
                "replicas": match (&spec["deployment"]["replicas"], spec["engine"]["name"].as_str()) {
                    (Value::Null, Some("vllm")) => json!(1),
                    (given, _) => given.clone(),
                },
                "selector": {"matchLabels": {AI_DEPLOYMENT: name}},
                "strategy": {},
                "template": {"metadata": {"creationTimestamp": null, "labels": labels}, "spec": pod_spec(spec)},
            },
            "status": {},
        });
        self.put("apps", "Deployment", deployment).await?;
        let annotations = |more: &Value| {
            let mut all = json!({AI_DEPLOYMENT: name});
            all.as_object_mut()
                .into_iter()
                .for_each(|a| a.extend(more.as_object().cloned().unwrap_or_default()));
            all
        };
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": self.ns, "creationTimestamp": null, "ownerReferences": owner,
                "labels": spec["service"]["labels"], "annotations": annotations(&spec["service"]["annotations"])},
            "spec": {"ports": [{"port": port, "targetPort": port}], "selector": labels},
            "status": {"loadBalancer": {}},
        });
        self.put("", "Service", service).await?;
        let hosts = spec["endpoint"].as_array().cloned().unwrap_or_default();
        if hosts.is_empty() {
            return Ok(());
        }
        let rules: Vec<Value> = hosts
            .iter()
            .map(|e| {
                json!({"host": e["domain"], "http": {"paths": [{"path": "/", "pathType": "Prefix",
                    "backend": {"service": {"name": name, "port": {"number": port}}}}]}})
            })
            .collect();
        let ingress = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": name, "namespace": self.ns, "creationTimestamp": null, "ownerReferences": owner,
                "labels": spec["ingress"]["labels"], "annotations": annotations(&spec["ingress"]["annotations"])},
            "spec": {"rules": rules}, "status": {"loadBalancer": {}},
        });
        self.put("networking.k8s.io", "Ingress", ingress).await
    }

    /// Its status knows two fields, and replaces the rest.
    async fn report(&self, name: &str, status: &str) -> anyhow::Result<()> {
        let api = self.api("premlabs.io", "AIDeployment");
        let mut object = api.get(name).await?;
        object.data["status"] = json!({"status": status});
        object.metadata.managed_fields = None;
        api.replace_status(name, &Self::params(), &object).await?;
        Ok(())
    }

    /// What it made of an AIDeployment is there, and its pods run.
    async fn serve(&self, name: &str, replicas: usize) -> anyhow::Result<()> {
        self.pass(name).await?;
        eventually(&format!("{name} runs"), SOON, async || {
            let deployment = Api::<Deployment>::namespaced(self.f.client(), &self.ns)
                .get(name)
                .await?;
            let available = deployment.status.and_then(|s| s.available_replicas).unwrap_or(0);
            ensure!(usize::try_from(available)? == replicas, "{available}");
            Ok(())
        })
        .await?;
        self.report(name, "Ready").await
    }

    /// An AIDeployment that Berth leaves to the original for now.
    async fn serve_paused(&self, mut object: Value) -> anyhow::Result<String> {
        let name = object["metadata"]["name"].as_str().context("a name")?.to_owned();
        object["metadata"]["annotations"][names::PAUSED] = json!("true");
        self.f.apply(&self.ns, object).await?;
        self.serve(&name, 1).await?;
        Ok(name)
    }

    async fn unpause(&self, name: &str) -> anyhow::Result<()> {
        self.annotate(name, names::PAUSED, Value::Null).await
    }

    async fn annotate(&self, name: &str, key: &str, value: Value) -> anyhow::Result<()> {
        let patch = json!({"metadata": {"annotations": {key: value}}});
        self.edit(name, patch).await
    }

    async fn edit(&self, name: &str, patch: Value) -> anyhow::Result<()> {
        Api::<AIDeployment>::namespaced(self.f.client(), &self.ns)
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        Ok(())
    }

    async fn footprint(&self, name: &str) -> anyhow::Result<Footprint> {
        let list = ListParams::default().labels(&format!("{AI_DEPLOYMENT}={name}"));
        let pods = Api::<Pod>::namespaced(self.f.client(), &self.ns).list(&list).await?;
        let sets = Api::<ReplicaSet>::namespaced(self.f.client(), &self.ns)
            .list(&list)
            .await?;
        let alive = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none());
        Ok(Footprint {
            pods: alive.filter_map(ResourceExt::uid).collect(),
            replica_sets: sets.iter().filter_map(ResourceExt::uid).collect(),
        })
    }

    async fn deployment(&self, name: &str) -> anyhow::Result<Deployment> {
        Ok(Api::namespaced(self.f.client(), &self.ns).get(name).await?)
    }

    /// The children of an AIDeployment are Berth's, and nothing of the original's is left in their managed fields.
    async fn adopted(&self, name: &str, kinds: &[(&str, &str)]) -> anyhow::Result<()> {
        for (group, kind) in kinds {
            let api = self.api(group, kind);
            eventually(&format!("{kind} {name} is adopted"), SOON, async || {
                let object = api.get(name).await?;
                ensure!(
                    object.labels().get(names::MANAGED_BY).map(String::as_str) == Some("berth")
                        && object.annotations().contains_key(names::APPLIED),
                    "{:?}",
                    object.metadata
                );
                let left = object
                    .managed_fields()
                    .iter()
                    .filter(|e| e.manager.as_deref() == Some("manager") && e.subresource.is_none());
                ensure!(left.count() == 0, "{:?}", object.managed_fields());
                ensure!(object.owner_references().len() == 1, "{:?}", object.owner_references());
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

/// What must not move while pods are not to be restarted.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Footprint {
    pods: BTreeSet<String>,
    replica_sets: BTreeSet<String>,
}

const CHILDREN: &[(&str, &str)] = &[
    ("apps", "Deployment"),
    ("", "Service"),
    ("networking.k8s.io", "Ingress"),
];

/// Where the map of the trials has its model.
const OF_MAP: &str = "microsoft/phi-2";

/// As the original builds it for the two engines that the trials use.
fn pod_spec(spec: &Value) -> Value {
    let spread = json!([{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {SPREAD: "ai-model"}}}]);
    if spec["engine"]["name"] == "generic" {
        let mut pod = spec["deployment"]["template"]["spec"].clone();
        pod["automountServiceAccountToken"] = json!(false);
        pod["topologySpreadConstraints"] = spread;
        let container = &mut pod["containers"][0];
        container["name"] = json!("serving");
        container["env"] = spec["env"].clone();
        container["resources"] = json!({});
        let endpoints = spec["endpoint"].as_array().cloned().unwrap_or_default();
        container["ports"] = endpoints.iter().map(|e| json!({"containerPort": e["port"]})).collect();
        return pod;
    }
    let model = &spec["models"][0];
    let uri = if model["modelMapRef"].is_null() {
        model["uri"].clone()
    } else {
        json!(OF_MAP)
    };
    let mut args = vec![json!("--model"), uri];
    args.extend(spec["args"].as_array().cloned().unwrap_or_default());
    let probe = |initial: Value, period: Value, timeout: Value, failure: u32| {
        json!({"httpGet": {"path": "/health", "port": 8000}, "initialDelaySeconds": initial, "periodSeconds": period,
            "timeoutSeconds": timeout, "failureThreshold": failure})
    };
    json!({
        "runtimeClassName": "nvidia", "automountServiceAccountToken": false, "topologySpreadConstraints": spread,
        "volumes": [{"name": "models", "emptyDir": {}}],
        "containers": [{
            "name": "serving", "image": "vllm/vllm-openai:latest", "imagePullPolicy": "Always", "args": args,
            "env": spec["env"],
            "volumeMounts": [{"name": "models", "mountPath": "/root/.cache/huggingface"}],
            "resources": {"requests": {"nvidia.com/gpu": "1"}, "limits": {"cpu": "1", "memory": "16Gi", "nvidia.com/gpu": "1"}},
            "startupProbe": probe(json!(3), json!(1), json!(null), 120),
            "readinessProbe": probe(json!(null), json!(null), json!(null), 3),
            "livenessProbe": probe(json!(null), json!(30), json!(15), 10),
        }],
    })
}

/// The manifest of the original's vLLM example, with an annotation and a variable that can go.
fn gpu_model(name: &str) -> Value {
    let mut object = vllm(
        name,
        json!({"accelerator": {"interface": "CUDA", "minVersion": {"major": 7}},
            "resources": {"limits": {"cpu": "1", "memory": "16Gi"}}}),
    );
    object["spec"]["endpoint"] = json!([{"domain": format!("{name}.127.0.0.1.nip.io")}]);
    object["spec"]["service"] = json!({"annotations": {"example.com/team": "a"}});
    object["spec"]["env"] = json!([{"name": "STALE", "value": "1"}, {"name": "DEBUG", "value": "1"}]);
    object
}

fn generic(name: &str) -> Value {
    json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIDeployment", "metadata": {"name": name}, "spec": {
        "engine": {"name": "generic"}, "endpoint": [{"domain": format!("{name}.example.com"), "port": 8081}],
        "env": [{"name": "MODEL_ALIAS", "value": "x"}],
        "deployment": {"template": {"spec": {"containers": [{"name": "bun", "image": "oven/bun:latest"}]}}}}})
}

/// A CRD as the original has it: fewer fields, none of Berth's.
fn old_crd(kind: &str, labels: &str) -> String {
    let singular = kind.to_lowercase();
    format!(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata:\n  name: {singular}s.premlabs.io\n  \
         annotations: {{controller-gen.kubebuilder.io/version: v0.11.1}}\n{labels}\
         spec:\n  group: premlabs.io\n  scope: Namespaced\n  \
         names: {{kind: {kind}, listKind: {kind}List, plural: {singular}s, singular: {singular}}}\n  \
         versions:\n  - name: v1alpha1\n    served: true\n    storage: true\n    subresources: {{status: {{}}}}\n    \
         schema:\n      openAPIV3Schema:\n        type: object\n        properties:\n          \
         spec: {{type: object, x-kubernetes-preserve-unknown-fields: true}}\n          \
         status:\n            type: object\n            properties: {{status: {{type: string}}, errMsg: {{type: string}}}}\n"
    )
}

const KINDS: [&str; 3] = ["AIDeployment", "AIModelMap", "AutoNodeLabeler"];

/// The old chart: CRDs among its templates, as helmify puts them, and the operator.
fn old_chart(folder: &std::path::Path) -> anyhow::Result<()> {
    let labels = "  labels:\n    app.kubernetes.io/name: prem-operator-chart\n    app.kubernetes.io/instance: {{ .Release.Name }}\n    \
                  app.kubernetes.io/managed-by: {{ .Release.Service }}\n";
    std::fs::create_dir_all(folder.join("templates"))?;
    std::fs::write(
        folder.join("Chart.yaml"),
        "apiVersion: v2\nname: prem-operator-chart\nversion: 0.1.0\n",
    )?;
    for kind in KINDS {
        std::fs::write(
            folder.join(format!("templates/{}-crd.yaml", kind.to_lowercase())),
            old_crd(kind, labels),
        )?;
    }
    let operator = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {{{{ .Release.Name }}}}-controller-manager\n{labels}    \
         control-plane: controller-manager\n\
         spec:\n  selector: {{matchLabels: {{control-plane: controller-manager}}}}\n  template:\n    \
         metadata: {{labels: {{control-plane: controller-manager}}}}\n    \
         spec: {{serviceAccountName: prem, containers: [{{name: manager, image: premai/prem-operator}}]}}\n---\n\
         apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: prem\n{labels}---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: prem-manager-role\n{labels}rules: []\n",
    );
    std::fs::write(folder.join("templates/operator.yaml"), operator)?;
    Ok(())
}

/// Runs a block of the guide as a user would paste it; what it printed.
async fn follow(f: &Fixture, block: &str) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(f.repo(GUIDE))?;
    let of = |name: &str| {
        let (_, rest) = text.split_once(&format!("```sh {name}\n"))?;
        Some(rest.split_once("```")?.0.to_owned())
    };
    let script = format!(
        "set -eu\n{}\n{}",
        of("names").context("no names")?,
        of(block).with_context(|| format!("no block {block}"))?
    );
    let tools: Vec<String> = [Tool::Kubectl, Tool::Helm]
        .iter()
        .filter_map(|t| Some(f.cluster.tool(*t).parent()?.display().to_string()))
        .collect();
    let home = f.cluster.state().join("helm");
    let output = tokio::process::Command::new("bash")
        .args(["-c", &script])
        .current_dir(f.repo(""))
        .env("PATH", format!("{}:{}", tools.join(":"), std::env::var("PATH")?))
        .env("KUBECONFIG", f.cluster.kubeconfig())
        .env("HELM_CACHE_HOME", home.join("cache"))
        .env("HELM_CONFIG_HOME", home.join("config"))
        .env("HELM_DATA_HOME", home.join("data"))
        .env(process::MARKER, f.cluster.state())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.status.success(), "step {block}: {said}");
    Ok(said)
}

async fn kubectl_crds(f: Fixture) -> anyhow::Result<()> {
    let all: Vec<String> = KINDS.iter().map(|k| old_crd(k, "")).collect();
    f.cluster.apply(&all.join("---\n")).await?;
    f.kubectl(&["wait", "--for=condition=Established", "crd/aideployments.premlabs.io"])
        .await?;
    let ns = f.namespace("old").await?;
    let o = Original { f: f.clone(), ns };
    let object = serde_json::from_value(generic("kept"))?;
    let made = o
        .api("premlabs.io", "AIDeployment")
        .create(&PostParams::default(), &object)
        .await?;
    follow(&f, "crds").await?;
    // Names of a changed CRD are told a moment after it.
    eventually("the columns of Berth", SOON, async || {
        let columns = f.kubectl(&["get", "aid", "-n", &o.ns]).await?;
        ensure!(columns.contains("ENGINE"), "{columns}");
        Ok(())
    })
    .await?;
    f.helm(&["uninstall", "berth-crds", "-n", "berth-system"]).await?;
    let kept = o.api("premlabs.io", "AIDeployment").get("kept").await?;
    ensure!(kept.uid() == made.uid() && kept.data["spec"] == made.data["spec"]);
    // The next trial begins with the old release.
    for kind in KINDS {
        let crd = format!("crd/{}s.premlabs.io", kind.to_lowercase());
        f.kubectl(&["delete", &crd, "--timeout=60s"]).await?;
    }
    f.delete_namespace(&o.ns).await
}

/// What every GPU cluster has: it comes with NVIDIA's container toolkit.
async fn runtime_class(f: &Fixture) -> anyhow::Result<()> {
    let object = "{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: nvidia}, handler: nvidia}";
    f.cluster.apply(object).await?;
    Ok(())
}

/// A namespace of a cluster in which Berth runs, whether or not the guide was followed before.
async fn with_berth(f: &Fixture, prefix: &str) -> anyhow::Result<Original> {
    if f.cluster.pods_of("controller", None).await?.is_empty() {
        runtime_class(f).await?;
        for step in ["crds", "install"] {
            follow(f, step).await?;
        }
    }
    let ns = f.namespace(prefix).await?;
    Ok(Original { f: f.clone(), ns })
}

async fn guide(f: Fixture) -> anyhow::Result<()> {
    runtime_class(&f).await?;
    let chart = tempfile::tempdir()?;
    old_chart(chart.path())?;
    let path = chart.path().display().to_string();
    f.helm(&[
        "install",
        "prem-operator",
        &path,
        "-n",
        OLD_NAMESPACE,
        "--create-namespace",
    ])
    .await?;

    let ns = f.namespace("moved").await?;
    let o = Original { f: f.clone(), ns };
    let crs = |kind: &str| o.api("premlabs.io", kind);
    let create = async |kind: &str, object: Value| -> anyhow::Result<()> {
        crs(kind)
            .create(&PostParams::default(), &serde_json::from_value(object)?)
            .await?;
        Ok(())
    };
    create("AIDeployment", gpu_model("vllm-engine")).await?;
    create("AIDeployment", generic("web")).await?;
    let map = json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIModelMap", "metadata": {"name": "bert"},
        "spec": {"localai": [{"variant": "base", "uri": "x", "engineConfigFile": "name: bert\n"}]}});
    create("AIModelMap", map).await?;
    let labeler = json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AutoNodeLabeler", "metadata": {"name": "arch"},
        "spec": {"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "Exists"}], "labels": {"example.com/foo": "baz"}}});
    create("AutoNodeLabeler", labeler).await?;
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bert", "namespace": o.ns,
        "labels": {"mlcontroller.premlabs.io/aimodelmap": "bert"}, "annotations": {"mlcontroller.premlabs.io/aimodelmap": "bert"},
        "ownerReferences": o.owner("AIModelMap", "bert").await?},
        "data": {"localai-base-engineConfigFile": "name: bert\n"}});
    o.put("", "ConfigMap", config).await?;
    o.serve("vllm-engine", 1).await?;
    o.serve("web", 1).await?;
    // By hand, as the manifest gives no number.
    f.kubectl(&["scale", "deployment/web", "-n", &o.ns, "--replicas=2"])
        .await?;
    eventually("two pods", SOON, async || {
        let status = o.deployment("web").await?.status.unwrap_or_default();
        ensure!(status.available_replicas == Some(2), "{status:?}");
        Ok(())
    })
    .await?;
    let names = ["vllm-engine", "web"];
    let mut before = Vec::new();
    for name in names {
        let deployment = o.deployment(name).await?;
        let template = deployment.spec.context("spec")?.template;
        before.push((o.footprint(name).await?, template, deployment.metadata.uid));
    }
    ensure!(before[0].0.pods.len() == 1 && before[1].0.pods.len() == 2);
    let uids = async || -> anyhow::Result<Vec<Option<String>>> {
        let mut all = Vec::new();
        for kind in KINDS {
            all.extend(
                crs(kind)
                    .list(&ListParams::default())
                    .await?
                    .iter()
                    .map(ResourceExt::uid),
            );
        }
        Ok(all)
    };
    let objects = uids().await?;
    ensure!(objects.len() == 4, "{objects:?}");

    for step in ["stop", "crds", "install", "check"] {
        follow(&f, step).await?;
    }
    o.adopted("bert", &[("", "ConfigMap")]).await?;
    for name in names {
        o.adopted(name, CHILDREN).await?;
        // What the original never read is listed: the first has a `minVersion`.
        let reason = if name == "vllm-engine" {
            "IgnoredFields"
        } else {
            "Valid"
        };
        f.expect_condition(&o.ns, name, "Accepted", ("True", reason)).await?;
        f.expect_condition(&o.ns, name, "Available", ("True", "MinimumReplicasAvailable"))
            .await?;
        let object = Api::<AIDeployment>::namespaced(f.client(), &o.ns).get(name).await?;
        ensure!(object.status.unwrap_or_default().status.as_deref() == Some("Ready"));
    }
    follow(&f, "remove").await?;
    ensure!(uids().await? == objects, "an object was lost");
    let left = f.helm(&["list", "-n", OLD_NAMESPACE, "-q"]).await?;
    ensure!(left.trim().is_empty(), "{left}");
    ensure!(follow(&f, "adopted").await?.contains("vllm-engine"));

    // Nothing follows by itself.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for (name, (footprint, template, uid)) in names.iter().zip(&before) {
        let deployment = o.deployment(name).await?;
        ensure!(deployment.metadata.uid == *uid);
        ensure!(
            deployment.spec.context("spec")?.template == *template,
            "{name}: the template changed"
        );
        ensure!(o.footprint(name).await? == *footprint, "{name}: pods were restarted");
    }
    ensure!(o.deployment("web").await?.spec.context("spec")?.replicas == Some(2));
    for (kind, count) in [("deployments", 2), ("services", 2), ("ingresses", 2)] {
        let got = f.kubectl(&["get", kind, "-n", &o.ns, "-o", "name"]).await?;
        ensure!(got.lines().count() == count, "{kind}: {got}");
    }
    // Old labels do not narrow the Service any more, and what was not ours stayed.
    let service = Api::<Service>::namespaced(f.client(), &o.ns).get("vllm-engine").await?;
    let selector = service.spec.context("spec")?.selector.unwrap_or_default();
    ensure!(selector.keys().eq([AI_DEPLOYMENT]), "{selector:?}");
    let map = Api::<ConfigMap>::namespaced(f.client(), &o.ns).get("bert").await?;
    ensure!(
        map.data
            .is_some_and(|d| d.contains_key("localai-base-engineConfigFile"))
    );
    let _: AIModelMap = Api::namespaced(f.client(), &o.ns).get("bert").await?;
    // A converged object costs no write, also after a restart.
    let writes = f.controller_writes("").await?.len();
    f.restart_controller().await?;
    f.all_agents_connected().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let again = f.controller_writes("").await?;
    let of_ours: Vec<_> = again[writes..].iter().filter(|w| w.contains(&o.ns)).collect();
    ensure!(of_ours.is_empty(), "{of_ours:?}");

    // An edit of what has no number keeps the number.
    o.edit("web", json!({"spec": {"env": [{"name": "MODEL_ALIAS", "value": "y"}]}}))
        .await?;
    rolled(&o, "web", &before[1].0, 2).await?;
    // Without endpoints the adopted Ingress goes.
    o.edit("web", json!({"spec": {"endpoint": null}})).await?;
    eventually("no Ingress", SOON, async || {
        let ingress = Api::<Ingress>::namespaced(f.client(), &o.ns).get_opt("web").await?;
        ensure!(ingress.is_none());
        Ok(())
    })
    .await?;
    Ok(())
}

/// Every pod is new, one ReplicaSet came, and it stays so.
async fn rolled(o: &Original, name: &str, before: &Footprint, replicas: usize) -> anyhow::Result<()> {
    eventually(&format!("{name} has rolled"), SOON, async || {
        let now = o.footprint(name).await?;
        ensure!(
            now.pods.is_disjoint(&before.pods) && now.pods.len() == replicas,
            "{now:?}"
        );
        let status = o.deployment(name).await?.status.unwrap_or_default();
        ensure!(
            status.available_replicas.map(usize::try_from) == Some(Ok(replicas)),
            "{status:?}"
        );
        Ok(())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let now = o.footprint(name).await?;
    ensure!(
        now.replica_sets.len() == before.replica_sets.len() + 1,
        "not once: {before:?} {now:?}"
    );
    ensure!(!o.deployment(name).await?.annotations().contains_key(names::ADOPTED));
    Ok(())
}

async fn edit(f: Fixture) -> anyhow::Result<()> {
    let o = with_berth(&f, "edited").await?;
    let name = o.serve_paused(gpu_model("llm")).await?;
    let before = o.footprint(&name).await?;
    o.unpause(&name).await?;
    o.adopted(&name, CHILDREN).await?;
    let deployment = o.deployment(&name).await?;
    ensure!(deployment.annotations().contains_key(names::ADOPTED));
    // Repairs go on around the template, which stays.
    let scale = json!({"spec": {"selector": {"other": "x"}}});
    Api::<Service>::namespaced(f.client(), &o.ns)
        .patch(&name, &PatchParams::default(), &Patch::Merge(&scale))
        .await?;
    eventually("the selector again", SOON, async || {
        let service = Api::<Service>::namespaced(f.client(), &o.ns).get(&name).await?;
        ensure!(
            !service
                .spec
                .context("spec")?
                .selector
                .unwrap_or_default()
                .contains_key("other")
        );
        Ok(())
    })
    .await?;
    ensure!(o.footprint(&name).await? == before);

    let change = json!({"spec": {"args": ["--max-model-len=4096"], "env": [{"name": "DEBUG", "value": "1"}],
        "service": {"annotations": null}}});
    o.edit(&name, change).await?;
    rolled(&o, &name, &before, 1).await?;
    let pod = o
        .deployment(&name)
        .await?
        .spec
        .context("spec")?
        .template
        .spec
        .context("pod spec")?;
    ensure!(pod.scheduling_gates.iter().flatten().any(|g| g.name == names::GATE));
    let container = &pod.containers[0];
    let env: Vec<_> = container.env.iter().flatten().map(|e| e.name.as_str()).collect();
    ensure!(!env.contains(&"STALE") && env.contains(&"DEBUG"), "stale keys: {env:?}");
    ensure!(container.args.iter().flatten().any(|a| a == "--max-model-len=4096"));
    f.expect_condition(&o.ns, &name, "Placed", ("True", "AllPlaced"))
        .await?;
    let service = Api::<Service>::namespaced(f.client(), &o.ns).get(&name).await?;
    ensure!(
        !service.annotations().contains_key("example.com/team"),
        "stale: {:?}",
        service.annotations()
    );
    Ok(())
}

async fn reapply(f: Fixture) -> anyhow::Result<()> {
    let o = with_berth(&f, "reapplied").await?;
    let name = o.serve_paused(gpu_model("again")).await?;
    let before = o.footprint(&name).await?;
    o.unpause(&name).await?;
    o.adopted(&name, CHILDREN).await?;
    ensure!(o.footprint(&name).await? == before);
    o.annotate(&name, names::REAPPLY, json!("true")).await?;
    rolled(&o, &name, &before, 1).await?;
    // Taking it away again changes nothing.
    let after = o.footprint(&name).await?;
    o.annotate(&name, names::REAPPLY, Value::Null).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(o.footprint(&name).await? == after);
    Ok(())
}

async fn map_edit(f: Fixture) -> anyhow::Result<()> {
    let o = with_berth(&f, "mapped").await?;
    let maps = Api::<AIModelMap>::namespaced(f.client(), &o.ns);
    let map = json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIModelMap", "metadata": {"name": "phi"},
        "spec": {"vllm": [{"variant": "original", "uri": OF_MAP}, {"variant": "other", "uri": "x"}]}});
    maps.create(&PostParams::default(), &serde_json::from_value(map)?)
        .await?;
    let mut object = gpu_model("of-map");
    object["spec"]["models"] = json!([{"modelMapRef": {"name": "phi", "variant": "original"}}]);
    let name = o.serve_paused(object).await?;
    let before = o.footprint(&name).await?;
    o.unpause(&name).await?;
    o.adopted(&name, CHILDREN).await?;
    let edit = async |original: &str, other: &str| {
        let spec = json!({"vllm": [{"variant": "original", "uri": original}, {"variant": "other", "uri": other}]});
        let patch = Patch::Merge(json!({"spec": spec}));
        maps.patch("phi", &PatchParams::default(), &patch).await
    };
    // Another variant is nothing to it.
    edit(OF_MAP, "y").await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(o.footprint(&name).await? == before);
    edit("microsoft/phi-3", "y").await?;
    rolled(&o, &name, &before, 1).await?;
    let pod = o.deployment(&name).await?.spec.context("spec")?.template.spec;
    let args = pod.context("pod spec")?.containers[0].args.clone().unwrap_or_default();
    ensure!(args.contains(&"microsoft/phi-3".to_owned()), "{args:?}");
    Ok(())
}

async fn driven(f: Fixture) -> anyhow::Result<()> {
    let o = with_berth(&f, "driven").await?;
    let mut object = generic("scaled");
    object["spec"]["deployment"]["replicas"] = json!(1);
    let name = o.serve_paused(object).await?;
    let autoscaler = json!({"metadata": {"name": "scaled"}, "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}, "minReplicas": 3, "maxReplicas": 6}});
    Api::<HorizontalPodAutoscaler>::namespaced(f.client(), &o.ns)
        .create(&PostParams::default(), &serde_json::from_value(autoscaler)?)
        .await?;
    let replicas = async || {
        let deployment = o.deployment(&name).await?;
        let available = deployment.status.and_then(|s| s.available_replicas);
        anyhow::Ok((deployment.spec.and_then(|s| s.replicas), available))
    };
    eventually("the autoscaler's number", SOON, async || {
        let now = replicas().await?;
        ensure!(now == (Some(3), Some(3)), "{now:?}");
        Ok(())
    })
    .await?;
    let before = o.footprint(&name).await?;
    o.unpause(&name).await?;
    o.adopted(&name, CHILDREN).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(
        o.footprint(&name).await? == before,
        "pods went: {:?}",
        replicas().await?
    );
    Ok(())
}

async fn back(f: Fixture) -> anyhow::Result<()> {
    let o = with_berth(&f, "back").await?;
    let name = o.serve_paused(gpu_model("returns")).await?;
    let before = o.footprint(&name).await?;
    o.unpause(&name).await?;
    o.adopted(&name, CHILDREN).await?;
    follow(&f, "back").await?;
    o.pass(&name).await?;
    o.report(&name, "Ready").await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(o.footprint(&name).await? == before, "pods were restarted");
    ensure!(!o.deployment(&name).await?.labels().contains_key(names::MANAGED_BY));
    Ok(())
}

async fn contest(f: Fixture) -> anyhow::Result<()> {
    let o = with_berth(&f, "contested").await?;
    let name = o.serve_paused(gpu_model("both")).await?;
    let before = o.footprint(&name).await?;
    o.unpause(&name).await?;
    o.adopted(&name, CHILDREN).await?;
    // The original runs: every event of the AIDeployment makes it write everything, status included.
    let until = tokio::time::Instant::now() + Duration::from_secs(8);
    let mut seen = None;
    let start = f.controller_writes("").await?.len();
    while tokio::time::Instant::now() < until {
        o.pass(&name).await?;
        let object = Api::<AIDeployment>::namespaced(f.client(), &o.ns).get(&name).await?;
        let conditions = object.status.clone().unwrap_or_default().conditions;
        if let Ok((status, reason, message)) = condition(&conditions, "Accepted", object.metadata.generation)
            && (status.as_str(), reason.as_str()) == ("False", "AnotherOperatorActive")
        {
            seen = Some(message);
        }
        o.report(&name, "Ready").await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let writes = f.controller_writes("").await?;
    let ours: Vec<_> = writes[start..].iter().filter(|w| w.contains(&o.ns)).collect();
    ensure!(ours.len() <= 8, "a fight: {ours:#?}");
    ensure!(
        o.footprint(&name).await? == before,
        "pods were restarted while two operators wrote"
    );
    let message = match seen {
        Some(message) => message,
        None => {
            let events = f.events_in(&o.ns, "AIDeployment", &name).await?;
            let told = events.into_iter().find(|e| e.reason == "AnotherOperatorActive");
            told.context("neither condition nor Event")?.message
        }
    };
    ensure!(
        message.contains("prem-operator") && message.contains("Deployment"),
        "{message}"
    );
    // It stops; Berth goes on by itself.
    eventually("adopted again", Duration::from_secs(60), async || {
        let deployment = o.deployment(&name).await?;
        ensure!(deployment.labels().contains_key(names::MANAGED_BY));
        Ok(())
    })
    .await?;
    o.adopted(&name, CHILDREN).await?;
    f.expect_condition(&o.ns, &name, "Accepted", ("True", "IgnoredFields"))
        .await?;
    ensure!(o.footprint(&name).await? == before);
    Ok(())
}
