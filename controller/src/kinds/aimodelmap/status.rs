//! What is told about an AIModelMap. Pure.

use berth_crds::conditions;
use berth_crds::premlabs::AIModelMapStatus;
use jiff::Timestamp;

use crate::kinds::status::acceptance::{Acceptance, accepted};

/// All that a status is computed from.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// Generation that was looked at.
    pub generation: Option<i64>,
    /// Whether the spec could be carried out.
    pub acceptance: &'a Acceptance,
    /// The status before.
    pub before: &'a AIModelMapStatus,
    /// Now.
    pub now: Timestamp,
}

/// The status as it should be.
pub fn status(view: &View<'_>) -> AIModelMapStatus {
    AIModelMapStatus {
        conditions: conditions::merge(
            &view.before.conditions,
            &[accepted(view.acceptance)],
            view.generation,
            view.now,
        ),
    }
}
