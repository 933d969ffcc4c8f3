//! AIModel: workers that take a model's requests from a Pulsar topic, as a Deployment that KEDA scales by the topic's backlog.
//!
//! ```text
//! Events of workers ─► reports ┐
//! fetch (what is watched) ─────┴► errors ─► validate ─► build ─► apply ─► status
//!                                 pure      pure        pure     requests  pure, one request where it changed
//! ```

pub mod build;
pub mod errors;
pub mod fetch;
#[cfg(test)]
pub mod fixtures;
pub mod reports;
pub mod status;
pub mod validate;
