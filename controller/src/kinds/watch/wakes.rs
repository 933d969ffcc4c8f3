//! Whom a child's change is told: the kind of its owner.

use std::sync::Arc;

use kube::Resource;

use crate::cluster::{ObjectKey, Queue};
use crate::kinds::children::OwnerKey;

/// A queue of objects to look at for each kind that has children.
#[derive(Debug, Default)]
pub struct Wakes(Vec<(String, Arc<Queue<ObjectKey>>)>);

impl Wakes {
    /// Adds a kind; its objects that are to be looked at.
    pub fn of<K: Resource<DynamicType = ()>>(&mut self) -> Arc<Queue<ObjectKey>> {
        let queue = Arc::new(Queue::default());
        self.0.push((K::kind(&()).into_owned(), queue.clone()));
        queue
    }

    /// A child of this owner changed. One without an owner reference may be of any kind's object of its name.
    pub fn owner(&self, owner: OwnerKey) {
        for (kind, queue) in &self.0 {
            if owner.kind.is_empty() || owner.kind == *kind {
                queue.push(owner.key.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use berth_crds::premlabs::{AIDeployment, AIModelMap};
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_child_wakes_the_kind_of_its_owner() {
        let mut wakes = Wakes::default();
        let (deployments, maps) = (wakes.of::<AIDeployment>(), wakes.of::<AIModelMap>());
        for (kind, name) in [("AIModelMap", "a"), ("AIDeployment", "b"), ("", "c"), ("Other", "d")] {
            wakes.owner(OwnerKey {
                kind: kind.into(),
                key: ("ns".into(), name.into()),
            });
        }
        let taken = |queue: &Queue<ObjectKey>| -> BTreeSet<String> {
            let batch = queue.next_batch(Duration::ZERO).now_or_never().unwrap();
            batch.into_iter().map(|(_, name)| name).collect()
        };
        assert_eq!(taken(&deployments), ["b", "c"].map(str::to_owned).into());
        assert_eq!(taken(&maps), ["a", "c"].map(str::to_owned).into());
    }
}
