//! Memory: ECC, SRAM, remapped rows, retired pages, repairs.

use nvidia_ml::state::{Gpu, RemappedRows, RowRemapHistogram};

use crate::node::watched::{HEALTHY, Watched};
use crate::rows::{Counter, SUSPECT, UNHEALTHY, come_and_go, rise_and_rest, row, sound};

fn remapped(pending: bool, failure: bool) -> Option<RemappedRows> {
    Some(RemappedRows {
        pending,
        failure,
        ..RemappedRows::default()
    })
}

fn banks(low: u32, none: u32) -> Option<RowRemapHistogram> {
    Some(RowRemapHistogram {
        max: 639,
        low,
        none,
        ..RowRemapHistogram::default()
    })
}

#[tokio::test]
#[rustfmt::skip]
async fn each_fault_of_memory() {
    come_and_go(vec![
        row("ECC", |g| g.checks.ecc_uncorrected_volatile = Some(1), UNHEALTHY, "DoubleBitError"),
        row("SRAM", |g| g.checks.sram_threshold_exceeded = Some(true), UNHEALTHY, "SramThreshold"),
        row("a remapping pending", |g| g.checks.remapped_rows = remapped(true, false), SUSPECT, "RowRemapPending"),
        row("a remapping failed", |g| g.checks.remapped_rows = remapped(false, true), UNHEALTHY, "RowRemapFailure"),
        row("few spare rows", |g| g.checks.row_remap_histogram = banks(1, 0), SUSPECT, "RowRemapHeadroom"),
        row("no spare rows", |g| g.checks.row_remap_histogram = banks(0, 1), SUSPECT, "RowRemapHeadroom"),
        row("15 retired pages", |g| g.checks.retired_pages = Some(15), HEALTHY.0, HEALTHY.1),
        row("16 retired pages", |g| g.checks.retired_pages = Some(16), SUSPECT, "RetiredPages"),
        row("63 retired pages", |g| g.checks.retired_pages = Some(63), UNHEALTHY, "RetiredPages"),
        row("retired pages pending", |g| g.checks.retired_pages_pending = Some(true), SUSPECT, "RetiredPages"),
        row("a repair pending", |g| g.checks.repair_pending = Some(true), SUSPECT, "RepairPending"),
    ])
    .await;
}

#[tokio::test]
async fn corrected_errors_by_their_number_in_a_minute() {
    rise_and_rest(&[Counter {
        set: |gpu, count| gpu.checks.ecc_corrected_volatile = Some(count.into()),
        most: 10,
        reason: "CorrectableErrors",
    }])
    .await;
}

/// The driver tells nothing of rows then.
#[tokio::test]
async fn slices_hide_the_rows_and_end_nothing() {
    let node = Watched::start(sound(3, |_| ()), &[]).await;
    let gpus = node.node.state().gpus.split_off(1);
    node.round(|_| (), &gpus, |_| HEALTHY).await;
    let fail = |gpu: &mut Gpu| gpu.checks.remapped_rows = remapped(false, true);
    let want = |n: usize| match n {
        0 => (UNHEALTHY, "RowRemapFailure"),
        _ => HEALTHY,
    };
    node.round(|state| fail(&mut state.gpus[1]), &gpus, want).await;
    let slice = |gpu: &mut Gpu| {
        gpu.enable_mig(&["1g.10gb"]).unwrap();
        gpu.push_mig_change();
        gpu.checks.remapped_rows = remapped(false, false);
    };
    node.round(|state| state.gpus[1..].iter_mut().for_each(slice), &gpus, want)
        .await;
    // What fails meanwhile is not told.
    node.round(|state| fail(&mut state.gpus[2]), &gpus, want).await;
    let whole = |gpu: &mut Gpu| {
        gpu.mig.as_mut().unwrap().devices.clear();
        gpu.push_mig_change();
    };
    let told = |n: usize| match n {
        0 => HEALTHY,
        _ => (UNHEALTHY, "RowRemapFailure"),
    };
    node.edit(|state| state.gpus[1..].iter_mut().for_each(whole));
    node.verified(&gpus[..1], |_| UNHEALTHY).await;
    node.until(&gpus, told).await;
}
