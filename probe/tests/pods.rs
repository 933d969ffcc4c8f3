//! Who uses the GPUs: the real process between a fake kubelet, a fake driver and a fake `/proc`.
#![allow(clippy::unwrap_used)]

mod kubelet;
mod process;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_proto::podresources::v1 as podresources;
use berth_proto::probe::v1 as wire;
use berth_proto::probe::v1::LaneState;
use berth_proto::probe::v1::held_device::Device;
use berth_proto::probe::v1::probe_client::ProbeClient;
use berth_proto::v1::NvmlState;
use kubelet::{Kubelet, Says, devices, pod};
use nvidia_ml::state::{Process, STATE_ENV, State};
use process::{built_library, connect};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tonic::transport::Channel;

/// Far beyond anything expected; only a broken probe waits this long.
const PATIENCE: Duration = Duration::from_secs(60);
const GPU: &str = "nvidia.com/gpu";
const UID: &str = "3f6b1c1e-7a4d-4c55-9f0e-2b8a4d1c9e77";

/// A machine with one GPU and its probe.
struct Node {
    dir: tempfile::TempDir,
    child: Child,
    client: ProbeClient<Channel>,
}

impl Drop for Node {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}

impl Node {
    /// `flags`: `{}` in them is the machine's folder.
    async fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let state = State::of("H100-80GB-HBM3", 1, "node-a").unwrap();
        state.write(&path.join("nvml.json")).unwrap();
        let socket = path.join("probe.sock");
        let child = Command::new(env!("CARGO_BIN_EXE_berth-probe"))
            .arg("serve")
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--nvml-lib={}", built_library().display()))
            .args(flags.iter().map(|flag| flag.replace("{}", &path.display().to_string())))
            .env(STATE_ENV, path.join("nvml.json"))
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let client = connect(socket, PATIENCE).await;
        let mut node = Self { dir, child, client };
        let start = Instant::now();
        while node.sample().await.state() != NvmlState::Ready {
            assert!(start.elapsed() < PATIENCE, "NVML opens");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        node
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    async fn sample(&mut self) -> wire::SampleReply {
        self.client.sample(wire::SampleRequest {}).await.unwrap().into_inner()
    }

    async fn pods(&mut self) -> wire::PodsReply {
        let asked = tokio::time::timeout(PATIENCE, self.client.pods(wire::PodsRequest {}));
        asked.await.expect("an answer in time").unwrap().into_inner()
    }

    /// State and message of the kubelet's lane.
    async fn kubelet(&mut self) -> (LaneState, String) {
        let reply = self.pods().await;
        let lane = reply.kubelet.unwrap();
        if lane.state() != LaneState::Available {
            assert!(reply.held.is_empty() && reply.allocatable.is_none());
        }
        (lane.state(), lane.message)
    }

    /// State and message of the lane of processes; where it says nothing, nothing is claimed.
    async fn process_lane(&mut self) -> (LaneState, String) {
        let reply = self.pods().await;
        let lane = reply.process_lane.unwrap();
        assert_eq!(lane.state() == LaneState::Available, !reply.processes.is_empty());
        (lane.state(), lane.message)
    }

    /// How many descriptors the probe may have; those that it has stay.
    fn limit_files(&self, current: Option<u64>) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let maximum = getrlimit(Resource::Nofile).maximum;
        prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap();
    }

    fn threads(&self) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        tasks.unwrap().count()
    }

    fn uuid(&self) -> String {
        State::read(&self.path().join("nvml.json")).unwrap().gpus[0]
            .uuid
            .clone()
    }
}

/// `pod/container device`, of each.
fn held(reply: &wire::PodsReply) -> Vec<String> {
    let shown = reply.held.iter().map(|h| {
        let device = match h.device.as_ref().unwrap() {
            Device::Plugin(plugin) => format!("{} {}", plugin.resource, plugin.id),
            Device::Claim(claim) => format!("{} {}/{}", claim.driver, claim.pool, claim.device),
        };
        format!("{}/{}/{} {device}", h.namespace, h.pod, h.container)
    });
    shown.collect()
}

#[tokio::test]
async fn what_is_not_asked_for_is_not_looked_at() {
    let mut node = Node::start(&[]).await;
    let reply = node.pods().await;
    assert_eq!(reply.kubelet.unwrap().state(), LaneState::Unspecified);
    assert_eq!(reply.process_lane.unwrap().state(), LaneState::Unspecified);
}

