//! What nodes say about their GPUs: in which order, while nobody is heard, of AMD's cards, and where others have a say.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_local::{Fleet, NodeSpec};
use berth_tests::{Fixture, NAMESPACE, Suite, eventually};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, NodeCondition};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const NVIDIA: &str = "nvidia.com/GPUReady";
const AMD: &str = "amd.com/GPUReady";
const REPAIR: &str = "AcceleratedHardwareReady";
const MAP: &str = "plugin-config";
const MAPS: &str = "device-plugin";

fn main() -> ExitCode {
    let fleet = Fleet {
        nodes: vec![
            NodeSpec::new("t4-0", "t4", 1),
            NodeSpec::new("both-0", "t4", 1),
            NodeSpec::new("amd-0", "t4", 0),
        ],
    };
    Suite::new("readiness")
        .fleet(fleet)
        .values(json!({
            "labels": {"devicePluginConfig": format!("{MAPS}/{MAP}")},
            "nodes": {"conditions": {"extra": {REPAIR: "auto"}}},
        }))
        .trial(
            "a GPU is out of placement before its node says so, and where it cannot",
            |c| order(Fixture::new(c)),
        )
        .trial(
            "a card of AMD without a driver is said, and that it has one again",
            |c| amd(Fixture::new(c)),
        )
        .trial(
            "an agent that is silent for a minute makes it unknown, and its return known",
            |c| silence(Fixture::new(c)),
        )
        .trial("what others own is left to them in every family, and said once", |c| {
            owners(Fixture::new(c))
        })
        .trial(
            "a device plugin's configuration that cannot be used is said where it is looked for",
            |c| device_plugin(Fixture::new(c)),
        )
        .run()
}

async fn condition(f: &Fixture, name: &str, type_: &str) -> anyhow::Result<NodeCondition> {
    let node = Api::<Node>::all(f.client()).get(name).await?;
    let conditions = node.status.and_then(|s| s.conditions);
    let found = conditions.into_iter().flatten().find(|c| c.type_ == type_);
    found.with_context(|| format!("no {type_} on {name}"))
}

async fn expect(f: &Fixture, name: &str, type_: &str, wanted: (&str, &str)) -> anyhow::Result<NodeCondition> {
    // A minute of silence, on a machine that is slow.
    let patience = Duration::from_secs(150);
    eventually(&format!("{type_} of {name} is {wanted:?}"), patience, async || {
        let is = condition(f, name, type_).await?;
        ensure!(
            (&*is.status, is.reason.as_deref().unwrap_or_default()) == wanted,
            "{is:?}"
        );
        Ok(is)
    })
    .await
}

/// How often Events of this reason were reported about an object, repeats counted, whose message has these words.
async fn told(f: &Fixture, namespace: &str, object: &str, reason: &str, words: &str) -> anyhow::Result<i32> {
    let selector = format!("involvedObject.name={object},reason={reason}");
    let list = Api::<Event>::namespaced(f.client(), namespace)
        .list(&ListParams::default().fields(&selector))
        .await?;
    let about = list
        .iter()
        .filter(|e| e.message.as_deref().unwrap_or_default().contains(words));
    Ok(about
        .map(|e| e.series.as_ref().and_then(|s| s.count).unwrap_or(1))
        .sum())
}

async fn expect_told(f: &Fixture, namespace: &str, object: &str, reason: &str, words: &str) -> anyhow::Result<()> {
    eventually(&format!("{reason} on {object}: {words}"), SOON, async || {
        let times = told(f, namespace, object, reason, words).await?;
        ensure!(times == 1, "{times} times");
        Ok(())
    })
    .await
}

