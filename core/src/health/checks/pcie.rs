//! The PCIe link: by NVML, and by the kernel, which needs no library.

use std::time::Duration;

use super::reading::{Growth, Last, Rate};
use super::row::{Outcome, Row};
use crate::facts::{Gpu, PciChecks};
use crate::health::Reason;

/// PCIe replays a minute that a sound link does not have.
const REPLAYS_A_MINUTE: u64 = 8;
/// Correctable errors a minute (1 a second): the link hides them, at the cost of speed.
const CORRECTABLE_A_MINUTE: u64 = 60;
/// A link follows the clocks within a moment; slower than this it does not.
const SLOW_FOR: Duration = Duration::from_secs(10);
/// Parts beside their processor on one package: what they say of PCIe is made up.
const WITHOUT_PCIE: [&str; 3] = ["GB10", "Orin", "Thor"];

/// What was read of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Pcie {
    pub answers: Last<bool>,
    there: bool,
    /// The function was there before, and is not now.
    gone: bool,
    /// (lanes, lanes that there can be), by NVML.
    pub width: Last<(u32, u32)>,
    /// The same, by the kernel.
    pub kernel_width: Last<(u32, u32)>,
    pub generation: Generation,
    pub replays: Last<u64>,
    pub replay_rate: Rate,
    pub correctable: Last<u64>,
    pub correctable_rate: Rate,
    pub uncorrectable: Growth,
}

/// A GPU that idles lowers the generation of its link: what it has then says nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Generation {
    last: Last<(u32, u32)>,
    slow_since: Option<Duration>,
    slow: bool,
}

impl Generation {
    /// `busy`: whether the clocks were up when it was read.
    pub fn on(&mut self, link: Option<(u32, u32)>, busy: bool, unclear: bool, at: Duration) {
        match link {
            Some((now, most)) if now >= most => (self.slow_since, self.slow) = (None, false),
            Some(_) if busy => {
                let since = *self.slow_since.get_or_insert(at);
                self.slow |= at.saturating_sub(since) >= SLOW_FOR;
            }
            // Idle: what was found before is neither confirmed nor gone.
            Some(_) => self.slow_since = None,
            None => {}
        }
        self.last.on(link, unclear, at);
    }

    fn row(&self, now: Duration) -> Row {
        const CHECK: &str = "PCIe generation";
        self.last.row(CHECK, now, |(generation, most)| match self.slow {
            true => Row::suspect(
                CHECK,
                Reason::PcieGeneration,
                format!("the PCIe link of the busy GPU is slower than generation {most}: reseat the card"),
            ),
            false if generation < most => Row::passed(
                CHECK,
                format!("{generation} of {most}: the GPU idles, or woke just now"),
            ),
            false => Row::passed(CHECK, format!("{generation} of {most}")),
        })
    }
}

impl Pcie {
    /// The kernel has no such function. One that never was there is of a machine whose PCI cannot be seen.
    pub fn on_none(&mut self) {
        self.gone = self.there;
    }

    /// What the kernel says at `at`.
    pub fn on_kernel(&mut self, read: &PciChecks, at: Duration) {
        (self.there, self.gone) = (true, false);
        self.answers.on(read.answers, false, at);
        self.kernel_width.on(read.width.zip(read.max_width), false, at);
        if let Some(count) = read.aer_correctable {
            self.correctable_rate.on(count, at);
        }
        self.correctable.on(read.aer_correctable, false, at);
        let uncorrectable = [read.aer_nonfatal, read.aer_fatal].into_iter().flatten();
        if let Some(count) = uncorrectable.reduce(u64::saturating_add) {
            self.uncorrectable.on(count, at);
        }
    }

    pub fn rows(&self, gpu: &Gpu, now: Duration) -> Vec<Row> {
        let made_up = |name: &str| name.split_whitespace().any(|word| WITHOUT_PCIE.contains(&word));
        let mut rows = vec![self.lost(now)];
        if gpu.product.as_deref().is_some_and(made_up) {
            rows.extend(["PCIe width", "PCIe generation", "PCIe replays"].map(|c| Row::new(c, Outcome::NotSupported)));
        } else {
            rows.extend([self.width(now), self.generation.row(now), self.replays(now)]);
        }
        rows.push(self.errors(now));
        rows
    }

    fn lost(&self, now: Duration) -> Row {
        const CHECK: &str = "PCI";
        if self.gone {
            return Row::unhealthy(
                CHECK,
                Reason::GpuLost,
                "the machine no longer has the PCI function: restart it",
            );
        }
        self.answers.row(CHECK, now, |answers| match answers {
            true => Row::passed(CHECK, "answers"),
            false => Row::unhealthy(
                CHECK,
                Reason::GpuLost,
                "its PCI configuration reads all ones, so the GPU has fallen off the bus: restart the machine",
            ),
        })
    }

    /// By NVML, or by the kernel where NVML does not tell (any more).
    fn width(&self, now: Duration) -> Row {
        let nvml = self.width.is_fresh(now) || self.kernel_width.value().is_none();
        let width = if nvml { &self.width } else { &self.kernel_width };
        width.row("PCIe width", now, |(lanes, most)| judge_width(*lanes, *most))
    }

