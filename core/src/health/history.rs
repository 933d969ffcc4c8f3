//! What single events do not say and several do: patterns in the events of one GPU.
//!
//! | events of one GPU | within | means |
//! |---|---|---|
//! | XID 13 or 31 of 3 processes with 2 names, or of 6 with one name | 24 h | Suspect: the hardware, where no other GPU of the node had one of a process so named |
//! | XID 63 or 92, or NVML's events of the same, 3 times | 24 h | Suspect: the memory goes bad |
//! | XID 45 without any other XID 5 s before or after, on a part with a fabric | 10 min | Suspect: restart the application, or the fabric manager |
//! | XID 74 of one link that is worth watching, for the third time | 24 h | Unhealthy |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::fault::Fault;
use super::words::{self, Process};
use super::xid::Effect;
use super::{Reason, nvml_event};
use crate::facts::{GpuEvent, GpuEventKind};

/// Events that are further apart are no pattern.
const WINDOW: Duration = Duration::from_secs(24 * 3600);
/// Two sources tell of one event within this time.
const TWINS: Duration = Duration::from_secs(2);
/// What follows a fault, follows it within this time.
const CONSEQUENCE: Duration = Duration::from_secs(5);
/// How long a cleanup without a cause is worth watching.
const AFTER_CLEANUP: Duration = Duration::from_secs(600);

/// Processes whose work failed on the one GPU alone, at least: one may have a bug, and start anew.
const PROCESSES: usize = 3;
const NAMES: usize = 2;
const PROCESSES_OF_ONE_NAME: usize = 6;
/// Times that memory was retired, or had many corrected errors.
const MEMORY_EVENTS: usize = 3;
/// Times that a link had an error of the kind that is worth watching.
const LINK_ERRORS: usize = 3;

/// Kept of each: more says no more.
const MOST: usize = 32;

/// Events of one GPU, as far as patterns need them. Times are on the tracker's clock.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    /// Each process once, with the time of its last XID 13 or 31.
    processes: VecDeque<(Process, Duration)>,
    memory: VecDeque<Duration>,
    links: BTreeMap<u32, VecDeque<Duration>>,
    last_cleanup: Option<Duration>,
    /// Of the XIDs other than 45.
    last_other: Option<Duration>,
}

fn keep<T>(events: &mut VecDeque<T>, new: T) {
    if events.len() == MOST {
        events.pop_front();
    }
    events.push_back(new);
}

fn recent(at: Duration, now: Duration) -> bool {
    now.saturating_sub(at) <= WINDOW
}

impl History {
    /// An event that happened at `at`.
    pub fn on_event(&mut self, event: &GpuEvent, at: Duration) {
        match &event.kind {
            GpuEventKind::Xid(xid) => {
                match xid {
                    45 => self.last_cleanup = self.last_cleanup.max(Some(at)),
                    _ => self.last_other = self.last_other.max(Some(at)),
                }
                match xid {
                    13 | 31 => {
                        if let Some(process) = words::process(&event.detail) {
                            self.processes.retain(|(known, _)| *known != process);
                            keep(&mut self.processes, (process, at));
                        }
                    }
                    63 | 92 => self.on_memory(at),
                    74 => {
                        if let Some(link) = words::link(&event.detail) {
                            keep(self.links.entry(link).or_default(), at);
                        }
                    }
                    _ => {}
                }
            }
            GpuEventKind::Other(name) if [nvml_event::STORM, nvml_event::RETIREMENT].contains(&&**name) => {
                self.on_memory(at)
            }
            GpuEventKind::Other(_) => {}
        }
    }

    fn on_memory(&mut self, at: Duration) {
        if self.memory.iter().all(|known| known.abs_diff(at) > TWINS) {
            keep(&mut self.memory, at);
        }
    }

    /// Whether the link that the event names had as many errors as a sound one does not have.
    pub fn is_repeated_on_its_link(&self, event: &GpuEvent, now: Duration) -> bool {
        let link = words::link(&event.detail).and_then(|link| self.links.get(&link));
        link.is_some_and(|times| times.iter().filter(|at| recent(**at, now)).count() >= LINK_ERRORS)
    }

    /// Of the processes that had an XID 13 or 31.
    fn names(&self, now: Duration) -> impl Iterator<Item = &str> {
        let recent = self.processes.iter().filter(move |(_, at)| recent(*at, now));
        recent.map(|(process, _)| &*process.name)
    }

