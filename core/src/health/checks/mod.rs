//! Checks on readings, as opposed to events: each holds as long as its reading says so.
//!
//! ```text
//! NVML's slow readings, samples ─┐
//! the kernel's PCI readings ─────┼─► Observed, Node ─► one Row a check ─► the worst counts for the GPU
//! facts ─────────────────────────┘
//! ```
//!
//! What is not told, or not for long, is unknown: that neither convicts nor clears ([`reading`]).

mod clocks;
mod driver;
mod links;
mod memory;
mod node;
mod pcie;
mod reading;
mod row;

use std::time::Duration;

pub use node::{Node, gpu_count};
pub use pcie::rows_of_function;
pub use row::{Outcome, Row};

use crate::facts::{Gpu, GpuChecks, PciChecks};
use clocks::Clocks;
use driver::Driver;
use links::Links;
use memory::Memory;
use pcie::Pcie;

/// What was read of one GPU since its driver was loaded.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// When something was read last, on the caller's monotonic clock.
    now: Duration,
    memory: Memory,
    links: Links,
    pcie: Pcie,
    clocks: Clocks,
    driver: Driver,
}

impl Observed {
    /// Readings of this moment, on the caller's monotonic clock. What is missing in them stays as it was read before.
    pub fn on_checks(&mut self, new: GpuChecks, at: Duration) {
        self.now = at;
        let GpuChecks {
            uuid: _,
            recovery_action,
            ecc_uncorrected_volatile,
            sram_threshold_exceeded,
            remapped_rows,
            retired_pages,
            retired_pages_pending,
            nvlinks_up,
            nvlink_crc_errors,
            pcie_width,
            pcie_max_width,
            pcie_replays,
            inforom_valid,
            ecc_corrected_volatile,
            row_remap_histogram,
            repair_pending,
            nvlink_recoveries,
            nvlink_failed_recoveries,
            fabric,
            pcie_generation,
            pcie_max_generation,
            sm_clock_mhz,
            sm_clock_max_mhz,
            temperature_margin_c,
            thermal_violation_ns,
            persistence_mode,
            // Metrics alone show these.
            encoder_utilization: _,
            decoder_utilization: _,
            vgpu_licensed: _,
            unclear,
        } = new;
        let unclear = |call: &str| unclear.iter().any(|u| u == call);

        let Memory {
            uncorrected,
            corrected,
            corrected_rate,
            sram_exceeded,
            remapped,
            histogram,
            retired,
            retired_pending,
            repair_pending: repair,
        } = &mut self.memory;
        uncorrected.on(ecc_uncorrected_volatile, unclear("nvmlDeviceGetTotalEccErrors"), at);
        corrected.on(ecc_corrected_volatile, unclear("nvmlDeviceGetTotalEccErrors"), at);
        if let Some(count) = ecc_corrected_volatile {
            corrected_rate.on(count, at);
        }
        sram_exceeded.on(sram_threshold_exceeded, unclear("nvmlDeviceGetSramEccErrorStatus"), at);
        remapped.on(remapped_rows, unclear("nvmlDeviceGetRemappedRows"), at);
        histogram.on(row_remap_histogram, unclear("nvmlDeviceGetRowRemapperHistogram"), at);
        retired.on(retired_pages, unclear("nvmlDeviceGetRetiredPages"), at);
        retired_pending.on(
            retired_pages_pending,
            unclear("nvmlDeviceGetRetiredPagesPendingStatus"),
            at,
        );
        repair.on(repair_pending, unclear("nvmlDeviceGetRepairStatus"), at);

        let links = &mut self.links;
        links.up.on(nvlinks_up, unclear("nvmlDeviceGetNvLinkState"), at);
        links.most_up = links.most_up.max(nvlinks_up.unwrap_or(0));
        links.crc.on(nvlink_crc_errors, unclear("nvmlDeviceGetFieldValues"), at);
        if let Some(count) = nvlink_crc_errors {
            links.crc_rate.on(count, at);
        }
        if let Some(count) = nvlink_recoveries {
            links.recoveries.on(count, at);
        }
        if let Some(count) = nvlink_failed_recoveries {
            links.failed_recoveries.on(count, at);
        }
        links.fabric.on(fabric, unclear("nvmlDeviceGetGpuFabricInfoV"), at);

        let pcie = &mut self.pcie;
        pcie.width.on(
            pcie_width.zip(pcie_max_width),
            unclear("nvmlDeviceGetCurrPcieLinkWidth"),
            at,
        );
        let busy = sm_clock_mhz
            .zip(sm_clock_max_mhz)
            .is_some_and(|(now, most)| now > most / 2);
        pcie.generation.on(
            pcie_generation.zip(pcie_max_generation),
            busy,
            unclear("nvmlDeviceGetCurrPcieLinkGeneration"),
            at,
        );
        pcie.replays
            .on(pcie_replays, unclear("nvmlDeviceGetPcieReplayCounter"), at);
        if let Some(count) = pcie_replays {
            pcie.replay_rate.on(count, at);
        }

        let clocks = &mut self.clocks;
        clocks
            .margin
            .on(temperature_margin_c, unclear("nvmlDeviceGetMarginTemperature"), at);
        if let Some(held) = thermal_violation_ns {
            clocks.on_violation(Duration::from_nanos(held), at);
        }

        let driver = &mut self.driver;
        driver
            .recovery_action
            .on(recovery_action, unclear("nvmlDeviceGetFieldValues"), at);
        driver
            .inforom_valid
            .on(inforom_valid, unclear("nvmlDeviceValidateInforom"), at);
        driver
            .persistence
            .on(persistence_mode, unclear("nvmlDeviceGetPersistenceMode"), at);
    }

