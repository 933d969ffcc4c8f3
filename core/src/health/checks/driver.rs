//! What the driver says of one GPU: what it asks for, its infoROM, whether it stays.

use std::time::Duration;

use super::reading::{Last, STALE_HOURLY};
use super::row::Row;
use crate::health::Reason;

/// What was read of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Driver {
    pub recovery_action: Last<u32>,
    pub inforom_valid: Last<bool>,
    pub persistence: Last<bool>,
}

impl Driver {
    pub fn inforom(&self, now: Duration) -> Row {
        const CHECK: &str = "infoROM";
        self.inforom_valid
            .row_within(STALE_HOURLY, CHECK, now, |valid| match valid {
                true => Row::passed(CHECK, ""),
                false => Row::unhealthy(
                    CHECK,
                    Reason::InforomCorrupted,
                    "the infoROM is corrupted: contact the vendor",
                ),
            })
    }

    pub fn recovery_action(&self, now: Duration) -> Row {
        self.recovery_action
            .row("recovery action", now, |action| recovery_action(*action))
    }

    pub fn persistence(&self, now: Duration) -> Row {
        const CHECK: &str = "persistence mode";
        self.persistence.row(CHECK, now, |on| match on {
            true => Row::passed(CHECK, "on"),
            false => Row::suspect(
                CHECK,
                Reason::PersistenceModeOff,
                "persistence mode is off, so the first use of the GPU may take seconds: start nvidia-persistenced",
            ),
        })
    }
}

/// Values of NVML's `nvmlDeviceGpuRecoveryAction_t`; 5 and up are in newer headers or the documentation alone.
fn recovery_action(action: u32) -> Row {
    const CHECK: &str = "recovery action";
    let unhealthy = |message: &str| Row::unhealthy(CHECK, Reason::RecoveryAction, message);
    match action {
        0 => Row::passed(CHECK, "none"),
        1 => unhealthy("the driver asks for a reset of the GPU"),
        2 => unhealthy("the driver asks for a restart of the machine"),
        3 => unhealthy("the driver asks to drain peer-to-peer traffic and reset the GPU"),
        4 => unhealthy("the driver asks to drain the GPU and reset it"),
        5 => Row::suspect(
            CHECK,
            Reason::RecoveryAction,
            "the driver asks to recover the IMEX domain",
        ),
        6 => unhealthy("the driver asks for a reset of the bus"),
        7 => unhealthy("the driver asks for a restart of the system"),
        other => unhealthy(&format!(
            "the driver asks for recovery action {other}, which is not known here"
        )),
    }
}
