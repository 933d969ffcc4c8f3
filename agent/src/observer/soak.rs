//! A million readings leave nothing behind.

use std::time::Duration;

use berth_core::facts::{Gpu, GpuEvent, GpuEventKind, GpuSample, NvidiaDriver, NvmlState, NvmlStatus, SOURCE_NVML};
use prost::Message as _;

use super::*;
use crate::session::Session;

const GPUS: u32 = 8;
/// Until every map and buffer has the size that it keeps.
const WARM_UP: u64 = 5_000;
const ROUNDS: u64 = 125_000;
/// Less than a byte a round.
const SLACK: i64 = 64 * 1024;

/// The agent between the probe's answers and the messages on the wire.
struct Agent {
    observer: Observer,
    session: Session,
    /// Bytes that went out.
    sent: usize,
}

impl Agent {
    fn new() -> Self {
        let observer = Observer {
            probe: Probe::new("/nowhere".into()),
            picture: Picture::new(),
            metrics: Arc::new(Metrics::new("node".into())),
            look: Arc::default(),
            recheck: Arc::default(),
            repods: Arc::default(),
            rescan: Ask::default(),
        };
        let inventory = Inventory {
            driver: Some(NvidiaDriver {
                version: "550.163.01".into(),
                cuda_version: Some(12040),
                nvml_version: None,
                excluded_gpus: None,
            }),
            gpus: (0..GPUS)
                .map(|index| Gpu {
                    index,
                    uuid: uuid(index),
                    ..Gpu::default()
                })
                .collect(),
        };
        observer.on_inventory(answer((inventory, Vec::new())));
        Self {
            observer,
            session: Session::default(),
            sent: 0,
        }
    }

    /// One second of an agent's life: readings that all moved, now and then an event, and whatever follows from that.
    fn round(&mut self, round: u64) {
        let value = u32::try_from(round % 10).unwrap_or(0) * 10;
        let sample = |index| GpuSample {
            uuid: uuid(index),
            gpu_utilization: Some(value),
            memory_used_bytes: Some(u64::from(value) << 30),
            memory_total_bytes: Some(80 << 30),
            power_mw: Some(50_000 + value * 1000),
            clocks_event_reasons: Some(if value == 0 { 0x8 } else { 0x1 }),
            ..GpuSample::default()
        };
        self.observer.on_readings(answer(Readings {
            samples: (0..GPUS).map(sample).collect(),
            lost: Vec::new(),
        }));
        if round.is_multiple_of(50) {
            let event = GpuEvent {
                kind: GpuEventKind::Xid(31),
                uuid: Some(uuid(value / 10 % GPUS)),
                pci_address: None,
                age: Duration::ZERO,
                source: SOURCE_NVML.into(),
                detail: String::new(),
                instance: None,
            };
            self.observer.on_event(event);
        }
        let now = Duration::from_secs(round);
        let revision = self.observer.picture.revision();
        while let Some(message) = self
            .observer
            .picture
            .read(|state| self.session.next(state, revision, now))
        {
            self.sent += message.encode_to_vec().len();
            if let Some(sent) = self.session.acknowledged(message.seq) {
                self.observer
                    .picture
                    .update(|state, _, _| state.ring.acknowledged(sent));
            }
        }
    }
}

fn uuid(index: u32) -> String {
    format!("GPU-{index}")
}

fn answer<T>(found: T) -> Answer<T> {
    Answer {
        status: NvmlStatus {
            state: NvmlState::Ready,
            message: String::new(),
        },
        found,
        stuck_calls: 0,
    }
}

#[tokio::test]
async fn a_million_readings_leave_nothing_behind() {
    let mut agent = Agent::new();
    (0..WARM_UP).for_each(|round| agent.round(round));
    let before = agent.sent;
    let grown = allocation_counter::measure(|| (0..ROUNDS).for_each(|round| agent.round(WARM_UP + round)));
    let a_round = (agent.sent - before) / usize::try_from(ROUNDS).unwrap();
    assert!(a_round > 100, "{a_round} bytes a round: the readings did not go out");
    assert!(grown.count_total > ROUNDS, "nothing was counted");
    assert!(grown.bytes_current < SLACK, "{grown:?}");
}