#[tokio::test]
async fn the_kubelets_list_is_told_without_what_is_no_gpu() {
    let mut node = Node::start(&["--pod-resources={}/kubelet.sock"]).await;
    let mut with_claim = pod("c", vec![]);
    let claim = |driver: &str, device: &str| podresources::ClaimResource {
        driver_name: driver.into(),
        pool_name: "node-a".into(),
        device_name: device.into(),
        ..podresources::ClaimResource::default()
    };
    with_claim.containers[0].dynamic_resources = vec![podresources::DynamicResource {
        claim_name: "one".into(),
        claim_namespace: "ml".into(),
        claim_resources: vec![claim("gpu.nvidia.com", "gpu-0"), claim("net.example.com", "eth1")],
    }];
    // A kubelet names a device once for each NUMA node that it is near.
    let twice = vec![
        devices(GPU, &["GPU-1"]),
        devices(GPU, &["GPU-1"]),
        devices("example.com/nic", &["7"]),
    ];
    let kubelet = Kubelet::start(
        node.path(),
        Says {
            pods: vec![pod("a", twice), pod("b", vec![]), with_claim],
            offered: Some(vec![
                devices(GPU, &["GPU-1", "GPU-2"]),
                devices("example.com/nic", &["7"]),
            ]),
            hangs: false,
        },
    );
    let reply = node.pods().await;
    assert_eq!(reply.kubelet.as_ref().unwrap().state(), LaneState::Available);
    assert_eq!(
        held(&reply),
        [
            "ml/a/server nvidia.com/gpu GPU-1",
            "ml/c/server gpu.nvidia.com node-a/gpu-0"
        ]
    );
    let offered: Vec<_> = reply.allocatable.unwrap().devices.into_iter().map(|d| d.id).collect();
    assert_eq!(offered, ["GPU-1", "GPU-2"]);
    // A kubelet that is older says less, and a pod that is gone is not said.
    kubelet.set(|says| {
        says.offered = None;
        says.pods.clear();
    });
    let reply = node.pods().await;
    assert_eq!(reply.kubelet.as_ref().unwrap().state(), LaneState::Available);
    assert!(reply.held.is_empty() && reply.allocatable.is_none());
}