    /// The clocks-event-reasons mask of a sample. True where the verdict on throttling is another one now.
    pub fn on_clocks(&mut self, reasons: u64, at: Duration) -> bool {
        self.clocks.on_reasons(reasons, at)
    }

    /// What the kernel says of its PCI function; `None`: the machine has no such function.
    pub fn on_pci(&mut self, read: Option<&PciChecks>, at: Duration) {
        self.now = self.now.max(at);
        match read {
            Some(read) => self.pcie.on_kernel(read, at),
            // One that never was there is of a machine whose PCI cannot be seen.
            None => self.pcie.on_none(),
        }
    }

    /// Links that were up at the same time, at most.
    pub fn links(&self) -> u32 {
        self.links.most_up
    }

    /// The driver's own verdict, as last read.
    pub fn recovery_action(&self) -> Option<u32> {
        self.driver.recovery_action.value().copied()
    }

    /// Every check, in the order of what counts first where two are equally bad. `peer_links`: NVLinks of the node's other GPUs on the
    /// same fabric, at most.
    pub fn rows(&self, gpu: &Gpu, peer_links: u32) -> Vec<Row> {
        let now = self.now;
        let mut rows = self.pcie.rows(gpu, now);
        rows.extend(self.memory.rows(gpu, now));
        rows.extend([self.driver.inforom(now), self.driver.recovery_action(now)]);
        rows.extend(self.clocks.rows(now));
        rows.extend(self.links.rows(gpu, peer_links, now));
        rows.push(self.driver.persistence(now));
        rows.sort_by_key(|row| ORDER.iter().position(|check| *check == row.check));
        rows
    }
}

/// The order of the checks: those that say most of why a GPU ails come first.
const ORDER: [&str; 20] = [
    "PCI",
    "ECC",
    "SRAM",
    "row remapping",
    "retired pages",
    "infoROM",
    "recovery action",
    "throttling",
    "temperature",
    "repair",
    "spare rows",
    "ECC corrected",
    "PCIe width",
    "PCIe generation",
    "PCIe replays",
    "PCIe errors",
    "fabric",
    "NVLink",
    "NVLink errors",
    "persistence mode",
];

#[cfg(test)]
mod tests;
