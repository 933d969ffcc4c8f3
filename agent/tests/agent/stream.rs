//! The one connection when the network, the server or the driver is not as it should be.

use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::node::{PATIENCE, Process};
use super::*;

/// A wire between agent and controller that can be cut.
struct Wire {
    address: SocketAddr,
    state: watch::Sender<Carries>,
    tries: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Carries {
    Everything,
    /// Nothing gets through in either direction, and nobody is told: packets are lost.
    Nothing,
}

impl Wire {
    /// A wire to `far`.
    async fn to(far: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, follow) = watch::channel(Carries::Everything);
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = tries.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(carry(near, far, follow.clone()));
            }
        });
        Self { address, state, tries }
    }

    fn set(&self, state: Carries) {
        self.state.send_replace(state);
    }

    /// Connections that were made so far.
    fn tries(&self) -> usize {
        self.tries.load(Ordering::SeqCst)
    }
}

/// Carries one connection. One that was ever on a dead wire stays so, as nobody at its other end remembers it.
async fn carry(mut near: TcpStream, far: SocketAddr, mut state: watch::Receiver<Carries>) {
    if *state.borrow() == Carries::Everything {
        let Ok(mut far) = TcpStream::connect(far).await else {
            return;
        };
        tokio::select! {
            _ = copy_bidirectional(&mut near, &mut far) => return,
            _ = state.wait_for(|s| *s == Carries::Nothing) => {}
        }
        // The controller's keepalive would notice as well.
        drop(far);
    }
    // Neither read nor closed, for as long as the test lasts.
    let () = std::future::pending().await;
    drop(near);
}

