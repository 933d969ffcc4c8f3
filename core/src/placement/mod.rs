//! Which node a waiting pod goes to, and why.
//!
//! ```text
//! Ask ──► filter (first reason a node is out, and by how much) ──► score ──► Decision
//! NodeView ─┘
//! ```
//!
//! The kubelet, not Berth, picks the device on the node. So a node counts only if every device that it may still hand out is ready, of
//! a wanted class and has the wanted free memory.

pub mod ask;
pub mod node;
pub mod resources;

pub use ask::Ask;
pub use node::NodeView;
pub use resources::Resources;
