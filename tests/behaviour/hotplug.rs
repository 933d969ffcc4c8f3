//! GPUs come and go while the agent runs: the node's labels and condition follow, and nothing is wiped on the way.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_local::{Fleet, NodeSpec};
use berth_tests::{Fixture, Suite, eventually};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt as _};
use nvidia_ml::state::{Binding, Gpu};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
const COUNT: &str = "nvidia.com/gpu.count";

fn main() -> ExitCode {
    let fleet = Fleet {
        nodes: vec![NodeSpec::new("t4-0", "t4", 2), NodeSpec::new("l40s-0", "l40s", 3)],
    };
    Suite::new("hotplug")
        .fleet(fleet)
        .trial("a GPU that is unplugged is missed, and verified when it is back", |c| {
            unplugged(Fixture::new(c))
        })
        .trial("a GPU that is gone from the bus alone is lost", |c| {
            off_the_bus(Fixture::new(c))
        })
        .trial("a GPU that NVML alone no longer lists is missed", |c| {
            not_listed(Fixture::new(c))
        })
        .trial("GPUs of another driver and excluded ones are not missed", |c| {
            held_back(Fixture::new(c))
        })
        .run()
}

/// A machine as a test changes it.
struct Machine<'a> {
    f: &'a Fixture,
    name: &'static str,
}

impl Machine<'_> {
    fn function(&self, address: &str) -> anyhow::Result<PathBuf> {
        let sys = self.f.cluster.node(self.name)?.host_path("/sys");
        Ok(sys.join("bus/pci/devices").join(address))
    }

    /// Takes the last GPU off NVML's list.
    fn unlist(&self) -> anyhow::Result<Gpu> {
        let mut last = None;
        self.f.cluster.node(self.name)?.nvml().change(|state| {
            last = state.gpus.pop();
            if let Some(gpu) = &last {
                state.push_binding(Binding::Unbind, &gpu.pci_address.clone());
            }
            Ok(())
        })?;
        last.context("no GPU")
    }

    fn list(&self, gpu: &Gpu) -> anyhow::Result<()> {
        self.f.cluster.node(self.name)?.nvml().change(|state| {
            state.gpus.push(gpu.clone());
            state.push_binding(Binding::Bind, &gpu.pci_address);
            Ok(())
        })?;
        Ok(())
    }

    fn unplug(&self, gpu: &Gpu) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.function(&gpu.pci_address)?)?)
    }

    fn plug(&self, gpu: &Gpu) -> anyhow::Result<()> {
        let device = format!("../../../devices/pci0000:00/{}", gpu.pci_address);
        Ok(symlink(device, self.function(&gpu.pci_address)?)?)
    }

    fn bind(&self, gpu: &Gpu, driver: &str) -> anyhow::Result<()> {
        let link = self.function(&gpu.pci_address)?.join("driver");
        std::fs::remove_file(&link)?;
        Ok(symlink(format!("../../../bus/pci/drivers/{driver}"), link)?)
    }

    async fn object(&self) -> anyhow::Result<Node> {
        Ok(Api::<Node>::all(self.f.client()).get(self.name).await?)
    }

    /// Status, reason and message of its GPUReady, as the API server has it.
    async fn expect(&self, status: &str, reasons: &[&str]) -> anyhow::Result<String> {
        eventually(&format!("{} is {status}, {reasons:?}", self.name), SOON, async || {
            let conditions = self
                .object()
                .await?
                .status
                .and_then(|s| s.conditions)
                .unwrap_or_default();
            let found = conditions.into_iter().find(|c| c.type_ == "nvidia.com/GPUReady");
            let is = found.context("no such condition")?;
            let reason = is.reason.as_deref().unwrap_or_default();
            ensure!(is.status == status && reasons.contains(&reason), "{is:?}");
            Ok(is.message.unwrap_or_default())
        })
        .await
    }

    /// Its GPUs in the labels, while the others stay what they were.
    async fn expect_count(&self, count: &str, before: &Node) -> anyhow::Result<()> {
        eventually(&format!("{} counts {count}", self.name), SOON, async || {
            let now = self.object().await?;
            let is = now.labels().get(COUNT);
            ensure!(is.is_some_and(|is| is == count), "{is:?}");
            for key in [
                "nvidia.com/gpu.product",
                "nvidia.com/gpu.memory",
                "nvidia.com/gpu.present",
                "berth.dev/gpu-class",
            ] {
                ensure!(
                    now.labels().get(key) == before.labels().get(key),
                    "{key} was wiped or changed"
                );
            }
            Ok(())
        })
        .await
    }

    async fn seen(&self) -> anyhow::Result<Value> {
        Ok(self.f.controller_json("/nodes").await?[self.name].clone())
    }
}

