//! Which readings are worth sending: those that moved, and every so often the others, so that they stay fresh.

use std::collections::HashMap;
use std::time::Duration;

use berth_core::facts::GpuSample;
use berth_core::freshness;

/// A GPU whose readings stand still is sent again after this long.
const QUIET: Duration = Duration::from_secs(3);
/// No GPU waits longer than this for its next reading to be sent, however far apart readings are.
const LATEST: Duration = Duration::from_millis(3500);
/// A reading that comes a little early for that counts as on time, since the next would come a whole interval later.
const EARLY: Duration = Duration::from_millis(250);
const _: () = assert!(
    LATEST.as_millis() + 1000 < freshness::SAMPLE_STALE.as_millis()
        && QUIET.as_millis() < LATEST.as_millis()
        && freshness::SLOWEST_SAMPLE.as_millis() < LATEST.as_millis(),
    "sent again before it is stale"
);

const UTILIZATION_POINTS: u64 = 5;
const MEMORY_BYTES: u64 = 64 << 20;
const MEMORY_SHARE: u64 = 100;
const POWER_SHARE: u64 = 20;
const TEMPERATURE: u64 = 2;

/// What the other side of one session knows.
#[derive(Debug, Default)]
pub struct DeadBand {
    sent: HashMap<String, (GpuSample, Duration)>,
}

impl DeadBand {
    /// Of the readings at `now` (on any clock that does not go back), those to send. They count as sent. `interval`: the next come so
    /// much later.
    pub fn pick<'a>(
        &mut self,
        readings: impl IntoIterator<Item = &'a GpuSample>,
        now: Duration,
        interval: Duration,
    ) -> Vec<GpuSample> {
        let mut picked = Vec::new();
        for reading in readings {
            let due = self.sent.get(&reading.uuid).is_none_or(|(last, at)| {
                let quiet = now.saturating_sub(*at);
                quiet + EARLY >= QUIET || quiet + interval > LATEST || moved(last, reading)
            });
            if due {
                self.sent.insert(reading.uuid.clone(), (reading.clone(), now));
                picked.push(reading.clone());
            }
        }
        picked
    }
}

/// Whether a reading left the dead-band around the one sent last. Clocks, activity and the like follow load and are sent along only.
fn moved(old: &GpuSample, new: &GpuSample) -> bool {
    let memory = |a: Option<u64>, b: Option<u64>| {
        let share = old.memory_total_bytes.map_or(u64::MAX, |total| total / MEMORY_SHARE);
        beyond(a, b, MEMORY_BYTES.min(share).max(1))
    };
    let wide = |v: Option<u32>| v.map(u64::from);
    beyond(wide(old.gpu_utilization), wide(new.gpu_utilization), UTILIZATION_POINTS)
        || beyond(
            wide(old.memory_utilization),
            wide(new.memory_utilization),
            UTILIZATION_POINTS,
        )
        || memory(old.memory_used_bytes, new.memory_used_bytes)
        || memory(old.memory_free_bytes, new.memory_free_bytes)
        || old.memory_total_bytes != new.memory_total_bytes
        || beyond(
            wide(old.power_mw),
            wide(new.power_mw),
            (wide(old.power_mw).unwrap_or(0) / POWER_SHARE).max(1),
        )
        || beyond(wide(old.temperature_c), wide(new.temperature_c), TEMPERATURE)
        || old.clocks_event_reasons != new.clocks_event_reasons
        || old.compute_processes != new.compute_processes
        || old.pods_state != new.pods_state
        || old.units_left != new.units_left
        || old.pods.len() != new.pods.len()
        || old.pods.iter().zip(&new.pods).any(|(old, new)| {
            (&old.pod, &old.uid, &old.containers, old.share) != (&new.pod, &new.uid, &new.containers, new.share)
                || memory(old.memory_bytes, new.memory_bytes)
        })
}

