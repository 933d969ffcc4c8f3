//! Finalizers that an original put on its objects. Nobody is left to take them away, so Berth does; it adds none.

use kube::api::{Patch, PatchParams};
use kube::core::DynamicObject;
use kube::{Api, Resource};
use serde_json::{Value, json};

use crate::kinds::apply::timed;
use crate::kinds::error::Error;
use crate::placement::patch::operations_patch;

/// Takes away the finalizers of `foreign` from an object. True: there were any.
pub async fn remove(
    api: &Api<DynamicObject>,
    what: (&'static str, &str, &str),
    object: &impl Resource,
    foreign: &[&str],
) -> Result<bool, Error> {
    let finalizers = object.meta().finalizers.clone().unwrap_or_default();
    let operations = without(&finalizers, foreign);
    if operations.is_empty() {
        return Ok(false);
    }
    let patch: Patch<()> = operations_patch(operations);
    let params = PatchParams::default();
    timed(
        "remove a finalizer of",
        what,
        api.patch_metadata(what.2, &params, &patch),
    )
    .await?;
    Ok(true)
}

/// The last first, so that places stay right; each is tested, since another may go at the same time.
fn without(finalizers: &[String], foreign: &[&str]) -> Vec<Value> {
    let places = finalizers.iter().enumerate().rev();
    places
        .filter(|(_, name)| foreign.contains(&name.as_str()))
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
        assert!(without(&finalizers, &["x"]).is_empty());
        assert_eq!(
            without(&finalizers, &["mlmodel.finalizer", "a/b"]),
            [
                json!({"op": "test", "path": "/metadata/finalizers/3", "value": "a/b"}),
                json!({"op": "remove", "path": "/metadata/finalizers/3"}),
                json!({"op": "test", "path": "/metadata/finalizers/1", "value": "mlmodel.finalizer"}),
                json!({"op": "remove", "path": "/metadata/finalizers/1"}),
                json!({"op": "test", "path": "/metadata/finalizers/0", "value": "a/b"}),
                json!({"op": "remove", "path": "/metadata/finalizers/0"}),
            ]
        );
    }
}
