//! MIG slices that are ill alone.

use std::collections::BTreeSet;

use berth_proto::v1::{self, GpuState};
use nvidia_ml::state::EventKind;

use crate::node::{Controller, Node};
use crate::{Watch, gpus, seen};

#[tokio::test]
async fn a_mig_slice_is_ill_alone_and_goes_with_its_fault() {
    let mut controller = Controller::start().await;
    let node = Node::new();
    node.identity(&controller, "token");
    std::fs::write(node.path("kmsg"), "").unwrap();
    let mut state = gpus(2);
    state.gpus[0].enable_mig(&["1g.10gb", "1g.10gb", "3g.40gb"]).unwrap();
    state.write(&node.path("nvml.json")).unwrap();
    let gpu = state.gpus[0].uuid.clone();
    let slices = state.gpus[0].mig_devices().to_vec();
    let _probe = node.probe();
    let _agent = node.agent(&controller);
    let mut watch = Watch::start(&mut controller).await;
    let wrong = |ill: Vec<&str>, known: usize| {
        let ill: BTreeSet<String> = ill.into_iter().map(str::to_owned).collect();
        move |health: &v1::NodeHealth| {
            let is: BTreeSet<String> = seen(health)
                .into_iter()
                .filter(|(_, (state, _))| *state == GpuState::Unhealthy)
                .map(|(uuid, _)| uuid)
                .collect();
            match is == ill && health.gpus.len() == known {
                true => String::new(),
                false => format!("{is:?} of {} are ill", health.gpus.len()),
            }
        }
    };
    watch.until("well", wrong(vec![], 5)).await;
    assert!(
        watch.health.gpus[1..4]
            .iter()
            .all(|slice| slice.gpu.as_ref() == Some(&gpu))
    );

    // By NVML, and by the kernel log.
    node.edit(|state| state.gpus[0].push_xid_of(109, slices[0].gpu_instance, Some(slices[0].compute_instance)));
    watch.until("one slice", wrong(vec![&slices[0].uuid], 5)).await;
    let address = state.gpus[0].pci_address.trim_end_matches(".0");
    let instance = slices[2].gpu_instance;
    node.log(&format!(
        "4,1,1,-;NVRM: Xid (PCI:{address} GPU-I:{instance:02}): 46, pid=7, name=x, y\n"
    ));
    watch
        .until("two slices", wrong(vec![&slices[0].uuid, &slices[2].uuid], 5))
        .await;

    // Slices that are made anew are well.
    node.edit(|state| {
        state.gpus[0].mig.as_mut().unwrap().devices.remove(0);
        state.gpus[0].push_event(EventKind::Type(0x100));
    });
    watch.until("a slice is gone", wrong(vec![&slices[2].uuid], 4)).await;
    // What cannot be one slice's is everybody's.
    node.edit(|state| state.gpus[0].push_xid_of(95, slices[1].gpu_instance, None));
    watch
        .until("the GPU", wrong(vec![&gpu, &slices[1].uuid, &slices[2].uuid], 4))
        .await;
}