    /// The pattern that is there at `now`. `others`: the node's other GPUs; `on_fabric`: a fabric manager serves the part.
    pub fn pattern<'h>(
        &self,
        others: impl Iterator<Item = &'h History>,
        on_fabric: bool,
        now: Duration,
    ) -> Option<Fault> {
        self.repeated_xids(others, now)
            .or_else(|| self.memory_trend(now))
            .or_else(|| self.cleanup(on_fabric, now))
    }

    fn repeated_xids<'h>(&self, others: impl Iterator<Item = &'h History>, now: Duration) -> Option<Fault> {
        if self.names(now).count() < PROCESSES {
            return None;
        }
        let mut has_peers = false;
        let elsewhere: BTreeSet<&str> = others
            .inspect(|_| has_peers = true)
            .flat_map(|other| other.names(now))
            .collect();
        let here: Vec<&str> = self.names(now).filter(|name| !elsewhere.contains(name)).collect();
        let names = here.iter().collect::<BTreeSet<_>>().len();
        // One program that starts again and again may have a bug; that it fails on no other GPU says something only where there is one.
        let enough = match names {
            0 => false,
            1 => has_peers && here.len() >= PROCESSES_OF_ONE_NAME,
            n => n >= NAMES && here.len() >= PROCESSES,
        };
        enough.then(|| {
            Fault::seen(
                Effect::Suspect,
                Reason::RepeatedXids,
                "XID 13 or 31 of several processes on this GPU alone: run the vendor's field diagnostics".into(),
            )
        })
    }

    fn memory_trend(&self, now: Duration) -> Option<Fault> {
        let times = self.memory.iter().filter(|at| recent(**at, now)).count();
        (times >= MEMORY_EVENTS).then(|| {
            Fault::seen(
                Effect::Suspect,
                Reason::MemoryErrorTrend,
                format!("memory was retired or had many corrected errors {MEMORY_EVENTS} times in a day (XID 63, 92): plan for a replacement"),
            )
        })
    }

    fn cleanup(&self, on_fabric: bool, now: Duration) -> Option<Fault> {
        let at = self.last_cleanup.filter(|_| on_fabric)?;
        let is_consequence = self.last_other.is_some_and(|other| other.abs_diff(at) <= CONSEQUENCE);
        let age = now.saturating_sub(at);
        (!is_consequence && age >= CONSEQUENCE && age < AFTER_CLEANUP).then(|| {
            Fault::seen(
                Effect::Suspect,
                Reason::XidWarning,
                "XID 45 without another fault: restart the application, and the fabric manager if it fails again"
                    .into(),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: GpuEventKind, detail: &str) -> GpuEvent {
        GpuEvent {
            kind,
            uuid: None,
            pci_address: None,
            age: Duration::ZERO,
            source: "kmsg".into(),
            detail: detail.into(),
            instance: None,
        }
    }

    const HOUR: u64 = 3600;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// XID, text, second.
    fn history(events: &[(u64, &str, u64)]) -> History {
        let mut history = History::default();
        for (xid, detail, at) in events {
            history.on_event(&event(GpuEventKind::Xid(*xid), detail), s(*at));
        }
        history
    }

    #[test]
    fn application_errors_of_several_processes_on_one_gpu_alone() {
        let python = |pid: u32| format!("pid={pid}, name=python3, Graphics Exception");
        let pythons: Vec<String> = (1..=6).map(python).collect();
        let of_one: Vec<(u64, &str, u64)> = pythons.iter().map(|text| (31, &**text, 1)).collect();
        let (train, serve) = ("pid=7, name=train, x", "pid=8, name=serve, x");
        let three = vec![(13, &*pythons[0], 0), (31, train, HOUR), (31, serve, 2 * HOUR)];
        let unnamed = (31, "pid='<unknown>', name=<unknown>, x", 0);
        for (what, here, there, at, want) in [
            ("three, of three names", three.clone(), Some(vec![]), 3 * HOUR, true),
            ("the same on a node with one GPU", three.clone(), None, 3 * HOUR, true),
            (
                "the first is too long ago",
                three.clone(),
                Some(vec![]),
                25 * HOUR,
                false,
            ),
            (
                "one of them fails elsewhere, too",
                three.clone(),
                Some(vec![(31, train, HOUR)]),
                3 * HOUR,
                false,
            ),
            (
                "that is long ago",
                three.clone(),
                Some(vec![(31, train, 0)]),
                HOUR * 24 + 1,
                false,
            ),
            ("two", three[..2].to_vec(), Some(vec![]), 3 * HOUR, false),
            (
                "one process again and again",
                vec![(31, train, 1), (31, train, 9), (31, train, 99), (13, serve, 100)],
                Some(vec![]),
                HOUR,
                false,
            ),
            (
                "nobody's work",
                vec![unnamed, unnamed, unnamed],
                Some(vec![]),
                HOUR,
                false,
            ),
            ("six of one name", of_one.clone(), Some(vec![]), HOUR, true),
            ("five of one name", of_one[..5].to_vec(), Some(vec![]), HOUR, false),
            (
                "six of one name, nothing to compare with",
                of_one.clone(),
                None,
                HOUR,
                false,
            ),
            (
                "six of one name that fails elsewhere",
                of_one.clone(),
                Some(of_one[..1].to_vec()),
                HOUR,
                false,
            ),
            (
                "other XIDs",
                vec![(43, train, 0), (43, serve, 0), (94, &pythons[0], 0)],
                Some(vec![]),
                HOUR,
                false,
            ),
        ] {
            let there = there.map(|events| history(&events));
            let is = history(&here).pattern(there.iter(), false, s(at));
            assert_eq!(is.map(|f| f.reason), want.then_some(Reason::RepeatedXids), "{what}");
        }
    }

    #[test]
    fn memory_that_goes_bad() {
        let storm = |at: u64| (event(GpuEventKind::Other(nvml_event::STORM.into()), ""), at);
        let retired = |at: u64| (event(GpuEventKind::Other(nvml_event::RETIREMENT.into()), ""), at);
        let xid = |n: u64, at: u64| (event(GpuEventKind::Xid(n), ""), at);
        for (what, events, at, want) in [
            (
                "three",
                vec![xid(63, 0), xid(92, HOUR), xid(63, 2 * HOUR)],
                3 * HOUR,
                true,
            ),
            ("two", vec![xid(63, 0), xid(92, HOUR)], 2 * HOUR, false),
            (
                "three, one of them long ago",
                vec![xid(63, 0), xid(92, HOUR), xid(63, 2 * HOUR)],
                25 * HOUR,
                false,
            ),
            (
                "told twice each",
                vec![xid(63, 0), retired(1), xid(92, HOUR), storm(HOUR + 2)],
                2 * HOUR,
                false,
            ),
            ("NVML's", vec![storm(0), retired(60), storm(120)], 180, true),
            ("others", vec![xid(48, 0), xid(94, 60), xid(64, 120)], 180, false),
        ] {
            let mut history = History::default();
            for (event, at) in events {
                history.on_event(&event, s(at));
            }
            let is = history.pattern(std::iter::empty(), false, s(at));
            assert_eq!(is.map(|f| f.reason), want.then_some(Reason::MemoryErrorTrend), "{what}");
        }
    }

    #[test]
    fn a_cleanup_without_a_cause() {
        for (what, events, on_fabric, at, want) in [
            ("alone", vec![(45, "", 100)], true, 106, true),
            ("alone, and long ago", vec![(45, "", 100)], true, 700, false),
            ("may not be alone yet", vec![(45, "", 100)], true, 102, false),
            (
                "nobody but the application to restart",
                vec![(45, "", 100)],
                false,
                106,
                false,
            ),
            ("after another", vec![(31, "", 96), (45, "", 100)], true, 106, false),
            ("before another", vec![(45, "", 100), (48, "", 103)], true, 106, false),
            ("long after another", vec![(31, "", 90), (45, "", 100)], true, 106, true),
        ] {
            let is = history(&events).pattern(std::iter::empty(), on_fabric, s(at));
            assert_eq!(is.map(|f| f.reason), want.then_some(Reason::XidWarning), "{what}");
        }
    }

    #[test]
    fn a_link_that_errs_again() {
        let text =
            |link: u32| format!("NVLink: fatal error detected on link {link}(0x2, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)");
        let (four, five) = (text(4), text(5));
        let again = |events: &[(u64, &str, u64)], at: u64| {
            history(events).is_repeated_on_its_link(&event(GpuEventKind::Xid(74), &four), s(at))
        };
        let three = [(74, &*four, 0), (74, &*four, HOUR), (74, &*four, 2 * HOUR)];
        assert!(again(&three, 2 * HOUR));
        assert!(!again(&three[..2], 2 * HOUR));
        assert!(!again(&three, 25 * HOUR), "the first is too long ago");
        assert!(
            !again(&[(74, &four, 0), (74, &five, 1), (74, &five, 2)], 3),
            "another link"
        );
    }

    #[test]
    fn memory_is_bounded() {
        let mut history = History::default();
        for n in 0..10_000_u64 {
            let text = format!("pid={n}, name=p{n}, link 3(");
            for xid in [13, 63, 74] {
                history.on_event(&event(GpuEventKind::Xid(xid), &text), s(10 * n));
            }
        }
        assert_eq!(
            (history.processes.len(), history.memory.len(), history.links[&3].len()),
            (MOST, MOST, MOST)
        );
    }
}
