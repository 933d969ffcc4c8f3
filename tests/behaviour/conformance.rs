//! What users of the original operators rely on: every file of `tests/conformance/` is a manifest as they write it, and what it must
//! lead to.
//!
//! A file is a stream of YAML documents. Documents with a `kind` are applied as a user would, with strict validation, up to the next
//! document with `expect`, which is then waited for:
//!
//! ```yaml
//! expect:
//!   objects: []   # partial objects: null = must be absent; a list has exactly these items; `$exact: true` in a map = no other keys
//!   absent: []    # kind and name of objects that must not exist
//!   pods: {selector: a=b, count: 2, ready: true}
//!   nodes: {count: 1, labels: {a: b}}   # at least so many nodes carry the labels
//! ```
//!
//! A document `strict: false` lifts strict validation from the rest of the file, and `delete: {kind, name}` deletes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use berth_tests::{Fixture, Suite, eventually};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, TypeMeta};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, ResourceExt};
use serde_json::Value;

/// Patience for what the original promises within a minute.
const SOON: Duration = Duration::from_secs(45);

fn main() -> ExitCode {
    let mut suite = Suite::new("conformance");
    for file in files() {
        // Names of trials live as long as the process.
        let name: &'static str = Box::leak(title(&file).into_boxed_str());
        suite = suite.trial(name, move |c| row(Fixture::new(c), file));
    }
    suite.run()
}

/// All rows, in the order of their names.
fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    let mut found = Vec::new();
    for group in std::fs::read_dir(&folder)
        .expect("tests/conformance is there")
        .flatten()
    {
        let rows = std::fs::read_dir(group.path()).into_iter().flatten().flatten();
        found.extend(
            rows.map(|r| r.path())
                .filter(|p| p.extension().is_some_and(|e| e == "yaml")),
        );
    }
    found.sort();
    found
}

/// `group/row`: the first comment line of the file.
fn title(file: &Path) -> String {
    let part = |p: Option<&std::ffi::OsStr>| p.unwrap_or_default().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let comment = text
        .lines()
        .next()
        .unwrap_or_default()
        .trim_start_matches("# ")
        .to_owned();
    let group = part(file.parent().and_then(Path::file_name));
    format!("{group}/{}: {comment}", part(file.file_stem()))
}

async fn row(f: Fixture, file: PathBuf) -> anyhow::Result<()> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(&std::fs::read_to_string(&file)?)?;
    ensure!(documents.iter().any(|d| d.get("expect").is_some()), "expects nothing");
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let own = f.namespace(&stem).await?;
    let mut run = Run {
        f,
        namespace: own,
        strict: true,
        pending: Vec::new(),
    };
    for document in &documents {
        run.step(document).await?;
    }
    ensure!(
        run.pending.is_empty(),
        "the last manifests are not followed by what they must lead to"
    );
    // Nothing of this row may stand in the way of the next; what is in the row's own namespace goes with it, in its own time.
    let elsewhere = |d: &&Value| run.namespace_of(d) != run.namespace || d["kind"] == "Namespace";
    let made = documents.iter().rev().filter(|d| d.get("kind").is_some());
    for document in made
        .clone()
        .filter(elsewhere)
        .chain(made.filter(|d| d["kind"] == "AutoNodeLabeler"))
    {
        run.delete(document).await?;
    }
    run.f
        .kubectl(&["delete", "namespace", &run.namespace, "--wait=false"])
        .await?;
    Ok(())
}

struct Run {
    f: Fixture,
    /// Where objects go that do not say.
    namespace: String,
    strict: bool,
    /// To be applied before the next expectation.
    pending: Vec<Value>,
}

impl Run {
    async fn step(&mut self, document: &Value) -> anyhow::Result<()> {
        if let Some(expected) = document.get("expect") {
            for manifest in std::mem::take(&mut self.pending) {
                self.apply(&manifest).await?;
            }
            return self.expect(expected).await;
        }
        if let Some(strict) = document.get("strict") {
            self.strict = strict.as_bool().context("strict is a bool")?;
        } else if let Some(object) = document.get("delete") {
            self.delete(object).await?;
        } else if document.get("kind").is_some() {
            self.pending.push(document.clone());
        } else if !document.is_null() {
            bail!("a document is neither a manifest nor an expectation: {document}");
        }
        Ok(())
    }

    fn namespace_of<'a>(&'a self, object: &'a Value) -> &'a str {
        let own = object.pointer("/metadata/namespace").and_then(Value::as_str);
        own.unwrap_or(&self.namespace)
    }

    async fn apply(&self, manifest: &Value) -> anyhow::Result<()> {
        let validate = format!("--validate={}", if self.strict { "strict" } else { "ignore" });
        let namespace = self.namespace_of(manifest);
        let args = ["apply", &validate, "-n", namespace, "-f", "-"];
        self.f.cluster.kubectl_with_input(&args, &manifest.to_string()).await?;
        Ok(())
    }

    async fn delete(&self, object: &Value) -> anyhow::Result<()> {
        let (kind, name) = identity(object)?;
        let namespace = self.namespace_of(object);
        let args = [
            "delete",
            &kind,
            &name,
            "-n",
            namespace,
            "--ignore-not-found",
            "--timeout=90s",
        ];
        self.f.kubectl(&args).await?;
        Ok(())
    }

