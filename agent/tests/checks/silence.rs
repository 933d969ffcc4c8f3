//! A reading that does not come says nothing, for however long: it neither clears nor convicts.

use std::time::Duration;

use nvidia_ml::state::{Effect, Fault, code};

use crate::node::watched::{HEALTHY, Watched};
use crate::rows::{UNHEALTHY, sound};

#[tokio::test]
async fn no_answer_neither_clears_nor_convicts() {
    let machine = sound(3, |state| state.gpus[1].checks.ecc_uncorrected_volatile = Some(2));
    let node = Watched::start(machine, &[]).await;
    let gpus = node.node.state().gpus.split_off(1);
    let want = |n: usize| match n {
        0 => (UNHEALTHY, "DoubleBitError"),
        _ => HEALTHY,
    };
    node.round(|_| (), &gpus, want).await;
    node.round(
        |state| {
            state.gpus[1].checks.ecc_uncorrected_volatile = Some(0);
            let fault = |gpu| Fault {
                gpu: Some(gpu),
                ..Fault::of("nvmlDeviceGetTotalEccErrors", Effect::Error(code::UNKNOWN))
            };
            state.faults = vec![fault(1), fault(2)];
        },
        &gpus,
        want,
    )
    .await;
    // What it said before is old by now.
    node.clock.turn(Duration::from_secs(3600));
    node.round(|_| (), &gpus, want).await;
    node.edit(|state| state.faults.clear());
    node.verified(&gpus, |n| want(n).0).await;
    node.until(&gpus, |_| HEALTHY).await;
}
