//! What the kubelet says of the devices that it gave to containers: `v1.PodResourcesLister` on its unix socket.
//!
//! Every look opens a connection of its own. A kubelet that restarts puts another socket in place of the old one, and one that hangs may
//! keep its end of an old connection open for ever.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use berth_core::facts::PodName;
use berth_core::pods::{ClaimDevice, DRA_DRIVER, Held, HeldDevice, Kubelet, PluginDevice, is_ours};
use berth_proto::podresources::v1 as wire;
use berth_proto::podresources::v1::pod_resources_lister_client::PodResourcesListerClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Endpoint, Uri};
use tonic::{Code, Status};

/// A kubelet answers within milliseconds; a busy one has this long for all of a look.
const PATIENCE: Duration = Duration::from_secs(3);
/// A node's pods are some hundred at most, of a few hundred bytes each.
const LONGEST_ANSWER: usize = 8 * 1024 * 1024;

/// Why the kubelet's word is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoWord {
    /// Nothing listens there.
    #[error("no kubelet listens on {}: {why}", socket.display())]
    NoKubelet {
        /// Where it was looked for.
        socket: PathBuf,
        /// The system's words.
        why: String,
    },
    /// It did not answer in time.
    #[error("the kubelet did not answer within {} s", PATIENCE.as_secs())]
    Late,
    /// It refused, or said what nobody understands.
    #[error("the kubelet's answer: {0}")]
    Wrong(String),
}

/// Asks once.
pub async fn ask(socket: PathBuf) -> Result<Kubelet, NoWord> {
    match tokio::time::timeout(PATIENCE, look(socket)).await {
        Ok(answer) => answer,
        Err(_) => Err(NoWord::Late),
    }
}

async fn look(socket: PathBuf) -> Result<Kubelet, NoWord> {
    // Opened here and not by the channel, so that what goes wrong has its own words.
    let stream = UnixStream::connect(&socket).await.map_err(|error| NoWord::NoKubelet {
        socket,
        why: error.to_string(),
    })?;
    let mut stream = Some(stream);
    let connect = tower::service_fn(move |_: Uri| {
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| std::io::Error::other("the kubelet hung up")) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connect)
        .await
        .map_err(|error| NoWord::Wrong(bottom(&error)))?;
    let mut client = PodResourcesListerClient::new(channel).max_decoding_message_size(LONGEST_ANSWER);
    let list = client.list(wire::ListPodResourcesRequest {}).await;
    let pods = list.map_err(|status| wrong(&status))?.into_inner().pod_resources;
    let allocatable = match client
        .get_allocatable_resources(wire::AllocatableResourcesRequest {})
        .await
    {
        Ok(answer) => Some(
            answer
                .into_inner()
                .devices
                .into_iter()
                .flat_map(plugin_devices)
                .collect(),
        ),
        // A kubelet before 1.23, or one that is told not to.
        Err(status) if status.code() == Code::Unimplemented => None,
        Err(status) => return Err(wrong(&status)),
    };
    Ok(Kubelet {
        held: pods.into_iter().flat_map(held).collect(),
        allocatable,
    })
}

fn wrong(status: &Status) -> NoWord {
    NoWord::Wrong(format!("{:?}: {}", status.code(), bottom(status)))
}

/// The cause at the bottom says more than "transport error".
fn bottom(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

fn held(pod: wire::PodResources) -> Vec<Held> {
    let name = PodName {
        namespace: pod.namespace,
        name: pod.name,
    };
    let of_container = |container: wire::ContainerResources| {
        let plugin: BTreeSet<PluginDevice> = container.devices.into_iter().flat_map(plugin_devices).collect();
        let claims = container.dynamic_resources.into_iter().flat_map(|c| c.claim_resources);
        let claims = claims.filter(|c| c.driver_name == DRA_DRIVER).map(|c| ClaimDevice {
            driver: c.driver_name,
            pool: c.pool_name,
            device: c.device_name,
        });
        let devices = plugin
            .into_iter()
            .map(HeldDevice::Plugin)
            .chain(claims.map(HeldDevice::Claim));
        let of = |device| Held {
            pod: name.clone(),
            container: container.name.clone(),
            device,
        };
        devices.map(of).collect::<Vec<_>>()
    };
    pod.containers.into_iter().flat_map(of_container).collect()
}

fn plugin_devices(devices: wire::ContainerDevices) -> Vec<PluginDevice> {
    if !is_ours(&devices.resource_name) {
        return Vec::new();
    }
    let device = |id| PluginDevice {
        resource: devices.resource_name.clone(),
        id,
    };
    devices.device_ids.into_iter().map(device).collect()
}