/// A difference of at least `band`, or a reading that came or went.
fn beyond(old: Option<u64>, new: Option<u64>, band: u64) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => old.abs_diff(new) >= band,
        (None, None) => false,
        (Some(_), None) | (None, Some(_)) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::facts::{PodUse, PodsState};

    fn reading() -> GpuSample {
        GpuSample {
            uuid: "GPU-1".into(),
            gpu_utilization: Some(50),
            memory_used_bytes: Some(10 << 30),
            memory_free_bytes: Some(70 << 30),
            memory_total_bytes: Some(80 << 30),
            power_mw: Some(400_000),
            temperature_c: Some(60),
            sm_clock_mhz: Some(1980),
            ..GpuSample::default()
        }
    }

    #[test]
    fn what_counts_as_moved() {
        type Change = fn(&mut GpuSample);
        let table: [(&str, bool, Change); 17] = [
            ("nothing", false, |_| ()),
            ("4 points", false, |s| s.gpu_utilization = Some(54)),
            ("5 points", true, |s| s.gpu_utilization = Some(45)),
            ("63 MiB", false, |s| s.memory_used_bytes = Some((10 << 30) + (63 << 20))),
            ("64 MiB", true, |s| s.memory_used_bytes = Some((10 << 30) - (64 << 20))),
            ("4 % of power", false, |s| s.power_mw = Some(416_000)),
            ("5 % of power", true, |s| s.power_mw = Some(380_000)),
            ("1 degree", false, |s| s.temperature_c = Some(61)),
            ("2 degrees", true, |s| s.temperature_c = Some(62)),
            ("a clock", false, |s| s.sm_clock_mhz = Some(300)),
            ("a reading that went", true, |s| s.temperature_c = None),
            ("a reading that came", true, |s| s.memory_utilization = Some(0)),
            ("a process", true, |s| s.compute_processes = Some(1)),
            ("a pod", true, |s| s.pods.push(PodUse::default())),
            ("pods that are not known any more", true, |s| {
                s.pods_state = PodsState::NotAvailable
            }),
            ("a unit that is held now", true, |s| s.units_left = Some(0)),
            ("the age of what is known of pods", false, |s| s.pods_age = Some(QUIET)),
        ];
        for (what, expected, change) in table {
            let mut new = reading();
            change(&mut new);
            assert_eq!(moved(&reading(), &new), expected, "{what}");
        }
        let small = |used| GpuSample {
            memory_used_bytes: Some(used),
            memory_total_bytes: Some(1 << 30),
            ..reading()
        };
        assert!(moved(&small(0), &small(11 << 20)), "1 % of a small MIG device");
    }

    /// Times, in ms, at which one of these readings was sent.
    fn sent(readings: impl IntoIterator<Item = (u64, GpuSample)>, interval_ms: u64) -> Vec<u64> {
        let mut band = DeadBand::default();
        let ms = Duration::from_millis;
        let due = |(at, reading): (u64, GpuSample)| {
            (!band.pick([&reading], ms(at), ms(interval_ms)).is_empty()).then_some(at)
        };
        readings.into_iter().filter_map(due).collect()
    }

    #[test]
    fn drift_adds_up_and_quiet_gpus_stay_fresh() {
        let still = (0..10).map(|s| (s * 1000, reading()));
        assert_eq!(sent(still, 1000), [0, 3000, 6000, 9000]);

        let drifting = (0..10u32).map(|tenth| {
            let reading = GpuSample {
                gpu_utilization: Some(50 + tenth),
                ..reading()
            };
            (u64::from(tenth) * 100, reading)
        });
        assert_eq!(sent(drifting, 100), [0, 500]);
    }

    #[test]
    fn no_reading_is_left_out_whose_next_would_come_too_late() {
        // A round of readings takes now longer, now less.
        for (interval, late) in [(100, 40), (1000, 400), (1500, 400), (2000, 400), (3000, 400)] {
            let rounds = (0..40).map(|n| (n * interval + [0, late, 0, late / 2][n as usize % 4], reading()));
            let sent = sent(rounds, interval);
            let longest = sent.windows(2).map(|w| w[1] - w[0]).max().unwrap();
            assert!(longest <= 3500, "{longest} ms apart, at {interval} ms: {sent:?}");
        }
    }
}
