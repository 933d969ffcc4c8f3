//! What one life of the agent hands to the next, by way of the controller: the agent has no place of its own to keep anything in.
//!
//! ```text
//! tracker ─► memory ─► sealed: of this boot, of these bindings ─► Health ─► controller
//! tracker ◄─ memory ◄─ what still holds ◄──────────────── Welcome, the first ◄─┘
//! ```
//!
//! A fault outlives agents, and neither the machine's restart nor a driver that took the GPU anew: whatever was wrong may have been mended then,
//! and is found again where it was not.

use std::collections::BTreeMap;

use berth_core::health::{Memory, Remembered};
use serde::{Deserialize, Serialize};

/// By PCI address, what tells one binding of a function to a driver from the next.
pub type Bindings = BTreeMap<String, u64>;

/// A name that the kernel gives each of its starts. It is the same in every container.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// What the controller keeps. To it these are bytes.
#[derive(Debug, Serialize, Deserialize)]
struct Sealed {
    boot: String,
    /// Of the GPUs in the memory.
    bindings: Bindings,
    memory: Memory,
}

/// Both ends of it.
#[derive(Debug, Default)]
pub struct Handover {
    /// `None`: it cannot be told whether the machine was started anew, so nothing is handed on, and nothing taken.
    boot: Option<String>,
    /// As sysfs shows them; `None`: it was not read yet.
    bindings: Option<Bindings>,
    /// The controller was heard.
    is_welcome: bool,
    /// What it had, as long as sysfs was not read.
    received: Option<Sealed>,
    /// What is sealed, and the bindings of its GPUs.
    memory: Memory,
    sealed_bindings: Bindings,
    sealed: Vec<u8>,
    /// The controller has what was received, which may hold no longer.
    is_stale: bool,
}

impl Handover {
    /// Of this process.
    pub fn new() -> Self {
        let boot = std::fs::read_to_string(BOOT).map(|boot| boot.trim().to_owned());
        Self::of_boot(boot.ok().filter(|boot| !boot.is_empty()))
    }

    fn of_boot(boot: Option<String>) -> Self {
        Self {
            boot,
            ..Self::default()
        }
    }

    /// Sysfs was read.
    pub fn on_bindings(&mut self, bindings: Bindings) {
        self.bindings = Some(bindings);
    }

    /// The controller has this of whoever spoke last for the node. After the first time that was this process.
    pub fn on_welcome(&mut self, sealed: Vec<u8>) {
        if std::mem::replace(&mut self.is_welcome, true) || sealed.is_empty() {
            return;
        }
        match serde_json::from_slice::<Sealed>(&sealed) {
            Ok(received) if Some(&received.boot) == self.boot.as_ref() => {
                self.received = Some(received);
                self.sealed = sealed;
            }
            Ok(_) => tracing::info!("the machine was started anew: what was held against its GPUs before is not"),
            Err(error) => tracing::warn!(%error, "what an earlier agent held against GPUs cannot be read"),
        }
    }

    /// What an earlier agent held and still holds, once.
    pub fn take_over(&mut self) -> Option<Memory> {
        let now = self.bindings.as_ref()?;
        let Sealed {
            bindings: then,
            mut memory,
            ..
        } = self.received.take()?;
        // Until it is sealed anew, as it holds now.
        (self.memory, self.sealed) = (Memory::default(), Vec::new());
        self.is_stale = true;
        memory.gpus.retain(|gpu| {
            let still_holds = binding(gpu, &then) == binding(gpu, now);
            if still_holds {
                tracing::warn!(uuid = gpu.uuid, "held against the GPU since before this agent started");
            } else {
                tracing::info!(
                    uuid = gpu.uuid,
                    "a driver took the GPU anew: what was held against it is not"
                );
            }
            still_holds
        });
        Some(memory)
    }

    /// Seals what is held now. Whether that is news for the controller.
    pub fn keep(&mut self, memory: Memory) -> bool {
        let Some(boot) = self.boot.as_ref().filter(|_| self.received.is_none()) else {
            return false;
        };
        let of_memory = |address: &String| memory.gpus.iter().any(|gpu| gpu.pci_address.as_ref() == Some(address));
        let now = self.bindings.iter().flatten();
        let bindings: Bindings = now
            .filter(|(address, _)| of_memory(address))
            .map(|(address, id)| (address.clone(), *id))
            .collect();
        let is_stale = std::mem::take(&mut self.is_stale);
        if !is_stale && memory == self.memory && bindings == self.sealed_bindings {
            return false;
        }
        self.memory = memory.clone();
        self.sealed_bindings.clone_from(&bindings);
        self.sealed = Vec::new();
        if memory != Memory::default() {
            let sealed = Sealed {
                boot: boot.clone(),
                bindings,
                memory,
            };
            match serde_json::to_vec(&sealed) {
                Ok(bytes) => self.sealed = bytes,
                Err(error) => tracing::error!(%error, "what is held against GPUs cannot be handed on"),
            }
        }
        true
    }

