//! What labels say of MIG and sharing follows the device plugin's ConfigMap; GPUs of AMD are labelled from sysfs alone.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use berth_local::{Fleet, NodeSpec};
use berth_tests::{Fixture, Suite, eventually};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

const NAMESPACE: &str = "device-plugin";
const MAP: &str = "plugin-config";
const SOON: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    let mut sliced = NodeSpec::new("mig-0", "h100", 2);
    sliced.mig = vec!["1g.10gb".into(); 7];
    let fleet = Fleet {
        nodes: vec![NodeSpec::new("t4-0", "t4", 4), sliced, NodeSpec::new("amd-0", "t4", 0)],
    };
    Suite::new("sharing")
        .fleet(fleet)
        .values(json!({"labels": {"devicePluginConfig": format!("{NAMESPACE}/{MAP}"), "timestamp": true}}))
        .trial(
            "labels follow the device plugin's ConfigMap and the node's choice in it",
            |c| device_plugin(Fixture::new(c)),
        )
        .trial("GPUs of AMD are labelled from sysfs alone", |c| amd(Fixture::new(c)))
        .run()
}

async fn labels(f: &Fixture, node: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let node = Api::<Node>::all(f.client()).get(node).await?;
    Ok(node.metadata.labels.unwrap_or_default())
}

/// Waits until these labels are on the node; `null`: absent.
async fn expect(f: &Fixture, node: &str, wanted: Value) -> anyhow::Result<()> {
    eventually(&format!("{wanted} on {node}"), SOON, async || {
        let labels = labels(f, node).await?;
        for (key, value) in wanted.as_object().into_iter().flatten() {
            let is = labels.get(key).map(String::as_str);
            ensure!(is == value.as_str(), "{key} is {is:?}");
        }
        Ok(())
    })
    .await
}

const NOT_SHARED: &str = "NVIDIA-T4";
const WHOLE: &str = "NVIDIA-H100-80GB-HBM3";

async fn device_plugin(f: Fixture) -> anyhow::Result<()> {
    // There is no such ConfigMap yet.
    expect(
        &f,
        "t4-0",
        json!({"nvidia.com/gpu.product": NOT_SHARED, "nvidia.com/gpu.replicas": "1"}),
    )
    .await?;
    expect(
        &f,
        "mig-0",
        json!({"nvidia.com/gpu.product": WHOLE, "nvidia.com/gpu.replicas": "0", "nvidia.com/mig.strategy": null}),
    )
    .await?;
    let stamp = labels(&f, "t4-0").await?["nvidia.com/gfd.timestamp"].clone();
    ensure!(stamp.parse::<u64>()? > 1_700_000_000, "{stamp}");

    let namespace = json!({"metadata": {"name": NAMESPACE}});
    Api::all(f.client())
        .create(
            &PostParams::default(),
            &serde_json::from_value::<k8s_openapi::api::core::v1::Namespace>(namespace)?,
        )
        .await?;
    let maps: Api<ConfigMap> = Api::namespaced(f.client(), NAMESPACE);
    let map = json!({"metadata": {"name": MAP}, "data": {
        "default": "version: v1\nsharing:\n  timeSlicing:\n    resources:\n    - name: nvidia.com/gpu\n      replicas: 4\n",
        "mig": "version: v1\nflags:\n  migStrategy: single\n",
    }});
    maps.create(&PostParams::default(), &serde_json::from_value(map)?)
        .await?;
    expect(
        &f,
        "t4-0",
        json!({"nvidia.com/gpu.product": "NVIDIA-T4-SHARED", "nvidia.com/gpu.replicas": "4",
            "nvidia.com/gpu.sharing-strategy": "time-slicing"}),
    )
    .await?;

    // The node chooses.
    let nodes = Api::<Node>::all(f.client());
    let choose = async |node: &str, key: &str| {
        let label = json!({"metadata": {"labels": {"nvidia.com/device-plugin.config": key}}});
        nodes.patch(node, &PatchParams::default(), &Patch::Merge(&label)).await
    };
    choose("mig-0", "mig").await?;
    expect(
        &f,
        "mig-0",
        json!({"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "nvidia.com/gpu.count": "14",
            "nvidia.com/gpu.slices.gi": "1", "nvidia.com/mig.strategy": "single"}),
    )
    .await?;
    choose("t4-0", "absent").await?;
    expect(&f, "t4-0", json!({"nvidia.com/gpu.product": NOT_SHARED})).await?;
    let said = f.controller_logs().await?;
    ensure!(said.contains("is no key of the ConfigMap"), "not said: {said}");

    // The last word of a map that is gone holds no longer.
    maps.delete(MAP, &DeleteParams::default()).await?;
    expect(
        &f,
        "mig-0",
        json!({"nvidia.com/gpu.product": WHOLE, "nvidia.com/gpu.count": "2", "nvidia.com/gpu.slices.gi": null,
            "nvidia.com/mig.strategy": null}),
    )
    .await
}

async fn amd(f: Fixture) -> anyhow::Result<()> {
    let sys = f.cluster.node("amd-0")?.sys();
    for n in 0..2 {
        let folder = sys.join(format!("bus/pci/devices/0000:e{n}:00.0"));
        std::fs::create_dir_all(&folder)?;
        for (file, content) in [
            ("class", "0x120000"),
            ("vendor", "0x1002"),
            ("device", "0x74a1"),
            ("product_name", "AMD Instinct MI300X OAM"),
            ("mem_info_vram_total", "206141652992"),
            ("available_compute_partition", "SPX, CPX"),
        ] {
            std::fs::write(folder.join(file), format!("{content}\n"))?;
        }
        let driver = sys.join("bus/pci/drivers/amdgpu");
        std::fs::create_dir_all(&driver)?;
        std::os::unix::fs::symlink(&driver, folder.join("driver"))?;
    }
    expect(
        &f,
        "amd-0",
        json!({"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "192G",
            "beta.amd.com/gpu.device-id.74a1": "2", "amd.com/compute-partitioning-supported": "true",
            "berth.dev/gpu-class": "mi300x", "berth.dev/gpu.mi300x.count": "2",
            "feature.node.kubernetes.io/pci-1002.present": "true", "nvidia.com/gpu.present": null}),
    )
    .await
}
