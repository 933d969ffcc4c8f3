//! XIDs that GPUs have reported since the agent started.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use berth_core::facts::{Gpu, GpuEvent, GpuEventKind};

/// XIDs are counted over this long: the default of dcgm-exporter.
pub const WINDOW: Duration = Duration::from_secs(300);

/// XIDs of one GPU that are kept for the window. More in five minutes are as good as this many.
const MOST_RECENT: usize = 256;
/// Different XIDs of one GPU: NVIDIA's catalogue has fewer than 200.
const MOST_KINDS: usize = 256;
/// GPUs, or addresses of GPUs.
const MOST_GPUS: usize = 64;

/// By GPU.
#[derive(Debug, Default)]
pub struct Xids(BTreeMap<String, Seen>);

#[derive(Debug, Default)]
struct Seen {
    last: Option<(u64, Duration)>,
    recent: VecDeque<(u64, Duration)>,
    total: BTreeMap<u64, u64>,
}

/// `0000:10:00` of `0000:10:00.0`: the kernel's log has no function.
fn slot(address: &str) -> &str {
    address.rsplit_once('.').map_or(address, |(slot, _)| slot)
}

impl Xids {
    /// An event, each fault once. One that names no GPU is nobody's.
    pub fn on_event(&mut self, event: &GpuEvent, now: Duration) {
        let GpuEventKind::Xid(xid) = event.kind else { return };
        let address = event.pci_address.as_deref().map(slot);
        let Some(key) = event.uuid.as_deref().or(address) else {
            return;
        };
        if !self.0.contains_key(key) && self.0.len() == MOST_GPUS {
            return;
        }
        let at = now.saturating_sub(event.age);
        let seen = self.0.entry(key.to_owned()).or_default();
        if seen.last.is_none_or(|(_, last)| at >= last) {
            seen.last = Some((xid, at));
        }
        if seen.recent.len() == MOST_RECENT {
            seen.recent.pop_front();
        }
        seen.recent.push_back((xid, at));
        if seen.total.len() < MOST_KINDS || seen.total.contains_key(&xid) {
            *seen.total.entry(xid).or_default() += 1;
        }
    }

    /// What is filed under either of a GPU's names.
    fn of(&self, gpu: &Gpu) -> impl Iterator<Item = &Seen> {
        let by_address = gpu.pci_address.as_deref().and_then(|address| self.0.get(slot(address)));
        self.0.get(&gpu.uuid).into_iter().chain(by_address)
    }

    /// The last one.
    pub fn last(&self, gpu: &Gpu) -> Option<u64> {
        let last = self.of(gpu).filter_map(|seen| seen.last).max_by_key(|(_, at)| *at);
        last.map(|(xid, _)| xid)
    }

    /// How many of each there were in the window before `now`.
    pub fn recent(&self, gpu: &Gpu, now: Duration) -> BTreeMap<u64, u64> {
        let mut counts = BTreeMap::new();
        for (xid, at) in self.of(gpu).flat_map(|seen| &seen.recent) {
            if now.saturating_sub(*at) <= WINDOW {
                *counts.entry(*xid).or_default() += 1;
            }
        }
        counts
    }

    /// How many of each there were.
    pub fn total(&self, gpu: &Gpu) -> BTreeMap<u64, u64> {
        let mut counts = BTreeMap::new();
        for (xid, count) in self.of(gpu).flat_map(|seen| &seen.total) {
            *counts.entry(*xid).or_default() += count;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xid(n: u64, uuid: Option<&str>, address: Option<&str>) -> GpuEvent {
        GpuEvent {
            kind: GpuEventKind::Xid(n),
            uuid: uuid.map(Into::into),
            pci_address: address.map(Into::into),
            age: Duration::ZERO,
            source: "nvml".into(),
            detail: String::new(),
            instance: None,
        }
    }

    #[test]
    fn xids_are_the_gpus_that_they_name_by_either_name() {
        let s = Duration::from_secs;
        let gpu = |uuid: &str, address: &str| Gpu {
            uuid: uuid.into(),
            pci_address: Some(address.into()),
            ..Gpu::default()
        };
        let (a, b) = (gpu("GPU-a", "0000:10:00.0"), gpu("GPU-b", "0000:11:00.0"));
        let mut xids = Xids::default();
        xids.on_event(&xid(31, Some("GPU-a"), Some("0000:10:00.0")), s(10));
        xids.on_event(&xid(31, Some("GPU-a"), None), s(20));
        xids.on_event(&xid(79, None, Some("0000:10:00")), s(300));
        xids.on_event(&xid(48, None, None), s(301));
        let mut other = xid(0, Some("GPU-b"), None);
        other.kind = GpuEventKind::Other("EccDoubleBit".into());
        xids.on_event(&other, s(302));

        assert_eq!((xids.last(&a), xids.last(&b)), (Some(79), None));
        assert_eq!(xids.recent(&a, s(310)), BTreeMap::from([(31, 2), (79, 1)]));
        assert_eq!(xids.recent(&a, s(319)), BTreeMap::from([(31, 1), (79, 1)]));
        assert_eq!(xids.recent(&a, s(601)), BTreeMap::new());
        assert_eq!(xids.total(&a), BTreeMap::from([(31, 2), (79, 1)]));
        assert!(xids.total(&b).is_empty());
    }

    #[test]
    fn a_storm_takes_no_more_room_than_there_is() {
        let mut xids = Xids::default();
        for n in 0..2000 {
            xids.on_event(&xid(n, Some("GPU-a"), None), Duration::ZERO);
            xids.on_event(&xid(13, Some(&format!("GPU-{n}")), None), Duration::ZERO);
        }
        assert_eq!(xids.0.len(), MOST_GPUS);
        let seen = &xids.0["GPU-a"];
        assert_eq!((seen.recent.len(), seen.total.len()), (MOST_RECENT, MOST_KINDS));
    }
}
