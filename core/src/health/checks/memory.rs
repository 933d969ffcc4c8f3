//! A GPU's memory: ECC, remapped rows, retired pages.

use std::time::Duration;

use super::reading::{Last, Rate};
use super::row::{Outcome, Row};
use crate::facts::{Gpu, RemappedRows, RowRemapHistogram};
use crate::health::Reason;

/// Retired pages that are worth watching, and those after which the vendor takes the part back.
const RETIRED_SOFT: u32 = 15;
const RETIRED_MOST: u32 = 63;
/// Corrected errors a minute that sound memory does not have.
const CORRECTED_A_MINUTE: u64 = 10;
const HIDDEN_BY_MIG: &str = "the driver does not tell while MIG instances are active";

/// What was read of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    pub uncorrected: Last<u64>,
    pub corrected: Last<u64>,
    pub corrected_rate: Rate,
    pub sram_exceeded: Last<bool>,
    pub remapped: Last<RemappedRows>,
    pub histogram: Last<RowRemapHistogram>,
    pub retired: Last<u32>,
    pub retired_pending: Last<bool>,
    pub repair_pending: Last<bool>,
}

impl Memory {
    pub fn rows(&self, gpu: &Gpu, now: Duration) -> Vec<Row> {
        // The driver tells nothing while MIG instances are active. What was ill before is so still.
        let hidden = gpu.mig.as_ref().is_some_and(|m| m.enabled && !m.devices.is_empty());
        let unless_hidden = |row: Row| match row.outcome {
            Outcome::Suspect | Outcome::Unhealthy => row,
            Outcome::Passed | Outcome::NotSupported | Outcome::Unknown if hidden => {
                Row::unknown(row.check, HIDDEN_BY_MIG)
            }
            Outcome::Passed | Outcome::NotSupported | Outcome::Unknown => row,
        };
        vec![
            self.uncorrected.row("ECC", now, ecc),
            self.sram_exceeded.row("SRAM", now, sram),
            unless_hidden(self.remapped.row("row remapping", now, row_remap)),
            self.retired_pages(now),
            self.repair_pending.row("repair", now, repair),
            unless_hidden(self.histogram.row("spare rows", now, spare_rows)),
            self.corrected.row("ECC corrected", now, |_| {
                self.corrected_rate.row("ECC corrected", CORRECTED_A_MINUTE, || {
                    Row::suspect(
                        "ECC corrected",
                        Reason::CorrectableErrors,
                        format!(
                            "more than {CORRECTED_A_MINUTE} corrected memory errors a minute: watch the GPU's memory"
                        ),
                    )
                })
            }),
        ]
    }

    fn retired_pages(&self, now: Duration) -> Row {
        const CHECK: &str = "retired pages";
        let ill = |outcome: fn(&'static str, Reason, String) -> Row, message: &str| {
            outcome(CHECK, Reason::RetiredPages, message.to_owned())
        };
        let count = self.retired.row(CHECK, now, |count| match *count {
            RETIRED_MOST.. => ill(
                Row::unhealthy,
                "as many pages of memory are retired as can be: replace the GPU",
            ),
            count if count > RETIRED_SOFT => ill(
                Row::suspect,
                "more than 15 pages of memory are retired: plan a replacement",
            ),
            count => Row::passed(CHECK, count.to_string()),
        });
        let pending = self.retired_pending.row(CHECK, now, |pending| match pending {
            true => ill(Row::suspect, "pages of memory wait to be retired: restart the machine"),
            false => Row::passed(CHECK, ""),
        });
        match (count.outcome, pending.outcome) {
            (Outcome::Unhealthy, _) => count,
            (_, Outcome::Suspect) | (Outcome::NotSupported, _) => pending,
            _ => count,
        }
    }
}

fn ecc(count: &u64) -> Row {
    match count {
        0 => Row::passed("ECC", "0 uncorrectable"),
        count => Row::unhealthy(
            "ECC",
            Reason::DoubleBitError,
            format!("{count} uncorrectable memory error(s): drain the node and reset the GPU"),
        ),
    }
}

fn sram(exceeded: &bool) -> Row {
    match exceeded {
        false => Row::passed("SRAM", ""),
        true => Row::unhealthy(
            "SRAM",
            Reason::SramThreshold,
            "uncorrectable SRAM errors passed the vendor's threshold: replace the GPU",
        ),
    }
}

fn row_remap(rows: &RemappedRows) -> Row {
    const CHECK: &str = "row remapping";
    if rows.failure {
        Row::unhealthy(
            CHECK,
            Reason::RowRemapFailure,
            "a row of memory could not be remapped: replace the GPU",
        )
    } else if rows.pending {
        Row::suspect(
            CHECK,
            Reason::RowRemapPending,
            "a row of memory waits to be remapped: reset the GPU when it is idle",
        )
    } else {
        Row::passed(
            CHECK,
            format!("{} remapped", rows.correctable.saturating_add(rows.uncorrectable)),
        )
    }
}

fn spare_rows(banks: &RowRemapHistogram) -> Row {
    const CHECK: &str = "spare rows";
    let short = u64::from(banks.low) + u64::from(banks.none);
    match short {
        0 => Row::passed(
            CHECK,
            format!(
                "banks: {} full, {} high, {} partial",
                banks.max, banks.high, banks.partial
            ),
        ),
        short => Row::suspect(
            CHECK,
            Reason::RowRemapHeadroom,
            format!("{short} bank(s) of memory have few spare rows left, or none: plan a replacement"),
        ),
    }
}

fn repair(pending: &bool) -> Row {
    match pending {
        false => Row::passed("repair", ""),
        true => Row::suspect(
            "repair",
            Reason::RepairPending,
            "a part of the GPU waits to be repaired: reset the GPU when it is idle",
        ),
    }
}
