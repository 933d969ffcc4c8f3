//! A node that runs, and what its controller heard of it.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth_core::health::VERIFY_FOR;
use berth_proto::v1::GpuState;
use nvidia_ml::state::{Gpu, State};

use super::clock::Clock;
use super::heard::{Heard, Told};
use super::{Controller, Node, Process, process};
use crate::machine::Machine;

/// Far beyond anything expected: rounds of checks are 15 s apart, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(180);

/// Longer than a call takes.
const BETWEEN: Duration = Duration::from_millis(200);

/// A GPU's state and reason.
pub type Is = (GpuState, &'static str);
pub const HEALTHY: Is = (GpuState::Healthy, "");
/// Of the first GPU, which says that a round of checks was read.
const MARKED: Is = (GpuState::Suspect, "PersistenceModeOff");

/// A machine with a running agent and probe.
pub struct Watched {
    pub node: Node,
    pub clock: Clock,
    probe_args: Vec<String>,
    probe: Process,
    _agent: Process,
    heard: Arc<Mutex<Heard>>,
}

impl Watched {
    pub async fn start(machine: Machine, probe_args: &[&str]) -> Self {
        let controller = Controller::start().await;
        let node = Node::of(machine);
        node.identity(&controller, "token");
        let probe_args = probe_args.iter().map(|arg| (*arg).to_owned()).collect();
        let probe = Process::start(&mut probe(&node, &probe_args));
        let clock = Clock::new(node.path("clock"));
        let mut agent = process::agent(&node.machine, &controller.address.to_string());
        agent.args([node.machine.sysfs(), node.http_address()]);
        let agent = Process::start(clock.give_to(&mut agent));
        Self {
            heard: Heard::of(controller),
            node,
            clock,
            probe_args,
            probe,
            _agent: agent,
        }
    }

    /// The probe is killed, and stays away until [`Self::start_probe`].
    pub fn kill_probe(&mut self) {
        self.probe.0.kill().unwrap();
        self.probe.0.wait().unwrap();
    }

    pub fn start_probe(&mut self) {
        self.probe = Process::start(&mut probe(&self.node, &self.probe_args));
    }

    /// A probe that lives by the clock as the agent does. What it asks the driver when that is turned has taken too long: NVML hangs for a
    /// moment.
    pub fn start_probe_by_clock(&mut self) {
        let mut probe = probe(&self.node, &self.probe_args);
        self.probe = Process::start(self.clock.give_to(&mut probe));
    }

    /// Changes the driver's state, and has the checks read at once: an event without a consequence brings them about.
    pub fn edit(&self, change: impl FnOnce(&mut State)) {
        self.node.edit(|state| {
            change(state);
            state.gpus[0].push_xid(43);
        });
    }

    pub fn heard<R>(&self, look: impl FnOnce(&Heard) -> R) -> R {
        look(&self.heard.lock().unwrap())
    }

    /// Waits until `wrong` has nothing to say.
    pub async fn eventually(&self, wrong: impl Fn(&Heard) -> Vec<String>) {
        let start = Instant::now();
        loop {
            let left = self.heard(&wrong);
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{left:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until each of these GPUs is as `want` has it.
    pub async fn until(&self, gpus: &[Gpu], want: impl Fn(usize) -> Is) {
        self.eventually(|heard| differs(heard, gpus, &want)).await;
    }

    /// Changes the driver's state, and waits until it was read whole and each of `gpus` is as `want` has it. The first GPU of the machine,
    /// which is read first, shows that it was; so it is not among them.
    pub async fn round(&self, change: impl FnOnce(&mut State), gpus: &[Gpu], want: impl Fn(usize) -> Is) {
        let mut marker = None;
        self.edit(|state| {
            change(state);
            let on = &mut state.gpus[0].checks.persistence_mode;
            *on = Some(*on != Some(true));
            let is = if *on == Some(true) { HEALTHY } else { MARKED };
            marker = Some((state.gpus[0].clone(), is));
        });
        let (marker, is) = marker.unwrap();
        self.eventually(|heard| {
            let mut wrong = differs(heard, std::slice::from_ref(&marker), |_| is);
            wrong.extend(differs(heard, gpus, &want));
            wrong
        })
        .await;
    }

    /// Waits until those that `want` says were Unhealthy are being verified, or were; and lets the time of that go by.
    pub async fn verified(&self, gpus: &[Gpu], was: impl Fn(usize) -> GpuState) {
        self.eventually(|heard| {
            let wrong = |(n, gpu): (usize, &Gpu)| {
                let states = heard.gpus.get(&gpu.uuid).map_or(&[][..], |told| &told.states);
                let ill = states.iter().rposition(|state| *state == GpuState::Unhealthy);
                let after = ill.map_or(&[][..], |ill| &states[ill + 1..]);
                let is_missed = was(n) == GpuState::Unhealthy && after.first() != Some(&GpuState::Verifying);
                is_missed.then(|| format!("GPU {n} is not being verified: {states:?}"))
            };
            gpus.iter().enumerate().filter_map(wrong).collect()
        })
        .await;
        self.clock.turn(VERIFY_FOR + Duration::from_secs(1));
    }

    /// Lets time go by in steps that no call's deadline (25 s) notices, where a call that comes late would be seen.
    pub async fn pass(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(Duration::from_secs(20));
            self.clock.turn(step);
            left -= step;
            tokio::time::sleep(BETWEEN).await;
        }
    }

    /// What was told of a GPU.
    pub fn told<R>(&self, gpu: &Gpu, look: impl FnOnce(&Told) -> R) -> R {
        self.heard(|heard| look(&heard.gpus[&gpu.uuid]))
    }
}

fn probe(node: &Node, args: &Vec<String>) -> Command {
    let mut probe = process::probe(&node.machine);
    probe
        .arg(format!("--driver-root={}", node.path("").display()))
        .arg(node.machine.sysfs())
        .args(args);
    probe
}

/// What is not as `want` has it, by GPU.
pub fn differs(heard: &Heard, gpus: &[Gpu], want: impl Fn(usize) -> Is) -> Vec<String> {
    let wrong = |(n, gpu): (usize, &Gpu)| {
        let (state, reason) = want(n);
        let told = heard.gpus.get(&gpu.uuid);
        let is_so = told.is_some_and(|told| (told.is.0, told.is.1.as_str()) == (state, reason));
        (!is_so).then(|| format!("GPU {n}: {told:?}, not {state:?} {reason}"))
    };
    gpus.iter().enumerate().filter_map(wrong).collect()
}
