//! What outlives the process that tracks: what events left held against GPUs, and the readings by which the end of it is seen.
//!
//! Findings are not in it, as checks are read anew; neither are patterns, nor a verification under way.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::Reason;
use super::super::clearing::{Proof, Readings};
use super::super::fault::Fault;
use super::super::xid::Effect;
use super::record::Record;
use super::{Tracker, Watched};

/// What one tracker hands to the next. Empty as long as no event is held against a GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// GPUs with something held against them, or against a slice of theirs.
    pub gpus: Vec<Remembered>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// `GPU-…`.
    pub uuid: String,
    /// NVML's number of it.
    pub index: u32,
    /// Where it is, if NVML told.
    pub pci_address: Option<String>,
    held: Option<Held>,
    /// By the slice's UUID.
    slices: BTreeMap<String, Held>,
    readings: Readings,
    /// An older agent did not tell.
    #[serde(default)]
    lost: bool,
    went: bool,
}

/// A fault, without what only the moments after it need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    effect: Effect,
    reason: Reason,
    message: String,
    until: Proof,
}

impl From<&Fault> for Held {
    fn from(fault: &Fault) -> Self {
        Self {
            effect: fault.effect,
            reason: fault.reason,
            message: fault.message.clone(),
            until: fault.until,
        }
    }
}

impl From<Held> for Fault {
    fn from(held: Held) -> Self {
        Self {
            until: held.until,
            ..Self::seen(held.effect, held.reason, held.message)
        }
    }
}

impl Tracker {
    /// What another tracker has to know to go on.
    pub fn memory(&self) -> Memory {
        let known = self.gpus.iter().filter_map(|(uuid, gpu)| gpu.memory(uuid));
        // What is not yet held again is no less true.
        Memory {
            gpus: known.chain(self.remembered.iter().cloned()).collect(),
        }
    }

    /// What an earlier tracker held, of GPUs that are still held by the same driver as then. It counts as soon as NVML has listed the GPUs.
    pub fn remember(&mut self, memory: Memory) {
        self.remembered.extend(memory.gpus);
        self.on_inventory(&self.facts.clone());
    }

    /// NVML lists the GPUs: what is remembered of them is held again.
    pub(super) fn recall(&mut self) {
        for remembered in std::mem::take(&mut self.remembered) {
            let gpu = self.gpus.entry(remembered.uuid.clone()).or_insert_with(|| Watched {
                index: remembered.index,
                pci_address: remembered.pci_address.clone(),
                ..Watched::default()
            });
            gpu.recall(remembered);
        }
    }
}

impl Watched {
    fn memory(&self, uuid: &str) -> Option<Remembered> {
        let held = self.record.fault().map(Held::from);
        let slices: BTreeMap<_, _> = self
            .slices
            .faults()
            .map(|(uuid, fault)| (uuid.to_owned(), fault.into()))
            .collect();
        (held.is_some() || !slices.is_empty()).then(|| Remembered {
            uuid: uuid.to_owned(),
            index: self.index,
            pci_address: self.pci_address.clone(),
            held,
            slices,
            readings: self.signs.readings(),
            lost: self.signs.is_lost(),
            went: self.went,
        })
    }

    fn recall(&mut self, remembered: Remembered) {
        // It may have come back or been reset in between. That ends nothing that came up since.
        let proven = if remembered.went && self.listed {
            Some((Proof::Rebound, "the GPU was reset"))
        } else {
            self.went |= remembered.went;
            self.signs.recall(remembered.readings, remembered.lost)
        };
        if let Some(held) = remembered.held {
            self.record.follow(Record::before(held.into(), proven));
        }
        for (uuid, held) in remembered.slices {
            self.slices.follow(&uuid, Record::before(held.into(), proven));
        }
    }
}
