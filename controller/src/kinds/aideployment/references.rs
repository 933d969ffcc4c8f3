//! Which AIDeployments refer to which AIModelMaps, so that a map's change is told to those and no others.

use std::collections::{BTreeSet, HashMap};

use berth_crds::premlabs::AIDeployment;
use kube::ResourceExt;
use parking_lot::Mutex;

use super::models;
use crate::cluster::ObjectKey;
use crate::kinds::watch::{Guarded, News, key_of};

/// Both directions.
#[derive(Debug, Default)]
pub struct References(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    from: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    to: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
}

impl References {
    /// AIDeployments that refer to a map.
    pub fn to(&self, map: &ObjectKey) -> Vec<ObjectKey> {
        self.0.lock().to.get(map).into_iter().flatten().cloned().collect()
    }

    /// Takes what became known of AIDeployments.
    pub fn news(&self, news: &News<'_, AIDeployment>) {
        let mut inner = self.0.lock();
        match news {
            News::Is(object) => inner.set(key_of(*object), maps_of(object)),
            News::Gone(key) => inner.set((*key).clone(), BTreeSet::new()),
            News::All(objects) => {
                *inner = Inner::default();
                for object in *objects {
                    inner.set(key_of(object.as_ref()), maps_of(object));
                }
            }
        }
    }
}

impl Inner {
    fn set(&mut self, object: ObjectKey, maps: BTreeSet<ObjectKey>) {
        let before = self.from.remove(&object).unwrap_or_default();
        for map in before.difference(&maps) {
            if let Some(objects) = self.to.get_mut(map) {
                objects.remove(&object);
                if objects.is_empty() {
                    self.to.remove(map);
                }
            }
        }
        for map in maps.difference(&before) {
            self.to.entry(map.clone()).or_default().insert(object.clone());
        }
        if !maps.is_empty() {
            self.from.insert(object, maps);
        }
    }
}

fn maps_of(object: &Guarded<AIDeployment>) -> BTreeSet<ObjectKey> {
    match &object.0 {
        Ok(object) => models::referred(&object.namespace().unwrap_or_default(), &object.spec),
        Err(_) => BTreeSet::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::core::DeserializeGuard;

    use super::*;
    use crate::kinds::aideployment::fixtures::aideployment;

    fn object(name: &str, maps: &[&str]) -> Arc<Guarded<AIDeployment>> {
        let models: Vec<String> = maps
            .iter()
            .map(|m| format!("{{modelMapRef: {{{m}, variant: v}}}}"))
            .collect();
        let spec = format!("{{engine: {{name: vllm}}, models: [{}]}}", models.join(", "));
        Arc::new(DeserializeGuard(Ok(aideployment(name, &spec))))
    }

    fn key(namespace: &str, name: &str) -> ObjectKey {
        (namespace.into(), name.into())
    }

    #[test]
    fn a_map_is_told_to_those_that_refer_to_it() {
        let references = References::default();
        references.news(&News::Is(&object(
            "a",
            &["name: x", "name: x", "name: z, namespace: other"],
        )));
        references.news(&News::Is(&object("b", &["name: x, namespace: ''"])));
        assert_eq!(references.to(&key("shop", "x")), [key("shop", "a"), key("shop", "b")]);
        assert_eq!(references.to(&key("other", "z")), [key("shop", "a")]);
        assert!(references.to(&key("shop", "z")).is_empty());

        references.news(&News::Is(&object("a", &["name: z"])));
        assert_eq!(references.to(&key("shop", "x")), [key("shop", "b")]);
        assert_eq!(references.to(&key("shop", "z")), [key("shop", "a")]);
        references.news(&News::Gone(&key("shop", "a")));
        references.news(&News::Gone(&key("shop", "never-there")));
        assert!(references.to(&key("shop", "z")).is_empty());

        references.news(&News::All(&[object("c", &["name: x"])]));
        assert_eq!(references.to(&key("shop", "x")), [key("shop", "c")], "b is gone");
        references.news(&News::All(&[]));
        let inner = references.0.lock();
        assert!(inner.from.is_empty() && inner.to.is_empty());
    }
}