    /// What the controller is to keep; empty: nothing.
    pub fn sealed(&self) -> &[u8] {
        &self.sealed
    }
}

fn binding<'b>(gpu: &Remembered, bindings: &'b Bindings) -> Option<&'b u64> {
    bindings.get(gpu.pci_address.as_ref()?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use berth_core::facts::{Gpu, GpuEvent, GpuEventKind, NodeFacts, NvmlState, NvmlStatus};
    use berth_core::health::Tracker;

    const AT: &str = "0000:10:00.0";

    /// What a tracker has that saw an XID 48.
    fn held() -> Memory {
        let mut tracker = Tracker::new();
        tracker.on_inventory(&NodeFacts {
            nvml: NvmlStatus {
                state: NvmlState::Ready,
                message: String::new(),
            },
            gpus: vec![Gpu {
                uuid: "GPU-0".into(),
                pci_address: Some(AT.into()),
                ..Gpu::default()
            }],
            ..NodeFacts::default()
        });
        let event = GpuEvent {
            kind: GpuEventKind::Xid(48),
            uuid: Some("GPU-0".into()),
            pci_address: None,
            age: Duration::ZERO,
            source: "nvml".into(),
            detail: String::new(),
            instance: None,
        };
        tracker.on_event(&event, Duration::ZERO);
        tracker.memory()
    }

    fn of(boot: &str, binding: Option<u64>) -> Handover {
        let mut handover = Handover::of_boot(Some(boot.into()));
        handover.on_bindings(binding.map(|id| (AT.into(), id)).into_iter().collect());
        handover
    }

    #[test]
    fn what_is_held_outlives_agents_and_neither_the_machines_start_nor_a_binding() {
        let mut before = of("a", Some(7));
        assert!(before.keep(held()) && !before.keep(held()), "told once");
        for (what, boot, binding, holds) in [
            ("the agent alone", "a", Some(7), true),
            ("another start of the machine", "b", Some(7), false),
            ("the driver took it anew", "a", Some(8), false),
            ("no driver has it", "a", None, false),
        ] {
            let mut after = of(boot, binding);
            after.on_welcome(before.sealed().to_vec());
            let taken = after.take_over().unwrap_or_default();
            assert_eq!(taken == held(), holds, "{what}");
            assert_eq!(after.take_over(), None, "once");
            // What is of another boot is never sealed again: the first report is without.
            assert_eq!(
                after.keep(taken.clone()),
                boot == "a",
                "{what}: the controller has what was"
            );
            assert!(!after.keep(taken), "{what}: told once");
            assert_eq!(after.sealed().is_empty(), !holds, "{what}: handed on");
        }
    }

    #[test]
    fn what_waits_for_sysfs_is_not_lost_and_only_the_first_welcome_counts() {
        let mut before = of("a", Some(7));
        before.keep(held());
        let mut after = Handover::of_boot(Some("a".into()));
        after.on_welcome(before.sealed().to_vec());
        assert_eq!(after.take_over(), None);
        assert!(!after.keep(Memory::default()), "it is not known what holds");
        assert_eq!(after.sealed(), before.sealed());
        after.on_bindings([(AT.to_owned(), 7)].into());
        assert_eq!(after.take_over(), Some(held()));
        // What was cleared since is not held again when the connection breaks.
        assert!(after.keep(held()) && after.keep(Memory::default()));
        assert_eq!(after.sealed(), b"");
        after.on_welcome(before.sealed().to_vec());
        assert_eq!(after.take_over(), None);
    }

    #[test]
    fn a_binding_that_is_seen_after_the_fault_is_handed_on_with_it() {
        let mut before = Handover::of_boot(Some("a".into()));
        assert!(before.keep(held()));
        let with = |other: u64| [(AT.to_owned(), 7), ("0000:11:00.0".to_owned(), other)].into();
        before.on_bindings(with(1));
        assert!(before.keep(held()), "news");
        before.on_bindings(with(2));
        assert!(!before.keep(held()), "of a GPU that nothing is held against");
        let mut after = of("a", Some(7));
        after.on_welcome(before.sealed().to_vec());
        assert_eq!(after.take_over(), Some(held()));
    }

    #[test]
    fn nonsense_and_an_unknown_boot_hand_on_nothing() {
        let mut handover = of("a", None);
        handover.on_welcome(b"{\"boot\": 1}".to_vec());
        assert_eq!(handover.take_over(), None);
        let mut handover = Handover::of_boot(None);
        assert!(!handover.keep(held()));
        assert_eq!(handover.sealed(), b"");
    }
}
