//! How a row is tested: a GPU has the fault, is judged, loses the fault, and is well again.

use std::time::Duration;

use berth_proto::v1::GpuState;
use nvidia_ml::state::{Gpu, State};

use crate::machine::Machine;
use crate::node::watched::{HEALTHY, Is, Watched};

pub const SUSPECT: GpuState = GpuState::Suspect;
pub const UNHEALTHY: GpuState = GpuState::Unhealthy;

/// One fault of one GPU.
pub struct Row {
    pub what: &'static str,
    /// In the driver.
    pub ill: fn(&mut Gpu),
    pub is: Is,
}

pub fn row(what: &'static str, ill: fn(&mut Gpu), state: GpuState, reason: &'static str) -> Row {
    Row {
        what,
        ill,
        is: (state, reason),
    }
}

/// GPUs on a fabric, with NVLinks, and a PCI function that answers.
pub fn sound(count: usize, change: impl FnOnce(&mut State)) -> Machine {
    let machine = Machine::new();
    let mut state = State::of("H100-80GB-HBM3", u32::try_from(count).unwrap(), "node-a").unwrap();
    for gpu in &mut state.gpus {
        gpu.checks.nvlinks = Some(vec![true; 18]);
        gpu.checks.retired_pages = Some(0);
        gpu.checks.retired_pages_pending = Some(false);
        gpu.checks.repair_pending = Some(false);
        gpu.recovery_action = Some(0);
    }
    change(&mut state);
    machine.nvidia(&state);
    for gpu in &state.gpus {
        machine.pci_config(&gpu.pci_address, [0xde, 0x10]);
    }
    machine.put("kmsg", "");
    machine
}

/// Gives a GPU its readings back, and keeps its events: they were told.
fn heal(gpu: &mut Gpu, well: &Gpu) {
    let events = std::mem::take(&mut gpu.events);
    *gpu = well.clone();
    gpu.events = events;
}

/// Each row on a GPU of its own: it is judged within a round of readings, no other GPU is, and it is well when the reading is. What was not
/// handed out is verified before.
pub async fn come_and_go(rows: Vec<Row>) {
    // The marker of rounds before them, and one that nothing is wrong with after them.
    let node = Watched::start(sound(rows.len() + 2, |_| ()), &[]).await;
    let gpus = node.node.state().gpus.split_off(1);
    let names: Vec<_> = rows.iter().map(|row| row.what).collect();
    println!("GPUs in this order: {names:?}, and a sound one");
    node.round(|_| (), &gpus, |_| HEALTHY).await;
    let ill = |state: &mut State| {
        for (gpu, row) in state.gpus[1..].iter_mut().zip(&rows) {
            (row.ill)(gpu);
        }
    };
    let want = |n: usize| rows.get(n).map_or(HEALTHY, |row| row.is);
    node.round(ill, &gpus, want).await;
    // It holds as long as the reading says so.
    node.clock.turn(Duration::from_secs(60));
    node.round(|_| (), &gpus, want).await;
    node.edit(|state| {
        for (gpu, well) in state.gpus[1..].iter_mut().zip(&gpus) {
            heal(gpu, well);
        }
    });
    node.verified(&gpus, |n| want(n).0).await;
    node.until(&gpus, |_| HEALTHY).await;
    for (gpu, row) in gpus.iter().zip(&rows) {
        let by = node.told(gpu, |told| told.cleared_by.clone());
        let wanted = (row.is.0 == UNHEALTHY).then_some("the check passes again");
        assert_eq!(by.as_deref(), wanted, "{}", row.what);
    }
}

/// A counter whose growth in a minute is judged.
pub struct Counter {
    /// Sets it.
    pub set: fn(&mut Gpu, u32),
    /// What a sound GPU may have in a minute.
    pub most: u32,
    pub reason: &'static str,
}

/// Each counter on two GPUs: one that counts more than it may, and one that counts as much as it may.
pub async fn rise_and_rest(counters: &[Counter]) {
    // What was counted before anybody looked says nothing.
    const BEFORE: u32 = 1_000_000;
    let set = |state: &mut State, counts: &dyn Fn(usize, &Counter) -> u32| {
        for (n, gpu) in state.gpus[1..].iter_mut().enumerate() {
            let counter = &counters[n / 2];
            (counter.set)(gpu, counts(n, counter));
        }
    };
    let at_first = |state: &mut State| set(state, &|_, _| BEFORE);
    let node = Watched::start(sound(1 + 2 * counters.len(), at_first), &[]).await;
    let gpus = node.node.state().gpus.split_off(1);
    let is_ill = |n: usize| n.is_multiple_of(2);
    let want = |n: usize| match is_ill(n) {
        true => (SUSPECT, counters[n / 2].reason),
        false => HEALTHY,
    };
    node.round(|_| (), &gpus, |_| HEALTHY).await;
    // Within the first minute nothing is known.
    let once = |n: usize, counter: &Counter| BEFORE + counter.most * if is_ill(n) { 10 } else { 1 };
    node.round(|state| set(state, &once), &gpus, |_| HEALTHY).await;
    node.clock.turn(Duration::from_secs(61));
    // It goes on, as the minute may have ended before this was read.
    let twice = |n: usize, counter: &Counter| once(n, counter) + if is_ill(n) { counter.most * 10 } else { 0 };
    node.round(|state| set(state, &twice), &gpus, want).await;
    // A minute at rest, and the one that had begun before.
    for _ in 0..2 {
        node.clock.turn(Duration::from_secs(61));
        node.round(|_| (), &[], |_| HEALTHY).await;
    }
    node.until(&gpus, |_| HEALTHY).await;
}
