//! Finalizers that an original put on its objects. Nobody is left to take them away, so Berth does; it adds none.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};

use crate::kinds::children::apply::timed;
use crate::kinds::error::Error;
use crate::kinds::status;
use crate::kinds::watch::memory::Memories;
use crate::kinds::watch::{key_of, kind_of};
use crate::placement::patch::operations_patch;

/// An original that runs puts its finalizer back, which is not fought over: between two removals passes at least this.
pub const PAUSE: Duration = Duration::from_secs(60);

/// Takes away an original's finalizer, where an object has it.
pub async fn remove<K, S>(client: &Client, memories: &Memories<S>, object: &K, foreign: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = ()>,
    S: Clone,
{
    let operations = without(object.finalizers(), foreign);
    if operations.is_empty() {
        return Ok(());
    }
    let key = key_of(object);
    let now = status::now();
    let is_recent = memories.get(&key).finalizer_removed.is_some_and(|then| {
        let since: Duration = now.duration_since(then).try_into().unwrap_or_default();
        since < PAUSE
    });
    if is_recent && object.meta().deletion_timestamp.is_none() {
        return Ok(());
    }
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.0, &ApiResource::erase::<K>(&()));
    let patch: Patch<()> = operations_patch(operations);
    let params = PatchParams::default();
    let kind = kind_of::<K>();
    let what = (kind, key.0.as_str(), key.1.as_str());
    timed(
        "remove a finalizer of",
        what,
        api.patch_metadata(&key.1, &params, &patch),
    )
    .await?;
    tracing::info!(
        kind,
        namespace = key.0,
        name = key.1,
        "the original operator's finalizer was taken away"
    );
    memories.change(&key, |m| m.finalizer_removed = Some(now));
    Ok(())
}

/// The last first, so that places stay right; each is tested, since another may go at the same time.
fn without(finalizers: &[String], foreign: &str) -> Vec<Value> {
    let places = finalizers.iter().enumerate().rev();
    places
        .filter(|(_, name)| *name == foreign)
        .flat_map(|(place, name)| {
            let path = format!("/metadata/finalizers/{place}");
            [
                json!({"op": "test", "path": path, "value": name}),
                json!({"op": "remove", "path": path}),
            ]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_original_s_go() {
        let finalizers = ["a/b".to_owned(), "mlmodel.finalizer".into(), "c".into(), "a/b".into()];
        assert!(without(&finalizers, "x").is_empty());
        assert_eq!(
            without(&finalizers, "a/b"),
            [
                json!({"op": "test", "path": "/metadata/finalizers/3", "value": "a/b"}),
                json!({"op": "remove", "path": "/metadata/finalizers/3"}),
                json!({"op": "test", "path": "/metadata/finalizers/0", "value": "a/b"}),
                json!({"op": "remove", "path": "/metadata/finalizers/0"}),
            ]
        );
    }
}
