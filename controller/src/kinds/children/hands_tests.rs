use std::sync::Arc;

use axum::http::{Request, Response};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;

use super::*;
use crate::kinds::children::adoption::{Evidence, Terms};

/// Stores whatever is applied, and remembers what was asked of it.
struct World {
    client: Client,
    asked: Arc<Mutex<Vec<String>>>,
    owner: OwnerReference,
    children: Children,
    memories: Memories<()>,
    key: ObjectKey,
}

impl World {
    fn new() -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let record = asked.clone();
        let server = tower::service_fn(move |request: Request<Body>| {
            let record = record.clone();
            async move {
                let what = format!("{} {}", request.method(), request.uri().query().unwrap_or_default());
                record.lock().push(what);
                let body = axum::body::to_bytes(axum::body::Body::new(request.into_body()), 1 << 20).await?;
                let mut stored: Value = serde_json::from_slice(&body)?;
                stored["metadata"]["uid"] = "child".into();
                anyhow::Ok(Response::new(Body::from(serde_json::to_vec(&stored)?)))
            }
        });
        Self {
            client: Client::new(server, "ns"),
            asked,
            owner: OwnerReference {
                api_version: "premlabs.io/v1alpha1".into(),
                kind: "AIDeployment".into(),
                name: "m".into(),
                uid: "u".into(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            },
            children: Children::default(),
            memories: Memories::default(),
            key: ("ns".into(), "m".into()),
        }
    }

    fn hands(&self, second: i64) -> Hands<'_, ()> {
        let now = Timestamp::from_second(1_000_000 + second).unwrap();
        Hands {
            writer: Writer {
                client: &self.client,
                manager: "berth",
                owner: &self.owner,
                terms: Terms::of(&ObjectMeta::default(), self.children.contests(), now),
            },
            children: &self.children,
            memories: &self.memories,
            key: &self.key,
        }
    }

    /// The Deployment is not wanted any more.
    async fn prune(&self, second: i64) {
        let seen = self.seen("a", "a");
        self.hands(second).prune(Kind::Deployment, &seen).await.unwrap();
    }

    /// One look at a Deployment that leaves its number of replicas to others. For how long it is told that the child keeps changing.
    async fn look(&self, second: i64, image: &str, seen: Option<&Child>) -> Option<u64> {
        match self.hands(second).apply(Kind::Deployment, wanted(image), seen).await {
            Ok(()) => None,
            Err(Error::KeepsChanging { remaining, .. }) => Some(remaining.as_secs()),
            Err(other) => panic!("{other}"),
        }
    }

    /// What was asked since the last time.
    fn asked(&self) -> usize {
        std::mem::take(&mut *self.asked.lock()).len()
    }

    /// The Deployment as somebody left it.
    fn seen(&self, wanted_image: &str, image: &str) -> Child {
        let mut object = Intent::new(Kind::Deployment, &self.owner, wanted(wanted_image)).body;
        object["metadata"]["uid"] = "child".into();
        object["spec"]["image"] = image.into();
        object["spec"]["replicas"] = 3.into();
        Child::new(serde_json::from_value(object).unwrap())
    }
}

fn wanted(image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "ns", "name": "m"}, "spec": {"image": image}})
}

#[tokio::test]
async fn a_child_that_keeps_changing_is_left_alone_and_told_of_until_it_is_quiet() {
    let world = World::new();
    let changed = world.seen("a", "x");
    let right = world.seen("a", "a");
    for second in 0..5 {
        assert_eq!(world.look(second, "a", Some(&changed)).await, None);
        assert_eq!(world.asked(), 2, "replicas are handed over, and it is applied");
    }
    assert_eq!(world.look(5, "a", Some(&changed)).await, Some(119));
    assert_eq!(world.asked(), 0, "nothing is written for a child that is left as it is");

    assert_eq!(world.look(124, "a", Some(&changed)).await, Some(120), "a late repair");
    assert_eq!(world.asked(), 2);
    assert_eq!(
        world.look(125, "a", Some(&right)).await,
        Some(119),
        "woken by the repair itself"
    );
    assert_eq!(world.look(126, "a", Some(&changed)).await, Some(118));
    assert_eq!(
        world.look(244, "a", Some(&right)).await,
        None,
        "quiet for as long as the brake"
    );
    assert_eq!(world.asked(), 0);
}

#[tokio::test]
async fn a_child_that_keeps_being_deleted_or_stripped_is_made_again_more_and_more_slowly() {
    let mut stripped = World::new().seen("a", "a");
    stripped.object["metadata"]["annotations"].take();
    for (what, seen) in [("deleted", None), ("stripped", Some(&stripped))] {
        let world = World::new();
        assert_eq!(world.look(0, "a", None).await, None);
        assert_eq!(world.asked(), 1, "{what}: made");
        for second in 1..6 {
            assert_eq!(world.look(second, "a", seen).await, None, "{what}");
            assert_ne!(world.asked(), 0, "{what}");
        }
        assert_eq!(world.look(6, "a", seen).await, Some(119), "{what}");
        assert_eq!(world.asked(), 0, "{what}");
        assert_eq!(world.look(7, "b", seen).await, None, "{what}: an edit is no repair");
        assert_ne!(world.asked(), 0, "{what}");
    }
}

#[tokio::test]
async fn an_original_that_takes_a_child_back_is_a_contest_and_no_fight() {
    let world = World::new();
    let evidence = Evidence {
        manager: None,
        last: None,
        marks_gone: true,
    };
    let now = Timestamp::from_second(1_000_000).unwrap();
    let contests = &world.children.contests;
    contests.wait(Kind::Deployment, &world.key, &evidence, now);
    contests.settle(Kind::Deployment, &world.key, now);
    for second in 0..10 {
        assert_eq!(world.look(second, "a", None).await, None);
        world.asked();
    }
}

#[tokio::test]
async fn what_berth_deletes_and_makes_again_is_no_repair() {
    let world = World::new();
    for second in 0..10 {
        assert_eq!(world.look(second, "a", None).await, None);
        world.prune(second).await;
        world.asked();
    }
}

#[tokio::test]
async fn an_edit_is_carried_out_at_once() {
    let world = World::new();
    let changed = world.seen("a", "x");
    for second in 0..6 {
        world.look(second, "a", Some(&changed)).await;
    }
    world.asked();
    assert_eq!(world.look(7, "b", Some(&changed)).await, None);
    assert_eq!(world.asked(), 2);
    assert_eq!(world.look(8, "b", Some(&world.seen("b", "b"))).await, None);
}