#[tokio::test]
async fn a_kubelet_that_is_away_hangs_or_talks_nonsense_is_a_state_and_readings_go_on() {
    let mut node = Node::start(&["--pod-resources={}/kubelet.sock"]).await;
    let (state, why) = node.kubelet().await;
    assert_eq!(state, LaneState::NotAvailable);
    assert!(why.contains("no kubelet listens"), "{why}");

    let says = || Says {
        pods: vec![pod("a", vec![devices(GPU, &["GPU-1"])])],
        ..Says::default()
    };
    let first = Kubelet::start(node.path(), says());
    assert_eq!(node.kubelet().await.0, LaneState::Available);

    // While it hangs the readings come as ever.
    first.set(|says| says.hangs = true);
    let mut asking = node.client.clone();
    let asked = tokio::spawn(async move { asking.pods(wire::PodsRequest {}).await.unwrap().into_inner() });
    let mut rounds = 0;
    while !asked.is_finished() {
        assert_eq!(node.sample().await.state(), NvmlState::Ready);
        rounds += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(rounds > 5, "{rounds} rounds of readings while the kubelet hung");
    let lane = asked.await.unwrap().kubelet.unwrap();
    assert_eq!(lane.state(), LaneState::NotAvailable);
    assert!(lane.message.contains("did not answer within"), "{}", lane.message);
    drop(first);

    // Another process under the same name: the probe is not stuck with the old one.
    let mute = kubelet::mute(node.path());
    assert_eq!(node.kubelet().await.0, LaneState::NotAvailable);
    mute.abort();
    let babbler = kubelet::babbler(node.path());
    let (state, why) = node.kubelet().await;
    assert_eq!(state, LaneState::NotAvailable);
    assert!(why.contains("the kubelet's answer"), "{why}");
    babbler.abort();
    let second = Kubelet::start(node.path(), says());
    assert_eq!(held(&node.pods().await), ["ml/a/server nvidia.com/gpu GPU-1"]);
    drop(second);
}

/// A `/proc` where pid 42 is of a pod and pid 43 of none, and the pod's folder of logs.
fn fake_proc(dir: &Path, namespace: &str) {
    std::fs::create_dir_all(dir.join("proc/1/ns")).unwrap();
    symlink(namespace, dir.join("proc/1/ns/pid")).unwrap();
    let of_pod = format!(
        "kubepods-burstable-pod{}.slice/cri-containerd-{}.scope",
        UID.replace('-', "_"),
        "0".repeat(64)
    );
    let cgroups = [
        (42, format!("0::/kubepods.slice/kubepods-burstable.slice/{of_pod}\n")),
        (43, "0::/system.slice/x.service\n".to_owned()),
    ];
    for (pid, cgroup) in cgroups {
        std::fs::create_dir_all(dir.join(format!("proc/{pid}"))).unwrap();
        std::fs::write(dir.join(format!("proc/{pid}/cgroup")), cgroup).unwrap();
    }
    std::fs::create_dir_all(dir.join(format!("logs/ml_llama-0_{UID}/server"))).unwrap();
}

const PROCESSES: [&str; 2] = ["--proc-root={}/proc", "--pod-logs={}/logs"];

fn run_processes(node: &Node) {
    State::edit(&node.path().join("nvml.json"), |state| {
        let process = |pid, memory_bytes| Process { pid, memory_bytes };
        state.gpus[0].processes = vec![process(42, 3 << 30), process(43, 1 << 30), process(44, 1 << 30)];
    })
    .unwrap();
}

#[tokio::test]
async fn a_process_on_a_gpu_is_its_pods() {
    let mut node = Node::start(&PROCESSES).await;
    fake_proc(node.path(), "pid:[4026531836]");
    run_processes(&node);
    let reply = node.pods().await;
    let lane = reply.process_lane.unwrap();
    assert_eq!((lane.state(), lane.message.as_str()), (LaneState::Available, ""));
    let [process] = reply.processes.as_slice() else {
        panic!("one process is of a pod: {:?}", reply.processes);
    };
    assert_eq!((process.gpu.clone(), process.pod_uid.as_str()), (node.uuid(), UID));
    assert_eq!(
        (process.namespace.as_deref(), process.pod.as_deref()),
        (Some("ml"), Some("llama-0"))
    );
    assert_eq!(process.memory_bytes, Some(3 << 30));
    assert_eq!(process.gpu_instance, None);
}

#[tokio::test]
async fn where_the_hosts_processes_are_not_seen_nothing_is_claimed() {
    let mut node = Node::start(&PROCESSES).await;
    fake_proc(node.path(), "pid:[4026532000]");
    run_processes(&node);
    let reply = node.pods().await;
    let lane = reply.process_lane.unwrap();
    assert_eq!(lane.state(), LaneState::NotAvailable);
    assert!(
        lane.message.contains("does not show the host's processes"),
        "{}",
        lane.message
    );
    assert!(reply.processes.is_empty());
}

#[tokio::test]
async fn without_a_descriptor_left_no_process_is_called_nobodys() {
    let mut node = Node::start(&PROCESSES).await;
    fake_proc(node.path(), "pid:[4026531836]");
    run_processes(&node);
    assert_eq!(node.process_lane().await.0, LaneState::Available);
    node.limit_files(Some(0));
    let (state, why) = node.process_lane().await;
    assert_eq!(state, LaneState::NotAvailable);
    assert!(
        why.contains("proc/42/cgroup") && why.contains("Too many open files"),
        "{why}"
    );
    node.limit_files(getrlimit(Resource::Nofile).current);
    assert_eq!(node.process_lane().await.0, LaneState::Available);
}

#[tokio::test]
async fn a_proc_that_hangs_holds_one_thread_and_no_reading() {
    let mut node = Node::start(&PROCESSES).await;
    fake_proc(node.path(), "pid:[4026531836]");
    run_processes(&node);
    assert_eq!(node.process_lane().await.0, LaneState::Available);
    let before = node.threads();
    // Nobody writes there.
    let cgroup = node.path().join("proc/42/cgroup");
    let text = std::fs::read(&cgroup).unwrap();
    std::fs::remove_file(&cgroup).unwrap();
    mknodat(CWD, &cgroup, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    for _ in 0..4 {
        let (state, why) = node.process_lane().await;
        assert_eq!(state, LaneState::NotAvailable);
        assert!(why.contains("takes too long"), "{why}");
        assert_eq!(node.sample().await.state(), NvmlState::Ready);
        assert!(
            node.threads() <= before + 1,
            "{} threads, {before} before",
            node.threads()
        );
    }
    // The one that waits gets its end, the next finds a file.
    std::fs::write(&cgroup, &text).unwrap();
    std::fs::remove_file(&cgroup).unwrap();
    std::fs::write(&cgroup, &text).unwrap();
    let start = Instant::now();
    while node.process_lane().await.0 != LaneState::Available {
        assert!(start.elapsed() < PATIENCE, "it is read again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
