//! One folder a kind, all with the same rooms: fetch (what is watched) → validate (pure) → build (pure) → apply (shared, I/O) →
//! status (pure). Four folders are shared by all kinds.
//!
//! ```text
//! watch      objects of a kind, and when each is looked at ──┐
//! children   what Berth made, as last seen                   ├─► a kind's look at one object ─► children (apply, adoption)
//! workload   its pods, their GPUs, who scales them           ┘                               └► status (conditions, Events)
//! ```

mod aideployment;
mod aimodel;
mod aimodelmap;
mod autonodelabeler;
mod children;
mod config_map;
mod dns;
mod error;
#[cfg(test)]
mod examples;
mod mlmodel;
mod modeldeployment;
mod status;
mod watch;
mod workload;

pub use children::is_older;

use std::sync::Arc;

use berth_crds::premlabs::{AIDeployment, AIModelMap};
use berth_crds::sathvik::{ModelDeployment, keys};
use berth_crds::tmforum::MLModel;
use berth_crds::youxam::AIModel;

use crate::cluster::ObjectKey;
use crate::context::Context;

/// Serves every kind, until the process ends.
pub async fn run(context: Context) {
    let children = Arc::new(children::Children::default());
    let runtime_classes = Arc::new(workload::runtime_classes::RuntimeClasses::default());
    let maps = Arc::new(watch::Objects::<AIModelMap>::default());
    let references = Arc::new(aideployment::references::References::default());
    let mut wakes = watch::wakes::Wakes::default();
    let aideployments_to_look_at = wakes.of::<AIDeployment>();
    let maps_to_look_at = wakes.of::<AIModelMap>();
    let aimodels_to_look_at = wakes.of::<AIModel>();
    let mlmodels_to_look_at = wakes.of::<MLModel>();
    let modeldeployments_to_look_at = wakes.of::<ModelDeployment>();

    let watch_children = children.run(context.client.clone(), &context.metrics, |owner| wakes.owner(owner));
    let watch_classes = {
        let (wakes, children) = (&wakes, children.clone());
        let classes = runtime_classes.clone();
        let context = &context;
        async move {
            // Whoever names a RuntimeClass waits for it: its Deployment's owner is looked at again.
            let tell = || {
                children
                    .owners(children::Kind::Deployment)
                    .into_iter()
                    .for_each(|o| wakes.owner(o))
            };
            classes.run(context, tell).await;
        }
    };
    let autoscalers = Arc::new(workload::autoscalers::Autoscalers::default());
    let watch_autoscalers = {
        let autoscalers = autoscalers.clone();
        let (aideployments, aimodels) = (aideployments_to_look_at.clone(), aimodels_to_look_at.clone());
        let modeldeployments = modeldeployments_to_look_at.clone();
        let context = &context;
        async move {
            let tell = |deployment: ObjectKey| {
                if let Some(name) = keys::of_server(&deployment.1) {
                    modeldeployments.push((deployment.0.clone(), name.to_owned()));
                }
                if let Some(name) = aimodel::of_deployment(&deployment.1) {
                    aimodels.push((deployment.0.clone(), name.to_owned()));
                }
                aideployments.push(deployment);
            };
            autoscalers.run(context, tell).await;
        }
    };
    let labelers = autonodelabeler::run(context.clone());
    let aimodelmaps = aimodelmap::serve::run(context.clone(), children.clone(), maps.clone(), maps_to_look_at, {
        let (references, queue) = (references.clone(), aideployments_to_look_at.clone());
        move |map| references.to(map).into_iter().for_each(|key| queue.push(key))
    });
    let aimodels = aimodel::serve::run(
        context.clone(),
        aimodel::Seen {
            children: children.clone(),
            runtime_classes: runtime_classes.clone(),
            autoscalers: autoscalers.clone(),
        },
        aimodels_to_look_at,
    );
    let mlmodels = mlmodel::serve::run(
        context.clone(),
        children.clone(),
        runtime_classes.clone(),
        mlmodels_to_look_at,
    );
    let modeldeployments = modeldeployment::serve::run(
        context.clone(),
        modeldeployment::Seen {
            children: children.clone(),
            runtime_classes: runtime_classes.clone(),
            autoscalers: autoscalers.clone(),
        },
        modeldeployments_to_look_at,
    );
    let seen = aideployment::Seen {
        children: children.clone(),
        runtime_classes,
        autoscalers,
        maps,
        references,
    };
    let aideployments = aideployment::serve::run(context.clone(), seen, aideployments_to_look_at.clone());
    tokio::join!(
        watch_children,
        watch_classes,
        watch_autoscalers,
        labelers,
        aimodelmaps,
        aimodels,
        mlmodels,
        modeldeployments,
        aideployments
    );
}
