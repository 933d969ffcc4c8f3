//! One folder a kind, all with the same rooms: fetch (I/O) → validate (pure) → build (pure) → apply (I/O, shared) → status (pure).

pub mod autonodelabeler;

use crate::context::Context;

/// Serves every kind, until the process ends.
pub async fn run(_context: Context) {
    std::future::pending().await
}
