//! What agents are told, and when.

use berth_core::driver_upgrade::UPGRADE_STATE;
use berth_core::placement::Resources;
use berth_proto::v1::Welcome;

use super::*;

fn node(version: &str, state: Option<&str>) -> Node {
    let state = state.map(|state| (UPGRADE_STATE.to_owned(), state.to_owned()));
    Node {
        name: "n1".into(),
        uid: "n1-uid".into(),
        resource_version: version.into(),
        labels: state.into_iter().collect(),
        ..Node::default()
    }
}

fn gpu_pod(uid: &str) -> Pod {
    Pod {
        uid: uid.into(),
        node: Some("n1".into()),
        requests: Resources([("nvidia.com/gpu".to_owned(), 1000)].into()),
        ..Pod::default()
    }
}

/// A session on a link that looks after its orders.
async fn session(harbour: &Harbour) -> (Call, Welcome) {
    let token = harbour.good("n1", "p1");
    let mut call = harbour.call(Some(&format!("Bearer {token}"))).await.unwrap();
    call.say(hello()).await;
    match call.answer().await {
        Answer::Welcome(welcome) => (call, welcome),
        other => panic!("{other:?}"),
    }
}

impl Call {
    /// The next order.
    async fn order(&mut self) -> String {
        loop {
            match self.answer().await {
                Answer::ReleaseDriver(_) => return "release".into(),
                Answer::ResumeDriver(_) => return "resume".into(),
                Answer::SetRate(rate) => return format!("rate {}", rate.sample_interval_ms),
                Answer::Ack(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// That nothing was ordered until now: whatever was is sent before the acknowledgement of what is said after it.
    async fn no_order(&mut self) {
        // Longer than orders are gathered for.
        tokio::time::sleep(Duration::from_millis(200)).await;
        self.say(None).await;
        loop {
            match self.answer().await {
                Answer::Ack(ack) if ack.seq == self.seq => return,
                Answer::Ack(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

async fn tell(harbour: &Harbour) -> tokio::task::JoinHandle<()> {
    let link = harbour.link.clone();
    tokio::spawn(async move { match super::super::orders::run(&link).await {} })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_follows_the_pods_and_is_told_when_it_changes() {
    let harbour = Harbour::open().await;
    let telling = tell(&harbour).await;
    let cluster = harbour.link.cluster.clone();
    cluster.apply_node(node("1", None));
    let (mut call, welcome) = session(&harbour).await;
    assert_eq!(welcome.sample_interval_ms, 750, "idle");
    assert_eq!(call.order().await, "resume", "whatever its probe was told before");
    cluster.apply_pod(gpu_pod("a"));
    assert_eq!(call.order().await, "rate 250");
    cluster.apply_pod(gpu_pod("b"));
    cluster.apply_pod(Pod {
        ready: true,
        ..gpu_pod("a")
    });
    cluster.delete_pod(&"a".to_owned());
    call.no_order().await;
    cluster.delete_pod(&"b".to_owned());
    assert_eq!(call.order().await, "rate 750");
    telling.abort();
    harbour.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_is_let_go_of_while_its_node_says_so_in_each_session() {
    let harbour = Harbour::open().await;
    let telling = tell(&harbour).await;
    let cluster = harbour.link.cluster.clone();
    let (mut call, _) = session(&harbour).await;
    // A new leader that has not listed its nodes knows nothing, and says nothing.
    call.no_order().await;
    cluster.apply_node(node("1", Some("wait-for-jobs-required")));
    assert_eq!(call.order().await, "resume");
    assert_eq!(call.order().await, "rate 750");
    cluster.apply_node(node("2", Some("pod-deletion-required")));
    assert_eq!(call.order().await, "release");
    for (version, state) in ["drain-required", "pod-restart-required", "validation-required"]
        .iter()
        .enumerate()
    {
        cluster.apply_node(node(&format!("{}", version + 3), Some(state)));
    }
    call.no_order().await;

    // The agent, the controller or the network went: whoever comes is told.
    let (mut again, _) = session(&harbour).await;
    assert_eq!(again.order().await, "release");
    cluster.apply_node(node("7", Some("uncordon-required")));
    assert_eq!(again.order().await, "resume");
    drop(again);
    let (mut last, _) = session(&harbour).await;
    assert_eq!(last.order().await, "resume");
    cluster.apply_node(node("8", Some("upgrade-failed")));
    assert_eq!(last.order().await, "release");
    // The operator is uninstalled.
    cluster.apply_node(node("9", None));
    assert_eq!(last.order().await, "resume");
    telling.abort();
    harbour.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_and_resyncs_are_counted() {
    let harbour = Harbour::open().await;
    let (mut call, _) = session(&harbour).await;
    call.seq += 1;
    call.say(inventory("after a gap")).await;
    while !matches!(call.answer().await, Answer::Resync(_)) {}
    let text = harbour
        .metrics
        .encode(&harbour.link.cluster.read(), Instant::now())
        .unwrap();
    for line in ["berth_agent_sessions_total 1", "berth_agent_resyncs_total 1"] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in:\n{text}");
    }
    harbour.close().await;
}
