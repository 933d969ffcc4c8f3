//! Which GPU an event is about, and what it does there.

use super::super::fault::Fault;
use super::super::xid::{self, Effect};
use super::Tracker;
use crate::facts::{GpuEvent, GpuEventKind};

impl Tracker {
    /// UUIDs of the known GPUs that an event is about: all of them where it names none.
    pub(super) fn concerned(&self, event: &GpuEvent) -> Vec<String> {
        let slot = |address: &str| address.rsplit_once('.').map_or(address, |(slot, _)| slot).to_owned();
        self.gpus
            .iter()
            .filter(|(uuid, gpu)| match (&event.uuid, &event.pci_address) {
                (Some(wanted), _) => *uuid == wanted,
                (None, Some(address)) => gpu.pci_address.as_deref().map(slot) == Some(slot(address)),
                (None, None) => true,
            })
            .map(|(uuid, _)| uuid.clone())
            .collect()
    }

    pub(super) fn place(&mut self, event: &GpuEvent, uuids: &[String]) {
        let named = event.uuid.is_some() || event.pci_address.is_some();
        let binding = Binding::of(event);
        for uuid in uuids {
            let Some(gpu) = self.gpus.get_mut(uuid) else {
                continue;
            };
            match binding {
                Some(Binding::Unbound) => gpu.unbound = true,
                Some(Binding::Bound) => gpu.went |= std::mem::take(&mut gpu.unbound),
                None => {}
            }
            if named {
                gpu.history.on_event(event, self.now.saturating_sub(event.age));
            }
            let Some(mut fault) = Fault::of(event, gpu.part, self.now) else {
                continue;
            };
            if !named && fault.effect > Effect::Counted {
                // It may be any of them: worth watching on all, no reason to take all away.
                fault.effect = Effect::Suspect;
                fault.message.push_str(" (GPU not named)");
            }
            if fault.effect == Effect::Suspect && gpu.history.is_repeated_on_its_link(event, self.now) {
                fault.effect = Effect::Unhealthy;
                fault
                    .message
                    .push_str(" (again on the same link): check the link and reset the GPU");
            }
            let of_a_slice = match event.kind {
                GpuEventKind::Xid(xid) if xid::may_be_contained(xid) => event.instance,
                GpuEventKind::Xid(_) | GpuEventKind::Other(_) => None,
            };
            if !of_a_slice.is_some_and(|instance| gpu.slices.hold(instance, &fault)) {
                gpu.record.hold(fault);
            }
        }
    }
}

/// What the kernel told of a function's driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binding {
    Bound,
    Unbound,
}

impl Binding {
    pub fn of(event: &GpuEvent) -> Option<Self> {
        match &event.kind {
            GpuEventKind::Other(name) if name == "DriverBound" => Some(Self::Bound),
            GpuEventKind::Other(name) if name == "DriverUnbound" => Some(Self::Unbound),
            GpuEventKind::Other(_) | GpuEventKind::Xid(_) => None,
        }
    }
}
