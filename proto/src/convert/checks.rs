//! What the health checks read, between probe and agent.

use berth_core::facts;

use super::alike;
use crate::probe::v1 as probe;

alike! {
    facts::GpuChecks = probe::GpuChecks {
        uuid,
        recovery_action,
        ecc_uncorrected_volatile,
        sram_threshold_exceeded,
        retired_pages,
        retired_pages_pending,
        nvlinks_up,
        nvlink_crc_errors,
        pcie_width,
        pcie_max_width,
        pcie_replays,
        inforom_valid,
        ecc_corrected_volatile,
        repair_pending,
        nvlink_recoveries,
        nvlink_failed_recoveries,
        pcie_generation,
        pcie_max_generation,
        sm_clock_mhz,
        sm_clock_max_mhz,
        temperature_margin_c,
        thermal_violation_ns,
        persistence_mode,
        unclear,
        encoder_utilization,
        decoder_utilization,
        vgpu_licensed,
    } maybe {
        remapped_rows,
        row_remap_histogram,
        fabric,
    }
}

alike! {
    facts::RemappedRows = probe::RemappedRows {
        correctable,
        uncorrectable,
        pending,
        failure,
    }
}

alike! {
    facts::RowRemapHistogram = probe::RowRemapHistogram {
        max,
        high,
        partial,
        low,
        none,
    }
}

alike! {
    facts::FabricHealth = probe::FabricHealth {
        state,
        status,
        health_mask,
        health_summary,
    }
}

alike! {
    facts::NodeChecks = probe::NodeChecks {
        confidential_compute_ready,
        fabric_manager_running,
        slow_pending,
        unclear,
    } but |c| to wire {
        lost: c.lost.into_iter().map(|(uuid, error)| probe::LostGpu { uuid, error }).collect(),
    } to core {
        lost: c.lost.into_iter().map(|l| (l.uuid, l.error)).collect(),
    }
}