async fn patch(f: &Fixture, name: &str, patch: Value) -> anyhow::Result<()> {
    Api::<Node>::all(f.client())
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

fn xid(f: &Fixture, name: &str) -> anyhow::Result<()> {
    Ok(f.cluster.node(name)?.nvml().change(|state| {
        state.gpus[0].push_xid(62);
        Ok(())
    })?)
}

async fn reset(f: &Fixture, name: &str) -> anyhow::Result<()> {
    f.cluster.node(name)?.set_driver(false).await?;
    expect(f, name, NVIDIA, ("False", "ResetRequired")).await.ok();
    eventually("no driver", SOON, async || {
        let nodes = f.controller_json("/nodes").await?;
        ensure!(nodes[name]["agent"]["nvml"] == "NoLibrary", "{}", nodes[name]);
        Ok(())
    })
    .await?;
    f.cluster.node(name)?.set_driver(true).await?;
    expect(f, name, NVIDIA, ("True", "AllGPUsReady")).await.map(drop)
}

async fn excluded(f: &Fixture, name: &str) -> anyhow::Result<bool> {
    let nodes = f.controller_json("/nodes").await?;
    Ok(nodes[name]["health"]["decision"] == "Excluded")
}

async fn order(f: Fixture) -> anyhow::Result<()> {
    f.all_agents_connected().await?;
    expect(&f, "t4-0", NVIDIA, ("True", "AllGPUsReady")).await?;
    // Whoever is told by the node finds the GPU gone already.
    let config = watcher::Config::default().fields("metadata.name=t4-0");
    let mut changes = watcher(Api::<Node>::all(f.client()), config).applied_objects().boxed();
    xid(&f, "t4-0")?;
    let seen = async {
        while let Some(node) = changes.try_next().await? {
            let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
            if conditions.iter().any(|c| c.type_ == NVIDIA && c.status == "False") {
                return anyhow::Ok(());
            }
        }
        anyhow::bail!("the watch ended")
    };
    tokio::time::timeout(SOON, seen)
        .await
        .context("the node says nothing")??;
    ensure!(excluded(&f, "t4-0").await?, "it said so first");
    reset(&f, "t4-0").await?;
    ensure!(!excluded(&f, "t4-0").await?);

    // No condition may be written: placement does not wait for one.
    patch(
        &f,
        "t4-0",
        json!({"metadata": {"annotations": {"berth.dev/paused": "true"}}}),
    )
    .await?;
    xid(&f, "t4-0")?;
    let ns = f.namespace("order").await?;
    let on = json!({"accelerator": {"interface": "CUDA"}, "nodeSelector": {"kubernetes.io/hostname": "t4-0"}});
    eventually("the GPU to be out", SOON, async || {
        ensure!(excluded(&f, "t4-0").await?);
        Ok(())
    })
    .await?;
    f.apply_vllm(&ns, "away", on).await?;
    let said = f.expect_condition(&ns, "away", "Placed", ("False", "NoFit")).await?;
    ensure!(said.contains("t4-0") && said.contains("ResetRequired"), "{said}");
    ensure!(condition(&f, "t4-0", NVIDIA).await?.status == "True", "paused");
    patch(
        &f,
        "t4-0",
        json!({"metadata": {"annotations": {"berth.dev/paused": null}}}),
    )
    .await?;
    expect(&f, "t4-0", NVIDIA, ("False", "ResetRequired")).await?;
    reset(&f, "t4-0").await?;
    f.expect_condition(&ns, "away", "Placed", ("True", "AllPlaced")).await?;
    f.delete_namespace(&ns).await
}

/// Two cards of AMD on a node, with their driver.
fn add_amd(f: &Fixture, name: &str) -> anyhow::Result<()> {
    let sys = f.cluster.node(name)?.sys();
    for n in 0..2 {
        let folder = sys.join(format!("bus/pci/devices/0000:e{n}:00.0"));
        std::fs::create_dir_all(&folder)?;
        // By its class it is seen: last.
        bind(f, name, n, true)?;
        for (file, content) in [("vendor", "0x1002"), ("device", "0x74a1"), ("class", "0x120000")] {
            std::fs::write(folder.join(file), format!("{content}\n"))?;
        }
    }
    Ok(())
}

fn bind(f: &Fixture, name: &str, card: u32, bound: bool) -> anyhow::Result<()> {
    let sys = f.cluster.node(name)?.sys();
    let link = sys.join(format!("bus/pci/devices/0000:e{card}:00.0/driver"));
    let driver = sys.join("bus/pci/drivers/amdgpu");
    std::fs::create_dir_all(&driver)?;
    match bound {
        true if link.exists() => {}
        true => std::os::unix::fs::symlink(&driver, &link)?,
        false => std::fs::remove_file(&link)?,
    }
    Ok(())
}

async fn amd(f: Fixture) -> anyhow::Result<()> {
    f.all_agents_connected().await?;
    ensure!(condition(&f, "amd-0", AMD).await.is_err(), "no card, no condition");
    // Somebody else says already what programs that repair nodes read.
    let theirs = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "amd-0"}, "status": {"conditions": [{
        "type": REPAIR, "status": "True", "reason": "Theirs", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let params = PatchParams::apply("eks-node-monitoring-agent");
    let nodes = Api::<Node>::all(f.client());
    nodes.patch_status("amd-0", &params, &Patch::Apply(theirs)).await?;
    add_amd(&f, "amd-0")?;
    let well = eventually("both cards", SOON, async || {
        let is = condition(&f, "amd-0", AMD).await?;
        ensure!(
            (&*is.status, is.message.as_deref()) == ("True", Some("2 GPU(s)")),
            "{is:?}"
        );
        Ok(is)
    })
    .await?;
    ensure!(condition(&f, "amd-0", NVIDIA).await.is_err(), "none of NVIDIA");
    // Times of transition are whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    bind(&f, "amd-0", 1, false)?;
    let ill = expect(&f, "amd-0", AMD, ("False", "DriverNotLoaded")).await?;
    ensure!(
        ill.message.as_deref() == Some("1 of 2 GPU(s) have no driver"),
        "{ill:?}"
    );
    ensure!(ill.last_transition_time != well.last_transition_time);
    expect_told(&f, "default", "amd-0", "GPUsNotReady", AMD).await?;
    // Another message is no transition.
    bind(&f, "amd-0", 0, false)?;
    let worse = eventually("both cards in the message", SOON, async || {
        let is = condition(&f, "amd-0", AMD).await?;
        ensure!(
            is.message.as_deref().unwrap_or_default().starts_with("2 of 2"),
            "{is:?}"
        );
        Ok(is)
    })
    .await?;
    ensure!(worse.last_transition_time == ill.last_transition_time, "{worse:?}");
    bind(&f, "amd-0", 0, true)?;
    bind(&f, "amd-0", 1, true)?;
    expect(&f, "amd-0", AMD, ("True", "AllGPUsReady")).await?;
    expect_told(&f, "default", "amd-0", "GPUsReady", AMD).await?;
    ensure!(
        told(&f, "default", "amd-0", "GPUsNotReady", AMD).await? == 1,
        "one Event a transition"
    );
    Ok(())
}

async fn silence(f: Fixture) -> anyhow::Result<()> {
    add_amd(&f, "both-0")?;
    let well = expect(&f, "both-0", NVIDIA, ("True", "AllGPUsReady")).await?;
    expect(&f, "both-0", AMD, ("True", "AllGPUsReady")).await?;
    // The agent's pod goes: the node no longer is one that gets it.
    patch(
        &f,
        "both-0",
        json!({"metadata": {"labels": {"kubernetes.io/os": null}}}),
    )
    .await?;
    eventually("no session", SOON, async || {
        let nodes = f.controller_json("/nodes").await?;
        ensure!(
            nodes["both-0"]["agent"]["connected"] == false,
            "{}",
            nodes["both-0"]["agent"]
        );
        Ok(())
    })
    .await?;
    let kept = condition(&f, "both-0", NVIDIA).await?;
    ensure!(
        kept.status == "True" && kept.last_transition_time == well.last_transition_time,
        "a moment's silence says nothing: {kept:?}"
    );
    let unknown = expect(&f, "both-0", NVIDIA, ("Unknown", "AgentSilent")).await?;
    expect(&f, "both-0", AMD, ("Unknown", "AgentSilent")).await?;
    expect(&f, "both-0", REPAIR, ("Unknown", "AgentSilent")).await?;
    let message = unknown.message.unwrap_or_default();
    ensure!(message.contains("berth-agent for 60 s"), "{message}");
    let (before, since) = (well.last_transition_time, unknown.last_transition_time);
    let (before, since) = before.zip(since).context("a time of transition")?;
    ensure!(since.0 > before.0, "it turned");
    expect_told(&f, "default", "both-0", "GPUsUnknown", NVIDIA).await?;
    expect_told(&f, "default", "both-0", "GPUsUnknown", AMD).await?;
    // Labels are facts, and do not go.
    let labels = Api::<Node>::all(f.client())
        .get("both-0")
        .await?
        .metadata
        .labels
        .unwrap_or_default();
    ensure!(labels.contains_key("nvidia.com/gpu.product"), "{labels:?}");
    patch(
        &f,
        "both-0",
        json!({"metadata": {"labels": {"kubernetes.io/os": "linux"}}}),
    )
    .await?;
    for type_ in [NVIDIA, AMD, REPAIR] {
        expect(&f, "both-0", type_, ("True", "AllGPUsReady")).await?;
    }
    expect_told(&f, "default", "both-0", "GPUsReady", NVIDIA).await?;
    expect_told(&f, "default", "both-0", "GPUsReady", AMD).await?;
    ensure!(
        told(&f, "default", "both-0", "GPUsUnknown", NVIDIA).await? == 1,
        "one Event a transition"
    );
    Ok(())
}

async fn owners(f: Fixture) -> anyhow::Result<()> {
    add_amd(&f, "both-0")?;
    let nodes = Api::<Node>::all(f.client());
    let families = [
        ("gpu-feature-discovery", "nvidia.com/gpu.family"),
        ("nfd-master", "feature.node.kubernetes.io/pci-10de.present"),
        ("amd-labeller", "amd.com/gpu.device-id"),
    ];
    eventually("labels of every family", SOON, async || {
        let labels = nodes.get("both-0").await?.metadata.labels.unwrap_or_default();
        let absent: Vec<_> = families.iter().filter(|(_, key)| !labels.contains_key(*key)).collect();
        ensure!(absent.is_empty(), "{absent:?} are absent: {labels:?}");
        Ok(())
    })
    .await?;
    for (manager, key) in families {
        let theirs =
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "both-0", "labels": {key: "theirs"}}});
        let params = PatchParams::apply(manager).force();
        nodes.patch("both-0", &params, &Patch::Apply(theirs)).await?;
    }
    let said = async || -> anyhow::Result<()> {
        for (manager, key) in families {
            let words = format!("{manager:?}, which owns them: {key}");
            expect_told(&f, "default", "both-0", "LabelsOwnedByOthers", &words).await?;
        }
        Ok(())
    };
    said().await?;
    // There is much to look at, and nothing new to say of it.
    f.restart_agent("both-0").await?;
    xid(&f, "both-0")?;
    expect(&f, "both-0", NVIDIA, ("False", "ResetRequired")).await?;
    reset(&f, "both-0").await?;
    said().await?;
    let labels = nodes.get("both-0").await?.metadata.labels.unwrap_or_default();
    for (_, key) in families {
        ensure!(
            labels.get(key).map(String::as_str) == Some("theirs"),
            "{key}: {labels:?}"
        );
    }
    for (manager, _) in families {
        let none = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "both-0"}});
        nodes
            .patch("both-0", &PatchParams::apply(manager), &Patch::Apply(none))
            .await?;
    }
    Ok(())
}