    fn replays(&self, now: Duration) -> Row {
        const CHECK: &str = "PCIe replays";
        self.replays.row(CHECK, now, |_| {
            self.replay_rate.row(CHECK, REPLAYS_A_MINUTE, || {
                Row::suspect(
                    CHECK,
                    Reason::PcieReplays,
                    format!("the PCIe link repeats more than {REPLAYS_A_MINUTE} packets a minute: reseat the card"),
                )
            })
        })
    }

    fn errors(&self, now: Duration) -> Row {
        const CHECK: &str = "PCIe errors";
        if self.uncorrectable.is_recent(now) {
            return Row::suspect(
                CHECK,
                Reason::PcieErrors,
                "the kernel counted PCIe errors that could not be corrected: read the kernel log, reseat the card",
            );
        }
        self.correctable.row(CHECK, now, |_| {
            self.correctable_rate.row(CHECK, CORRECTABLE_A_MINUTE, || {
                Row::suspect(
                    CHECK,
                    Reason::PcieErrors,
                    format!("more than {CORRECTABLE_A_MINUTE} corrected PCIe errors a minute: reseat the card"),
                )
            })
        })
    }
}

fn judge_width(lanes: u32, most: u32) -> Row {
    const CHECK: &str = "PCIe width";
    if lanes >= most {
        return Row::passed(CHECK, format!("{lanes} of {most} lanes"));
    }
    Row::suspect(
        CHECK,
        Reason::PcieWidth,
        format!("the PCIe link has {lanes} of {most} lanes: reseat the card"),
    )
}

/// What the kernel alone says of a function, at one look: rates are not known.
pub fn rows_of_function(read: &PciChecks) -> Vec<Row> {
    let mut pcie = Pcie::default();
    pcie.on_kernel(read, Duration::ZERO);
    vec![pcie.lost(Duration::ZERO), pcie.width(Duration::ZERO)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_slow_link_counts_only_while_the_gpu_is_busy() {
        use Outcome::{Passed, Suspect};
        let mut link = Generation::default();
        for (what, at, generation, busy, want) in [
            ("idle", 0, 1, false, Passed),
            ("just woken", 15, 1, true, Passed),
            ("it followed", 16, 5, true, Passed),
            ("slow, once", 30, 3, true, Passed),
            ("idle between", 45, 1, false, Passed),
            ("slow again, once", 60, 3, true, Passed),
            ("slow for long", 75, 3, true, Suspect),
            ("idle clears nothing", 90, 1, false, Suspect),
            ("full speed", 105, 5, false, Passed),
        ] {
            link.on(Some((generation, 5)), busy, false, S(at));
            assert_eq!(link.row(S(at)).outcome, want, "{what}");
        }
    }

    #[test]
    fn a_part_on_one_package_with_its_processor_has_no_link() {
        for (product, want) in [
            ("NVIDIA GB10", Outcome::NotSupported),
            ("NVIDIA GB200", Outcome::Suspect),
            ("NVIDIA H100 80GB HBM3", Outcome::Suspect),
        ] {
            let gpu = Gpu {
                product: Some(product.into()),
                ..Gpu::default()
            };
            let mut pcie = Pcie::default();
            pcie.width.on(Some((1, 16)), false, S(0));
            let rows = pcie.rows(&gpu, S(0));
            let width = rows.iter().find(|r| r.check == "PCIe width").unwrap();
            assert_eq!(width.outcome, want, "{product}");
        }
    }

    #[test]
    fn the_kernel_tells_where_nvml_does_not() {
        let mut pcie = Pcie::default();
        pcie.width.on(Some((16, 16)), false, S(0));
        let narrow = PciChecks {
            width: Some(8),
            max_width: Some(16),
            ..PciChecks::default()
        };
        pcie.on_kernel(&narrow, S(0));
        assert_eq!(pcie.width(S(1)).outcome, Outcome::Passed);
        pcie.on_kernel(&narrow, S(1000));
        assert_eq!(pcie.width(S(1000)).outcome, Outcome::Suspect);
    }

    #[test]
    fn errors_that_the_kernel_counts() {
        use Outcome::{NotSupported, Passed, Suspect, Unknown};
        let mut pcie = Pcie::default();
        assert_eq!(pcie.errors(S(0)).outcome, NotSupported);
        for (at, correctable, nonfatal, fatal, want) in [
            (0, 500, 3, 1, Unknown),
            (60, 560, 3, 1, Passed),
            (120, 700, 3, 1, Suspect),
            (180, 700, 3, 1, Passed),
            (240, 700, 4, 1, Suspect),
            (840, 700, 4, 1, Passed),
            (900, 700, 4, 2, Suspect),
        ] {
            pcie.on_kernel(
                &PciChecks {
                    aer_correctable: Some(correctable),
                    aer_nonfatal: Some(nonfatal),
                    aer_fatal: Some(fatal),
                    ..PciChecks::default()
                },
                S(at),
            );
            assert_eq!(pcie.errors(S(at)).outcome, want, "at {at} s");
        }
    }

    #[test]
    fn a_function_that_reads_all_ones_or_is_gone_is_lost() {
        for (answers, want) in [
            (None, Outcome::NotSupported),
            (Some(true), Outcome::Passed),
            (Some(false), Outcome::Unhealthy),
        ] {
            let read = PciChecks {
                answers,
                ..PciChecks::default()
            };
            assert_eq!(rows_of_function(&read)[0].outcome, want, "{answers:?}");
        }
        let gone = Pcie {
            gone: true,
            ..Pcie::default()
        };
        assert_eq!(gone.lost(S(0)).reason, Some(Reason::GpuLost));
    }
}
