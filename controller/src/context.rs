//! What every part of the controller is given.

use std::sync::Arc;

use kube::Client;

use crate::args::Settings;
use crate::cluster::Cluster;
use crate::events::Events;
use crate::metrics::Metrics;
use crate::placement::Explanations;

/// Handles to the outside and to the picture.
#[derive(Clone)]
pub struct Context {
    /// Kubernetes client for requests (watches make their own calls through it too).
    pub client: Client,
    /// The picture of the cluster.
    pub cluster: Arc<Cluster>,
    /// How this installation behaves.
    pub settings: Arc<Settings>,
    /// Events on objects.
    pub events: Events,
    /// What Prometheus is told.
    pub metrics: Arc<Metrics>,
    /// Why placement decided as it did, for people who ask.
    pub explanations: Explanations,
}
