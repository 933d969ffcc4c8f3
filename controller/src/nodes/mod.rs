//! The only writer of Node labels.

use crate::context::Context;

/// Keeps node labels in step with the picture, until the process ends.
pub async fn run(_context: Context) {
    std::future::pending().await
}
