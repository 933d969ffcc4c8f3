//! The MIG slices of one GPU.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::GpuHealth;
use super::super::clearing::Proof;
use super::super::fault::Fault;
use super::record::Record;
use crate::facts::{MigDevice, MigInstance, NvmlState, NvmlStatus};

/// Slices by UUID.
#[derive(Debug, Clone, Default)]
pub(super) struct Slices(BTreeMap<String, Slice>);

#[derive(Debug, Clone)]
struct Slice {
    /// In NVML's order.
    place: usize,
    gpu_instance: u32,
    compute_instance: u32,
    record: Record,
}

impl Slices {
    /// The slices that there are now. One that is gone takes with it what was held against it: its memory and engines were set up anew.
    pub fn know(&mut self, devices: &[MigDevice]) {
        self.0
            .retain(|uuid, _| devices.iter().any(|device| device.uuid == *uuid));
        for (place, device) in devices.iter().enumerate() {
            let slice = self.0.entry(device.uuid.clone()).or_insert_with(|| Slice {
                place,
                gpu_instance: device.gpu_instance_id,
                compute_instance: device.compute_instance_id,
                record: Record::default(),
            });
            slice.place = place;
            let ids = (device.gpu_instance_id, device.compute_instance_id);
            if (slice.gpu_instance, slice.compute_instance) != ids {
                // The same name on another part of the GPU.
                (slice.gpu_instance, slice.compute_instance) = ids;
                slice.record = Record::default();
            }
        }
    }

    /// Holds a fault against the slices of an instance. False: there are none, so that it is the whole GPU's.
    pub fn hold(&mut self, instance: MigInstance, fault: &Fault) -> bool {
        let concerned = self.0.values_mut().filter(|slice| {
            slice.gpu_instance == instance.gpu && instance.compute.is_none_or(|wanted| slice.compute_instance == wanted)
        });
        concerned.map(|slice| slice.record.hold(fault.clone())).count() > 0
    }

    /// What events left, by UUID.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &Fault)> {
        let slices = self.0.iter();
        slices.filter_map(|(uuid, slice)| Some((&**uuid, slice.record.fault()?)))
    }

    /// What was held against a slice before anything that is held here. One that is gone took it along.
    pub fn follow(&mut self, uuid: &str, before: Record) {
        if let Some(slice) = self.0.get_mut(uuid) {
            slice.record.follow(before);
        }
    }

    /// Something is proven of the GPU.
    pub fn end(&mut self, proof: Proof, by: &str) {
        self.0.values_mut().for_each(|slice| slice.record.end(proof, by));
    }

    /// Judges anew at `now`. What NVML can say counts for the GPU.
    pub fn settle(&mut self, now: Duration) {
        let ready = NvmlStatus {
            state: NvmlState::Ready,
            message: String::new(),
        };
        self.0.values_mut().for_each(|slice| slice.record.settle(&ready, now));
    }

    /// Health of each at `now`: the worse of its own and its GPU's.
    pub fn health(&self, gpu: &GpuHealth, now: Duration) -> Vec<GpuHealth> {
        let mut slices: Vec<_> = self.0.iter().collect();
        slices.sort_by_key(|(_, slice)| slice.place);
        let health = |(uuid, slice): (&String, &Slice)| {
            let own = slice.record.health(uuid, now);
            let worse = if own.state >= gpu.state { own } else { gpu.clone() };
            GpuHealth {
                uuid: uuid.clone(),
                gpu: Some(gpu.uuid.clone()),
                ..worse
            }
        };
        slices.into_iter().map(health).collect()
    }
}
