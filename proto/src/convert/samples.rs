//! Readings.

use std::time::Duration;

use berth_core::facts;

use super::{alike, ms, pods};
use crate::v1;

alike! {
    facts::GpuSample = v1::GpuSample {
        uuid,
        gpu_utilization,
        memory_utilization,
        memory_used_bytes,
        memory_free_bytes,
        memory_total_bytes,
        power_mw,
        temperature_c,
        sm_clock_mhz,
        memory_clock_mhz,
        clocks_event_reasons,
        compute_processes,
        units_left,
        memory_reserved_bytes,
        memory_temperature_c,
        energy_mj,
        nvlink_bytes_per_second,
        graphics_active_ppm,
        sm_active_ppm,
        sm_occupancy_ppm,
        tensor_active_ppm,
        dram_active_ppm,
        pcie_tx_bytes_per_second,
        pcie_rx_bytes_per_second,
    } but |s| to wire {
        age_ms: ms(s.age),
        pods: s.pods.into_iter().map(Into::into).collect(),
        pods_state: pods::state(s.pods_state).into(),
        pods_age_ms: s.pods_age.map(ms),
    } to core {
        age: Duration::from_millis(s.age_ms),
        // Asked of the whole message, so before it is taken apart.
        pods_state: pods::read_state(s.pods_state()),
        pods: s.pods.into_iter().map(Into::into).collect(),
        pods_age: s.pods_age_ms.map(Duration::from_millis),
    }
}