impl Node {
    async fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").await;
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is missing in {text}"))
            .parse()
            .unwrap()
    }

    async fn metric_is(&self, name: &str, wanted: impl Fn(u64) -> bool) {
        let start = Instant::now();
        loop {
            let value = self.metric(name).await;
            if wanted(value) {
                return;
            }
            assert!(start.elapsed() < PATIENCE * 4, "{name} is still {value}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Memory of a process that is its own, in KiB: neither shared libraries nor the program.
fn anonymous_kib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

/// What the agent keeps for a controller that is away.
const RING: u64 = 256;
/// More than that.
const XIDS: u64 = 300;
/// GPUs with MIG devices, so that a round is many readings.
const READINGS_A_ROUND: u64 = 2 * (1 + 7);

/// `BERTH_CUT_SECONDS=600` makes it the real thing; by default the cut lasts as long as some thousand readings take.
#[tokio::test]
async fn a_cut_network_costs_neither_memory_nor_a_state_nor_a_count() {
    let cut_for = std::env::var("BERTH_CUT_SECONDS").map_or(0, |s| s.parse().unwrap());
    let mut controller = Controller::start().await;
    let wire = Wire::to(controller.address).await;
    controller.address = wire.address;
    let node = Node::new();
    node.identity(&controller, "token");
    let state = node.gpus(4);
    node.edit(|s| {
        for gpu in &mut s.gpus[2..] {
            gpu.enable_mig(&["1g.10gb"; 7]).unwrap();
        }
    });
    let uuid = |n: usize| state.gpus[n].uuid.as_str();
    let _probe = node.probe();
    let agent = node.agent(&controller);
    let mut session = controller.session().await;
    session.inventory(NvmlState::Ready).await;
    session.sample_of(uuid(0)).await;
    // Everything that grows once has grown.
    node.metric_is("berth_agent_sample_rounds_total", |n| n >= 50).await;
    let rounds = node.metric("berth_agent_sample_rounds_total").await;
    let before = anonymous_kib(&agent);

    wire.set(Carries::Nothing);
    let cut = Instant::now();
    // More faults than are kept, a few at a time as drivers report them, while everything moves.
    for first in (1..=XIDS).step_by(20) {
        node.edit(|s| {
            for n in first..(first + 20).min(XIDS + 1) {
                // Numbers that are in no table, so that each is an event and none an end.
                s.gpus[0].push_xid(1000 + n);
            }
            s.gpus[0].temperature_c = Some(40 + (first as u32 / 20) * 3 % 40);
            s.gpus[0].memory_used_bytes = first << 26;
        });
        let taken = (first + 19).min(XIDS);
        node.metric_is("berth_agent_gpu_events_total", |n| n >= taken).await;
    }
    // Health goes one way and another.
    node.edit(|s| s.gpus[1].push_xid(79));
    node.metric_is("berth_agent_gpu_events_total", |n| n == XIDS + 1).await;
    node.edit(|s| s.faults = vec![Fault::of("nvmlDeviceGetPowerUsage", Effect::Stall(true))]);
    node.metric_is("berth_agent_nvml_state{state=\"Hung\"}", |n| n == 1)
        .await;
    node.edit(|s| s.faults.clear());
    node.metric_is("berth_agent_nvml_state{state=\"Ready\"}", |n| n == 1)
        .await;
    node.metric_is("berth_agent_sample_rounds_total", |n| n >= rounds + 100)
        .await;
    // A peer that is gone without a word is noticed, and tried again.
    let tries = wire.tries();
    let start = Instant::now();
    while wire.tries() < tries + 2 || cut.elapsed() < Duration::from_secs(cut_for) {
        assert!(
            start.elapsed() < PATIENCE * 8 + Duration::from_secs(cut_for),
            "the agent does not try again"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(node.metric("berth_agent_events_waiting").await, RING);
    let readings = (node.metric("berth_agent_sample_rounds_total").await - rounds) * READINGS_A_ROUND;
    let after = anonymous_kib(&agent);
    println!(
        "cut for {:.0} s: {readings} readings, {} events, {} connections tried; {before} KiB before, {after} KiB after",
        cut.elapsed().as_secs_f64(),
        XIDS + 1,
        wire.tries() - tries
    );
    assert!(readings >= 1600, "{readings}");
    assert!(after < before + 1024, "{before} KiB before the cut, {after} KiB after");

    let tries = wire.tries();
    wire.set(Carries::Everything);
    // A try that began before ends by its own deadline.
    let start = Instant::now();
    while wire.tries() == tries {
        assert!(start.elapsed() < PATIENCE * 2, "the agent does not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut session = controller.session().await;
    let facts = session.inventory(NvmlState::Ready).await;
    assert_eq!(facts.gpus.len(), 4);
    session.gpu_state(uuid(1), GpuState::Unhealthy).await;
    let (seq, events) = session
        .next(|m| match &m.body {
            Some(Body::Events(events)) => Some((m.seq, events.clone())),
            _ => None,
        })
        .await;
    let kept: Vec<_> = events.events.iter().map(|e| e.kind.clone().unwrap()).collect();
    let lost = XIDS + 1 - RING;
    let want: Vec<_> = (lost + 1..=XIDS)
        .map(|n| 1000 + n)
        .chain([79])
        .map(v1::gpu_event::Kind::Xid)
        .collect();
    assert_eq!((kept == want, events.lost), (true, lost), "{kept:?}");
    session.sample_of(uuid(3)).await;
    session.tell(Down::Ack(v1::Ack { seq })).await;
    node.metric_is("berth_agent_events_waiting", |n| n == 0).await;
}

#[tokio::test]
async fn a_server_with_a_certificate_of_a_foreign_authority_hears_nothing() {
    let mut controller = Controller::start().await;
    let foreign = Controller::start().await;
    let wire = Wire::to(controller.address).await;
    controller.address = wire.address;
    let node = Node::new();
    node.identity(&foreign, "token");
    let _agent = node.agent(&controller);
    let start = Instant::now();
    while wire.tries() < 3 {
        assert!(start.elapsed() < PATIENCE, "it does not even try");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        controller.sessions.try_recv().is_err(),
        "a session with a foreign server"
    );
    assert_eq!(node.metric("berth_agent_connected").await, 0);
    assert_eq!(node.metric("berth_agent_sessions_total").await, 0);

    // It was for nothing but the authority.
    node.identity(&controller, "token");
    controller.session().await;
}

#[tokio::test]
async fn an_agent_that_starts_anew_beside_a_probe_that_let_go_is_told_and_does_as_told() {
    let mut controller = Controller::start().await;
    let node = Node::new();
    node.identity(&controller, "token");
    node.gpus(1);
    let mut probe = node.probe();
    let agent = node.agent(&controller);
    let mut session = controller.session().await;
    session.inventory(NvmlState::Ready).await;
    session.tell(Down::ReleaseDriver(v1::ReleaseDriver {})).await;
    session.inventory(NvmlState::Released).await;

    drop(agent);
    let _agent = node.agent(&controller);
    let mut session = controller.session().await;
    session.inventory(NvmlState::Released).await;
    // The upgrade ended while the agent was away.
    session.tell(Down::ResumeDriver(v1::ResumeDriver {})).await;
    session.inventory(NvmlState::Ready).await;

    // The same while no probe is there to be told.
    session.tell(Down::ReleaseDriver(v1::ReleaseDriver {})).await;
    session.inventory(NvmlState::Released).await;
    probe.0.kill().unwrap();
    probe.0.wait().unwrap();
    session.inventory(NvmlState::ProbeUnavailable).await;
    session.tell(Down::ResumeDriver(v1::ResumeDriver {})).await;
    let _probe = node.probe();
    session.inventory(NvmlState::Ready).await;
}

#[tokio::test]
async fn a_driver_that_cannot_be_let_go_of_yet_is_reported_until_it_can() {
    let mut controller = Controller::start().await;
    let node = Node::new();
    node.identity(&controller, "token");
    let state = node.gpus(1);
    let _probe = node.probe();
    let _agent = node.agent(&controller);
    let mut session = controller.session().await;
    session.inventory(NvmlState::Ready).await;
    node.edit(|s| s.faults = vec![Fault::of("nvmlDeviceGetPowerUsage", Effect::Stall(true))]);
    session.inventory(NvmlState::Hung).await;
    session.tell(Down::ReleaseDriver(v1::ReleaseDriver {})).await;
    let facts = session.inventory(NvmlState::ReleaseBlocked).await;
    assert!(
        facts.nvml_message.contains("nvmlDeviceGetPowerUsage"),
        "{}",
        facts.nvml_message
    );
    assert_eq!(facts.gpus.len(), 1, "what was known stays");
    node.edit(|s| s.faults.clear());
    let facts = session.inventory(NvmlState::Released).await;
    assert_eq!(facts.gpus[0].uuid, state.gpus[0].uuid);
    session.tell(Down::ResumeDriver(v1::ResumeDriver {})).await;
    session.inventory(NvmlState::Ready).await;
}