    async fn expect(&self, expected: &Value) -> anyhow::Result<()> {
        let list = |key: &str| expected.get(key).and_then(Value::as_array).into_iter().flatten();
        for key in expected.as_object().context("expect is a map")?.keys() {
            ensure!(
                ["objects", "absent", "pods", "nodes"].contains(&key.as_str()),
                "expect.{key} is unknown"
            );
        }
        for object in list("objects") {
            let (kind, name) = identity(object)?;
            eventually(&format!("{kind} {name} is as expected"), SOON, async || {
                let seen = self.get(object).await?.with_context(|| format!("no {kind} {name}"))?;
                let mut found = Vec::new();
                compare(object, Some(&seen), "", &mut found);
                ensure!(found.is_empty(), "{}", found.join("\n  "));
                Ok(())
            })
            .await?;
        }
        if let Some(pods) = expected.get("pods") {
            self.expect_pods(pods).await?;
        }
        if let Some(nodes) = expected.get("nodes") {
            self.expect_nodes(nodes).await?;
        }
        for object in list("absent") {
            let (kind, name) = identity(object)?;
            eventually(&format!("{kind} {name} does not exist"), SOON, async || {
                ensure!(self.get(object).await?.is_none());
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    async fn expect_pods(&self, wanted: &Value) -> anyhow::Result<()> {
        let selector = wanted["selector"].as_str().context("pods.selector")?;
        let count = wanted["count"].as_u64().context("pods.count")?;
        let namespace = wanted["namespace"].as_str().unwrap_or(&self.namespace);
        let api = Api::<Pod>::namespaced(self.f.client(), namespace);
        eventually(&format!("{count} pods of {selector}"), SOON, async || {
            let pods = api.list(&ListParams::default().labels(selector)).await?.items;
            let alive: Vec<_> = pods
                .iter()
                .filter(|p| p.metadata.deletion_timestamp.is_none())
                .collect();
            ensure!(alive.len() as u64 == count, "there are {}", alive.len());
            if wanted["ready"] == true {
                for pod in alive {
                    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
                    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
                    ensure!(ready, "{} is not Ready", pod.name_any());
                }
            }
            Ok(())
        })
        .await
    }

    async fn expect_nodes(&self, wanted: &Value) -> anyhow::Result<()> {
        let labels = wanted["labels"].as_object().context("nodes.labels")?;
        let least = wanted["count"].as_u64().context("nodes.count")?;
        let api = Api::<Node>::all(self.f.client());
        eventually("nodes with the labels", SOON, async || {
            let nodes = api.list(&ListParams::default()).await?.items;
            let carry = |n: &&Node| {
                labels
                    .iter()
                    .all(|(k, v)| n.labels().get(k).map(String::as_str) == v.as_str())
            };
            let have = nodes.iter().filter(carry).count() as u64;
            ensure!(have >= least, "{have} of {} nodes", nodes.len());
            Ok(())
        })
        .await
    }

    async fn get(&self, object: &Value) -> anyhow::Result<Option<Value>> {
        let (kind, name) = identity(object)?;
        let api_version = object["apiVersion"]
            .as_str()
            .unwrap_or_else(|| api_version(&kind))
            .to_owned();
        let gvk = GroupVersionKind::try_from(TypeMeta { api_version, kind })?;
        let resource = ApiResource::from_gvk(&gvk);
        let api: Api<DynamicObject> = Api::namespaced_with(self.f.client(), self.namespace_of(object), &resource);
        Ok(api.get_opt(&name).await?.map(serde_json::to_value).transpose()?)
    }
}

fn identity(object: &Value) -> anyhow::Result<(String, String)> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let name = text("/metadata/name").or_else(|| text("/name"));
    Ok((text("/kind").context("no kind")?, name.context("no name")?))
}

/// Of the kinds that expectations name again and again.
fn api_version(kind: &str) -> &'static str {
    match kind {
        "Deployment" => "apps/v1",
        "Ingress" => "networking.k8s.io/v1",
        "AIDeployment" | "AIModelMap" | "AutoNodeLabeler" => "premlabs.io/v1alpha1",
        _ => "v1",
    }
}

/// Paths at which what is seen is not what was wanted.
fn compare(wanted: &Value, seen: Option<&Value>, path: &str, found: &mut Vec<String>) {
    let seen = seen.filter(|s| !s.is_null());
    match (wanted, seen) {
        (Value::Null, None) => {}
        (Value::Null, Some(seen)) => found.push(format!("{path}: is there: {seen}")),
        (_, None) => found.push(format!("{path}: is absent")),
        (Value::Object(wanted), Some(Value::Object(seen))) => {
            for (key, value) in wanted.iter().filter(|(k, _)| *k != "$exact") {
                compare(value, seen.get(key), &format!("{path}.{key}"), found);
            }
            if wanted.contains_key("$exact") {
                let more = seen.keys().filter(|k| !wanted.contains_key(*k));
                found.extend(more.map(|k| format!("{path}.{k}: is too many")));
            }
        }
        (Value::Array(wanted), Some(Value::Array(seen))) if wanted.len() == seen.len() => {
            for (i, (wanted, seen)) in wanted.iter().zip(seen).enumerate() {
                compare(wanted, Some(seen), &format!("{path}[{i}]"), found);
            }
        }
        (wanted, Some(seen)) if wanted == seen => {}
        (wanted, Some(seen)) => found.push(format!("{path}: is {seen}, not {wanted}")),
    }
}
