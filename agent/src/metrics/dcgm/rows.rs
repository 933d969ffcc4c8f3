//! The rows: dcgm-exporter's names, types and words, and where each value is from.

use berth_core::facts::{GpuChecks, GpuSample};

use crate::metrics::text::{Kind, Micro};

/// A value in the unit that the row's help names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// As it is.
    Whole(u64),
    /// In millionths.
    Fraction(Micro),
}

/// Where a value is from.
pub enum Source {
    /// The samples.
    Sample(fn(&GpuSample) -> Option<Value>),
    /// The health checks.
    Checks(fn(&GpuChecks) -> Option<Value>),
}

/// One metric.
pub struct Row {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub source: Source,
}

const fn gauge(name: &'static str, help: &'static str, source: Source) -> Row {
    Row {
        name,
        kind: Kind::Gauge,
        help,
        source,
    }
}

const fn counter(name: &'static str, help: &'static str, source: Source) -> Row {
    Row {
        name,
        kind: Kind::Counter,
        help,
        source,
    }
}

fn whole(value: Option<impl Into<u64>>) -> Option<Value> {
    value.map(|n| Value::Whole(n.into()))
}

fn mib(bytes: Option<u64>) -> Option<Value> {
    bytes.map(|n| Value::Whole(n >> 20))
}

fn ratio(ppm: Option<u32>) -> Option<Value> {
    ppm.map(|n| Value::Fraction(Micro(n.into())))
}

fn watts(milliwatts: Option<u32>) -> Option<Value> {
    milliwatts.map(|n| Value::Fraction(Micro(u64::from(n) * 1000)))
}

/// DCGM divides KiB by 1000.
fn nvlink(bytes: Option<u64>) -> Option<Value> {
    bytes.map(|n| Value::Whole(n / 1024 / 1000))
}

use Source::{Checks, Sample};

/// dcgm-exporter's `etc/default-counters.csv` in its order, with two activities of multiprocessors that are off by default there. The
/// XID among its rows is written apart, and the driver's version is a label.
#[rustfmt::skip]
pub const ROWS: [Row; 26] = [
    gauge("DCGM_FI_DEV_SM_CLOCK", "SM clock frequency (in MHz).", Sample(|s| whole(s.sm_clock_mhz))),
    gauge("DCGM_FI_DEV_MEM_CLOCK", "Memory clock frequency (in MHz).", Sample(|s| whole(s.memory_clock_mhz))),
    gauge("DCGM_FI_DEV_MEMORY_TEMP", "Memory temperature (in C).", Sample(|s| whole(s.memory_temperature_c))),
    gauge("DCGM_FI_DEV_GPU_TEMP", "GPU temperature (in C).", Sample(|s| whole(s.temperature_c))),
    gauge("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W).", Sample(|s| watts(s.power_mw))),
    counter("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "Total energy consumption since boot (in mJ).",
        Sample(|s| whole(s.energy_mj))),
    counter("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "Total number of PCIe retries.", Checks(|c| whole(c.pcie_replays))),
    gauge("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", Sample(|s| whole(s.gpu_utilization))),
    gauge("DCGM_FI_DEV_MEM_COPY_UTIL", "Memory utilization (in %).", Sample(|s| whole(s.memory_utilization))),
    gauge("DCGM_FI_DEV_ENC_UTIL", "Encoder utilization (in %).", Checks(|c| whole(c.encoder_utilization))),
    gauge("DCGM_FI_DEV_DEC_UTIL", "Decoder utilization (in %).", Checks(|c| whole(c.decoder_utilization))),
    gauge("DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).", Sample(|s| mib(s.memory_free_bytes))),
    gauge("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", Sample(|s| mib(s.memory_used_bytes))),
    gauge("DCGM_FI_DEV_FB_RESERVED", "Framebuffer memory reserved (in MiB).", Sample(|s| mib(s.memory_reserved_bytes))),
    gauge("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", "Total number of NVLink bandwidth counters for all lanes.",
        Sample(|s| nvlink(s.nvlink_bytes_per_second))),
    gauge("DCGM_FI_DEV_VGPU_LICENSE_STATUS", "vGPU License status", Checks(|c| whole(c.vgpu_licensed))),
    counter("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "Number of remapped rows for uncorrectable errors",
        Checks(|c| whole(c.remapped_rows.map(|rows| rows.uncorrectable)))),
    counter("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", "Number of remapped rows for correctable errors",
        Checks(|c| whole(c.remapped_rows.map(|rows| rows.correctable)))),
    gauge("DCGM_FI_DEV_ROW_REMAP_FAILURE", "Whether remapping of rows has failed",
        Checks(|c| whole(c.remapped_rows.map(|rows| rows.failure)))),
    gauge("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "Ratio of time the graphics engine is active.",
        Sample(|s| ratio(s.graphics_active_ppm))),
    gauge("DCGM_FI_PROF_SM_ACTIVE", "The ratio of cycles an SM has at least 1 warp assigned.",
        Sample(|s| ratio(s.sm_active_ppm))),
    gauge("DCGM_FI_PROF_SM_OCCUPANCY", "The ratio of number of warps resident on an SM.",
        Sample(|s| ratio(s.sm_occupancy_ppm))),
    gauge("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "Ratio of cycles the tensor (HMMA) pipe is active.",
        Sample(|s| ratio(s.tensor_active_ppm))),
    gauge("DCGM_FI_PROF_DRAM_ACTIVE",
        "Ratio of cycles the device memory interface is active sending or receiving data.",
        Sample(|s| ratio(s.dram_active_ppm))),
    gauge("DCGM_FI_PROF_PCIE_TX_BYTES",
        "The rate of data transmitted over the PCIe bus - including both protocol headers and data payloads - in bytes per second.",
        Sample(|s| whole(s.pcie_tx_bytes_per_second))),
    gauge("DCGM_FI_PROF_PCIE_RX_BYTES",
        "The rate of data received over the PCIe bus - including both protocol headers and data payloads - in bytes per second.",
        Sample(|s| whole(s.pcie_rx_bytes_per_second))),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_twice() {
        let mut names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }

    #[test]
    fn units_are_those_of_the_help() {
        let sample = GpuSample {
            power_mw: Some(70_042),
            memory_used_bytes: Some((5 << 30) + 1),
            nvlink_bytes_per_second: Some(204_800_000_000),
            dram_active_ppm: Some(123_456),
            energy_mj: Some(u64::MAX),
            ..GpuSample::default()
        };
        for (name, want) in [
            ("DCGM_FI_DEV_POWER_USAGE", Some(Value::Fraction(Micro(70_042_000)))),
            ("DCGM_FI_DEV_FB_USED", Some(Value::Whole(5120))),
            ("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", Some(Value::Whole(200_000))),
            ("DCGM_FI_PROF_DRAM_ACTIVE", Some(Value::Fraction(Micro(123_456)))),
            ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", Some(Value::Whole(u64::MAX))),
            ("DCGM_FI_DEV_GPU_UTIL", None),
        ] {
            let Some(Row { source: Sample(of), .. }) = ROWS.iter().find(|row| row.name == name) else {
                panic!("{name} is from the samples");
            };
            assert_eq!(of(&sample), want, "{name}");
        }
    }
}