async fn problem(f: &Fixture, name: &str) -> anyhow::Result<String> {
    let nodes = f.controller_json("/nodes").await?;
    Ok(nodes[name]["devicePluginProblem"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

async fn expect_problem(f: &Fixture, name: &str, words: &str) -> anyhow::Result<()> {
    eventually(&format!("{words:?} of {name}"), SOON, async || {
        let is = problem(f, name).await?;
        ensure!(is.contains(words) && is.is_empty() == words.is_empty(), "{is:?}");
        Ok(())
    })
    .await
}

async fn device_plugin(f: Fixture) -> anyhow::Result<()> {
    let installation = "berth-controller";
    let (bad, good) = ("DevicePluginConfigUnusable", "DevicePluginConfigUsable");
    // The administrator named one that is not there.
    expect_problem(&f, "t4-0", "there is no ConfigMap device-plugin/plugin-config").await?;
    ensure!(
        problem(&f, "amd-0").await?.is_empty(),
        "it hands nothing of that node out"
    );
    expect_told(&f, NAMESPACE, installation, bad, "there is no ConfigMap").await?;
    let nodes = async || f.metric_sum("berth_device_plugin_config_unusable_nodes").await;
    let affected = nodes().await?;
    ensure!(affected == 2.0, "{affected}");

    let namespace = json!({"metadata": {"name": MAPS}});
    let namespace: Namespace = serde_json::from_value(namespace)?;
    Api::all(f.client()).create(&PostParams::default(), &namespace).await?;
    let maps: Api<ConfigMap> = Api::namespaced(f.client(), MAPS);
    let map = json!({"metadata": {"name": MAP}, "data": {"default": "version: v1\n", "broken": "version: v9\n"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map)?)
        .await?;
    expect_problem(&f, "t4-0", "").await?;
    expect_told(&f, NAMESPACE, installation, good, "").await?;
    ensure!(nodes().await? == 0.0);

    // Nodes choose badly: that is told once, and the page says which.
    for (choice, words) in [("absent", "\"absent\", which is no key"), ("broken", "version \"v9\"")] {
        ensure!(problem(&f, "both-0").await?.is_empty() == (choice == "absent"));
        for name in ["t4-0", "both-0"] {
            let labels = json!({"nvidia.com/device-plugin.config": choice});
            patch(&f, name, json!({"metadata": {"labels": labels}})).await?;
            expect_problem(&f, name, words).await?;
            expect_told(&f, NAMESPACE, installation, bad, words).await?;
        }
    }
    for name in ["t4-0", "both-0"] {
        ensure!(told(&f, "default", name, bad, "").await? == 0, "not on each node");
        let labels = json!({"nvidia.com/device-plugin.config": null});
        patch(&f, name, json!({"metadata": {"labels": labels}})).await?;
        expect_problem(&f, name, "").await?;
    }

    // The default breaks: that is everybody's.
    let broken = json!({"data": {"default": "version: v7\n"}});
    maps.patch(MAP, &PatchParams::default(), &Patch::Merge(broken)).await?;
    for name in ["t4-0", "both-0"] {
        expect_problem(&f, name, "version \"v7\"").await?;
    }
    expect_told(&f, NAMESPACE, installation, bad, "version \"v7\"").await?;
    ensure!(
        told(&f, "default", "t4-0", bad, "v7").await? == 0,
        "once, not on each node"
    );
    maps.delete(MAP, &DeleteParams::default()).await?;
    expect_problem(&f, "t4-0", "there is no ConfigMap").await
}