async fn unplugged(f: Fixture) -> anyhow::Result<()> {
    f.all_agents_connected().await?;
    let t4 = Machine { f: &f, name: "t4-0" };
    t4.expect("True", &["AllGPUsReady"]).await?;
    let before = t4.object().await?;
    let gpu = t4.unlist()?;
    t4.unplug(&gpu)?;
    let message = t4.expect("False", &["GpuMissing", "GpuLost"]).await?;
    ensure!(message.contains(&gpu.uuid), "names the GPU: {message}");
    t4.expect_count("1", &before).await?;

    t4.plug(&gpu)?;
    t4.list(&gpu)?;
    t4.expect_count("2", &before).await?;
    t4.expect("True", &["AllGPUsReady"]).await?;
    Ok(())
}

async fn off_the_bus(f: Fixture) -> anyhow::Result<()> {
    let t4 = Machine { f: &f, name: "t4-0" };
    t4.expect("True", &["AllGPUsReady"]).await?;
    let before = t4.object().await?;
    let mut gpus = Vec::new();
    f.cluster.node("t4-0")?.nvml().change(|state| {
        gpus.clone_from(&state.gpus);
        Ok(())
    })?;
    t4.unplug(&gpus[0])?;
    let message = t4.expect("False", &["GpuLost"]).await?;
    ensure!(message.contains(&gpus[0].uuid), "names the GPU: {message}");
    t4.expect_count("2", &before).await?;
    t4.plug(&gpus[0])?;
    t4.expect("True", &["AllGPUsReady"]).await?;
    Ok(())
}

async fn not_listed(f: Fixture) -> anyhow::Result<()> {
    let t4 = Machine { f: &f, name: "t4-0" };
    t4.expect("True", &["AllGPUsReady"]).await?;
    let before = t4.object().await?;
    let gpu = t4.unlist()?;
    t4.expect("False", &["GpuMissing", "GpuLost"]).await?;
    t4.expect_count("1", &before).await?;
    let seen = t4.seen().await?;
    ensure!(seen["agent"]["missingGpus"] == 1, "{seen}");
    t4.list(&gpu)?;
    t4.expect_count("2", &before).await?;
    t4.expect("True", &["AllGPUsReady"]).await?;
    Ok(())
}

async fn held_back(f: Fixture) -> anyhow::Result<()> {
    let l40s = Machine { f: &f, name: "l40s-0" };
    l40s.expect("True", &["AllGPUsReady"]).await?;
    let before = l40s.object().await?;
    // Given to a virtual machine.
    let passed = l40s.unlist()?;
    l40s.bind(&passed, "vfio-pci")?;
    l40s.expect_count("2", &before).await?;
    l40s.expect("True", &["AllGPUsReady"]).await?;

    // Held back by the driver, as it is told when it is loaded: a new one.
    let node = f.cluster.node("l40s-0")?;
    node.set_driver(false).await?;
    node.nvml().change(|state| {
        state.gpus.pop();
        state.driver.excluded_gpus = 1;
        Ok(())
    })?;
    node.set_driver(true).await?;
    l40s.bind(&passed, "vfio-pci")?;
    f.restart_agent("l40s-0").await?;
    l40s.expect_count("1", &before).await?;
    l40s.expect("True", &["AllGPUsReady"]).await?;
    let seen = l40s.seen().await?;
    ensure!(seen["agent"]["missingGpus"] == 0, "{seen}");
    Ok(())
}
