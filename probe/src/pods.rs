//! Who uses the GPUs: both ways to know, asked side by side.

use std::path::PathBuf;

use berth_core::facts::NvmlState;
use berth_core::pods::{Kubelet, Process};
use berth_proto::probe::v1 as wire;

use crate::keeper::{Ending, Handle};
use crate::podresources;
use crate::processes::Lookup;

/// Which ways are open.
#[derive(Debug, Clone)]
pub struct Pods {
    /// The kubelet's socket; `None`: it is not asked.
    pub kubelet: Option<PathBuf>,
    /// `None`: processes are not looked up.
    pub processes: Option<Lookup>,
}

/// What one way said: `None` where it is not open, or else what was found or why nothing was.
type Word<T> = Option<Result<T, String>>;

impl Pods {
    /// One look. Neither way waits longer than its own patience, and sampling goes on meanwhile.
    pub async fn look(&self, keeper: &Handle) -> Result<wire::PodsReply, Ending> {
        let (kubelet, processes) = tokio::join!(self.kubelet(), self.processes(keeper));
        Ok(reply(kubelet, processes?))
    }

    async fn kubelet(&self) -> Word<Kubelet> {
        let answer = podresources::ask(self.kubelet.clone()?).await;
        Some(answer.map_err(|why| why.to_string()))
    }

    async fn processes(&self, keeper: &Handle) -> Result<Word<Vec<Process>>, Ending> {
        let Some(lookup) = &self.processes else {
            return Ok(None);
        };
        let answer = keeper.processes().await?;
        let on_gpus = match (answer.status.state, answer.found) {
            (NvmlState::Ready, Some(found)) => found,
            (state, _) => return Ok(Some(Err(format!("NVML: {state}")))),
        };
        Ok(Some(lookup.pods(on_gpus).await.map_err(|why| why.to_string())))
    }
}

fn reply(kubelet: Word<Kubelet>, processes: Word<Vec<Process>>) -> wire::PodsReply {
    let (kubelet_lane, kubelet) = lane(kubelet);
    let (process_lane, processes) = lane(processes);
    let allocatable = kubelet.allocatable.map(|devices| wire::PluginDevices {
        devices: devices.into_iter().map(Into::into).collect(),
    });
    wire::PodsReply {
        kubelet: Some(kubelet_lane),
        held: kubelet.held.into_iter().map(Into::into).collect(),
        allocatable,
        process_lane: Some(process_lane),
        processes: processes.into_iter().map(Into::into).collect(),
    }
}

fn lane<T: Default>(word: Word<T>) -> (wire::Lane, T) {
    let (state, message, found) = match word {
        None => (wire::LaneState::Unspecified, String::new(), T::default()),
        Some(Ok(found)) => (wire::LaneState::Available, String::new(), found),
        Some(Err(why)) => (wire::LaneState::NotAvailable, why, T::default()),
    };
    let state = state.into();
    (wire::Lane { state, message }, found)
}
