//! Which node a waiting pod goes to, and why.
//!
//! ```text
//! Ask ───────────────┐
//! NodeView ─► Fleet ─┴─► filter (first Miss of a node: why it is out, by how much) ──► score ──► decide ──► Decision
//! ```
//!
//! The kubelet, not Berth, picks the device on the node. So a node counts only if every device that it may still hand out is ready, of
//! a wanted class and has the wanted free memory.

mod column;

pub mod ask;
pub mod decide;
pub mod filter;
pub mod fleet;
pub mod miss;
pub mod node;
pub mod resources;
pub mod score;
pub mod selector;

pub use ask::Ask;
pub use decide::{Candidate, Decision, NoFitReason, Rejected, decide};
pub use fleet::Fleet;
pub use miss::{Miss, Stage};
pub use node::NodeView;
pub use resources::Resources;
pub use score::Terms;
