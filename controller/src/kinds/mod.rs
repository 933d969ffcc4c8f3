//! One folder a kind, all with the same rooms: fetch (what is watched) → validate (pure) → build (pure) → apply (shared, I/O) →
//! status (pure).
//!
//! ```text
//! children        what Berth made, as last seen         ┐
//! runtime_classes                                       ├─► a kind's look at one object
//! cluster         pods and placement's conclusions      ┘        │
//! apply ◄── subset (does it still hold?) ◄── intents ◄───────────┘
//! status ◄── notices, memory, error (when to look again)
//! ```

mod aideployment;
mod apply;
mod autonodelabeler;
mod children;
mod error;
#[cfg(test)]
mod examples;
mod memory;
mod problems;
mod runtime_classes;
mod status;
mod subset;
mod unreadable;

pub use children::is_older;

use std::sync::Arc;

use crate::cluster::Queue;
use crate::context::Context;

/// Serves every kind, until the process ends.
pub async fn run(context: Context) {
    let children = Arc::new(children::Children::default());
    let runtime_classes = Arc::new(runtime_classes::RuntimeClasses::default());
    let changed = Arc::new(Queue::default());
    let watch_children = children.run(context.client.clone(), |owner| changed.push(owner));
    let watch_classes = {
        let (changed, children) = (changed.clone(), children.clone());
        let classes = runtime_classes.clone();
        let client = context.client.clone();
        async move {
            // Whoever names a RuntimeClass waits for it: its Deployment's owner is looked at again.
            let tell = || {
                children
                    .owners(children::Kind::Deployment)
                    .into_iter()
                    .for_each(|o| changed.push(o))
            };
            classes.run(client, tell).await;
        }
    };
    let labelers = autonodelabeler::run(context.clone());
    let aideployments = aideployment::serve::run(context, children.clone(), runtime_classes, changed.clone());
    tokio::join!(watch_children, watch_classes, labelers, aideployments);
}
